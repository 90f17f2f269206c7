"""Whether `plan` tells the truth: a recipe of photographs under a network of timm, planned, and then run.

    python benchmarks/planned.py [--network inception_v3] [--size 96] [--photographs 1200] [--least 240] [--json FILE]

The photographs are cut by tests/photographs.py into a folder that is deleted. A store of views is made of the network,
which is not trained: of so many draws that by the plan it takes --least seconds on all cores; then the network is
trained on it for an epoch. *planned* is what the plan said before, *real* what the run took; bytes have the least and
the most that were planned. Wants a machine that has nothing else to do.
"""

from __future__ import annotations

import math
import os
import runpy
import tempfile
from pathlib import Path

from figures import arguments_of, report

from ensadv_data.dist import available_cores
from ensadv_data.memory import keep_freed_memory
from ensadv_data.pipeline import run_recipe
from ensadv_data.planning import plan_recipe
from ensadv_data.recipe import Recipe, read_recipe

PHOTOGRAPHS = runpy.run_path(str(Path(__file__).parent.parent / "tests" / "photographs.py"))
CLASSES = len(PHOTOGRAPHS["SAMPLES"])
RECIPE = """
name = "planned"
[data]
data = "folder:{photographs}"
data_dir = "{index}"
preprocess = "size={size}"
[precompute.store.models]
static = "timm:{network},classes={classes}"
[precompute.store]
attacks = ["step-ll"]
augment = "random-resized-crop,flip"
draws = {draws}
batch_size = 16
[train.trained]
architecture = "timm:{network}"
online = "step-ll"
shards = ["store"]
batches = "replace"
batch_size = 16
epochs = 1
epsilon = "16/255"
"""


def recipe_of(folder: Path, draws: int, **fields: object) -> Recipe:
    """The recipe, with so many draws."""
    path = folder / "planned.toml"
    about = {"photographs": folder / "photographs", "index": folder / "index", "classes": CLASSES}
    path.write_text(RECIPE.format(draws=draws, **about, **fields), encoding="utf-8")
    return read_recipe(path)


def main() -> None:
    """Plan, run, print, and write what was asked for."""
    arguments = arguments_of(
        __doc__,
        network={"default": "inception_v3"},
        size={"type": int, "default": 96, "help": "side of the images"},
        photographs={"type": int, "default": 1200},
        least={"type": float, "default": 240, "help": "seconds that the store is planned to take"},
    )
    os.environ["ENSADV_QUIET"] = "1"
    keep_freed_memory()  # as the commands do
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        each = -(-arguments.photographs // CLASSES)
        PHOTOGRAPHS["cut_photographs"](folder / "photographs", side=arguments.size, train=each, test=1)
        fields = {"network": arguments.network, "size": arguments.size}
        first = plan_recipe(recipe_of(folder, 1, **fields), folder / "out", until="store").to_json()
        draws = max(1, math.ceil(arguments.least / first["stages"][0]["seconds"]))
        recipe = recipe_of(folder, draws, **fields)
        plan = plan_recipe(recipe, folder / "out").to_json()
        print(f"planned: {plan['totals']['seconds']:.0f} s, {draws} draws", flush=True)
        runs = {run.stage.name: run for run in run_recipe(recipe, folder / "out", say=print)}
        stages = {}
        for stage in plan["stages"]:
            run = runs[stage["name"]]
            path = folder / "out" / run.stage.output
            files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
            stages[stage["name"]] = {
                "kind": stage["kind"],
                "seconds": {"planned": stage["seconds"], "real": round(run.seconds, 3)},
                "planned_over_real": round(stage["seconds"] / run.seconds, 3),
                "objects": {"planned": stage["objects"], "real": len(files)},
                "bytes": {
                    "planned": stage["bytes"],
                    "about": stage["about_bytes"],
                    "real": sum(file.stat().st_size for file in files),
                },
            }
    loads.append(os.getloadavg()[0])
    real = sum(run.seconds for run in runs.values())
    told = {
        "network": arguments.network,
        "size": arguments.size,
        "photographs": each * CLASSES,
        "draws": draws,
        "workers": available_cores(),
        "load": [round(load, 1) for load in loads],
        "took": {"planned": plan["totals"]["seconds"], "real": round(real, 3)},
        "planned_over_real": round(plan["totals"]["seconds"] / real, 3),
        "stages": stages,
    }
    report(arguments, told)


if __name__ == "__main__":
    main()
