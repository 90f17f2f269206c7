"""docs/performance.md, from the figures in results/: every number of it is one of theirs, or computed from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Found = Mapping[str, Any]

HEAD = """# What the store costs, and spares

<!-- written by benchmarks/run.py: change the text there, and the figures by measuring again -->

Each section names the command that made it; `make bench` runs them all, in {minutes} minutes on {machine}
(Python {python}, PyTorch {torch}), and writes this page. `ensadv-data bench` measures the first questions on your own
machine, in half a minute. Alternatives are measured in turn, A B A B …, each with one thread; a ratio is the median of
the turns' own ratios, with its quartiles in brackets: the wider they are, the noisier the machine was.

What was promised before anything was measured:

"""


def build(results: Path, usual: Mapping[str, str], longer: Mapping[str, str]) -> str:
    """The page, from what ``make bench`` runs and what is longer; a section without figures says that it has none."""
    commands = {**usual, **longer}
    found = {name: json.loads(path.read_text()) for name in commands if (path := results / f"{name}.json").exists()}
    first = next(iter(found.values()))
    seconds = sum(about["seconds"] for name, about in found.items() if name in usual)
    head = HEAD.format(minutes=round(seconds / 60), **{key: first[key] for key in ("machine", "python", "torch")})
    parts = [head, table(["promise", "measured", ""], [promise for make in PROMISES for promise in make(found)])]
    for title, names, make in SECTIONS:
        lines = [f"\n## {title}\n\n"]
        for name in names:
            lines.append(f"`python benchmarks/{commands[name]}`")
            about = found.get(name)
            lines.append(f" ({about['rounds']} rounds)\n\n" if about else ": not measured yet\n\n")
            lines.append(make(about) if about else "")
        parts += lines
    return "".join(parts).replace("\n\n\n", "\n\n").rstrip() + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [columns, ["---"] + ["--:"] * (len(columns) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def spread(values: Sequence[float]) -> str:
    """A ratio with its quartiles."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*values)


# Promises


def _judged(what: str, values: Mapping[str, float], *, least: float | None = None, most: float | None = None) -> list:
    bound = f"≥ {least:g}" if least is not None else f"≤ {most:g}"
    held = [v >= least if least is not None else v <= most for v in values.values()]
    shown = ", ".join(f"{name} {value:.2f}".strip() for name, value in values.items())
    return [[f"{what} {bound}", shown, "holds" if all(held) else "does not hold" if not any(held) else "holds in part"]]


def _steps(found: Found) -> list[list[str]]:
    if "step" not in found:
        return []
    rows = found["step"]["architectures"]
    return [
        *_judged(
            "step from the store ÷ clean step", {a: row["over_clean"]["store"][0] for a, row in rows.items()}, most=1.05
        ),
        *_judged(
            "static model online ÷ store", {a: row["over_store"]["static"][0] for a, row in rows.items()}, least=1.3
        ),
    ]


def _applied(found: Found) -> list[list[str]]:
    if "apply" not in found:
        return []
    rows = found["apply"]["d"]
    shares = {f"D = {int(d):,}:": row["share_of_fill"]["apply"][0] for d, row in rows.items() if int(d) >= 150_000}
    return _judged("apply ÷ fill", shares, least=0.6)


def _rows(found: Found) -> list[list[str]]:
    shares = {}
    for name in ("rows-98", "rows-33500"):
        if name in found:
            shares[f"{found[name]['width']:,} B:"] = found[name]["engines"][BARE]["random"]["its_time_over_ours"][0]
    return _judged("random rows ÷ the same from a memory map", shares, least=0.8) if shares else []


def _precomputed(found: Found) -> list[list[str]]:
    if "precompute" not in found:
        return []
    rows = {a: row["bare_over_block"][0] for a, row in found["precompute"]["architectures"].items()}
    small = {a: rows.pop(a) for a in ("D",) if a in rows}
    what = "precompute ÷ bare gradients"
    return [*_judged(what, rows, least=0.95), *_judged(what, small, least=0.85)]


def _sized(found: Found) -> list[list[str]]:
    if "size" not in found:
        return []
    rows = {
        a: max(bits for attack, bits in row["bits_a_value"].items() if attack != "pgd")
        for a, row in found["size"]["architectures"].items()
    }
    return _judged("bits a value, with the mask,", rows, most=1.03)


