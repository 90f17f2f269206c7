"""Keys of draws: pure functions of their name, and torch's generator as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ensadv_data.keys import derive_key, numpy_generator, torch_seeded
from laws import is_pure

quick = settings(max_examples=50, deadline=None)
names = st.lists(
    st.one_of(st.integers(), st.text(st.characters(codec="utf-8", min_codepoint=32), max_size=8)), max_size=4
)


@quick
@given(names)
def test_a_key_is_a_function_of_its_name_with_63_bits(name):
    key = is_pure(derive_key, *name)
    assert 0 <= key < 2**63


@quick
@given(names, names)
def test_different_names_have_different_keys(one, other):
    assert (derive_key(*one) == derive_key(*other)) == (one == other)


def test_neighbouring_names_have_different_keys():
    neighbours = [("a", 1), ("a", "1"), ("a1",), ("b", 1), (1, "a"), ("a", 1, 0), ("a", -1), ("a", 11), ("a",), ()]
    assert len({derive_key(*name) for name in neighbours}) == len(neighbours)


def test_golden_key():
    """The order of training and every stored random step rest on this number."""
    assert derive_key("order", 0, 1) == 8661003937235250021


@quick
@given(names)
def test_the_generator_of_a_name_always_gives_the_same_numbers(name):
    first = is_pure(lambda: numpy_generator(*name).integers(0, 2**63, 5))
    assert isinstance(numpy_generator(*name).bit_generator, np.random.Philox)
    assert (first != numpy_generator(*name, "more").integers(0, 2**63, 5)).any()


@quick
@given(names)
def test_torch_draws_by_name_and_is_put_back(name):
    before = torch.get_rng_state()
    draws = []
    for words in (name, name, [*name, "more"]):
        with torch_seeded("cpu", *words):
            draws.append(torch.rand(5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_torch_is_put_back_after_an_error_and_from_inside_another_name():
    before = torch.get_rng_state()
    with torch_seeded("cpu", "outer"):
        first = torch.rand(3)

    def fail() -> None:
        with torch_seeded(torch.device("cpu"), "outer"):
            with torch_seeded("cpu", "inner"):
                torch.rand(3)
            assert torch.equal(torch.rand(3), first)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_torch_is_put_back_on_the_device_too():
    before = torch.cuda.get_rng_state()
    draws = []
    for _ in range(2):
        with torch_seeded("cuda", "name"):
            draws.append(torch.rand(5, device="cuda"))
    assert torch.equal(*draws)
    assert torch.equal(torch.cuda.get_rng_state(), before)
