"""Freed memory is reused instead of being mapped and cleared again; seen by counting the kernel's page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from ensadv_data import memory

COUNT = """
import resource, sys
from ensadv_data.memory import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
size = 48 * 2**20  # above what glibc keeps by itself
for turn in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    data = bytearray(size)
    data[::4096] = b"x" * len(data[::4096])
    del data
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(choice: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", COUNT, choice], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the choice is glibc's")
def test_memory_that_was_freed_is_not_asked_for_again():
    _, *left = map(int, run("leave"))
    kept, _, *later = run("keep")
    assert kept == "True"
    assert min(left) > 8, "the system's default has changed: is the choice still needed?"
    assert 8 * sum(map(int, later)) < sum(left)


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())  # as musl has it
    assert memory.keep_freed_memory() is False
