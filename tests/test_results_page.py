"""The page of results is what its data make it, and its judgements follow from the numbers."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ensadv_data.codec import random_bits
from ensadv_data.data import open_data, open_dataset, shifted
from ensadv_data.evaluation.suites import suite_named
from ensadv_data.models import build_model, load_model, save_model
from ensadv_data.precompute import precompute_store
from ensadv_data.recipe import packaged_recipe, read_recipe
from ensadv_data.spec import DataSpec, PrecomputeSpec, ShiftSpec
from ensadv_data.store import open_store

FOLDER = Path(__file__).parent.parent / "docs" / "results"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="installed without the repository around it")


@pytest.fixture(scope="module")
def build() -> Iterator[SimpleNamespace]:
    """The names of the page's modules, as the command finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        names = ("steps", "turning", "measured", "judging", "tables", "study", "queries", "build")
        modules = [importlib.import_module(name) for name in names]
        yield SimpleNamespace(**{name: value for module in modules for name, value in vars(module).items()})


def test_the_page_is_what_the_data_make_it(build):
    paper = json.loads((FOLDER / "paper.json").read_text())
    assert (FOLDER / "README.md").read_text() == build.page(build.Results(FOLDER / "data"), paper)
    assert "{{" not in (FOLDER / "README.md").read_text()


def rate(errors: int) -> dict[str, float]:
    return {"errors": errors, "n": 100, "error": errors / 100, "low": 0.0, "high": 1.0}


def measured(fgsm: int, *black: int) -> dict[str, object]:
    worst = max(black)
    return {
        "clean": rate(1),
        "white_box": {"fgsm": rate(fgsm), "r-fgsm": rate(2 * fgsm)},
        "black_box": {"s": {f"a{i}": rate(errors) for i, errors in enumerate(black)}},
        "worst_black_box": {"source": "s", "attack": "a0", **rate(worst)},
        "mean_black_box": sum(black) / len(black) / 100,
    }


def test_seeds_of_one_name_are_gathered_and_others_are_not(build, tmp_path):
    targets = {name: measured(10, 20) for name in ("D-adv", "D-adv.7", "D-adv.8", "D-adv-ens", "D-adv.x", "E-adv")}
    (tmp_path / "table8-D.json").write_text(json.dumps({"targets": targets}))
    results = build.Results(tmp_path)
    assert len(results.seeds("D-adv", "table8-D")) == 3
    assert len(results.seeds("D-adv-ens", "table8-D", "absent")) == 1
    assert results.seeds("C-adv", "table8-D") == []
    assert results.run["machine"] == "–"


def test_tables_hold_our_values_beside_the_printed_ones(build, tmp_path):
    (tmp_path / "table8-D.json").write_text(json.dumps({"targets": {"D-adv": measured(10, 20, 40)}}))
    paper = json.loads((FOLDER / "paper.json").read_text())
    rows = build.table8(build.Results(tmp_path), paper).splitlines()
    assert rows[2 + 3 * 3] == "| D-adv | 1 | 1.0 (2.6) | 10.0 (25.5) | 40.0 (32.5) | 30.0 (23.5) | 20.0 |"
    (tmp_path / "table8-D-ce.json").write_text(json.dumps({"targets": {"D-adv": measured(5, 20)}}))
    by_ce = build.table8(build.Results(tmp_path), paper, ce=True).splitlines()
    assert by_ce[2 + 3 * 3].startswith("| D-adv | 1 | 1.0 (2.6) | 5.0 (25.5) |")
    assert rows[2].startswith("| A-adv | 0 | – (0.8) | – (2.2) |")
    assert "D-adv-ens" in build.missing(build.Results(tmp_path))
    assert "D-adv," not in build.missing(build.Results(tmp_path))


@pytest.mark.parametrize(
    ("greater", "smaller", "verdict"),
    [
        ([0.30, 0.31, 0.32], [0.20, 0.21, 0.22], "**holds** (31.0 ± 2.5 against 21.0 ± 2.5; p = 0.00026)"),
        ([0.20, 0.21, 0.22], [0.30, 0.31, 0.32], "**does not hold**"),
        ([0.20, 0.30, 0.40], [0.22, 0.31, 0.35], "not resolved"),
        ([0.30], [0.20, 0.21, 0.22], "one seed: as claimed (30.0 against 21.0 ± 2.5)"),
        ([0.20], [0.30], "one seed: not as claimed (20.0 against 30.0)"),
        ([0.2, 0.2], [0.2, 0.2], "not resolved"),
        ([], [0.2], "not measured"),
    ],
)
def test_a_claim_is_judged_over_seeds(build, greater, smaller, verdict):
    assert build.judged(greater, smaller).startswith(verdict)


