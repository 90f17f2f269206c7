"""Rotation against two other libraries, flips by their definition, and what a shifted data set is."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ensadv_data.data import ArrayDataset, open_dataset, shifted
from ensadv_data.data.shift import flip_pixels, rotate
from ensadv_data.errors import EnsadvError, InputError
from ensadv_data.evaluation.run import evaluate
from ensadv_data.models import build_model, save_model
from ensadv_data.spec import DataSpec, EvaluateSpec, ShiftSpec


@pytest.fixture(scope="module")
def digits():
    return open_dataset("mnist-mini", "test").read(np.arange(30))[0]


@pytest.mark.parametrize("degrees", [20, -20, 7.5, 90, 180])
def test_rotation_is_scipy_s(digits, degrees):
    ours = rotate(digits, degrees).astype(int)
    # with a margin of zeros: scipy does not blend the border with the outside, as we do
    padded = np.pad(digits.astype(float), ((0, 0), (0, 0), (4, 4), (4, 4)))
    theirs = scipy.ndimage.rotate(padded, degrees, axes=(3, 2), order=1, reshape=False)[:, :, 4:-4, 4:-4]
    assert np.abs(ours - theirs).max() < 1.01


def test_rotation_is_counter_clockwise_as_pillow_s(digits):
    theirs = np.array(Image.fromarray(digits[0, 0]).rotate(20, resample=Image.Resampling.BILINEAR)).astype(int)
    ours, opposite = (rotate(digits[:1], degrees)[0, 0].astype(int) for degrees in (20, -20))
    assert np.abs(ours - theirs).mean() < 3 < np.abs(opposite - theirs).mean()


@pytest.mark.parametrize("shape", [(2, 3, 10, 10), (1, 1, 6, 14)])
def test_rotation_of_any_shape(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert (rotate(images, 0) == images).all()
    assert (rotate(images, 180) == images[:, :, ::-1, ::-1]).all()
    if shape[2] == shape[3]:
        assert (rotate(images, 90) == np.rot90(images, axes=(2, 3))).all()


@given(st.integers(0, 2**32), st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_flips_change_just_so_many_pixels_in_all_channels(seed, count):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (3, 2, 5, 4), dtype=np.uint8)
    before = images.copy()
    flipped = flip_pixels(images, count, seed=seed, examples=np.array([4, 9, 2]))
    assert (images == before).all()
    changed = flipped != images  # 255 − x is never x
    assert (changed[:, 0] == changed[:, 1]).all()
    assert (changed[:, 0].reshape(3, -1).sum(axis=1) == count).all()
    assert (flipped[changed].astype(int) == 255 - images[changed].astype(int)).all()
    alone = flip_pixels(images[1:2], count, seed=seed, examples=np.array([9]))
    assert (alone[0] == flipped[1]).all(), "an image's pixels depend on its own index only"


def test_a_shifted_data_set_has_a_name_and_a_digest_of_its_own():
    data = open_dataset("mnist-mini", "test", limit=20)
    moved = shifted(data, ShiftSpec(rotate=20.0, flip=5), seed=3)
    assert (moved.name, moved.split, len(moved)) == ("mnist-mini+rotate=20,flip=5", "test", 20)
    assert moved.digest != data.digest
    images, labels = data.read(np.arange(20))
    expected = flip_pixels(rotate(images, 20), 5, seed=3, examples=np.arange(20))
    assert (moved.read(np.arange(20))[0] == expected).all()
    assert (moved.read(np.arange(20))[1] == labels).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("turn=5", "unknown key of shift 'turn=5'; known: flip, rotate"),
        ("rotate", "key of shift: expected rotate=VALUE, got 'rotate'"),
        ("rotate=fast", "rotate: expected a number"),
        ("rotate=200", "rotate"),
        ("flip=-1", "flip"),
        ("flip=2.5", "flip"),
    ],
)
def test_a_shift_that_is_none_is_refused(text, words):
    with pytest.raises(EnsadvError, match=words):
        EvaluateSpec(shift=text)


def test_more_flips_than_pixels_are_refused():
    data = ArrayDataset(np.zeros((2, 1, 3, 3), np.uint8), np.zeros(2, np.int64), name="x", split="test", classes=2)
    with pytest.raises(InputError, match="at most the 9 pixels of an image, got 10"):
        shifted(data, ShiftSpec(flip=10))


def test_an_evaluation_is_of_the_shifted_images(tmp_path):
    net = build_model("D", shape=(1, 28, 28), classes=10)
    save_model(tmp_path / "d.safetensors", net, architecture="D", shape=(1, 28, 28), classes=10, record={})
    spec = EvaluateSpec(suite="table1", images=30, shift="rotate=20,flip=5", seed=2)
    got = evaluate(spec, DataSpec(data="mnist-mini"), targets={"d": str(tmp_path / "d.safetensors")}, sources={})
    assert got.data == "mnist-mini+rotate=20,flip=5/test"
    moved = shifted(open_dataset("mnist-mini", "test", limit=30), ShiftSpec(rotate=20.0, flip=5), seed=2)
    images, labels = moved.read(np.arange(30))
    with torch.no_grad():
        answers = net.eval()(torch.from_numpy(images).float() / 255).argmax(1).numpy()
    assert got.targets[0].clean.errors == (answers != labels).sum()
