"""Real servers and real models that come, go and break, as the official client and HTTP see it."""

from __future__ import annotations

import gc
import json
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow.core.protobuf import error_codes_pb2
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from servable.cli.course import source
from servable.errors import StoreError
from servable.export import ExportOptions, export_model
from servable.manifest import WARMUP_REQUESTS
from servable.models import card
from servable.process import Child
from servable.serving import Server, ServerOptions
from servable.serving.core import CoreOptions
from servable.serving.engines import LoadOptions
from servable.serving.loader import BatchingOptions
from servable.serving.manager import LifecycleOptions
from servable.serving.model_config import All, ModelConfig
from servable.serving.servable import Servable
from servable.serving.sources import ConfigSource
from servable.store import Store
from servable.wire.records import write_records

LIMIT_S = 60.0
SOON: Any = 0.05  # seconds are whole ones on the command line only
OPTIONS = ServerOptions(
    port=0,
    rest_api_port=0,
    core=CoreOptions(file_system_poll_wait_seconds=SOON),
    lifecycle=LifecycleOptions(max_num_load_retries=0),
)
TENSORFLOW = replace(OPTIONS, load=LoadOptions(runtime="tensorflow"))
ALL = "model_version_policy { all {} }"


def until(is_so: Callable[[], bool]) -> None:
    """Wait for it, but not for ever."""
    end = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class Steps:
    """A model each of whose versions answers its own number to whatever it is asked."""

    def __init__(self, folder: Path) -> None:
        self._store = Store(folder)
        self._source = source(card("celsius"))
        self._made: dict[int, Path] = {}

    def put(self, base: Path, *versions: int) -> Path:
        """Publish versions below a base path, each in one step."""
        base.mkdir(parents=True, exist_ok=True)
        for version in versions:
            staged = base.with_name(f"{base.name}.staged")
            shutil.copytree(self._get(version), staged)
            staged.rename(base / str(version))
        return base

    def _get(self, number: int) -> Path:
        if number not in self._made:
            self._source.model.model.set_weights([np.zeros((1, 1)), np.array([number])])
            export_model(
                replace(self._source, name=f"step{number}"), self._store, ExportOptions(("onnx",), ("float32",))
            )
            self._made[number] = self._store.path(f"step{number}")
            shutil.rmtree(self._made[number] / "assets.extra")  # the tests bring warm-up requests of their own
        return self._made[number]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    return Steps(tmp_path_factory.mktemp("steps"))


class Caller:
    """What clients see of a server."""

    def __init__(self, grpc_port: int, rest_port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}")
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{rest_port}", trust_env=False, timeout=LIMIT_S)
        self._models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)

    def close(self) -> None:
        self.channel.close()
        self.http.close()

    def is_up(self) -> bool:
        try:
            return self.http.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def status(self, model: str = "step") -> dict[int, tuple[str, str, str]]:
        """State, code and message of each version; the same over REST."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        try:
            response = self._models.GetModelStatus(request, timeout=LIMIT_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return {}
            raise
        states = get_model_status_pb2.ModelVersionStatus.State
        return {
            found.version: (
                states.Name(found.state),
                error_codes_pb2.Code.Name(found.status.error_code),
                found.status.error_message,
            )
            for found in response.model_version_status
        }

    def states(self, model: str = "step") -> dict[int, str]:
        return {version: found[0] for version, found in self.status(model).items()}

    def reload(self, *models: str) -> Any:
        """HandleReloadConfigRequest for these models."""
        request = model_management_pb2.ReloadConfigRequest()
        text_format.Parse(config_text(*models), request.config)
        return self._models.HandleReloadConfigRequest(request, timeout=LIMIT_S)

    def refusal(self, *models: str) -> tuple[str, str]:
        """Code and text of a reload that fails."""
        with pytest.raises(grpc.RpcError) as caught:
            self.reload(*models)
        return caught.value.code().name, caught.value.details()

    def over_grpc(self, rows: int = 1, model: str = "step", *, version: int = 0, label: str = "") -> tuple[int, int]:
        """The one number that all rows are answered with, and the version that the answer names."""
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        if version:
            request.model_spec.version.value = version
        if label:
            request.model_spec.version_label = label
        request.inputs["celsius"].CopyFrom(tf.make_tensor_proto(np.ones((rows, 1), np.float32)))
        response = self._prediction.Predict(request, timeout=LIMIT_S)
        return one(tf.make_ndarray(response.outputs["fahrenheit"]), rows), response.model_spec.version.value

    def over_rest(self, rows: int = 1, model: str = "step", more: str = "") -> int:
        response = self.http.post(f"/v1/models/{model}{more}:predict", json={"instances": [[1.0]] * rows})
        assert response.status_code == 200, response.text
        return one(np.array(response.json()["predictions"]), rows)


def one(answers: Any, rows: int) -> int:
    assert answers.shape == (rows, 1)
    (number,) = set(answers.ravel().tolist())
    return int(number)


def config_text(*models: str) -> str:
    return f"model_config_list {{ {' '.join(f'config {{ {model} }}' for model in models)} }}"


def entry(base: Path, name: str = "step", more: str = "", **labels: int) -> str:
    """The text of one model's configuration."""
    label_text = " ".join(f'version_labels {{ key: "{key}" value: {value} }}' for key, value in labels.items())
    return f'name: "{name}" base_path: "{base}" model_platform: "tensorflow" {more} {label_text}'


