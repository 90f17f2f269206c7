"""Diagnoses on the page: every figure, pictures that are the surface, and files that are none."""

from __future__ import annotations

import base64
import copy
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensadv_data.errors import InputError
from ensadv_data.evaluation.cone import Cone
from ensadv_data.evaluation.discrepancy import measure_discrepancy
from ensadv_data.evaluation.flips import Flips
from ensadv_data.evaluation.masking import Masking, Rounding
from ensadv_data.evaluation.surface import Surface
from ensadv_data.report import write_report
from ensadv_data.report.charts import picture_of

HOSTILE = "R&D <script>alert(1)</script> {{ 7*7 }}"


def finding(name: str, *, points: int = 4) -> dict[str, Any]:
    found = np.array([0, 1, 4, 4])[:points]
    axis = np.linspace(-0.3, 0.3, 3)
    return {
        "digest": "ab" * 32,
        "architecture": "D",
        "masking": Masking(
            n=40,
            single="fgsm",
            iterative="pgd",
            ratio=0.1634,
            ratio_of_means=0.1542,
            ratio_to_best=0.1511,
            ratio_excluded=0,
            above_one=2,
            loss_clean=0.0721,
            loss_single=0.963,
            loss_iterative=6.24,
            cosine=0.572,
            cosine_excluded=0,
            gradient_norm=0.227,
            ratio_to_best_stderr=0.0102,
        ).to_json(),
        "rounding": Rounding(
            images=40,
            values=31360,
            zeros=0.1926,
            wrong_ce=0.0337,
            wrong_margin=0.0,
            lost_ce=0.0125,
            lost_margin=0.0,
            saturated=0.25,
        ).to_json(),
        "flips": Flips(images=40, fgsm=0.7134, step_ll=None, same_label=0.95).to_json(),
        "cone": Cone(
            points=points, skipped=3, orders=(1, 4), clipped=True, found={0.3: found}, whole={0.3: found // 4 * 4}
        ).to_json(),
        "surface": [
            Surface(7, 3, name, 0.0, axis, np.arange(9.0).reshape(3, 3)).to_json(),
        ],
    }


def content(**models: dict[str, Any]) -> dict[str, Any]:
    answers = {"a": np.array([0, 1]), "b": np.array([1, 1])}
    other = {"a": np.array([0, 1]), "b": np.array([0, 1])}
    return {
        "kind": "diagnosis",
        "version": 1,
        "data": "digits/test",
        "n": 40,
        "epsilon": 0.3,
        "loss": "margin",
        "models": models or {"masked": finding("random"), "other": finding("random")},
        "discrepancy": {"future": measure_discrepancy({"s": answers}, other, np.array([0, 1])).to_json()},
    }


def report(folder: Path, what: dict[str, Any]) -> str:
    (folder / "found.json").write_text(json.dumps(what))
    out = write_report(folder / "out.html", title="t", results=[folder / "found.json"])
    return out.read_text(encoding="utf-8")


def test_the_page_has_every_figure(tmp_path):
    html = report(tmp_path, content())
    for figure in ("16.3%", "15.4%", "15.1%", "0.0721", "0.963", "6.24", "0.572", "0.227"):
        assert figure in html
    assert "15.1%<small>± 2.0</small>" in html
    earlier = finding("random")
    del earlier["masking"]["ratio_to_best_stderr"]  # as it was written before there was one
    assert "± 2.0" not in report(tmp_path, content(earlier=earlier))
    for figure in ("3.37%", "1.25%", "25%", "19.3%", "71.3%", "95.0%"):
        assert figure in html
    assert html.count("<svg") == 2
    assert "<b>50.0</b>" in html  # two of four points: all 4 of order 4
    assert "image 7, class 3, ±0.3" in html
    assert "loss 0 to 8" in html
    assert '<td data-value="0.5">50.0%</td>' in html  # the discrepancy
    assert "No evaluation was given" not in html
    assert "digits/test" in html
    assert html.count("<script") == 1
    assert "https://" not in html
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_it_stands_beside_an_evaluation_and_is_the_same_each_time(tmp_path):
    assert report(tmp_path, content()) == report(tmp_path, content())


def test_only_what_was_measured_has_a_section(tmp_path):
    bare = {"digest": "ab" * 32, "architecture": "D"}
    html = report(tmp_path, {**content(bare=bare), "discrepancy": {}})
    for heading in (
        "One step against many",
        "What float32 takes away",
        "Directions of flipped images",
        "Adversarial cone",
        "Loss around",
        "Discrepancy",
    ):
        assert heading not in html
    nothing = finding("random")
    nothing["masking"] |= {"ratio": None, "ratio_of_means": None, "ratio_to_best": None, "cosine": None}
    nothing["cone"] = finding("random", points=0)["cone"]
    html = report(tmp_path, content(nothing=nothing))
    assert "No correctly classified image among 3" in html
    assert html.count("–</span>") >= 4


def test_names_are_text(tmp_path):
    html = report(tmp_path, content(**{HOSTILE: finding(HOSTILE)}))
    assert html.count("<script") == 1
    assert html.count("R&amp;D &lt;script&gt;") >= 4
    assert "{{ 7*7 }}" in html


def test_a_picture_is_dark_where_the_loss_is_low_and_upwards_along_the_gradient():
    picture = picture_of(np.array([[0.0, 1.0], [2.0, 4.0]]))
    data = base64.b64decode(picture["uri"].partition(",")[2])
    width, height = struct.unpack(">2I", data[16:24])
    assert (width, height) == (picture["width"], picture["height"]) == (10, 10)
    start = data.index(b"IDAT") + 4
    raw = np.frombuffer(zlib.decompress(data[start:]), np.uint8).reshape(10, 31)[:, 1:].reshape(10, 10, 3)
    light = raw.astype(int).sum(axis=2)
    assert light[9, 0] < light[9, 9] < light[0, 0] < light[0, 9]
    flat = picture_of(np.ones((3, 3)))
    assert flat["width"] == 15


def broken(*keys: Any, value: Any) -> dict[str, Any]:
    what = copy.deepcopy(content())
    place = what
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return what


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (broken("kind", value="other"), "kind: expected 'transfer' or 'diagnosis', got 'other'"),
        (broken("version", value=2), "version: expected version 1, got 2"),
        (broken("models", value={}), "models: expected at least one model"),
        (broken("models", "other", "masking", "ratio", value="x"), "models.other.masking.ratio: expected a number"),
        (broken("models", "other", "rounding", "zeros", value=1.5), "expected a number in [0, 1], got 1.5"),
        (broken("models", "other", "surface", value=3), "models.other.surface: expected a list"),
        (broken("models", "other", "surface", 0, "loss", value=[[1.0]]), "loss: expected 3 rows of 3 losses"),
        (broken("models", "other", "cone", "epsilons", 0, "at_least", value=["a"]), "at_least.0: expected a number"),
        (broken("models", "other", "digest", value=None), "digest: expected a text, got nothing"),
        (broken("discrepancy", "future", "discrepancy", value=-1), "discrepancy: expected a number in [0, 1]"),
    ],
)
def test_a_file_that_is_no_diagnosis_is_refused(tmp_path, what, words):
    with pytest.raises(InputError) as caught:
        report(tmp_path, what)
    assert words in str(caught.value)
    assert "ensadv-data diagnose" in str(caught.value)


def test_a_gradient_that_is_zero_is_told(tmp_path):
    blind = finding("random")
    blind["masking"] |= {"ratio": None, "ratio_of_means": None, "ratio_to_best": None, "blind": 40}
    html = report(tmp_path, content(blind=blind))
    assert "<b>Note.</b> The gradient of blind is zero on 40 of 40 images, also where pgd ended" in html
    assert "<b>Note.</b>" not in report(tmp_path, content())
    del blind["masking"]["blind"]  # as earlier versions wrote it
    assert "<b>Note.</b>" not in report(tmp_path, content(blind=blind))
