"""Commands that take stores to other places, and into shards and back."""

from __future__ import annotations

from pathlib import Path

import click

from ensadv_data.data import open_data
from ensadv_data.errors import InputError
from ensadv_data.exchange import Exchanged, export_store, import_store
from ensadv_data.objects import is_url, objects_at
from ensadv_data.options import PATH, STORE, optional_data, read_bytes
from ensadv_data.remote import Moved, Wanted
from ensadv_data.remote import pull as pull_store
from ensadv_data.remote import push as push_store
from ensadv_data.spec import DataSpec, checked
from ensadv_data.store import open_store
from ensadv_data.terminal import print_check
from ensadv_data.trust import default_trust, read_trust
from ensadv_data.verification import Wanted as Believed

__all__ = ["export", "import_set", "pull", "push"]

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
        if (
            len(part) > 20
            or not (first.isdecimal() and (end.isdecimal() if colon else not end))
            or int(end or 0) > _LARGEST
        ):
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
@click.option("--blocks", callback=_blocks, help="Only these blocks, such as 0:8,12 (8 is left out).")
@click.option("--dry-run", is_flag=True, help="Say what would be fetched, how much of each entry, and write nothing.")
@click.option("--trust", type=PATH, help="TOML of trusted public keys; yours is used where there is one.")
@click.option("--unsigned", is_flag=True, help="Look at no signature.")
@click.option("--name", help="Accept no signature but that of the store of this name.")
def pull(
    store: Path | str,
    origin: Path | str | None,
    out: Path,
    sources: tuple[str, ...],
    attacks: tuple[str, ...],
    trust: Path | None,
    unsigned: bool,
    name: str | None,
    blocks: frozenset[int] | None,
    dry_run: bool,
) -> None:
    """Fetch a store, or a part of it, each object checked against the manifest as it arrives.

    What is there already is not fetched again, so a pull that was stopped goes on, and one for more adds it.
    """
    if unsigned and (trust is not None or name is not None):
        raise click.UsageError("--unsigned looks at no signature; leave it out, or --trust and --name")
    looks = trust is not None or name is not None or (not unsigned and default_trust().exists())
    pin = None
    if not is_url(store) and Path(store).is_file():
        if origin is None:
            raise InputError(f"expected --from URL beside the manifest {store}: it says what, not where")
        pin = Path(store).read_bytes()
    elif origin is not None:
        raise InputError(f"expected a manifest's file before --from, got {store}")
    wanted = Wanted(sources or None, attacks or None, blocks)
    why = "as was asked for" if unsigned else f"since there is no --trust and no {default_trust()}"
    believed = Believed(read_trust(trust, apart=objects_at(origin or store)) if looks else None, name=name, why=why)
    moved = pull_store(
        store if origin is None else origin,
        out,
        wanted=wanted,
        pin=pin,
        pinned=str(store),
        dry_run=dry_run,
        believed=believed,
        say=lambda line: print_check(*line),
    )
    if not dry_run:
        _told("pulled", moved)
        return
    click.echo(f"would pull: {out}  {moved.objects:,} objects, {moved.bytes:,} bytes; {moved.there:,} are there")
    for entry, (objects, size) in sorted(moved.entries.items()):
        click.echo(f"  {entry}  {objects:,} objects, {size:,} bytes")
    click.echo(f"digest: {moved.digest}")


def _told(what: str, moved: Moved) -> None:
    rate = f", {moved.bytes / moved.seconds / 1e6:,.0f} MB/s" if moved.bytes else ""
    click.echo(
        f"{what}: {moved.place}  {moved.objects:,} objects, {moved.bytes:,} bytes in {moved.seconds:.1f} s{rate}; "
        f"{moved.there:,} were there"
    )
    click.echo(f"digest: {moved.digest}")


@click.command(epilog="Example:  ensadv-data export shards --out shards-wds --shard-bytes 1GB")
@click.argument("store", type=STORE)
@click.option("--out", type=PATH, required=True, help="Folder of the shards.")
@click.option("--shard-bytes", default="1GB", show_default=True, callback=read_bytes, help="Bytes of a shard at most.")
@optional_data("Put its images beside the directions: a joint set.")
def export(store: Path | str, out: Path, shard_bytes: int, data: dict[str, str], limit: int | None) -> None:
    """Write a store as WebDataset shards, which any tar and npy reader reads.

    Without --data there is no image in them: an overlay, for images that may not be given away.
    """
    images = None
    if data:
        images = open_data(checked(DataSpec, {**data, "limit": limit}, where="export"), open_store(store).header.split)
    made = export_store(store, out, shard_bytes=shard_bytes, images=images)
    _exchanged("exported", made)


@click.command("import", epilog="Example:  ensadv-data import shards-wds --out shards")
@click.argument("shards", type=STORE)
@click.option("--out", type=PATH, required=True, help="Folder of the store.")
def import_set(shards: Path | str, out: Path) -> None:
    """Make a store of exported SHARDS, each compared with its digest first."""
    made = import_store(shards, out)
    _exchanged("imported", made)
    if not made.is_equal:
        click.echo(
            "warning: compressed by another version of zstd: equal rows, another digest; no signature holds for it"
        )


def _exchanged(what: str, made: Exchanged) -> None:
    click.echo(
        f"{what}: {made.place}  {made.shards:,} shards, {made.records:,} records, {made.bytes:,} bytes in "
        f"{made.seconds:.1f} s"
    )
    click.echo(f"digest: {made.digest}")
