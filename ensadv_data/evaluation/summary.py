"""An evaluation as a table of text: what the command line prints and the report shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["rate_text", "summary_rows"]

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
    white = [f"white-box {_TITLES.get(name, name)}" for name in attacks]
    columns = ["target", "clean", *white, "worst black-box", "by", "mean black-box"]
    rows = []
    for name, row in result["targets"].items():
        worst = row["worst_black_box"]
        rows.append(
            [
                name,
                rate_text(row["clean"]),
                *(rate_text(row["white_box"].get(attack)) for attack in attacks),
                rate_text(worst),
                f"{_TITLES.get(worst['attack'], worst['attack'])} on {worst['source']}" if worst else "–",
                f"{100 * row['mean_black_box']:.1f}" if row["mean_black_box"] is not None else "–",
            ]
        )
    return columns, rows