def _grown(found: Found) -> list[list[str]]:
    name = "growth-10M" if "growth-10M" in found else "growth"
    if name not in found:
        return []
    return _judged("memory: bytes more for each example", found[name]["bytes_an_example"], most=16)


def _signed(found: Found) -> list[list[str]]:
    if "signs" not in found:
        return []
    models = found["signs"]["models"]
    values = min(row["values"] for row in models.values())
    what = f"signs of float32 that are not float64's, of {values:,}"
    rows = {a: float(sum(row["margin, float32"].values())) for a, row in models.items()}
    same, exact = (
        {a: float(row[f"margin, {kind}"]["wrong"]) for a, row in models.items()}
        for kind in ("float32, same branches", "exact")
    )
    return [
        *_judged(what, rows, most=0),
        *_judged(f"{what}, same branches", same, most=0),
        *_judged(f"the same of --precision exact, of {values:,}", exact, most=0),
    ]


def _directed(found: Found) -> list[list[str]]:
    if "directions" not in found:
        return []
    networks = found["directions"]["networks"]
    what = f"the same of timm's networks, of {min(row['values'] for row in networks.values()):,}"
    rows, same = ({a: float(row[key]) for a, row in networks.items()} for key in ("wrong", "same branches"))
    return [*_judged(what, rows, most=0), *_judged(f"{what}, same branches", same, most=0)]


def _pulled(found: Found) -> list[list[str]]:
    if "pull" not in found:
        return []
    return _judged("plain copy ÷ pull", {"": found["pull"]["plain_over_pull"][0]}, least=0.7)


def _decoded(found: Found) -> list[list[str]]:
    if "decode" not in found:
        return []
    rows = {name: spread[0] for name, spread in found["decode"]["a core more"]["share_of_time_decoding"].items()}
    return _judged("share of the time in decoding ÷ that of a bare loop", rows, least=0.85)


def _planned(found: Found) -> list[list[str]]:
    if "planned" not in found:
        return []
    ratio = found["planned"]["planned_over_real"]
    return _judged("how far a plan's time is off", {"": abs(ratio - 1)}, most=0.3)


PROMISES: list[Callable[[Found], list[list[str]]]] = [
    _steps, _applied, _rows, _precomputed, _decoded, _sized, _grown, _signed, _directed, _planned, _pulled,
]  # fmt: skip


# Sections

BARE = "memmap, same gather"
WAYS = ("clean", "store", "online", "static")


def step(found: Found) -> str:
    """Table and figure of the steps."""
    rows = [
        [
            name,
            *(f"{row['milliseconds'][way][0]:.1f}" for way in WAYS),
            *(spread(row["over_clean"][way]) for way in WAYS[1:]),
            spread(row["over_store"]["static"]),
        ]
        for name, row in found["architectures"].items()
    ]
    columns = ["", *(f"{way}, ms" for way in WAYS), *(f"{way} ÷ clean" for way in WAYS[1:]), "static ÷ store"]
    return (
        "A step on 128 images: 128 clean ones, or 64 and their 64 perturbations, which are read from the *store*, or "
        "computed *online*, of the model itself (Step-LL), or of a *static* model (R+FGSM). Images and store are read "
        "in the step's turn; in training a thread reads ahead.\n\n"
        + table(columns, rows)
        + "![a training step of architecture C](step.svg)\n"
    )


def online(found: Found) -> str:
    """Cheaper online batches."""
    ways = ("two passes", "one pass", "bfloat16")
    rows = [
        [name, *(spread(over[way]) if way in (over := row["over_clean"]) else "–" for way in ways)]
        for name, row in found["architectures"].items()
    ]
    return (
        "A step with online Step-LL of the model itself ÷ a clean one. *Two passes*: as by default, the label from a "
        "network without dropout, the gradient from one with it. *One pass*: `--online-mode eval`, label and gradient "
        "of the same forward pass. *bfloat16*: `--amp`, with float32 weights and updates; it pays only on processors "
        "that compute in bfloat16.\n\n" + table(["", *(f"{way} ÷ clean" for way in ways)], rows)
    )


