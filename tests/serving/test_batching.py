"""Requests that run together, through the server: who gets what, who fails, and what is counted."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis.prediction_service_pb2_grpc import PredictionServiceStub

from servable.errors import InvalidArgumentError
from servable.models import card
from servable.models.samples import test_samples as labelled_samples
from servable.serving import Aspired, Server, ServerOptions
from servable.serving.batching import BatchingParameters
from servable.serving.engines import LoadOptions
from servable.serving.loader import BatchingOptions
from servable.serving.manager import LifecycleOptions
from servable.serving.rest_front import RestOptions
from servable.serving.warmup import Warmup
from servable.store import Store

METRICS = "/metrics"
ANY = ServerOptions(port=0, rest_api_port=0, rest=RestOptions(metrics_path=METRICS))
# Longer than any test: a batch runs when it is full.
LONG_US = 60_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel of rows of any length: doubled, or refused where one is negative, or added up."""

    class Rows(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, name="x")])
        def double(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": 2 * x}

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, name="x")])
        def positive(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            with tf.control_dependencies([tf.debugging.assert_non_negative(x, message="negative")]):
                return {"y": tf.identity(x)}

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, name="x")])
        def total(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": tf.reduce_sum(x)}

    rows, path = Rows(), tmp_path_factory.mktemp("rows") / "1"
    signatures = {"serving_default": rows.double, "positive": rows.positive, "total": rows.total}
    tf.saved_model.save(rows, str(path), signatures=signatures)
    return path


@contextmanager
def serving(source: Any, parameters: BatchingParameters, **options: Any) -> Iterator[Server]:
    # Warm-up requests are batched too, and would wait for others, one after the other.
    options = {"warmup": Warmup(enabled=False), **options}
    with Server(source, replace(ANY, batching=BatchingOptions(parameters), **options)) as server:
        yield server


@contextmanager
def rows_server(folder: Path, **parameters: Any) -> Iterator[Server]:
    with serving([Aspired("rows", {1: folder})], BatchingParameters(**parameters)) as server:
        yield server


def post(server: Server, rows: Any, signature: str = "serving_default", model: str = "rows") -> httpx.Response:
    body = json.dumps({"inputs": rows, "signature_name": signature})
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/{model}:predict"
    return httpx.post(url, content=body, trust_env=False, timeout=60)


def together(*calls: Callable[[], Any]) -> list[Any]:
    """The answers of calls that are made at the same time."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def metric(server: Server, name: str) -> float:
    page = httpx.get(f"http://127.0.0.1:{server.rest_port}{METRICS}", trust_env=False).text
    prefix = f":tensorflow:serving:batching_session:{name}{{"
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(prefix))


def answered(server: Server) -> float:
    """Batches that have run: told a moment after the answers."""
    return metric(server, "wrapped_run_count")


def test_requests_of_different_callers_are_one_run_and_get_their_own_rows(folder: Path) -> None:
    with rows_server(folder, max_batch_size=6, batch_timeout_micros=LONG_US) as server:
        answers = together(*(lambda i=i: post(server, [[i, i + 0.5]] * (i + 1)) for i in range(3)))
        assert [answer.json()["outputs"] for answer in answers] == [[[2 * i, 2 * i + 1]] * (i + 1) for i in range(3)]
        assert answered(server) == 1
        assert metric(server, "input_batch_size_count") == 3
        assert metric(server, "processed_batch_size_sum") == 6


@pytest.mark.parametrize("runtime", ["auto", "tensorflow"])
def test_many_callers_over_both_transports_get_what_they_get_without_batching(store: Store, runtime: Any) -> None:
    images = labelled_samples(card("cnn")).inputs[:48]
    with Server(store, replace(ANY, load=LoadOptions(runtime=runtime))) as server:
        expected = np.array(post(server, images.tolist(), model="cnn").json()["outputs"])
    parameters = BatchingParameters(max_batch_size=16, batch_timeout_micros=1000, allowed_batch_sizes=(4, 16))
    with (
        serving(store, parameters, load=LoadOptions(runtime=runtime)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        stub = PredictionServiceStub(channel)

        def over_grpc(i: int) -> np.ndarray:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "cnn"
            request.inputs["image"].CopyFrom(tf.make_tensor_proto(images[i : i + 1]))
            return tf.make_ndarray(stub.Predict(request, timeout=60).outputs["probabilities"])

        def over_rest(i: int) -> np.ndarray:
            return np.array(post(server, images[i : i + 1].tolist(), model="cnn").json()["outputs"])

        for ask in (over_grpc, over_rest):
            answers = together(*(partial(ask, i) for i in range(len(images))))
            np.testing.assert_allclose(np.concatenate(answers), expected, atol=1e-5)
        assert answered(server) < 2 * len(images), "nothing was batched"


def test_classify_and_regress_are_batched_too(store: Store) -> None:
    with serving(store, BatchingParameters(max_batch_size=2, batch_timeout_micros=LONG_US)) as server:
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/celsius:regress"

        def regress(celsius: float) -> Any:
            body = {"signature_name": "regress", "examples": [{"celsius": celsius}]}
            return httpx.post(url, json=body, trust_env=False, timeout=60).json()["results"]

        cold, hot = together(lambda: regress(0.0), lambda: regress(100.0))
        assert (*cold, *hot) == pytest.approx((32, 212), abs=0.1)
        assert answered(server) == 1


def test_only_the_guilty_request_of_a_batch_fails(folder: Path) -> None:
    with rows_server(folder, max_batch_size=3, batch_timeout_micros=LONG_US) as server:
        good, bad, other = together(*(lambda x=x: post(server, [[x]], "positive") for x in (1.5, -2.5, 3.5)))
        assert (good.json(), other.json()) == ({"outputs": [[1.5]]}, {"outputs": [[3.5]]})
        assert bad.status_code == 400
        assert "negative" in bad.json()["error"]
        for row in ("1.5", "3.5"):
            assert row not in bad.text, "it was told of the rows of others"


def test_rows_of_other_lengths_run_apart_or_are_padded(folder: Path) -> None:
    with rows_server(folder, max_batch_size=2, batch_timeout_micros=LONG_US) as server:
        short, long = together(lambda: post(server, [[1.0]]), lambda: post(server, [[2.0, 3.0]]))
        assert (short.json()["outputs"], long.json()["outputs"]) == ([[2]], [[4, 6]])
        assert answered(server) == 2
    padded = {"max_batch_size": 2, "batch_timeout_micros": LONG_US, "pad_variable_length_inputs": True}
    with rows_server(folder, **padded) as server:
        short, long = together(lambda: post(server, [[1.0]]), lambda: post(server, [[2.0, 3.0]]))
        assert (short.json()["outputs"], long.json()["outputs"]) == ([[2, 2]], [[4, 6]])
        assert answered(server) == 1


def test_an_output_without_rows_is_refused_as_in_the_original(folder: Path) -> None:
    with rows_server(folder, max_batch_size=4) as server:
        answer = post(server, [[1.0]], "total")
    assert (answer.status_code, answer.json()) == (400, {"error": "Batched output tensor has 0 dimensions"})


def test_a_request_without_rows_is_answered_at_once(folder: Path) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "rows"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.zeros((0, 3), np.float32)))
    with (
        rows_server(folder, max_batch_size=4, batch_timeout_micros=LONG_US) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        answer = PredictionServiceStub(channel).Predict(request, timeout=60)
    assert tf.make_ndarray(answer.outputs["y"]).shape == (0, 3)


def test_a_request_that_is_larger_than_a_batch(folder: Path) -> None:
    with rows_server(folder, max_batch_size=2) as server:
        answer = post(server, [[1.0]] * 3)
        assert answer.status_code == 400
        assert answer.json() == {"error": "Task size 3 is larger than maximum input batch size 2"}
    split = {"max_batch_size": 8, "max_execution_batch_size": 2, "enable_large_batch_splitting": True}
    with rows_server(folder, **split) as server:
        assert post(server, [[float(i)] for i in range(7)]).json()["outputs"] == [[2 * i] for i in range(7)]
        assert answered(server) == 4


def waiting(server: Server, rows: Any) -> threading.Thread:
    """A request that is in the queue; it is answered when its batch is full, or when the server stops."""
    thread = threading.Thread(target=lambda: post(server, rows))
    thread.start()
    return thread


def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        threading.Event().wait(0.05)
    pytest.fail("it did not come to that")


def test_a_full_queue_is_unavailable_at_once(folder: Path) -> None:
    full = "The batch scheduling queue to which this task was submitted is full; "
    with rows_server(folder, max_batch_size=2, batch_timeout_micros=LONG_US, max_enqueued_batches=1) as server:
        first = waiting(server, [[1.0]])
        answer = None

        def is_refused() -> bool:
            nonlocal answer
            answer = post(server, [[1.0], [2.0]])  # runs if the other is not in the queue yet
            return answer.status_code == 503

        until(is_refused)
        assert answer is not None
        assert answer.json()["error"] == f"{full}currently 1 batches enqueued and max_enqueued_batches is 1"
        assert post(server, [[5.0]]).json() == {"outputs": [[10]]}, "the batch with the first is full now"
        first.join(30)
        assert not first.is_alive()


def test_a_request_that_waits_too_long_in_the_queue_is_told_so_and_does_not_run(folder: Path) -> None:
    rest = RestOptions(metrics_path=METRICS, timeout_s=0.3)
    parameters = BatchingParameters(max_batch_size=2, batch_timeout_micros=LONG_US)
    with serving([Aspired("rows", {1: folder})], parameters, rest=rest) as server:
        answer = post(server, [[-1.0]], "positive")
        assert answer.status_code == 429
        assert answer.json() == {"error": "Run() timeout exceeded while waiting in batching queue"}
        with ThreadPoolExecutor(1) as pool:  # the place that it left is filled by another
            last = pool.submit(post, server, [[1.0]], "positive")
            assert last.result().status_code in (200, 429)


def test_callers_that_go_away_leave_the_queue(folder: Path) -> None:
    with (
        rows_server(folder, max_batch_size=2, batch_timeout_micros=LONG_US, max_enqueued_batches=1) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "rows"
        request.model_spec.signature_name = "positive"
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array([[-1.0]], np.float32)))
        call = PredictionServiceStub(channel).Predict.future(request, timeout=60)
        with pytest.raises(grpc.FutureTimeoutError):
            call.result(timeout=0.5)  # it waits for another one
        call.cancel()
        # The batch is filled by a good one, which runs without the one that nobody waits for.
        until(lambda: post(server, [[7.0]], "positive").status_code == 200)
        assert metric(server, "processed_batch_size_sum") == metric(server, "processed_batch_size_count")


def test_versions_with_parameters_of_their_own(folder: Path, tmp_path: Path) -> None:
    for version in (1, 2):
        shutil.copytree(folder, tmp_path / str(version))
    (tmp_path / "2" / "batching_params.pbtxt").write_text("max_batch_size { value: 2 }")
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "batching_params.pbtxt").write_text("max_batch_size { value: 2 } allowed_batch_sizes: 1")
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "batching_params.pbtxt").write_text("max_batch_size: many")
    aspired = Aspired("rows", {version: tmp_path / str(version) for version in (1, 2, 3, 4)})
    options = replace(
        ANY,
        batching=BatchingOptions(BatchingParameters(), per_model=True),
        lifecycle=LifecycleOptions(max_num_load_retries=0),
    )
    with Server([aspired], options) as server:
        statuses = httpx.get(f"http://127.0.0.1:{server.rest_port}/v1/models/rows", trust_env=False).json()
        by_version = {item["version"]: item for item in statuses["model_version_status"]}
        assert {version: item["state"] for version, item in by_version.items()} == {
            "1": "AVAILABLE",
            "2": "AVAILABLE",
            "3": "END",
            "4": "END",
        }
        wrong = "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 1; expected 2"
        assert by_version["3"]["status"]["error_message"] == f"{tmp_path / '3' / 'batching_params.pbtxt'}: {wrong}"
        assert "batching_params.pbtxt" in by_version["4"]["status"]["error_message"]
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/rows/versions"
        body = {"inputs": [[1.0]] * 3}
        assert httpx.post(f"{url}/1:predict", json=body, trust_env=False).status_code == 200
        assert answered(server) == 0, "it has no file, and is not batched"
        assert "larger than maximum" in httpx.post(f"{url}/2:predict", json=body, trust_env=False).json()["error"]


def test_batching_without_threads_is_refused_before_anything_is_loaded(folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="num_batch_threads must be positive; was 0"):
        Server(
            [Aspired("rows", {1: folder})],
            replace(ANY, batching=BatchingOptions(BatchingParameters(num_batch_threads=0))),
        )


def test_stopping_runs_what_waits_for_a_fuller_batch(folder: Path) -> None:
    with rows_server(folder, max_batch_size=2, batch_timeout_micros=LONG_US) as server, ThreadPoolExecutor(1) as pool:
        assert [answer.status_code for answer in together(*[lambda: post(server, [[0.0]])] * 2)] == [200, 200]
        last = pool.submit(post, server, [[1.0]])
        until(lambda: metric(server, "input_batch_size_count") >= 2 and is_queued(server))
        server.stop(grace_s=30)
        assert last.result().json() == {"outputs": [[2]]}


def is_queued(server: Server) -> bool:
    """Whether the server has taken in a request that it has not answered."""
    assert server._loader._scheduler
    return bool(server._loader._scheduler._waiting)
