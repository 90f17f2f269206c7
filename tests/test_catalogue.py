"""The page of a folder of manifests: what is in it, whom one may believe, and text that stays text."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ensadv_data.__main__ import main
from ensadv_data.catalogue import Catalogue, read_catalogue, write_catalogue
from ensadv_data.errors import InputError, OutputError
from ensadv_data.inspection import describe_store
from ensadv_data.manifest import Manifest, read_manifest
from mutations import NAME, World, make_world
from test_report import HOSTILE, Page, page_of

pytestmark = pytest.mark.usefixtures("without_fsync")

SAID = {"licence": "CC0-1.0", "creator": "Team A", "citation": "A, 2026"}


@pytest.fixture(scope="module")
def world(tmp_path_factory, without_fsync) -> World:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def folder(world, tmp_path) -> Path:
    """One manifest with its signature, ``one.json``."""
    found = tmp_path / "manifests"
    put(world, found, "one")
    return found


def put(world: World, folder: Path, name: str, raw: bytes | None = None, *, signed: bool = True, **said: Any) -> None:
    folder.mkdir(exist_ok=True)
    raw = (world.store / "manifest.json").read_bytes() if raw is None else raw
    (folder / "manifest.json").write_bytes(raw)
    if signed:
        world.sign(folder, **(SAID | said))
        (folder / "manifest.sig.json").rename(folder / f"{name}.sig.json")
    (folder / "manifest.json").rename(folder / f"{name}.json")


def edited(world: World, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The manifest with something else in it, canonical again."""
    about = json.loads((world.store / "manifest.json").read_bytes())
    change(about)
    return Manifest.model_validate(about).to_bytes()


def page(found: Catalogue, tmp_path: Path, title: str = "Stores") -> Page:
    return page_of(write_catalogue(tmp_path / "index.html", found, title=title))


def test_a_manifest_is_listed_with_all_that_it_says(world, folder, tmp_path):
    (row,) = read_catalogue(folder, trust=world.trust).listed
    summary, manifest = describe_store(world.store), read_manifest(world.store)
    assert (row.file, row.name, row.digest, row.draws) == ("one.json", NAME, summary.digest, summary.draws)
    assert row.bytes == sum((world.store / key).stat().st_size for key in manifest.objects)
    assert row.objects == len(manifest.objects)
    assert row.attacks == {entry.attack: entry.epsilon for entry in summary.entries}
    assert row.is_trusted
    text = page(read_catalogue(folder, trust=world.trust), tmp_path).text
    for word in (
        *(NAME, "version 3", "one.json", "mnist-mini/train, 1 × 28 × 28", "c (C), d (D)", f"{row.bytes:,}"),
        *("CC0-1.0", "Team A", "cite: A, 2026", "trusted a, key", summary.digest[:16]),
        *(f"{attack}: {serves}" for attack, serves in row.attacks.items()),
    ):
        assert word in text


def test_whom_one_trusts_is_told_of_each(world, folder):
    put(world, folder, "other-key", key="b.key")
    put(world, folder, "expired", age=40)
    put(world, folder, "unsigned", signed=False)
    put(world, folder, "swapped", edited(world, lambda about: about["software"].update(more="1")), signed=False)
    shutil.copy(folder / "one.sig.json", folder / "swapped.sig.json")
    put(world, folder, "torn")
    (folder / "torn.sig.json").write_bytes(b"{")
    rows = {row.file.removesuffix(".json"): row for row in read_catalogue(folder, trust=world.trust).listed}
    assert {name for name, row in rows.items() if row.is_trusted} == {"one"}
    for name, said in {
        "one": "a, key ",
        "other-key": "not trusted: other-key.sig.json: expected the signature of a trusted key",
        "expired": "but: expired.sig.json: the signature expired on",
        "unsigned": "not signed",
        "swapped": "not trusted: swapped.sig.json: expected the manifest with SHA-256",
        "torn": "not trusted: torn.sig.json: expected JSON",
    }.items():
        assert said in rows[name].signature
    shown = {name for name, row in rows.items() if row.about is not None}
    assert shown == {"one", "expired"}, "what an untrusted key says is not shown"
    late = read_catalogue(folder, trust=world.trust, now=datetime.now(UTC) + timedelta(days=99)).listed
    assert not any(row.is_trusted for row in late)


def test_without_a_trust_file_it_says_that_nobody_checked(world, folder, tmp_path):
    put(world, folder, "other-key", key="b.key", creator="Somebody")
    put(world, folder, "torn")
    (folder / "torn.sig.json").write_bytes(b"{")
    found = read_catalogue(folder)
    assert [row.is_trusted for row in found.listed] == [None] * 3
    assert [row.about and row.about.creator for row in found.listed] == ["Team A", "Somebody", None]
    text = page(found, tmp_path).text
    assert "signed, not checked here" in text
    assert "not readable: torn.sig.json" in text
    assert "trusted" not in text


