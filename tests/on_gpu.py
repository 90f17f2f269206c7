"""Every command on a GPU, beside the same on the CPU; it ends with 1 where something is not as it should be.

    python tests/on_gpu.py [--device cuda] [--nets C,D] [--limit 2000]

A net with convolutions and max-pools (C) and one without (D): trained, precomputed twice and by a worker that has the
GPU to itself, verified, evaluated and diagnosed; a training that was stopped and goes on, one by torchrun and NCCL; and
a batch that the GPU's memory does not hold. docs/reliability.md has what it prints. With --device cpu it tests itself.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from ensadv_data.data import open_data
from ensadv_data.dist import check_device, device_name
from ensadv_data.errors import InputError
from ensadv_data.evaluation.diagnosis import diagnose
from ensadv_data.evaluation.run import evaluate
from ensadv_data.inspection import compare_stores
from ensadv_data.manifest import read_manifest
from ensadv_data.models import load_model
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import DataSpec, DiagnoseSpec, EvaluateSpec, PrecomputeSpec, TrainSpec, checked
from ensadv_data.training import train

MEMORY = 2**28  # bytes of the GPU's memory that are left to a batch that is too large


class Checks:
    """What was found, as it is found."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.began = time.perf_counter()

    def tell(self, what: str, value: object, *, good: bool = True) -> None:
        """A line; ``good`` says whether it is as it should be."""
        seconds = time.perf_counter() - self.began
        print(f"{seconds:6.1f} s  {what:<66} {value}{'' if good else '   NOT AS IT SHOULD BE'}", flush=True)
        if not good:
            self.failed.append(what)


def trained(folder: Path, net: str, data: DataSpec, device: str, **fields: object) -> Path:
    """Weights of a net, trained on the device."""
    out = folder / f"{net}-{'-'.join(map(str, fields.values()))}.safetensors".replace("/", "_")
    about = {"architecture": net, "seed": 1, "online": "fgsm", "device": device, **fields}
    train(checked(TrainSpec, about, where="on_gpu"), open_data(data, "train"), out)
    return out


def stores(checks: Checks, folder: Path, models: dict[str, str], data: DataSpec, device: str) -> None:
    """Precompute here and there."""
    gpu = device != "cpu"

    def made(name: str, on: str, **how: object) -> Path:
        about = {"models": models, "attacks": ["fgsm", "r-fgsm:alpha=0.1", "pgd:steps=10"], "draws": 2, "device": on}
        spec = checked(
            PrecomputeSpec, about | {k: how.pop(k) for k in ("precision", "batch_size") if k in how}, where="on_gpu"
        )
        began = time.perf_counter()
        precompute_store(spec, data, folder / name, **({"workers": 0} | how))
        checks.tell(f"precompute {name}", f"{time.perf_counter() - began:.1f} s")
        return folder / name

    here, there, again = made("cpu", "cpu"), made("device", device), made("again", device)
    repeats = read_manifest(there).to_bytes() == read_manifest(again).to_bytes()
    checks.tell("precomputed twice: the same bytes", repeats, good=repeats)
    if gpu:
        alone = read_manifest(made("gpus", device, workers=None, gpus=1)).to_bytes()
        same = alone == read_manifest(there).to_bytes()
        checks.tell("--gpus 1: the same bytes", same, good=same)
    one, other = (read_manifest(made(f"exact-{size}", device, precision="exact", batch_size=size)) for size in (64, 48))
    same = {key: one.objects[key] == other.objects[key] for key in one.objects if "direction" in key}
    share = sum(same.values()) / len(same)
    checks.tell("exact signs of batches of 64 and of 48: chunks that are the same", f"{100 * share:.0f}%")
    pairs = [("float32", here, there, 0.001), ("exact", there, folder / "exact-64", 0.001)]
    if gpu:
        pairs.append(("tf32", there, made("tf32", device, precision="tf32"), 0.05))
        pairs.append(("bfloat16", there, made("bfloat16", device, precision="bfloat16"), 0.07))
    for precision, one, other, most in pairs:
        for row in compare_stores(one, other):
            share = row.opposite + row.zero_here + row.zero_there
            within = share <= most or not row.key.endswith("r-fgsm")  # the others meet ties, and steps that follow them
            checks.tell(
                f"{precision}, {row.key}: values that differ from float32's", f"{100 * share:.4f}%", good=within
            )
    words = ["verify", there, "--unsigned", "--data", "mnist-mini", "--limit", data.limit, "--recompute", 16]
    words += ["--device", device]
    words += [word for name, path in models.items() for word in ("--model", f"{name}={path}")]
    code = subprocess.run([sys.executable, "-m", "ensadv_data", *map(str, words)], capture_output=True, text=True)
    checks.tell("verify --recompute: exit code", code.returncode, good=code.returncode == 0)
    if code.returncode:
        print(code.stdout + code.stderr)


