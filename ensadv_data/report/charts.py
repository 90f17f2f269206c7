"""What the page shows: charts as SVG whose colours follow the page's, and images as PNG."""

from __future__ import annotations

import base64
import io
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ensadv_data.codec import unpack_signs
from ensadv_data.data import Dataset, digest_examples
from ensadv_data.inspection import Agreement
from ensadv_data.report.inputs import Curve, Pictures, Rate, Result, Run, Target
from ensadv_data.store import Store, perturb_images
from ensadv_data.views import Views, cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "draw_agreement",
    "draw_curves",
    "draw_directions",
    "draw_errors",
    "draw_examples",
    "draw_losses",
    "draw_pictures",
    "encode_png",
    "picture_of",
]

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

# Colours that stand for variables of the page's style sheet, so that a chart follows light, dark and print.
_INK, _RULE, _ONE, _TWO = "#0a0b0c", "#0a0b0d", "#0a0b0e", "#0a0b0f"
_VARIABLES = {_INK: "var(--ink)", _RULE: "var(--rule)", _ONE: "var(--one)", _TWO: "var(--two)"}
_SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: smaller, and can be selected and read aloud
    "text.parse_math": False,  # names come from users; a dollar sign is a dollar sign
    "font.sans-serif": ["DejaVu Sans"],  # every text names all of them
    "font.size": 13,  # a phone shows the widest chart at three quarters
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _RULE,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}

_SCALE = 3  # of a picture; nearest neighbour, since single pixels matter
_SIDE = 64  # larger images are cut to their middle, which keeps the page small
_LOOKED_AT = 512  # examples among which one of each class is looked for
_STRIPS = 12  # sources and attacks shown
_MOST = 0.45  # opacity of a square: a figure can be read on it, light and dark
_WRITTEN = 12  # entries of an agreement whose squares have room for a figure


def draw_errors(result: Result, *, salt: str) -> str:
    """White-box FGSM beside the worst black-box error of each target, with 95% intervals, as SVG."""
    count = len(result.targets)
    highest = max((rate.high for target in result.targets for rate in _compared(target) if rate), default=1.0)
    with _drawing(salt, 480, 46 * count + 58) as (axes, finish):
        for row, target in enumerate(result.targets):
            styles = ((-0.16, _ONE, "o"), (0.16, _TWO, "s"))
            for rate, (offset, colour, marker) in zip(_compared(target), styles, strict=True):
                if rate is None:
                    continue
                reach = [[max(0.0, 100 * (rate.error - rate.low))], [max(0.0, 100 * (rate.high - rate.error))]]
                axes.errorbar(
                    [100 * rate.error], [row + offset], xerr=reach, fmt=marker, color=colour, capsize=4, markersize=5
                )
        axes.set_yticks(range(count), [_shortened(target.name) for target in result.targets])
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_xlim(0, min(100, 10 * math.floor(10 * highest + 1)))
        axes.set_xlabel("error, %, with 95% interval")
        axes.grid(axis="x", linewidth=0.6)
        axes.tick_params(axis="y", length=0)
        return finish(f"White-box FGSM and worst black-box error of {count} targets; the table above has the figures")


def draw_curves(curves: Mapping[str, Sequence[float]], *, across: str, up: str, label: str, salt: str) -> str:
    """Shares in [0, 1] over 1, 2, 3, …, a line each, with their names above, as SVG."""
    styles = ((_ONE, "-"), (_TWO, "--"), (_INK, ":"), (_INK, "-."))
    with _drawing(salt, 420, 250) as (axes, finish):
        for number, (name, values) in enumerate(curves.items()):
            colour, line = styles[number % len(styles)]
            axes.step(range(1, len(values) + 1), values, line, color=colour, where="mid", linewidth=1.6, label=name)
        axes.set_ylim(0, 1.02)
        axes.set_xlim(1, max((len(values) for values in curves.values()), default=2))
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.grid(axis="y", linewidth=0.6)
        axes.legend(frameon=False, fontsize=12, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
        return finish(label)


def draw_agreement(found: Agreement, *, salt: str) -> str:
    """The agreement of every two entries as coloured squares, as SVG: one colour above half, another below."""
    count = len(found.keys)
    side = 44 if count <= _WRITTEN else 18
    with _drawing(salt, side * count + 240, side * count + 40) as (axes, finish):
        from matplotlib.patches import Rectangle

        for row, shares in enumerate(found.shares):
            for column, share in enumerate(shares):
                if share is None:
                    continue
                strength = min(1.0, abs(2 * share - 1))
                colour = _ONE if share >= 0.5 else _TWO
                axes.add_patch(
                    Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=_MOST * strength, linewidth=0)
                )
                if count <= _WRITTEN:
                    axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center")
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_xticks(range(count), [str(number + 1) for number in range(count)])
        axes.set_yticks(
            range(count), [f"{_shortened(key)}  {number}" for number, key in enumerate(found.keys, start=1)]
        )
        axes.tick_params(length=0)
        axes.set_aspect("equal")
        return finish(f"Agreement of {count} entries, in %; the table below has the figures")


