"""The HTTP server from outside, over raw sockets: what libevent answers under the original."""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from servable.serving import Server, ServerOptions
from servable.serving.access_log import AccessLog
from servable.serving.data_plane import DataPlane, ModelSpec
from servable.serving.http_connection import MAX_PIPELINED
from servable.serving.manager import Manager
from servable.serving.monitoring import DEFAULT_PATH, Call, Monitor
from servable.serving.rest_front import RestFront, RestOptions
from servable.serving.servable import Servable
from servable.signature import Signature, TensorSpec
from servable.store import Store

PREDICT = b"/v1/models/celsius:predict"
BODY = b'{"instances": [[100.0]]}'


@dataclass
class Answer:
    """One response as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """One connection to a server."""

    def __init__(self, port: int | None) -> None:
        assert port
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _more(self) -> bool:
        chunk = self.socket.recv(65536)
        self._rest += chunk
        return bool(chunk)

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next response; every line must be well-formed."""
        while b"\r\n\r\n" not in self._rest:
            assert self._more(), f"the connection ended within {self._rest!r}"
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) [ -~]+", first)
        assert match, first
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(": ")
            assert colon, line
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value
        return int(match[1]), headers

    def answer(self, *, body: bool = True) -> Answer:
        """The next response; ``body`` is False after HEAD."""
        status, headers = self.head()
        size = int(headers["content-length"]) if body else 0
        while len(self._rest) < size:
            assert self._more(), "the connection ended within a body"
        content, self._rest = self._rest[:size], self._rest[size:]
        return Answer(status, headers, content)

    def ended(self) -> bool:
        """Whether the server has closed the connection and sent nothing more."""
        try:
            return not self._more() and not self._rest
        except ConnectionResetError:
            return not self._rest


@contextmanager
def wire(server: Server | RestFront) -> Iterator[Wire]:
    connection = Wire(server.rest_port if isinstance(server, Server) else server.port)
    with connection.socket:
        yield connection


def request(target: bytes, method: bytes = b"GET", body: bytes | None = None, *headers: bytes) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (method, target), b"Host: x", *headers]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + (body or b"")


def is_page(answer: Answer, status: int) -> bool:
    """Whether a response is a bare HTML page, behind which the connection is closed."""
    return (
        answer.status == status
        and answer.headers["content-type"] == "text/html"
        and answer.headers["connection"] == "close"
        and answer.body.startswith(b"<html>")
    )


# What is no request


@pytest.mark.parametrize("char", [*b' \t[]|"\\<>{}^`', 0x80, 0xE9, 0xFF, 0x7F, 0x01], ids=hex)
@pytest.mark.parametrize("place", [b"/v1/models/c%bnn", b"/v1/models/cnn?x=%by", b"/%bx", b"/x%by"])
def test_a_target_with_a_bad_character(server: Server, char: int, place: bytes) -> None:
    with wire(server) as connection:
        connection.send(request(place % bytes([char])))
        assert is_page(connection.answer(), 400)
        assert connection.ended()


@pytest.mark.parametrize("target", [b"/%", b"/v1/models/%zz", b"/v1/models/a%4", b"/v1/models/a?b=%%41", b"/x#%G0"])
def test_a_target_with_a_bad_escape(server: Server, target: bytes) -> None:
    with wire(server) as connection:
        connection.send(request(target))
        assert is_page(connection.answer(), 400)
        assert connection.ended()


