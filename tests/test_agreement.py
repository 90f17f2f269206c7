"""How far the entries of a store agree, against numpy.unpackbits over its files and the values that were written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ensadv_data.cli import cli
from ensadv_data.errors import ChunkError, InputError, QuantityError
from ensadv_data.inspection import agreement as module
from ensadv_data.inspection import measure_agreement
from test_store import make_images, make_store

pytestmark = pytest.mark.usefixtures("without_fsync")

N, D = 45, 20
KEYS = ("m/fgsm", "m/r-fgsm", "n/r-fgsm", "n/pgd")


def share(one: np.ndarray, other: np.ndarray) -> float:
    """Of values of −1, 0 and +1, or deltas."""
    both = (one != 0) & (other != 0)
    return ((np.sign(one) == np.sign(other)) & both).sum() / both.sum()


def unpacked(store: Path, key: str, draw: int) -> np.ndarray:
    """Raw directions and no mask, from the files: rows of each block, then four bytes of checksum."""
    files = sorted((store / key / "direction" / "c" / str(draw)).iterdir(), key=lambda path: int(path.name))
    rows = [np.frombuffer((path / "0").read_bytes()[:-4], np.uint8).reshape(-1, -(-D // 8)) for path in files]
    return np.unpackbits(np.concatenate(rows)[:N], axis=1, count=D, bitorder="little")


def test_shares_are_those_of_the_bits_in_the_files(tmp_path):
    make_store(tmp_path / "s", make_images(N), ("m/r-fgsm", "n/r-fgsm"), draws=2)
    found = measure_agreement(tmp_path / "s", blocks=99)
    one, other = ([unpacked(tmp_path / "s", f"{source}/r-fgsm", draw) for draw in range(2)] for source in "mn")
    between = np.mean([(a == b).mean() for a, b in zip(one, other, strict=True)])
    expected = [[(one[0] == one[1]).mean(), between], [between, (other[0] == other[1]).mean()]]
    np.testing.assert_allclose(found.shares, expected, rtol=1e-12)
    assert (found.keys, found.zeros) == (("m/r-fgsm", "n/r-fgsm"), (0, 0))
    assert (found.images, found.n, found.blocks, found.draws, found.margin) == (N, N, 15, 2, 0)


def test_zeros_have_no_sign_and_do_not_count(tmp_path):
    values = make_store(tmp_path / "s", make_images(N), KEYS, draws=3, zeros=True)
    found = measure_agreement(tmp_path / "s", blocks=15)
    assert found.draws == 2
    for i, one in enumerate(KEYS):
        assert found.zeros[i] == pytest.approx((values[one][:2] == 0).mean(), abs=1e-12)
        for j, other in enumerate(KEYS):
            here, there = (values[one][:1], values[one][1:2]) if i == j else (values[one][:2], values[other][:2])
            assert found.shares[i][j] == pytest.approx(share(here, there), rel=1e-12)


def test_one_draw_has_nothing_to_compare_an_entry_with(tmp_path):
    values = make_store(tmp_path / "s", make_images(N), KEYS[:2])
    found = measure_agreement(tmp_path / "s")
    assert [found.shares[0][0], found.shares[1][1]] == [None, None]
    assert found.shares[0][1] == found.shares[1][0]
    assert (found.draws, found.blocks, found.images) == (1, 4, 12)
    rows = np.concatenate([np.arange(3 * block, 3 * block + 3) for block in (0, 5, 9, 14)])
    one, other = (values[key][:, rows] for key in KEYS[:2])
    assert found.shares[0][1] == pytest.approx(share(one, other), rel=1e-12)
    counts = [((a == b).sum(), a.size) for a, b in zip(one[0], other[0], strict=True)]
    error = np.std([equal / size for equal, size in counts], ddof=1) / np.sqrt(12) * np.sqrt(1 - 12 / N)
    assert found.margin == pytest.approx(1.96 * error, rel=1e-9)


def test_an_interval_holds_the_share_of_all_images(tmp_path):
    values = make_store(tmp_path / "s", make_images(400), KEYS[1:3])
    found = measure_agreement(tmp_path / "s", blocks=8)
    assert 0 < found.margin < 0.05
    assert abs(found.shares[0][1] - share(*(values[key] for key in KEYS[1:3]))) < 1.5 * found.margin


def test_it_is_bounded_whatever_the_store(tmp_path, monkeypatch):
    make_store(tmp_path / "s", make_images(400), KEYS, draws=2)
    whole = measure_agreement(tmp_path / "s", blocks=16)
    assert whole.images == whole.n == 400
    monkeypatch.setattr(module, "_VALUES", 32 * D)
    monkeypatch.setattr(module, "_ENTRIES", 3)
    some = measure_agreement(tmp_path / "s", blocks=16)
    assert (some.images, some.blocks, some.left_out, len(some.shares)) == (32, 16, 1, 3)
    monkeypatch.setattr(module, "_IMAGES", 8)
    assert measure_agreement(tmp_path / "s", blocks=4).images == 8
    for n, block, d in ((10**7, 1250, 150_528), (7, 7, 2**26), (1, 1, 1)):
        rows = np.concatenate(module._rows(n, block, d, 4))
        assert len(rows) == len(np.unique(rows))
        assert rows[0] == 0
        assert rows.max() < n
        assert len(rows) * d <= max(2**26, 4 * d)


def test_only_what_it_needs_is_read(tmp_path):
    """Blocks 0, 5, 9 and 14 of two draws: all others may be missing, none of these."""
    make_store(tmp_path / "s", make_images(N), KEYS[1:3], draws=3)
    for path in (tmp_path / "s").glob("*/*/direction/c/*/*"):
        if path.name not in ("0", "5", "9", "14") or path.parent.name == "2":
            (path / "0").unlink()
    measure_agreement(tmp_path / "s")
    (tmp_path / "s/n/r-fgsm/direction/c/1/9/0").unlink()
    with pytest.raises(ChunkError, match="n/r-fgsm/direction/c/1/9/0"):
        measure_agreement(tmp_path / "s")


def test_what_cannot_be_compared_is_refused(tmp_path):
    make_store(tmp_path / "s", make_images(N), KEYS[:1])
    with pytest.raises(QuantityError, match="expected at least 1, got 0"):
        measure_agreement(tmp_path / "s", blocks=0)
    with pytest.raises(InputError, match="expected a store"):
        measure_agreement(tmp_path / "nothing")


def test_the_command_prints_it_and_writes_it_as_json(tmp_path):
    make_store(tmp_path / "s", make_images(N), KEYS, draws=2, zeros=True)
    store = str(tmp_path / "s")
    found = measure_agreement(store, blocks=3)
    told = CliRunner().invoke(cli, ["inspect", store, "--agreement", "--sample-blocks", "3"]).output
    assert f"agreement: values of equal sign in %, where neither is zero; 50 is chance; 9 of {N} images" in told
    for row in found.shares:
        assert " │ ".join(f"{100 * value:.1f}" for value in row) in told
    told = json.loads(CliRunner().invoke(cli, ["inspect", store, "--agreement", "--json"]).output)
    assert told["agreement"]["shares"] == [list(row) for row in measure_agreement(store).shares]
    assert "agreement" not in json.loads(CliRunner().invoke(cli, ["inspect", store, "--json"]).output)
