"""The transfer matrix: against an independent computation with foolbox, and the identities that it obeys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import foolbox
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import independent
from ensadv_data.attacks.catalogue import noise_of
from ensadv_data.data import ArrayDataset, open_dataset
from ensadv_data.errors import InputError, ModelError
from ensadv_data.evaluation.interval import Rate
from ensadv_data.evaluation.run import evaluate
from ensadv_data.evaluation.suites import SUITES, Suite
from ensadv_data.evaluation.summary import remarks
from ensadv_data.evaluation.transfer import measure_transfer
from ensadv_data.keys import derive_key
from ensadv_data.models import Model, build_model, save_model, weights_digest
from ensadv_data.spec import DataSpec, EvaluateSpec, parse_attack

EPSILON, IMAGES = 0.1, 200
WHITE = tuple(parse_attack(text, epsilon=EPSILON) for text in ("fgsm:loss=ce", "r-fgsm:loss=ce"))
BLACK = tuple(
    parse_attack(text, epsilon=EPSILON)
    for text in ("fgsm:loss=ce", "i-fgsm:loss=ce,steps=4", "pgd:loss=ce,steps=4,step-size=0.04")
)


class Exact(nn.Module):
    """A net that computes in float64, so that no rounding depends on how images are cut into batches."""

    def __init__(self, *, seed: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.narrow = nn.Parameter(torch.randn(784, width, generator=generator, dtype=torch.float64) / 28)
        self.wide = nn.Parameter(torch.randn(width, 10, generator=generator, dtype=torch.float64) / width**0.5)
        self.calls = 0

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return (x_NCHW.double().flatten(1) @ self.narrow).relu() @ self.wide


def model_of(module: nn.Module, name: str) -> Model:
    return Model(name, module.eval(), name, "test", weights_digest(module))


@pytest.fixture(scope="module")
def dataset():
    return open_dataset("mnist-mini", "test", limit=IMAGES)


@pytest.fixture(scope="module")
def models():
    """Four nets that are right more often than not: two targets, two sources."""
    images, labels = open_dataset("mnist-mini", "train").read(np.arange(2000))
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    made = []
    for seed, name in enumerate(("t0", "t1", "s0", "s1")):
        module = Exact(seed=seed, width=32)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        for _ in range(30):
            optimizer.zero_grad()
            cross_entropy(module(x), y).backward()
            optimizer.step()
        made.append(model_of(module.requires_grad_(False), name))
    return made


@pytest.fixture(scope="module")
def measured(models, dataset):
    return measure_transfer(
        models[:2], models[2:], dataset, white_box=WHITE, black_box=BLACK, epsilon=EPSILON, suite="s", seed=5
    )


class FromNoise(foolbox.attacks.LinfProjectedGradientDescentAttack):
    """foolbox's PGD, with a start that is given."""

    noise: torch.Tensor

    def get_random_start(self, x0, epsilon):
        return x0 + epsilon * type(x0)(self.noise)


def independent_errors(
    targets: Sequence[Model], sources: Sequence[Model], images: np.ndarray, labels: np.ndarray, *, seed: int
) -> dict[tuple[str, ...], int]:
    """The same matrix, by foolbox and a few lines of PyTorch; only the noise is the package's."""
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)

    def noise(attack):
        key = derive_key("evaluation", seed, attack.label)
        return noise_of(attack, (1, 28, 28), seed=key, examples=np.arange(len(x)))

    def errors(module, inputs):
        with torch.no_grad():
            return int((module(inputs).argmax(1) != y).sum())

    def fgsm(module, inputs, epsilon):
        attacked = foolbox.PyTorchModel(module, bounds=(0, 1))
        return foolbox.attacks.LinfFastGradientAttack()(attacked, inputs, y, epsilons=epsilon)[0]

    def iterated(module, attack):
        kind = {
            "i-fgsm": foolbox.attacks.LinfBasicIterativeAttack,
            "pgd": FromNoise,
        }[attack.name]
        steps, size = attack.iterations
        runner = kind(steps=steps, abs_stepsize=size, random_start=attack.name == "pgd")
        runner.noise = noise(attack)
        return runner(foolbox.PyTorchModel(module, bounds=(0, 1)), x, y, epsilons=EPSILON)[0]

    found = {(target.name, "clean"): errors(target.module, x) for target in targets}
    for target in targets:
        found[target.name, "white", WHITE[0].label] = errors(target.module, fgsm(target.module, x, EPSILON))
        alpha = EPSILON / 2  # what R+FGSM takes where epsilon is not above 0.1
        stepped = (x + alpha * noise(WHITE[1]).sign()).clamp(0, 1)
        x_adv = fgsm(target.module, stepped, EPSILON - alpha)
        found[target.name, "white", WHITE[1].label] = errors(target.module, x_adv)
        for source in sources:
            for attack in BLACK:
                single = attack.name == "fgsm"
                x_adv = fgsm(source.module, x, EPSILON) if single else iterated(source.module, attack)
                found[target.name, source.name, attack.label] = errors(target.module, x_adv)
    return found