def test_stores_and_other_folders(world, folder):
    shutil.copytree(world.store, folder / "mine")
    (folder / "nothing").mkdir()
    (folder / "manifest.schema.json").write_text("{}")
    (folder / "notes.txt").write_text("x")
    found = read_catalogue(folder, trust=world.trust)
    assert [row.file for row in found.listed] == ["mine/manifest.json", "one.json"]
    assert all(row.is_trusted for row in found.listed)
    assert found.refused == ()


# Strangers


def test_what_strangers_write_is_text(world, folder, tmp_path):
    def change(about: dict[str, Any]) -> None:
        about["data"]["name"] = about["sources"][0]["architecture"] = HOSTILE

    said = {"licence": HOSTILE, "creator": HOSTILE, "citation": HOSTILE}
    put(world, folder, "one", edited(world, change), **said)
    (folder / f"{HOSTILE.replace('/', '!')}.json").write_bytes(b"[]")
    plain = tmp_path / "plain"
    put(world, plain, "one")
    (plain / "two.json").write_bytes(b"[]")
    found = read_catalogue(folder)
    assert len(found.listed) == len(found.refused) == 1
    seen, usual = page(found, tmp_path, HOSTILE), page(read_catalogue(plain), tmp_path)
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in usual.tags]
    assert seen.script == usual.script
    assert seen.text.count(HOSTILE) == 7, "title and heading, images, sources, licence, creator, citation"
    assert not any(name.startswith("on") or name in ("href", "src") for _, by in seen.tags for name in by)


HARMFUL = {
    "no JSON": b"\xff\x00",
    "not canonical": lambda raw: raw.replace(b":", b": ", 1),
    "deep": b"[" * 100_000,
    "a key twice": b'{"format":1,"format":2}',
    "keys out of the folder": lambda raw: raw.replace(b"d/fgsm/label/c/0", b"../../label/c/00"),
    "another shape": lambda raw: raw.replace(b'"n":5', b'"n":9', 1),
    "a store of 2^62 values": lambda raw: raw.replace(b'"n":5', b'"n":%d' % 2**62, 1),
    "an end of line in a name": lambda raw: raw.replace(b'"name":"mnist-mini"', b'"name":"a\\nb"', 1),
}


@pytest.mark.parametrize("what", HARMFUL)
def test_what_is_no_manifest_is_named_and_does_no_harm(world, folder, tmp_path, what, capsys):
    made = HARMFUL[what]
    raw = (folder / "one.json").read_bytes()
    changed = made(raw) if callable(made) else made
    assert changed != raw
    (folder / "bad.json").write_bytes(changed)
    with pytest.raises(SystemExit) as end:
        main(["catalogue", str(folder), "--out", str(tmp_path / "x.html")])
    told = capsys.readouterr()
    assert end.value.code == 4
    assert told.err.startswith(f"error: {folder}: expected manifests only; files that are none: 1; the page has all")
    assert len(told.err.splitlines()) == 1
    assert told.out == f"catalogue: {tmp_path / 'x.html'}  stores: 1\n"
    text = page_of(tmp_path / "x.html").text
    assert "Not listed" in text
    assert "bad.json" in text


def test_links_and_pipes_are_not_followed(world, folder, tmp_path):
    shutil.move(folder / "one.json", tmp_path / "outside.json")
    (folder / "link.json").symlink_to(tmp_path / "outside.json")
    (folder / "away").symlink_to(world.store)
    os.mkfifo(folder / "pipe.json")
    found = read_catalogue(folder)
    assert found.listed == ()
    assert [name for name, _ in found.refused] == ["link.json", "pipe.json"]
    assert all("expected a plain file" in why for _, why in found.refused)


def test_the_users_own_mistakes(world, folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="expected a folder of manifests at"):
        read_catalogue(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"expected manifests NAME\.json or NAME/manifest\.json"):
        read_catalogue(tmp_path / "empty")
    shutil.copy(world.folder / "trust.toml", folder / "trust.toml")
    with pytest.raises(SystemExit) as end:
        main(["catalogue", str(folder), "--out", str(tmp_path / "x"), "--trust", str(folder / "trust.toml")])
    assert end.value.code == 3
    with pytest.raises(OutputError):
        write_catalogue(folder / "one.json" / "x", read_catalogue(folder), title="x")
    monkeypatch.setattr("ensadv_data.catalogue._MOST", 2)
    with pytest.raises(InputError, match="at most 2 names"):
        read_catalogue(folder)


def test_the_command_writes_the_same_page_each_time(world, folder, tmp_path, capsys):
    for name in ("one.html", "two.html"):
        trust = str(world.folder / "trust.toml")
        main(["catalogue", str(folder), "--out", str(tmp_path / name), "--trust", trust, "--title", "Ours"])
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert capsys.readouterr().out == "".join(
        f"catalogue: {tmp_path / name}  stores: 1\n" for name in ("one.html", "two.html")
    )
    assert "Ours" in page_of(tmp_path / "one.html").text
