"""The tables of the page: ours, and the paper's in brackets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from judging import Estimate, judged, less, percent, spread, table, within
from measured import Json, Results, by_name, clean, fgsm, mean, r_fgsm, worst

ARCHITECTURES = ("A", "B", "C", "D")
KINDS = ("adv", "adv-ens", "adv-ens3")
MODELS = ("A", "A_adv", "B", "B_adv", "B*", "B*_adv", "C", "C_adv", "D", "D_adv")  # as Tables 6 and 7 name them
FIGURES: dict[str, Callable[[Json], float]] = {
    "clean": clean,
    "FGSM": fgsm,
    "R+FGSM": r_fgsm,
    "worst black-box": worst,
    "mean black-box": mean,
}
RATIOS = {"ratio": "approximation ratio, mean of ratios", "ratio_of_means": "approximation ratio, ratio of means"}


def stage_of(name: str) -> str:
    """The stage of the recipes that trains a model of Tables 6 and 7."""
    return name.replace("_", "-") if "_" in name else f"static-{name}"


def figures(seeds: Iterable[Json]) -> list[str]:
    """A defended model's figures, mean over seeds with its 95% interval."""
    rows = list(seeds)
    return [spread([read(row) for row in rows]) for read in FIGURES.values()]


def rate(row: Json | None) -> str:
    """A rate with its interval."""
    return "–" if not row else f"{percent(row['error'])} [{percent(row['low'])}, {percent(row['high'])}]"


def table6(results: Results, paper: Json) -> str:
    """Approximation ratio of FGSM."""
    rows = []
    for name in MODELS:
        found, by_ce = (results.model(stage_of(name), stage) for stage in ("table6", "table6-ce"))
        margin, ce = (m["masking"] if m else {} for m in (found, by_ce))
        rows.append(
            (
                name,
                str(paper["table6"][name]),
                percent(margin.get("ratio"), 0),
                percent(margin.get("ratio_of_means"), 0),
                percent(margin.get("ratio_to_best"), 0),
                percent(ce.get("ratio"), 0),
                "–" if margin.get("cosine") is None else f"{margin['cosine']:.2f}",
            )
        )
    return table(
        ("model", "paper", "mean of ratios", "ratio of means", "to the best", "mean of ratios, `ce`", "cosine"), rows
    )


def cone(results: Results) -> str:
    """Shares of points by the largest order all of whose directions are adversarial, at the full epsilon."""
    rows = []
    for name in MODELS:
        at = ((results.model(stage_of(name), "table6") or {}).get("cone") or {}).get("epsilons", [])
        found = max(at, key=lambda one: one["epsilon"], default=None)
        whole = (found and found["all_of_order"]) or {}  # none where no point was classified correctly
        cells = (rate(whole.get(str(k))) for k in (1, 4, 16, 100))
        rows.append((name, *cells, f"{found['mean_found']:.1f}" if found and whole else "–"))
    return table(("model", "k ≥ 1", "k ≥ 4", "k ≥ 16", "k ≥ 100", "directions found, mean"), rows)


def table7(results: Results, paper: Json, stage: str) -> str:
    """White-box and transferred FGSM; ours, then the paper's in brackets."""
    sources = ("A", "B", "B*", "C", "D")
    rows = []
    for name, printed in paper["table7"].items():
        if name in ("columns", "what"):
            continue
        row = results.target(stage_of(name), stage) or {}
        white, black = row.get("white_box", {}), row.get("black_box", {})
        ours = [by_name(white, "fgsm"), by_name(white, "r-fgsm")]
        ours += [by_name(black.get(f"static-{source}", {}), "fgsm") for source in sources]
        cells = (
            f"{percent(mine['error']) if mine else '–'} ({theirs})" if theirs is not None else "–"
            for mine, theirs in zip(ours, printed, strict=True)
        )
        rows.append((name, *cells))
    return table(("model", "FGSM", "R+FGSM", *(f"FGSM from {s}" for s in sources)), rows)


def table8(results: Results, paper: Json, *, ce: bool = False) -> str:
    """Ensemble Adversarial Training; ours, then the paper's in brackets."""
    rows = []
    for architecture in ARCHITECTURES:
        for kind in KINDS:
            seeds = defended(results, architecture, kind)
            if ce:
                seeds = results.seeds(f"{architecture}-{kind}", f"table8-{architecture}-ce")
            printed = paper["table8"][f"{architecture}_{kind}"]
            error, single, reached, *black = figures(seeds)
            cells = (f"{mine} ({theirs})" for mine, theirs in zip((error, single, *black), printed, strict=True))
            rows.append((f"{architecture}-{kind}", str(len(seeds)), *cells, reached))
    return table(("model", "seeds", "clean", "FGSM", "worst black-box", "mean black-box", "R+FGSM"), rows)


