"""Fixtures that several rooms share: an exported store, a running server, the command line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from servable.cli.course import source
from servable.export import ExportOptions, export_model
from servable.models import card
from servable.serving import Server, ServerOptions
from servable.store import Store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with version 1 of celsius, mlp and cnn as float32 and int8. Read only: tests copy to change."""
    store = Store(tmp_path_factory.mktemp("shared") / "store")
    for name in ("celsius", "mlp", "cnn"):
        export_model(source(card(name)), store, ExportOptions(quantizations=("float32", "int8")))
    return store


@pytest.fixture(scope="session")
def server(store: Store) -> Iterator[Server]:
    """The embedded server on that store, on free ports of the loopback address."""
    with Server(store, ServerOptions(port=0, rest_api_port=0)) as running:
        yield running


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Some tests import it by themselves; it would keep an identifier under the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# The same examples in every run: a test that fails in CI fails for everybody.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run ``servable`` as a user does: a process of its own, its streams captured."""

    def run(*arguments: Any, cwd: Path | None = None, timeout: float = 120, **environment: str) -> Any:
        return subprocess.run(
            [sys.executable, "-m", "servable", *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=timeout,
            env={**os.environ, **environment},
        )

    return run


@pytest.fixture
def new_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Makes a module of a text, which can be imported here, and which no process that runs already has seen."""

    def make(text: str) -> Any:
        place = tmp_path / "modules"
        place.mkdir()
        name = f"module_{abs(hash(str(tmp_path)))}"
        (place / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(place))
        return import_module(name)

    return make
