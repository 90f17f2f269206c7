"""Training: steps are the formula's, and a run that was stopped anywhere gives the same weights as one that was not."""

from __future__ import annotations

import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy

from ensadv_data import arithmetic
from ensadv_data.attacks.catalogue import attack_label, noise_of, perturb
from ensadv_data.batches import Batches
from ensadv_data.data import ArrayDataset, Dataset, open_dataset
from ensadv_data.errors import AlignmentError, InputError, Interrupted, ModelError, OutputError, QuantityError
from ensadv_data.keys import derive_key, torch_seeded
from ensadv_data.learner import learning_rate
from ensadv_data.manifest import read_manifest
from ensadv_data.meter import Meter
from ensadv_data.mixing import Schedule, epoch_order, plan_step
from ensadv_data.models import build_model, load_model, read_metadata, save_model
from ensadv_data.precompute import precompute_store
from ensadv_data.sources import static_sources
from ensadv_data.spec import AttackSpec, DataSpec, PrecomputeSpec, TrainSpec
from ensadv_data.training import Trained, TrainingRun, train
from laws import is_bit_equal
from test_store import content, make_images, make_store

pytestmark = pytest.mark.usefixtures("without_fsync")

N, BATCH, STEPS = 40, 8, 5
PAPER = {
    "optimizer": "rmsprop",
    "batches": "replace",
    "epsilon": "normal:0.1,0.3",
    "label_smoothing": 0.1,
    "ema": 0.9,
    "accumulate": 2,
}


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    return make_images(N)


@pytest.fixture(scope="module")
def store(tmp_path_factory, data) -> Path:
    path = tmp_path_factory.mktemp("store") / "shards"
    make_store(path, data, ("m/fgsm", "w/r-fgsm"), draws=2)
    return path


def spec_of(**fields: Any) -> TrainSpec:
    small: dict[str, Any] = {"architecture": "D", "epochs": 2, "batch_size": BATCH, "threads": 1}
    return TrainSpec(**(small | fields))


def ensemble(store: Path, **fields: Any) -> TrainSpec:
    return spec_of(online="step-ll", shards=(str(store),), **fields)


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


# What a run is


