"""Many callers at once: requests joined into batches, and two processes instead of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from . import metrics_page, servers
from .load import CONNECTIONS, wrk
from .machine import spread
from .payloads import Payload
from .servers import Servable
from .throughput import GrpcLoad
from .verdict import ratio
from .workbench import Workbench

CALLERS = 64
BATCHING_LIMIT = 1.5
_PARAMETERS = """\
max_batch_size { value: 64 }
max_enqueued_batches { value: 100 }
num_batch_threads { value: 1 }
"""
_RUNS = ":tensorflow:serving:batching_session:wrapped_run_count"
_SIZES = ":tensorflow:serving:batching_session:input_batch_size_count"


def batching(bench: Workbench) -> None:
    """One image a request from 64 callers, with and without batching; server and load share two cores."""
    parameters = bench.place.folder / "batching.config"
    parameters.write_text(_PARAMETERS)
    on = ("--enable_batching", f"--batching_parameters_file={parameters}")
    _title(f"; batching: {' '.join(_PARAMETERS.split())}")
    for runtime in ("tensorflow", "onnx"):
        with ExitStack() as stack:
            started = _start(bench, stack, runtime, {"off": (), "on": on})
            gains = _compare(bench, started, f"{runtime:11}")
            page = metrics_page.fetch(started["on"].rest_port)
            size = metrics_page.total(page, _SIZES) / metrics_page.total(page, _RUNS)
            print(f"  {runtime:11}{size:.1f} requests a run with batching")
        for transport, gain in gains.items():
            what = f"cnn, {CALLERS} callers, {transport}, {runtime}: batching on / off"
            if runtime == "tensorflow":
                bench.verdict.at_least(what, gain, BATCHING_LIMIT)
            else:
                print(f"  {what}: {gain:.2f}")


def workers(bench: Workbench) -> None:
    """The same without batching, one process against two; server and load share two cores."""
    _title(", by the number of workers")
    with ExitStack() as stack:
        started = _start(bench, stack, "onnx", {"1": (), "2": ("--workers=2",)})
        gains = _compare(bench, started, "")
    for transport, gain in gains.items():
        print(f"  {transport}, two workers / one: {gain:.2f}")


def _title(more: str) -> None:
    print(f"\nPredict of cnn, one image a request, {CALLERS} callers at a time{more}")


def _start(bench: Workbench, stack: ExitStack, runtime: str, flags: Mapping[str, Sequence[str]]) -> dict[str, Servable]:
    """A server for each set of flags, all on both cores, where the load will be too."""
    os.sched_setaffinity(0, bench.place.both)
    return {
        name: stack.enter_context(servers.servable(bench.place, bench.store, runtime, *words, pinned=False))
        for name, words in flags.items()
    }


def _compare(bench: Workbench, started: Mapping[str, Servable], title: str) -> dict[str, float]:
    """Measure two servers over REST and gRPC: how many times the first one's rate the second one has."""
    payload = bench.payload("cnn")
    streams = CALLERS // CONNECTIONS
    measures: dict[str, Callable[[], float]] = {
        f"REST, {name}": partial(_rest_rate, bench, payload, server) for name, server in started.items()
    }
    for name, server in started.items():
        measures[f"gRPC, {name}"] = GrpcLoad(bench, payload, server.address, server, streams=streams).rate
    rates = bench.rounds(measures)
    for name, values in rates.items():
        print(f"  {title}{name:13}{spread(values, 'requests/s', digits=0)}")
    first, second = started
    return {
        transport: ratio(rates[f"{transport}, {second}"], rates[f"{transport}, {first}"])
        for transport in ("REST", "gRPC")
    }


def _rest_rate(bench: Workbench, payload: Payload, server: Servable) -> float:
    url = server.url("cnn")
    payload.ask_rest(url)
    rate = wrk(url, payload.json_file, bench.duration, connections=CALLERS).rate
    payload.ask_rest(url)
    return rate