def draw_directions(store: Store) -> dict[str, Any]:
    """What is stored of the first images, as PNG: −1 black, 0 grey, +1 white; a delta in parts of its radius.

    Raises
    ------
    ChunkError
        A chunk is missing, truncated or corrupted.
    """
    header = store.header
    rows = np.arange(min(header.n, 6 if max(header.shape[1:]) <= _SIDE // 2 else 3))
    strips = []
    for entry in store.entries[:_STRIPS]:
        planes = store.gather(entry, np.zeros_like(rows), rows)
        if planes.direction is None:
            values = np.asarray(planes.delta) / np.float32(127)
        else:
            values = unpack_signs(planes.direction, planes.nonzero, d=header.d).astype(np.float32)
        strips.append({"name": entry.key, "images": _strip(values.reshape(len(rows), *header.shape) / 2 + 0.5)})
    return {
        "rows": rows.tolist(),
        "strips": strips,
        "left_out": len(store.entries) - len(strips),
        "is_cut": max(header.shape[1:]) > _SIDE,
    }


def picture_of(values_HW: npt.NDArray[np.float64]) -> dict[str, Any]:
    """A surface as PNG, dark where it is low and light where it is high; the second axis goes to the right."""
    low, high = float(values_HW.min()), float(values_HW.max())
    share = (values_HW - low) / (high - low) if high > low else np.zeros_like(values_HW)
    stops = np.array([[13, 22, 48], [52, 78, 138], [60, 140, 140], [150, 190, 96], [252, 232, 150]], float)
    place = share * (len(stops) - 1)
    below = np.minimum(place.astype(int), len(stops) - 2)
    part = (place - below)[..., None]
    colours = stops[below] * (1 - part) + stops[below + 1] * part
    large = np.rint(colours).astype(np.uint8)[::-1].repeat(5, axis=0).repeat(5, axis=1)  # upwards is along g
    code = base64.b64encode(encode_png(large)).decode("ascii")
    return {"uri": f"data:image/png;base64,{code}", "width": large.shape[1], "height": large.shape[0]}


def draw_losses(run: Run, *, salt: str) -> list[dict[str, str]]:
    """Clean and adversarial loss per epoch, one small chart for each source, all of a run on one scale."""
    drawn = {name: curve for name, curve in run.curves.items() if _values(curve)}
    top = max((value for curve in drawn.values() for value in _values(curve)), default=1.0)
    charts = []
    for number, (name, curve) in enumerate(drawn.items()):
        with _drawing(f"{salt} {number}", 270, 180) as (axes, finish):
            epochs = [epoch + 1 for epoch in curve.epochs]
            for values, colour, line, marker in (
                (curve.clean, _ONE, "-", "o"),
                (curve.adversarial, _TWO, "--", "s"),
            ):
                if any(value is not None for value in values):
                    heights = [float("nan") if value is None else value for value in values]
                    axes.plot(epochs, heights, line, color=colour, marker=marker, markersize=4, linewidth=1.6)
            axes.set_ylim(0, 1.08 * top or 1.0)
            axes.set_xlim(epochs[0] - 0.3, epochs[-1] + 0.3)
            axes.locator_params(axis="x", integer=True, min_n_ticks=1)
            axes.set_xlabel("epoch")
            axes.set_ylabel("loss")
            axes.grid(axis="y", linewidth=0.6)
            svg = finish(f"Clean and adversarial loss per epoch, source {name} of {run.name}")
        charts.append({"source": name, "svg": svg})
    return charts


def draw_pictures(data: Dataset, stores: Sequence[Store], *, epsilon: float) -> dict[str, Any]:
    """Some training images, clean and under each source and attack of the stores, as PNG.

    Parameters
    ----------
    data
        The images that the stores belong to, uint8 (N, C, H, W).
    epsilon
        L∞ radius, pixels in [0, 1].

    Raises
    ------
    InputError
        A store is for images of another shape, or holds none of the images.
    AlignmentError
        An image is not the one that a store was made for.
    """
    for store in stores:
        store.check_shape(data.shape, data.name)
    count = min([len(data), _LOOKED_AT, *(store.header.n for store in stores)])
    _, where = np.unique(data.labels()[:count], return_index=True)
    images, labels = data.read(rows := where[: 6 if max(data.shape[1:]) <= _SIDE // 2 else 3].astype(np.int64))
    for store in stores:
        store.prove(digest_examples(images), rows)
    clean = images.astype(np.float32) / 255
    entries = [(store, entry) for store in stores for entry in store.entries]
    strips = []
    radii = np.full(len(rows), epsilon, np.float32)
    for store, entry in entries[:_STRIPS]:
        radius = entry.epsilon if entry.kind == "delta" and entry.epsilon is not None else epsilon
        seen, draws, views = images, np.zeros_like(rows), Views.of_plan(store.header.plan)
        if views is not None:
            seen = cut(images, views.boxes(data.shape, draws=draws, examples=rows))
        about: dict[str, Any] = {"rows": rows, "draws": draws, "epsilon": radii, "views": views is not None}
        x_adv = perturb_images(store, entry, seen, **about)
        change = (x_adv - seen.astype(np.float32) / 255) / (2 * radius or 1) + 0.5
        name = entry.key if len(stores) == 1 else f"{store.place.name}/{entry.key}"
        strips.append({"name": name, "epsilon": radius, "adversarial": _strip(x_adv), "change": _strip(change)})
    return {
        "labels": labels.tolist(),
        "clean": _strip(clean),
        "strips": strips,
        "left_out": len(entries) - len(strips),
        "is_cut": max(data.shape[1:]) > _SIDE,
    }


def draw_examples(pictures: Pictures) -> dict[str, Any]:
    """Test images before and after, a row for each thing that was done to them, as PNG."""
    side = max(pictures.rows[0][1].shape[2:])
    shown = 8 if side <= _SIDE // 2 else 4
    return {
        "rows": [{"name": name, "strip": _strip(images[:shown] / np.float32(255))} for name, images in pictures.rows],
        "left_out": max(0, len(pictures.labels) - shown),
        "is_cut": side > _SIDE,
    }


def encode_png(pixels_HWC: U8) -> bytes:
    """A PNG of uint8 pixels (H, W, C), grey for C = 1 and RGB for C = 3, 8 bits a channel, no metadata."""
    height, width, channels = pixels_HWC.shape
    colour = {1: 0, 3: 2}[channels]
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels_HWC.reshape(height, -1)], axis=1)  # filter 0
    chunks = (
        (b"IHDR", struct.pack(">2I5B", width, height, 8, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    parts = [struct.pack(">I", len(b)) + name + b + struct.pack(">I", zlib.crc32(name + b)) for name, b in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _strip(values_BCHW: npt.NDArray[np.floating[Any]]) -> list[dict[str, Any]]:
    """Each image, values in [0, 1], as a data URI with its size in pixels."""
    _, channels, height, width = values_BCHW.shape
    top, left = max(0, (height - _SIDE) // 2), max(0, (width - _SIDE) // 2)
    shown = values_BCHW[:, : 3 if channels >= 3 else 1, top : top + _SIDE, left : left + _SIDE]
    pixels_BHWC = np.rint(255 * np.clip(shown, 0, 1)).astype(np.uint8).transpose(0, 2, 3, 1)
    large = pixels_BHWC.repeat(_SCALE, axis=1).repeat(_SCALE, axis=2)
    codes = (base64.b64encode(encode_png(image)).decode("ascii") for image in large)
    return [
        {"uri": f"data:image/png;base64,{code}", "width": large.shape[2], "height": large.shape[1]} for code in codes
    ]


def _compared(target: Target) -> tuple[Rate | None, Rate | None]:
    """White-box FGSM and the worst transferred attack."""
    return target.fgsm, target.worst and target.worst[2]


def _values(curve: Curve) -> list[float]:
    return [value for value in (*curve.clean, *curve.adversarial) if value is not None]


def _shortened(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


@contextmanager
def _drawing(salt: str, width: int, height: int) -> Iterator[tuple[Axes, Callable[[str], str]]]:
    """Axes of a figure of ``width`` × ``height`` CSS pixels, and what turns it into SVG.

    Nobody's settings reach the chart, and ours do not leave this context. The ids in the SVG come from
    ``salt`` and from what is drawn, so that they are the same in every run and differ between charts.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has the font
        mpl.rcdefaults()
        mpl.rcParams.update({**_SETTINGS, "svg.hashsalt": salt})
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        yield figure.subplots(), lambda label: _svg(figure, label)


def _svg(figure: Figure, label: str) -> str:
    """The figure as an ``svg`` element for a page: no prologue, no metadata, no size that a phone cannot hold.

    Places are in hundredths of a pixel: a report can have hundreds of charts.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', body))
    names = {name for pair in used for name in pair}
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in names else "", body)
    body = re.sub(r' transform="rotate\(-?0 [^"]*"', "", body)
    body = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    body = re.sub(r"\n\s*", "\n", body).strip()
    width, height = (round(72 * inches) for inches in figure.get_size_inches())
    head = f'<svg role="img" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'{head} aria-label="{_escaped(label)}">\n{body}\n'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
