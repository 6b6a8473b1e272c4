"""The official tensorflow-serving-api stubs call our server."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from servable import runtimes
from servable.models import card
from servable.models.samples import test_samples as labelled_samples
from servable.serving import Server
from servable.store import Store


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def prediction(channel: grpc.Channel) -> prediction_service_pb2_grpc.PredictionServiceStub:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request(model: str = "cnn", signature: str = "", **inputs: np.ndarray) -> predict_pb2.PredictRequest:
    message = predict_pb2.PredictRequest()
    message.model_spec.name = model
    message.model_spec.signature_name = signature
    for name, array in inputs.items():
        message.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return message


def test_predict_answers_what_the_saved_model_answers(
    prediction: prediction_service_pb2_grpc.PredictionServiceStub, store: Store
) -> None:
    images = labelled_samples(card("cnn")).inputs[:5]
    response = prediction.Predict(request(image=images), timeout=30)
    with runtimes.load(store.path("cnn")) as original:
        expected = original.run("serving_default", {"image": images})["probabilities"]
    np.testing.assert_allclose(tf.make_ndarray(response.outputs["probabilities"]), expected, atol=1e-5)
    assert response.model_spec.name == "cnn"
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"


def test_outputs_travel_in_typed_fields(prediction: prediction_service_pb2_grpc.PredictionServiceStub) -> None:
    response = prediction.Predict(request("celsius", celsius=np.array([[100.0]], np.float32)), timeout=30)
    output = response.outputs["fahrenheit"]
    assert output.tensor_content == b""
    assert list(output.float_val) == pytest.approx([212.0], abs=0.1)
    assert [dim.size for dim in output.tensor_shape.dim] == [1, 1]


def test_predict_takes_typed_fields_too(prediction: prediction_service_pb2_grpc.PredictionServiceStub) -> None:
    message = request("celsius")
    proto = message.inputs["celsius"]
    proto.dtype = tf.float32.as_datatype_enum
    for size in (2, 1):
        proto.tensor_shape.dim.add(size=size)
    proto.float_val.extend([0.0, 10.0])
    values = tf.make_ndarray(prediction.Predict(message, timeout=30).outputs["fahrenheit"])
    assert values.ravel().tolist() == pytest.approx([32.0, 50.0], abs=0.1)


def test_serve_bytes_classify_and_output_filter(prediction: prediction_service_pb2_grpc.PredictionServiceStub) -> None:
    from servable.models.samples import sample_pictures

    encoded = np.array([path.read_bytes() for path in sample_pictures().values()], dtype=object)
    by_bytes = prediction.Predict(request("cnn", "serve_bytes", image_bytes=encoded), timeout=30)
    scores = tf.make_ndarray(by_bytes.outputs["probabilities"])
    assert scores.shape == (10, 10)
    pixels = np.zeros((28, 28, 1), np.float32)
    example = tf.train.Example()
    example.features.feature["image"].float_list.value.extend(pixels.ravel())
    message = request("cnn", "classify", inputs=np.array([example.SerializeToString()], dtype=object))
    message.output_filter.append("classes")
    response = prediction.Predict(message, timeout=30)
    assert list(response.outputs) == ["classes"]
    assert tuple(v.decode() for v in tf.make_ndarray(response.outputs["classes"])[0]) == card("cnn").labels


def test_metadata_has_every_signature_of_the_saved_model(
    prediction: prediction_service_pb2_grpc.PredictionServiceStub, store: Store
) -> None:
    message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    message.model_spec.name = "cnn"
    response = prediction.GetModelMetadata(message, timeout=30)
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    from tensorflow.python.saved_model import loader_impl

    original = loader_impl.parse_saved_model(str(store.path("cnn"))).meta_graphs[0].signature_def
    assert dict(found.signature_def) == dict(original)
    assert found.signature_def["classify"].method_name == "tensorflow/serving/classify"


def test_status(channel: grpc.Channel) -> None:
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    message = get_model_status_pb2.GetModelStatusRequest()
    message.model_spec.name = "mlp"
    (status,) = stub.GetModelStatus(message, timeout=30).model_version_status
    assert (status.version, status.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    assert (status.status.error_code, status.status.error_message) == (0, "")


def no_spec() -> predict_pb2.PredictRequest:
    return predict_pb2.PredictRequest()


def version(number: int) -> predict_pb2.PredictRequest:
    message = request(image=np.zeros((1, 28, 28, 1), np.float32))
    message.model_spec.version.value = number
    return message


def label(name: str) -> predict_pb2.PredictRequest:
    message = request(image=np.zeros((1, 28, 28, 1), np.float32))
    message.model_spec.version_label = name
    return message


def filtered(*names: str) -> predict_pb2.PredictRequest:
    message = request(image=np.zeros((1, 28, 28, 1), np.float32))
    message.output_filter.extend(names)
    return message


def broken_tensor() -> predict_pb2.PredictRequest:
    message = request(image=np.zeros((1, 28, 28, 1), np.float32))
    message.inputs["image"].tensor_content = b"short"
    return message


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        (no_spec(), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (request(""), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (request("nope"), "NOT_FOUND", "Servable not found for request: Latest(nope)"),
        (version(7), "NOT_FOUND", "Servable not found for request: Specific(cnn, 7)"),
        (label("stable"), "INVALID_ARGUMENT", "Unrecognized servable version label: stable"),
        (request(signature="nope"), "FAILED_PRECONDITION", 'Serving signature key "nope" not found.'),
        (
            request(),
            "INVALID_ARGUMENT",
            "input size does not match signature: 0!=1 len({}) != len({image}). Sent extra: {}. "
            "Missing but required: {image}.",
        ),
        (
            request(image=np.zeros((1, 28, 28, 1), np.float64)),
            "INVALID_ARGUMENT",
            "Expects arg[0] to be float but double is provided",
        ),
        (
            filtered("nope"),
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: nope Outputs expected to be in the set {probabilities}.",
        ),
        (
            filtered("probabilities", "probabilities"),
            "INVALID_ARGUMENT",
            "duplicate output tensor alias: probabilities",
        ),
        (broken_tensor(), "INVALID_ARGUMENT", "tensor parsing error: image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_requests_get_the_originals_code_and_text(
    prediction: prediction_service_pb2_grpc.PredictionServiceStub,
    message: predict_pb2.PredictRequest,
    code: str,
    text: str,
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        prediction.Predict(message, timeout=30)
    assert caught.value.code().name == code
    assert caught.value.details() == text


def test_a_wrong_shape_is_the_callers_fault(prediction: prediction_service_pb2_grpc.PredictionServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        prediction.Predict(request(image=np.zeros((1, 27, 28, 1), np.float32)), timeout=30)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "image" in caught.value.details()


def test_bytes_that_are_no_picture_are_the_callers_fault(
    prediction: prediction_service_pb2_grpc.PredictionServiceStub,
) -> None:
    bad = np.array([b"not a picture"], dtype=object)
    with pytest.raises(grpc.RpcError) as caught:
        prediction.Predict(request("cnn", "serve_bytes", image_bytes=bad), timeout=30)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "image 0 is not a picture" in caught.value.details()


def test_metadata_errors(prediction: prediction_service_pb2_grpc.PredictionServiceStub) -> None:
    message = get_model_metadata_pb2.GetModelMetadataRequest()
    message.model_spec.name = "cnn"
    with pytest.raises(grpc.RpcError) as caught:
        prediction.GetModelMetadata(message, timeout=30)
    assert caught.value.details() == "GetModelMetadataRequest must specify at least one metadata_field"
    message.metadata_field.append("nope")
    with pytest.raises(grpc.RpcError) as caught:
        prediction.GetModelMetadata(message, timeout=30)
    assert caught.value.details() == "Metadata field nope is not supported"
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_status_errors(channel: grpc.Channel) -> None:
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    message = get_model_status_pb2.GetModelStatusRequest()
    message.model_spec.name = "nope"
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetModelStatus(message, timeout=30)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "Could not find any versions of model nope"
    message.model_spec.name = "cnn"
    message.model_spec.version.value = 9
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetModelStatus(message, timeout=30)
    assert caught.value.details() == "Could not find version 9 of model cnn"


def test_long_errors_are_cut_as_the_original_cuts_them(
    prediction: prediction_service_pb2_grpc.PredictionServiceStub,
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        prediction.Predict(request("n" * 3000), timeout=30)
    assert caught.value.details().endswith("...TRUNCATED")
    assert len(caught.value.details()) == 1024 + len("...TRUNCATED")
