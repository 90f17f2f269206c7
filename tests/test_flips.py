"""The flip of a direction beside the direction of the flip: nets for which the answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ensadv_data.attacks.loss import margin
from ensadv_data.evaluation.flips import Flips, measure_flips
from ensadv_data.models import Model
from test_store import make_images

SHAPE = (2, 5, 6)


def made(module: nn.Module) -> Model:
    return Model("m", module.eval(), "m", "X", "0")


class Mirrored(nn.Module):
    """A net whose logits are those of the flipped image, to the bit."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inner = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(60, 4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x) + self.inner(x.flip(3))
        return out


def linear(row: Tensor) -> nn.Module:
    """Two classes, the first of which has the gradient ``row`` at every image."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(60, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([row.flatten(), torch.zeros(60)]))
        net[1].bias.copy_(torch.tensor([50.0, 0]))  # the same label everywhere
    return net


def test_a_net_that_is_symmetric_agrees_in_all():
    assert measure_flips(made(Mirrored()), make_images(30, shape=SHAPE), batch_size=7) == Flips(30, 1.0, 1.0, 1.0)


def test_a_net_whose_gradient_is_turned_round_agrees_in_none():
    row = torch.ones(SHAPE)
    row[:, :, 3:] = -1
    assert measure_flips(made(linear(row)), make_images(9, shape=SHAPE, classes=2)) == Flips(9, 0.0, 0.0, 1.0)


def test_zeros_count_where_the_other_is_none_and_only_there():
    row = torch.ones(SHAPE)
    row[:, :, :2] = 0  # of six columns two are zero here and two there: two of the six agree
    found = measure_flips(made(linear(row)), make_images(9, shape=SHAPE, classes=2))
    assert found.fgsm == pytest.approx(1 / 3)
    nothing = measure_flips(made(linear(torch.zeros(SHAPE))), make_images(9, shape=SHAPE, classes=2))
    assert (nothing.fgsm, nothing.step_ll, nothing.same_label) == (None, None, 1.0)


def test_shares_are_those_of_torch():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(60, 4))
    data = make_images(40, shape=SHAPE)
    found = measure_flips(made(net), data, batch_size=16)
    x = torch.from_numpy(data.images_NCHW).float() / 255
    labels, signs = net(x).argmax(1), []
    for images in (x, x.flip(3)):
        leaf = images.clone().requires_grad_(True)
        margin(net(leaf), labels).sum().backward()
        assert leaf.grad is not None
        signs.append(leaf.grad.sign())
    assert found.fgsm == pytest.approx(float((signs[0].flip(3) == signs[1]).float().mean()), abs=1e-6)
    assert found.same_label == pytest.approx(float((net(x.flip(3)).argmax(1) == labels).float().mean()))
    assert 0.4 < found.fgsm < 0.95
