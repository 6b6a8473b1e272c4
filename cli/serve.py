"""``servable serve``: the embedded server in the foreground."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click
from rich.console import Console

from ..errors import ServableError
from ..store import Store
from .console import quiet, stdout


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8500, show_default=True, help="gRPC port; 0: none.")
@click.option(
    "--rest_api_port", type=click.IntRange(0, 65535), default=8501, show_default=True, help="REST port; 0: none."
)
@click.option(
    "--runtime",
    type=click.Choice(["auto", "tensorflow", "onnx"]),
    default="auto",
    show_default=True,
    help="auto: the ONNX twin where the manifest proves parity, TensorFlow otherwise.",
)
def command(store: Path, host: str, port: int, rest_api_port: int, runtime: str) -> None:
    """Serve all models and versions of STORE over TensorFlow Serving's gRPC and REST API.

    The store is read once, at start. SIGTERM or Ctrl-C stops the server: running requests finish,
    and it exits with 0.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    from ..serving import Server, ServerOptions
    from ..serving.servable import RUNTIME_CHOICES, Servable

    options = ServerOptions(
        host=host,
        port=port or None,
        rest_api_port=rest_api_port or None,
        runtime=next(choice for choice in RUNTIME_CHOICES if choice == runtime),
    )
    lines: list[str] = []

    def report(name: str, version: int, loaded: Servable | ServableError) -> None:
        lines.append(f"  {name} version {version}: {_describe(loaded)}")

    with quiet():
        server = Server(Store(store), options, report)
    with server:
        _announce(stdout(), store, host, server.grpc_port, server.rest_port, lines)
        while not stop.wait(1.0):
            pass  # wait() without a limit would not be woken by a signal on every platform


def _describe(loaded: object) -> str:
    from ..serving.servable import Servable

    if not isinstance(loaded, Servable):
        return f"NOT SERVED: {loaded}"
    by_runtime: dict[str, list[str]] = {}
    for signature, engine in loaded.engines.items():
        by_runtime.setdefault(f"{engine.runtime} ({engine.reason})", []).append(signature)
    return "; ".join(f"{', '.join(sorted(names))} → {runtime}" for runtime, names in by_runtime.items())


def _announce(
    out: Console, store: Path, host: str, grpc_port: int | None, rest_port: int | None, lines: list[str]
) -> None:
    out.print(f"serving {store}", soft_wrap=True)
    for line in lines:
        out.print(line, soft_wrap=True)
    shown = f"[{host}]" if ":" in host else host
    if grpc_port:
        out.print(f"gRPC at {shown}:{grpc_port}", soft_wrap=True)
    if rest_port:
        out.print(f"REST at http://{shown}:{rest_port}/v1/models/MODEL", soft_wrap=True)
    out.file.flush()
