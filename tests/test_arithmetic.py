"""The arithmetic of gradients: float32 is float32 on every device, what is asked for else is what is done."""

from __future__ import annotations

import importlib
import textwrap

import pytest
import torch

from ensadv_data import arithmetic, precompute
from ensadv_data.arithmetic import IMITATED, as_recorded, has_bfloat16, in_precision, without_imitation
from ensadv_data.bench import save_untrained
from ensadv_data.data import open_dataset
from ensadv_data.evaluation.diagnosis import diagnose
from ensadv_data.evaluation.run import evaluate
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import DataSpec, DiagnoseSpec, EvaluateSpec, PrecomputeSpec, TrainSpec
from ensadv_data.store import open_store

SPY = """
    import torch

    seen = []

    class Spy(torch.nn.Flatten):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.eye(10, 784))

        def forward(self, x):
            matmul = torch.get_float32_matmul_precision()
            seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic, matmul))
            return super().forward(x) @ self.weight.T
    """
EXACT = (False, True, "highest")


def flags() -> tuple[bool, bool, str]:
    """Whether convolutions may round, whether their kernels repeat themselves, and what products of matrices do."""
    return torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic, torch.get_float32_matmul_precision()


@pytest.fixture
def spied(tmp_path, monkeypatch):
    """A model that notes in which arithmetic it is asked; its reference, and its notes."""
    name = f"spy_{tmp_path.name.replace('[', '_').replace(']', '_').replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(SPY), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return f"python:{name}:Spy", importlib.import_module(name).seen


def test_pytorch_rounds_convolutions_unless_it_is_told_otherwise():
    """The reason for all this; where it no longer holds, the code can go."""
    assert flags() == (True, False, "highest")


@pytest.mark.parametrize(
    ("precision", "inside"), [("float32", EXACT), ("tf32", (True, True, "high")), ("bfloat16", EXACT)]
)
@pytest.mark.usefixtures("two_threads")
def test_arithmetic_is_what_is_asked_for_and_is_put_back(precision, inside):
    before = flags()
    with in_precision("cpu", precision):
        assert flags() == inside
        assert torch.is_autocast_enabled("cpu") == (precision == "bfloat16")
    assert flags() == before

    def fail() -> None:
        with as_recorded("cpu", precision):
            assert torch.get_num_threads() == 1
            assert flags() == inside
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (flags(), torch.get_num_threads()) == (before, 2)


def test_gradients_of_a_store_are_computed_in_float32(tmp_path, spied):
    reference, seen = spied
    spec = PrecomputeSpec(models={"m": reference}, attacks=("fgsm", "r-fgsm:alpha=0.1"))
    precompute_store(spec, DataSpec(data="mnist-mini", limit=70), tmp_path / "s", workers=0)
    assert seen[-1] == EXACT  # before it, the model is looked at once
    assert seen.count(EXACT) >= len(seen) - 2


def test_evaluations_and_diagnoses_are_of_the_model_in_float32(spied):
    reference, seen = spied
    data = DataSpec(data="mnist-mini")
    evaluate(EvaluateSpec(suite="table2", images=10), data, targets={"m": reference}, sources={})
    assert seen[-1] == EXACT
    seen.clear()
    diagnose(DiagnoseSpec(measures=("rounding",), images=10), data, models={"m": reference})
    assert seen[-1] == EXACT


def test_a_processor_has_bfloat16_where_a_convolution_takes_a_kernel_for_it():
    """PyTorch's own profile of an autocast convolution tells which it took: oneDNN's, or that of no processor."""
    layer, images = torch.nn.Conv2d(3, 8, 5), torch.rand(4, 3, 16, 16)
    with torch.profiler.profile() as profile, torch.autocast("cpu", torch.bfloat16):
        layer(images)
    taken = {event.key for event in profile.key_averages()}
    assert taken & {"aten::mkldnn_convolution", "aten::_slow_conv2d_forward"}
    assert has_bfloat16("cpu") == ("aten::mkldnn_convolution" in taken)


@pytest.mark.parametrize("emulates", [False, True])
def test_a_gpu_that_emulates_bfloat16_has_none(monkeypatch, emulates):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or not emulates
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert has_bfloat16("cuda:1") == (not emulates)


def test_a_gpu_of_another_machine_is_taken_for_one_with_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert has_bfloat16("cuda")


@pytest.mark.parametrize("has", [False, True])
def test_bfloat16_is_not_imitated_in_training(monkeypatch, has):
    monkeypatch.setattr(arithmetic, "has_bfloat16", lambda device: has)
    wanted, plain = TrainSpec(architecture="D", amp=True), TrainSpec(architecture="D")
    assert without_imitation(wanted) == (wanted if has else plain)
    assert without_imitation(plain) == plain


@pytest.mark.parametrize("has", [False, True])
def test_a_store_in_bfloat16_is_one_and_where_it_is_imitated_a_note_says_so(tmp_path, monkeypatch, has):
    """What a store's record says is how its signs were made, whatever the speed."""
    monkeypatch.setattr(precompute, "has_bfloat16", lambda device: has)
    reference = save_untrained("D", open_dataset("mnist-mini", "train", limit=16), tmp_path / "d.safetensors")
    spec = PrecomputeSpec(models={"d": reference}, attacks=("r-fgsm",), precision="bfloat16", draws=2)
    made = precompute_store(spec, DataSpec(data="mnist-mini", limit=16), tmp_path / "store")
    assert open_store(tmp_path / "store").header.plan["precision"] == "bfloat16"
    assert any(IMITATED in note for note in made.notes) == (not has)
