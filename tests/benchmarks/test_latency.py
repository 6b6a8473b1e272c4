"""The light HTTP client: whole bodies only, and nothing but a 200."""

from __future__ import annotations

import socket

import pytest

from servable.benchmarks.latency import read_answer
from servable.errors import ProcessError


def answer_to(*parts: bytes) -> bytes:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        theirs.sendall(b"".join(parts))
        theirs.shutdown(socket.SHUT_WR)
        return read_answer(ours)


def test_a_body_larger_than_one_read() -> None:
    body = b"x" * 100_000
    assert answer_to(b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 100000\r\nServer: s\r\n\r\n", body) == body


def test_a_length_in_the_last_header_and_an_empty_body() -> None:
    assert answer_to(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}") == b"{}"
    assert answer_to(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") == b""


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{}",
        b"HTTP/1.1 200",
        b"",
    ],
)
def test_anything_else_is_an_error(raw: bytes) -> None:
    with pytest.raises(ProcessError):
        answer_to(raw)
