"""Attacks: equal to published libraries bit for bit, right signs on sure models, models left as found."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ensadv_data.attacks.catalogue import attack_label, noise_of, perturb
from ensadv_data.attacks.gradient import (
    input_gradient,
    input_gradients,
    least_likely_label,
    logits_of,
    predicted_label,
    steady,
)
from ensadv_data.attacks.iterative import i_fgsm, iter_ll, pgd
from ensadv_data.attacks.loss import (
    CARLINI_WAGNER_CONFIDENCE,
    LOSSES,
    checked_logits,
    cross_entropy,
    hinge,
    margin,
    margin_slope,
)
from ensadv_data.attacks.single import fgsm, r_fgsm, r_step_ll, step_ll
from ensadv_data.data import open_dataset
from ensadv_data.errors import InputError, ModelError, QuantityError
from ensadv_data.keys import torch_seeded
from ensadv_data.models import build_model
from ensadv_data.spec import ATTACKS, AttackSpec, parse_attack
from laws import is_bit_equal, is_pure, leaves_model_alone

EPSILON = 0.3
some = settings(max_examples=15, deadline=None)


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """512 pictures of digits, float32 (512, 1, 28, 28) in [0, 1], and their labels."""
    pixels, labels = open_dataset("mnist-mini", "test").read(np.arange(512))
    return torch.from_numpy(pixels) / 255, torch.from_numpy(labels)


def train_quickly(model: nn.Module, *, steps: int) -> nn.Module:
    """Adam on the embedded training images until the model is sure of most of them."""
    pixels, labels = open_dataset("mnist-mini", "train").read(np.arange(2048))
    x, y = torch.from_numpy(pixels) / 255, torch.from_numpy(labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    model.train()
    with torch_seeded("cpu", "test training"):
        for step in range(steps):
            rows = torch.arange(64 * step, 64 * step + 64) % len(x)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A small convolutional net with dropout and batch normalisation, trained a little."""
    with torch_seeded("cpu", "test net"):
        model = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(400, 10),
        )
    return train_quickly(model, steps=64)


@pytest.fixture(scope="module")
def smooth_net() -> nn.Module:
    """A net without pooling: where pooled values tie, as on a black background, the gradient has no one sign."""
    with torch_seeded("cpu", "test net"):
        model = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(400, 10),
        )
    return train_quickly(model, steps=96)


@pytest.fixture(scope="module")
def net_c() -> nn.Module:
    """The paper's architecture C (max-pooling, no dropout), trained a little."""
    return train_quickly(build_model("C", shape=(1, 28, 28), classes=10), steps=16)


def tiny_model(seed: int = 0, *, classes: int = 3) -> nn.Module:
    with torch_seeded("cpu", "tiny", seed):
        return nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(32, classes)
        ).eval()


