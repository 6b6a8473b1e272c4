"""Pipes, signals and odd terminals: what a shell does to a command."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from servable.cli import run
from servable.cli.predict import Answer, describe
from servable.models.samples import sample_pictures
from servable.process import Child
from servable.serving import Server
from servable.store import Store

SERVABLE = [sys.executable, "-m", "servable"]


@pytest.mark.parametrize("kind", ["grpc", "http", "file"])
def test_a_picture_from_a_pipe(store: Store, server: Server, kind: str) -> None:
    target = {
        "grpc": f"grpc://127.0.0.1:{server.grpc_port}/cnn",
        "http": f"http://127.0.0.1:{server.rest_port}/cnn",
        "file": str(store.path("cnn") / "model.onnx"),
    }[kind]
    done = subprocess.run(
        [*SERVABLE, "predict", target, "/dev/stdin"],
        input=sample_pictures()["Bag"].read_bytes(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.decode().startswith("/dev/stdin  →  Bag")


def test_a_terminal_of_few_characters(store: Store) -> None:
    done = subprocess.run(
        [*SERVABLE, "predict", store.root / "celsius", "100"],
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.stdout.startswith(b"100  ?  212")


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    done = subprocess.run(f"{shlex.join(SERVABLE)} models {closed}", shell=True, check=False, timeout=60)
    assert done.returncode == 0


def test_a_reader_that_goes_away_does_not_stop_an_export(tmp_path: Path) -> None:
    script = f"{shlex.join(SERVABLE)} export celsius --formats saved_model 2> >(head -1 >/dev/null)"
    done = subprocess.run(["bash", "-c", script], check=False, cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "store" / "celsius" / "1" / "servable.json").is_file()


def test_a_terminated_demo_stops_its_server_and_removes_its_folder(tmp_path: Path) -> None:
    command = [*SERVABLE, "demo", "--output", str(tmp_path / "out"), "--duration", "20"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(scratch))
        child = Child(command, tmp_path / "log", "servable demo")
    with child:
        child.wait_until(lambda: bool(list(scratch.glob("servable-demo-*/serve.log"))), 120)
        os.kill(child.pid, signal.SIGTERM)
        assert child.stop(30) == 143
    assert list(scratch.glob("servable-demo-*")) == []
    assert not [pid for pid in Path("/proc").glob("[0-9]*") if str(scratch).encode() in command_line(pid)]


def command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("place", [["--debug", "models", "--nope"], ["models", "--nope", "--debug"]])
def test_debug_is_understood_anywhere(place: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place) == 2
    assert "--debug" not in capsys.readouterr().err


@pytest.mark.parametrize("scores", [[50.0, -3.0], [np.nan, 1.0], [np.inf, 0.0], [200.0, 12.0]])
def test_scores_that_are_no_probabilities_are_shown_as_they_are(scores: list[float]) -> None:
    lines = describe(Answer("x", np.array(scores), 1.0), ("a", "b"), 2)
    assert len(lines) == 3
    assert not any("%" in line or "█" in line for line in lines)


@pytest.mark.parametrize("output", ["/proc/nowhere", "file"])
def test_a_demo_without_a_place_for_its_report_says_so_at_once(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert run(["demo", "--output", f"{output}/demo"]) == 4
    assert "cannot be made" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["nan", "1e38"])
def test_a_training_that_diverges_leaves_nothing(rate: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "celsius", "--epochs", "2", "--learning-rate", rate, "--output", str(tmp_path)]) == 2
    assert "rate" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("duration", ["nan", "inf"])
def test_a_duration_that_is_none(duration: str, store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(store.root / "celsius"), "--duration", duration]) == 2
    assert "give a positive number of seconds" in capfd.readouterr().err


def test_a_store_that_tensorflow_cannot_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "celsius", "--store", str(tmp_path / "a[b]")]) == 4
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: TensorFlow cannot read a path with '[' or ']'")
    assert not (tmp_path / "a[b]").exists()


def test_the_folder_that_one_stands_in(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(store.root / "celsius")
    assert run(["predict", ".", "100"]) == 0
    assert capfd.readouterr().out.startswith("100  →  212")
    assert run(["bench", ".", "--duration", "0.01"]) == 0