def test_counts_equal_those_of_an_independent_computation(models, dataset, measured):
    images, labels = dataset.read(np.arange(len(dataset)))
    expected = independent_errors(models[:2], models[2:], images, labels, seed=5)
    got = {}
    for row in measured.targets:
        got[row.target, "clean"] = row.clean.errors
        got |= {(row.target, "white", attack): rate.errors for attack, rate in row.white_box.items()}
        got |= {
            (row.target, source, attack): rate.errors
            for source, by in row.black_box.items()
            for attack, rate in by.items()
        }
    assert got == expected
    assert len({count for key, count in got.items() if len(key) == 3}) > 4, "the attacks should differ"
    assert all(0 < count < IMAGES for count in got.values()), got


def test_evaluate_equals_a_script_of_forty_lines_that_uses_torch_and_foolbox_only(monkeypatch):
    script = Path(independent.__file__)
    lines = script.read_text().splitlines()
    assert sum(1 for line in lines if line.strip()) <= 40
    names = {word.split(".")[0] for line in lines if line.startswith(("import", "from")) for word in line.split()[1:2]}
    assert names == {"foolbox", "functools", "gzip", "json", "os", "torch"}
    folder = str(files("ensadv_data") / "data" / "mnist-mini")
    environment = {**os.environ, "IDX_FOLDER": folder}
    ended = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    monkeypatch.setenv("IDX_FOLDER", folder)
    suite = Suite(("fgsm:loss=ce", "i-fgsm:loss=ce"), ("fgsm:loss=ce", "i-fgsm:loss=ce"), about="")
    monkeypatch.setitem(SUITES, "forty", suite)
    spec = EvaluateSpec(suite="forty", epsilon=independent.EPSILON, images=independent.IMAGES)
    target, first, second = (f"python:independent:{name}" for name in ("target", "first", "second"))
    transfer = evaluate(spec, DataSpec(data="mnist-mini"), targets={"t": target}, sources={"f": first, "s": second})
    (row,) = transfer.targets
    got = {"clean": row.clean.errors, **{f"target {name}": rate.errors for name, rate in row.white_box.items()}}
    for name, source in (("f", "first"), ("s", "second")):
        got |= {f"{source} {attack}": rate.errors for attack, rate in row.black_box[name].items()}
    assert got == json.loads(ended.stdout)


def test_identities_of_the_summary(measured):
    for row in measured.targets:
        rates = [(s, a, rate) for s, by in row.black_box.items() for a, rate in by.items()]
        assert {rate.n for *_, rate in rates} == {IMAGES}
        worst = row.worst_black_box
        assert worst is not None
        assert worst[2].errors == max(rate.errors for *_, rate in rates)
        assert worst in rates
        assert row.mean_black_box == pytest.approx(sum(rate.errors for *_, rate in rates) / len(rates) / IMAGES)
        assert row.any_black_box is not None
        total = sum(rate.errors for *_, rate in rates)
        assert worst[2].errors <= row.any_black_box.errors <= min(IMAGES, total)


