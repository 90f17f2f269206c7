"""The plan of a recipe: what it tells beforehand, held against the run, and the arithmetic of time and money."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from ensadv_data import arithmetic, pipeline, planning
from ensadv_data.data import open_dataset
from ensadv_data.errors import DataError, InputError, ModelError, OutputError
from ensadv_data.models import Model, build_model, load_model
from ensadv_data.pipeline import run_recipe
from ensadv_data.planning import plan_recipe
from ensadv_data.recipe import Recipe, read_recipe
from ensadv_data.spec import AttackSpec, DiagnoseSpec, EvaluateSpec, PrecomputeSpec, PreprocessSpec, TrainSpec
from ensadv_data.trials import Trials
from photographs import cut_photographs

pytestmark = pytest.mark.usefixtures("without_fsync")

RECIPE = """
name = "planned"
[data]
data = "mnist-mini"
limit = 160
[defaults.train]
architecture = "D"
epochs = 1
batch_size = 32
[train.one]
seed = 1
[train.two]
seed = 2
optimizer = "rmsprop"
[precompute.shards]
models = ["one", "two"]
attacks = ["i-fgsm:steps=1,epsilon=0.3"]
draws = 2
[train.ens]
online = "step-ll"
shards = ["shards"]
epochs = 3
batches = "replace"
[train.static]
online = "fgsm"
static = { both = "mean-logits:one+two" }
[evaluate.result]
targets = ["ens", "static"]
sources = ["one"]
suite = "single-step"
images = 50
[diagnose.found]
models = ["ens"]
measures = ["masking", "surface"]
resolution = 5
images = 20
[report]
title = "planned"
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "planned.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return read_recipe(path)


