"""Memory that stays: the server's resident size after 10,000 requests and after 100,000."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import ProcessError
from . import servers
from .load import h2load
from .payloads import PREDICT
from .workbench import Workbench

STEP = 10_000
STEPS = 10
LIMIT_PERCENT = 2.0


def memory(bench: Workbench) -> None:
    """Half REST and half gRPC at the same time, one mlp image a request."""
    print(f"\nresident memory over {STEP * STEPS:,} requests for mlp, half REST and half gRPC at the same time")
    payload = bench.payload("mlp")
    sizes: list[float] = []
    with servers.servable(bench.place, bench.store) as server, ThreadPoolExecutor(2) as pool:
        print(f"  before the first  {resident_mb(server.pid):7.1f} MB", flush=True)
        for step in range(1, STEPS + 1):
            payload.ask_rest(server.url("mlp"))
            length = payload.ask_grpc(server.address)
            rest = pool.submit(h2load, server.url("mlp"), payload.json_file, STEP // 2, json=True)
            grpc = pool.submit(h2load, f"http://{server.address}{PREDICT}", payload.framed_file, STEP // 2)
            rest.result()
            if grpc.result().body_bytes != STEP // 2 * length:
                raise ProcessError(f"{server.address}: some calls failed")
            sizes.append(resident_mb(server.pid))
            print(f"  after {step * STEP:11,} {sizes[-1]:7.1f} MB", flush=True)
    growth = 100 * (sizes[-1] / sizes[0] - 1)
    what = f"growth of resident memory from {STEP:,} to {STEP * STEPS:,} requests"
    bench.verdict.at_most(what, growth, LIMIT_PERCENT, " %")


def resident_mb(pid: int) -> float:
    """VmRSS of a process in MB."""
    return parse_status(Path(f"/proc/{pid}/status").read_text())


def parse_status(text: str) -> float:
    r"""VmRSS of ``/proc/PID/status`` in MB.

    >>> parse_status("VmHWM:\t  2000 kB\nVmRSS:\t  1500 kB\n")
    1.536
    """
    match = re.search(r"^VmRSS:\s+(\d+) kB$", text, re.MULTILINE)
    if not match:
        raise ProcessError("the process has no resident memory; has it ended?")
    return int(match[1]) * 1024 / 1e6