def tiny_images(n: int, seed: int) -> Tensor:
    """Random pixels with all the ends of their range, (n, 1, 6, 6)."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-40, 296, (n, 1, 6, 6)).clip(0, 255) / 255).float()


# Oracles: published libraries, bit for bit where the loss is cross-entropy and the formula is the same


def run_foolbox(attack: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    foolbox = pytest.importorskip("foolbox")
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    moved: Tensor = attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=EPSILON)
    return moved


@pytest.mark.parametrize("which", ["net", "net_c"])
def test_fgsm_equals_foolbox_and_torchattacks(which, images, request):
    foolbox, torchattacks = pytest.importorskip("foolbox"), pytest.importorskip("torchattacks")
    model, x, y = request.getfixturevalue(which), images[0][:64], images[1][:64]
    ours = fgsm(model, x, y, epsilon=EPSILON, loss="ce")
    assert torch.equal(ours, run_foolbox(foolbox.attacks.LinfFastGradientAttack(), model, x, y))
    assert torch.equal(ours, torchattacks.FGSM(model, eps=EPSILON)(x, y))
    assert not torch.equal(ours, x)


def test_step_ll_equals_the_targeted_fgsm_of_torchattacks(net, images):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = images[0][:64], images[1][:64]
    oracle = torchattacks.FGSM(net, eps=EPSILON)
    oracle.set_mode_targeted_least_likely(quiet=True)
    assert torch.equal(step_ll(net, x, epsilon=EPSILON, loss="ce"), oracle(x, y))


@pytest.mark.parametrize("which", ["net", "net_c"])
def test_i_fgsm_equals_foolbox_and_torchattacks(which, images, request):
    """Ten steps of ε / 10.

    torchattacks.BIM keeps the ε-ball by comparing with x − ε and x + ε, which rounds differently;
    torchattacks.PGD without random start projects the difference, as foolbox and we do.
    """
    foolbox, torchattacks = pytest.importorskip("foolbox"), pytest.importorskip("torchattacks")
    model, x, y = request.getfixturevalue(which), images[0][:64], images[1][:64]
    ours = i_fgsm(model, x, y, epsilon=EPSILON, loss="ce")
    theirs = foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=EPSILON / 10, steps=10, random_start=False)
    assert torch.equal(ours, run_foolbox(theirs, model, x, y))
    oracle = torchattacks.PGD(model, eps=EPSILON, alpha=EPSILON / 10, steps=10, random_start=False)
    assert torch.equal(ours, oracle(x, y))


def test_iter_ll_equals_the_targeted_pgd_of_torchattacks(net, images):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = images[0][:64], images[1][:64]
    oracle = torchattacks.PGD(net, eps=EPSILON, alpha=EPSILON / 10, steps=10, random_start=False)
    oracle.set_mode_targeted_least_likely(quiet=True)
    assert torch.equal(iter_ll(net, x, epsilon=EPSILON, loss="ce"), oracle(x, y))


def test_pgd_equals_foolbox_and_torchattacks(net, images):
    foolbox, torchattacks = pytest.importorskip("foolbox"), pytest.importorskip("torchattacks")
    x, y = images[0][:64], images[1][:64]
    ours = pgd(net, x, y, epsilon=EPSILON, loss="ce")
    theirs = foolbox.attacks.LinfProjectedGradientDescentAttack(abs_stepsize=0.01, steps=40, random_start=False)
    assert torch.equal(ours, run_foolbox(theirs, net, x, y))
    assert torch.equal(ours, torchattacks.PGD(net, eps=EPSILON, alpha=0.01, steps=40, random_start=False)(x, y))


def test_pgd_from_a_random_start_equals_torchattacks(net, images):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = images[0][:64], images[1][:64]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        start = torch.empty_like(x).uniform_(-EPSILON, EPSILON)
        torch.manual_seed(3)
        theirs = torchattacks.PGD(net, eps=EPSILON, alpha=0.01, steps=10, random_start=True)(x, y)
    ours = pgd(net, x, y, epsilon=EPSILON, steps=10, loss="ce", start=start)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("epsilon", [0.25, 0.3])
def test_r_fgsm_equals_torchattacks_given_its_random_signs(net, images, epsilon):
    """One step with α = ε / 2, where both formulas take two steps of the same size.

    torchattacks then projects onto the ε-ball once more, which can move the last bit of a sum that was
    rounded. So the images are in steps of 1/256 here: with ε = 1/4 nothing is rounded and all bits are
    equal; with ε = 0.3 they are equal to one unit in the last place.
    """
    torchattacks = pytest.importorskip("torchattacks")
    x, y = images[0][:64] * 255 / 256, images[1][:64]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        random_sign = torch.randn_like(x).sign()
        torch.manual_seed(5)
        theirs = torchattacks.RFGSM(net, eps=epsilon, alpha=epsilon / 2, steps=1)(x, y)
    ours = r_fgsm(net, x, y, epsilon=epsilon, alpha=epsilon / 2, random_sign=random_sign, loss="ce")
    if epsilon == 0.25:
        assert torch.equal(ours, theirs)
    else:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2.0**-24)


def test_pgd_on_the_hinge_equals_an_independent_loop(net, images):
    """The loop of Madry et al.: gradient of min(max_{j≠y} z_j − z_y, 50), sign, step, ball, pixels."""
    x, y = images[0][:64].numpy(), images[1][:64].numpy()
    start = np.random.default_rng(0).uniform(-EPSILON, EPSILON, x.shape).astype(np.float32)
    moved = np.clip(x + start, 0, 1)
    for _ in range(40):
        leaf = torch.tensor(moved, requires_grad=True)
        logits = net(leaf)
        objective = torch.zeros(())
        for row, label in zip(logits, y, strict=True):
            rival = max((k for k in range(10) if k != label), key=row.tolist().__getitem__)
            gap = row[rival] - row[label]
            objective = objective + (gap if gap <= 50 else 0 * gap)
        (gradient,) = torch.autograd.grad(objective, leaf)
        moved = moved + np.float32(0.01) * np.sign(gradient.numpy())
        moved = np.clip(x + np.clip(moved - x, -np.float32(EPSILON), np.float32(EPSILON)), 0, 1)
    ours = pgd(net, *images_of(x, y), epsilon=EPSILON, start=torch.from_numpy(start))
    assert torch.equal(ours, torch.from_numpy(moved))


def images_of(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(x), torch.from_numpy(y)


# Losses


def random_logits(seed: int, *, scale: float = 5.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(32, 7, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, 7, (32,), generator=generator)


@some
@given(st.integers(0, 1000))
def test_cross_entropy_is_the_softplus_of_the_margin_form(seed):
    logits, y = random_logits(seed)
    torch.testing.assert_close(nn.functional.softplus(margin(logits, y)), cross_entropy(logits, y))


@some
@given(st.integers(0, 1000))
def test_the_hinge_is_the_best_rival_less_the_label_up_to_the_confidence(seed):
    logits, y = random_logits(seed, scale=40.0)
    expected = [
        min(max(row[j] for j in range(7) if j != label) - row[label], CARLINI_WAGNER_CONFIDENCE)
        for row, label in zip(logits.tolist(), y.tolist(), strict=True)
    ]
    assert hinge(logits, y).tolist() == expected


def test_the_hinge_lets_go_of_an_example_that_is_wrong_enough():
    logits = torch.tensor([[0.0, 60.0], [0.0, 40.0]], requires_grad=True)
    hinge(logits, torch.tensor([0, 0])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0, 0], [-1, 1]]


@given(st.integers(0, 1000))
def test_the_slope_of_the_margin_form_is_what_autograd_finds(seed):
    """In float64 to its last digits, in float32 to its own."""
    logits, y = random_logits(seed)
    for dtype, apart in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        z = logits.to(dtype).requires_grad_()
        (found,) = torch.autograd.grad(margin(z, y).sum(), z)
        slope = margin_slope(z.detach(), y)
        assert slope.dtype == dtype
        assert torch.allclose(slope, found, rtol=0, atol=apart)
        assert torch.allclose(slope.sum(1), torch.zeros(len(z), dtype=dtype), rtol=0, atol=10 * apart)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_slope_of_logits_that_are_not_finite_is_nan(bad):
    logits = torch.zeros(2, 4)
    logits[1, 2] = bad
    slope = margin_slope(logits, torch.tensor([0, 0]))
    assert slope[0].isfinite().all()
    assert slope[1].isnan().any()


def test_gradients_in_closed_form_are_those_of_the_loss(smooth_net, images):
    """Through a whole net, for several losses of one forward pass."""
    x, net = images[0].double(), copy.deepcopy(smooth_net).double()
    y, least = predicted_label(net, x), least_likely_label(net, x)
    both = input_gradients(net, x, [y, least, y], losses=["margin", "margin", "cw"])
    for got, (label, loss) in zip(both, ((y, margin), (least, margin), (y, hinge)), strict=True):
        z = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(net(z), label).sum(), z)
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-15)


def test_losses_by_name():
    assert dict(LOSSES) == {"margin": margin, "ce": cross_entropy, "cw": hinge}


# Signs: right where the model is sure


class Scaled(nn.Module):
    """The model with its logits multiplied: as sure as one likes."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.inner(x)


