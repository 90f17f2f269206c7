"""Equation 10 on answers that one can count by hand, and its bounds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensadv_data.errors import InputError
from ensadv_data.evaluation.discrepancy import measure_discrepancy


def answers(**by_model: str) -> dict[str, np.ndarray]:
    return {name: np.array([int(c) for c in text]) for name, text in by_model.items()}


LABELS = np.array([0, 0, 1, 1])


def test_by_hand():
    train = {
        "one": answers(a="0011", b="0011", c="1111"),  # agree: ab 4, ac 2, bc 2 of 4
        "two": answers(a="0000", b="1111", c="0000"),  # agree: ab 0, ac 4, bc 0
    }
    future = answers(a="0011", b="0010", c="1100")  # agree: ab 3, ac 0, bc 1
    got = measure_discrepancy(train, future, LABELS)
    assert got.by_source == {"one": 0.5, "two": 1.0}
    assert got.pairs == {"one": ("a", "c"), "two": ("a", "c")}
    assert got.value == 0.75
    assert got.risk_train == {"a": 0.25, "b": 0.25, "c": 0.5}
    assert got.risk_future == {"a": 0.0, "b": 0.25, "c": 1.0}
    assert got.largest_gap == 0.5
    told = json.loads(json.dumps(got.to_json()))
    assert told["discrepancy"] == 0.75
    assert "lower bound" in told["caveat"]


@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(1, 4), st.integers(1, 30))
def test_it_is_a_mean_of_distances(seed, models, sources, n):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, n)

    def draw():
        return {str(m): generator.integers(0, 3, n) for m in range(models)}

    train, future = {str(s): draw() for s in range(sources)}, draw()
    got = measure_discrepancy(train, future, labels)
    assert 0 <= got.value <= 1
    assert got.value == pytest.approx(np.mean(list(got.by_source.values())))
    assert measure_discrepancy({"same": future}, future, labels).value == 0
    assert measure_discrepancy({"same": future}, future, labels).largest_gap == 0
    swapped = measure_discrepancy({"x": train["0"]}, future, labels)
    assert swapped.value == measure_discrepancy({"x": future}, train["0"], labels).value


@pytest.mark.parametrize(
    ("train", "future", "words"),
    [
        ({}, answers(a="0011", b="0011"), "got 2, 0"),
        ({"one": answers(a="0011")}, answers(a="0011"), "two models"),
        ({"one": answers(a="0011", c="0011")}, answers(a="0011", b="0011"), "answers of a, b on 4 images of one"),
        ({"one": answers(a="0011", b="001")}, answers(a="0011", b="0011"), "on 4 images of one"),
        ({"one": answers(a="0011", b="0011")}, answers(a="0011", b="001"), "images of the future adversary"),
    ],
)
def test_answers_that_do_not_belong_together_are_refused(train, future, words):
    with pytest.raises(InputError, match=words):
        measure_discrepancy(train, future, LABELS)
