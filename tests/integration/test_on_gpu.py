"""The checks of a GPU, on the CPU: that they check something, and end well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "on_gpu.py"


@pytest.mark.slow
def test_the_checks_of_a_gpu_hold_on_the_cpu():
    words = [sys.executable, str(SCRIPT), "--device", "cpu", "--nets", "D", "--limit", "192"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "all as it should be" in ended.stdout
    assert "NOT AS IT SHOULD BE" not in ended.stdout
    for what in ("precomputed twice", "stopped and resumed", "torchrun of one", "approximation ratio", "verify"):
        assert what in ended.stdout


def test_a_device_that_is_not_there_is_said():
    words = [sys.executable, str(SCRIPT), "--device", "moon"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "expected cpu, or cuda where there is one, got 'moon'" in ended.stderr
