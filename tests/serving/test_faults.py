"""A server process among clients that stall, vanish, come in crowds, or send what is large, deep or sly."""

from __future__ import annotations

import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from servable.store import Store
from servable.wire import messages, tensors
from servable.wire.examples import encode

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks at processes in /proc")

# For whatever has to happen at some time; none of it takes nearly as long.
LIMIT_S = 60.0
PREDICT = "/v1/models/celsius:predict"
BODY = b'{"instances": [[100.0]]}'
REQUEST = b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (PREDICT.encode(), len(BODY), BODY)
PREDICTION, MODEL = f"/{messages.PREDICTION_SERVICE}", f"/{messages.MODEL_SERVICE}"

Serve = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def process(serve: Serve) -> Iterator[Any]:
    """A server that has answered once, so that all it needs is loaded."""
    with serve() as process:
        check_answers(process)
        yield process


@pytest.fixture(scope="module")
def narrow(serve: Serve) -> Iterator[Any]:
    """A server of few threads: each keeps memory for itself, and all of them shall have done so soon."""
    with serve("--grpc_max_threads=1", "--rest_api_num_threads=1") as process:
        check_answers(process)
        yield process


def post(process: Any, content: bytes, path: str = PREDICT) -> httpx.Response:
    url = f"http://127.0.0.1:{process.rest_port}{path}"
    return httpx.post(url, content=content, trust_env=False, timeout=LIMIT_S)


def rpc(process: Any, method: str, request: Any) -> bytes:
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}", options=options) as channel:
        answer: bytes = channel.unary_unary(method)(request.SerializeToString(), timeout=LIMIT_S, wait_for_ready=True)
        return answer


def predict_request(model: str = "celsius", **inputs: Any) -> Any:
    request = messages.PredictRequest()
    request.model_spec.name = model
    for name, array in inputs.items():
        tensors.encode_into(request.inputs[name], array, content=True)
    return request


def check_answers(process: Any) -> None:
    """The server runs, and answers rightly on both ports."""
    assert process.is_alive(), process.output()
    response = post(process, BODY)
    assert response.status_code == 200
    assert response.json()["predictions"] == [[pytest.approx(212.0, abs=0.1)]]
    answer = rpc(process, f"{PREDICTION}/Predict", predict_request(celsius=np.array([[100.0]], np.float32)))
    assert messages.PredictResponse.FromString(answer).outputs["fahrenheit"].float_val == [
        pytest.approx(212.0, abs=0.1)
    ]


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)


