"""What the library ``datasets`` saved to disk, written by that library itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ensadv_data.data import Dataset, open_dataset
from ensadv_data.data.decoding import decode_image
from ensadv_data.errors import DataError, InputError, IntegrityError
from ensadv_data.spec import PreprocessSpec
from photographs import cut_photographs

pyarrow = pytest.importorskip("pyarrow")
SMALL = PreprocessSpec(size=16)

# In a process of its own: the library brings pandas and much else, and warns of what it finds.
WRITE = """
import sys
from pathlib import Path
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
cut, out = map(Path, sys.argv[1:])
files = sorted((cut / "train").glob("*/*.jpg"))
names = [f"n{number}" for number in range(4)]
features = Features({"id": Value("int32"), "photo": Image(), "class": ClassLabel(names=names)})
rows = {"id": list(range(10)), "photo": [str(path) for path in files], "class": [row % 4 for row in range(10)]}
whole = Dataset.from_dict(rows, features=features)
splits = DatasetDict(train=whole, validation=whole.select([7, 2]))
splits.save_to_disk(out / "saved", num_shards={"train": 3, "validation": 1})
whole.cast_column("photo", Image(decode=False)).select(range(2)).save_to_disk(out / "plain" / "train")
Dataset.from_dict({"id": [1, 2]}).save_to_disk(out / "imageless" / "train")
whole.remove_columns("class").save_to_disk(out / "classless" / "train")
rows |= {"class": [-1] * 10}
Dataset.from_dict(rows, features=features).save_to_disk(out / "unlabelled" / "train")
rows |= {"class": [None] * 10}
Dataset.from_dict(rows, features=features).save_to_disk(out / "lacking" / "train")
"""


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    return cut_photographs(tmp_path_factory.mktemp("cut"), classes=2, train=5, test=1)


@pytest.fixture(scope="module")
def saved(cut, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("saved")
    done = subprocess.run([sys.executable, "-c", WRITE, cut, out], capture_output=True, text=True, check=False)
    if "No module named 'datasets'" in done.stderr:
        pytest.skip("the library datasets is not installed")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    """A copy of the train split that a test may change."""
    folder = tmp_path / "copy" / "train"
    folder.mkdir(parents=True)
    for path in (saved / "saved" / "train").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def opened(root: Path, home: Path, split: str = "train", **more):
    return open_dataset(f"hf:{root}", split, data_dir=home, preprocess=SMALL, **more)


def test_saved_splits_are_a_data_set(cut, saved, tmp_path):
    data = opened(saved / "saved", tmp_path)
    blobs = [path.read_bytes() for path in sorted((cut / "train").glob("*/*.jpg"))]
    expected = np.stack([decode_image(blob, SMALL) for blob in blobs])
    assert isinstance(data, Dataset)
    assert (len(data), data.shape, data.classes, data.name) == (10, (3, 16, 16), 4, "hf:saved")
    rows = np.array([9, 0, 4, 4])
    images, labels = data.read(rows)
    assert (images == expected[rows]).all()
    assert labels.tolist() == [1, 0, 0, 0]
    assert data.labels().tolist() == [row % 4 for row in range(10)]
    assert data.listing.name(5) == "data-00001-of-00003.arrow/1"
    test = opened(saved / "saved", tmp_path, "test")
    assert (test.read(np.arange(2))[0] == expected[[7, 2]]).all()
    assert (opened(saved / "plain", tmp_path).read(np.arange(2))[0] == expected[:2]).all()
    folder = open_dataset(f"folder:{cut}", "train", data_dir=tmp_path, preprocess=SMALL)
    assert data.digest == folder.digest, "the same images in the same order"


def test_rows_are_read_without_the_library_that_listed_them(saved, tmp_path, monkeypatch):
    assert len(opened(saved / "saved", tmp_path)) == 10
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert opened(saved / "saved", tmp_path).read(np.arange(10))[0].any()
    with pytest.raises(InputError, match=r"expected pyarrow .* pip install 'ensadv-data\[hf\]'"):
        opened(saved / "saved", tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("imageless", r"one column of Image and one of ClassLabel, got id: Value; cast"),
        ("classless", r"one column of Image and one of ClassLabel, got id: Value, photo: Image"),
        ("unlabelled", r"arrow: row 0: expected a class from 0 to 3, got -1; is this a split without labels"),
        ("lacking", r"class: expected a value in each row, got 10 rows without"),
    ],
)
def test_what_has_no_images_with_classes_is_refused(saved, tmp_path, which, message):
    with pytest.raises(DataError, match=message):
        opened(saved / which, tmp_path)


def rewritten(path: Path, change, **options) -> None:
    """An Arrow stream written anew with its table changed."""
    with pyarrow.ipc.open_stream(path.read_bytes()) as stream:
        table = change(stream.read_all())
    with pyarrow.ipc.new_stream(str(path), table.schema, options=pyarrow.ipc.IpcWriteOptions(**options)) as stream:
        stream.write_table(table, max_chunksize=2)


def without_bytes(table):
    column = pyarrow.array([{"bytes": None, "path": "/etc/passwd"}] * len(table), table.schema.field("photo").type)
    return table.set_column(1, "photo", column)


def test_arrow_of_another_kind_is_refused(copy, tmp_path):
    first = copy / "data-00000-of-00003.arrow"
    whole = first.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(DataError, match=message):
            opened(copy.parent, tmp_path)

    rewritten(first, without_bytes)
    refused("photo: expected a value in each row, got .* embedded by save_to_disk")
    first.write_bytes(whole)
    rewritten(first, lambda table: table, compression="zstd")
    refused("expected an uncompressed Arrow stream, got a compressed one")
    first.write_bytes(whole[: len(whole) // 2])
    refused("expected an Arrow stream that can be read")
    first.write_bytes(whole)
    rewritten(first, lambda table: table.drop_columns("photo"))
    refused("expected an Arrow stream that can be read")
    first.write_bytes(whole)
    rewritten(first, lambda table: table)  # in batches of two rows
    assert opened(copy.parent, tmp_path / "small").read(np.arange(10))[0].any()
    state = json.loads((copy / "state.json").read_text())
    for changed, message in (
        ({"_data_files": [{"filename": "../../x.arrow"}]}, r"names of \.arrow files beside it, got \['\.\./\.\./x"),
        ({"_data_files": []}, "names of .arrow files"),
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, "got a selection of them; save it again"),
    ):
        (copy / "state.json").write_text(json.dumps({**state, **changed}))
        refused(message)
    (copy / "state.json").unlink()
    refused("expected JSON of a data set that was saved to disk")


@pytest.mark.parametrize("seed", range(20))
def test_damaged_offsets_never_reach_beyond_the_file(copy, tmp_path, seed):
    """A stranger's file may say anything of itself: it is read as images, or refused in one line."""
    first, random = copy / "data-00000-of-00003.arrow", np.random.Generator(np.random.Philox(seed))
    whole = bytearray(first.read_bytes())
    for at in random.integers(0, len(whole) if seed % 2 else 2000, 40):
        whole[at] = random.integers(256)
    first.write_bytes(bytes(whole))
    told = ""
    try:
        opened(copy.parent, tmp_path).read(np.arange(4))
    except DataError as error:
        told = str(error)
    assert "\n" not in told


def test_files_that_changed_are_noticed(copy, tmp_path, saved):
    data = opened(copy.parent, tmp_path)
    _ = data.digest
    rewritten(copy / "data-00001-of-00003.arrow", lambda table: table.slice(0, 2))
    with pytest.raises(IntegrityError, match=r"data-00001-of-00003\.arrow changed since it was indexed"):
        opened(copy.parent, tmp_path)
    other = copy.parent / "test"
    other.mkdir()
    for path in (saved / "saved" / "validation").iterdir():
        (other / path.name).write_text(path.read_text().replace("n3", "x3")) if path.suffix == ".json" else None
    with pytest.raises(DataError, match="expected the same classes in train and test"):
        opened(copy.parent, tmp_path)