@pytest.mark.parametrize(
    "start",
    [
        b"GET /v1/models/cnn HTTP/2.0\r\n\r\n",
        b"GET /v1/models/cnn HTTP/0.9\r\n\r\n",
        b"GET /v1/models/cnn HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET /v1/models/cnn HTP/1.1\r\n\r\n",
        b"POST /v1/models/cnn:predict HTTP/1.1\r\nContent-Length: ten\r\n\r\n",
        b"POST /v1/models/cnn:predict HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/models/cnn:predict HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/models/cnn:predict HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}}",
        b"POST /v1/models/cnn:predict HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"GET  HTTP/1.1\r\n\r\n",
        b"GET\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_a_bad_request_line_or_header(server: Server, start: bytes) -> None:
    with wire(server) as connection:
        connection.send(start)
        assert is_page(connection.answer(), 400)
        assert connection.ended()


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT", b"get", b"FOO", b"PROPFIND", b"Get", b"{}"])
def test_an_unknown_method(server: Server, method: bytes) -> None:
    target = b"x:443" if method == b"CONNECT" else b"/v1/models/cnn"
    with wire(server) as connection:
        connection.send(request(target, method))
        assert is_page(connection.answer(), 501)
        assert connection.ended()


@pytest.mark.parametrize("chunk", [b"zz\r\n{}\r\n", b"-1\r\n", b"2\r\n{}x\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n"])
def test_a_bad_chunk(server: Server, chunk: bytes) -> None:
    with wire(server) as connection:
        connection.send(b"POST /v1/models/cnn:predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
        assert is_page(connection.answer(), 413)
        assert connection.ended()


def test_nothing_behind_a_bad_request_is_answered(server: Server) -> None:
    with wire(server) as connection:
        connection.send(request(b"/healthz") + request(b"/%zz") + request(b"/healthz"))
        assert connection.answer().status == 200
        assert is_page(connection.answer(), 400)
        assert connection.ended()


# Targets


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/v1/models/celsius", 200),
        (b"http://any/v1/models/celsius", 200),
        (b"http://any:80/v1/models/celsius", 200),
        (b"HTTP://any/v1/models/celsius", 200),
        (b"//host/v1/models/celsius", 200),
        (b"//host:8501/v1/models/celsius", 200),
        (b"//v1/models/celsius", 404),
        (b"/V1/MODELS/celsius", 200),
        (b"/v1/models/%63elsius", 200),
        (b"/v1/models/celsius/VERSIONS/0001", 200),
        (b"/v1/models/celsius/versions/9", 404),
        (b"/v1/models/celsius/labels/none", 200),
        (b"/v1/models/celsius/labels/none/metadata", 400),
        (b"/v1/models/celsius#frag", 404),
        (b"/v1/models/metadata", 404),
        (b"/v1/models/versions/1", 400),
        (b"/v1/models/versions/1/metadata", 400),
        (b"/v1/models/labels/x", 400),
        (b"/v1/", 400),
        (b"/v1", 404),
        (b"/", 404),
        (b"http://any", 404),
    ],
)
def test_targets(server: Server, target: bytes, status: int) -> None:
    with wire(server) as connection:
        connection.send(request(target) + request(b"/healthz"))
        assert connection.answer().status == status
        assert connection.answer().status == 200, "the connection goes on"


def test_a_relative_path_is_not_found(server: Server) -> None:
    with wire(server) as connection:
        connection.send(request(b"v1/models/celsius"))
        assert is_page(connection.answer(), 404)
        assert connection.ended()


def test_a_missing_model_name(server: Server) -> None:
    for target in (b"/v1/models", b"/v1/models/versions/1", b"/v1/models/labels/x", b"/v1/models/versions/1/metadata"):
        with wire(server) as connection:
            connection.send(request(target))
            assert connection.answer().json == {"error": "Missing model name in request."}


def test_no_host_header_is_fine(server: Server) -> None:
    with wire(server) as connection:
        connection.send(b"GET /v1/models/celsius HTTP/1.1\r\n\r\n")
        assert connection.answer().status == 200


# Bodies


def predicted(answer: Answer) -> list[float]:
    assert answer.status == 200, answer
    return [float(value) for value in np.ravel(answer.json["predictions"])]


def test_a_body_in_pieces_of_one_byte(server: Server) -> None:
    with wire(server) as connection:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in request(PREDICT, b"POST", BODY):
            connection.send(bytes([byte]))
        assert predicted(connection.answer()) == pytest.approx([212.0], abs=0.1)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_chunked_body(server: Server, size: int) -> None:
    parts = [BODY[i : i + size] for i in range(0, len(BODY), size)]
    chunks = b"".join(b"%X;name=value\r\n%b\r\n" % (len(part), part) for part in parts)
    head = b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" % PREDICT
    with wire(server) as connection:
        connection.send(head + chunks + b"0\r\nTrailer: x\r\n\r\n" + request(b"/healthz"))
        assert predicted(connection.answer()) == pytest.approx([212.0], abs=0.1)
        assert connection.answer().status == 200


def test_expect_100_continue(server: Server) -> None:
    with wire(server) as connection:
        whole = request(PREDICT, b"POST", BODY, b"Expect: 100-continue")
        connection.send(whole.removesuffix(BODY))
        assert connection.head() == (100, {})
        connection.send(BODY)
        assert predicted(connection.answer()) == pytest.approx([212.0], abs=0.1)


def test_another_expectation_fails(server: Server) -> None:
    with wire(server) as connection:
        connection.send(request(PREDICT, b"POST", BODY, b"Expect: x"))
        assert is_page(connection.answer(), 417)
        assert connection.ended()


def test_an_upgrade_is_not_made_and_the_connection_goes_on(server: Server) -> None:
    """As Java's HttpClient and ``curl --http2`` ask for it with their first request."""
    upgrade = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")
    with wire(server) as connection:
        for _ in range(2):
            connection.send(request(b"/healthz", b"GET", None, *upgrade))
            answer = connection.answer()
            assert (answer.status, answer.headers.get("upgrade")) == (200, None)
        connection.send(
            request(PREDICT, b"POST", BODY, *upgrade) * 2 + request(b"/healthz", b"GET", None, *upgrade) * 2
        )
        for _ in range(2):
            assert predicted(connection.answer()) == pytest.approx([212.0], abs=0.1)
        for _ in range(2):
            assert connection.answer().status == 200
        connection.send(request(b"/healthz"))
        assert connection.answer().status == 200


def test_a_large_body(server: Server) -> None:
    rows = 100_000
    body = b'{"instances": [' + b",".join([b"[100.0]"] * rows) + b"]}"
    with wire(server) as connection:
        connection.send(request(PREDICT, b"POST", body))
        assert len(predicted(connection.answer())) == rows


@pytest.mark.parametrize("encoding", [b"gzip", b"x-gzip", b"gzip, identity"])
def test_a_gzipped_body(server: Server, encoding: bytes) -> None:
    with wire(server) as connection:
        connection.send(request(PREDICT, b"POST", gzip.compress(BODY), b"Content-Encoding: " + encoding))
        answer = connection.answer()
        assert predicted(answer) == pytest.approx([212.0], abs=0.1)
        assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(
    "body",
    [
        BODY,
        b"",
        gzip.compress(BODY)[:-1],
        gzip.compress(BODY) + b"x",
        gzip.compress(BODY) + gzip.compress(BODY),
        gzip.compress(bytes(100 * 2**20 + 1), 1),
    ],
    ids=["plain", "nothing", "cut", "trailing byte", "second member", "bomb"],
)
def test_a_bad_gzip_is_an_empty_document(server: Server, body: bytes) -> None:
    with wire(server) as connection:
        connection.send(request(PREDICT, b"POST", body, b"Content-Encoding: gzip"))
        answer = connection.answer()
        assert (answer.status, answer.json) == (400, {"error": "JSON Parse error: The document is empty"})


def test_the_name_of_the_encoding_is_matched_by_case(server: Server) -> None:
    with wire(server) as connection:
        connection.send(request(PREDICT, b"POST", BODY, b"Content-Encoding: GZIP"))
        assert predicted(connection.answer()) == pytest.approx([212.0], abs=0.1)


# Connections


def test_head_has_the_length_and_no_body(server: Server) -> None:
    with wire(server) as connection:
        connection.send(request(b"/healthz"))
        full = connection.answer()
        connection.send(request(b"/healthz", b"HEAD") + request(b"/v1/models/celsius", b"HEAD") + request(b"/healthz"))
        head = connection.answer(body=False)
        assert head.status == 200
        assert head.headers["content-length"] == full.headers["content-length"] == str(len(full.body))
        malformed = connection.answer(body=False)
        assert (malformed.status, malformed.headers["content-type"]) == (400, "application/json")
        assert connection.answer().body == full.body


@pytest.mark.parametrize(
    ("version", "header", "stays"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.1", b"Connection: CLOSE\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: keep-alive\r\n", True),
    ],
)
def test_who_keeps_the_connection(server: Server, version: bytes, header: bytes, stays: bool) -> None:
    one = b"GET /healthz HTTP/%b\r\n%b\r\n" % (version, header)
    with wire(server) as connection:
        connection.send(one)
        assert connection.answer().status == 200
        if stays:
            connection.send(one)
            assert connection.answer().status == 200
        else:
            assert connection.ended()


@pytest.mark.parametrize(
    "sent", [b"", b"GET /v1", request(PREDICT, b"POST", BODY)[:-3], request(PREDICT, b"POST", BODY)]
)
def test_a_client_that_vanishes_harms_nobody(server: Server, sent: bytes) -> None:
    for _ in range(3):
        with wire(server) as connection:
            connection.send(sent)
            # A reset, not a tidy end.
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with wire(server) as connection:
        connection.send(request(b"/healthz"))
        assert connection.answer().status == 200


def test_a_client_that_ends_its_side_is_still_answered_what_it_had_asked(server: Server) -> None:
    with wire(server) as connection:
        connection.send(request(b"/healthz"))
        assert connection.answer().status == 200
        connection.socket.shutdown(socket.SHUT_WR)
        assert connection.ended()


def test_behind_what_is_refused_nothing_is_expected(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with wire(server) as connection:
        connection.send(request(PREDICT, b"POST", BODY, b"Expect: x", b"Expect: 100-continue"))
        assert is_page(connection.answer(), 417)
        assert connection.ended()
    assert not caplog.records


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    degrees = range(3 * MAX_PIPELINED)
    with wire(server) as connection:
        connection.send(b"".join(request(PREDICT, b"POST", b'{"instances": [[%d.0]]}' % d) for d in degrees))
        answers = [predicted(connection.answer())[0] for _ in degrees]
    assert answers == pytest.approx([32 + 1.8 * d for d in degrees], abs=0.2)


# A model that waits until it is told to go on


class Gated(DataPlane):
    """``m`` answers y = x when its gate is open; a negative x raises."""

    def __init__(self) -> None:
        super().__init__(Manager())
        self.gate = threading.Event()
        self.running = threading.Semaphore(0)
        self._servable = object.__new__(Servable)
        self._servable.signatures = {
            "serving_default": Signature(
                {"x": TensorSpec("x", "float32", (None,))}, {"y": TensorSpec("y", "float32", None)}
            )
        }

    def resolve(self, spec: ModelSpec) -> Any:
        return nullcontext(self._servable)

    async def predict(
        self,
        servable: Servable,
        spec: ModelSpec,
        inputs: Mapping[str, NDArray[Any]],
        output_filter: Sequence[str],
        call: Call,
    ) -> dict[str, NDArray[Any]]:
        self.running.release()
        assert self.gate.wait(20)
        if inputs["x"].min() < 0:
            raise ZeroDivisionError("what a model does")
        return {"y": inputs["x"]}


def front(plane: DataPlane, **options: Any) -> RestFront:
    return RestFront(plane, "127.0.0.1", 0, RestOptions(**options), Monitor(), AccessLog(enabled=False))


@contextmanager
def gated(**options: Any) -> Iterator[tuple[RestFront, Gated]]:
    plane = Gated()
    running = front(plane, **options)
    running.start()
    try:
        yield running, plane
    finally:
        plane.gate.set()
        running.stop(5.0)


def slow(value: float = 1.0) -> bytes:
    return request(b"/v1/models/m:predict", b"POST", b'{"instances": [%.1f]}' % value)


@pytest.mark.parametrize("count", [1, 2, 3 * MAX_PIPELINED])
def test_a_client_that_ends_its_side_is_still_answered_what_takes_long(count: int) -> None:
    with gated() as (running, plane), wire(running) as connection:
        connection.send(b"".join(map(slow, range(count))))
        assert plane.running.acquire(timeout=20)
        connection.socket.shutdown(socket.SHUT_WR)
        plane.gate.set()
        assert [predicted(connection.answer()) for _ in range(count)] == [[float(i)] for i in range(count)]
        assert connection.ended()


def test_a_slow_first_request_does_not_lose_its_place() -> None:
    with gated() as (running, plane), wire(running) as connection, wire(running) as other:
        connection.send(slow(1) + request(b"/healthz") + slow(2) + request(b"/nothing"))
        assert plane.running.acquire(timeout=10)
        other.send(request(b"/healthz"))
        assert other.answer().status == 200, "another connection is not held up"
        plane.gate.set()
        assert predicted(connection.answer()) == [1.0]
        assert connection.answer().json == {"status": "SERVING"}
        assert predicted(connection.answer()) == [2.0]
        assert connection.answer().status == 404


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"no request\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (request(b"/%zz"), 400),
        (request(b"/healthz", b"GET", None, b"Expect: x"), 417),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 413),
    ],
)
def test_what_cannot_be_understood_does_not_overtake_a_slow_request(bad: bytes, status: int) -> None:
    with gated() as (running, plane), wire(running) as connection:
        connection.send(slow(1) + slow(2) + bad + request(b"/healthz"))
        assert plane.running.acquire(timeout=10)
        connection.send(request(b"/healthz"))
        plane.gate.set()
        assert predicted(connection.answer()) == [1.0]
        assert predicted(connection.answer()) == [2.0]
        assert is_page(connection.answer(), status)
        assert connection.ended()