def test_a_plain_run_leaves_weights_and_a_log(tmp_path, data):
    out = tmp_path / "plain.safetensors"
    made = train(spec_of(), data, out, log_every=2)
    assert (made.path, made.steps, made.was_complete) == (out, 10, False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain.jsonl", "plain.safetensors"]
    model = load_model(str(out))
    assert (model.digest, model.architecture) == (made.digest, "D")
    assert model.record["data"] == {"name": "tiny", "split": "train", "n": N, "digest": data.digest}
    assert model.record["training"]["shards"] == []
    assert str(tmp_path) not in json.dumps(dict(model.record))
    lines = lines_of(out)
    steps = [line for line in lines if "source" in line]
    assert [(line["epoch"], line["step"]) for line in steps] == [divmod(n, STEPS) for n in range(0, 10, 2)]
    assert {line["source"] for line in steps} == {"clean"}
    assert all(line["loss_adversarial"] is None and line["loss_clean"] > 0 for line in steps)
    summaries = [line for line in lines if "sources" in line]
    assert [line["sources"]["clean"]["steps"] for line in summaries] == [STEPS, STEPS]
    assert summaries[0]["sources"]["clean"]["loss_adversarial"] is None


@pytest.mark.parametrize("online", ["step-ll", "fgsm", "r-fgsm:alpha=0.1", "i-fgsm:steps=2", "pgd:steps=2"])
def test_an_adversarial_run_is_all_online(tmp_path, data, online):
    train(spec_of(online=online, epochs=1), data, tmp_path / "a.safetensors", log_every=1)
    *steps, summary = lines_of(tmp_path / "a.safetensors")
    assert {line["source"] for line in steps} == {"online"}
    assert all(line["loss_adversarial"] is not None for line in steps)
    assert summary["sources"]["online"]["share"] == 1


def test_an_ensemble_run_has_all_sources_and_shares_that_add_up_to_one(tmp_path, data, store):
    spec = ensemble(store, epochs=6, epsilon="normal:0.1,0.3")
    train(spec, data, tmp_path / "e.safetensors", log_every=1)
    lines = lines_of(tmp_path / "e.safetensors")
    steps = [line for line in lines if "source" in line]
    assert {line["source"] for line in steps} == {"online", "m", "w"}
    assert len({line["epsilon"] for line in steps}) > 1
    summaries = [line for line in lines if "sources" in line]
    assert len(summaries) == 6
    for epoch, line in enumerate(summaries):
        assert sum(row["share"] for row in line["sources"].values()) == pytest.approx(1)
        assert sum(row["steps"] for row in line["sources"].values()) == STEPS
        for name, row in line["sources"].items():
            mine = [step for step in steps if (step["epoch"], step["source"]) == (epoch, name)]
            assert row["steps"] == len(mine)
            if mine:
                assert row["loss_clean"] == pytest.approx(np.mean([step["loss_clean"] for step in mine]), abs=1e-5)
            else:
                assert row["loss_clean"] is None
    record = load_model(str(tmp_path / "e.safetensors")).record["training"]
    assert record["shards"] == [{"digest": read_manifest(store).digest, "sources": ["m", "w"]}]


def test_the_rate_of_rmsprop_falls_every_two_epochs_and_adams_is_constant(tmp_path, data):
    rms = spec_of(optimizer="rmsprop")
    expected = [0.045, 0.045, 0.045 * 0.94, 0.045 * 0.94, 0.045 * 0.94**2]
    assert [learning_rate(rms, epoch) for epoch in range(5)] == pytest.approx(expected, rel=1e-12)
    assert {learning_rate(spec_of(), epoch) for epoch in range(5)} == {1e-3}
    assert learning_rate(spec_of(learning_rate=0.5), 3) == 0.5
    train(spec_of(optimizer="rmsprop", epochs=3), data, tmp_path / "r.safetensors")
    rates = [line["learning_rate"] for line in lines_of(tmp_path / "r.safetensors") if "sources" in line]
    assert rates == [learning_rate(rms, epoch) for epoch in range(3)]


def test_equal_runs_give_equal_files_and_other_seeds_others(tmp_path, data, store):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(name) + seed)
        train(ensemble(store, seed=seed), data, tmp_path / f"{name}.safetensors")
    a, b, c = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    "choice",
    [
        {"random_step": "fresh"},
        {"online_mode": "eval"},
        {"window": 2},
        {"source_per": "example"},
        {"label_smoothing": 0.1},
        {"ema": 0.5},
    ],
)
def test_each_choice_is_heard(tmp_path, data, store, choice):
    usual = train(ensemble(store), data, tmp_path / "usual.safetensors")
    other = train(ensemble(store, **choice), data, tmp_path / "other.safetensors")
    assert usual.digest != other.digest


