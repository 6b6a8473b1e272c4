"""`Client.status`: the same states over every transport, with the engines where the server tells them."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from servable.clients import connect
from servable.clients.status import EngineUse, VersionStatus, from_message
from servable.errors import NotFoundError, UnavailableError, UnknownError
from servable.serving import Server, ServerOptions
from servable.serving.manager import LifecycleOptions
from servable.store import Store
from servable.wire import messages

ONNX = EngineUse("onnx", "the manifest proves parity", ("classify", "serve_bytes", "serving_default"))
BOTH = ("grpc", "http")
# A version that cannot be loaded is not tried again.
ONCE = ServerOptions(port=0, rest_api_port=0, lifecycle=LifecycleOptions(max_num_load_retries=0))


def target(server: Server, scheme: str, model: str) -> str:
    port = server.grpc_port if scheme == "grpc" else server.rest_port
    return f"{scheme}://127.0.0.1:{port}/{model}"


@pytest.mark.parametrize("scheme", BOTH)
@pytest.mark.parametrize("model", ["cnn", "cnn/versions/1", "cnn/labels/any"])
def test_our_server_tells_its_engines(server: Server, scheme: str, model: str) -> None:
    with connect(target(server, scheme, model)) as client:
        assert client.status() == [VersionStatus(1, "AVAILABLE", engines=(ONNX,))]


@pytest.mark.parametrize("scheme", BOTH)
def test_what_the_server_has_never_seen(server: Server, scheme: str) -> None:
    for model, text in (
        ("nope", "Could not find any versions of model nope"),
        ("cnn/versions/7", "Could not find version 7 of model cnn"),
    ):
        with connect(target(server, scheme, model)) as client, pytest.raises(NotFoundError, match=text):
            client.status()


@pytest.mark.parametrize("scheme", BOTH)
def test_a_version_that_failed_and_one_that_serves(store: Store, tmp_path: Path, scheme: str) -> None:
    for version in ("1", "2"):
        shutil.copytree(store.path("celsius"), tmp_path / "store" / "celsius" / version)
    (tmp_path / "store" / "celsius" / "2" / "model.onnx").write_bytes(b"damaged")
    with (
        Server(Store(tmp_path / "store"), ONCE) as server,
        connect(target(server, scheme, "celsius")) as client,
    ):
        two, one = client.status()
    assert (two.version, two.state, two.error_code, two.engines) == (2, "END", "FAILED_PRECONDITION", ())
    assert "model.onnx" in two.error_message
    assert (one.version, one.state, one.error_code, one.error_message) == (1, "AVAILABLE", "OK", "")
    assert [use.runtime for use in one.engines] == ["onnx"]


@pytest.mark.parametrize(
    ("path", "version", "runtime", "signatures"),
    [
        ("cnn", 1, "onnx", {"classify", "serve_bytes", "serving_default"}),
        ("cnn/1", 1, "onnx", {"classify", "serve_bytes", "serving_default"}),
        ("cnn/1/model.onnx", 1, "onnx", {"classify", "serve_bytes", "serving_default"}),
        ("cnn/1/model_int8.tflite", 1, "litert", None),
    ],
)
def test_a_model_in_this_process(
    store: Store, path: str, version: int, runtime: str, signatures: set[str] | None
) -> None:
    with connect(store.root / path) as client:
        (status,) = client.status()
    assert (status.version, status.state, status.error_code) == (version, "AVAILABLE", "OK")
    (use,) = status.engines
    assert (use.runtime, use.reason) == (runtime, "the file itself, in this process")
    assert signatures is None or set(use.signatures) == signatures


def test_a_bare_file_has_no_version(store: Store, tmp_path: Path) -> None:
    shutil.copyfile(store.path("celsius") / "model.onnx", tmp_path / "c.onnx")
    with connect(tmp_path / "c.onnx") as client:
        (status,) = client.status()
    assert (status.version, status.engines[0].signatures) == (None, ("serving_default",))


# Servers that are not ours

OFFICIAL = get_model_status_pb2.GetModelStatusResponse()
for _version, _state, _code, _text in ((9, 20, 0, ""), (8, 30, 0, ""), (-3, 50, 5, "é: no such file")):
    _item = OFFICIAL.model_version_status.add(version=_version, state=_state)
    _item.status.error_code, _item.status.error_message = _code, _text

EXPECTED = [
    VersionStatus(9, "LOADING"),
    VersionStatus(8, "AVAILABLE"),
    VersionStatus(-3, "END", "NOT_FOUND", "é: no such file"),
]


class Plain(model_service_pb2_grpc.ModelServiceServicer):
    """A ModelService on grpcio's own server; ``metadata`` is what it adds."""

    def __init__(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self._metadata = metadata
        self.requests: list[Any] = []

    def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802  # the stub's name
        self.requests.append(request)
        context.set_trailing_metadata(self._metadata)
        return OFFICIAL


@contextmanager
def plain_grpc(*metadata: tuple[str, str]) -> Iterator[tuple[Plain, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    servicer = Plain(metadata)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield servicer, f"grpc://127.0.0.1:{port}/m"
    finally:
        server.stop(0).wait()


@contextmanager
def plain_rest(body: bytes, **headers: str) -> Iterator[tuple[list[str], str]]:
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the base's name
            paths.append(self.path)
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield paths, f"http://127.0.0.1:{server.server_port}/m"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def official_json() -> bytes:
    text = json_format.MessageToJson(
        OFFICIAL, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=1
    )
    return text.encode()


def test_a_grpc_server_that_tells_no_engines() -> None:
    with plain_grpc() as (servicer, address):
        with connect(address) as client:
            assert client.status() == EXPECTED
        with connect(f"{address}/versions/8") as client:
            client.status()
        with connect(f"{address}/labels/stable") as client:
            client.status()
    plain, versioned, labelled = (request.model_spec for request in servicer.requests)
    assert (plain.name, plain.WhichOneof("version_choice")) == ("m", None)
    assert versioned.version.value == 8
    assert labelled.version_label == "stable"


def test_a_rest_server_that_tells_no_engines() -> None:
    with plain_rest(official_json()) as (paths, address):
        with connect(address) as client:
            assert client.status() == EXPECTED
        with connect(f"{address}/versions/8") as client:
            client.status()
    assert paths == ["/v1/models/m", "/v1/models/m/versions/8"]


NOT_OURS = [
    "",
    "not json",
    "[]",
    "null",
    "1",
    '{"8": 1}',
    '{"8": [1]}',
    '{"8": [["a", "b"]]}',
    '{"8": [["a", "b", 3]]}',
    '{"8": {"a": 1}}',
    '{"7": [["a", "b", ["c"]]]}',
]


@pytest.mark.parametrize("text", NOT_OURS)
def test_a_header_that_is_not_ours_is_left_alone(text: str) -> None:
    with plain_rest(official_json(), Servable_Engines=text) as (_, address), connect(address) as client:
        assert client.status() == EXPECTED
    with plain_grpc(("servable-engines", text)) as (_, address), connect(address) as client:
        assert client.status() == EXPECTED


def test_several_engines_and_signatures_that_are_not_told() -> None:
    told = json.dumps({"8": [["onnx", "proven", ["a", "b"]], ["tensorflow", "no evidence", []]]})
    with plain_rest(official_json(), Servable_Engines=told) as (_, address), connect(address) as client:
        engines = client.status()[1].engines
    assert engines == (EngineUse("onnx", "proven", ("a", "b")), EngineUse("tensorflow", "no evidence", ()))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"model_version_status": 3}',
    ],
)
def test_an_answer_that_is_no_status(body: bytes) -> None:
    with (
        plain_rest(body) as (_, address),
        connect(address) as client,
        pytest.raises(UnknownError, match="is it a TensorFlow Serving API"),
    ):
        client.status()


def test_numbers_that_a_later_version_may_send() -> None:
    response = messages.GetModelStatusResponse()
    item = response.model_version_status.add(version=1, state=77)
    item.status.error_code = 99
    assert from_message(response, None) == [VersionStatus(1, "77", "99")]


@pytest.mark.parametrize("scheme", BOTH)
def test_a_server_that_is_not_there(free_port: int, scheme: str) -> None:
    with connect(f"{scheme}://127.0.0.1:{free_port}/m") as client, pytest.raises(UnavailableError):
        client.status(timeout=5)
