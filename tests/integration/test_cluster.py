"""Precompute on a dask cluster of real processes: started here, started by hand, encrypted, and going away."""

from __future__ import annotations

import datetime
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dask
import distributed
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ensadv_data.cluster import Crew, Tls, connected, streamed
from ensadv_data.errors import EnsadvError, InputError, Interrupted, QuantityError
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import PrecomputeSpec
from everywhere import DATA, by_hand, same, spec_in
from laws import wait_until
from s3 import BUCKET, s3_server

CLUSTER_PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> PrecomputeSpec:
    return spec_in(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def digest(tmp_path_factory, spec) -> str:
    return precompute_store(spec, DATA, tmp_path_factory.mktemp("here") / "s", workers=0).digest


@pytest.fixture(scope="module")
def tls(tmp_path_factory) -> Tls:
    """A certificate that signs itself, for everybody who has its key."""
    folder = tmp_path_factory.mktemp("tls")
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "team")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    for file in ("ca.pem", "cert.pem"):
        (folder / file).write_bytes(certificate)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(secret)
    return Tls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")


def test_a_cluster_started_by_hand_makes_the_same_store(tmp_path, spec, digest):
    """On a disk, and in a bucket."""
    with s3_server(), by_hand(tmp_path, workers=2) as (address, _):
        for out in (tmp_path / "s", f"s3://{BUCKET}/s"):
            assert precompute_store(spec, DATA, out, scheduler=address).digest == digest
        assert same(tmp_path / "s", f"s3://{BUCKET}/s")


def test_a_scheduler_that_is_killed_costs_only_the_blocks_in_flight(tmp_path, spec, digest):
    out = tmp_path / "s"

    def some_done() -> int:
        return len(list((out / "progress").glob("block-*.json")))

    with by_hand(tmp_path, workers=1) as (address, started):
        command = ["precompute", "--limit", str(DATA.limit), "--model", f"d={spec.models['d']}", "--draws", "2"]
        command += ["--attack", "r-fgsm", "--attack", "pgd:steps=40,step_size=0.01", "--out", str(out)]
        command += ["--scheduler", address, "--worker-timeout", "3"]
        client = subprocess.Popen([sys.executable, "-m", "ensadv_data", *command], stderr=subprocess.PIPE, text=True)
        wait_until(lambda: some_done() > 2, client)
        started[0].kill()
        _, errors = client.communicate(timeout=120)
        assert client.returncode == 130, errors
        assert "what is done is kept, and the same command resumes" in errors.splitlines()[-1]
    kept = some_done()
    made = precompute_store(spec, DATA, out, workers=0)
    assert (made.computed, made.digest) == (made.blocks - kept, digest)


def test_no_worker_is_said_with_the_command_that_starts_one(tmp_path, spec):
    with by_hand(tmp_path, workers=0) as (address, _):
        said = rf"at least one worker at {address}, found none for 2 s.*dask worker tcp"
        with pytest.raises(Interrupted, match=said):
            precompute_store(spec, DATA, tmp_path / "s", scheduler=address, patience=2)


_SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
if [[ "$1 $2" == "dask scheduler" ]]; then set -- "$@" --host 127.0.0.1; fi
exec "$@"
"""


@pytest.mark.skipif(not CLUSTER_PAGE.exists(), reason="installed without the repository around it")
def test_the_job_of_the_cluster_page_goes_on_when_it_is_requeued(tmp_path, spec):
    """A requeued job has its old number, and may find the address of a scheduler that was killed."""
    (script,) = re.findall(r"```bash\n(.*?)```", CLUSTER_PAGE.read_text(encoding="utf-8"), re.DOTALL)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text(_SRUN)
    (programs / "srun").chmod(0o755)
    (reference,) = list(spec.models.values())[:1]
    (tmp_path / "c.safetensors").write_bytes(Path(reference).read_bytes())
    (tmp_path / "scheduler-7.json").write_text('{"address": "tcp://127.0.0.1:1"}')
    (tmp_path / "job.sh").write_text(script.replace("--data mnist", "--data mnist-mini --limit 64"))
    path = os.pathsep.join((str(programs), str(Path(sys.executable).parent), os.environ["PATH"]))
    about = {"PATH": path, "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(
        ["bash", "job.sh"], cwd=tmp_path, env=os.environ | about, start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert job.wait(300) == 0
    finally:
        os.killpg(job.pid, signal.SIGKILL)  # as SLURM does with what is left of a job
        job.communicate()
    assert (tmp_path / "shards" / "manifest.json").exists()


def test_a_worker_that_joins_late_is_put_to_work(tmp_path, spec, digest):
    with by_hand(tmp_path, workers=0) as (address, _), ExitStack() as stack:
        late = [sys.executable, "-c", f"import time; time.sleep(2); from distributed.cli import dask_worker; "
                f"dask_worker.main(['{address}', '--nthreads', '1', '--no-dashboard'])"]  # fmt: skip
        worker = subprocess.Popen(late, cwd=tmp_path, stderr=subprocess.DEVNULL)
        stack.callback(worker.wait)
        stack.callback(worker.kill)
        assert precompute_store(spec, DATA, tmp_path / "s", scheduler=address).digest == digest


def failing(path: str) -> str:
    """Works at the third time."""
    file = Path(path)
    times = len(file.read_bytes()) if file.exists() else 0
    file.write_bytes(b"x" * (times + 1))
    if times < 2:
        raise ConnectionError("gone for a moment")
    return "made"


def hopeless(path: str) -> str:
    raise ConnectionError(f"gone for {path}")


def suicidal(path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def often_killed(path: str) -> str:
    """Takes four workers with it, then works."""
    file = Path(path)
    times = len(file.read_bytes()) if file.exists() else 0
    file.write_bytes(b"x" * (times + 1))
    if times < 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return "made"


def place_of(number: int) -> tuple[str, int]:
    time.sleep(0.3)
    return os.environ.get("CUDA_VISIBLE_DEVICES", ""), os.getpid()


@contextmanager
def importable() -> Iterator[None]:
    """Workers find the functions above where the tests are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
        yield


