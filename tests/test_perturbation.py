"""Perturbations of one model: they are the attacks' definitions, whatever the batch, and never NaN."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ensadv_data.attacks.catalogue import noise_of, perturb
from ensadv_data.attacks.gradient import input_gradient, logits_of
from ensadv_data.codec import apply_deltas, random_bits, unpack_signs
from ensadv_data.entries import entries_of, remarks_on_draws
from ensadv_data.errors import ModelError
from ensadv_data.keys import derive_key
from ensadv_data.models import Model, check_model, weights_digest
from ensadv_data.perturbation import perturb_block
from ensadv_data.spec import AttackSpec, PrecomputeSpec
from ensadv_data.store import Planes

SHAPE, D, K, N = (1, 5, 6), 30, 4, 11
FIRST = 100  # of the block in its data set
EVERY = ("fgsm", "step-ll", "r-fgsm", "r-step-ll", "i-fgsm", "iter-ll", "pgd:steps=5,step_size=0.1")


def make_model(*, dropout: float = 0.0, pooled: bool = False, seed: int = 0) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if pooled:
            layers: list[nn.Module] = [nn.Conv2d(1, 3, 2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, K)]
        else:
            layers = [nn.Flatten(), nn.Linear(D, 20), nn.Tanh(), nn.Dropout(dropout), nn.Linear(20, K)]
        module = nn.Sequential(*layers).eval()
    return Model("m", module, "by hand", "tiny", weights_digest(module))


def make_images(n: int = N, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), dtype=np.uint8)


def make_spec(*attacks: str, **fields) -> PrecomputeSpec:
    return PrecomputeSpec(models={"m": "by hand"}, attacks=attacks, **fields)


def block_of(model: Model, images: np.ndarray, spec: PrecomputeSpec, *, first: int = FIRST) -> dict[str, Planes]:
    return perturb_block(
        model, images, spec, entries_of(spec, model), first=first, y_true_N=np.zeros(len(images), np.int64)
    )


def signs(planes: Planes) -> np.ndarray:
    """int8 (K, n, D)."""
    k, n, width = planes.direction.shape
    nonzero = None if planes.nonzero is None else planes.nonzero.reshape(k * n, width)
    return unpack_signs(planes.direction.reshape(k * n, width), nonzero, d=D).reshape(k, n, D)


def as_floats(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).float() / 255


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("attack", ["fgsm", "step-ll"])
def test_directions_point_the_way_of_the_attack(attack, pooled):
    model, images = make_model(pooled=pooled), make_images()
    (planes,) = block_of(model, images, make_spec(attack)).values()
    x = as_floats(images)
    logits = logits_of(model.module, x)
    label = logits.argmin(1) if attack == "step-ll" else logits.argmax(1)
    gradient = input_gradient(model.module, x, label).flatten(1)
    expected = (-gradient if attack == "step-ll" else gradient).sign().to(torch.int8).numpy()
    assert (signs(planes)[0] == expected).all()
    assert (planes.nonzero is None) == (not pooled)
    assert (planes.label == label.numpy()).all()
    assert planes.label.dtype == np.int32
    x_adv = perturb(model.module, x, label, AttackSpec(name=attack, epsilon=0.3))
    assert torch.equal((x + 0.3 * torch.from_numpy(expected).view_as(x)).clamp(0, 1), x_adv)


@pytest.mark.parametrize("attacks", [("fgsm", "step-ll"), ("fgsm", "r-fgsm:alpha=0.01")])
def test_a_mask_that_a_later_batch_needs_covers_the_earlier_ones(attacks):
    """Dark images give no gradient at all through a ReLU, bright ones give all of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, last = nn.Linear(D, 5, bias=False), nn.Linear(5, K)
    nn.init.uniform_(first.weight, 0.5, 1)
    module = nn.Sequential(nn.Flatten(), first, nn.Threshold(1.0, 0.0), last).eval()
    model = Model("m", module, "by hand", "tiny", weights_digest(module))
    images = np.full((9, *SHAPE), 200, np.uint8)
    images[4:6] = 3
    spec = make_spec(*attacks, draws=2, batch_size=2)
    for planes in block_of(model, images, spec).values():
        assert planes.nonzero is not None
        dark = np.isin(np.arange(9), (4, 5))
        assert ((signs(planes) == 0).all(axis=2) == dark).all()
        assert (signs(planes)[:, ~dark] != 0).all()
    bright = block_of(model, np.delete(images, (4, 5), axis=0), spec)
    assert all(planes.nonzero is None for planes in bright.values())


