"""Each version brings warm-up requests, which TensorFlow's own reader and the official messages understand."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from servable.export import warmup
from servable.export.cases import Case
from servable.manifest import WARMUP_REQUESTS, Manifest
from servable.models import card, samples
from servable.serving import Server, ServerOptions
from servable.serving.monitoring import Monitor
from servable.serving.rest_front import RestOptions
from servable.serving.warmup import replay
from servable.store import Store


def logs(folder: Path) -> list[prediction_log_pb2.PredictionLog]:
    records = tf.data.TFRecordDataset(str(folder / WARMUP_REQUESTS)).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]


def test_a_classifier_brings_a_request_for_each_signature(store: Store) -> None:
    predict, pictures, classify = logs(store.path("cnn"))
    rows = samples.test_samples(card("cnn")).inputs[:1]
    np.testing.assert_array_equal(tf.make_ndarray(predict.predict_log.request.inputs["image"]), rows)
    assert predict.predict_log.request.model_spec.signature_name == "serving_default"
    assert predict.predict_log.request.model_spec.name == "cnn"
    (encoded,) = tf.make_ndarray(pictures.predict_log.request.inputs["image_bytes"])
    decoded = tf.io.decode_png(encoded, channels=1).numpy()
    np.testing.assert_allclose(decoded / np.float32(255), rows[0], atol=1e-6)
    (example,) = classify.classify_log.request.input.example_list.examples
    np.testing.assert_array_equal(example.features.feature["image"].float_list.value, rows.ravel())


def test_a_regressor_brings_a_regress_request(store: Store) -> None:
    predict, regress = logs(store.path("celsius"))
    assert tf.make_ndarray(predict.predict_log.request.inputs["celsius"]).tolist() == [[-40.0]]
    (example,) = regress.regress_log.request.input.example_list.examples
    assert list(example.features.feature["celsius"].float_list.value) == [-40.0]


@pytest.mark.parametrize("name", ["celsius", "cnn"])
def test_the_graph_takes_every_warm_up_request(store: Store, name: str) -> None:
    loaded = tf.saved_model.load(str(store.path(name)))
    for log in logs(store.path(name)):
        if log.HasField("predict_log"):
            request = log.predict_log.request
            inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        else:
            request = log.classify_log.request if log.HasField("classify_log") else log.regress_log.request
            inputs = {"inputs": tf.constant([e.SerializeToString() for e in request.input.example_list.examples])}
        answers = loaded.signatures[request.model_spec.signature_name](**inputs)
        assert all(len(answer) == 1 for answer in answers.values())


def test_the_server_runs_them_at_load(store: Store) -> None:
    ran: list[str] = []

    def run(method: str, request: object) -> None:
        ran.append(method)

    assert replay(store.path("cnn"), "cnn", run, 1, Monitor()) == 3
    assert ran == ["Predict", "Predict", "Classify"]
    options = ServerOptions(port=0, rest_api_port=0, rest=RestOptions(metrics_path="/metrics"))
    with Server(store, options) as running:
        page = httpx.get(f"http://127.0.0.1:{running.rest_port}/metrics").text
    counted = [line for line in page.splitlines() if line.startswith(":tensorflow:serving:model_warmup_records_read{")]
    assert sorted(float(line.rsplit(" ", 1)[1]) for line in counted) == [2, 3, 3]  # celsius has no pictures


def test_it_is_no_part_of_an_artifact(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "1"
    shutil.copytree(store.path("celsius"), folder)
    (folder / WARMUP_REQUESTS).unlink()
    manifest = Manifest.read(folder)
    for artifact in manifest.artifacts:
        manifest.check_artifact(folder, artifact)


def test_a_file_that_a_model_brings_along_is_kept(store: Store, tmp_path: Path) -> None:
    (tmp_path / WARMUP_REQUESTS).parent.mkdir()
    (tmp_path / WARMUP_REQUESTS).write_bytes(b"its own")
    signature = card("celsius").signature
    rows = np.zeros((1, 1), np.float32)
    warmup.write([Case(signature, "one row", {"celsius": rows}, {"fahrenheit": rows})], "celsius", tmp_path)
    assert (tmp_path / WARMUP_REQUESTS).read_bytes() == b"its own"
