"""An S3 server of this machine for tests, and a proxy before it that fails at random, as networks do."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection

import boto3
import pytest
from moto.server import ThreadedMotoServer

__all__ = ["BUCKET", "FaultyProxy", "s3_server"]

BUCKET = "shards"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "s3cr3t-of-somebody"}


@contextmanager
def s3_server() -> Iterator[int]:
    """A server with an empty bucket; the environment names it. Yields its port."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    about = {**CREDENTIALS, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in about.items():
                patch.setenv(name, value)
            forget = HTTPConnection(host, port)
            forget.request("POST", "/moto-api/reset")  # what this process's earlier servers were given is kept else
            assert forget.getresponse().status == 200
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield port
    finally:
        server.stop()


class FaultyProxy:
    """Hands requests on to a port of this machine; a share of them it answers with an error, or cuts short.

    Attributes
    ----------
    faults
        How many requests it has spoilt, by kind.
    requests
        How many it was asked for, by what they are: put, get, head, list, delete.
    """

    KINDS = ("500", "503", "refused", "half an answer", "slow")

    def __init__(self, port: int, *, share: float, seed: int) -> None:
        self.behind, self.share = port, share
        self.faults, self.requests = dict.fromkeys(self.KINDS, 0), Counter[str]()
        self._chance, self._lock = random.Random(seed), threading.Lock()  # noqa: S311 - which requests fail
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(client,), daemon=True).start()

    def _handle(self, client: socket.socket) -> None:
        """One request a connection: both sides are told to close it."""
        with client, socket.create_connection(("127.0.0.1", self.behind)) as server:
            try:
                request = _message(client)
                if not request:
                    return
                with self._lock:
                    self.requests[_what(request)] += 1
                kind = self._drawn()
                if kind in ("500", "503"):
                    client.sendall(f"HTTP/1.1 {kind} Oops\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
                    return
                if kind == "refused":
                    return
                if kind == "slow":
                    time.sleep(0.3)
                server.sendall(_closing(request))
                answer = _message(server, answers=request.split(b" ", 1)[0])
                client.sendall(_closing(answer)[: len(answer) // 2 if kind == "half an answer" else None])
            except OSError:
                return

    def _drawn(self) -> str | None:
        with self._lock:
            if self._chance.random() >= self.share:
                return None
            kind = self._chance.choice(self.KINDS)
            self.faults[kind] += 1
            return kind


def _what(request: bytes) -> str:
    """What a request of S3 is for."""
    method, path, _ = request.split(b" ", 2)
    if method == b"GET":
        return "list" if b"list-type=" in path else "get"
    return {b"PUT": "put", b"HEAD": "head", b"POST": "delete"}[method]


def _message(peer: socket.socket, *, answers: bytes = b"") -> bytes:
    """A whole request or answer, by its content-length; an answer without one ends with the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := peer.recv(65536)):
            return data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    if answers == b"HEAD" or (not answers and b"content-length" not in fields):
        return data
    length = int(fields[b"content-length"]) if b"content-length" in fields else None
    while length is None or len(body) < length:
        if not (more := peer.recv(1 << 20)):
            break
        body += more
    return head + b"\r\n\r\n" + body


def _closing(message: bytes) -> bytes:
    head, gap, body = message.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"keep-alive:"))]
    return b"\r\n".join([*lines, b"connection: close"]) + gap + body
