"""The scripts of benchmarks/, where they are: each runs whole at a small size. No time is asserted."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ensadv_data import arithmetic, pipeline

FOLDER = Path(__file__).parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="an installation without the repository around it")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a script in this process, as torchvision can be imported here; returns its JSON."""

    def ran(script: str, *words: str) -> dict:
        out = tmp_path / "found.json"
        monkeypatch.syspath_prepend(str(FOLDER))
        monkeypatch.setattr(sys, "argv", [script, *words, "--rounds", "2", "--json", str(out)])
        runpy.run_path(str(FOLDER / script), run_name="__main__")
        return json.loads(out.read_text(encoding="utf-8"))

    return ran


def test_gpu_checks_and_times_on_the_cpu(run):
    words = ("--models", "timm:resnet18=64", "--batches", "8", "--images", "16")
    found = run("gpu.py", "--device", "cpu", *words)["timm:resnet18"]
    assert found["equal"] == {"pack": True, "apply": True, "batch": True}
    assert set(found["steps of 8"]["over_clean"]) == {"clean", "store", "online", "static"}
    made = found["precompute by 8"]
    assert set(made) == {"float32", "bfloat16"}
    assert made["float32"]["images_a_second"]["precompute"] > 0
    assert made["float32"]["signs_not_float64"] < 0.001 < made["bfloat16"]["signs_not_float64"] < 0.3


