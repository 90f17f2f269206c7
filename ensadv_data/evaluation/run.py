"""Evaluation of models that are named by reference: what the command and the recipes call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ensadv_data.arithmetic import in_precision
from ensadv_data.data import open_data, shifted
from ensadv_data.dist import current_place
from ensadv_data.evaluation.adaptive import check_samples, measure_adaptive
from ensadv_data.evaluation.pictures import pictures_of
from ensadv_data.evaluation.stored import stored_sources
from ensadv_data.evaluation.suites import suite_named
from ensadv_data.evaluation.transfer import Transfer, measure_transfer
from ensadv_data.models import load_models
from ensadv_data.progress import progress_bar
from ensadv_data.spec import DataSpec, EvaluateSpec

__all__ = ["evaluate"]


def evaluate(spec: EvaluateSpec, data: DataSpec, *, targets: Mapping[str, str], sources: Mapping[str, str]) -> Transfer:
    """Measure targets under a suite, on the test images; names map to model references.

    Raises
    ------
    InputError
        A model, suite or data set is wrong.
    """
    suite = suite_named(spec.suite)
    white_box, black_box = suite.attacks(epsilon=spec.epsilon, loss=spec.loss)
    suite.check(spec, sources)
    dataset = original = open_data(data.model_copy(update={"limit": spec.images}), "test")
    if spec.shift is not None:
        dataset = shifted(dataset, spec.shift, seed=spec.seed)
    models = load_models([targets, sources], device=spec.device)
    stored = stored_sources(spec.shards, dataset, black_box)
    adversaries = suite.adversaries(epsilon=spec.epsilon)
    samples = None
    if adversaries:
        samples = open_data(data, "train")
        for adversary in adversaries:
            check_samples(adversary, samples)
    attacks = len(targets) * (len(white_box) + len(adversaries)) + (len(sources) + len(stored)) * len(black_box)
    work = attacks * len(dataset) // current_place().world_size
    with in_precision(spec.device), progress_bar("evaluate", total=work, unit="attacks") as advance:
        transfer = measure_transfer(
            models[0],
            [*models[1], *stored],
            dataset,
            white_box=white_box,
            black_box=black_box,
            epsilon=spec.epsilon,
            suite=spec.suite,
            seed=spec.seed,
            batch_size=spec.batch_size,
            device=spec.device,
            advance=advance,
        )
        if spec.pictures:
            pictures = pictures_of(
                models[0], original, dataset, white_box, count=spec.pictures, seed=spec.seed, device=spec.device
            )
            transfer = replace(transfer, pictures=pictures)
        if samples is None:
            return transfer
        queried = {
            model.name: {
                adversary.label: measure_adaptive(
                    model,
                    dataset,
                    samples,
                    adversary,
                    loss=spec.loss,
                    seed=spec.seed,
                    device=spec.device,
                    advance=advance,
                )
                for adversary in adversaries
            }
            for model in models[0]
        }
    return replace(transfer, targets=tuple(replace(row, adaptive=queried[row.target]) for row in transfer.targets))
