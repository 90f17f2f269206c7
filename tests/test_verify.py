"""verify: a line for each check that holds, on disks, in buckets and behind web servers; and nothing false passes."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import numpy as np
import pytest

from ensadv_data.__main__ import main
from ensadv_data.compression import zstd_encode
from ensadv_data.errors import InputError, IntegrityError, UnknownNameError
from ensadv_data.manifest import Manifest, read_manifest
from ensadv_data.models import build_model, save_model
from ensadv_data.objects import Folder, objects_at
from ensadv_data.precompute import precompute_store
from ensadv_data.remote import Wanted as Some
from ensadv_data.remote import pull
from ensadv_data.spec import DataSpec, PrecomputeSpec
from ensadv_data.store import block_size, open_store
from ensadv_data.trust import ENVELOPE_NAME
from ensadv_data.untrusted import MANIFEST
from ensadv_data.verification import Wanted, sign_store, verified
from ensadv_data.verification.recomputing import TOLERANCE
from fuzzing import run as fuzz
from mutations import KINDS, LIMIT, NAME, World, documents_of, edited, make_world, objects_of, raw, replaced
from mutations import run as mutate
from s3 import BUCKET, s3_server

pytestmark = pytest.mark.usefixtures("without_fsync")

CHECKS = ["signature", "expiry", "version", "manifest", "completeness", "structure", "digests", "bounds", "alignment"]


@pytest.fixture(scope="module")
def world(tmp_path_factory, without_fsync) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def copy(world, tmp_path) -> Path:
    return Path(shutil.copytree(world.store, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def state(tmp_path_factory, monkeypatch) -> Path:
    """Versions that this user has seen."""
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    return folder


def called(capsys, *words: object) -> tuple[int, str, str]:
    try:
        main([str(word) for word in words])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_random_mutations_are_all_found(tmp_path):
    found = mutate(mutations=2 * len(KINDS), seed=2, folder=tmp_path)
    assert (found["found"], len(found["kinds"])) == (2 * len(KINDS), len(KINDS))


def test_random_documents_do_no_harm(tmp_path):
    found = fuzz(inputs=2100, seed=4, folder=tmp_path)
    assert (found["crashes"], found["inputs"]) == (0, 2100)
    assert found["grown"] < 64 * 2**20


def test_what_a_stranger_wrote_does_nothing_to_a_terminal(copy, capsys):
    found = json.loads((copy / "c" / "fgsm" / "zarr.json").read_bytes())
    found["attributes"]["\x1b[2J"] = 1
    (copy / "c" / "fgsm" / "zarr.json").write_text(json.dumps(found))
    code, _, err = called(capsys, "inspect", copy)
    assert (code, "metadata is damaged" in err, "\\x1b[2J" in err) == (4, True, True)
    assert err.rstrip("\n").isprintable()


# The commands


def test_keygen_sign_and_verify(world, copy, tmp_path, capsys):
    code, out, _ = called(capsys, "keygen", "--out", tmp_path / "other.key", "--name", 'a "b"\x1b')
    section = tomllib.loads(out[out.index('["a') :])
    assert section == {'a "b"\x1b': {"keys": [(tmp_path / "other.key.pub").read_text().split()[0]]}}
    code, out, _ = called(capsys, "keygen", "--out", tmp_path / "k.key", "--name", "team-k")
    assert code == 0
    (tmp_path / "trust.toml").write_text(out[out.index("[team-k]") :])
    (copy / ENVELOPE_NAME).unlink()
    words = ("sign", copy, "--key", tmp_path / "k.key", "--name", "mine", "--licence", "CC0-1.0")
    for version in (1, 2):
        code, out, _ = called(capsys, *words)
        assert (code, out.splitlines()[-1].startswith(f"signed        mine version {version} until 20")) == (0, True)
    code, out, _ = called(capsys, "verify", copy, "--trust", tmp_path / "trust.toml", "--data", "mnist-mini")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[:-1]] == CHECKS
    assert out.splitlines()[-1] == f"{copy}: all of this holds"
    assert "team-k, key" in out
    assert "all 5 images of mnist-mini/train are those of the store" in out
    assert "1 Zarr" not in out
    assert "nothing else" in out


def test_licences_of_static_models_are_signed_and_on_the_card(world, copy, capsys):
    words = ("sign", copy, "--key", world.folder / "a.key", "--name", NAME, "--model-licence")
    source = read_manifest(copy).sources[0].name
    code, _, err = called(capsys, *words, "nobody=MIT")
    assert (code, "source in" in err, source in err) == (3, True, True)
    for wrong in ("MIT", "=MIT", f"{source}="):
        code, _, err = called(capsys, *words, wrong)
        assert (code, "expected NAME=TEXT" in err) == (2, True)
    assert called(capsys, *words, f"{source}=MIT")[0] == 0
    payload = base64.b64decode(json.loads((copy / ENVELOPE_NAME).read_bytes())["payload"])
    assert json.loads(payload)["predicate"]["model_licences"] == {source: "MIT"}
    assert called(capsys, "describe", copy)[0] == 0
    row = next(line for line in (copy / "README.md").read_text().splitlines() if line.startswith(f"| `{source}` |"))
    assert "| MIT |" in row
    code, out, _ = called(capsys, "verify", copy, "--trust", world.folder / "trust.toml")
    assert (code, NAME in out) == (0, True)


def test_the_trust_file_of_the_user_is_found(world, state, capsys):
    assert called(capsys, "verify", world.store)[0] == 3
    (state / "ensadv-data").mkdir()
    shutil.copy(world.folder / "trust.toml", state / "ensadv-data" / "trust.toml")
    code, out, _ = called(capsys, "verify", world.store, "--name", NAME)
    assert (code, "version       2; none was seen before" in out) == (0, True)
    code, out, _ = called(capsys, "verify", world.store)
    assert "the highest seen before was 2" in out


def test_a_refusal_is_one_line_with_exit_code_4(world, copy, capsys):
    (copy / "more").write_text("")
    code, out, err = called(capsys, "verify", copy, "--trust", world.folder / "trust.toml")
    assert code == 4
    assert [line.split()[0] for line in out.splitlines()] == CHECKS[:4]  # what was checked before holds
    assert re.fullmatch(r"error: .*1 object \('more'\) is there that the manifest does not have; delete it\n", err)


def test_a_store_without_a_signature_is_checked_when_asked_for(copy, world, capsys):
    (copy / ENVELOPE_NAME).unlink()
    code, _, err = called(capsys, "verify", copy, "--trust", world.folder / "trust.toml")
    assert (code, "expected a signature, found none" in err) == (4, True)
    code, out, _ = called(capsys, "verify", copy, "--unsigned")
    assert (code, "anybody may have made this store" in out) == (0, True)


USAGE = [
    (("--unsigned", "--name", "x"), 2, "looks at no signature"),
    (("--unsigned", "--model", "d=d"), 2, "is for --recompute"),
    (("--unsigned", "--recompute", "1", "--model", "d=d"), 3, "expected --data beside --recompute"),
    (("--unsigned", "--data", "mnist-mini", "--recompute", "1"), 3, "and a --model for it"),
]


@pytest.mark.parametrize(("words", "code", "said"), USAGE)
def test_what_makes_no_sense_is_said(world, capsys, words, code, said):
    found, out, err = called(capsys, "verify", world.store, *words)
    assert (found, said in err, out) == (code, True, "")  # before anything is read


def test_a_manifest_that_may_not_be_read_is_said(copy, monkeypatch):
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("ensadv_data.objects.base.os.open", denied)
        with pytest.raises(InputError, match=r"cannot read .*manifest.json: this user may not"):
            Folder(copy).read_at_most("manifest.json", 10)


def test_nothing_at_all_is_bad_input(tmp_path, capsys):
    code, _, err = called(capsys, "verify", tmp_path, "--unsigned")
    assert (code, "expected a finished store" in err) == (3, True)


def test_a_name_that_is_none_is_said_in_the_letters_that_it_may_have(world, copy, capsys):
    code, _, err = called(capsys, "sign", copy, "--key", world.folder / "a.key", "--name", "a b")
    assert (code, "expected 1 to 100 letters, digits, '.', '_' and '-'" in err, "got 'a b'" in err) == (3, True, True)


def test_a_key_of_a_trust_file_that_is_none_is_said_with_its_team(world, tmp_path, capsys):
    (tmp_path / "trust.toml").write_text('[team-a]\nkeys = ["ssh-ed25519 AAAA"]')
    code, _, err = called(capsys, "verify", world.store, "--trust", tmp_path / "trust.toml")
    assert (code, f"{tmp_path / 'trust.toml'}: [team-a]: expected a public key ed25519:BASE64" in err) == (3, True)


def test_a_damaged_store_is_not_signed(world, copy, capsys):
    before = (copy / ENVELOPE_NAME).read_bytes()
    words = ("sign", copy, "--key", world.folder / "a.key", "--name", NAME)
    assert called(capsys, *words, "--version", 2)[0] == 3
    assert called(capsys, *words, "--days", 10**9)[0] == 3
    assert called(capsys, *words, "--creator", "a\nb")[0] == 3
    assert called(capsys, "sign", copy / "d", *words[2:])[0] == 3
    (copy / objects_of(copy)[7]).write_bytes(b"x")
    code, _, err = called(capsys, *words)
    assert (code, "another size" in err) == (4, True)
    assert (copy / ENVELOPE_NAME).read_bytes() == before


# Elsewhere than on a disk


@pytest.fixture(scope="module")
def bucket(world) -> Iterator[str]:
    with s3_server():
        client = boto3.client("s3")
        for file in (file for file in world.store.rglob("*") if file.is_file()):
            client.put_object(Bucket=BUCKET, Key=f"s/{file.relative_to(world.store)}", Body=file.read_bytes())
        yield f"s3://{BUCKET}/s"


@pytest.fixture
def web(world) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(world.store))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_store_in_a_bucket(world, bucket, capsys):
    words = ("verify", bucket, "--trust", world.folder / "trust.toml")
    code, out, _ = called(capsys, *words, "--data", "mnist-mini")
    assert (code, [line.split()[0] for line in out.splitlines()[:-1]]) == (0, CHECKS)
    client = boto3.client("s3")
    client.put_object(Bucket=BUCKET, Key="s/weights.pkl", Body=b"")
    assert "'weights.pkl'" in called(capsys, *words)[2]
    client.delete_object(Bucket=BUCKET, Key="s/weights.pkl")
    client.put_object(Bucket=BUCKET, Key="s/manifest.json", Body=b" " * (MANIFEST.size + 1))
    code, _, err = called(capsys, *words)
    assert (code, "expected at most 67,108,864 bytes, found 67,108,865; it was not read" in err) == (4, True)


def test_a_store_behind_a_web_server(world, web, capsys):
    words = ("verify", web, "--trust", world.folder / "trust.toml")
    code, out, _ = called(capsys, *words)
    assert (code, [line.split()[0] for line in out.splitlines()[:-1]]) == (0, CHECKS[:-1])
    assert "extra files cannot be seen over http" in out
    chunk = world.store / objects_of(world.store)[3]
    data = chunk.read_bytes()
    try:
        chunk.write_bytes(data[:-1] + b"?")
        code, _, err = called(capsys, *words)
    finally:
        chunk.write_bytes(data)
    assert (code, "damaged or another one" in err) == (4, True)
    key = world.folder / "a.key"
    assert "a web server is for reading" in called(capsys, "sign", web, "--key", key, "--name", NAME)[2]


# Alignment and recomputing


def test_fewer_images_than_the_store_are_compared_as_far_as_they_go(world):
    lines = list(verified(Folder(world.store), world.wanted(data=DataSpec(data="mnist-mini", limit=3))))
    assert lines[-1].holds.startswith("all 3 images")


@pytest.fixture(scope="module")
def batched(world) -> Path:
    """Blocks of several batches, and dropout, which is drawn by batches."""
    path = world.folder / "batched"
    models = {"d": str(world.folder / "D.safetensors")}
    spec = PrecomputeSpec(models=models, attacks=("fgsm", "r-fgsm"), mode="train", draws=2, batch_size=5)
    precompute_store(spec, DataSpec(data="mnist-mini", limit=190), path, workers=0)  # blocks of 12
    return path


def recomputed(path: Path, world: World, **options: object) -> dict[str, str]:
    fields = {"trust": None, "data": DataSpec(data="mnist-mini"), "recompute": 4, "seed": 5}
    fields["models"] = {"d": str(world.folder / "D.safetensors")}
    lines = verified(Folder(path), Wanted(**(fields | options)))
    return dict(line.holds.split(": ", 1) for line in lines if line.check == "recompute")


def test_examples_computed_anew_agree_to_the_bit_on_one_machine(batched, world):
    said = recomputed(batched, world, recompute=12)
    assert list(said) == ["d/fgsm", "d/fgsm/label", "d/r-fgsm", "d/r-fgsm/label"]
    assert all(text.startswith("1.00000 of ") for text in said.values())
    assert said["d/fgsm"] == f"1.00000 of {12 * 2 * 784:,} values agree; at least 0.999 in float32"


def test_blocks_that_were_made_in_smaller_batches_are_made_so_again(batched, world, tmp_path):
    path = Path(shutil.copytree(batched, tmp_path / "s"))
    edited(path, lambda found: found["plan"].update(smaller_batches={"2": list(range(16))}))
    with pytest.raises(IntegrityError, match=r"d/fgsm: expected 0\.999 of the values"):  # they were not
        recomputed(path, world)
    assert recomputed(path, world, tolerance=0.0)["d/fgsm"].endswith("at least 0 in float32")


def test_every_kind_is_computed_anew(world):
    models = {name: str(world.folder / f"{name.upper()}.safetensors") for name in "cd"}
    said = recomputed(world.store, world, recompute=2, models=models)
    assert len(said) == 12
    assert all(text.startswith("1.00000 of ") for text in said.values())


def test_directions_of_another_model_under_its_name_are_found(batched, world, tmp_path):
    path = Path(shutil.copytree(batched, tmp_path / "s"))
    chance = np.random.default_rng(1)
    for key in objects_of(path, "r-fgsm/direction/c/"):
        rows = np.frombuffer((path / key).read_bytes()[:-4], np.uint8).reshape(12, 98).copy()
        rows[rows.any(axis=1)] = chance.integers(0, 256, (int(rows.any(axis=1).sum()), 98))
        replaced(path, key, raw(rows))
    with pytest.raises(
        IntegrityError, match=r"d/r-fgsm: expected 0\.999 .* found 0\.[45]\d+ of [0-9,]+; the directions"
    ):
        recomputed(path, world)


def test_other_weights_and_unknown_sources_are_said(batched, world, tmp_path):
    other = tmp_path / "D.safetensors"
    module = build_model("D", shape=(1, 28, 28), classes=10, seed=2)
    save_model(other, module, architecture="D", shape=(1, 28, 28), classes=10, record={})
    with pytest.raises(IntegrityError, match="the store was made from another model"):
        recomputed(batched, world, models={"d": str(other)})
    with pytest.raises(UnknownNameError, match="known: d"):
        recomputed(batched, world, models={"e": str(other)})
    with pytest.raises(InputError, match="leave out --limit"):
        recomputed(batched, world, data=DataSpec(data="mnist-mini", limit=100))


def test_a_part_is_computed_anew_as_far_as_it_is_there(world, tmp_path):
    pull(world.store, tmp_path / "part", wanted=Some(sources=("d",), attacks=("r-fgsm",)))
    said = recomputed(tmp_path / "part", world, recompute=2)
    assert list(said) == ["d/r-fgsm", "d/r-fgsm/label"]
    assert all(text.startswith("1.00000 of ") for text in said.values())
    with pytest.raises(InputError, match=r"expected a --model of a source that is here \(d\), got c, of which nothing"):
        recomputed(tmp_path / "part", world, models={"c": str(world.folder / "C.safetensors")})


def test_a_part_of_blocks_is_verified_as_far_as_it_is_there(world, tmp_path):
    part = tmp_path / "part"
    pull(world.store, part, wanted=Some(sources=("c",), attacks=("fgsm",), blocks=frozenset({1, 2, 4})))
    pull(world.store, part, wanted=Some(sources=("d",), attacks=("r-fgsm",), blocks=frozenset({2, 3})))
    models = {name: str(world.folder / f"{name.upper()}.safetensors") for name in "cd"}
    wanted = world.wanted(data=DataSpec(data="mnist-mini"), recompute=3, models=models)
    lines = [*verified(Folder(part), wanted)]
    said = [line.holds for line in lines]
    keys = [key for key in objects_of(part) if (part / key).exists()]
    assert "2 of the entries are here: c/fgsm, d/r-fgsm" in said
    assert "3 of 5 blocks of c/fgsm are here; its zeros are not counted" in said
    assert "2 of 5 blocks of d/r-fgsm are here; its zeros are not counted" in said
    assert "directions are in {-1, 0, 1}, deltas within epsilon, padding empty" in said
    assert f"{len(keys)} SHA-256 are those of the manifest" in said
    assert f"all {4 * block_size(LIMIT, 784)} images of mnist-mini/train are those of the store" in said
    assert [line.check for line in lines].count("recompute") == 4
    with pytest.raises(InputError, match="expected a whole store at"):
        list(sign_store(Folder(part), world.folder / "a.key", name=NAME, days=9))
    for key in keys:
        data = (part / key).read_bytes()
        (part / key).write_bytes(bytes([data[0] ^ 1]) + data[1:])
        with pytest.raises(IntegrityError, match=rf"{key}: expected SHA-256"):
            list(verified(Folder(part), wanted))
        (part / key).unlink()
        with pytest.raises(IntegrityError, match=r"1 object .* is missing"):
            list(verified(Folder(part), wanted))
        (part / key).write_bytes(data)
    extra = next(key for key in objects_of(part, "c/fgsm/direction") if key not in keys)
    (part / extra).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(world.store / extra, part / extra)
    with pytest.raises(IntegrityError, match="is there that the manifest does not have"):
        list(verified(Folder(part), wanted))


def test_tolerances_are_there_for_every_precision_and_kind():
    precisions = PrecomputeSpec.model_fields["precision"].annotation.__args__
    assert set(TOLERANCE) == set(precisions)
    assert {tuple(sorted(row)) for row in TOLERANCE.values()} == {("delta", "label", "rsign", "sign")}


# Bombs, in a process of its own: what it takes beyond what it had before


BOMBS = """
import json, resource, sys
from pathlib import Path
from ensadv_data.compression import zstd_decode
from ensadv_data.errors import EnsadvError
from ensadv_data.objects import Folder
from ensadv_data.store import block_size, open_store
from ensadv_data.trust import Memory, read_trust
from ensadv_data.verification import Wanted, sign_store, verified
import numpy as np

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

