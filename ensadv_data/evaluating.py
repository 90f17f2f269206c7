"""What an evaluation will take, before it runs: its passes through the models, counted, and the length of its JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ensadv_data.data import Dataset
from ensadv_data.evaluation.interval import Rate
from ensadv_data.evaluation.suites import Attack, suite_named
from ensadv_data.evaluation.transfer import TargetResult, Transfer
from ensadv_data.models import Model, build_model
from ensadv_data.spec import AdaptiveSpec, AttackSpec, EvaluateSpec, TrainSpec
from ensadv_data.trials import Trials

__all__ = ["evaluation_bytes", "evaluation_seconds", "uncounted"]


def uncounted(spec: EvaluateSpec) -> list[str]:
    """Attacks of other libraries, of which nobody knows what they take."""
    white, black = suite_named(spec.suite).attacks(epsilon=spec.epsilon, loss=spec.loss)
    return [attack.label for attack in dict.fromkeys((*white, *black)) if not isinstance(attack, AttackSpec)]


def evaluation_seconds(
    spec: EvaluateSpec, targets: Sequence[Model], sources: Sequence[Model], stored: int, data: Dataset, trials: Trials
) -> float:
    """Seconds of an evaluation without the attacks of :func:`uncounted`; a perturbation that is stored takes none.

    Parameters
    ----------
    stored
        Sources whose perturbations are stored.
    data
        All test images.
    """
    suite = suite_named(spec.suite)
    white, black = suite.attacks(epsilon=spec.epsilon, loss=spec.loss)
    forward = {model.name: trials.passes(model, spec)[0] for model in (*targets, *sources)}

    def attacked(model: Model, attack: Attack) -> float:
        if not isinstance(attack, AttackSpec):
            return 0.0
        once, both = trials.passes(model, spec)
        steps = attack.iterations[0] if attack.kind == "delta" else 1
        return steps * both + attack.least_likely * once

    each = 0.0  # seconds of an image
    for target in targets:
        each += forward[target.name] * (1 + len(white)) + sum(attacked(target, attack) for attack in white)
    for source in sources:
        each += forward[source.name] + sum(attacked(source, attack) for attack in black)
    each += (len(sources) + stored) * len(black) * sum(forward[target.name] for target in targets)
    n = len(data) if spec.images is None else min(spec.images, len(data))
    adaptive = sum(
        _queried(adversary, target, n, data, trials, spec)
        for adversary in suite.adversaries(epsilon=spec.epsilon)
        for target in targets
    )
    return n * each + adaptive


def _queried(
    adversary: AdaptiveSpec, target: Model, n: int, data: Dataset, trials: Trials, spec: EvaluateSpec
) -> float:
    """Seconds of an adversary that queries one target."""
    forward, _ = trials.passes(target, spec)
    if adversary.name == "estimated":
        values = data.shape[0] * data.shape[1] * data.shape[2]
        return n * forward * (2 * values + 1)
    last = adversary.samples << adversary.rounds  # images of the last round
    shown = adversary.epochs * (2 * last - adversary.samples)  # in all rounds
    size = min(64, len(trials.data))
    fit = TrainSpec(architecture=adversary.architecture, batch_size=size, device=spec.device)
    surrogate = build_model(adversary.architecture, shape=data.shape, classes=data.classes)
    model = Model("surrogate", surrogate.eval(), "", adversary.architecture, "")
    _, both = trials.passes(model, spec)
    training = shown * trials.step(fit, adversarial=False) / size
    return training + (last - adversary.samples + n) * both + (last + n) * forward


def evaluation_bytes(spec: EvaluateSpec, targets: Sequence[Model], sources: Sequence[str], data: Dataset) -> int:
    """About the length of its JSON: that of a result with other rates. Pictures and adaptive attacks are not in it."""
    white, black = suite_named(spec.suite).attacks(epsilon=spec.epsilon, loss=spec.loss)
    n = len(data) if spec.images is None else min(spec.images, len(data))
    rate = Rate(n // 3, n)
    names = list(sources)
    result = Transfer(
        data=f"{data.name}/{data.split}",
        n=n,
        epsilon=spec.epsilon,
        suite=spec.suite,
        sources=dict.fromkeys(names, "0" * 64),
        targets=tuple(
            TargetResult(
                target=target.name,
                digest="0" * 64,
                architecture=target.architecture,
                clean=rate,
                white_box={attack.label: rate for attack in white},
                black_box={name: {attack.label: rate for attack in black} for name in names},
                any_black_box=rate if names else None,
            )
            for target in targets
        ),
    )
    return len(json.dumps(result.to_json(), indent=1)) + 1