def test_errors_of_the_same_models_are_compared_pair_by_pair(build):
    """Seeds differ by more than the two errors of each do."""
    greater, smaller = [0.21, 0.41, 0.62], [0.20, 0.40, 0.60]
    assert build.judged(greater, smaller).startswith("not resolved")
    assert build.judged([0.21, 0.31, 0.412], [0.20, 0.30, 0.40], paired=True).startswith("**holds**")


def test_results_of_either_loss_are_read(build, tmp_path):
    row = measured(10, 20)
    row["white_box"] = {"fgsm:loss=ce": rate(7), "r-fgsm:loss=ce": rate(8)}
    row["black_box"] = {"static-B": {"fgsm:loss=ce": rate(9)}}
    for name, target in (("table7-ce", "static-A"), ("rounding-ce", "holdout-A")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"targets": {target: row}}))
    results, paper = build.Results(tmp_path), json.loads((FOLDER / "paper.json").read_text())
    (line,) = (r for r in build.table7(results, paper, "table7-ce").splitlines() if r.startswith("| A |"))
    assert line.startswith("| A | 7.0 (64.7) | 8.0 (69.7) | – | 9.0 (61.5) |")
    lines = [r for r in build.rounded_figures(results, paper).splitlines() if r.startswith("| A |")]
    assert lines[0] == "| A | FGSM | 64.7 | 7.0 ± 5.0 | – | – |"
    assert lines[2] == "| A | R+FGSM above FGSM | 5.0 | 1.0 ± 7.3 | – | – |"


def test_a_name_is_one_model_in_all_results_of_a_run(build):
    """Digests tell whether the stage that is read first has the model that the others have."""
    results = build.Results(FOLDER / "data")
    assert set(results.files) > build.EARLIER
    found: dict[tuple[str, bool], dict[str, str]] = {}
    for stage, result in results.files.items():
        rows = {**result.get("targets", {}), **result.get("models", {})}
        digests = {name: row["digest"] for name, row in rows.items() if "digest" in row} | result.get("sources", {})
        for name, digest in digests.items() if stage != "steps" else ():
            found.setdefault((name, stage in build.EARLIER), {})[stage] = digest
    assert len(found) > 40
    assert {key: told for key, told in found.items() if len(set(told.values())) > 1} == {}


@pytest.mark.parametrize(
    ("stored", "online", "words"),
    [
        ([0.30, 0.31, 0.32], [0.20, 0.21, 0.22], "+10.0 [+7.7, +12.3]: **worse**"),
        ([0.20, 0.21, 0.22], [0.30, 0.31, 0.32], "-10.0 [-12.3, -7.7]: **better**"),
        ([0.20, 0.30, 0.40], [0.25, 0.30, 0.38], "-1.0 [-21.4, +19.4]: not resolved"),
        ([0.20], [0.25, 0.30], "-7.5 (not enough seeds)"),
        ([0.20, 0.20], [0.30, 0.30], "-10.0 (not enough seeds)"),
        ([], [0.25], "–"),
    ],
)
def test_stored_draws_are_compared_with_the_same_gradients_online(build, stored, online, words):
    assert build.gap(stored, online) == words


def test_every_training_of_the_study_is_on_the_page(build):
    recipe = read_recipe(packaged_recipe("mnist-draws"))
    targets = [
        name
        for stage in recipe.stages
        if stage.kind == "evaluate" and stage.name.startswith("draws")
        for name in stage.inputs
        if name != "holdouts"
    ]
    groups = {name.rpartition(".")[0] if name.rpartition(".")[2].isdigit() else name for name in targets}
    assert groups | {"B-adv", "B-adv-ens3"} == set(build.DRAWS) | set(build.BOTH)
    compared = {name for pair in (*build.PAIRS, *build.BOTH_PAIRS) for name in pair}
    assert compared | {"online-eval"} == groups | {"B-adv", "B-adv-ens3"}, "which are of Table 8 and of the claims"
    assert {"fixed.204", "online-eval.204"} <= set(targets), "compared by their weights"