def cold(found: Found) -> str:
    """Engines from cold pages."""
    rows = [
        [name, f"{about['rows_a_second']:,}", spread(about["its_time_over_ours"])]
        for name, about in found["engines"].items()
    ]
    missing = f" Not installed: {', '.join(found['not_installed'])}." if found["not_installed"] else ""
    return (
        f"One epoch of {found['rows']:,} rows of {found['width']:,} bytes in block order, opening included, with none "
        "of the files' pages in memory (asked of the kernel before each figure; what the disk itself keeps is not "
        "ours to drop). Ours reads a whole chunk to verify its checksum before the first row of it is used."
        f"{missing}"
        "\n\n" + table(["", "rows a second", "its time ÷ ours"], rows)
    )


def sources(found: Found) -> str:
    """Cost over the number of sources."""
    rows = [
        [name, f"{row['share']:.3f}", spread(row["over_store"]), f"{row['model']:.2f}"]
        for name, row in found["sources"].items()
    ]
    return (
        "The paper's claim (Section 4.2): with n sources, one of them online, only every n-th batch needs a gradient. "
        f"Architecture {found['architecture']}, {found['steps']} steps a figure, the sources drawn as in training. "
        "*Model*: 1 + (r − 1)·s of the share s of steps that computed one, r the cost of n = 1.\n\n"
        + table(["sources", "share that computed", "÷ a step from the store", "model"], rows)
    )


def applied(found: Found) -> str:
    """Codec beside the bandwidth of memory."""
    names = list(next(iter(found["d"].values()))["share_of_fill"])
    rows = [
        [name, *(spread(row["share_of_fill"][name]) for row in found["d"].values())] for name in names if name != "fill"
    ]
    columns = ["time of a fill ÷ its time", *(f"D = {int(d):,}" for d in found["d"])]
    rates = ", ".join(f"{row['gigabytes_written_a_second']['fill']:g}" for row in found["d"].values())
    return (
        f"*Fill* writes as many float32 as there are values ({rates} GB/s), *copy* reads and writes them. *Apply* "
        "turns bits and bytes of images into adversarial images; *pack* turns gradients into bits.\n\n"
        + table(columns, rows)
    )


def rows_of(found: Found) -> str:
    """Engines beside ours."""
    orders = ("random", "block", "sequential")
    rows = [
        [name, *(spread(about[order]["its_time_over_ours"]) if order in about else "–" for order in orders)]
        for name, about in found["engines"].items()
    ]
    rate = found["engines"][BARE]["random"]["rows_a_second"]["ensadv-data"]
    missing = f" Not installed: {', '.join(found['not_installed'])}." if found["not_installed"] else ""
    return (
        f"{found['rows']:,} rows of {found['width']:,} bytes, in batches of 64, from the page cache; ours reads "
        f"{rate:,} random rows a second. *Block*: blocks in random order, shuffled in a window of four. "
        "Array engines are asked for the rows of each batch, as by a loader over a plain array, and keep no decoded "
        f"chunk between batches, but for tensorstore; those that shuffle by themselves do it their way.{missing}\n\n"
        + table(["its time ÷ ours", *orders], rows)
    )


def precomputed(found: Found) -> str:
    """Precompute beside the bare loop."""
    rows = [
        [
            name,
            f"{row['images_a_second']['block']:,}",
            spread(row["bare_over_block"]),
            spread(row["one_by_one_over_one_pass"]),
            spread(row["exact_over_block"]),
        ]
        for name, row in found["architectures"].items()
    ]
    return (
        "A block of a store of MNIST images under FGSM, as a worker of precompute makes it: read, computed, "
        "packed, digested, written; beside a bare loop of input gradients. *One pass*: FGSM and Step-LL of two models "
        "together, beside each of the four by itself. The bare loop asks autograd for the gradient of the loss, "
        "precompute has that of the loss with respect to the logits in closed form. *Exact*: `--precision exact`.\n\n"
        + table(["", "images a second", "bare ÷ precompute", "one by one ÷ one pass", "exact ÷ precompute"], rows)
    )


DECODING = ("share_of_time_decoding", "share_of_processor_time", "bare_over_it")


