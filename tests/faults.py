"""Precompute and push into a bucket, pull and training from it while requests fail: how many, and what was found.

    python tests/faults.py --faults 1000 --seed 1

A proxy before a real S3 server of this machine answers some requests with 500 or 503, refuses some, cuts answers in the
middle and delays some. A store is computed through it, with two workers, and a model trained on it for an epoch, twice:
once with chunks in memory, once with copies on a disk. A store that was made on a disk without any fault is pushed
through it and pulled again. Stores and weights must equal those of that disk. Then the next store. The summary is JSON;
docs/reliability.md has that of the run above.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ensadv_data.data import open_dataset
from ensadv_data.manifest import read_manifest
from ensadv_data.models import build_model, save_model
from ensadv_data.objects import Shelf, objects_at
from ensadv_data.precompute import precompute_store
from ensadv_data.remote import pull, push
from ensadv_data.spec import DataSpec, PrecomputeSpec, TrainSpec
from ensadv_data.store import Cache
from ensadv_data.training import train
from s3 import BUCKET, FaultyProxy, s3_server

LIMIT = 400
DATA = DataSpec(data="mnist-mini", limit=LIMIT)


def spec_in(folder: Path) -> PrecomputeSpec:
    """Two models, two attacks, two draws: 16 blocks of 9 chunks and more."""
    for name in "CD":
        module = build_model(name, shape=(1, 28, 28), classes=10, seed=1)
        path = folder / f"{name}.safetensors"
        save_model(path, module, architecture=name, shape=(1, 28, 28), classes=10, record={})
    models = {name: str(folder / f"{name}.safetensors") for name in "CD"}
    return PrecomputeSpec(models=models, attacks=("fgsm", "r-fgsm"), draws=2, batch_size=40)


def trained(store: str | Path, out: Path, **options: Cache) -> bytes:
    """The weights' file of a short training on a store."""
    fields = {"architecture": "D", "epochs": 1, "batch_size": 50, "online": "step-ll", "threads": 1}
    train(TrainSpec(shards=(str(store),), **fields), open_dataset("mnist-mini", "train", limit=LIMIT), out, **options)
    return out.read_bytes()


def shaken(
    spec: PrecomputeSpec, near: Path, folder: Path, port: int, *, seed: int, share: float, workers: int
) -> Counter[str]:
    """Make, and train on, one store through a network that fails; the faults that there were, by kind."""
    url = f"s3://{BUCKET}/shaken{seed}"
    with FaultyProxy(port, share=share, seed=seed) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        precompute_store(spec, DATA, url, workers=workers)
        assert read_manifest(url).to_bytes() == read_manifest(near).to_bytes()
        expected = trained(near, folder / f"near{seed}.safetensors")
        assert trained(url, folder / f"far{seed}.safetensors") == expected
        push(near, f"{url}-pushed")
        pull(f"{url}-pushed", folder / f"pulled{seed}")
        assert (folder / f"pulled{seed}" / "manifest.json").read_bytes() == read_manifest(near).to_bytes()
        kept = Cache(10**8, Shelf(folder / f"kept{seed}", 10**8))
        assert trained(url, folder / f"kept{seed}.safetensors", cache=kept) == expected
    here = objects_at(near)
    for there in map(objects_at, (url, f"{url}-pushed", folder / f"pulled{seed}")):
        for key in read_manifest(near).objects:
            assert there.read(key) == here.read(key), f"seed {seed}: {there}/{key}"
    return Counter(proxy.faults)


def run(*, faults: int, seed: int, folder: Path) -> dict[str, Any]:
    """As many stores as it takes."""
    spec, seen, stores = spec_in(folder), Counter[str](), 0
    precompute_store(spec, DATA, folder / "near", workers=0)
    with s3_server() as port:
        while seen.total() < faults:
            seen += shaken(spec, folder / "near", folder, port, seed=seed + stores, share=0.15, workers=2)
            stores += 1
    return {"seed": seed, "faults": dict(seen), "in all": seen.total(), "stores": stores, "trainings": 2 * stores}


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.perf_counter()
    os.environ.setdefault("ENSADV_QUIET", "1")
    with tempfile.TemporaryDirectory() as folder:
        found = run(faults=arguments.faults, seed=arguments.seed, folder=Path(folder))
    print(json.dumps({**found, "minutes": round((time.perf_counter() - began) / 60, 1)}, indent=1))


if __name__ == "__main__":
    main()