def test_signs_of_the_margin_form_are_right_where_float32_cross_entropy_is_wrong(smooth_net, images):
    """The surest image has p = 1 − e⁻²⁵: 1 in float32, yet well apart from 1 in float64, which is the judge.

    No sign is wrong where float32 can know it; of the derivatives below a millionth of the image's largest, on
    other hardware than this was written on, as many may be as design §9 allows: 1 in 100,000.
    """
    x, y = images[0], predicted_label(smooth_net, images[0])
    factor = 25 / -float(margin(logits_of(smooth_net, x), y).min())
    sure = Scaled(smooth_net, factor)
    probability = logits_of(sure, x).softmax(dim=1).gather(1, y[:, None])
    assert int((probability == 1).sum()) >= 10  # saturated
    exact = input_gradient(copy.deepcopy(sure).double(), x.double(), y, loss="ce")
    wrong = {loss: input_gradient(sure, x, y, loss=loss).sign() != exact.sign() for loss in ("ce", "margin")}
    knowable = exact.abs() > 1e-6 * exact.abs().amax(dim=(1, 2, 3), keepdim=True)
    assert int((wrong["ce"] & knowable).sum()) > 1000
    assert int((wrong["margin"] & knowable).sum()) == 0
    assert int(wrong["margin"].sum()) <= exact.numel() // 100_000
    assert int(knowable.sum()) > exact.numel() / 2  # not right for want of anything to be wrong about