def test_any_counts_each_image_once(models, dataset, measured):
    images, labels = dataset.read(np.arange(len(dataset)))
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)
    only = measure_transfer(models[:1], models[2:], dataset, white_box=(), black_box=BLACK[:1], epsilon=EPSILON)
    fooled = torch.zeros(len(y), dtype=torch.bool)
    for source in models[2:]:
        x_grad = x.clone().requires_grad_(True)
        cross_entropy(source.module(x_grad), y, reduction="sum").backward()
        x_adv = (x + EPSILON * x_grad.grad.sign()).clamp(0, 1)
        fooled |= models[0].module(x_adv).argmax(1) != y
    assert only.targets[0].any_black_box == Rate(int(fooled.sum()), IMAGES)


def test_a_source_that_shares_weights_with_a_target_is_named(tmp_path):
    """An ensemble with the target in it knows the target's gradient, and is no black box to it."""
    names = {}
    for seed, name in enumerate(("t", "s", "u")):
        net = build_model("D", shape=(1, 28, 28), classes=10, seed=seed)
        names[name] = str(tmp_path / f"{name}.safetensors")
        save_model(tmp_path / f"{name}.safetensors", net, architecture="D", shape=(1, 28, 28), classes=10, record={})
    sources = {
        "both": f"mean-probabilities:{names['t']}+{names['s']}",
        "rounded": f"binarised:{names['t']}",
        "others": f"mean-logits:{names['s']}+{names['u']}",
        "alone": names["s"],
    }
    targets = {"t": names["t"], "u": names["u"], "far": f"binarised:{names['s']}"}
    spec = EvaluateSpec(suite="table1", images=3)
    told = evaluate(spec, DataSpec(data="mnist-mini"), targets=targets, sources=sources).to_json()
    kin = {name: row.get("kin") for name, row in told["targets"].items()}
    assert kin == {"t": ["both", "rounded"], "u": ["others"], "far": ["both", "others", "alone"]}
    assert (
        "source both shares weights with target t: its attacks there are not black-box, and are in no worst and no mean"
        in remarks(told)
    )
    t, far = told["targets"]["t"], told["targets"]["far"]
    assert list(t["black_box"]) == ["both", "rounded", "others", "alone"]
    errors = [t["black_box"][name]["step-ll"]["errors"] for name in ("others", "alone")]
    assert t["worst_black_box"]["errors"] == max(errors)
    assert t["worst_black_box"]["source"] in ("others", "alone")
    assert t["mean_black_box"] == pytest.approx(sum(errors) / 2 / 3)
    assert t["any_black_box"]["errors"] <= sum(errors)
    assert far["worst_black_box"]["source"] == "rounded"  # of t, a stranger to s
    assert far["any_black_box"] == far["black_box"]["rounded"]["step-ll"]
    own = evaluate(spec, DataSpec(data="mnist-mini"), targets={"t": names["t"]}, sources={"same": names["t"]}).to_json()
    assert "kin" not in own["targets"]["t"]