@pytest.mark.parametrize("batches", ["pair", "replace"])
def test_with_a_source_of_its_own_for_each_example_shares_and_losses_are_by_example(tmp_path, data, store, batches):
    spec = ensemble(store, epochs=3, source_per="example", batches=batches)
    train(spec, data, tmp_path / "e.safetensors", log_every=1)
    lines = lines_of(tmp_path / "e.safetensors")
    steps = [line for line in lines if "source" in line]
    assert {line["source"] for line in steps} == {None}
    for epoch, line in enumerate(line for line in lines if "sources" in line):
        rows = line["sources"].values()
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        assert sum(row["images"] for row in rows) == (N if batches == "pair" else N // 2)
        assert all(row["share"] == row["images"] / sum(r["images"] for r in rows) > 0 for row in rows)
        mine = [step for step in steps if step["epoch"] == epoch]
        for name in ("loss_clean", "loss_adversarial"):
            mean = sum(row["share"] * row[name] for row in rows)
            assert mean == pytest.approx(np.mean([step[name] for step in mine]), rel=1e-4)
        assert len({row["loss_adversarial"] for row in rows}) == 3
        if batches == "pair":  # the clean images of a source are those that it perturbs
            assert len({row["loss_clean"] for row in rows}) == 3


def test_an_infinite_loss_is_that_of_its_source_alone():
    meter = Meter(["online", "m"], device=torch.device("cpu"), per_example=True)
    clean, adversarial = torch.tensor([1.0, 2, 3, 4]), torch.tensor([5.0, float("inf"), 7, 9])
    found = meter.add(clean, adversarial, np.array([1, 0, 1, 1]))
    assert [float(loss) for loss in found] == [2.5, float("inf")]
    assert meter.summary() == {
        "online": {"images": 1, "share": 0.25, "loss_clean": 2, "loss_adversarial": float("inf")},
        "m": {"images": 3, "share": 0.75, "loss_clean": pytest.approx(8 / 3), "loss_adversarial": 7},
    }
    assert float(meter.sums.abs().sum()) == 0


@pytest.mark.parametrize("fields", [{}, {"online": "fgsm"}])
def test_a_source_for_each_example_needs_two(tmp_path, data, fields):
    with pytest.raises(InputError, match="source_per: expected two sources or more to draw from, got"):
        spec_of(source_per="example", **fields)


def test_a_store_of_one_source_alone_is_not_enough(tmp_path, data):
    make_store(tmp_path / "s", data, ("m/fgsm",))
    spec = spec_of(source_per="example", shards=(str(tmp_path / "s"),))
    with pytest.raises(InputError, match="expected two sources or more to draw from, got 1; leave it out"):
        train(spec, data, tmp_path / "e.safetensors")


def test_computed_sources_of_one_step_have_dropout_masks_of_their_own(tmp_path, static, real):
    """The same model under two names: with one mask for both, their gradients at one image would be equal."""
    spec = spec_of(
        static={"a": static["d"], "b": static["d"]}, static_mode="train", source_per="example", batch_size=64, epochs=1
    )
    run = TrainingRun(spec, real, tmp_path / "e.safetensors")
    plan = plan_step(run.schedule, epoch=0, step=0)
    images, _ = run.batches.read(plan)
    x = torch.from_numpy(images).float() / 255
    found = []
    for source in (0, 1):
        (part,) = replace(plan, sources=np.full(len(images), source)).parts()
        found.append(run._computed(x, part, epoch=0, step=0))
    assert (found[0] != found[1]).float().mean() > 0.01


# Static models whose perturbations are computed at each step


@pytest.fixture(scope="module")
def static(tmp_path_factory) -> dict[str, str]:
    """Two untrained models for the embedded images."""
    folder = tmp_path_factory.mktemp("static")
    for seed, name in enumerate("DC"):
        module = build_model(name, shape=(1, 28, 28), classes=10, seed=seed)
        save_model(folder / f"{name}.safetensors", module, architecture=name, shape=(1, 28, 28), classes=10, record={})
    return {name.lower(): str(folder / f"{name}.safetensors") for name in "DC"}


@pytest.fixture(scope="module")
def real() -> Dataset:
    return open_dataset("mnist-mini", "train", limit=64)


def test_computing_gives_what_a_store_gives(tmp_path, static, real):
    """FGSM of one source in evaluation mode has nothing random: read or computed, the weights are the same bits."""
    spec = PrecomputeSpec(models={"d": static["d"]}, attacks=("fgsm",), batch_size=16)
    precompute_store(spec, DataSpec(data="mnist-mini", limit=64), tmp_path / "s", workers=0)
    read = train(spec_of(shards=(str(tmp_path / "s"),), batch_size=16), real, tmp_path / "read.safetensors")
    computed = train(spec_of(static={"d": static["d"]}, batch_size=16), real, tmp_path / "computed.safetensors")
    assert read.digest == computed.digest
    assert {line.get("source", "d") for line in lines_of(read.path)} == {"d"}
    assert {line.get("source", "d (online)") for line in lines_of(computed.path)} == {"d (online)"}


def test_static_models_are_drawn_like_stores_and_are_left_as_they_were(tmp_path, static, real):
    before = {name: Path(path).read_bytes() for name, path in static.items()}
    spec = spec_of(online="fgsm", static=static, static_attack="r-fgsm:alpha=0.1", epochs=6)
    made = train(spec, real, tmp_path / "a.safetensors", log_every=1)
    drawn = [line["source"] for line in lines_of(made.path) if "sources" not in line]
    assert {name: drawn.count(name) > 8 for name in drawn} == {"online": True, "d (online)": True, "c (online)": True}
    assert {name: Path(path).read_bytes() for name, path in static.items()} == before
    how = load_model(str(made.path)).record["training"]
    assert how["static"] == {name: load_model(path).digest for name, path in static.items()}
    assert how["static_attack"]["alpha"] == 0.1
    assert train(spec, real, tmp_path / "a.safetensors").was_complete


@pytest.mark.parametrize("change", [{"static_attack": "step-ll"}, {"static_mode": "train"}])
def test_attack_and_mode_of_static_models_are_heard(tmp_path, static, real, change):
    plain = train(spec_of(static=static, epochs=1), real, tmp_path / "a.safetensors")
    other = train(spec_of(static=static, epochs=1, **change), real, tmp_path / "b.safetensors")
    assert plain.digest != other.digest


def test_the_first_draws_of_a_store_are_a_store_of_fewer_draws(tmp_path, static, real):
    """So that one store of many draws serves trainings with fewer of them."""
    made = {}
    for stored, used in ((1, None), (3, 1), (3, 2), (3, None)):
        spec = PrecomputeSpec(models={"d": static["d"]}, attacks=("r-fgsm",), draws=stored)
        precompute_store(spec, DataSpec(data="mnist-mini", limit=64), tmp_path / f"s{stored}", workers=0)
        spec = spec_of(shards=(str(tmp_path / f"s{stored}"),), draws=used)
        made[stored, used] = train(spec, real, tmp_path / f"{stored}-{used}.safetensors").digest
    assert made[1, None] == made[3, 1]
    assert len(set(made.values())) == 3
    with pytest.raises(InputError, match=r"s3: expected a store of at least 4 draws, found 3; make one with: precomp"):
        train(spec_of(shards=(str(tmp_path / "s3"),), draws=4), real, tmp_path / "four.safetensors")


def test_a_run_without_static_models_does_not_mention_them():
    """So that weights and recipes of before are found unchanged."""
    assert not {"draws", "static", "static_attack", "static_mode"} & set(spec_of().model_dump())
    assert spec_of(static={"a": "a.safetensors"}).model_dump()["static"] == {"a": "a.safetensors"}


def test_static_models_that_cannot_serve_are_refused(tmp_path, static, data):
    with pytest.raises(ModelError, match=r"^d: the model cannot read images of shape"):
        train(spec_of(static={"d": static["d"]}), data, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="expected at least one static model beside its attack"):
        spec_of(static_attack="fgsm")
    with pytest.raises(QuantityError, match="static_attack: expected fgsm or step-ll where epsilon is drawn"):
        spec_of(static=static, static_attack="r-fgsm", epsilon="normal:0.1,0.3")


# One step, by hand


@pytest.mark.parametrize("batches", ["pair", "replace"])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("online", [None, "step-ll", "r-fgsm:alpha=0.1"])
def test_one_step_is_the_formula(tmp_path, data, store, batches, optimizer, online):
    """First the images, then their perturbed ones; λ weighs the latter, and the loss is a weighted mean."""
    shards = () if online else (str(store),)
    spec = spec_of(epochs=1, batch_size=N, seed=4, batches=batches, optimizer=optimizer, online=online, shards=shards)
    train(spec, data, tmp_path / "one.safetensors")
    trained = load_model(str(tmp_path / "one.safetensors")).module.state_dict()

    model = build_model("D", shape=data.shape, classes=4, seed=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sources = static_sources(shards, data)
    schedule = Schedule(seed=4, n=N, batch_size=N, sources=sources or (("online",),), epsilon=spec.epsilon)
    if online:
        indices = np.random.Generator(np.random.Philox(key=derive_key("order", 4, 0))).permutation(N)
    else:
        plan = plan_step(schedule, epoch=0, step=0)
        indices = plan.indices
    images, labels = data.read(indices)
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    half = N // 2 if batches == "replace" else 0
    if online:
        (attack,) = (spec.online,)
        with torch_seeded("cpu", "online gradient", 4, 0, 0, 0):
            noise = noise_of(
                attack, data.shape, seed=derive_key("online step", 4, 0), examples=indices[half:], stream=3
            )
            label = attack_label(model, x[half:], attack)
            x_adv = perturb(model, x[half:], label, attack, noise=noise, epsilon=0.3, dropout=True)
    else:
        x_adv = torch.from_numpy(Batches(data, schedule).perturb(images[half:], *plan.parts(half), epoch=0))
    x_clean, y_clean = (x[:half], y[:half]) if half else (x, y)
    if optimizer == "adam":
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    else:
        optimiser = torch.optim.RMSprop(model.parameters(), lr=0.045, alpha=0.9, eps=1.0, momentum=0.9)
    model.train()
    with torch_seeded("cpu", "training step", 4, 0, 0, 0):
        logits = model(torch.cat([x_clean, x_adv]))
    clean = cross_entropy(logits[: len(x_clean)], y_clean, reduction="sum")
    adversarial = cross_entropy(logits[len(x_clean) :], y[half:], reduction="sum")
    weight = 1.0 if batches == "pair" else 0.3
    ((clean + weight * adversarial) / (len(x_clean) + weight * len(x_adv))).backward()
    optimiser.step()
    for name, value in model.state_dict().items():
        assert torch.allclose(trained[name], value, rtol=0, atol=2e-6), name
        assert not torch.equal(trained[name], before[name])


# Stopped and resumed


class Stopping:
    """A data set that asks this process to stop, as Ctrl-C does, the k-th time that it is read.

    With prefetch=0 that is in the k-th step.
    """

    def __init__(self, inner: ArrayDataset, at: int, *, times: int = 1) -> None:
        self.inner, self.at, self.times, self.reads = inner, at, times, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.reads += 1
        if self.reads == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
        return self.inner.read(indices)


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 9])
@pytest.mark.parametrize("fields", [{"optimizer": "adam"}, {"optimizer": "rmsprop"}, {"source_per": "example"}, PAPER])
def test_an_interrupted_run_is_resumed_to_the_bit(tmp_path, data, store, stop, fields):
    spec = ensemble(store, **fields)
    whole = train(spec, data, tmp_path / "whole.safetensors", log_every=2)
    out = tmp_path / "parts.safetensors"
    with pytest.raises(Interrupted, match=f"stopped after step {stop} of 10; the same command resumes") as caught:
        train(spec, Stopping(data, stop), out, log_every=2, prefetch=0)
    assert caught.value.exit_code == 130
    assert not out.exists()
    assert out.with_suffix(".checkpoint").exists()
    made = train(spec, data, out, log_every=2)
    assert made.digest == whole.digest
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert timeless(lines_of(out)) == timeless(lines_of(tmp_path / "whole.safetensors"))
    assert not out.with_suffix(".checkpoint").exists()


