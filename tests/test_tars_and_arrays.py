"""WebDataset tars and Zarr groups of one's own."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zarr

from ensadv_data.data import Dataset, digest_examples, digest_of, open_dataset, zarrays
from ensadv_data.data.decoding import decode_image
from ensadv_data.data.tars import samples_of
from ensadv_data.errors import DataError, IntegrityError, QuantityError, UnknownNameError
from ensadv_data.spec import PreprocessSpec
from photographs import cut_photographs

SMALL = PreprocessSpec(size=16)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory) -> list[bytes]:
    folder = cut_photographs(tmp_path_factory.mktemp("cut"), classes=2, train=5, test=1)
    return [path.read_bytes() for path in sorted(folder.glob("train/*/*.jpg"))]


def add(tar: tarfile.TarFile, name: str, data: bytes, **about: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in about.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def write_tar(path: Path, samples: list[tuple[str, bytes, str]], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for key, blob, label in samples:
            add(tar, f"{key}.jpg", blob)
            add(tar, f"{key}.cls", label.encode())
            add(tar, f"{key}.json", b"{}")
    return path


@pytest.fixture
def tars(tmp_path, blobs) -> Path:
    root = tmp_path / "tars"
    write_tar(root / "train" / "b-1.tar", [(f"deep/n{i}.v", blob, str(i % 3)) for i, blob in enumerate(blobs[6:])])
    write_tar(root / "train" / "a-0.tar", [(f"{'k' * 120}{i}", blob, f"{i}\n") for i, blob in enumerate(blobs[:3])])
    write_tar(root / "test" / "c.tar", [("x", blobs[0], "4")], format=tarfile.PAX_FORMAT)
    return root


def opened(root: Path, split: str = "train", **more):
    return open_dataset(f"wds:{root}", split, data_dir=root.parent / "index", preprocess=SMALL, **more)


def test_tars_are_read_at_random(tars, blobs):
    # a dot in a key would end it: n0.v.jpg has the key n0 and the extension v.jpg
    with pytest.raises(DataError, match=r"b-1\.tar: 'deep/n0': expected one image .* got 'v\.cls, v\.jpg, v\.json'"):
        opened(tars)
    write_tar(tars / "train" / "b-1.tar", [(f"deep/n{i}", blob, str(i % 3)) for i, blob in enumerate(blobs[6:])])
    data = opened(tars)
    expected = np.stack([decode_image(blob, SMALL) for blob in (*blobs[:3], *blobs[6:])])
    assert isinstance(data, Dataset)
    assert (len(data), data.shape, data.classes, data.name) == (7, (3, 16, 16), 5, "wds:tars")
    images, labels = data.read(np.array([6, 0, 3, 3]))
    assert (images == expected[[6, 0, 3, 3]]).all()
    assert labels.tolist() == [0, 0, 0, 0]
    assert data.read(np.arange(7))[1].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert data.digest == digest_of([digest_examples(expected)])
    assert data.listing.name(4) == "b-1.tar/deep/n1.jpg"
    assert opened(tars, "test").classes == 5
    assert (opened(tars).read(np.arange(7))[0] == expected).all()


def test_a_bad_image_in_a_tar_is_named_or_skipped(tmp_path, blobs):
    root = tmp_path / "tars"
    write_tar(root / "train" / "a.tar", [("one", blobs[0], "0"), ("two", b"", "1"), ("three", blobs[2], "1")])
    with pytest.raises(DataError, match=r"1 of 3 bad: a\.tar/two\.jpg: .*empty"):
        _ = opened(root).digest
    data = opened(root, on_bad_image="skip")
    assert data.read(np.arange(2))[1].tolist() == [0, 1]
    assert data.preparation()["skipped_first"][0][0] == "a.tar/two.jpg"


def test_tars_that_changed_are_noticed_by_name(tars, blobs):
    write_tar(tars / "train" / "b-1.tar", [("n", blobs[6], "0")])
    data = opened(tars)
    _ = data.digest
    write_tar(tars / "train" / "a-0.tar", [("other", blobs[9], "0"), *((f"k{i}", blobs[i], "1") for i in range(3))])
    with pytest.raises(IntegrityError, match=r"a-0\.tar changed since it was indexed; .* delete"):
        opened(tars)
    with pytest.raises((IntegrityError, DataError), match=r"a-0\.tar/kkk"):
        data.read(np.array([0]))
    (tars / "train" / "a-0.tar").unlink()
    with pytest.raises(IntegrityError, match=r"a-0\.tar is gone"):
        opened(tars)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path, _: path.write_bytes(path.read_bytes()[:2000]), "without an end"),
        (lambda path, _: path.write_bytes(b"no tar" + bytes(2000)), "uncompressed tar"),
        (lambda path, blobs: write_tar(path, [("a", blobs[0], "dog")]), "expected a class from 0 on, got b'dog'"),
        (lambda path, blobs: write_tar(path, [("a", blobs[0], "-1")]), "expected a class from 0 on"),
        (lambda path, blobs: write_tar(path, [("a", blobs[0], "9" * 30)]), "expected a class from 0 on"),
        (lambda path, blobs: write_tar(path, [(k, blobs[0], "1") for k in "aba"]), "beside each other"),
        (lambda path, _: write_tar(path, []), r"expected samples in the \.tar files, found none"),
        (lambda path, _: path.unlink(), r"expected \.tar files, uncompressed, found none"),
    ],
)
def test_what_is_no_tar_of_samples_is_refused(tmp_path, blobs, damage, message):
    path = write_tar(tmp_path / "tars" / "train" / "a.tar", [("a", blobs[0], "1")])
    damage(path, blobs)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "tars")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_members_that_are_no_files_are_refused(tmp_path, kind):
    path = tmp_path / "tars" / "train" / "a.tar"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        add(tar, "a.jpg", b"", type=kind, linkname="/etc/passwd")
        add(tar, "a.cls", b"0")
    with pytest.raises(DataError, match=r"'a\.jpg': expected regular members only"):
        opened(tmp_path / "tars")


# Zarr


def write_group(folder: Path, n: int = 10, *, dtype: str = "uint8", labels: list[int] | None = None) -> zarr.Group:
    group = zarr.open_group(str(folder), mode="w", zarr_format=3)
    pixels = np.random.Generator(np.random.Philox(n)).integers(1, 256, (n, 3, 6, 5)).astype(dtype)
    group.create_array("images", data=pixels, chunks=(4, 3, 6, 5))
    group.create_array("labels", data=np.array(labels if labels is not None else np.arange(n) % 4 + 1, np.int32))
    return group


def test_a_zarr_group_is_a_data_set(tmp_path):
    root = tmp_path / "arrays"
    group = write_group(root / "train")
    write_group(root / "val", 3, labels=[0, 6, 1])
    data = open_dataset(f"zarr:{root}", "train", data_dir=tmp_path / "index")
    pixels = group["images"][:]
    assert isinstance(data, Dataset)
    assert (len(data), data.shape, data.classes, data.name) == (10, (3, 6, 5), 7, "zarr:arrays")
    images, labels = data.read(np.array([9, 0, 4, 4]))
    assert (images == pixels[[9, 0, 4, 4]]).all()
    assert labels.tolist() == [2, 1, 1, 1]
    assert data.digest == digest_of([digest_examples(pixels)])
    assert data.example_digests().tolist() == digest_examples(pixels).tolist()
    limited = open_dataset(f"zarr:{root}", "train", data_dir=tmp_path / "index", limit=3)
    assert (len(limited), limited.digest, len(limited.example_digests())) == (3, data.digest, 3)
    assert limited.labels().tolist() == data.labels()[:3].tolist() == [1, 2, 3]
    with pytest.raises(QuantityError):
        limited.read(np.array([3]))


def test_many_threads_find_the_digests_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(zarrays, "_ROWS", 3)
    pixels = write_group(tmp_path / "arrays" / "train", 50)["images"][:]
    asked = set()
    read = zarrays.ZarrImages._images

    def noted(self: zarrays.ZarrImages, rows: np.ndarray) -> np.ndarray:
        asked.add(threading.get_ident())
        time.sleep(0.01)
        return read(self, rows)

    monkeypatch.setattr(zarrays.ZarrImages, "_images", noted)
    data = open_dataset(f"zarr:{tmp_path}/arrays", "train", data_dir=tmp_path / "index", threads=3)
    assert data.example_digests().tolist() == digest_examples(pixels).tolist()
    assert len(asked) == 3


def test_changed_arrays_have_another_digest(tmp_path):
    root = tmp_path / "arrays"
    group = write_group(root / "train")
    first = open_dataset(f"zarr:{root}", "train", data_dir=tmp_path / "index").digest
    group["images"][0, 0, 0, 0] = 0
    os.utime(root / "train" / "images" / "c" / "0" / "0" / "0" / "0", ns=(1, 1))
    assert open_dataset(f"zarr:{root}", "train", data_dir=tmp_path / "index").digest != first


def test_what_is_no_group_of_images_is_refused(tmp_path):
    root = tmp_path / "arrays"

    def refused(message: str) -> None:
        with pytest.raises(DataError, match=message):
            open_dataset(f"zarr:{root}", "train", data_dir=tmp_path / "index")

    (root / "train").mkdir(parents=True)
    refused("expected a Zarr group")
    write_group(root / "train", dtype="float32")
    refused(r"expected images uint8 of shape \(N, C, H, W\), got float32 of shape \(10, 3, 6, 5\)")
    write_group(root / "train", labels=[0, 1])
    refused(r"expected integer labels of shape \(10,\)")
    write_group(root / "train", labels=[-1] * 10)
    refused("expected labels from 0 on")
    write_group(root / "train")
    (root / "train" / "images" / "c" / "1" / "0" / "0" / "0").unlink()
    refused("images: expected all of its 3 chunks, found 2")
    write_group(root / "train")
    chunk = root / "train" / "images" / "c" / "1" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:7])
    data = open_dataset(f"zarr:{root}", "train", data_dir=tmp_path / "index")
    with pytest.raises(DataError, match="expected chunks that can be read"):
        data.read(np.array([5]))
    with pytest.raises(UnknownNameError, match="zarr:PATH"):
        open_dataset("zarr:", "train")


# Tars that are meant to do harm


def tar_field(raw: bytes, begin: int, end: int, value: bytes) -> bytes:
    """A tar whose first header says something else there, under a right checksum."""
    block = bytearray(raw[:512])
    block[begin:end] = value.ljust(end - begin, b"\0")
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
    return bytes(block) + raw[512:]


def small_tar(*names: str) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
        for name in names:
            about = tarfile.TarInfo(name)
            about.size = 1
            tar.addfile(about, io.BytesIO(b"1"))
    return raw.getvalue()


HARMLESS = small_tar("0.jpg", "0.cls")
EXTENDED = tar_field(tar_field(HARMLESS, 156, 157, b"x"), 124, 136, b"00000000000")[:512]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "raw",
    [
        tar_field(HARMLESS, 124, 136, b"\xff" * 10 + b"\xfc\x00"),  # the next member is before this one
        tar_field(HARMLESS, 124, 136, b"\x80" + b"\x7f" * 11),
        tar_field(tar_field(HARMLESS, 156, 157, b"x"), 124, 136, b"77777777777"),  # 8 GiB of extended header
        tar_field(tar_field(HARMLESS, 156, 157, b"L"), 124, 136, b"77777777777"),
        tar_field(tar_field(HARMLESS, 156, 157, b"x"), 124, 136, b"\xff" * 12),
        EXTENDED * 20_000 + HARMLESS,
    ],
)
def test_a_tar_that_is_meant_to_do_harm_is_refused(raw):
    with pytest.raises(DataError, match=r"expected an uncompressed tar that can be read|without an end"):
        list(samples_of(io.BytesIO(raw), "it"))


def test_members_are_not_kept():
    names = [f"{number:06d}.{end}" for number in range(4_000) for end in ("jpg", "cls")]
    raw = io.BytesIO(small_tar(*names))
    tracemalloc.start()
    try:
        assert sum(1 for _ in samples_of(raw, "it")) == 4_000
        assert tracemalloc.get_traced_memory()[1] < 400 * 4_000
    finally:
        tracemalloc.stop()


def test_names_in_a_tar_do_nothing_to_a_terminal():
    with pytest.raises(DataError) as caught:
        list(samples_of(io.BytesIO(small_tar("\x1b[2J.jpg", "\x1b[2J.txt")), "it"))
    assert str(caught.value).isprintable()