def decoded(found: Found) -> str:
    """Decoding of photographs, the whole flow and by itself."""
    flows = {"check": "the check of all images", "precompute": "precompute", "train": "an epoch of training"}
    rows = [
        [
            title,
            f"{found[name]['images_a_second']:,}",
            f"{found[name]['mib_second_quarter']:,}",
            f"{found[name]['mib_last_quarter']:,}",
        ]
        for name, title in flows.items()
    ]
    shares = [
        [
            f"{name}, {place}",
            f"{about['images_a_second'][name]:,}",
            *(spread(about[which][name]) for which in DECODING),
        ]
        for place, about in (("a core more", found["a core more"]), ("one core", found["one core"]))
        for name in about["bare_over_it"]
    ]
    loads = [*found["a core more"]["load"], *found["one core"]["load"]]
    cores = int(found["machine"].rpartition(", ")[2].split()[0])
    shared = (
        ": above its number of cores others wanted them too, and there was hardly a core more. The two shares do not "
        "depend on that, the times do."
        if max(loads) > 2 * cores
        else "."
    )
    columns = ["", "images a second", "share of the time in decoding", "of processor time", "bare ÷ it"]
    return (
        f"{found['images']:,} JPEGs of {found['size']} to {found['size'] * 3 // 2} pixels a side "
        f"({found['megabytes'] / 1000:.1f} GB), cut from twelve photographs and resized to {found['size']}; a net of "
        "one small layer, Step-LL; training replaces half of each batch from the store. The whole flow, precompute by "
        f"{found['workers']} workers; memory is the anonymous memory of all processes at its most, in the second and "
        "in the last quarter of the time.\n\n"
        + table(["", "images a second", "MiB, second quarter", "MiB, last quarter"], rows)
        + "Then one thread that decodes, beside a bare loop of one thread over the same files; a core more for the "
        "net, as beside an accelerator, or the same core for all. *Share of the time in decoding*: in which the thread "
        "had work (it ran, or waited for a core), over that share in the bare loop. *Of processor time*: the bare "
        "loop's over all of it; the rest is digests, floats, gradients, packing, writing. *Bare ÷ it*: of the times. "
        "*Later*: images are digested in the first epoch only. The machine's load was "
        f"{min(loads):g} to {max(loads):g} meanwhile{shared}\n\n" + table(columns, shares)
    )


def compiled(found: Found) -> str:
    """Compiled models."""
    rows = [
        [name, spread(row["plain_over_compiled"]), f"{row['seconds_to_compile']:.0f}"]
        for name, row in found["architectures"].items()
    ]
    return (
        "`precompute --compile`: a block with models as they are ÷ the same with compiled ones, and what compiling "
        "took, once a worker.\n\n" + table(["", "as they are ÷ compiled", "seconds to compile"], rows)
    )


def sized(found: Found) -> str:
    """Bits a value."""
    attacks = list(next(iter(found["architectures"].values()))["bits_a_value"])
    rows = [
        [
            name,
            *(f"{row['bits_a_value'][attack]:.3f}" for attack in attacks),
            f"{row['fgsm_as_float32_by_zstd']:.2f}",
        ]
        for name, row in found["architectures"].items()
    ]
    images = next(iter(found["architectures"].values()))["images_by_zstd"]
    return (
        f"Bits a value and draw in a store of {found['n']:,} images, masks and labels included; float32 takes 32, a "
        f"uint8 image 8 (of MNIST by zstd {images:.2f}). Last: the signs of FGSM as float32, compressed by zstd.\n\n"
        + table(["", *attacks, "float32 by zstd"], rows)
    )


def signed(found: Found) -> str:
    """Wrong signs by precision."""
    kinds = ("margin, float32", "margin, float32, same branches", "margin, exact", "margin, bfloat16", "ce, float32")
    kinds += ("ce, bfloat16",)
    rows = [
        [
            name,
            f"{100 * row['saturated_images']:.0f}%",
            *(_share(row, kind) for kind in kinds),
            f"{100 * row['margin, exact']['images in float64']:.2f}%",
        ]
        for name, row in found["models"].items()
    ]
    return (
        "Signs that are not float64's, of models that have learnt 500 images by heart; *saturated*: images to whose "
        "predicted label the model gives a probability that float32 rounds to 1. *Same branches*: beside a float64 in "
        "which every ReLU and max-pool goes the way that it goes in float32. What is wrong without this and right with "
        "it is no rounding of the gradient: two inputs of a max-pool, or a ReLU's input and zero, tie to the last bits "
        "of float32, and the gradient has a jump there that float64 meets on its other side. *Exact*: as `precompute "
        "--precision exact` makes them, and the share of images that it computes in float64.\n\n"
        + table(["", "saturated", *kinds, "in float64"], rows)
    )


