"""All measures of some models, by reference: what the command ``diagnose`` and the recipes call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ensadv_data.arithmetic import in_precision
from ensadv_data.data import Dataset, open_data
from ensadv_data.errors import InputError
from ensadv_data.evaluation.attacking import followed
from ensadv_data.evaluation.batches import batches
from ensadv_data.evaluation.cone import measure_cone
from ensadv_data.evaluation.discrepancy import Answers, measure_discrepancy
from ensadv_data.evaluation.finite import finite_logits
from ensadv_data.evaluation.flips import measure_flips
from ensadv_data.evaluation.masking import measure_masking, measure_rounding
from ensadv_data.evaluation.surface import check_surface, measure_surface
from ensadv_data.models import Model, check_models, load_models, reference_name
from ensadv_data.progress import progress_bar
from ensadv_data.spec import DataSpec, DiagnoseSpec

__all__ = ["Diagnosis", "check_roles", "diagnose", "measured_on"]

ZOOM = 10  # how many times smaller the second surface is


@dataclass(frozen=True)
class Diagnosis:
    """What was measured on each model, and between them."""

    data: str
    n: int
    epsilon: float
    loss: str
    models: Mapping[str, Mapping[str, Any]]
    discrepancy: Mapping[str, Mapping[str, Any]]  # by future adversary

    def to_json(self) -> dict[str, Any]:
        """As JSON; the same models and images give the same bytes."""
        return {
            "kind": "diagnosis",
            "version": 1,
            "data": self.data,
            "n": self.n,
            "epsilon": self.epsilon,
            "loss": self.loss,
            "models": {name: dict(found) for name, found in self.models.items()},
            "discrepancy": {name: dict(found) for name, found in self.discrepancy.items()},
        }


def diagnose(
    spec: DiagnoseSpec,
    data: DataSpec,
    *,
    models: Mapping[str, str],
    others: Mapping[str, str] | None = None,
    static: Mapping[str, str] | None = None,
    holdouts: Mapping[str, str] | None = None,
) -> Diagnosis:
    """Measure models on test images; names map to model references.

    Parameters
    ----------
    models
        What is measured.
    others
        Models whose signed gradient is the second direction of the loss surface, each by the name of the model that it
        is for, or one for all; a random orthogonal direction where there is none.
    static, holdouts
        For the discrepancy: the sources of training, and those of future adversaries.

    Raises
    ------
    InputError
        A model, quantity or data set is wrong, or the discrepancy lacks sources.
    """
    static, holdouts, others = static or {}, holdouts or {}, others or {}
    check_roles(spec, models=models, others=others, static=static, holdouts=holdouts)
    spec = spec.model_copy(update={"single": spec.single.with_loss(spec.loss)})
    whole = open_data(data.model_copy(update={"limit": None}), "test")
    dataset = replace(whole, limit=spec.images and min(spec.images, len(whole)))
    for example in spec.examples if "surface" in spec.measures else ():
        check_surface(whole, example, radius=spec.epsilon, resolution=spec.resolution)
    targets, across, sources, futures = load_models([models, others, static, holdouts], device=spec.device)
    total = sum(_work(spec, len(dataset)).values()) * len(targets)
    if "discrepancy" in spec.measures:
        total += (len(sources) + len(futures)) * len(dataset)
    found: dict[str, dict[str, Any]] = {}
    with in_precision(spec.device), progress_bar("diagnose", total=total, unit="images") as advance:
        for model in targets:
            second = _across(model.name, across, models)
            found[model.name] = {
                "digest": model.digest,
                "architecture": model.architecture,
                **measured_on(spec, model, dataset, whole, second, advance),
            }
        distances = (
            _discrepancies(spec, targets, sources, futures, dataset, advance) if "discrepancy" in spec.measures else {}
        )
    return Diagnosis(
        data=f"{dataset.name}/{dataset.split}",
        n=len(dataset),
        epsilon=spec.epsilon,
        loss=spec.loss,
        models=found,
        discrepancy=distances,
    )


def check_roles(
    spec: DiagnoseSpec,
    *,
    models: Mapping[str, str],
    others: Mapping[str, str],
    static: Mapping[str, str],
    holdouts: Mapping[str, str],
) -> None:
    """Refuse models that are not enough for what is asked.

    Raises
    ------
    InputError
        The discrepancy lacks models or sources, or an other direction belongs to no model.
    """
    if "discrepancy" in spec.measures and (len(models) < 2 or not static or not holdouts):
        raise InputError(
            "discrepancy: expected at least two models, one static source and one holdout, "
            f"got {len(models)}, {len(static)} and {len(holdouts)}"
        )
    if len(others) > 1 and (unknown := [name for name in others if name not in models]):
        raise InputError(f"others: expected names of models, or one other for all; got {', '.join(unknown)}")


def _across(name: str, others: Sequence[Model], models: Collection[str]) -> Model | None:
    """The model whose gradient is the other axis of one model's surfaces, by its own name."""
    for other in others:
        if other.name == name:
            return replace(other, name=reference_name(other.reference))
    return others[0] if len(others) == 1 and others[0].name not in models else None


