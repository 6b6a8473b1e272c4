"""The REST API from outside: curl, raw sockets, and the statuses and texts of the original."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servable.models import card
from servable.models.samples import test_samples as labelled_samples
from servable.serving import Server

CURL = shutil.which("curl")


def curl(server: Server, path: str, *arguments: str, body: bytes | None = None) -> tuple[int, str, Any]:
    """Status, content type and decoded JSON of one request that curl made."""
    assert CURL, "curl is not installed"
    command = [CURL, "-sS", "-o", "-", "-w", "\n%{http_code} %{content_type}", *arguments]
    if body is not None:
        command += ["--data-binary", "@-"]
    command.append(f"http://127.0.0.1:{server.rest_port}{path}")
    done = subprocess.run(command, input=body, capture_output=True, check=True, timeout=30)
    text, _, tail = done.stdout.decode().rpartition("\n")
    status, _, content_type = tail.partition(" ")
    return int(status), content_type, json.loads(text) if "json" in content_type else text


def raw(server: Server, request: bytes) -> bytes:
    """Everything that the server sends back on one connection."""
    assert server.rest_port
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer


def test_row_format(server: Server) -> None:
    status, content_type, body = curl(server, "/v1/models/celsius:predict", body=b'{"instances": [[100.0], [-40]]}')
    assert (status, content_type) == (200, "application/json")
    assert np.ravel(body["predictions"]) == pytest.approx([212.0, -40.0], abs=0.1)


def test_columnar_format(server: Server) -> None:
    status, _, body = curl(server, "/v1/models/celsius/versions/1:predict", body=b'{"inputs": {"celsius": [[0.0]]}}')
    assert status == 200
    assert np.ravel(body["outputs"]) == pytest.approx([32.0], abs=0.1)


def test_real_images_as_json(server: Server) -> None:
    samples = labelled_samples(card("cnn"))
    body = json.dumps({"instances": samples.inputs[:20].tolist()}).encode()
    status, _, answer = curl(server, "/v1/models/cnn:predict", body=body)
    assert status == 200
    predicted = np.argmax(answer["predictions"], axis=-1)
    assert np.mean(predicted == samples.targets[:20]) >= 0.8


def test_a_gzipped_body(server: Server) -> None:
    body = gzip.compress(b'{"instances": [[0.0]]}')
    status, _, answer = curl(server, "/v1/models/celsius:predict", "-H", "Content-Encoding: gzip", body=body)
    assert status == 200
    assert np.ravel(answer["predictions"]) == pytest.approx([32.0], abs=0.1)
    status, _, answer = curl(server, "/v1/models/celsius:predict", "-H", "Content-Encoding: gzip", body=body[:-5])
    assert (status, answer["error"]) == (400, "JSON Parse error: The document is empty")


def test_a_picture_as_b64(server: Server) -> None:
    import base64

    from servable.models.samples import sample_pictures

    pictures = sample_pictures()
    instances = [{"b64": base64.b64encode(path.read_bytes()).decode()} for path in pictures.values()]
    body = json.dumps({"signature_name": "serve_bytes", "instances": instances}).encode()
    status, _, answer = curl(server, "/v1/models/cnn:predict", body=body)
    assert status == 200
    assert [card("cnn").labels[int(np.argmax(row))] for row in answer["predictions"]] == list(pictures)


def test_several_outputs_are_objects_in_row_format(server: Server) -> None:
    import base64

    from servable.wire import examples

    example = base64.b64encode(examples.encode({"image": np.zeros((28, 28, 1), np.float32)})).decode()
    body = json.dumps({"signature_name": "classify", "instances": [{"b64": example}]}).encode()
    status, _, answer = curl(server, "/v1/models/cnn:predict", body=body)
    assert status == 200
    (row,) = answer["predictions"]
    assert tuple(row["classes"]) == card("cnn").labels
    assert sum(row["scores"]) == pytest.approx(1.0, abs=1e-5)


def test_status_and_metadata(server: Server) -> None:
    status, content_type, body = curl(server, "/v1/models/cnn")
    assert (status, content_type) == (200, "application/json")
    assert body == {
        "model_version_status": [
            {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    assert curl(server, "/v1/models/cnn/versions/1")[2] == body
    status, _, body = curl(server, "/v1/models/cnn/metadata")
    assert status == 200
    assert body["model_spec"] == {"name": "cnn", "signature_name": "", "version": "1"}
    signature = body["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["image"]["dtype"] == "DT_FLOAT"
    sizes = [dim["size"] for dim in signature["inputs"]["image"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", "28", "28", "1"]


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/v1/models", None, 400, "Missing model name in request."),
        ("/v1/models/nope", None, 404, "Could not find any versions of model nope"),
        ("/v1/models/cnn/versions/9", None, 404, "Could not find version 9 of model cnn"),
        ("/v1/models/nope/metadata", None, 404, "Servable not found for request: Latest(nope)"),
        ("/v1/models/cnn/", None, 400, "Malformed request: GET /v1/models/cnn/"),
        ("/v1/models/cnn?x=1", None, 404, "Could not find any versions of model cnn?x=1"),
        ("/v1/models/cnn:predict", None, 400, "Malformed request: GET /v1/models/cnn:predict"),
        ("/v1/models/cnn:PREDICT", b"{}", 400, "Malformed request: POST /v1/models/cnn:PREDICT"),
        ("/v1/models/cnn", b"{}", 400, "Malformed request: POST /v1/models/cnn"),
        ("/v1/models/nope:predict", b"{", 400, "JSON Parse error: Missing a name for object member. at offset: 1"),
        ("/v1/models/nope:predict", b"{}", 404, "Servable not found for request: Latest(nope)"),
        ("/v1/models/cnn:predict", b"[]", 400, "JSON Value: [] Is not object"),
        ("/v1/models/cnn:predict", b"{}", 400, "Missing 'inputs' or 'instances' key"),
        (
            "/v1/models/cnn:predict",
            b'{"signature_name": "nope", "instances": [1]}',
            400,
            'Serving signature name: "nope" not found in signature def',
        ),
        (
            "/v1/models/celsius:predict",
            b'{"instances": [["warm"]]}',
            400,
            "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "
            'JSON Value: "warm" Type: String is not of expected type: float',
        ),
        (
            "/v1/models/celsius:predict",
            b'{"instances": [[1.0], [2.0, 3.0]]}',
            400,
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
            "Expecting tensor size: 1 but got: 2",
        ),
    ],
)
def test_bad_requests_get_the_originals_status_and_text(
    server: Server, path: str, body: bytes | None, status: int, text: str
) -> None:
    found, content_type, answer = curl(server, path, body=body)
    assert (found, content_type, answer) == (status, "application/json", {"error": text})


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "POST"])
def test_other_verbs_are_malformed(server: Server, method: str) -> None:
    status, _, body = curl(server, "/v1/models/cnn", "-X", method)
    assert (status, body["error"]) == (400, f"Malformed request: {method} /v1/models/cnn")


def test_a_version_beyond_64_bits_and_a_bad_escape_say_what_is_wrong(server: Server) -> None:
    status, _, body = curl(server, "/v1/models/cnn/versions/9223372036854775808")
    assert status == 400
    assert "64-bit" in body["error"]
    assert b" 400 " in raw(server, b"GET /v1/models/%zz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")


def test_outside_the_api_is_not_found(server: Server) -> None:
    status, content_type, _ = curl(server, "/")
    assert (status, content_type) == (404, "text/html")


def test_keep_alive_serves_several_requests_on_one_connection(server: Server) -> None:
    one = b"GET /v1/models/cnn HTTP/1.1\r\nHost: x\r\n\r\n"
    last = one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert raw(server, one + one + last).count(b"HTTP/1.1 200") == 3


def test_a_client_that_vanishes_in_the_middle_of_its_body_harms_nobody(server: Server) -> None:
    assert server.rest_port
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=30) as connection:
        connection.sendall(b"POST /v1/models/cnn:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    assert curl(server, "/v1/models/cnn")[0] == 200


def test_a_deeply_nested_body_is_refused(server: Server, tmp_path: Path) -> None:
    deep = b'{"instances": ' + b"[" * 100_000 + b"1" + b"]" * 100_000 + b"}"
    status, _, body = curl(server, "/v1/models/cnn:predict", body=deep)
    assert status == 400
    assert "nested deeper than 10000 levels" in body["error"]


def test_an_error_text_with_strange_characters_is_valid_json(server: Server) -> None:
    status, _, body = curl(server, "/v1/models/a%22b%0Ac%C3%A9")
    assert (status, body["error"]) == (404, 'Could not find any versions of model a"b\ncé')


@pytest.mark.parametrize(
    ("origin", "status"), [("http://a.example", 200), ("https://b.example", 200), ("nowhere", 400)]
)
def test_options_look_at_the_origin_alone(server: Server, origin: str, status: int) -> None:
    found, _, body = curl(server, "/v1/any/thing", "-X", "OPTIONS", "-H", f"Origin: {origin}")
    assert (found, body) == (status, "")


def test_numbers_of_thousands_of_digits(server: Server) -> None:
    digits = "1" * 5000
    status, _, body = curl(server, f"/v1/models/cnn/versions/{digits}")
    assert (status, "64-bit" in body["error"]) == (400, True)
    status, _, body = curl(server, "/v1/models/celsius:predict", body=f'{{"instances": [[{digits}]]}}'.encode())
    assert (status, "too big" in body["error"]) == (400, True)