@pytest.mark.parametrize("prefetch", [0, 1, 3, 100])
def test_the_model_does_not_depend_on_what_is_read_ahead_nor_on_a_stop_meanwhile(tmp_path, data, store, prefetch):
    spec = ensemble(store)
    whole = train(spec, data, tmp_path / "whole.safetensors", prefetch=0)
    assert train(spec, data, tmp_path / "again.safetensors", prefetch=prefetch).digest == whole.digest
    out = tmp_path / "parts.safetensors"
    with pytest.raises(Interrupted, match=r"stopped after step \d of 10"):
        train(spec, Stopping(data, 6 if prefetch < 100 else 1), out, prefetch=prefetch)
    assert train(spec, data, out, prefetch=prefetch).digest == whole.digest


def test_an_image_that_is_wrong_is_said_at_its_step_however_early_it_was_read(tmp_path, data, store):
    images = data.images_NCHW.copy()
    order = epoch_order(ensemble(store).seed, 0, n=N)
    images[order[ensemble(store).batch_size * 3]] ^= 1  # of the fourth step
    out = tmp_path / "m.safetensors"
    with pytest.raises(AlignmentError, match=f"example {order[ensemble(store).batch_size * 3]}: "):
        train(ensemble(store), replace(data, images_NCHW=images), out, log_every=1, prefetch=4)
    assert [line["step"] for line in lines_of(out)] == [0, 1, 2]


