"""The study of draws: what precomputing costs, row by row, and less the rows beside which each is put."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from judging import gap, percent, spread, table
from measured import Results, mean, worst
from tables import FIGURES, figures

DRAWS = {
    "D-adv": "D: no static model (standard adversarial training)",
    "online-eval": "D: gradients online, evaluation mode",
    "online-train": "D: gradients online, dropout active",
    "online-stepped": "D: R+ gradients online, α = 0.1",
    "fixed": "D: one stored direction, evaluation mode",
    "dropout2": "D: 2 stored draws, dropout active",
    "dropout4": "D: 4 stored draws, dropout active",
    "dropout8": "D: 8 stored draws, dropout active",
    "dropout16": "D: 16 stored draws, dropout active",
    "stepped1": "D: 1 stored R+ draw, α = 0.1, fresh step",
    "stepped4": "D: 4 stored R+ draws, α = 0.1, fresh step",
    "stepped8": "D: 8 stored R+ draws, α = 0.1, fresh step",
    "D-adv-ens3": "D: 4 stored R+ draws, α = 0.1, stored step",
    "stepped4-05": "D: 4 stored R+ draws, α = 0.05, fresh step",
    "stepped4-15": "D: 4 stored R+ draws, α = 0.15, fresh step",
    "stepped4-example": "D: 4 stored R+ draws, α = 0.1, fresh step, source drawn for each example",
    "C-adv": "C: no static model (standard adversarial training)",
    "C-online-stepped": "C: R+ gradients online, α = 0.1",
    "C-fixed": "C: one stored direction, evaluation mode",
    "C-stepped4": "C: 4 stored R+ draws, α = 0.1, fresh step",
    "C-stepped16": "C: 16 stored R+ draws, α = 0.1, fresh step",
    "C-adv-ens3": "C: 4 stored R+ draws, α = 0.1, stored step",
    "C-stepped16-stored": "C: 16 stored R+ draws, α = 0.1, stored step",
    "A-adv": "A: no static model (standard adversarial training)",
    "A-online-train": "A: gradients online, dropout active",
    "A-online-stepped": "A: R+ gradients online, α = 0.1",
    "A-dropout4": "A: 4 stored draws, dropout active",
    "A-stepped4": "A: 4 stored R+ draws, α = 0.1, fresh step",
    "A-adv-ens3": "A: 4 stored R+ draws, α = 0.1, stored step",
    "A-stepped16-stored": "A: 16 stored R+ draws, α = 0.1, stored step",
}
# What is stored, and gradients of its kind computed online; and other rows that a reader would compare.
PAIRS = (
    ("dropout2", "online-train"),
    ("dropout4", "online-train"),
    ("dropout8", "online-train"),
    ("dropout16", "online-train"),
    ("stepped1", "online-stepped"),
    ("stepped4", "online-stepped"),
    ("stepped8", "online-stepped"),
    ("D-adv-ens3", "online-stepped"),
    ("C-stepped4", "C-online-stepped"),
    ("C-stepped16", "C-online-stepped"),
    ("C-adv-ens3", "C-online-stepped"),
    ("C-stepped16-stored", "C-online-stepped"),
    ("A-dropout4", "A-online-train"),
    ("A-stepped4", "A-online-stepped"),
    ("A-adv-ens3", "A-online-stepped"),
    ("A-stepped16-stored", "A-online-stepped"),
    ("A-online-stepped", "A-online-train"),
    ("A-adv-ens3", "A-online-train"),
    ("A-dropout4", "A-adv-ens3"),
    ("fixed", "D-adv"),
    ("stepped4", "fixed"),
    ("D-adv-ens3", "stepped4"),
    ("stepped4-05", "stepped4"),
    ("stepped4-15", "stepped4"),
    ("stepped4-example", "stepped4"),
    ("online-stepped", "fixed"),
    ("C-online-stepped", "C-fixed"),
    ("C-adv-ens3", "C-stepped4"),
    ("C-stepped16-stored", "C-stepped16"),
    ("C-fixed", "C-adv"),
    ("C-adv-ens3", "C-fixed"),
    ("C-stepped16-stored", "C-adv-ens3"),
    ("A-adv-ens3", "A-stepped4"),
)
# Evaluations and diagnoses of the study; rows of A are those of Table 8 and of the claims.
STUDY = ("draws", "draws-C", "draws-A", "draws-A-fgsm", "table8-A", "claims-A")
STUDY_RATIOS = ("draws-masking", "draws-masking-C", "draws-masking-A")
# Stores of both kinds of draws, beside rows of the same run, so of the same static models and holdouts.
BOTH = {
    "A-adv": "A: no static model (standard adversarial training)",
    "A-adv-ens3": "A: 4 stored R+ draws",
    "A-online-train": "A: FGSM gradients online, dropout active",
    "A-dropout4": "A: 4 stored draws of FGSM, dropout active",
    "A-both": "A: 4 stored draws of FGSM and 4 of R+, dropout active",
    "B-adv": "B: no static model (standard adversarial training)",
    "B-adv-ens3": "B: 4 stored R+ draws",
    "B-both": "B: 4 stored draws of FGSM and 4 of R+, dropout active",
    "C-adv": "C: no static model (standard adversarial training)",
    "C-adv-ens3": "C: 4 stored R+ draws",
    "C-online-stepped": "C: R+ gradients online",
    "C-both": "C: 4 stored draws of FGSM and 4 of R+, dropout active",
    "D-adv": "D: no static model (standard adversarial training)",
    "D-adv-ens3": "D: 4 stored R+ draws",
    "both": "D: 4 stored draws of FGSM and 4 of R+, dropout active",
    "both-apart": "D: 4 stored draws of FGSM, dropout active, and 4 of R+, two stores",
}
BOTH_PAIRS = (
    ("A-both", "A-adv"),
    ("A-both", "A-adv-ens3"),
    ("A-both", "A-online-train"),
    ("A-both", "A-dropout4"),
    ("B-both", "B-adv"),
    ("B-both", "B-adv-ens3"),
    ("C-both", "C-adv"),
    ("C-both", "C-adv-ens3"),
    ("C-both", "C-online-stepped"),
    ("both", "D-adv"),
    ("both", "D-adv-ens3"),
    ("both-apart", "D-adv-ens3"),
    ("both-apart", "both"),
)
BOTH_RUN = tuple(f"{kind}-{name}" for name in "ABCD" for kind in ("table8", "claims"))
BOTH_RUN += ("draws-both", "draws-C-both", "draws-A-fgsm", "draws-C")


def both(results: Results) -> str:
    """Stores of both kinds: mean over seeds and its 95% interval, beside what else was trained in the same run."""
    return table(("static perturbations", "seeds", *FIGURES), _rows(results, BOTH, BOTH_RUN))


def both_compared(results: Results) -> str:
    """Stores of both kinds less the rows that they are compared with, over seeds."""
    return _less(results, BOTH_PAIRS, BOTH, BOTH_RUN)


def draws(results: Results) -> str:
    """The study of draws: mean over seeds and its 95% interval."""
    rows = []
    for name, row in zip(DRAWS, _rows(results, DRAWS, STUDY), strict=True):
        ratios = [m["masking"]["ratio"] for m in results.seeds(name, *STUDY_RATIOS, key="models")]
        rows.append((*row, spread([r for r in ratios if r is not None])))
    return table(("static perturbations", "seeds", *FIGURES, "ratio"), rows)


def compared(results: Results) -> str:
    """Rows of the study less the rows that they are compared with, over seeds."""
    return _less(results, PAIRS, DRAWS, STUDY)


def _rows(results: Results, titles: dict[str, str], stages: Sequence[str]) -> list[tuple[str, ...]]:
    found = ((title, results.seeds(name, *stages)) for name, title in titles.items())
    return [(title, str(len(seeds)), *figures(seeds)) for title, seeds in found]


def _less(results: Results, pairs: Iterable[tuple[str, str]], titles: dict[str, str], stages: Sequence[str]) -> str:
    rows = []
    for name, other in pairs:
        two = [results.seeds(n, *stages) for n in (name, other)]
        cells = (gap(*([read(row) for row in seeds] for seeds in two)) for read in (worst, mean))
        rows.append((titles[name], titles[other].partition(": ")[2], *cells))
    return table(("static perturbations", "less", "worst black-box", "mean black-box"), rows)


def steps(results: Results) -> str:
    """What a stored direction does to its own source, from its own random step and from another one."""
    rows = []
    for source, found in results.files.get("steps", {}).get("sources", {}).items():
        both = [found[step] for step in ("own", "another")]
        rows.append((source, *(f"{one['loss']:.2f}" for one in both), *(percent(one["error"]) for one in both)))
    return table(("source", "loss, own step", "loss, another step", "error, own step", "error, another step"), rows)


def repeated(results: Results) -> str:
    """Whether the fixed cache and the same gradients online, where nothing is random, end in the same weights."""
    rows = [results.target(f"{name}.204", "draws") for name in ("online-eval", "fixed")]
    digests = [row["digest"] for row in rows if row]
    if len(digests) < 2:
        return "not measured yet"
    return "the same weights, bit by bit" if len(set(digests)) == 1 else "**other weights**"
