"""White-box and transferred attacks: sources × targets, each perturbation computed once.

A black-box row holds every source that is not the target itself. Evaluation moves away from the true label, or
towards the least likely one; it never uses the predicted label, which is for training (App. C.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ensadv_data.data import Dataset
from ensadv_data.dist import current_place, most_of_all
from ensadv_data.errors import InputError
from ensadv_data.evaluation.adaptive import AdaptiveResult
from ensadv_data.evaluation.attacking import Attacked, perturbed
from ensadv_data.evaluation.batches import batches
from ensadv_data.evaluation.finite import finite_logits
from ensadv_data.evaluation.interval import Rate
from ensadv_data.evaluation.stored import StoredSource
from ensadv_data.evaluation.suites import Attack
from ensadv_data.models import Model, check_models
from ensadv_data.spec import AttackSpec

__all__ = ["TargetResult", "Transfer", "measure_transfer"]

Wrong = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TargetResult:
    """All that was measured on one target."""

    target: str
    digest: str
    architecture: str
    clean: Rate
    white_box: Mapping[str, Rate]  # by attack
    black_box: Mapping[str, Mapping[str, Rate]]  # by source, then attack
    any_black_box: Rate | None  # images that at least one black-box attack fools: the worst case of each
    twin: str | None = None  # the source with the target's own weights, whose attacks are white-box
    kin: tuple[
        str, ...
    ] = ()  # other sources that have weights of the target in them, or it theirs; in no worst, no mean
    unmoved: Mapping[str, int] = field(default_factory=dict)  # by white-box attack: images that it left where it began
    adaptive: Mapping[str, AdaptiveResult] = field(default_factory=dict)  # by adversary
    top5: TargetResult | None = None  # the same measurements by the first five classes, where there are more than ten

    @property
    def worst_black_box(self) -> tuple[str, str, Rate] | None:
        """Source, attack and rate of the strongest transferred attack."""
        rows = [(source, attack, rate) for source, by in self._strangers.items() for attack, rate in by.items()]
        return max(rows, key=lambda row: row[2].errors, default=None)

    @property
    def mean_black_box(self) -> float | None:
        """Mean error over all transferred attacks, in [0, 1]."""
        rates = [rate.value for by in self._strangers.values() for rate in by.values()]
        return math.fsum(rates) / len(rates) if rates else None

    @property
    def _strangers(self) -> Mapping[str, Mapping[str, Rate]]:
        return {source: by for source, by in self.black_box.items() if source not in self.kin}

    def to_json(self) -> dict[str, Any]:
        """As JSON: rates in [0, 1] with their 95% intervals."""
        worst = self.worst_black_box
        told: dict[str, Any] = {
            "digest": self.digest,
            "architecture": self.architecture,
            "clean": self.clean.to_json(),
            "white_box": {attack: rate.to_json() for attack, rate in self.white_box.items()},
            "black_box": {
                source: {attack: rate.to_json() for attack, rate in by.items()} for source, by in self.black_box.items()
            },
            "worst_black_box": worst and {"source": worst[0], "attack": worst[1], **worst[2].to_json()},
            "mean_black_box": self.mean_black_box,
            "any_black_box": self.any_black_box and self.any_black_box.to_json(),
        }
        if self.twin is not None:
            told["twin"] = self.twin
        if self.kin:
            told["kin"] = list(self.kin)
        if self.unmoved:
            told["unmoved"] = dict(self.unmoved)
        if self.adaptive:
            told["adaptive"] = {name: result.to_json() for name, result in self.adaptive.items()}
        if self.top5 is not None:
            told["top5"] = self.top5.to_json()
        return told


@dataclass(frozen=True)
class Transfer:
    """One evaluation: what was attacked with what, and how it went."""

    data: str
    n: int
    epsilon: float
    suite: str
    sources: Mapping[str, str]  # name → digest
    targets: tuple[TargetResult, ...]
    stores: Mapping[str, Sequence[str]] = field(default_factory=dict)  # source → digests of the stores it was read from
    unmoved: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # by source, as that of a target
    pictures: Mapping[str, Any] | None = None  # the first images, if they were asked for

    def to_json(self) -> dict[str, Any]:
        """As JSON; the same models and images give the same bytes."""
        return {
            "kind": "transfer",
            "version": 1,
            "data": self.data,
            "n": self.n,
            "epsilon": self.epsilon,
            "suite": self.suite,
            "sources": dict(self.sources),
            **({"stores": dict(self.stores)} if self.stores else {}),
            **({"unmoved": {name: dict(by) for name, by in self.unmoved.items()}} if self.unmoved else {}),
            "targets": {result.target: result.to_json() for result in self.targets},
            **({} if self.pictures is None else {"pictures": dict(self.pictures)}),
        }


def measure_transfer(
    targets: Sequence[Model],
    sources: Sequence[Model | StoredSource],
    dataset: Dataset,
    *,
    white_box: Sequence[Attack],
    black_box: Sequence[Attack],
    epsilon: float,
    suite: str = "",
    seed: int = 0,
    batch_size: int = 250,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda images: None,
) -> Transfer:
    """Measure every target against every attack. The processes of a group share the images; each has the whole result.

    Parameters
    ----------
    targets, sources
        Models; a source may be one whose attacks are stored. What a source does to a target with the same weights is
        white-box, and is shown there.
    dataset
        Test images with true labels.
    white_box, black_box
        Attacks on the target itself, and from each source.
    epsilon, suite
        For the record.
    seed
        Names the random steps and starts.
    batch_size
        Images at a time.
    advance
        Called with the number of images attacked, for a progress bar.

    Raises
    ------
    ModelError
        A model's output is not finite logits over the data set's classes, or its gradient is not finite.
    InputError
        No target, or two models of one name.
    """
    for role, models in (("target", targets), ("source", sources)):
        names = [model.name for model in models]
        if len(set(names)) < len(names):
            raise InputError(f"expected a name of its own for each {role}, got {', '.join(names)}; use NAME=REF")
    if not targets:
        raise InputError("expected at least one target, got none")
    live = [source for source in sources if isinstance(source, Model)]
    for models, attacks in ((targets, white_box), (live, black_box)):
        followed = any(isinstance(attack, AttackSpec) for attack in attacks)  # another library's may need no gradient
        check_models(models, dataset, device=device, gradient=followed)
    tops = (1, 5) if dataset.classes > 10 else (1,)
    counts = {top: _Counts(len(dataset)) for top in tops}
    twice = {(t.digest, a.label) for t in targets for a in white_box} & {
        (s.digest, a.label) for s in live for a in black_box
    }
    for indices, x, y in batches(dataset, batch_size=batch_size, device=device, place=current_place()):
        kept: dict[tuple[str, str], Attacked] = {}  # white-box on a target that is a source as well

        def attacked(
            model: Model | StoredSource,
            attack: Attack,
            *what: str,
            x: Any = x,
            y: Any = y,
            indices: Any = indices,
            kept: Any = kept,
        ) -> torch.Tensor:
            advance(len(indices))
            name = (model.digest, attack.label)
            made: Attacked | None = kept.get(name)
            if made is None:
                made = perturbed(model, attack, x, y, indices, seed=seed)
                if name in twice:
                    kept[name] = made
            if made.start is not None:
                still = ((made.images - made.start).abs() < 1e-6).flatten(1).all(1)
                counts[1].add((*what, "unmoved", attack.label), indices, still.cpu().numpy())
            return made.images

        def count(target: Model, *what: str, inputs: torch.Tensor, y: Any = y, indices: Any = indices) -> None:
            logits = finite_logits(target, inputs)
            for top in tops:
                missed = logits.argmax(1) != y if top == 1 else (logits.topk(top).indices != y[:, None]).all(1)
                counts[top].add((target.name, *what), indices, missed.cpu().numpy())

        for target in targets:
            count(target, "clean", inputs=x)
            for attack in white_box:
                x_adv = attacked(target, attack, target.name)
                count(target, "white", attack.label, inputs=x_adv)
        for source in sources:
            if isinstance(source, Model):
                finite_logits(source, x)  # a NaN may leave a gradient of zero, as a weak source has it
            for attack in black_box:
                x_adv = attacked(source, attack, "", source.name)
                for target in targets:
                    where = ("white",) if target.digest == source.digest else ("black", source.name)
                    count(target, *where, attack.label, inputs=x_adv)
    for count_of in counts.values():
        count_of.merge(device=torch.device(device))
    of_sources = {source.name: counts[1].positive(("", source.name, "unmoved")) for source in sources}
    return Transfer(
        data=f"{dataset.name}/{dataset.split}",
        n=len(dataset),
        epsilon=epsilon,
        suite=suite,
        sources={source.name: source.digest for source in sources},
        targets=tuple(_result(target, sources, counts) for target in targets),
        stores={source.name: source.stores for source in sources if isinstance(source, StoredSource)},
        unmoved={name: by for name, by in of_sources.items() if by},
    )


class _Counts:
    """Which images were misclassified, or left unmoved, by name of the measurement."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.wrong: dict[tuple[str, ...], Wrong] = {}

    def add(self, name: tuple[str, ...], indices: npt.NDArray[np.int64], wrong: Wrong) -> None:
        self.wrong.setdefault(name, np.zeros(self.n, bool))[indices] = wrong

    def merge(self, *, device: torch.device) -> None:
        """What all ranks found; each found the same names, in the same order."""
        if current_place().world_size > 1:
            for wrong in self.wrong.values():
                wrong[:] = most_of_all(torch.from_numpy(wrong).to(device).byte()).cpu().numpy()

    def rate(self, name: tuple[str, ...]) -> Rate:
        return Rate(int(self.wrong[name].sum()), self.n)

    def positive(self, what: tuple[str, ...]) -> dict[str, int]:
        """How many images, by attack, of a measurement that has some."""
        found = {name[-1]: int(wrong.sum()) for name, wrong in self.wrong.items() if name[:-1] == what}
        return {attack: images for attack, images in found.items() if images}