def test_gradients_do_not_vanish_with_the_margin_form(smooth_net, images):
    """With sure logits × 10, float32 cross-entropy has no gradient left; L′ has that of float64.

    The judge is L′ in float64: float64 cross-entropy itself is rounded here.
    """
    x, y = images[0], predicted_label(smooth_net, images[0])
    sure = Scaled(smooth_net, 10 * max(1.0, 25 / -float(margin(logits_of(smooth_net, x), y).min())))
    gone = {
        loss: int((input_gradient(sure, x, y, loss=loss).flatten(1) == 0).all(dim=1).sum()) for loss in ("ce", "margin")
    }
    assert gone["ce"] > 50
    assert gone["margin"] == 0
    exact = input_gradient(copy.deepcopy(sure).double(), x.double(), y).sign()
    assert int((input_gradient(sure, x, y).sign() != exact).sum()) <= exact.numel() // 100_000


def test_margin_and_cross_entropy_agree_on_a_model_that_is_not_sure(images):
    model = build_model("C", shape=(1, 28, 28), classes=10)
    x, y = images[0][:64].double(), images[1][:64]
    model = model.double().eval()
    assert torch.equal(input_gradient(model, x, y).sign(), input_gradient(model, x, y, loss="ce").sign())


def test_several_gradients_of_one_pass_equal_those_of_their_own(net, images):
    x, y = images[0][:16], images[1][:16]
    least = least_likely_label(net, x)
    together = input_gradients(net, x, [y, least, y], losses=["margin", "margin", "cw"])
    alone = [input_gradient(net, x, y), input_gradient(net, x, least), input_gradient(net, x, y, loss="cw")]
    assert is_bit_equal(together, alone)


# The model is left as it was found

CALLS = {
    "fgsm": lambda m, x, y: fgsm(m, x, y, epsilon=0.1),
    "fgsm, dropout": lambda m, x, y: fgsm(m, x, y, epsilon=0.1, dropout=True),
    "step_ll": lambda m, x, y: step_ll(m, x, epsilon=0.1),
    "r_fgsm": lambda m, x, y: r_fgsm(m, x, y, epsilon=0.1, alpha=0.05, random_sign=torch.ones_like(x), dropout=True),
    "r_step_ll": lambda m, x, y: r_step_ll(m, x, epsilon=0.1, alpha=0.05, random_sign=torch.ones_like(x)),
    "i_fgsm": lambda m, x, y: i_fgsm(m, x, y, epsilon=0.1, steps=2),
    "iter_ll": lambda m, x, y: iter_ll(m, x, epsilon=0.1, steps=2),
    "pgd": lambda m, x, y: pgd(m, x, y, epsilon=0.1, steps=2),
    "predicted": lambda m, x, y: predicted_label(m, x),
    "least likely": lambda m, x, y: least_likely_label(m, x),
}


def mixed_model() -> nn.Module:
    """Modules in different modes, one gradient present and the others None, one parameter frozen."""
    model = tiny_model().train()
    model[1].eval()
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    model[5].bias.requires_grad_(False)
    return model


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
def test_the_model_and_the_images_are_left_as_found(call, grad_mode):
    model, x, y = mixed_model(), tiny_images(4, 0), torch.tensor([0, 1, 2, 0])
    before = x.clone()
    with leaves_model_alone(model), grad_mode():
        moved = CALLS[call](model, x, y)
        assert torch.is_grad_enabled() == (grad_mode is torch.enable_grad)
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert not moved.requires_grad


