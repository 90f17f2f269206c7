"""Training as the paper has it: rate, smoothing, averages, auxiliary logits and parts of a batch, by hand."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from math import erf, exp, pi, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ensadv_data import arithmetic
from ensadv_data.average import MovingAverage
from ensadv_data.dist import Place
from ensadv_data.errors import InputError, Interrupted, QuantityError
from ensadv_data.keys import torch_seeded
from ensadv_data.learner import Learner
from ensadv_data.mixing import Schedule, check_shares, epoch_order, plan_step
from ensadv_data.models import build_auxiliary, build_model, load_model
from ensadv_data.models.auxiliary import AUXILIARY
from ensadv_data.recipe import read_recipe
from ensadv_data.sources import ONLINE, Source
from ensadv_data.spec import TrainSpec
from ensadv_data.training import TrainingRun, train
from laws import is_bit_equal
from test_store import make_images, make_store
from test_training import PAPER, Stopping, ensemble, spec_of

pytestmark = pytest.mark.usefixtures("without_fsync")

N, BATCH = 40, 8


@pytest.fixture(scope="module")
def data():
    return make_images(N)


@pytest.fixture(scope="module")
def store(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("store") / "shards"
    make_store(path, data, ("m/fgsm", "w/r-fgsm"), draws=2)
    return path


def random_net(seed: int = 0, *, norm: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, 6, 3), *([nn.BatchNorm2d(6)] if norm else []), nn.Tanh(), nn.Flatten(), nn.Linear(36, 4)]
        return nn.Sequential(*layers)


def test_a_training_is_rmsprop_smoothing_and_an_average_by_hand(tmp_path, data):
    """Five epochs, so that the rate has fallen twice; what is written is the average, warmed up as TensorFlow's is."""
    spec = spec_of(optimizer="rmsprop", epochs=5, label_smoothing=0.1, ema=0.9, seed=3)
    made = train(spec, data, tmp_path / "m.safetensors")
    model = build_model("D", shape=data.shape, classes=4, seed=3)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.045, alpha=0.9, eps=1.0, momentum=0.9)
    average = {name: tensor.clone().double() for name, tensor in model.state_dict().items()}
    for epoch in range(5):
        optimizer.param_groups[0]["lr"] = 0.045 * 0.94 ** (epoch // 2)
        order = epoch_order(3, epoch, n=N)
        for step in range(N // BATCH):
            images, labels = data.read(order[step * BATCH : (step + 1) * BATCH])
            with torch_seeded("cpu", "training step", 3, epoch, step, 0):
                logits = model.train()(torch.from_numpy(images).float() / 255)
            optimizer.zero_grad()
            cross_entropy(logits, torch.from_numpy(labels), label_smoothing=0.1).backward()
            optimizer.step()
            number = epoch * 5 + step
            decay = min(0.9, (1 + number) / (10 + number))
            for name, tensor in model.state_dict().items():
                average[name] = decay * average[name] + (1 - decay) * tensor.double()
    found = load_model(str(made.path))
    assert found.digest == made.digest
    assert (found.record["training"]["ema"], found.record["training"]["label_smoothing"]) == (0.9, 0.1)
    far = 0.0
    for name, tensor in found.module.state_dict().items():
        assert torch.allclose(tensor.double(), average[name], rtol=0, atol=2e-5), name
        far = max(far, float((tensor - model.state_dict()[name]).abs().max()))
    assert far > 1e-3, "the average is not the last weights"


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_is_that_of_timm_with_the_same_decays(decay):
    from timm.utils import ModelEmaV3

    model = random_net(norm=True)
    mine = MovingAverage(model, decay=decay)
    theirs = ModelEmaV3(model, decay=decay, foreach=False)
    generator = torch.Generator().manual_seed(1)
    for number in range(30):
        model.train()(torch.rand(5, 1, 4, 5, generator=generator))  # moves the statistics and the count of batches
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        mine.update(model, number)
        theirs.decay = min(decay, (1 + number) / (10 + number))
        theirs.update(model)
    averaged = mine.averaged(model)
    assert averaged.state_dict()["1.num_batches_tracked"] == 30
    for name, tensor in theirs.module.state_dict().items():
        assert torch.allclose(averaged.state_dict()[name], tensor, rtol=1e-5, atol=1e-6), name
        if tensor.is_floating_point():
            assert not torch.allclose(tensor, model.state_dict()[name], atol=1e-4), name


def test_trainings_without_an_average_or_a_head_have_the_state_that_they_always_had():
    learner = Learner(spec_of(), random_net(), place=Place())
    assert {name.split(".")[0] for name in learner.state()} == {"model"}
    assert learner.finished() is learner.model


def run_of(tmp_path, data, parts: int, **fields: Any) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    spec = spec_of(accumulate=parts, **fields)
    run = TrainingRun(spec, data, tmp_path / "m.safetensors", module=random_net())
    lines = [run.step(number, run.prepare(number)) for number in range(8)]
    return lines, run.learner.finished().state_dict()


@pytest.mark.parametrize(
    "fields",
    [
        {"batches": "pair"},
        {"batches": "replace", "optimizer": "rmsprop", "ema": 0.9},
        {"batches": "pair", "source_per": "example", "online": "r-fgsm:alpha=0.1"},
    ],
    ids=["pair", "replace", "example"],
)
@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_a_batch_make_the_step_of_the_whole(tmp_path, data, store, fields, parts):
    about: dict[str, Any] = {"shards": (str(store),), "online": "step-ll", "label_smoothing": 0.1, **fields}
    whole, weights = run_of(tmp_path, data, 1, **about)
    lines, found = run_of(tmp_path, data, parts, **about)
    for mine, its in zip(lines, whole, strict=True):
        assert (mine["source"], mine["epsilon"]) == (its["source"], its["epsilon"])
        for name in ("loss_clean", "loss_adversarial"):
            assert float(mine[name]) == pytest.approx(float(its[name]), rel=1e-5)
    for name, tensor in weights.items():
        assert torch.allclose(found[name], tensor, rtol=0, atol=1e-4 if "online" in fields else 1e-5), name


def test_parts_hold_less_at_a_time(tmp_path, data, store):
    sizes: list[int] = []
    module = random_net()
    module.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    spec = spec_of(accumulate=4, online="step-ll", batches="pair")
    run = TrainingRun(spec, data, tmp_path / "m.safetensors", module=module)
    run.step(0, run.prepare(0))
    assert max(sizes) == 2 * BATCH // 4
    assert sum(sizes) == 4 * BATCH  # labels, gradients, and both kinds of images


@pytest.mark.parametrize(("batches", "most"), [("pair", 8), ("replace", 4)])
def test_more_parts_than_images_are_refused(tmp_path, data, batches, most):
    TrainingRun(spec_of(accumulate=most, batches=batches), data, tmp_path / "m.safetensors")
    with pytest.raises(QuantityError, match=f"accumulate: expected at most {most} parts of 8 images for 1 processes"):
        TrainingRun(spec_of(accumulate=most + 1, batches=batches), data, tmp_path / "m.safetensors")
    with pytest.raises(QuantityError, match="expected at most 4 parts of 16 images for 2 processes that replace half"):
        check_shares(16, Place(0, 2), halves=True, parts=5)


# Auxiliary logits


class Inner(nn.Module):
    """Stands for an Inception network: the layer that the head reads has its name."""

    def __init__(self) -> None:
        super().__init__()
        self.Mixed_6e = nn.Conv2d(1, 6, 3)
        self.last = nn.Linear(36, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.Mixed_6e(x).tanh().flatten(1))
        return out


def inception_like(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(OrderedDict(inner=Inner()))


def test_auxiliary_logits_are_weighed_into_the_loss_and_not_into_the_model(tmp_path, data):
    fields = {"architecture": "timm:inception_v3", "auxiliary_weight": 0.4, "label_smoothing": 0.1}
    run = TrainingRun(spec_of(**fields), data, tmp_path / "m.safetensors", module=inception_like())
    whole = build_auxiliary("timm:inception_v3", inception_like(), shape=data.shape, classes=4, seed=0)
    optimizer = torch.optim.Adam(whole.parameters(), lr=1e-3)
    for step in range(3):
        line = run.step(step, run.prepare(step))
        images, labels = data.read(epoch_order(0, 0, n=N)[step * BATCH : (step + 1) * BATCH])
        logits, auxiliary = whole(torch.from_numpy(images).float() / 255)
        losses = [cross_entropy(z, torch.from_numpy(labels), label_smoothing=0.1) for z in (logits, auxiliary)]
        optimizer.zero_grad()
        (losses[0] + 0.4 * losses[1]).backward()
        optimizer.step()
        assert float(line["loss_clean"]) == pytest.approx(float(losses[0].detach()), rel=1e-5)
    model = run.learner.finished().state_dict()
    assert model.keys() == inception_like().state_dict().keys()
    for name, tensor in whole.model.state_dict().items():
        assert torch.allclose(model[name], tensor, rtol=0, atol=1e-6), name
    assert run.learner.head is not None
    for name, tensor in whole.head.state_dict().items():
        assert torch.allclose(run.learner.head.state_dict()[name], tensor, rtol=0, atol=1e-5), name


@pytest.mark.parametrize("stop", [5, 8])
def test_with_a_head_and_an_average_a_resumed_run_is_equal_to_the_bit(tmp_path, data, store, stop, monkeypatch):
    monkeypatch.setattr("ensadv_data.training.build_model", lambda *_, **about: inception_like(about["seed"]))
    spec = ensemble(store, **{**PAPER, "architecture": "timm:inception_v3", "auxiliary_weight": 0.4})
    whole = train(spec, data, tmp_path / "whole.safetensors")
    with pytest.raises(Interrupted):
        train(spec, Stopping(data, stop), tmp_path / "parts.safetensors", prefetch=0)
    train(spec, data, tmp_path / "parts.safetensors")
    assert (tmp_path / "parts.safetensors").read_bytes() == whole.path.read_bytes()


def test_the_head_is_that_of_timm():
    from timm.layers import ConvNormAct
    from timm.models.inception_v3 import InceptionAux

    model = nn.Sequential(
        OrderedDict(inner=nn.Sequential(OrderedDict(Mixed_6e=nn.Conv2d(3, 768, 1), tail=nn.Flatten())))
    )
    whole = build_auxiliary("timm:inception_v3.tf_in1k", model, shape=(3, 17, 17), classes=10, seed=5)
    block = partial(ConvNormAct, padding=0, norm_kwargs={"eps": 0.001})  # as InceptionV3 itself has it
    theirs = InceptionAux(768, 10, conv_block=block).eval()
    for mine, its in zip(whole.head.state_dict().values(), theirs.state_dict().values(), strict=True):
        its.copy_(mine)
    x = torch.rand(2, 3, 17, 17, generator=torch.Generator().manual_seed(0))
    features = model.inner.Mixed_6e(x)
    _, found = whole.eval()(x)
    assert torch.allclose(found, theirs(features), rtol=0, atol=1e-6)
    assert found.abs().max() > 0
    assert whole.head(torch.rand(2, 768, 3, 4)).shape == (2, 10)  # of images so small that no 5×5 window fits


@pytest.mark.parametrize("name", AUXILIARY)
def test_the_place_of_the_head_exists_where_the_map_is_17_by_17(name):
    with torch.device("meta"):
        import timm

        inner = timm.create_model(name)
        model = nn.Sequential(OrderedDict(inner=inner))
        seen: list[Tensor] = []
        model.get_submodule(AUXILIARY[name]).register_forward_hook(lambda _, __, out: seen.append(out))
        model.eval()(torch.empty(1, 3, 299, 299))
    assert seen[0].shape[2:] == (17, 17)


def test_an_architecture_without_a_place_is_refused(tmp_path, data):
    with pytest.raises(
        InputError, match="auxiliary_weight: expected an architecture that has a place for it, timm:incep"
    ):
        TrainingRun(spec_of(auxiliary_weight=0.4), data, tmp_path / "m.safetensors")
    (tmp_path / "r.toml").write_text(
        '[data]\ndata = "mnist-mini"\n[train.a]\narchitecture = "D"\nauxiliary_weight = 0.4\n', encoding="utf-8"
    )
    with pytest.raises(InputError, match=r"r\.toml: train\.a: auxiliary_weight: expected an architecture"):
        read_recipe(tmp_path / "r.toml")


# Defaults


def test_records_of_trainings_that_use_none_of_it_are_what_they_were():
    told = TrainSpec(architecture="D").model_dump()
    assert not told.keys() & {"label_smoothing", "auxiliary_weight", "ema", "accumulate"}
    assert TrainSpec(architecture="D", ema=0.9999).model_dump()["ema"] == 0.9999


@pytest.mark.parametrize(
    ("field", "value"),
    [("label_smoothing", 1.0), ("ema", 1.0), ("ema", 0.0), ("accumulate", 0), ("auxiliary_weight", -1)],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        TrainSpec(architecture="D", **{field: value})


@pytest.mark.parametrize("amp", [False, True])
def test_maps_are_channels_last_throughout(tmp_path, monkeypatch, amp):
    """The weights are, and the convolutions follow them, whatever the order of the images."""
    monkeypatch.setattr(arithmetic, "has_bfloat16", lambda device: True)
    data = make_images(N, shape=(3, 28, 28))
    seen: list[bool] = []
    run = TrainingRun(spec_of(architecture="A", amp=amp, online="step-ll"), data, tmp_path / "m.safetensors")
    for layer in run.model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda _, __, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    run.step(0, run.prepare(0))
    assert len(seen) >= 4
    assert all(seen)


def test_epsilons_of_the_paper_have_the_moments_of_a_truncated_normal(data):
    """|N(0, 8/255)| up to 16/255: by the analytic mean and variance of a half-normal law that is cut off at 2σ."""
    law = spec_of(epsilon="normal:8/255,16/255").epsilon
    schedule = Schedule(seed=1, n=40_000, batch_size=20_000, sources=(Source(ONLINE),), epsilon=law)
    values = np.concatenate([plan_step(schedule, epoch=0, step=step).epsilon for step in range(2)]).astype(float)
    mass, density = erf(2 / sqrt(2)), sqrt(2 / pi)
    mean = density * (1 - exp(-2)) / mass
    variance = 1 - 2 * density * exp(-2) / mass - mean**2
    assert values.mean() * 255 / 8 == pytest.approx(mean, abs=4 * sqrt(variance / 40_000))
    assert values.var() * (255 / 8) ** 2 == pytest.approx(variance, rel=0.03)
    assert values.max() <= np.float32(16 / 255)
    assert len(np.unique(values)) > 30_000, "drawn per example"


def test_the_average_does_not_share_memory_with_the_model():
    model = random_net()
    average = MovingAverage(model, decay=0.9)
    before = {name: tensor.clone() for name, tensor in average.state().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(is_bit_equal(tensor, before[name]) for name, tensor in average.state().items())
