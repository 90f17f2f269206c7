"""What the C library does with the memory that tensors leave behind."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# glibc's malloc.h: parameters of mallopt
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST = 2**30  # bytes; a tensor above it goes back to the system at once, as all above 32 MiB did


def keep_freed_memory() -> bool:
    """Let this process reuse freed tensors instead of giving each back to the system and asking for it again.

    A convolution on CPU takes and frees the same tens of megabytes in every step. By default glibc maps them anew each
    time, and the kernel clears every page: for architecture C a fifth of a step (docs/guide.md, *On CPU*). The
    process then holds what it needed at its peak until it ends, and results are not touched. It is for processes that
    are this package's own: commands, the stages of a recipe, workers. Call it before threads are started.

    Returns
    -------
    bool
        Whether it took effect: False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    done = [
        set_option(option, value)
        for option, value in ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _LARGEST), (_ARENA_MAX, 1))
    ]
    return all(done)
