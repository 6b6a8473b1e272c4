"""Warm-up files that TensorFlow's writer and the official messages make are replayed as the original does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import Message
from tensorflow_serving.apis import prediction_log_pb2

from servable.errors import (
    Code,
    DataLossError,
    InvalidArgumentError,
    MissingExtraError,
    PermissionDeniedError,
    ServableError,
    UnimplementedError,
)
from servable.serving import warmup
from servable.serving.monitoring import Monitor

LATENCY = ":tensorflow:serving:model_warmup_latency"
RECORDS = ":tensorflow:serving:model_warmup_records_read"


class Calls:
    """What was handed to be run; fails from the given call on."""

    def __init__(self, error: Exception | None = None, at: int = 0) -> None:
        self.made: list[tuple[str, Any]] = []
        self._error = error
        self._at = at

    def __call__(self, method: str, request: Any) -> None:
        self.made.append((method, request))
        if self._error is not None and len(self.made) >= self._at:
            raise self._error

    @property
    def methods(self) -> list[str]:
        return [method for method, _ in self.made]


def write(folder: Path, *records: Message | bytes) -> Path:
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record if isinstance(record, bytes) else record.SerializeToString())
    return path


def log(kind: str = "predict_log", version: int = 0, label: str = "", signature: str = "sig") -> Any:
    """An official PredictionLog of one request, made for another model."""
    message = prediction_log_pb2.PredictionLog()
    message.log_metadata.timestamp_secs = 7
    request = getattr(message, kind).request
    if kind == "multi_inference_log":
        holders = [request.tasks.add(method_name=f"tensorflow/serving/{name}") for name in ("classify", "regress")]
    else:
        holders = [request]
    for holder in holders:
        holder.model_spec.name = "another"
        holder.model_spec.signature_name = signature
        if version:
            holder.model_spec.version.value = version
        if label:
            holder.model_spec.version_label = label
    if kind == "predict_log":
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([[1, 2]])))
        request.output_filter.append("y")
        message.predict_log.response.outputs["y"].CopyFrom(tf.make_tensor_proto(0))
    else:
        example = request.input.example_list.examples.add()
        example.features.feature["x"].float_list.value.extend([1, 2])
    return message


def samples(monitor: Monitor, name: str) -> list[str]:
    return [line for line in monitor.page().decode().splitlines() if line.startswith(f"{name}{{")]


def counted(monitor: Monitor, folder: Path) -> dict[str, tuple[int, int]]:
    """Status → warm-ups, records read."""
    found = {}
    for code in Code:
        labels = f'{{model_path="{folder}",status="{code.name}"}} '
        times = [line.split()[-1] for line in samples(monitor, f"{LATENCY}_count") if labels in line]
        read = [line.split()[-1] for line in samples(monitor, RECORDS) if labels in line]
        assert len(times) == len(read) <= 1
        if times:
            found[code.name] = int(times[0]), int(read[0])
    return found


def replay(folder: Path, run: Calls, iterations: int = 1) -> tuple[int, Monitor]:
    monitor = Monitor()
    return warmup.replay(folder, "mine", run, iterations, monitor), monitor


def refused(folder: Path, error: type[ServableError], run: Calls | None = None) -> tuple[str, Monitor]:
    monitor = Monitor()
    with pytest.raises(error) as caught:
        warmup.replay(folder, "mine", run or Calls(), 1, monitor)
    assert type(caught.value) is error
    return str(caught.value), monitor


def test_every_kind_of_request_is_handed_over_in_order(tmp_path: Path) -> None:
    kinds = ["multi_inference_log", "predict_log", "classify_log", "regress_log", "predict_log"]
    logs = [log(kind) for kind in kinds]
    write(tmp_path, *logs)
    run = Calls()
    count, monitor = replay(tmp_path, run)
    assert count == 5
    assert run.methods == ["MultiInference", "Predict", "Classify", "Regress", "Predict"]
    for (_, request), kind, message in zip(run.made, kinds, logs, strict=True):
        want = getattr(message, kind).request
        for holder in want.tasks if kind == "multi_inference_log" else [want]:
            holder.model_spec.name = "mine"
        got = type(want).FromString(request.SerializeToString())
        assert got == want
    assert counted(monitor, tmp_path) == {"OK": (1, 5)}


@pytest.mark.parametrize("kind", ["predict_log", "classify_log", "regress_log", "multi_inference_log"])
@pytest.mark.parametrize("choice", [{"version": 3}, {"label": "stable"}, {}])
def test_the_request_is_for_this_model_whatever_it_was_made_for(
    kind: str, choice: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, log(kind, **choice))
    run = Calls()
    replay(tmp_path, run)
    request = run.made[0][1]
    specs = [task.model_spec for task in request.tasks] if kind == "multi_inference_log" else [request.model_spec]
    assert len(specs) == (2 if kind == "multi_inference_log" else 1)
    for spec in specs:
        assert (spec.name, spec.signature_name, spec.WhichOneof("version_choice")) == ("mine", "sig", None)


def test_each_request_is_run_as_often_as_told(tmp_path: Path) -> None:
    write(tmp_path, log("predict_log"), log("classify_log"))
    run = Calls()
    count, monitor = replay(tmp_path, run, iterations=3)
    assert run.methods == ["Predict"] * 3 + ["Classify"] * 3
    assert count == 2
    assert counted(monitor, tmp_path) == {"OK": (1, 2)}


@pytest.mark.parametrize("there", ["nothing", "folder", "file"])
def test_without_a_file_there_is_nothing_to_do(there: str, tmp_path: Path) -> None:
    if there == "folder":
        (tmp_path / "assets.extra").mkdir()
    elif there == "file":
        (tmp_path / "assets.extra").touch()
    run = Calls()
    count, monitor = replay(tmp_path, run)
    assert (count, run.made) == (0, [])
    assert list(warmup.read(tmp_path)) == []
    assert counted(monitor, tmp_path) == {}


def test_an_empty_file_is_fine(tmp_path: Path) -> None:
    write(tmp_path)
    run = Calls()
    count, monitor = replay(tmp_path, run)
    assert (count, run.made) == (0, [])
    assert counted(monitor, tmp_path) == {"OK": (1, 0)}


def test_a_record_that_logs_nothing_is_skipped_and_counted(tmp_path: Path) -> None:
    write(tmp_path, b"", log(), prediction_log_pb2.PredictionLog(), log("regress_log"))
    run = Calls()
    count, _ = replay(tmp_path, run)
    assert run.methods == ["Predict", "Regress"]
    assert count == 4


@pytest.mark.parametrize(("kind", "number"), [("predict_streamed_log", 7), ("session_run_log", 5)])
def test_other_calls_are_unimplemented(kind: str, number: int, tmp_path: Path) -> None:
    message = prediction_log_pb2.PredictionLog()
    getattr(message, kind).SetInParent()
    path = write(tmp_path, log(), message)
    text, monitor = refused(tmp_path, UnimplementedError)
    assert text == f"{path}: record 2: Unsupported log_type for warmup: {number}"
    assert counted(monitor, tmp_path) == {"UNIMPLEMENTED": (1, 2)}


def test_a_thousand_records_are_the_most(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("most", "more")]
    for folder, count in zip(folders, (1000, 1001), strict=True):
        folder.mkdir()
        path = write(folder, *([log()] * count))
    run = Calls()
    assert replay(folders[0], run)[0] == len(run.made) == 1000
    run = Calls()
    text, monitor = refused(folders[1], InvalidArgumentError, run)
    assert text == f"Number of warmup records exceeds the maximum (1000) at {path}"
    assert len(run.made) == 1000
    assert counted(monitor, folders[1]) == {"INVALID_ARGUMENT": (1, 1000)}


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        (b"malformed_record", "malformed_record"),
        (b"\xff\x00\n'\"", "\\xff\\x00\\n\\'\""),
        (b"\xff" * 64, "\\xff" * 64),
        (b"\xff" * 65, "\\xff" * 64 + "..."),
        (b"m" * 5_000_001, "m" * 64 + "..."),
    ],
    ids=["text", "bytes", "longest", "longer", "huge"],
)
def test_a_record_that_is_no_log_is_shown(record: bytes, shown: str, tmp_path: Path) -> None:
    path = write(tmp_path, log(), record)
    run = Calls()
    text, monitor = refused(tmp_path, InvalidArgumentError, run)
    assert text == f"Failed to parse warmup record: {shown} from {path}"
    assert run.methods == ["Predict"]
    assert counted(monitor, tmp_path) == {"INVALID_ARGUMENT": (1, 1)}


def test_a_damaged_file_is_data_loss(tmp_path: Path) -> None:
    path = write(tmp_path, log(), log())
    path.write_bytes(path.read_bytes()[:-1])
    run = Calls()
    text, monitor = refused(tmp_path, DataLossError, run)
    assert text.startswith(f"{path}: record 2, at byte ")
    assert text.endswith("Please verify your warmup data is in TFRecord format.")
    assert counted(monitor, tmp_path) == {"DATA_LOSS": (1, 1)}


def every_error(cls: type[ServableError] = ServableError) -> list[type[ServableError]]:
    return [cls, *(found for sub in cls.__subclasses__() if sub.__module__ == cls.__module__
                   for found in every_error(sub))]  # fmt: skip


@pytest.mark.parametrize("kind", every_error())
def test_an_error_of_the_model_names_the_file_and_the_record(kind: type[ServableError], tmp_path: Path) -> None:
    path = write(tmp_path, log(), log("classify_log"), log("regress_log"))
    error = kind("the model", "package", "serve") if kind is MissingExtraError else kind("it went wrong")
    run = Calls(error, at=2)
    before = str(error)
    text, monitor = refused(tmp_path, kind, run)
    assert text == f"{path}: record 2: {before}"
    assert str(error) == before
    assert run.methods == ["Predict", "Classify"]
    assert counted(monitor, tmp_path) == {kind.code.name: (1, 2)}


def test_attributes_of_an_error_are_kept(tmp_path: Path) -> None:
    write(tmp_path, log())
    with pytest.raises(MissingExtraError) as caught:
        replay(tmp_path, Calls(MissingExtraError("the model", "package", "serve")))
    assert (caught.value.package, caught.value.extra) == ("package", "serve")


def test_a_failure_in_a_later_round_is_one_too(tmp_path: Path) -> None:
    path = write(tmp_path, log())
    with pytest.raises(InvalidArgumentError, match=f"^{path}: record 1: no$"):
        replay(tmp_path, Calls(InvalidArgumentError("no"), at=3), iterations=3)


def test_an_error_of_the_program_is_not_hidden_and_not_counted_as_success(tmp_path: Path) -> None:
    write(tmp_path, log())
    monitor = Monitor()
    with pytest.raises(ZeroDivisionError):
        warmup.replay(tmp_path, "mine", Calls(ZeroDivisionError()), 1, monitor)
    assert counted(monitor, tmp_path) == {"UNKNOWN": (1, 1)}


def test_a_folder_that_may_not_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    write(tmp_path, log())
    monkeypatch.setattr(Path, "stat", refuse)
    text, _ = refused(tmp_path, PermissionDeniedError)
    assert text.endswith("tf_serving_warmup_requests cannot be read: Permission denied")


def test_the_metrics_are_those_of_the_original(tmp_path: Path) -> None:
    write(tmp_path, log())
    _, monitor = replay(tmp_path, Calls())
    page = monitor.page().decode().splitlines()
    assert f"# TYPE {LATENCY} histogram" in page
    assert f"# TYPE {RECORDS} counter" in page
    limits = [line.split('le="')[1].split('"')[0] for line in samples(monitor, f"{LATENCY}_bucket")]
    assert limits == [f"{10 * 1.8**i:.6g}" for i in range(33)] + ["+Inf"]
