"""The data sets: digests, IDX files, the search for them, the embedded images and the fetching."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import importlib.util
import re
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import ensadv_data.data as data
from ensadv_data.data import (
    DATASETS,
    ArrayDataset,
    Dataset,
    digest_examples,
    digest_of,
    idx,
    open_dataset,
    opening,
)
from ensadv_data.data import fetch as fetching
from ensadv_data.errors import (
    DataError,
    EnsadvError,
    InputError,
    OutputError,
    QuantityError,
    UnknownNameError,
)

ROOT = Path(__file__).resolve().parents[1]
MINI = Path(data.__file__).parent / "mnist-mini"
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def write_idx(array: np.ndarray) -> bytes:
    """An IDX writer of the tests' own: magic, sizes, bytes."""
    magic = {1: 0x801, 3: 0x803}[array.ndim]
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()


def make_contents(seed: int, *, counts: tuple[int, int] = (60, 30)) -> dict[str, bytes]:
    """Four IDX files of a small data set with every class equally often, in a mixed order."""
    rng = np.random.default_rng(seed)
    contents = {}
    for prefix, count in zip(("train", "t10k"), counts, strict=True):
        labels = rng.permutation(np.arange(count) % 10)
        contents[f"{prefix}-images-idx3-ubyte"] = write_idx(rng.integers(0, 256, (count, 4, 4), np.uint8))
        contents[f"{prefix}-labels-idx1-ubyte"] = write_idx(labels)
    return contents


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_source(name: str, contents: dict[str, bytes]) -> idx.Source:
    known = {file: idx.KnownFile(len(content), sha256(content)) for file, content in contents.items()}
    return idx.Source(name=name, classes=10, files=known)


def write_files(folder: Path, contents: dict[str, bytes], *, suffix: str = ".gz") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        (folder / f"{file}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    return folder


def one_line(error: pytest.ExceptionInfo[EnsadvError]) -> str:
    """The message, which gives expected and got, in one line."""
    message = str(error.value)
    assert "\n" not in message
    assert "expected" in message
    assert "got" in message
    return message


@pytest.fixture
def contents() -> dict[str, bytes]:
    return make_contents(1)


@pytest.fixture
def small(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """``mnist`` and ``fashion-mnist`` are small data sets here, and nothing outside tmp_path is looked at."""
    monkeypatch.setitem(idx.SOURCES, "mnist", make_source("mnist", contents))
    monkeypatch.setitem(idx.SOURCES, "fashion-mnist", make_source("fashion-mnist", make_contents(2)))
    monkeypatch.setattr(opening, "SYSTEM_HOMES", (tmp_path / "usr", tmp_path / "usr-local"))
    monkeypatch.setattr(opening, "cache_home", lambda: tmp_path / "cache")
    monkeypatch.setattr(fetching, "cache_home", lambda: tmp_path / "cache")
    for variable in ("ENSADV_DATA_HOME", "ENSADV_MIRRORS"):
        monkeypatch.delenv(variable, raising=False)
    return contents


# ---------------------------------------------------------------- the public face


def test_public_face() -> None:
    assert sorted(data.__all__) == [
        "ArrayDataset",
        "DATASETS",
        "Dataset",
        "Opened",
        "PLACES",
        "absolute_data",
        "digest_examples",
        "digest_of",
        "open_data",
        "open_dataset",
        "shifted",
    ]
    assert DATASETS == ("mnist-mini", "mnist", "fashion-mnist") == tuple(idx.SOURCES)


def test_table_names_four_files_of_each_data_set_with_the_size_that_the_counts_imply() -> None:
    counts = {"mnist-mini": (10_000, 2_000), "mnist": (60_000, 10_000), "fashion-mnist": (60_000, 10_000)}
    for name, source in idx.SOURCES.items():
        train, test = counts[name]
        assert tuple(source.files) == FILES
        sizes = [known.size for known in source.files.values()]
        assert sizes == [16 + 784 * train, 8 + train, 16 + 784 * test, 8 + test]
    digests = [known.sha256 for source in idx.SOURCES.values() for known in source.files.values()]
    assert len(set(digests)) == 12
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)


# ---------------------------------------------------------------- digests and arrays


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4, max_side=5)))
def test_example_digest_is_the_documented_bytes(images: np.ndarray) -> None:
    digests = [sha256(struct.pack("<III", *image.shape) + image.tobytes()) for image in images]
    expected = [int.from_bytes(bytes.fromhex(digest)[:8], "little") for digest in digests]
    found = digest_examples(images)
    assert found.dtype == np.uint64
    assert found.tolist() == expected
    assert digest_of([found]) == sha256(struct.pack(f"<{len(images)}Q", *expected))