root, said = Path(sys.argv[1]), {}
wanted = Wanted(trust=read_trust(root / "trust.toml"), memory=Memory(root / "unseen.json"))
list(verified(Folder(root / "good"), wanted))
open_store(root / "good").gather(open_store(root / "good").entries[0], np.zeros(1, int), np.zeros(1, int))
before = peak()

def told(what, call):
    try:
        call()
        said[what] = "nothing"
    except EnsadvError as error:
        said[what] = str(error)

for path in sorted(root.glob("bomb-*")):
    told(path.name, lambda: list(verified(Folder(path), wanted)))
    def read():
        store = open_store(path)
        for entry in store.entries:
            store.gather(entry, np.zeros(1, int), np.zeros(1, int))
    told(path.name + " opened", read)
for path in sorted(root.glob("*.zst")):
    told(path.name, lambda: zstd_decode(path.read_bytes(), size=98))
print(json.dumps({"grown": peak() - before, "said": said}))
"""


def bombs(world: World, root: Path) -> None:
    """Stores that a trusted key signed, and frames of zstd, each of which would take more memory than there is."""
    shutil.copy(world.folder / "trust.toml", root)
    shutil.copytree(world.store, root / "good")

    def bomb(name: str) -> Path:
        return Path(shutil.copytree(world.store, root / f"bomb-{name}"))

    gigabyte = zstd_encode(np.zeros(2**30, np.uint8), level=1)
    assert len(gigabyte) < 120_000
    whole = zstd_encode(bytes(98), level=3)
    (root / "gigabyte.zst").write_bytes(gigabyte)
    # the frame says 98 bytes, in one byte, and holds the gigabyte's blocks
    start = 9 if gigabyte[4] >> 5 & 1 else 10
    (root / "lying.zst").write_bytes(gigabyte[:4] + b"\x24\x62" + gigabyte[start:])
    (root / "silent.zst").write_bytes(
        gigabyte[:4] + b"\x04\xa0" + gigabyte[10:]
    )  # it does not say, with a window of 1 GiB
    (root / "many.zst").write_bytes(whole * 10_000)
    for name, data in (("chunk", gigabyte), ("frames", whole * 2)):
        path = bomb(name)
        replaced(path, objects_of(path, "c/fgsm/nonzero/c/")[0], data)
    path = bomb("shape")
    key = "d/fgsm/direction/zarr.json"
    found = json.loads((path / key).read_bytes())
    (path / key).write_text(json.dumps(found | {"shape": [2**62, 2**62, 98]}))
    path = bomb("header")
    found = json.loads((path / "zarr.json").read_bytes())
    found["attributes"].update(n=2**62, draws=2**62)
    (path / "zarr.json").write_text(json.dumps(found))
    edited(bomb("images"), lambda found: found["data"].update(n=2**40))
    (bomb("deep") / "manifest.json").write_bytes(b"[" * (MANIFEST.size - 1))
    (bomb("wide") / "manifest.json").write_bytes(b"[" + b"[]," * 1_000_000 + b"0]")
    with (bomb("long") / "manifest.json").open("wb") as file:
        file.truncate(2**36)  # 64 GiB of nothing
    for path in root.glob("bomb-*"):
        if path.name != "bomb-long":
            world.sign(path)


def test_bombs_are_refused_in_little_memory(world, tmp_path):
    bombs(world, tmp_path)
    done = subprocess.run([sys.executable, "-c", BOMBS, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {what for what, text in found["said"].items() if text == "nothing"} <= {"bomb-images opened"}, found["said"]
    assert found["grown"] < 150 * 2**20, found
    assert "a frame that does not say its size" in found["said"]["silent.zst"]
    assert "bytes beyond the end of the frame" in found["said"]["many.zst"]
    assert "a frame of 1073741824" in found["said"]["gigabyte.zst"]
    assert "at most 16 lists and objects inside each other" in found["said"]["bomb-deep"]
    assert (
        "found 68,719,476,736" in found["said"]["bomb-long"] or "at most 67,108,864 bytes" in found["said"]["bomb-long"]
    )


def test_a_store_that_tells_of_more_chunks_than_it_has_is_not_opened(copy):
    found = json.loads((copy / "zarr.json").read_bytes())
    for change, said in (
        ({"n": 2**62}, "expected n from 1 to"),
        ({"n": True}, "expected n from 1 to"),
        ({"draws": 2**16, "n": 2**30, "block": block_size(2**30, 784)}, "chunks of an array"),
        ({"shape": [2**26, 2, 1]}, "values, found"),
        ({"shape": 5}, "metadata is damaged"),
        ({"groups": ["../x/y"]}, "SOURCE/ATTACK"),
        ({"groups": ["../x"]}, "plain relative paths"),
    ):
        changed = {**found, "attributes": {**found["attributes"], **change}}
        (copy / "zarr.json").write_text(json.dumps(changed))
        with pytest.raises((IntegrityError, InputError), match=said) as caught:
            open_store(copy)
        assert "\n" not in str(caught.value)


# What a place tells of its files


def test_a_census_knows_what_is_there(tmp_path, bucket):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / ".partial-x").write_bytes(b"123")
    (tmp_path / "c").write_bytes(b"")
    place = Folder(tmp_path)
    assert place.census() == {"a/b/.partial-x": 3, "c": 0}
    assert place.read_at_most("a/b/.partial-x", 3) == b"123"
    with pytest.raises(IntegrityError, match="expected at most 2 bytes"):
        place.read_at_most("a/b/.partial-x", 2)
    for key in ("none", "c/d"):
        with pytest.raises(FileNotFoundError):
            place.read_at_most(key, 2)
    (tmp_path / "l").symlink_to("c")
    with pytest.raises(IntegrityError, match="found a link at 'l'"):
        place.census()
    with pytest.raises(IntegrityError, match="found a link"):
        place.read_at_most("l", 2)
    (tmp_path / "l").unlink()
    for name in ("folder", "pipe"):
        shutil.os.mkfifo(tmp_path / name) if name == "pipe" else (tmp_path / name).mkdir()  # type: ignore[attr-defined]
        with pytest.raises((IntegrityError, IsADirectoryError)):
            place.read_at_most(name, 2)
    with pytest.raises(IntegrityError, match="found something else at 'pipe'"):
        place.census()
    far = objects_at(bucket)
    assert far.census().keys() >= {"manifest.json", *documents_of(tmp_path)}


# What is published


def test_seeds_of_entries_are_those_that_the_format_tells(world):
    for entry in open_store(world.store).entries:
        words = f"str:random step\0int:0\0str:{entry.source}\0str:{entry.attack}"
        assert entry.seed == int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "little") >> 1


def test_the_schema_of_the_manifest_is_the_published_one():
    published = Path(__file__).parent.parent / "manifests" / "manifest.schema.json"
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}
    assert json.loads(published.read_bytes()) == schema, "write it anew: see CONTRIBUTING.md"