@contextmanager
def serving(*configs: ModelConfig, options: ServerOptions = OPTIONS) -> Iterator[Caller]:
    """A server in this process."""
    with Server(ConfigSource(configs), options, warn=lambda _: None) as server:
        assert server.grpc_port
        assert server.rest_port
        caller = Caller(server.grpc_port, server.rest_port)
        try:
            yield caller
        finally:
            caller.close()


class Program(Caller):
    """``servable serve`` in a process of its own."""

    def __init__(self, child: Child, grpc_port: int, rest_port: int) -> None:
        super().__init__(grpc_port, rest_port)
        self.child = child

    @property
    def log(self) -> str:
        return self.child.log.read_text(encoding="utf-8")


@contextmanager
def program(log: Path, *words: str) -> Iterator[Program]:
    """``servable serve`` on two free ports, when it answers."""
    ports = []
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    flags = [f"--port={ports[0]}", f"--rest_api_port={ports[1]}"]
    with Child([sys.executable, "-m", "servable", "serve", *words, *flags], log, "servable serve") as child:
        running = Program(child, *ports)
        try:
            child.wait_until(running.is_up, LIMIT_S)
            yield running
        finally:
            running.close()


class Load:
    """Threads that ask all the time, over both transports, and look at every answer."""

    def __init__(self, caller: Caller, rows: int = 8) -> None:
        self.failures: list[str] = []
        self.counts: dict[int, int] = {}
        self._caller = caller
        self._rows = rows
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(ask,)) for ask in (self._grpc, self._rest) * 2]

    def _grpc(self) -> int:
        answer, version = self._caller.over_grpc(self._rows)
        assert answer == version
        return answer

    def _rest(self) -> int:
        return self._caller.over_rest(self._rows)

    def _ask(self, ask: Callable[[], int]) -> None:
        newest = 0
        while not self._stop.is_set():
            try:
                version = ask()
                assert version >= newest, "an older version again"
                newest = version
                with self._lock:
                    self.counts[version] = self.counts.get(version, 0) + 1
            except Exception as error:  # noqa: BLE001  # whatever it is, it is one too many
                self.failures.append(f"{type(error).__name__}: {error}")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(LIMIT_S)
        assert not any(thread.is_alive() for thread in self._threads)


def alive() -> int:
    """How many servables are in the memory of this process."""
    gc.collect()
    return sum(type(found) is Servable for found in gc.get_objects())


def swap(caller: Caller, steps: Steps, base: Path, versions: Sequence[int]) -> None:
    """Under constant load publish one version after the other: each replaces the last one, and no request fails."""
    before = alive()
    with Load(caller) as load:
        for version in versions:
            until(lambda asked=version - 1: load.counts.get(asked, 0) > 3)
            steps.put(base, version)
            until(lambda new=version: caller.states() == dict.fromkeys(range(1, new), "END") | {new: "AVAILABLE"})
        until(lambda: load.counts.get(versions[-1], 0) > 3)
    assert load.failures == []
    assert sorted(load.counts) == [versions[0] - 1, *versions]
    assert {found[1:] for found in caller.status().values()} == {("OK", "")}
    until(lambda: alive() == before)


