"""All measurements of this folder, one after the other: what ``make bench`` runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
OUT = FOLDER.parent / "runs" / "bench"

COMMANDS = [
    ["step.py", "--architecture", "C", "--json", str(OUT / "step-C.json"), "--figure", str(OUT / "step-C.svg")],
    ["step.py", "--architecture", "D", "--repeats", "40", "--json", str(OUT / "step-D.json")],
    ["apply.py", "--json", str(OUT / "apply.json")],
    ["precompute.py", "--architecture", "D", "--json", str(OUT / "precompute-D.json")],
    ["memory.py", "--architecture", "C", "--json", str(OUT / "memory-C.json")],
]


def main() -> None:
    """Stop at the first that fails."""
    OUT.mkdir(parents=True, exist_ok=True)
    for command in COMMANDS:
        print(f"== {' '.join(command)}", flush=True)
        subprocess.run([sys.executable, str(FOLDER / command[0]), *command[1:]], check=True)
    print(f"results: {OUT}")


if __name__ == "__main__":
    main()
