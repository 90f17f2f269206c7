"""Models made of models: their formulas, their gradients, and references of references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ensadv_data.errors import ModelError
from ensadv_data.models import build_model, leaves, load_model, save_model, with_leaves
from ensadv_data.models.composite import Binarised, MeanLogits, MeanProbabilities
from ensadv_data.recipe import read_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    for seed, name in enumerate("ab"):
        net = build_model("D", shape=(1, 28, 28), classes=10, seed=seed)
        save_model(folder / f"{name}.safetensors", net, architecture="D", shape=(1, 28, 28), classes=10, record={})
    return folder


@pytest.fixture
def members(folder):
    return [load_model(str(folder / f"{name}.safetensors")).module for name in "ab"]


X = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def test_means_are_means(members):
    one, two = (member(X) for member in members)
    assert torch.allclose(MeanLogits(members)(X), (one + two) / 2)
    probabilities = MeanProbabilities(members)(X).softmax(dim=1)
    assert torch.allclose(probabilities, (one.softmax(1) + two.softmax(1)) / 2, atol=1e-6)
    assert torch.allclose(MeanProbabilities(members[:1])(X).softmax(1), one.softmax(1), atol=1e-6)


def test_a_sure_ensemble_keeps_its_gradient():
    """Averaged probabilities underflow; their logarithm, taken member by member, does not."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    with torch.no_grad():
        net[1].bias.copy_(torch.tensor([300.0, 0.0, -300.0]))
    x = X.clone().requires_grad_(True)
    MeanProbabilities([net, net])(x)[:, 2].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_binarised_sees_black_and_white_and_passes_the_gradient():
    seen = []

    class Inner(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)[:, :3] * torch.tensor([1.0, 2.0, 3.0])

    x = torch.tensor([[0.0, 0.3, 0.5], [0.501, 0.7, 1.0]]).view(2, 1, 1, 3).requires_grad_(True)
    Binarised(Inner())(x).sum().backward()
    assert seen[0].flatten().tolist() == [0, 0, 0, 1, 1, 1]
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1, 2, 3, 1, 2, 3]


def test_references_load_their_members(folder, members):
    a, b = (str(folder / f"{name}.safetensors") for name in "ab")
    for kind, module in (("mean-logits", MeanLogits), ("mean-probabilities", MeanProbabilities)):
        model = load_model(f"{kind}:{a}+{b}", name="both")
        assert torch.equal(model.module(X), module(members)(X))
        assert (model.name, model.architecture) == ("both", f"{kind}:D+D")
        assert not model.module.training
    wrapped = load_model(f"binarised:mean-logits:{a}+{b}")
    assert wrapped.architecture == "binarised:mean-logits:D+D"
    assert torch.equal(wrapped.module(X), MeanLogits(members)((X > 0.5).float()))
    kinds = (a, b, f"mean-logits:{a}+{b}", f"mean-probabilities:{a}+{b}", f"binarised:{a}")
    assert len({load_model(reference).digest for reference in kinds}) == 5
    assert load_model(kinds[2]).digest == load_model(kinds[2]).digest


@pytest.mark.parametrize("reference", ["mean-logits:", "mean-logits:a.safetensors+", "binarised:", "mean-logits:+"])
def test_an_empty_member_is_refused(reference):
    with pytest.raises(ModelError, match="REF"):
        load_model(reference)


NAMES = st.sampled_from(["a", "b", "x/y.safetensors", "python:m:f", "timm:n,weights=w"])


@given(st.lists(NAMES, min_size=1, max_size=4), st.booleans())
def test_leaves_are_what_a_reference_is_made_of(names, wrap):
    reference = "mean-logits:" + "+".join(names)
    reference = f"binarised:{reference}" if wrap else reference
    assert leaves(reference) == names
    assert with_leaves(reference, lambda leaf: leaf) == reference
    assert leaves(with_leaves(reference, lambda leaf: f"{leaf}!")) == [f"{name}!" for name in names]


def test_a_recipe_may_name_stages_inside(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        'data = { data = "mnist-mini", limit = 64 }\n[defaults.train]\narchitecture = "D"\n'
        "[train.one]\n[train.two]\n[evaluate.all]\n"
        'targets = { white = "binarised:one" }\nsources = { both = "mean-logits:one+two" }\n'
    )
    assert set(read_recipe(path).stage("all").inputs) == {"one", "two"}