@contextmanager
def impatient(failures: int) -> Iterator[None]:
    """Schedulers give a task up after so many workers and one more, not after four: starting them takes seconds."""
    with importable(), dask.config.set({"distributed.scheduler.allowed-failures": failures}):
        yield


@pytest.fixture(scope="module")
def crew() -> Iterator[distributed.Client]:
    with impatient(0), connected(Crew(1)) as client:
        yield client


def test_what_may_pass_is_tried_again(tmp_path, crew):
    assert list(streamed(crew, failing, [str(tmp_path / "a"), str(tmp_path / "b")])) == ["made", "made"]


def test_a_task_on_which_many_workers_were_killed_by_chance_is_done_in_the_end(tmp_path):
    with impatient(1), connected(Crew(2)) as client:
        assert list(streamed(client, often_killed, [str(tmp_path / "a")])) == ["made"]


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (hopeless, r"it failed 3 times, at last with ConnectionError: gone for it; what is done is kept"),
        (suicidal, r"workers died while computing it \(out of memory\?\)"),
    ],
)
def test_what_does_not_pass_is_said_in_the_end(crew, work: Callable[[str], object], said):
    with pytest.raises(EnsadvError, match=said):
        list(streamed(crew, work, ["it"]))


def test_each_gpu_has_a_worker_of_its_own():
    crew = Crew(gpus=2)
    with importable(), connected(crew) as client:
        places = set(streamed(client, place_of, range(8), resources=crew.resources))
    assert sorted(number for number, _ in places) == ["0", "1"]


def test_the_dashboard_is_told_where_bokeh_is(crew, monkeypatch):
    said: list[str] = []
    address = crew.scheduler.address
    monkeypatch.setattr(distributed.Client, "dashboard_link", "http://127.0.0.1:8787/status")
    for bokeh, lines in ((None, []), (object(), ["dashboard: http://127.0.0.1:8787/status"])):
        monkeypatch.setattr("ensadv_data.cluster.find_spec", {"bokeh": bokeh}.get)
        with connected(Crew(scheduler=address), say=said.append):
            assert said == lines


@pytest.mark.parametrize("patience", [-1.0, float("nan")])
def test_a_patience_that_never_ends_or_never_begins_is_refused(patience):
    """A NaN is never exceeded."""
    with pytest.raises(QuantityError, match=r"expected a worker timeout of 0 seconds or more, got (-1|nan)"):
        Crew(patience=patience)


def test_gpus_want_a_device(tmp_path, spec):
    with pytest.raises(InputError, match="gpus: expected device = cuda beside it, got cpu"):
        precompute_store(spec, DATA, tmp_path / "s", gpus=2)


def test_a_worker_without_what_a_task_needs_is_not_waited_for(crew):
    with pytest.raises(Interrupted, match=r"found none for 2 s; start some with: dask worker tcp.* --resources GPU=1"):
        list(streamed(crew, hopeless, ["it"], resources={"GPU": 1}, patience=2))


def test_certificates_keep_others_out(tmp_path, spec, digest, tls):
    said: list[str] = []
    with connected(Crew(1, listen="localhost", tls=tls), say=said.append) as client:
        address = client.scheduler.address
        assert address.startswith("tls://")
        assert said[0].startswith(f"workers may join: dask worker {address} --nthreads 1 --tls-ca-file ")
        with pytest.raises(InputError, match=r"tls://HOST:PORT with --tls, got .* without --tls"):
            precompute_store(spec, DATA, tmp_path / "s", scheduler=address)
        assert precompute_store(spec, DATA, tmp_path / "s", scheduler=address, tls=tls).digest == digest
    with pytest.raises(InputError, match=r"expected a certificate or key in PEM at .*absent"):
        precompute_store(spec, DATA, tmp_path / "t", tls=Tls(tmp_path / "absent", tls.cert, tls.key))
    (tmp_path / "garbage").write_text("no certificate")
    with pytest.raises(InputError, match=r"expected certificates in PEM at .*garbage"):
        precompute_store(spec, DATA, tmp_path / "t", tls=Tls(tmp_path / "garbage", tls.cert, tls.key))
