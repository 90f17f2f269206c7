"""Our results on MNIST beside the paper's: collect them from the folder of a run, and write the page.

    python docs/results/build.py --collect mnist-paper     results and times of a run → docs/results/data
    python docs/results/build.py                           docs/results/data → docs/results/README.md
    python docs/results/build.py --measure COMMAND …       run a command; note its time and its peak of memory

The page says nothing that is not computed from the files in data/ and from paper.json, which has the values that the
paper prints. What was not measured yet is a dash, and is listed with what it costs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

HERE = Path(__file__).parent
ARCHITECTURES = ("A", "B", "C", "D")
KINDS = ("adv", "adv-ens", "adv-ens3")
ALPHA = 0.05
# Evaluations of images that were changed first (Appendix C.1).
CHANGED = {
    "c1-rotated": "mnist+rotate=20,flip=0/test",
    "c1-rotated-flipped": "mnist+rotate=20,flip=5/test",
}

Json = Mapping[str, Any]


def collect(run: Path, into: Path) -> None:
    """Copy the results of a run and the seconds of its stages; what is there of other stages stays.

    Raises SystemExit where a result is not of the full test set of MNIST.
    """
    into.mkdir(parents=True, exist_ok=True)
    found = {path.name: json.loads(path.read_text()) for path in sorted((run / "results").glob("*.json"))}
    for name, result in found.items():
        least = 10_000 if result["kind"] == "transfer" else 1000
        data = CHANGED.get(name.removesuffix(".json"), "mnist/test")
        if result["data"] != data or result["n"] < least or result["epsilon"] != 0.3:
            raise SystemExit(
                f"{name}: expected {least} images of {data} at epsilon 0.3, got {result['n']} of {result['data']} "
                f"at epsilon {result['epsilon']}; nothing was collected"
            )
    for name, result in found.items():
        (into / name).write_text(json.dumps(thin(result), indent=1) + "\n")
    about = into / "run.json"
    told: dict[str, Any] = json.loads(about.read_text()) if about.exists() else {"seconds": {}}
    for path in sorted((run / "state").glob("*.json")):
        state = json.loads(path.read_text())
        if "seconds" in state:
            told["seconds"][path.stem] = round(state["seconds"])
    told["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    about.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")


def measure(command: Sequence[str], into: Path) -> None:
    """Run a command, and note its seconds and the most memory that it or a process of its took."""
    began = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = round(time.perf_counter() - began)
    peak = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    path = into / "run.json"
    about = json.loads(path.read_text())
    parts = (word.rpartition("=") for word in command)
    words = " ".join(f"{key}{equals}{Path(value).name if '/' in value else value}" for key, equals, value in parts)
    about.setdefault("commands", {})[words] = {"seconds": seconds, "peak MiB": peak}
    path.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")


def thin(result: Json) -> Json:
    """Without pictures and the points of loss surfaces, which are the report's, and large."""
    models = result.get("models", {})
    result = {key: value for key, value in result.items() if key != "pictures"}
    return {**result, **({"models": {k: {**v, "surface": None} for k, v in models.items()}} if models else {})}


class Results:
    """What was measured, by name of the stage; None where it was not."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
        self.run = self.files.pop("run", {"seconds": {}, "machine": "–"})

    def target(self, name: str, *stages: str) -> Json | None:
        """The measurements of a target, from the first stage that has it."""
        return self._found("targets", name, stages)

    def model(self, name: str, *stages: str) -> Json | None:
        """The diagnosis of a model, likewise."""
        return self._found("models", name, stages)

    def seeds(self, name: str, *stages: str) -> list[Json]:
        """The measurements of NAME and of NAME.SEED, for all seeds."""
        names = {n for s in stages for n in self.files.get(s, {}).get("targets", {})}
        members = sorted(n for n in names if is_seed(n, name))
        return [row for member in members if (row := self.target(member, *stages)) is not None]

    def _found(self, key: str, name: str, stages: Iterable[str]) -> Json | None:
        rows = (self.files.get(stage, {}).get(key, {}).get(name) for stage in stages)
        return next((row for row in rows if row is not None), None)


def is_seed(name: str, of: str) -> bool:
    """Whether a name is NAME, or NAME.SEED."""
    return name == of or (name.startswith(f"{of}.") and name[len(of) + 1 :].isdigit())


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def rate(row: Json | None) -> str:
    """A rate with its interval."""
    return "–" if not row else f"{percent(row['error'])} [{percent(row['low'])}, {percent(row['high'])}]"


def spread(values: Sequence[float]) -> str:
    """Mean over seeds, and the half-width of its 95% interval (Student's t) where there is more than one."""
    if not values:
        return "–"
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return percent(mean)
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{percent(mean)} ± {percent(half)}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def by_name(rates: Json, attack: str) -> Json | None:
    """The rate of an attack of that name, whatever its loss."""
    return next((rate for label, rate in rates.items() if label.partition(":")[0] == attack), None)


def fgsm(row: Json) -> float:
    """White-box FGSM error."""
    return float((by_name(row["white_box"], "fgsm") or {})["error"])


def r_fgsm(row: Json) -> float:
    """White-box R+FGSM error."""
    return float((by_name(row["white_box"], "r-fgsm") or {})["error"])


def worst(row: Json) -> float:
    """Error under the strongest transferred attack."""
    return float(row["worst_black_box"]["error"])


def mean(row: Json) -> float:
    """Mean error over the transferred attacks."""
    return float(row["mean_black_box"])


def table6(results: Results, paper: Json) -> str:
    """Approximation ratio of FGSM."""
    rows = []
    for name in ("A", "A_adv", "B", "B_adv", "B*", "B*_adv", "C", "C_adv", "D", "D_adv"):
        stage = name.replace("_", "-") if "_" in name else f"static-{name}"
        found, by_ce = results.model(stage, "table6"), results.model(stage, "table6-ce")
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


def table7(results: Results, paper: Json, stage: str) -> str:
    """White-box and transferred FGSM; ours, then the paper's in brackets."""
    sources = ("A", "B", "B*", "C", "D")
    rows = []
    for name, printed in paper["table7"].items():
        if name in ("columns", "what"):
            continue
        model = name.replace("_", "-") if "_" in name else f"static-{name}"
        row = results.target(model, stage) or {}
        white, black = row.get("white_box", {}), row.get("black_box", {})
        ours = [by_name(white, "fgsm"), by_name(white, "r-fgsm")]
        ours += [by_name(black.get(f"static-{source}", {}), "fgsm") for source in sources]
        cells = (
            f"{percent(mine['error']) if mine else '–'} ({theirs})" if theirs is not None else "–"
            for mine, theirs in zip(ours, printed, strict=True)
        )
        rows.append((name, *cells))
    return table(("model", "FGSM", "R+FGSM", *(f"FGSM on {s}" for s in sources)), rows)


def table8(results: Results, paper: Json, *, ce: bool = False) -> str:
    """Ensemble Adversarial Training; ours, then the paper's in brackets."""
    rows = []
    for architecture in ARCHITECTURES:
        for kind in KINDS:
            seeds = defended(results, architecture, kind)
            if ce:
                seeds = results.seeds(f"{architecture}-{kind}", f"table8-{architecture}-ce")
            printed = paper["table8"][f"{architecture}_{kind}"]
            ours = (
                spread([float(read(row)) for row in seeds])
                for read in (lambda row: row["clean"]["error"], fgsm, worst, mean)
            )
            cells = (f"{mine} ({theirs})" for mine, theirs in zip(ours, printed, strict=True))
            reached = spread([r_fgsm(row) for row in seeds])
            rows.append((f"{architecture}-{kind}", str(len(seeds)), *cells, reached))
    return table(("model", "seeds", "clean", "FGSM", "worst black-box", "mean black-box", "R+FGSM"), rows)


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
    "D-adv-ens3": "D: 4 stored R+ draws, α = 0.1, fresh step",
    "stepped8": "D: 8 stored R+ draws, α = 0.1, fresh step",
    "stepped4-stored": "D: 4 stored R+ draws, α = 0.1, stored step",
    "stepped4-05": "D: 4 stored R+ draws, α = 0.05, fresh step",
    "stepped4-15": "D: 4 stored R+ draws, α = 0.15, fresh step",
    "stepped4-example": "D: 4 stored R+ draws, α = 0.1, fresh step, source drawn for each example",
    "C-adv": "C: no static model (standard adversarial training)",
    "C-online-stepped": "C: R+ gradients online, α = 0.1",
    "C-fixed": "C: one stored direction, evaluation mode",
    "C-adv-ens3": "C: 4 stored R+ draws, α = 0.1, fresh step",
}
# What is stored, and the same gradients computed online; and what differs from another row in one thing.
PAIRS = (
    ("fixed", "online-eval"),
    ("dropout2", "online-train"),
    ("dropout4", "online-train"),
    ("dropout8", "online-train"),
    ("dropout16", "online-train"),
    ("stepped1", "online-stepped"),
    ("D-adv-ens3", "online-stepped"),
    ("stepped8", "online-stepped"),
    ("stepped4-stored", "online-stepped"),
    ("C-adv-ens3", "C-online-stepped"),
    ("fixed", "D-adv"),
    ("D-adv-ens3", "fixed"),
    ("stepped4-stored", "D-adv-ens3"),
    ("stepped4-05", "D-adv-ens3"),
    ("stepped4-15", "D-adv-ens3"),
    ("stepped4-example", "D-adv-ens3"),
    ("online-stepped", "online-eval"),
    ("C-online-stepped", "C-fixed"),
)


def of_draws(results: Results, name: str) -> list[Json]:
    """All seeds of a training of the study."""
    return results.seeds(name, "draws", "draws-C")


def draws(results: Results) -> str:
    """The study of draws: mean over seeds and its 95% interval."""
    rows = []
    for name, title in DRAWS.items():
        seeds = of_draws(results, name)
        models = results.files.get("draws-masking", {}).get("models", {})
        ratios = [m["masking"]["ratio"] for n, m in models.items() if is_seed(n, name)]
        reads: tuple[Callable[[Json], float], ...] = (lambda r: float(r["clean"]["error"]), fgsm, r_fgsm, worst, mean)
        cells = (spread([read(row) for row in seeds]) for read in reads)
        rows.append((title, str(len(seeds)), *cells, spread([r for r in ratios if r is not None])))
    columns = ("static perturbations", "seeds", "clean", "FGSM", "R+FGSM", "worst black-box", "mean black-box", "ratio")
    return table(columns, rows)


def compared(results: Results) -> str:
    """Rows of the study less the rows that they are compared with, over seeds."""
    rows = []
    for name, other in PAIRS:
        both = [of_draws(results, n) for n in (name, other)]
        cells = (gap(*([read(row) for row in seeds] for seeds in both)) for read in (worst, mean))
        rows.append((DRAWS[name], DRAWS[other].partition(": ")[2], *cells))
    return table(("static perturbations", "less", "worst black-box", "mean black-box"), rows)


def gap(one: Sequence[float], other: Sequence[float]) -> str:
    """The difference of two means over seeds with its 95% interval (Welch), and what follows from it."""
    if not one or not other:
        return "–"
    difference = f"{100 * (math.fsum(one) / len(one) - math.fsum(other) / len(other)):+.1f}"
    test = welch_or_paired(one, other)
    if test is None:
        return f"{difference} (not enough seeds)"
    interval = test.confidence_interval(0.95)
    verdict = "**worse**" if interval.low > 0 else "**better**" if interval.high < 0 else "not resolved"
    return f"{difference} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]: {verdict}"


Estimate = tuple[float, float]  # a value and its variance


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


def less(one: Estimate | None, other: Estimate | None) -> Estimate | None:
    """The difference of two estimates as if they were independent; on the same images that is too careful."""
    return one and other and (one[0] - other[0], one[1] + other[1])


def within(estimate: Estimate | None) -> str:
    """An estimate in percent with its 95% interval."""
    return "–" if estimate is None else f"{percent(estimate[0])} ± {percent(1.96 * math.sqrt(estimate[1]))}"


def rounding(results: Results) -> str:
    """What float32 loses of the signs of undefended nets."""
    rows = []
    for architecture in ARCHITECTURES:
        signs = (results.model(f"holdout-{architecture}", "rounding-signs") or {}).get("rounding") or {}
        shares = (percent(signs.get(key)) for key in ("wrong_ce", "lost_ce", "saturated"))
        rows.append((architecture, *shares, percent(signs.get("wrong_margin"), 3)))
    columns = ("net", "signs wrong by `ce`", "whole gradients lost by `ce`", "probability rounds to 1")
    return table((*columns, "signs wrong by `margin`"), rows)


RATIOS = {"ratio": "approximation ratio, mean of ratios", "ratio_of_means": "approximation ratio, ratio of means"}


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


def trained_on_rounded(results: Results) -> str:
    """What becomes of a model that is trained on static perturbations computed from cross-entropy."""
    rows = []
    for name, title in (("D-adv-ens3", "`margin`"), ("stepped4-ce", "`ce`")):
        seeds = results.seeds(name, "rounding-trained")
        reads: tuple[Callable[[Json], float], ...] = (lambda r: float(r["clean"]["error"]), fgsm, r_fgsm, worst, mean)
        rows.append((title, str(len(seeds)), *(spread([read(row) for row in seeds]) for read in reads)))
    found = table(("stored directions from", "seeds", "clean", "FGSM", "R+FGSM", "worst black-box", "mean"), rows)
    ce, margin = (results.seeds(name, "rounding-trained") for name in ("stepped4-ce", "D-adv-ens3"))
    verdicts = (
        f"{title} higher with directions from `ce`: {judged([read(r) for r in ce], [read(r) for r in margin])}."
        for title, read in (("Worst black-box error", worst), ("Mean black-box error", mean), ("FGSM error", fgsm))
    )
    return "\n\n".join([found, *verdicts])


def welch_or_paired(one: Sequence[float], other: Sequence[float], *, paired: bool = False) -> Any:
    """Student's t over seeds: paired where both are of the same models, else Welch; None where it can say nothing.

    One seed decides nothing: chance in training is larger than chance in the choice of images. Nor do seeds that are
    all equal, as they have no variance.
    """
    if min(len(one), len(other)) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        test = stats.ttest_rel(one, other) if paired else stats.ttest_ind(one, other, equal_var=False)
    spreads = [statistics.pstdev(values) for values in ([a - b for a, b in zip(one, other, strict=False)], one, other)]
    usable = spreads[0] > 1e-12 if paired else max(spreads[1:]) > 1e-12
    return test if usable and math.isfinite(test.pvalue) else None


def judged(greater: Sequence[float], smaller: Sequence[float], *, paired: bool = False) -> str:
    """Whether ``greater`` is greater, over seeds."""
    if not greater or not smaller:
        return "not measured"
    one, other = (math.fsum(values) / len(values) for values in (greater, smaller))
    values = f"{spread(greater)} against {spread(smaller)}"
    if min(len(greater), len(smaller)) == 1:
        side = "higher" if one > other else "lower"
        return f"one seed: {side} ({values})"
    test = welch_or_paired(greater, smaller, paired=paired)
    if test is None:
        return f"not resolved ({values})"
    verdict = "not resolved" if test.pvalue > ALPHA else "**holds**" if one > other else "**does not hold**"
    return f"{verdict} ({values}; p = {test.pvalue:.2g})"


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
    found = {n: m for stage in stages for n, m in results.files[stage]["models"].items()}
    return [
        float(m["masking"]["ratio_to_best"])
        for n, m in found.items()
        if m["masking"]["ratio_to_best"] is not None and any(is_seed(n, name) for name in names)
    ]


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


def missing(results: Results) -> str:
    """Which models of the paper were not measured yet."""
    absent = [
        f"{architecture}-{kind}"
        for architecture in ARCHITECTURES
        for kind in KINDS
        if not defended(results, architecture, kind)
    ]
    return ", ".join(absent) or "none"


def page(results: Results, paper: Json) -> str:
    """The page."""
    seconds = results.run["seconds"]
    times = ((name, f"{value:,}") for name, value in sorted(seconds.items()))
    commands = results.run.get("commands", {})
    text = (HERE / "template.md").read_text()
    parts = {
        "table6": table6(results, paper),
        "table7": table7(results, paper, "table7"),
        "table7_ce": table7(results, paper, "table7-ce"),
        "table8": table8(results, paper),
        "table8_ce": table8(results, paper, ce=True),
        "claims": claims(results),
        "input_dropout": input_dropout(results),
        "draws": draws(results),
        "compared": compared(results),
        "rounding": rounding(results),
        "rounded_figures": rounded_figures(results, paper),
        "rounding_trained": trained_on_rounded(results),
        "binarised": binarised(results, paper),
        "missing": missing(results),
        "machine": results.run["machine"],
        "times": table(("stage", "seconds"), times),
        "commands": table(
            ("command", "seconds", "peak of memory, MiB"),
            ((f"`{words}`", str(m["seconds"]), f"{m['peak MiB']:,}") for words, m in commands.items()),
        ),
    }
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    return text


def main() -> None:
    """Collect, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=Path, help="the output folder of a run of the recipes")
    parser.add_argument("--measure", nargs=argparse.REMAINDER, help="a command to run, time and weigh")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, HERE / "data")
    if arguments.collect:
        collect(arguments.collect, HERE / "data")
    paper = json.loads((HERE / "paper.json").read_text())
    (HERE / "README.md").write_text(page(Results(HERE / "data"), paper))


if __name__ == "__main__":
    main()