def share(row: Json | None) -> Estimate | None:
    """An error rate as an estimate."""
    return row and (float(row["error"]), row["error"] * (1 - row["error"]) / row["n"])


def transferred(row: Json | None) -> Estimate | None:
    """Mean error over the attacks from other models; its variance at most that of one of them."""
    return row and share({"error": mean(row), "n": row["clean"]["n"]})


def to_the_best(found: Json | None) -> Estimate | None:
    """FGSM's loss over the larger one of FGSM and PGD, mean over images.

    The plain mean of ratios has no interval here: a few images make most of it.
    """
    masking = (found or {}).get("masking") or {}
    value, error = masking.get("ratio_to_best"), masking.get("ratio_to_best_stderr")
    return None if value is None or error is None else (float(value), float(error) ** 2)


def rounding(results: Results) -> str:
    """What float32 loses of the signs of undefended nets."""
    rows = []
    for architecture in ARCHITECTURES:
        signs = (results.model(f"holdout-{architecture}", "rounding-signs") or {}).get("rounding") or {}
        shares = (percent(signs.get(key)) for key in ("wrong_ce", "lost_ce", "saturated"))
        rows.append((architecture, *shares, percent(signs.get("wrong_margin"), 3)))
    columns = ("net", "signs wrong by `ce`", "whole gradients lost by `ce`", "probability rounds to 1")
    return table((*columns, "signs wrong by `margin`"), rows)


def rounded_figures(results: Results, paper: Json) -> str:
    """Both forms of the loss on the same undefended nets, and the difference: what of a figure is rounding."""
    rows = []
    for architecture in ARCHITECTURES:
        name = f"holdout-{architecture}"
        fgsm_printed, stepped_printed, *_ = paper["table7"][architecture]
        printed = {
            "FGSM": f"{fgsm_printed}",
            "R+FGSM": f"{stepped_printed}",
            "R+FGSM above FGSM": f"{stepped_printed - fgsm_printed:.1f}",
            RATIOS["ratio"]: f"{paper['table6'][architecture]}",
        }
        margin, ce = (results.target(name, stage) for stage in ("rounding", "rounding-ce"))
        found, by_ce = (results.model(name, stage) for stage in ("rounding-signs", "rounding-ratio-ce"))
        white = [{a: share(row and by_name(row["white_box"], a)) for a in ("fgsm", "r-fgsm")} for row in (ce, margin)]
        measures = {
            "FGSM": [w["fgsm"] for w in white],
            "R+FGSM": [w["r-fgsm"] for w in white],
            "R+FGSM above FGSM": [less(w["r-fgsm"], w["fgsm"]) for w in white],
            "FGSM from B, C and D, mean": [transferred(row) for row in (ce, margin)],
            "approximation ratio, to the best": [to_the_best(row) for row in (by_ce, found)],
        }
        for title, (one, other) in measures.items():
            values = (within(one), within(other), within(less(other, one)))
            rows.append((architecture, title, printed.get(title, ""), *values))
        ratios_of = ([percent((m or {}).get("masking", {}).get(key), 0) for m in (by_ce, found)] for key in RATIOS)
        rows += [
            (architecture, RATIOS[key], printed.get(RATIOS[key], ""), *pair, "")
            for key, pair in zip(RATIOS, ratios_of, strict=True)
        ]
    return table(("net", "figure", "paper", "by `ce`", "by `margin`", "difference"), rows)


def rounded_stores(results: Results) -> str:
    """How static perturbations from cross-entropy differ from those from the margin form."""
    found = results.files.get("rounding-stores", {}).get("stores", {})
    rows = ((name, percent(row["opposite"], 2), percent(row["zero_there"], 6)) for name, row in found.items())
    return table(("source", "signs opposite", "zero by `ce` only"), rows)


def trained_on_rounded(results: Results) -> str:
    """What becomes of a model that is trained on static perturbations computed from cross-entropy."""
    rows = []
    for name, title in (("stepped4", "`margin`"), ("stepped4-ce", "`ce`")):
        seeds = results.seeds(name, "rounding-trained")
        rows.append((title, str(len(seeds)), *figures(seeds)))
    found = table(("stored directions from", "seeds", *FIGURES), rows)
    ce, margin = (results.seeds(name, "rounding-trained") for name in ("stepped4-ce", "stepped4"))
    verdicts = (
        f"{title} higher with directions from `ce`: {judged([read(r) for r in ce], [read(r) for r in margin])}."
        for title, read in (("Worst black-box error", worst), ("Mean black-box error", mean), ("FGSM error", fgsm))
    )
    return "\n\n".join([found, *verdicts])


