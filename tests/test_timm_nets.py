"""Models of timm: weights from files and the hub, sizes, and timm's networks as what is trained."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate

from ensadv_data.attacks.gradient import input_gradient
from ensadv_data.cli import cli
from ensadv_data.data import open_dataset
from ensadv_data.errors import IntegrityError, ModelError, QuantityError, UnknownNameError
from ensadv_data.manifest import read_manifest
from ensadv_data.models import build_model, check_model, leaves, load_model, outside_file, with_absolute_file
from ensadv_data.models.timm_nets import parse_timm, timm_config
from ensadv_data.recipe import packaged_recipe, read_recipe
from ensadv_data.spec import PreprocessSpec
from photographs import cut_photographs

timm = pytest.importorskip("timm")
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NET = "test_resnet"  # timm's own, for tests: a convolutional net with batch normalisation, 160×160


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(4)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file({k: v + 0.01 if v.is_floating_point() else v for k, v in fresh(NET).items()}, path)
    return path


def fresh(name: str, **options) -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    return timm.create_model(name, pretrained=False, **options).state_dict()


def images(side: int, n: int = 2, channels: int = 3) -> np.ndarray:
    return np.random.Generator(np.random.Philox(side)).integers(0, 256, (n, channels, side, side)).astype(np.uint8)


def test_the_papers_published_models_are_known_with_their_range_and_size():
    for name in ("inception_v3.tf_adv_in1k", "inception_resnet_v2.tf_ens_adv_in1k"):
        config = timm_config(name)
        assert (config["mean"], config["std"]) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        assert config["input_size"] == (3, 299, 299)
        assert config["hf_hub_id"] == f"timm/{name}"
    with pytest.raises(UnknownNameError, match=r"inception_v3\.tf_adv_in1k"):
        timm_config("inception_v3.tf_adv")


def test_weights_are_of_images_of_one_size(weights):
    model = load_model(f"timm:{NET},weights={weights}")
    assert model.architecture == NET
    assert model.record == {"weights": "file", "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    check_model(model, images(160), classes=1000, device="cpu")
    with pytest.raises(ModelError, match=r"expected images of 160×160, .* got 96×96; add ,resize=160"):
        check_model(model, images(96), classes=1000, device="cpu")
    check_model(load_model(f"timm:{NET},weights={weights},resize=none"), images(96), classes=1000, device="cpu")
    check_model(load_model(f"timm:{NET}"), images(96), classes=1000, device="cpu")  # untrained: any size


def test_images_are_resized_inside_with_the_gradient_through_it(weights):
    plain = load_model(f"timm:{NET},weights={weights}").module
    model = load_model(f"timm:{NET},weights={weights},resize=160")
    assert model.architecture == f"{NET},resize=160"
    assert model.record["resize"] == "bilinear to 160×160, inside the model"
    x = torch.from_numpy(images(96)).double().div(255).requires_grad_()
    module = model.module.double()
    (gradient,) = torch.autograd.grad(module(x).logsumexp(1).sum(), x)
    larger = interpolate(x.detach(), (160, 160), mode="bilinear", align_corners=False)
    with torch.no_grad():
        assert torch.allclose(module(x), plain.double()(larger))
    step = torch.zeros_like(x)
    step[1, 2, 40, 50] = 1e-6
    with torch.no_grad():
        slope = (module(x + step) - module(x - step)).logsumexp(1)  # of the row that does not move: log K
        change = module(x + step).logsumexp(1).sum() - module(x - step).logsumexp(1).sum()
    assert slope.shape == (2,)
    assert change.item() / 2e-6 == pytest.approx(gradient[1, 2, 40, 50].item(), rel=1e-3)


def test_a_background_class_is_left_out(tmp_path, monkeypatch):
    tensors = fresh(NET, num_classes=1001)
    save_file(tensors, tmp_path / "tf.safetensors")
    reference = f"timm:{NET},weights={tmp_path}/tf.safetensors"
    with pytest.raises(ModelError, match=r"of another shape \(fc\.bias \(1001,\) for \(1000,\)"):
        load_model(reference)
    config = dict(timm_config(NET)) | {"label_offset": 1}
    monkeypatch.setattr("ensadv_data.models.reference.timm_config", lambda name: config)
    inner = load_model(reference).module.inner
    assert torch.equal(inner.fc.weight, tensors["fc.weight"][1:])


def test_weights_of_another_architecture_are_refused_by_name(weights):
    with pytest.raises(ModelError) as caught:
        load_model(f"timm:test_vit,weights={weights}")
    message = str(caught.value)
    assert f"{weights}: the weights do not fit the architecture timm:test_vit: tensors " in message
    assert "missing (blocks." in message
    assert "unexpected (bn1." in message
    assert "\n" not in message
    with pytest.raises(ModelError, match=r"of another shape \(fc\.bias \(1000,\) for \(7,\)"):
        load_model(f"timm:{NET},weights={weights},classes=7")


def test_weights_are_those_of_their_digest(weights):
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    load_model(f"timm:{NET},weights={weights},sha256={digest[:8]}")
    with pytest.raises(IntegrityError, match=rf"expected a file with SHA-256 {'0' * 64}…, got {digest}"):
        load_model(f"timm:{NET},weights={weights},sha256={'0' * 64}")


def test_the_hub_is_asked_only_where_it_is_named(weights, monkeypatch):
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(weights)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    load_model(f"timm:{NET}")
    assert asked == []
    model = load_model(f"timm:{NET}.r160_in1k,weights=hub")
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    assert model.record["weights"] == "hub"
    assert torch.equal(model.module.inner.fc.weight, load_file(weights)["fc.weight"])


def test_without_a_network_a_file_is_asked_for(monkeypatch):
    def unreachable(repository, file):
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot reach the hub\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(ModelError) as caught:
        load_model("timm:inception_v3.tf_adv_in1k,weights=hub,resize=none")
    assert str(caught.value) == (
        "timm:inception_v3.tf_adv_in1k: expected to fetch model.safetensors of timm/inception_v3.tf_adv_in1k from the "
        "hub, got: cannot reach the hub; where there is a network, get "
        "huggingface.co/timm/inception_v3.tf_adv_in1k/resolve/main/model.safetensors, and pass it: "
        "timm:inception_v3.tf_adv_in1k,weights=FILE"
    )


@pytest.mark.parametrize(
    ("rest", "error"),
    [
        ("", ModelError),
        ("a,classes=2,classes=3", ModelError),
        ("a,classes=one", QuantityError),
        ("a,classes=1", QuantityError),
        ("a,resize=4", QuantityError),
        ("a,sha256=00000000", ModelError),
        ("a,weights=f,sha256=xyz", ModelError),
    ],
)
def test_other_references_are_refused(rest, error):
    with pytest.raises(error):
        parse_timm(rest)


def test_files_of_references_are_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert outside_file("timm:a,classes=3,weights=w.st,resize=none") == "w.st"
    assert [outside_file(other) for other in ("timm:a", "timm:a,weights=hub", "python:m:f")] == [None] * 3
    assert with_absolute_file("timm:a,weights=w.st,resize=none") == f"timm:a,weights={tmp_path}/w.st,resize=none"
    assert with_absolute_file("w.safetensors") == f"{tmp_path}/w.safetensors"
    assert with_absolute_file("timm:a,weights=hub") == "timm:a,weights=hub"


@pytest.mark.parametrize("name", ["inception-v3-ens3", "inception-v3-ens4", "inception-resnet-v2-ens"])
def test_networks_of_the_papers_recipes_take_their_images(name):
    """Weights for images of another size than the recipe's are told to resize them."""
    recipe, asked = read_recipe(packaged_recipe(name)), set()
    for stage in recipe.stages:
        named = [getattr(stage.spec, "models", {}), *(stage.options.get(role, {}) for role in ("targets", "sources"))]
        asked |= {leaf for references in named for reference in references.values() for leaf in leaves(reference)}
    networks = [parse_timm(leaf.removeprefix("timm:")) for leaf in asked if leaf.startswith("timm:")]
    assert len(networks) >= 5
    for network in networks:
        size = timm_config(network.name)["input_size"][1]
        assert (network.weights, network.resize or recipe.data.preprocess.size) == ("hub", size), network