@pytest.mark.parametrize(
    ("digests", "said"),
    [
        ({"fixed.204": "a", "online-eval.204": "a"}, "the same weights, bit by bit"),
        ({"fixed.204": "a", "online-eval.204": "b"}, "**other weights**"),
        ({"fixed.204": "a", "fixed.214": "a"}, "not measured yet"),
    ],
)
def test_the_fixed_cache_is_compared_by_its_weights(build, tmp_path, digests, said):
    (tmp_path / "draws.json").write_text(json.dumps({"targets": {n: {"digest": d} for n, d in digests.items()}}))
    assert build.repeated(build.Results(tmp_path)) == said


def test_what_is_rounding_is_the_difference_of_both_forms(build, tmp_path):
    paper = json.loads((FOLDER / "paper.json").read_text())
    for stage, fgsm, ratio in (("rounding", 30, 0.8), ("rounding-ce", 10, 0.5)):
        row = measured(fgsm, 40, 60) | {"clean": rate(1)}
        (tmp_path / f"{stage}.json").write_text(json.dumps({"targets": {"holdout-D": row}}))
        name = {"rounding": "rounding-signs"}.get(stage, "rounding-ratio-ce")
        masking = {"ratio": 2.0, "ratio_of_means": None, "ratio_to_best": ratio, "ratio_to_best_stderr": 0.1}
        (tmp_path / f"{name}.json").write_text(json.dumps({"models": {"holdout-D": {"masking": masking}}}))
    rows = build.rounded_figures(build.Results(tmp_path), paper).splitlines()[-7:]
    assert rows[0] == "| D | FGSM | 92.4 | 10.0 ± 5.9 | 30.0 ± 9.0 | 20.0 ± 10.7 |"
    assert rows[2].startswith("| D | R+FGSM above FGSM | 3.0 | 10.0 ± 9.8 | 30.0 ± 13.1 | 20.0 ± 16.4 |")
    assert rows[3].startswith("| D | FGSM from B, C and D, mean |  | 50.0 ± 9.8 | 50.0 ± 9.8 | 0.0 ± 13.9 |")
    assert rows[4] == "| D | approximation ratio, to the best |  | 50.0 ± 19.6 | 80.0 ± 19.6 | 30.0 ± 27.7 |"
    assert rows[5] == "| D | approximation ratio, mean of ratios | 49 | 200 | 200 |  |"
    assert rows[6] == "| D | approximation ratio, ratio of means |  | – | – |  |"


