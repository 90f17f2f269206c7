"""The page of a store: offline, accessible, and with the figures that were measured."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from ensadv_data.__main__ import main
from ensadv_data.codec import unpack_signs
from ensadv_data.errors import AlignmentError
from ensadv_data.inspection import describe_store, measure_agreement
from ensadv_data.report import write_store_page
from ensadv_data.report.charts import draw_agreement, draw_directions
from ensadv_data.store import open_store
from test_report import Page, page_of
from test_store import make_images, make_store

pytestmark = pytest.mark.usefixtures("without_fsync")

KEYS = ("m/fgsm", "B*/r-fgsm", "n/pgd")


@pytest.fixture(scope="module")
def store(tmp_path_factory, without_fsync) -> Path:
    make_store(tmp_path_factory.mktemp("page") / "shards", make_images(45), KEYS, draws=2, zeros=True)
    return next(tmp_path_factory.getbasetemp().glob("page*/shards"))


def written(store: Path, out: Path, **options: object) -> Page:
    summary, agreement = describe_store(store), measure_agreement(store)
    write_store_page(out, open_store(store), summary, agreement, **options)
    return page_of(out)


def cells(html: str, table: int) -> list[list[str]]:
    """Texts of the body of a table."""
    body = re.findall(r"<tbody>(.*?)</tbody>", html, re.DOTALL)[table]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [
        [re.sub("<[^>]*>", " ", cell).strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows
    ]


def zeros(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}%"


def gray(uri: str, side: tuple[int, int]) -> np.ndarray:
    """A grey PNG without filters."""
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    start = data.index(b"IDAT")
    size = int.from_bytes(data[start - 4 : start])
    lines = np.frombuffer(zlib.decompress(data[start + 4 : start + 4 + size]), np.uint8)
    return lines.reshape(side[0], 1 + side[1])[:, 1:]


def test_tables_have_the_figures(store, tmp_path):
    page = written(store, tmp_path / "page.html")
    html, found, summary = (tmp_path / "page.html").read_text(), measure_agreement(store), describe_store(store)
    assert [row[:5] for row in cells(html, 0)] == [
        [f"{row.source} {row.architecture}", row.attack, row.kind, row.epsilon, zeros(row.zeros)]
        for row in summary.entries
    ]
    assert cells(html, 1) == [
        [f"{key} {number + 1}", f"{100 * found.zeros[number]:.2f}%"]
        + [f"{100 * share:.1f}%" for share in found.shares[number]]
        for number, key in enumerate(KEYS)
    ]
    for text in (summary.digest, summary.data_digest, "45 of tiny/train", "Estimated from 12 of 45 images"):
        assert text in page.text


def test_it_is_one_file_that_fetches_nothing_and_can_be_read_aloud(store, tmp_path):
    page = written(store, tmp_path / "page.html")
    for tag, attributes in page.tags:
        assert not any(name in attributes for name in ("href", "onclick", "onerror"))
        assert (attributes.get("src") or "data:image/png;").startswith("data:image/png;")
        assert tag != "img" or attributes["alt"]
        assert tag != "svg" or attributes["aria-label"]
    heads = [attributes for tag, attributes in page.tags if tag == "th"]
    assert all(attributes["scope"] in ("col", "row") for attributes in heads)
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert ("html", {"lang": "en"}) in page.tags
    assert str(store) not in (tmp_path / "page.html").read_text(), "a path of this machine"


def test_equal_input_gives_equal_bytes(store, tmp_path):
    for name in ("one", "two"):
        written(store, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_directions_are_black_grey_and_white(store):
    opened, rows = open_store(store), np.arange(6)
    drawn = draw_directions(opened)
    assert [picture["name"] for picture in drawn["strips"]] == list(KEYS)
    for picture in drawn["strips"]:
        planes = opened.gather(opened.entry(picture["name"]), np.zeros(6, np.int64), rows)
        if planes.delta is None:
            levels = np.array([0, 128, 255])[unpack_signs(planes.direction, planes.nonzero, d=20) + 1]
        else:
            levels = np.rint(127.5 + 127.5 * planes.delta / 127)
        for image, level in zip(picture["images"], levels.reshape(6, 4, 5), strict=True):
            pixels = gray(image["uri"], (12, 15))[::3, ::3].astype(int)
            assert np.abs(pixels - level).max() <= 1


def test_with_the_images_it_shows_them_before_and_after(store, tmp_path):
    page = written(store, tmp_path / "page.html", data=make_images(45))
    assert "What the perturbations look like" in page.text
    assert any((a.get("alt") or "").startswith("adversarial, B*/r-fgsm, class") for _, a in page.tags)
    with pytest.raises(AlignmentError):
        written(store, tmp_path / "other.html", data=make_images(45, seed=1))
    assert not (tmp_path / "other.html").exists()


def test_a_picture_of_many_entries_has_no_room_for_figures(tmp_path):
    keys = tuple(f"m{number}/r-fgsm" for number in range(13))
    make_store(tmp_path / "s", make_images(16), keys)
    few, many = tmp_path / "few", measure_agreement(tmp_path / "s")
    make_store(few, make_images(16), keys[:2])
    label = f"{100 * measure_agreement(few).shares[0][1]:.0f}</text>"
    assert label in draw_agreement(measure_agreement(few), salt="x")
    drawn = draw_agreement(many, salt="x")
    assert drawn.count("</text>") == 26, "the numbers of the axes alone"
    assert drawn.count("<path") >= 13 * 12


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--against", "S", "--html", "x.html"], 2, "--against compares two stores"),
        (["--data", "mnist-mini"], 2, "--data is for the pictures of --html FILE"),
        (["--html", "S/manifest.json/x.html"], 3, "cannot write"),
        (["--html", "x.html", "--data", "mnist-mini"], 3, "expected directions for images of shape"),
    ],
)
def test_what_makes_no_sense_is_refused(store, words, code, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["inspect", str(store), *(re.sub("^S", str(store), word) for word in words)])
    assert end.value.code == code
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_json_stays_json_beside_a_page(store, tmp_path, capsys):
    main(["inspect", str(store), "--json", "--html", str(tmp_path / "page.html")])
    told = capsys.readouterr()
    assert json.loads(told.out)["agreement"]["n"] == 45
    assert told.err == f"page: {tmp_path / 'page.html'}\n"
    assert page_of(tmp_path / "page.html").text
