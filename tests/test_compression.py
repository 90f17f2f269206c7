"""zstd: what is compressed comes back, and what is corrupted is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensadv_data.compression import zstd_decode, zstd_encode
from ensadv_data.errors import ChunkError
from laws import is_idempotent, survives_round_trip

quick = settings(max_examples=60, deadline=None)


def compress(data: bytes) -> bytes:
    return zstd_encode(data, level=15)


@quick
@given(
    st.one_of(
        st.binary(min_size=1, max_size=2000),
        st.builds(lambda b, n: b * n, st.binary(min_size=1, max_size=20), st.integers(1, 4000)),
    )
)
def test_the_mask_survives_compression(data):
    survives_round_trip(compress, lambda packed: zstd_decode(packed, size=len(data)).tobytes(), data)
    is_idempotent(compress, lambda packed: zstd_decode(packed, size=len(data)).tobytes(), data)


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=300), st.data())
def test_a_changed_byte_is_noticed_or_harmless(data, draws):
    packed = bytearray(compress(data * 3))
    packed[draws.draw(st.integers(0, len(packed) - 1))] ^= draws.draw(st.integers(1, 255))
    try:
        got = zstd_decode(bytes(packed), size=3 * len(data)).tobytes()
    except ChunkError:
        return
    assert got == data * 3  # zstd has one unused bit in its header


@pytest.mark.parametrize("length", [1, 255, 256, 65_791, 65_792, 200_000])
def test_another_length_is_noticed(length):
    packed = compress(bytes(length))
    assert zstd_decode(packed, size=length).tobytes() == bytes(length)
    for size in {0, 1, length - 1, length + 1, 2 * length + 2} - {-1, length}:
        with pytest.raises(ChunkError, match=f"expected {size} bytes of zstd data, got a frame of {length}"):
            zstd_decode(packed, size=size)


@pytest.mark.parametrize("keep", [0, 1, 4, 5, 6, 12, -1])
def test_a_truncated_mask_is_noticed(keep):
    with pytest.raises(ChunkError, match="expected 1000 bytes of zstd data"):
        zstd_decode(compress(np.random.default_rng(0).bytes(1000))[:keep], size=1000)


def test_what_follows_the_frame_is_noticed():
    packed = compress(bytes(1000))
    with pytest.raises(ChunkError, match="expected 1000 bytes"):
        zstd_decode(packed + packed, size=1000)
