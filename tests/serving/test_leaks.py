"""What requests leave behind: nothing, whatever they asked for."""

from __future__ import annotations

import gc
import socket
from typing import Any

import httpx
import pytest

from servable.serving import Server
from servable.serving.http import Request
from servable.serving.http_connection import MAX_HEAD_BYTES
from servable.serving.monitoring import Call
from servable.serving.routes import Route


def alive(kind: type[Any]) -> int:
    gc.collect()
    return sum(isinstance(found, kind) for found in gc.get_objects())


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", b""),
        ("POST", "/v1/models/celsius:PREDICT", b"x" * 20_000),
        ("POST", "/v1/models/nope:predict", b'{"instances": [1]}'),
        ("POST", "/v1/models/celsius:predict", b"{"),
        ("POST", "/v1/models/celsius:predict", b'{"instances": [[1.0]]}'),
        ("GET", "/v1/models/celsius/versions/99999999999999999999", b""),
    ],
)
def test_no_request_is_kept(server: Server, method: str, path: str, body: bytes) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.rest_port}", trust_env=False) as client:
        for _ in range(300):
            client.request(method, path, content=body)
    # Calls wait to be counted, a bundle at a time; requests wait for nothing.
    assert alive(Request) < 20
    assert alive(Call) < 600


def test_a_head_that_does_not_end_is_refused(server: Server) -> None:
    assert server.rest_port
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=30) as connection:
        connection.sendall(b"GET /v1/models/" + b"a" * (2 * MAX_HEAD_BYTES))
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_long_targets_are_answered_and_not_kept(server: Server) -> None:
    for i in range(50):
        path = f"/v1/models/{i}{'a' * 10_000}"
        assert httpx.get(f"http://127.0.0.1:{server.rest_port}{path}", trust_env=False).status_code == 404
    gc.collect()
    assert not [found for found in gc.get_objects() if isinstance(found, Route) and len(found.path) > 5000]
