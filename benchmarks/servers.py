"""The servers of a run, ours and the peers': started on a core of their own, and stopped whatever happens."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ..errors import ProcessError
from ..process import Child
from . import metrics_page

PEERS = Path(__file__).with_name("peers")
START_S = 120


@dataclass(frozen=True)
class Place:
    """Where servers run and log: a folder, a core for them, and another for what loads them."""

    folder: Path
    server_core: int
    load_core: int

    @property
    def both(self) -> set[int]:
        """The two cores, for servers that are to use both and share them with the load."""
        return {self.server_core, self.load_core}

    def on_server_core(self, command: Sequence[str]) -> list[str]:
        """The command on the servers' core, told to end when this process does."""
        return self._on([self.server_core], command)

    def on_both_cores(self, command: Sequence[str]) -> list[str]:
        """The same on both cores."""
        return self._on(sorted(self.both), command)

    @staticmethod
    def _on(cores: Sequence[int], command: Sequence[str]) -> list[str]:
        return ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", ",".join(map(str, cores)), *command]

    def log(self, name: str) -> Path:
        """The log of a server."""
        return self.folder / f"{name}.log"


def choose_place(folder: Path) -> Place:
    """The first two cores that this process may use; exits where there are none to pin to."""
    for tool in ("taskset", "setpriv"):
        if not shutil.which(tool):
            raise SystemExit(f"error: this benchmark needs Linux and {tool} of util-linux, to give servers their core")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("error: this benchmark needs two cores, one for the servers and one for the load")
    return Place(folder, cores[0], cores[1])


@dataclass(frozen=True)
class Servable:
    """A running ``servable serve``."""

    pid: int
    port: int
    rest_port: int

    @property
    def address(self) -> str:
        """Of gRPC."""
        return f"127.0.0.1:{self.port}"

    def url(self, model: str) -> str:
        """Where REST Predict is asked."""
        return f"http://127.0.0.1:{self.rest_port}/v1/models/{model}:predict"


def serve_command(store: Path, port: int, rest_port: int, runtime: str, *flags: str) -> list[str]:
    """``servable serve`` on loopback."""
    return [
        *(sys.executable, "-m", "servable", "serve", str(store), "--host=127.0.0.1"),
        *(f"--port={port}", f"--rest_api_port={rest_port}", f"--runtime={runtime}", *flags),
    ]


@contextmanager
def servable(place: Place, store: Path, runtime: str = "onnx", *flags: str, pinned: bool = True) -> Iterator[Servable]:
    """Our server, with its Prometheus page; on its own core, or on both if it is not ``pinned``."""
    config = place.folder / "monitoring.config"
    config.write_text(metrics_page.CONFIG)
    port, rest_port = free_port(), free_port()
    command = serve_command(store, port, rest_port, runtime, f"--monitoring_config_file={config}", *flags)
    command = place.on_server_core(command) if pinned else place.on_both_cores(command)
    with Child(command, place.log("servable"), "servable serve") as child:
        child.wait_until(lambda: available(rest_port), START_S)
        yield Servable(child.pid, port, rest_port)


def available(rest_port: int, model: str = "cnn") -> bool:
    """Whether the server says that the model is available."""
    status, answer = _get(rest_port, f"/v1/models/{model}")
    return status == 200 and b'"AVAILABLE"' in answer


@contextmanager
def bare_rest(place: Place, onnx: Path) -> Iterator[str]:
    """The bare ASGI program on a file; yields its URL."""
    port = free_port()
    command = [sys.executable, str(PEERS / "bare_rest.py"), str(onnx), str(port)]
    with Child(place.on_server_core(command), place.log("bare-rest"), "the bare ASGI program") as child:
        child.wait_until(lambda: _listens(port), START_S)
        yield f"http://127.0.0.1:{port}/"


@contextmanager
def bare_grpc(place: Place, answer: bytes, threads: int) -> Iterator[str]:
    """The bare grpcio server, which always gives this answer; yields its address."""
    port = free_port()
    file = place.folder / "answer.binpb"
    file.write_bytes(answer)
    command = [sys.executable, "-m", "servable.benchmarks.peers.bare_grpc", str(file), str(port), str(threads)]
    with Child(place.on_server_core(command), place.log("bare-grpc"), "the bare grpcio server") as child:
        child.wait_until(lambda: _listens(port), START_S)
        yield f"127.0.0.1:{port}"


@contextmanager
def bentoml(place: Place, venv: Path, onnx: Path) -> Iterator[str]:
    """BentoML with one worker on a file; yields the URL of its Predict."""
    port = free_port()
    settings = [f"MODEL={onnx}", f"BENTOML_HOME={place.folder / 'bentoml'}", "BENTOML_DO_NOT_TRACK=True"]
    serve = ["serve", "bentoml_rest:Predict", "--quiet", f"--working-dir={PEERS}", "--host=127.0.0.1", f"--port={port}"]
    command = ["env", *settings, str(venv / "bin" / "bentoml"), *serve]
    with Child(place.on_server_core(command), place.log("bentoml"), "BentoML") as child:
        child.wait_until(lambda: _get(port, "/readyz")[0] == 200, START_S)
        yield f"http://127.0.0.1:{port}/predict"


def prepare_bentoml(venv: Path) -> str:
    """Install BentoML into a virtual environment unless it is there; returns the versions.

    Raises `ProcessError` if pip fails.
    """
    python = venv / "bin" / "python"
    if not (venv / "bin" / "bentoml").exists():
        if venv.exists() and not (venv / "pyvenv.cfg").exists() and any(venv.iterdir()):
            raise SystemExit(f"error: {venv} is no virtual environment, and is not empty")
        wanted = ["bentoml", *(f"{name}=={version(name)}" for name in ("numpy", "onnxruntime"))]
        print(f"installing into {venv} (about 270 MB): {' '.join(wanted)}", flush=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted]
        for command in ([sys.executable, "-m", "venv", str(venv)], pip):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ProcessError(f"{' '.join(command[1:3])} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    names = ["bentoml", "numpy", "onnxruntime", "starlette", "uvicorn"]
    code = f"from importlib.metadata import version\nfor name in {names}: print(name, version(name))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProcessError(f"{venv} lacks a package: {done.stderr.strip().splitlines()[-1]}")
    return ", ".join(done.stdout.strip().splitlines())


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def _get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body; status 0 while the server cannot be reached."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