@pytest.fixture(scope="module")
def before(recipe, tmp_path_factory) -> dict:
    """Planned before anything is there; everything is measured, and only as long as it takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ensadv_data.trials._SECONDS", 0.0)
        return plan_recipe(recipe, tmp_path_factory.mktemp("none") / "out", price=2.0, workers=3).to_json()


@pytest.fixture(scope="module")
def out(recipe, before, tmp_path_factory) -> Path:
    """Run after it was planned."""
    folder = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        real = pipeline.precompute_store
        patch.setattr(pipeline, "precompute_store", lambda *args, workers: real(*args, workers=0))
        patch.setenv("ENSADV_QUIET", "1")
        run_recipe(recipe, folder, jobs=1)
    return folder


def by_name(plan: dict) -> dict[str, dict]:
    return {stage["name"]: stage for stage in plan["stages"]}


def test_objects_and_bytes_are_those_of_the_run(before, out):
    stages = by_name(before)
    assert list(stages) == ["one", "two", "static", "shards", "ens", "result", "found"]
    for name in ("one", "two", "ens", "static"):
        size = (out / f"models/{name}.safetensors").stat().st_size
        assert (stages[name]["objects"], stages[name]["bytes"]) == ([1, 1], [size, size])
    files = [path for path in (out / "shards/shards").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    assert (stages["shards"]["objects"], stages["shards"]["bytes"]) == ([len(files)] * 2, [size] * 2)
    for name in ("result", "found"):
        assert stages[name]["about_bytes"] == pytest.approx((out / f"results/{name}.json").stat().st_size, rel=0.2)
    assert before["totals"]["objects"] == [6 + len(files)] * 2


def test_nothing_is_written_and_what_is_done_is_told(recipe, out, before):
    content = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    after = plan_recipe(recipe, out, calibrate=False).to_json()
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == content
    assert all(stage["done"] for stage in after["stages"])
    assert after["totals"]["objects"] == [0, 0]
    assert [stage["bytes"] for stage in after["stages"]] == [stage["bytes"] for stage in before["stages"]]
    changed = replace(recipe, stages=tuple(_with_more_epochs(stage) for stage in recipe.stages))
    rest = [
        stage["name"] for stage in plan_recipe(changed, out, calibrate=False).to_json()["stages"] if not stage["done"]
    ]
    assert rest == ["ens", "result", "found"], "and what reads it"


def _with_more_epochs(stage):
    return replace(stage, spec=stage.spec.model_copy(update={"epochs": 4})) if stage.name == "ens" else stage


def test_a_folder_of_something_else_is_refused_as_by_run(recipe, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something else than a recipe's outputs; it was not touched"):
        plan_recipe(recipe, tmp_path, calibrate=False)


def test_missing_data_and_models_are_told_as_by_run(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("ensadv_data.data.opening._folders", lambda name, data_dir: iter([tmp_path]))
    absent = replace(recipe, data=recipe.data.model_copy(update={"data": "fashion-mnist"}))
    with pytest.raises(DataError, match="data set 'fashion-mnist', split 'train': expected"):
        plan_recipe(absent, tmp_path / "out", calibrate=False)
    stages = tuple(stage for stage in recipe.stages if stage.name == "shards")
    spec = stages[0].spec.model_copy(update={"models": {"a": "absent.safetensors"}})
    with pytest.raises(ModelError, match=r"expected a model at absent\.safetensors, found no file"):
        plan_recipe(
            replace(recipe, stages=(replace(stages[0], spec=spec, inputs=()),)), tmp_path / "o", calibrate=False
        )


def test_until_plans_what_is_needed(recipe, tmp_path):
    plan = plan_recipe(recipe, tmp_path / "out", until="shards", calibrate=False).to_json()
    assert list(by_name(plan)) == ["one", "two", "shards"]
    assert plan["break_even"] == []
    assert {stage["seconds"] for stage in plan["stages"]} == {None}
    assert (plan["process_bytes"], plan["totals"]["seconds"], plan["totals"]["cost"]) == (None, None, None)


def test_everything_is_measured(before):
    assert all(stage["seconds"] > 0 for stage in before["stages"])
    assert before["process_bytes"] > 2**26
    assert by_name(before)["shards"]["workers"] == 3


class Known(Trials):
    """Seconds that somebody knows."""

    def reading(self) -> float:
        return 0.0

    def rows(self, spec: PrecomputeSpec, model) -> float:
        return 0.5 * spec.draws

    def step(self, spec: TrainSpec, *, adversarial: bool) -> float:
        return 3.0 if adversarial else 2.0

    def perturbation(self, spec: TrainSpec, model, attack: AttackSpec, *, dropout: bool) -> float:
        return 8.0 if attack.name == "i-fgsm" else 4.0

    def passes(self, model, spec: EvaluateSpec | DiagnoseSpec) -> tuple[float, float]:
        return 0.1, 0.3

    def diagnosis(self, spec: DiagnoseSpec, model, whole) -> tuple[float, dict]:
        return 7.0, {}


@pytest.fixture
def known(recipe, tmp_path, monkeypatch) -> dict:
    monkeypatch.setattr(planning, "Trials", Known)
    return plan_recipe(recipe, tmp_path / "out", price=3.6, workers=3).to_json()


def test_seconds_are_counted_from_the_batches(known):
    seconds = {name: stage["seconds"] for name, stage in by_name(known).items()}
    assert seconds["one"] == 5 * 2  # 160 images make 5 batches of 32
    assert seconds["ens"] == pytest.approx(3 * 5 * (3 + 4 / 3))  # every third step is online
    assert seconds["static"] == pytest.approx(5 * (3 + (4 + 4) / 2))
    # 16 blocks of 10 images on 3 workers: 6 turns; an image takes both sources 0.5 s a draw
    assert seconds["shards"] == pytest.approx(6 * 10 * 2 * 0.5 * 2)
    # two targets: clean, FGSM and R+FGSM; one source: its own check, FGSM, and both targets on it
    assert seconds["result"] == pytest.approx(50 * (2 * (3 * 0.1 + 2 * 0.3) + 0.1 + 0.3 + 2 * 0.1))
    assert seconds["found"] == 7


@pytest.mark.parametrize("has", [False, True])
def test_training_is_tried_in_the_precision_that_it_will_have(recipe, tmp_path, monkeypatch, has):
    class Bfloat16IsFast(Known):
        def step(self, spec: TrainSpec, *, adversarial: bool) -> float:
            return 1.0 if spec.amp else 2.0

    monkeypatch.setattr(planning, "Trials", Bfloat16IsFast)
    monkeypatch.setattr(arithmetic, "has_bfloat16", lambda device: has)
    plan = plan_recipe(_changed(recipe, "one", amp=True), tmp_path / "out").to_json()
    assert by_name(plan)["one"]["seconds"] == 5 * (1 if has else 2)


@pytest.mark.parametrize(("device", "cores"), [("cpu", 1), ("cpu", 8), ("meta", 4)])
def test_reading_takes_a_core(recipe, tmp_path, monkeypatch, device, cores):
    """A worker on the CPU reads and computes in turn; beside a device, and beside training, other cores read ahead."""

    class Slow(Known):
        def reading(self) -> float:
            return 3.0

    monkeypatch.setattr(planning, "Trials", Slow)
    monkeypatch.setattr(planning, "available_cores", lambda: cores)
    monkeypatch.setattr(planning, "check_device", lambda name: None)
    monkeypatch.setattr(planning._Planner, "_models", _on_cpu(planning._Planner._models))
    stages = by_name(plan_recipe(recipe, tmp_path / "out", workers=3, device=device).to_json())
    image = 0.5 * 2 * 2 + 3 if device == "cpu" else max(0.5 * 2 * 2, 3 / cores)
    assert stages["shards"]["seconds"] == pytest.approx(6 * 10 * image)
    step = max(2, ((2 if device == "cpu" else 0) + 32 * 3) / cores)
    assert stages["one"]["seconds"] == pytest.approx(5 * step)


def _changed(recipe: Recipe, name: str, **fields: object) -> Recipe:
    """The recipe, with other settings in one stage."""
    stages = (replace(s, spec=s.spec.model_copy(update=fields)) if s.name == name else s for s in recipe.stages)
    return replace(recipe, stages=tuple(stages))


def _on_cpu(models):
    return lambda self, named, data, device: models(self, named, data, "cpu")


HUB = """
name = "hub"
[data]
data = "folder:{photos}"
data_dir = "{index}"
preprocess = "size=48"
[precompute.shards.models]
net = "timm:test_resnet.r160_in1k,weights=hub,resize=64"
[precompute.shards]
attacks = ["r-fgsm"]
draws = 2
device = "{device}"
[train.ens]
architecture = "D"
shards = ["shards"]
batch_size = 2
device = "{device}"
"""


def test_bytes_alone_are_told_without_a_gpu_and_without_the_hub(tmp_path, monkeypatch):
    weights = tmp_path / "hub.safetensors"
    torch.manual_seed(4)
    save_file(pytest.importorskip("timm").create_model("test_resnet", pretrained=False).state_dict(), weights)
    cut_photographs(tmp_path / "photos", classes=2, train=4, test=1)
    photos = with_a_thousand_classes(tmp_path / "photos")
    path = tmp_path / "hub.toml"

    def planned(device: str, hub, **options) -> dict:
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
        path.write_text(HUB.format(photos=photos, index=tmp_path / "index", device=device), encoding="utf-8")
        return plan_recipe(read_recipe(path), tmp_path / "out", calibrate=False, **options).to_json()

    def unreachable(repository, file):
        raise AssertionError("the hub was asked")

    told = planned("cuda", unreachable, price=2.0)
    assert (told["totals"]["seconds"], told["totals"]["cost"]) == (None, None), "no time, and so no price"
    monkeypatch.setattr(planning, "load_model", lambda *args, hub, **more: load_model(*args, **more))
    real = planned("cpu", lambda repository, file: str(weights))
    for stage, other in zip(told["stages"], real["stages"], strict=True):
        assert stage["objects"] == other["objects"]
        if stage["kind"] == "precompute":  # but for device and threads, in the root's attributes and in the manifest
            longer = len("cuda") + len("null") - len("cpu") - len("1")
            assert [end + 2 * longer for end in other["bytes"]] == stage["bytes"]
    if not torch.cuda.is_available():
        path.write_text(HUB.format(photos=photos, index=tmp_path / "index", device="cuda"), encoding="utf-8")
        with pytest.raises(InputError, match=r"got 'cuda': .*; plan where it will run, or .*--no-calibrate"):
            plan_recipe(read_recipe(path), tmp_path / "out")


def with_a_thousand_classes(photos: Path) -> Path:
    """The folder with as many classes as the network of the hub has; of most there is no image."""
    for split in ("train", "test"):
        for number in range(998):
            (photos / split / f"none-{number:03d}").mkdir()
    return photos


def test_money_is_for_the_hours_in_which_workers_are_there(known):
    stages = by_name(known)
    assert stages["shards"]["cost"] == pytest.approx(3.6 * 3 * 120 / 3600, abs=1e-4)
    assert stages["one"]["cost"] == pytest.approx(0.01)
    total = sum(stage["seconds"] * stage["workers"] for stage in stages.values())
    assert known["totals"]["worker_seconds"] == pytest.approx(total)
    assert known["totals"]["cost"] == pytest.approx(3.6 * total / 3600, abs=1e-3)


def test_a_store_has_paid_for_itself_when_online_gradients_had_taken_as_long(known):
    (row,) = known["break_even"]
    assert (row["stage"], row["stores"], row["sources"], row["draws"]) == ("ens", ["shards"], 3, 2)
    made = 160 * 2 * 0.5 * 2  # images × sources × draws
    saved = 5 * 8 * 2 / 3  # steps in which one of two of three sources computes
    assert row["break_even_epochs"] == pytest.approx(made / saved, abs=0.01)
    assert row["break_even_epochs_elapsed"] == pytest.approx(120 / saved, abs=0.01)
    assert (row["epochs"], row["all_epochs"]) == (3, 3)


def test_where_a_gradient_takes_as_long_then_as_now_it_is_draws_times_sources(recipe, tmp_path, monkeypatch):
    """An epoch computes one gradient of every image at 1/n for each source, a store K of each: K·n epochs."""

    class Even(Known):
        def perturbation(self, spec, model, attack, *, dropout) -> float:
            return 0.5 * spec.batch_size

    monkeypatch.setattr(planning, "Trials", Even)
    (row,) = plan_recipe(recipe, tmp_path / "out").to_json()["break_even"]
    assert row["break_even_epochs"] == pytest.approx(row["draws"] * row["sources"], abs=0.01)


def test_more_workers_than_blocks_are_told(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "Trials", Known)
    plan = plan_recipe(recipe, tmp_path / "out", workers=100).to_json()
    assert "shards: 16 blocks, so no more workers than that have work" in plan["notes"]
    assert by_name(plan)["shards"]["seconds"] == pytest.approx(10 * 2 * 0.5 * 2)


def test_a_batch_size_that_is_to_be_found_leaves_a_span_of_bytes(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "Trials", Known)
    plan = plan_recipe(_changed(recipe, "shards", batch_size="auto"), tmp_path / "out").to_json()
    least, most = by_name(plan)["shards"]["bytes"]
    assert most - least == 4, "two digits more in the root's attributes and in the manifest"
    assert any("not the best" in note for note in plan["notes"])


@pytest.mark.parametrize("zeros", ["keep", "fill"])
def test_rows_that_do_not_fit_in_memory_are_told(recipe, tmp_path, monkeypatch, zeros):
    monkeypatch.setattr(planning, "HELD_BYTES", 20_000)
    about = {"attacks": (AttackSpec(name="r-fgsm", alpha=0.1),), "zeros": zeros}
    stages = tuple(
        replace(stage, spec=stage.spec.model_copy(update=about)) if stage.name == "shards" else stage
        for stage in recipe.stages
    )
    notes = plan_recipe(replace(recipe, stages=stages), tmp_path / "out", calibrate=False).to_json()["notes"]
    plane = 2 * 2 * 160 * 98  # a bit a value, of two sources and two draws
    far = f"rows of shards do not fit in --cache-bytes 1GiB, up to {(1 + (zeros == 'keep')) * plane:,} bytes"
    assert any(far in note for note in notes)
    near = f"from a disk, masks of shards may not fit in --cache-bytes 1GiB, up to {plane:,} bytes"
    assert any(near in note for note in notes) == (zeros == "keep")


def test_each_kind_of_work_is_measured_once(monkeypatch):
    data = open_dataset("mnist-mini", "train", limit=64)
    trials, module = Trials(data), build_model("D", shape=data.shape, classes=10)
    model = Model("m", module.eval(), "m", "D", "0" * 64)
    spec = PrecomputeSpec(models={"m": "m"}, attacks=("r-fgsm",), draws=3, batch_size=16)
    first = trials.rows(spec, model)
    assert first > 0
    monkeypatch.setattr("ensadv_data.trials._timed", lambda *args, **words: 1e9)
    assert trials.rows(spec, replace(model, name="other")) == first
    assert trials.rows(spec.model_copy(update={"batch_size": 32}), model) > 1e6


def test_decoding_is_measured_as_reading(tmp_path):
    photos = cut_photographs(tmp_path / "photos", classes=2, train=6, test=1, side=120)
    how = {"data_dir": tmp_path / "index", "preprocess": PreprocessSpec(size=96)}
    decoded = Trials(open_dataset(f"folder:{photos}", "train", **how)).reading()
    assert decoded > 10 * Trials(open_dataset("mnist-mini", "train")).reading() > 0


def test_a_plan_is_json(before):
    assert json.loads(json.dumps(before)) == before
    assert (before["kind"], before["version"], before["recipe"]) == ("plan", 1, "planned")
