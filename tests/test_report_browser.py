"""The report in a real browser: columns sort by clicks and keys, nothing is fetched, and a phone can hold it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from browser import CHROMIUM, Browser, accessibility, browser_at
from ensadv_data.evaluation.cone import Cone
from ensadv_data.report import write_report
from test_report import TARGETS, ensemble_log, write_result
from test_report_diagnoses import content, finding

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium found")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    found = folder / "found.json"
    directions = np.array([0, 3, 100, 100])
    cone = Cone(
        points=4,
        skipped=0,
        orders=(1, 4, 16, 36, 64, 100),
        clipped=True,
        found={0.3: directions},
        whole={0.3: directions},
    )
    found.write_text(json.dumps(content(wide=finding("random") | {"cone": cone.to_json()})))
    return write_report(
        folder / "report.html",
        title="Seen by a browser",
        results=[write_result(folder / "transfer.json"), found],
        logs=[ensemble_log(folder / "ensemble.jsonl")],
        stages={"train": 754.0},
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    try:
        with browser_at(tmp_path_factory.mktemp("profile")) as browser:
            yield browser
    except (EOFError, BrokenPipeError):
        pytest.skip(f"{CHROMIUM} does not start")


def head(table: int, name: str) -> str:
    """The button of a column, as JavaScript."""
    heads = f"""[...document.querySelectorAll("table.sortable")[{table}].querySelectorAll("thead button")]"""
    return f"{heads}.find((button) => button.textContent === {json.dumps(name)})"


def rows(browser: Browser, table: int) -> list[str]:
    """The headings of a table's rows, from top to bottom of the screen."""
    found = browser.value(
        f"""[...document.querySelectorAll("table.sortable")[{table}].querySelectorAll("tbody th")]
        .sort((one, two) => one.getBoundingClientRect().top - two.getBoundingClientRect().top)
        .map((cell) => [...cell.childNodes].map((node) => node.textContent).join(" "))"""
    )
    return [str(text) for text in found]


def sorted_columns(browser: Browser, table: int) -> list[list[str]]:
    """Headings and directions of the columns that a table says it is sorted by."""
    found = browser.value(
        f"""[...document.querySelectorAll("table.sortable")[{table}].querySelectorAll("[aria-sort]")]
        .map((head) => [head.textContent, head.getAttribute("aria-sort")])"""
    )
    return [list(map(str, pair)) for pair in found]


def names(browser: Browser) -> list[str]:
    return [text.split()[0] for text in rows(browser, 0)]


def test_a_click_sorts_a_column_by_its_numbers(browser: Browser, report: Path) -> None:
    browser.open(report)
    assert names(browser) == [target.target for target in TARGETS] == ["masked", "close", "plain"]
    browser.click(head(0, "worst"))
    assert names(browser) == ["close", "plain", "masked"]
    assert sorted_columns(browser, 0) == [["worst", "ascending"]]
    browser.click(head(0, "worst"))
    assert names(browser) == ["masked", "plain", "close"]
    assert sorted_columns(browser, 0) == [["worst", "descending"]]
    browser.click(head(0, "Target"))
    assert names(browser) == ["close", "masked", "plain"]
    assert sorted_columns(browser, 0) == [["Target", "ascending"]]


def test_what_has_no_number_stays_last_and_equal_rows_stay_as_they_were(browser: Browser, report: Path) -> None:
    browser.open(report)
    made = ["B fgsm", "B i-fgsm", "D fgsm", "D i-fgsm"]
    assert rows(browser, 1) == made
    browser.click(head(1, "plain"))
    assert rows(browser, 1) == made
    browser.click(head(1, "plain"))
    assert rows(browser, 1) == ["B i-fgsm", "B fgsm", "D fgsm", "D i-fgsm"]
    browser.click(head(1, "close"))
    assert rows(browser, 1) == ["D i-fgsm", "D fgsm", "B i-fgsm", "B fgsm"]
    browser.click(head(1, "Source and attack"))
    assert rows(browser, 1) == ["B i-fgsm", "B fgsm", "D i-fgsm", "D fgsm"]


def test_a_column_is_sorted_by_the_keyboard_too(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.value(f"{head(0, 'r-fgsm')}.focus()")
    browser.press("Tab", windowsVirtualKeyCode=9)
    assert browser.value("document.activeElement.textContent") == "worst"
    browser.press("Enter", windowsVirtualKeyCode=13, text="\r")
    assert names(browser) == ["close", "plain", "masked"]
    assert browser.value("document.activeElement.textContent") == "worst"


def test_nothing_is_fetched_and_nothing_goes_wrong(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.click(head(0, "mean"))
    asked = [event["params"]["request"]["url"] for event in browser.happened("Network.requestWillBeSent")]
    assert asked[0] == report.resolve().as_uri()
    assert all(url.startswith("data:image/png;base64,") for url in asked[1:])
    assert not browser.happened("Log.entryAdded")
    assert not browser.happened("Runtime.exceptionThrown")


def test_no_other_script_runs(browser: Browser, report: Path) -> None:
    browser.open(report)
    browser.value(
        """{ const script = document.createElement("script"); script.textContent = "window.ran = true";
        document.body.append(script); }"""
    )
    assert browser.value("window.ran === undefined")


def test_without_script_the_page_says_the_same(browser: Browser, report: Path) -> None:
    browser.open(report)
    words = browser.value("document.body.innerText")
    assert browser.value('document.querySelectorAll("thead button").length') > 10
    browser.open(report, script=False)
    assert browser.value('document.querySelectorAll("button").length') == 0
    assert browser.value("document.body.innerText") == words


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_page_is_as_wide_as_the_window(browser: Browser, report: Path, width: int) -> None:
    browser.open(report, width=width)
    assert browser.value("innerWidth") == width
    assert browser.value("document.documentElement.scrollWidth === document.documentElement.clientWidth")


def test_colours_follow_the_reader_s(browser: Browser, report: Path) -> None:
    grounds = []
    for dark in (False, True):
        browser.open(report, dark=dark)
        grounds.append(browser.value("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(21, 24, 28)"]


@pytest.mark.skipif("AXE_CORE" not in os.environ, reason="AXE_CORE does not name axe.min.js (CONTRIBUTING.md)")
def test_axe_core_finds_nothing_serious(browser: Browser, report: Path, tmp_path: Path) -> None:
    axe = Path(os.environ["AXE_CORE"])
    assert accessibility(browser, axe, report) == []
    broken = tmp_path / "broken.html"
    broken.write_text(report.read_text().replace(' lang="en"', "", 1))
    assert {violation["rule"] for violation in accessibility(browser, axe, broken)} == {"html-has-lang"}
