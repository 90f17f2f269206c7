"""What a store or a model file holds, and what two stores do not have in common; no model computes anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ensadv_data.codec import full_mask
from ensadv_data.errors import InputError
from ensadv_data.manifest import read_manifest
from ensadv_data.models import read_metadata
from ensadv_data.objects import Objects
from ensadv_data.progress import progress_bar
from ensadv_data.store import Entry, ExportedStore, Store, open_store
from ensadv_data.views import Views

__all__ = [
    "EntryDifference",
    "EntrySummary",
    "StoreSummary",
    "compare_stores",
    "describe_model",
    "describe_store",
    "epsilons_of",
    "is_store",
]

_EPSILON = {
    "sign": "any epsilon",
    "rsign": "any epsilon above alpha = {alpha:g}",
    "delta": "epsilon = {epsilon:g} only",
}


@dataclass(frozen=True)
class EntrySummary:
    """One source under one attack."""

    source: str
    architecture: str
    attack: str
    kind: str
    epsilon: str
    zeros: float | None  # share of values that are zero, in [0, 1]; None for deltas
    bits_per_value: float  # of each draw, mask and padding included
    source_digest: str


@dataclass(frozen=True)
class StoreSummary:
    """A store as a whole."""

    path: str
    digest: str
    data: str
    data_digest: str
    shape: tuple[int, int, int]
    n: int
    draws: int
    blocks: int
    block: int
    bytes: int  # of its objects; of an exported set, of its tars
    shards: int | None  # tars of an exported set; None: a store
    mode: str
    labels: str  # predicted, or true: for evaluation
    views: str | None  # the augmentation by which each draw has a view of its own; None: whole images
    bits_per_value: float  # over all entries and draws, masks and padding included
    entries: tuple[EntrySummary, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def describe_store(path: Objects | Path | str) -> StoreSummary:
    """Describe a complete store or exported set; every chunk's presence is looked at, no chunk is read.

    Raises
    ------
    InputError
        There is no complete store.
    ChunkError
        A chunk is missing.
    """
    store = open_store(path)
    manifest = read_manifest(path)
    header = store.header
    entries = tuple(_describe_entries(store, manifest.zeros))
    here = ("example_digest/", *(f"{entry.key}/" for entry in store.entries))
    shards = store.shards if isinstance(store, ExportedStore) else None
    if shards is None:
        size = sum(record.bytes for key, record in manifest.objects.items() if key.startswith(here))
    else:
        size = sum(shard.bytes for shard in shards)
    return StoreSummary(
        path=str(path),
        digest=manifest.digest,
        data=f"{header.data}/{header.split}",
        data_digest=header.data_digest,
        shape=header.shape,
        n=header.n,
        draws=header.draws,
        blocks=header.blocks,
        block=header.block,
        bytes=size,
        shards=None if shards is None else len(shards),
        mode=str(header.plan.get("mode")),
        labels=str(header.plan.get("labels", "predicted")),
        views=None if (views := Views.of_plan(header.plan)) is None else views.augment.label,
        bits_per_value=sum(row.bits_per_value for row in entries) / len(entries),
        entries=entries,
    )


@dataclass(frozen=True)
class EntryDifference:
    """How the same source and attack differ in two stores, as shares of their values in [0, 1]."""

    key: str  # SOURCE/ATTACK
    draws: int  # that were compared
    opposite: float  # +1 in one and −1 in the other; of deltas: values that differ at all
    zero_here: float  # zero in the first only
    zero_there: float  # zero in the second only


def compare_stores(path: Path | str, other: Path | str) -> tuple[EntryDifference, ...]:
    """Compare what two stores of the same images have under the same names, draw by draw.

    Raises
    ------
    InputError
        The stores are of other images, or have no source and attack in common.
    ChunkError
        A chunk is missing, truncated or corrupted.
    """
    here, there = open_store(path), open_store(other)
    told = [
        (s.header.plan.get("augment"), s.header.plan["seed"]) for s in (here, there) if s.header.plan.get("augment")
    ]
    if told and told != told[:1] * 2:
        raise InputError(f"expected views of one augmentation and seed in both, got others in {path} and in {other}")
    if (here.header.data_digest, here.header.n) != (there.header.data_digest, there.header.n):
        raise InputError(
            f"{other}: expected a store of the {here.header.n} images of {path}, found {there.header.n} of "
            f"{there.header.data}, or other ones"
        )
    common = [(entry, twin) for entry in here.entries for twin in there.entries if entry.key == twin.key]
    common = [(entry, twin) for entry, twin in common if (entry.kind == "delta") == (twin.kind == "delta")]
    if not common:
        raise InputError(
            f"{other}: expected a source and attack of {path}, which has {', '.join(e.key for e in here.entries)}; "
            f"found {', '.join(e.key for e in there.entries)}"
        )
    draws = min(here.header.draws, there.header.draws)
    with progress_bar("compare", total=len(common) * draws * here.header.blocks, unit="blocks") as advance:
        return tuple(_difference(here, entry, there, twin, draws, advance) for entry, twin in common)


def _difference(
    here: Store, entry: Entry, there: Store, twin: Entry, draws: int, advance: Callable[[int], None]
) -> EntryDifference:
    header, counts = here.header, np.zeros(3, np.int64)
    full = full_mask(header.d)
    for draw in range(draws):
        for start in range(0, header.n, header.block):
            advance(1)
            rows = np.arange(start, min(start + header.block, header.n))
            one, two = (store.gather(e, np.full(len(rows), draw), rows) for store, e in ((here, entry), (there, twin)))
            if one.delta is not None:
                counts[0] += np.count_nonzero(one.delta != two.delta)
                continue
            some, others = (full if planes.nonzero is None else planes.nonzero for planes in (one, two))
            opposite = (one.direction ^ two.direction) & some & others  # type: ignore[operator]
            counts += [int(np.bitwise_count(bits).sum()) for bits in (opposite, ~some & others, some & ~others)]
    shares = counts / (draws * header.n * header.d)
    return EntryDifference(entry.key, draws, *shares.tolist())


def describe_model(path: Path) -> dict[str, Any]:
    """Architecture, shape, digest and training record of a weights file of ours."""
    return read_metadata(path)


def is_store(path: Path | str) -> bool:
    """Whether ``path`` looks like a store rather than a weights file.

    Raises
    ------
    InputError
        There is nothing at ``path``.
    """
    if isinstance(path, str):  # of another machine, where only stores are read
        return True
    if not path.exists():
        raise InputError(f"expected a store or a .safetensors file at {path}, found nothing")
    return path.is_dir()


def epsilons_of(entry: Entry) -> str:
    """The epsilons that an entry can serve, in words."""
    return _EPSILON[entry.kind].format(alpha=entry.alpha or 0, epsilon=entry.epsilon or 0)


def _describe_entries(store: Store, zeros: dict[str, int]) -> list[EntrySummary]:
    values = store.header.draws * store.header.n * store.header.d
    rows = []
    for entry in store.entries:
        sizes = store.object_sizes(entry)
        packed = sum(size for name, size in sizes.items() if name != "label")
        rows.append(
            EntrySummary(
                source=entry.source,
                architecture=entry.architecture,
                attack=entry.attack,
                kind=entry.kind,
                epsilon=epsilons_of(entry),
                zeros=None if entry.kind == "delta" else zeros.get(entry.key, 0) / values,
                bits_per_value=8 * packed / values,
                source_digest=entry.source_digest,
            )
        )
    return rows
