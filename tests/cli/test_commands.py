"""Every verb as a user calls it, and the server as a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import httpx
import numpy as np
import pytest

import servable
from servable.cli import VERBS, run
from servable.clients import connect
from servable.errors import CancelledError, UnavailableError
from servable.export.registry import QUANTIZATIONS, ordered
from servable.manifest import Manifest
from servable.models import CATALOGUE, samples
from servable.process import Child
from servable.serving import Server
from servable.store import Store

Cli = Callable[..., subprocess.CompletedProcess[str]]
Capture = pytest.CaptureFixture[str]

TROUSER = samples.sample_pictures()["Trouser"]
BAG = samples.sample_pictures()["Bag"]
LIMIT_S = 120.0


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb: str, capsys: Capture) -> None:
    assert run([verb, "--help"]) == 0
    stdout, stderr = capsys.readouterr()
    assert stdout.startswith(f"Usage: servable {verb} [OPTIONS]")
    assert stderr == ""


def test_the_help_lists_every_verb(capsys: Capture) -> None:
    assert run(["-h"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for verb, sentence in VERBS.items():
        assert f"{verb} {sentence}" in shown


def test_the_help_of_export_names_the_registered_formats(capsys: Capture) -> None:
    run(["export", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert ", ".join(dict.fromkeys(exporter.format for exporter in ordered())) in shown
    assert ", ".join(QUANTIZATIONS) in shown
    assert {exporter.quantization for exporter in ordered()} == set(QUANTIZATIONS)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from servable.cli import run; run(sys.argv[1:]); "
        "heavy = {'numpy', 'grpc', 'google.protobuf', 'tensorflow', 'keras', 'onnxruntime', 'rich', 'httpx', 'PIL'}; "
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_version(cli: Cli) -> None:
    done = cli("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"servable {servable.__version__}\n", "")
    assert metadata.version("servable") == servable.__version__


def test_the_console_script_is_the_same_command() -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="servable")
    assert script.value == "servable.cli:main"
    done = subprocess.run([Path(sys.executable).with_name("servable"), "--version"], check=True, capture_output=True)
    assert done.stdout.decode() == f"servable {servable.__version__}\n"


def test_models(capsys: Capture) -> None:
    assert run(["models"]) == 0
    stdout, stderr = capsys.readouterr()
    assert stderr == ""
    for name, entry in CATALOGUE.items():
        (row,) = [line for line in stdout.splitlines() if f" {name} " in line]
        assert f"{entry.record['parameters']:,}" in row
        assert entry.task in row
    assert re.search(r"cnn .* accuracy 0\.9\d\d\d", stdout)
    assert re.search(r"celsius .* MAE \S+ °F", stdout)


def test_train_then_export_the_trained_weights(cli: Cli, tmp_path: Path) -> None:
    trained = cli("train", "celsius", "--epochs", 2, "--seed", 3, "--output", "mine", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["celsius.json", "celsius.weights.h5"]
    record = json.loads((tmp_path / "mine" / "celsius.json").read_text())
    assert (record["options"]["epochs"], record["options"]["seed"]) == (2, 3)
    assert f"test mae {record['test']['value']:.4f} on 141 samples" in trained.stdout
    assert "wrote mine/celsius.weights.h5 and mine/celsius.json" in trained.stdout
    assert "train celsius: loss " in trained.stderr

    weights = tmp_path / "mine" / "celsius.weights.h5"
    exported = cli("export", "celsius", "--weights", weights, "--quantize", "float32", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "published store/celsius/1" in exported.stdout
    manifest = Manifest.read(tmp_path / "store" / "celsius" / "1")
    evidence = manifest.artifacts[0].evidence["serving_default"]
    assert evidence.metric_value == pytest.approx(record["test"]["value"], rel=1e-4)


def test_a_backend_that_keras_is_set_to_is_not_needed(cli: Cli, tmp_path: Path) -> None:
    done = cli("export", "celsius", "--formats", "saved_model", cwd=tmp_path, KERAS_BACKEND="jax")
    assert done.returncode == 0, done.stderr


def test_export(cli: Cli, tmp_path: Path) -> None:
    done = cli(
        "export", "celsius", "mlp", "--store", "here", "--formats", "tflite", "--quantize", "float32", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    published = [line for line in done.stdout.splitlines() if line.startswith("published ")]
    assert published == ["published here/celsius/1", "published here/mlp/1"]
    assert done.stdout.count(" tflite ") == 2
    assert "onnx" not in done.stdout
    steps = [line.split(": ")[1] for line in done.stderr.splitlines() if line.startswith("export mlp: ")]
    assert steps[1:] == [
        "convert saved_model",
        "verify saved_model",
        "convert tflite",
        "verify tflite",
        "publish",
        "report",
        "done",
    ]
    assert set(done.stderr.splitlines()) == {f"export {name}: {step}" for name in ("celsius", "mlp") for step in steps}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]


@pytest.mark.parametrize("place", ["model", "version"])
def test_bench_as_a_table(store: Store, capfd: Capture, place: str) -> None:
    target = store.root / "cnn" if place == "model" else store.path("cnn", 1)
    assert run(["bench", str(target), "--duration", "0.05"]) == 0
    stdout = capfd.readouterr().out
    assert "cnn version 1, one thread, batch 1" in stdout
    header = next(line for line in stdout.splitlines() if "artifact" in line)
    assert re.findall(r"\w+", header) == ["artifact", "size", "init", "p50", "p90", "p99", "accuracy"]
    rows = [re.sub(r"[│ ]+", " ", line).split() for line in stdout.splitlines() if " ms " in line]
    assert [row[0] for row in rows] == ["saved_model", "tflite", "tflite", "onnx", "onnx"]
    assert all(row[-1].endswith("%") for row in rows)


def test_bench_as_json(store: Store, capfd: Capture) -> None:
    assert run(["bench", str(store.root / "celsius"), "--duration", "0.05", "--json"]) == 0
    stdout, stderr = capfd.readouterr()
    found = json.loads(stdout)
    assert (found["model"], found["version"]) == ("celsius", 1)
    artifacts = {artifact.label: artifact for artifact in Manifest.read(store.path("celsius")).artifacts}
    assert [row["artifact"] for row in found["results"]] == list(artifacts)
    for row in found["results"]:
        assert row["bytes"] == artifacts[row["artifact"]].bytes
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["runs"] > 0
        assert row["init_ms"] > 0
        assert row["metric"] == "mae"
        assert row["metric_value"] < 2.6
    assert all(line.startswith("bench celsius: ") for line in stderr.splitlines())


def targets(store: Store, server: Server, model: str) -> dict[str, str]:
    folder = store.path(model)
    return {
        "grpc": f"grpc://127.0.0.1:{server.grpc_port}/{model}",
        "grpc version": f"grpc://127.0.0.1:{server.grpc_port}/{model}/versions/1",
        "http": f"http://127.0.0.1:{server.rest_port}/{model}",
        "tflite": str(folder / "model.tflite"),
        "tflite int8": str(folder / "model_int8.tflite"),
        "onnx": str(folder / "model.onnx"),
        "store": str(store.root / model),
        "version folder": str(folder),
    }


KINDS = ("grpc", "grpc version", "http", "tflite", "tflite int8", "onnx", "store", "version folder")


@pytest.mark.parametrize("kind", KINDS)
def test_predict_pictures(store: Store, server: Server, capfd: Capture, kind: str) -> None:
    assert run(["predict", targets(store, server, "cnn")[kind], str(TROUSER), str(BAG), "--top-k", "2"]) == 0
    stdout, stderr = capfd.readouterr()
    assert stderr == ""
    lines = stdout.splitlines()
    assert len(lines) == 6
    assert re.fullmatch(rf"{re.escape(str(TROUSER))}  →  Trouser  \(\d+\.\d ms\)", lines[0])
    assert re.fullmatch(rf"{re.escape(str(BAG))}  →  Bag  \(\d+\.\d ms\)", lines[3])
    assert re.fullmatch(r"    Trouser\s+(99\.\d\d|100\.00)%  █{24}", lines[1])


@pytest.mark.parametrize("kind", KINDS)
def test_predict_numbers(store: Store, server: Server, capfd: Capture, kind: str) -> None:
    assert run(["predict", targets(store, server, "celsius")[kind], "100", "-40", "1e1"]) == 0
    stdout, stderr = capfd.readouterr()
    assert stderr == ""
    found = [re.fullmatch(r"(\S+)  →  (\S+)  \(\d+\.\d ms\)", line) for line in stdout.splitlines()]
    answers = {match[1]: float(match[2]) for match in found if match}
    assert answers == pytest.approx({"100": 212.0, "-40": -40.0, "1e1": 50.0}, abs=2.6)


def test_all_ten_pictures_get_their_label(store: Store, capfd: Capture) -> None:
    pictures = samples.sample_pictures()
    assert run(["predict", str(store.root / "cnn"), *map(str, pictures.values()), "--top-k", "1"]) == 0
    heads = [line for line in capfd.readouterr().out.splitlines() if "→" in line]
    assert [re.split(r"  →  |  \(", line)[1] for line in heads] == list(pictures)


def test_a_bare_file_without_its_manifest(store: Store, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "some.onnx").write_bytes((store.path("cnn") / "model.onnx").read_bytes())
    assert run(["predict", str(tmp_path / "some.onnx"), str(TROUSER)]) == 0
    assert "→  class 1  (" in capfd.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["models"],
        ["predict", "STORE/cnn", str(TROUSER)],
        ["bench", "STORE/celsius", "--duration", "0.02"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_piped_output_is_plain(cli: Cli, store: Store, arguments: list[str]) -> None:
    done = cli(*(argument.replace("STORE", str(store.root)) for argument in arguments), FORCE_COLOR="", TERM="xterm")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_predicting_leaves_no_file_anywhere(cli: Cli, store: Store, tmp_path: Path, name: str) -> None:
    folder = str(tmp_path)
    environment = {"HOME": folder, "TMPDIR": folder, "XDG_CACHE_HOME": folder}
    done = cli("predict", store.path("cnn") / name, TROUSER, cwd=tmp_path, **environment)
    assert done.returncode == 0
    assert list(tmp_path.rglob("*")) == []


def test_a_reader_that_leaves_early_is_no_error(store: Store) -> None:
    command = [sys.executable, "-m", "servable", "predict", store.root / "cnn", *[TROUSER] * 50]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


class Serving(Child):
    """``servable serve`` on two ports; ready when it has announced both."""

    def __init__(self, store: Path, folder: Path, *arguments: str) -> None:
        ports = [free_port_of_loopback(), free_port_of_loopback()]
        self.grpc_port, self.rest_port = ports
        options = [f"--port={ports[0]}", f"--rest_api_port={ports[1]}", *arguments]
        super().__init__(
            [sys.executable, "-m", "servable", "serve", str(store), *options], folder / "serve.log", "servable serve"
        )

    def said(self) -> str:
        return self.log.read_text()

    def wait(self) -> None:
        self.wait_until(lambda: "REST at " in self.said(), LIMIT_S)


def free_port_of_loopback() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def test_serve_announces_what_it_serves_and_answers(store: Store, tmp_path: Path) -> None:
    with Serving(store.root, tmp_path) as child:
        child.wait()
        lines = child.said().splitlines()
        assert lines[0] == f"serving {store.root}"
        assert lines[-2] == f"gRPC at 127.0.0.1:{child.grpc_port}"
        assert lines[-1] == f"REST at http://127.0.0.1:{child.rest_port}/v1/models/MODEL"
        assert [line.split(":")[0].strip() for line in lines[1:-2]] == [
            f"{name} version 1" for name in sorted(CATALOGUE)
        ]
        assert all("onnx (the manifest proves parity)" in line for line in lines[1:-2])
        for target in (f"grpc://127.0.0.1:{child.grpc_port}", f"http://127.0.0.1:{child.rest_port}"):
            with connect(f"{target}/celsius") as client:
                assert client.predict([[100.0]])[0, 0] == pytest.approx(212, abs=1e-3)
        status = httpx.get(f"http://127.0.0.1:{child.rest_port}/v1/models/cnn", trust_env=False).json()
        assert status["model_version_status"][0]["state"] == "AVAILABLE"
        assert child.stop() == 0
    assert len(child.said().splitlines()) == len(lines) + 1, "it says that it stops"


@pytest.mark.parametrize(
    ("closed", "open_port"), [("--port=0", "rest_port"), ("--rest_api_port=0", "grpc_port")], ids=["no gRPC", "no REST"]
)
def test_serve_with_one_of_the_two(store: Store, tmp_path: Path, closed: str, open_port: str) -> None:
    with Serving(store.root, tmp_path, closed) as child:
        words = "REST at " if open_port == "rest_port" else "gRPC at "
        child.wait_until(lambda: words in child.said(), LIMIT_S)
        scheme = "http" if open_port == "rest_port" else "grpc"
        with connect(f"{scheme}://127.0.0.1:{getattr(child, open_port)}/celsius") as client:
            assert client.metadata().version == 1
        assert is_free(child.grpc_port if scheme == "http" else child.rest_port)
        assert ("gRPC at " in child.said()) == (scheme == "grpc")
        assert child.stop() == 0


class Hammer:
    """Threads that call a target until it is gone, and what became of their calls."""

    def __init__(self, target: str, threads: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._call, args=(target,)) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _call(self, target: str) -> None:
        rows = np.zeros((64, 28, 28, 1), np.float32)
        with connect(target) as client:
            while True:
                try:
                    assert client.predict(rows, timeout=LIMIT_S).shape == (64, 10)
                except (UnavailableError, CancelledError):  # gRPC cancels a call that it had not begun when it stops
                    self.outcomes["refused"] += 1
                    return
                except Exception as error:  # noqa: BLE001  # the test looks at all of them
                    self.outcomes[repr(error)] += 1
                    return
                self.outcomes["answered"] += 1

    def join(self) -> None:
        for thread in self._threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_while_requests_are_in_flight(
    store: Store, tmp_path: Path, number: signal.Signals
) -> None:
    with Serving(store.root, tmp_path) as child:
        child.wait()
        hammers = [
            Hammer(f"grpc://127.0.0.1:{child.grpc_port}/cnn", 2),
            Hammer(f"http://127.0.0.1:{child.rest_port}/cnn", 2),
        ]
        child.wait_until(lambda: all(hammer.outcomes["answered"] >= 5 for hammer in hammers), LIMIT_S)
        send(child, number)
        for hammer in hammers:
            hammer.join()
        assert child.stop(grace_s=LIMIT_S) == 0
    for hammer in hammers:
        assert hammer.outcomes.pop("answered") >= 5
        assert hammer.outcomes == {"refused": 2}
    assert is_free(child.grpc_port)
    assert is_free(child.rest_port)
    assert "Traceback" not in child.said()


def send(child: Child, number: signal.Signals) -> None:
    os.kill(child.pid, number)


def test_a_model_that_cannot_be_served_is_announced(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    for version in ("1", "2"):
        shutil.copytree(store.path("celsius"), copy / "celsius" / version)
    (copy / "celsius" / "2" / "saved_model.pb").write_bytes(b"broken")
    with Serving(copy, tmp_path) as child:
        child.wait()
        lines = [line.strip() for line in child.said().splitlines()]
        assert any(line.startswith("celsius version 2: NOT SERVED: ") for line in lines)
        with connect(f"grpc://127.0.0.1:{child.grpc_port}/celsius") as client:
            assert client.metadata().version == 1
        assert child.stop() == 0
