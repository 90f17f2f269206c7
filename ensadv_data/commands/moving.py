"""Commands that publish stores and fetch them."""

from __future__ import annotations

from pathlib import Path

import click

from ensadv_data.errors import InputError
from ensadv_data.objects import is_url
from ensadv_data.options import PATH, STORE
from ensadv_data.remote import Moved, Wanted
from ensadv_data.remote import pull as pull_store
from ensadv_data.remote import push as push_store

__all__ = ["pull", "push"]

_LARGEST = 10**6  # blocks that may be named


@click.command(epilog="Example:  ensadv-data push shards s3://bucket/team-a/shards")
@click.argument("store", type=STORE)
@click.argument("to", type=STORE)
def push(store: Path | str, to: Path | str) -> None:
    """Publish a complete store in a folder or an object store.

    What is there already is not sent again. The manifest goes last: until then nobody takes it for a store. What is
    there of another store is never touched.
    """
    _told("pushed", push_store(store, to))


def _blocks(context: click.Context, parameter: click.Parameter, text: str | None) -> frozenset[int] | None:
    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, colon, end = part.partition(":")
        if not (first.isdecimal() and (end.isdecimal() if colon else not end)) or int(end or 0) > _LARGEST:
            raise InputError(f"--blocks: expected numbers and ranges FIRST:END such as 0:8,12, got {text[:80]}")
        found |= set(range(int(first), int(end) if colon else int(first) + 1))
    return frozenset(found)


@click.command(
    epilog="Examples:  ensadv-data pull s3://bucket/team-a/shards --out shards --source d;  "
    "ensadv-data pull manifests/NAME.json --from https://example.org/shards --out shards"
)
@click.argument("store", type=STORE)
@click.option("--from", "origin", type=STORE, help="Where the store is, if STORE is the manifest that it must have.")
@click.option("--out", type=PATH, required=True, help="Folder of the copy.")
@click.option("--source", "sources", multiple=True, help="Only this source; may be repeated.")
@click.option("--attack", "attacks", multiple=True, help="Only this attack; may be repeated.")
@click.option(
    "--blocks", callback=_blocks, help="Only these blocks: numbers and ranges, such as 0:8,12 (8 is left out)."
)
def pull(
    store: Path | str,
    origin: Path | str | None,
    out: Path,
    sources: tuple[str, ...],
    attacks: tuple[str, ...],
    blocks: frozenset[int] | None,
) -> None:
    """Fetch a store, or a part of it, each object checked against the manifest as it arrives.

    What is there already is not fetched again, so a pull that was stopped goes on, and one for more adds it.
    """
    pin = None
    if not is_url(store) and Path(store).is_file():
        if origin is None:
            raise InputError(f"expected --from URL beside the manifest {store}: it says what, not where")
        pin = Path(store).read_bytes()
    elif origin is not None:
        raise InputError(f"expected a manifest's file before --from, got {store}")
    wanted = Wanted(sources or None, attacks or None, blocks)
    _told("pulled", pull_store(store if origin is None else origin, out, wanted=wanted, pin=pin))


def _told(what: str, moved: Moved) -> None:
    rate = f", {moved.bytes / moved.seconds / 1e6:,.0f} MB/s" if moved.bytes else ""
    click.echo(
        f"{what}: {moved.place}  {moved.objects:,} objects, {moved.bytes:,} bytes in {moved.seconds:.1f} s{rate}; "
        f"{moved.there:,} were there"
    )
    click.echo(f"digest: {moved.digest}")
