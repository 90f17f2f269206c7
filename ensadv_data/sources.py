"""Where the perturbations of a training come from, and whether they fit each other and what the training asks for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ensadv_data.data import Dataset
from ensadv_data.errors import InputError
from ensadv_data.spec import AugmentSpec, EpsilonSpec
from ensadv_data.store import Cache, Entry, Store, open_store
from ensadv_data.views import Views

__all__ = [
    "ONLINE",
    "Source",
    "augmentation_of",
    "check_draws",
    "check_epsilon",
    "check_room",
    "static_sources",
]


ONLINE = "online"


@dataclass(frozen=True)
class Source:
    """Where a step's perturbations come from: one source of a store, or a model that computes them at that step."""

    name: str
    entries: tuple[tuple[Store, Entry], ...] = ()  # its attacks in stores, one drawn per step; none: it computes


def static_sources(paths: Sequence[Path | str], dataset: Dataset, *, cache: Cache | None = None) -> tuple[Source, ...]:
    """The static sources of some stores; a source's attacks are gathered under its name.

    Parameters
    ----------
    cache
        Where all of them hold decompressed chunks; None: each store has its own.

    Raises
    ------
    InputError
        A store is missing or unfinished, or is for other images: their size or number differs.
    """
    sources: list[Source] = []
    for path in paths:
        store = open_store(path, cache=cache)
        header = store.header
        store.check_shape(dataset.shape, dataset.name)
        if header.n != len(dataset):
            raise InputError(
                f"{path}: expected directions for {len(dataset)} images of {dataset.name}, found {header.n} "
                f"of {header.data}; use the same data and the same --limit for both"
            )
        for name in sorted({entry.source for entry in store.entries}):
            entries = tuple((store, entry) for entry in store.entries if entry.source == name)
            label = name if len(paths) == 1 else f"{store.place.name}/{name}"
            sources.append(Source(_unused(label, {ONLINE, *(source.name for source in sources)}), entries))
    return tuple(sources)


def augmentation_of(sources: Sequence[Source], asked: AugmentSpec | None) -> AugmentSpec | None:
    """What the images of a training undergo: what was asked, or what its stores are views of.

    Raises
    ------
    InputError
        Stores are of other views than asked, or than one another; or what was asked resizes, and a store has no views.
    """
    stores = {id(store): store for source in sources for store, _ in source.entries}
    views = [(store, Views.of_plan(store.header.plan)) for store in stores.values()]
    told = [(store, None if each is None else each.augment) for store, each in views]
    for store, found in told:
        if found != told[0][1]:
            raise InputError(
                f"{store.place}: expected directions of {_views(told[0][1])}, as {told[0][0].place} has them, found "
                f"{_views(found)}; train with stores of one kind"
            )
        if found is not None and asked not in (None, found):
            raise InputError(
                f"augment: expected {found.label}, of which {store.place} has the views, got {_views(asked)}; "
                "leave it out, and the views are replayed"
            )
        if found is None and asked is not None and not asked.is_exact:
            raise InputError(
                f"augment: expected crop or flip for {store.place}, whose directions are of whole images, got "
                f"{asked.label}; make a store of views: precompute --augment {asked.label}"
            )
    return told[0][1] or asked if told else asked


def _views(augment: AugmentSpec | None) -> str:
    return "whole images" if augment is None else f"views by {augment.label}"


def check_draws(sources: Sequence[Source], draws: int | None) -> None:
    """Refuse a training that wants more draws than a store has.

    Raises
    ------
    InputError
        The message names the store, and how many it has.
    """
    for store in (store for source in sources for store, _ in source.entries):
        if draws is not None and draws > store.header.draws:
            raise InputError(
                f"{store.place}: expected a store of at least {draws} draws, found {store.header.draws}; "
                f"make one with: precompute --draws {draws}"
            )


def check_epsilon(sources: Sequence[Source], law: EpsilonSpec) -> None:
    """Refuse stored perturbations that cannot serve the epsilon of a training.

    Raises
    ------
    InputError
        An R+ entry's α is not below ε, so that only its random step would be left; or a delta was made for
        another ε. The message names the entry.
    """
    for store, entry in (pair for source in sources for pair in source.entries):
        if entry.kind == "rsign" and (entry.alpha or 0) >= law.epsilon:
            raise InputError(
                f"{store.place}: {entry.key}: expected epsilon above the store's alpha = {entry.alpha:g}, got "
                f"{law.epsilon:g}: no gradient step would be left; make a store with a smaller alpha"
            )
        if entry.kind == "delta" and (law.sigma is not None or not math.isclose(law.epsilon, entry.epsilon or 0)):
            raise InputError(
                f"{store.place}: {entry.key}: expected a fixed epsilon = {entry.epsilon:g}, for which the store was "
                f"made, got {'a drawn one up to ' if law.sigma else ''}{law.epsilon:g}"
            )


_DISK = "a disk that holds the store: --cache DIR, with a --cache-limit that it fits in"
_FILL = "a store that was made with --zeros fill, which has no masks"


def check_room(sources: Sequence[Source], *, window: int, draws: int | None, room: int) -> None:
    """Refuse a training that would fetch or decompress the same chunks again and again.

    Raises
    ------
    InputError
        What it reads at a time does not fit in the cache; the message says how much it is.
    """
    held = {
        (store, entry): store.held_bytes(entry, window or store.header.blocks, draws or store.header.draws)
        for source in sources
        for store, entry in source.entries
    }
    needed = sum(held.values())
    if needed > room:
        what = f"windows of {window} blocks" if window else "a global shuffle"
        places = dict.fromkeys(store.place for (store, _), size in held.items() if size)
        is_far = not all(place.is_mapped for place in places)
        raise InputError(
            f"window: expected {what} of {next(iter(places))} to fit in --cache-bytes, {room:,} bytes, found {needed:,}"
            f"{'' if is_far else ' of masks and other arrays that are decompressed'}; "
            "use a smaller --window (blocks are read once and whole then), more --cache-bytes"
            f"{', or ' + (_DISK if is_far else _FILL)}"
        )


def _unused(label: str, names: set[str]) -> str:
    """The label, with a number if a source has it already: the log counts steps by name."""
    labels = itertools.chain([label], (f"{label}#{number}" for number in itertools.count(2)))
    return next(free for free in labels if free not in names)
