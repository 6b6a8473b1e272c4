"""Time to ready: from the start of the process until it says that the model is available, by runtime."""

from __future__ import annotations

import statistics
import time

from ..errors import ProcessError
from ..process import Child
from . import servers
from .machine import spread
from .workbench import MODELS, Workbench

RUNTIMES = ("onnx", "tensorflow", "tflite")
LIMIT_S = {"onnx": 1.5}
_PAUSE_S = 0.005


def startup(bench: Workbench) -> None:
    """Start a server of each runtime in turn; a runtime that the server refuses is left out."""
    print(f"\nstart of the process until /v1/models/cnn is available; the store holds {' and '.join(MODELS)}")
    times: dict[str, list[float]] = {runtime: [] for runtime in RUNTIMES}
    for run in range(bench.runs + 1):
        for runtime in list(times):
            try:
                elapsed = _start(bench, runtime)
            except ProcessError as error:
                print(f"  {runtime}: left out, {error}")
                del times[runtime]
                if runtime in LIMIT_S:
                    raise
                continue
            if run:  # the first round only warms the file cache
                times[runtime].append(elapsed)
    for runtime, values in times.items():
        print(f"  {runtime:24}{spread(values, 's')}")
    for runtime, limit in LIMIT_S.items():
        bench.verdict.at_most(f"time to ready with --runtime {runtime}", statistics.median(times[runtime]), limit, " s")


def _start(bench: Workbench, runtime: str) -> float:
    port, rest_port = servers.free_port(), servers.free_port()
    command = bench.place.on_server_core(servers.serve_command(bench.store, port, rest_port, runtime))
    ready_at = 0.0

    def ready() -> bool:
        nonlocal ready_at
        for _ in range(20):  # finer than the child's own polling
            if servers.available(rest_port):
                ready_at = time.perf_counter()
                return True
            time.sleep(_PAUSE_S)
        return False

    started = time.perf_counter()
    with Child(command, bench.place.log(f"startup-{runtime}"), "servable serve") as child:
        child.wait_until(ready, servers.START_S)
    return ready_at - started