class Wrapped(nn.Module):
    """As anybody writes one, to add a normalisation of the input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.net, self.shift = inner, nn.Parameter(torch.zeros(1, 1, 28, 28))

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.net(x_NCHW - self.shift)


def test_a_model_in_a_wrapper_is_no_stranger_to_itself(dataset):
    nets = [build_model("D", shape=(1, 28, 28), classes=10, seed=seed) for seed in (1, 2)]
    target, other = (model_of(net, f"t{number}") for number, net in enumerate(nets))
    sources = [model_of(Wrapped(net), f"wrapped {number}") for number, net in enumerate(nets)]
    got = measure_transfer([target, other], sources, dataset, white_box=(), black_box=BLACK[:1], epsilon=EPSILON)
    assert [row.kin for row in got.targets] == [("wrapped 0",), ("wrapped 1",)]
    for shift in (torch.zeros(784), torch.linspace(0, 0.5, 784)):  # as a normalisation is, or an embedding of positions
        apart = [model_of(Wrapped(nn.Sequential(nn.Flatten(), nn.Linear(784, 10))), name) for name in "ab"]
        for model in apart:
            model.module.shift.data = shift.view(1, 1, 28, 28)
        alone = measure_transfer(apart[:1], apart[1:], dataset, white_box=(), black_box=BLACK[:1], epsilon=EPSILON)
        assert alone.targets[0].kin == ()


class Constant(nn.Module):
    """The same answer to every image: no gradient leads anywhere."""

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return (0 * x_NCHW.flatten(1)[:, :10]) + torch.arange(10.0)


def test_images_that_an_attack_leaves_where_it_began_are_counted(models, dataset):
    """From a random step as well, and of a source: it would pass for one that no target minds."""
    attacks = tuple(
        parse_attack(text, epsilon=EPSILON) for text in ("step-ll", "r-fgsm", "i-fgsm:steps=2", "pgd:loss=ce")
    )
    still = model_of(Constant(), "still")
    got = measure_transfer(
        [still, models[0]], [still, models[2]], dataset, white_box=attacks, black_box=attacks, epsilon=EPSILON
    )
    all_of_them = {attack.label: IMAGES for attack in attacks}
    assert [row.unmoved for row in got.targets] == [all_of_them, {}]
    assert got.unmoved == {"still": all_of_them}
    told = got.to_json()
    assert told["unmoved"] == got.unmoved
    assert (
        f"R+FGSM on source still left {IMAGES} of {IMAGES} images where it began: its gradient is zero there, or "
        "leads out of [0, 1], so that it attacks no target on them, and makes every mean lower; choose another source"
    ) in remarks(told)
    hinge = (parse_attack("pgd", epsilon=EPSILON),)  # flat where it has succeeded
    won = measure_transfer([still], [], dataset, white_box=hinge, black_box=(), epsilon=EPSILON)
    assert won.targets[0].unmoved == {}
    sound = measure_transfer(models[:1], models[2:], dataset, white_box=attacks, black_box=attacks, epsilon=EPSILON)
    assert "unmoved" not in sound.to_json()


class BrokenGradient(nn.Module):
    """Finite logits, and a derivative of the square root at 0."""

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return (x_NCHW.flatten(1)[:, :10] * 0).sqrt() + x_NCHW.flatten(1)[:, 300:310]


@pytest.mark.parametrize("attack", BLACK, ids=str)
def test_a_source_whose_gradient_is_no_number_is_named_and_not_its_target(models, dataset, attack):
    bad = model_of(BrokenGradient(), "bad")
    options = {"epsilon": EPSILON}
    with pytest.raises(ModelError, match=r"^bad: expected finite gradients, got NaN"):
        measure_transfer(models[:1], [bad], dataset, white_box=(), black_box=[attack], **options)
    with pytest.raises(ModelError, match=r"^bad: expected finite gradients, got NaN"):
        measure_transfer([bad], [], dataset, white_box=[attack], black_box=(), **options)


def test_source_with_the_weights_of_a_target_is_not_transferred_to_it(models, dataset):
    t0, t1, s0, _ = models
    twin = model_of(t0.module, "twin")
    got = measure_transfer([t0, t1], [twin, s0], dataset, white_box=(), black_box=BLACK[:1], epsilon=EPSILON)
    assert list(got.targets[0].black_box) == ["s0"]
    assert list(got.targets[1].black_box) == ["twin", "s0"]
    alone = measure_transfer([t0], [twin], dataset, white_box=WHITE[:1], black_box=BLACK[:1], epsilon=EPSILON)
    assert (got.targets[0].twin, got.targets[1].twin) == ("twin", None)
    assert got.targets[0].white_box[BLACK[0].label] == alone.targets[0].white_box[BLACK[0].label]
    assert alone.to_json()["targets"]["t0"]["twin"] == "twin"
    assert alone.targets[0].black_box == {}
    assert alone.targets[0].worst_black_box is None
    assert alone.targets[0].mean_black_box is None
    assert alone.targets[0].any_black_box is None
    assert alone.to_json()["targets"]["t0"]["worst_black_box"] is None


@pytest.mark.parametrize("batch_size", [1000, 64, 7])
def test_counts_do_not_depend_on_the_batch_size(models, dataset, measured, batch_size):
    again = measure_transfer(
        models[:2],
        models[2:],
        dataset,
        white_box=WHITE,
        black_box=BLACK,
        epsilon=EPSILON,
        suite="s",
        seed=5,
        batch_size=batch_size,
    )
    assert json.dumps(again.to_json()) == json.dumps(measured.to_json())


def test_each_perturbation_is_computed_once(models, dataset):
    _, _, source, _ = models
    calls = []
    for count in (1, 3):
        targets = [model_of(Exact(seed=50 + number, width=8), f"t{number}") for number in range(count)]
        before, advanced = source.module.calls, []
        measure_transfer(
            targets, [source], dataset, white_box=(), black_box=BLACK, epsilon=EPSILON, advance=advanced.append
        )
        calls.append(source.module.calls - before)
        assert sum(advanced) == len(BLACK) * IMAGES
    # a look at one image, at its gradient, and at all images; FGSM; four steps; four steps
    assert calls[0] == calls[1] == 1 + 1 + 1 + 1 + 4 + 4


def test_a_target_that_is_a_source_is_attacked_once(models, dataset):
    """Its white-box attack is the one that is transferred: Tables 1, 7 and 9."""
    t0, t1, _, _ = models
    attack = WHITE[1]
    calls = []
    for white in ([attack], []):
        before, advanced = t0.module.calls, []
        got = measure_transfer(
            [t0, t1], [t0], dataset, white_box=white, black_box=[attack], epsilon=EPSILON, advance=advanced.append
        )
        calls.append(t0.module.calls - before)
        assert sum(advanced) == (2 * len(white) + 1) * IMAGES
        assert list(got.targets[0].white_box) == [attack.label]
    # its gradient is looked at as a target's as well, the answers to the attack are asked for twice; it is made once
    assert calls[0] == calls[1] + 1 + 1


def test_json_is_deterministic_and_holds_everything(models, dataset, measured):
    again = measure_transfer(
        models[:2], models[2:], dataset, white_box=WHITE, black_box=BLACK, epsilon=EPSILON, suite="s", seed=5
    )
    text = json.dumps(measured.to_json())
    assert text == json.dumps(again.to_json())
    loaded = json.loads(text)
    assert loaded["kind"] == "transfer"
    assert loaded["version"] == 1
    assert loaded["data"] == "mnist-mini/test"
    assert loaded["n"] == IMAGES
    assert loaded["sources"] == {model.name: model.digest for model in models[2:]}
    row = loaded["targets"]["t0"]
    assert row["clean"]["error"] == row["clean"]["errors"] / IMAGES
    assert row["clean"]["low"] < row["clean"]["error"] < row["clean"]["high"]
    assert set(row["black_box"]["s0"]) == {attack.label for attack in BLACK}


def test_another_seed_is_another_noise(models, dataset, measured):
    attack = parse_attack("r-fgsm:loss=ce,alpha=0.09", epsilon=EPSILON)
    counts = {
        measure_transfer(models[:2], [], dataset, white_box=[attack], black_box=(), epsilon=EPSILON, seed=seed)
        .targets[number]
        .white_box[attack.label]
        .errors
        for seed in range(4)
        for number in (0,)
    }
    assert len(counts) > 1


def test_models_are_left_in_their_mode(models, dataset):
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10)).train()
    model = Model("m", module, "m", "test", weights_digest(module))
    first = measure_transfer([model], [], dataset, white_box=WHITE[:1], black_box=(), epsilon=EPSILON)
    second = measure_transfer([model], [], dataset, white_box=WHITE[:1], black_box=(), epsilon=EPSILON)
    assert first == second, "dropout was active"
    assert module.training


class Broken(nn.Module):
    """A model with a given fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.weight, self.fault = nn.Parameter(torch.ones(784, 10)), fault

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        logits = x_NCHW.flatten(1) @ self.weight
        if self.fault == "nan":
            return logits * float("nan")
        if self.fault == "nan for some":
            return torch.where(x_NCHW.flatten(1)[:, :1] + torch.arange(len(logits))[:, None] > 3, torch.nan, logits)
        if self.fault == "one column":
            return logits[:, :1]
        if self.fault == "three columns":
            return logits[:, :3]
        if self.fault == "flat":
            return logits.flatten()
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nan", "expected finite logits, got NaN"),
        ("nan for some", "expected finite logits, got NaN or infinity"),
        ("one column", r"expected logits of shape \(2, K\)"),
        ("three columns", "expected 10 logits an image, got 3"),
        ("flat", r"expected logits of shape \(2, K\)"),
        ("other shape", "cannot read images of shape"),
    ],
)
def test_bad_target_is_named(dataset, fault, words):
    with pytest.raises(ModelError, match=f"bad: .*{words}"):
        measure_transfer([model_of(Broken(fault), "bad")], [], dataset, white_box=WHITE, black_box=(), epsilon=EPSILON)


