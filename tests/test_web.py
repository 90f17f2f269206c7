"""Objects behind a web server: what is read, where redirects may lead, and what is not sent there."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest

from ensadv_data.errors import InputError, IntegrityError, OutputError
from ensadv_data.objects import objects_at, web

BODY = bytes(range(256)) * 8
Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer, host: str = "127.0.0.1") -> Iterator[tuple[str, list[tuple[str, str, dict[str, str]]]]]:
    """URL of a server that answers in this way, and what it was asked for: method, path, headers."""
    asked: list[tuple[str, str, dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append((self.command, self.path, dict(self.headers)))
            answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer((host, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{host}:{server.server_port}", asked
        server.shutdown()


def reply(to: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    to.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        to.send_header(name.replace("_", "-"), value)
    to.end_headers()
    if to.command != "HEAD":
        to.wfile.write(body)


def whole(to: BaseHTTPRequestHandler) -> None:
    if to.path.endswith("absent"):
        return reply(to, 404)
    if "Range" not in to.headers:
        return reply(to, 200, BODY)
    first, last = map(int, to.headers["Range"].removeprefix("bytes=").split("-"))
    if first >= len(BODY):
        return reply(to, 416)
    return reply(to, 206, BODY[first : last + 1])


def without_parts(to: BaseHTTPRequestHandler) -> None:
    reply(to, 200, BODY)


def chunked(to: BaseHTTPRequestHandler) -> None:
    to.send_response(200)
    to.send_header("Transfer-Encoding", "chunked")
    to.end_headers()
    for start in range(0, len(BODY), 1000):
        some = BODY[start : start + 1000]
        to.wfile.write(f"{len(some):x}\r\n".encode() + some + b"\r\n")
    to.wfile.write(b"0\r\n\r\n")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("ensadv_data.objects.web.time.sleep", lambda _: None)


@pytest.mark.parametrize("answer", [whole, without_parts, chunked])
def test_objects_and_parts_of_them_are_read(answer):
    with serving(answer) as (url, _):
        place = objects_at(f"{url}/a/store")
        assert (str(place), place.name) == (f"{url}/a/store", "store")
        assert place.read("x") == BODY
        assert bytes(place.array("x")) == BODY
        for begin, size in ((0, 7), (1000, 500), (len(BODY) - 5, 50), (0, len(BODY)), (3, 0), (len(BODY) + 9, 4)):
            np.testing.assert_array_equal(place.part("x", begin, size), list(BODY[begin : begin + size]))
        assert place.read_at_most("x", len(BODY)) == BODY
        with pytest.raises(IntegrityError, match="at most 2,047 bytes"):
            place.read_at_most("x", len(BODY) - 1)


def test_names_sizes_and_what_is_absent():
    with serving(whole) as (url, asked):
        place = objects_at(url)
        assert place.sizes(["B*-adv/r fgsm/c/0", "absent"]) == {"B*-adv/r fgsm/c/0": len(BODY)}
        assert {path for _, path, _ in asked} == {"/B%2A-adv/r%20fgsm/c/0", "/absent"}
        with pytest.raises(FileNotFoundError):
            place.read("absent")
        assert place.read_all(["x", "absent"]) == {"x": BODY}
        assert (place.census(), place.listed("x/"), place.has("x"), place.has("absent")) == (None, {}, True, False)
        for refused in (place.is_free, lambda: place.write("x", b""), lambda: place.claim("x", b""), place.delete):
            with pytest.raises((OutputError, TypeError)):
                refused()


def test_what_may_pass_is_asked_for_again():
    turns: Counter[str] = Counter()

    def failing(to: BaseHTTPRequestHandler) -> None:
        turns[to.path] += 1
        if turns[to.path] == 1:
            return reply(to, 503)
        if turns[to.path] == 2:  # cut short
            to.close_connection = True
            return reply(to, 200, BODY[:100], Content_Length=str(len(BODY)))
        if turns[to.path] == 3:
            to.close_connection = True
            return to.connection.shutdown(socket.SHUT_RDWR)
        return reply(to, 200, BODY)

    with serving(failing) as (url, asked):
        assert objects_at(url).read("x") == BODY
        assert len(asked) == 4
    for status, said in (
        (503, "the server answers 503; the same command goes on"),
        (403, "access was denied"),
        (418, "418"),
    ):
        with (
            serving(lambda to, status=status: reply(to, status)) as (url, asked),
            pytest.raises(InputError, match=said),
        ):
            objects_at(url).read("x")
        assert len(asked) == (8 if status == 503 else 1)


def redirecting(to_where: Callable[[str], str]) -> Answer:
    def answer(to: BaseHTTPRequestHandler) -> None:
        if to.path.startswith("/there"):
            return whole(to)
        return reply(to, 302, b"moved", Location=to_where(to.path))

    return answer


def test_a_redirect_on_the_same_server_is_followed():
    with serving(redirecting(lambda path: f"/there{path}")) as (url, asked):
        place = objects_at(url)
        assert place.read("x") == BODY
        assert place.sizes(["x"]) == {"x": len(BODY)}
        assert bytes(place.part("x", 5, 5)) == BODY[5:10]
        assert [path for _, path, _ in asked] == ["/x", "/there/x"] * 3


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
def test_no_redirect_leads_to_a_server_that_only_this_machine_reaches(host):
    with serving(whole) as (inside, reached):
        port = inside.rpartition(":")[2]
        answer = redirecting(lambda path: f"http://{host}:{port}{path}")
        with (
            serving(answer) as (url, _),
            pytest.raises(
                IntegrityError, match=r"expected a redirect to a public address, found one to .*127\.0\.0\.1"
            ),
        ):
            objects_at(url).read("latest/meta-data")
        assert not reached  # connected, perhaps, and nothing asked


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("169.254.169.254", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),  # noqa: S104 - an address to refuse
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("::ffff:10.0.0.1", False),
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
    ],
)
def test_public_addresses(address, is_public):
    if is_public:
        return web.require_public(address, 443)
    with pytest.raises(IntegrityError, match="public address"):
        web.require_public(address, 443)


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://host/x", "http://me:hush@host/x", "gopher://x/"])
def test_redirects_of_other_kinds_are_refused(to):
    with serving(lambda it: reply(it, 301, Location=to)) as (url, _):
        with pytest.raises(IntegrityError, match="expected a redirect to https://") as caught:
            objects_at(url).read("x")
        assert "hush" not in str(caught.value)


def test_circles_end():
    with serving(redirecting(lambda path: path)) as (url, asked):
        with pytest.raises(IntegrityError, match="at most 5 redirects"):
            objects_at(url).read("x")
        assert len(asked) == 6


def test_through_a_proxy_the_name_is_looked_at(monkeypatch):
    """Its address is that of the connection, and so tells nothing."""
    with serving(lambda it: reply(it, 302, Location="http://localhost:1/x")) as (url, asked):
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(IntegrityError, match="public address, found one to localhost"):
            objects_at("http://store.example/s").read("x")
        assert [path for _, path, _ in asked] == ["http://store.example/s/x"]


@pytest.fixture
def elsewhere_is_public(monkeypatch) -> None:
    monkeypatch.setattr(web, "_require_public", lambda address, host: ip_address(address))


def test_the_hub_alone_is_told_who_asks(monkeypatch, elsewhere_is_public):
    with ExitStack() as stack:
        store, given = stack.enter_context(serving(whole))
        hub, asked = stack.enter_context(serving(redirecting(lambda path: f"{store}/blob?signed=1")))
        monkeypatch.setenv("HF_ENDPOINT", hub)
        monkeypatch.setenv("HF_TOKEN", "hf_hush")
        place = objects_at("hf://datasets/team-a/mnist.c@v1.0/stores/c")
        assert (str(place), place.name) == ("hf://datasets/team-a/mnist.c@v1.0/stores/c", "c")
        assert place.read("zarr.json") == BODY
        assert asked[0][1] == "/datasets/team-a/mnist.c/resolve/v1.0/stores/c/zarr.json"
        assert asked[0][2]["Authorization"] == "Bearer hf_hush"
        assert given[0][1] == "/blob?signed=1"
        assert "hush" not in str(given)
        objects_at("hf://datasets/team-a/mnist").read("x")
        assert asked[-1][1] == "/datasets/team-a/mnist/resolve/main/x"


@pytest.mark.parametrize(
    "url", ["hf://models/a/b", "hf://datasets/a", "hf://datasets/a/b/../c?x", "hf://datasets/a/b@"]
)
def test_other_addresses_of_the_hub_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="expected"):
        objects_at(url)


def test_a_server_that_says_nothing_is_given_up(monkeypatch: Any) -> None:
    monkeypatch.setattr(web, "_TIMEOUT", web.urllib3.Timeout(connect=0.05, read=0.05))
    monkeypatch.setattr(web, "_ATTEMPTS", 2)
    said = r"cannot read http://127.*timed out.*goes on when it can be reached"
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(InputError, match=said):
        objects_at(f"http://127.0.0.1:{deaf.getsockname()[1]}").read("x")
