"""The report: one offline page, with every figure, that says in words only what the figures say."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import struct
import zlib
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensadv_data.batches import Batches
from ensadv_data.codec import pack_signs
from ensadv_data.data import ArrayDataset
from ensadv_data.errors import AlignmentError, InputError, OutputError, QuantityError
from ensadv_data.evaluation.adaptive import AdaptiveResult
from ensadv_data.evaluation.interval import Rate
from ensadv_data.evaluation.transfer import TargetResult, Transfer
from ensadv_data.manifest import DataRecord, Manifest, ObjectRecord, SourceRecord
from ensadv_data.mixing import Part, Schedule
from ensadv_data.report import charts, page, write_report
from ensadv_data.report.inputs import read_log
from ensadv_data.sources import ONLINE, static_sources
from ensadv_data.spec import EpsilonSpec
from ensadv_data.store import Entry, Header, Planes, StoreWriter, open_store

VOID = {"meta", "img", "br"}
HOSTILE = 'R&D </title><script src="https://evil.example/x.js">alert(1)</script> $\\frac{1$ {{ 7*7 }} {x}'
KINDS = {"step-ll": "sign", "r-step-ll": "rsign", "pgd": "delta"}


class Page(HTMLParser):
    """Tags with their attributes, balanced or else a failure, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.script = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.script += data
        elif "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page_of(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def target(name: str, fgsm: int, black: Mapping[str, Mapping[str, int]], *, n: int = 1000) -> TargetResult:
    return TargetResult(
        target=name,
        digest="ab" * 32,
        architecture="D",
        clean=Rate(13, n),
        white_box={"fgsm": Rate(fgsm, n), "r-fgsm": Rate(321, n)},
        black_box={source: {a: Rate(k, n) for a, k in by.items()} for source, by in black.items()},
        any_black_box=Rate(777, n) if black else None,
    )


TARGETS = (
    target("masked", 105, {"B": {"fgsm": 412, "i-fgsm": 433}, "D": {"fgsm": 207, "i-fgsm": 216}}),
    target("close", 205, {"B": {"fgsm": 218, "i-fgsm": 91}, "D": {"fgsm": 74, "i-fgsm": 66}}),
    target("plain", 664, {"B": {"fgsm": 289, "i-fgsm": 301}}),
)


def write_result(path: Path, targets: tuple[TargetResult, ...] = TARGETS, **changes: Any) -> Path:
    transfer = Transfer("digits/test", 1000, 0.3, "paper", {"B": "1" * 64, "D": "2" * 64}, targets)
    path.write_text(json.dumps(transfer.to_json() | changes))
    return path


def summary(epoch: int, sources: Mapping[str, tuple[int, float | None, float | None]]) -> dict[str, Any]:
    total = sum(steps for steps, _, _ in sources.values())
    return {
        "epoch": epoch,
        "step": total - 1,
        "learning_rate": 0.001,
        "sources": {
            name: {"steps": steps, "share": steps / total, "loss_clean": clean, "loss_adversarial": adversarial}
            for name, (steps, clean, adversarial) in sources.items()
        },
    }


def step_line(epoch: int, step: int, source: str) -> dict[str, Any]:
    line = {"epoch": epoch, "step": step, "source": source, "epsilon": 0.3}
    return line | {"loss_clean": 2.9, "loss_adversarial": 3.1, "seconds": 0.04}