# Versions come and go


def test_new_versions_replace_old_ones_under_load(steps: Steps, tmp_path: Path) -> None:
    base = steps.put(tmp_path / "step", 1)
    with serving(ModelConfig("step", base)) as caller:
        swap(caller, steps, base, range(2, 6))


def test_a_version_folder_that_is_deleted_under_load_is_unloaded(steps: Steps, tmp_path: Path) -> None:
    base = steps.put(tmp_path / "step", 1, 2, 3)
    with serving(ModelConfig("step", base, All())) as caller, Load(caller) as load:
        until(lambda: load.counts.get(3, 0) > 3)
        for gone in (1, 2):
            shutil.rmtree(base / str(gone))
            until(lambda version=gone: caller.states()[version] == "END")
        with pytest.raises(grpc.RpcError, match=r"Servable not found for request: Specific\(step, 2\)"):
            caller.over_grpc(version=2)
        assert caller.http.get("/v1/models/step/versions/2/metadata").status_code == 404
    assert load.failures == []
    assert sorted(load.counts) == [3]
    with serving(ModelConfig("step", steps.put(base, 4))) as caller:
        shutil.rmtree(base / "4")  # and the older one takes its place
        until(lambda: caller.states() == {4: "END", 3: "AVAILABLE"})
        assert caller.over_rest() == 3


def test_what_is_served_outlives_its_base_path(steps: Steps, tmp_path: Path) -> None:
    base = steps.put(tmp_path / "step", 1)
    other = steps.put(tmp_path / "other", 1)
    configs = ModelConfig("step", base), ModelConfig("other", other)
    with serving(*configs) as caller, Load(caller) as load:
        base.rename(tmp_path / "away")  # at once; a folder that is seen empty would be unloaded
        steps.put(other, 2)
        until(lambda: caller.states("other") == {1: "END", 2: "AVAILABLE"})  # the others are looked after
        assert caller.states() == {1: "AVAILABLE"}
        steps.put(tmp_path / "back", 2).rename(base)
        until(lambda: caller.states() == {1: "END", 2: "AVAILABLE"})
    assert load.failures == []


def test_a_base_path_that_is_missing_at_start_is_served_once_it_is_there(steps: Steps, tmp_path: Path) -> None:
    base = tmp_path / "step"
    words = ["--model_name=step", f"--model_base_path={base}", "--file_system_poll_wait_seconds=1"]
    with program(tmp_path / "log", *words) as running:
        assert f"warning: model step: the base path {base} cannot be read: No such file or directory\n" in running.log
        assert running.states() == {}
        with pytest.raises(grpc.RpcError, match=r"Servable not found for request: Latest\(step\)"):
            running.over_grpc()
        steps.put(base, 1)
        until(lambda: running.states() == {1: "AVAILABLE"})
        assert running.over_grpc() == (1, 1)
        assert running.child.stop() == 0
        assert "step version 1 is available" in running.log


# Broken versions