def test_example_digest_depends_on_values_and_shape_and_not_on_memory_layout() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(1, 1, 3, 4)
    golden = digest_examples(image)
    # computed once with another tool: printf of the 24 bytes into sha256sum
    assert golden.tolist() == [GOLDEN_DIGEST]
    assert digest_examples(np.asfortranarray(image)).tolist() == golden.tolist()
    assert digest_examples(image.reshape(1, 1, 4, 3)).tolist() != golden.tolist()
    changed = image.copy()
    changed[0, 0, 2, 3] ^= 1
    assert digest_examples(changed).tolist() != golden.tolist()


GOLDEN_DIGEST = int.from_bytes(bytes.fromhex("8228610aa30c9bb7"), "little")


@pytest.mark.parametrize(
    "images", [np.zeros((2, 1, 3, 3), np.float32), np.zeros((2, 3, 3), np.uint8)], ids=["float", "3-d"]
)
def test_digest_examples_refuses_what_is_not_stored_images(images: np.ndarray) -> None:
    with pytest.raises(InputError) as error:
        digest_examples(images)
    assert f"got {images.dtype} of shape" in one_line(error)


def test_digest_of_refuses_other_numbers() -> None:
    with pytest.raises(InputError) as error:
        digest_of([np.zeros(3, np.int64)])  # type: ignore[arg-type]
    assert "uint64" in one_line(error)


def make_array_dataset(count: int = 12, *, limit: int | None = None, **changes: object) -> ArrayDataset:
    images = np.arange(count * 8, dtype=np.uint8).reshape(count, 2, 2, 2)
    arguments = {
        "images_NCHW": images,
        "labels_N": np.arange(count, dtype=np.int64) % 3,
        "name": "made",
        "split": "train",
        "classes": 3,
        "limit": limit,
        **changes,
    }
    return ArrayDataset(**arguments)  # type: ignore[arg-type]


def test_array_dataset_fulfils_the_protocol() -> None:
    made = make_array_dataset()
    assert isinstance(made, Dataset)
    assert (made.name, made.split, made.shape, made.classes, len(made)) == ("made", "train", (2, 2, 2), 3, 12)
    assert made.digest == digest_of([made.example_digests()])
    assert made.example_digests() is not None
    assert not made.example_digests().flags.writeable
    assert np.shares_memory(made.example_digests(), made.example_digests())


@given(st.data())
def test_read_is_indexing(draw: st.DataObject) -> None:
    made = make_array_dataset(limit=draw.draw(st.sampled_from([None, 5, 12])))
    rows = draw.draw(st.lists(st.integers(0, len(made) - 1), max_size=20))
    images, labels = made.read(np.array(rows, np.int64))
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert images.shape == (len(rows), 2, 2, 2)
    assert np.array_equal(images, made.images_NCHW[rows])
    assert np.array_equal(labels, np.array(rows, np.int64) % 3)
    images[:] = 0  # a copy: the data set stays what it was
    assert made.digest == make_array_dataset().digest


@pytest.mark.parametrize("row", [-1, 5, 2**40])
def test_read_refuses_an_index_outside_the_limit(row: int) -> None:
    with pytest.raises(QuantityError) as error:
        make_array_dataset(limit=5).read(np.array([0, row]))
    assert f"from 0 to 4 (made, split 'train'), got {row};" in one_line(error)


@pytest.mark.parametrize("rows", [np.zeros((1, 1), np.int64), np.zeros(2), np.ones(12, bool)])
def test_read_refuses_what_is_not_a_list_of_indices(rows: np.ndarray) -> None:
    with pytest.raises(InputError) as error:
        make_array_dataset().read(rows)
    assert f"got {rows.dtype} of shape" in one_line(error)


def test_limit_takes_the_first_examples_and_leaves_the_identity() -> None:
    whole, first = make_array_dataset(), make_array_dataset(limit=5)
    assert len(first) == 5
    assert first.example_digests().tolist() == whole.example_digests()[:5].tolist()
    assert first.digest == whole.digest


