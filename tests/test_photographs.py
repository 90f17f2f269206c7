"""Images of one's own: class folders, their preprocessing, what is wrong with some, and what changes."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ensadv_data.cli import cli
from ensadv_data.data import Dataset, absolute_data, checking, digest_examples, digest_of, open_dataset
from ensadv_data.data.decoding import BadImage, decode_image, decoder_record
from ensadv_data.errors import AlignmentError, DataError, InputError, IntegrityError, QuantityError, UnknownNameError
from ensadv_data.manifest import read_manifest
from ensadv_data.spec import DataSpec, PreprocessSpec, parse_preprocess
from photographs import SAMPLES, cut_photographs

SMALL = PreprocessSpec(size=16)


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    return cut_photographs(tmp_path_factory.mktemp("cut"), classes=3, train=5, test=2)


@pytest.fixture
def photos(cut, tmp_path) -> Path:
    """Photographs that a test may change."""
    for path in cut.rglob("*.jpg"):
        copy = tmp_path / "photos" / path.relative_to(cut)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path / "photos"


def opened(root: Path, split: str = "train", *, home: Path | None = None, **more):
    return open_dataset(
        f"folder:{root}", split, data_dir=home or root.parent / "index", **{"preprocess": SMALL, **more}
    )


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(width: int = 60, height: int = 40) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))


# Decoding


def test_the_central_square_is_resampled_in_one_step():
    image = gradient()
    found = decode_image(encoded(image, "PNG"), PreprocessSpec(size=16, resize=20, interpolation="bilinear"))
    assert found.shape == (3, 16, 16)
    assert found.dtype == np.uint8
    # an independent reckoning: 20 of 40 pixels a step of 2; the square of 32 pixels begins at (14, 4)
    whole = np.asarray(image, np.float64)[4:36, 14:46]
    assert np.abs(whole.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1) - found).max() <= 3
    squashed = decode_image(encoded(image, "PNG"), PreprocessSpec(size=16, crop="squash", interpolation="box"))
    assert squashed[0, 0, 0] < found[0, 0, 0]
    assert squashed[0, 0, -1] > found[0, 0, -1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_all_formats_give_the_picture(kind):
    how = PreprocessSpec(size=20, crop="squash")
    exact = decode_image(encoded(gradient(), "PNG"), how).astype(int)
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode_image(encoded(gradient(), kind, **options), how).astype(int)
    assert np.abs(found - exact).mean() < 3


def deep_grey(width: int = 24, height: int = 24) -> tuple[bytes, np.ndarray]:
    values = (np.arange(width * height, dtype=np.uint16) * 113).reshape(height, width)
    return encoded(Image.fromarray(values), "PNG"), values


def test_other_modes_become_eight_bits_of_red_green_and_blue():
    how = PreprocessSpec(size=24, crop="squash", interpolation="box")
    data, values = deep_grey()
    assert (decode_image(data, how) == (values >> 8).astype(np.uint8)).all()  # of 16 bits the upper 8
    plain = gradient(24, 24)
    expected = np.asarray(plain).transpose(2, 0, 1)
    assert (decode_image(encoded(plain.convert("RGBA"), "PNG"), how) == expected).all()
    grey = decode_image(encoded(plain.convert("L"), "PNG"), how)
    assert (grey == np.asarray(plain.convert("L"))).all()
    cmyk = decode_image(encoded(plain.convert("CMYK"), "JPEG", quality=98), how)
    assert np.abs(cmyk.astype(int) - expected).mean() < 4
    palette = plain.quantize(64)
    palette.info["transparency"] = bytes(range(64))
    assert (
        decode_image(encoded(palette, "PNG"), how) == np.asarray(palette.convert("RGBA")).transpose(2, 0, 1)[:3]
    ).all()


def test_scaled_decoding_happens_only_where_it_is_declared():
    data = encoded(gradient(800, 600), "JPEG")
    found = {scaled: decode_image(data, PreprocessSpec(size=16, scaled=scaled)) for scaled in (False, True)}
    assert (found[False] != found[True]).any()
    assert np.abs(found[False].astype(int) - found[True]).max() <= 4


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header tells of side × side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def webp_bomb() -> bytes:
    whole = bytearray(encoded(gradient(), "WEBP", lossless=True))
    whole[21:25] = (16383 | 16383 << 14).to_bytes(4, "little")
    return bytes(whole)


def noise() -> Image.Image:
    return Image.fromarray(np.random.Generator(np.random.Philox(1)).integers(0, 256, (64, 64, 3), np.uint8))


BAD = {
    "empty": (b"", "got an empty file"),
    "text": (b"not an image", "expected JPEG, PNG or WebP, got bytes that begin with 6e 6f 74"),
    "truncated jpeg": (encoded(noise(), "JPEG")[:2000], "damaged"),
    "truncated png": (encoded(noise(), "PNG")[:4000], "damaged"),
    "truncated webp": (encoded(noise(), "WEBP")[:900], "damaged"),
    "only magic": (b"\xff\xd8\xff\xe0", "damaged"),
    "only riff": (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "damaged"),
    "bomb": (bomb(60_000), "expected at most 64000000 pixels, got 60000×60000"),
    "webp bomb": (webp_bomb(), "expected at most 64000000 pixels, got 16384×16384"),
    "wrong checksum": (bomb(20)[:-20] + bytes(20), "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_told_apart(name):
    data, message = BAD[name]
    with pytest.raises(BadImage, match=message):
        decode_image(data, SMALL)


def test_preprocessing_is_read_and_checked():
    how = parse_preprocess("size=64,resize=72,interpolation=bilinear,scaled=yes")
    assert how == PreprocessSpec(size=64, resize=72, interpolation="bilinear", scaled=True)
    assert PreprocessSpec().shorter == 342
    for text, error in (
        ("side=3", UnknownNameError),
        ("size=4", InputError),
        ("size=64,resize=32", InputError),
        ("crop=squash,resize=400", InputError),
        ("scaled=perhaps", InputError),
    ):
        with pytest.raises(error):
            parse_preprocess(text)


# Folders


def test_a_folder_is_a_data_set_in_the_order_of_its_paths(photos):
    (photos / "train" / "brick" / "sub.jpg").write_bytes(encoded(gradient(), "PNG"))
    (photos / "train" / "brick" / ".hidden").write_bytes(b"no image")
    data = opened(photos)
    paths = sorted(str(path.relative_to(photos / "train")) for path in photos.glob("train/*/[!.]*"))
    assert isinstance(data, Dataset)
    assert (len(data), data.shape, data.classes, data.name) == (16, (3, 16, 16), 3, "folder:photos")
    images, labels = data.read(np.arange(16))
    names = ["astronaut", "brick", "cat"]
    assert labels.tolist() == [names.index(path.split("/")[0]) for path in paths]
    expected = np.stack([decode_image((photos / "train" / path).read_bytes(), SMALL) for path in paths])
    assert (images == expected).all()
    assert (data.read(np.array([3, 3, 1]))[0] == expected[[3, 3, 1]]).all()
    assert (data.example_digests() == digest_examples(images)).all()
    assert data.digest == digest_of([digest_examples(images)])
    again = opened(photos, threads=1, limit=4)
    assert (len(again), again.digest) == (4, data.digest)
    assert again.example_digests().tolist() == data.example_digests()[:4].tolist()
    assert again.labels().dtype == np.int64
    assert again.labels().tolist() == labels[:4].tolist()
    with pytest.raises(QuantityError, match="from 0 to 3"):
        again.read(np.array([4]))
    with pytest.raises(QuantityError, match="limit from 1 to 16"):
        opened(photos, limit=17)


def test_paths_are_sorted_whole_and_classes_by_their_names(tmp_path):
    for name in ("a", "a-b", "ä"):
        (tmp_path / "p" / "train" / name).mkdir(parents=True)
        (tmp_path / "p" / "train" / name / "x.png").write_bytes(encoded(gradient(), "PNG"))
    data = opened(tmp_path / "p")
    assert data.listing.class_names == ("a", "a-b", "ä")
    assert [data.listing.name(row) for row in range(3)] == ["a-b/x.png", "a/x.png", "ä/x.png"]
    assert data.read(np.arange(3))[1].tolist() == [1, 0, 2]


def test_images_are_decoded_once_for_their_digest(photos, monkeypatch):
    first = opened(photos).digest
    monkeypatch.setattr("ensadv_data.data.photographs.decode_image", lambda *_: pytest.fail("decoded again"))
    assert opened(photos).digest == first


def test_another_preprocessing_is_another_data_set(photos):
    digests = {opened(photos, preprocess=parse_preprocess(how)).digest for how in ("size=16", "size=16,resize=16")}
    assert len(digests) == 2


def test_bad_images_fail_by_name_or_are_skipped(photos):
    for number, name in enumerate(("empty", "text", "truncated jpeg", "bomb")):
        (photos / "train" / "cat" / f"00001-{number}.jpg").write_bytes(BAD[name][0])
    failing = opened(photos)
    assert len(failing) == 19
    with pytest.raises(DataError, match=r"4 of 19 bad: cat/00001-0\.jpg: .*empty file.*; …; .*--on-bad-image skip"):
        _ = failing.digest
    with pytest.raises(DataError, match=r"cat/00001-1\.jpg: expected JPEG"):
        failing.read(np.array([12]))
    data = opened(photos, on_bad_image="skip")
    assert len(data) == 15
    good = sorted(path for path in photos.glob("train/*/*.jpg") if "-" not in path.name)
    expected = np.stack([decode_image(path.read_bytes(), SMALL) for path in good])
    assert (data.read(np.arange(15))[0] == expected).all()
    assert data.digest == digest_of([digest_examples(expected)])
    about = data.preparation()
    assert (about["on_bad_image"], about["skipped"]) == ("skip", 4)
    assert about["skipped_first"][0][0] == "cat/00001-0.jpg"
    assert about["decoder"] == decoder_record()
    assert about["preprocess"]["resize"] == 18


def test_a_folder_of_bad_images_is_none(tmp_path):
    for name in "ab":
        (tmp_path / "p" / "train" / name).mkdir(parents=True)
        (tmp_path / "p" / "train" / name / "x.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="one whole image at least"):
        opened(tmp_path / "p", on_bad_image="skip")


def test_changes_since_the_index_are_noticed_by_name(photos):
    data = opened(photos)
    digest, path = data.digest, photos / "train" / "cat" / "00002.jpg"
    row, before = 12, path.read_bytes()
    os.utime(path, ns=(1, 1))
    data.read(np.array([row]))  # the same pixels: only its time changed
    path.write_bytes(encoded(gradient(), "JPEG"))
    with pytest.raises(
        IntegrityError, match=r"cat/00002\.jpg changed since it was indexed: expected the digest [0-9a-f]{16}"
    ):
        opened(photos).read(np.array([row]))
    path.write_bytes(before)
    assert opened(photos).digest == digest
    (photos / "train" / "cat" / "00009.jpg").write_bytes(before)
    with pytest.raises(IntegrityError, match=r"cat/00009\.jpg is new since it was indexed"):
        opened(photos)
    (photos / "train" / "cat" / "00009.jpg").unlink()
    assert opened(photos).digest == digest  # as before
    path.unlink()
    with pytest.raises(
        IntegrityError, match=r"cat/00002\.jpg is gone since it was indexed; .*delete (\S+\.index)"
    ) as caught:
        opened(photos)
    Path(str(caught.value).partition("delete ")[2].split()[0]).unlink()
    assert len(opened(photos)) == 14


def test_after_a_change_only_what_changed_is_decoded_again(photos, monkeypatch):
    path = photos / "train" / "brick" / "00001.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:700])
    with pytest.raises(DataError, match=r"1 of 15 bad: brick/00001\.jpg: .* delete (\S+\.index)") as caught:
        _ = opened(photos).digest
    path.write_bytes(whole)
    (photos / "train" / "astronaut" / "00003.jpg").unlink()
    Path(str(caught.value).rpartition("delete ")[2]).unlink()
    decoded: list[bytes] = []
    monkeypatch.setattr(
        "ensadv_data.data.photographs.decode_image",
        lambda data, how: (decoded.append(data), decode_image(data, how))[1],
    )
    data = opened(photos)
    digest = data.digest
    assert decoded == [whole]
    assert digest == digest_of([digest_examples(data.read(np.arange(14))[0])])
    assert opened(photos, home=photos.parent / "other").digest == digest


def test_a_change_before_the_check_is_noticed(photos):
    data = opened(photos)
    (photos / "train" / "cat" / "00002.jpg").write_bytes(encoded(gradient(), "JPEG"))
    with pytest.raises(IntegrityError, match="digest unknown"):
        data.read(np.array([12]))
    with pytest.raises(IntegrityError, match="another size or time"):
        _ = data.digest


def test_class_folders_of_train_and_test_are_the_same(photos):
    (photos / "test" / "dog").mkdir()
    for split in ("train", "test"):
        with pytest.raises(DataError, match="same class folders in train and test, got 'dog' only in test"):
            opened(photos, split)
    (photos / "test" / "dog").rmdir()
    (photos / "test").rename(photos / "val")
    assert len(opened(photos, "test")) == 6
    (photos / "test").mkdir()
    with pytest.raises(DataError, match="got both"):
        opened(photos)


def test_what_is_no_folder_of_classes_is_refused(photos, tmp_path):
    with pytest.raises(DataError, match="expected a folder train/"):
        opened(tmp_path / "nowhere")
    (photos / "train" / "cat" / "more").mkdir()
    with pytest.raises(DataError, match="expected a file in a class folder"):
        opened(photos)
    (tmp_path / "one" / "train" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="two class folders or more"):
        opened(tmp_path / "one")
    (tmp_path / "one" / "train" / "b").mkdir()
    with pytest.raises(DataError, match="found none"):
        opened(tmp_path / "one")
    with pytest.raises(InputError, match="expected encoded images"):
        open_dataset("mnist-mini", "train", preprocess=SMALL)


def test_a_check_that_was_stopped_goes_on(photos, monkeypatch):
    monkeypatch.setattr(checking, "PIECE", 4)
    decoded: list[int] = []

    def stopping(data, how):
        decoded.append(1)
        if len(decoded) == 10:
            raise KeyboardInterrupt
        return decode_image(data, how)

    monkeypatch.setattr("ensadv_data.data.photographs.decode_image", stopping)
    with pytest.raises(KeyboardInterrupt):
        _ = opened(photos, threads=1).digest
    decoded[:] = [1] * 20
    digest = opened(photos, threads=1).digest
    assert len(decoded) - 20 == 15 - 8  # two pieces were kept
    assert digest == opened(photos, home=photos.parent / "other").digest
    assert not list((photos.parent / "index").glob("*.piece-*"))


def test_a_damaged_index_is_told(photos):
    _ = opened(photos).digest
    for path in (photos.parent / "index").iterdir():
        whole = path.read_bytes()
        for wrong in (whole[:-3], whole[:-1] + b"\x01", b"", b"{}\n" + bytes(64)):
            path.write_bytes(wrong)
            with pytest.raises(IntegrityError, match="damaged one"):
                _ = opened(photos).digest
        path.write_bytes(whole)


def test_memory_is_bounded_by_the_threads(photos, monkeypatch):
    """However many images are read: as many are decoded at once as there are threads."""
    now, most, lock = [0], [0], threading.Lock()

    def counted(data, how):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        found = decode_image(data, how)
        with lock:
            now[0] -= 1
        return found

    monkeypatch.setattr("ensadv_data.data.photographs.decode_image", counted)
    opened(photos, threads=3).read(np.arange(15).repeat(8))
    assert 2 <= most[0] <= 3


MEASURE = """
import sys
from pathlib import Path
from ensadv_data.data.folder import Folder
from ensadv_data.data.tables import read_table
import numpy as np

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) * 1024