def _work(spec: DiagnoseSpec, n: int) -> dict[str, int]:
    """What each measure advances the bar by."""
    steps = {"masking": n, "rounding": n, "cone": spec.points, "surface": 2 * len(spec.examples), "flips": n}
    return {name: count for name, count in steps.items() if name in spec.measures}


def measured_on(
    spec: DiagnoseSpec,
    model: Model,
    dataset: Dataset,
    whole: Dataset,
    other: Model | None,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """The measures that are one model's, by name, as JSON; all but the discrepancy."""
    common: dict[str, Any] = {"batch_size": spec.batch_size, "device": spec.device}
    found: dict[str, Any] = {}
    if "masking" in spec.measures:
        masking = measure_masking(
            model, dataset, single=spec.single, iterative=spec.iterative, seed=spec.seed, advance=advance, **common
        )
        found["masking"] = masking.to_json()
    if "rounding" in spec.measures:
        found["rounding"] = measure_rounding(model, dataset, advance=advance, **common).to_json()
    if "flips" in spec.measures:
        found["flips"] = measure_flips(model, dataset, loss=spec.loss, advance=advance, **common).to_json()
    if "cone" in spec.measures:
        cone = measure_cone(
            model,
            whole,
            epsilons=spec.radii,
            points=spec.points,
            loss=spec.loss,
            seed=spec.seed,
            advance=advance,
            **common,
        )
        advance(spec.points - cone.points)
        found["cone"] = cone.to_json()
    if "surface" in spec.measures:
        found["surface"] = []
        for example in spec.examples:
            for radius in (spec.epsilon, spec.epsilon / ZOOM):
                surface = measure_surface(
                    model,
                    whole,
                    example,
                    radius=radius,
                    resolution=spec.resolution,
                    other=other,
                    loss=spec.loss,
                    seed=spec.seed,
                    **common,
                )
                found["surface"].append(surface.to_json())
                advance(1)
    return found


def _discrepancies(
    spec: DiagnoseSpec,
    targets: Sequence[Model],
    sources: Sequence[Model],
    futures: Sequence[Model],
    dataset: Dataset,
    advance: Callable[[int], None],
) -> dict[str, dict[str, Any]]:
    check_models(targets, dataset, device=spec.device)
    check_models((*sources, *futures), dataset, device=spec.device, gradient=True)
    train = {source.name: _answers(spec, source, targets, dataset, advance) for source in sources}
    found = {}
    for future in futures:
        answers = _answers(spec, future, targets, dataset, advance)
        found[future.name] = measure_discrepancy(train, answers, dataset.labels()).to_json()
    return found


def _answers(
    spec: DiagnoseSpec, source: Model, targets: Sequence[Model], dataset: Dataset, advance: Callable[[int], None]
) -> Answers:
    """What each target says to the single-step attack of one source."""
    answers: dict[str, list[Any]] = {target.name: [] for target in targets}
    for indices, x, y in batches(dataset, batch_size=spec.batch_size, device=spec.device):
        finite_logits(source, x)  # a NaN may leave a gradient of zero
        x_adv = followed(source, spec.single, x, y, indices, purpose="discrepancy", seed=spec.seed).images
        for target in targets:
            answers[target.name].append(finite_logits(target, x_adv).argmax(1).cpu().numpy())
        advance(len(indices))
    return {name: np.concatenate(parts) for name, parts in answers.items()}
