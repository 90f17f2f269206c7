"""The card and the Croissant file: true, valid, and nothing but text whatever text somebody puts there."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from html.parser import HTMLParser
from pathlib import Path

import mlcroissant
import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt

from ensadv_data.__main__ import main
from ensadv_data.description import card_of, croissant, croissant_of, write_description
from ensadv_data.errors import InputError, IntegrityError, OutputError
from ensadv_data.files import sha256_of_file
from ensadv_data.inspection import describe_store
from ensadv_data.manifest import read_manifest
from ensadv_data.objects import Folder
from ensadv_data.remote import pull, push
from ensadv_data.statement import Predicate
from ensadv_data.store import open_store
from ensadv_data.trust import ENVELOPE_NAME
from ensadv_data.verification import Blueprint, blueprint_of, verified
from mutations import NAME, World, make_world, objects_of

pytestmark = pytest.mark.usefixtures("without_fsync")

HOSTILE = (
    "---",
    "yes",
    "a: b # c",
    "\"quoted\" 'twice' \\",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)> &amp; R&D",
    "| a | b ||",
    "![p](https://evil.example/p.png) [l](https://evil.example)",
    "https://evil.example www.evil.example a@evil.example",
    "`code` ``` *b* _i_ ~~s~~ $x$ {{ 7*7 }} \\",
    "# head",
    "😀 ἀγαθός",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory, without_fsync) -> World:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def store(world, tmp_path) -> Path:
    return Path(shutil.copytree(world.store, tmp_path / NAME))


@pytest.fixture(scope="module")
def blueprint(world) -> Blueprint:
    return blueprint_of(read_manifest(world.store), where="it")


def said(text: str = "", *, name: str = "n") -> Predicate:
    return Predicate(
        store="0" * 64,
        name=name,
        version=3,
        created="2026-05-04T03:02:01Z",
        expires="2026-06-04T03:02:01Z",
        licence=text,
        creator=text,
        citation=text,
    )


def front_of(card: bytes) -> dict[str, object]:
    head, front, _ = card.decode().split("---\n", 2)
    assert head == ""
    return yaml.safe_load(front)


def body_of(card: bytes) -> str:
    return card.decode().split("\n---\n", 1)[1]


# Croissant


def read_croissant(path: Path) -> mlcroissant.Dataset:
    """Read by MLCommons' own library, which refuses what the specification does not allow."""
    return mlcroissant.Dataset(jsonld=str(path))


def test_the_croissant_file_is_valid_and_true(store, caplog):
    write_description(
        Folder(store), licence="CC0-1.0", creator="Team A", citation="A, 2026", url="https://example.org/shards"
    )
    found = read_croissant(store / "croissant.json")
    assert [issue for issue in caplog.messages if "not standard" in issue or "validation" in issue] == []
    about, manifest, signed = found.metadata, read_manifest(store), 2
    assert (about.name, about.version, about.license, about.url) == (
        NAME,
        f"{signed}.0.0",
        ["CC0-1.0"],
        "https://example.org/shards",
    )
    assert [creator.name for creator in about.creators] == ["Team A"]
    files = {file.id: file for file in about.distribution}
    assert files.keys() == {"manifest.json", *manifest.objects}
    for key, file in files.items():
        assert file.content_url == key
        assert file.content_size == f"{(store / key).stat().st_size} B"
        assert file.sha256 == sha256_of_file(store / key)
    rows = [{key.split("/")[1]: str(value) for key, value in row.items()} for row in found.records("entries")]
    assert rows == [
        {
            "source": row.source,
            "architecture": row.architecture,
            "attack": row.attack,
            "kind": row.kind,
            "epsilons": row.epsilon,
            "weights": row.source_digest,
        }
        for row in describe_store(store).entries
    ]


def test_what_nobody_says_is_left_out(store, caplog):
    write_description(Folder(store))
    about = json.loads((store / "croissant.json").read_bytes())
    assert not about.keys() & {"license", "creator", "citeAs", "url"}
    read_croissant(store / "croissant.json")
    assert all("warning" in line or "WARNING" in line for line in caplog.messages), "recommended, but no error"
    assert "unknown" in (store / "README.md").read_text()


def test_many_objects_are_sets_of_files(store, monkeypatch):
    """A set's glob matches its array's chunks and nothing else of the store, also where a name has a star."""
    monkeypatch.setattr(croissant, "_MOST_FILES", 5)
    write_description(Folder(store))
    about = read_croissant(store / "croissant.json").metadata
    sets = {one.id: one.includes for one in about.distribution if one.id != "manifest.json"}
    files = [path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()]
    covered = []
    for path, (pattern,) in sets.items():
        here = {key for key in files if fnmatchcase(key, pattern)}
        assert (
            here
            == {key.relative_to(store).as_posix() for key in store.glob(pattern)}
            == set(objects_of(store, f"{path}/c/"))
        )
        covered += here
    assert sorted(covered) == sorted(read_manifest(store).objects)