def test_checkpoints_make_a_killed_run_resumable_without_double_lines(tmp_path, data, store):
    """Two Ctrl-C stop at once, as a kill does: after the last checkpoint there are lines, and half a line."""
    spec = ensemble(store)
    train(spec, data, tmp_path / "whole.safetensors", log_every=1)
    out = tmp_path / "killed.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(spec, Stopping(data, 8, times=2), out, log_every=1, checkpoint_every=3, prefetch=0)
    with safe_open(str(out.with_suffix(".checkpoint")), framework="pt") as file:
        assert json.loads(file.metadata()["ensadv_data"])["number"] == 6
    assert len(lines_of(out)) == 8  # seven steps and the summary of an epoch
    with out.with_suffix(".jsonl").open("a") as log:
        log.write('{"epoch": 1, "st')
    train(spec, data, out, log_every=1)
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert timeless(lines_of(out)) == timeless(lines_of(tmp_path / "whole.safetensors"))


def test_what_a_kill_left_beside_the_model_goes_with_the_next_run(tmp_path, data):
    for name in ("m.safetensors", "m.checkpoint", "m.jsonl", "other.checkpoint"):
        (tmp_path / f".partial-abcd_123-{name}").write_bytes(b"half")
    train(spec_of(epochs=1), data, tmp_path / "m.safetensors")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".partial-abcd_123-other.checkpoint", "m.jsonl", "m.safetensors"]