def damage(folder: Path, what: str) -> None:
    if what.endswith(" of another tool"):
        (folder / "servable.json").unlink()
        what = what.removesuffix(" of another tool")
    if what == "a corrupt ONNX file":
        (folder / "model.onnx").write_bytes(b"\x08corrupt")
    elif what == "another file than was measured":
        raw = bytearray((folder / "model.onnx").read_bytes())
        raw[-1] ^= 1
        (folder / "model.onnx").write_bytes(raw)
    elif what == "no ONNX file":
        (folder / "model.onnx").unlink()
    elif what == "half a manifest":
        text = (folder / "servable.json").read_text()
        (folder / "servable.json").write_text(text[: len(text) // 2])
    elif what == "a truncated SavedModel":
        raw = (folder / "saved_model.pb").read_bytes()
        (folder / "saved_model.pb").write_bytes(raw[: len(raw) // 2])
    elif what == "truncated variables":
        data = folder / "variables" / "variables.data-00000-of-00001"
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    else:
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.mark.parametrize(
    ("what", "text", "options"),
    [
        ("a corrupt ONNX file", "model.onnx is damaged or was changed after its export", OPTIONS),
        ("another file than was measured", "its SHA-256 is not the one in servable.json", OPTIONS),
        ("no ONNX file", "model.onnx cannot be read: No such file or directory", OPTIONS),
        ("half a manifest", "servable.json is not valid JSON", OPTIONS),
        ("a truncated SavedModel", "is damaged or was changed after its export", OPTIONS),
        ("nothing in it", "saved_model.pb", OPTIONS),
        ("truncated variables", "is damaged or was changed after its export", TENSORFLOW),
        ("a truncated SavedModel of another tool", "saved_model.pb", TENSORFLOW),
        ("truncated variables of another tool", "is not a SavedModel that TensorFlow can load", TENSORFLOW),
    ],
    ids=lambda value: value if isinstance(value, str) else value.load.runtime,
)
def test_a_broken_version_is_refused_shown_and_mended(
    steps: Steps, tmp_path: Path, what: str, text: str, options: ServerOptions
) -> None:
    base = steps.put(tmp_path / "step", 1)
    broken = steps.put(tmp_path / "aside", 2) / "2"
    damage(broken, what)
    with serving(ModelConfig("step", base), options=options) as caller, Load(caller) as load:
        broken.rename(base / "2")
        until(lambda: caller.states() == {2: "END", 1: "AVAILABLE"})
        code, message = caller.status()[2][1:]
        assert code in ("FAILED_PRECONDITION", "NOT_FOUND")
        assert text in message
        assert str(base / "2") in message
        (rest, _) = caller.http.get("/v1/models/step").json()["model_version_status"]
        assert (rest["version"], rest["state"], rest["status"]["error_message"]) == ("2", "END", message)
        assert load.counts.keys() <= {1}
        shutil.rmtree(base / "2")
        steps.put(base, 2)
        until(lambda: caller.status() == {2: ("AVAILABLE", "OK", ""), 1: ("END", "OK", "")})
    assert load.failures == []


def test_a_broken_version_that_is_mended_in_its_place_is_served(steps: Steps, tmp_path: Path) -> None:
    base = steps.put(tmp_path / "step", 1, 2)
    whole = (base / "2" / "model.onnx").read_bytes()
    (base / "2" / "model.onnx").write_bytes(whole[:100])
    with serving(ModelConfig("step", base, All())) as caller:
        assert caller.states() == {2: "END", 1: "AVAILABLE"}
        assert caller.over_rest() == 1
        (base / "2" / "model.onnx").write_bytes(whole)
        until(lambda: caller.states() == {2: "AVAILABLE", 1: "AVAILABLE"})
        assert caller.over_rest() == 2


def test_a_model_without_a_good_version_ends_the_start(
    steps: Steps, tmp_path: Path, cli: Callable[..., Any], free_port: int
) -> None:
    base = steps.put(tmp_path / "step", 1)
    damage(base / "1", "a corrupt ONNX file")
    retries = ["--max_num_load_retries=2", "--load_retry_interval_micros=-1"]
    for words in ([], retries):
        done = cli(
            "serve", "--model_name=step", f"--model_base_path={base}", "--port=0", "--grpc_socket_path=s", *words
        )
        assert (done.returncode, done.stdout) == (StoreError.exit_code, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(
            f"error: no version of model 'step' can be served: {base / '1' / 'model.onnx'} is damaged"
        )


# Warm-up


def warm_up(folder: Path, *models: str, signature: str = "") -> None:
    """Give a version folder requests to run before it is available."""
    records = []
    for model in models:
        log = prediction_log_pb2.PredictionLog()
        request = log.predict_log.request
        request.model_spec.name = model
        request.model_spec.version.value = 77
        request.model_spec.signature_name = signature
        request.inputs["celsius"].CopyFrom(tf.make_tensor_proto(np.ones((2, 1), np.float32)))
        records.append(log.SerializeToString())
    (folder / WARMUP_REQUESTS).parent.mkdir(exist_ok=True)
    write_records(folder / WARMUP_REQUESTS, records)


@pytest.mark.parametrize("options", [OPTIONS, TENSORFLOW], ids=["onnx", "tensorflow"])
def test_warm_up_requests_are_run_before_a_version_is_available(
    steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: ServerOptions
) -> None:
    base = steps.put(tmp_path / "step", 1)
    warm_up(base / "1", "step", "another")
    runs: list[tuple[int, str, int]] = []
    run = Servable.run

    def note(servable: Servable, signature: str, inputs: Any, outputs: Any) -> Any:
        runs.append((servable.version, signature, len(inputs["celsius"])))
        return run(servable, signature, inputs, outputs)

    monkeypatch.setattr(Servable, "run", note)
    options = replace(options, rest=replace(options.rest, metrics_path="/metrics"))
    with serving(ModelConfig("step", base), options=options) as caller:
        assert runs == [(1, "serving_default", 2)] * 2
        page = caller.http.get("/metrics").text
        assert f'model_warmup_records_read{{model_path="{base / "1"}",status="OK"}} 2\n' in page
        assert 'servable_request_stage_seconds_count{model_name="step"' not in page  # they are no requests
        assert caller.over_grpc() == (1, 1)


def test_a_version_whose_warm_up_fails_is_not_available(steps: Steps, tmp_path: Path) -> None:
    base = steps.put(tmp_path / "step", 1)
    bad = steps.put(tmp_path / "aside", 2) / "2"
    warm_up(bad, "step", signature="nope")
    with serving(ModelConfig("step", base)) as caller:
        before = alive()
        bad.rename(base / "2")
        until(lambda: caller.states() == {2: "END", 1: "AVAILABLE"})
        until(lambda: alive() == before)
        code, message = caller.status()[2][1:]
        assert code == "FAILED_PRECONDITION"
        assert message == f'{base / "2" / WARMUP_REQUESTS}: record 1: Serving signature key "nope" not found.'
        assert caller.over_rest() == 1
        (base / "2" / WARMUP_REQUESTS).write_bytes(b"not a TFRecord file")
        until(lambda: caller.status()[2][1] == "DATA_LOSS")
        assert caller.status()[2][2].endswith("Please verify your warmup data is in TFRecord format.")
        warm_up(base / "2", "step")
        until(lambda: caller.states() == {2: "AVAILABLE", 1: "END"})


def test_warm_up_can_be_left_out(steps: Steps, tmp_path: Path) -> None:
    base = steps.put(tmp_path / "step", 1)
    warm_up(base / "1", "step", signature="nope")
    with serving(ModelConfig("step", base), options=replace(OPTIONS, warmup=replace(OPTIONS.warmup, enabled=False))):
        pass
    with pytest.raises(StoreError, match=r"no version of model 'step' can be served: .* not found"):
        Server(ConfigSource([ModelConfig("step", base)]), OPTIONS)


# Configurations


@pytest.fixture(scope="module")
def base(steps: Steps, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base path with versions 1 to 3; read only."""
    return steps.put(tmp_path_factory.mktemp("base") / "step", 1, 2, 3)


@pytest.fixture(scope="module")
def caller(base: Path) -> Iterator[Caller]:
    """A server with two models; a test that changes its configuration puts it back."""
    with serving(ModelConfig("step", base), ModelConfig("other", base)) as caller:
        yield caller


PLATFORM = 'model_platform: "tensorflow"'


@pytest.mark.parametrize(
    ("models", "code", "text"),
    [
        (
            ['name: "step" base_path: "BASE"', 'name: "step" base_path: "BASE"'],
            "INVALID_ARGUMENT",
            "Illegal to list model step multiple times in config list",
        ),
        (
            [f'name: "step" base_path: "models/step" {PLATFORM}'],
            "INVALID_ARGUMENT",
            "Expected model step to have an absolute path or URI; got base_path()=models/step",
        ),
        (
            [f'name: "step" base_path: "BASE" {PLATFORM} model_type: TENSORFLOW'],
            "INVALID_ARGUMENT",
            "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform, "
            "model name is step",
        ),
        (
            ['name: "step" base_path: "BASE"'],
            "INVALID_ARGUMENT",
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            "ModelServerConfig::model_platform, model name is step",
        ),
        (
            ['name: "step" base_path: "BASE" model_type: OTHER'],
            "INVALID_ARGUMENT",
            "ModelServerConfig::model_type choice 2 not supported.",
        ),
        (
            ['name: "step" base_path: "BASE" model_platform: "caffe"'],
            "INVALID_ARGUMENT",
            "Model step requests unsupported platform caffe",
        ),
        (
            [f'name: "step" base_path: "BASE" {PLATFORM} version_labels {{ key: "old" value: 1 }}'],
            "FAILED_PRECONDITION",
            "Request to assign label to version 1 of model step, which is not currently available for inference",
        ),
        (
            [f'name: "new" base_path: "BASE" {PLATFORM} version_labels {{ key: "l" value: 3 }}'],
            "FAILED_PRECONDITION",
            "Request to assign label to version 3 of model new, which is not currently available for inference",
        ),
    ],
)
def test_a_refused_reload_changes_nothing(caller: Caller, base: Path, models: list[str], code: str, text: str) -> None:
    assert caller.refusal(*(model.replace("BASE", str(base)) for model in models)) == (code, text)
    assert caller.states() == caller.states("other") == {3: "AVAILABLE"}
    assert caller.reload(entry(base), entry(base, "other")).status.error_code == 0


def test_a_reload_without_a_list_is_refused(caller: Caller) -> None:
    stub = model_service_pb2_grpc.ModelServiceStub(caller.channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(), timeout=LIMIT_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == (
        "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
    )


def test_a_reload_with_a_new_model_that_is_broken_or_missing_names_it(
    caller: Caller, steps: Steps, base: Path, tmp_path: Path
) -> None:
    broken = steps.put(tmp_path / "broken", 5)
    damage(broken / "5", "a corrupt ONNX file")
    missing = tmp_path / "missing"
    models = [entry(base), entry(base, "other"), entry(broken, "broken"), entry(missing, "missing")]
    code, text = caller.refusal(*models)
    assert code == "UNKNOWN"
    assert text.startswith(
        "2 model(s) did not become available: {{{name: broken version: 5} due to error: FAILED_PRECONDITION: "
        f"{broken / '5' / 'model.onnx'} is damaged or was changed after its export"
    )
    assert text.endswith(
        f"{{{{name: missing}} due to error: NOT_FOUND: the base path {missing} cannot be read: "
        "No such file or directory}, }"
    )
    assert caller.states("broken") == {5: "END"}
    assert caller.states() == {3: "AVAILABLE"}
    steps.put(missing, 7)
    until(lambda: caller.states("missing") == {7: "AVAILABLE"})  # it was taken all the same
    caller.reload(entry(base), entry(base, "other"))
    until(lambda: caller.states("missing") == {7: "END"})


def test_labels_move_in_steps(caller: Caller, base: Path) -> None:
    other = entry(base, "other")
    caller.reload(entry(base, more=ALL), other)
    until(lambda: caller.states() == dict.fromkeys((1, 2, 3), "AVAILABLE"))
    caller.reload(entry(base, more=ALL, stable=1, canary=2), other)
    assert caller.over_grpc(label="stable") == (1, 1)
    assert caller.over_rest(more="/labels/canary") == 2
    assert caller.over_grpc() == (3, 3)
    caller.reload(entry(base, more=ALL, stable=2), other)
    assert caller.over_rest(more="/labels/stable") == 2
    with pytest.raises(grpc.RpcError, match="Unrecognized servable version label: canary"):
        caller.over_grpc(label="canary")
    caller.reload(entry(base, more="model_version_policy { specific { versions: 2 } }", stable=2), other)
    until(lambda: caller.states() == {1: "END", 2: "AVAILABLE", 3: "END"})
    assert caller.over_grpc() == caller.over_grpc(label="stable") == (2, 2)
    caller.reload(entry(base), other)
    until(lambda: caller.states() == {1: "END", 2: "END", 3: "AVAILABLE"})


def test_models_are_added_and_taken_away_under_load(caller: Caller, base: Path) -> None:
    with Load(caller) as load:
        for _ in range(5):
            caller.reload(entry(base), entry(base, "other"), entry(base, "new"))
            assert caller.over_rest(model="new") == 3
            caller.reload(entry(base), entry(base, "other"))
            until(lambda: caller.states("new") == {3: "END"})
            with pytest.raises(grpc.RpcError, match=r"Servable not found for request: Latest\(new\)"):
                caller.over_grpc(model="new")
    assert load.failures == []
    assert sorted(load.counts) == [3]


def test_a_config_file_with_policies_and_labels_is_read_again_and_again(
    steps: Steps, store: Store, base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "models.config"
    celsius = entry(store.root / "celsius", "celsius")
    specific = "model_version_policy { specific { versions: 1 versions: 2 } }"
    file.write_text(
        config_text(
            entry(base, more=specific, stable=1, canary=2),
            celsius,
            entry(base, "two", "model_version_policy { latest { num_versions: 2 } }"),
        )
    )
    words = [f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=1"]
    with program(tmp_path / "log", *words) as running:
        assert running.states() == dict.fromkeys((1, 2), "AVAILABLE")
        assert running.states("two") == dict.fromkeys((2, 3), "AVAILABLE")
        assert running.over_grpc(label="stable") == (1, 1)
        assert running.over_rest(more="/labels/canary") == 2
        whole = config_text(entry(base, more=specific, stable=2), entry(base, "two", ALL), entry(base, "new"))
        file.write_text(whole[: len(whole) // 2])
        until(lambda: "Invalid protobuf file" in running.log)
        assert running.over_grpc(label="stable") == (1, 1)
        assert running.states("celsius") == {1: "AVAILABLE"}
        file.write_text(whole)
        until(lambda: running.states("new") == {3: "AVAILABLE"})
        until(lambda: running.states("two") == dict.fromkeys((1, 2, 3), "AVAILABLE"))
        until(lambda: running.states("celsius") == {1: "END"})
        assert running.over_rest(more="/labels/stable") == 2
        with pytest.raises(grpc.RpcError, match="Unrecognized servable version label: canary"):
            running.over_grpc(label="canary")
        # A reload is in force until the file is read again.
        assert running.reload(entry(base, more=specific), celsius).status.error_code == 0
        until(lambda: running.states("celsius") == {1: "END"})
        until(lambda: running.states("new") == {3: "AVAILABLE"})
        assert running.over_rest(more="/labels/stable") == 2
        assert running.child.stop() == 0
        assert running.log.count("Invalid protobuf file") == 1
        assert "Traceback" not in running.log


# The end


def test_stopping_tells_the_health_and_lets_requests_finish(
    steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = steps.put(tmp_path / "step", 1)
    entered, go_on = threading.Semaphore(0), threading.Event()
    run = Servable.run

    def hold(servable: Servable, signature: str, inputs: Any, outputs: Any) -> Any:
        entered.release()
        assert go_on.wait(LIMIT_S)
        return run(servable, signature, inputs, outputs)

    answers: list[object] = []
    with Server(ConfigSource([ModelConfig("step", base)]), OPTIONS) as server:
        assert server.grpc_port
        assert server.rest_port
        caller = Caller(server.grpc_port, server.rest_port)
        watch = health_pb2_grpc.HealthStub(caller.channel).Watch(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        monkeypatch.setattr(Servable, "run", hold)
        asking = [
            threading.Thread(target=lambda ask=ask: answers.append(ask()))
            for ask in (caller.over_grpc, caller.over_rest)
        ]
        for thread in asking:
            thread.start()
            assert entered.acquire(timeout=LIMIT_S)
        stopping = threading.Thread(target=server.stop, args=(LIMIT_S,))
        stopping.start()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert stopping.is_alive()
        go_on.set()
        for thread in (*asking, stopping):
            thread.join(LIMIT_S)
    assert sorted(map(str, answers)) == ["(1, 1)", "1"]
    assert not caller.is_up()
    caller.close()


BATCHING = "max_batch_size { value: 100 } batch_timeout_micros { value: 30000000 } num_batch_threads { value: 1 }"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_program_after_its_requests(
    steps: Steps, base: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A batched request waits for others, and so is in flight for certain."""
    (tmp_path / "batching").write_text(BATCHING)
    words = ["--enable_batching", f"--batching_parameters_file={tmp_path / 'batching'}"]
    with program(tmp_path / "log", "--model_name=step", f"--model_base_path={base}", *words) as running:
        watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        answers: list[object] = []
        asks = running.over_grpc, running.over_rest
        asking = [threading.Thread(target=lambda ask=ask: answers.append(ask())) for ask in asks]
        for thread in asking:
            thread.start()
        time.sleep(3.0)  # nothing tells of a request that waits for others
        assert answers == []
        running.child._process.send_signal(number)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for thread in asking:
            thread.join(LIMIT_S)
        assert sorted(map(str, answers)) == ["(3, 3)", "3"]
        assert running.child._process.wait(LIMIT_S) == 0
        assert "Traceback" not in running.log


def test_a_signal_ends_the_program_while_it_is_still_loading(steps: Steps, tmp_path: Path) -> None:
    base = steps.put(tmp_path / "step", 1)
    warm_up(base / "1", "step")
    words = ["serve", "--model_name=step", f"--model_base_path={base}", "--port=0", f"--grpc_socket_path={tmp_path}/s"]
    endless = "--num_request_iterations_for_warmup=2000000000"
    with Child([sys.executable, "-m", "servable", *words, endless], tmp_path / "log", "servable serve") as child:
        until((tmp_path / "s").exists)
        time.sleep(1.0)  # it is warming up, or about to
        assert child.stop(LIMIT_S) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_signal_ends_the_program_while_a_new_version_is_loading(steps: Steps, tmp_path: Path) -> None:
    base = steps.put(tmp_path / "step", 1)
    endless = "--num_request_iterations_for_warmup=2000000000"
    with program(tmp_path / "log", "--model_name=step", f"--model_base_path={base}", endless) as running:
        aside = steps.put(tmp_path / "aside", 2) / "2"
        warm_up(aside, "step")
        aside.rename(base / "2")
        until(lambda: running.states() == {1: "AVAILABLE", 2: "LOADING"})
        assert running.over_rest() == 1
        assert running.child.stop(LIMIT_S) == 0
        assert "WARNING" not in running.log


# Long ones


@pytest.mark.slow
def test_twenty_versions_replace_each_other_under_load(steps: Steps, tmp_path: Path) -> None:
    base = steps.put(tmp_path / "step", 1)
    words = ["--model_name=step", f"--model_base_path={base}", "--file_system_poll_wait_seconds=1"]
    with program(tmp_path / "log", *words) as running:
        swap(running, steps, base, range(2, 22))
        assert running.child.stop() == 0
        assert running.log.count("is available") == running.log.count("is being unloaded") == 20
        assert "WARNING" not in running.log


@pytest.mark.slow
@pytest.mark.parametrize("batching", [False, True])
def test_twenty_versions_replace_each_other_in_tensorflow(steps: Steps, tmp_path: Path, batching: bool) -> None:
    base = steps.put(tmp_path / "step", 1)
    options = replace(TENSORFLOW, batching=BatchingOptions() if batching else None)
    with serving(ModelConfig("step", base), options=options) as caller:
        swap(caller, steps, base, range(2, 22))


@pytest.mark.slow
def test_a_truncated_saved_model_ends_no_process(steps: Steps, tmp_path: Path) -> None:
    base = steps.put(tmp_path / "step", 1)
    words = ["--model_name=step", f"--model_base_path={base}", "--runtime=tensorflow", "--max_num_load_retries=0"]
    with program(tmp_path / "log", *words) as running:
        size = (steps.put(tmp_path / "aside", 2) / "2" / "saved_model.pb").stat().st_size
        whole = (tmp_path / "aside" / "2" / "saved_model.pb").read_bytes()
        for version, length in enumerate((0, 1, size // 10, size // 2, size - 1), 2):
            staged = steps.put(tmp_path / "aside", version + 100) / str(version + 100)
            (staged / "saved_model.pb").write_bytes(whole[:length])
            (staged / "servable.json").unlink()  # whose hash would tell before TensorFlow reads it
            staged.rename(base / str(version))
            until(lambda new=version: running.states().get(new) == "END")
            code, message = running.status()[version][1:]
            assert code == "FAILED_PRECONDITION"
            assert "saved_model.pb" in message
            assert running.over_rest() == 1
        assert json.loads(running.http.get("/v1/models/step/versions/1").text)["model_version_status"]
        assert running.child.stop() == 0
