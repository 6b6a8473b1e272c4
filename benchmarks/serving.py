"""The embedded server against bare programs and BentoML: rate, latency, memory and start.

Every server runs on one core and every load generator on another, but where many callers at once are
measured; the runs of the servers that are compared are interleaved. Needs Linux with two cores and the
Debian packages wrk and nghttp2-client. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from ..errors import ServableError
from . import load, servers
from .concurrency import batching, workers
from .latency import latency
from .machine import describe
from .memory import memory
from .startup import startup
from .throughput import batch, grpc, rest
from .verdict import Verdict
from .workbench import Workbench, export_models

PARTS = {
    "rest": rest,
    "grpc": grpc,
    "batch": batch,
    "batching": batching,
    "workers": workers,
    "latency": latency,
    "memory": memory,
    "startup": startup,
}
TOOLS = {
    "rest": ["wrk"],
    "grpc": ["h2load"],
    "memory": ["h2load"],
    **{part: ["wrk", "h2load"] for part in ("batch", "batching", "workers")},
}
PACKAGES = ["grpcio", "httptools", "numpy", "onnxruntime", "orjson", "protobuf", "tensorflow", "uvicorn", "uvloop"]

# A load average above this says that other programs want the cores.
BUSY = 0.5


def main() -> int:
    """Run the benchmark and print it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=PARTS, help="this part (may be repeated; default: all)")
    parser.add_argument("--runs", type=_positive, default=5, help="of each server (default: 5)")
    parser.add_argument("--duration", type=_positive, default=5, help="of each run, whole seconds (default: 5)")
    peer = parser.add_mutually_exclusive_group()
    peer.add_argument("--bentoml-venv", type=Path, metavar="DIR", help="BentoML's environment; made if missing")
    peer.add_argument("--skip-bentoml", action="store_true", help="leave this peer out")
    options = parser.parse_args()
    parts = [name for name in PARTS if name in (options.only or PARTS)]
    if "rest" in parts and not options.bentoml_venv and not options.skip_bentoml:
        parser.error("give --bentoml-venv DIR, where BentoML is or will be installed, or --skip-bentoml")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # as an exception, so that servers are stopped
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    print(describe(PACKAGES))
    if os.getloadavg()[0] > BUSY:
        print(f"note:     the machine is busy, its load average is {os.getloadavg()[0]:.1f}; the figures will be off")
    tools = load.require(sorted({tool for part in parts for tool in TOOLS.get(part, [])}))
    try:
        return _run(parts, options, tools)
    except ServableError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _run(parts: list[str], options: argparse.Namespace, tools: str) -> int:
    verdict = Verdict()
    with tempfile.TemporaryDirectory(prefix="servable-serving-") as name:
        folder = Path(name)
        place = servers.choose_place(folder)
        if tools:
            print(f"load:     {tools}")
        print(
            f"cores:    servers on {place.server_core}, load on {place.load_core}, pinned; "
            "in the parts batching and workers both on both"
        )
        venv = options.bentoml_venv.absolute() if options.bentoml_venv and "rest" in parts else None
        if venv:
            print(f"peer:     {servers.prepare_bentoml(venv)}; one worker")
        store = folder / "store"
        export_models(store)
        bench = Workbench(place, store, options.runs, options.duration, venv, verdict)
        for part in parts:
            os.sched_setaffinity(0, {place.load_core})
            PARTS[part](bench)
    print(f"\n{verdict.summary()}")
    return verdict.exit_code


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to 1000")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