@pytest.mark.parametrize("attack", ["r-fgsm:alpha=0.1", "r-step-ll:alpha=0.1"])
def test_directions_of_random_steps_are_those_at_the_stepped_point(attack):
    model, images = make_model(), make_images()
    spec = make_spec(attack, draws=3, seed=9)
    (entry,) = entries_of(spec, model).values()
    assert (entry.kind, entry.alpha, entry.epsilon) == ("rsign", 0.1, None)
    assert entry.seed == derive_key("random step", 9, "m", entry.attack)
    (planes,) = block_of(model, images, spec).values()
    x = as_floats(images)
    logits = logits_of(model.module, x)  # the label comes from the clean image
    label = logits.argmin(1) if "ll" in attack else logits.argmax(1)
    for draw in range(3):
        bits = random_bits(entry.seed, np.full(N, draw), np.arange(FIRST, FIRST + N), d=D)
        r = torch.from_numpy(unpack_signs(bits, d=D).astype(np.float32)).view_as(x)
        gradient = input_gradient(model.module, (x + 0.1 * r).clamp(0, 1), label).flatten(1)
        expected = (-gradient if "ll" in attack else gradient).sign().to(torch.int8).numpy()
        assert (signs(planes)[draw] == expected).all()
    assert (planes.label == label.numpy()).all()


@pytest.mark.parametrize("attack", ["i-fgsm", "iter-ll", "pgd:steps=7,step_size=0.05", "i-fgsm:epsilon=16/255,steps=3"])
def test_deltas_give_the_attack_back_to_half_a_level_and_stay_in_the_ball(attack):
    model, images = make_model(), make_images()
    spec = make_spec(attack, draws=2)
    (entry,) = entries_of(spec, model).values()
    (planes,) = block_of(model, images, spec).values()
    epsilon = spec.attacks[0].epsilon
    assert (entry.kind, entry.epsilon, entry.alpha) == ("delta", epsilon, None)
    x = as_floats(images)
    logits = logits_of(model.module, x)
    label = logits.argmin(1) if "ll" in attack else logits.argmax(1)
    examples = np.arange(FIRST, FIRST + N)
    for draw in range(2):
        noise = noise_of(spec.attacks[0], SHAPE, seed=entry.seed, draws=np.full(N, draw), examples=examples)
        exact = perturb(model.module, x, label, spec.attacks[0], noise=noise).flatten(1).numpy()
        flat = x.flatten(1).numpy()
        x_adv = apply_deltas(flat, planes.delta[draw], epsilon=np.full(N, epsilon, np.float32))
        assert np.abs(x_adv - exact).max() <= epsilon / 254 + 1e-6
        assert np.abs(x_adv - flat).max() <= epsilon + 1e-6
        assert planes.delta.min() >= -127
    different = (planes.delta[0] != planes.delta[1]).any()
    assert different == (entry.attack == "pgd")  # only its start is random


def test_every_attack_of_a_block_is_there_with_its_draws():
    spec = make_spec(*EVERY, draws=2)
    planes = block_of(make_model(), make_images(), spec)
    assert list(planes) == [f"m/{attack.name}" for attack in spec.attacks]
    for attack in spec.attacks:
        made = planes[f"m/{attack.name}"]
        if attack.kind == "delta":
            assert (made.delta.shape, made.delta.dtype, made.direction) == ((2, N, D), np.int8, None)
        else:
            assert (made.direction.shape, made.direction.dtype, made.delta) == ((2, N, 4), np.uint8, None)


def test_together_or_alone_gives_the_same():
    model, images = make_model(dropout=0.5), make_images()
    together = block_of(model, images, make_spec("fgsm", "step-ll", "r-fgsm", draws=2))
    for attack in ("fgsm", "step-ll", "r-fgsm"):
        (alone,) = block_of(model, images, make_spec(attack, draws=2)).values()
        assert (alone.direction == together[f"m/{attack}"].direction).all()


