"""What a report is made from: results and logs, read and checked, so that a message names file and place."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ensadv_data.errors import InputError
from ensadv_data.evaluation.summary import remarks

__all__ = [
    "Curve",
    "Node",
    "Pictures",
    "Rate",
    "Result",
    "Run",
    "Target",
    "read_json",
    "read_log",
    "read_result",
]


@dataclass(frozen=True)
class Rate:
    """An error rate with its 95% interval, all in [0, 1]."""

    error: float
    low: float
    high: float

    def overlaps(self, other: Rate) -> bool:
        """Whether the intervals have a point in common."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Target:
    """All that was measured on one target."""

    name: str
    architecture: str
    digest: str
    clean: Rate
    white_box: Mapping[str, Rate]  # by attack
    black_box: Mapping[str, Mapping[str, Rate]]  # by source, then attack
    any_black_box: Rate | None
    adaptive: Mapping[str, tuple[Rate, float]] = field(default_factory=dict)  # by adversary, with queries an image
    kin: tuple[str, ...] = ()  # sources that share weights with it, whose attacks are not black-box
    top5: Target | None = None  # by the first five classes, where there are more than ten

    @property
    def fgsm(self) -> Rate | None:
        """White-box FGSM; of several, the first."""
        return next((rate for attack, rate in self.white_box.items() if attack.partition(":")[0] == "fgsm"), None)

    @property
    def worst(self) -> tuple[str, str, Rate] | None:
        """Source, attack and rate of the strongest transferred attack; of equal ones, the first."""
        rows = [(source, attack, rate) for source, by in self._strangers.items() for attack, rate in by.items()]
        return max(rows, key=lambda row: row[2].error, default=None)

    @property
    def mean(self) -> float | None:
        """Mean error over all transferred attacks, in [0, 1]."""
        rates = [rate.error for by in self._strangers.values() for rate in by.values()]
        return math.fsum(rates) / len(rates) if rates else None

    @property
    def _strangers(self) -> Mapping[str, Mapping[str, Rate]]:
        return {source: by for source, by in self.black_box.items() if source not in self.kin}


@dataclass(frozen=True)
class Pictures:
    """Test images before and after: uint8 (n, C, H, W) by what was done to them."""

    labels: tuple[int, ...]
    rows: tuple[tuple[str, npt.NDArray[np.uint8]], ...]


@dataclass(frozen=True)
class Result:
    """One evaluation."""

    name: str
    data: str
    n: int
    epsilon: float
    suite: str
    sources: tuple[str, ...]
    targets: tuple[Target, ...]
    pictures: Pictures | None = None
    remarks: tuple[str, ...] = ()  # what a reader should know

    @property
    def top5(self) -> Result | None:
        """The same by the first five classes; None where there are ten or fewer."""
        targets = tuple(target.top5 for target in self.targets if target.top5 is not None)
        name = f"{self.name}, by the first five answers"
        return replace(self, name=name, targets=targets, pictures=None, remarks=()) if targets else None


@dataclass(frozen=True)
class Curve:
    """Mean losses of one source, for each finished epoch; None where the source was not drawn."""

    epochs: tuple[int, ...] = ()
    drawn: tuple[int, ...] = ()  # how often: steps, or images where each has a source of its own
    clean: tuple[float | None, ...] = ()
    adversarial: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Run:
    """One training run, by source."""

    name: str
    curves: Mapping[str, Curve]
    unit: str = "steps"


