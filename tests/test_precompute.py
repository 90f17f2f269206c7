"""Precompute: blocks planned purely, equal bytes from any number of workers, and nothing done twice."""

from __future__ import annotations

import json
import textwrap
import threading
from pathlib import Path

import distributed
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ensadv_data.blocks as blocks
import ensadv_data.precompute as module
from ensadv_data import cluster
from ensadv_data.blocks import compute_block, model_of, plan_blocks
from ensadv_data.data import open_dataset
from ensadv_data.errors import InputError, IntegrityError, Interrupted, ModelError, OutputError
from ensadv_data.manifest import Manifest, read_manifest
from ensadv_data.models import build_model, load_model, save_model
from ensadv_data.objects import objects_at
from ensadv_data.precompute import Outcome, precompute_store
from ensadv_data.spec import DataSpec, PrecomputeSpec
from ensadv_data.store import layout, metadata, open_store, writer
from ensadv_data.verification.blueprint import blueprint_of, check_documents
from laws import is_pure
from test_store import content, make_header, make_images, read_all

pytestmark = pytest.mark.usefixtures("without_fsync")

MNIST = (1, 28, 28)
DATA = DataSpec(data="mnist-mini", limit=70)  # 14 blocks of 5


def save_source(path: Path, *, seed: int = 0, architecture: str = "D") -> str:
    weights = build_model(architecture, shape=MNIST, classes=10, seed=seed)
    save_model(path, weights, architecture=architecture, shape=MNIST, classes=10, record={"seed": seed})
    return str(path)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return save_source(tmp_path_factory.mktemp("models") / "d.safetensors")


def spec_of(source: str, **fields) -> PrecomputeSpec:
    chosen = {"models": {"d": source}, "attacks": ("fgsm", "r-step-ll"), "draws": 2, "mode": "train"}
    return PrecomputeSpec(**(chosen | fields))


@pytest.fixture(scope="module")
def reference(tmp_path_factory, source) -> Manifest:
    """Made in this process."""
    path = tmp_path_factory.mktemp("reference") / "s"
    precompute_store(spec_of(source), DATA, path, workers=0)
    return read_manifest(path)


# The plan


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500), st.sets(st.integers(0, 40)))
def test_blocks_to_do_and_blocks_done_part_all_examples(n, done):
    header = make_header(make_images(1), ())
    header = header.__class__(**(header.__dict__ | {"n": n, "shape": MNIST}))
    everything = is_pure(plan_blocks, header)
    assert [i for block in everything for i in range(block.first, block.last + 1)] == list(range(n))
    assert [block.index for block in everything] == list(range(header.blocks))
    left = is_pure(plan_blocks, header, frozenset(done))
    assert left == [block for block in everything if block.index not in done]
    assert plan_blocks(header, frozenset(range(header.blocks))) == []


# The same bytes from anywhere


def test_a_store_says_what_it_was_made_from(reference, source):
    assert reference.data.digest == open_dataset("mnist-mini", "train").digest
    assert (reference.data.n, reference.draws, reference.sources[0].record) == (70, 2, {"seed": 0})
    assert reference.plan["sources"] == {"d": reference.sources[0].digest}
    assert (reference.plan["threads"], reference.plan["precision"], reference.plan["batch_size"]) == (1, "float32", 64)
    assert {"python", "torch", "numpy", "zarr", "ensadv-data"} == set(reference.software)
    assert source not in json.dumps(reference.model_dump(mode="json"))


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_makes_the_same_objects(tmp_path, monkeypatch, source, reference, workers):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outcome = precompute_store(spec_of(source), DATA, tmp_path / "s", workers=workers)
    assert (outcome.blocks, outcome.computed) == (14, 14)
    assert read_manifest(tmp_path / "s") == reference
    read_all(tmp_path / "s")


def test_a_running_cluster_makes_the_same_objects(tmp_path, source, reference):
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as local:
        outcome = precompute_store(spec_of(source), DATA, tmp_path / "s", scheduler=local.scheduler_address)
    assert outcome.digest == reference.digest
    assert read_manifest(tmp_path / "s") == reference