@pytest.mark.parametrize("call", CALLS)
def test_the_model_is_left_as_found_when_it_fails(call):
    model, y = mixed_model(), torch.tensor([0, 1, 2, 0])
    with leaves_model_alone(model), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        CALLS[call](model, torch.zeros(4, 1, 8, 8), y)


def test_modes_come_back_when_the_body_raises():
    model = mixed_model()

    def fail() -> None:
        with steady(model, dropout=True):
            assert [type(module).__name__ for module in model.modules() if module.training] == ["Dropout"]
            raise KeyError

    with leaves_model_alone(model), pytest.raises(KeyError):
        fail()


def test_a_gradient_of_the_image_is_not_touched():
    x = tiny_images(2, 0).requires_grad_(True)
    x.grad = torch.ones_like(x)
    moved = fgsm(tiny_model(), x, torch.tensor([0, 1]), epsilon=0.1)
    assert moved.shape == x.shape
    assert torch.equal(x.grad, torch.ones_like(x))


# Dropout and labels


def gradient_under(seed: int, model: nn.Module, x: Tensor, y: Tensor, *, dropout: bool) -> Tensor:
    with torch_seeded("cpu", "dropout", seed):
        return input_gradient(model, x, y, dropout=dropout)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_active_where_asked_for_and_nowhere_else(net, images, training):
    model, x, y = copy.deepcopy(net).train(training), images[0][:8], images[1][:8]
    fixed = [gradient_under(seed, model, x, y, dropout=False) for seed in (0, 1)]
    varied = [gradient_under(seed, model, x, y, dropout=True) for seed in (0, 1, 0)]
    assert torch.equal(*fixed)
    assert torch.equal(fixed[0], input_gradient(net, x, y))
    assert not torch.equal(varied[0], varied[1])
    assert torch.equal(varied[0], varied[2])


def test_labels_come_from_evaluation_mode(net, images):
    x = images[0][:64]
    with torch.no_grad():
        logits = net(x)
    model = copy.deepcopy(net).train()
    assert torch.equal(predicted_label(model, x), logits.argmax(dim=1))
    assert torch.equal(least_likely_label(model, x), logits.argmin(dim=1))


@pytest.mark.parametrize("name", ATTACKS)
def test_the_label_of_each_attack(name, net, images):
    x, true = images[0][:64], images[1][:64]
    attack = parse_attack(name)
    if attack.least_likely:  # whatever the true label
        for given_label in (None, true, (true + 1) % 10):
            assert torch.equal(attack_label(net, x, attack, given_label), least_likely_label(net, x))
    else:
        assert torch.equal(attack_label(net, x, attack, true), true)
        assert torch.equal(attack_label(net, x, attack), predicted_label(net, x))


def test_least_likely_attacks_find_their_label_themselves(net, images):
    x = images[0][:16]
    least, r = least_likely_label(net, x), torch.ones_like(x)
    assert torch.equal(step_ll(net, x, epsilon=0.1), step_ll(net, x, least, epsilon=0.1))
    assert torch.equal(iter_ll(net, x, epsilon=0.1), iter_ll(net, x, least, epsilon=0.1))
    quantities = {"epsilon": 0.1, "alpha": 0.05, "random_sign": r}
    assert torch.equal(r_step_ll(net, x, **quantities), r_step_ll(net, x, least, **quantities))


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_without_a_label_take_their_own(name, dropout, net, images):
    x, attack = images[0][:16], parse_attack(name)
    noise = noise_of(attack, tuple(x.shape[1:]), seed=1, examples=np.arange(16))
    label = attack_label(net, x, attack)
    made = []
    for given_label in (None, label):
        with torch_seeded("cpu", "dropout"):
            made.append(perturb(net, x, given_label, attack, noise=noise, dropout=dropout))
    assert torch.equal(*made)


@pytest.mark.parametrize("name", ["fgsm", "step-ll"])
def test_label_and_gradient_come_of_one_pass_where_both_are_in_evaluation_mode(name, net, images):
    passes = []
    handle = net.register_forward_hook(lambda *of: passes.append(net.training))
    try:
        for dropout, count in ((False, 1), (True, 2)):  # with dropout the label's pass is another one
            perturb(net, images[0][:4], None, parse_attack(name), dropout=dropout)
            assert passes == [False] * count
            passes.clear()
    finally:
        handle.remove()


