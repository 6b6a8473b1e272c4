"""Requests a second, server and load on a core each: REST, gRPC, and batches over both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial

from ..errors import ProcessError
from . import metrics_page, servers
from .load import CONNECTIONS, STREAMS, Load, h2load, wrk
from .machine import spread
from .payloads import PREDICT, Payload
from .servers import Servable
from .verdict import ratio
from .workbench import MODELS, Workbench

REST_LIMITS = {"mlp": 0.75, "cnn": 1.15}
BENTOML_LIMIT = 5
GRPC_LIMIT = 0.75
BATCH = 32
BATCH_LIMIT = 0.85
THREADS = (1, 2, 4, 8)
_FIRST = 400
_MOST = 1_000_000
_COUNTED_WITHIN_S = 2.0
_COUNTER = ":tensorflow:serving:request_count"


def rest(bench: Workbench) -> None:
    """One image as JSON from 8 keep-alive connections, against a bare ASGI program and BentoML."""
    for model in MODELS:
        payload = bench.payload(model)
        print(
            f"\nREST Predict of {model}: wrk, {CONNECTIONS} connections, one image, {len(payload.json)} bytes of JSON"
        )
        with ExitStack() as stack:
            server = stack.enter_context(servers.servable(bench.place, bench.store))
            urls = {"servable": server.url(model)}
            urls["bare ASGI"] = stack.enter_context(servers.bare_rest(bench.place, payload.onnx))
            if bench.bentoml:
                urls["BentoML"] = stack.enter_context(servers.bentoml(bench.place, bench.bentoml, payload.onnx))
            rates = bench.rounds({name: partial(_rest_rate, bench, payload, url) for name, url in urls.items()})
        _print(rates, "requests/s")
        ours = rates["servable"]
        bare = ratio(ours, rates["bare ASGI"])
        bench.verdict.at_least(f"REST {model}, servable / bare ASGI", bare, REST_LIMITS[model])
        what = f"REST {model}, servable / BentoML"
        if bench.bentoml:
            bench.verdict.at_least(what, ratio(ours, rates["BentoML"]), BENTOML_LIMIT)
        else:
            bench.verdict.left_out(what, "--skip-bentoml")


def _rest_rate(bench: Workbench, payload: Payload, url: str) -> float:
    payload.ask_rest(url)
    rate = wrk(url, payload.json_file, bench.duration).rate
    payload.ask_rest(url)
    return rate


def grpc(bench: Workbench) -> None:
    """One image as tensor_content, against a bare grpcio server that has no model."""
    payload = bench.payload("mlp")
    print(
        f"\ngRPC Predict of mlp: h2load, {CONNECTIONS} connections with {STREAMS} streams each, one image, "
        f"{len(payload.message)} bytes of tensor_content"
    )
    threads = _best_threads(bench, payload)
    with (
        servers.servable(bench.place, bench.store) as server,
        servers.bare_grpc(bench.place, payload.fixed_answer(), threads) as bare,
    ):
        ours = GrpcLoad(bench, payload, server.address, server)
        theirs = GrpcLoad(bench, payload, bare)
        name = f"bare grpcio, {threads} threads"
        rates = bench.rounds({"servable": ours.rate, name: theirs.rate})
        _print(rates, "requests/s")
        print(f"  {ours.proof()}")
    bench.verdict.at_least("gRPC mlp, servable / bare grpcio", ratio(rates["servable"], rates[name]), GRPC_LIMIT)


def _best_threads(bench: Workbench, payload: Payload) -> int:
    """The number of threads with which the bare grpcio server answers the most."""
    rates = {}
    for threads in THREADS:
        with servers.bare_grpc(bench.place, payload.fixed_answer(), threads) as address:
            load = GrpcLoad(bench, payload, address)
            rates[threads] = max(load.rate() for _ in range(2))
    print("  bare grpcio by threads: " + ", ".join(f"{n}: {rate:.0f} requests/s" for n, rate in rates.items()))
    return max(rates, key=rates.__getitem__)


class GrpcLoad:
    """Loads one gRPC server with h2load and holds its count of answers against what the server did.

    h2load takes every HTTP status 200 for a success, and gRPC errors have it too. So each run begins
    and ends with a real call, the bodies must add up to that answer's length, and the Prometheus page
    of our server must count as many successes as were sent.
    """

    def __init__(
        self,
        bench: Workbench,
        payload: Payload,
        address: str,
        server: Servable | None = None,
        streams: int = STREAMS,
    ) -> None:
        self._payload = payload
        self._address = address
        self._server = server
        self._streams = streams
        self._counted = 0
        self._duration = bench.duration
        length = payload.ask_grpc(address)
        self._requests = min(_MOST, int(self._load(_FIRST, length).rate * self._duration))

    def rate(self) -> float:
        """Requests a second of one run."""
        before = self._succeeded()
        length = self._payload.ask_grpc(self._address)
        load = self._load(self._requests, length)
        self._payload.ask_grpc(self._address)
        if self._server:
            self._compare(before, load.requests + 2)
        return load.rate

    def proof(self) -> str:
        """What the checks said, for the report; a run that fails one raises instead."""
        return f"{_COUNTER} rose by one for each of {self._counted} requests"

    def _load(self, requests: int, length: int) -> Load:
        load = h2load(f"http://{self._address}{PREDICT}", self._payload.framed_file, requests, streams=self._streams)
        if load.body_bytes != load.requests * length:
            raise ProcessError(
                f"{self._address}: {load.requests} answers of {length} bytes came to {load.body_bytes} bytes; "
                "some calls failed"
            )
        return load

    def _compare(self, before: float, sent: int) -> None:
        """The counter must have risen by what was sent; it may be told a moment after the client has its answer."""
        end = time.monotonic() + _COUNTED_WITHIN_S
        while (counted := self._succeeded() - before) != sent:
            if time.monotonic() > end:
                raise ProcessError(f"{self._address} counts {counted:.0f} successes for {sent} requests")
            time.sleep(0.05)
        self._counted += sent

    def _succeeded(self) -> float:
        if not self._server:
            return 0.0
        page = metrics_page.fetch(self._server.rest_port)
        return metrics_page.total(page, _COUNTER, model_name=self._payload.model, status="OK")


def batch(bench: Workbench) -> None:
    """32 images a request for the cnn, against ONNX Runtime in a loop on the same core."""
    payload = bench.payload("cnn", BATCH)
    print(f"\nPredict of cnn with {BATCH} images: {CONNECTIONS} connections, one request at a time on each")
    with servers.servable(bench.place, bench.store) as server:
        load = GrpcLoad(bench, payload, server.address, server, streams=1)
        rest_rate = partial(_rest_rate, bench, payload, server.url("cnn"))
        measures: dict[str, Callable[[], float]] = {
            "servable gRPC": lambda: BATCH * load.rate(),
            "servable REST": lambda: BATCH * rest_rate(),
            "ONNX Runtime loop": lambda: bench.onnx_loop(payload)[0],
        }
        rates = bench.rounds(measures)
        _print(rates, "images/s")
        print(f"  {load.proof()}")
    share = ratio(rates["servable gRPC"], rates["ONNX Runtime loop"])
    bench.verdict.at_least(f"cnn × {BATCH}, servable gRPC / ONNX Runtime loop", share, BATCH_LIMIT)


def _print(rates: Mapping[str, list[float]], unit: str) -> None:
    for name, values in rates.items():
        print(f"  {name:24}{spread(values, unit, digits=0)}")
