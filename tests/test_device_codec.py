"""The codec on a device: the numbers of the codec on the CPU, to the last bit, and one copy a batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensadv_data import codec, device_codec
from ensadv_data.batches import Batches, deliver
from ensadv_data.mixing import Schedule, plan_step
from ensadv_data.sources import Source, static_sources
from ensadv_data.spec import EpsilonSpec
from ensadv_data.training import TrainingRun
from laws import is_bit_equal
from test_store import make_images, make_store
from test_training import ensemble, spec_of, train

pytestmark = pytest.mark.usefixtures("without_fsync")
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = {"n": st.integers(1, 6), "d": st.integers(1, 300), "seed": st.integers(0, 2**32 - 1)}


@pytest.fixture(params=["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])])
def device(request) -> Iterator[torch.device]:
    return torch.device(request.param)


def same(here: np.ndarray, there: torch.Tensor) -> bool:
    return is_bit_equal(np.ascontiguousarray(here), there.cpu().contiguous().numpy())


@quick
@given(**sizes, zeros=st.booleans(), bytes_of=st.booleans())
def test_signs_are_applied_and_packed_as_on_the_cpu(device, n, d, seed, zeros, bytes_of):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(n, d)).astype(np.float32)
    if zeros:
        values[generator.random((n, d)) < 0.2] = 0
    x = generator.integers(0, 256, (n, d), dtype=np.uint8)
    images = x if bytes_of else (x / np.float32(255)).astype(np.float32)
    epsilon = generator.uniform(0, 0.4, n).astype(np.float32)
    direction, nonzero = codec.pack_signs(values)
    plane, mask = device_codec.pack_signs(torch.from_numpy(values).to(device))
    assert same(direction, plane)
    assert same(np.packbits(values != 0, axis=1, bitorder="little") if nonzero is None else nonzero, mask)
    there = torch.from_numpy(images).to(device)
    there = device_codec.pixels(there) if bytes_of else there
    moved = device_codec.apply_signs(
        there, plane, None if nonzero is None else mask, epsilon=torch.from_numpy(epsilon).to(device)
    )
    assert same(codec.apply_signs(images, direction, nonzero, epsilon=epsilon), moved)
    unpacked = device_codec.unpack_signs(plane, mask, d=d)
    assert (codec.unpack_signs(direction, nonzero, d=d) == unpacked.cpu().numpy()).all()


@quick
@given(**sizes)
def test_deltas_are_applied_as_on_the_cpu(device, n, d, seed):
    generator = np.random.default_rng(seed)
    x = generator.integers(0, 256, (n, d), dtype=np.uint8)
    q = generator.integers(-127, 128, (n, d), dtype=np.int8)
    epsilon = generator.uniform(0, 0.4, n).astype(np.float32)
    x_there, q_there, epsilon_there = device_codec.ship([x, q, epsilon], device)
    moved = device_codec.apply_deltas(device_codec.pixels(x_there), q_there, epsilon=epsilon_there)
    assert same(codec.apply_deltas(x, q, epsilon=epsilon), moved)


def test_all_256_pixels_are_divided_as_a_cpu_divides(device):
    x = np.arange(256, dtype=np.uint8)
    assert same(x / np.float32(255), device_codec.pixels(torch.from_numpy(x).to(device)))


@quick
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["uint8", "int8", "int64", "float32"]), st.lists(st.integers(0, 5), min_size=1, max_size=3)
        ),
        max_size=6,
    )
)
def test_arrays_are_shipped_by_one_copy(device, kinds):
    arrays = [(np.arange(np.prod(shape)) % 100).reshape(shape).astype(kind) for kind, shape in kinds]
    there = device_codec.ship(arrays, device)
    assert all(same(array, tensor) for array, tensor in zip(arrays, there, strict=True))
    assert len({tensor.untyped_storage().data_ptr() for tensor in there if tensor.numel()}) <= 1


def test_what_is_not_contiguous_is_shipped_as_it_reads(device):
    array = np.arange(24).reshape(4, 6)[:, ::2]
    assert same(np.ascontiguousarray(array), device_codec.ship([array], device)[0])


# Packed batches


@pytest.fixture(scope="module")
def data():
    return make_images(40)


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_packed_batch_is_the_batch(tmp_path, data, device, replace, per_example, zeros):
    for name in "ab":
        make_store(
            tmp_path / name, data, ("m/fgsm", "m/r-fgsm", "m/pgd"), draws=2, zeros=zeros, seed=ord(name), blocks=None
        )
    for attack in ("fgsm", "r-fgsm", "pgd"):
        sources = tuple(
            Source(f"{number}", tuple(pair for pair in source.entries if pair[1].attack == attack))
            for number, source in enumerate(static_sources([tmp_path / "a", tmp_path / "b"], data))
        )
        schedule = Schedule(
            seed=2,
            n=40,
            batch_size=10,
            sources=sources,
            per_example=per_example,
            epsilon=EpsilonSpec(epsilon=0.3, sigma=0.15 if attack == "fgsm" else None),
        )
        plan = plan_step(schedule, epoch=1, step=2)
        whole, packed = (
            deliver(Batches(data, schedule, replace=replace, packed=packed).make(plan, epoch=1), where)
            for packed, where in ((False, torch.device("cpu")), (True, device))
        )
        assert same(whole.x.numpy(), packed.x)
        assert torch.equal(whole.y, packed.y.cpu())
        assert len(whole.static) == len(packed.static) == (2 if per_example else 1)
        for (_, rows, made), (_, rows_there, there) in zip(whole.static, packed.static, strict=True):
            assert torch.equal(rows, rows_there.cpu())
            assert same(made.numpy(), there)


def test_bits_travel_in_one_copy_and_floats_do_not(tmp_path, data, monkeypatch):
    make_store(tmp_path / "s", data, ("m/r-fgsm",))
    schedule = Schedule(seed=0, n=40, batch_size=20, sources=static_sources([tmp_path / "s"], data))
    batch = Batches(data, schedule, packed=True).make(plan_step(schedule, epoch=0, step=0), epoch=0)
    shipped = []
    monkeypatch.setattr(
        "ensadv_data.batches.ship", lambda arrays, device: shipped.append(arrays) or device_codec.ship(arrays, device)
    )
    deliver(batch, torch.device("cpu"))
    (arrays,) = shipped
    floats = [array for array in arrays if array.dtype == np.float32]
    assert all(array.ndim == 1 for array in floats), "one epsilon an image, and no image"
    assert sum(array.nbytes for array in arrays) < 20 * (20 + 8 + 8 + 2 * 3 + 2 * 4 + 1)


def test_training_from_packed_batches_gives_the_same_weights(tmp_path, data, monkeypatch):
    make_store(tmp_path / "s", data, ("m/fgsm", "m/r-fgsm"), draws=2, zeros=True)
    spec = ensemble(tmp_path / "s")
    whole = train(spec, data, tmp_path / "whole.safetensors")

    class Packed(TrainingRun):
        def __init__(self, *arguments, **fields) -> None:
            super().__init__(*arguments, **fields)
            self.batches.packed = True

    monkeypatch.setattr("ensadv_data.training.TrainingRun", Packed)
    assert train(spec, data, tmp_path / "packed.safetensors").digest == whole.digest
    assert whole.digest != train(spec_of(), data, tmp_path / "plain.safetensors").digest
