"""What the page says: tables and sentences computed from results, logs and stores."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from ensadv_data.evaluation.interval import Rate as Counted
from ensadv_data.evaluation.interval import strongest
from ensadv_data.evaluation.summary import count_text
from ensadv_data.report.inputs import Rate, Result, Run, Target
from ensadv_data.store import Entry, Store

__all__ = [
    "describe_mix",
    "describe_result",
    "describe_stores",
    "in_one_word",
    "judge_target",
    "render_page",
]

# Names in a log that are no static source: the model being trained itself, and plain training.
_NOT_STATIC = ("online", "clean")


def judge_target(target: Target) -> str:
    """Whether the worst black-box error is above the white-box FGSM error, and whether chance explains it."""
    if target.fgsm is None or target.worst is None:
        missing = "White-box FGSM" if target.fgsm is None else "A transferred attack"
        return f"{missing} was not measured, so this result cannot show whether the model masks its gradient."
    source, attack, worst = target.worst
    fgsm = target.fgsm
    above = worst.error > fgsm.error
    side = "above" if above else "below" if worst.error < fgsm.error else "equal to"
    start = (
        f"The worst black-box error, {_percent(worst.error)}% ({attack} from {source}), is {side} the white-box FGSM "
        f"error, {_percent(fgsm.error)}%"
    )
    if side == "equal to":
        return f"{start}."
    if worst.overlaps(fgsm):
        return f"{start}, but the intervals overlap: the difference may be chance."
    if above:
        return (
            f"{start}, and the intervals do not overlap: attacks made on other models fool this one more often than a "
            "step along its own gradient, which is what gradient masking looks like."
        )
    return f"{start}, and the intervals do not overlap: a step along its own gradient is the stronger attack."


def describe_result(result: Result, *, chart: str, examples: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Tables of one evaluation for the template; ``chart`` is SVG, ``examples`` are pictures."""
    attacks = list(dict.fromkeys(attack for target in result.targets for attack in target.white_box))
    sources = dict.fromkeys((*result.sources, *(source for t in result.targets for source in t.black_box)))
    transferred = list(dict.fromkeys(a for t in result.targets for by in t.black_box.values() for a in by))
    pairs = [
        (source, attack, [target.black_box.get(source, {}).get(attack) for target in result.targets])
        for source in sources
        for attack in transferred
    ]
    marks = [
        strongest([None if source in target.kin else _counted(rates[column], result.n) for source, _, rates in pairs])
        for column, target in enumerate(result.targets)
    ]
    return {
        "result": result,
        "white_box": attacks,
        "rows": [{"target": target, "verdict": judge_target(target)} for target in result.targets],
        "queried": list(dict.fromkeys(name for target in result.targets for name in target.adaptive)),
        "pairs": pairs,
        "strongest": [[by[row] for by in marks] for row in range(len(pairs))],
        "has_gaps": any(None in rates for _, _, rates in pairs),
        "chart": chart,
        "examples": examples,
    }


def _counted(rate: Rate | None, n: int) -> Counted | None:
    return None if rate is None else Counted(round(rate.error * n), n)


def describe_mix(run: Run) -> dict[str, Any] | None:
    """Shares of steps that each source was drawn for, against 1/n; None without a static source."""
    if all(name in _NOT_STATIC for name in run.curves):
        return None
    drawn = {name: sum(curve.drawn) for name, curve in run.curves.items()}
    total, expected = sum(drawn.values()), 1 / len(drawn)
    spread = math.sqrt(total * expected * (1 - expected))  # standard deviation of a fair draw's count
    return {
        "name": run.name,
        "unit": run.unit,
        "total": total,
        "expected": expected,
        "rows": [
            {
                "source": name,
                "drawn": count,
                "share": count / total if total else None,
                "deviations": (count - total * expected) / spread if spread else None,
            }
            for name, count in drawn.items()
        ],
    }


def describe_stores(stores: Sequence[Store]) -> list[dict[str, Any]]:
    """Sources and attacks of the stores, with a remark where the number of draws is wrong or wasted."""
    return [
        {
            "store": store.place.name,
            "entry": entry,
            "draws": store.header.draws,
            "mode": str(store.header.plan.get("mode", "unknown")),
            "remark": _remark_on_draws(store, entry),
        }
        for store in stores
        for entry in store.entries
    ]


def _remark_on_draws(store: Store, entry: Entry) -> str:
    draws = store.header.draws
    random = entry.kind == "rsign" or entry.attack == "pgd" or store.header.plan.get("augment") is not None
    fixed = not random and store.header.plan.get("mode") == "eval"
    if draws == 1 and store.header.split == "test":
        return ""  # evaluation reads the first draw
    if draws == 1 and fixed:
        return (
            "One draw. K = 1 is right only for a deterministic source; this is one, so every epoch sees the same "
            "direction, and the model can learn it by heart."
        )
    if draws == 1:
        return (
            "One draw. K = 1 is right only for a deterministic source, and this one is random: more draws would "
            "vary what the model sees."
        )
    if fixed:
        return f"All {draws} draws are equal, since nothing in this source is random; they cost {draws} times the bits."
    return ""


def in_one_word(values: Sequence[Any]) -> str | None:
    """The values, each once; None where there is none."""
    return ", ".join(dict.fromkeys(f"{value:,}" if isinstance(value, int) else str(value) for value in values)) or None


def render_page(name: str, **content: Any) -> str:
    """Fill a template of that name; all text is escaped, charts and pictures excepted."""
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["count_text"] = count_text
    environment.filters["duration"] = _duration
    environment.filters["digest"] = _digest
    return environment.get_template(name).render(version=version("ensadv-data"), **content)


def _template(name: str) -> str:
    return resources.files("ensadv_data").joinpath(f"templates/{name}.html.j2").read_text(encoding="utf-8")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _digest(script: str) -> str:
    """What a page's policy names a script by, so that no other runs."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
