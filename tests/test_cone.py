"""Regular Hadamard matrices, Lemmas 6 and 7, and the cone on models whose cone is known."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ensadv_data.data import ArrayDataset, open_dataset
from ensadv_data.errors import ModelError, QuantityError
from ensadv_data.evaluation.cone import aligned_directions, measure_cone
from ensadv_data.evaluation.hadamard import ORDERS, regular_hadamard
from ensadv_data.evaluation.interval import wilson_interval
from ensadv_data.models import Model


@pytest.mark.parametrize("order", ORDERS)
def test_the_matrices_are_hadamard_and_regular(order):
    matrix = regular_hadamard(order).astype(int)
    assert matrix.shape == (order, order)
    assert set(np.unique(matrix)) <= {-1, 1}
    assert (matrix @ matrix.T == order * np.eye(order)).all()
    assert (matrix.sum(axis=1) == math.isqrt(order)).all()
    with pytest.raises(ValueError, match="read-only"):
        regular_hadamard(order)[0, 0] = 5


@pytest.mark.parametrize("order", [0, 2, 8, 12, 144])
def test_other_orders_are_refused(order):
    with pytest.raises(QuantityError, match="among 1, 4, 16, 36, 64, 100, got"):
        regular_hadamard(order)


# Lemmas 6 and 7


@given(st.integers(0, 2**32), st.sampled_from([2, 4, 8, 16]), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_lemma_6_no_k_orthogonal_directions_are_aligned_better(seed, k, repeats):
    """With scipy's matrices, which are not regular, columns in random order and with random signs."""
    generator = np.random.default_rng(seed)
    rows = np.tile(scipy.linalg.hadamard(k), repeats)[:, generator.permutation(k * repeats)]
    d = k * repeats
    rows = rows * generator.choice([-1, 1], d)
    v = generator.choice([-1, 1], d)
    assert (rows @ v).min() <= d / math.sqrt(k)


@given(st.integers(0, 2**32), st.sampled_from(ORDERS), st.integers(0, 130))
@settings(max_examples=100, deadline=None)
def test_lemma_7_directions_are_orthogonal_and_reach_the_bound(seed, k, more):
    generator = np.random.default_rng(seed)
    d = k + more
    sign = generator.choice([-1, 1], d).astype(np.int8)
    directions = aligned_directions(sign, k, generator.permutation(d)).astype(int)
    used = d // k * k
    assert (directions @ directions.T == used * np.eye(k)).all()
    assert (directions @ sign == used / math.sqrt(k)).all()
    assert (np.abs(directions).sum(axis=1) == used).all()
    assert ((directions == 0).all(axis=0).sum() == d - used) or k == 1


def test_lemma_7_mean_alignment_with_the_gradient_over_all_permutations():
    gradient = np.array([0.5, -3.0, 0.25, 10.0])
    sign = np.sign(gradient).astype(np.int8)
    found = [aligned_directions(sign, 4, np.array(order)) @ gradient for order in permutations(range(4))]
    assert np.mean(found, axis=0) == pytest.approx([np.abs(gradient).sum() / 2] * 4)


def test_more_directions_than_values_are_refused():
    with pytest.raises(QuantityError, match="at most D = 20, got 36"):
        aligned_directions(np.ones(20, np.int8), 36, np.arange(20))


# Models whose cone is known


class Plane(nn.Module):
    """Class 0 where Σ ±x is below a threshold; every pixel weighs the same."""

    def __init__(self, signs: torch.Tensor, threshold: float) -> None:
        super().__init__()
        self.register_buffer("signs", signs)
        self.threshold = threshold

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        margin = x.flatten(1) @ self.signs.to(x.dtype) - self.threshold
        return torch.stack([-margin, margin], dim=1)


def grey(n: int, side: int, *, label: int = 0) -> ArrayDataset:
    images = np.full((n, 1, side, side), 51, np.uint8)  # 0.2
    return ArrayDataset(images, np.full(n, label), name="grey", split="test", classes=2)


SIDE = 120  # all orders divide 14,400


def plane(distance: float, *, side: int = SIDE) -> Model:
    """A model whose boundary is ``distance`` away, in L∞, from the grey image."""
    signs = torch.from_numpy(np.random.default_rng(3).choice([-1.0, 1.0], side * side)).float()
    at = float(signs.double().sum()) * 51 / 255
    return Model("plane", Plane(signs, at + distance * side * side), "here", "none", "0" * 64)


