"""Files that are whole or absent, whatever the operating system refuses."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ensadv_data.errors import OutputError
from ensadv_data.files import check_outputs, clear_leftovers, naming_trouble, sha256_of_file, write_atomic

REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "your disk quota is used up; free some space",
    errno.EFBIG: "the file would pass the size limit in force; raise it",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "this user may not write there; choose another folder",
    errno.EPERM: "this user may not write there; choose another folder",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.EEXIST: "a file of that name is in the way; choose another folder",
    errno.EISDIR: "a folder of that name is in the way; choose another name",
    errno.ENAMETOOLONG: "the name is too long for the file system; choose a shorter one",
    errno.ENOENT: "its folder takes no files, or was deleted meanwhile; choose another folder",
}


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write anywhere; for the test it is somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", [b"", b"whole", memoryview(b"whole")])
def test_a_file_is_written_whole_with_its_folders_and_nothing_else(tmp_path, data):
    path = tmp_path / "a" / "b" / "file.bin"
    for _ in range(2):  # the second time over the first
        write_atomic(path, data)
        assert path.read_bytes() == bytes(data)
    assert names_in(path.parent) == ["file.bin"]


@pytest.mark.parametrize("name", ["m.checkpoint", "n" * 255])
def test_what_a_killed_writer_left_of_a_name_is_cleared_and_nothing_else(tmp_path, name):
    """Killed for true, in the moment before the rename."""
    path = tmp_path / name
    write_atomic(path, b"whole")
    others = [".partial-abcdefgh-big-m.checkpoint", ".partial-abcdefgh-m.checkpoints", "partial-abcdefgh-m.checkpoint"]
    for other in others:
        (tmp_path / other).touch()
    lines = "import os, pathlib, sys; from ensadv_data.files import write_atomic; "
    lines += "os.replace = lambda *names: os.kill(os.getpid(), 9); write_atomic(pathlib.Path(sys.argv[1]), b'new')"
    assert subprocess.run([sys.executable, "-c", lines, str(path)], check=False).returncode == -9
    assert len(names_in(tmp_path)) == len(others) + 2
    clear_leftovers(tmp_path / "absent", path)
    assert names_in(tmp_path) == sorted([name, *others])
    assert path.read_bytes() == b"whole"


def test_clearing_in_a_folder_that_is_not_there_is_nothing(tmp_path):
    clear_leftovers(tmp_path / "absent" / "m.checkpoint")
    assert names_in(tmp_path) == []


def test_long_names_can_be_written(tmp_path):
    write_atomic(tmp_path / ("n" * 255), b"x")
    assert names_in(tmp_path) == ["n" * 255]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "file", b"x")
    finally:
        assert os.umask(before) == mask
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("code", REMEDIES)
def test_every_refusal_names_the_path_and_the_remedy(code):
    with pytest.raises(OutputError) as caught, naming_trouble(Path("folder/file")):
        raise OSError(code, os.strerror(code))
    message = str(caught.value)
    assert message.startswith("cannot write folder/file: ")
    assert f"{os.strerror(code)}; {REMEDIES[code]}" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["out", "out/s", "out/s/.partial-x", "out/beside", "out/s/deep/in"])
def test_a_refusal_of_what_belongs_to_the_path_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for path in (Path(name), tmp_path / name):
        with pytest.raises(OutputError, match=r"^cannot write out/s: "), naming_trouble(Path("out/s")):
            raise FileNotFoundError(errno.ENOENT, "gone", str(path))


def test_a_file_that_is_read_meanwhile_is_not_taken_for_the_one_that_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image\.png"), naming_trouble(tmp_path / "out" / "shard.tar"):
        (tmp_path / "images" / "image.png").read_bytes()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), OSError("no number"), ValueError("other")])
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as caught, naming_trouble(Path("file")):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("there_before", [True, False])
def test_a_failure_before_the_name_is_given_leaves_what_was_there(tmp_path, monkeypatch, call, there_before):
    if there_before:
        (tmp_path / "file").write_bytes(b"old")

    def refuse(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OutputError, match="the disk is full; free some space and run the same command again"):
        write_atomic(tmp_path / "file", b"new")
    assert names_in(tmp_path) == (["file"] if there_before else [])
    assert not there_before or (tmp_path / "file").read_bytes() == b"old"


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", b"new")
    assert names_in(tmp_path) == []


def test_a_temporary_file_that_somebody_else_removed_is_no_second_error(tmp_path, monkeypatch):
    def sweep(_):
        for path in tmp_path.iterdir():
            path.unlink()
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", sweep)
    with pytest.raises(OutputError, match="the disk is full"):
        write_atomic(tmp_path / "file", b"new")


def test_a_real_size_limit_is_named_and_leaves_nothing(tmp_path):
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from ensadv_data.errors import OutputError\n"
        "from ensadv_data.files import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try: write_atomic(Path(sys.argv[1]), bytes(100_000))\n"
        "except OutputError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", program, str(tmp_path / "file")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")},
    )
    assert "the file would pass the size limit in force; raise it" in done.stdout
    assert names_in(tmp_path) == []


def test_a_folder_without_permission_is_named(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        if folder.stat().st_uid == os.geteuid() and folder.name.startswith(("pytest-", "test_")):
            folder.chmod(folder.stat().st_mode | 0o055)
    with as_nobody(), pytest.raises(OutputError, match="this user may not write there; choose another folder"):
        write_atomic(closed / "file", b"x")
    with as_nobody(), pytest.raises(OutputError, match="this user may not write there"):
        write_atomic(closed / "deeper" / "file", b"x")
    assert names_in(closed) == []


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "y" / "x"):
        with pytest.raises(OutputError, match=f"cannot write {path}: .*; a (part of the path is a )?file"):
            write_atomic(path, b"x")


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "name" / "inside").mkdir(parents=True)
    with pytest.raises(OutputError, match="a folder of that name is in the way; choose another name"):
        write_atomic(tmp_path / "name", b"x")
    assert names_in(tmp_path) == ["name"]


def test_the_digest_of_a_file(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_outputs_that_can_be_written_leave_no_trace(tmp_path):
    (tmp_path / "old.json").write_text("{}")
    check_outputs(tmp_path / "old.json", None, tmp_path / "new" / "a.csv", reads=[tmp_path / "in", "s3://bucket/x"])
    assert names_in(tmp_path) == ["new", "old.json"]
    assert (tmp_path / "old.json").read_text() == "{}"
    assert names_in(tmp_path / "new") == []


def test_an_output_that_is_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_text("weights")
    (tmp_path / "store" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in (tmp_path / "in", Path("in"), Path("store/../in"), Path("link")):
        with pytest.raises(OutputError, match=r"expected another file than those that are read, got one of .*/in,"):
            check_outputs(out, reads=["in"])
    with pytest.raises(OutputError, match=r"got one of .*store, which it would replace; choose another name"):
        check_outputs(Path("store/deep/page.html"), reads=["store"])
    check_outputs(Path("store.html"), reads=["store"])


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("here")
    for path, words in (
        (tmp_path, "a folder of that name is in the way"),
        (tmp_path / "file" / "out.json", "a file of that name is in the way"),
        (Path("/dev/null"), "expected the name of a file, found a device"),
    ):
        with pytest.raises(OutputError, match=words):
            check_outputs(path)
    same = (tmp_path / "a.json", tmp_path / "." / "b" / ".." / "a.json")
    with pytest.raises(OutputError, match=r"a file of its own for each output, got .*a\.json twice"):
        check_outputs(*same)
    with as_nobody(), pytest.raises(OutputError, match=r"cannot write /proc/out\.json: expected a place"):
        check_outputs(Path("/proc/out.json"))