def test_ctrl_c_in_the_last_step_lets_it_finish(tmp_path, data):
    made = train(spec_of(), Stopping(data, 10), tmp_path / "m.safetensors", prefetch=0)
    assert made.path.exists()


def test_outside_the_main_thread_there_is_no_ctrl_c_to_note(tmp_path, data):
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(train, spec_of(epochs=1), data, tmp_path / "m.safetensors").result()
    assert made.path.exists()


def test_a_finished_run_is_left_alone(tmp_path, data):
    out = tmp_path / "m.safetensors"
    first = train(spec_of(), data, out)
    before = content(tmp_path)
    again = train(spec_of(), data, out)
    assert again == Trained(out, first.digest, 10, again.seconds, was_complete=True)
    assert content(tmp_path) == before


def test_what_is_not_the_model_of_this_run_is_never_touched(tmp_path, data):
    out = tmp_path / "m.safetensors"
    train(spec_of(), data, out)
    (tmp_path / "letter.safetensors").write_text("Dear Sir")
    before = content(tmp_path)
    for path, spec in ((out, spec_of(seed=1)), (out, spec_of(epochs=3)), (tmp_path / "letter.safetensors", spec_of())):
        with pytest.raises(OutputError, match="it was not touched"):
            train(spec, data, path)
    assert content(tmp_path) == before


def test_the_checkpoint_of_another_run_is_refused(tmp_path, data):
    out = tmp_path / "m.safetensors"
    with pytest.raises(Interrupted):
        train(spec_of(), Stopping(data, 3), out)
    before = content(tmp_path)
    with pytest.raises(OutputError, match="is the checkpoint of another run"):
        train(spec_of(seed=9), data, out)
    assert content(tmp_path) == before
    out.with_suffix(".checkpoint").write_bytes(b"not this")
    with pytest.raises(OutputError, match="delete it to start anew"):
        train(spec_of(), data, out)


# Refused, and extras


def test_a_batch_larger_than_the_data_is_refused(tmp_path, data):
    with pytest.raises(InputError, match="expected at most the 40 training images, got 41"):
        train(spec_of(batch_size=41), data, tmp_path / "m.safetensors")


def test_a_store_for_other_data_stops_the_run(tmp_path, store):
    other = make_images(N, seed=1)
    with pytest.raises(AlignmentError, match="the store was made for other images"):
        train(spec_of(shards=(str(store),)), other, tmp_path / "m.safetensors")


def test_a_folder_that_is_missing_is_made_and_a_file_in_the_way_is_named(tmp_path, data):
    train(spec_of(epochs=1), data, tmp_path / "new/folder/m.safetensors")
    assert (tmp_path / "new/folder/m.safetensors").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*/file/m\.jsonl"):
        train(spec_of(epochs=1), data, tmp_path / "file/m.safetensors")


def test_bfloat16_trains(tmp_path, store, data, monkeypatch):
    monkeypatch.setattr(arithmetic, "has_bfloat16", lambda device: True)
    spec = ensemble(store, epochs=1, amp=True)
    made = train(spec, data, tmp_path / "amp.safetensors", log_every=1)
    usual = train(ensemble(store, epochs=1), data, tmp_path / "usual.safetensors")
    assert made.digest != usual.digest
    state = load_model(str(made.path)).module.state_dict()
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in state.values())
    assert made.notes == ()


def test_where_bfloat16_is_only_imitated_float32_trains_and_record_and_note_say_so(tmp_path, store, data, monkeypatch):
    usual = train(ensemble(store, epochs=1), data, tmp_path / "usual.safetensors")
    monkeypatch.setattr(arithmetic, "has_bfloat16", lambda device: False)
    spec = ensemble(store, epochs=1, amp=True)
    made, again = (train(spec, data, tmp_path / "amp.safetensors") for _ in range(2))
    assert made.digest == usual.digest
    assert read_metadata(made.path)["record"] == read_metadata(usual.path)["record"]
    assert again.was_complete
    for run in (made, again):
        assert run.notes == (f"{arithmetic.IMITATED}: --amp is left out",)
    assert usual.notes == ()