def vanish(connection: socket.socket) -> None:
    """Close with a reset, as a client does that is killed with data unread."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def received(connection: socket.socket, text: bytes) -> bool:
    """Whether a text comes before the connection ends."""
    data = b""
    while text not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return False
        data += chunk
    return True


# Connections

DESCRIPTORS = 128
LIMITED = (
    "import os, resource, sys; "
    f"resource.setrlimit(resource.RLIMIT_NOFILE, ({DESCRIPTORS}, {DESCRIPTORS})); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def test_more_idle_connections_than_descriptors(serve: Serve) -> None:
    with serve(before=[sys.executable, "-c", LIMITED]) as process:
        check_answers(process)
        idle, written = process.descriptors(), len(process.output())
        for ports in ((process.rest_port, process.grpc_port), (process.grpc_port, process.rest_port)):
            with ExitStack() as crowd:
                for port in ports:
                    for _ in range(DESCRIPTORS + 20):
                        crowd.enter_context(connected(port))
                wait_until(lambda: process.descriptors() >= DESCRIPTORS - 2)
                time.sleep(2.0)  # what tries again and again without a pause would fill the log
                assert process.is_alive()
            wait_until(lambda: process.descriptors() <= idle)
            check_answers(process)
        assert len(process.output()) - written < 10_000, process.output()


def test_a_byte_a_second_holds_up_nobody(process: Any, predict_call: bytes) -> None:
    with ExitStack() as stack:
        slow = [
            (stack.enter_context(connected(port)), data, answer)
            for port, data, answer in (
                (process.rest_port, REQUEST, b'"predictions"'),
                (process.grpc_port, predict_call, b"fahrenheit"),
            )
            for _ in range(20)
        ]
        for i in range(3):
            for connection, data, _ in slow:
                connection.sendall(data[i : i + 1])
            check_answers(process)
            time.sleep(1.0)
        for connection, data, _ in slow:
            connection.sendall(data[3:])
        assert all(received(connection, answer) for connection, _, answer in slow)


HEAD = b"POST %b HTTP/1.1\r\n" % PREDICT.encode()


@pytest.mark.parametrize(
    "sent",
    [
        HEAD,
        HEAD + b"Content-Length: 1000000\r\n\r\n" + BODY,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1000\r\n" + BODY,
        HEAD + b"Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n",
        REQUEST + REQUEST[:-1],
        REQUEST,
    ],
    ids=["head", "length", "chunk", "expect", "second", "whole"],
)
def test_rest_clients_that_vanish(process: Any, sent: bytes) -> None:
    before = process.descriptors()
    for _ in range(100):
        connection = connected(process.rest_port)
        connection.sendall(sent)
        vanish(connection)
    wait_until(lambda: process.descriptors() <= before)
    check_answers(process)


@pytest.mark.parametrize("missing", [0, 5, 50, 250])
def test_grpc_clients_that_vanish(process: Any, predict_call: bytes, missing: int) -> None:
    before = process.descriptors()
    for _ in range(100):
        connection = connected(process.grpc_port)
        connection.sendall(predict_call[: len(predict_call) - missing])
        assert connection.recv(1)  # its settings: it reads
        vanish(connection)
    wait_until(lambda: process.descriptors() <= before)
    check_answers(process)


def test_a_stop_does_not_wait_for_what_goes_on_and_on(serve: Serve) -> None:
    example = encode({"celsius": np.array([100.0])})
    request = predict_request(inputs=np.full(2_000_000, example, object))
    request.model_spec.signature_name = "regress"
    with (
        serve() as process,
        grpc.insecure_channel(f"127.0.0.1:{process.grpc_port}") as channel,
    ):
        held = process.resident_bytes()
        call = channel.unary_unary(f"{PREDICTION}/Predict").future(request.SerializeToString())
        wait_until(lambda: process.resident_bytes() > held + request.ByteSize())
        assert process.stop() == 0  # and not killed because it had not ended after ten seconds
        assert call.exception(LIMIT_S)


# Large bodies

LARGE = 64 * 2**20
ROUNDS = 8
PICTURES = (np.arange(10 * 28 * 28) % 509 / 512).astype(np.float32).reshape(10, 28, 28, 1)


def test_64_mib_over_rest(narrow: Any) -> None:
    texts = [json.dumps(picture.tolist()) for picture in PICTURES]
    times = LARGE // sum(map(len, texts)) + 1
    body = b'{"instances": [%b]}' % ", ".join(texts * times).encode()
    assert len(body) > LARGE
    held = []
    for _ in range(ROUNDS):
        response = post(narrow, body, "/v1/models/mlp:predict")
        assert response.status_code == 200
        check_probabilities(narrow, np.array(response.json()["predictions"]), times)
        held.append(narrow.resident_bytes())
    check_memory_comes_back(held)


def test_64_mib_over_grpc(narrow: Any) -> None:
    times = LARGE // PICTURES.nbytes + 1
    request = predict_request("mlp", image=np.tile(PICTURES, (times, 1, 1, 1)))
    held = []
    for _ in range(ROUNDS):
        answer = messages.PredictResponse.FromString(rpc(narrow, f"{PREDICTION}/Predict", request))
        check_probabilities(narrow, tensors.decode(answer.outputs["probabilities"]), times)
        held.append(narrow.resident_bytes())
    check_memory_comes_back(held)


def check_memory_comes_back(held: list[int]) -> None:
    """The last rounds hold no more than those before them; the first two take what threads keep for themselves."""
    early, late = held[2 : ROUNDS // 2 + 1], held[ROUNDS // 2 + 1 :]
    assert min(late) - min(early) < 2 * LARGE, held


def check_probabilities(process: Any, found: Any, times: int) -> None:
    """The answers to the pictures, again and again, are those to the pictures alone."""
    answer = rpc(process, f"{PREDICTION}/Predict", predict_request("mlp", image=PICTURES))
    few = tensors.decode(messages.PredictResponse.FromString(answer).outputs["probabilities"])
    assert len({row.tobytes() for row in few.round(4)}) > 1
    np.testing.assert_allclose(found, np.tile(few, (times, 1)), atol=1e-4)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"instances": [[%b 1.0]]' % (b"1.0, " * (LARGE // 5)), "Missing a comma or '}' after an object member."),
        (b'{"instances": [[%b x]]}' % (b"1.0, " * (LARGE // 5)), "Invalid value."),
        (b'{"instances": ["%b' % (b"a" * LARGE), "Missing a closing quotation mark in string."),
        (b'{"instances": [[1.0]]%b' % (b" " * LARGE), "Missing a comma or '}' after an object member."),
        (b" " * LARGE, "The document is empty."),
        (b"1" * LARGE, "Number too big to be stored in double."),
        (b"\0" * LARGE, "The document is empty."),
    ],
    ids=["no end", "no value", "no quote", "blanks", "only blanks", "digits", "NUL"],
)
def test_64_mib_that_are_no_json(process: Any, body: bytes, text: str) -> None:
    response = post(process, body)
    assert response.status_code == 400
    assert response.json()["error"].startswith(f"JSON Parse error: {text} at offset: ")


# Deep bodies

DEEP = 1_000_000


@pytest.mark.parametrize(
    "document",
    [
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b'[{"a":' * DEEP,
        b"]" * DEEP,
        b'["' * DEEP,
        b'{"instances":' + b"[" * DEEP,
        b'{"instances":' + b"[" * DEEP + b"1.0" + b"]" * DEEP + b"}",
        b'{"instances": [' + b'{"celsius":' * DEEP,
        b'{"inputs":' + b"[" * DEEP + b"1.0" + b"]" * DEEP + b"}",
        b'{"inputs":' + b'{"celsius":' * DEEP + b"1.0" + b"}" * DEEP + b"}",
        b'{"signature_name":' + b"[" * DEEP + b"]" * DEEP + b', "instances": [[1.0]]}',
        b'{"unknown":' + b"[" * DEEP + b"]" * DEEP + b', "instances": [[1.0]]}',
        b'{"unknown":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b', "instances": [[1.0]]}',
        b'{"examples": [' + b'{"celsius":' * DEEP,
        b'{"examples": [{"celsius":' + b"[" * DEEP + b"1.0" + b"]" * DEEP + b"}]}",
        b'{"examples": [{"celsius": 1.0}], "context":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
    ],
    ids=range(16),
)
@pytest.mark.parametrize("verb", ["predict", "regress"])
def test_a_million_levels(process: Any, document: bytes, verb: str) -> None:
    assert post(process, document, f"/v1/models/celsius:{verb}").status_code == 400
    check_answers(process)


# As deep as the reader goes at all: what comes behind it must not go down level by level.
@pytest.mark.parametrize("levels", [33, 300, 1000, 9000])
@pytest.mark.parametrize(
    ("verb", "start", "opening", "closing", "end"),
    [
        ("predict", b'{"instances":', b"[", b"]", b"}"),
        ("predict", b'{"inputs":', b"[", b"]", b"}"),
        ("predict", b'{"inputs":', b'{"celsius":', b"}", b"}"),
        ("predict", b'{"instances": [', b'{"celsius":', b"}", b"]}"),
        ("predict", b'{"instances": [', b'{"b64":', b"}", b"]}"),
        ("predict", b'{"instances": [[1.0]], "signature_name":', b'{"a":', b"}", b"}"),
        ("predict", b"", b"[", b"]", b""),
        ("regress", b'{"examples": [', b'{"celsius":', b"}", b"]}"),
        ("regress", b'{"examples": [{"celsius":', b"[", b"]", b"}]}"),
        ("regress", b'{"examples": [{"celsius": 1.0}], "context":', b'{"a":', b"}", b"}"),
    ],
    ids=range(10),
)
def test_some_thousand_levels(
    process: Any, levels: int, verb: str, start: bytes, opening: bytes, closing: bytes, end: bytes
) -> None:
    document = start + opening * levels + b"1.0" + closing * levels + end
    assert post(process, document, f"/v1/models/celsius:{verb}").status_code == 400


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_what_is_deep_under_an_unknown_key_is_skipped(process: Any, opening: bytes, closing: bytes) -> None:
    document = b'{"x":%b1%b, "instances": [[100.0]]}' % (opening * 9000, closing * 9000)
    assert post(process, document).status_code == 200


# Tensors that are small on the wire alone


@pytest.mark.parametrize("rows", [2**17, 2**20, 2**29, 2**40, 2**62])
def test_a_tensor_that_repeats_one_value_too_often_is_refused(process: Any, rows: int) -> None:
    numbers = predict_request("cnn", image=np.zeros((1, 28, 28, 1), np.float32))
    tensor = numbers.inputs["image"]
    tensor.ClearField("tensor_content")
    tensor.float_val.append(1.0)
    tensor.tensor_shape.dim[0].size = rows
    texts = predict_request("cnn", image_bytes=np.array([b"x" * 1000], object))
    texts.model_spec.signature_name = "serve_bytes"
    tensor = texts.inputs["image_bytes"]
    tensor.ClearField("tensor_content")
    tensor.string_val.append(b"x" * 1000)
    tensor.tensor_shape.dim[0].size = rows
    for request in (numbers, texts):
        with pytest.raises(grpc.RpcError) as caught:
            rpc(process, f"{PREDICTION}/Predict", request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    check_answers(process)


# Names

AUDITED = """
import os, runpy, sys
trace = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(event, arguments):
    if event in ("open", "os.listdir", "os.scandir", "os.chdir", "os.rename", "os.remove", "os.mkdir", "os.link"):
        if isinstance(arguments[0], (str, bytes, os.PathLike)):  # and no descriptor
            os.write(trace, b'%b "%b"\\n' % (event.encode(), os.fsencode(arguments[0])))
