"""An evaluation as a table of text: what the command line prints and the report shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from ensadv_data.evaluation.interval import Rate, strongest
from ensadv_data.evaluation.suites import SUITES

__all__ = [
    "accuracy_rows",
    "attack_title",
    "count_text",
    "csv_text",
    "diagnosis_remarks",
    "matrix_rows",
    "rate_text",
    "remarks",
    "summary_rows",
]

FEW = 100  # images; with fewer, a 95% interval can be more than 20 points wide

_TITLES = {
    "fgsm": "FGSM",
    "r-fgsm": "R+FGSM",
    "i-fgsm": "I-FGSM",
    "pgd": "PGD",
    "step-ll": "Step-LL",
    "r-step-ll": "R+Step-LL",
    "iter-ll": "Iter-LL",
}


def rate_text(rate: Mapping[str, Any] | None) -> str:
    """Percent with the 95% interval, such as ``45.0 [42.8, 47.2]``; a dash where nothing was measured."""
    if not rate:
        return "–"
    return f"{100 * rate['error']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def attack_title(label: str) -> str:
    """``r-step-ll:alpha=0.15`` → ``R+Step-LL (alpha=0.15)``."""
    name, _, quantities = label.partition(":")
    return _TITLES.get(name, name) + (f" ({quantities})" if quantities else "")


def summary_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the summary of one evaluation, from its JSON.

    Returns
    -------
    columns : list of str
    rows : list of list of str
        One row a target: clean, each white-box attack, the worst transferred attack (and which it was), the
        mean over transferred attacks. All in percent.
    """
    attacks = list(dict.fromkeys(name for row in result["targets"].values() for name in row["white_box"]))
    white = [f"white-box {attack_title(name)}" for name in attacks]
    adaptive = _adversaries(result)
    queried = [f"{attack_title(name)}, by queries" for name in adaptive]
    columns = ["target", "clean", *white, *queried, "worst black-box", "by", "mean black-box"]
    rows = []
    for name, row in result["targets"].items():
        worst = row["worst_black_box"]
        rows.append(
            [
                name,
                rate_text(row["clean"]),
                *(rate_text(row["white_box"].get(attack)) for attack in attacks),
                *(_queried(row.get("adaptive", {}).get(name)) for name in adaptive),
                rate_text(worst),
                f"{attack_title(worst['attack'])} from {worst['source']}" if worst else "–",
                f"{100 * row['mean_black_box']:.1f}" if row["mean_black_box"] is not None else "–",
            ]
        )
    return columns, rows


def _adversaries(result: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for row in result["targets"].values() for name in row.get("adaptive", {})))


def _queried(found: Mapping[str, Any] | None) -> str:
    if not found:
        return rate_text(found)
    return f"{rate_text(found)}, {count_text(found['queries_per_image'])} queries an image"


def count_text(count: float) -> str:
    """A mean number of things: whole, unless it is small."""
    return f"{count:,.0f}" if count >= 10 or count == round(count) else f"{count:.2g}"


