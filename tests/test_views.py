"""Views and augmentation: image and perturbation are cropped and flipped alike, and a store's views are replayed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.nn.functional import interpolate, pad

from ensadv_data.attacks.gradient import input_gradients
from ensadv_data.batches import Batches, deliver
from ensadv_data.codec import apply_signs, full_mask, pack_signs, unpack_signs
from ensadv_data.data import ArrayDataset, open_dataset
from ensadv_data.dist import Place
from ensadv_data.entries import remarks_on_draws
from ensadv_data.errors import AlignmentError, InputError, IntegrityError, Interrupted, QuantityError, UnknownNameError
from ensadv_data.evaluation.stored import stored_sources
from ensadv_data.exchange import export_store, import_store
from ensadv_data.inspection import compare_stores, describe_store
from ensadv_data.manifest import parse_manifest, read_manifest
from ensadv_data.mixing import Schedule, plan_step
from ensadv_data.models import build_model, load_model, save_model
from ensadv_data.objects import objects_at
from ensadv_data.precompute import precompute_store
from ensadv_data.report.charts import draw_pictures
from ensadv_data.sources import augmentation_of, static_sources
from ensadv_data.spec import AugmentSpec, DataSpec, PrecomputeSpec, TrainSpec, checked, parse_attack, parse_augment
from ensadv_data.store import open_store, perturb_images
from ensadv_data.terminal import print_store
from ensadv_data.training import TrainingRun, train
from ensadv_data.verification.blueprint import blueprint_of
from ensadv_data.verification.recomputing import agreements
from ensadv_data.views import Views, cut, cut_signs
from laws import is_bit_equal, is_pure
from test_store import make_images, make_store
from test_training import Stopping, spec_of

pytestmark = pytest.mark.usefixtures("without_fsync")

LIMIT, DRAWS = 24, 3
VIEWED = "random-resized-crop=0.3,flip"
DATA = DataSpec(data="mnist-mini", limit=LIMIT)


def draw_numbers(n: int, draw: int = 0) -> dict[str, np.ndarray]:
    return {"draws": np.full(n, draw), "examples": np.arange(n)}


# What is asked


def test_augmentations_are_read_as_they_are_written():
    assert parse_augment("crop=4, flip") == AugmentSpec(crop=4, flip=True)
    assert parse_augment("random-resized-crop") == AugmentSpec(area=0.08)
    assert (parse_augment("crop").padding((3, 32, 40)), parse_augment("crop").padding((1, 4, 5))) == (4, 1)
    for text in ("crop=4,flip", "crop", "flip", "random-resized-crop=0.25", VIEWED):
        spec = parse_augment(text)
        assert spec.label == text
        assert parse_augment(spec.label) == spec
        assert checked(AugmentSpec, json.loads(spec.model_dump_json()), where="plan") == spec
    assert [parse_augment(text).is_exact for text in ("crop,flip", VIEWED)] == [True, False]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("rotate", UnknownNameError, "augmentation"),
        ("flip=1", UnknownNameError, "augmentation"),
        ("crop,random-resized-crop", QuantityError, "expected one of crop and random-resized-crop"),
        ("", QuantityError, "got none of them"),
        ("crop=0", QuantityError, "1 to 4096 pixels, got 0"),
        ("crop=x", QuantityError, "augment: crop: expected a number"),
        ("random-resized-crop=0", InputError, "greater than 0"),
        ("random-resized-crop=2", InputError, "less than or equal to 1"),
    ],
)
def test_what_is_no_augmentation_is_refused(text, error, words):
    with pytest.raises(error, match=words):
        parse_augment(text)


def test_stores_without_views_have_the_plans_that_they_had():
    spec = PrecomputeSpec(models={"a": "a.safetensors"}, attacks=("fgsm",))
    assert "augment" not in spec.model_dump()
    assert spec.draws == 1
    with_views = PrecomputeSpec(models={"a": "a.safetensors"}, attacks=("fgsm",), augment=VIEWED)
    assert with_views.draws == 4
    assert "augment" not in TrainSpec(architecture="D").model_dump()
    with pytest.raises(InputError, match="augment: expected none for test images, which are attacked as they are, got"):
        PrecomputeSpec(models={"a": "a.safetensors"}, attacks=("fgsm",), augment="flip", split="test")


# Boxes and pixels

GOLDEN = [[32, 25, 248, 261, 0], [12, 66, 228, 219, 1], [39, 117, 201, 175, 0]]


def test_boxes_are_golden():
    """They are a part of the format: a reader that draws others has other images."""
    views = Views.of(parse_augment("random-resized-crop=0.08,flip"), 7)
    assert views.boxes((3, 299, 299), draws=np.array([0, 1, 0]), examples=np.array([0, 0, 5])).tolist() == GOLDEN
    words = np.random.Philox(key=views.seed, counter=(5 << 64) + (4 << 128)).random_raw(41)
    assert words[40] & 1 == GOLDEN[2][4]


@given(
    st.sampled_from(["crop", "crop=2,flip", "random-resized-crop", VIEWED, "random-resized-crop=1", "flip"]),
    st.integers(0, 2**62),
    st.tuples(st.integers(1, 3), st.integers(2, 40), st.integers(2, 40)),
)
def test_boxes_are_pure_and_lie_inside(text, seed, shape):
    views = Views(parse_augment(text), seed)
    boxes = is_pure(lambda: views.boxes(shape, **draw_numbers(20)))
    assert is_bit_equal(views.boxes(shape, draws=np.array([0]), examples=np.array([7]))[0], boxes[7])
    top, left, height, width, flip = boxes.T
    assert set(flip) <= ({0, 1} if "flip" in text else {0})
    padding = views.augment.padding(shape)
    if "resized" in text:
        assert (top >= 0).all()
        assert (top + height <= shape[1]).all()
        assert (height >= 1).all()
        assert (left >= 0).all()
        assert (left + width <= shape[2]).all()
        assert (width >= 1).all()
    else:
        assert (height == shape[1]).all()
        assert (width == shape[2]).all()
        assert (np.abs([top, left]) <= padding).all()


def test_areas_places_and_coins_have_their_laws():
    boxes = Views(parse_augment("random-resized-crop=0.2,flip"), 3).boxes((3, 299, 299), **draw_numbers(4000))
    top, left, height, width, flip = boxes.T.astype(float)
    share, ratio = height * width / 299**2, width / height
    assert 0.2 - 0.01 < share.min() < 0.22
    assert 3 / 4 - 0.02 < ratio.min() < ratio.max() < 4 / 3 + 0.02
    small = share < 0.5  # of which no try is ever refused
    assert stats.kstest((share[small] - 0.2) / 0.3, "uniform").pvalue > 0.01
    assert stats.kstest((ratio[small] - 3 / 4) / (4 / 3 - 3 / 4), "uniform").pvalue > 0.01
    assert stats.kstest((top[small] + 0.5) / (300 - height[small]), "uniform").pvalue > 0.01
    assert stats.kstest((left[small] + 0.5) / (300 - width[small]), "uniform").pvalue > 0.01
    assert abs(flip.mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)
    moved = Views(parse_augment("crop=2"), 3).boxes((1, 28, 28), **draw_numbers(5000))
    assert stats.chisquare(np.bincount(moved[:, 0] + 2, minlength=5)).pvalue > 0.01
    assert stats.chisquare(np.bincount(moved[:, 1] + 2, minlength=5)).pvalue > 0.01


@pytest.mark.parametrize("shape", [(3, 37, 23), (1, 28, 28)])
def test_resized_pixels_are_the_bilinear_ones_of_torch(shape):
    images = make_images(30, shape=shape).images_NCHW
    boxes = Views(parse_augment(VIEWED), 1).boxes(shape, **draw_numbers(30))
    found = cut(images, boxes)
    for image, (top, left, height, width, flip), mine in zip(images, boxes, found, strict=True):
        part = torch.from_numpy(image[None, :, top : top + height, left : left + width]).double()
        expected = interpolate(part, shape[1:], mode="bilinear", align_corners=False)[0]
        expected = expected.flip(2) if flip else expected
        assert (torch.from_numpy(mine).double() - expected).abs().max() <= 0.5 + 1e-9


def test_moved_pixels_are_those_of_padding_and_cropping():
    images = make_images(20, shape=(2, 9, 7)).images_NCHW
    boxes = Views(parse_augment("crop=3,flip"), 2).boxes((2, 9, 7), **draw_numbers(20))
    padded = pad(torch.from_numpy(images), (3, 3, 3, 3)).numpy()
    for image, (top, left, _, _, flip), mine in zip(padded, boxes, cut(images, boxes), strict=True):
        expected = image[:, top + 3 : top + 12, left + 3 : left + 10]
        assert (mine == (expected[:, :, ::-1] if flip else expected)).all()
    whole = np.array([[0, 0, 9, 7, 0]] * 20, np.int32)
    assert is_bit_equal(cut(images, whole), images)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("text", ["flip", "crop=2,flip"])
def test_signs_move_as_their_picture_does(text, masked):
    """clip(A(x) + ε·A(d)) = A(clip(x + ε·d)) to the bit: the finished picture, cropped and flipped as one."""
    shape, d = (3, 7, 6), 126
    images = make_images(12, shape=shape).images_NCHW
    values = (
        np.random.default_rng(0).integers(-1, 2, (12, d)) if masked else np.random.default_rng(0).normal(size=(12, d))
    )
    plane, nonzero = pack_signs(values)
    assert (nonzero is not None) == masked
    boxes = Views(parse_augment(text), 2).boxes(shape, **draw_numbers(12))
    epsilon = np.linspace(0.01, 0.4, 12, dtype=np.float32)
    finished = apply_signs(images.reshape(12, d), plane, nonzero, epsilon=epsilon)
    moved, mask = cut_signs(plane, nonzero, boxes, shape=shape)
    mine = apply_signs(cut(images, boxes).reshape(12, d), moved, mask, epsilon=epsilon).reshape(-1, *shape)
    for one, picture, (top, left, _, _, flip) in zip(mine, finished.reshape(-1, *shape), boxes, strict=True):
        padded = np.pad(picture, ((0, 0), (2, 2), (2, 2)))[:, top + 2 : top + 9, left + 2 : left + 8]
        assert is_bit_equal(np.ascontiguousarray(one), np.ascontiguousarray(padded[:, :, ::-1] if flip else padded))
    if mask is not None:
        assert not (mask & ~full_mask(d)).any(), "no bit behind the last value"


# Training with augmentation over a store of whole images


@pytest.fixture(scope="module")
def small() -> ArrayDataset:
    return make_images(40)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, small) -> Path:
    path = tmp_path_factory.mktemp("plain") / "shards"
    make_store(path, small, ("m/fgsm", "w/r-fgsm", "z/pgd"), draws=2, zeros=True)
    return path


def schedule_over(store: Path, data: Any, **fields: Any) -> Schedule:
    about = {"seed": 3, "n": len(data), "batch_size": 20, "epsilon": spec_of().epsilon, **fields}
    return Schedule(sources=static_sources([store], data), **about)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("text", ["flip", "crop=1,flip"])
def test_image_and_perturbation_of_a_batch_are_one_picture(small, plain, text, packed):
    """Against a batch without augmentation, whose finished images are cropped and flipped by numpy."""
    schedule = schedule_over(plain, small, per_example=True)
    augment = parse_augment(text)
    for epoch in range(2):
        plan = plan_step(schedule, epoch=epoch, step=1)
        batch = Batches(small, schedule, augment=augment, packed=packed).make(plan, epoch=epoch)
        before = deliver(Batches(small, schedule).make(plan, epoch=epoch), torch.device("cpu"))
        after = deliver(batch, torch.device("cpu"))
        assert not torch.equal(before.x, after.x)
        boxes = Batches(small, schedule, augment=augment)._boxes(plan, [], epoch)
        assert boxes is not None
        assert len(np.unique(boxes, axis=0)) > 1
        assert len(after.static) == 3
        pictures = [(torch.arange(len(after.x)), before.x, after.x)]
        pictures += [(rows, old, new) for (_, rows, new), (_, _, old) in zip(after.static, before.static, strict=True)]
        for rows, old, new in pictures:
            for one, whole, row in zip(new, old, rows, strict=True):
                top, left, _, _, flip = boxes[row]
                moved = pad(whole, (1, 1, 1, 1))[:, top + 1 : top + 5, left + 1 : left + 6]
                assert torch.equal(one, moved.flip(2) if flip else moved)


def test_boxes_do_not_depend_on_ranks_and_differ_by_epoch(small, plain):
    schedule, augment = schedule_over(plain, small), parse_augment("crop=1,flip")
    batches = Batches(small, schedule, augment=augment)
    whole = {}
    for epoch in range(2):
        whole[epoch] = batches.make(plan_step(schedule, epoch=epoch, step=0), epoch=epoch)
        for rank in range(2):
            plan = plan_step(schedule, epoch=epoch, step=0, place=Place(rank, 2))
            assert is_bit_equal(batches.make(plan, epoch=epoch).images, whole[epoch].images[rank::2])
    again = plan_step(schedule, epoch=0, step=0)
    assert not is_bit_equal(batches.make(again, epoch=1).images, whole[0].images)


@pytest.mark.parametrize("stop", [4, 7])
def test_an_augmented_run_is_resumed_to_the_bit(tmp_path, small, plain, stop):
    spec = spec_of(augment="crop=1,flip", online="step-ll", shards=(str(plain),))
    whole = train(spec, small, tmp_path / "whole.safetensors")
    with pytest.raises(Interrupted):
        train(spec, Stopping(small, stop), tmp_path / "parts.safetensors", prefetch=0)
    assert train(spec, small, tmp_path / "parts.safetensors").digest == whole.digest
    assert (
        train(spec_of(online="step-ll", shards=(str(plain),)), small, tmp_path / "u.safetensors").digest != whole.digest
    )


def test_plain_training_may_resize_and_a_store_of_whole_images_may_not_be(tmp_path, small, plain):
    train(spec_of(epochs=1, augment=VIEWED), small, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"expected crop or flip for .*shards, whose .*: precompute --augment random-"):
        TrainingRun(spec_of(augment=VIEWED, shards=(str(plain),)), small, tmp_path / "n.safetensors")


# A store of views


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("DC"):
        module = build_model(name, shape=(1, 28, 28), classes=10, seed=seed)
        save_model(folder / f"{name}.safetensors", module, architecture=name, shape=(1, 28, 28), classes=10, record={})
    return {name.lower(): str(folder / f"{name}.safetensors") for name in "DC"}


ATTACKS = ("fgsm", "step-ll", "r-fgsm:alpha=0.1", "i-fgsm:steps=2")


def views_spec(models: dict[str, str], **fields: Any) -> PrecomputeSpec:
    about = {"models": models, "attacks": ATTACKS, "augment": VIEWED, "draws": DRAWS, "seed": 5, "batch_size": 20}
    return PrecomputeSpec(**(about | fields))


@pytest.fixture(scope="module")
def viewed(tmp_path_factory, models) -> Path:
    out = tmp_path_factory.mktemp("viewed") / "shards"
    precompute_store(views_spec(models), DATA, out, workers=0)
    return out


@pytest.fixture(scope="module")
def data() -> ArrayDataset:
    return open_dataset("mnist-mini", "train", limit=LIMIT)


def test_all_signs_of_a_replayed_view_are_those_of_a_fresh_gradient(viewed, models, data):
    """At the same weights: what training sees, and a gradient of torch there, agree in every one of all the values."""
    schedule = schedule_over(viewed, data, per_example=True, batch_size=LIMIT)
    whole = augmentation_of(schedule.sources, None)
    batches = Batches(data, schedule, augment=whole)
    compared = 0
    for epoch in range(3):
        plan = plan_step(schedule, epoch=epoch, step=0)
        batch = batches.make(plan, epoch=epoch)
        raw, _ = data.read(plan.indices)
        for part, made in batch.static:
            source = schedule.sources[part.source]
            store, entry = source.entries[part.attack]
            if entry.kind != "sign":
                continue
            model = load_model(models[source.name]).module
            logits = model(torch.from_numpy(raw[part.rows]).float() / 255)
            labels = logits.argmin(1) if entry.attack == "step-ll" else logits.argmax(1)
            x = torch.from_numpy(batch.images[part.rows]).float() / 255
            (gradient,) = input_gradients(model, x, [labels], losses=["margin"])
            fresh = (-gradient if entry.attack == "step-ll" else gradient).sign().flatten(1).numpy()
            planes = store.gather(entry, part.draws, part.indices)
            stored = unpack_signs(planes.direction, planes.nonzero, d=784)
            assert (stored == fresh).mean() == 1
            expected = np.clip(x.numpy() + part.epsilon[:, None, None, None] * fresh.reshape(x.shape), 0, 1)
            assert np.allclose(made, expected, atol=1e-6)
            compared += stored.size
    assert compared > 30_000
    boxes = batches._boxes(plan, [part for part, _ in batch.static], 2)
    views = Views.of(parse_augment(VIEWED), 5)
    assert is_bit_equal(boxes, views.boxes(data.shape, draws=plan.draws, examples=plan.indices))
    assert is_bit_equal(batch.images, cut(raw, boxes))


def test_draws_are_of_different_views_and_sources_share_them(viewed, models, data):
    store = open_store(viewed)
    assert store.header.attributes()["version"] == 2
    assert list(remarks_on_draws(views_spec(models), [load_model(models["d"])])) == []
    rows = np.arange(LIMIT)
    for entry in store.entries:
        planes = [store.gather(entry, np.full(LIMIT, k), rows) for k in range(DRAWS)]
        found = [plane.delta if plane.delta is not None else plane.direction for plane in planes]
        assert (found[0] != found[1]).any(axis=1).mean() > 0.9


def test_a_second_run_gives_the_same_bytes_and_another_seed_others(tmp_path, viewed, models):
    outcome = precompute_store(views_spec(models), DATA, tmp_path / "again", workers=0)
    assert outcome.digest == read_manifest(viewed).digest
    other = precompute_store(views_spec(models, seed=6, attacks=("fgsm",)), DATA, tmp_path / "other", workers=0)
    assert other.digest != outcome.digest


def test_training_replays_views_by_itself_and_resumes_to_the_bit(tmp_path, viewed, data):
    spec = spec_of(online="step-ll", shards=(str(viewed),), epsilon=0.3, batch_size=12)
    whole = train(spec, data, tmp_path / "whole.safetensors")
    with pytest.raises(Interrupted):
        train(spec, Stopping(data, 3), tmp_path / "parts.safetensors", prefetch=0)
    assert train(spec, data, tmp_path / "parts.safetensors").digest == whole.digest
    told = train(spec.model_copy(update={"augment": parse_augment(VIEWED)}), data, tmp_path / "told.safetensors")
    assert told.digest == whole.digest


def test_views_cannot_be_mistaken(tmp_path, viewed, models, data):
    """Not used without them, with other images, with another augmentation, or beside a store of whole images."""
    run = {"shards": (str(viewed),), "batch_size": 12}
    with pytest.raises(
        InputError, match=r"augment: expected random-resized-crop=0.3,flip, of which .* got views by flip; l"
    ):
        TrainingRun(spec_of(**run, augment="flip"), data, tmp_path / "m.safetensors")
    precompute_store(views_spec(models, augment=None, attacks=("fgsm",)), DATA, tmp_path / "whole", workers=0)
    both = (str(viewed), str(tmp_path / "whole"))
    with pytest.raises(
        InputError, match=r"whole: expected directions of views by random-.*found whole images; train with"
    ):
        TrainingRun(spec_of(**{**run, "shards": both}), data, tmp_path / "m.safetensors")
    others = replace(data, images_NCHW=data.images_NCHW[::-1].copy())
    with pytest.raises(AlignmentError, match="the store was made for other images"):
        train(spec_of(**run), others, tmp_path / "m.safetensors")
    store = open_store(viewed)
    about = {"rows": np.arange(2), "draws": np.zeros(2, np.int64), "epsilon": np.full(2, 0.3, np.float32)}
    with pytest.raises(InputError, match=r"expected the views that its directions belong to, by .* got whole images"):
        perturb_images(store, store.entries[0], data.images_NCHW[:2], **about)
    with pytest.raises(InputError, match="expected views of one augmentation and seed in both"):
        compare_stores(viewed, tmp_path / "whole")
    with pytest.raises(InputError, match="expected"):
        stored_sources([str(viewed)], data, [parse_attack("fgsm")])
    with pytest.raises(InputError, match="expected no --data to export views"):
        export_store(viewed, tmp_path / "joint", images=data)


def test_a_reader_of_version_1_refuses_it_and_version_2_is_of_views_alone(tmp_path, viewed):
    root = json.loads((viewed / "zarr.json").read_text())
    assert root["attributes"]["version"] == 2
    manifest = json.loads((viewed / "manifest.json").read_text())
    assert manifest["version"] == 2
    for change in ({"version": 1}, {"plan": {k: v for k, v in manifest["plan"].items() if k != "augment"}}):
        raw = (json.dumps(manifest | change, sort_keys=True, separators=(",", ":")) + "\n").encode()
        with pytest.raises(IntegrityError, match=r"expected version \d with such a plan, found \d"):
            parse_manifest(raw, "m")
    copy = shutil.copytree(viewed, tmp_path / "copy")
    root["attributes"]["version"] = 1
    (copy / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(InputError, match="expected format version 2, found '1'"):
        open_store(copy)


def test_verification_recomputes_views(viewed, models, data):
    blueprint = blueprint_of(read_manifest(viewed), where="m")
    assert blueprint.spec.augment == parse_augment(VIEWED)
    found = agreements(objects_at(viewed), blueprint, data, models, count=12, seed=1, device="cpu")
    assert len(found) == 16
    assert {one.share for one in found} == {1.0}
    manifest = read_manifest(viewed)
    other = manifest.model_copy(update={"plan": manifest.plan | {"augment": parse_augment("flip").model_dump()}})
    wrong = blueprint_of(other, where="m")
    with pytest.raises(IntegrityError, match="of the values of 12 random examples"):
        agreements(objects_at(viewed), wrong, data, models, count=12, seed=1, device="cpu")
    for bad in ({"augment": {"crop": 4, "area": 0.5, "flip": True}}, {"augment": "flip"}, {"augment": 3}):
        with pytest.raises(IntegrityError, match="expected a plan of precompute"):
            blueprint_of(manifest.model_copy(update={"plan": manifest.plan | bad}), where="m")


def test_an_exported_set_of_views_trains_to_the_same_weights_and_comes_back(tmp_path, viewed, data):
    export_store(viewed, tmp_path / "set")
    assert json.loads((tmp_path / "set" / "index.json").read_text())["version"] == 2
    digests = [
        train(spec_of(shards=(str(path),), batch_size=12), data, tmp_path / f"{number}.safetensors").digest
        for number, path in enumerate((viewed, tmp_path / "set"))
    ]
    assert digests[0] == digests[1]
    assert import_store(tmp_path / "set", tmp_path / "back").is_equal


def test_inspection_tells_the_views(viewed, capsys):
    summary = describe_store(viewed)
    assert summary.views == VIEWED
    print_store(summary)
    assert f"views   {VIEWED}, one a draw" in capsys.readouterr().out


def test_the_report_shows_views_of_the_images(viewed, data):
    (strip, *_), store = draw_pictures(data, [open_store(viewed)], epsilon=0.3)["strips"], open_store(viewed)
    assert strip["name"] == store.entries[0].key
    assert [picture["width"] for picture in strip["adversarial"]] == [84] * 6
