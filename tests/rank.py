"""What one process of a group does in tests/integration/test_ranks.py: torchrun starts it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ensadv_data.data import open_dataset
from ensadv_data.dist import any_of_all, check_same, most_of_all, process_group, sum_of_all, wait_for_all
from ensadv_data.errors import InputError
from ensadv_data.spec import TrainSpec, checked
from ensadv_data.training import TrainingRun

LIMIT, STEPS = 2000, 200


def trained(folder: Path, **fields: Any) -> list[dict[str, Any]]:
    """Steps of a small network without dropout over the three sources of a store and itself."""
    data = open_dataset("mnist-mini", "train", limit=LIMIT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(1, 8, 5, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 144, 10))
    about = {"architecture": "C", "shards": [str(folder / "store")], "online": "step-ll", "epochs": 20}
    spec = checked(TrainSpec, about | {"epsilon": "normal:0.1,0.3"} | fields, where="rank")
    run, lines = TrainingRun(spec, data, folder / "m.safetensors", module=module), []
    for number in range(STEPS):
        batch = run.prepare(number)
        line = run.meter.averaged(run.step(number, batch))
        plan = batch.plan
        losses = {name: float(line[name]) for name in ("loss_clean", "loss_adversarial")}
        drawn = {name: getattr(plan, name).tolist() for name in ("indices", "epsilon", "draws", "sources")}
        lines.append({"source": line["source"], "mean_epsilon": line["epsilon"], **losses, **drawn})
    return lines


def agreed(rank: int, ranks: int) -> dict[str, Any]:
    """What the ranks say to each other."""
    device = torch.device("cpu")
    check_same(7, what="seven", device=device)
    found: dict[str, Any] = {
        "sum": sum_of_all(torch.tensor([1.0, rank])).tolist(),
        "most": most_of_all(torch.tensor([rank, -rank])).tolist(),
        "any": [any_of_all(rank == 1, device=device), any_of_all(False, device=device)],
    }
    wait_for_all()
    try:
        check_same(rank, what="the rank", device=device)
    except InputError as error:
        found["refused"] = str(error)
    return found


def main() -> None:
    """``rank.py FOLDER``: what this rank found goes to FOLDER/RANKS-RANK.json."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    with process_group("cpu") as place:
        found = {
            "agreed": agreed(place.rank, place.world_size),
            "pair": trained(folder),
            "replace": trained(folder, batches="replace", optimizer="rmsprop", source_per="example", accumulate=2),
        }
        (folder / f"{place.world_size}-{place.rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
