"""The store in training loops of others: the data set, the transform of batches, and the examples of the page."""

from __future__ import annotations

import difflib
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ensadv_data import EnsembleMix, TorchImages, open_dataset
from ensadv_data.attacks.single import step_ll
from ensadv_data.batches import _FRESH_STREAM, Batches
from ensadv_data.bench import save_untrained
from ensadv_data.codec import random_bits
from ensadv_data.data import ArrayDataset
from ensadv_data.dist import Place, intra_op_threads
from ensadv_data.errors import AlignmentError, InputError
from ensadv_data.keys import derive_key
from ensadv_data.mixing import Schedule, plan_batch
from ensadv_data.precompute import precompute_store
from ensadv_data.sources import Source, static_sources
from ensadv_data.spec import DataSpec, EpsilonSpec, PrecomputeSpec
from ensadv_data.store import open_store, perturb_images
from photographs import cut_photographs

PAGE = Path(__file__).parent.parent / "docs" / "integrations.md"
EXAMPLES = ("plain", "with_lightning", "with_timm")
HOW = "size=32"
pytestmark = pytest.mark.usefixtures("without_fsync")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with photos, and a store of two sources for them."""
    folder = tmp_path_factory.mktemp("world")
    cut_photographs(folder / "photos", classes=3, train=6, test=1)
    where = DataSpec(data=f"folder:{folder / 'photos'}", data_dir=str(folder / "index"), preprocess=HOW)
    data = open_dataset(where.data, "train", data_dir=folder / "index", preprocess=HOW)
    models = {
        name: save_untrained("D", data, folder / f"{name}.safetensors", seed=seed) for seed, name in enumerate("de")
    }
    spec = PrecomputeSpec(models=models, attacks=("r-fgsm:alpha=4/255",), draws=2)
    precompute_store(spec, where, folder / "shards", workers=0)
    return folder


@pytest.fixture
def images(world) -> TorchImages:
    where = f"folder:{world / 'photos'}"
    return TorchImages(open_dataset(where, "train", data_dir=world / "index", preprocess=HOW))


@pytest.fixture
def batch(images) -> tuple[torch.Tensor, ...]:
    return next(iter(DataLoader(images, batch_size=8, sampler=[17, 3, 3, 9, 0, 5, 12, 1])))


def net(size: int = 32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, 3))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 warns of what is tested here
@pytest.mark.filterwarnings("ignore:No data was collected")  # coverage's, in the workers that are forked
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_has_images_labels_and_numbers(images, batch, workers):
    found, labels = images.dataset.read(np.arange(18))  # a pool of threads, which workers that are forked lack
    x, y, index = (
        batch if not workers else next(iter(DataLoader(images, batch_size=8, num_workers=2, sampler=batch[2])))
    )
    assert index.tolist() == [17, 3, 3, 9, 0, 5, 12, 1]
    assert y.tolist() == labels[index].tolist()
    assert torch.equal(x, torch.from_numpy(found[index]).float() / 255)
    assert len(images) == 18
    assert torch.equal(images[-1][0], x[0])
    with pytest.raises(IndexError):
        images[18]


def expected(world, batch, step: int, rows: slice, *, mix: EnsembleMix) -> tuple[str, np.ndarray]:
    """The source of a batch and the images that it makes, from the store by hand."""
    store = open_store(world / "shards")
    sources = tuple(Source(entry.source, ((store, entry),)) for entry in store.entries)
    schedule = Schedule(seed=5, n=18, batch_size=1, sources=sources, epsilon=mix._schedule.epsilon)
    plan = plan_batch(schedule, batch[2].numpy(), step=step)
    entry = store.entries[plan.sources[0]]
    examples = batch[2].numpy()[rows]
    fresh = derive_key("fresh step", 5, step)
    signs = random_bits(fresh, np.zeros_like(examples), examples, d=3072, stream=_FRESH_STREAM)
    signs = signs if mix._batches.fresh else None
    about = {"rows": examples, "draws": plan.draws[rows], "epsilon": plan.epsilon[rows], "random_step": signs}
    return entry.source, perturb_images(store, entry, batch[0].numpy()[rows], **about)


@pytest.mark.parametrize("how", [{}, {"random_step": "stored"}, {"random_step": "fresh"}])
def test_half_of_a_batch_is_what_one_source_makes_of_it(world, images, batch, how):
    mix, drawn = EnsembleMix(images, [world / "shards"], epsilon="16/255", seed=5, **how), set()
    assert mix._batches.fresh == (how.get("random_step") == "fresh")
    for step in range(6):
        x, y = mix(*batch)
        source, made = expected(world, batch, step, slice(4, 8), mix=mix)
        drawn.add(source)
        assert torch.equal(x[:4], batch[0][:4])
        assert np.allclose(x[4:].numpy(), made, atol=1e-7)
        assert torch.equal(y, batch[1])
        assert (x - batch[0]).abs().max() <= 16 / 255 + 1e-6
    assert drawn == {"d", "e"}
    assert mix.step == 6


def test_a_batch_is_a_function_of_seed_and_step(world, images, batch):
    one = EnsembleMix(images, [world / "shards"], epsilon="normal:8/255,16/255", seed=5)
    results = [one(*batch)[0] for _ in range(4)]
    again = EnsembleMix(images, world / "shards", epsilon="normal:8/255,16/255", seed=5)
    again.step = 3
    assert torch.equal(again(*batch)[0], results[3])
    assert len({result.numpy().tobytes() for result in results}) == 4


def test_pairs_follow_the_batch_and_come_back_normalised(world, images, batch):
    about = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    mix = EnsembleMix(images, [world / "shards"], epsilon="16/255", batches="pair", seed=5, **about)
    x, y = mix(*batch)
    _, made = expected(world, batch, 0, slice(0, 8), mix=mix)
    mean, std = (torch.tensor(about[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    assert torch.allclose(x, (torch.cat([batch[0], torch.from_numpy(made)]) - mean) / std, atol=1e-6)
    assert y.tolist() == batch[1].tolist() * 2


def test_the_online_source_is_the_model_itself(images, batch):
    about = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    mix, model = EnsembleMix(images, [], epsilon=16 / 255, online="step-ll", **about), net()
    x, _ = mix(*batch, model)
    whole = nn.Sequential(Shifted(), model)
    made = step_ll(whole, batch[0][4:], epsilon=16 / 255)
    assert torch.allclose(x[4:], (made - 0.5) / 0.25, atol=1e-5)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(InputError, match="expected the model beside the batch"):
        mix(*batch)


class Shifted(nn.Module):
    def forward(self, x):
        return (x - 0.5) / 0.25


def test_all_ranks_draw_the_same_source_and_their_own_images():
    sources = (Source("a"), Source("b"), Source("c"))
    schedule = Schedule(seed=1, n=100, batch_size=1, sources=sources)
    drawn = []
    for step in range(30):
        plans = [plan_batch(schedule, np.arange(4) + 10 * rank, step=step, place=Place(rank, 3)) for rank in range(3)]
        assert len({int(plan.sources[0]) for plan in plans}) == 1
        assert [plan.indices.tolist() for plan in plans] == [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]
        drawn.append(int(plans[0].sources[0]))
    assert set(drawn) == {0, 1, 2}


def test_other_images_are_refused(world, images, batch):
    mix = EnsembleMix(images, [world / "shards"], epsilon="16/255")
    x, y, index = batch
    for wrong in (x.flip(3), x.roll(1, 0), (x + 2 / 255).clamp(max=1)):
        with pytest.raises(AlignmentError, match=r"example \d+: expected an image with digest"):
            mix(wrong, y, index)
    with pytest.raises(InputError, match="the transform comes before any crop"):
        mix(x[:, :, 1:], y, index)
    for wrong in (2 * x - 1, (255 * x).to(torch.uint8), x * float("nan")):
        with pytest.raises(InputError, match=r"expected floating-point images in \[0, 1\], got torch"):
            mix(wrong, y, index)
    assert torch.equal(mix(x[:1], y[:1], index[:1])[0], x[:1])  # of one image no half can be replaced


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epsilon": "2/255"}, "expected epsilon above the store's alpha"),
        ({"batches": "half"}, "batches: expected replace or pair"),
        ({"random_step": "new"}, "random_step: expected stored or fresh, got 'new'"),
        ({"draws": 3}, "expected a store of at least 3 draws"),
        ({"mean": (0.5,)}, "mean: expected one number for each of 3 channels"),
        ({"std": (1, 0, 1)}, "std: expected one number for each of 3 channels"),
        ({"stores": []}, "expected a store, or an online attack"),
        ({"online": "fsgm"}, "unknown attack"),
    ],
)
def test_what_cannot_be_mixed_is_refused(world, images, fields, message):
    stores = fields.pop("stores", [world / "shards"])
    with pytest.raises(InputError, match=message):
        EnsembleMix(images, stores, **{"epsilon": "16/255", **fields})


def test_any_data_set_can_be_wrapped():
    pixels = np.arange(4 * 3 * 2 * 2, dtype=np.uint8).reshape(4, 3, 2, 2)
    data = ArrayDataset(pixels, np.arange(4), name="x", split="train", classes=4)
    x, y, index = TorchImages(data)[2]
    assert (x.shape, y, index) == ((3, 2, 2), 2, 2)
    assert torch.equal(x * 255, torch.from_numpy(pixels[2]).float())


@pytest.mark.skipif(not PAGE.is_file(), reason="an installation without the repository around it")
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_has_the_diff_and_it_is_short(name):
    before, after = (
        (PAGE.parent / "examples" / f"{which}.py").read_text(encoding="utf-8").splitlines(keepends=True)
        for which in (name, f"{name}_ensemble")
    )
    lines = list(difflib.unified_diff(before, after, f"{name}.py", f"{name}_ensemble.py", n=1))
    assert f"```diff\n{''.join(lines)}```\n" in PAGE.read_text(encoding="utf-8")
    code = [line for line in lines[2:] if line[0] == "+" and line.strip() != "+"]
    assert 0 < len(code) <= 10


@pytest.mark.skipif(not PAGE.is_file(), reason="an installation without the repository around it")
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_run_before_and_after(name, world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "cache"))
    seen: list[int] = []
    inner = EnsembleMix.__call__
    monkeypatch.setattr(EnsembleMix, "__call__", lambda self, *of: seen.append(self.step) or inner(self, *of))
    out, states = Path(f"{name.removeprefix('with_')}.pt"), []
    pytest.importorskip({"plain": "torchvision"}.get(name, out.stem))
    for which in (name, f"{name}_ensemble"):
        with warnings.catch_warnings(), torch.random.fork_rng(), intra_op_threads(1):
            warnings.simplefilter("ignore")  # theirs are not ours to mend
            torch.manual_seed(3)
            runpy.run_path(str(PAGE.parent / "examples" / f"{which}.py"), run_name="__main__")
        states.append(torch.load(out, weights_only=True))
    assert seen == list(range(6)) or (name == "with_timm" and seen == list(range(4))), "two epochs, every batch"
    assert all(torch.isfinite(value).all() for state in states for value in state.values())
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_stores_of_views_are_refused(world, images, tmp_path):
    """Its images are not cut as the store's were: the directions would be of other pictures."""
    where = DataSpec(data=f"folder:{world / 'photos'}", data_dir=str(world / "index"), preprocess=HOW)
    spec = PrecomputeSpec(
        models={"d": str(world / "d.safetensors")}, attacks=("fgsm",), draws=2, augment="random-resized-crop,flip"
    )
    precompute_store(spec, where, tmp_path / "views", workers=0)
    with pytest.raises(InputError, match="expected stores of whole images, got one of views by random-resized-crop"):
        EnsembleMix(images, tmp_path / "views", epsilon=0.1)
    (source,) = static_sources([tmp_path / "views"], images.dataset)
    law = EpsilonSpec(epsilon=0.1)
    batches = Batches(images.dataset, Schedule(seed=1, n=18, batch_size=4, sources=(source,), epsilon=law))
    with pytest.raises(InputError, match=r"expected the views that its directions belong to, .* got whole images"):
        batches.prepare(0)
