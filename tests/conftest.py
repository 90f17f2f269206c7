"""A fixture of several files; and what lets torchvision, which torchattacks and timm import, be imported here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).with_name("every_process")))
import missing_operators

missing_operators.declare()

# An example that is the first to compile native code takes as long as the machine is busy: no test is a clock.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="module")
def without_fsync() -> Iterator[None]:
    """Nobody pulls the plug in these tests; waiting for the disk would take most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield
