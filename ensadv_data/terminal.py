"""Results as tables of a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ensadv_data.evaluation.summary import diagnosis_remarks, matrix_rows, rate_text, remarks, summary_rows
from ensadv_data.inspection import Agreement, EntryDifference, StoreSummary

__all__ = [
    "print_agreement",
    "print_bench",
    "print_check",
    "print_diagnosis",
    "print_differences",
    "print_notes",
    "print_plan",
    "print_result",
    "print_store",
]


def print_result(result: Mapping[str, Any], *, matrix: bool = False) -> None:
    """The summary of an evaluation, from its JSON; with ``matrix`` every measurement as well. Notes go to stderr."""
    print_notes(remarks(result))
    title = f"error in % with 95% interval; {result['data']}, {result['n']} images, epsilon {result['epsilon']:g}"
    by_five = {name: row["top5"] for name, row in result["targets"].items() if "top5" in row}
    for found, how in (
        (result, ""),
        *([({**result, "targets": by_five}, "by the first five answers: ")] if by_five else []),
    ):
        _print_table(how + title, *summary_rows(found))
        if matrix:
            # a row an attack: there are more of them than targets
            _print_table(f"{how}error in %; * the strongest of a target, and ties", *_turned(*matrix_rows(found)))


def print_notes(notes: Iterable[str]) -> None:
    """What a reader should know, to stderr."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _turned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    whole = [list(line) for line in zip(columns, *rows, strict=True)]
    return whole[0], whole[1:]


def print_check(check: str, holds: str) -> None:
    """A check of a store that holds."""
    print(f"{check:13} {holds}")


def print_store(summary: StoreSummary) -> None:
    """What a store holds."""
    shape = "×".join(map(str, summary.shape))
    lines = (
        f"store   {summary.path}  {summary.bytes:,} bytes"
        f"{'' if summary.shards is None else f' in {summary.shards} WebDataset shards'}, {summary.draws} draws, "
        f"{summary.blocks} blocks of {summary.block} images",
        f"digest  {summary.digest}",
        f"data    {summary.data}: {summary.n} images {shape}, digest {summary.data_digest}",
        f"mode    {summary.mode}",
        f"labels  {summary.labels}",
        *([] if summary.views is None else [f"views   {summary.views}, one a draw"]),
        f"bits    {summary.bits_per_value:.4f} a value and draw, with masks",
    )
    print("\n".join(lines))
    columns = ["source", "arch.", "attack", "kind", "epsilon", "zeros", "bits/value", "weights"]
    rows = [
        [
            row.source,
            row.architecture,
            row.attack,
            row.kind,
            row.epsilon,
            "–" if row.zeros is None else f"{100 * row.zeros:.2f}%",
            f"{row.bits_per_value:.4f}",
            row.source_digest[:16],
        ]
        for row in summary.entries
    ]
    _print_table("", columns, rows)


def print_agreement(found: Agreement) -> None:
    """Shares of equal signs of every two entries, in %."""
    rows = [
        [str(number), key, f"{100 * zeros:.2f}%", *("–" if share is None else f"{100 * share:.1f}" for share in shares)]
        for number, (key, zeros, shares) in enumerate(zip(found.keys, found.zeros, found.shares, strict=True), start=1)
    ]
    if found.images == found.n:
        where = f"all {found.n:,} images"
    else:
        where = f"{found.images:,} of {found.n:,} images, in {found.blocks} blocks"
        where += "" if found.margin is None else f", to ±{100 * found.margin:.2f} at most"
    numbers = [str(number) for number in range(1, len(rows) + 1)]
    title = f"agreement: values of equal sign in %, where neither is zero; 50 is chance; {where}"
    if found.left_out:
        title += f"; {found.left_out} more entries were not compared"
    _print_table(title, ["", "source/attack", "zeros", *numbers], rows)
    if found.draws > 1:
        print("on the diagonal: the first two draws of the entry itself")


def print_differences(found: Sequence[EntryDifference]) -> None:
    """How two stores differ, in % of their values."""
    shares = ([f"{100 * share:.4g}%" for share in (row.opposite, row.zero_here, row.zero_there)] for row in found)
    rows = [[row.key, str(row.draws), *cells] for row, cells in zip(found, shares, strict=True)]
    _print_table("", ["source/attack", "draws", "differ in sign", "zero here only", "zero there only"], rows)


def print_diagnosis(result: Mapping[str, Any]) -> None:
    """A table a measure, from the JSON of a diagnosis; loss surfaces are for the report. Notes go to stderr."""
    print_notes(diagnosis_remarks(result))
    where = f"{result['data']}, {result['n']} images, epsilon {result['epsilon']:g}"
    models = result["models"]
    for measure, title, columns, cells in (
        ("masking", f"gradient masking; {where}", _MASKING, _masking_cells),
        ("rounding", f"lost to float32; {where}", _ROUNDING, _rounding_cells),
        (
            "flips",
            f"signs of a flipped direction that a fresh one has; {where}",
            _FLIPS,
            _flip_cells,
        ),
    ):
        rows = [[name, *cells(found[measure])] for name, found in models.items() if measure in found]
        if rows:
            _print_table(title, ["model", *columns], rows)
    for name, found in models.items():
        if "cone" in found:
            _print_cone(name, found["cone"])
    if result["discrepancy"]:
        rows = [
            [name, f"{100 * found['discrepancy']:.1f}", f"{100 * found['largest_gap']:.1f}"]
            for name, found in result["discrepancy"].items()
        ]
        title = f"discrepancy (equation 10) in %, over {len(models)} models: a lower bound; {where}"
        _print_table(title, ["future adversary", "discrepancy", "largest gap of risks"], rows)


def print_plan(planned: Mapping[str, Any]) -> None:
    """What each stage of a recipe takes and all together, and after how many epochs a store has paid for itself."""
    has_price, totals = planned["price"] is not None, planned["totals"]
    rows = [_stage_cells(stage, planned["process_bytes"]) for stage in planned["stages"]]
    costs = [_money(stage["cost"]) for stage in planned["stages"]]
    what = [_span(totals["objects"], "{:,}"), _span(totals["bytes"])]
    rows.append(["all to be done", "", *what, "", "", "", _duration(totals["seconds"]), "", ""])
    costs.append(_money(totals["cost"]))
    if has_price:
        rows = [[*row, cost] for row, cost in zip(rows, costs, strict=True)]
    title = f"plan of {planned['recipe']}: requests as of a store in a bucket; a … b: it depends on the gradients"
    _print_table(title, [*_PLANNED, *(["cost"] if has_price else [])], rows)
    if totals["worker_seconds"] is not None:
        print(
            f"one stage after the other; {totals['worker_seconds'] / 3600:.3g} worker-hours; bytes of ≈ are not added"
        )
    reading = [(stage["name"], *one) for stage in planned["stages"] for one in stage["reading"].items()]
    if reading:
        rows = [
            [name, store, _span(about["opening"], "{:,}"), _span(about["chunks"], "{:,}"), _span(about["held"])]
            for name, store, about in reading
        ]
        columns = ["training", "store", "gets to open it", "gets of an epoch, at most", "none after it with room for"]
        _print_table("trainings from a store in a bucket", columns, rows)
    rows = [
        [
            row["stage"],
            ", ".join(row["stores"]),
            str(row["sources"]),
            str(row["draws"]),
            _epochs(row["break_even_epochs"]),
            _epochs(row["break_even_epochs_elapsed"]),
            str(row["epochs"]),
            str(row["all_epochs"]),
        ]
        for row in planned["break_even"]
    ]
    if rows:
        columns = ["training", "stores", "n", "K", "epochs, by work", "by waiting", "it has", "all that read them have"]
        _print_table("after how many epochs a store has taken less than gradients computed at each step", columns, rows)


_PLANNED = ["stage", "kind", "objects", "bytes", "puts", "gets, heads", "lists", "time", "worker", "client"]


def _stage_cells(stage: Mapping[str, Any], process: int | None) -> list[str]:
    asked, size, about = stage["requests"], stage["bytes"], stage["about_bytes"]
    is_store = stage["kind"] == "precompute"
    requests = ["", "", ""]
    if asked is not None:
        looks = [gets + heads for gets, heads in zip(asked["gets"], asked["heads"], strict=True)]
        requests = [_span(ends, "{:,}") for ends in (asked["puts"], looks, asked["lists"])]
    text = _span(size)
    if about is not None and (size is None or size[0] < size[1]):
        text = f"≈ {_bytes(about)}" + (f" in {text}" if size else "")
    worker, client = (_bytes((process or 0) + stage[name]) for name in ("block_bytes", "record_bytes"))
    return [
        stage["name"],
        stage["kind"],
        _span(stage["objects"], "{:,}"),
        text,
        *requests,
        "done" if stage["done"] else _duration(stage["seconds"]) + (f" × {stage['workers']}" if is_store else ""),
        worker if is_store or process else "",
        client if is_store else "",
    ]


