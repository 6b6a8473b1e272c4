"""Ten thousand requests that random changes have spoilt: a server process answers, and blames itself for none."""

from __future__ import annotations

import base64
import json
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from servable.models.samples import sample_pictures
from servable.wire import messages, tensors
from servable.wire.examples import encode
from servable.wire.tensors import varint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks at processes in /proc"),
]

# For any one request; the slowest takes a second.
LIMIT_S = 30.0
CLIENTS = 4
MIB = 2**20
PREDICTION, MODEL = f"/{messages.PREDICTION_SERVICE}", f"/{messages.MODEL_SERVICE}"
GOOD_CODES = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED"}

Serve = Callable[..., AbstractContextManager[Any]]


# What to change, and how

# Where a parser may take a wrong turn: in text, in HTTP, in JSON, in protobuf.
WORDS = (
    *(b"\0", b"\xff", b"\x80" * 20, b"\xff" * 9 + b"\1", b"\xc3\x28", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
    *(b"\n", b"\r\n", b"\r\n\r\n", b" ", b"%", b"%00", b"%2e%2e%2f", b"../", b"#", b"?x=1", b"http://[::1", b"//"),
    *(
        b"-",
        b"0" * 30,
        b"9" * 30,
        b"1e999",
        b"-1e-999",
        b"1e",
        b"NaN",
        b"Infinity",
        b"null",
        b"true",
        b"18446744073709551615",
    ),
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b"[" * 100,
        b'{"a":' * 100,
        b'"',
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b",",
        b":",
        b"[]",
        b"{}",
    ),
    *(b'{"b64":"////"}', b'"b64":', b"instances", b"inputs", b"examples", b"signature_name", b'"context":{},'),
    *(b"celsius", b"mlp", b"cnn", b"serve_bytes", b"classify", b"regress", b"__saved_model_init_op"),
    *(b"/versions/1", b"/versions/9223372036854775808", b"/labels/x", b"/metadata", b":predict", b":regress"),
    *(b"GET ", b"HEAD ", b"POST ", b"PUT ", b"OPTIONS ", b"CONNECT ", b"HTTP/1.0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    *(b"Content-Length: 5\r\n", b"Content-Length: -5\r\n", b"Content-Length: 99999999999999999999\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"5\r\n[[1.0\r\n", b"0\r\n\r\n", b"Content-Encoding: gzip\r\n"),
    *(
        b"Expect: 100-continue\r\n",
        b"Expect: x\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\n",
    ),
    *(b"Origin: http://a\r\n", b"X-Request-Id: \xff\r\n", b"X-Request-Id: a\r\n"),
    *(b"\x08\x01", b"\x0a\x00", b"\x12\x00", b"\x0b\x0c", b"\x10\xff\xff\xff\xff\x0f", b"\0\0\0\0\0"),
)
SIZES = (1, 1, 1, 2, 4, 8, 32, 256)
NUMBERS = (0, 1, 2, 3, 7, 10, 27, 28, 127, 128, 255, 1000, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them changed, lost, doubled or added."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice(SIZES))
        piece = data[start:end]
        instead = rng.choice(
            (
                b"",
                piece * 2,
                rng.choice(WORDS),
                rng.choice(WORDS) + piece,
                rng.randbytes(len(piece)),
                bytes(byte ^ 1 << rng.randrange(8) for byte in piece[:1]) + piece[1:],
            )
        )
        data = data[:start] + instead + (data[end:] if rng.random() < 0.97 else b"")
    return data


def mutated_message(data: bytes, rng: random.Random) -> bytes:
    """A serialized message with one of its fields changed, at any depth, and all lengths right."""
    fields = read_fields(data)
    if not fields:
        return mutated(data, rng)
    at = rng.randrange(len(fields))
    tag, value = fields[at]
    how = rng.randrange(12)
    if how == 0:
        del fields[at]
    elif how == 1:
        fields.insert(rng.randrange(len(fields) + 1), fields[at])
    elif how == 2:
        fields[at] = (rng.randrange(1, 20) << 3 | tag & 7, value)
    elif how == 3:
        rng.shuffle(fields)
    elif isinstance(value, int):
        fields[at] = (tag, rng.choice(NUMBERS))
    else:
        fields[at] = (tag, mutated_message(value, rng) if tag & 7 == 2 else rng.randbytes(len(value)))
    return b"".join(written(tag, value) for tag, value in fields)


def read_fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """The tags and values of a serialized message; none if it is not one."""
    fields: list[tuple[int, int | bytes]] = []
    at = 0
    try:
        while at < len(data):
            tag, at = read_varint(data, at)
            value: int | bytes
            if tag & 7 == 0:
                value, at = read_varint(data, at)
            else:
                size, at = {1: (8, at), 5: (4, at)}.get(tag & 7) or read_varint(data, at)
                value, at = data[at : at + size], at + size
            if at > len(data) or tag >> 3 == 0 or tag & 7 not in (0, 1, 2, 5):
                return []
            fields.append((tag, value))
    except IndexError:
        return []
    return fields


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at


def written(tag: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(tag) + varint(value)
    return varint(tag) + (varint(len(value)) if tag & 7 == 2 else b"") + value


# What is right before

PICTURES = [path.read_bytes() for path in sample_pictures().values()]
IMAGE = np.random.default_rng(1).random((1, 28, 28, 1), np.float32).round(3)
IMAGE_EXAMPLE = encode({"image": IMAGE})
CELSIUS_EXAMPLE = encode({"celsius": np.array([100.0])})


def predict_messages() -> Iterator[bytes]:
    for content in (True, False):
        for model, signature, name, array in (
            ("celsius", "", "celsius", np.array([[1.0], [2.0]], np.float32)),
            ("mlp", "serving_default", "image", IMAGE),
            ("cnn", "", "image", IMAGE),
            ("mlp", "serve_bytes", "image_bytes", np.array(PICTURES[:1], object)),
            ("cnn", "serve_bytes", "image_bytes", np.array(PICTURES[1:3], object)),
            ("cnn", "classify", "inputs", np.array([IMAGE_EXAMPLE], object)),
            ("celsius", "regress", "inputs", np.array([CELSIUS_EXAMPLE] * 2, object)),
        ):
            request = messages.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = model, signature
            tensors.encode_into(request.inputs[name], array, content=content)
            if model == "cnn":
                request.model_spec.version.value = 1
                request.output_filter.append("classes" if signature == "classify" else "probabilities")
            yield request.SerializeToString()


def rpcs() -> list[tuple[str, bytes]]:
    """Good calls: each method with its serialized request."""
    calls = [(f"{PREDICTION}/Predict", raw) for raw in predict_messages()]
    for method, kind, model, signature, example in (
        ("Classify", messages.ClassificationRequest, "mlp", "classify", IMAGE_EXAMPLE),
        ("Classify", messages.ClassificationRequest, "cnn", "classify", IMAGE_EXAMPLE),
        ("Regress", messages.RegressionRequest, "celsius", "regress", CELSIUS_EXAMPLE),
    ):
        for field in ("example_list", "example_list_with_context"):
            request = kind()
            request.model_spec.name, request.model_spec.signature_name = model, signature
            examples = getattr(request.input, field)
            for _ in range(2):
                examples.examples.add().ParseFromString(example)
            if field == "example_list_with_context":
                examples.context.ParseFromString(encode({"other": np.array([b"x"], object)}))
            calls.append((f"{PREDICTION}/{method}", request.SerializeToString()))
    request = messages.MultiInferenceRequest()
    for method in ("regress", "classify"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "celsius", "regress"
        request.input.example_list.examples.add().ParseFromString(CELSIUS_EXAMPLE)
        calls.append((f"{PREDICTION}/MultiInference", request.SerializeToString()))
    for model in ("celsius", "mlp", "cnn"):
        spec = messages.ModelSpec(name=model, version={"value": 1})
        request = messages.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        calls.append((f"{PREDICTION}/GetModelMetadata", request.SerializeToString()))
        calls.append((f"{MODEL}/GetModelStatus", messages.GetModelStatusRequest(model_spec=spec).SerializeToString()))
    return calls


def http_requests() -> list[bytes]:
    """Good requests over REST, byte by byte."""
    image, flat = IMAGE[0].tolist(), IMAGE.ravel().tolist()
    encoded = [{"b64": base64.b64encode(picture).decode()} for picture in PICTURES[:2]]
    posts: list[tuple[str, dict[str, Any], bytes]] = [
        ("celsius:predict", {"instances": [[1.0], [2.5]]}, b""),
        ("celsius:predict", {"inputs": {"celsius": [[1.0]]}}, b"Connection: close\r\n"),
        ("celsius/versions/1:predict", {"signature_name": "serving_default", "instances": [{"celsius": [1.0]}]}, b""),
        ("celsius:regress", {"signature_name": "regress", "examples": [{"celsius": 1.0}], "context": {"x": "y"}}, b""),
        ("mlp:predict", {"instances": [image]}, b"Content-Type: application/json\r\n"),
        ("cnn:predict", {"inputs": [image]}, b"X-Request-Id: mine\r\n"),
        ("cnn:predict", {"signature_name": "serve_bytes", "instances": encoded}, b""),
        ("mlp:predict", {"signature_name": "serve_bytes", "inputs": {"image_bytes": encoded[:1]}}, b""),
        ("cnn:classify", {"signature_name": "classify", "examples": [{"image": flat}]}, b"Expect: 100-continue\r\n"),
        ("mlp:classify", {"signature_name": "classify", "examples": [{"image": flat}] * 2}, b""),
    ]
    requests = []
    for target, document, header in posts:
        head = f"POST /v1/models/{target} HTTP/1.1\r\nHost: x\r\n".encode() + header
        body = json.dumps(document).encode()
        requests.append(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body))
        requests.append(b"%bTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (head, len(body), body))
    lines = (
        "GET /v1/models/celsius",
        "GET /v1/models/mlp/versions/1",
        "GET /v1/models/cnn/metadata",
        "GET /v1/models/cnn/labels/none/metadata",
        "GET /healthz",
        "GET /openapi.json",
        "HEAD /v1/models/cnn",
        "OPTIONS /v1/models/cnn",
    )
    requests += [f"{line} HTTP/1.1\r\nHost: x\r\nOrigin: http://x\r\n\r\n".encode() for line in lines]
    requests.append(b"".join(requests[:3]) + requests[-4])
    return requests


def mutated_request(data: bytes, rng: random.Random) -> bytes:
    """A request with its head, its body (and then the right length), or anything changed."""
    head, end, body = data.partition(b"\r\n\r\n")
    part = rng.random()
    if body and part < 0.5:
        body = mutated(body, rng)
        return re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head) + end + body
    if part < 0.75:
        return mutated(head, rng) + end + body
    return mutated(data, rng)


# Sending it

LAST = b"GET /nothing-behind-this HTTP/1.1\r\nConnection: close\r\n\r\n"


def talk(port: int, data: bytes) -> bytes:
    """All that a server answers to some bytes; it has to end the connection when the client ends its side."""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
        answer = b""
        try:
            connection.sendall(data)
            connection.settimeout(0.1)  # it may rightly wait for the rest of what it takes for a request
            try:
                while chunk := connection.recv(65536):
                    answer += chunk
            except TimeoutError:
                connection.settimeout(LIMIT_S)
                connection.shutdown(socket.SHUT_WR)
                while chunk := connection.recv(65536):
                    answer += chunk
        except ConnectionError:
            pass  # refused, and closed while we were sending
    return answer


def run_rest(process: Any, count: int, seed: int) -> None:
    rng, requests = random.Random(seed), http_requests()
    for request in requests:
        assert set(statuses(talk(process.rest_port, request + LAST))) <= {"100", "200", "400", "404"}, request
    work = [mutated_request(rng.choice(requests), rng) for _ in range(count)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = pool.map(lambda data: talk(process.rest_port, data + LAST), work)
        for data, answer in zip(work, answers, strict=True):
            bad = [status for status in statuses(answer) if status >= "500" and status != "501"]
            assert not bad, (data, answer)


def statuses(answer: bytes) -> list[str]:
    return [found.decode() for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def run_grpc(process: Any, count: int, seed: int) -> None:
    rng, calls = random.Random(seed), rpcs()
    work = []
    for _ in range(count):
        method, raw = rng.choice(calls)
        if rng.random() < 0.03:
            method = rng.choice(calls)[0]
        work.append((method, mutated_message(raw, rng) if rng.random() < 0.6 else mutated(raw, rng)))
    with grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
        stubs = {method: channel.unary_unary(method) for method, _ in calls}

        def code(method: str, data: bytes) -> str:
            try:
                stubs[method](data, timeout=LIMIT_S)
            except grpc.RpcError as error:
                return f"{error.code().name} {error.details()}"
            return "OK"

        for method, raw in calls:
            assert code(method, raw).split()[0] in ("OK", "INVALID_ARGUMENT"), (method, raw)
        with ThreadPoolExecutor(CLIENTS) as pool:
            for call, found in zip(work, pool.map(lambda call: code(*call), work), strict=True):
                assert found.split()[0] in GOOD_CODES, (found, *call)


def run_http2(process: Any, call: bytes, count: int, seed: int) -> None:
    rng = random.Random(seed)
    preface = call[:24]

    def garbage() -> bytes:
        kind = rng.randrange(4)
        if kind == 0:
            return rng.randbytes(rng.randrange(2000))
        if kind == 1:
            return mutated(call, rng)
        if kind == 2:
            return preface + mutated(call[len(preface) :], rng)
        frames = [rng.randbytes(rng.randrange(60)) for _ in range(20)]
        streams = (0, 0, 1, 1, 3, 2**31 - 1)
        return preface + b"".join(
            b"%b%c%c%b%b"
            % (
                len(payload).to_bytes(3, "big"),
                rng.randrange(12),
                rng.randrange(256),
                rng.choice(streams).to_bytes(4, "big"),
                payload,
            )
            for payload in frames
        )

    work = [garbage() for _ in range(count)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda data: talk(process.grpc_port, data), work))


def check_all_is_well(process: Any, descriptors: int) -> None:
    """The server runs, answers on both ports, holds no more descriptors, and has not been surprised."""
    assert process.is_alive(), process.output()
    url = f"http://127.0.0.1:{process.rest_port}/v1/models/celsius:predict"
    response = httpx.post(url, content=b'{"instances": [[100.0]]}', trust_env=False, timeout=LIMIT_S)
    assert response.json()["predictions"] == [[pytest.approx(212.0, abs=0.1)]]
    with grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel:
        method, raw = rpcs()[0]
        assert channel.unary_unary(method)(raw, timeout=LIMIT_S)
    end = time.monotonic() + LIMIT_S
    while process.descriptors() > descriptors:
        assert time.monotonic() < end, f"{process.descriptors()} descriptors, {descriptors} before"
        time.sleep(0.05)
    _, traceback, rest = process.output().partition("Traceback")
    assert not traceback, rest[:4000]


@pytest.mark.parametrize(
    ("word", "count"),
    [("--runtime=auto", 5000), ("--runtime=tensorflow", 1000), ("--enable_batching", 1000)],
    ids=["auto", "tensorflow", "batching"],
)
def test_mutated_requests(serve: Serve, predict_call: bytes, word: str, count: int) -> None:
    with serve(word) as process:
        for run in (run_rest, run_grpc):
            run(process, count // 5, seed=0)  # so that threads and memory are there
        run_http2(process, predict_call, count // 5, seed=0)
        pid, descriptors, held = process.pid, process.descriptors(), process.resident_bytes()
        run_rest(process, count, seed=1)
        run_grpc(process, count, seed=2)
        run_http2(process, predict_call, count // 5, seed=3)
        assert process.pid == pid
        check_all_is_well(process, descriptors)
        assert process.resident_bytes() - held < 100 * MIB