path = Path(sys.argv[1])
read_table(path)
before = resident()
folder = Folder(path, path, read_table(path))
assert folder.name(123) == f"class/{123:012d}.jpg", folder.name(123)
print((resident() - before) / len(folder))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the memory")
def test_an_index_takes_little_memory(tmp_path):
    from ensadv_data.data.listing import Entries

    entries = Entries.none()
    entries.add((f"class/{number:012d}.jpg".encode(), number % 7, 1, 2) for number in range(300_000))
    entries.write(tmp_path / "large.index", {"folders": {"class": 1}})
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "large.index")], capture_output=True, text=True, check=True
    )
    assert float(out.stdout) <= 16


def test_cuts_are_the_same_every_time(cut, tmp_path):
    again = cut_photographs(tmp_path / "again", classes=3, train=5, test=2)
    files = sorted(path.relative_to(cut) for path in cut.rglob("*.jpg"))
    assert len(files) == 21
    assert all((cut / file).read_bytes() == (again / file).read_bytes() for file in files)
    assert len(SAMPLES) == 12


def test_workers_with_another_folder_find_the_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = absolute_data(DataSpec(data="folder:photos", data_dir="index"))
    assert (spec.data, spec.data_dir) == (f"folder:{tmp_path}/photos", f"{tmp_path}/index")
    assert absolute_data(DataSpec(data="mnist-mini")) == DataSpec(data="mnist-mini")


