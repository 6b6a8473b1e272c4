"""Added latency: what a client waits beyond the model's own time, one request at a time, and where it goes."""

from __future__ import annotations

import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from urllib.parse import urlsplit

from ..errors import ProcessError
from . import metrics_page, servers
from .machine import spread
from .payloads import PREDICT, TIMEOUT_S, Payload, open_channel
from .servers import Servable
from .workbench import MODELS, Workbench

_STAGES = "servable_request_stage_seconds"
_MOST = 20_000
_US = 1e6
_MODEL = "model alone"

Client = Callable[[], AbstractContextManager[Callable[[], None]]]
Means = dict[str, dict[str, list[float]]]


def latency(bench: Workbench) -> None:
    """Medians over REST and gRPC, ours and the bare servers', beside the model's own time."""
    for model in MODELS:
        payload = bench.payload(model)
        print(
            f"\nlatency of {model}, one image, one request at a time (µs; a run's figure is the median of its requests)"
        )
        stages: Means = defaultdict(lambda: defaultdict(list))
        with ExitStack() as stack:
            server = stack.enter_context(servers.servable(bench.place, bench.store))
            bare_rest = stack.enter_context(servers.bare_rest(bench.place, payload.onnx))
            bare_grpc = stack.enter_context(servers.bare_grpc(bench.place, payload.fixed_answer(), 1))
            clients = {
                "REST servable": partial(rest_client, payload, server.url(model)),
                "REST bare ASGI": partial(rest_client, payload, bare_rest),
                "gRPC servable": partial(grpc_client, payload, server.address),
                "gRPC bare, no model": partial(grpc_client, payload, bare_grpc),
            }
            measures: dict[str, Callable[[], float]] = {_MODEL: partial(_alone, bench, payload)}
            for name, client in clients.items():
                measures[name] = partial(_median, client, bench.duration)
                if "servable" in name:
                    measures[name] = partial(_with_stages, measures[name], server, payload.model, stages[name])
            times = bench.rounds(measures)
        _print(times, stages)


def _print(times: Mapping[str, Sequence[float]], stages: Means) -> None:
    alone = statistics.median(times[_MODEL])
    for name, values in times.items():
        own = 0.0 if "no model" in name else alone
        added = "" if name == _MODEL else f", added {statistics.median(values) - own:.0f} µs"
        print(f"  {name:24}{spread(values, 'µs', digits=0)}{added}")
    for name, means in stages.items():
        told = {stage: statistics.median(values) * _US for stage, values in means.items()}
        told["protocol, system and client"] = statistics.median(times[name]) - sum(told.values())
        parts = ", ".join(f"{stage} {value:.0f}" for stage, value in told.items())
        print(f"  {name} by stage: {parts if means else f'not known, the server has no {_STAGES}'}")


def _alone(bench: Workbench, payload: Payload) -> float:
    return bench.onnx_loop(payload)[1] * _US


def _median(client: Client, seconds: int) -> float:
    """Of the requests of one connection; a server may have closed the last run's."""
    times: list[float] = []
    with client() as ask:
        end = time.perf_counter() + seconds
        while (before := time.perf_counter()) < end and len(times) < _MOST:
            ask()
            times.append(time.perf_counter() - before)
    return statistics.median(times) * _US


def _with_stages(measure: Callable[[], float], server: Servable, model: str, means: dict[str, list[float]]) -> float:
    before = metrics_page.fetch(server.rest_port)
    value = measure()
    after = metrics_page.fetch(server.rest_port)
    for stage, mean in metrics_page.means(before, after, _STAGES, by="stage", model_name=model).items():
        means[stage].append(mean)
    return value


@contextmanager
def rest_client(payload: Payload, url: str) -> Iterator[Callable[[], None]]:
    """A raw socket that posts prepared bytes and reads the answer; nothing lighter speaks HTTP from Python."""
    parts = urlsplit(url)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload.json)}\r\n\r\n"
    )
    request = head.encode() + payload.json
    with socket.create_connection((parts.hostname or "", parts.port or 80), TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def exchange() -> bytes:
            connection.sendall(request)
            return read_answer(connection)

        payload.check_json(url, exchange())
        yield lambda: _ignore(exchange())
        payload.check_json(url, exchange())


def read_answer(connection: socket.socket) -> bytes:
    """The body of one HTTP/1.1 answer. Raises `ProcessError` unless it is a 200 that says its length."""
    data = connection.recv(65536)
    while (at := data.find(b"\r\n\r\n")) < 0:
        data += _more(connection, data)
    head = data[:at].lower()
    start = head.find(b"\r\ncontent-length:")
    if b" 200 " not in head[:16] or start < 0:
        raise ProcessError(f"the answer begins {data[:80]!r}")
    end = head.find(b"\r\n", start + 2)
    whole = at + 4 + int(head[start + 17 : end if end > 0 else None])
    while len(data) < whole:
        data += _more(connection, data)
    return data[at + 4 : whole]


def _more(connection: socket.socket, so_far: bytes) -> bytes:
    part = connection.recv(65536)
    if not part:
        raise ProcessError(f"the server closed the connection after {so_far[:80]!r}")
    return part


@contextmanager
def grpc_client(payload: Payload, address: str) -> Iterator[Callable[[], None]]:
    """A grpcio channel that sends prepared bytes and does not parse the answer; it raises if a call fails."""
    with open_channel(address) as channel:
        call = channel.unary_unary(PREDICT)
        payload.check_message(address, call(payload.message, timeout=TIMEOUT_S))
        yield lambda: _ignore(call(payload.message))
        payload.check_message(address, call(payload.message, timeout=TIMEOUT_S))


def _ignore(_: object) -> None:
    pass