# Properties of every attack


@pytest.mark.parametrize("name", ATTACKS)
@some
@given(epsilon=st.floats(1e-3, 1.0), n=st.integers(1, 4), seed=st.integers(0, 2**31), noisy=st.booleans())
def test_every_attack_stays_in_the_ball_and_in_the_pixels(name, epsilon, n, seed, noisy):
    fields = {"steps": 3, "step_size": 0.4} if ATTACKS[name][0] == "delta" else {}
    attack = AttackSpec(name=name, epsilon=epsilon, **fields)
    model, x = tiny_model(seed % 5), tiny_images(n, seed)
    noise = noise_of(attack, (1, 6, 6), seed=seed, examples=np.arange(n)) if noisy or attack.kind == "rsign" else None
    label = attack_label(model, x, attack)
    moved = is_pure(perturb, model, x, label, attack, noise=noise)
    assert moved.shape == x.shape
    assert moved.dtype == x.dtype
    assert float((moved - x).abs().max()) <= epsilon + 1e-6
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_do_not_depend_on_the_company_of_other_images(name):
    attack = parse_attack(name)
    model, x = tiny_model().double(), tiny_images(6, 0).double()
    noise = noise_of(attack, (1, 6, 6), seed=1, examples=np.arange(6))
    label = attack_label(model, x, attack)
    whole = perturb(model, x, label, attack, noise=noise)
    parts = [
        perturb(model, x[i : i + 2], label[i : i + 2], attack, noise=None if noise is None else noise[i : i + 2])
        for i in (0, 2, 4)
    ]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("name", ATTACKS)
def test_perturb_is_the_function_that_the_attack_names(name, net, images):
    x, y = images[0][:8], images[1][:8]
    attack = parse_attack(name + (":steps=3" if ATTACKS[name][0] == "delta" else ""))
    noise = noise_of(attack, (1, 28, 28), seed=1, examples=np.arange(8))
    label = attack_label(net, x, attack, y)
    expected = {
        "fgsm": lambda: fgsm(net, x, y, epsilon=0.2),
        "step-ll": lambda: step_ll(net, x, epsilon=0.2),
        "r-fgsm": lambda: r_fgsm(net, x, y, epsilon=0.2, alpha=0.05, random_sign=noise),
        "r-step-ll": lambda: r_step_ll(net, x, epsilon=0.2, alpha=0.05, random_sign=noise),
        "i-fgsm": lambda: i_fgsm(net, x, y, epsilon=0.2, steps=3, step_size=0.1),
        "iter-ll": lambda: iter_ll(net, x, epsilon=0.2, steps=3, step_size=0.1),
        "pgd": lambda: pgd(net, x, y, epsilon=0.2, steps=3, start=0.2 * noise),
    }[name]()
    assert torch.equal(perturb(net, x, label, attack, noise=noise, epsilon=0.2), expected)


def test_pgd_without_noise_starts_at_the_image(net, images):
    x, y = images[0][:8], images[1][:8]
    attack = parse_attack("pgd:steps=2,loss=ce")
    assert torch.equal(perturb(net, x, y, attack), pgd(net, x, y, epsilon=0.3, steps=2, loss="ce"))
    other = perturb(net, x, y, attack, loss="cw")
    assert torch.equal(other, pgd(net, x, y, epsilon=0.3, steps=2))


def test_iterative_attacks_make_more_errors_than_single_steps(net, images):
    x, y = images
    errors = {
        name: float((predicted_label(net, perturb(net, x, y, parse_attack(name), epsilon=0.1)) != y).float().mean())
        for name in ("fgsm", "i-fgsm", "pgd")
    }
    clean = float((predicted_label(net, x) != y).float().mean())
    assert clean < 0.25
    assert clean < errors["fgsm"] < min(errors["i-fgsm"], errors["pgd"])