def test_a_star_in_a_name_is_no_pattern(blueprint, monkeypatch):
    monkeypatch.setattr(croissant, "_MOST_FILES", 0)
    starred = tuple(replace(entry, source=f"{entry.source}*") for entry in blueprint.entries)
    sets = json.loads(croissant_of(replace(blueprint, entries=starred), b"", said()))["distribution"]
    (pattern,) = (one["includes"] for one in sets if one["@id"] == "d*/fgsm/label")
    assert fnmatchcase("d*/fgsm/label/c/7", pattern)
    assert not fnmatchcase("dd/fgsm/label/c/7", pattern)


# The card


def test_the_card_says_what_the_store_is(store, blueprint):
    write_description(Folder(store), licence="CC0-1.0", creator="Team A", url="s3://bucket/shards")
    card = (store / "README.md").read_bytes()
    front, summary = front_of(card), describe_store(store)
    assert front["license"] == "cc0-1.0"
    assert (front["pretty_name"], front["size_categories"], front["viewer"]) == (NAME, ["n<1K"], False)
    body = body_of(card)
    assert "5 images (1 × 28 × 28) of `mnist-mini/train`: 2 static models, 3 attacks, 2 draws of each image" in body
    for text in (summary.digest, summary.data_digest, "**The images are not included.**", "by no signature"):
        assert text in body
    assert f"ensadv-data pull s3://bucket/shards --out {NAME}\n" in body
    for row in summary.entries:
        line = (
            f"| `{row.source}` | `{row.architecture}` | `{row.attack}` | {row.epsilon} | not said "
            f"| `{row.source_digest[:16]}` |"
        )
        assert line in body


def test_its_code_runs(store, blueprint, monkeypatch):
    monkeypatch.chdir(store.parent)
    opened = open_store(store)
    for entry in blueprint.entries[:3]:
        turned = (entry, *(other for other in blueprint.entries if other != entry))
        card = card_of(replace(blueprint, entries=turned), said(name=NAME)).decode()
        names: dict[str, np.ndarray] = {}
        exec(card.split("```python\n")[1].split("```")[0], names)  # noqa: S102 - the card's own example
        planes = opened.gather(entry, np.zeros(5, np.int64), np.arange(5))
        bits = planes.delta if planes.direction is None else np.unpackbits(planes.direction, axis=1, bitorder="little")
        assert names["values"].shape == (5, 784)
        if planes.delta is None:
            assert ((names["values"] > 0) == bits).all()
        else:
            assert (names["values"] == bits).all()


def test_its_commands_are_understood(blueprint):
    from ensadv_data.cli import cli

    block = card_of(blueprint, said(), url="https://example.org/x").decode().split("```sh\n")[1].split("```")[0]
    for line in block.splitlines():
        _, command, *words = line.split()
        cli.commands[command].make_context(command, words)


@pytest.mark.parametrize(
    ("n", "size"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (60_000, "10K<n<100K"), (1_281_167, "1M<n<10M"), (10**12, "n>1T")],
)
def test_sizes_are_those_of_the_hub(blueprint, n, size):
    assert front_of(card_of(replace(blueprint, header=replace(blueprint.header, n=n)), said()))["size_categories"] == [
        size
    ]


# Whatever somebody writes


