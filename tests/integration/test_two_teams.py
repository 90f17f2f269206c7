"""Two teams, as docs/sharing.md shows them: A computes, signs and pushes; B pulls, verifies and trains."""

from __future__ import annotations

import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file

from ensadv_data.__main__ import main
from ensadv_data.models import build_model, save_model
from s3 import BUCKET, s3_server

LIMIT = ("--limit", "300")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "public"))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/mnist-c"
        server.shutdown()


@pytest.fixture
def team(tmp_path, monkeypatch, capsys):
    """Runs a command in a team's folder; what it said."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def run(name: str, *words: str, code: int = 0) -> str:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        try:
            main(list(words))
            found = 0
        except SystemExit as end:
            found = int(end.code or 0)
        told = capsys.readouterr()
        assert found == code, told.err
        return told.out + told.err

    return run


def train(team, name: str, shards: str, out: str) -> None:
    words = ("--architecture", "D", "--epochs", "1", "--batch-size", "50", "--online", "step-ll", "--threads", "1")
    team(name, "train", *LIMIT, *words, "--shards", shards, "--out", out)


@pytest.mark.parametrize("way", ["s3", "http"])
def test_b_trains_on_what_a_published_as_a_does(tmp_path, team, web, way):
    (tmp_path / "a").mkdir()
    for name in "CD":
        module = build_model(name, shape=(1, 28, 28), classes=10, seed=1)
        path = tmp_path / "a" / f"{name}.safetensors"
        save_model(path, module, architecture=name, shape=(1, 28, 28), classes=10, record={})
    with s3_server():
        to = f"s3://{BUCKET}/mnist-c" if way == "s3" else str(tmp_path / "public" / "mnist-c")
        origin = to if way == "s3" else web
        attack = ("--attack", "r-fgsm", "--draws", "2", "--workers", "0")
        models = [("--model", f"{name.lower()}={name}.safetensors") for name in "CD"]
        team("a", "precompute", *LIMIT, *models[0], *models[1], *attack, "--out", "shards")
        team("a", "precompute", *LIMIT, *models[1], *attack, "--out", "shards-d")
        said = team("a", "keygen", "--out", "a.key", "--name", "team-a")
        team("a", "sign", "shards", "--key", "a.key", "--name", "mnist-c")
        assert "pushed: " in team("a", "push", "shards", to)

        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "trust.toml").write_text(said[said.index("[team-a]") :])
        trust = ("--trust", "trust.toml")
        said = team("b", "pull", origin, "--source", "d", "--out", "part", *trust)
        assert said.splitlines()[0].startswith("signature     team-a, key ")
        said = team("b", "verify", "part", *trust, "--data", "mnist-mini", *LIMIT)
        assert "part          1 of the entries are here: d/r-fgsm" in said
        assert "alignment     all 300 images of mnist-mini/train are those of the store" in said
        train(team, "b", "part", "d.safetensors")
        train(team, "a", "shards-d", "d.safetensors")
        mine, theirs = (load_file(tmp_path / name / "d.safetensors") for name in "ab")
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)

        team("b", "pull", origin, "--out", "all", *trust)
        train(team, "b", "all", "both.safetensors")
        train(team, "a", "shards", "both.safetensors")
        mine, theirs = ((tmp_path / name / "both.safetensors").read_bytes() for name in "ab")
        assert mine == theirs

        # whoever changes something there is found out
        if way == "http":
            folder = tmp_path / "public" / "mnist-c" / "d" / "r-fgsm" / "direction"
            chunk = next(path for path in folder.rglob("0") if path.is_file())
            chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
            assert "as the manifest has it" in team("b", "pull", origin, "--out", "again", *trust, code=4)
            shutil.copy(tmp_path / "a" / "shards-d" / "manifest.json", tmp_path / "public" / "mnist-c")
            said = team("b", "pull", origin, "--out", "other", *trust, code=4)
            assert "manifest" in said
            assert not Path(tmp_path / "b" / "other" / "manifest.json").exists()
