"""The requests that a plan foretells, counted on their way to a real server."""

from __future__ import annotations

import pytest

from ensadv_data.data import open_dataset
from ensadv_data.entries import entries_of
from ensadv_data.models import build_model, load_model, save_model
from ensadv_data.precompute import header_of, precompute_store
from ensadv_data.sizing import store_reading, store_requests
from ensadv_data.spec import DataSpec, PrecomputeSpec, TrainSpec
from ensadv_data.store import open_store
from ensadv_data.training import TrainingRun
from s3 import BUCKET, FaultyProxy, s3_server

DATA = DataSpec(data="mnist-mini", limit=200)
KINDS = ("put", "get", "head", "list", "delete")


@pytest.fixture(scope="module")
def counted():
    with s3_server() as port, FaultyProxy(port, share=0, seed=1) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("models") / "c.safetensors"
    module = build_model("C", shape=(1, 28, 28), classes=10, seed=1)
    save_model(path, module, architecture="C", shape=(1, 28, 28), classes=10, record={})
    return str(path)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("masked", {"attacks": ("fgsm", "pgd:steps=1"), "draws": 2}),
        ("filled", {"attacks": ("r-step-ll",), "zeros": "fill"}),
        ("tried", {"attacks": ("i-fgsm:steps=1",), "batch_size": "auto"}),
    ],
)
def test_precompute_makes_as_many_requests_as_were_foretold(counted, model, name, fields):
    spec, data = PrecomputeSpec(models={"c": model}, **fields), open_dataset(DATA.data, "train", limit=DATA.limit)
    source = load_model(model, name="c")
    entries = tuple(entries_of(spec, source).values())
    header = header_of(spec.model_copy(update={"batch_size": 64}), data, [source])
    expected = store_requests(header, entries, trial=spec.batch_size == "auto")
    counted.requests.clear()
    precompute_store(spec, DATA, f"s3://{BUCKET}/{name}", workers=0)
    found = {kind: counted.requests[kind] for kind in KINDS}
    masks = sum(map(open_store(f"s3://{BUCKET}/{name}").has_mask, entries))
    assert masks == (name == "masked"), "the least is that of a store without masks, the most that of one with all"
    ends = {kind: getattr(expected, f"{kind}s") for kind in KINDS}
    assert found == {
        kind: end.least if masks == (kind in ("list", "delete")) else end.most for kind, end in ends.items()
    }
    if name != "masked":
        assert all(end.least == end.most for end in ends.values())


def test_training_makes_no_more_requests_than_were_foretold(counted, model, tmp_path):
    url = f"s3://{BUCKET}/read"
    precompute_store(PrecomputeSpec(models={"c": model}, attacks=("fgsm",), draws=2), DATA, url, workers=0)
    store = open_store(url)
    expected = store_reading(store.header, store.entries)
    data = open_dataset(DATA.data, "train", limit=DATA.limit)
    counted.requests.clear()
    run = TrainingRun(TrainSpec(architecture="D", shards=(url,), batch_size=50), data, tmp_path / "m.safetensors")
    assert counted.requests == {"get": expected.opening.most}
    for number in range(3 * run.schedule.steps):  # of three epochs together: what is held is not fetched again
        run.prepare(number)
    assert counted.requests == {"get": expected.opening.most + expected.chunks.most}
