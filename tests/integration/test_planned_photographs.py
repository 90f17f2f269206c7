"""The plan of a store of photographs under networks of timm, held against the store, object by object."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ensadv_data import pipeline, sizing
from ensadv_data.pipeline import run_recipe
from ensadv_data.planning import plan_recipe
from ensadv_data.recipe import read_recipe
from ensadv_data.store import open_store
from photographs import cut_photographs

pytest.importorskip("timm")
pytestmark = pytest.mark.usefixtures("without_fsync")

RECIPE = """
name = "photographs"
[data]
data = "folder:{photos}"
data_dir = "{index}"
preprocess = "size=40"
[defaults.train]
architecture = "timm:test_resnet"
batch_size = 8
epochs = 1
epsilon = 0.0625
[train.small]
[train.ens]
online = "step-ll"
shards = ["shards"]
batches = "replace"
[precompute.shards.models]
small = "small"
other = "timm:{network},classes=3"
[precompute.shards]
attacks = [{attacks}]
draws = 2
{more}
"""
AUGMENT = 'augment = "random-resized-crop,flip"'


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return cut_photographs(tmp_path_factory.mktemp("photos"), classes=3, train=11, test=2)


def planned_and_run(photos: Path, folder: Path, monkeypatch, **fields: str) -> tuple[dict, list[sizing._Chunks], Path]:
    """The plan before anything is there, the arrays that it counted, and the folder of the run."""
    monkeypatch.setattr("ensadv_data.trials._SECONDS", 0.0)
    monkeypatch.setenv("ENSADV_QUIET", "1")
    real, counted = pipeline.precompute_store, []
    monkeypatch.setattr(pipeline, "precompute_store", lambda *args, workers: real(*args, workers=0))
    arrays = sizing._arrays

    def noted(*args):
        plain, masks = arrays(*args)
        counted[:] = [*plain, *masks]
        return plain, masks

    monkeypatch.setattr(sizing, "_arrays", noted)
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(photos=photos, index=folder / "index", **fields), encoding="utf-8")
    recipe = read_recipe(path)
    plan = plan_recipe(recipe, folder / "out", workers=2).to_json()
    run_recipe(recipe, folder / "out", jobs=1)
    return plan, counted, folder / "out"


def files_of(store: Path) -> dict[str, int]:
    return {str(path.relative_to(store)): path.stat().st_size for path in store.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("network", "attacks", "more"),
    [
        ("resnetv2_50", '"step-ll", "r-fgsm:alpha=4/255"', f'{AUGMENT}\nzeros = "fill"'),  # views, and no masks
        ("test_resnet", '"step-ll"', 'zeros = "fill"\nmode = "train"'),
        ("test_resnet", '"r-step-ll:alpha=4/255", "pgd:steps=2,epsilon=0.0625"', f'zeros = "fill"\n{AUGMENT}'),
    ],
)
def test_a_store_of_photographs_is_as_it_was_planned(photos, tmp_path, monkeypatch, network, attacks, more):
    monkeypatch.setattr("ensadv_data.store.layout.HELD_BYTES", 0)  # so that rows are raw, as in a store of ImageNet
    plan, counted, out = planned_and_run(photos, tmp_path, monkeypatch, network=network, attacks=attacks, more=more)
    stages = {stage["name"]: stage for stage in plan["stages"]}
    files, views = files_of(out / "shards/shards"), "augment" in more
    assert open_store(out / "shards/shards").header.attributes()["version"] == (2 if views else 1)
    found = {name: (len(own), sum(own), set(own)) for name, own in _by_array(files).items()}
    assert found == {each.path: (each.count, each.count * each.size.most, {each.size.most}) for each in counted}, (
        "every chunk of every array, to the byte"
    )
    assert Counter(name.rpartition("/")[2] for name in found) == Counter(
        {"example_digest": 1, "label": 2 * attacks.count('"') // 2}
        | {"direction": 2 * (attacks.count('"') // 2 - attacks.count("pgd"))}
        | ({"delta": 2} if "pgd" in attacks else {})
    )
    assert stages["shards"]["objects"] == [len(files)] * 2
    least, most = stages["shards"]["bytes"]
    real = sum(files.values())
    # nobody knows beforehand how many zeros the manifest will tell of: so many digits are open
    assert least <= real <= most <= least + 8 * 2 * attacks.count('"')
    for name in ("small", "ens"):
        assert stages[name]["bytes"] == [(out / f"models/{name}.safetensors").stat().st_size] * 2


def _by_array(files: dict[str, int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for name, size in files.items():
        if "/c/" in name:
            found.setdefault(name.partition("/c/")[0], []).append(size)
    return found
