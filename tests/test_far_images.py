"""WebDataset tars in a bucket and behind a web server, both on this machine: the same data set as in a folder."""

from __future__ import annotations

import io
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import boto3
import numpy as np
import pytest

from ensadv_data.bench import save_untrained
from ensadv_data.data import absolute_data, open_dataset, packed
from ensadv_data.data.packed import opened_shard, shard_size
from ensadv_data.errors import DataError, InputError, IntegrityError
from ensadv_data.objects import Bucket
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import DataSpec, PrecomputeSpec, PreprocessSpec
from ensadv_data.store import open_store
from photographs import cut_photographs
from s3 import BUCKET, s3_server

SMALL = PreprocessSpec(size=16)
pytestmark = pytest.mark.usefixtures("without_fsync")


@pytest.fixture(scope="module")
def near(tmp_path_factory) -> Path:
    """Tars in a folder; a member that nobody reads makes one of them larger than what is asked for at once."""
    cut = cut_photographs(tmp_path_factory.mktemp("cut"), classes=2, train=6, test=1)
    root, files = tmp_path_factory.mktemp("near") / "tars", sorted(cut.glob("train/*/*.jpg"))
    parts = {"train/a.tar": files[:5], "train/b.tar": files[5:], "val/c.tar": files[3:5]}
    for name, some in parts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / name, "w") as tar:
            for number, path in enumerate(some):
                members = {"jpg": path.read_bytes(), "cls": b"%d" % (number % 3)}
                if (name, number) == ("train/b.tar", 2):
                    members["npy"] = bytes(5 * 2**20)
                for extension, data in members.items():
                    member = tarfile.TarInfo(f"k{number}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    for split in ("train", "val"):
        names = [path.name for path in sorted((root / split).glob("*.tar"))]
        (root / split / "shards.txt").write_text("\n".join(reversed(names)) + "\n\n")
    return root


@pytest.fixture(scope="module")
def bucket(near) -> Iterator[str]:
    with s3_server():
        client = boto3.client("s3")
        for path in near.rglob("*.tar"):
            client.upload_file(str(path), BUCKET, f"some/{path.relative_to(near)}")
        yield f"s3://{BUCKET}/some"


class Ranges(SimpleHTTPRequestHandler):
    """A web server that gives parts of files, and counts the bytes."""

    sent: ClassVar[Counter[str]] = Counter()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not asked or not path.is_file():
            super().do_GET()
            return
        first, last, data = int(asked[1]), int(asked[2]), path.read_bytes()
        part = data[first : last + 1]
        self.sent[path.name] += len(part)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
        self.end_headers()
        self.wfile.write(part)


class Whole(SimpleHTTPRequestHandler):
    """A web server that knows whole files only, of which a client may have enough before their end."""

    def copyfile(self, source, outputfile) -> None:
        with suppress(ConnectionError):
            super().copyfile(source, outputfile)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path, handler: type[SimpleHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


@pytest.fixture
def web(near) -> Iterator[str]:
    Ranges.sent.clear()
    with serving(near.parent, Ranges) as url:
        yield f"{url}/tars"


def opened(place: object, home: Path, split: str = "train", **more):
    return open_dataset(f"wds:{place}", split, data_dir=home, preprocess=SMALL, **more)


@pytest.mark.parametrize("where", ["bucket", "web"])
def test_far_tars_are_the_data_set_that_near_ones_are(near, where, tmp_path, request):
    url = request.getfixturevalue(where)
    here, there = opened(near, tmp_path), opened(f"{url}/", tmp_path)
    assert (len(there), there.classes, there.shape) == (len(here), here.classes, here.shape) == (12, 3, (3, 16, 16))
    assert there.name == ("wds:some" if where == "bucket" else "wds:tars")
    rows = np.array([11, 0, 4, 5, 5])
    for mine, theirs in zip(here.read(rows), there.read(rows), strict=True):
        assert (mine == theirs).all()
    assert there.digest == here.digest
    assert there.threads >= 16
    assert opened(url, tmp_path, "test").labels().tolist() == [0, 1]
    assert opened(url, tmp_path).digest == here.digest  # from the index
    assert absolute_data(DataSpec(data=f"wds:{url}", data_dir="x")).data == f"wds:{url}"


def test_only_what_is_needed_is_asked_for(web, near, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_READ", 2**18)
    data = opened(web, tmp_path)
    size = (near / "train" / "b.tar").stat().st_size
    assert Ranges.sent["b.tar"] < size - 2**22, "what nobody reads is passed over"
    Ranges.sent.clear()
    data.read(np.array([5]))
    assert Ranges.sent == {"b.tar": int(data.listing.table.arrays["place"][5][1])}


def test_a_far_file_is_read_in_pieces(bucket, near):
    """The bytes are the file's; what is in memory is a piece."""
    whole = (near / "train" / "b.tar").read_bytes()
    with opened_shard(Bucket(f"{bucket}/train"), "b.tar") as file:
        assert shard_size(file) == len(whole)
        assert file.read(3_000_000) == whole[:3_000_000]
        file.seek(-1024, 2)
        assert file.read() == whole[-1024:]
        file.seek(700)
        assert file.read(600) == whole[700:1300]
    with pytest.raises(FileNotFoundError):
        opened_shard(Bucket(f"{bucket}/train"), "absent.tar")


def test_far_tars_that_changed_are_noticed(bucket, near, tmp_path):
    client = boto3.client("s3")
    for name in ("a", "b"):
        client.upload_file(str(near / "train" / f"{name}.tar"), BUCKET, f"changing/train/{name}.tar")
    url = f"s3://{BUCKET}/changing"
    _ = opened(url, tmp_path).digest
    other = bytearray((near / "train" / "a.tar").read_bytes())
    other[700] ^= 1  # as long as before
    client.put_object(Bucket=BUCKET, Key="changing/train/a.tar", Body=bytes(other))
    with pytest.raises(IntegrityError, match=r"train: a\.tar changed since it was indexed; if that is meant, delete"):
        opened(url, tmp_path)
    client.delete_object(Bucket=BUCKET, Key="changing/train/a.tar")
    with pytest.raises(IntegrityError, match=r"a\.tar is gone"):
        opened(url, tmp_path)


def test_places_without_tars_are_refused(bucket, near, tmp_path):
    with pytest.raises(DataError, match=r"s3://shards/none: expected a folder train/ with the images"):
        opened(f"s3://{BUCKET}/none", tmp_path)
    with pytest.raises(InputError, match="expected a path after folder:, got a URL"):
        open_dataset(f"folder:s3://{BUCKET}/some", "train")
    with pytest.raises(InputError, match="expected a path after hf:, got a URL"):
        open_dataset("hf:https://127.0.0.1/x", "train")
    with pytest.raises(InputError, match=r"expected a folder, or a URL s3://"):
        opened("ftp://127.0.0.1/x", tmp_path)
    folder = tmp_path / "web"
    (folder / "train").mkdir(parents=True)
    with serving(folder, Ranges) as url:
        with pytest.raises(DataError, match=r"a list shards\.txt in it\), found none"):
            opened(url, tmp_path)
        for name in ("../../secret.tar", "a.tgz", "a?b.tar", "http:x/a.tar"):
            (folder / "train" / "shards.txt").write_text(name)
            with pytest.raises(DataError, match=r"shards\.txt: expected the names of \.tar files beside it"):
                opened(url, tmp_path)
        (folder / "train" / "shards.txt").write_text("a.tar\n")
        with pytest.raises(DataError, match=r"train/a\.tar: expected a file, found none; mend"):
            opened(url, tmp_path)
        (folder / "train" / "a.tar").write_bytes((near / "train" / "a.tar").read_bytes()[:4000])
        with pytest.raises(DataError, match=r"a\.tar: expected a whole tar, got one without an end"):
            opened(url, tmp_path)


def test_a_server_that_knows_no_parts_serves_too(near, tmp_path):
    with serving(near.parent, Whole) as url:
        here, there = opened(near, tmp_path), opened(f"{url}/tars", tmp_path, "test")
        assert len(there) == 2
        assert (there.read(np.arange(2))[0] == here.read(np.array([3, 4]))[0]).all()


def test_a_store_is_made_from_a_bucket(bucket, near, tmp_path):
    reference = save_untrained("D", opened(near, tmp_path), tmp_path / "d.safetensors")
    spec = PrecomputeSpec(models={"d": reference}, attacks=("step-ll",), batch_size=4)
    for name, place in (("near", near), ("far", bucket)):
        where = DataSpec(data=f"wds:{place}", data_dir=str(tmp_path), preprocess=SMALL)
        precompute_store(spec, where, tmp_path / name, workers=0)
    one, two = open_store(tmp_path / "near"), open_store(tmp_path / "far")
    rows = np.arange(12)
    planes = [store.gather(store.entries[0], np.zeros_like(rows), rows) for store in (one, two)]
    assert (planes[0].direction == planes[1].direction).all()
    assert one.header.data_digest == two.header.data_digest
