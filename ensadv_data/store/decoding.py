"""The rows of a chunk from its bytes: raw with a checksum behind them, or one zstd frame."""

from __future__ import annotations

import google_crc32c
import numpy as np
import numpy.typing as npt

from ensadv_data.compression import zstd_decode
from ensadv_data.errors import ChunkError

__all__ = ["decode_chunk"]

U8 = npt.NDArray[np.uint8]


def decode_chunk(data: U8, *, size: int, raw: bool) -> U8:
    """The rows of a chunk: without a copy where they are raw, and with none but theirs where they were compressed.

    Parameters
    ----------
    data
        uint8, the object's bytes.
    size
        Bytes of the rows.
    raw
        Whether they are followed by a checksum, rather than in one zstd frame.

    Raises
    ------
    ChunkError
        They have another size, or the checksum does not match.
    """
    if not raw:
        return zstd_decode(data.tobytes(), size=size)
    if len(data) != size + 4:
        raise ChunkError(f"expected {size + 4} bytes, found {len(data)}; the chunk is truncated")
    if int(google_crc32c.value(data[:size])) != int.from_bytes(data[size:].tobytes(), "little"):
        raise ChunkError("the checksum does not match; the chunk is corrupted")
    return data[:size]