def directed(found: Found) -> str:
    """Wrong signs of large networks, and the branches that explain them."""
    rows = [
        [
            name,
            f"{100 * row['zeros']:.3g}%",
            f"{row['wrong']:,}",
            f"{row['turned']:,} of {row['branches']:,}",
            f"{row['same branches']:,}",
            f"{row['error']:.1e}",
            f"{row['error, same branches']:.1e}",
        ]
        for name, row in found["networks"].items()
    ]
    values = next(iter(found["networks"].values()))["values"]
    columns = ["", "zeros", "wrong signs", "branches turned", "wrong, same branches", "error", "error, same branches"]
    return (
        f"Networks of timm that are not trained, on {found['n']} photographs of {found['size']} pixels: {values:,} "
        "values. *Branches turned*: of all ReLUs and cells of max-pools, those that go another way in float32 than in "
        "float64, since what they are given ties to the last bits of float32. *Same branches*: beside a float64 that "
        "goes float32's ways. *Error*: the largest of a gradient, over the median gradient that is not zero. One such "
        "branch, somewhere deep, changes a little the gradient at many pixels, and the sign of those whose gradient "
        "is small; nothing else does.\n\n" + table(columns, rows)
    )


def _share(row: Found, kind: str) -> str:
    counts = row[kind]
    wrong, values = (
        counts["wrong"] if "wrong" in counts else sum(counts.values()),
        row["values_bfloat16" if "bfloat16" in kind else "values"],
    )
    return f"{wrong:,} ({100 * wrong / values:.2g}%)"


_WIDE = (
    " Directions lie in maps of the files. What is held besides is a batch, a block of precompute, and in training the "
    "unpacked masks of a window of 8 blocks. The size of a block is the same for both N. Freed memory is kept in bits "
    "that the next block fits into more or less well, so that precompute takes more for some blocks, and then no "
    "more: *by quarter* of its time."
)


def grown(found: Found) -> str:
    """Memory and speed over N."""
    width = found.get("row_bytes", 98)
    rows = [
        [
            f"{int(n):,}",
            f"{row['precompute']['images_a_second']:,}",
            f"{row['precompute']['bytes'] / 1e6:.0f}",
            f"{row['train']['steps_a_second']:g}",
            f"{row['train']['seconds_to_start']:g}",
            f"{row['train']['bytes'] / 1e6:.0f}",
        ]
        for n, row in found["n"].items()
    ]
    for row, about in zip(rows, found["n"].values(), strict=True):
        if "bytes_by_quarter" in about["precompute"]:
            row.insert(3, " / ".join(f"{count / 1e6:.0f}" for count in about["precompute"]["bytes_by_quarter"]))
    columns = ["N", "precompute, images a second", "MB more", "train, steps a second", "seconds to start", "MB more"]
    if any(len(row) > len(columns) for row in rows):
        columns.insert(3, "by quarter")
    return (
        f"Rows of {width:,} bytes of made-up images and a linear model, each N in new processes; *MB more*: anonymous "
        "memory at its most, less that before. Training starts by comparing the data set's digest with the store's."
        + (_WIDE if width > 1000 else "")
        + "\n\n"
        + table(columns, rows)
    )


def tasks(found: Found) -> str:
    """Memory of the queue."""
    rows = [[f"{int(n):,}", f"{row['mib']:.0f}", f"{row['seconds']:.0f}"] for n, row in found["blocks"].items()]
    return (
        "Client and scheduler of precompute, one process here, while one worker does tasks that compute nothing.\n\n"
        + table(["blocks done", "MiB", "seconds"], rows)
    )