def _related(target: Model, source: Model | StoredSource) -> bool:
    """Whether a source has weights of a target; a store tells the digest of the whole only."""
    return target.shares_weights(source) if isinstance(source, Model) else source.digest in target.parts


def _result(
    target: Model,
    sources: Sequence[Model | StoredSource],
    counts: Mapping[int, _Counts],
) -> TargetResult:
    top5 = _result(target, sources, {1: counts[5]}) if 5 in counts else None
    count = counts[1]
    mine = [name for name in count.wrong if name[0] == target.name]
    black = [name for name in mine if name[1] == "black"]
    kin = tuple(source.name for source in sources if source.digest != target.digest and _related(target, source))
    strange = [count.wrong[name] for name in black if name[2] not in kin]
    fooled = np.logical_or.reduce(strange) if strange else None
    return TargetResult(
        target=target.name,
        digest=target.digest,
        architecture=target.architecture,
        clean=count.rate((target.name, "clean")),
        white_box={name[2]: count.rate(name) for name in mine if name[1] == "white"},
        black_box={
            source.name: {name[3]: count.rate(name) for name in black if name[2] == source.name}
            for source in sources
            if any(name[2] == source.name for name in black)
        },
        any_black_box=None if fooled is None else Rate(int(fooled.sum()), count.n),
        twin=next((source.name for source in sources if source.digest == target.digest), None),
        kin=kin,
        unmoved=count.positive((target.name, "unmoved")),
        top5=top5,
    )