@pytest.mark.parametrize("batch_size", [1, 2, 11, 64])
def test_random_signs_and_coins_do_not_depend_on_the_batch(batch_size):
    """A constant model: every gradient is zero, so what is stored is the coin alone."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(D, K)).eval()
    nn.init.zeros_(module[1].weight)
    model = Model("m", module, "by hand", "constant", weights_digest(module))
    spec = make_spec("fgsm", zeros="fill", draws=3, batch_size=batch_size)
    (planes,) = block_of(model, make_images(), spec).values()
    (entry,) = entries_of(spec, model).values()
    assert planes.nonzero is None
    for draw in range(3):
        coin = random_bits(entry.seed, np.full(N, draw), np.arange(FIRST, FIRST + N), d=D, stream=2)
        assert (planes.direction[draw] == coin).all()
    assert (planes.direction[0] != planes.direction[1]).any()
    (kept,) = block_of(model, make_images(), make_spec("fgsm", batch_size=batch_size)).values()
    assert (signs(kept) == 0).all()


def test_a_block_is_the_same_each_time_and_another_seed_gives_another():
    model, images = make_model(dropout=0.5), make_images()
    spec = make_spec("fgsm", "r-fgsm", draws=2, mode="train")
    torch.manual_seed(1)
    one = block_of(model, images, spec)
    torch.manual_seed(2)
    two = block_of(model, images, spec)
    other = block_of(model, images, spec.model_copy(update={"seed": 1}))
    for key in one:
        assert (one[key].direction == two[key].direction).all()
        assert (one[key].direction != other[key].direction).any()
        assert (one[key].label == other[key].label).all()


def test_draws_differ_where_something_is_random():
    model, images = make_model(dropout=0.5), make_images()

    def differ(attack: str, model: Model, **fields) -> bool:
        (planes,) = block_of(model, images, make_spec(attack, draws=2, **fields)).values()
        return bool((planes.direction[0] != planes.direction[1]).any())

    assert differ("fgsm", model, mode="train")
    assert differ("r-fgsm:alpha=0.2", make_model())
    assert not differ("fgsm", model, mode="eval")
    assert not differ("step-ll", make_model(), mode="train")


def test_draws_that_cannot_differ_are_remarked_on():
    drops, firm = make_model(dropout=0.5), replace(make_model(), name="firm")
    several = ("fgsm", "r-fgsm", "i-fgsm", "pgd")
    (note,) = remarks_on_draws(make_spec(*several, draws=2), [drops])
    assert note.startswith("m/fgsm, m/i-fgsm: all 2 draws are equal")
    assert "--draws 1" not in note, "which the other entries would have, too"
    assert [*remarks_on_draws(make_spec("fgsm", draws=2, mode="train"), [drops])] == []
    (note,) = remarks_on_draws(make_spec("fgsm", "r-fgsm", draws=4, mode="train"), [drops, firm])
    assert note.startswith("firm/fgsm: all 4 draws are equal")
    (note,) = remarks_on_draws(make_spec("fgsm", draws=4, mode="train"), [firm])
    assert "use --draws 1" in note


@pytest.mark.parametrize(
    ("attacks", "mode", "advice"),
    [
        (("fgsm",), "eval", "draws differ with an R+ attack"),
        (("fgsm", "r-fgsm"), "eval", "use --draws 4"),
        (("r-fgsm",), "eval", "use --draws 4"),
        (("fgsm",), "train", "use --draws 4"),
    ],
)
def test_a_single_draw_for_training_is_remarked_on(attacks, mode, advice):
    model = make_model(dropout=0.5)
    (note,) = remarks_on_draws(make_spec(*attacks, draws=1, mode=mode), [model])
    assert note.startswith(", ".join(f"m/{attack}" for attack in attacks) + ": one perturbation an image")
    assert advice in note
    assert [*remarks_on_draws(make_spec(*attacks, draws=1, split="test"), [model])] == []


class Sick(nn.Module):
    """Not finite for images whose first pixel is 255."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.inner = nn.Linear(D, K)
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bad = (x[:, 0, 0, 0] > 0.999).unsqueeze(1)
        return torch.where(bad, self.value, self.inner(x.flatten(1)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_refused_with_source_and_example(value):
    module = Sick(value).eval()
    images = make_images()
    images[:, 0, 0, 0] = 7
    images[8, 0, 0, 0] = 255
    model = Model("m", module, "by hand", "sick", weights_digest(module))
    with pytest.raises(ModelError, match=f"source m, example {FIRST + 8}: expected finite logits") as caught:
        block_of(model, images, make_spec("fgsm", batch_size=3))
    assert caught.value.exit_code == 3


class Steep(nn.Module):
    """Finite logits, a gradient that is NaN: √0² is 0, and its derivative 0·∞."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        return torch.stack([flat[:, 0].square().sqrt(), flat[:, 1], flat[:, 2]], dim=1)


@pytest.mark.parametrize(("attack", "what"), [("fgsm", "gradient"), ("i-fgsm", "perturbation")])
def test_gradients_that_are_not_finite_are_refused(attack, what):
    images = make_images()
    images[:, 0, 0, :3] = (100, 50, 50)
    images[4, 0, 0, :3] = (0, 200, 100)
    model = Model("m", Steep(), "by hand", "steep", "0" * 64)
    with pytest.raises(ModelError, match=f"example {FIRST + 4}: expected finite {what}"):
        block_of(model, images, make_spec(attack))


SHAPES = {
    "one row for all": (lambda x: torch.zeros(3), "expected logits of shape"),
    "a map of scores": (lambda x: torch.zeros(len(x), K, 2, 2), "expected logits of shape"),
    "a tuple": (lambda x: (torch.zeros(len(x), K),), "got tuple"),
    "one class": (lambda x: torch.zeros(len(x), 1), "expected logits of shape"),
    "other classes": (lambda x: torch.zeros(len(x), K + 1), "expected 4 logits an image, got 5"),
    "other images": (lambda x: x.view(len(x), 3, 9), "cannot read images of shape"),
}


class Answers(nn.Module):
    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answer(x)


@pytest.mark.parametrize("what", SHAPES)
def test_a_model_whose_output_is_not_one_row_an_image_is_refused(what):
    answer, words = SHAPES[what]
    model = Model("m", Answers(answer), "by hand", "none", "0" * 64)
    with pytest.raises(ModelError, match=r"^m: ") as caught:
        check_model(model, make_images(2), classes=K, device="cpu")
    assert words in str(caught.value)


def test_a_good_model_passes_the_check():
    check_model(make_model(), make_images(2), classes=K, device="cpu")
