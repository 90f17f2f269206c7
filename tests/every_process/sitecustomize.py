"""For processes that tests start, as conftest.py is for their own: torchvision can be imported beside CPU-only torch.

With this folder in PYTHONPATH, the operators whose extension is missing are declared before torchvision is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec


class _BeforeTorchvision:
    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import missing_operators

            missing_operators.declare()
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
