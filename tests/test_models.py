"""Models: the paper's Table 5, references, files that are whole, and those that are not."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import max_pool2d

from ensadv_data.data import open_dataset
from ensadv_data.errors import IntegrityError, ModelError, OutputError, UnknownNameError
from ensadv_data.models import ARCHITECTURES, Model, build_model, load_model, read_metadata, save_model, weights_digest
from laws import is_bit_equal, is_pure

MNIST = (1, 28, 28)
RECORD = {"epochs": 6, "seed": 3}


def conv(inputs: int, outputs: int, side: int) -> int:
    return inputs * outputs * side * side + outputs


def full(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


# Table 5 on 28×28×1, with the sides of the maps as they come out of each layer
PARAMETERS = {
    # 28 → 24 → 20
    "A": conv(1, 64, 5) + conv(64, 64, 5) + full(64 * 20 * 20, 128) + full(128, 10),
    # "same", stride 2: 28 → 14; stride 2: 14 → 5; stride 1: 5 → 1
    "B": conv(1, 64, 8) + conv(64, 128, 6) + conv(128, 128, 5) + full(128, 10),
    "B*": conv(1, 64, 8) + conv(64, 128, 6) + conv(128, 128, 5) + full(128, 10),
    # 28 → 26 → 13 → 11 → 5
    "C": conv(1, 128, 3) + conv(128, 64, 3) + full(64 * 5 * 5, 128) + full(128, 10),
    "D": full(784, 300) + 3 * full(300, 300) + full(300, 10),
}


def make(architecture: str = "C", *, seed: int = 0) -> nn.Module:
    return build_model(architecture, shape=MNIST, classes=10, seed=seed)


def write(path, module: nn.Module, architecture: str = "C") -> str:
    return save_model(path, module, architecture=architecture, shape=MNIST, classes=10, record=RECORD)


# Table 5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameters_are_those_of_table_5(architecture):
    module = make(architecture)
    assert sum(parameter.numel() for parameter in module.parameters()) == PARAMETERS[architecture]
    assert module.eval()(torch.zeros(2, *MNIST)).shape == (2, 10)


def test_c_is_that_of_table_5_though_it_pools_first():
    images, _ = open_dataset("mnist-mini", "test", limit=50).read(np.arange(50))
    module, logits, gradients = make("C"), [], []
    convolutions = [layer for layer in module if isinstance(layer, nn.Conv2d)]
    for printed in (False, True):
        x = (torch.from_numpy(images).float() / 255).requires_grad_(True)
        if printed:
            hidden = max_pool2d(convolutions[0](x).tanh(), 2)
            hidden = max_pool2d(convolutions[1](hidden).tanh(), 2)
            out = module[-1](module[-2](module[-3](hidden.flatten(1))))
        else:
            out = module(x)
        logits.append(out)
        gradients.append(torch.autograd.grad(out.logsumexp(1).sum(), x)[0])
    assert torch.allclose(*logits, rtol=0, atol=1e-6)
    assert torch.allclose(*gradients, rtol=0, atol=1e-6)


def test_sums_by_hand():
    assert PARAMETERS == {"A": 3_382_346, "B": 710_218, "B*": 710_218, "C": 281_290, "D": 509_410}


@pytest.mark.parametrize(
    ("architecture", "rates"), [("A", [0.25, 0.5]), ("B", [0.2, 0.5]), ("B*", [0.5]), ("C", []), ("D", [0.5] * 4)]
)
def test_dropout_is_that_of_table_5(architecture, rates):
    assert [layer.p for layer in make(architecture) if isinstance(layer, nn.Dropout)] == rates


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_shapes_and_numbers_of_classes_fit(architecture):
    module = build_model(architecture, shape=(3, 32, 32), classes=7).eval()
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_seed_names_the_weights(architecture):
    first = is_pure(lambda: weights_digest(make(architecture, seed=1)))
    assert first != weights_digest(make(architecture, seed=2))


def test_weights_start_as_documented():
    for name, bias in make("A").named_parameters():
        if name.endswith("bias"):
            assert not bias.any()
    for architecture in ("A", "D"):
        layers = [layer for layer in make(architecture) if isinstance(layer, nn.Linear)]
        for layer in layers:
            glorot = (2 / (layer.in_features + layer.out_features)) ** 0.5
            he = (2 / layer.in_features) ** 0.5
            expected = he if architecture == "D" and layer is not layers[-1] else glorot
            assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.05)


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"unknown architecture 'E'; known: A, B, B\*, C, D"):
        build_model("E", shape=MNIST, classes=10)


@pytest.mark.parametrize("architecture", ["A", "B", "B*", "C"])
def test_images_that_are_too_small_are_refused(architecture):
    message = rf"architecture {architecture[0]}\*? does not fit images of shape \(1, 4, 4\)"
    with pytest.raises(ModelError, match=message):
        build_model(architecture, shape=(1, 4, 4), classes=10)


# Digests


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("flag", torch.tensor([True, False]))


@settings(deadline=None)
@given(st.integers(0, 6), st.data())
def test_the_digest_changes_with_any_value_of_any_parameter_or_buffer(which, data):
    torch.manual_seed(0)
    module = Small()
    before = is_pure(weights_digest, module)
    tensor = list(module.state_dict().values())[which]
    flat = tensor.view(-1)
    place = data.draw(st.integers(0, flat.numel() - 1))
    old = flat[place].clone()
    flat[place] = ~old if tensor.dtype == torch.bool else old + 1
    assert weights_digest(module) != before
    flat[place] = old
    assert weights_digest(module) == before


def test_the_digest_tells_apart_names_dtypes_and_shapes():
    one, other = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    other.weight.data = one.weight.data.reshape(2, 3).clone()
    named = nn.Sequential(one)
    assert len({weights_digest(module) for module in (one, other, named)}) == 3
    assert weights_digest(one) != weights_digest(nn.Linear(2, 3, bias=False).requires_grad_(False).half())


def test_a_digest_does_not_depend_on_the_order_of_registration():
    class Turned(Small):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.register_buffer("flag", torch.tensor([True, False]))
            self.norm = nn.BatchNorm1d(2)
            self.layer = nn.Linear(3, 2)

    module, turned = Small(), Turned()
    turned.load_state_dict(module.state_dict())
    assert weights_digest(turned) == weights_digest(module)


# Files of ours


@pytest.mark.parametrize("architecture", ["B*", "C", "D"])
def test_a_model_survives_the_round_trip_through_a_file(tmp_path, architecture):
    module = make(architecture, seed=5)
    path = tmp_path / "net.safetensors"
    digest = write(path, module, architecture)
    model = load_model(str(path))
    assert isinstance(model, Model)
    assert (model.name, model.reference, model.architecture) == ("net", str(path), architecture)
    assert (model.digest, model.record) == (digest, RECORD)
    assert digest == weights_digest(module) == weights_digest(model.module)
    assert not any(part.training for part in model.module.modules())
    x = torch.rand(2, *MNIST, generator=torch.Generator().manual_seed(0))
    assert is_bit_equal(model.module(x), module.eval()(x))
    assert load_model(str(path), name="other").name == "other"
    assert read_metadata(path) == {
        "architecture": architecture,
        "shape": [1, 28, 28],
        "classes": 10,
        "digest": digest,
        "record": RECORD,
    }


def test_the_same_model_gives_the_same_bytes(tmp_path):
    files = []
    for i in range(4):
        write(tmp_path / f"{i}.safetensors", make(seed=1).train(i % 2 == 0))
        files.append((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(set(files)) == 1


def test_a_model_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write(tmp_path / "file" / "net.safetensors", make())


def test_a_missing_file_is_refused_with_the_forms_of_a_reference(tmp_path):
    for reference in (str(tmp_path / "none.safetensors"), str(tmp_path), "timn:resnet18"):
        with pytest.raises(ModelError, match=r"found no file; a reference is FILE\.safetensors, timm:NAME"):
            load_model(reference)


@pytest.mark.parametrize("keep", [0, 4, 100, 10_000, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = tmp_path / "net.safetensors"
    write(path, make())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="expected a safetensors file written by ensadv-data"):
        load_model(str(path))


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"ensadv_data": "not json"},
        {"ensadv_data": "[1]"},
        {"ensadv_data": "7"},
        {"ensadv_data": "{}"},
        {"ensadv_data": json.dumps({"architecture": "C", "shape": [1, 28, 28], "classes": 10})},
    ],
)
def test_somebody_elses_safetensors_are_refused_with_a_way_out(tmp_path, metadata):
    path = tmp_path / "net.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(ModelError, match=r"written by ensadv-data, got: .*; use python:MODULE:FACTORY"):
        load_model(str(path))


def test_a_file_that_is_no_safetensors_at_all_is_refused(tmp_path):
    path = tmp_path / "net.pt"
    torch.save(make().state_dict(), path)
    with pytest.raises(ModelError, match="expected a safetensors file"):
        load_model(str(path))


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    write(path, make("C"), architecture="D")
    with pytest.raises(ModelError, match="the weights do not fit the architecture"):
        load_model(str(path))


def test_an_architecture_of_the_future_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    write(path, make(), architecture="Z")
    with pytest.raises(UnknownNameError, match="unknown architecture 'Z'"):
        load_model(str(path))


def test_weights_that_do_not_match_their_digest_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    write(path, make())
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"expected weights of digest \w{64}, got \w{64}; the file is corrupted"):
        load_model(str(path))


# python:MODULE:FACTORY


@pytest.fixture
def module_of_mine(tmp_path, monkeypatch):
    (tmp_path / "net_of_mine.py").write_text(
        "import torch\n"
        "def factory():\n    return torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Flatten())\n"
        "ready = torch.nn.Flatten()\n"
        "def wrong():\n    return [1]\n"
        "number = 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "net_of_mine"
    sys.modules.pop("net_of_mine", None)


@pytest.mark.parametrize("attribute", ["factory", "ready"])
def test_a_model_of_the_users_own_is_loaded(module_of_mine, attribute):
    model = load_model(f"python:{module_of_mine}:{attribute}", name="mine")
    assert (model.name, model.architecture, dict(model.record)) == ("mine", f"{module_of_mine}:{attribute}", {})
    assert not any(part.training for part in model.module.modules())
    assert model.digest == weights_digest(model.module)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("python:net_of_mine:wrong", "expected the factory to return a torch.nn.Module, got list"),
        ("python:net_of_mine:number", "expected the factory to return a torch.nn.Module, got int"),
        ("python:net_of_mine:absent", "has no attribute 'absent'; is the module on the Python path"),
        ("python:no_module_of_that_name:f", "No module named 'no_module_of_that_name'; is the module on the Python"),
        ("python:net_of_mine", "expected python:MODULE:FACTORY, got python:net_of_mine"),
        ("python::factory", "expected python:MODULE:FACTORY, got python::factory"),
        ("python:net_of_mine:", "expected python:MODULE:FACTORY"),
        ("python:.relative:factory", "expected python:MODULE:FACTORY"),
        ("python:a;b:factory", "expected python:MODULE:FACTORY"),
    ],
)
def test_a_reference_that_leads_to_no_model_is_refused(module_of_mine, reference, message):
    with pytest.raises(ModelError) as caught:
        load_model(reference)
    assert message in str(caught.value)


# timm

TINY = "test_vit"


def test_a_model_of_timm_normalises_inside_and_is_a_function_of_its_name():
    timm = pytest.importorskip("timm")
    model = load_model(f"timm:{TINY}")
    again = load_model(f"timm:{TINY}")
    assert model.architecture == TINY
    assert model.digest == again.digest
    inner = model.module.inner
    mean, std = (torch.tensor(inner.default_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    x = torch.rand(2, *inner.default_cfg["input_size"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.module(x), inner((x - mean) / std))
    assert TINY in timm.list_models()


def test_weights_of_timm_come_from_a_local_file(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(9)
    inner = timm.create_model(TINY, pretrained=False)
    path = tmp_path / "vit.safetensors"
    save_file(inner.state_dict(), path)
    model = load_model(f"timm:{TINY},weights={path}")
    assert weights_digest(model.module.inner) == weights_digest(inner)
    path.write_bytes(path.read_bytes()[:-1])
    for reference in (f"timm:{TINY},weights={path}", f"timm:{TINY},weights={tmp_path}/none"):
        with pytest.raises(ModelError, match="the weights do not fit the architecture"):
            load_model(reference)


@pytest.mark.parametrize("option", ["pretrained=1", "weights=", "weights", "x"])
def test_other_options_of_timm_are_refused(option):
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match=r"expected timm:NAME\[,weights=FILE\|hub\]\S+, got timm:"):
        load_model(f"timm:{TINY},{option}")


@pytest.mark.parametrize(("name", "known"), [("resnet180", "resnet18"), ("zzzzzzz", "see timm.list_models")])
def test_an_unknown_model_of_timm_is_refused_with_names_like_it(name, known):
    pytest.importorskip("timm")
    with pytest.raises(UnknownNameError) as caught:
        load_model(f"timm:{name}")
    assert f"unknown timm model {name!r}; known: " in str(caught.value)
    assert known in str(caught.value)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"needs the extra: pip install 'ensadv-data\[timm\]'"):
        load_model("timm:resnet18")