def test_an_error_on_a_worker_of_a_cluster_arrives_as_it_is(tmp_path, sick):
    with (
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as local,
        pytest.raises(ModelError, match="source m, example 23: expected finite logits"),
    ):
        precompute_store(sick, DATA, tmp_path / "s", scheduler=local.scheduler_address)


def test_an_address_without_a_scheduler_is_bad_input(tmp_path, source, monkeypatch):
    for address in ("nowhere://here", "127.0.0.1:8786", "tls://127.0.0.1:9"):
        with pytest.raises(InputError, match="expected a dask scheduler at tcp://HOST:PORT"):
            precompute_store(spec_of(source), DATA, tmp_path / "a", scheduler=address)
    with pytest.raises(InputError, match="scheduler: expected no workers and no listen beside it"):
        precompute_store(spec_of(source), DATA, tmp_path / "a", scheduler="tcp://127.0.0.1:9", workers=2)
    hasty = distributed.Client
    monkeypatch.setattr(
        cluster.distributed, "Client", lambda address, timeout, **words: hasty(address, timeout="200ms", **words)
    )
    with pytest.raises(InputError, match="could not connect"):
        precompute_store(spec_of(source), DATA, tmp_path / "b", scheduler="tcp://127.0.0.1:9")


# Nothing is done twice, or over something else


def test_a_finished_store_is_left_alone(tmp_path, source):
    first = precompute_store(spec_of(source), DATA, tmp_path / "s", workers=0)
    before = content(tmp_path / "s")
    again = precompute_store(spec_of(source), DATA, tmp_path / "s", workers=2)
    assert (first.was_complete, again.was_complete) == (False, True)
    assert again.digest == first.digest
    assert content(tmp_path / "s") == before


def test_what_a_kill_left_beside_a_finished_store_is_tidied(tmp_path, source, reference):
    precompute_store(spec_of(source), DATA, tmp_path / "s", workers=0)
    before = content(tmp_path / "s").keys()
    (tmp_path / "s/progress").mkdir()
    (tmp_path / "s/progress/block-000000.json").write_text("{}")
    (tmp_path / "s/d/fgsm/nonzero/c").mkdir(parents=True)
    (tmp_path / "s/d/.partial-x").write_text("")
    assert precompute_store(spec_of(source), DATA, tmp_path / "s").was_complete
    assert content(tmp_path / "s").keys() == before


def test_masks_of_a_finished_store_that_lost_their_document_are_kept(tmp_path):
    """Which entries have masks is the manifest's to say, and not a document's absence."""
    spec = PrecomputeSpec(models={"c": save_source(tmp_path / "c.safetensors", architecture="C")}, attacks=("fgsm",))
    precompute_store(spec, DATA, tmp_path / "s", workers=0)
    before = {key: data for key, (data, _) in content(tmp_path / "s").items()}
    assert "c/fgsm/nonzero/c/0/0/0" in before
    (tmp_path / "s/c/fgsm/nonzero/zarr.json").unlink()
    assert precompute_store(spec, DATA, tmp_path / "s", workers=0).was_complete
    assert {key: data for key, (data, _) in content(tmp_path / "s").items()} == before


HARMS = {
    "missing": Path.unlink,
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "flipped": lambda file: file.write_bytes(file.read_bytes()[:-9] + bytes([file.read_bytes()[-9] ^ 4]) + bytes(8)),
}


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_chunks_of_a_finished_store_are_computed_again(tmp_path, source, reference, workers):
    """Missing ones and short ones by the same command; flipped bits by --repair, which reads everything."""
    out = tmp_path / "s"
    precompute_store(spec_of(source), DATA, out, workers=0)
    whole = content(out)
    hurt = {
        "d/fgsm/label/c/2": "missing",
        "d/r-step-ll/direction/c/1/7/0": "cut short",
        "example_digest/c/9": "flipped",
    }
    for key, harm in hurt.items():
        HARMS[harm](out / key)
    found = precompute_store(spec_of(source), DATA, out, workers=workers)
    assert (found.computed, found.was_complete, found.digest) == (2, False, reference.digest)
    assert found.notes[0] == "blocks [2, 7] have damaged or missing chunks: they are computed again"
    assert precompute_store(spec_of(source), DATA, out, workers=0).was_complete
    with pytest.raises(IntegrityError, match=r"example_digest/c/9: .* run its precompute command again with --repair"):
        open_store(out).example_digests()
    assert precompute_store(spec_of(source), DATA, out, workers=0, repair=True).computed == 1
    assert {key: data for key, (data, _) in content(out).items()} == {key: data for key, (data, _) in whole.items()}
    assert precompute_store(spec_of(source), DATA, out, workers=0, repair=True).was_complete


