"""Our results on MNIST beside the paper's: collect them from the folder of a run, and write the page.

    python docs/results/build.py --collect mnist-paper     results and times of a run → docs/results/data
    python docs/results/build.py                           docs/results/data → docs/results/README.md
    python docs/results/build.py --measure COMMAND …       run a command; note its time and its peak of memory

The tables are computed from the files in data/ and from paper.json, which has the values that the paper prints. What
was not measured yet is a dash.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import queries
import study
import tables
from judging import table
from measured import Json, Results

from ensadv_data.inspection import compare_stores

HERE = Path(__file__).parent
# Evaluations of images that were changed first (Appendix C.1).
CHANGED = {
    "c1-rotated": "mnist+rotate=20,flip=0/test",
    "c1-rotated-flipped": "mnist+rotate=20,flip=5/test",
}
# Evaluations of fewer images: estimating a gradient shows the target two images a pixel.
FEWER = {"adaptive": 1000, "adaptive-transferred": 1000}


def collect(run: Path, into: Path) -> None:
    """Copy the results of a run and the seconds of its stages; what is there of other stages stays.

    Raises SystemExit where a result is not of the images that the page says, as many as it says.
    """
    into.mkdir(parents=True, exist_ok=True)
    found = {path.name: json.loads(path.read_text()) for path in sorted((run / "results").glob("*.json"))}
    for name, result in found.items():
        stage = name.removesuffix(".json")
        least = FEWER.get(stage, 10_000) if result["kind"] == "transfer" else 1000
        data = CHANGED.get(stage, "mnist/test")
        if result["data"] != data or result["n"] < least or result["epsilon"] != 0.3:
            raise SystemExit(
                f"{name}: expected {least} images of {data} at epsilon 0.3, got {result['n']} of {result['data']} "
                f"at epsilon {result['epsilon']}; nothing was collected"
            )
    for name, result in found.items():
        (into / name).write_text(json.dumps(thin(result), indent=1) + "\n")
    rounded = [run / "shards" / name for name in ("three-BCD", "stepped4-BCD-ce")]
    if all((store / "manifest.json").exists() for store in rounded):
        rows = {row.key.partition("/")[0]: asdict(row) for row in compare_stores(*rounded)}
        (into / "rounding-stores.json").write_text(json.dumps({"stores": rows}, indent=1) + "\n")
    about = into / "run.json"
    told: dict[str, Any] = json.loads(about.read_text()) if about.exists() else {"seconds": {}}
    for path in sorted((run / "state").glob("*.json")):
        state = json.loads(path.read_text())
        if "seconds" in state:
            told["seconds"][path.stem] = round(state["seconds"])
            told.setdefault("devices", {}).pop(path.stem, None)
            if "device" in state:
                told["devices"][path.stem] = state["device"]
    told["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    about.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")


def measure(command: Sequence[str], into: Path) -> None:
    """Run a command, and note its seconds and the most memory that it or a process of its took."""
    began = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = round(time.perf_counter() - began)
    peak = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    path = into / "run.json"
    about = json.loads(path.read_text())
    parts = (word.rpartition("=") for word in command)
    words = " ".join(f"{key}{equals}{Path(value).name if '/' in value else value}" for key, equals, value in parts)
    about.setdefault("commands", {})[words] = {"seconds": seconds, "peak MiB": peak}
    path.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")


def thin(result: Json) -> Json:
    """Without pictures and the points of curves and loss surfaces, which are the report's, and large."""
    result = {key: value for key, value in result.items() if key != "pictures"}
    if not (models := result.get("models")):
        return result
    return {**result, "models": {name: {**m, "surface": None, **_thin_cone(m)} for name, m in models.items()}}


def _thin_cone(model: Json) -> Json:
    cone = model.get("cone")
    if not cone:
        return {}
    radii = [{key: value for key, value in at.items() if key != "at_least"} for at in cone["epsilons"]]
    return {"cone": {**cone, "epsilons": radii}}


def page(results: Results, paper: Json) -> str:
    """The page."""
    seconds = results.run["seconds"]
    devices = results.run.get("devices", {})
    times = ((name, f"{value:,}", devices.get(name, "cpu")) for name, value in sorted(seconds.items()))
    commands = results.run.get("commands", {})
    text = (HERE / "template.md").read_text()
    parts = {
        "table6": tables.table6(results, paper),
        "cone": tables.cone(results),
        "table7": tables.table7(results, paper, "table7"),
        "table7_ce": tables.table7(results, paper, "table7-ce"),
        "table8": tables.table8(results, paper),
        "table8_ce": tables.table8(results, paper, ce=True),
        "claims": tables.claims(results),
        "input_dropout": tables.input_dropout(results),
        "draws": study.draws(results),
        "compared": study.compared(results),
        "both": study.both(results),
        "both_compared": study.both_compared(results),
        "steps": study.steps(results),
        "repeated": study.repeated(results),
        "rounded_stores": tables.rounded_stores(results),
        "rounding": tables.rounding(results),
        "rounded_figures": tables.rounded_figures(results, paper),
        "rounding_trained": tables.trained_on_rounded(results),
        "binarised": tables.binarised(results, paper),
        "turned": tables.turned_table(results),
        "adaptive": queries.adaptive(results),
        "estimated_less": queries.estimated_less(results),
        "missing": tables.missing(results),
        "machine": results.run["machine"],
        "times": table(("stage", "seconds", "on"), times),
        "commands": table(
            ("command", "seconds", "peak of memory, MiB"),
            ((f"`{words}`", str(m["seconds"]), f"{m['peak MiB']:,}") for words, m in commands.items()),
        ),
    }
    for name, part in parts.items():
        text = text.replace("{{" + name + "}}", part)
    return text


def main() -> None:
    """Collect, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", type=Path, help="the output folder of a run of the recipes")
    parser.add_argument("--measure", nargs=argparse.REMAINDER, help="a command to run, time and weigh")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, HERE / "data")
    if arguments.collect:
        collect(arguments.collect, HERE / "data")
    paper = json.loads((HERE / "paper.json").read_text())
    (HERE / "README.md").write_text(page(Results(HERE / "data"), paper))


if __name__ == "__main__":
    main()