def _span(ends: Sequence[int] | None, form: str | None = None) -> str:
    """A number, or the least and the most; bytes where there is no form."""
    if ends is None:
        return "–"
    return " … ".join(dict.fromkeys(_bytes(end) if form is None else form.format(end) for end in ends))


def _bytes(size: int) -> str:
    for unit, value in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= value:
            return f"{size / value:.3g} {unit}"
    return f"{size} B"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for unit, value in (("h", 3600), ("min", 60)):
        if seconds >= 2 * value:
            return f"{seconds / value:.3g} {unit}"
    return f"{seconds:.3g} s"


def _money(cost: float | None) -> str:
    return "–" if cost is None else f"{cost:,.2f}" if cost >= 1 else f"{cost:.2g}"


def _epochs(number: float | None) -> str:
    return "never" if number is None else f"{number:.1f}"


def print_bench(found: Mapping[str, Any]) -> None:
    """Times with their quartiles, and what they are of another's."""
    for question, title in _QUESTIONS.items():
        timings, ratios = found[question]["milliseconds"], found[question]["ratios"]
        rows = [[name, "{:.4g} [{:.4g}, {:.4g}]".format(*times)] for name, times in timings.items()]
        _print_table(title.format(**found), ["", "milliseconds: median and quartiles"], rows)
        rows = [[name, "{:.2f} [{:.2f}, {:.2f}]".format(*values)] for name, values in ratios.items()]
        _print_table("", ["time / time", "median and quartiles of pairs"], rows)


_QUESTIONS = {
    "step": "a training step of architecture {architecture}: 2 × {batch_size} images on {device}, {threads} threads",
    "apply": "bits to images of {data}'s size and back, beside writing and copying as many floats in memory",
    "rows": "{batch_size} random rows of a store, beside the same from one memory-mapped file",
    "precompute": "a batch of input gradients, made and packed by precompute, beside a bare loop",
}

_MASKING = [
    "single / iterative",
    "of means",
    "to the best, 95%",
    "loss clean",
    "single",
    "iterative",
    "cosine",
    "gradient norm",
    "excluded",
]
_ROUNDING = ["wrong signs, ce", "margin", "lost gradients, ce", "margin", "p = 1", "exact zeros"]


_FLIPS = ["FGSM", "Step-LL", "same label"]


def _flip_cells(found: Mapping[str, Any]) -> list[str]:
    return ["–" if found[name] is None else f"{found[name]:.1%}" for name in ("fgsm", "step_ll", "same_label")]


def _masking_cells(found: Mapping[str, Any]) -> list[str]:
    def text(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    error = found["ratio_to_best_stderr"]
    return [
        text(found["ratio"], ".1%"),
        text(found["ratio_of_means"], ".1%"),
        text(found["ratio_to_best"], ".1%") + (f" ± {196 * error:.1f}" if error is not None else ""),
        *(f"{found[f'loss_{name}']:.3g}" for name in ("clean", "single", "iterative")),
        text(found["cosine"], ".3f"),
        f"{found['gradient_norm']:.3g}",
        str(found["ratio_excluded"]),
    ]


def _rounding_cells(found: Mapping[str, Any]) -> list[str]:
    names = ("wrong_ce", "wrong_margin", "lost_ce", "lost_margin", "saturated", "zeros")
    return [f"{100 * found[name]:.3g}%" for name in names]


def _print_cone(name: str, cone: Mapping[str, Any]) -> None:
    if not cone["points"]:
        print(f"cone of {name}: no correctly classified image among {cone['skipped']}, so nothing to search at")
        return
    rows = [
        [f"{row['epsilon']:g}", *(rate_text(rate) for rate in row["all_of_order"].values()), f"{row['mean_found']:.1f}"]
        for row in cone["epsilons"]
    ]
    columns = ["epsilon", *(f"k ≥ {order}" for order in cone["orders"]), "mean found"]
    title = (
        f"adversarial cone of {name}: % of {cone['points']} points by the largest k all of whose orthogonal directions "
        "are adversarial"
    )
    _print_table(title, columns, rows)


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if title:  # not the table's own: that is broken at the width of a narrow table
        print(title)
    table = Table()
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