def test_a_block_that_is_done_is_not_made_again(tmp_path, source, monkeypatch):
    """As where a worker died between its record and its answer."""
    out, make, seen = tmp_path / "s", blocks.make_block, []

    def twice(job, block):
        first = make(job, block)
        before = content(out)
        assert compute_block(job, block) == json.loads(json.dumps(first))
        assert content(out) == before
        seen.append(block.index)
        return first

    monkeypatch.setattr(module, "compute_block", twice)
    precompute_store(spec_of(source), DATA, out, workers=0)
    assert seen == list(range(14))


def test_a_repair_that_gives_other_bytes_changes_nothing(tmp_path, source, monkeypatch):
    """As on other hardware."""
    out = tmp_path / "s"
    precompute_store(spec_of(source), DATA, out, workers=0)
    (out / "d/fgsm/label/c/2").unlink()
    (out / "d/fgsm/direction/c/0/2/0").write_bytes(b"rubbish")
    compute = blocks._perturbed

    def otherwise(job, block):
        planes, digests = compute(job, block)
        planes["d/fgsm"].direction[0, 0, 0] ^= 1
        return planes, digests

    before = content(out)
    monkeypatch.setattr(blocks, "_perturbed", otherwise)
    with pytest.raises(IntegrityError, match=r"d/fgsm/direction/c/0/2/0: expected SHA-256 .* as in the manifest"):
        precompute_store(spec_of(source), DATA, out, workers=0)
    after = content(out)
    assert {key for key in after if after[key][0] != before.get(key, ("", 0))[0]} == {"d/fgsm/label/c/2"}
    assert after["d/fgsm/direction/c/0/2/0"][0] == b"rubbish"


def test_a_resumed_run_computes_only_what_is_missing(tmp_path, monkeypatch, source, reference):
    """It stops after four blocks as if Ctrl-C had come; one of their chunks is lost, too."""
    asked: list[int] = []

    def counted(job, block):
        if len(asked) == 4:
            asked.append(-1)
            raise KeyboardInterrupt
        asked.append(block.index)
        return compute_block(job, block)

    monkeypatch.setattr(module, "compute_block", counted)
    with pytest.raises(Interrupted, match="the same command resumes") as caught:
        precompute_store(spec_of(source), DATA, tmp_path / "s", workers=0)
    assert caught.value.exit_code == 130
    (tmp_path / "s/d/fgsm/direction/c/1/2/0").unlink()
    outcome = precompute_store(spec_of(source), DATA, tmp_path / "s", workers=0)
    assert asked == [0, 1, 2, 3, -1, 2, *range(4, 14)]
    assert (outcome.computed, outcome.blocks) == (11, 14)
    assert read_manifest(tmp_path / "s") == reference


def test_a_run_that_was_killed_before_the_manifest_only_writes_that(tmp_path, monkeypatch, source, reference):
    with monkeypatch.context() as patch:
        patch.setattr(module.StoreWriter, "close", lambda self, manifest: None)
        precompute_store(spec_of(source), DATA, tmp_path / "s", workers=0)
    with pytest.raises(InputError, match="unfinished"):
        open_store(tmp_path / "s")
    outcome = precompute_store(spec_of(source), DATA, tmp_path / "s")
    assert outcome.computed == 0
    assert not outcome.was_complete, "it was finished only now"
    assert read_manifest(tmp_path / "s") == reference


