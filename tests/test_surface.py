"""The loss over a plane: every point by hand, and directions that are orthogonal."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from ensadv_data.data import open_dataset
from ensadv_data.errors import QuantityError
from ensadv_data.evaluation.surface import measure_surface, orthogonal_signs
from ensadv_data.models import Model, build_model


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("mnist-mini", "test", limit=10)


def model_of(seed: int, name: str = "m") -> Model:
    return Model(name, build_model("D", shape=(1, 28, 28), classes=10, seed=seed).eval(), "here", "D", "0" * 64)


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=60), st.integers(0, 2**32))
def test_a_random_direction_is_orthogonal_and_signed(signs, seed):
    along = np.array(signs, np.int8)
    across = orthogonal_signs(along, np.random.default_rng(seed))
    assert int(along.astype(int) @ across) == 0
    assert ((across == 0) >= (along == 0)).all()
    assert (across != 0).sum() == (along != 0).sum() // 2 * 2


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("others", [False, True])
def test_every_point_is_the_loss_at_its_image(dataset, others, clip):
    model, other = model_of(1), model_of(2, "other") if others else None
    surface = measure_surface(
        model, dataset, 3, radius=0.3, resolution=5, other=other, clip=clip, loss="ce", batch_size=7
    )
    image, label = dataset.read(np.array([3]))
    x, y = torch.from_numpy(image).float() / 255, torch.from_numpy(label)

    def signs(module):
        point = x.clone().requires_grad_(True)
        return torch.autograd.grad(cross_entropy(module(point), y), point)[0].sign()

    along = signs(model.module)
    if other is not None:
        across = signs(other.module)
        assert surface.across == "other"
        cosine = torch.nn.functional.cosine_similarity(along.flatten(), across.flatten(), dim=0)
        assert surface.cosine == pytest.approx(float(cosine), abs=1e-6)
        exact = model.module.double()
        for i, first in enumerate(surface.axis):
            for j, second in enumerate(surface.axis):
                point = (x + float(first) * along + float(second) * across).double()
                with torch.no_grad():
                    expected = cross_entropy(exact(point.clamp(0, 1) if clip else point), y)
                assert surface.loss[i, j] == pytest.approx(float(expected), rel=1e-4)
    else:
        assert (surface.across, surface.cosine) == ("random", 0)
    assert surface.axis.tolist() == pytest.approx([-0.3, -0.15, 0, 0.15, 0.3])
    assert (surface.label, surface.example) == (int(label[0]), 3)
    told = json.loads(json.dumps(surface.to_json()))
    assert np.array(told["loss"]) == pytest.approx(surface.loss, abs=1e-6)


def test_the_random_direction_has_a_name(dataset):
    one, same, two = (
        measure_surface(model_of(1), dataset, 0, radius=0.3, resolution=3, seed=seed) for seed in (5, 5, 6)
    )
    assert one.loss.tolist() == same.loss.tolist()
    assert one.loss.tolist() != two.loss.tolist()
    assert one.loss[1, 1] == two.loss[1, 1]


@pytest.mark.parametrize(
    ("example", "options", "words"),
    [
        (10, {"radius": 0.1}, "expected an index in 0 … 9, got 10"),
        (-1, {"radius": 0.1}, "got -1"),
        (0, {"radius": 0.0}, "radius"),
        (0, {"radius": 1.5}, "radius"),
        (0, {"radius": 0.1, "resolution": 4}, "an odd number"),
        (0, {"radius": 0.1, "resolution": 1}, "an odd number"),
    ],
)
def test_what_is_out_of_range_is_refused(dataset, example, options, words):
    with pytest.raises(QuantityError, match=words):
        measure_surface(model_of(1), dataset, example, **options)
