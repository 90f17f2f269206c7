"""Signs, deltas, random bits and zstd: laws over generated input, golden bytes, refusals."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ensadv_data.codec import (
    apply_deltas,
    apply_signs,
    pack_signs,
    quantise_deltas,
    random_bits,
    row_bytes,
    unpack_signs,
)
from ensadv_data.errors import InputError
from laws import holds_golden_bytes, is_bit_equal, is_idempotent, is_pure, survives_round_trip

quick = settings(max_examples=60, deadline=None)
widths = st.integers(1, 600)
heights = st.integers(1, 5)
seeds = st.integers(0, 2**32 - 1)
words = st.integers(0, 2**63 - 1)


def make_signs(n: int, d: int, seed: int, *, zeros: bool) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if zeros:
        return generator.integers(-1, 2, (n, d)).astype(np.int8)
    return (2 * generator.integers(0, 2, (n, d)) - 1).astype(np.int8)


def make_pixels(n: int, d: int, seed: int, dtype: type) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if dtype is np.uint8:
        return generator.integers(0, 256, (n, d), dtype=np.uint8)
    return generator.random((n, d), dtype=np.float32)


# Signs ↔ bits


@quick
@given(heights, widths, seeds, st.booleans())
def test_signs_survive_the_round_trip_through_bits(n, d, seed, zeros):
    values = make_signs(n, d, seed, zeros=zeros)
    for law in (survives_round_trip, is_idempotent):
        law(pack_signs, lambda planes: unpack_signs(*planes, d=d), values)


@quick
@given(heights, widths, seeds, st.booleans())
def test_planes_have_the_size_and_the_clean_end_of_the_format(n, d, seed, zeros):
    values = make_signs(n, d, seed, zeros=zeros)
    direction, nonzero = pack_signs(values)
    assert row_bytes(d) == -(-d // 8)
    assert (nonzero is None) == bool((values != 0).all())
    for plane in (direction,) if nonzero is None else (direction, nonzero):
        assert plane.dtype == np.uint8
        assert plane.shape == (n, row_bytes(d))
        if d % 8:
            assert not (plane[:, -1] >> d % 8).any()
    if nonzero is not None:
        assert not (direction & ~nonzero).any()  # a zero is written 0 in both planes


@quick
@given(st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.int16, np.int64]), heights, widths, seeds)
def test_only_the_sign_matters_whatever_the_dtype(dtype, n, d, seed):
    values = (np.random.default_rng(seed).integers(-3, 4, (n, d)) * 7).astype(dtype)
    assert is_bit_equal(pack_signs(values), pack_signs(np.sign(values).astype(np.int8)))


def test_tiny_infinite_and_negative_zero_values_keep_their_sign():
    values = np.array([[5e-324, -5e-324, np.inf, -np.inf, 0.0, -0.0]])
    direction, nonzero = pack_signs(values)
    assert unpack_signs(direction, nonzero, d=6).tolist() == [[1, -1, 1, -1, 0, 0]]


@quick
@given(heights, st.integers(1, 5000), seeds, st.booleans(), st.sampled_from(["C", "F"]))
def test_packing_of_float32_is_that_of_numpy(n, d, seed, zeros, order):
    """Widths on both sides of a tile, any memory layout, values down to the smallest that float32 has."""
    values = np.random.default_rng(seed).integers(-3 if zeros else 1, 4, (n, d)).astype(np.float32)
    values = np.asarray(values * np.float32(1e-45), order=order)
    direction, nonzero = pack_signs(values)
    assert np.array_equal(direction, np.packbits(values > 0, axis=1, bitorder="little"))
    assert (nonzero is None) == bool((values != 0).all())
    if nonzero is not None:
        assert np.array_equal(nonzero, np.packbits(values != 0, axis=1, bitorder="little"))


def test_golden_bytes_of_the_planes():
    # by hand: value i is bit i % 8, lowest first, of byte i // 8
    row = np.array([[1, -1, -1, 1, 1, 1, -1, -1, -1, 1]])  # 0b00111001, 0b10
    holds_golden_bytes(lambda v: pack_signs(v)[0], row, "39 02")
    assert pack_signs(row)[1] is None
    with_zeros = np.array([[0, 1, -1, 0, 0, 1, 1, -1, 0, -1, 1]])  # 0b01100010, 0b100
    holds_golden_bytes(lambda v: pack_signs(v)[0], with_zeros, "62 04")
    holds_golden_bytes(lambda v: pack_signs(v)[1], with_zeros, "E6 06")
    assert unpack_signs(np.array([[0x62, 0x04]], np.uint8), np.array([[0xE6, 0x06]], np.uint8), d=11).tolist() == (
        with_zeros.tolist()
    )


def test_bits_beyond_the_row_are_ignored():
    assert unpack_signs(np.array([[0xFF]], np.uint8), d=3).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("values", [np.ones(8), np.ones((2, 3, 4))])
def test_packing_refuses_other_than_two_dimensions(values):
    with pytest.raises(InputError, match=rf"expected values of shape \(N, D\), got {re.escape(str(values.shape))}"):
        pack_signs(values)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_packing_refuses_nan(dtype):
    with pytest.raises(InputError, match="got NaN"):
        pack_signs(np.array([[1.0, np.nan]], dtype))


@pytest.mark.parametrize(
    ("direction", "nonzero", "message"),
    [
        (np.zeros((2, 13), np.uint8), None, r"shape \(N, 12\) for D = 96, got uint8 \(2, 13\); were they made"),
        (np.zeros((2, 12), np.int8), None, r"expected uint8 signs .* got int8 \(2, 12\)"),
        (np.zeros(12, np.uint8), None, r"got uint8 \(12,\)"),
        (np.zeros((2, 12), np.uint8), np.zeros((2, 11), np.uint8), r"got uint8 \(2, 11\)"),
        (np.zeros((2, 12), np.uint8), np.zeros((3, 12), np.uint8), r"expected 2 rows in the mask, got 3"),
    ],
)
def test_planes_that_do_not_fit_are_refused(direction, nonzero, message):
    with pytest.raises(InputError, match=message):
        unpack_signs(direction, nonzero, d=96)
    images = np.zeros((2 if direction.ndim == 2 else 12, 96), np.uint8)
    with pytest.raises(InputError, match=message):
        apply_signs(images, direction, nonzero, epsilon=np.zeros(len(images), np.float32))


# Signs → images


@quick
@given(heights, widths, seeds, st.booleans(), st.sampled_from([np.uint8, np.float32]), st.booleans())
def test_applied_signs_equal_the_formula_bit_for_bit(n, d, seed, zeros, dtype, in_place):
    x, values = make_pixels(n, d, seed, dtype), make_signs(n, d, seed + 1, zeros=zeros)
    epsilon = np.random.default_rng(seed + 2).random(n, dtype=np.float32)
    pixels = torch.from_numpy(x.copy())
    pixels = pixels / 255 if dtype is np.uint8 else pixels
    expected = (pixels + torch.from_numpy(epsilon)[:, None] * torch.from_numpy(values)).clamp(0, 1)
    planes = pack_signs(values)
    if in_place:
        out = x if dtype is np.float32 else np.full((n, d), np.nan, np.float32)
        assert apply_signs(x, *planes, epsilon=epsilon, out=out) is out
        assert is_bit_equal(out, expected.numpy())
    else:
        assert is_bit_equal(is_pure(apply_signs, x, *planes, epsilon=epsilon), expected.numpy())


def test_every_grey_level_at_every_256th_of_epsilon_equals_the_formula():
    levels = np.tile(np.arange(256, dtype=np.uint8), (257, 2))
    values = np.repeat(np.array([[1, -1]], np.int8), 256, axis=1).repeat(257, axis=0)
    epsilon = (np.arange(257) / 256).astype(np.float32)
    expected = (torch.from_numpy(levels) / 255 + torch.from_numpy(epsilon[:, None] * values)).clamp(0, 1)
    assert is_bit_equal(apply_signs(levels, *pack_signs(values), epsilon=epsilon), expected.numpy())


def test_rows_that_are_not_contiguous_are_read_in_place_order():
    x, values = make_pixels(6, 40, 0, np.uint8), make_signs(6, 40, 1, zeros=True)
    direction, nonzero = pack_signs(values)
    epsilon = np.full(6, 0.3, np.float32)
    expected = apply_signs(x[::2].copy(), direction[::2].copy(), nonzero[::2].copy(), epsilon=epsilon[::2].copy())
    assert is_bit_equal(apply_signs(x[::2], direction[::2], nonzero[::2], epsilon=epsilon[::2]), expected)


@pytest.mark.parametrize(
    ("x", "epsilon", "out", "message"),
    [
        (np.zeros((2, 8)), None, None, r"expected uint8 or float32 images of shape \(2, D\), got float64 \(2, 8\)"),
        (np.zeros((3, 8), np.uint8), None, None, r"images of shape \(2, D\), got uint8 \(3, 8\)"),
        (np.zeros(8, np.uint8), None, None, r"images of shape \(2, D\), got uint8 \(8,\)"),
        (np.zeros((2, 2, 4), np.uint8), None, None, r"images of shape \(2, D\), got uint8 \(2, 2, 4\)"),
        (None, np.zeros(2), None, r"one float32 epsilon a row, \(2,\), got float64 \(2,\)"),
        (None, np.zeros(3, np.float32), None, r"one float32 epsilon a row, \(2,\), got float32 \(3,\)"),
        (None, None, np.zeros((2, 9), np.float32), r"expected out of float32 \(2, 8\), got float32 \(2, 9\)"),
        (None, None, np.zeros((2, 8)), r"expected out of float32 \(2, 8\), got float64 \(2, 8\)"),
    ],
)
def test_images_epsilon_and_out_that_do_not_fit_are_refused(x, epsilon, out, message):
    x = np.zeros((2, 8), np.uint8) if x is None else x
    epsilon = np.zeros(2, np.float32) if epsilon is None else epsilon
    with pytest.raises(InputError, match=message):
        apply_signs(x, np.zeros((2, 1), np.uint8), epsilon=epsilon, out=out)
    with pytest.raises(InputError, match=message):
        apply_deltas(x, np.zeros((2, 8), np.int8), epsilon=epsilon, out=out)


# Deltas


@quick
@given(heights, widths, seeds, st.floats(1e-3, 1.0))
def test_quantised_deltas_stay_in_the_ball_and_near_the_value(n, d, seed, epsilon):
    delta = np.random.default_rng(seed).uniform(-epsilon, epsilon, (n, d))
    delta.flat[0] = epsilon
    delta.flat[-1] = -epsilon
    q = is_pure(quantise_deltas, delta, epsilon=epsilon)
    assert q.dtype == np.int8
    assert q.shape == (n, d)
    back = epsilon * q.astype(np.float64) / 127
    assert np.abs(q.astype(np.int16)).max() <= 127
    assert np.abs(back).max() <= epsilon * (1 + 1e-15)
    assert np.abs(back - delta).max() <= epsilon / 254 * (1 + 1e-9)
    is_idempotent(lambda v: quantise_deltas(v, epsilon=epsilon), lambda v: epsilon * v.astype(np.float64) / 127, delta)


def test_golden_bytes_of_deltas():
    delta = np.array([[0.3, -0.3, 0.0, 0.3 / 127, -0.15]], np.float64)
    holds_golden_bytes(lambda v: quantise_deltas(v, epsilon=0.3), delta, "7f 81 00 01 c0")  # −63.5 rounds to even


@pytest.mark.parametrize("delta", [0.31, -0.31, np.nan, np.inf])
def test_deltas_outside_the_ball_are_refused(delta):
    with pytest.raises(InputError, match=r"expected perturbations within epsilon = 0\.3, got"):
        quantise_deltas(np.array([[0.1, delta]]), epsilon=0.3)


@pytest.mark.parametrize("epsilon", [0.0, -0.1])
def test_deltas_need_an_epsilon(epsilon):
    with pytest.raises(InputError, match="expected epsilon above 0"):
        quantise_deltas(np.zeros((1, 4)), epsilon=epsilon)


@quick
@given(heights, widths, seeds, st.sampled_from([np.uint8, np.float32]), st.booleans())
def test_applied_deltas_equal_the_formula(n, d, seed, dtype, in_place):
    x = make_pixels(n, d, seed, dtype)
    q = np.random.default_rng(seed + 1).integers(-127, 128, (n, d)).astype(np.int8)
    epsilon = np.random.default_rng(seed + 2).random(n, dtype=np.float32)
    pixels = torch.from_numpy(x.copy())
    pixels = pixels / 255 if dtype is np.uint8 else pixels
    step = torch.from_numpy(q).float() * (torch.from_numpy(epsilon) / 127)[:, None]
    expected = (pixels + step).clamp(0, 1)
    out = x if in_place and dtype is np.float32 else None
    got = apply_deltas(x, q, epsilon=epsilon, out=out)
    assert out is None or got is out
    assert is_bit_equal(got, expected.numpy())
    exact = pixels.double().numpy() + epsilon[:, None].astype(np.float64) * q / 127
    assert np.abs(got - exact.clip(0, 1)).max() < 1e-6


@pytest.mark.parametrize("q", [np.zeros((2, 1), np.int8), np.zeros((2, 8), np.int16), np.zeros((2, 8, 1), np.int8)])
def test_deltas_of_another_shape_or_dtype_are_refused(q):
    message = rf"expected int8 deltas of shape \(2, 8\), got {q.dtype} {re.escape(str(q.shape))}"
    with pytest.raises(InputError, match=message):
        apply_deltas(np.zeros((2, 8), np.uint8), q, epsilon=np.zeros(2, np.float32))


# Random bits


def philox_bits(seed: int, draw: int, example: int, stream: int, d: int) -> np.ndarray:
    """numpy's own generator: the oracle."""
    generator = np.random.Philox(
        key=np.array([seed, draw], np.uint64), counter=np.array([0, example, stream, 0], np.uint64)
    )
    raw = np.asarray(generator.random_raw(-(-d // 64)), np.uint64).astype("<u8")
    bits = np.unpackbits(raw.view(np.uint8), bitorder="little")[:d]
    return np.packbits(bits, bitorder="little")


@quick
@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.tuples(words, words), min_size=1, max_size=4),
    st.integers(1, 1200),
    st.integers(0, 2**64 - 1),
)
def test_random_bits_are_those_of_numpy_philox(seed, names, d, stream):
    draws, examples = np.array(names, np.int64).T
    got = is_pure(random_bits, seed, draws, examples, d=d, stream=stream)
    expected = np.stack([philox_bits(seed, draw, example, stream, d) for draw, example in names])
    assert is_bit_equal(got, expected)


def test_golden_bytes_of_random_bits():
    """The first words of Philox4x64-10 at key 0 and counter 1: stores and recipes of every version rest on them."""
    bits = random_bits(0, np.zeros(1, np.int64), np.zeros(1, np.int64), d=128)
    assert is_bit_equal(bits[0], philox_bits(0, 0, 0, 0, 128))
    holds_golden_bytes(lambda v: v, bits, "9b d8 e4 08 64 ba f4 02 b2 c5 a8 9c 0b 2b d6 3d")


def test_random_bits_are_fair_and_independent_between_names():
    examples = np.arange(2000)
    signs = unpack_signs(random_bits(7, np.zeros_like(examples), examples, d=784), d=784).astype(np.float64)
    assert abs(signs.mean()) < 5 / np.sqrt(signs.size)
    for other in (
        random_bits(8, np.zeros_like(examples), examples, d=784),
        random_bits(7, np.ones_like(examples), examples, d=784),
        random_bits(7, np.zeros_like(examples), examples + 1, d=784),
        random_bits(7, np.zeros_like(examples), examples, d=784, stream=1),
    ):
        assert abs((signs * unpack_signs(other, d=784)).mean()) < 5 / np.sqrt(signs.size)


@pytest.mark.parametrize(
    ("seed", "draws", "examples", "stream", "message"),
    [
        (0, [0], [0, 1], 0, r"one shape \(N,\), got \(1,\) and \(2,\)"),
        (0, [[0]], [[0]], 0, r"one shape \(N,\), got \(1, 1\)"),
        (-1, [0], [0], 0, "got seed -1"),
        (2**64, [0], [0], 0, "got seed 18446744073709551616"),
        (0, [-1], [0], 0, "draws from -1"),
        (0, [0], [-2], 0, "examples from -2"),
        (0, [0], [0], -1, "stream -1"),
    ],
)
def test_names_that_are_no_counters_are_refused(seed, draws, examples, stream, message):
    with pytest.raises(InputError, match=message):
        random_bits(seed, np.array(draws), np.array(examples), d=8, stream=stream)