sys.addaudithook(note)
sys.argv = sys.argv[sys.argv.index("servable") :]
runpy.run_module("servable", run_name="__main__", alter_sys=True)
"""
NAMES = (
    "..",
    "../bait",
    "../../bait",
    "celsius/../../bait",
    "../../../../../../../../etc",
    "../../../../../../../../etc/passwd",
    "/etc/passwd",
    "//etc/passwd",
    "file:///etc/passwd",
    "~",
    "$HOME",
    ".staging",
    ".reports",
    "celsius/1",
    "celsius\0",
    "celsius\0/../../bait",
    "..\\bait",
    "",
    ".",
    "/",
    "%2e%2e%2fbait",
    "bait" * 2000,
)


@pytest.fixture(params=["audit", "strace"])
def traced(
    request: pytest.FixtureRequest, serve: Serve, store: Store, tmp_path: Path
) -> Iterator[tuple[Any, Callable[[], list[str]]]]:
    """A server, and the paths outside its store that it has looked at since it was last asked."""
    trace = tmp_path / "trace"
    if request.param == "audit":
        before = [sys.executable, "-c", AUDITED, str(trace)]
    else:
        strace = shutil.which("strace")
        if not strace or subprocess.run([strace, "-D", "true"], check=False, capture_output=True).returncode:
            pytest.skip("strace is not installed, or may not trace here")
        before = [strace, "-D", "-f", "-qq", "-s", "4096", "-e", "trace=%file", "-o", str(trace)]
    with serve(before=before) as process:
        seen = 0

        def outside() -> list[str]:
            nonlocal seen
            lines = trace.read_bytes().splitlines(keepends=True)[seen:]
            whole = [line.decode("utf-8", "replace") for line in lines if line.endswith(b"\n")]
            seen += len(whole)
            paths = [path for line in whole for path in re.findall(r'"((?:[^"\\]|\\.)*)"', line) if path]
            return [path for path in paths if not Path(path).is_relative_to(store.root)]

        yield process, outside


def test_no_name_leads_out_of_the_store(traced: tuple[Any, Callable[[], list[str]]], store: Store) -> None:
    process, outside = traced
    shutil.copytree(store.root / "celsius", store.root.parent / "bait", dirs_exist_ok=True)
    assert any(path.startswith("/") for path in outside()), "the trace shows what is opened at all"
    check_answers(process)
    ask_for(process, "nobody")
    outside()  # now all is loaded that answers take
    for name in NAMES:
        ask_for(process, name)
    assert outside() == []
    check_answers(process)


def ask_for(process: Any, name: str) -> None:
    """Put a name that nothing has into every place where a request may hold one."""
    connection = HTTPConnection("127.0.0.1", process.rest_port, timeout=LIMIT_S)
    quoted = "".join(f"%{byte:02X}" for byte in name.encode())
    plain = re.sub(r"[^!-~]|[%\\]", "_", name)
    for part in (quoted, plain):
        for method, target in (
            ("GET", f"/v1/models/{part}"),
            ("GET", f"/v1/models/{part}/metadata"),
            ("GET", f"/v1/models/{part}/versions/1"),
            ("GET", f"/v1/models/celsius/versions/{part}"),
            ("GET", f"/v1/models/celsius/labels/{part}/metadata"),
            ("POST", f"/v1/models/{part}:predict"),
            ("POST", f"/v1/models/{part}/versions/1:predict"),
            ("POST", f"/v1/models/celsius/versions/{part}:predict"),
            ("POST", f"/v1/models/celsius/labels/{part}:predict"),
            ("GET", f"/{part}"),
        ):
            connection.request(method, target, BODY if method == "POST" else None)
            response = connection.getresponse()
            response.read()
            assert response.status in (400, 404), (method, target)
    for path in (PREDICT, "/v1/models/celsius:regress"):
        body = {"signature_name": name or "none", "instances": [[1.0]], "examples": [{"celsius": 1.0}]}
        assert post(process, json.dumps(body).encode(), path).status_code == 400
    connection.close()
    for method, request in grpc_requests(name):
        with pytest.raises(grpc.RpcError) as caught:
            rpc(process, method, request)
        assert caught.value.code().name in ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"), (method, request)


def grpc_requests(name: str) -> Iterator[tuple[str, Any]]:
    for method, kind in (
        (f"{PREDICTION}/Predict", messages.PredictRequest),
        (f"{PREDICTION}/Classify", messages.ClassificationRequest),
        (f"{PREDICTION}/Regress", messages.RegressionRequest),
        (f"{PREDICTION}/GetModelMetadata", messages.GetModelMetadataRequest),
        (f"{MODEL}/GetModelStatus", messages.GetModelStatusRequest),
    ):
        request = kind()
        request.model_spec.name = name
        yield method, request
    request = messages.MultiInferenceRequest()
    request.tasks.add().model_spec.name = name
    yield f"{PREDICTION}/MultiInference", request
    request = messages.GetModelMetadataRequest(metadata_field=[name])
    request.model_spec.name = "celsius"
    yield f"{PREDICTION}/GetModelMetadata", request
    for place in ("label", "signature", "input", "output"):
        request = predict_request(**{name if place == "input" else "celsius": np.array([[1.0]], np.float32)})
        if place == "label":
            request.model_spec.version_label = name
        elif place == "signature":
            request.model_spec.signature_name = name or "none"
        elif place == "output":
            request.output_filter.append(name)
        yield f"{PREDICTION}/Predict", request


# Certificates


def test_mutual_tls_lets_nobody_in_without_a_certificate(serve: Serve, tmp_path: Path) -> None:
    tool = shutil.which("openssl")
    assert tool, "openssl is not installed"
    pem: dict[str, bytes] = {}
    for name in ("server", "client", "stranger"):
        key, certificate = tmp_path / f"{name}.key", tmp_path / f"{name}.crt"
        make = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        names = ("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost")
        files = ("-keyout", str(key), "-out", str(certificate))
        subprocess.run([tool, *make, *names, *files], check=True, capture_output=True, timeout=LIMIT_S)
        pem[f"{name}.key"], pem[f"{name}.crt"] = key.read_bytes(), certificate.read_bytes()
    config = tmp_path / "ssl"
    config.write_text(
        f"server_key: {pem['server.key'].decode()!r}\nserver_cert: {pem['server.crt'].decode()!r}\n"
        f"custom_ca: {pem['client.crt'].decode()!r}\nclient_verify: true\n"
    )
    status = messages.GetModelStatusRequest(model_spec=messages.ModelSpec(name="celsius")).SerializeToString()
    with serve(f"--ssl_config_file={config}") as process:

        def code(credentials: grpc.ChannelCredentials | None) -> str:
            target = f"localhost:{process.grpc_port}"
            channel = grpc.secure_channel(target, credentials) if credentials else grpc.insecure_channel(target)
            with channel:
                try:
                    channel.unary_unary(f"{MODEL}/GetModelStatus")(status, timeout=LIMIT_S)
                except grpc.RpcError as error:
                    return str(error.code().name)
            return "OK"

        def secure(name: str = "") -> grpc.ChannelCredentials:
            own = (pem[f"{name}.key"], pem[f"{name}.crt"]) if name else (None, None)
            return grpc.ssl_channel_credentials(pem["server.crt"], *own)

        assert code(secure("client")) == "OK"
        assert code(secure()) == "UNAVAILABLE"
        assert code(secure("stranger")) == "UNAVAILABLE"
        assert code(None) == "UNAVAILABLE"
        assert code(secure("client")) == "OK"
        assert process.is_alive()