@dataclass(frozen=True)
class Node:
    """A value of a file with its place, so that a message can name both."""

    file: str  # the path, for a log with the number of the line
    remedy: str
    value: Any
    keys: tuple[str, ...] = ()

    def fail(self, expected: str) -> InputError:
        """The error that names file and place, what was expected and what came."""
        got = "nothing" if self.value is _NOTHING else _shortened(self.value)
        place = f"{self.file}: {'.'.join(self.keys)}" if self.keys else self.file
        return InputError(f"{place}: expected {expected}, got {got}; {self.remedy}")

    def at(self, key: str) -> Node:
        """The value below a key; there may be none."""
        return Node(self.file, self.remedy, self.table().get(key, _NOTHING), (*self.keys, key))

    def table(self) -> dict[str, Any]:
        """The value as a JSON object; raises InputError, as all that follow."""
        if not isinstance(self.value, dict):
            raise self.fail("a JSON object")
        return self.value

    def items(self) -> Iterator[tuple[str, Node]]:
        """Keys and values of an object."""
        return ((key, self.at(key)) for key in self.table())

    def text(self) -> str:
        """The value as text."""
        if not isinstance(self.value, str):
            raise self.fail("a text")
        return self.value

    def count(self, least: int = 0) -> int:
        """The value as a whole number from ``least`` up."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or self.value < least:
            raise self.fail(f"an integer from {least} up")
        return self.value

    def share(self) -> float:
        """The value as a number in [0, 1]."""
        if not isinstance(self.value, int | float) or isinstance(self.value, bool) or not 0 <= self.value <= 1:
            raise self.fail("a number in [0, 1]")
        return float(self.value)

    def number(self) -> float:
        """The value as a finite number."""
        if not isinstance(self.value, int | float) or isinstance(self.value, bool) or not math.isfinite(self.value):
            raise self.fail("a number")
        return float(self.value)

    def maybe(self) -> float | None:
        """A number, or null where there was nothing to measure."""
        return None if self.value is None else self.number()

    def items_of_list(self) -> Iterator[Node]:
        """The values of a list."""
        if not isinstance(self.value, list):
            raise self.fail("a list")
        return (
            Node(self.file, self.remedy, value, (*self.keys, str(number))) for number, value in enumerate(self.value)
        )

    def numbers(self) -> tuple[float, ...]:
        """The value as a list of finite numbers."""
        return tuple(node.number() for node in self.items_of_list())

    def loss(self) -> float | None:
        """None also where training diverged: the chart then has a gap."""
        if self.value is not None and (not isinstance(self.value, int | float) or isinstance(self.value, bool)):
            raise self.fail("a number or null")
        return float(self.value) if self.value is not None and math.isfinite(self.value) else None

    def rate(self) -> Rate:
        """The value as an error rate with its interval."""
        rate = Rate(self.at("error").share(), self.at("low").share(), self.at("high").share())
        if not rate.low - 1e-9 <= rate.error <= rate.high + 1e-9:
            raise self.fail("low ≤ error ≤ high")
        return rate


_NOTHING = object()
_REMEDY = "pass a JSON file that `ensadv-data evaluate` or `ensadv-data diagnose` wrote"


def read_json(path: Path) -> Node:
    """A result of version 1: of kind ``transfer``, from ``evaluate``, or ``diagnosis``, from ``diagnose``.

    Raises
    ------
    InputError
        The file is missing, or is neither.
    """
    root = _parsed(str(path), _text_of(path, "a result", _REMEDY), _REMEDY)
    if root.table().get("kind") not in ("transfer", "diagnosis"):
        raise root.at("kind").fail("'transfer' or 'diagnosis'")
    if root.at("version").count() != 1:
        raise root.at("version").fail("version 1")
    return root


def read_result(name: str, root: Node) -> Result:
    """Check a result of ``ensadv-data evaluate``.

    Raises
    ------
    InputError
        The file is missing, or is no such result; the message names the place in it.
    """
    targets = tuple(_target(name, node) for name, node in root.at("targets").items())
    if not targets:
        raise root.at("targets").fail("at least one target")
    return Result(
        name=name,
        data=root.at("data").text(),
        n=root.at("n").count(1),
        epsilon=root.at("epsilon").share(),
        suite=root.at("suite").text(),
        sources=tuple(root.at("sources").table()),
        targets=targets,
        pictures=_pictures(root.at("pictures")) if "pictures" in root.table() else None,
        remarks=tuple(remarks(root.table())),
    )


def _pictures(node: Node) -> Pictures:
    labels = tuple(label.count() for label in node.at("labels").items_of_list())
    shape = tuple(side.count(1) for side in node.at("shape").items_of_list())
    if len(shape) != 3 or not labels:
        raise node.fail("labels, and a shape of three sides")
    named = [("as it is", node.at("clean")), ("changed", node.at("changed"))]
    for target, by in node.at("attacked").items():
        named += [(f"{attack} on {target}", images) for attack, images in by.items()]
    rows = []
    for name, images in named:
        if name == "changed" and images.value is None:
            continue
        try:
            pixels = np.frombuffer(base64.b64decode(images.text(), validate=True), np.uint8)
            rows.append((name, pixels.reshape(len(labels), *shape)))
        except ValueError:
            raise images.fail(f"base64 of {len(labels)} images of shape {shape}") from None
    return Pictures(labels, tuple(rows))


def _target(name: str, node: Node) -> Target:
    fooled = node.at("any_black_box")
    return Target(
        name=name,
        architecture=node.at("architecture").text(),
        digest=node.at("digest").text(),
        clean=node.at("clean").rate(),
        white_box={attack: rate.rate() for attack, rate in node.at("white_box").items()},
        black_box={
            source: {attack: rate.rate() for attack, rate in by.items()} for source, by in node.at("black_box").items()
        },
        any_black_box=None if fooled.value is None else fooled.rate(),
        adaptive={
            adversary: (found.rate(), found.at("queries_per_image").number())
            for adversary, found in (node.at("adaptive").items() if "adaptive" in node.table() else ())
        },
        kin=tuple(source.text() for source in node.at("kin").items_of_list()) if "kin" in node.table() else (),
        top5=_target(name, node.at("top5")) if "top5" in node.table() else None,
    )


def read_log(path: Path) -> Run:
    """Read the log of a training run: its summaries of epochs; a run is called as its file is.

    Raises
    ------
    InputError
        The file is missing or empty, or a line is not of such a log; the message names the line.
    """
    remedy = "pass the .jsonl file that `ensadv-data train` wrote"
    lines = _text_of(path, "a log", remedy).splitlines()
    if not lines:
        raise InputError(f"{path}: expected the lines of a log, got an empty file; {remedy}")
    rows: dict[str, list[tuple[int, int, float | None, float | None]]] = {}
    unit = "steps"
    drawn: dict[str, None] = {}  # sources of steps; an unfinished epoch has no summary yet
    for number, line in enumerate(lines, start=1):
        node = _parsed(f"{path}: line {number}", line, remedy)
        epoch = node.at("epoch").count()
        if "sources" not in node.table():
            if node.at("source").value is not None:  # it is where each image has a source of its own
                drawn[node.at("source").text()] = None
            continue
        for name, row in node.at("sources").items():
            unit = "images" if "images" in row.table() else "steps"
            found = (epoch, row.at(unit).count(), row.at("loss_clean").loss(), row.at("loss_adversarial").loss())
            rows.setdefault(name, []).append(found)
    curves = {name: Curve(*zip(*found, strict=True)) for name, found in rows.items()}
    return Run(path.stem, curves or {name: Curve() for name in drawn}, unit)


def _text_of(path: Path, what: str, remedy: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: expected {what}, got: {error.strerror}; {remedy}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected {what}, got bytes that are not UTF-8; {remedy}") from None


def _parsed(file: str, text: str, remedy: str) -> Node:
    try:
        return Node(file, remedy, json.loads(text))
    except (ValueError, RecursionError):
        raise InputError(f"{file}: expected JSON, got {_shortened(text)}; {remedy}") from None


def _shortened(value: Any) -> str:
    text = repr(value[:100] if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:79] + "…"