def claims(results: Results) -> str:
    """The claims of Appendix C.2 on Tables 7 and 8, architecture by architecture."""

    def row(title: str, left: tuple[str, Callable[[Json], float]], right: tuple[str, Callable[[Json], float]]) -> Any:
        cells = []
        for architecture in ARCHITECTURES:
            one, other = ([read(s) for s in defended(results, architecture, kind)] for kind, read in (left, right))
            cells.append(judged(one, other, paired=left[0] == right[0]))
        return (title, *cells)

    return table(
        ("claim", *ARCHITECTURES),
        (
            row("adversarially trained: black-box above white-box FGSM", ("adv", worst), ("adv", fgsm)),
            row("adversarially trained: R+FGSM above FGSM", ("adv", r_fgsm), ("adv", fgsm)),
            row("one static model lowers the worst black-box error", ("adv", worst), ("adv-ens", worst)),
            row("three static models lower it", ("adv", worst), ("adv-ens3", worst)),
            row("three are better than one", ("adv-ens", worst), ("adv-ens3", worst)),
            row("three lower the mean black-box error", ("adv", mean), ("adv-ens3", mean)),
            ("adversarial training lowers the approximation ratio", *(lowered(results, a) for a in ARCHITECTURES)),
        ),
    )


def input_dropout(results: Results) -> str:
    """The anomaly of architecture B: what its input dropout does, against B* that has none."""
    with_it, without = defended(results, "B", "adv"), defended(results, "B*", "adv")
    stepped, plain = ([[read(seed) for seed in group] for group in (without, with_it)] for read in (r_fgsm, fgsm))
    high, low = ([worst(seed) for seed in group] for group in (without, with_it))
    rows = [
        ("R+FGSM above FGSM without input dropout (B*)", judged(stepped[0], plain[0], paired=True)),
        ("FGSM above R+FGSM with it (B)", judged(plain[1], stepped[1], paired=True)),
        ("the worst black-box error is higher without it", judged(high, low)),
        ("the approximation ratio is higher with it", judged(ratios(results, "B-adv"), ratios(results, "B*-adv"))),
    ]
    return table(("claim", "B and B*"), rows)


def defended(results: Results, architecture: str, kind: str) -> list[Json]:
    """The measurements of a defended model, for all its seeds."""
    stage = architecture.rstrip("*")
    return results.seeds(f"{architecture}-{kind}", f"table8-{stage}", f"claims-{stage}")


def ratios(results: Results, *names: str) -> list[float]:
    """Approximation ratios, to the best, of models and of their other seeds."""
    stages = [stage for stage in results.files if stage.startswith("claims-ratio")]
    found = [
        model["masking"]["ratio_to_best"] for name in names for model in results.seeds(name, *stages, key="models")
    ]
    return [float(ratio) for ratio in found if ratio is not None]


def lowered(results: Results, architecture: str) -> str:
    """Whether FGSM comes less close to the iterative attack on adversarially trained models than on standard ones."""
    standard = ratios(results, f"static-{architecture}", f"holdout-{architecture}")
    return judged(standard, ratios(results, f"{architecture}-adv"))


def binarised(results: Results, paper: Json) -> str:
    """Appendix C.1: a standard model behind a rounding of its input, on images as they are and on changed ones."""
    rows = []
    images = {"c1": "as they are", "c1-rotated": "rotated by 20°", "c1-rotated-flipped": "rotated, five pixels flipped"}
    for stage, title in images.items():
        for target in ("plain", "binarised"):
            row = results.target(target, stage) or {"white_box": {}}
            printed = paper["c1"][stage] if target == "binarised" else {}
            found = {"clean": row.get("clean"), **{a: by_name(row["white_box"], a) for a in ("fgsm", "i-fgsm", "pgd")}}
            cells = (rate(mine) + (f" ({printed[a]})" if a in printed else "") for a, mine in found.items())
            rows.append((title, target, *cells))
    return table(("images", "model A", "clean", "FGSM", "I-FGSM", "PGD"), rows)


def turned_table(results: Results) -> str:
    """The same by how the images were turned: grey pixels are what a rounding to 0 or 1 can be pushed across."""
    rows = (
        (
            f"{row['degrees']}°" + (f", {row['interpolation']}" if row["degrees"] else ""),
            percent(row["grey"]),
            rate(row["clean"]),
            rate(row["i-fgsm"]),
        )
        for row in results.files.get("turning", {}).get("rows", [])
    )
    return table(("turned by", "pixels in [0.2, 0.8]", "clean", "I-FGSM"), rows)


def missing(results: Results) -> str:
    """Which models of the paper were not measured yet."""
    absent = [
        f"{architecture}-{kind}"
        for architecture in ARCHITECTURES
        for kind in KINDS
        if not defended(results, architecture, kind)
    ]
    return ", ".join(absent) or "none"
