"""The pictures of an evaluation are its images, before and after, and the report shows just those."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ensadv_data.attacks.catalogue import attack_label, perturb
from ensadv_data.data import open_dataset, shifted
from ensadv_data.errors import EnsadvError, InputError
from ensadv_data.evaluation.run import evaluate
from ensadv_data.models import build_model, load_model, save_model
from ensadv_data.report import write_report
from ensadv_data.report.charts import encode_png
from ensadv_data.spec import DataSpec, EvaluateSpec, ShiftSpec, parse_attack

MINI = DataSpec(data="mnist-mini")
CHANGED = ShiftSpec(rotate=20, flip=5)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "d.safetensors"
    module = build_model("D", shape=(1, 28, 28), classes=10, seed=1)
    save_model(path, module, architecture="D", shape=(1, 28, 28), classes=10, record={})
    return str(path)


def measured(target: str, **fields: object) -> dict[str, object]:
    spec = EvaluateSpec(suite="c1", images=20, seed=3, **fields)
    return evaluate(spec, MINI, targets={"net": target}, sources={}).to_json()


def pixels(text: str, count: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(count, 1, 28, 28)


def test_pictures_are_the_first_images_and_what_became_of_them(target):
    told = measured(target, pictures=4, shift=CHANGED)["pictures"]
    original = open_dataset("mnist-mini", "test")
    images, labels = original.read(np.arange(4))
    moved, _ = shifted(open_dataset("mnist-mini", "test", limit=20), CHANGED, seed=3).read(np.arange(4))
    assert (told["shape"], told["labels"]) == ([1, 28, 28], labels.tolist())
    assert (pixels(told["clean"], 4) == images).all()
    assert (pixels(told["changed"], 4) == moved).all()
    module = load_model(target).module
    x, y = torch.from_numpy(moved).float() / 255, torch.from_numpy(labels)
    attack = parse_attack("i-fgsm", epsilon=0.3)
    expected = perturb(module, x, attack_label(module, x, attack, y), attack).numpy()
    assert list(told["attacked"]["net"]) == ["fgsm", "i-fgsm", "pgd"]
    assert np.abs(pixels(told["attacked"]["net"]["i-fgsm"], 4) - 255 * expected).max() <= 0.501
    for text in told["attacked"]["net"].values():
        assert np.abs(pixels(text, 4).astype(int) - moved).max() in (76, 77)  # 0.3 · 255 = 76.5


def test_without_a_change_there_is_no_changed_row_and_unasked_there_are_no_pictures(target):
    told = measured(target, pictures=64)["pictures"]
    assert told["changed"] is None
    assert len(told["labels"]) == 20  # all that there are
    assert "pictures" not in measured(target)


@pytest.mark.parametrize("count", [-1, 65])
def test_too_many_are_refused(target, count):
    with pytest.raises((EnsadvError, ValueError), match="pictures"):
        measured(target, pictures=count)


def test_the_report_shows_them(target, tmp_path):
    result = tmp_path / "c1.json"
    told = measured(target, pictures=3, shift=CHANGED)
    result.write_text(json.dumps(told))
    page = write_report(tmp_path / "out.html", title="t", results=[result]).read_text()
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page) == [
        "as it is",
        "changed",
        "fgsm on net",
        "i-fgsm on net",
        "pgd on net",
    ]
    shown = re.findall(r'<img src="data:image/png;base64,([^"]+)"[^>]*alt="([^"]*)"', page)
    assert len(shown) == 5 * 3
    digit = told["pictures"]["labels"][1]
    assert shown[4][1] == f"changed, class {digit}"
    wide = pixels(told["pictures"]["changed"], 3)[1].transpose(1, 2, 0).repeat(3, axis=0).repeat(3, axis=1)
    assert base64.b64decode(shown[4][0]) == encode_png(wide)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("clean",), "AAAA", "pictures.clean: expected base64 of 2 images of shape (1, 28, 28), got 'AAAA'"),
        (("changed",), "§", "pictures.changed: expected base64"),
        (("attacked", "net", "fgsm"), None, "pictures.attacked.net.fgsm: expected a text, got None"),
        (("shape",), [28, 28], "pictures: expected labels, and a shape of three sides"),
        (("labels",), [], "pictures: expected labels, and a shape of three sides"),
    ],
)
def test_pictures_that_are_none_are_named(target, tmp_path, place, value, words):
    told = measured(target, pictures=2)
    *path, last = ("pictures", *place)
    table = told
    for key in path:
        table = table[key]
    table[last] = value
    broken = Path(tmp_path / "broken.json")
    broken.write_text(json.dumps(told))
    with pytest.raises(InputError, match=re.escape(words)):
        write_report(tmp_path / "out.html", title="t", results=[broken])