@pytest.mark.parametrize("limit", [0, -1, 13])
def test_limit_outside_its_range(limit: int) -> None:
    with pytest.raises(QuantityError) as error:
        make_array_dataset(limit=limit)
    assert f"from 1 to 12, the examples of made's split 'train', got {limit}" in one_line(error)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"labels_N": np.zeros(11, np.int64)}, InputError, "got int64 of shape (11,)"),
        ({"labels_N": np.zeros(12, np.int32)}, InputError, "got int32 of shape (12,)"),
        ({"labels_N": np.full(12, 3)}, InputError, "got labels from 3 to 3"),
        ({"labels_N": np.full(12, -1)}, InputError, "got labels from -1 to -1"),
        ({"count": 0}, InputError, "at least 1 image"),
        ({"classes": 0}, QuantityError, "got 0"),
        ({"images_NCHW": np.zeros((12, 2, 2), np.uint8)}, InputError, "got uint8 of shape (12, 2, 2)"),
    ],
)
def test_array_dataset_refuses_arrays_that_do_not_fit(
    changes: dict[str, object], kind: type[InputError], words: str
) -> None:
    with pytest.raises(kind) as error:
        make_array_dataset(**changes)  # type: ignore[arg-type]
    assert words in one_line(error)


def test_array_dataset_refuses_an_unknown_split() -> None:
    with pytest.raises(UnknownNameError, match="unknown split 'val'; known: train, test"):
        make_array_dataset(split="val")


# ---------------------------------------------------------------- IDX files


@given(
    hnp.arrays(np.uint8, st.one_of(st.tuples(st.integers(0, 9)), hnp.array_shapes(min_dims=3, max_dims=3))),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_idx_round_trip(tmp_path: Path, array: np.ndarray, compressed: bool) -> None:
    content = write_idx(array)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(content) if compressed else content)
    for found in (idx.parse_idx(content, name="file"), idx.read_idx(path)):
        if array.ndim == 1:
            assert found.dtype == np.int64
            assert np.array_equal(found, array)
        else:
            assert found.dtype == np.uint8
            assert np.array_equal(found, array[:, None])


@given(hnp.arrays(np.uint8, st.sampled_from([(3,), (2, 3, 3)])), st.data())
def test_no_other_byte_count_is_accepted(array: np.ndarray, draw: st.DataObject) -> None:
    content = write_idx(array)
    cut = content[: draw.draw(st.integers(0, len(content) - 1))]
    grown = content + draw.draw(st.binary(min_size=1, max_size=9))
    for wrong in (cut, grown):
        with pytest.raises(DataError) as error:
            idx.parse_idx(wrong, name="the/file")
        message = one_line(error)
        assert message.startswith("the/file: ")
        assert f"got {len(wrong)} bytes" in message


def test_header_of_huge_sizes_is_refused_without_allocating() -> None:
    with pytest.raises(DataError, match="4294967295×4294967295×4294967295"):
        idx.parse_idx(struct.pack(">4I", 0x803, *3 * [2**32 - 1]), name="file")


def test_other_magic_is_refused() -> None:
    content = b"\0\0\x0d\x03" + write_idx(np.zeros((1, 2, 2), np.uint8))[4:]
    with pytest.raises(DataError) as error:
        idx.parse_idx(content, name="file")
    assert "(magic 0x00000803), got magic 0x00000d03" in one_line(error)
    with pytest.raises(DataError, match="expected IDX labels"):
        idx.parse_labels(write_idx(np.zeros((1, 2, 2), np.uint8)), name="file")


def damage(stored: bytes, how: str) -> bytes:
    if how == "truncated":
        return stored[:-9]
    if how == "bit flipped":
        return stored[:-12] + bytes([stored[-12] ^ 0xFF]) + stored[-11:]
    if how == "wrong checksum":
        return stored[:-8] + bytes(4) + stored[-4:]
    return stored + b"trailing bytes"


@pytest.mark.parametrize("how", ["truncated", "bit flipped", "wrong checksum", "trailing"])
def test_corrupt_gzip(how: str, tmp_path: Path, small: dict[str, bytes]) -> None:
    folder = write_files(tmp_path, small)
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes(), how))
    for act in (lambda: idx.read_idx(path), lambda: open_dataset("mnist", "test", data_dir=folder)):
        with pytest.raises(DataError) as error:
            act()
        assert one_line(error).startswith(f"{path}: expected a whole gzip stream, got a damaged one")
    assert "run `ensadv-data fetch mnist`" in str(error.value)


