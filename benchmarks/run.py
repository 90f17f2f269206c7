"""All measurements of this folder, one after the other, and the page that shows them: what ``make bench`` runs.

    python benchmarks/run.py [--only step,size] [--page]

JSON goes to benchmarks/results, the page to docs/performance.md. --page writes the page alone, from what is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import page

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
PAGE = FOLDER.parent / "docs" / "performance.md"

COMMANDS = {
    "step": "step.py --figure docs/step.svg",
    "online": "online.py --rounds 7",
    "sources": "sources.py --architecture D",
    "apply": "apply.py",
    "rows-98": "store.py --rows 60000 --width 98 --rounds 7",
    "rows-33500": "store.py --rows 20000 --width 33500 --batches 20 --rounds 7",
    "precompute": "precompute.py --architecture A,B,C,D --rounds 7",
    "size": "size.py",
    "signs": "signs.py --epochs 60",
    "growth": "growth.py --examples 10000,100000,1000000",
    "memory": "memory.py --architecture C",
}
LONGER = {  # by hand
    "cold": "cold.py",
    "compiled": "compiled.py --rounds 7",
    "decode": "decode.py",
    "directions": "directions.py",
    "growth-10M": "growth.py --examples 1000000,10000000",
    "growth-wide": "growth.py --examples 20000,80000 --images photographs --steps 100",
    "planned": "planned.py",
    "pull": "pull.py --rounds 9",
    "tasks": "tasks.py",
    "schedule": "schedule.py",
    "gpu": "gpu.py",
}


def main() -> None:
    """Stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"some of: {', '.join({**COMMANDS, **LONGER})}")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    chosen = [] if arguments.page else arguments.only.split(",") if arguments.only else list(COMMANDS)
    RESULTS.mkdir(exist_ok=True)
    for name in chosen:
        script, *words = (COMMANDS | LONGER)[name].split()
        print(f"== {script} {' '.join(words)}", flush=True)
        began, out = time.perf_counter(), RESULTS / f"{name}.json"
        subprocess.run(
            [sys.executable, str(FOLDER / script), *words, "--json", str(out)], check=True, cwd=FOLDER.parent
        )
        found = json.loads(out.read_text(encoding="utf-8"))
        found["seconds"] = round(time.perf_counter() - began)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page.build(RESULTS, COMMANDS, LONGER), encoding="utf-8")
    print(f"page: {PAGE}")


if __name__ == "__main__":
    main()