@pytest.mark.parametrize("name", ["fgsm", "step-ll"])
def test_each_image_can_have_its_own_epsilon(name, net, images):
    x = images[0][:6]
    attack = parse_attack(name)
    label = attack_label(net, x, attack)
    radii = [0.0, 0.01, 0.1, 16 / 255, 0.3, 1.0]
    moved = perturb(net, x, label, attack, epsilon=torch.tensor(radii).view(-1, 1, 1, 1))
    for i, radius in enumerate(radii):
        assert torch.equal(moved[i], perturb(net, x, label, attack, epsilon=radius)[i])


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"fgsm", "step-ll"}))
def test_the_other_attacks_have_one_epsilon(name, net, images):
    with pytest.raises(InputError, match=f"expected one epsilon for {name}, got one an image"):
        perturb(net, images[0][:2], images[1][:2], parse_attack(name), epsilon=torch.full((2, 1, 1, 1), 0.1))


# Noise


@pytest.mark.parametrize("name", ATTACKS)
def test_noise_is_a_function_of_seed_draw_example_and_stream(name):
    attack, shape = parse_attack(name), (2, 5, 7)
    examples, draws = np.array([3, 0, 3, 9]), np.array([0, 0, 1, 0])
    noise = is_pure(noise_of, attack, shape, seed=4, examples=examples, draws=draws)
    if name not in ("r-fgsm", "r-step-ll", "pgd"):
        assert noise is None
        return
    assert noise.shape == (4, *shape)
    assert noise.dtype == torch.float32
    alone = [noise_of(attack, shape, seed=4, examples=examples[[i]], draws=draws[[i]])[0] for i in range(4)]
    assert torch.equal(noise, torch.stack(alone))
    assert torch.equal(noise[0], noise_of(attack, shape, seed=4, examples=examples)[0])  # draw 0 unless told
    others = [
        noise_of(attack, shape, seed=5, examples=examples)[0],
        noise_of(attack, shape, seed=4, examples=examples, stream=1)[0],
        noise[1],
        noise[2],
    ]
    assert not any(torch.equal(noise[0], other) for other in others)


def test_noise_is_signs_or_uniform():
    examples = np.arange(500)
    signs = noise_of(parse_attack("r-fgsm"), (1, 28, 28), seed=0, examples=examples)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    uniform = noise_of(parse_attack("pgd"), (1, 28, 28), seed=0, examples=examples).double()
    assert -1 <= float(uniform.min()) < -0.999
    assert 0.999 < float(uniform.max()) <= 1  # float32 rounds the last 2⁻²⁵ below 1 up to it
    tolerance = 5 / np.sqrt(uniform.numel())
    assert abs(float(uniform.mean())) < tolerance
    assert abs(float((uniform**2).mean()) - 1 / 3) < tolerance


# Refusals


@pytest.mark.parametrize("function", [r_fgsm, r_step_ll])
@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.0, -0.05])
def test_a_random_step_outside_the_radius_is_refused(function, alpha):
    x = tiny_images(2, 0)
    quantities = {"epsilon": 0.1, "alpha": alpha, "random_sign": torch.ones_like(x)}
    with pytest.raises(QuantityError, match=rf"alpha: expected 0 < alpha < epsilon = 0.1, got {alpha:g}"):
        function(tiny_model(), x, torch.tensor([0, 1]), **quantities)


@pytest.mark.parametrize("name", ["r-fgsm", "r-step-ll"])
def test_random_steps_need_noise(name):
    with pytest.raises(InputError, match=rf"expected noise of noise_of\(\) for {name}, got None"):
        perturb(tiny_model(), tiny_images(2, 0), torch.tensor([0, 1]), parse_attack(name))


class Answers(nn.Module):
    """Answers what it was told to, whatever it is asked."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (torch.zeros(2), r"\(2,\)"),
        (torch.zeros(2, 1), r"\(2, 1\)"),
        (torch.zeros(3, 10), r"\(3, 10\)"),
        (torch.zeros(2, 10, 1), r"\(2, 10, 1\)"),
        ((torch.zeros(2, 10),), "tuple"),
        (None, "NoneType"),
    ],
)
@pytest.mark.parametrize("call", CALLS)
def test_a_model_that_does_not_answer_logits_is_refused(call, answer, got):
    message = rf"expected logits of shape \(2, K\) with K ≥ 2 from the model, got {got}; wrap the model"
    with pytest.raises(ModelError, match=message):
        CALLS[call](Answers(answer), torch.zeros(2, 1, 6, 6), torch.tensor([0, 1]))


def test_logits_are_passed_on():
    logits = torch.zeros(2, 3)
    assert checked_logits(logits, n=2) is logits