class Seen(HTMLParser):
    """The tags of a page and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.inside = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag == "td":
            self.inside = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "td"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data


def rendered(card: bytes) -> Seen:
    return Seen(MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(body_of(card)))


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text_in_yaml_markdown_html_and_json(blueprint, text):
    entries = tuple(replace(entry, architecture=text) for entry in blueprint.entries)
    card = card_of(replace(blueprint, entries=entries), said(text))
    front = front_of(card)
    assert (front["license"], front["license_name"]) == ("other", text)
    assert front.keys() == front_of(card_of(blueprint, said("other things"))).keys()
    plain, found = rendered(card_of(blueprint, said("plain"))), rendered(card)
    assert [tag for tag in found.tags if tag != "code"] == [tag for tag in plain.tags if tag != "code"]
    cells = [cell.strip() for cell in found.cells]
    assert cells.count(text) == 3 + len(entries)
    raw = croissant_of(replace(blueprint, entries=entries), b"", said(text))
    about = json.loads(raw)
    assert (about["license"], about["creator"]["name"], about["citeAs"]) == (text, text, text)
    assert [row["entries/architecture"] for row in about["recordSet"][0]["data"]] == [text] * len(entries)
    assert b"<" not in raw, "a page may embed it in a script element"


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[2J", "a\u202eb", "\u2028", "x" * 2001, "\x00"])
def test_what_cannot_be_shown_is_refused(store, text):
    for field in ("licence", "creator", "citation", "name"):
        with pytest.raises(InputError) as caught:
            write_description(Folder(store), **{field: text})
        assert str(caught.value).isprintable()
    assert not (store / "README.md").exists()


@pytest.mark.parametrize(
    "url", ["", "shards", "javascript:alert(1)", "https://a b", "https://x/`id`", "https://x/\n```"]
)
def test_a_url_is_one_that_pull_takes(store, url):
    with pytest.raises(InputError, match="--url: expected where the store is"):
        write_description(Folder(store), url=url)


# Beside a store


def test_names_are_those_that_were_signed_unless_given(world, store):
    world.sign(store, version=7, creator="Team A", licence="MIT", citation="A")
    about = write_description(Folder(store), licence="CC0-1.0")
    assert (about.name, about.version, about.creator, about.licence, about.citation) == (
        NAME,
        7,
        "Team A",
        "CC0-1.0",
        "A",
    )
    (store / ENVELOPE_NAME).unlink()
    now = datetime(2026, 3, 2, tzinfo=UTC)
    with pytest.raises(InputError, match="expected --name NAME"):
        write_description(Folder(store), now=now)
    write_description(Folder(store), name="mine", now=now)
    assert json.loads((store / "croissant.json").read_bytes())["datePublished"] == "2026-03-02"


def test_the_store_stays_as_it_was_signed_and_they_go_with_it(world, store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    write_description(Folder(store))
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(verified(Folder(store), world.wanted()))) == 9
    push(store, tmp_path / "far")
    pull(tmp_path / "far", tmp_path / "near")
    for name in ("README.md", "croissant.json"):
        assert (tmp_path / "near" / name).read_bytes() == (store / name).read_bytes()
    assert read_croissant(tmp_path / "near" / "croissant.json").metadata.name == NAME


def test_somebodys_own_card_is_left_alone(store):
    (store / "README.md").write_text("mine")
    with pytest.raises(OutputError, match=r"README.md: expected none, or one that describe wrote"):
        write_description(Folder(store))
    assert (store / "README.md").read_text() == "mine"
    (store / "README.md").unlink()
    (store / "croissant.json").write_text("mine")
    with pytest.raises(OutputError, match=r"croissant.json: expected none"):
        write_description(Folder(store))
    assert not (store / "README.md").exists()
    (store / "croissant.json").unlink()
    write_description(Folder(store))
    first = (store / "README.md").read_bytes()
    write_description(Folder(store))
    assert (store / "README.md").read_bytes() == first


def test_what_is_no_store_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="expected a finished store"):
        write_description(Folder(tmp_path), name="x")
    with pytest.raises(OutputError, match="a web server is for reading"):
        write_description(type("Far", (Folder,), {"__str__": lambda self: "https://x"})(store), name="x")
    (store / "part.json").write_text(json.dumps({"manifest": sha256_of_file(store / "manifest.json"), "blocks": {}}))
    with pytest.raises(InputError, match="expected a whole store"):
        write_description(Folder(store), name="x")
    (store / "part.json").unlink()
    (store / ENVELOPE_NAME).write_bytes((store / ENVELOPE_NAME).read_bytes()[:-9])
    with pytest.raises(IntegrityError):
        write_description(Folder(store))
    assert not (store / "README.md").exists()


def test_a_description_that_could_not_be_pushed_is_not_written(store, monkeypatch):
    monkeypatch.setattr("ensadv_data.description.BESIDE_BYTES", 9000)
    with pytest.raises(InputError, match="can describe in 9,000 bytes, got 6 entries"):
        write_description(Folder(store))
    assert not (store / "croissant.json").exists()


def test_the_command_says_what_nobody_said(store, capsys):
    main(["describe", str(store), "--licence", "MIT"])
    assert capsys.readouterr().out.splitlines() == [
        f"{store}/README.md: {NAME} version 2",
        f"{store}/croissant.json: {NAME} version 2",
        "not said: --creator, --citation, --url",
    ]
    with contextlib.redirect_stderr(io.StringIO()) as told, pytest.raises(SystemExit) as end:
        main(["describe", str(store), "--url", "x"])
    assert end.value.code == 3
    assert "--url: expected" in told.getvalue()