def test_the_cone_is_shown_at_the_full_epsilon(build, tmp_path):
    def at(epsilon: float, errors: int) -> dict[str, object]:
        whole = {str(k): rate(errors // k) for k in (1, 4, 16, 36, 64, 100)}
        return {"epsilon": epsilon, "at_least": [0.5] * 100, "all_of_order": whole, "mean_found": errors / 4}

    cone = {"points": 100, "orders": [1, 4], "epsilons": [at(0.3, 80), at(0.1, 40)]}
    none = {"points": 0, "epsilons": [{"epsilon": 0.3, "at_least": None, "all_of_order": None, "mean_found": None}]}
    thin = build.thin({"models": {"A-adv": {"cone": cone}, "B-adv": {"cone": none}, "C-adv": {"cone": None}}})
    assert "at_least" not in json.dumps(thin)
    (tmp_path / "table6.json").write_text(json.dumps(thin))
    lines = {line.split(" | ")[0]: line for line in build.cone(build.Results(tmp_path)).splitlines()}
    told = lines["| A_adv"].replace(" [0.0, 100.0]", "")
    assert told == "| A_adv | 80.0 | 20.0 | 5.0 | 0.0 | 20.0 |"
    assert lines["| B_adv"] == "| B_adv | – | – | – | – | – |"
    assert lines["| C_adv"] == "| C_adv | – | – | – | – | – |"


def test_adversaries_that_query_stand_between_weights_and_nothing(build, tmp_path):
    paper = json.loads((FOLDER / "paper.json").read_text())
    empty = build.adaptive(build.Results(tmp_path)).splitlines()
    assert empty[5] == "| R+FGSM along an estimated gradient | scores | – | – | – | – |"
    assert build.estimated_less(build.Results(tmp_path)) == "not measured yet"
    row = measured(40, 20) | {
        "adaptive": {
            "estimated:alpha=0.15": rate(70) | {"queries": 156_800, "queries_per_image": 1568.0},
            "surrogate": rate(30) | {"queries": 4800, "queries_per_image": 48.0},
            "surrogate:architecture=B": rate(25) | {"queries": 4800, "queries_per_image": 48.0},
        }
    }
    black = measured(40, 60) | {"black_box": {"a": {"fgsm": rate(20)}, "b": {"fgsm": rate(50), "pgd": rate(60)}}}
    for stage, target in (("adaptive", row), ("adaptive-transferred", black)):
        (tmp_path / f"{stage}.json").write_text(json.dumps({"targets": {"D-adv": target}}))
    results = build.Results(tmp_path)
    told = [line.replace(" [0.0, 100.0]", "") for line in build.adaptive(results).splitlines()[2:]]
    assert told == [
        "| none: images as they are |  |  | – | 1.0 | – |",
        "| FGSM | weights |  | – | 40.0 | – |",
        "| R+FGSM | weights |  | – | 80.0 | – |",
        "| R+FGSM along an estimated gradient | scores | 1,568 an image | – | 70.0 | – |",
        "| FGSM from a surrogate of architecture D | labels | 4,800 in all | – | 30.0 | – |",
        "| FGSM from a surrogate of architecture B | labels | 4,800 in all | – | 25.0 | – |",
        "| FGSM from the worst holdout | nothing | 0 | – | 50.0 | – |",
        "| the worst transferred attack | nothing | 0 | – | 60.0 | – |",
    ]
    assert build.estimated_less(results) == "D-adv 10.0 ± 11.9"
    assert "| FGSM from a surrogate of architecture B | labels | 4,800" in build.page(results, paper)


def test_the_recipe_of_adversaries_that_query_is_what_the_page_reads(build):
    recipe = read_recipe(packaged_recipe("mnist-adaptive"))
    stages = {stage.name: stage for stage in recipe.stages if stage.kind == "evaluate"}
    assert {name: stage.spec.images for name, stage in stages.items()} == build.FEWER
    assert all(tuple(stage.options["targets"]) == build.TARGETS for stage in stages.values())
    adversaries = suite_named(stages["adaptive"].spec.suite).adversaries(epsilon=stages["adaptive"].spec.epsilon)
    assert [adversary.label for adversary in adversaries] == list(build.ADVERSARIES)


@pytest.mark.parametrize(("n", "wanted"), [(1000, True), (999, False)])
def test_adversaries_that_query_are_collected_on_fewer_images(build, tmp_path, n, wanted):
    for name in ("results", "state"):
        (tmp_path / name).mkdir()
    about = {"kind": "transfer", "data": "mnist/test", "n": n, "epsilon": 0.3, "targets": {}}
    (tmp_path / "results" / "adaptive.json").write_text(json.dumps(about))
    if wanted:
        build.collect(tmp_path, tmp_path / "data")
        assert set(build.Results(tmp_path / "data").files) == {"adaptive"}
    else:
        with pytest.raises(SystemExit, match=r"adaptive.json: expected 1000 images of mnist/test .* got 999"):
            build.collect(tmp_path, tmp_path / "data")


@pytest.mark.parametrize("change", [{"data": "fashion-mnist/test"}, {"n": 500}, {"epsilon": 0.1}])
def test_results_of_another_experiment_are_not_collected(build, tmp_path, change):
    (tmp_path / "results").mkdir()
    about = {"kind": "transfer", "data": "mnist/test", "n": 10_000, "epsilon": 0.3, "targets": {}} | change
    (tmp_path / "results" / "table8-D.json").write_text(json.dumps(about))
    with pytest.raises(SystemExit, match=r"expected 10000 images of mnist/test at epsilon 0\.3"):
        build.collect(tmp_path, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_images_that_appendix_c1_changes_are_collected_under_its_names_only(build, tmp_path):
    """What an evaluation calls them is what collecting expects."""
    for name in ("results", "state", "data"):
        (tmp_path / name).mkdir()
    digits = open_dataset("mnist-mini", "test", limit=1)
    about = {"kind": "transfer", "n": 10_000, "epsilon": 0.3, "targets": {}, "pictures": {"labels": [1]}}
    for stage, data in build.CHANGED.items():
        recipe = read_recipe(packaged_recipe("mnist-c1"))
        called = shifted(digits, recipe.stage(stage).spec.shift).name.replace("mnist-mini", "mnist")
        assert f"{called}/test" == data
        (tmp_path / "results" / f"{stage}.json").write_text(json.dumps(about | {"data": data}))
    build.collect(tmp_path, tmp_path / "data")
    assert set(build.Results(tmp_path / "data").files) == set(build.CHANGED)
    assert "pictures" not in json.loads((tmp_path / "data" / "c1-rotated.json").read_text())
    (tmp_path / "results" / "table8-D.json").write_text(json.dumps(about | {"data": data}))
    with pytest.raises(SystemExit, match=r"table8-D.json: expected 10000 images of mnist/test"):
        build.collect(tmp_path, tmp_path / "data")


def test_a_command_is_timed_and_weighed(build, tmp_path):
    (tmp_path / "run.json").write_text('{"seconds": {}, "machine": "x"}')
    build.measure([sys.executable, "-c", "print(len(bytes(50_000_000)))", "a=/b/c.d"], tmp_path)
    (words, found), *_ = json.loads((tmp_path / "run.json").read_text())["commands"].items()
    assert words.endswith("-c print(len(bytes(50_000_000))) a=c.d")
    assert "/" not in words
    assert found["peak MiB"] > 47
    assert found["seconds"] < 60


def test_the_suite_whose_cost_is_told_has_twelve_attacks_from_each_source():
    white, black = suite_named(str(FOLDER / "twelve.toml")).attacks(epsilon=0.3, loss="margin")
    assert white == ()
    assert len({attack.identity for attack in black}) == 12


def test_collecting_keeps_what_is_there_and_drops_surfaces(build, tmp_path):
    for name in ("results", "state", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "old.json").write_text("{}")
    (tmp_path / "data" / "run.json").write_text('{"seconds": {"old": 5}, "machine": "x"}')
    about = {"kind": "diagnosis", "data": "mnist/test", "n": 1000, "epsilon": 0.3}
    found = {**about, "models": {"m": {"masking": {"ratio": 0.5}, "surface": [1]}}}
    (tmp_path / "results" / "d.json").write_text(json.dumps(found))
    (tmp_path / "state" / "d.json").write_text('{"seconds": 7.6}')
    (tmp_path / "state" / "e.json").write_text('{"seconds": 2.2, "device": "NVIDIA A100"}')
    (tmp_path / "state" / "recipe.json").write_text('{"recipe": "r"}')
    build.collect(tmp_path, tmp_path / "data")
    results = build.Results(tmp_path / "data")
    assert results.run["seconds"] == {"old": 5, "d": 8, "e": 2}
    assert results.run["devices"] == {"e": "NVIDIA A100"}
    assert results.model("m", "d") == {"masking": {"ratio": 0.5}, "surface": None}
    assert set(results.files) == {"old", "d"}


def test_the_binarised_net_stands_beside_what_the_paper_says_of_it(build, tmp_path):
    rates = {"fgsm:loss=margin": rate(3), "i-fgsm": rate(12), "pgd": rate(30)}
    found = {"targets": {"binarised": {"clean": rate(1), "white_box": rates}}}
    (tmp_path / "c1.json").write_text(json.dumps(found))
    rows = build.binarised(build.Results(tmp_path), json.loads((FOLDER / "paper.json").read_text())).splitlines()
    interval = "[0.0, 100.0]"
    ours = f"1.0 {interval} | 3.0 {interval} | 12.0 {interval} (at most 11.4) | 30.0 {interval}"
    assert rows[3] == f"| as they are | binarised | {ours} |"
    assert rows[2] == "| as they are | plain | – | – | – | – |"
    assert rows[5] == "| rotated by 20° | binarised | – (below 5) | – | – (35) | – |"


def test_turned_images_are_those_of_the_shift_and_nearest_pixels_are_pixels(build):
    data = open_data(DataSpec(data="mnist-mini", limit=30), "test")
    rows = np.arange(30)
    x, labels = data.read(rows)
    quarter, same_labels = build.turned(data, 90, "nearest").read(rows)
    assert (quarter == np.rot90(x, axes=(2, 3))).all()
    assert (same_labels == labels).all()
    theirs, ours = build.turned(data, 20, "bilinear"), shifted(data, ShiftSpec(rotate=20.0))
    apart = np.abs(theirs.read(rows)[0].astype(int) - ours.read(rows)[0])[
        :, :, 6:-6, 6:-6
    ]  # the corners are cut otherwise
    assert apart.max() <= 2
    nearest, _ = build.turned(data, 20, "nearest").read(rows)
    assert all(set(new.flat) <= {0, *old.flat} for new, old in zip(nearest, x, strict=True))


def test_every_way_to_turn_is_measured(build, tmp_path, capsys):
    path = tmp_path / "d.safetensors"
    save_model(
        path,
        build_model("D", shape=(1, 28, 28), classes=10, seed=1),
        architecture="D",
        shape=(1, 28, 28),
        classes=10,
        record={},
    )
    rows = build.measure_turned(f"binarised:{path}", open_data(DataSpec(data="mnist-mini", limit=20), "test"))
    assert len(rows) == len(capsys.readouterr().out.splitlines()) == 7
    assert all(row["i-fgsm"]["error"] >= row["clean"]["error"] for row in rows)
    grey = {(row["degrees"], row["interpolation"]): row["grey"] for row in rows}
    assert grey[20, "nearest"] < grey[20, "bicubic"] < grey[20, "bilinear"]
    (tmp_path / "turning.json").write_text(json.dumps({"images": 20, "rows": rows}))
    lines = build.turned_table(build.Results(tmp_path)).splitlines()
    assert len(lines) == 2 + 7
    assert lines[3].startswith(f"| 20°, nearest | {100 * grey[20, 'nearest']:.1f} |")


def test_steps_are_those_of_the_attack_itself(build, tmp_path):
    """With its own step a stored direction is R+FGSM on the source, here by PyTorch alone."""
    n, alpha = 64, 0.1
    (tmp_path / "models").mkdir()
    weights = build_model("C", shape=(1, 28, 28), classes=10, seed=1)
    path = tmp_path / "models" / "static-C.safetensors"
    save_model(path, weights, architecture="C", shape=(1, 28, 28), classes=10, record={})
    spec = PrecomputeSpec(models={"static-C": str(path)}, attacks=("r-fgsm:alpha=0.1",), draws=1)
    data = DataSpec(data="mnist-mini", limit=n)
    precompute_store(spec, data, tmp_path / "shards" / "three-BCD", workers=0)
    found = build.step_losses(tmp_path, data, n=n)["static-C"]
    pixels, _ = open_dataset("mnist-mini", "train").read(np.arange(n))
    x, model = torch.from_numpy(pixels).float() / 255, load_model(str(path)).module
    store = open_store(tmp_path / "shards" / "three-BCD")
    bits = random_bits(store.entries[0].seed, np.zeros(n, np.int64), np.arange(n), d=784)
    signs = torch.from_numpy(np.unpackbits(bits, axis=1, bitorder="little")[:, :784].astype(np.float32) * 2 - 1)
    moved = (x + alpha * signs.view_as(x)).clamp(0, 1).requires_grad_()
    label = model(x).argmax(1)

    def loss(z):
        others = torch.nn.functional.one_hot(label, 10).bool()
        return z.masked_fill(others, -torch.inf).logsumexp(1) - z[others]

    (gradient,) = torch.autograd.grad(loss(model(moved)).sum(), moved)
    adversarial = (moved + (0.3 - alpha) * gradient.sign()).clamp(0, 1)
    logits = model(adversarial.detach())
    assert found["own"]["loss"] == pytest.approx(loss(logits).mean().item(), rel=1e-3)
    assert found["own"]["error"] == pytest.approx((logits.argmax(1) != label).double().mean().item(), abs=1.5 / n)
    assert found["another"]["loss"] != found["own"]["loss"]


def test_the_page_has_what_steps_are_worth(build, tmp_path):
    (tmp_path / "steps.json").write_text(
        json.dumps({"sources": {"s": {"own": {"loss": 2.345, "error": 0.5}, "another": {"loss": 1.0, "error": 0.25}}}})
    )
    assert build.steps(build.Results(tmp_path)).splitlines()[2] == "| s | 2.35 | 1.00 | 50.0 | 25.0 |"
