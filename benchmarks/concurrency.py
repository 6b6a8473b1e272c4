"""Many callers at once: requests joined into batches, and two processes instead of one."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from . import metrics_page, servers
from .load import CONNECTIONS, wrk
from .machine import spread
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
    payload = bench.payload("cnn")
    os.sched_setaffinity(0, bench.place.both)
    parameters = bench.place.folder / "batching.config"
    parameters.write_text(_PARAMETERS)
    with_batching = ("--enable_batching", f"--batching_parameters_file={parameters}")
    print(
        f"\nPredict of cnn, one image a request, {CALLERS} callers at a time; batching: {' '.join(_PARAMETERS.split())}"
    )
    for runtime in ("tensorflow", "onnx"):
        with ExitStack() as stack:
            run = partial(servers.servable, bench.place, bench.store, runtime, pinned=False)
            off, on = stack.enter_context(run()), stack.enter_context(run(*with_batching))
            grpc_off, grpc_on = (
                GrpcLoad(bench, payload, server.address, server, streams=CALLERS // CONNECTIONS) for server in (off, on)
            )
            measures: dict[str, Callable[[], float]] = {
                "REST, off": partial(_rest_rate, bench, off),
                "REST, on": partial(_rest_rate, bench, on),
                "gRPC, off": grpc_off.rate,
                "gRPC, on": grpc_on.rate,
            }
            rates = bench.rounds(measures)
            for name, values in rates.items():
                print(f"  {runtime:11}{name:13}{spread(values, 'requests/s', digits=0)}")
            page = metrics_page.fetch(on.rest_port)
            size = metrics_page.total(page, _SIZES) / metrics_page.total(page, _RUNS)
            print(f"  {runtime:11}{size:.1f} requests a run with batching")
        for transport in ("REST", "gRPC"):
            gain = ratio(rates[f"{transport}, on"], rates[f"{transport}, off"])
            what = f"cnn, {CALLERS} callers, {transport}, {runtime}: batching on / off"
            if runtime == "tensorflow":
                bench.verdict.at_least(what, gain, BATCHING_LIMIT)
            else:
                print(f"  {what}: {gain:.2f}")


def workers(bench: Workbench) -> None:
    """The same without batching, one process against two; server and load share two cores."""
    payload = bench.payload("cnn")
    os.sched_setaffinity(0, bench.place.both)
    print(f"\nPredict of cnn, one image a request, {CALLERS} callers at a time, by the number of workers")
    with ExitStack() as stack:
        run = partial(servers.servable, bench.place, bench.store, "onnx", pinned=False)
        one, two = stack.enter_context(run()), stack.enter_context(run("--workers=2"))
        grpc_one, grpc_two = (
            GrpcLoad(bench, payload, server.address, server, streams=CALLERS // CONNECTIONS) for server in (one, two)
        )
        measures: dict[str, Callable[[], float]] = {
            "REST, 1": partial(_rest_rate, bench, one),
            "REST, 2": partial(_rest_rate, bench, two),
            "gRPC, 1": grpc_one.rate,
            "gRPC, 2": grpc_two.rate,
        }
        rates = bench.rounds(measures)
    for name, values in rates.items():
        print(f"  {name:13}{spread(values, 'requests/s', digits=0)}")
    for transport in ("REST", "gRPC"):
        print(f"  {transport}, two workers / one: {ratio(rates[f'{transport}, 2'], rates[f'{transport}, 1']):.2f}")


def _rest_rate(bench: Workbench, server: Servable) -> float:
    payload = bench.payload("cnn")
    url = server.url("cnn")
    payload.ask_rest(url)
    rate = wrk(url, payload.json_file, bench.duration, connections=CALLERS).rate
    payload.ask_rest(url)
    return rate
