"""Objects by key below one root: files of a folder, or objects of a bucket.

    STORE                                    a folder of this machine
    s3://BUCKET/PREFIX, gs://…, az://…       an object store; credentials from the environment's usual places
    http://…, https://…                      the same objects behind a web server, for reading
    hf://datasets/OWNER/NAME[@REVISION]      the same in a data set of the Hugging Face Hub, for reading

A key is a relative path with ``/``. An object is there whole or not at all: a file gets its name when it is on the
disk, and a put that is cut short leaves nothing.
"""

from __future__ import annotations

from pathlib import Path

from ensadv_data.errors import InputError
from ensadv_data.objects.base import Folder, Objects
from ensadv_data.objects.bucket import ASKED, Bucket
from ensadv_data.objects.kept import Kept, Shelf
from ensadv_data.objects.requesting import AT_ONCE, HUB, SCHEMES, WEB, Far
from ensadv_data.objects.web import Web

__all__ = [
    "ASKED",
    "AT_ONCE",
    "Bucket",
    "Far",
    "Folder",
    "Kept",
    "Objects",
    "Shelf",
    "Web",
    "far_objects",
    "is_url",
    "objects_at",
]


def is_url(reference: Path | str) -> bool:
    """Whether it names objects of another machine rather than a folder."""
    return isinstance(reference, str) and "://" in reference


def objects_at(reference: Objects | Path | str) -> Objects:
    """The objects at a path or URL.

    Raises
    ------
    InputError
        A URL of a kind that cannot be read.
    """
    if isinstance(reference, Objects):
        return reference
    first = Path(str(reference)).parts[:1]
    if not is_url(reference) and first and first[0].removesuffix(":") in SCHEMES and first[0].endswith(":"):
        raise InputError(f"expected a folder or {first[0]}//…, got {reference}; a URL is text, with two slashes")
    if not is_url(reference):
        return Folder(Path(reference))
    return far_objects(str(reference))


def far_objects(url: str) -> Far:
    """The objects at a URL; raises as :func:`objects_at` does."""
    return Web(url) if url.partition("://")[0] in (*WEB, HUB) else Bucket(url)
