"""Opening a data set by its name: inside the package, or found in one of the places where files may be."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Literal

from ensadv_data.data.arrow import open_arrow
from ensadv_data.data.checking import Elsewhere
from ensadv_data.data.dataset import ArrayDataset
from ensadv_data.data.fetch import HOME_VARIABLE, cache_home
from ensadv_data.data.folder import open_folder
from ensadv_data.data.idx import (
    EMBEDDED,
    SOURCES,
    SPLITS,
    Source,
    find_file,
    parse_images,
    parse_labels,
    read_known,
    split_files,
    verify_content,
)
from ensadv_data.data.listing import Listing
from ensadv_data.data.photographs import Photographs
from ensadv_data.data.tars import open_tars
from ensadv_data.data.zarrays import ZarrImages, open_zarr
from ensadv_data.dist import available_cores
from ensadv_data.errors import DataError, InputError, UnknownNameError
from ensadv_data.objects import AT_ONCE, is_url
from ensadv_data.spec import DataSpec, PreprocessSpec, parse_preprocess

__all__ = ["DATASETS", "PLACES", "Opened", "absolute_data", "open_data", "open_dataset"]

DATASETS: tuple[str, ...] = ("mnist-mini", "mnist", "fashion-mnist")
"""The names that :func:`open_dataset` knows."""

PLACES: tuple[str, ...] = ("folder:PATH", "wds:PATH", "wds:URL", "hf:PATH", "zarr:PATH")
"""Data sets of one's own: where their images are."""

Opened = ArrayDataset | Photographs | ZarrImages

# kind of a place → how its encoded images are listed
_LISTED: Mapping[str, Callable[..., Listing]] = {"folder": open_folder, "wds": open_tars, "hf": open_arrow}
_FAR = ("wds",)  # kinds whose place may be a URL

# Where packages of an operating system put data sets, e.g. Debian's dataset-fashion-mnist.
SYSTEM_HOMES: tuple[Path, ...] = (Path("/usr/share/datasets"), Path("/usr/local/share/datasets"))


