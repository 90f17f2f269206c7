"""What a store is to hold, from the spec that it is made by: its plan and its entries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch

from ensadv_data.keys import derive_key
from ensadv_data.models import Model
from ensadv_data.spec import PrecomputeSpec
from ensadv_data.store import Entry

__all__ = ["entries_of", "plan_of", "remarks_on_draws"]


class _Source(Protocol):
    """What names a static model: one that was loaded, or the record of one in a manifest."""

    @property
    def name(self) -> str: ...

    @property
    def architecture(self) -> str: ...

    @property
    def digest(self) -> str: ...


def plan_of(spec: PrecomputeSpec, sources: Iterable[_Source]) -> dict[str, Any]:
    """The plan of a store, as its root group has it; the spec has a number as its batch size."""
    how = spec.model_dump(mode="json", exclude={"models", "draws", "device"})
    how["device"] = torch.device(spec.device).type
    how["threads"] = 1 if spec.device == "cpu" else None
    how["precision"] = spec.precision
    how["sources"] = {source.name: source.digest for source in sources}
    return how


def entries_of(spec: PrecomputeSpec, model: _Source) -> dict[str, Entry]:
    """For each attack's name, the entry that describes it in the store."""
    return {
        attack.name: Entry(
            source=model.name,
            attack=attack.name,
            kind=attack.kind,
            epsilon=attack.epsilon if attack.kind == "delta" else None,
            alpha=attack.random_step if attack.kind == "rsign" else None,
            seed=derive_key("random step", spec.seed, model.name, attack.name),
            source_digest=model.digest,
            architecture=model.architecture,
            loss=attack.with_loss(spec.loss).loss_form,
        )
        for attack in spec.attacks
    }


def remarks_on_draws(spec: PrecomputeSpec, models: Sequence[Model]) -> Iterator[str]:
    """Remarks on draws that cannot differ, and on a single one, which is the same in every epoch of a training.

    Several equal draws cost their bits for nothing.
    """
    if spec.augment is not None:
        return
    drops = {model.name for model in models if spec.mode == "train" and _has_dropout(model)}
    names = {
        f"{model.name}/{attack.name}": attack.is_random or (attack.kind == "sign" and model.name in drops)
        for attack in spec.attacks  # iterative ones never use dropout
        for model in models
    }
    fixed = [name for name, is_random in names.items() if not is_random]
    more = "an R+ attack, or --mode train for FGSM or Step-LL of a source that has dropout"
    if spec.draws > 1 and fixed:
        advice = f"use --draws 1, {more}" if len(fixed) == len(names) else "those of the other entries differ"
        yield f"{', '.join(fixed)}: all {spec.draws} draws are equal, since nothing in them is random; {advice}"
    elif spec.draws == 1 and spec.split == "train":
        advice = f"draws differ with {more}" if len(fixed) == len(names) else "use --draws 4 for some that differ"
        if any(attack.kind == "rsign" for attack in spec.attacks):
            advice += ", or train with --random-step fresh, which moves the image before R+ directions"
        told = "one perturbation an image, the same in every epoch, to which a model can adapt"
        yield f"{', '.join(names)}: {told}; {advice}"


def _has_dropout(model: Model) -> bool:
    modules = model.module.modules()
    return any(isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0 for module in modules)
