"""Starting and stopping: which runtime answers, broken versions, taken ports, requests in flight."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from servable.clients import connect
from servable.errors import AddressInUseError, ArtifactError, InvalidArgumentError, ServableError, StoreError
from servable.manifest import FILE_NAME, Manifest
from servable.models import card
from servable.models.samples import test_samples as labelled_samples
from servable.process import Child
from servable.serving import Server, ServerOptions
from servable.serving.engines import LoadOptions
from servable.serving.grpc_front import GrpcOptions
from servable.serving.manager import LifecycleOptions
from servable.serving.servable import Servable
from servable.store import Store

ANY = ServerOptions(port=0, rest_api_port=0)


@pytest.fixture
def copy(store: Store, tmp_path: Path) -> Store:
    """A store of its own with celsius version 1, to be changed."""
    shutil.copytree(store.path("celsius"), tmp_path / "store" / "celsius" / "1")
    return Store(tmp_path / "store")


def rewrite(store: Store, manifest: Manifest) -> None:
    (store.path("celsius") / FILE_NAME).write_text(manifest.to_json(), encoding="utf-8")


def test_auto_answers_every_signature_from_the_proven_twin(store: Store) -> None:
    servable = Servable.load("cnn", 1, store.path("cnn"))
    assert {name: engine.runtime for name, engine in servable.engines.items()} == {
        "serving_default": "onnx",
        "serve_bytes": "onnx",
        "classify": "onnx",
    }
    servable.close()


def test_a_store_of_twins_is_served_without_importing_tensorflow(store: Store) -> None:
    code = (
        "import sys; from servable.serving import *; from servable.store import Store; "
        f"s = Server(Store({str(store.root)!r}), ServerOptions(port=0, rest_api_port=0)).start(); s.stop(); "
        "print([m for m in ('tensorflow', 'keras') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_without_evidence_tensorflow_answers(copy: Store) -> None:
    manifest = Manifest.read(copy.path("celsius"))
    artifacts = tuple(replace(a, evidence={}) if a.format == "onnx" else a for a in manifest.artifacts)
    rewrite(copy, replace(manifest, artifacts=artifacts))
    servable = Servable.load("celsius", 1, copy.path("celsius"))
    assert {engine.runtime for engine in servable.engines.values()} == {"tensorflow"}
    answer = servable.run("serving_default", {"celsius": np.array([[100.0]], np.float32)}, ["fahrenheit"])
    assert answer["fahrenheit"].ravel() == pytest.approx([212.0], abs=0.1)
    servable.close()
    with pytest.raises(ArtifactError, match="no proven ONNX twin for the signatures regress, serving_default"):
        Servable.load("celsius", 1, copy.path("celsius"), LoadOptions(runtime="onnx"))


def test_a_saved_model_that_nothing_of_ours_wrote_is_served(copy: Store) -> None:
    for file in copy.path("celsius").glob("*"):
        if file.name in (FILE_NAME, "model.onnx", "model.tflite", "model_int8.tflite", "labels.txt"):
            file.unlink()
    with Server(copy, ANY) as server, connect(f"http://127.0.0.1:{server.rest_port}/celsius") as client:
        assert client.predict([[100.0]]).ravel() == pytest.approx([212.0], abs=0.1)


def test_runtime_tensorflow_is_obeyed(store: Store) -> None:
    servable = Servable.load("celsius", 1, store.path("celsius"), LoadOptions(runtime="tensorflow"))
    assert {engine.runtime for engine in servable.engines.values()} == {"tensorflow"}
    servable.close()


def test_a_broken_version_shows_its_error_and_the_good_one_serves(copy: Store) -> None:
    shutil.copytree(copy.path("celsius"), copy.root / "celsius" / "2")
    (copy.root / "celsius" / "2" / "model.onnx").write_bytes(b"damaged")
    reports: dict[int, Servable | ServableError] = {}
    once = replace(ANY, lifecycle=LifecycleOptions(max_num_load_retries=0))
    with Server(copy, once, lambda _, version, loaded: reports.update({version: loaded})) as server:
        statuses = httpx.get(f"http://127.0.0.1:{server.rest_port}/v1/models/celsius", trust_env=False).json()
        two, one = statuses["model_version_status"]
        assert (two["version"], two["state"], two["status"]["error_code"]) == ("2", "END", "FAILED_PRECONDITION")
        assert "model.onnx" in two["status"]["error_message"]
        assert (one["version"], one["state"]) == ("1", "AVAILABLE")
        with connect(f"grpc://127.0.0.1:{server.grpc_port}/celsius") as client:
            assert client.metadata().version == 1
    assert isinstance(reports[2], ArtifactError)


def test_a_model_without_a_good_version_ends_the_start(copy: Store) -> None:
    (copy.path("celsius") / "saved_model.pb").write_bytes(b"\x08")
    with pytest.raises(StoreError, match="no version of model 'celsius' can be served"):
        Server(copy, ANY)


@pytest.mark.parametrize("damage", ["not json", json.dumps({"schema_version": 1})])
def test_a_damaged_manifest_is_an_error_and_no_silent_fallback(copy: Store, damage: str) -> None:
    (copy.path("celsius") / FILE_NAME).write_text(damage)
    with pytest.raises(StoreError, match=FILE_NAME):
        Server(copy, ANY)


def test_all_versions_answer_and_the_highest_by_default(copy: Store) -> None:
    shutil.copytree(copy.path("celsius"), copy.root / "celsius" / "10")
    with Server(copy, ANY) as server:
        for target, version in (("celsius", 10), ("celsius/versions/1", 1), ("celsius/versions/10", 10)):
            for scheme, port in (("grpc", server.grpc_port), ("http", server.rest_port)):
                with connect(f"{scheme}://127.0.0.1:{port}/{target}") as client:
                    assert client.metadata().version == version


def test_empty_and_missing_stores(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        Server(Store(tmp_path / "nope"), ANY)
    with pytest.raises(StoreError, match="holds no models"):
        Server(Store(tmp_path), ANY)
    with pytest.raises(InvalidArgumentError, match="nothing to serve"):
        Server(Store(tmp_path), ServerOptions(port=None, rest_api_port=None))


@pytest.mark.parametrize(("which", "flag"), [("port", "--port"), ("rest_api_port", "--rest_api_port")])
def test_a_taken_port_is_named_and_nothing_stays_open(store: Store, which: str, flag: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(AddressInUseError, match=f"127.0.0.1:{taken}.*{flag}"):
            Server(store, replace(ANY, **{which: taken}))


def test_stopping_frees_the_ports(store: Store) -> None:
    with Server(store, ANY) as server:
        ports = server.grpc_port, server.rest_port
    with Server(store, ServerOptions(port=ports[0], rest_api_port=ports[1])) as again:
        assert (again.grpc_port, again.rest_port) == ports


def test_many_callers_at_once_each_get_their_own_answer(server: Server) -> None:
    samples = labelled_samples(card("mlp")).inputs[:64]
    targets = (f"grpc://127.0.0.1:{server.grpc_port}/mlp", f"http://127.0.0.1:{server.rest_port}/mlp")
    for target in targets:
        with connect(target) as client:
            expected = client.predict(samples)
            with ThreadPoolExecutor(16) as pool:
                answers = list(pool.map(lambda i: client.predict(samples[i : i + 1]), range(len(samples))))
        np.testing.assert_allclose(np.concatenate(answers), expected, atol=1e-6)


def test_no_shape_that_a_client_sends_ends_the_process(store: Store, free_port: int, tmp_path: Path) -> None:
    """In a process of its own: oneDNN's convolutions abort at some wrong shapes, and the server must not."""
    command = [sys.executable, "-m", "servable", "serve", str(store.root), "--runtime=tensorflow", "--port=0"]
    target = f"http://127.0.0.1:{free_port}/v1/models/cnn"
    with Child([*command, f"--rest_api_port={free_port}"], tmp_path / "log", "servable serve") as child:
        child.wait_until(lambda: answers(target), 60)
        for shape in ((28, 28, 1), (28,), (), (1, 1, 28, 28, 1), (1, 28, 28, 64), (2, 3)):
            body = json.dumps({"inputs": np.zeros(shape).tolist()})
            assert 400 <= httpx.post(f"{target}:predict", content=body, trust_env=False).status_code <= 501
        empty = httpx.post(f"{target}:predict", content=json.dumps({"inputs": []}), trust_env=False)
        assert empty.status_code in (200, 400)
        assert answers(target)
        assert child.stop() == 0


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_a_host_that_is_none(store: Store) -> None:
    with pytest.raises(InvalidArgumentError, match=r"cannot listen on 'no\.such\.host\.invalid'"):
        Server(store, replace(ANY, host="no.such.host.invalid"))


