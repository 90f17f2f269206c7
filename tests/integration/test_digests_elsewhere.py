"""Digests of images of one's own, found by the workers of a cluster before the first block is given out."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import distributed
import numpy as np
import pytest
import zarr

from ensadv_data.blocks import Rows, dataset_of, digest_rows
from ensadv_data.data import checking, open_data
from ensadv_data.errors import DataError, IntegrityError
from ensadv_data.models import build_model, save_model
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import DataSpec, PrecomputeSpec, PreprocessSpec
from everywhere import by_hand, same
from photographs import cut_photographs

SMALL = PreprocessSpec(size=16)


def found(data: DataSpec, listing: str, part: tuple[int, Sequence[int]]) -> checking.Piece:
    """What a worker finds in numbered rows."""
    return digest_rows(data, "train", listing, 1, Rows(*part))


def noting(data: DataSpec, asked: list[Sequence[int]]) -> checking.Elsewhere:
    """A worker that notes the rows of each task."""

    def elsewhere(listing: str, parts: Iterable[tuple[int, Sequence[int]]]) -> Iterator[checking.Piece]:
        for number, rows in parts:
            asked.append(rows)
            yield found(data, listing, (number, rows))

    return elsewhere


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Photographs, one of which is none."""
    folder = cut_photographs(tmp_path_factory.mktemp("photos") / "images", train=5, test=1, classes=3)
    (folder / "train" / "cat" / "9.jpg").write_bytes(b"no photograph")
    return folder


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(checking, "PIECE", 4)


def spec_of(data: DataSpec, folder: Path) -> PrecomputeSpec:
    images = open_data(data, "train")
    about = {"architecture": "D", "shape": images.shape, "classes": images.classes}
    path = folder / "d.safetensors"
    save_model(path, build_model(**about, seed=1), **about, record={})
    return PrecomputeSpec(models={"d": str(path)}, attacks=("fgsm",))


def test_workers_of_a_cluster_digest_photographs_and_the_store_is_the_same(photos, tmp_path, monkeypatch, small_pieces):
    """The client decodes none of them for it, and a bad one is left out, wherever it was found."""
    about = {"data": f"folder:{photos}", "preprocess": SMALL, "on_bad_image": "skip"}
    near, far = (DataSpec(**about, data_dir=str(tmp_path / name)) for name in ("near", "far"))
    spec = spec_of(near, tmp_path)
    precompute_store(spec, near, tmp_path / "here", workers=0)

    def refused(*_: object) -> None:
        raise AssertionError("the client decoded an image for its digest")

    with by_hand(tmp_path, workers=2) as (address, _), monkeypatch.context() as patch:
        patch.setattr("ensadv_data.data.photographs.Photographs._digest", refused)
        made = precompute_store(spec, far, tmp_path / "there", scheduler=address)
        assert made.digest == precompute_store(spec, far, tmp_path / "there", scheduler=address).digest
    assert same(tmp_path / "here", tmp_path / "there")
    assert [path.suffix for path in sorted((tmp_path / "far").iterdir())].count(".checked") == 1
    assert not list((tmp_path / "far").glob("*.piece-*"))


def test_workers_digest_arrays_too_and_go_on_where_they_were_stopped(tmp_path, monkeypatch, small_pieces):
    images = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)
    group = zarr.open_group(str(tmp_path / "arrays" / "train"), mode="w")
    group.create_array("images", data=images, chunks=(8, 1, 8, 8))
    group.create_array("labels", data=np.arange(30) % 3, chunks=(30,))
    near, far = (DataSpec(data=f"zarr:{tmp_path / 'arrays'}", data_dir=str(tmp_path / name)) for name in ("n", "f"))
    asked: list[int] = []

    def elsewhere(listing, parts):
        for part in list(parts)[::-1]:  # the last ones first: workers are not all of one speed
            if len(asked) == 3:
                raise KeyboardInterrupt
            asked.append(part[0])
            yield found(far, listing, part)

    with pytest.raises(KeyboardInterrupt):
        _ = open_data(far, "train", elsewhere=elsewhere).digest
    assert asked == [7, 6, 5]
    asked[:] = [0, 0]  # one more, then it stops again
    with pytest.raises(KeyboardInterrupt):
        _ = open_data(far, "train", elsewhere=elsewhere).digest
    assert asked[2:] == [4]
    asked[:] = range(10, 20)
    assert open_data(far, "train", elsewhere=elsewhere).digest == open_data(near, "train").digest
    assert asked[10:] == [3, 2, 1, 0], "what was kept is not asked for again"


def test_only_images_that_are_new_are_asked_for(photos, tmp_path, small_pieces):
    spec = DataSpec(data=f"folder:{photos}", preprocess=SMALL, on_bad_image="skip", data_dir=str(tmp_path / "index"))
    before = open_data(spec, "train").digest
    new = photos / "train" / "cat" / "8.jpg"
    new.write_bytes(sorted((photos / "train" / "brick").iterdir())[0].read_bytes())
    (index,) = (tmp_path / "index").glob("*.index")
    index.unlink()  # as its message says, where a change is meant
    asked: list[Sequence[int]] = []
    images = open_data(spec, "train", elsewhere=noting(spec, asked))
    assert images.digest != before
    names = [images.listing.name(row) for rows in asked for row in rows]
    assert names == ["cat/8.jpg", "cat/9.jpg"], "the new one, and the bad one, which may have been mended"


