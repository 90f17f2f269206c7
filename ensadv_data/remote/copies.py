"""What a push and a pull have in common: where a copy may be made, and how its objects get there.

An unfinished copy has a file below ``progress/`` that names the manifest that it is of, and its manifest comes last.
So a copy that was cut off is no store yet, the same command goes on with it, and what is there of another store stays.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

from ensadv_data.errors import ChunkError, InputError, Interrupted, OutputError
from ensadv_data.manifest import Manifest, ObjectRecord
from ensadv_data.objects import AT_ONCE, Objects
from ensadv_data.progress import progress_bar
from ensadv_data.store import PART, Part, is_exported, read_part
from ensadv_data.untrusted import OWN_MANIFEST
from ensadv_data.verification import BESIDE, BESIDE_BYTES

__all__ = ["Moved", "begin", "checked", "each", "finish", "manifest_bytes", "moved", "telling"]


@dataclass(frozen=True)
class Moved:
    """What a push or a pull did."""

    place: str
    digest: str  # the store's
    objects: int  # that were copied
    bytes: int  # of them
    there: int  # objects that were there before
    seconds: float
    entries: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # objects and bytes of each that was copied


def manifest_bytes(place: Objects) -> bytes:
    """Bytes of the manifest of a complete store.

    Raises
    ------
    InputError
        There is none, or an exported set.
    IntegrityError
        It is larger than any manifest may be.
    """
    try:
        raw = place.read_at_most("manifest.json", OWN_MANIFEST.size)
    except FileNotFoundError:
        raise InputError(
            f"expected a store at {place}, found no manifest.json; is the store finished, and the address its own?"
        ) from None
    if is_exported(place):
        raise InputError(
            f"expected a store at {place}, found an exported set; any tool copies its files, and import makes a store "
            "of them"
        )
    return raw


def begin(place: Objects, raw: bytes, mark: str, *, claims: bool = True) -> Part | None:
    """Make sure that a place is free, or holds a copy of this store, finished or not; its part, where it is finished.

    A copy that is whole has a part without blocks. Nothing is written where the place is not claimed.
    """
    mine = (json.dumps({"manifest": hashlib.sha256(raw).hexdigest()}) + "\n").encode()
    try:
        there = place.read_at_most("manifest.json", OWN_MANIFEST.size)
    except FileNotFoundError:
        there = None
    if there is not None:
        if there != raw:
            raise OutputError(f"{place} holds another store; it was not touched: choose another place")
        return read_part(place, raw) or Part(hashlib.sha256(raw).hexdigest(), {})
    if not place.has(mark) and not place.is_free():
        raise OutputError(f"{place} holds something else than a copy of this store; it was not touched: choose another")
    known = place.claim(mark, mine) if claims else place.read_all([mark]).get(mark, mine)
    if known != mine:
        raise OutputError(
            f"{place} holds the beginning of a copy of another store; it was not touched: choose another place, or "
            "delete it"
        )
    return None


def finish(place: Objects, raw: bytes, origin: Objects) -> None:
    """What lies beside the manifest, and then the manifest: the copy is complete."""
    for key in sorted(BESIDE - {"manifest.json", PART}):
        try:
            place.write(key, origin.read_at_most(key, BESIDE_BYTES))
        except FileNotFoundError:
            continue
    place.write("manifest.json", raw)
    place.delete("progress/")
    place.sweep()


def checked(place: Objects, key: str, record: ObjectRecord, *, attempts: int = 1) -> bytes:
    """An object whose bytes are those of the manifest; what arrives otherwise is asked for again."""
    for _ in range(attempts):
        try:
            data = place.read_at_most(key, record.bytes)
        except FileNotFoundError:
            raise ChunkError(f"{place}/{key}: the object is missing there; {_REMEDY}") from None
        found = hashlib.sha256(data).hexdigest()
        if found == record.sha256 and len(data) == record.bytes:
            return data
    raise ChunkError(
        f"{place}/{key}: expected {record.bytes:,} bytes with SHA-256 {record.sha256[:16]}…, as the manifest has it, "
        f"found {len(data):,} with {found[:16]}…; {_REMEDY}"
    )


_REMEDY = "who published the store repairs it (precompute --repair) and pushes it again"


def each(work: Callable[[str], None], todo: Mapping[str, ObjectRecord], what: str) -> None:
    """Do a work for each key, some at once; the first failure ends it, when what is in flight is done."""
    waiting: Iterator[str] = iter(todo)
    flying: dict[Future[None], str] = {}
    pool = ThreadPoolExecutor(AT_ONCE)
    total = sum(record.bytes for record in todo.values())
    try:
        with progress_bar(what, total=total, unit="MB", per=1e-6) as advance:
            while True:
                while len(flying) < 2 * AT_ONCE and (key := next(waiting, None)) is not None:
                    flying[pool.submit(work, key)] = key
                if not flying:
                    return
                done, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    advance(todo[flying.pop(future)].bytes)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def telling(message: str) -> Iterator[None]:
    """Ctrl-C becomes a message that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(message) from None


def moved(place: Objects, manifest: Manifest, todo: Mapping[str, ObjectRecord], of: int, began: float) -> Moved:
    """What was done for the objects of a manifest: of so many wanted, these had to be copied."""
    objects, sizes = Counter[str](), Counter[str]()
    for key, record in todo.items():
        entry = "/".join(key.split("/")[:2]) if key.count("/") > 2 else key.partition("/")[0]
        objects[entry] += 1
        sizes[entry] += record.bytes
    seconds, entries = time.perf_counter() - began, {entry: (objects[entry], sizes[entry]) for entry in objects}
    return Moved(str(place), manifest.digest, len(todo), sizes.total(), of - len(todo), seconds, entries)