class Here:
    """Runs what a process of its own would run, in this one."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work, *what):
        result = work(*what)
        return SimpleNamespace(result=lambda: result)


def test_decode_streams_photographs(monkeypatch, tmp_path, without_fsync):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("ENSADV_QUIET", "1")
    monkeypatch.setenv("DECODE_SIZE", "39")
    decode = importlib.import_module("decode")
    monkeypatch.setattr(decode, "begun", lambda *_: None)  # cores and memory of this process stay as they are
    monkeypatch.setattr(decode, "ProcessPoolExecutor", Here)
    out = tmp_path / "found.json"
    words = ("--images", "132", "--size", "39", "--workers", "0", "--rounds", "2", "--json", str(out))
    monkeypatch.setattr(sys, "argv", ["decode.py", *words])
    decode.main()
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["images"] == 132
    for flow in ("check", "precompute", "train"):
        assert min(found[flow].values()) > 0
    for cores in ("one core", "a core more"):
        shares = found[cores]["bare_over_it"]
        assert list(shares) == list(found[cores]["share_of_processor_time"])
        assert 0.3 < found[cores]["share_of_time_decoding"]["precompute"][0] < 2
        assert list(shares) == ["precompute", "train, first epoch", "train, later"]
        assert all(middle > 0 for middle, *_ in shares.values())
    assert "| precompute, a core more |" in importlib.import_module("page").decoded(found)


def test_rows_of_a_store_are_compared_with_other_engines(monkeypatch, tmp_path):
    """Each engine proves the rows that it reads before it is timed."""
    monkeypatch.syspath_prepend(str(FOLDER))
    store = importlib.import_module("store")
    monkeypatch.setattr(store, "ProcessPoolExecutor", Here)
    names = (store.OURS, store.BARE, "zarr-python", "tensorstore")
    monkeypatch.setattr(store, "ENGINES", {name: store.ENGINES[name] for name in names})
    out = tmp_path / "found.json"
    words = ("--rows", "3000", "--width", "98", "--batches", "2", "--rounds", "2", "--json", str(out))
    monkeypatch.setattr(sys, "argv", ["store.py", *words])
    store.main()
    found = json.loads(out.read_text(encoding="utf-8"))
    assert list(found["engines"]) == list(names[1:])
    for orders in found["engines"].values():
        assert list(orders) == ["random", "block", "sequential"]
        assert all(order["rows_a_second"][store.OURS] > 0 for order in orders.values())


def test_a_pull_is_compared_with_a_plain_copy(run):
    found = run("pull.py", "--bytes", "400000")
    assert found["objects"] > 3


def test_compiled_blocks_are_blocks(run, monkeypatch):
    """With a compiler that changes nothing, since a real one takes its time."""
    monkeypatch.setattr(torch, "compile", lambda module: module)
    found = run("compiled.py", "--architecture", "D")["architectures"]["D"]
    assert min(found["plain_over_compiled"]) > 0


def test_gpu_stops_where_the_device_differs(run, monkeypatch):
    monkeypatch.setattr("ensadv_data.device_codec.pixels", lambda images: images.float() / 256)
    with pytest.raises(SystemExit, match=r"the device and the CPU differ: .*'apply': False"):
        run("gpu.py", "--device", "cpu", "--models", "timm:resnet18=64", "--batches", "8", "--images", "16")


def test_signs_of_float32_are_those_of_float64(run):
    found = run("signs.py", "--architecture", "D", "--limit", "500", "--epochs", "30")["models"]["D"]
    assert found["values"] == 500 * 784
    assert found["saturated_images"] > 0
    assert sum(found["margin, float32"].values()) <= found["values"] / 100_000
    assert found["margin, float32, same branches"]["wrong"] == 0
    assert found["margin, exact"]["wrong"] == 0
    assert 0 <= found["margin, exact"]["images in float64"] < 0.05
    assert found["margin, bfloat16"]["opposite"] > 0
    assert found["ce, float32"]["opposite"] + found["ce, float32"]["lost"] > 0


def test_a_plan_is_compared_with_its_run(run, monkeypatch, without_fsync):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr("ensadv_data.trials._SECONDS", 0.0)
    monkeypatch.setattr("ensadv_data.pipeline.available_cores", lambda: 1)  # stages in this process
    real = pipeline.precompute_store
    monkeypatch.setattr(pipeline, "precompute_store", lambda *args, workers: real(*args, workers=0))
    words = ("--network", "test_resnet", "--size", "40", "--photographs", "36", "--least", "0.01")
    found = run("planned.py", *words)
    assert list(found["stages"]) == ["store", "trained"]
    for stage in found["stages"].values():
        for what in ("objects", "bytes"):
            least, most = stage[what]["planned"]
            assert least <= stage[what]["real"] <= most
        assert min(stage["seconds"].values()) > 0
    timed = {**found, "seconds": 1}  # as run.py writes it: what the script took
    assert "| precompute (store) |" in importlib.import_module("page").planned(timed)


def test_signs_of_a_network_are_wrong_by_its_branches_alone(run, monkeypatch):
    found = run("directions.py", "--networks", "resnet18", "--size", "48")["networks"]["resnet18"]
    assert found["values"] == 2 * 3 * 48 * 48
    assert found["same branches"] == 0
    assert found["branches"] > 100_000
    assert (found["turned"] == 0) <= (found["wrong"] == 0), "nothing else turns a sign"
    monkeypatch.syspath_prepend(str(FOLDER))
    assert "| resnet18 |" in importlib.import_module("page").directed(
        {"n": 2, "size": 48, "networks": {"resnet18": found}}
    )


def test_a_relu_in_place_is_in_place_again(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    signs, layer = importlib.import_module("signs"), torch.nn.ReLU(inplace=True)
    taken: list[torch.Tensor] = []
    with signs.branches(layer, taken, replay=False):
        layer(torch.tensor([-1.0, 2.0]))
    with signs.branches(layer, [~taken[0]], replay=True):
        assert layer(torch.tensor([-1.0, 2.0])).tolist() == [-1, 0], "the other way, with what it was given"
    assert layer.inplace


def test_a_gradient_goes_the_ways_that_were_noted(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    signs = importlib.import_module("signs")
    module = signs.build_model("C", shape=(1, 28, 28), classes=10).requires_grad_(False)
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    taken: list[torch.Tensor] = []
    single = signs.gradient(module, x, "margin", torch.float32, taken)
    assert [tuple(way.shape[1:]) for way in taken] == [(128, 13, 13), (64, 5, 5), (128,)]
    along = signs.gradient(module, x, "margin", torch.float64, taken)
    assert torch.allclose(single.double(), along, rtol=1e-3, atol=1e-7)
    taken[2] = torch.zeros_like(taken[2])  # every ReLU shut: no way is left
    assert not signs.gradient(module, x, "margin", torch.float64, taken).any()


@pytest.mark.parametrize("has", [False, True])
def test_online_measures_both_ways_of_the_gradient_and_bfloat16_where_it_is(run, monkeypatch, has):
    monkeypatch.setattr(arithmetic, "has_bfloat16", lambda device: has)
    found = run("online.py", "--architecture", "D")["architectures"]["D"]["over_clean"]
    assert set(found) == {"clean", "two passes", "one pass", *(["bfloat16"] if has else [])}


def test_cold_drops_the_pages_of_a_file(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    cold = importlib.import_module("cold")
    path = tmp_path / "file"
    path.write_bytes(bytes(2**20))
    assert cold.share_in_memory(path) == 1
    cold.drop(path)
    if left := cold.share_in_memory(path):
        pytest.skip(f"this file system keeps {100 * left:.0f}% of the pages")
    path.read_bytes()
    assert cold.share_in_memory(path) == 1


def test_size_counts_bits(run):
    found = run("size.py", "--architecture", "D", "--limit", "500")["architectures"]["D"]
    assert found["bits_a_value"]["r-fgsm"] == pytest.approx(98 * 8 / 784 + 32 / 784, abs=0.02)  # and a label an image
    assert found["bits_a_value"]["pgd"] > 8


def test_sources_counts_the_steps_that_computed(run):
    found = run("sources.py", "--architecture", "D", "--steps", "4")["sources"]
    assert found["store"]["share"] == 0
    assert found["n = 1"]["share"] == 1
    assert 0 < found["n = 2"]["share"] < 1


def test_the_page_is_what_the_figures_make_it(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    script = importlib.import_module("run")
    text = script.page.build(script.RESULTS, script.COMMANDS, script.LONGER)
    assert script.PAGE.read_text(encoding="utf-8") == text
    steps = json.loads((script.RESULTS / "step.json").read_text(encoding="utf-8"))["architectures"].values()
    costs = [row["over_clean"]["store"][0] for row in steps]
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert f"it takes {min(costs):.2f} to {max(costs):.2f} times as long" in readme
    for words in (script.COMMANDS | script.LONGER).values():
        assert (FOLDER / words.split()[0]).exists()


def test_a_promise_that_does_not_hold_is_said(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    page = importlib.import_module("page")
    (row,) = page._judged("cost", {"A": 1.0, "B": 1.2}, most=1.05)
    assert row == ["cost ≤ 1.05", "A 1.00, B 1.20", "holds in part"]
    assert page._judged("share", {"A": 0.5}, least=0.6)[0][2] == "does not hold"
    assert page._judged("share", {"A": 0.6}, least=0.6)[0][2] == "holds"


def test_schedule_measures_and_simulates(run):
    words = ("--examples", "1280000", "--workers", "8", "--failures", "0,0.1", "--pace", "100", "--crews", "2:20")
    found = run("schedule.py", *words, "--idle", "0.2", "--records", "20,40")
    calm, failing = found["runs"]
    about = found["ends"]["1280000"]
    assert (about["blocks"], about["objects"]) == (718, 718 * 9)
    assert 718 + 718 * 14 / 1000 < about["end_requests"] < 718 + 3 * 718 * 14 / 1000  # a thousand keys a list
    assert failing["hours"] >= calm["hours"] > 718 * 1783 * 4 / 100 / 8 / 3600
    assert calm["efficiency"] == pytest.approx(718 * 1783 * 4 / 100 / 8 / 3600 / calm["hours"], abs=0.02)
    hours = about["digest_hours"]
    assert hours["1"] > hours["8"] >= hours["1"] / 8 - 0.001
    assert found["records"]["40"]["manifest_bytes"] > found["records"]["20"]["manifest_bytes"] > 20 * 9 * 64
    assert min(found["processor_milliseconds"]["2"]["task"].values()) > 0


def test_the_reliability_page_has_the_figures_of_the_simulation():
    found = json.loads((FOLDER / "results/schedule.json").read_text(encoding="utf-8"))
    page = (FOLDER.parent / "docs/reliability.md").read_text(encoding="utf-8")
    about = found["ends"]["1000000000"]
    for text in (
        f"| before the first block: the digest of all images | {60 * about['digest_hours']['1000']:.0f} minutes |",
        f"one thread would take {about['digest_hours']['1']:.0f} hours",
        f"{about['end_requests'] / 1e6:.1f} million requests, {60 * about['end_hours_of_a_bucket']:.0f} minutes",
        f"| {about['manifest_bytes'] / 1e6:.0f} MB, and {about['gib']['end']:.1f} GiB of the client |",
        f"| {about['seconds_to_open']:.0f} s and {about['gib']['open_store']:.1f} GiB, of each process |",
        f"{about['objects'] / 1e6:.1f} million objects",
    ):
        assert text in page
    (run,) = [
        run
        for run in found["runs"]
        if (run["examples"], run["images_a_second"], run["workers"], run["failures"]) == (10**9, 1000, 1000, 0)
    ]
    assert f"| {100 * run['client_busy']:.0f}% of the time |" in page
    assert f"| {run['gigabytes_a_second']:.0f} GB/s |" in page
    assert f"| {run['hours']:.1f} hours |" in page


def test_pull_is_measured_beside_a_plain_copy(run):
    found = run("pull.py", "--bytes", "2000000")
    assert 1_900_000 < found["bytes"] < 2_200_000
    assert found["plain_over_pull"][0] > 0