def test_other_weights_draws_or_data_are_refused_and_nothing_is_touched(tmp_path, source):
    path = tmp_path / "s"
    mine = save_source(tmp_path / "d.safetensors", seed=0)
    precompute_store(spec_of(mine), DATA, path, workers=0)
    before = content(path)
    save_source(tmp_path / "d.safetensors", seed=1)
    for spec, data, what in (
        (spec_of(mine), DATA, "plan"),
        (spec_of(source, draws=3), DATA, "draws"),
        (spec_of(source), DataSpec(data="mnist-mini", limit=71), "n"),
        (spec_of(source, attacks=("fgsm",)), DATA, "groups"),
        (spec_of(source, seed=4), DATA, "plan"),
    ):
        with pytest.raises(OutputError, match=rf"another plan \({what} differs"):
            precompute_store(spec, data, path, workers=0)
    assert content(path) == before


def test_weights_that_change_under_a_worker_are_noticed(tmp_path):
    mine = save_source(tmp_path / "d.safetensors", seed=0)
    digest = module.load_model(mine).digest
    save_source(tmp_path / "d.safetensors", seed=1)
    with pytest.raises(IntegrityError, match=r"does .* hold the same file on every machine"):
        blocks.model_of(mine, "d", "cpu", digest)


def test_a_source_without_randomness_and_several_draws_is_remarked_on(tmp_path, source):
    outcome = precompute_store(
        spec_of(source, mode="eval"), DataSpec(data="mnist-mini", limit=3), tmp_path / "s", workers=0
    )
    assert isinstance(outcome, Outcome)
    assert [note.split(":")[0] for note in outcome.notes] == ["d/fgsm"]


# Models that are not well


SICK = """
    import torch

    class Sick(torch.nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.inner, self.answer = torch.nn.Linear(784, 10), answer
            torch.nn.init.constant_(self.inner.weight, 0.01)
            torch.nn.init.zeros_(self.inner.bias)

        def forward(self, x):
            return self.answer(self.inner(x.flatten(1)), x.flatten(1).sum(1, dtype=torch.float64))

    def nan():
        return Sick(lambda z, ink: torch.where(((ink - {ink}).abs() < 1e-3).unsqueeze(1), float("nan"), z))

    def maps():
        return Sick(lambda z, ink: z[:, :, None, None])

    def classes():
        return Sick(lambda z, ink: z[:, :7])

    def small():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(100, 10))
"""


@pytest.fixture
def sick(tmp_path, monkeypatch) -> PrecomputeSpec:
    """NaN for example 23 alone, which is in block 4."""
    images, _ = open_dataset("mnist-mini", "train", limit=70).read(np.arange(70))
    inks = (images.reshape(70, -1).astype(np.float32) / 255).sum(1, dtype=np.float64)
    assert (np.abs(inks - inks[23]) < 1e-2).sum() == 1
    name = f"sick_{tmp_path.name.replace('[', '_').replace(']', '_').replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(SICK).replace("{ink}", repr(float(inks[23]))))
    monkeypatch.syspath_prepend(str(tmp_path))
    return PrecomputeSpec(models={"m": f"python:{name}:nan"}, attacks=("fgsm",))


