"""docs/format.md is true: its reader, its examples and its formulas are run against stores of ours."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs.zstd import Zstd

from ensadv_data.codec import random_bits, row_bytes, unpack_signs
from ensadv_data.manifest import Manifest
from ensadv_data.spec import parse_augment
from ensadv_data.store import block_size, open_store
from ensadv_data.views import Views, cut
from test_store import make_images, make_store

pytestmark = pytest.mark.usefixtures("without_fsync")

DOCUMENT = Path(__file__).parent.parent / "docs" / "format.md"
KEYS = ("m/fgsm", "other*/r-step-ll", "other*/pgd")


def code(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the last block of Python defines."""
    names: dict[str, Any] = {}
    exec(compile(code("python")[-1], str(DOCUMENT), "exec"), names)  # noqa: S102 - our own page
    return names


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("n", [1, 17, 40])
def test_the_reader_on_the_page_reads_what_ours_reads(tmp_path, names, n, zeros):
    values = make_store(tmp_path / "s", make_images(n, shape=(1, 3, 7)), KEYS, draws=2, zeros=zeros)
    store = open_store(tmp_path / "s")
    rows = np.arange(n)
    for key in KEYS:
        for draw in range(2):
            got = names["read"](tmp_path / "s", key, draw, Zstd().decode)
            planes = store.gather(store.entry(key), np.full(n, draw), rows)
            ours = planes.delta if planes.delta is not None else unpack_signs(planes.direction, planes.nonzero, d=21)
            assert got.dtype == np.int8
            assert (got == ours).all()
            assert (got == values[key][draw]).all()


def test_the_reader_on_the_page_refuses_what_is_corrupted_or_unfinished(tmp_path, names):
    make_store(tmp_path / "s", make_images(20), ("m/r-fgsm",))
    chunk = tmp_path / "s/m/r-fgsm/direction/c/0/4/0"
    data = bytearray(chunk.read_bytes())
    data[1] ^= 8
    chunk.write_bytes(data)
    with pytest.raises(ValueError, match="c/0/4/0 is corrupted"):
        names["read"](tmp_path / "s", "m/r-fgsm", 0, Zstd().decode)
    (tmp_path / "s/manifest.json").unlink()
    with pytest.raises(ValueError, match="no complete store"):
        names["read"](tmp_path / "s", "m/r-fgsm", 0, Zstd().decode)


def test_the_reader_on_the_page_is_short_and_needs_numpy_only():
    text = code("python")[-1]
    assert len([line for line in text.splitlines() if line.strip()]) <= 32
    assert set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)) == {"json", "pathlib", "numpy"}


def test_the_metadata_on_the_page_is_that_of_a_store(tmp_path):
    make_store(tmp_path / "s", make_images(3, shape=(1, 2, 5)), ("m/fgsm", "m/r-fgsm"))
    (shown,) = (json.loads(text) for text in code("json"))
    assert shown == json.loads((tmp_path / "s/m/r-fgsm/direction/zarr.json").read_text())
    frames = {"codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 3, "checksum": True}}]}
    assert shown | frames == json.loads((tmp_path / "s/m/fgsm/direction/zarr.json").read_text())


@pytest.mark.parametrize(("seed", "k", "image", "stream"), [(0, 0, 0, 0), (2**63 - 1, 3, 59_999, 2)])
@pytest.mark.parametrize("d", [1, 64, 784, 1000])
def test_the_random_signs_on_the_page_are_ours(seed, k, image, stream, d):
    names: dict[str, Any] = {"np": np, "seed": seed, "k": k, "image": image, "stream": stream, "D": d}
    exec(code("python")[0], names)  # noqa: S102 - our own page
    bits = random_bits(seed, np.array([k]), np.array([image]), d=d, stream=stream)
    assert (unpack_signs(bits, d=d)[0] == names["r"]).all()


@pytest.mark.parametrize("text", ["crop=3,flip", "crop", "flip", "random-resized-crop,flip", "random-resized-crop=1"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 33, 21)])
def test_the_views_on_the_page_are_ours(text, shape):
    names: dict[str, Any] = {"np": np}
    exec(code("python")[1], names)  # noqa: S102 - our own page
    augment, images = parse_augment(text), make_images(30, shape=shape).images_NCHW
    seed = int.from_bytes(hashlib.sha256(b"str:views\0int:7").digest()[:8], "little") >> 1
    examples, draws = np.arange(30), np.full(30, 2)
    found = cut(images, Views.of(augment, 7).boxes(shape, draws=draws, examples=examples))
    asked = (augment.padding(shape), augment.area, augment.flip)
    for example in examples:
        words = np.random.Philox(key=seed + (2 << 64), counter=(int(example) << 64) + (4 << 128)).random_raw(41)
        assert (names["view"](images[example], words, *asked) == found[example]).all()


@pytest.mark.parametrize(("n", "d"), [(1, 1), (17, 784), (60_000, 784), (1_281_167, 268_203)])
def test_the_block_size_on_the_page_is_ours(n, d):
    blocks = min(n, max(16, -(-n * row_bytes(d) // 2**25)))
    assert block_size(n, d) == -(-n // blocks)


def test_the_page_names_every_key(tmp_path):
    text = DOCUMENT.read_text(encoding="utf-8")
    make_store(tmp_path / "s", make_images(3), ("m/fgsm",))
    for group in ("", "m", "m/fgsm"):
        for key in json.loads((tmp_path / "s" / group / "zarr.json").read_text())["attributes"]:
            assert f"`{key}`" in text
    for key in Manifest.model_fields:
        assert f"`{key}`" in text