def matrix_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Every measurement of an evaluation, from its JSON: one row a target, one column an attack and source.

    Errors in percent. In each row ``*`` marks the strongest white-box attack and the strongest black-box one, and
    those that cannot be told from them at 95% confidence (Table 7's bold).
    """
    adaptive = _adversaries(result)
    white = list(dict.fromkeys(label for row in result["targets"].values() for label in row["white_box"]))
    black = list(
        dict.fromkeys(
            (source, label)
            for row in result["targets"].values()
            for source, by in row["black_box"].items()
            for label in by
        )
    )
    columns = [
        "target",
        "clean",
        *(f"white-box {attack_title(label)}" for label in white),
        *(f"{attack_title(name)}, by queries" for name in adaptive),
        *(f"{attack_title(label)} from {source}" for source, label in black),
    ]
    rows = []
    for name, row in result["targets"].items():
        own = [row["white_box"].get(label) for label in white]
        asked = [row.get("adaptive", {}).get(adversary) for adversary in adaptive]
        other = [row["black_box"].get(source, {}).get(label) for source, label in black]
        kin = [source in row.get("kin", ()) for source, _ in black]
        queried = [f"{100 * rate['error']:.1f}" if rate else "–" for rate in asked]
        rows.append([name, f"{100 * row['clean']['error']:.1f}", *_marked(own), *queried, *_marked(other, apart=kin)])
    return columns, rows


def accuracy_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Attack × defence, as the NIPS 2017 competition scored it: accuracies in [0, 1], then their mean and worst.

    The score of a defence is its mean accuracy over all black-box attacks; the last row is its accuracy on the images
    that none of them fools, the worst case of each. Attacks on the defence itself come first, of the source
    ``white-box``, or ``queries``.
    """
    targets = result["targets"]
    pairs = list(
        dict.fromkeys((s, label) for row in targets.values() for s, by in row["black_box"].items() for label in by)
    )

    def accuracy(rate: Mapping[str, Any] | None) -> str:
        return "" if rate is None else f"{1 - rate['error']:.4f}"

    rows = [["", "clean", *(accuracy(row["clean"]) for row in targets.values())]]
    for source, key in (("white-box", "white_box"), ("queries", "adaptive")):
        for label in dict.fromkeys(label for row in targets.values() for label in row.get(key, {})):
            rows.append([source, label, *(accuracy(row.get(key, {}).get(label)) for row in targets.values())])
    for source, label in pairs:
        cells = (accuracy(row["black_box"].get(source, {}).get(label)) for row in targets.values())
        rows.append([source, label, *cells])
    mean = [row["mean_black_box"] for row in targets.values()]
    rows.append(["", "mean over attacks", *("" if value is None else f"{1 - value:.4f}" for value in mean)])
    rows.append(["", "worst attack", *(accuracy(row["worst_black_box"]) for row in targets.values())])
    rows.append(["", "worst of each image", *(accuracy(row["any_black_box"]) for row in targets.values())])
    return ["source", "attack", *targets], rows


def csv_text(result: Mapping[str, Any]) -> str:
    """The table of :func:`accuracy_rows` as CSV (RFC 4180)."""
    columns, rows = accuracy_rows(result)
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    return text.getvalue()


def remarks(result: Mapping[str, Any]) -> list[str]:
    """What a reader of an evaluation should know, from its JSON."""
    told = []
    suite = SUITES.get(result.get("suite", ""))
    if not result["sources"] and (suite is None or suite.black_box):
        told.append("no source, so nothing was transferred; gradients of its own can flatter a model")
    told += [
        f"sources {' and '.join(alike)} have the same weights: their attacks count {len(alike)} times in means"
        for alike in _of_equal_weights(result)
    ]
    for name, row in result["targets"].items():
        if "twin" in row:
            told.append(f"source {row['twin']} has the weights of target {name}: its attacks there are white-box")
        told += [
            f"source {source} shares weights with target {name}: its attacks there are not black-box, and are in no "
            "worst and no mean"
            for source in row.get("kin", ())
        ]
        told += [
            f"{attack_title(attack)} on target {name} left {images} of {result['n']} images where it began: the "
            "gradient is zero there, or leads out of [0, 1], and only attacks from sources, or by queries, can show "
            "what the model withstands"
            for attack, images in row.get("unmoved", {}).items()
        ]
    told += [
        f"{attack_title(attack)} on source {source} left {images} of {result['n']} images where it began: its gradient "
        "is zero there, or leads out of [0, 1], so that it attacks no target on them, and makes every mean lower; "
        "choose another source"
        for source, by in result.get("unmoved", {}).items()
        for attack, images in by.items()
    ]
    if result["n"] < FEW:
        half = Rate((result["n"] + 1) // 2, result["n"])
        low, high = half.interval
        told.append(
            f"{result['n']} images are few: {half.errors} misclassified would be an error of {half.value:.0%} with the "
            f"95% interval [{low:.0%}, {high:.0%}]"
        )
    return told


def _of_equal_weights(result: Mapping[str, Any]) -> list[list[str]]:
    """Sources of one digest that count more than once in the mean of some target."""
    found: dict[str, list[str]] = {}
    for source, digest in result["sources"].items():
        found.setdefault(digest, []).append(source)
    rows = result["targets"].values()
    counted = {source for row in rows for source in row["black_box"] if source not in row.get("kin", ())}
    return [alike for sources in found.values() if len(alike := [s for s in sources if s in counted]) > 1]


def diagnosis_remarks(result: Mapping[str, Any]) -> list[str]:
    """What a reader of a diagnosis should know, from its JSON."""
    return [
        f"the gradient of {name} is zero on {blind} of {result['n']} images, also where "
        f"{found['masking']['iterative']} ended: no attack that follows it goes anywhere, and those images are in no "
        "ratio; measure the model by attacks from sources, or by queries"
        for name, found in result["models"].items()
        if (blind := found.get("masking", {}).get("blind", 0))
    ]


def _marked(rates: Sequence[Mapping[str, Any] | None], *, apart: Sequence[bool] = ()) -> list[str]:
    """Errors in percent, the largest and those tied with it marked; those that stand ``apart`` are not compared."""
    compared = [rate if not (apart and apart[number]) else None for number, rate in enumerate(rates)]
    marks = strongest([Rate(rate["errors"], rate["n"]) if rate else None for rate in compared])
    return [
        f"{100 * rate['error']:.1f}{'*' if mark else ''}" if rate else "–"
        for rate, mark in zip(rates, marks, strict=True)
    ]