def test_threads_are_put_back(tmp_path, data):
    before = torch.get_num_threads()
    train(spec_of(epochs=1, threads=before + 1), data, tmp_path / "m.safetensors")
    assert torch.get_num_threads() == before


def test_global_generators_are_left_alone(tmp_path, data, store):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(ensemble(store, epochs=1), data, tmp_path / "m.safetensors")
    assert is_bit_equal(torch.get_rng_state(), before)


def test_tensorboard_that_is_not_installed_is_bad_input(tmp_path, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"ensadv-data\[tensorboard\]"):
        train(spec_of(), data, tmp_path / "m.safetensors", tensorboard=tmp_path / "board")


def test_tensorboard_gets_the_losses_of_each_source(tmp_path, data, store, monkeypatch):
    """Through a writer of the same face, since the real one is an extra."""
    import types

    written: list[tuple[str, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert (folder, purge_step) == (str(tmp_path / "board"), 0)

        def add_scalar(self, name: str, value: float, number: int) -> None:
            assert np.isfinite(value)
            written.append((name, number))

        def close(self) -> None:
            written.append(("closed", -1))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    train(ensemble(store), data, tmp_path / "m.safetensors", log_every=1, tensorboard=tmp_path / "board")
    assert written[-1] == ("closed", -1)
    assert {number for name, number in written[:-1] if name.startswith("loss_clean/")} == set(range(10))
    assert {name.split("/")[1] for name, _ in written[:-1]} == {"online", "m", "w"}


def test_a_run_on_the_embedded_images_learns(tmp_path):
    train(
        spec_of(epochs=1, batch_size=32),
        open_dataset("mnist-mini", "train", limit=2000),
        tmp_path / "d.safetensors",
        log_every=1,
    )
    losses = [line["loss_clean"] for line in lines_of(tmp_path / "d.safetensors") if "source" in line]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.parametrize("content", ["notes of somebody\n", '{"epoch": 0}\n', "[1]\n"])
def test_a_file_that_is_no_log_is_not_overwritten(tmp_path, data, content):
    (tmp_path / "m.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(OutputError, match="something else than a log"):
        train(TrainSpec(architecture="D", epochs=1, batch_size=32, threads=1), data, tmp_path / "m.safetensors")
    assert (tmp_path / "m.jsonl").read_text(encoding="utf-8") == content


@pytest.mark.parametrize("name", ["m.checkpoint", "m.jsonl", "eps0.1"])
def test_weights_have_an_ending_of_their_own(tmp_path, data, name):
    with pytest.raises(OutputError, match=r"ends in \.safetensors"):
        train(TrainSpec(architecture="D", epochs=1, batch_size=32), data, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_online_attack_takes_the_epsilon_of_the_training():
    attack = TrainSpec(architecture="D", online="i-fgsm", epsilon=0.1).online
    assert attack is not None
    assert (attack.epsilon, attack.iterations) == (0.1, (10, 0.01))
    attack = TrainSpec(architecture="D", online=AttackSpec(name="r-fgsm"), epsilon=0.04).online
    assert attack is not None
    assert (attack.epsilon, attack.random_step) == (0.04, 0.02)
    attack = TrainSpec(architecture="D", online="step-ll", epsilon="normal:0.1,0.2").online
    assert attack is not None
    assert attack.epsilon == 0.2
    assert TrainSpec(architecture="D", online="r-fgsm:alpha=0.4", epsilon=0.5).online is not None


@pytest.mark.parametrize("given", ["0.1", "0.3"])
def test_an_online_attack_with_an_epsilon_of_its_own_is_refused(given):
    other = "0.3" if given == "0.1" else "0.1"
    assert TrainSpec(architecture="D", online=f"fgsm:epsilon={given}", epsilon=given).online is not None
    with pytest.raises(QuantityError, match="no epsilon in the attack"):
        TrainSpec(architecture="D", online=f"fgsm:epsilon={given}", epsilon=other)
    with pytest.raises(QuantityError, match="no epsilon in the attack"):
        TrainSpec(architecture="D", online=AttackSpec(name="fgsm", epsilon=float(given)), epsilon=other)