def test_more_pipelined_requests_than_are_read_ahead() -> None:
    values = range(1, 4 * MAX_PIPELINED)
    with gated() as (running, plane), wire(running) as connection:
        connection.send(b"".join(slow(value) for value in values))
        assert plane.running.acquire(timeout=10)
        plane.gate.set()
        assert [predicted(connection.answer()) for _ in values] == [[float(value)] for value in values]


def test_a_run_beyond_the_timeout() -> None:
    with gated(timeout_s=0.2) as (running, plane), wire(running) as connection:
        connection.send(slow())
        answer = connection.answer()
        assert (answer.status, answer.json) == (504, {"error": "Timed out waiting for notification"})
        assert "connection" not in answer.headers
        connection.send(request(b"/healthz"))
        assert connection.answer().status == 200
        plane.gate.set()
        connection.send(slow(3.0))
        assert predicted(connection.answer()) == [3.0], "the late answer of the first one is dropped"


def test_a_run_beyond_the_timeout_is_counted_once() -> None:
    with gated(timeout_s=0.1, metrics_path="/metrics") as (running, plane), wire(running) as connection:
        connection.send(slow())
        assert connection.answer().status == 504
        plane.gate.set()
        connection.send(slow() + request(b"/metrics"))
        assert predicted(connection.answer()) == [1.0]
        counted = [line for line in connection.answer().body.decode().splitlines() if "request_count{" in line]
    name = ':tensorflow:serving:request_count{model_name="m",status='
    assert counted == [f'{name}"DEADLINE_EXCEEDED"}} 1', f'{name}"OK"}} 1']