def open_dataset(
    name: str,
    split: str,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    preprocess: PreprocessSpec | str | None = None,
    on_bad_image: Literal["fail", "skip"] = "fail",
    threads: int | None = None,
    elsewhere: Elsewhere | None = None,
) -> Opened:
    """Open a data set by name; every byte of it is checked against a known SHA-256 first. Or open images of one's own.

    ``mnist-mini`` is inside the package. The files of the others are looked for in ``data_dir/NAME`` and
    ``data_dir``, in ``$ENSADV_DATA_HOME/NAME`` and ``$ENSADV_DATA_HOME``, in the system's folders for data
    sets, and in the cache that ``ensadv-data fetch`` fills. The first folder with both files of the split
    is used.

    ``folder:PATH`` has class folders in ``PATH/train`` and in ``PATH/test`` or ``PATH/val``; their JPEG, PNG and WebP
    files are examples in the order of their sorted relative paths, and class folders are labels in the order of
    their names. ``wds:PATH`` has WebDataset tars, ``hf:PATH`` what the library ``datasets`` saved, ``zarr:PATH`` a Zarr
    group of ``images`` uint8 (N, C, H, W) and ``labels`` (N,), in folders of the same names. ``wds:URL`` has tars in an
    object store or behind a web server.

    Parameters
    ----------
    name
        One of :data:`DATASETS` or :data:`PLACES`.
    split
        ``"train"`` or ``"test"``.
    data_dir
        A folder to look in first; of images of one's own, the folder of the index, in place of this user's cache.
    limit
        Offer the first ``limit`` examples only, from 1 to the size of the split.
    preprocess, on_bad_image
        Of images of one's own: how they become arrays of one size, also as a text, ``size=224,resize=256``; and whether
        bad ones are left out.
    threads
        That decode, or digest arrays on the disk; one a core unless given.
    elsewhere
        Who digests images of one's own, once, in place of this process.

    Returns
    -------
    ArrayDataset, Photographs or ZarrImages
        uint8 images (N, 1, 28, 28), (N, 3, size, size), or of the shape that the arrays have; and int64 labels.

    Raises
    ------
    UnknownNameError
        When there is no such data set or split.
    QuantityError
        When ``limit`` is outside its range.
    DataError
        When a file is missing, truncated, renamed or wrong.
    InputError
        When a preprocessing is given for images that are arrays already.
    IntegrityError
        When images of one's own are others than when they were indexed.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    kind, colon, place = name.partition(":")
    threads = threads or available_cores()
    if colon and kind in _LISTED and place:
        far = is_url(place)
        if far and kind not in _FAR:
            raise InputError(f"data: expected a path after {kind}:, got a URL, {place}; only wds: reads from one")
        root = place.rstrip("/") if far else Path(place).expanduser()
        return Photographs(
            _LISTED[kind](root, split, home=data_dir),
            parse_preprocess(preprocess) if isinstance(preprocess, str) else preprocess or PreprocessSpec(),
            name=f"{kind}:{Path(place).name if far else Path(root).resolve().name}",
            split=split,
            where=str(root),
            skip=on_bad_image == "skip",
            home=data_dir,
            threads=max(threads, AT_ONCE) if far else threads,  # they wait for answers most of the time
            limit=limit,
            elsewhere=elsewhere,
        )
    if preprocess is not None or on_bad_image != "fail":
        raise InputError(f"preprocess, on_bad_image: expected encoded images, {', '.join(PLACES[:-1])}, got {name}")
    if colon and kind == "zarr" and place:
        root = Path(place).expanduser()
        return open_zarr(root, split, home=data_dir, threads=threads, limit=limit, elsewhere=elsewhere)
    if name not in DATASETS:
        raise UnknownNameError("data set", name, (*DATASETS, *PLACES))
    source = SOURCES[name]
    read = _read_embedded if name == EMBEDDED else _read_found
    images, labels = read(source, split, data_dir)
    return ArrayDataset(
        parse_images(images, name=f"{name}'s {split} images"),
        parse_labels(labels, name=f"{name}'s {split} labels"),
        name=name,
        split=split,
        classes=source.classes,
        limit=limit,
    )


def open_data(spec: DataSpec, split: str, *, threads: int | None = None, elsewhere: Elsewhere | None = None) -> Opened:
    """Open the data set of a spec; raises as :func:`open_dataset` does."""
    return open_dataset(
        spec.data,
        split,
        data_dir=None if spec.data_dir is None else Path(spec.data_dir),
        limit=spec.limit,
        preprocess=spec.preprocess,
        on_bad_image=spec.on_bad_image,
        threads=threads,
        elsewhere=elsewhere,
    )


def absolute_data(spec: DataSpec) -> DataSpec:
    """The same data set for a process with another working folder."""
    kind, colon, place = spec.data.partition(":")
    fields: dict[str, str] = {}
    if colon and place and not is_url(place):
        fields["data"] = f"{kind}:{Path(place).expanduser().absolute()}"
    if spec.data_dir is not None:
        fields["data_dir"] = str(Path(spec.data_dir).absolute())
    return spec.model_copy(update=fields)


def _read_embedded(source: Source, split: str, _: Path | None) -> tuple[bytes, bytes]:
    folder = resources.files("ensadv_data.data").joinpath(source.name)
    images_file, labels_file = split_files(split)

    def content_of(file: str) -> bytes:
        path = folder.joinpath(f"{file}.gz")
        try:
            return verify_content(path.read_bytes(), source=source, file=file)
        except OSError as error:
            raise DataError(
                f"{path}: expected a file of the package, got: {error.strerror}; reinstall ensadv-data"
            ) from error
        except ValueError as error:
            raise DataError(f"{path}: {error}; reinstall ensadv-data") from error

    return content_of(images_file), content_of(labels_file)


def _read_found(source: Source, split: str, data_dir: Path | None) -> tuple[bytes, bytes]:
    images_path, labels_path = _find_split(source.name, split, data_dir)
    images_file, labels_file = split_files(split)
    remedy = f"move that file away and run `ensadv-data fetch {source.name}`"
    return (
        read_known(images_path, source=source, file=images_file, remedy=remedy),
        read_known(labels_path, source=source, file=labels_file, remedy=remedy),
    )


def _find_split(name: str, split: str, data_dir: Path | None) -> tuple[Path, Path]:
    images_file, labels_file = split_files(split)
    looked: list[str] = []
    for folder in _folders(name, data_dir):
        images_path, labels_path = find_file(folder, images_file), find_file(folder, labels_file)
        if images_path and labels_path:
            return images_path, labels_path
        alone = images_path or labels_path
        looked.append(f"{folder} (only {alone.name})" if alone else str(folder))
    raise DataError(
        f"data set {name!r}, split {split!r}: expected {images_file} and {labels_file} (raw or .gz) in one "
        f"folder, got none among {', '.join(looked)}; run `ensadv-data fetch {name}`, or name the folder "
        f"that holds them as the data folder or in ${HOME_VARIABLE}"
    )


def _folders(name: str, data_dir: Path | None) -> Iterator[Path]:
    """Where to look, in order; a folder named after the data set goes before the one that holds it."""
    homes = [str(data_dir) if data_dir is not None else "", os.environ.get(HOME_VARIABLE, "")]
    for home in (Path(text).expanduser() for text in homes if text):
        yield home / name
        yield home
    for home in SYSTEM_HOMES:
        yield home / name
    yield cache_home() / name
