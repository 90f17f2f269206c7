"""Compression by zstd: what is decompressed has exactly the size that the reader expects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

from ensadv_data.errors import ChunkError

__all__ = ["zstd_decode", "zstd_encode"]


def zstd_encode(data: bytes | npt.NDArray[np.uint8], *, level: int) -> bytes:
    """Compress a plane, with zstd's own checksum."""
    return bytes(Zstd(level=level, checksum=True).encode(data))


def zstd_decode(data: bytes, *, size: int) -> npt.NDArray[np.uint8]:
    """Decompress a plane into exactly ``size`` bytes.

    Raises
    ------
    ChunkError
        The bytes are corrupted, or hold another number of bytes.
    """
    # The library checks the upper bound only: a shorter frame would leave the end of ``out`` as it was in memory.
    if _announced_size(data) != size:
        raise ChunkError(f"expected {size} bytes of zstd data, got a frame of {_announced_size(data)}")
    out = np.empty(size, np.uint8)
    try:
        Zstd().decode(data, out)
    except (RuntimeError, ValueError) as error:
        raise ChunkError(f"expected {size} bytes of zstd data: {error}") from None
    return out


def _announced_size(data: bytes) -> int:
    """How many bytes a zstd frame says that it holds (RFC 8878, section 3.1.1.1); 0 where it does not say."""
    flags = data[4] if len(data) > 4 else 0
    single_segment = flags >> 5 & 1
    start = 6 - single_segment + (0, 1, 2, 4)[flags & 3]
    width = (single_segment, 2, 4, 8)[flags >> 6]
    return int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0)