def write_log(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def ensemble_log(path: Path) -> Path:
    return write_log(
        path,
        step_line(0, 0, "D"),
        summary(0, {"online": (30, 1.6, 3.1), "B": (40, 1.5, 2.2), "D": (30, 1.4, 1.9)}),
        step_line(1, 0, "B"),
        summary(1, {"online": (36, 0.9, 2.7), "B": (32, 0.8, 1.5), "D": (32, None, None)}),
    )


def images_of(n: int = 48, *, shape: tuple[int, int, int] = (1, 9, 7), seed: int = 5) -> ArrayDataset:
    generator = np.random.Generator(np.random.Philox(key=seed))
    pixels = generator.integers(0, 256, (n, *shape), dtype=np.uint8)
    return ArrayDataset(pixels, np.arange(n, dtype=np.int64) * 7 % 10, name="digits", split="train", classes=10)


def write_store(path: Path, data: ArrayDataset, *, draws: int = 2, mode: str = "eval") -> Path:
    """A real store of random perturbations, one entry of each kind."""
    generator = np.random.Generator(np.random.Philox(key=9))
    entries = tuple(
        Entry(
            source="B",
            attack=attack,
            kind=kind,
            epsilon=0.2 if kind == "delta" else None,
            alpha=0.05 if kind == "rsign" else None,
            seed=77,
            source_digest="1" * 64,
            architecture="B",
            loss="margin",
        )
        for attack, kind in KINDS.items()
    )
    n, plan = len(data), {"mode": mode, "seed": 0}
    header = Header(
        data.name, data.split, data.digest, data.shape, data.classes, n, draws, tuple(e.key for e in entries), plan
    )
    writer = StoreWriter(path, header, entries)
    writer.create()
    for block in range(header.blocks):
        first = block * header.block
        rows = min(header.block, n - first)
        label = np.zeros(rows, np.int32)
        planes = {}
        for entry in entries:
            values = generator.integers(-1, 2, (draws * rows, header.d))
            if entry.kind == "delta":
                delta = (127 * values).reshape(draws, rows, -1).astype(np.int8)
                planes[entry.key] = Planes(delta=delta, label=label)
                continue
            bits, mask = pack_signs(values)
            filled = None if mask is None else mask.reshape(draws, rows, -1)
            planes[entry.key] = Planes(bits.reshape(draws, rows, -1), filled, label=label)
        writer.write_block(block, planes, data.example_digests()[first : first + rows])
    objects, zeros, _ = writer.collect()
    manifest = Manifest(
        data=DataRecord(
            name=data.name, split=data.split, n=n, shape=data.shape, classes=data.classes, digest=data.digest
        ),
        sources=(SourceRecord(name="B", architecture="B", digest="1" * 64),),
        draws=draws,
        plan=plan,
        zeros=zeros,
        software={},
        objects={name: ObjectRecord(bytes=size, sha256=digest) for name, (size, digest) in objects.items()},
    )
    writer.close(manifest.to_bytes())
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    data = images_of()
    plain = write_log(folder / "plain.jsonl", step_line(0, 0, "clean"), summary(0, {"clean": (100, 0.5, None)}))
    return {
        "results": [write_result(folder / "transfer.json")],
        "logs": [plain, ensemble_log(folder / "ensemble.jsonl")],
        "stores": [write_store(folder / "store", data)],
        "data": data,
        "stages": {"precompute": 12.34, "train": 754.0, "evaluate": 7265.0},
    }


@pytest.fixture(scope="module")
def written(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("page") / "report.html", title="A demo", **inputs)


def test_the_page_is_whole_offline_and_small(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    found = Page(text)
    assert text.lstrip().startswith("<!DOCTYPE html>")
    for tag, attributes in found.tags:
        assert tag not in {"link", "iframe", "object", "foreignobject"}
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\((?!#)|https?://", text)
    assert sum(tag == "svg" for tag, _ in found.tags) == 1 + 1 + 3  # errors; plain; ensemble by source
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(text) < 250_000


def test_the_policy_lets_only_the_page_s_own_script_run(written: Path) -> None:
    found = page_of(written)
    assert [attributes for tag, attributes in found.tags if tag == "script"] == [{}]
    digest = base64.b64encode(hashlib.sha256(found.script.encode()).digest()).decode()
    (policy,) = (attributes["content"] for tag, attributes in found.tags if "http-equiv" in attributes)
    assert f"script-src 'sha256-{digest}'" in (policy or "")
    assert (policy or "").startswith("default-src 'none';")


def test_the_cells_of_a_sortable_table_give_what_is_sorted_by(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    tables = re.findall(r'<table class="sortable[^>]*>(.*?)</table>', html, re.DOTALL)
    assert len(tables) == 4  # targets, transfer, steps by source, stores
    for table in tables:
        rows = re.findall(r"<tr>(.*?)</tr>", table.partition("<tbody>")[2], re.DOTALL)
        cells = [re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
        assert len({len(row) for row in cells}) == 1
        for column in zip(*cells, strict=True):
            values = [re.search(r'data-value="([^"]*)"', attributes) for attributes, _ in column]
            dashes = ["none" in text for _, text in column]
            if any(values):
                assert [value is None for value in values] == dashes
                assert all(np.isfinite(float(value[1])) for value in values if value)
    summary = re.findall(r'data-value="([^"]*)"', tables[0])
    assert summary[:4] == ["0.013", "0.105", "0.321", "0.433"]
    assert re.findall(r'data-column="(\d)">([^<]*)', tables[0]) == [
        ("2", "fgsm"),
        ("3", "r-fgsm"),
        ("4", "worst"),
        ("5", "mean"),
        ("6", "any"),
    ]


def test_a_target_s_column_of_the_transfer_matrix_is_coloured_by_its_errors(written: Path) -> None:
    html = written.read_text(encoding="utf-8")
    (matrix,) = re.findall(r'<table class="sortable heat">(.*?)</table>', html, re.DOTALL)
    assert re.findall(r'<th scope="row">(\w+)<small>([^<]*)', matrix) == [
        (source, attack) for source in ("B", "D") for attack in ("fgsm", "i-fgsm")
    ]
    shares = [float(share) for share in re.findall(r"--share: ([0-9.]+)", matrix)]
    assert shares == [0.412, 0.218, 0.289, 0.433, 0.091, 0.301, 0.207, 0.074, 0.216, 0.066]
    assert matrix.count("–</span>") == 2  # D was not transferred to the last target
    assert "A dash: not transferred" in html


def luminance(colour: np.ndarray[Any, Any]) -> float:
    """Relative luminance of sRGB in [0, 255], as WCAG 2.2 defines it."""
    share = colour / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: np.ndarray[Any, Any], two: np.ndarray[Any, Any]) -> float:
    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)


def test_text_can_be_read_in_light_dark_and_print_and_on_every_heat(written: Path) -> None:
    schemes = re.findall(r":root \{ (--ink.*?) \}", written.read_text(encoding="utf-8"))
    assert len(schemes) == 3
    for scheme in schemes:
        values = dict(re.findall(r"--(\w+): ([^;]+);", scheme))
        colour = {
            name: np.array([int(value[i : i + 2], 16) for i in (1, 3, 5)], float)
            for name, value in values.items()
            if value.startswith("#")
        }
        for name in ("ink", "soft", "one", "two"):
            assert contrast(colour[name], colour["page"]) >= 4.5
        heat = np.array(values["heat"].split(), float)
        strengths = float(values["most"]) * np.linspace(0, 1, 101)
        grounds = [colour["page"] + strength * (heat - colour["page"]) for strength in strengths]
        assert min(contrast(colour["ink"], ground) for ground in grounds) >= 4.5
        distances = [np.abs(ground - colour["page"]).sum() for ground in grounds]
        assert np.all(np.diff(distances) > 0)  # the larger the error, the stronger the colour


def test_a_large_report_is_at_most_3_mb(tmp_path: Path) -> None:
    data = images_of(20, shape=(3, 64, 64))
    names = [f"target {number}" for number in range(12)]
    black = {f"holdout {letter}": {f"attack {number}": 500 for number in range(6)} for letter in "ABCDEF"}
    result = write_result(tmp_path / "r.json", tuple(target(name, 300, black) for name in names))
    logs = [
        write_log(tmp_path / f"{name}.jsonl", *(summary(epoch, {"online": (9, 1.0, 2.0)}) for epoch in range(200)))
        for name in names[:2]
    ]
    stores = 4 * [write_store(tmp_path / "store", data)]
    out = write_report(tmp_path / "out.html", title="t", results=[result], logs=logs, stores=stores, data=data)
    assert out.read_text(encoding="utf-8").count('class="strip"') == 1 + 2 * 12
    assert out.stat().st_size <= 3_000_000


def test_hundreds_of_charts_fit_into_a_report(tmp_path: Path) -> None:
    """The largest recipe has 210 of them; they are most of its report."""
    sources: dict[str, tuple[int, float | None, float | None]] = {"online": (30, 1.61, 3.17), "B": (40, 1.53, 2.29)}
    run = read_log(write_log(tmp_path / "a.jsonl", *(summary(epoch, sources) for epoch in range(12))))
    for chart in charts.draw_losses(run, salt="s"):
        assert len(chart["svg"]) < 8_000
        assert not re.search(r' (d|x|y|transform)="[^"]*\.\d{3}', chart["svg"])
        assert ">epoch</text>" in chart["svg"]


def test_the_page_has_every_figure(written: Path) -> None:
    words = page_of(written).text
    for result in TARGETS:
        rates = [result.clean, *result.white_box.values(), result.any_black_box]
        rates += [rate for by in result.black_box.values() for rate in by.values()]
        for rate in rates:
            assert rate is not None
            low, high = rate.interval
            assert f"{100 * rate.value:.1f} {100 * low:.1f}–{100 * high:.1f}" in words
        assert f"{100 * (result.mean_black_box or 0):.1f}" in words
        assert result.target in words
    assert "i-fgsm from B" in words
    for piece in ("digits/test", "12.3 s", "12 min 34 s", "2 h 01 min", "Made by ensadv-data"):
        assert piece in words


def test_the_strongest_transferred_attack_of_each_target_is_marked_with_its_ties(written: Path) -> None:
    """Of 1,000 images 412 and 433 are no difference, 289 and 301 neither; 218 and 91 are."""
    (table,) = re.findall(r'<table class="sortable heat">.*?</table>', written.read_text(), re.DOTALL)
    cells = [re.findall(r'<td( class="strongest")?', row) for row in table.split("<tr>")[2:]]
    marked = [[bool(cell) for cell in row] for row in cells]
    assert marked == [
        [True, True, True],  # FGSM from B: on masked, close, plain
        [True, False, True],
        [False, False, False],
        [False, False, False],
    ]


def test_what_a_reader_should_know_of_a_result_is_on_the_page(tmp_path: Path) -> None:
    few = Transfer("digits/test", 40, 0.3, "paper", {"B": "1" * 64}, (target("t", 7, {"B": {"fgsm": 5}}, n=1000),))
    path = tmp_path / "few.json"
    path.write_text(json.dumps(few.to_json() | {"targets": {"t": few.to_json()["targets"]["t"] | {"twin": "B"}}}))
    words = page_of(write_report(tmp_path / "out.html", title="t", results=[path])).text
    assert "Note. Source B has the weights of target t: its attacks there are white-box. 40 images are few: 20" in words


def test_adversaries_that_query_and_the_first_five_answers_are_on_the_page(tmp_path: Path) -> None:
    five = dataclasses.replace(TARGETS[0], white_box={"fgsm": Rate(55, 1000)})
    queried = {
        "estimated:alpha=0.15": AdaptiveResult(Rate(601, 1000), 1_568_000),
        "surrogate": AdaptiveResult(Rate(345, 1000), 4800),
    }
    asked = dataclasses.replace(TARGETS[0], adaptive=queried, top5=five)
    other = dataclasses.replace(TARGETS[1], top5=five)
    out = write_report(
        tmp_path / "out.html", title="t", results=[write_result(tmp_path / "mine.json", targets=(asked, other))]
    )
    words = page_of(out).text
    assert "fgsm r-fgsm estimated:alpha=0.15 surrogate worst mean any" in words
    assert "60.1 57.0–63.1 1,568 queries an image 34.5 31.6–37.5 4.8 queries an image" in words
    assert "the images that it showed to it are counted" in words
    both = words.partition("Robustness: mine, by the first five answers")
    assert "5.5 4.2–7.1" not in both[0]
    assert "5.5 4.2–7.1" in both[2]
    assert "queries" not in both[2]
    broken = json.loads((tmp_path / "mine.json").read_text())
    del broken["targets"]["masked"]["adaptive"]["surrogate"]["queries_per_image"]
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(InputError, match=r"targets\.masked\.adaptive\.surrogate\.queries_per_image: expected a number"):
        write_report(tmp_path / "out.html", title="t", results=[tmp_path / "broken.json"])


def test_shares_are_compared_with_a_fair_draw(written: Path) -> None:
    words = page_of(written).text
    assert "ensemble online 66 steps 33.0% 33.3% -0.1" in words
    assert "B 72 steps 36.0% 33.3% +0.8" in words
    assert "plain clean 100" not in words  # nothing is drawn where there is one source


def test_a_name_in_the_log_is_the_one_that_training_writes() -> None:
    assert ONLINE in page._NOT_STATIC


def test_draws_get_the_right_remark(tmp_path: Path) -> None:
    data = images_of(20)
    seen = {}
    for draws, mode in ((1, "eval"), (2, "eval"), (1, "train"), (2, "train")):
        store = open_store(write_store(tmp_path / f"{draws}{mode}", data, draws=draws, mode=mode))
        for row in page.describe_stores([store]):
            seen[draws, mode, row["entry"].kind] = row["remark"]
    assert "K = 1 is right only for a deterministic source; this is one" in seen[1, "eval", "sign"]
    for random in ((1, "eval", "rsign"), (1, "eval", "delta"), (1, "train", "sign")):
        assert "K = 1 is right only for a deterministic source, and this one is random" in seen[random]
    assert seen[2, "eval", "sign"].startswith("All 2 draws are equal")
    tested = open_store(write_store(tmp_path / "test", data, draws=1))
    tested.header = dataclasses.replace(tested.header, split="test")
    assert {row["remark"] for row in page.describe_stores([tested])} == {""}  # nothing learns it by heart
    assert [seen[2, "eval", "rsign"], seen[2, "eval", "delta"], seen[2, "train", "sign"]] == ["", "", ""]


def test_a_store_of_the_other_split_has_no_row_of_clean_images_for_pictures(tmp_path: Path) -> None:
    train = images_of(20)
    test = ArrayDataset(*train.read(np.arange(20)), name="digits", split="test", classes=10)
    store = write_store(tmp_path / "store", train)
    for data, pictured in ((train, True), (test, False)):
        words = page_of(write_report(tmp_path / "out.html", title="t", stores=[store], data=data)).text
        assert ("What the perturbations look like" in words) == pictured


def test_the_verdict_follows_the_figures(tmp_path: Path, written: Path) -> None:
    words = page_of(written).text
    assert "43.3% (i-fgsm from B), is above the white-box FGSM error, 10.5%, and the intervals do not overlap" in words
    assert "21.8% (fgsm from B), is above the white-box FGSM error, 20.5%, but the intervals overlap" in words
    assert "30.1% (i-fgsm from B), is below the white-box FGSM error, 66.4%, and the intervals do not" in words
    others = (
        target("lower", 205, {"B": {"fgsm": 199}}),
        target("same", 205, {"B": {"fgsm": 205}}),
        target("alone", 205, {}),
        dataclasses.replace(target("bare", 1, {"B": {"fgsm": 9}}), white_box={}),
    )
    result = write_result(tmp_path / "r.json", others)
    words = page_of(write_report(tmp_path / "r.html", title="t", results=[result])).text
    assert "is below the white-box FGSM error, 20.5%, but the intervals overlap" in words
    assert "is equal to the white-box FGSM error, 20.5%." in words
    assert "A transferred attack was not measured" in words
    assert "White-box FGSM was not measured" in words


def test_text_is_escaped_and_never_read_as_code(tmp_path: Path) -> None:
    result = write_result(tmp_path / "r.json", (target(HOSTILE, 5, {HOSTILE: {"fgsm": 500}}),), data=HOSTILE)
    log = write_log(tmp_path / "l.jsonl", summary(0, {HOSTILE: (3, 1.0, 2.0), "名": (3, 1.0, 2.0)}))
    out = write_report(
        tmp_path / "out.html", title=HOSTILE + " \ud800", results=[result], logs=[log], stages={HOSTILE: 1}
    )
    found = page_of(out)
    assert found.text.count(" ".join(HOSTILE.split())) >= 7
    assert [attributes for tag, attributes in found.tags if tag == "script"] == [{}]
    assert found.script == page_of(write_report(tmp_path / "empty.html", title="t")).script


def test_equal_input_gives_equal_bytes(inputs: dict[str, Any], written: Path, tmp_path: Path) -> None:
    again = write_report(tmp_path / "deep" / "folder" / "again.html", title="A demo", **inputs)
    assert again.read_bytes() == written.read_bytes()


def test_a_report_of_nothing_is_a_page(tmp_path: Path) -> None:
    assert "No evaluation was given" in page_of(write_report(tmp_path / "empty.html", title="Nothing")).text


def test_a_log_without_a_finished_epoch_has_no_chart_yet(tmp_path: Path) -> None:
    log = write_log(tmp_path / "young.jsonl", step_line(0, 0, "online"), step_line(0, 10, "B"))
    diverged = write_log(tmp_path / "lost.jsonl", summary(0, {"online": (3, float("nan"), float("inf"))}))
    words = page_of(write_report(tmp_path / "out.html", title="t", logs=[log, diverged])).text
    assert words.count("No epoch with a finite loss is in this log yet") == 2


def test_a_source_for_each_image_is_counted_in_images(tmp_path: Path) -> None:
    lines = [step_line(0, 0, "m") | {"source": None}, summary(0, {"online": (5200, 1.6, 3.1), "B": (4800, 1.5, 2.2)})]
    for row in lines[1]["sources"].values():
        row["images"] = row.pop("steps")
    mix = page.describe_mix(read_log(write_log(tmp_path / "l.jsonl", *lines)))
    assert mix is not None
    assert mix["unit"] == "images"
    assert [row["deviations"] for row in mix["rows"]] == pytest.approx([4, -4])  # of a coin thrown 10,000 times
    words = page_of(write_report(tmp_path / "out.html", title="t", logs=[tmp_path / "l.jsonl"])).text
    assert "5,200 images" in words
    young = write_log(tmp_path / "young.jsonl", lines[0])
    assert read_log(young).curves == {}
    assert "No epoch with a finite loss" in page_of(write_report(tmp_path / "y.html", title="t", logs=[young])).text


@pytest.mark.parametrize("shape", [(1, 9, 7), (3, 8, 8), (3, 80, 70)])
def test_pictures_are_what_training_sees(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    data = images_of(30, shape=shape)
    store = open_store(write_store(tmp_path / "store", data))
    sources = static_sources([store.place.path], data)
    schedule = Schedule(seed=0, n=30, batch_size=4, sources=sources, epsilon=EpsilonSpec(epsilon=0.1))
    batches = Batches(data, schedule, fresh=False)
    pictures = charts.draw_pictures(data, [store], epsilon=0.1)
    assert pictures["labels"] == ([0, 1, 2, 3, 4, 5] if shape[1] < 33 else [0, 1, 2])
    assert [(strip["name"], strip["epsilon"]) for strip in pictures["strips"]] == [
        ("B/pgd", 0.2) if entry.kind == "delta" else (entry.key, 0.1) for entry in store.entries
    ]
    _, labels = data.read(np.arange(30))
    rows = np.array([np.flatnonzero(labels == label)[0] for label in pictures["labels"]])
    images, _ = data.read(rows)
    for number, strip in enumerate(pictures["strips"]):
        radii = np.full(len(rows), 0.1, np.float32)
        part = Part(np.arange(len(rows)), 0, number, rows, np.zeros_like(rows), radii)
        assert strip["adversarial"] == charts._strip(batches.perturb(images, part, epoch=0))
    height, width = min(shape[1], 64), min(shape[2], 64)
    top, left = (shape[1] - height) // 2, (shape[2] - width) // 2
    for label, image in zip(pictures["labels"], pictures["clean"], strict=True):
        found = decode_png(base64.b64decode(image["uri"].partition(",")[2]))
        assert found.shape == (image["height"], image["width"], shape[0]) == (3 * height, 3 * width, shape[0])
        example = int(np.argmax(data.labels_N == label))
        shown = data.images_NCHW[example, :, top : top + height, left : left + width].transpose(1, 2, 0)
        np.testing.assert_array_equal(found, shown.repeat(3, axis=0).repeat(3, axis=1))


def decode_png(data: bytes) -> np.ndarray[Any, Any]:
    """Pixels (H, W, C) of a PNG without filters; every checksum is compared."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        assert zlib.crc32(data[at + 4 : at + 8 + size]) == struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0]
        chunks[data[at + 4 : at + 8]] = data[at + 8 : at + 8 + size]
        at += 12 + size
    width, height, depth, colour = struct.unpack(">2I2B", chunks[b"IHDR"][:10])
    assert depth == 8
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, {0: 1, 2: 3}[colour])


def test_images_of_another_data_set_are_refused(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", images_of(20))
    with pytest.raises(AlignmentError, match=r"example \d+: expected an image with digest [0-9a-f]{16}, found"):
        write_report(tmp_path / "out.html", title="t", stores=[store], data=images_of(20, seed=6))
    with pytest.raises(InputError, match=r"for images of shape \(3, 9, 7\), found \(1, 9, 7\)"):
        write_report(tmp_path / "out.html", title="t", stores=[store], data=images_of(20, shape=(3, 9, 7)))
    with pytest.raises(InputError, match="expected a store"):
        write_report(tmp_path / "out.html", title="t", stores=[tmp_path / "none"])
    assert not (tmp_path / "out.html").exists()


GOOD = Transfer("d/test", 1000, 0.3, "s", {}, TARGETS).to_json()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "expected JSON, got '{'"),
        ("[" * 100_000, "expected JSON, got"),
        ("[]", r"expected a JSON object, got \[\]"),
        ("{}", "kind: expected 'transfer' or 'diagnosis', got nothing"),
        ('{"kind": "ratio"}', "kind: expected 'transfer' or 'diagnosis', got 'ratio'"),
        (json.dumps(GOOD | {"version": 2}), "version: expected version 1, got 2"),
        (json.dumps(GOOD | {"n": True}), "n: expected an integer from 1 up, got True"),
        (json.dumps(GOOD | {"epsilon": float("nan")}), r"epsilon: expected a number in \[0, 1\], got nan"),
        (json.dumps(GOOD | {"targets": {}}), "targets: expected at least one target"),
        (json.dumps(GOOD | {"targets": {"x": {"architecture": "D"}}}), r"targets\.x\.digest: expected a text, got no"),
        (
            json.dumps(GOOD).replace('"error": 0.105, "low"', '"error": 0.999, "low"', 1),
            r"targets\.masked\.white_box\.fgsm: expected low ≤ error ≤ high",
        ),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        write_report(tmp_path / "out.html", title="t", results=[path])
    assert str(path) in str(caught.value)
    assert "ensadv-data evaluate" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "got an empty file"),
        (b"\xff\xfe", "got bytes that are not UTF-8"),
        (b'{"epoch": 0, "source": "B"}\n{"epoch": 1, "sou', "line 2: expected JSON"),
        (b'{"step": 0}', "line 1: epoch: expected an integer from 0 up, got nothing"),
        (b'{"epoch": 0}', "line 1: source: expected a text, got nothing"),
        (b'{"epoch": 0, "sources": {"B": {"steps": 3}}}', r"line 1: sources\.B\.loss_clean: expected a number or null"),
    ],
)
def test_a_file_that_is_no_log_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        write_report(tmp_path / "out.html", title="t", logs=[path])
    assert str(path) in str(caught.value)
    assert "ensadv-data train" in str(caught.value)


def test_missing_files_and_wrong_quantities_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a result, got: No such file"):
        write_report(tmp_path / "out.html", title="t", results=[tmp_path / "none.json"])
    with pytest.raises(InputError, match=r"expected a log, got: Is a directory"):
        write_report(tmp_path / "out.html", title="t", logs=[tmp_path])
    with pytest.raises(QuantityError, match="epsilon: expected"):
        write_report(tmp_path / "out.html", title="t", epsilon=16)
    with pytest.raises(QuantityError, match="stage 'train': expected seconds"):
        write_report(tmp_path / "out.html", title="t", stages={"train": float("nan")})
    with pytest.raises(OutputError):
        write_report(tmp_path, title="t")


def test_attacks_of_a_source_that_shares_weights_are_no_black_box_s(tmp_path: Path) -> None:
    weak, strong = Rate(100, 1000), Rate(900, 1000)
    target = TargetResult(
        target="t",
        digest="ab" * 32,
        architecture="D",
        clean=Rate(10, 1000),
        white_box={"fgsm": Rate(500, 1000)},
        black_box={"stranger": {"fgsm": weak}, "ensemble": {"fgsm": strong}},
        any_black_box=weak,
        kin=("ensemble",),
    )
    result = tmp_path / "r.json"
    result.write_text(json.dumps(Transfer("d/test", 1000, 0.3, "s", {}, (target,)).to_json()))
    text = page_of(write_report(tmp_path / "out.html", title="t", results=[result])).text
    assert "The worst black-box error, 10.0% (fgsm from stranger), is below the white-box FGSM error, 50.0%" in text
    assert "90.0" in text  # it is in the matrix, and in no worst
    assert "fgsm from ensemble" not in text
    assert "Source ensemble shares weights with target t" in text


def test_the_page_names_every_radius_that_was_measured(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, epsilon in zip(paths, (0.3, 0.1), strict=True):
        path.write_text(json.dumps(GOOD | {"epsilon": epsilon}))
    for results, told in ((paths, "0.1, 0.3"), (paths[1:], "0.1"), ([], "0.3")):
        text = page_of(write_report(tmp_path / "out.html", title="t", results=results)).text
        assert f"Radius ε (L∞, pixels in [0, 1]) {told} " in text