def test_a_model_that_raises() -> None:
    with gated() as (running, plane), wire(running) as connection:
        plane.gate.set()
        connection.send(slow(-1.0) + slow(1.0))
        answer = connection.answer()
        assert (answer.status, answer.json) == (500, {"error": "ZeroDivisionError: what a model does"})
        assert predicted(connection.answer()) == [1.0]


def test_a_client_that_vanishes_while_its_request_runs() -> None:
    with gated(threads=1) as (running, plane):
        with wire(running) as connection:
            connection.send(slow())
            assert plane.running.acquire(timeout=10)
        plane.gate.set()
        with wire(running) as connection:
            connection.send(slow(2.0))
            assert predicted(connection.answer()) == [2.0]


def test_a_stop_finishes_what_is_running_and_closes_the_idle() -> None:
    plane = Gated()
    running = front(plane)
    running.start()
    with wire(running) as connection, wire(running) as idle:
        idle.send(request(b"/healthz"))
        assert idle.answer().status == 200
        connection.send(slow(7.0))
        assert plane.running.acquire(timeout=10)
        stopping = threading.Thread(target=running.stop, args=(20.0,))
        stopping.start()
        assert idle.ended()
        with pytest.raises(OSError, match="refused"):
            Wire(running.port)
        plane.gate.set()
        answer = connection.answer()
        assert predicted(answer) == [7.0]
        assert answer.headers["connection"] == "close"
        assert connection.ended()
        stopping.join(10)
        assert not stopping.is_alive()


