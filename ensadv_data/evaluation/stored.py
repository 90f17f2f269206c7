"""Sources whose perturbations of the test images were stored: read instead of computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensadv_data.data import Dataset
from ensadv_data.errors import InputError
from ensadv_data.evaluation.suites import Attack
from ensadv_data.manifest import read_manifest
from ensadv_data.spec import AttackSpec
from ensadv_data.store import Entry, Store, open_store, perturb_images

__all__ = ["StoredSource", "stored_sources"]

# How a store for evaluation was made; the first is what the store's plan says where it says nothing.
_MADE = {"labels": ("predicted", "true"), "mode": ("eval", "eval"), "zeros": ("keep", "keep"), "augment": (None, None)}


@dataclass(frozen=True)
class StoredSource:
    """One source of some stores, with store and entry of each attack that an evaluation makes on others from it."""

    name: str
    digest: str  # of the weights
    entries: Mapping[str, tuple[Store, Entry]]  # by the attack's label

    @property
    def parts(self) -> frozenset[str]:
        """Digests of the weights in it; of a composite a store does not tell them."""
        return frozenset([self.digest])

    @property
    def stores(self) -> list[str]:
        """Digests of the stores that are read."""
        return list(dict.fromkeys(read_manifest(store.place).digest for store, _ in self.entries.values()))

    def perturbed(self, attack: Attack, x_NCHW: torch.Tensor, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        """Adversarial images, float32 (N, C, H, W) in [0, 1]; those of iterative attacks are exact to ε/254.

        Raises
        ------
        ChunkError
            A chunk of the store is missing, truncated or corrupted.
        """
        store, entry = self.entries[attack.label]
        x_adv = perturb_images(
            store,
            entry,
            x_NCHW.cpu().numpy(),
            rows=indices,
            draws=np.zeros_like(indices),
            epsilon=np.full(len(indices), attack.epsilon, np.float32),
        )
        return torch.from_numpy(x_adv).to(x_NCHW.device)


def stored_sources(paths: Sequence[str], dataset: Dataset, attacks: Sequence[Attack]) -> list[StoredSource]:
    """The sources of some stores, for these test images and these attacks.

    A source may have some attacks in one store and the others in another.

    Raises
    ------
    InputError
        A store is missing or has nothing that is wanted, an attack is in none, or a store was made for training: with
        predicted labels, for example.
    AlignmentError
        A store was made for other images.
    """
    if len(set(paths)) < len(paths):
        raise InputError(f"shards: expected each store once, got {', '.join(paths)}")
    found: list[AttackSpec] = []  # in all stores
    serving: dict[tuple[str, str], dict[str, tuple[Store, Entry]]] = {}  # by the source's name and weights
    for path in paths:
        store = open_store(path)
        _check(store, path, dataset)
        made = _attacks_of(store.header.plan)
        found += made
        names = {attack.identity: attack.name for attack in made}
        wanted = {a.label: names[a.identity] for a in attacks if isinstance(a, AttackSpec) and a.identity in names}
        if not wanted:
            raise InputError(f"{path}: {_lacking(attacks, made)}")
        for entry in store.entries:
            mine = serving.setdefault((entry.source, entry.source_digest), {})
            for label in (label for label, name in wanted.items() if name == entry.attack):
                mine.setdefault(label, (store, entry))
    for (name, _), entries in serving.items():
        if lacking := [attack for attack in attacks if attack.label not in entries]:
            raise InputError(f"{name} in {', '.join(paths)}: {_lacking(lacking, found)}")
    return [StoredSource(name, weights, entries) for (name, weights), entries in serving.items()]


def _check(store: Store, path: str, dataset: Dataset) -> None:
    """Refuse a store of other images, or one that was made for training."""
    header = store.header
    if header.split != dataset.split:
        raise InputError(
            f"{path}: expected a store of the images that are evaluated, {dataset.name}/{dataset.split}, found one "
            f"of {header.data}/{header.split}; {_REMEDY}"
        )
    for name, (silent, wanted) in _MADE.items():
        if (found := header.plan.get(name, silent)) != wanted:
            raise InputError(f"{path}: expected a store made with {name} = {wanted}, found {found}; {_REMEDY}")
    store.check_shape(dataset.shape, dataset.name)
    if header.n < len(dataset):
        raise InputError(f"{path}: expected perturbations of {len(dataset)} images, found {header.n}; {_REMEDY}")
    store.prove(dataset.example_digests(), np.arange(len(dataset)))


def _lacking(wanted: Sequence[Attack], found: Sequence[AttackSpec]) -> str:
    return (
        f"expected {_told(wanted[0])} from every source, as the suite has it, found "
        f"{', '.join(dict.fromkeys(map(_told, found)))}; {_REMEDY}"
    )


_REMEDY = "make it with: ensadv-data precompute --split test --labels true, and the suite's attacks"


def _told(attack: Attack) -> str:
    """The attack, with what its stored perturbation is tied to."""
    if not isinstance(attack, AttackSpec):
        return f"{attack.label} (which no store can have)"
    told = f"{attack.name} by {attack.loss_form}"
    if attack.kind == "rsign":
        return f"{told}, alpha {attack.random_step:g}"
    if attack.kind == "delta":
        steps, size = attack.iterations
        return f"{told}, {steps} steps of {size:g} at epsilon {attack.epsilon:g}"
    return told


def _attacks_of(plan: Mapping[str, Any]) -> list[AttackSpec]:
    return [AttackSpec(**attack).with_loss(plan["loss"]) for attack in plan["attacks"]]