@pytest.mark.parametrize("order", ORDERS)
def test_on_a_linear_model_the_largest_order_is_that_of_the_theory(order):
    """A direction of order k moves the sum by ε·d/√k: all k are adversarial just when ε/√k exceeds the distance."""
    epsilon = 0.19
    orders = ORDERS[: ORDERS.index(order) + 2]
    between = [epsilon / math.sqrt(k) for k in (*orders, 169)]
    distance = (between[ORDERS.index(order)] + between[ORDERS.index(order) + 1]) / 2
    for clip in (True, False):
        cone = measure_cone(plane(distance), grey(2, SIDE), epsilons=[epsilon], clip=clip)
        assert cone.whole[epsilon].tolist() == [order, order]
        assert cone.found[epsilon].tolist() == [order, order]
        assert (cone.points, cone.skipped) == (2, 0)
        assert cone.clipped is clip


def test_a_distant_boundary_leaves_no_direction_and_a_near_one_all():
    for distance, expected in ((0.2, 0), (0.001, 100)):
        cone = measure_cone(plane(distance), grey(1, SIDE), epsilons=[0.19])
        assert cone.whole[0.19].tolist() == [expected]
    curve = cone.curve(0.19)
    assert len(curve) == 100
    assert {rate.value for rate in curve} == {1.0}


def test_clipping_takes_from_a_direction_what_would_leave_the_range():
    """At 0.2, a step of 0.3 can only go 0.2 down: half of the pixels lose a third."""
    distance = 0.28
    assert measure_cone(plane(distance), grey(1, SIDE), epsilons=[0.3], clip=False).whole[0.3].tolist() == [1]
    assert measure_cone(plane(distance), grey(1, SIDE), epsilons=[0.3], clip=True).whole[0.3].tolist() == [0]


def test_the_curve_is_the_share_of_points_with_so_many():
    model = plane(0.05)
    cone = measure_cone(model, grey(3, SIDE), epsilons=[0.04, 0.19], orders=(1, 4))
    cone.found[0.19][:] = [0, 2, 4]
    assert [rate.errors for rate in cone.curve(0.19)] == [2, 2, 1, 1]
    told = cone.to_json()
    assert [row["epsilon"] for row in told["epsilons"]] == [0.04, 0.19]
    assert told["epsilons"][1]["at_least"] == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3])
    whole = told["epsilons"][1]["all_of_order"]["4"]
    assert (whole["low"], whole["high"]) == wilson_interval(whole["errors"], 3)


def test_a_model_that_is_always_wrong_has_no_point_and_says_so():
    cone = measure_cone(plane(0.1), grey(5, SIDE, label=1), epsilons=[0.3])
    assert (cone.points, cone.skipped) == (0, 5)
    told = cone.to_json()
    assert told["epsilons"] == [{"epsilon": 0.3, "at_least": None, "all_of_order": None, "mean_found": None}]


def test_points_are_the_first_that_are_right_whatever_the_batches():
    data = open_dataset("mnist-mini", "test", limit=60)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).double()

    class Exact(nn.Module):
        def forward(self, x):
            return net(x.double())

    model = Model("m", Exact(), "here", "none", "0" * 64)
    cones = [measure_cone(model, data, epsilons=[0.02, 0.1], points=4, batch_size=size, seed=1) for size in (7, 60)]
    assert cones[0].points == 4
    for epsilon in (0.02, 0.1):
        assert cones[0].found[epsilon].tolist() == cones[1].found[epsilon].tolist()
    assert cones[0].skipped <= 56


def test_a_zero_of_the_gradient_becomes_a_sign():
    """Half of the pixels do not matter: the directions stay orthogonal, and the cone is that of a half."""
    signs = torch.zeros(SIDE * SIDE)
    signs[: SIDE * SIDE // 2] = 1.0
    model = Model("half", Plane(signs, 0.2 * SIDE * SIDE / 2 + 100), "here", "none", "0" * 64)
    assert measure_cone(model, grey(1, SIDE), epsilons=[0.19]).whole[0.19].tolist()[0] >= 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(QuantityError, match="at most D = 64, got 100"):
        measure_cone(plane(0.1, side=8), grey(1, 8), epsilons=[0.1], orders=(1, 100))
    with pytest.raises(ModelError, match="plane: the model cannot read"):
        measure_cone(plane(0.1, side=16), grey(1, 20), epsilons=[0.1], orders=(1, 4))