def test_read_idx_of_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        idx.read_idx(tmp_path / "absent")
    assert "absent: " in one_line(error)
    with pytest.raises(DataError, match="directory"):
        idx.read_idx(tmp_path)


# ---------------------------------------------------------------- opening by name


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match="unknown data set 'imagenet'; known: mnist-mini, mnist, "):
        open_dataset("imagenet", "train")
    with pytest.raises(UnknownNameError, match="unknown split 'validation'; known: train, test"):
        open_dataset("mnist-mini", "validation")


@pytest.mark.parametrize(
    "spell",
    [
        lambda file: file,
        lambda file: f"{file}.gz",
        lambda file: file.replace("-idx", ".idx"),
        lambda file: file.replace("-idx", ".idx") + ".gz",
    ],
    ids=["raw", "gz", "dotted", "dotted gz"],
)
def test_file_names(spell: Callable[[str], str], small: dict[str, bytes], tmp_path: Path) -> None:
    for file, content in small.items():
        stored = gzip.compress(content) if spell(file).endswith(".gz") else content
        (tmp_path / spell(file)).write_bytes(stored)
    for split, count in (("train", 60), ("test", 30)):
        opened = open_dataset("mnist", split, data_dir=tmp_path)
        images, labels = opened.read(np.arange(count))
        assert (opened.name, opened.split, opened.shape, len(opened)) == ("mnist", split, (1, 4, 4), count)
        prefix = {"train": "train", "test": "t10k"}[split]
        assert images.tobytes() == small[f"{prefix}-images-idx3-ubyte"][16:]
        assert labels.astype(np.uint8).tobytes() == small[f"{prefix}-labels-idx1-ubyte"][8:]
    assert len(open_dataset("mnist", "test", data_dir=tmp_path, limit=7)) == 7
    with pytest.raises(QuantityError, match="got 31"):
        open_dataset("mnist", "test", data_dir=tmp_path, limit=31)