@pytest.mark.parametrize("other", [{"PIECE": 3}, {"PIECE": 1, "PIECES": 7}])
def test_pieces_of_another_size_do_not_count(photos, tmp_path, monkeypatch, small_pieces, other):
    """They may be of another version; and so many images that there would be too many pieces are in larger ones."""
    spec = DataSpec(data=f"folder:{photos}", preprocess=SMALL, on_bad_image="skip", data_dir=str(tmp_path / "index"))

    def one_piece(listing, parts):
        yield found(spec, listing, next(iter(parts)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_data(spec, "train", elsewhere=one_piece)
    for name, value in other.items():
        monkeypatch.setattr(checking, name, value)
    asked: list[Sequence[int]] = []
    again = open_data(spec, "train", elsewhere=noting(spec, asked))
    assert again.digest == open_data(spec.model_copy(update={"data_dir": str(tmp_path / "new")}), "train").digest
    assert {len(rows) for rows in asked[:-1]} == {3}


def test_a_bad_image_is_named_by_the_client(photos, tmp_path):
    spec = DataSpec(data=f"folder:{photos}", preprocess=SMALL, data_dir=str(tmp_path / "index"))

    def elsewhere(listing, parts):
        return (found(spec, listing, part) for part in parts)

    with pytest.raises(DataError, match=r"got 1 of 1[67] bad: cat/9\.jpg"):
        _ = open_data(spec, "train", elsewhere=elsewhere).digest


def test_a_worker_that_sees_other_files_says_so(photos, tmp_path, small_pieces):
    spec = DataSpec(data=f"folder:{photos}", preprocess=SMALL, on_bad_image="skip", data_dir=str(tmp_path / "index"))
    listing = open_data(spec, "train").listed
    number, digests, bad = found(spec, listing, (3, [0, 1]))
    assert (number, len(digests), bad) == (3, 2, [])
    with pytest.raises(IntegrityError, match="mount the same folder there, or copy it with its times"):
        found(spec, "0" * 64, (0, [0]))
    with pytest.raises(IntegrityError, match="expected the files of the client"):
        found(DataSpec(data="mnist-mini"), listing, (0, [0]))


def test_a_worker_lists_again_what_has_changed_since(photos, tmp_path):
    spec = DataSpec(data=f"folder:{photos}", preprocess=SMALL, on_bad_image="fail", data_dir=str(tmp_path / "index"))
    before = dataset_of(spec.model_copy(update={"limit": None}), "train", 1).listed  # as a worker has it from yesterday
    os.utime(sorted((photos / "train" / "brick").iterdir())[1], ns=(1, 1))
    (index,) = (tmp_path / "index").glob("*.index")
    index.unlink()
    listing = open_data(spec, "train").listed
    assert listing != before
    assert found(spec, listing, (0, [0]))[0] == 0


def test_a_worker_with_an_old_index_of_its_own_is_told_which(photos, tmp_path):
    near, far = (
        DataSpec(data=f"folder:{photos}", preprocess=SMALL, data_dir=str(tmp_path / name)) for name in ("near", "far")
    )
    _ = open_data(far, "train").listed
    os.utime(sorted((photos / "train" / "brick").iterdir())[2], ns=(1, 1))
    (old,) = (tmp_path / "far").glob("*.index")
    with pytest.raises(IntegrityError, match=f"or delete {old}, which may be old"):
        found(far, open_data(near, "train").listed, (0, [0]))


def test_a_worker_without_the_folder_is_named(tmp_path):
    with pytest.raises(IntegrityError, match=f"expected the client's images on {platform.node()} too"):
        found(DataSpec(data=f"folder:{tmp_path / 'none'}"), "0" * 64, (0, [0]))


def test_pieces_of_which_all_is_known_are_no_tasks(photos, tmp_path, small_pieces):
    spec = DataSpec(data=f"folder:{photos}", preprocess=SMALL, on_bad_image="skip", data_dir=str(tmp_path / "index"))
    _ = open_data(spec, "train").digest
    (photos / "train" / "cat" / "7.jpg").write_bytes(b"new, and bad")
    (index,) = (tmp_path / "index").glob("*.index")
    index.unlink()
    asked: list[Sequence[int]] = []
    again = open_data(spec, "train", elsewhere=noting(spec, asked))
    assert all(asked)
    assert len(asked) <= 2
    assert again.digest == open_data(spec.model_copy(update={"data_dir": str(tmp_path / "new")}), "train").digest


def test_workers_of_this_machine_are_not_started_for_it(photos, tmp_path, monkeypatch):
    """The threads of the client do it, by all cores."""
    spec = DataSpec(data=f"folder:{photos}", preprocess=SMALL, on_bad_image="skip", data_dir=str(tmp_path / "index"))
    started: list[int] = []
    real = distributed.SpecCluster

    def counted(*args, **kwargs):
        started.append(len(open_data(spec, "train")))
        assert list((tmp_path / "index").glob("*.checked")), "the digests are there before the first worker"
        return real(*args, **kwargs)

    monkeypatch.setattr(distributed, "SpecCluster", counted)
    precompute_store(spec_of(spec, tmp_path), spec, tmp_path / "s", workers=1)
    assert len(started) == 1
