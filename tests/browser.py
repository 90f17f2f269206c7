"""A real browser for the tests, and the check of a report's accessibility that runs in it.

    python tests/browser.py AXE_MIN_JS REPORT …     findings of axe-core on reports; exit code 1 where one is serious

axe-core comes from the npm registry, as CONTRIBUTING.md says.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT = 60.0  # seconds for an answer; it comes in milliseconds, and a stuck browser fails the test
SERIOUS = ("serious", "critical")  # of axe-core's impacts


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
        """The value of a JavaScript expression in the page; of a promise, what it promises."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
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


@contextmanager
def browser_at(profile: Path) -> Iterator[Browser]:
    """A browser with a tab; raises EOFError or BrokenPipeError where it does not start."""
    browser = Browser(profile)
    try:
        browser.attach()
        yield browser
    finally:
        browser.close()


def accessibility(browser: Browser, axe: Path, report: Path) -> list[dict[str, Any]]:
    """What axe-core finds on a report: on a screen and on a phone, light and dark; rule, impact, elements."""
    found = []
    for width, dark in product((1280, 390), (False, True)):
        browser.open(report, width=width, dark=dark)
        browser.value(axe.read_text() + "; 0")
        told = browser.value(
            """axe.run(document).then((all) => ({passes: all.passes.length, violations: all.violations.map(
            (rule) => ({rule: rule.id, impact: rule.impact, nodes: rule.nodes.map((node) => node.html)}))}))"""
        )
        assert told["passes"] > 10, f"expected axe-core to look at the page, it passed {told['passes']} rules"
        found += [{**violation, "width": width, "dark": dark} for violation in told["violations"]]
    return found


def main() -> int:
    """Check reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axe", type=Path, help="axe.min.js of axe-core")
    parser.add_argument("reports", type=Path, nargs="+", help="HTML files")
    given = parser.parse_args()
    axe, reports = given.axe, given.reports
    if CHROMIUM is None:
        parser.error("expected chromium or google-chrome to be installed, found neither")
    worst = 0
    with tempfile.TemporaryDirectory() as profile, browser_at(Path(profile)) as browser:
        for report in reports:
            found = accessibility(browser, axe, report)
            serious = sum(violation["impact"] in SERIOUS for violation in found)
            print(f"{report}: {report.stat().st_size:,} bytes, {len(found)} findings, {serious} of them serious")
            for violation in found:
                print(f"  {json.dumps(violation)[:300]}")
            worst |= serious > 0
    return worst


if __name__ == "__main__":
    sys.exit(main())
