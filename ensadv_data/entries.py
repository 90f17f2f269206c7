"""What a store is to hold, from the spec that it is made by: its plan and its entries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch

from ensadv_data.keys import derive_key
from ensadv_data.models import Model
from ensadv_data.spec import PrecomputeSpec
from ensadv_data.store import Entry

__all__ = ["entries_of", "equal_draws", "plan_of"]


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


def equal_draws(spec: PrecomputeSpec, model: Model) -> Iterator[str]:
    """Remarks on draws that cannot differ, and so cost their bits for nothing."""
    modules = model.module.modules()
    drops = any(isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0 for module in modules)
    if spec.draws == 1 or spec.augment is not None:
        return
    for attack in spec.attacks:
        has_dropout = attack.kind == "sign" and spec.mode == "train" and drops  # iterative attacks never use it
        if not attack.is_random and not has_dropout:
            yield (
                f"{model.name}/{attack.name}: all {spec.draws} draws are equal, since nothing in this source is "
                "random; use --draws 1, an R+ attack, or --mode train with a source that has dropout"
            )
