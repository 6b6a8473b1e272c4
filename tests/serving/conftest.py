"""A server in a process of its own, and what can be seen of that process from outside."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servable.process import Child
from servable.store import Store
from servable.wire import messages, tensors

START_S = 120.0


class ServerProcess(Child):
    """``servable serve`` on free ports of the loopback address; its output is in ``log``."""

    def __init__(self, words: Sequence[Any], log: Path, before: Sequence[str] = ()) -> None:
        """Start it; ``before`` is a command that is to run it."""
        self.grpc_port, self.rest_port = free_ports()
        ports = (f"--port={self.grpc_port}", f"--rest_api_port={self.rest_port}")
        command = [sys.executable, "-m", "servable", "serve", *map(str, words), *ports]
        super().__init__([*before, *command], log, "servable")

    def is_up(self) -> bool:
        """Whether it has said where it listens."""
        return bool(re.search(r"^REST at ", self.output(), re.MULTILINE))

    def output(self) -> str:
        """What it has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def descriptors(self) -> int:
        """How many files and sockets it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def resident_bytes(self) -> int:
        """How much memory it holds."""
        pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


def free_ports() -> tuple[int, int]:
    """Two ports that nobody listens on."""
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


@pytest.fixture(scope="session")
def serve(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[Any]]:
    """Run ``servable serve`` with further words on the shared store; it must end well at the end of the block."""

    @contextmanager
    def running(*words: Any, before: Sequence[str] = ()) -> Iterator[ServerProcess]:
        log = tmp_path_factory.mktemp("serve") / "log"
        with ServerProcess([store.root, *words], log, before) as process:
            process.wait_until(process.is_up, START_S)
            yield process
            code = process.stop()
            assert code == 0, f"exit code {code}: {process.output()[-4000:]}"

    return running


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


@pytest.fixture(scope="session")
def predict_call() -> bytes:
    """All that a client sends for one gRPC Predict of celsius at 100 degrees, in HTTP/2 (RFC 9113, RFC 7541)."""
    request = messages.PredictRequest()
    request.model_spec.name = "celsius"
    tensors.encode_into(request.inputs["celsius"], np.array([[100.0]], np.float32))
    message = request.SerializeToString()
    headers = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": f"/{messages.PREDICTION_SERVICE}/Predict".encode(),
        b":authority": b"localhost",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
    }
    literals = [b"\0%c%b%c%b" % (len(name), name, len(value), value) for name, value in headers.items()]
    settings, head, data, end_headers, end_stream = 4, 1, 0, 4, 1
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(settings, 0, 0, b"")
        + _frame(head, end_headers, 1, b"".join(literals))
        + _frame(data, end_stream, 1, b"\0" + len(message).to_bytes(4, "big") + message)
    )
