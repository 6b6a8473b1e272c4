"""A converter or a runtime that dies costs its artifact, says so, and takes nothing else along."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from servable.cli import run
from servable.cli.course import source
from servable.errors import ExportError
from servable.export import ExportOptions, Unopened, export_model, steps
from servable.export.registry import REGISTRY
from servable.manifest import Manifest, measure_artifact
from servable.models import card
from servable.store import REPORTS, STAGING, Store

STUBS = """
import ctypes, os, sys, time

def segfault(job, path):
    path.write_bytes(b"half")
    print("optimizing the graph", flush=True)
    ctypes.string_at(0)

def abort(job, path):
    print("F0000 00:00:00.0 1 convert.cc:1] Check failed: size >= 0", file=sys.stderr, flush=True)
    os.abort()

def hang(job, path):
    time.sleep(600)

def swallow(job, path):
    held = []
    while True:
        held.append(bytearray(50_000_000))
        time.sleep(0.01)

def segfault_in_a_runtime(*arguments):
    ctypes.string_at(0)
"""
LIMIT_S = 120
WHOLE = ExportOptions(("tflite",), ("float32", "int8"))


@pytest.fixture
def stubs(new_module: Callable[[str], Any]) -> Any:
    return new_module(STUBS)


def left_out(manifest: Manifest, store: Store) -> str:
    """Why the int8 TFLite file is missing; all others are there and whole, and nothing else is."""
    folder = store.path("celsius", manifest.version)
    assert [artifact.label for artifact in manifest.artifacts] == ["saved_model", "tflite"]
    for artifact in manifest.artifacts:
        assert measure_artifact(folder, artifact.path) == (artifact.sha256, artifact.bytes)
    assert [path.name for path in folder.glob("*.tflite")] == ["model.tflite"]
    assert [path.name for path in folder.glob("unfinished*")] == []
    (absent,) = manifest.absent
    assert (absent.label, absent.failed) == ("tflite int8", True)
    return absent.reason


@pytest.mark.parametrize(
    ("stub", "options", "reason"),
    [
        ("segfault", WHOLE, "the conversion was killed by SIGSEGV; its last words: optimizing the graph"),
        (
            "abort",
            WHOLE,
            "the conversion was killed by SIGABRT; its last words: F0000 00:00:00.0 1 convert.cc:1] Check fai",
        ),
        ("hang", replace(WHOLE, time_limit_s=20.0), "the conversion took more than 20 s, and was stopped"),
        (
            "swallow",
            replace(WHOLE, memory_limit_bytes=2_500_000_000),
            "the conversion took more than 2.5 GB of memory, and was stopped",
        ),
    ],
)
def test_a_converter_that_dies(
    stubs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stub: str, options: ExportOptions, reason: str
) -> None:
    monkeypatch.setitem(REGISTRY, "tflite_int8", replace(REGISTRY["tflite_int8"], convert=getattr(stubs, stub)))
    store = Store(tmp_path / "store")
    manifest = export_model(source(card("celsius")), store, options)
    assert left_out(manifest, store).startswith(reason)
    assert not (store.root / STAGING).exists()


def test_a_source_that_dies(stubs: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(ExportError, match=r"^mine: the conversion to saved_model was killed by SIGSEGV$"):
        export_model(Unopened("mine", stubs.segfault_in_a_runtime), store, WHOLE)
    assert list(store.root.rglob("*")) == []


def test_code_that_dies_is_one_line_too(
    stubs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(stubs.__file__).parent)
    assert run(["export", f"{stubs.__name__}:segfault_in_a_runtime", "--store", str(tmp_path / "store")]) == 7
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert stderr.splitlines()[-1] == (
        "error: segfault_in_a_runtime: the conversion to saved_model was killed by SIGSEGV"
    )


def test_a_runtime_that_dies(stubs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(steps, "verify_file", stubs.segfault_in_a_runtime)
    store = Store(tmp_path / "store")
    manifest = export_model(source(card("celsius")), store, WHOLE)
    assert [artifact.label for artifact in manifest.artifacts] == ["saved_model"]
    reason = "the verification was killed by SIGSEGV"
    assert [(absent.label, absent.reason, absent.failed) for absent in manifest.absent] == [
        ("tflite", reason, True),
        ("tflite int8", reason, True),
    ]
    assert list(store.path("celsius").glob("*.tflite")) == []


def test_a_runtime_that_dies_of_the_saved_model(stubs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(steps, "verify_saved_model", stubs.segfault_in_a_runtime)
    store = Store(tmp_path / "store")
    with pytest.raises(ExportError, match=r"^celsius: the verification of saved_model was killed by SIGSEGV$"):
        export_model(source(card("celsius")), store, WHOLE)
    assert list(store.root.rglob("*")) == []


def test_the_command_says_what_is_missing_and_ends_so(
    stubs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(REGISTRY, "tflite_int8", replace(REGISTRY["tflite_int8"], convert=stubs.segfault))
    arguments = ["export", "celsius", "--store", str(tmp_path / "store"), "--formats", "tflite"]
    assert run(arguments) == 7
    stdout, stderr = capfd.readouterr()
    reason = "no tflite int8: the conversion was killed by SIGSEGV; its last words: optimizing the graph"
    assert reason in stdout.splitlines()
    assert stderr.splitlines()[-1] == (
        "error: published without celsius tflite int8, which could not be made; --allow-missing accepts that"
    )
    assert run([*arguments, "--allow-missing"]) == 0


def test_what_was_asked_for_by_name_is_not_left_out(
    stubs: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(REGISTRY, "tflite_int8", replace(REGISTRY["tflite_int8"], convert=stubs.segfault))
    store = Store(tmp_path / "store")
    with pytest.raises(ExportError, match=r"^celsius tflite_int8 cannot be made: the conversion was killed by SIGSEGV"):
        export_model(source(card("celsius")), store, ExportOptions(("tflite_int8",)))
    assert list(store.root.rglob("*")) == []


def visible(store: Store) -> list[str]:
    """What is in the store, but for the reports of what was published."""
    return sorted(entry.name for entry in store.root.iterdir() if entry.name != REPORTS)


def begin(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "servable", "export", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_killed_at_ten_random_moments(tmp_path: Path) -> None:
    """A killed export leaves nothing but a staging folder, which the next one removes, and no process."""
    store = Store(tmp_path / "store")
    arguments = ("cnn", "--store", store.root, "--formats", "tflite,onnx", "--quantize", "float32,int8")
    began = time.monotonic()
    with begin(*arguments) as whole:
        assert whole.wait(LIMIT_S) == 0
    took, draw = time.monotonic() - began, random.Random(7)  # moments, no secrets
    for _ in range(10):
        with begin(*arguments) as process:
            time.sleep(draw.uniform(0, 1) * took)
            family = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.communicate()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert alive == []
        for version in store.versions("cnn"):
            check(store, "cnn", version)
        assert visible(store) in (["cnn"], [STAGING, "cnn"])
    before = store.versions("cnn")
    with begin(*arguments) as process:
        assert process.wait(LIMIT_S) == 0
    assert store.versions("cnn") == [*before, before[-1] + 1]
    assert visible(store) == ["cnn"]


def check(store: Store, name: str, version: int) -> None:
    folder = store.path(name, version)
    manifest = Manifest.read(folder)
    assert manifest.version == version
    for artifact in manifest.artifacts:
        assert measure_artifact(folder, artifact.path) == (artifact.sha256, artifact.bytes)


def test_four_at_once_get_versions_of_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    arguments = ("celsius", "--store", store.root, "--formats", "tflite", "--quantize", "float32")
    processes = [begin(*arguments) for _ in range(4)]
    answers = [process.communicate(timeout=LIMIT_S) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, answers
    assert store.versions("celsius") == [1, 2, 3, 4]
    for version in range(1, 5):
        check(store, "celsius", version)
    assert visible(store) == ["celsius"]


def test_control_c_ends_all_of_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with begin("cnn", "--store", store.root) as process:
        end = time.monotonic() + LIMIT_S
        while not list(store.root.glob(f"{STAGING}/*/version/saved_model.pb")):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.01)
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in stderr
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert list(store.root.iterdir()) == []
