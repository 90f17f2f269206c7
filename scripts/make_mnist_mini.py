"""Make the embedded data set mnist-mini from the files of MNIST, byte for byte the same every time.

    python scripts/make_mnist_mini.py --mnist DIR --out DIR

The rule: the key of an image is the SHA-256 of the text ``mnist-mini/1/SPLIT/INDEX``, with its split (train
or test) and its index in the file. From each class the images with the smallest keys are taken, 1,000 for
training and 200 for testing. Round r holds the r-th image of every class, and the rounds follow one another.
So every run of ten images that begins at a multiple of ten holds each class once, and any prefix is balanced
to within one image a class. Inside a round the order is that of a second key, the SHA-256 of the text
``mnist-mini/1/SPLIT/INDEX/order`` (the first would put the larger classes first). No random number generator
is involved, so no version of one matters.

The decompressed files are the same everywhere. Their gzip bytes are those of stock zlib at level 9; another
implementation of deflate may find others, and the package checks the decompressed content only.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ensadv_data.data.idx import (
    SOURCES,
    Source,
    find_file,
    parse_images,
    parse_labels,
    read_known,
    split_files,
)
from ensadv_data.errors import DataError

PER_CLASS: Mapping[str, int] = {"train": 1_000, "test": 200}


def choose_images(labels_N: npt.NDArray[np.int64], *, split: str, per_class: int, classes: int) -> list[int]:
    """Indices of the chosen images, in the order in which they are stored."""

    def key(index: int, suffix: str = "") -> bytes:
        return hashlib.sha256(f"mnist-mini/1/{split}/{index}{suffix}".encode()).digest()

    columns: list[list[int]] = []
    for label in range(classes):
        members = sorted(np.flatnonzero(labels_N == label).tolist(), key=key)
        if len(members) < per_class:
            raise DataError(
                f"split {split!r}: expected at least {per_class} images of class {label}, "
                f"got {len(members)}; is this MNIST?"
            )
        columns.append(members[:per_class])
    rounds = zip(*columns, strict=True)
    return [index for row in rounds for index in sorted(row, key=lambda index: key(index, "/order"))]


def encode_idx(array: npt.NDArray[np.uint8]) -> bytes:
    """Bytes of an IDX file of uint8 values with the shape of ``array``."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + np.ascontiguousarray(array).tobytes()


def compress(content: bytes) -> bytes:
    """Gzip bytes without time or name; ``gzip.compress`` has changed its header over the versions."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
        stream.write(content)
    return buffer.getvalue()


def make_files(mnist: Path, *, source: Source, per_class: Mapping[str, int]) -> dict[str, bytes]:
    """Decompressed content of the four files, by canonical name, from verified files in ``mnist``."""
    made: dict[str, bytes] = {}
    for split in ("train", "test"):
        images_file, labels_file = split_files(split)
        content: dict[str, bytes] = {}
        for file in (images_file, labels_file):
            path = find_file(mnist, file)
            if path is None:
                raise DataError(
                    f"{mnist}: expected {file} (raw or .gz), got no such file; run `ensadv-data fetch mnist`"
                )
            content[file] = read_known(path, source=source, file=file, remedy="is this MNIST?")
        images_NCHW = parse_images(content[images_file], name=images_file)
        labels_N = parse_labels(content[labels_file], name=labels_file)
        chosen = choose_images(labels_N, split=split, per_class=per_class[split], classes=source.classes)
        made[images_file] = encode_idx(images_NCHW[chosen, 0])
        made[labels_file] = encode_idx(labels_N[chosen].astype(np.uint8))
    return made


def main(
    arguments: Sequence[str] | None = None,
    *,
    source: Source | None = None,
    per_class: Mapping[str, int] = PER_CLASS,
) -> None:
    """Write the four files and SHA256SUMS; print size and SHA-256 of every decompressed content."""
    parser = argparse.ArgumentParser(description="Make the data set mnist-mini from the files of MNIST.")
    parser.add_argument("--mnist", type=Path, required=True, help="folder with the four files of MNIST")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(arguments)
    made = make_files(options.mnist, source=source or SOURCES["mnist"], per_class=per_class)
    options.out.mkdir(parents=True, exist_ok=True)
    sums = []
    for file, content in made.items():
        stored = compress(content)
        (options.out / f"{file}.gz").write_bytes(stored)
        sums.append(f"{hashlib.sha256(stored).hexdigest()}  {file}.gz\n")
        print(f"{hashlib.sha256(content).hexdigest()}  {file} ({len(content)} bytes, {len(stored)} as gzip)")
    (options.out / "SHA256SUMS").write_text("".join(sums), encoding="ascii", newline="\n")


if __name__ == "__main__":
    main()