def planned(found: Found) -> str:
    """A plan beside its run."""
    rows = [
        [
            f"{stage['kind']} ({name})",
            f"{stage['seconds']['planned']:,.0f}",
            f"{stage['seconds']['real']:,.0f}",
            f"{stage['planned_over_real']:.2f}",
            _ends(stage["objects"]["planned"]),
            f"{stage['objects']['real']:,}",
            _ends(stage["bytes"]["planned"]),
            f"{stage['bytes']['real']:,}",
        ]
        for name, stage in found["stages"].items()
    ]
    loads = found["load"]
    columns = ["", "seconds planned", "real", "planned ÷ real", "objects planned", "real", "bytes planned", "real"]
    return (
        f"`ensadv-data plan` before, and `run` after, of {found['photographs']:,} photographs at {found['size']} "
        f"pixels: {found['draws']} views of each under {found['network']}, which is not trained, by "
        f"{found['workers']} workers; and an epoch of its training on them. The whole: "
        f"{found['took']['planned']:,.0f} seconds planned, {found['took']['real']:,.0f} real, planned ÷ real "
        f"{found['planned_over_real']:.2f}; the machine's load was {loads[0]:g} before and {loads[1]:g} after. What is "
        "compressed lies between two ends.\n\n" + table(columns, rows)
    )


def _ends(span: Sequence[int]) -> str:
    return f"{span[0]:,}" if span[0] == span[1] else f"{span[0]:,} … {span[1]:,}"


def pulled(found: Found) -> str:
    """A store that is fetched."""
    rates = found["megabytes_a_second"]
    return (
        f"{found['bytes'] / 1e9:.1f} GB in {found['objects']} objects, from a web server of this machine. A plain "
        f"copy, which is obstore in {found['at_once']} threads, SHA-256 and a file for each object, ÷ `pull`: "
        f"{spread(found['plain_over_pull'])} ({rates['plain copy']:,} and {rates['pull']:,} MB/s). The plain copy "
        "knows the names beforehand, compares no digest, and leaves it to the system when files are on the disk.\n"
    )


def kept(found: Found) -> str:
    """Freed memory."""
    ratio = spread(found["kept_over_given_back"])
    return (
        f"A step of architecture {found['architecture']} where the process keeps freed memory for the next one, as the "
        f"commands do, ÷ one where it gives it back: {ratio}. Peak of memory {found['peak_mib']['kept']} MiB instead "
        f"of {found['peak_mib']['given back']}.\n"
    )


def gpu(found: Found) -> str:
    """Everything of a GPU."""
    rows, rates = [], []
    for name, about in found.items():
        for key in about if isinstance(about, dict) else ():
            if key.startswith("precompute by "):
                what = f"{name}, {key.removeprefix('precompute by ')} images"
                rates += [
                    [
                        f"{what}, {precision}",
                        f"{one['images_a_second']['precompute']:,}",
                        spread(one["bare_over_precompute"]),
                        f"{100 * one['signs_not_float64']:.2f}%",
                    ]
                    for precision, one in about[key].items()
                ]
            if key.startswith("steps of "):
                batch = key.removeprefix("steps of ")
                rows.append(
                    [
                        f"{name}, {batch} images",
                        *(spread(about[key]["over_clean"][way]) for way in WAYS[1:]),
                        spread(about[key]["share_of_the_store"]),
                    ]
                )
    columns = ["a step", *(f"{way} ÷ clean" for way in WAYS[1:]), "share of the store"]
    others = ["precompute", "images/s", "bare ÷ it", "signs that are not float64's"]
    return f"On {found['device']}.\n\n{table(columns, rows)}\n{table(others, rates)}"