def test_nan_names_source_block_and_example_and_leaves_the_other_blocks(tmp_path, sick):
    path = tmp_path / "s"
    with pytest.raises(ModelError) as caught:
        precompute_store(sick, DATA, path, workers=0)
    for words in ("block 4: ", "source m, example 23: ", "nothing was written for this block"):
        assert words in str(caught.value)
    assert caught.value.exit_code == 3
    written = {file.relative_to(path).parts[-2] for file in path.rglob("m/fgsm/direction/c/0/*/0")}
    assert written == {"0", "1", "2", "3"}
    assert len(list((path / "progress").iterdir())) == 4
    assert not list(path.rglob("c/4"))
    assert not (path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("maps", "expected logits of shape"),
        ("classes", "expected 10 logits an image, got 7"),
        ("small", "cannot read images of shape"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_made(tmp_path, sick, factory, words):
    reference = sick.models["m"].replace(":nan", f":{factory}")
    with pytest.raises(ModelError, match=words):
        precompute_store(sick.model_copy(update={"models": {"m": reference}}), DATA, tmp_path / "s", workers=0)
    assert not (tmp_path / "s").exists()


# How gradients are computed


def test_a_batch_size_found_by_trial_is_that_of_the_store_and_of_its_resumption(tmp_path, source, monkeypatch):
    monkeypatch.setattr("ensadv_data.precompute.best_batch_size", lambda *args, **kwargs: 3)
    made = precompute_store(spec_of(source, batch_size="auto"), DATA, tmp_path / "s", workers=0)
    assert "3 images at once" in made.notes
    assert read_manifest(tmp_path / "s").plan["batch_size"] == 3
    same = precompute_store(spec_of(source, batch_size=3), DATA, tmp_path / "same", workers=0)
    assert made.digest == same.digest
    monkeypatch.setattr("ensadv_data.precompute.best_batch_size", lambda *args, **kwargs: 5)
    assert precompute_store(spec_of(source, batch_size="auto"), DATA, tmp_path / "s", workers=0).was_complete


def test_bfloat16_is_recorded_and_moves_few_signs(tmp_path, source):
    made = {}
    for precision in ("float32", "bfloat16"):
        spec = spec_of(source, attacks=("fgsm",), draws=1, mode="eval", precision=precision)
        precompute_store(spec, DATA, tmp_path / precision, workers=0)
        store = open_store(tmp_path / precision)
        assert store.header.plan["precision"] == precision
        made[precision] = store.gather(store.entries[0], np.zeros(70, np.int64), np.arange(70)).direction
    differ = np.unpackbits(made["float32"] ^ made["bfloat16"]).mean()
    assert 0 < differ < 0.05


def test_a_default_precision_leaves_no_trace(source):
    assert not {"precision", "compile"} & set(spec_of(source).model_dump())


def test_a_compiled_model_gives_the_same_signs(tmp_path, source, monkeypatch):
    """By the backend that needs no compiler of C++; what torch hands to it is the whole forward pass."""
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled(module, backend=backend))
    digests = {}
    for compile in (False, True):
        model_of.cache_clear()
        spec = spec_of(source, attacks=("fgsm",), draws=1, mode="eval", compile=compile)
        digests[compile] = precompute_store(spec, DATA, tmp_path / str(compile), workers=0).digest
    model_of.cache_clear()
    assert seen
    assert digests[False] == digests[True]
    assert read_manifest(tmp_path / "True").plan["compile"] is True


def test_a_compiler_that_fails_is_said(tmp_path, source, monkeypatch):
    def backend(graph, inputs):
        raise OSError("no compiler")

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compiled(module, backend=backend))
    model_of.cache_clear()
    with pytest.raises(ModelError, match=r"source d: torch\.compile failed: .*leave out --compile"):
        precompute_store(spec_of(source, compile=True), DATA, tmp_path / "s", workers=0)
    model_of.cache_clear()


def test_parameters_get_no_gradient(source):
    model = model_of(source, "d", "cpu", load_model(source).digest, False)
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


class Watched:
    """A data set that notes how many images are read at once."""

    def __init__(self, data, parts):
        self._data, self._parts = data, parts

    def __getattr__(self, name):
        return getattr(self._data, name)

    def __len__(self):
        return len(self._data)

    def read(self, indices):
        self._parts.append(len(indices))
        return self._data.read(indices)


def test_a_block_read_in_parts_is_the_block_read_at_once(tmp_path, source, monkeypatch):
    spec = spec_of(source, attacks=("fgsm", "r-fgsm", "pgd"), batch_size=2)
    whole = precompute_store(spec, DATA, tmp_path / "whole", workers=0)
    monkeypatch.setattr(blocks, "_MOST_IMAGES", 2)
    parts: list[int] = []
    data = blocks.dataset_of(DATA, "train")
    monkeypatch.setattr(blocks, "dataset_of", lambda *of: Watched(data, parts))
    assert precompute_store(spec, DATA, tmp_path / "parts", workers=0).digest == whole.digest
    assert max(parts) == 2


@given(st.integers(1, 5000), st.integers(1, 10**9))
def test_a_part_is_whole_batches_of_bounded_bytes(batch_size, d):
    size = blocks.part_size(batch_size, d)
    assert size % batch_size == 0
    assert size == batch_size or (size <= 4096 and size * d <= 32 * 2**20)


