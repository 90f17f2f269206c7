"""Compression by zstd: what is decompressed has exactly the size that the reader expects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

from ensadv_data.errors import ChunkError

__all__ = ["zstd_bound", "zstd_decode", "zstd_encode"]

_MAGIC = b"\x28\xb5\x2f\xfd"


def zstd_bound(size: int) -> int:
    """The most bytes that a frame of ``size`` bytes may have: what cannot be compressed is stored, in blocks."""
    return size + 3 * (size // 1024 + 1) + 18


def zstd_encode(data: bytes | npt.NDArray[np.uint8], *, level: int) -> bytes:
    """Compress a plane, with zstd's own checksum."""
    return bytes(Zstd(level=level, checksum=True).encode(data))


def zstd_decode(data: bytes, *, size: int) -> npt.NDArray[np.uint8]:
    """Decompress a plane into exactly ``size`` bytes.

    Raises
    ------
    ChunkError
        The bytes are corrupted, or anything else than one frame that announces ``size`` bytes and has a checksum;
        nothing was allocated for another size.
    """
    # Looked at before anything is allocated; the library would also take several frames, and what it does not know.
    if (fault := _fault(data, size)) is not None:
        raise ChunkError(f"expected {size} bytes of zstd data, {fault}")
    out = np.empty(size, np.uint8)
    try:
        Zstd().decode(data, out)
    except (RuntimeError, ValueError) as error:
        raise ChunkError(f"expected {size} bytes of zstd data: {error}") from None
    return out


def _fault(data: bytes, size: int) -> str | None:
    """What keeps some bytes from being one zstd frame of so many bytes with a checksum (RFC 8878, section 3.1.1)."""
    if data[:4] != _MAGIC or len(data) < 6:
        return "got what is no frame of it"
    flags = data[4]
    single_segment = flags >> 5 & 1
    start = 6 - single_segment
    width = (single_segment, 2, 4, 8)[flags >> 6]
    announced = int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0)
    if flags & 3 or announced != size or not width:
        return f"got a frame of {announced}" if width and not flags & 3 else "got a frame that does not say its size"
    if not flags & 4:
        return "got a frame without a checksum"
    at, is_last = start + width, 0
    while not is_last:  # the blocks: three bytes each, then their data; one byte where it repeats
        header = int.from_bytes(data[at : at + 3], "little")
        is_last, kind = header & 1, header >> 1 & 3
        at += 3 + (1 if kind == 1 else header >> 3)
        if at > len(data):
            return "got a frame that is cut off"
    return None if at + 4 == len(data) else f"got {len(data) - at - 4:+} bytes beyond the end of the frame"
