"""What --compile gains: a block of precompute with models that torch.compile has compiled, and with models as they are.

    python benchmarks/compiled.py [--architecture A,B,C,D] [--rounds 9] [--json FILE]

Blocks as in precompute.py, under FGSM, batches of 64, one thread. The compiler's own time is the first block's, less
that of a later one. It needs a C++ compiler where there is no GPU.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from figures import arguments_of, report, rounded
from precompute import first_block

from ensadv_data.bench import save_untrained
from ensadv_data.data import open_dataset
from ensadv_data.dist import intra_op_threads
from ensadv_data.memory import keep_freed_memory
from ensadv_data.timing import measure, ratio

IMAGES = 10_000  # of the store


def compared(architecture: str, folder: Path, rounds: int) -> dict[str, Any]:
    """The figures of an architecture."""
    model = {"m": save_untrained(architecture, open_dataset("mnist-mini", "train"), folder / "m.safetensors", seed=0)}
    plain = first_block(model, ("fgsm",), IMAGES, folder / "plain")
    compiled = first_block(model, ("fgsm",), IMAGES, folder / "compiled", compile=True)
    began = time.perf_counter()
    compiled()
    first = time.perf_counter() - began
    timings = measure({"plain": plain, "compiled": compiled}, rounds=rounds)
    return {
        "seconds_to_compile": round(first - timings["compiled"].median, 1),
        "plain_over_compiled": rounded(ratio(timings, "plain", "compiled")),
    }


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(__doc__, architecture={"default": "A,B,C,D"})
    keep_freed_memory()
    found = {}
    for architecture in arguments.architecture.split(","):
        with tempfile.TemporaryDirectory() as folder, intra_op_threads(1):
            found[architecture] = compared(architecture, Path(folder), arguments.rounds)
    report(arguments, {"threads": 1, "batch_size": 64, "architectures": found})


if __name__ == "__main__":
    main()