def test_a_twin_that_was_exchanged_is_not_believed(copy: Store, store: Store) -> None:
    shutil.copyfile(store.path("mlp") / "model.onnx", copy.path("celsius") / "model.onnx")
    with pytest.raises(StoreError, match=r"model\.onnx is damaged or was changed after its export"):
        Server(copy, ANY)


def test_two_servers_that_start_together_do_not_share_a_port(store: Store) -> None:
    first = Server(store, ANY)  # bound, and not yet started
    try:
        for port in (replace(ANY, rest_api_port=first.rest_port), replace(ANY, port=first.grpc_port)):
            with pytest.raises(AddressInUseError):
                Server(store, port)
    finally:
        first.start().stop()


def test_a_second_server_does_not_take_a_unix_socket(store: Store, tmp_path: Path) -> None:
    options = ServerOptions(port=None, rest_api_port=None, grpc=GrpcOptions(socket_path=str(tmp_path / "s")))
    with Server(store, options):
        with pytest.raises(AddressInUseError, match="another server does"):
            Server(store, options)
        with grpc.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
    with Server(store, options):
        pass  # the name is free again


def test_fronts_stop_together_also_with_an_open_reflection_stream(store: Store) -> None:
    asked = threading.Event()
    request = reflection_pb2.ServerReflectionRequest(list_services="")

    def requests() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield request
        asked.wait(60)  # and keeps the stream open

    with Server(store, ANY) as server, grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(requests())
        assert next(answers).list_services_response.service
        server.stop(grace_s=60)  # ends at once, or the test runs into its limit
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        asked.set()