# The chain


def run(*words: object) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_chain_runs_on_a_folder(photos, tmp_path):
    (photos / "train" / "cat" / "broken.jpg").write_bytes(b"")
    data = ("--data", f"folder:{photos}", "--data-dir", tmp_path / "index", "--preprocess", "size=16")
    skip = (*data, "--on-bad-image", "skip")
    train = ("train", *skip, "--architecture", "D", "--batch-size", "8", "--epochs", "1")
    run(*train, "--out", tmp_path / "s.safetensors")
    reference = f"s={tmp_path / 's.safetensors'}"
    run("precompute", *skip, "--model", reference, "--attack", "fgsm", "--out", tmp_path / "store", "--workers", "0")
    manifest = read_manifest(tmp_path / "store")
    assert (manifest.data.name, manifest.data.n, manifest.data.shape) == ("folder:photos", 15, (3, 16, 16))
    assert manifest.plan["images"]["skipped_first"] == [["cat/broken.jpg", "expected an image, got an empty file"]]
    assert str(tmp_path) not in manifest.to_bytes().decode()
    run(*train, "--shards", tmp_path / "store", "--out", tmp_path / "t.safetensors", "--epsilon", "8/255")
    out = run(
        "evaluate", *skip, "--target", tmp_path / "t.safetensors", "--source", reference, "--suite", "single-step"
    )
    assert "worst" in out
    other = [*train, "--shards", tmp_path / "store", "--out", tmp_path / "u.safetensors", "--epsilon", "8/255"]
    made = "it was made for folder:photos with --preprocess 'size=16,resize=18,interpolation=bicubic'"
    for preprocess, error in (("size=16,resize=16", AlignmentError), ("size=24", InputError)):
        other = [preprocess if word == "size=16" else word for word in (*train, "--shards", tmp_path / "store")]
        other += ["--out", tmp_path / "u.safetensors", "--epsilon", "8/255"]
        caught = CliRunner().invoke(cli, [str(word) for word in other]).exception
        assert (type(caught), made in str(caught)) == (error, True), caught