def test_a_stop_does_not_wait_longer_than_its_grace() -> None:
    plane = Gated()
    running = front(plane)
    running.start()
    with wire(running) as connection:
        connection.send(slow())
        assert plane.running.acquire(timeout=10)
        started = time.monotonic()
        running.stop(0.2)
        assert time.monotonic() - started < 5
        assert connection.ended()
    plane.gate.set()


def test_a_stop_right_after_the_start() -> None:
    for _ in range(30):
        running = front(Gated())
        running.start()
        running.stop(5.0)
        assert not running._http._thread.is_alive()


def test_a_stop_without_a_start() -> None:
    running = front(Gated())
    running.stop(1.0)
    with socket.socket() as again:
        again.bind(("127.0.0.1", running.port))


# Headers and pages


CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET",
    "access-control-allow-headers": "Content-Type",
}
MANY = [
    request(b"/v1/models/celsius"),
    request(b"/v1/models/nope"),
    request(PREDICT, b"POST", BODY),
    request(PREDICT, b"POST", b"{"),
    request(b"/v1/models/celsius", b"DELETE"),
    request(b"/v1/x", b"OPTIONS", None, b"Origin: https://a"),
    request(b"/v1/x", b"OPTIONS"),
]


def test_cors_headers(store: Store, server: Server) -> None:
    options = ServerOptions(port=None, rest_api_port=0, rest=RestOptions(cors=True, metrics_path=DEFAULT_PATH))
    with Server(store, options) as open_one, wire(open_one) as connection, wire(server) as closed:
        for one in MANY:
            connection.send(one)
            assert connection.answer().headers.items() >= CORS.items()
            closed.send(one)
            assert not closed.answer().headers.keys() & CORS.keys()
        for target in (b"/healthz", b"/", DEFAULT_PATH.encode(), b"/openapi.json"):
            connection.send(request(target))
            assert not connection.answer().headers.keys() & CORS.keys()


