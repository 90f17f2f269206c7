"""push and pull between folders: what arrives, what is refused, and what a copy that was cut off becomes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from ensadv_data.__main__ import main
from ensadv_data.errors import ChunkError, InputError, IntegrityError, Interrupted, OutputError, UnknownNameError
from ensadv_data.exchange import export_store
from ensadv_data.inspection import describe_store
from ensadv_data.manifest import read_manifest
from ensadv_data.objects import Folder
from ensadv_data.precompute import precompute_store
from ensadv_data.remote import Wanted, copies, pull, push
from ensadv_data.store import open_store
from faults import DATA, spec_in, trained

pytestmark = pytest.mark.usefixtures("without_fsync")

BLOCKS = 16


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return spec_in(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def store(tmp_path_factory, without_fsync, spec) -> Path:
    out = tmp_path_factory.mktemp("made") / "store"
    precompute_store(spec, DATA, out, workers=0)
    return out


def main_code(*words: object) -> int:
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_pushed_and_pulled_is_the_same_store(tmp_path, store):
    (store / "README.md").write_text("about it")
    pushed = push(store, tmp_path / "far")
    assert files(tmp_path / "far") == files(store)
    pulled = pull(tmp_path / "far", tmp_path / "near")
    assert files(tmp_path / "near") == files(store)
    (store / "README.md").unlink()
    assert pushed.objects == pulled.objects == len(read_manifest(store).objects)
    assert pushed.digest == pulled.digest == read_manifest(store).digest
    again = pull(tmp_path / "far", tmp_path / "near")
    assert (again.objects, again.there) == (0, pulled.objects)
    assert push(store, tmp_path / "far").objects == 0


def test_one_source_trains_as_its_own_store_does(tmp_path, store, spec):
    """Equal directions, whatever else the store that they were pulled from has."""
    mine = spec.model_copy(update={"models": {"D": spec.models["D"]}})
    precompute_store(mine, DATA, tmp_path / "alone", workers=0)
    pulled = pull(store, tmp_path / "part", wanted=Wanted(sources=("D",)))
    assert 0 < pulled.objects < len(read_manifest(store).objects)
    assert [entry.key for entry in open_store(tmp_path / "part").entries] == ["D/fgsm", "D/r-fgsm"]
    alone, part = (load(trained(tmp_path / name, tmp_path / f"{name}.safetensors")) for name in ("alone", "part"))
    assert alone.keys() == part.keys()
    assert all(torch.equal(alone[name], part[name]) for name in alone)
    here = describe_store(tmp_path / "part")
    assert {row.source for row in here.entries} == {"D"}
    assert here.bytes == describe_store(tmp_path / "alone").bytes


def test_a_part_grows_until_it_is_the_whole(tmp_path, store):
    out = tmp_path / "part"
    pull(store, out, wanted=Wanted(sources=("D",), attacks=("fgsm",), blocks=frozenset({0, 1, 5})))
    part = json.loads((out / "part.json").read_bytes())
    assert part["blocks"] == {"D/fgsm": [[0, 1], [5, 5]]}
    with pytest.raises(InputError, match=rf"expected all {BLOCKS} blocks of D/fgsm, found 3; pull the rest"):
        open_store(out)
    pull(store, out, wanted=Wanted(attacks=("fgsm",)))
    assert [entry.key for entry in open_store(out).entries] == ["C/fgsm", "D/fgsm"]
    with pytest.raises(InputError, match="expected a whole store at"):
        push(out, tmp_path / "elsewhere")
    pull(store, out)
    assert files(out) == files(store)


def test_precompute_does_not_touch_a_part(tmp_path, store, spec):
    out = tmp_path / "part"
    pull(store, out, wanted=Wanted(sources=("D",)))
    before = files(out)
    with pytest.raises(OutputError, match="a part of a store that was pulled"):
        precompute_store(spec, DATA, out, workers=0)
    assert files(out) == before


@pytest.mark.parametrize("stopped", [1, 20, 100])
@pytest.mark.parametrize("direction", ["push", "pull"])
def test_a_copy_that_was_stopped_is_no_store_and_goes_on(tmp_path, store, monkeypatch, direction, stopped):
    out, copied = tmp_path / "copy", []
    real = copies.checked

    def checked(place, key, record, **options):
        copied.append(key)
        if len(copied) == stopped:
            raise KeyboardInterrupt
        return real(place, key, record, **options)

    monkeypatch.setattr(f"ensadv_data.remote.{direction}ing.checked", checked)
    move = push if direction == "push" else pull
    with pytest.raises(Interrupted, match="what has arrived is kept, and the same command goes on"):
        move(store, out)
    told = rf"the copy of a store is unfinished; run the same {direction} command|found none"
    with pytest.raises(InputError, match=told):
        open_store(out)
    first = len(copied)
    moved = move(store, out)
    assert len(copied) - first == moved.objects <= len(read_manifest(store).objects)
    assert moved.there + moved.objects == len(read_manifest(store).objects)
    assert files(out) == files(store)


def test_what_is_damaged_on_its_way_is_asked_for_again(tmp_path, store, monkeypatch):
    key, times = sorted(read_manifest(store).objects)[7], []
    real = Folder.read_at_most

    def read(self, name, limit):
        data = real(self, name, limit)
        if name == key:
            times.append(name)
            return data[:-1] + bytes([data[-1] ^ 1]) if len(times) < 3 else data
        return data

    monkeypatch.setattr(Folder, "read_at_most", read)
    pull(store, tmp_path / "copy")
    assert len(times) == 3
    assert (tmp_path / "copy" / key).read_bytes() == (store / key).read_bytes()


@pytest.mark.parametrize(
    ("move", "kind"),
    [
        *((move, kind) for move in (push, pull) for kind in ("flipped", "shorter", "longer", "missing")),
        (push, "document"),
        (push, "large document"),
    ],
)
def test_an_object_that_is_not_the_manifests_ends_it(tmp_path, store, kind, move):
    origin = tmp_path / "origin"
    shutil.copytree(store, origin)
    key = sorted(read_manifest(store).objects)[20]
    data = (origin / key).read_bytes()
    if kind == "missing":
        (origin / key).unlink()
    elif "document" in kind:
        key = "C/fgsm/zarr.json"
        (origin / key).write_bytes(b" " * 2**21) if "large" in kind else (origin / key).unlink()
    else:
        changed = {"flipped": bytes([data[0] ^ 4]) + data[1:], "shorter": data[:-3], "longer": data + b"\0"}
        (origin / key).write_bytes(changed[kind])
    with pytest.raises(IntegrityError, match=key):
        move(origin, tmp_path / "copy")
    assert not (tmp_path / "copy" / "manifest.json").exists()
    assert not (tmp_path / "copy" / key).exists()
    assert not list((tmp_path / "copy").rglob("*.partial*"))


def test_documents_come_from_the_manifest_whatever_the_origin_says(tmp_path, store):
    origin = tmp_path / "origin"
    shutil.copytree(store, origin)
    for path in origin.rglob("zarr.json"):
        path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1').replace(b"uint8", b"object"))
    pull(origin, tmp_path / "copy")
    assert files(tmp_path / "copy") == files(store)


def test_what_is_there_of_another_store_stays(tmp_path, store, spec):
    other = tmp_path / "other"
    precompute_store(spec.model_copy(update={"models": {"D": spec.models["D"]}}), DATA, other, workers=0)
    before = files(other)
    for move in (push, pull):
        with pytest.raises(OutputError, match="holds another store; it was not touched"):
            move(store, other)
    assert files(other) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    begun = tmp_path / "begun"
    push(other, begun)
    (begun / "manifest.json").unlink()
    Folder(begun).claim("progress/push.json", b'{"manifest": "of another"}\n')
    for move in (push, pull):
        with pytest.raises(OutputError, match="holds something else than a copy of this store"):
            move(store, tmp_path / "mine")
    with pytest.raises(OutputError, match="holds the beginning of a copy of another store"):
        push(store, begun)
    assert files(tmp_path / "mine") == {"notes.txt": b"mine"}


def test_a_manifest_that_is_known_decides(tmp_path, store, spec):
    pin = (store / "manifest.json").read_bytes()
    pull(store, tmp_path / "copy", pin=pin)
    assert files(tmp_path / "copy") == files(store)
    other = tmp_path / "other"
    precompute_store(spec.model_copy(update={"models": {"D": spec.models["D"]}}), DATA, other, workers=0)
    with pytest.raises(ChunkError, match="the object is missing there"):
        pull(other, tmp_path / "wrong", pin=pin)


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [
        (Wanted(sources=("Z",)), UnknownNameError, "unknown source of the store 'Z'; known: C, D"),
        (Wanted(attacks=("pgd",)), UnknownNameError, "unknown attack of the store 'pgd'; known: fgsm, r-fgsm"),
        (Wanted(blocks=frozenset({3, 16})), InputError, "expected blocks from 0 to 15, got 16"),
        (Wanted(blocks=frozenset()), InputError, "expected something to pull"),
    ],
)
def test_a_part_that_there_is_not(tmp_path, store, wanted, error, said):
    with pytest.raises(error, match=said):
        pull(store, tmp_path / "copy", wanted=wanted)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("begun", [False, True])
def test_a_dry_run_tells_what_would_arrive_and_writes_nothing(tmp_path, store, begun, capsys):
    out, words = tmp_path / "copy", ("--source", "D", "--attack", "fgsm")
    if begun:
        pull(store, out, wanted=Wanted(sources=("D",), attacks=("r-fgsm",)))
    before = files(out)
    told = pull(store, out, wanted=Wanted(sources=("D",), attacks=("fgsm",)), dry_run=True)
    assert main_code("pull", store, "--out", out, *words, "--dry-run", "--unsigned") == 0
    assert files(out) == before
    assert out.exists() == begun
    said = capsys.readouterr().out
    made = pull(store, out, wanted=Wanted(sources=("D",), attacks=("fgsm",)))
    assert (told.objects, told.bytes, told.there, told.entries) == (made.objects, made.bytes, made.there, made.entries)
    assert set(told.entries) == ({"D/fgsm"} if begun else {"D/fgsm", "example_digest"})
    keys = read_manifest(store).objects
    assert told.bytes == sum(len(data) for key, data in files(out).items() if key in keys and key not in before)
    objects, size = told.entries["D/fgsm"]
    assert f"would pull: {out}  {told.objects} objects, {told.bytes:,} bytes; {told.there} are there\n" in said
    assert f"  D/fgsm  {objects} objects, {size:,} bytes\n" in said


def test_a_dry_run_is_refused_where_the_pull_would_be(tmp_path, store):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds something else than a copy of this store"):
        pull(store, tmp_path / "mine", dry_run=True)
    Folder(tmp_path / "begun").claim("progress/pull.json", b'{"manifest": "of another"}\n')
    with pytest.raises(OutputError, match="the beginning of a copy of another store"):
        pull(store, tmp_path / "begun", dry_run=True)


def test_a_pin_is_named_and_nothing_is_left_where_nothing_arrived(tmp_path, store, capsys):
    pin = Path(shutil.copy(store / "manifest.json", tmp_path / "pin.json"))
    words = ("pull", pin, "--out", tmp_path / "copy", "--from")
    assert main_code(*words, tmp_path / "nowhere") == 4
    assert not (tmp_path / "copy").exists()
    pin.write_bytes(pin.read_bytes().replace(b'"classes":10', b'"classes": 10'))
    assert main_code(*words, store) == 4
    assert f"error: {pin}: expected canonical JSON" in capsys.readouterr().err
    shutil.copy(store / "manifest.json", pin)
    capsys.readouterr()
    assert main_code(*words, store) == 0
    assert capsys.readouterr().out.startswith(f"pin           {pin} says which store it is: that one, or nothing\n")


def test_whose_signature_was_not_looked_at_and_why_is_told(tmp_path, store, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main_code("pull", store, "--out", tmp_path / "copy") == 0
    assert "not looked at, since there is no --trust and no " in capsys.readouterr().out
    assert main_code("pull", store, "--out", tmp_path / "copy", "--unsigned") == 0
    assert "not looked at, as was asked for" in capsys.readouterr().out


def test_places_that_are_none_for_a_copy_are_said_before_anything_is_done(tmp_path, store, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main_code("pull", store, "--out", "s3://bucket/copy", "--unsigned") == 2
    assert "expected a path of this machine, got s3://bucket/copy" in capsys.readouterr().err
    assert main_code("push", store, "http://127.0.0.1:1/copy") == 3
    assert "a web server is for reading: choose a folder or bucket" in capsys.readouterr().err
    assert main_code("push", store, "hf://datasets/a/b") == 3
    assert "upload the folder with the hub's own tool" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_exported_set_is_no_store(tmp_path, store, capsys):
    export_store(store, tmp_path / "set")
    for words in (("push", tmp_path / "set", tmp_path / "to"), ("pull", tmp_path / "set", "--out", tmp_path / "to")):
        assert main_code(*words) == 3
        assert "found an exported set; any tool copies its files" in capsys.readouterr().err
    assert main_code("verify", tmp_path / "set", "--unsigned") == 3
    assert "found an exported set; import it" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()


def test_nothing_to_copy_is_said(tmp_path):
    for move in (push, pull):
        with pytest.raises(InputError, match=r"found no manifest.json; is the store finished"):
            move(tmp_path / "none", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "text", ["{", '{"manifest": "00", "blocks": {"D/fgsm": [[0]]}}', '{"manifest": "00", "blocks": {}}']
)
def test_a_part_that_is_not_as_written_is_found(tmp_path, store, text):
    out = tmp_path / "part"
    pull(store, out, wanted=Wanted(sources=("D",)))
    (out / "part.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"part.json"):
        open_store(out)
