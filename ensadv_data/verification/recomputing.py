"""Some examples of a store computed anew from the models that it was made of: whether the directions are theirs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ensadv_data.arithmetic import as_recorded
from ensadv_data.codec import full_mask
from ensadv_data.data import Dataset
from ensadv_data.errors import InputError, IntegrityError, UnknownNameError
from ensadv_data.keys import numpy_generator
from ensadv_data.models import Model, check_models, load_model
from ensadv_data.objects import Objects
from ensadv_data.perturbation import perturb_block
from ensadv_data.progress import progress_bar
from ensadv_data.store import Entry, Planes
from ensadv_data.verification.blueprint import Blueprint
from ensadv_data.verification.contents import chunk_of

__all__ = ["TOLERANCE", "Agreement", "agreements"]

# The least share of values that must agree, by precision and kind; docs/security.md says why.
TOLERANCE: Mapping[str, Mapping[str, float]] = {
    "float32": {"sign": 0.999, "rsign": 0.999, "delta": 0.9, "label": 0.999},
    "exact": {"sign": 0.999, "rsign": 0.999, "delta": 0.9, "label": 0.999},
    "tf32": {"sign": 0.93, "rsign": 0.93, "delta": 0.9, "label": 0.75},
    "bfloat16": {"sign": 0.93, "rsign": 0.93, "delta": 0.9, "label": 0.75},
}

_NEAR = 32  # steps of ε/127


@dataclass(frozen=True)
class Agreement:
    """How far an entry agrees with what its model gives here.

    Attributes
    ----------
    key
        SOURCE/ATTACK, or SOURCE/ATTACK/label.
    share
        Of the values that are not zero here or there, those that are equal; of deltas, those that differ by a quarter
        of ε at most, since a sign that differs at one step moves all later ones; of labels, those that are equal.
    values
        How many there are.
    least
        The tolerance.
    """

    key: str
    share: float
    values: int
    least: float


def agreements(
    place: Objects,
    blueprint: Blueprint,
    dataset: Dataset,
    models: Mapping[str, str],
    *,
    count: int,
    seed: int,
    device: str,
    tolerance: float | None = None,
) -> list[Agreement]:
    """Compute ``count`` random examples anew, all draws and attacks of the sources that have a model here.

    The batches are those of the store, since dropout is drawn by batches: so as many batches are computed.

    Parameters
    ----------
    models
        References by the names of the sources.
    seed
        Names the examples; nobody who made the store may know it before.
    tolerance
        The least share of each entry that must agree, in place of :data:`TOLERANCE`: for other hardware.

    Raises
    ------
    IntegrityError
        A model has other weights than the source; or fewer values agree than the tolerance.
    UnknownNameError
        The store has no source of that name.
    InputError
        It has, but this part of it has not; or there are fewer images than examples.
    """
    header, sources = blueprint.header, {source.name: source for source in blueprint.manifest.sources}
    loaded = []
    for name, reference in models.items():
        if name not in sources:
            raise UnknownNameError(f"source in {place}", name, sources)
        if name not in (here := sorted({entry.source for entry in blueprint.entries})):
            raise InputError(
                f"{place}: expected a --model of a source that is here ({', '.join(here)}), got {name}, of which "
                "nothing was fetched; pull it into the same folder first"
            )
        model = load_model(reference, name=name, device=device)
        if model.digest != sources[name].digest:
            raise IntegrityError(
                f"{place}: source {name}: expected weights with digest {sources[name].digest[:16]}…, {reference} has "
                f"{model.digest[:16]}…; the store was made from another model"
            )
        model.module.requires_grad_(False)
        loaded.append(model)
    if count < 1 or not loaded:
        raise InputError("expected --recompute of one example at least, and a --model for it")
    check_models(loaded, dataset, device=device, gradient=True)
    if len(dataset) < header.n:
        raise InputError(f"expected all {header.n} images to compute some anew, got {len(dataset)}; leave out --limit")
    known = _examples(place, blueprint, models)
    chosen = numpy_generator("recompute", seed).choice(known, min(count, len(known)), replace=False)
    same, values = Counter[str](), Counter[str]()
    batches = _batches(blueprint, sorted(int(e) for e in chosen))
    with progress_bar(f"recompute {place.name}", total=len(batches) * len(loaded), unit="batches") as advance:
        for (first, last), examples in batches.items():
            images, labels = dataset.read(np.arange(first, last))
            for model in loaded:
                made = _made(blueprint, model, images, labels, first=first, device=device)
                for entry in (entry for entry in blueprint.entries if entry.source == model.name):
                    for example in examples:
                        planes = made[entry.key]
                        equal, of = _compared(place, blueprint, entry, planes, example, example - first)
                        same[entry.key] += equal
                        values[entry.key] += of
                        block, at = divmod(example, header.block)
                        label = chunk_of(place, blueprint, blueprint.label(entry), 0, block).view("<i4")[at, 0]
                        same[f"{entry.key}/label"] += int(label == planes.label[example - first])  # type: ignore[index]
                        values[f"{entry.key}/label"] += 1
                advance(1)
    kinds = {entry.key: entry.kind for entry in blueprint.entries}
    least = TOLERANCE[blueprint.spec.precision]
    found = [
        Agreement(key, same[key] / of, of, least[kinds.get(key, "label")] if tolerance is None else tolerance)
        for key, of in values.items()
        if of
    ]
    for one in found:
        if one.share < one.least:
            raise IntegrityError(
                f"{place}: {one.key}: expected {one.least:.3f} of the values of {len(chosen)} random examples (seed "
                f"{seed}) to agree with those computed here, found {one.share:.4f} of {one.values:,}; the directions "
                "are not of this model, or this hardware computes otherwise: then see --tolerance"
            )
    return found


def _examples(place: Objects, blueprint: Blueprint, models: Collection[str]) -> npt.NDArray[np.int64]:
    """Those of which all entries of these sources are here."""
    header = blueprint.header
    every = np.arange(header.n)
    common = blueprint.blocks_of().intersection(
        *(blueprint.blocks_of(entry.key) for entry in blueprint.entries if entry.source in models)
    )
    if not common:
        raise InputError(f"{place}: expected a block that all entries of {', '.join(models)} have, found none")
    return every[np.isin(every // header.block, sorted(common))]


def _batches(blueprint: Blueprint, examples: Iterable[int]) -> dict[tuple[int, int], list[int]]:
    """First image of each batch that has one of the examples, and the one behind its last; and the examples."""
    found: dict[tuple[int, int], list[int]] = {}
    for example in examples:
        block, at = divmod(example, blueprint.header.block)
        size = blueprint.batch_size(block)
        first = example - at % size
        last = min(first + size, (block + 1) * blueprint.header.block, blueprint.header.n)
        found.setdefault((first, last), []).append(example)
    return found


def _made(
    blueprint: Blueprint,
    model: Model,
    images_NCHW: npt.NDArray[np.uint8],
    y_true_N: npt.NDArray[np.int64],
    *,
    first: int,
    device: str,
) -> dict[str, Planes]:
    """What a model makes of one batch, as precompute did."""
    entries = {entry.attack: entry for entry in blueprint.entries if entry.source == model.name}
    here = tuple(attack for attack in blueprint.spec.attacks if attack.name in entries)  # of a part, not all
    spec = blueprint.spec.model_copy(update={"device": device, "batch_size": len(images_NCHW), "attacks": here})
    with as_recorded(device, spec.precision):
        return perturb_block(model, images_NCHW, spec, entries, first=first, y_true_N=y_true_N)


def _compared(
    place: Objects, blueprint: Blueprint, entry: Entry, made: Planes, example: int, row: int
) -> tuple[int, int]:
    """Values of an example that agree over all draws, and how many were compared."""
    (block, at), header = divmod(example, blueprint.header.block), blueprint.header
    same = of = 0
    for draw in range(header.draws):
        theirs = [chunk_of(place, blueprint, array, draw, block)[at] for array in blueprint.rows(entry)]
        if made.delta is not None:
            ours = made.delta[draw, row].astype(np.int16)
            same += int((np.abs(ours - theirs[0].view(np.int8)) <= _NEAR).sum())
            of += header.d
            continue
        full = full_mask(header.d)
        mask = theirs[1] if len(theirs) == 2 else full
        other = full if made.nonzero is None else made.nonzero[draw, row]
        either = mask | other
        differ = ((theirs[0] ^ made.direction[draw, row]) | (mask ^ other)) & either  # type: ignore[index]
        of += int(np.bitwise_count(either).sum())
        same += int(np.bitwise_count(either).sum()) - int(np.bitwise_count(differ).sum())
    return same, of