def test_search_order(small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place is found alone; a broken file in an earlier place is met first, never passed over."""
    given_folder, home = tmp_path / "given", tmp_path / "home"
    places = [
        given_folder / "mnist",
        given_folder,
        home / "mnist",
        home,
        tmp_path / "usr/mnist",
        tmp_path / "usr-local/mnist",
        tmp_path / "cache/mnist",
    ]
    monkeypatch.setenv("ENSADV_DATA_HOME", str(home))
    for place in reversed(places):
        write_files(place, small)
        assert len(open_dataset("mnist", "train", data_dir=given_folder)) == 60
        (place / "train-labels-idx1-ubyte.gz").write_bytes(b"broken")
        with pytest.raises(DataError) as error:
            open_dataset("mnist", "train", data_dir=given_folder)
        assert one_line(error).startswith(f"{place / 'train-labels-idx1-ubyte.gz'}: ")


def test_two_data_sets_share_a_home(small: dict[str, bytes], tmp_path: Path) -> None:
    write_files(tmp_path, small)
    write_files(tmp_path / "fashion-mnist", make_contents(2))
    digests = {open_dataset(name, "test", data_dir=tmp_path).digest for name in ("mnist", "fashion-mnist")}
    assert len(digests) == 2


def test_not_found_lists_the_folders_and_the_remedy(
    small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENSADV_DATA_HOME", str(tmp_path / "home"))
    write_files(tmp_path / "usr/mnist", {FILES[0]: small[FILES[0]]})
    with pytest.raises(DataError) as error:
        open_dataset("mnist", "train", data_dir=tmp_path / "given")
    message = one_line(error)
    for place in ("given/mnist", "given", "home/mnist", "home", "usr-local/mnist", "cache/mnist"):
        assert f"{tmp_path / place}" in message
    assert f"{tmp_path / 'usr/mnist'} (only train-images-idx3-ubyte.gz)" in message
    assert "run `ensadv-data fetch mnist`" in message
    assert error.value.exit_code == 3


def test_renamed_file_is_recognised(small: dict[str, bytes], tmp_path: Path) -> None:
    write_files(tmp_path, small)
    shutil.copy(tmp_path / "t10k-images-idx3-ubyte.gz", tmp_path / "train-images-idx3-ubyte.gz")
    with pytest.raises(DataError) as error:
        open_dataset("mnist", "train", data_dir=tmp_path)
    message = one_line(error)
    expected, found = sha256(small["train-images-idx3-ubyte"]), sha256(small["t10k-images-idx3-ubyte"])
    path = tmp_path / "train-images-idx3-ubyte.gz"
    assert message.startswith(f"{path}: expected train-images-idx3-ubyte of mnist")
    assert f"(976 bytes, SHA-256 {expected}), got 496 bytes, SHA-256 {found}" in message
    assert "which is t10k-images-idx3-ubyte of mnist; move that file away" in message
    assert message.endswith("run `ensadv-data fetch mnist`")


def test_file_of_another_data_set_is_recognised(small: dict[str, bytes], tmp_path: Path) -> None:
    write_files(tmp_path, make_contents(2), suffix="")
    with pytest.raises(DataError, match="which is train-images-idx3-ubyte of fashion-mnist"):
        open_dataset("mnist", "train", data_dir=tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("how", ["truncated", "trailing", "one bit"])
def test_wrong_content(how: str, suffix: str, small: dict[str, bytes], tmp_path: Path) -> None:
    wrong = dict(small)
    labels = small[FILES[1]]
    wrong[FILES[1]] = {
        "truncated": labels[:-1],
        "trailing": labels + b"\0",
        "one bit": labels[:-1] + bytes([labels[-1] ^ 1]),
    }[how]
    write_files(tmp_path, wrong, suffix=suffix)
    with pytest.raises(DataError) as error:
        open_dataset("mnist", "train", data_dir=tmp_path)
    message = one_line(error)
    path = tmp_path / f"{FILES[1]}{suffix}"
    assert message.startswith(f"{path}: expected {FILES[1]} of mnist (68 bytes, SHA-256 ")
    found = hashlib.sha256(wrong[FILES[1]]).hexdigest()
    assert f"got {len(wrong[FILES[1]])} bytes, SHA-256 {found}; move" in message


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_huge_file_is_not_read_whole(suffix: str, small: dict[str, bytes], tmp_path: Path) -> None:
    write_files(tmp_path, {**small, FILES[0]: bytes(8_000_000)}, suffix=suffix)
    known = max(one.size for source in idx.SOURCES.values() for one in source.files.values())
    with pytest.raises(DataError, match=f"got more than {known} bytes; move"):
        open_dataset("mnist", "train", data_dir=tmp_path)


def test_cache_is_the_last_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pooch names the cache; on Linux it follows XDG_CACHE_HOME."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert fetching.cache_home().name == "ensadv-data"


# ---------------------------------------------------------------- the embedded images


@pytest.fixture(scope="module")
def mini() -> dict[str, ArrayDataset]:
    return {split: open_dataset("mnist-mini", split) for split in ("train", "test")}


def test_mini_is_complete_and_balanced_in_every_run_of_ten(mini: dict[str, ArrayDataset]) -> None:
    for split, count in (("train", 10_000), ("test", 2_000)):
        opened = mini[split]
        images, labels = opened.read(np.arange(count))
        assert (opened.name, opened.split, opened.classes, len(opened)) == ("mnist-mini", split, 10, count)
        assert images.shape == (count, 1, 28, 28)
        assert opened.shape == (1, 28, 28)
        assert (np.sort(labels.reshape(-1, 10)) == np.arange(10)).all()
        # the order inside the runs is mixed: each class is at each place equally often, to five deviations
        counts = np.array([np.bincount(column, minlength=10) for column in labels.reshape(-1, 10).T])
        assert (abs(counts - count / 100) < 5 * np.sqrt(count / 100 * 0.9)).all()
        assert len(set(opened.example_digests().tolist())) == count


def test_mini_splits_share_no_image(mini: dict[str, ArrayDataset]) -> None:
    assert not set(mini["train"].example_digests().tolist()) & set(mini["test"].example_digests().tolist())


def test_mini_digests_never_change(mini: dict[str, ArrayDataset]) -> None:
    assert {split: opened.digest for split, opened in mini.items()} == {
        "train": "12ba648506c28eb124db078f53f549a676a9ee209d7d6e59da2fd030ac3a4268",
        "test": "5c8966d3292154da2e4bbf72811eabf70584e96bb5ed437de647c4aa4eb87171",
    }


def test_mini_needs_no_data_folder_and_takes_a_limit(mini: dict[str, ArrayDataset], tmp_path: Path) -> None:
    opened = open_dataset("mnist-mini", "test", data_dir=tmp_path, limit=100)
    assert len(opened) == 100
    assert opened.example_digests().tolist() == mini["test"].example_digests()[:100].tolist()


def test_mini_is_small_and_its_sums_are_true() -> None:
    assert sum(path.stat().st_size for path in MINI.iterdir()) <= 2_600_000
    sums = dict(line.split("  ")[::-1] for line in (MINI / "SHA256SUMS").read_text().splitlines())
    assert sorted(sums) == sorted(f"{file}.gz" for file in FILES)
    for file, digest in sums.items():
        stored = (MINI / file).read_bytes()
        assert hashlib.sha256(stored).hexdigest() == digest
        assert stored[3:8] == bytes(5)  # no name, no time
    provenance = (MINI / "PROVENANCE.md").read_text()
    for name in ("mnist", "mnist-mini"):
        for file, known in idx.SOURCES[name].files.items():
            assert f"{known.sha256}  {file}\n" in provenance


@pytest.mark.parametrize("how", ["absent", "wrong", "corrupt"])
def test_mini_damaged_on_disk(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(MINI, tmp_path / "mnist-mini")
    path = tmp_path / "mnist-mini" / "t10k-labels-idx1-ubyte.gz"
    if how == "absent":
        path.unlink()
    elif how == "wrong":
        shutil.copy(path.with_name("train-labels-idx1-ubyte.gz"), path)
    else:
        path.write_bytes(path.read_bytes()[:-20])
    monkeypatch.setattr(opening.resources, "files", lambda package: tmp_path)
    with pytest.raises(DataError) as error:
        open_dataset("mnist-mini", "test")
    message = one_line(error)
    assert message.startswith(f"{path}: ")
    assert message.endswith("; reinstall ensadv-data")


# ---------------------------------------------------------------- the script that made them


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_mnist_mini", ROOT / "scripts" / "make_mnist_mini.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_script_makes_the_same_bytes_again_balanced_and_from_the_right_split(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_contents(3, counts=(400, 200))
    source = make_source("synthetic", made)
    outs = []
    for run, suffix in enumerate(("", ".gz")):  # neither the time nor the source's compression matters
        mnist = write_files(tmp_path / f"mnist{run}", made, suffix=suffix)
        out = tmp_path / f"out{run}"
        arguments = ["--mnist", str(mnist), "--out", str(out)]
        script.main(arguments, source=source, per_class={"train": 20, "test": 10})
        outs.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert outs[0] == outs[1]
    assert sorted(outs[0]) == sorted([f"{file}.gz" for file in FILES] + ["SHA256SUMS"])
    printed = capsys.readouterr().out
    for prefix, count in (("train", 200), ("t10k", 100)):
        images = idx.read_idx(out / f"{prefix}-images-idx3-ubyte.gz")
        labels = idx.read_idx(out / f"{prefix}-labels-idx1-ubyte.gz")
        assert images.shape == (count, 1, 4, 4)
        assert (np.sort(labels.reshape(-1, 10)) == np.arange(10)).all()
        from_images = idx.parse_idx(made[f"{prefix}-images-idx3-ubyte"], name="")
        from_labels = idx.parse_idx(made[f"{prefix}-labels-idx1-ubyte"], name="")
        pairs = set(zip(map(bytes, from_images), from_labels.tolist(), strict=True))
        chosen = set(zip(map(bytes, images), labels.tolist(), strict=True))
        assert len(chosen) == count
        assert chosen < pairs
        content = gzip.decompress(outs[0][f"{prefix}-images-idx3-ubyte.gz"])
        assert f"{hashlib.sha256(content).hexdigest()}  {prefix}-images-idx3-ubyte (" in printed


def test_script_follows_the_documented_rule(script: ModuleType) -> None:
    labels = np.array([1, 0, 0, 1, 0, 1, 1, 0], np.int64)
    chosen = script.choose_images(labels, split="train", per_class=2, classes=2)

    def key(text: str) -> str:
        return hashlib.sha256(f"mnist-mini/1/train/{text}".encode()).hexdigest()

    best = [sorted((i for i in range(8) if labels[i] == c), key=lambda i: key(f"{i}"))[:2] for c in (0, 1)]
    rounds = [sorted((best[0][r], best[1][r]), key=lambda i: key(f"{i}/order")) for r in (0, 1)]
    assert chosen == [*rounds[0], *rounds[1]]


def test_script_refuses_what_is_not_its_source(script: ModuleType, tmp_path: Path) -> None:
    made = make_contents(3)
    arguments = ["--mnist", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(DataError, match="got no such file"):
        script.main(arguments)
    write_files(tmp_path, made)
    with pytest.raises(DataError, match="is this MNIST"):
        script.main(arguments)
    with pytest.raises(DataError, match="expected at least 1000 images of class 0, got 6"):
        script.main(arguments, source=make_source("synthetic", made))
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- fetching, from real servers


# path → status, headers, body
Answer = Callable[[str], tuple[int, dict[str, str], bytes]]


class Mirror:
    """An HTTP server on 127.0.0.1: answers a path with (status, headers, body), notes the requests."""

    def __init__(self, answer: Answer) -> None:
        requests: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                status, headers, body = answer(self.path)
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        self.requests = requests
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}/"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


StartMirror = Callable[[Answer], Mirror]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[StartMirror]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    mirrors: list[Mirror] = []

    def start_mirror(answer: Answer) -> Mirror:
        mirrors.append(Mirror(answer))
        return mirrors[-1]

    yield start_mirror
    for mirror in mirrors:
        mirror.stop()


def serve(contents: dict[str, bytes], prefix: str = "/") -> Answer:
    stored = {f"{prefix}{file}.gz": gzip.compress(content, 1) for file, content in contents.items()}
    return lambda path: (200, {}, stored[path]) if path in stored else (404, {}, b"no such file")


def bad_answers(contents: dict[str, bytes]) -> dict[str, Answer]:
    right = serve(contents)
    return {
        "500": lambda path: (500, {}, b"broken"),
        "truncated": lambda path: (200, {}, right(path)[2][:-9]),
        "short of its length": lambda path: (200, {"Content-Length": "9999999"}, right(path)[2][:-9]),
        "wrong bytes": serve(make_contents(9)),
        "a page instead": lambda path: (200, {}, b"<html>Please log in</html>"),
        "endless": lambda path: (200, {}, bytes(1_000_000)),
    }


def leftovers(folder: Path) -> list[str]:
    return sorted({path.name for path in folder.iterdir()} - {f"{file}.gz" for file in FILES})


@pytest.mark.parametrize(
    "trouble", ["500", "truncated", "short of its length", "wrong bytes", "a page instead", "endless"]
)
def test_fetch_goes_on_to_the_next_mirror(
    trouble: str, small: dict[str, bytes], start: StartMirror, tmp_path: Path
) -> None:
    bad, good = start(bad_answers(small)[trouble]), start(serve(small))
    folder = fetching.fetch("mnist", mirrors=[bad.base, good.base], home=tmp_path)
    assert folder == tmp_path / "mnist"
    assert leftovers(folder) == []
    assert len(open_dataset("mnist", "train", data_dir=tmp_path)) == 60
    assert bad.requests == [f"/{FILES[0]}.gz"]  # asked once; then the mirror that works goes first
    assert good.requests == [f"/{file}.gz" for file in FILES]

    assert fetching.fetch("mnist", mirrors=[bad.base, good.base], home=tmp_path) == folder
    assert len(bad.requests) + len(good.requests) == 5  # no request the second time


def test_fetch_gives_every_reason(small: dict[str, bytes], start: StartMirror, tmp_path: Path) -> None:
    mirrors = {trouble: start(answer) for trouble, answer in bad_answers(small).items()}
    closed = start(serve(small))
    closed.server.server_close()
    bases = [mirror.base for mirror in mirrors.values()]
    with pytest.raises(DataError) as error:
        fetching.fetch("mnist", mirrors=[*bases, closed.base], home=tmp_path)
    message = one_line(error)
    assert error.value.exit_code == 3
    assert "from one of 7 mirrors" in message
    reasons = {
        trouble: message.partition(mirror.base)[2].partition("; http")[0]  # up to the next mirror
        for trouble, mirror in mirrors.items()
    }
    assert "500 Server Error" in reasons["500"]
    assert "damaged one" in reasons["truncated"]
    assert f"{FILES[0]}.gz: " in reasons["short of its length"]
    assert re.search("got 976 bytes, SHA-256 [0-9a-f]{64}", reasons["wrong bytes"])
    assert "got 26 bytes, SHA-256" in reasons["a page instead"]
    assert "expected at most" in reasons["endless"]
    assert closed.base in message
    assert "ENSADV_MIRRORS" in message
    assert leftovers(tmp_path / "mnist") == []
    assert list((tmp_path / "mnist").iterdir()) == []


def test_fetch_keeps_what_is_right_and_heals_what_is_not(
    small: dict[str, bytes], start: StartMirror, tmp_path: Path
) -> None:
    folder = write_files(tmp_path / "mnist", {FILES[0]: small[FILES[0]]}, suffix="")
    (folder / f"{FILES[1]}.gz").write_bytes(b"broken")
    (folder / FILES[2]).write_bytes(b"broken too")
    mirror = start(serve(small))
    fetching.fetch("mnist", mirrors=[mirror.base], home=tmp_path)
    assert mirror.requests == [f"/{file}.gz" for file in FILES[1:]]
    assert not (folder / f"{FILES[0]}.gz").exists()
    for split in ("train", "test"):
        assert open_dataset("mnist", split, data_dir=tmp_path).name == "mnist"


def test_fetch_stores_gzip_even_when_the_server_declares_it_as_encoding(
    small: dict[str, bytes], start: StartMirror, tmp_path: Path
) -> None:
    right = serve(small)
    mirror = start(lambda path: (200, {"Content-Encoding": "gzip"}, right(path)[2]))
    folder = fetching.fetch("mnist", mirrors=[mirror.base], home=tmp_path)
    for file in FILES:
        assert gzip.decompress((folder / f"{file}.gz").read_bytes()) == small[file]


def test_fetch_asks_the_mirrors_of_the_environment_first(
    small: dict[str, bytes], start: StartMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty, foldered, later = start(serve({})), start(serve(small, "/sets/mnist/")), start(serve(small))
    monkeypatch.setenv("ENSADV_MIRRORS", f" {empty.base}, ,{foldered.base}sets,")
    monkeypatch.setenv("ENSADV_DATA_HOME", str(tmp_path / "home"))
    assert fetching.fetch("mnist", mirrors=[later.base]) == tmp_path / "home" / "mnist"
    assert empty.requests == [f"/mnist/{FILES[0]}.gz", f"/{FILES[0]}.gz"]
    assert foldered.requests == [f"/sets/mnist/{file}.gz" for file in FILES]
    assert later.requests == []


def test_fetch_uses_the_built_in_mirrors_and_the_cache_by_default(
    small: dict[str, bytes], start: StartMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sorted(fetching.MIRRORS) == ["fashion-mnist", "mnist"]
    assert all(len(bases) >= 2 for bases in fetching.MIRRORS.values())
    mirror = start(serve(small))
    monkeypatch.setattr(fetching, "MIRRORS", {"mnist": (mirror.base.rstrip("/"),)})
    assert fetching.fetch("mnist") == tmp_path / "cache" / "mnist"
    assert len(open_dataset("mnist", "test")) == 30


def test_fetch_reports_progress_when_asked(
    small: dict[str, bytes], start: StartMirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = start(bad_answers(small)["500"]), start(serve(small))
    fetching.fetch("mnist", mirrors=[bad.base, good.base], home=tmp_path, progress=True)
    error = capsys.readouterr().err
    assert error.count("\n") == 4
    assert all(f"\r{file}: 0.0 MB" in error for file in FILES)


def test_fetch_of_the_embedded_images_is_their_folder(start: StartMirror) -> None:
    mirror = start(serve({}))
    assert fetching.fetch("mnist-mini", mirrors=[mirror.base]) == MINI
    assert mirror.requests == []


def test_fetch_refuses_what_it_cannot_ask(small: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="known: mnist-mini, mnist, fashion-mnist"):
        fetching.fetch("cifar10")
    with pytest.raises(InputError) as error:
        fetching.fetch("mnist", mirrors=["ftp://127.0.0.1/"], home=tmp_path)
    assert "got 'ftp://127.0.0.1/'" in one_line(error)
    with pytest.raises(DataError, match="no mirror to ask"):
        fetching.fetch("mnist", mirrors=[], home=tmp_path)


def test_fetch_into_a_folder_that_cannot_be_written(
    small: dict[str, bytes], start: StartMirror, tmp_path: Path
) -> None:
    mirror = start(serve(small))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError) as error:
        fetching.fetch("mnist", mirrors=[mirror.base], home=tmp_path / "file")
    assert "ENSADV_DATA_HOME" in one_line(error)
    assert mirror.requests == []


def test_fetch_leaves_nothing_behind_when_the_disk_fails(
    small: dict[str, bytes], start: StartMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching.os, "fsync", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        fetching.fetch("mnist", mirrors=[start(serve(small)).base], home=tmp_path)
    assert list((tmp_path / "mnist").iterdir()) == []