def paper(found: Found) -> str:
    """Precompute on clusters that nobody had."""
    assumed, cells = found["assumed"], {}
    for run in found["runs"]:
        cells.setdefault((run["examples"], run["images_a_second"], run["workers"]), {})[run["failures"]] = run
    rates = sorted({run["failures"] for run in found["runs"]})
    rows = []
    for (examples, pace, workers), by in cells.items():
        calm = by[rates[0]]
        rows.append(
            [
                f"{examples:,} at {pace:,.0f}/s",
                f"{workers:,}",
                f"{calm['hours']:,.2f}",
                *(f"{100 * by[rate]['efficiency']:.0f}%" for rate in rates),
                f"{100 * calm['client_busy']:.0f}%",
                f"{calm['gigabytes_a_second']:,.2f}",
                f"{calm['puts_a_second']:,}",
            ]
        )
    columns = ["images", "workers", "hours", *(f"efficiency at {rate:g}" for rate in rates), "client", "GB/s", "puts/s"]
    ends = [
        [
            f"{int(examples):,}",
            f"{about['blocks']:,}",
            f"{about['objects']:,}",
            " / ".join(f"{hours:,.2f}" for hours in about["digest_hours"].values()),
            f"{about['end_seconds']:,}",
            f"{about['end_requests']:,}",
            f"{about['end_hours_of_a_bucket']:,.2f}",
            f"{about['manifest_bytes'] / 1e6:,.1f}",
            f"{about['gib']['end']:.2f}",
            f"{about['gib']['open_store']:.2f}",
        ]
        for examples, about in found["ends"].items()
    ]
    threads = " / ".join(f"{int(count):,}" for count in next(iter(found["ends"].values()))["digest_hours"])
    labels = ["images", "blocks", "objects", f"hours of the digest by {threads}", "seconds of the end", "its requests"]
    labels += ["hours of them", "MB of manifest", "GiB of the client", "GiB of a reader"]
    task = {
        who: max(about["task"][who] for about in found["processor_milliseconds"].values() if "task" in about)
        for who in ("client", "scheduler")
    }
    biggest = max(found["records"].values(), key=lambda about: about["blocks"])["blocks"]
    return (
        f"A simulation (benchmarks/simulation.py) of precompute on 3×224×224 images under {assumed['sources']} models, "
        "one attack, one draw. Measured: processor time of the client, "
        f"{task['client']:.1f} ms a task, and of the scheduler, {task['scheduler']:.1f} ms, with heartbeats and looks; "
        f"what the end takes for up to {biggest:,} blocks, and by a line from there; digests, "
        f"{found['digest_bytes_a_second'] / 1e9:.2f} GB/s a thread, {found['piece_milliseconds']:.1f} ms of the client "
        "to keep a piece of them. Assumed: that many images a second, worker and model; "
        f"{assumed['bandwidth'] / 1e6:g} MB/s written by a worker; {1000 * assumed['latency']:g} ms until a bucket "
        f"answers, {assumed['requests_at_once']} requests at once; {assumed['start']:g} s until a worker has loaded "
        f"what it needs; {assumed['back']:g} s until a dead one is back; blocks that differ by "
        f"{100 * assumed['spread']:g}% in their time. *Efficiency*: time of the gradients alone on all workers, over "
        "that of the schedule, at so many deaths an hour and worker. *Client*: the share of the time in which client "
        "or scheduler is busy.\n\n"
        + table(columns, rows)
        + "Before the first block all images, here arrays, are digested by so many threads, of workers or client; "
        "after the last one the client collects the records, in a bucket by a request for each and by lists "
        "of all objects, and writes the manifest, which every reader parses when it opens the store.\n\n"
        + table(labels, ends)
    )


SECTIONS: list[tuple[str, list[str], Callable[[Found], str]]] = [
    ("A training step", ["step"], step),
    ("The online batch", ["online"], online),
    ("More sources, fewer gradients", ["sources"], sources),
    ("Bits to images", ["apply"], applied),
    ("Rows from the disk", ["rows-98", "rows-33500"], rows_of),
    ("Rows from a cold disk", ["cold"], cold),
    ("Precompute", ["precompute"], precomputed),
    ("Photographs", ["decode"], decoded),
    ("Compiled models", ["compiled"], compiled),
    ("Size", ["size"], sized),
    ("Precision", ["signs"], signed),
    ("Precision of large networks", ["directions"], directed),
    ("Growth", ["growth", "growth-10M", "growth-wide"], grown),
    ("Many blocks", ["tasks"], tasks),
    ("A plan and its run", ["planned"], planned),
    ("Scale on paper", ["schedule"], paper),
    ("A store that is pulled", ["pull"], pulled),
    ("Freed memory", ["memory"], kept),
    ("On a GPU", ["gpu"], gpu),
]
