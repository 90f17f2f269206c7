"""The report in a real browser: columns sort by clicks and keys, nothing is fetched, and a phone can hold it."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensadv_data.evaluation.cone import Cone
from ensadv_data.report import write_report
from test_report import TARGETS, ensemble_log, write_result
from test_report_diagnoses import content, finding

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT = 30.0  # seconds for an answer; it comes in milliseconds, and a stuck browser fails the test

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium found")


class Browser:
    """Headless Chromium, driven by its DevTools protocol over two pipes: JSON messages, each ended by a zero byte."""

    def __init__(self, profile: Path) -> None:
        self.process = subprocess.Popen(
            [
                # The browser reads commands from descriptor 3 and writes to 4.
                *("sh", "-c", 'exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1', str(CHROMIUM)),
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
                *("--remote-debugging-pipe", "--disable-background-networking", f"--user-data-dir={profile}"),
                "about:blank",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self.number, self.rest, self.session = 0, b"", None
        self.events: list[dict[str, Any]] = []

    def attach(self) -> None:
        """Talk to the first tab from here on."""
        (tab, *_) = (tab for tab in self.ask("Target.getTargets")["targetInfos"] if tab["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=tab["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def close(self) -> None:
        """End the browser and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {} if self.session is None else {"sessionId": self.session}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        answer = self.wait(lambda message: message.get("id") == self.number)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def wait(self, is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next message that is wanted; others are kept as events."""
        assert self.process.stdout is not None
        end = time.monotonic() + WAIT
        while True:
            head, zero, tail = self.rest.partition(b"\0")
            if zero:
                self.rest = tail
                message = json.loads(head)
                if is_wanted(message):
                    return dict(message)
                self.events.append(message)
                continue
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"expected an answer of the browser in {WAIT:g} s"
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                raise EOFError("expected an answer of the browser, got its end")
            self.rest += piece

    def happened(self, method: str) -> list[dict[str, Any]]:
        """The events of a kind since the page was opened."""
        return [event for event in self.events if event.get("method") == method]

    def open(self, path: Path, *, width: int = 1280, dark: bool = False, script: bool = True) -> None:
        """Show a page in a window of ``width`` CSS pixels; below 500 as a phone does."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Emulation.setScriptExecutionDisabled", value=not script)
        self.events.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        if not self.happened("Page.loadEventFired"):
            self.events.append(self.wait(lambda message: message.get("method") == "Page.loadEventFired"))

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, element: str) -> None:
        """Press and release the mouse over the middle of an element, given as a JavaScript expression."""
        place = self.value(
            f"""(() => {{ const element = {element}; element.scrollIntoView({{block: "center", inline: "center"}});
            const box = element.getBoundingClientRect();
            return {{x: box.x + box.width / 2, y: box.y + box.height / 2}}; }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def press(self, key: str, **more: Any) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, **more)


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
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        try:
            browser.attach()
        except (EOFError, BrokenPipeError):
            pytest.skip(f"{CHROMIUM} does not start")
        yield browser
    finally:
        browser.close()


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
