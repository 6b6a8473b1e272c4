"""Our clients call a server built on the official stubs, and a REST server that prints official JSON."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

from servable.clients import connect
from servable.errors import DeadlineExceededError, InternalError, UnavailableError, UnknownError

SIGNATURES = get_model_metadata_pb2.SignatureDefMap()
_signature = SIGNATURES.signature_def["serving_default"]
for _name, _dtype in (("numbers", tf.float32), ("texts", tf.string), ("counts", tf.int64)):
    _signature.inputs[_name].dtype = _dtype.as_datatype_enum
    _signature.inputs[_name].tensor_shape.dim.add(size=-1)
    _signature.outputs[f"{_name}_out"].CopyFrom(_signature.inputs[_name])
_signature.method_name = "tensorflow/serving/predict"


class Echo(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers every input as the output of its name."""

    def __init__(self) -> None:
        self.requests: list[predict_pb2.PredictRequest] = []
        self.release = threading.Event()

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802  # the stub's name
        self.requests.append(request)
        if request.model_spec.name == "slow":
            self.release.wait(30)
        if request.model_spec.name == "broken":
            context.abort(grpc.StatusCode.INTERNAL, "the model broke")
        response = predict_pb2.PredictResponse()
        for name, proto in request.inputs.items():
            # Re-encoded by TensorFlow, in typed fields as the original server does.
            response.outputs[f"{name}_out"].CopyFrom(tf.make_tensor_proto(tf.make_ndarray(proto)))
        return response

    def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802  # the stub's name
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = 5
        response.metadata["signature_def"].Pack(SIGNATURES)
        return response


@pytest.fixture
def official() -> Iterator[tuple[Echo, int]]:
    servicer = Echo()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, port
    servicer.release.set()
    server.stop(0).wait()


INPUTS = {
    "numbers": np.array([1.5, -2.0, np.inf], np.float32),
    "texts": np.array([b"a", b"\xff\x00", b""], dtype=object),
    "counts": np.array([1, -(2**62), 0]),
}


def test_every_dtype_goes_there_and_back(official: tuple[Echo, int]) -> None:
    servicer, port = official
    with connect(f"grpc://127.0.0.1:{port}/echo/versions/5") as client:
        assert client.metadata().version == 5
        answers = client.predict(INPUTS)
    (request,) = servicer.requests
    assert request.model_spec.version.value == 5
    assert request.model_spec.signature_name == "serving_default"
    for name, array in INPUTS.items():
        np.testing.assert_array_equal(tf.make_ndarray(request.inputs[name]), array)
        np.testing.assert_array_equal(answers[f"{name}_out"], array)


def test_a_label_travels_in_the_model_spec(official: tuple[Echo, int]) -> None:
    servicer, port = official
    with connect(f"grpc://127.0.0.1:{port}/echo/labels/stable") as client:
        client.predict(INPUTS)
    assert servicer.requests[0].model_spec.version_label == "stable"
    assert not servicer.requests[0].model_spec.HasField("version")


def test_a_timeout_and_a_server_error(official: tuple[Echo, int]) -> None:
    _, port = official
    with connect(f"grpc://127.0.0.1:{port}/slow") as client:
        client.metadata()
        with pytest.raises(DeadlineExceededError, match="slow"):
            client.predict(INPUTS, timeout=0.2)
    with connect(f"grpc://127.0.0.1:{port}/broken") as client, pytest.raises(InternalError, match="the model broke"):
        client.predict(INPUTS)


class Rest(BaseHTTPRequestHandler):
    """Prints what the original prints for metadata and predictions; remembers what was sent."""

    bodies: list[Any]
    metadata: bytes
    answer: bytes

    def do_GET(self) -> None:
        self._send(200, self.metadata)

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._send(200, self.answer)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def rest() -> Iterator[tuple[type[Rest], int]]:
    from google.protobuf import json_format

    text = json_format.MessageToJson(
        SIGNATURES, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=1
    )
    spec = '{\n "name": "echo",\n "signature_name": "",\n "version": "5"\n}'
    metadata = f'{{\n"model_spec":{spec}\n,\n"metadata": {{"signature_def": {text}\n}}\n}}\n'.encode()
    handler = type("Handler", (Rest,), {"bodies": [], "metadata": metadata, "answer": b"{}"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield handler, server.server_port
        server.shutdown()
        thread.join()


def test_rest_reads_what_the_original_prints(rest: tuple[type[Rest], int]) -> None:
    handler, port = rest
    handler.answer = (
        b'{\n    "outputs": {\n        "counts_out": [\n            1,\n            -4611686018427387904,\n 0\n'
        b'        ],\n        "numbers_out": [\n            1.5,\n            -2.0,\n            Infinity\n        ],\n'
        b'        "texts_out": [\n            "a",\n            "\xc3\xa9",\n            ""\n        ]\n    }\n}'
    )
    with connect(f"http://127.0.0.1:{port}/echo") as client:
        assert client.metadata().version == 5
        answers = client.predict({**INPUTS, "numbers": [1.5, -2.0, 3.25]})
    np.testing.assert_array_equal(answers["counts_out"], INPUTS["counts"])
    np.testing.assert_array_equal(answers["numbers_out"], INPUTS["numbers"])
    assert answers["texts_out"].tolist() == [b"a", "é".encode(), b""]
    (body,) = handler.bodies
    assert body["inputs"] == {
        "numbers": [1.5, -2.0, 3.25],
        "texts": [{"b64": "YQ=="}, {"b64": "/wA="}, {"b64": ""}],
        "counts": [1, -(2**62), 0],
    }


def test_rest_server_that_speaks_something_else(rest: tuple[type[Rest], int]) -> None:
    handler, port = rest
    handler.metadata = b'{"hello": "world"}'
    match = "is it a TensorFlow Serving API"
    with connect(f"http://127.0.0.1:{port}/echo") as client, pytest.raises(UnknownError, match=match):
        client.metadata()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_never_answers_costs_no_more_than_the_timeout(scheme: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        target = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/cnn"
        with connect(target) as client, pytest.raises((DeadlineExceededError, UnavailableError)):
            client.predict([[1.0]], timeout=0.2)
        with connect(target, timeout=0.2) as client, pytest.raises((DeadlineExceededError, UnavailableError)):
            client.metadata()
