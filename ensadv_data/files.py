"""Files that are either whole or absent: temp → fsync → rename, with errors a user can act on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ensadv_data.errors import OutputError

__all__ = [
    "check_outputs",
    "clear_leftovers",
    "is_leftover",
    "naming_trouble",
    "sha256_of_file",
    "write_atomic",
    "write_json",
]

_PREFIX = ".partial-"

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "your disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "the file would pass the size limit in force; raise it and run the same command again",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "this user may not write there; choose another folder or change its permissions",
    errno.EPERM: "this user may not write there; choose another folder or change its permissions",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.EEXIST: "a file of that name is in the way; choose another folder",
    errno.EISDIR: "a folder of that name is in the way; choose another name",
    errno.ENAMETOOLONG: "the name is too long for the file system; choose a shorter one",
    errno.ENOENT: "its folder takes no files, or was deleted meanwhile; choose another folder",
}


@contextlib.contextmanager
def naming_trouble(path: Path, *, hint: str = "") -> Iterator[None]:
    """Turn the operating system's refusal to write ``path`` into an :class:`OutputError`.

    What it says of a file elsewhere, one that is read meanwhile, passes unchanged. ``hint`` says how the place is
    chosen, where that is not an option called ``--out``.

    Raises
    ------
    OutputError
        On a full disk, a read-only folder, a missing permission, or a file in the way.
    """
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None or not _is_about(error, path):
            raise
        raise OutputError(
            f"cannot write {path}: expected a place that takes it, got: {os.strerror(error.errno or 0)}; {remedy}{hint}"
        ) from error


def check_outputs(*outputs: Path | None, reads: Iterable[Path | str] = ()) -> None:
    """Refuse, before any work is done, a file that could not be written in the end, or that the same command reads.

    Parameters
    ----------
    outputs
        Files that :func:`write_atomic` is to write; None for those that nobody asked for.
    reads
        Files that the command reads, and folders, in which it writes nothing.

    Raises
    ------
    OutputError
        The message has the path, and what is in its way. Nothing is written; a folder for it may have been made.
    """
    asked, kept = [path for path in outputs if path is not None], [os.path.realpath(path) for path in reads]
    for number, path in enumerate(asked):
        real = Path(os.path.realpath(path))
        if real in (Path(os.path.realpath(other)) for other in asked[:number]):
            raise OutputError(f"expected a file of its own for each output, got {path} twice; choose another name")
        if found := next((place for place in kept if real.is_relative_to(place)), None):
            raise OutputError(
                f"cannot write {path}: expected another file than those that are read, got one of "
                f"{found}, which it would replace; choose another name"
            )
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OutputError(f"cannot write {path}: expected the name of a file, found a device; choose another name")
        with naming_trouble(path):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_suffix(path), dir=path.parent)
            os.close(handle)
            os.unlink(name)


def write_atomic(path: Path, *data: bytes | memoryview) -> None:
    """Write ``data``, one after the other, to ``path`` so that the name never holds a part of it.

    Raises
    ------
    OutputError
        When the folder cannot be written; no temporary file is left then.
    """
    with naming_trouble(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_suffix(path), dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        _sync_folder(path.parent)


def is_leftover(path: Path) -> bool:
    """Whether a killed run left it: a temporary file of write_atomic, or zarr's own ``zarr.HEX.partial``."""
    return path.name.startswith(_PREFIX) or (path.name.startswith("zarr.") and path.suffix == ".partial")


def clear_leftovers(*paths: Path) -> None:
    """Delete what a process that was killed in :func:`write_atomic` left of files with these names.

    Temporary files of other names stay: somebody may be writing them.

    Raises
    ------
    OutputError
        One cannot be deleted.
    """
    for path in paths:
        wanted = re.compile(re.escape(_PREFIX) + "[a-z0-9_]{8}" + re.escape(_suffix(path)))
        with naming_trouble(path):
            for left in path.parent.glob(_PREFIX + "*"):
                if wanted.fullmatch(left.name):
                    left.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a result as JSON that people can read; raises as :func:`write_atomic` does."""
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, as lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _suffix(path: Path) -> str:
    """How a temporary file of ``path`` ends; short enough that the whole name fits."""
    return "-" + path.name[-80:]


def _is_about(error: OSError, path: Path) -> bool:
    """Whether the error names ``path``, a folder that holds it, something inside or beside it, or no file at all."""
    if not isinstance(error.filename, str | os.PathLike):
        return True
    named, ours = Path(os.path.abspath(error.filename)), Path(os.path.abspath(path))
    return named.parent == ours.parent or named in ours.parents or ours in named.parents


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """A rename is durable only once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
