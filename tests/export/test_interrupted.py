"""Exports that are killed, interrupted, run at the same time or run out of disk never leave half a version."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from servable.cli import run
from servable.cli.course import source
from servable.export import ExportOptions, Source, export_model, saved_model
from servable.export.registry import REGISTRY, Job
from servable.manifest import Manifest, measure_artifact
from servable.models import card
from servable.store import REPORTS, STAGING, Store

LIMIT_S = 120
SAVED_MODEL = ExportOptions(("saved_model",))
COMMAND = [sys.executable, "-m", "servable", "export"]


@contextmanager
def started(scratch: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """``servable export`` as a process of its own, killed at the end if it still runs."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},  # what a killed TensorFlow leaves there goes with the test
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def poll(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + LIMIT_S
    while not ready():
        assert process.poll() is None, f"the export ended too early: {process.communicate()}"
        assert time.monotonic() < end, "the export did not get so far in time"
        time.sleep(0.001)


def staged(store: Store, name: str) -> bool:
    """Whether any staging folder holds this file; with no name, whether there is one."""
    pattern = f"{STAGING}/*/version/{name}" if name else f"{STAGING}/*/"
    return any(path.is_dir() or name for path in store.root.glob(pattern))


def check_complete(store: Store, name: str, version: int) -> None:
    """A published version holds what its manifest says."""
    folder = store.path(name, version)
    manifest = Manifest.read(folder)
    assert manifest.version == version
    assert manifest.artifacts
    for artifact in manifest.artifacts:
        assert measure_artifact(folder, artifact.path) == (artifact.sha256, artifact.bytes)


def visible(store: Store) -> list[str]:
    """What is in the store, but for the reports of what was published."""
    return sorted(entry.name for entry in store.root.iterdir() if entry.name != REPORTS)


@pytest.mark.parametrize("moment", ["", "saved_model.pb", "model_int8.tflite", "servable.json"])
def test_killed(tmp_path: Path, moment: str) -> None:
    store = Store(tmp_path / "store")
    with started(tmp_path, "cnn", "--store", store.root) as process:
        poll(lambda: staged(store, moment) or bool(store.versions("cnn")), process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    published = store.versions("cnn")
    assert published in ([], [1])
    if published:
        check_complete(store, "cnn", 1)
    else:
        assert visible(store) in ([STAGING], [STAGING, "cnn"])
    following = export_model(source(card("cnn")), store, SAVED_MODEL)
    assert following.version == len(published) + 1
    check_complete(store, "cnn", following.version)
    assert visible(store) == ["cnn"]


def press_control_c(job: Job, path: Path) -> None:
    path.write_bytes(b"half")
    signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("inline")
def test_interrupted_at_the_keyboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")
    monkeypatch.setitem(REGISTRY, "tflite", replace(REGISTRY["tflite"], convert=press_control_c))
    assert run(["export", "celsius", "--store", str(store.root)]) == 130
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert [line for line in stderr.split("\n") if line and not line.startswith("export celsius: ")] == ["interrupted"]
    assert visible(store) == []


def test_two_at_once_get_versions_of_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    arguments = ("celsius", "--store", store.root, "--formats", "tflite", "--quantize", "float32")
    with started(tmp_path, *arguments) as one, started(tmp_path, *arguments) as two:
        answers = [process.communicate(timeout=LIMIT_S) for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], answers
    assert store.versions("celsius") == [1, 2]
    for version in (1, 2):
        check_complete(store, "celsius", version)
    said = sorted(stdout.split("published ")[1].splitlines()[0] for stdout, _ in answers)
    assert said == [str(store.path("celsius", version)) for version in (1, 2)]
    assert visible(store) == ["celsius"]


def test_an_export_leaves_the_staging_folder_of_a_live_one_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with store.staging("celsius") as live:
        (live / "half").write_text("done")
        assert export_model(source(card("celsius")), store, SAVED_MODEL).version == 1
        assert (live / "half").read_text() == "done"
    assert visible(store) == ["celsius"]


def full_disk(given: Job | Source, path: Path) -> None:
    (path / "half" if path.is_dir() else path).write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize("key", ["saved_model", "tflite"])
def test_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], key: str
) -> None:
    store = Store(tmp_path / "store")
    if key == "saved_model":
        monkeypatch.setattr(saved_model, "write", full_disk)
    else:
        monkeypatch.setitem(REGISTRY, key, replace(REGISTRY[key], convert=full_disk))
    assert run(["export", "celsius", "--store", str(store.root)]) == 5
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert [line for line in stderr.splitlines() if not line.startswith("export celsius: ")] == [
        f"error: no space left for the store {store.root}; nothing was published"
    ]
    assert visible(store) == []


def test_a_full_disk_at_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")

    def refuse(manifest: Manifest) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Manifest, "to_json", refuse)
    assert run(["export", "celsius", "--store", str(store.root), "--formats", "saved_model"]) == 5
    assert capfd.readouterr().err.splitlines()[-1].startswith("error: no space left for the store")
    assert store.versions("celsius") == []


def errors_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if not line.startswith("export cnn: ")]


def test_a_write_that_fails_in_the_middle(tmp_path: Path) -> None:
    """No file may grow over a limit, so that TensorFlow's own write fails for real."""
    store = Store(tmp_path / "store")
    script = (
        "import resource, signal, sys; from servable.cli import run; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY)); sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "export", "cnn", "--store", store.root],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    (line,) = errors_of(done)
    assert line.startswith("error: cnn: the conversion to saved_model failed: ")
    assert done.returncode == 7
    assert visible(store) == []


# Runs its arguments with a small file system mounted at $1, then lists what is left there.
SMALL_DISK = 'mount -t tmpfs -o size="$2" none "$1" || exit 99; at=$1; shift 2; "$@"; code=$?; ls -A "$at"; exit $code'


@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare to make a small file system with")
@pytest.mark.parametrize("size", ["100k", "400k"], ids=["TensorFlow's write", "our write"])
def test_a_disk_that_is_really_full(tmp_path: Path, size: str) -> None:
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", tmp_path, size, *COMMAND, "cnn", "--store", tmp_path],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("this machine lets nobody mount a file system of their own")
    assert errors_of(done) == [f"error: no space left for the store {tmp_path}; nothing was published"]
    assert done.returncode == 5
    assert done.stdout == ""