def test_a_net_of_timm_is_built_for_the_images():
    for shape, classes in (((3, 40, 40), 4), ((1, 40, 40), 3)):
        model = build_model(f"timm:{NET}", shape=shape, classes=classes, seed=3)
        again = build_model(f"timm:{NET}", shape=shape, classes=classes, seed=3)
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
        )
        assert model.eval()(torch.rand(2, *shape)).shape == (2, classes)
    vit = build_model("timm:vit_tiny_patch16_224", shape=(3, 32, 32), classes=4).eval()  # its size of input is fixed
    assert vit(torch.rand(1, 3, 32, 32)).shape == (1, 4)
    with pytest.raises(UnknownNameError, match="known: "):
        build_model("timm:test_resmet", shape=(3, 32, 32), classes=4)
    fixed = load_model("timm:vit_tiny_patch16_224")
    with pytest.raises(ModelError, match="cannot read images of shape"):
        check_model(fixed, images(32), classes=1000, device="cpu")


NETWORKS = {  # of the paper's Table 3: the share of zeros in the gradient of an untrained one, at least and at most
    "inception_v3": (0, 0.1),
    "inception_v4": (0, 0.1),
    "inception_resnet_v2": (0, 0.1),
    "resnet50": (0.85, 1),
    "resnet101": (0.85, 1),
    "resnetv2_50": (0, 0.01),
    "resnetv2_101": (0, 0.01),
}


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="an installation without the repository around it")
@pytest.mark.parametrize("name", NETWORKS)
def test_directions_of_the_papers_networks_are_those_of_float64(name, tmp_path_factory, monkeypatch):
    """To the last sign, where ReLUs and max-pools go the same ways; of millions a few do not (docs/performance.md).

    But for the next to none that are smaller than what one rounding takes from the largest: their sign in float32 is
    that of the order of sums, which the processor's kernels choose.
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    branches = importlib.import_module("signs").branches
    photos = cut_photographs(tmp_path_factory.mktemp("two"), classes=2, train=1, test=0, side=96)
    how = PreprocessSpec(size=96)
    x = (
        torch.from_numpy(open_dataset(f"folder:{photos}", "train", data_dir=photos, preprocess=how).read([0, 1])[0])
        / 255
    )
    model = load_model(f"timm:{name},classes=12").module.requires_grad_(False)
    y = torch.tensor([3, 8])
    single: list[torch.Tensor] = []
    double: list[torch.Tensor] = []
    with branches(model, single, replay=False):
        fast = input_gradient(model, x, y)
    model = model.double()
    with branches(model, double, replay=False):
        exact = input_gradient(model, x.double(), y)
    with branches(model, single, replay=True):
        same = input_gradient(model, x.double(), y)
    largest = same.abs().max()
    resolved = (same == 0) | (same.abs() > 2**-22 * largest)
    assert int((~resolved).sum()) <= x.numel() // 10_000
    assert torch.equal(fast.sign()[resolved], same.sign().float()[resolved])
    assert torch.equal(fast == 0, same == 0)
    assert (fast - same).abs().max() <= 2**-16 * largest
    turned = sum(int((one != other).sum()) for one, other in zip(single, double, strict=True))
    assert turned <= 1e-5 * sum(way.numel() for way in single)
    assert int((fast.sign() != exact.sign())[resolved].sum()) <= x.numel() // 100 * (turned > 0)
    assert torch.equal(fast == 0, exact == 0) or turned  # zeros are of the network, not of rounding
    least, most = NETWORKS[name]
    assert least <= float((fast == 0).double().mean()) <= most


def run(*words: object) -> None:
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_the_chain_runs_with_nets_of_timm_on_photographs(tmp_path):
    photos = cut_photographs(tmp_path / "photos", classes=3, train=6, test=2)
    data = ("--data", f"folder:{photos}", "--data-dir", tmp_path / "index", "--preprocess", "size=32")
    train = ("train", *data, "--architecture", f"timm:{NET}", "--batch-size", "6", "--threads", "1")
    train = (*train, "--epochs", "2")
    first, second = tmp_path / "s.safetensors", tmp_path / "t.safetensors"
    run(*train, "--out", first)
    loaded = load_model(str(first))
    assert loaded.architecture == f"timm:{NET}"
    assert int(loaded.module.inner.bn1.num_batches_tracked) == 6
    static = ("--model", f"s={first}", "--model", "u=timm:resnet50,classes=3,resize=40")
    run("precompute", *data, *static, "--attack", "step-ll", "--out", tmp_path / "store", "--workers", "0")
    manifest = read_manifest(tmp_path / "store")
    _, untrained = manifest.sources
    assert manifest.zeros["u/step-ll"] > 0.5 * 18 * 3 * 32 * 32  # most of an untrained ResNet's gradient
    assert "u/step-ll/nonzero/c/0/0/0" in manifest.objects
    assert untrained.record == {"resize": "bilinear to 40×40, inside the model"}
    run(*train, "--online", "step-ll", "--shards", tmp_path / "store", "--epsilon", "16/255", "--out", second)
    run("evaluate", *data, "--target", second, "--source", first, "--suite", "single-step", "--epsilon", "16/255")
