"""The gRPC server from outside: grpcio's public client, the standard services' stubs, openssl's certificates."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from numpy.typing import NDArray
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from servable.errors import AddressInUseError, InvalidArgumentError
from servable.serving import Server, ServerOptions
from servable.serving.access_log import AccessLog
from servable.serving.data_plane import DataPlane, ModelSpec
from servable.serving.grpc_front import GrpcFront, GrpcOptions
from servable.serving.manager import Manager
from servable.serving.monitoring import Call, Monitor
from servable.serving.servable import Servable
from servable.serving.tls import credentials
from servable.signature import Signature, TensorSpec
from servable.store import Store

GRPC = ServerOptions(port=0, rest_api_port=None)
BIG = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Gated(DataPlane):
    """Answers y = x; a call whose first x is negative waits for the gate, one of 404 raises its error."""

    def __init__(self) -> None:
        super().__init__(Manager())
        self.gate = threading.Event()
        self.running = threading.Semaphore(0)
        self._servable = object.__new__(Servable)
        self._servable.version = 1
        spec = {"y": TensorSpec("y", "float32", None)}
        self._servable.signatures = {"serving_default": Signature({"x": TensorSpec("x", "float32", (None,))}, spec)}

    def resolve(self, spec: ModelSpec) -> Any:
        return nullcontext(self._servable)

    async def predict(
        self,
        servable: Servable,
        spec: ModelSpec,
        inputs: Mapping[str, NDArray[Any]],
        output_filter: Sequence[str],
        call: Call,
    ) -> dict[str, NDArray[Any]]:
        x = inputs["x"]
        if x[0] < 0:
            self.running.release()
            assert self.gate.wait(30)
        if x[0] == 404:
            raise InvalidArgumentError("é" * 2000)
        if x[0] == 500:
            raise ZeroDivisionError("what a model does")
        return {"y": x}


def request(*values: float) -> predict_pb2.PredictRequest:
    message = predict_pb2.PredictRequest()
    message.model_spec.name = "m"
    message.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array(values, np.float32)))
    return message


def values(response: predict_pb2.PredictResponse) -> list[float]:
    return [float(value) for value in response.outputs["y"].float_val]


@contextmanager
def gated(threads: int = 4, **options: Any) -> Iterator[tuple[GrpcFront, Gated, grpc.Channel]]:
    plane = Gated()
    front = GrpcFront(plane, GrpcOptions(port=0, threads=threads, **options), Monitor(), AccessLog(enabled=False))
    front.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{front.port}", options=BIG) as channel:
            yield front, plane, channel
    finally:
        plane.gate.set()
        front.stop(5.0)


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


def stub(channel: grpc.Channel) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


# Health and reflection


@pytest.mark.parametrize("service", ["", "ModelService", "PredictionService"])
def test_health_check(channel: grpc.Channel, service: str) -> None:
    response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_service(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    code, _ = refused(lambda: health.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=10))
    assert code == grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service="nope"), timeout=10)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_who_watches_hears_of_the_stop() -> None:
    with gated() as (front, _, channel):
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(health_pb2.HealthCheckRequest(service="PredictionService")) for _ in range(3)]
        for watch in watches:
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watches[0].cancel()
        started = time.monotonic()
        front.stop(20.0)
        assert time.monotonic() - started < 10, "a watch does not hold up the stop"
        for watch in watches[1:]:
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert refused(lambda watch=watch: next(watch))[0] == grpc.StatusCode.UNAVAILABLE


def test_watches_that_ended_are_forgotten() -> None:
    with gated() as (front, _, channel):
        for _ in range(50):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            next(watch)
            watch.cancel()
            assert is_empty_model_status(channel)  # the server reads this after the end of the watch
        assert front._health
        assert len(front._health._watchers) < 10


def test_health_garbage(channel: grpc.Channel) -> None:
    check = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert refused(lambda: check(b"\xff", timeout=10))[0] == grpc.StatusCode.INVALID_ARGUMENT
    watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
    assert refused(lambda: next(watch(b"\xff", timeout=10)))[0] == grpc.StatusCode.INVALID_ARGUMENT


def test_health_can_be_switched_off() -> None:
    with gated(health=False) as (_, _, channel):
        code, _ = refused(
            lambda: health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        )
        assert code == grpc.StatusCode.UNIMPLEMENTED


def test_reflection_lists_the_services_and_describes_them(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) == {
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    pool = DescriptorPool(database)
    service = pool.FindServiceByName("tensorflow.serving.PredictionService")
    assert {method.name for method in service.methods} >= {"Predict", "Classify", "Regress", "MultiInference"}
    message = pool.FindMessageTypeByName("tensorflow.serving.PredictRequest")
    official = predict_pb2.PredictRequest.DESCRIPTOR.fields_by_name
    for name in ("model_spec", "inputs", "output_filter"):
        assert message.fields_by_name[name].number == official[name].number
    assert pool.FindMessageTypeByName("tensorflow.TensorProto").fields_by_name["float_val"].number == 5
    assert pool.FindServiceByName("grpc.health.v1.Health").methods_by_name["Watch"].server_streaming


def test_reflection_of_what_there_is_not(channel: grpc.Channel) -> None:
    with pytest.raises(KeyError):
        DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindMessageTypeByName("no.such.Message")
    garbage = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    assert refused(lambda: next(garbage(iter([b"\xff"]), timeout=10)))[0] == grpc.StatusCode.INVALID_ARGUMENT


# Calls


@pytest.mark.parametrize(
    "method",
    [
        "/tensorflow.serving.SessionService/SessionRun",
        "/tensorflow.serving.PredictionService/PredictStreamed",
        "/tensorflow.serving.PredictionService/predict",
        "/nope",
        "/a/b",
    ],
)
def test_an_unknown_method(channel: grpc.Channel, method: str) -> None:
    call = channel.unary_unary(method)
    assert refused(lambda: call(b"", timeout=10))[0] == grpc.StatusCode.UNIMPLEMENTED
    stream = channel.stream_stream(method)
    assert refused(lambda: next(stream(iter([b""]), timeout=10)))[0] == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", ["Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata"])
def test_a_garbage_message(channel: grpc.Channel, method: str) -> None:
    call = channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")
    code, text = refused(lambda: call(b"\xff\xff\xff", timeout=10))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith("the request is not a ")


def test_no_message_at_all_does_not_harm(channel: grpc.Channel, server: Server) -> None:
    call = channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
    with pytest.raises(grpc.RpcError):
        call(iter([]), timeout=10)
    two = channel.stream_unary("/tensorflow.serving.PredictionService/Predict")
    with pytest.raises(grpc.RpcError):
        two(iter([b"", b""]), timeout=10)
    assert is_serving(channel)


def is_serving(channel: grpc.Channel) -> bool:
    message = get_model_status_pb2.GetModelStatusRequest()
    message.model_spec.name = "cnn"
    return bool(model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(message, timeout=10))


def test_messages_of_8_mib_both_ways() -> None:
    big = np.random.default_rng(0).random(2 * 2**20, np.float32)
    message = request()
    message.inputs["x"].CopyFrom(tf.make_tensor_proto(big))
    assert message.ByteSize() > 8 * 2**20
    for as_content in (False, True):
        with gated(as_content=as_content) as (_, _, channel):
            response = stub(channel).Predict(message, timeout=30)
            np.testing.assert_array_equal(tf.make_ndarray(response.outputs["y"]), big)


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_compressed_request(algorithm: grpc.Compression) -> None:
    with gated() as (_, _, channel):
        assert values(stub(channel).Predict(request(*[1.0] * 1000), timeout=10, compression=algorithm)) == [1.0] * 1000


def test_a_deadline_is_kept_and_disturbs_nobody() -> None:
    with gated(threads=2) as (_, plane, channel):
        predict = stub(channel).Predict
        code, _ = refused(lambda: predict(request(-1.0), timeout=0.2))
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert values(predict(request(5.0), timeout=10)) == [5.0]
        plane.gate.set()
        assert values(predict(request(-3.0), timeout=10)) == [-3.0]


def test_a_cancelled_call_disturbs_nobody() -> None:
    with gated(threads=2) as (_, plane, channel):
        predict = stub(channel).Predict
        running = predict.future(request(-1.0))
        assert plane.running.acquire(timeout=10)
        assert running.cancel()
        assert values(predict(request(5.0), timeout=10)) == [5.0]
        plane.gate.set()
        assert values(predict(request(-3.0), timeout=10)) == [-3.0]


def test_a_call_that_was_cancelled_in_the_queue_never_runs() -> None:
    with gated(threads=1) as (_, plane, channel):
        predict = stub(channel).Predict
        first = predict.future(request(-1.0))
        assert plane.running.acquire(timeout=10)
        waiting = [predict.future(request(-2.0), timeout=0.2) for _ in range(8)]
        for call in waiting:
            assert call.exception(10).code() == grpc.StatusCode.DEADLINE_EXCEEDED
        for _ in range(3):  # the server reads these after the end of the others
            assert is_empty_model_status(channel)
        plane.gate.set()
        assert values(first.result(10)) == [-1.0]
        assert values(predict(request(-3.0), timeout=10)) == [-3.0]
        assert plane.running.acquire(timeout=10)
        assert not plane.running.acquire(blocking=False), "one of those that nobody waited for was run"


def test_a_client_that_vanishes_harms_nobody() -> None:
    with gated(threads=2) as (front, plane, channel):
        with grpc.insecure_channel(f"127.0.0.1:{front.port}", options=[("grpc.use_local_subchannel_pool", 1)]) as gone:
            calls = [stub(gone).Predict.future(request(-1.0)) for _ in range(2)]
            assert plane.running.acquire(timeout=10)
        assert all(call.done() for call in calls)
        plane.gate.set()
        assert values(stub(channel).Predict(request(5.0), timeout=10)) == [5.0]


@pytest.mark.parametrize("threads", [1, 8])
def test_64_callers_each_get_their_own_answer(threads: int) -> None:
    with gated(threads) as (_, _, channel), ThreadPoolExecutor(64) as pool:
        predict = stub(channel).Predict
        numbers = [float(number) for number in range(1, 400)]
        answers = pool.map(lambda number: values(predict(request(number), timeout=30)), numbers)
        assert list(answers) == [[number] for number in numbers]


def test_metadata_comes_back_and_hostile_ids_do_not(channel: grpc.Channel) -> None:
    status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus
    message = get_model_status_pb2.GetModelStatusRequest()
    message.model_spec.name = "cnn"
    _, call = status.with_call(message, metadata=[("x-request-id", "abc-1")], timeout=10)
    assert dict(call.initial_metadata())["x-request-id"] == "abc-1"
    for bad in ("with blank", "x" * 129, ""):
        _, call = status.with_call(message, metadata=[("x-request-id", bad)], timeout=10)
        assert "x-request-id" not in dict(call.initial_metadata())
    message.model_spec.name = "nope"
    with pytest.raises(grpc.RpcError) as caught:
        status(message, metadata=[("x-request-id", "abc-2")], timeout=10)
    assert dict(caught.value.initial_metadata())["x-request-id"] == "abc-2"


def test_errors_are_cut_at_1024_bytes_and_between_characters() -> None:
    with gated() as (_, _, channel):
        code, text = refused(lambda: stub(channel).Predict(request(404.0), timeout=10))
        assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "é" * 512 + "...TRUNCATED")
        code, text = refused(lambda: stub(channel).Predict(request(500.0), timeout=10))
        assert (code, text) == (grpc.StatusCode.INTERNAL, "ZeroDivisionError: what a model does")


# Start and stop


def stop_in_background(front: GrpcFront, grace_s: float) -> threading.Thread:
    thread = threading.Thread(target=front.stop, args=(grace_s,))
    thread.start()
    return thread


def test_a_stop_lets_running_calls_finish() -> None:
    with gated() as (front, plane, channel):
        predict = stub(channel).Predict
        running = [predict.future(request(-1.0)) for _ in range(4)]
        for _ in running:
            assert plane.running.acquire(timeout=10)
        stopping = stop_in_background(front, 20.0)
        with grpc.insecure_channel(f"127.0.0.1:{front.port}", options=[("grpc.use_local_subchannel_pool", 1)]) as late:
            while refused(lambda: stub(late).Predict(request(1.0), timeout=10))[0] != grpc.StatusCode.UNAVAILABLE:
                pass
        plane.gate.set()
        assert [values(call.result(10)) for call in running] == [[-1.0]] * 4
        stopping.join(10)
        assert not stopping.is_alive()


def test_a_stop_finishes_what_waits_for_a_thread_too() -> None:
    with gated(threads=1) as (front, plane, channel):
        running = [stub(channel).Predict.future(request(-1.0)) for _ in range(5)]
        assert plane.running.acquire(timeout=10)
        assert is_empty_model_status(channel)  # so that the server has received all that was sent before
        stopping = stop_in_background(front, 20.0)
        plane.gate.set()
        assert [values(call.result(10)) for call in running] == [[-1.0]] * 5
        stopping.join(10)
        assert not stopping.is_alive()


def is_empty_model_status(channel: grpc.Channel) -> bool:
    status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus
    message = get_model_status_pb2.GetModelStatusRequest()
    message.model_spec.name = "m"
    return refused(lambda: status(message, timeout=10))[0] == grpc.StatusCode.NOT_FOUND


def test_a_stop_cancels_what_runs_beyond_its_grace() -> None:
    with gated() as (front, plane, channel):
        running = [stub(channel).Predict.future(request(-1.0)) for _ in range(4)]
        for _ in running:
            assert plane.running.acquire(timeout=10)
        started = time.monotonic()
        front.stop(0.2)
        assert time.monotonic() - started < 5
        for call in running:
            assert call.exception(10).code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


def test_starting_and_stopping_leaves_nothing_behind(store: Store) -> None:
    def once() -> None:
        with (
            Server(store, ServerOptions(port=0, rest_api_port=0)) as server,
            grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
        ):
            assert is_serving(channel)

    once()
    before = {thread for thread in threading.enumerate() if thread.name.startswith(("grpc", "rest"))}
    for _ in range(20):
        once()
    after = {thread for thread in threading.enumerate() if thread.name.startswith(("grpc", "rest"))}
    assert after <= before


def test_a_stop_without_a_start_frees_the_port() -> None:
    options = GrpcOptions(port=0)
    front = GrpcFront(Gated(), options, Monitor(), AccessLog(enabled=False))
    front.stop(1.0)
    again = GrpcFront(Gated(), replace(options, port=front.port), Monitor(), AccessLog(enabled=False))
    assert again.port == front.port
    again.start()
    again.stop(1.0)
    again.stop(1.0)


# UNIX socket


def test_a_unix_socket_alone_and_beside_a_port(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "s"
    for port in (None, 0):
        options = replace(GRPC, port=port, grpc=GrpcOptions(socket_path=str(path)))
        with Server(store, options) as server:
            assert (server.grpc_port is None) == (port is None)
            for target in [f"unix:{path}", *([f"127.0.0.1:{server.grpc_port}"] if port is not None else [])]:
                with grpc.insecure_channel(target) as channel:
                    assert is_serving(channel)


def test_a_unix_socket_in_a_folder_that_is_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(AddressInUseError, match="--grpc_socket_path"):
        Server(store, replace(GRPC, grpc=GrpcOptions(socket_path=str(tmp_path / "no" / "s"))))


# TLS


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """Keys and certificates, made with openssl: ca, server and client by ca, stranger by itself."""
    tool = shutil.which("openssl")
    assert tool, "openssl is not installed"
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run([tool, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    names = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("ca", "stranger"):
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}", *names)
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}", *names)
        sign = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-copy_extensions", "copy")
        openssl("x509", "-req", "-in", f"{name}.csr", *sign, "-out", f"{name}.crt")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".key", ".crt")}


def ssl_config(path: Path, *, verify: bool = False, **pems: bytes) -> Path:
    """An SSLConfig file in text format."""
    lines = [f"{name}: {text.decode()!r}" for name, text in pems.items()]
    path.write_text("\n".join([*lines, f"client_verify: {str(verify).lower()}"]))
    return path


@pytest.fixture
def tls(store: Store, tmp_path: Path, pems: Mapping[str, bytes]) -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def start(**config: Any) -> Server:
        both = {"server_key": pems["server.key"], "server_cert": pems["server.crt"]}
        options = GrpcOptions(credentials=credentials(ssl_config(tmp_path / "ssl", **both, **config)))
        running.append(Server(store, replace(GRPC, grpc=options)).start())
        return running[-1]

    yield start
    for server in running:
        server.stop()


def secure(server: Server, **parts: bytes) -> grpc.Channel:
    return grpc.secure_channel(f"localhost:{server.grpc_port}", grpc.ssl_channel_credentials(**parts))


def unreachable(channel: grpc.Channel) -> bool:
    with channel:
        return refused(lambda: is_serving(channel))[0] == grpc.StatusCode.UNAVAILABLE


def test_tls(tls: Callable[..., Server], pems: Mapping[str, bytes]) -> None:
    server = tls()
    with secure(server, root_certificates=pems["ca.crt"]) as channel:
        assert is_serving(channel)
    assert unreachable(secure(server, root_certificates=pems["stranger.crt"]))
    assert unreachable(grpc.insecure_channel(f"localhost:{server.grpc_port}"))


def test_mutual_tls(tls: Callable[..., Server], pems: Mapping[str, bytes]) -> None:
    server = tls(custom_ca=pems["ca.crt"], verify=True)
    roots = {"root_certificates": pems["ca.crt"]}
    own = {"private_key": pems["client.key"], "certificate_chain": pems["client.crt"]}
    strange = {"private_key": pems["stranger.key"], "certificate_chain": pems["stranger.crt"]}
    with secure(server, **roots, **own) as channel:
        assert is_serving(channel)
    assert unreachable(secure(server, **roots))
    assert unreachable(secure(server, **roots, **strange))


def test_a_ca_alone_asks_no_client_for_a_certificate(tls: Callable[..., Server], pems: Mapping[str, bytes]) -> None:
    with secure(tls(custom_ca=pems["ca.crt"]), root_certificates=pems["ca.crt"]) as channel:
        assert is_serving(channel)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "server_key and server_cert are both needed"),
        ({"server_key": "server.key"}, "server_key and server_cert are both needed"),
        ({"server_cert": "server.crt"}, "server_key and server_cert are both needed"),
        ({"server_key": b"/a/path", "server_cert": "server.crt"}, "server_key holds no PEM text"),
        ({"server_key": "server.key", "server_cert": "server.crt", "verify": True}, "client_verify needs custom_ca"),
        ({"server_key": "server.crt", "server_cert": "server.crt"}, "server_key"),
        ({"server_key": "server.key", "server_cert": "server.key"}, "server_cert"),
        (
            {"server_key": "client.key", "server_cert": "server.crt"},
            "not a key and the certificate for it: key values mismatch",
        ),
        ({"server_key": b"-----BEGIN PRIVATE KEY-----\nx\n", "server_cert": "server.crt"}, "server_key"),
        (
            {"server_key": "server.key", "server_cert": "server.crt", "custom_ca": b"-----BEGIN CERTIFICATE-----\n"},
            "custom_ca",
        ),
    ],
)
def test_a_bad_ssl_config_is_one_clear_line(
    tmp_path: Path, pems: Mapping[str, bytes], config: dict[str, Any], text: str
) -> None:
    given = {name: pems[value] if isinstance(value, str) else value for name, value in config.items()}
    path = ssl_config(tmp_path / "ssl", **given)
    with pytest.raises(InvalidArgumentError, match=re.escape(text)) as caught:
        credentials(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_ssl_config_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        credentials(tmp_path / "nope")
    (tmp_path / "bad").write_text("server_keyy: 'x'")
    with pytest.raises(InvalidArgumentError, match=r"Invalid protobuf file: .*server_keyy"):
        credentials(tmp_path / "bad")
