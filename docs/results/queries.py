"""Adversaries that query their target, between those that know its weights and those that know nothing of it."""

from __future__ import annotations

from collections.abc import Callable

from judging import less, table, within
from measured import Json, Results, by_name
from tables import rate, share

TARGETS = ("static-D", "D-adv", "D-adv-ens3")
# What each is called in a result, and what it is answered.
ADVERSARIES = {
    "estimated:alpha=0.15": ("R+FGSM along an estimated gradient", "scores"),
    "surrogate": ("FGSM from a surrogate of architecture D", "labels"),
    "surrogate:architecture=B": ("FGSM from a surrogate of architecture B", "labels"),
}


def adaptive(results: Results) -> str:
    """Every adversary's error on each target, and how many images it showed to it."""

    def row(
        title: str, answered: str, queries: str, stage: str, read: Callable[[Json], Json | None]
    ) -> tuple[str, ...]:
        found = (results.target(name, stage) for name in TARGETS)
        return (title, answered, queries, *(rate(read(one) if one else None) for one in found))

    def asked(name: str) -> str:
        found = (results.target(target, "adaptive") for target in TARGETS)
        cost = next((one["adaptive"][name] for one in found if one), None)
        if cost is None:
            return "–"
        each = name.startswith("estimated")  # the others ask before they attack, however many images they attack then
        return f"{cost['queries_per_image']:,.0f} an image" if each else f"{cost['queries']:,} in all"

    rows = [
        row("none: images as they are", "", "", "adaptive", lambda one: one["clean"]),
        row("FGSM", "weights", "", "adaptive", lambda one: by_name(one["white_box"], "fgsm")),
        row("R+FGSM", "weights", "", "adaptive", lambda one: by_name(one["white_box"], "r-fgsm")),
        *(
            row(title, answered, asked(name), "adaptive", lambda one, name=name: one["adaptive"][name])  # type: ignore[misc]
            for name, (title, answered) in ADVERSARIES.items()
        ),
        row("FGSM from the worst holdout", "nothing", "0", "adaptive-transferred", worst_fgsm),
        row("the worst transferred attack", "nothing", "0", "adaptive-transferred", lambda one: one["worst_black_box"]),
    ]
    return table(("adversary", "is answered", "queries", *TARGETS), rows)


def worst_fgsm(row: Json) -> Json | None:
    """The largest error under FGSM from any source."""
    rates = [found for by in row["black_box"].values() if (found := by_name(by, "fgsm"))]
    return max(rates, key=lambda found: found["error"], default=None)


def estimated_less(results: Results) -> str:
    """What R+FGSM gains by the true gradient, in place of an estimate of it."""
    parts = []
    for name in TARGETS:
        row = results.target(name, "adaptive")
        if row is not None:
            true, estimated = by_name(row["white_box"], "r-fgsm"), by_name(row["adaptive"], "estimated")
            parts.append(f"{name} {within(less(share(true), share(estimated)))}")
    return ", ".join(parts) or "not measured yet"
