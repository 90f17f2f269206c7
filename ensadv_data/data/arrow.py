"""What the library ``datasets`` saved to disk: ``ROOT/SPLIT/*.arrow`` with a column of encoded images, one of classes.

The home of pyarrow, which lists the images: of each the place of its bytes in the memory-mapped file, so that rows are
read at random without it. The library ``datasets`` itself is not needed, and no code that came with the data is run.
The canonical order is that of the rows, in the files that ``state.json`` names in turn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ensadv_data.data.listing import find_split, split_folder
from ensadv_data.data.packed import Packed, Sample, packed_table
from ensadv_data.errors import DataError, InputError

__all__ = ["open_arrow"]

_SPLITS: Mapping[str, tuple[str, ...]] = {"train": ("train",), "test": ("test", "validation", "val")}
_AGAIN = "save it again with Dataset.save_to_disk"


def open_arrow(root: Path, split: str, *, home: Path | None = None) -> Packed:
    """List the images of a saved split, or read the list that was kept.

    Parameters
    ----------
    home
        Folder of the index; this user's cache unless given.

    Raises
    ------
    DataError
        The split is missing, damaged, without one column of images and one of classes, or has rows without bytes or
        class; or train and test have other classes.
    IntegrityError
        A file changed since it was indexed.
    InputError
        pyarrow is not installed.
    """
    folder = split_folder(root, split, _SPLITS)
    image, label, names = _columns(folder)
    beside = find_split(root, "test" if split == "train" else "train", _SPLITS)
    if beside is not None and (theirs := _columns(beside)[2]) != names:
        raise DataError(
            f"{root}: expected the same classes in train and test, got {len(names)} in {folder.name} and "
            f"{len(theirs)} in {beside.name}, not all alike; a label is a position among them"
        )
    listed = partial(_listed, folder, image=image, label=label, classes=len(names))
    path, table = packed_table(folder, f"{root.resolve().name}-{split}", "hf", _files(folder), listed, home=home)
    return Packed(folder, path, table, len(names))


def _columns(folder: Path) -> tuple[str, str, list[str]]:
    """Names of the column of images and of that of classes, and of the classes."""
    features = _json(folder / "dataset_info.json").get("features")
    features = features if isinstance(features, dict) else {}
    kinds = {name: about.get("_type") if isinstance(about, dict) else "list" for name, about in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if len(images) != 1 or len(labels) != 1:
        found = ", ".join(f"{name}: {kind}" for name, kind in kinds.items()) or "none"
        raise DataError(
            f"{folder}: expected one column of Image and one of ClassLabel, got {found}; cast or drop columns, and "
            f"{_AGAIN}"
        )
    names = features[labels[0]].get("names")
    if not isinstance(names, list) or not names:
        raise DataError(f"{folder}: {labels[0]}: expected the names of the classes, got {names!r}; {_AGAIN}")
    return images[0], labels[0], [str(name) for name in names]


def _files(folder: Path) -> list[str]:
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(f"{folder}: expected rows as they are in the files, got a selection of them; {_AGAIN}")
    try:
        names = [str(about["filename"]) for about in state["_data_files"]]
    except (KeyError, TypeError):
        names = []
    if not names or any(Path(name).name != name or not (folder / name).is_file() for name in names):
        raise DataError(f"{folder}/state.json: expected the names of .arrow files beside it, got {names!a}; {_AGAIN}")
    return names


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected JSON of a data set that was saved to disk, got: {error}; {_AGAIN}") from None
    return found if isinstance(found, dict) else {}


def _listed(folder: Path, name: str, *, image: str, label: str, classes: int) -> list[Sample]:
    try:
        import pyarrow
    except ImportError:
        raise InputError("expected pyarrow for hf: data, found none; pip install 'ensadv-data[hf]'") from None
    try:
        with pyarrow.memory_map(str(folder / name)) as file:
            whole = file.read_buffer()
            batches = pyarrow.ipc.open_stream(whole)
            found: list[Sample] = []
            for batch in batches:
                batch.validate(full=True)  # its offsets are a stranger's
                found += _samples(batch, image, label, classes, whole, f"{folder}/{name}", len(found))
            return found
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        cause = str(error).partition("\n")[0]
        raise DataError(f"{folder}/{name}: expected an Arrow stream that can be read, got: {cause}") from None


def _samples(batch: Any, image: str, label: str, classes: int, whole: Any, where: str, first: int) -> Iterator[Sample]:
    """Row, class, and place of the bytes of each image of a batch."""
    column, labels = batch.column(image), batch.column(label)
    if not str(column.type).startswith("struct<bytes: "):
        raise DataError(f"{where}: {image}: expected encoded bytes, got {column.type}; {_AGAIN}")
    blobs = column.field("bytes")
    width = {"binary": np.int32, "large_binary": np.int64}.get(str(blobs.type))
    if width is None or not str(labels.type).startswith("int") or column.offset:
        raise DataError(f"{where}: expected binary images and integer classes, got {blobs.type} and {labels.type}")
    for what, array in ((image, column), (image, blobs), (label, labels)):
        if array.null_count:
            raise DataError(
                f"{where}: {what}: expected a value in each row, got {array.null_count} rows without; an image that is "
                f"a path is embedded by save_to_disk"
            )
    numbers = labels.to_numpy(zero_copy_only=False).astype(np.int64)
    outside = np.flatnonzero((numbers < 0) | (numbers >= classes))
    if len(outside):
        raise DataError(
            f"{where}: row {first + int(outside[0])}: expected a class from 0 to {classes - 1}, got "
            f"{int(numbers[outside[0]])}; is this a split without labels?"
        )
    if not len(numbers):
        return
    _, offsets, data = blobs.buffers()
    ends = np.frombuffer(offsets, width)[blobs.offset : blobs.offset + len(blobs) + 1].astype(np.int64)
    start = data.address - whole.address if data is not None else 0
    if start < 0 or start + int(ends[-1]) > whole.size:  # what was compressed lies elsewhere in memory
        raise DataError(f"{where}: expected an uncompressed Arrow stream, got a compressed one; {_AGAIN}")
    for row, (begin, end, number) in enumerate(
        zip(ends[:-1].tolist(), ends[1:].tolist(), numbers.tolist(), strict=True)
    ):
        yield b"%d" % (first + row), number, start + begin, end - begin
