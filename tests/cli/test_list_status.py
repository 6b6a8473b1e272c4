"""``servable list`` and ``servable status``: the tables, the JSON, and what goes wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from servable.cli import run
from servable.manifest import FILE_NAME, Manifest
from servable.serving import Server, ServerOptions
from servable.serving.manager import LifecycleOptions
from servable.store import Store

Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    """Run a command line in this process, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")

    def run_here(*arguments: Any) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        stdout, stderr = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, stdout, stderr)

    return run_here


def printed(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def cells(table: str) -> list[list[str]]:
    """The rows of a printed table, header first."""
    lines = [line for line in table.splitlines() if re.search(r"\w", line)]
    return [[cell.strip() for cell in re.split(r"[│┃|]", line.strip().strip("│┃|"))] for line in lines]


def error(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
def mixed(store: Store, tmp_path: Path) -> Path:
    """A store with two versions of celsius, one with a damaged manifest and one without any."""
    root = tmp_path / "mixed"
    for version in ("1", "2", "10"):
        shutil.copytree(store.path("celsius"), root / "celsius" / version)
    (root / "celsius" / "2" / FILE_NAME).write_text("{")
    (root / "celsius" / "10" / FILE_NAME).unlink()
    return root


# list


def test_list_as_a_table(here: Here, store: Store) -> None:
    header, *rows = cells(printed(here("list", store.root)))
    assert header == ["model", "version", "task", "created", "artifacts", "size"]
    assert [row[:2] for row in rows] == [["celsius", "1"], ["cnn", "1"], ["mlp", "1"]]
    for row in rows:
        manifest = Manifest.read(store.path(row[0]))
        assert row[2] == manifest.task
        assert row[3] == manifest.created
        assert row[4] == "saved_model, 2 tflite, 2 onnx"
        number, unit = row[5].split()
        total = sum(artifact.bytes for artifact in manifest.artifacts)
        assert float(number) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(total, abs=10_000 if unit == "MB" else 500)


def test_list_as_json(here: Here, store: Store) -> None:
    rows = json.loads(printed(here("list", store.root, "--json")))
    assert [(row["model"], row["version"]) for row in rows] == [("celsius", 1), ("cnn", 1), ("mlp", 1)]
    for row in rows:
        assert row.keys() == {"model", "version", "task", "created", "artifacts", "note"}
        assert row["note"] is None
        assert datetime.fromisoformat(row["created"])
        folder = store.path(row["model"])
        for artifact in row["artifacts"]:
            assert artifact.keys() == {"artifact", "path", "bytes"}
            path = folder / artifact["path"]
            assert path.exists()
            if path.is_file():
                assert path.stat().st_size == artifact["bytes"]


def test_list_shows_versions_newest_first_and_says_what_is_wrong_with_one(here: Here, mixed: Path) -> None:
    rows = json.loads(printed(here("list", mixed, "--json")))
    assert [row["version"] for row in rows] == [10, 2, 1]
    bare, damaged, good = rows
    assert FILE_NAME in bare["note"]
    assert FILE_NAME in damaged["note"]
    assert bare["artifacts"] == damaged["artifacts"] == []
    assert (good["note"], good["task"]) == (None, "regression")
    table = cells(printed(here("list", mixed)))[1:]
    assert [row[1] for row in table if row[1]] == ["10", "2", "1"]


def test_list_looks_into_store_by_default(here: Here, mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed.rename(mixed.parent / "store")
    monkeypatch.chdir(mixed.parent)
    assert len(json.loads(printed(here("list", "--json")))) == 3


def test_a_path_that_looks_like_markup(here: Here, mixed: Path) -> None:
    strange = mixed.rename(mixed.parent / "[bold][x]")
    assert "[bold][x]" in "".join(row[4] for row in cells(printed(here("list", strange)))[1:])


def test_list_of_nothing(here: Here, tmp_path: Path) -> None:
    assert "there is no store" in error(here("list", tmp_path / "nope"), 4)
    assert json.loads(printed(here("list", tmp_path, "--json"))) == []
    assert len(cells(printed(here("list", tmp_path)))) == 1, "the header alone"


# status


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_status_of_a_served_model(here: Here, server: Server, scheme: str) -> None:
    port = server.grpc_port if scheme == "grpc" else server.rest_port
    target = f"{scheme}://127.0.0.1:{port}/cnn"
    assert cells(printed(here("status", target))) == [
        ["version", "state", "engine", "signatures", "why"],
        ["1", "AVAILABLE", "onnx", "classify, serve_bytes, serving_default", "the manifest proves parity"],
    ]
    assert json.loads(printed(here("status", target, "--json"))) == [
        {
            "version": 1,
            "state": "AVAILABLE",
            "error_code": "OK",
            "error_message": "",
            "engines": [
                {
                    "runtime": "onnx",
                    "reason": "the manifest proves parity",
                    "signatures": ["classify", "serve_bytes", "serving_default"],
                }
            ],
        }
    ]


def test_status_of_a_version_that_failed(here: Here, mixed: Path) -> None:
    shutil.rmtree(mixed / "celsius" / "10")
    once = LifecycleOptions(max_num_load_retries=0)
    with Server(Store(mixed), ServerOptions(port=0, rest_api_port=0, lifecycle=once)) as server:
        target = f"grpc://127.0.0.1:{server.grpc_port}/celsius"
        _, two, *_, one = cells(printed(here("status", target)))  # a long reason takes several lines
        found = json.loads(printed(here("status", target, "--json")))
    assert two[:4] == ["2", "END", "–", "–"]
    assert two[4].startswith("FAILED_PRECONDITION:")
    assert one == ["1", "AVAILABLE", "onnx", "regress, serving_default", "the manifest proves parity"]
    assert (found[0]["state"], found[0]["error_code"], found[0]["engines"]) == ("END", "FAILED_PRECONDITION", [])
    assert FILE_NAME in found[0]["error_message"]


def test_status_of_two_engines_shows_the_version_once(here: Here, store: Store, tmp_path: Path) -> None:
    from dataclasses import replace

    folder = tmp_path / "store" / "celsius" / "1"
    shutil.copytree(store.path("celsius"), folder)
    manifest = Manifest.read(folder)
    artifacts = tuple(
        replace(a, evidence={k: v for k, v in a.evidence.items() if k != "regress"}) for a in manifest.artifacts
    )
    (folder / FILE_NAME).write_text(replace(manifest, artifacts=artifacts).to_json())
    with Server(Store(tmp_path / "store"), ServerOptions(port=None, rest_api_port=0)) as server:
        _, first, second = cells(printed(here("status", f"http://127.0.0.1:{server.rest_port}/celsius")))
    assert {first[0], second[0]} == {"1", ""}
    assert {first[2], second[2]} == {"onnx", "tensorflow"}
    assert {first[3], second[3]} == {"regress", "serving_default"}


def test_status_of_a_file(here: Here, store: Store, tmp_path: Path) -> None:
    (status,) = json.loads(printed(here("status", store.root / "celsius", "--json")))
    assert (status["version"], status["state"]) == (1, "AVAILABLE")
    shutil.copyfile(store.path("celsius") / "model.onnx", tmp_path / "c.onnx")
    assert cells(printed(here("status", tmp_path / "c.onnx")))[1][:4] == ["–", "AVAILABLE", "onnx", "serving_default"]


def test_status_errors(here: Here, server: Server, free_port: int) -> None:
    assert "cannot be reached" in error(here("status", f"grpc://127.0.0.1:{free_port}/m", "--timeout", "5"), 5)
    line = error(here("status", f"http://127.0.0.1:{server.rest_port}/nope"), 3)
    assert line.endswith("Could not find any versions of model nope")
    assert "unknown scheme" in error(here("status", "ftp://h/m"), 2)
    assert "Missing argument 'TARGET'" in error(here("status"), 2)
    assert "--timeout" in error(here("status", "grpc://h/m", "--timeout", "0"), 2)