def test_options(server: Server) -> None:
    with wire(server) as connection:
        for origin, status in ((b"Origin: http://a", 200), (b"Origin: ftp://a", 400), (b"X: http://a", 400)):
            connection.send(request(b"/v1/any/thing", b"OPTIONS", None, origin))
            answer = connection.answer()
            assert (answer.status, answer.body) == (status, b"")
            assert answer.headers["content-type"] == "text/html; charset=ISO-8859-1"


def test_every_answer_has_a_date_and_a_length(server: Server) -> None:
    with wire(server) as connection:
        for one in [*MANY, request(b"/healthz"), request(b"/")]:
            connection.send(one)
            headers = connection.answer().headers
            assert re.fullmatch(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", headers["date"])


def test_the_metrics_page_takes_no_query() -> None:
    with gated(metrics_path="/metrics") as (running, _), wire(running) as connection:
        for method in (b"GET", b"POST", b"PUT"):
            connection.send(request(b"/metrics", method))
            answer = connection.answer()
            assert (answer.status, answer.headers["content-type"]) == (200, "text/plain")
        connection.send(request(b"/metrics?a=b"))
        answer = connection.answer()
        assert (answer.status, answer.body) == (400, b"Unexpected path: /metrics?a=b. Should be /metrics")
        connection.send(request(b"/metrics/"))
        assert connection.answer().status == 404


def test_healthz(server: Server) -> None:
    with wire(server) as connection:
        connection.send(request(b"/healthz"))
        answer = connection.answer()
        assert (answer.status, answer.json) == (200, {"status": "SERVING"})
        connection.send(request(b"/healthz", b"POST", b""))
        assert connection.answer().status == 404


@pytest.mark.parametrize("name", [b"X-Request-Id", b"x-request-id"])
def test_a_callers_request_id_comes_back(server: Server, name: bytes) -> None:
    with wire(server) as connection:
        for one in (request(b"/v1/models/celsius", b"GET", None, name + b": abc-123!~"), *MANY[1:2]):
            connection.send(one)
        assert connection.answer().headers["x-request-id"] == "abc-123!~"
        assert connection.answer().headers["x-request-id"] != "abc-123!~"


@pytest.mark.parametrize("text", [b"", b"with blank", b"caf\xe9", b"x" * 129, b"tab\there"])
def test_a_hostile_request_id_is_replaced(server: Server, text: bytes) -> None:
    with wire(server) as connection:
        connection.send(request(b"/v1/models/celsius", b"GET", None, b"X-Request-Id: " + text))
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+", connection.answer().headers["x-request-id"])


def test_each_request_without_an_id_gets_its_own(server: Server) -> None:
    with wire(server) as connection:
        connection.send(b"".join(MANY))
        ids = [connection.answer().headers["x-request-id"] for _ in MANY]
    assert len(set(ids)) == len(MANY)
