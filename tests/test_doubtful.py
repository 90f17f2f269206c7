"""precision = exact: signs that float32 does not know are those of float64, and nothing else is computed twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from ensadv_data import blocks, device_codec, doubtful
from ensadv_data.attacks.catalogue import noise_of
from ensadv_data.attacks.gradient import input_gradient, logits_of
from ensadv_data.attacks.single import random_step
from ensadv_data.codec import rows_near_zero
from ensadv_data.doubtful import in_float64
from ensadv_data.entries import entries_of
from ensadv_data.errors import ModelError
from ensadv_data.models import Model, build_model, save_model
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import AttackSpec, DataSpec, PrecomputeSpec
from test_perturbation import FIRST, SHAPE, D, as_floats, block_of, make_images, make_model, make_spec, signs


class Cancelling(nn.Module):
    """All but one of its gradients are differences of products that agree to float32's last bits."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        first, factors = torch.rand(D, generator=generator, dtype=torch.float64) + 0.5, (0.7310585, -1.3190173)
        second = -first * factors[0] / factors[1]
        second[0] *= 3
        self.inner = nn.Parameter(torch.stack([first, second]).float())
        self.outer = nn.Parameter(torch.tensor([[0.0, 0.0], list(factors)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.inner.T @ self.outer.T


def of_float64(model: Model, x: torch.Tensor, label: torch.Tensor) -> np.ndarray:
    """Signs of the gradient in float64, int8 (n, D)."""
    module = Cancelling().double()
    module.load_state_dict({name: value.double() for name, value in model.module.state_dict().items()})
    return input_gradient(module, x.double(), label).flatten(1).sign().to(torch.int8).numpy()


@pytest.fixture
def model() -> Model:
    return Model("m", Cancelling().eval(), "by hand", "tiny", "0" * 64)


@pytest.mark.parametrize("attack", ["fgsm", "step-ll"])
def test_signs_that_float32_gets_wrong_are_those_of_float64(model, attack):
    images = make_images()
    label = logits_of(model.module, as_floats(images))
    turn, label = (-1, label.argmin(1)) if attack == "step-ll" else (1, label.argmax(1))
    expected = turn * of_float64(model, as_floats(images), label)
    made = {
        how: signs(*block_of(model, images, make_spec(attack, precision=how)).values()) for how in ("float32", "exact")
    }
    assert (made["float32"][0] != expected).mean() > 0.05, "else there is nothing to mend"
    assert (made["exact"][0] == expected).all()


def test_each_draw_is_mended_at_its_own_point(model):
    images, attack = make_images(), AttackSpec(name="r-fgsm", alpha=0.1)
    spec = make_spec("r-fgsm:alpha=0.1", draws=3, precision="exact")
    entry, examples = entries_of(spec, model)["r-fgsm"], np.arange(FIRST, FIRST + len(images))
    (planes,) = block_of(model, images, spec).values()
    x = as_floats(images)
    label = logits_of(model.module, x).argmax(1)
    for k in range(3):
        noise = noise_of(attack, SHAPE, seed=entry.seed, draws=np.full(len(x), k), examples=examples, device="cpu")
        expected = of_float64(model, random_step(x, noise, alpha=0.1), label)
        assert (signs(planes)[k] == expected).all()


def test_bytes_do_not_depend_on_the_batch_size(model):
    one, other = (
        signs(*block_of(model, make_images(60), make_spec("fgsm", precision="exact", batch_size=size)).values())
        for size in (1, 64)
    )
    assert (one == other).all()


def test_only_images_in_doubt_are_computed_again(monkeypatch):
    model, images, seen = make_model(), make_images(40), []
    attacks = ("fgsm", "r-fgsm")  # two gradients an image
    real = doubtful.labelled_gradients
    monkeypatch.setattr(doubtful, "labelled_gradients", lambda net, x, *a, **k: seen.append(x) or real(net, x, *a, **k))
    block_of(model, images, make_spec(*attacks, draws=1, precision="exact"))
    assert not seen, "no value of this small net's gradients is next to zero"
    monkeypatch.setattr(doubtful, "NEAR", 0.02)
    same = block_of(model, images, make_spec(*attacks, draws=1, precision="exact"))
    assert {x.dtype for x in seen} == {torch.float64}
    assert 0 < sum(map(len, seen)) < 80
    plain = block_of(model, images, make_spec(*attacks, draws=1))
    assert all((signs(same[key]) == signs(plain[key])).all() for key in plain)
    assert next(model.module.parameters()).dtype == torch.float32, "the model is left alone"


@pytest.mark.parametrize("attacks", [("fgsm", "step-ll"), ("r-fgsm:alpha=0.1", "fgsm")])
def test_zeros_stay_zeros(monkeypatch, attacks):
    """A max-pool hides pixels, and their gradient is zero in every precision."""
    monkeypatch.setattr(doubtful, "NEAR", 0.5)
    model, images = make_model(pooled=True), make_images()
    plain, exact = (
        block_of(model, images, make_spec(*attacks, draws=2, precision=how)) for how in ("float32", "exact")
    )
    for key in plain:
        assert (signs(exact[key]) == signs(plain[key])).all()
    assert exact["m/fgsm"].nonzero is not None


def test_few_images_wait_for_float64(monkeypatch, model):
    """Of large photographs every image may be in doubt."""
    most, real = [0], doubtful.Doubtful.look

    def look(self, *args, **kwargs):
        real(self, *args, **kwargs)
        most[0] = max(most[0], self.waiting)

    monkeypatch.setattr(doubtful.Doubtful, "look", look)
    block_of(model, make_images(60), make_spec("fgsm", "r-fgsm", draws=3, precision="exact", batch_size=4))
    assert 4 <= most[0] <= 3 * 4  # less than a batch, and what a draw of two attacks leaves


class Stubborn(nn.Module):
    """It has a tensor that is no parameter, and stays float32."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Cancelling()
        self.rest = [torch.eye(2)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) @ self.rest[0]


class Rounding(Cancelling):
    """It computes in float32 whatever it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.float().flatten(1) @ self.inner.float().T @ self.outer.float().T).float()


class Half(nn.Module):
    """Weights in half precision, and a model that follows them whatever they are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Cancelling().bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.to(self.inner.inner.dtype)).to(x.dtype)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Stubborn, "expected m1 and m2 to have the same dtype"),
        (Rounding, r"expected logits in float64, got torch\.float32"),
        (Half, r"expected weights in float32, got torch\.bfloat16"),
    ],
)
def test_a_model_that_cannot_compute_in_float64_is_refused(module, why):
    model = Model("m", module().eval(), "by hand", "tiny", "0" * 64)
    block_of(model, make_images(), make_spec("fgsm"))
    with pytest.raises(
        ModelError, match=f"source m: precision = exact needs a model that computes in float64 too: {why}"
    ):
        in_float64(model, as_floats(make_images(1)))


def test_it_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    (tmp_path / "stubborn_one.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Flatten):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.rest = [torch.ones(784, 10)]\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) @ self.rest[0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = PrecomputeSpec(models={"m": "python:stubborn_one:Net"}, attacks=("fgsm",), precision="exact")
    with pytest.raises(ModelError, match="computes in float64 too"):
        precompute_store(spec, DataSpec(data="mnist-mini", limit=70), tmp_path / "s", workers=0)
    assert not (tmp_path / "s").exists()


def test_memory_that_is_short_is_not_the_models_fault(monkeypatch, model):
    """A batch is halved then."""

    def none_left(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(doubtful, "labelled_gradients", none_left)
    with pytest.raises(torch.OutOfMemoryError):
        in_float64(model, as_floats(make_images(1)))


@pytest.mark.usefixtures("two_threads")
def test_a_block_ends_in_the_arithmetic_that_its_record_tells(tmp_path, monkeypatch):
    path, seen = tmp_path / "d.safetensors", []
    module = build_model("D", shape=(1, 28, 28), classes=10, seed=1)
    save_model(path, module, architecture="D", shape=(1, 28, 28), classes=10, record={})
    real = doubtful._gradient

    def noted(*args, **kwargs):
        seen.append((torch.get_num_threads(), torch.backends.cudnn.deterministic, blocks._COMPUTING.locked()))
        return real(*args, **kwargs)

    monkeypatch.setattr(doubtful, "NEAR", 0.02)
    monkeypatch.setattr(doubtful, "_gradient", noted)
    spec = PrecomputeSpec(models={"d": str(path)}, attacks=("fgsm",), precision="exact")
    precompute_store(spec, DataSpec(data="mnist-mini", limit=70), tmp_path / "s", workers=0)
    assert len(seen) > 1
    assert set(seen[1:]) == {(1, True, True)}  # the first is the trial before


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float32, (5, 70), elements=st.one_of(st.just(0.0), st.floats(-1, 1, width=32))),
    st.sampled_from([1e-6, 0.01, 0.5]),
)
def test_rows_near_zero_are_found_here_and_on_a_device(values, share):
    sizes = np.abs(values)
    expected = ((sizes > 0) & (sizes < np.float32(share) * sizes.max(1, keepdims=True))).any(1)
    assert (rows_near_zero(values, share=share) == expected).all()
    assert (device_codec.rows_near_zero(torch.from_numpy(values), share=share).numpy() == expected).all()