@pytest.mark.parametrize("fault", ["nan", "three columns", "flat", "other shape", "nan for some"])
def test_bad_source_is_named_and_not_its_target(models, dataset, fault):
    bad = model_of(Broken(fault), "bad")
    with pytest.raises(ModelError, match=r"^bad: "):
        measure_transfer(models[:1], [bad], dataset, white_box=(), black_box=BLACK, epsilon=EPSILON)


def test_two_models_of_one_name_are_refused(models, dataset):
    t0, t1, s0, s1 = models
    options = {"white_box": WHITE, "black_box": BLACK, "epsilon": EPSILON}
    with pytest.raises(InputError, match="name of its own for each target, got a, a; use NAME=REF"):
        measure_transfer([model_of(t0.module, "a"), model_of(t1.module, "a")], [s0], dataset, **options)
    with pytest.raises(InputError, match="name of its own for each source"):
        measure_transfer([t0], [s0, model_of(s1.module, "s0")], dataset, **options)
    same = measure_transfer(
        [t0], [model_of(s0.module, "t0")], dataset, **options
    )  # a target and a source may share one
    assert list(same.targets[0].black_box) == ["t0"]


def test_no_target_is_refused(models, dataset):
    with pytest.raises(InputError, match="at least one target"):
        measure_transfer([], models[2:], dataset, white_box=WHITE, black_box=BLACK, epsilon=EPSILON)