def trainings(checks: Checks, folder: Path, models: dict[str, str], data: DataSpec, device: str) -> None:
    """Trained from a store at once, with a stop in between, and by torchrun."""
    epochs, store = 6 if device == "cpu" else 24, folder / "read"  # fewer are over before they can be stopped
    about = {"models": models, "attacks": ["r-fgsm:alpha=0.1"], "draws": 2, "device": device}
    precompute_store(checked(PrecomputeSpec, about, where="on_gpu"), data, store, workers=0)
    net = next(iter(models))
    whole = load_model(str(trained(folder, net, data, device, shards=[str(store)], epochs=epochs))).digest
    words = ["-m", "ensadv_data", "train", "--architecture", net, "--seed", 1, "--online", "fgsm", "--epochs", epochs]
    words += ["--data", "mnist-mini", "--limit", data.limit, "--shards", store, "--device", device]
    words += ["--checkpoint-every", 5, "--out"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    stopped = folder / "stopped.safetensors"
    first = subprocess.Popen([sys.executable, *map(str, words), stopped], **quiet)
    while first.poll() is None and not (folder / "stopped.checkpoint").exists():
        time.sleep(0.05)
    first.terminate()
    checks.tell("SIGTERM in a training: exit code", first.wait(), good=first.returncode == 130)
    subprocess.run([sys.executable, *map(str, words), stopped], check=True, **quiet)
    group = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", *map(str, words)]
    subprocess.run([*group, folder / "group.safetensors"], check=True, **quiet)
    for what, path in (("stopped and resumed", stopped), ("torchrun of one", folder / "group.safetensors")):
        same = load_model(str(path)).digest == whole
        checks.tell(f"{what}: the weights of one run, to the last bit", same, good=same)


def measured(checks: Checks, models: dict[str, str], device: str) -> None:
    """Evaluations and diagnoses here and there."""
    data, found = DataSpec(data="mnist-mini"), {}
    for on in ("cpu", device):
        spec = checked(EvaluateSpec, {"suite": "table8", "images": 100, "device": on}, where="on_gpu")
        began = time.perf_counter()
        made = evaluate(spec, data, targets=models, sources={f"of-{net}": path for net, path in models.items()})
        rows = made.to_json()["targets"]
        seconds = time.perf_counter() - began
        found[on] = {
            (name, kind, attack): rate["errors"]
            for name, row in rows.items()
            for kind, rates in (("clean", {"": row["clean"]}), ("white-box", row["white_box"]))
            for attack, rate in rates.items()
        }
        checks.tell(f"evaluate on {on}", f"{seconds:.1f} s")
    most = max(abs(count - found["cpu"][key]) for key, count in found[device].items())
    checks.tell("evaluate: images of 100 that differ, at most", most, good=most <= 3)
    ratios = {}
    for on in ("cpu", device):
        spec = checked(DiagnoseSpec, {"measures": ["masking"], "images": 200, "device": on}, where="on_gpu")
        about = diagnose(spec, data, models=models).to_json()["models"]
        ratios[on] = {name: one["masking"]["ratio"] for name, one in about.items()}
    for name, ratio in ratios[device].items():
        apart, values = abs(ratio - ratios["cpu"][name]), f"{ratios['cpu'][name]:.4f}, {ratio:.4f}"
        checks.tell(f"diagnose: approximation ratio of {name}, CPU and device", values, good=apart < 0.02)


def too_large(checks: Checks, folder: Path, model: str, data: DataSpec) -> None:
    """A batch that does not fit into the GPU's memory: halved, said, recorded."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(MEMORY / torch.cuda.get_device_properties(0).total_memory)
    about = {"models": {"m": model}, "attacks": ["fgsm"], "device": "cuda", "batch_size": int(data.limit or 2000)}
    made = precompute_store(checked(PrecomputeSpec, about, where="on_gpu"), data, folder / "large", workers=0)
    torch.cuda.set_per_process_memory_fraction(1.0)
    said = [note for note in made.notes if "did not fit in memory" in note]
    checks.tell("a batch larger than the GPU's memory", said or made.notes, good=bool(said))


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--nets", default="C,D")
    parser.add_argument("--limit", type=int, default=2000)
    arguments = parser.parse_args()
    os.environ["ENSADV_QUIET"] = "1"
    device, data, checks = arguments.device, DataSpec(data="mnist-mini", limit=arguments.limit), Checks()
    try:
        check_device(device)
    except InputError as error:
        sys.exit(str(error))
    print(f"{device_name(device)}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {net: str(trained(folder, net, data, device, epochs=1)) for net in arguments.nets.split(",")}
        checks.tell("trained", ", ".join(models))
        parts: list[Callable[[], None]] = [
            lambda: stores(checks, folder, models, data, device),
            lambda: trainings(checks, folder, models, data, device),
            lambda: measured(checks, models, device),
        ]
        for part in [
            *parts,
            *([] if device == "cpu" else [lambda: too_large(checks, folder, next(iter(models.values())), data)]),
        ]:
            try:
                part()
            except Exception as error:  # the others are checked all the same: a GPU is not always at hand
                traceback.print_exc()
                checks.failed.append(str(error))
    if checks.failed:
        sys.exit(f"not as it should be: {'; '.join(checks.failed)}")
    print("all as it should be")


if __name__ == "__main__":
    main()
