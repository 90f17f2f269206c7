"""What a pull takes beside a plain copy of the same objects: obstore in as many threads, SHA-256, a file for each.

    python benchmarks/pull.py [--bytes 1000000000] [--rounds 7] [--json FILE]

A store of made-up directions behind a web server of this machine, a process of its own. The plain copy knows the
objects' names beforehand, and neither compares digests nor has the files on the disk in the end.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import obstore
from ending import ended
from figures import arguments_of, milliseconds, report, rounded
from obstore.store import from_url

from ensadv_data.entries import entries_of, plan_of
from ensadv_data.manifest import Manifest, SourceRecord
from ensadv_data.objects import AT_ONCE
from ensadv_data.remote import pull
from ensadv_data.spec import PrecomputeSpec
from ensadv_data.store import Header, Planes, StoreWriter
from ensadv_data.timing import measure, ratio

SHAPE = (3, 224, 224)


def made(folder: Path, size: int) -> Manifest:
    """A store of about so many bytes; nobody has computed it."""
    width, digest = int(np.prod(SHAPE)) // 8, "0" * 64
    source = SourceRecord(name="m", architecture="made-up", digest=digest)
    spec = PrecomputeSpec(models={"m": ""}, attacks=("r-fgsm:alpha=0.1",), draws=1, batch_size=64)
    plan, (entry,) = plan_of(spec, [source]), entries_of(spec, source).values()
    header = Header("made-up", "train", digest, SHAPE, 10, size // width, 1, (entry.key,), plan)
    writer, chance = StoreWriter(folder, header, (entry,)), np.random.default_rng(1)
    writer.create()
    for block in range(header.blocks):
        count = min(header.block, header.n - block * header.block)
        rows = chance.integers(0, 256, (1, count, width), np.uint8)
        planes = {entry.key: Planes(direction=rows, label=np.zeros(count, np.int32))}
        writer.write_block(block, planes, np.zeros(count, np.uint64))
    return ended(writer)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a folder behind a web server."""
    words = [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as server:
        try:
            port = server.stdout.readline().split("port ")[1].split()[0]  # type: ignore[union-attr]
            url = f"http://127.0.0.1:{port}"
            for _ in range(100):
                try:
                    urllib.request.urlopen(url).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield url
        finally:
            server.terminate()


def plain(url: str, keys: list[str], out: Path) -> None:
    """What one would write without us."""
    store = from_url(url, client_options={"allow_http": True})

    def copy(key: str) -> str:
        data, file = obstore.get(store, key).bytes(), out / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return hashlib.sha256(data).hexdigest()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(copy, keys))


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(__doc__, bytes={"type": int, "default": 10**9})
    os.environ["ENSADV_QUIET"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = made(folder / "store", arguments.bytes)
        keys, number = list(manifest.objects), iter(range(10**6))

        def fresh() -> Path:
            return folder / "copies" / str(next(number))

        def cleaned(_: int) -> None:  # what one leaves to the system to write is not to slow down the next
            shutil.rmtree(folder / "copies", ignore_errors=True)
            os.sync()

        with served(folder / "store") as url:
            alternatives = {"pull": lambda: pull(url, fresh()), "plain copy": lambda: plain(url, keys, fresh())}
            timings = measure(alternatives, rounds=arguments.rounds, advance=cleaned)
    size = sum(record.bytes for record in manifest.objects.values())
    report(
        arguments,
        {
            "bytes": size,
            "objects": len(keys),
            "at_once": AT_ONCE,
            "milliseconds": milliseconds(timings),
            "megabytes_a_second": {name: round(size / timing.median / 1e6) for name, timing in timings.items()},
            "plain_over_pull": rounded(ratio(timings, "plain copy", "pull")),
        },
    )


if __name__ == "__main__":
    main()