def test_the_next_part_is_read_while_one_is_computed(tmp_path, source, monkeypatch):
    computed, asked = [], threading.Event()

    class Asked(Watched):
        def read(self, indices):
            if indices[0] == 2:
                asked.set()
            return super().read(indices)

    def fill(rows, *what, at):
        if at == 0:
            assert asked.wait(30), "nothing was read while the first part was computed"
        computed.append(at)

    monkeypatch.setattr(blocks, "_MOST_IMAGES", 2)
    monkeypatch.setattr(blocks.BlockRows, "fill", fill)
    data = blocks.dataset_of(DATA, "train")
    monkeypatch.setattr(blocks, "dataset_of", lambda *of: Asked(data, []))
    precompute_store(spec_of(source, batch_size=2), DATA, tmp_path / "s", workers=0)
    assert computed[:3] == [0, 2, 4]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


class Narrow(torch.nn.Module):
    """A model on a device whose memory holds so many images at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            if self.most:
                raise RuntimeError(
                    f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {x.nbytes} bytes"
                )
            raise torch.OutOfMemoryError(f"expected memory for {len(x)} images")
        return self.layers(x)


def wide() -> torch.nn.Module:
    return Narrow(1000)


def narrow() -> torch.nn.Module:
    return Narrow(3)


def none_at_all() -> torch.nn.Module:
    return Narrow(0)


def test_a_batch_that_does_not_fit_in_memory_is_halved_said_and_recorded(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr("ensadv_data.precompute.check_models", lambda *_, **__: None)  # which shows it two images

    def made(factory: str, **fields: int) -> Outcome:
        spec = PrecomputeSpec(models={"m": f"python:{Path(__file__).stem}:{factory}"}, attacks=("r-fgsm",), **fields)
        return precompute_store(spec, DATA, tmp_path / f"{factory}{fields}", workers=0)

    halved = made("narrow", batch_size=4)
    at_once = "2 at once in blocks 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13"
    assert halved.notes[-1].startswith(f"4 images at once did not fit in memory: {at_once}")
    assert read_manifest(halved.path).plan["smaller_batches"] == {"2": list(range(14))}
    assert read_manifest(halved.path).plan["batch_size"] == 4
    straight = made("wide", batch_size=2)
    assert "smaller_batches" not in read_manifest(straight.path).plan
    assert read_manifest(halved.path).objects == read_manifest(straight.path).objects
    with pytest.raises(ModelError, match="block 0: expected memory of cpu for one image at least"):
        made("none_at_all", batch_size=4)


# Stores that another version wrote


def test_a_store_with_masks_of_another_level_is_verified_and_repaired(tmp_path, monkeypatch):
    """Readers do not depend on the level; a mask that is made again has the bytes that the manifest has."""
    spec = PrecomputeSpec(models={"c": save_source(tmp_path / "c.safetensors", architecture="C")}, attacks=("fgsm",))
    real = layout.zstd_level
    with monkeypatch.context() as patch:
        for user in (layout, writer, metadata):
            patch.setattr(user, "zstd_level", lambda name, *about: 15 if name == "nonzero" else real(name, *about))
        precompute_store(spec, DATA, tmp_path / "s", workers=0)
    document_path = tmp_path / "s/c/fgsm/nonzero/zarr.json"
    document = json.loads(document_path.read_text())
    assert document["codecs"][1]["configuration"]["level"] == 15
    assert check_documents(objects_at(tmp_path / "s"), blueprint_of(read_manifest(tmp_path / "s"), where="s")) > 5
    chunk = tmp_path / "s/c/fgsm/nonzero/c/0/0/0"
    before = chunk.read_bytes()
    chunk.unlink()
    precompute_store(spec, DATA, tmp_path / "s", workers=0)
    assert chunk.read_bytes() == before
    mender = writer.StoreWriter(tmp_path / "s", open_store(tmp_path / "s").header, ())
    assert mender._level_there("c/fgsm/nonzero", 9) == 15
    document_path.write_text("{}")
    assert mender._level_there("c/fgsm/nonzero", 9) == 9
    document_path.unlink()
    assert mender._level_there("c/fgsm/nonzero", 9) == 9
    document["codecs"][1]["configuration"]["level"] = 99
    document_path.write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match="codecs"):
        check_documents(objects_at(tmp_path / "s"), blueprint_of(read_manifest(tmp_path / "s"), where="s"))