def test_with_more_than_ten_classes_the_first_five_count_too(models):
    """Eleven classes: the tenth's logit, repeated."""
    images, labels = open_dataset("mnist-mini", "test", limit=80).read(np.arange(80))
    data = ArrayDataset(images, labels, name="eleven", split="test", classes=11)

    class Wider(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            logits = self.inner(x)
            return torch.cat([logits, logits[:, -1:] - 1], dim=1)

    target, source = (model_of(Wider(model.module), model.name) for model in (models[0], models[2]))
    got = measure_transfer([target], [source], data, white_box=WHITE[:1], black_box=BLACK[:1], epsilon=EPSILON)
    (row,) = got.targets
    assert row.top5 is not None
    x, y = torch.from_numpy(images).float() / 255, torch.from_numpy(labels)

    def missed(inputs):
        return int((target.module(inputs).argsort(dim=1, descending=True)[:, :5] != y[:, None]).all(1).sum())

    def fgsm(module):
        point = x.clone().requires_grad_(True)
        cross_entropy(module(point), y, reduction="sum").backward()
        return (x + EPSILON * point.grad.sign()).clamp(0, 1)

    assert row.top5.clean.errors == missed(x)
    assert row.top5.white_box[WHITE[0].label].errors == missed(fgsm(target.module))
    assert row.top5.black_box["s0"][BLACK[0].label].errors == missed(fgsm(source.module))
    assert row.clean.errors >= row.top5.clean.errors
    told = got.to_json()["targets"]["t0"]
    assert told["top5"]["worst_black_box"] == {
        "source": "s0",
        "attack": BLACK[0].label,
        **row.top5.black_box["s0"][BLACK[0].label].to_json(),
    }
    assert "top5" not in told["top5"]


def test_images_of_another_data_set_are_measured_too():
    """Three channels, six classes: nothing is particular to digits."""
    generator = np.random.Generator(np.random.Philox(key=1))
    images = generator.integers(0, 256, (12, 3, 4, 5), dtype=np.uint8)
    labels = generator.integers(0, 6, 12)
    data = ArrayDataset(images, labels, name="noise", split="test", classes=6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_of(nn.Sequential(nn.Flatten(), nn.Linear(60, 6)), "m")
    got = measure_transfer([model], [], data, white_box=WHITE, black_box=(), epsilon=EPSILON, batch_size=5)
    assert got.data == "noise/test"
    assert got.targets[0].white_box[WHITE[0].label].errors >= got.targets[0].clean.errors
