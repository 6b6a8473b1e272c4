"""One contract for every client: the same calls and the same errors, whatever carries them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from servable.clients import Client, connect, is_ready
from servable.errors import InputError, InvalidArgumentError, NotFoundError, ServableError, UnavailableError
from servable.models import card
from servable.models.samples import sample_pictures
from servable.models.samples import test_samples as labelled_samples
from servable.serving import Server
from servable.store import Store

SERVED = ("grpc", "rest", "grpc version", "rest version")
WITH_MANIFEST = ("version folder", "store/model", "onnx")
ALL = (*SERVED, *WITH_MANIFEST, "tflite", "int8")

Open = Callable[[str], Client]


@pytest.fixture(params=ALL)
def path(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def open_client(path: str, store: Store, server: Server) -> Iterator[Open]:
    opened: list[Client] = []

    def connected(model: str) -> Client:
        folder = store.path(model)
        target = {
            "grpc": f"grpc://127.0.0.1:{server.grpc_port}/{model}",
            "rest": f"http://127.0.0.1:{server.rest_port}/{model}",
            "grpc version": f"grpc://127.0.0.1:{server.grpc_port}/{model}/versions/1",
            "rest version": f"http://127.0.0.1:{server.rest_port}/v1/models/{model}/versions/1",
            "version folder": str(folder),
            "store/model": str(store.root / model),
            "onnx": str(folder / "model.onnx"),
            "tflite": str(folder / "model.tflite"),
            "int8": str(folder / "model_int8.tflite"),
        }[path]
        opened.append(connect(target))
        return opened[-1]

    yield connected
    for client in opened:
        client.close()


def test_images_give_the_labels_that_the_source_gives(open_client: Open, path: str) -> None:
    samples = labelled_samples(card("cnn"))
    with open_client("cnn") as client:
        scores = client.predict(samples.inputs[:50])
    assert scores.shape == (50, 10)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=0.05 if path == "int8" else 1e-5)
    assert np.mean(scores.argmax(axis=1) == samples.targets[:50]) >= 0.9


def test_a_list_a_dict_and_an_array_are_the_same(open_client: Open, path: str) -> None:
    with open_client("celsius") as client:
        for inputs in ([[100.0]], {"celsius": [[100]]}, np.array([[100.0]]), {"celsius": np.float32([[100.0]])}):
            assert client.predict(inputs).ravel() == pytest.approx([212.0], abs=2.6 if path == "int8" else 0.1)


def test_metadata(open_client: Open, path: str) -> None:
    with open_client("cnn") as client:
        found = client.metadata()
        signature = client.signature()
    assert (found.model, found.version) == ("cnn", 1)
    assert str(signature) == ("serving_default: image: float32 (batch, 28, 28, 1) → probabilities: float32 (batch, 10)")


def test_labels(open_client: Open) -> None:
    with open_client("cnn") as client:
        assert client.labels == card("cnn").labels
    with open_client("celsius") as client:
        assert client.labels == ()


def test_pictures_as_bytes(open_client: Open) -> None:
    encoded = [file.read_bytes() for file in sample_pictures().values()]
    with open_client("cnn") as client:
        scores = client.predict(encoded, signature="serve_bytes")
    assert [card("cnn").labels[i] for i in scores.argmax(axis=1)] == list(sample_pictures())


def test_named_outputs(open_client: Open, path: str) -> None:
    with open_client("cnn") as client:
        scores = client.predict(np.zeros((2, 28, 28, 1)), outputs=["probabilities"])
        assert scores.shape == (2, 10)
        with pytest.raises(NotFoundError, match="no output 'probability'; did you mean 'probabilities'"):
            client.predict(np.zeros((1, 28, 28, 1)), outputs=["probability"])


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (np.zeros((28, 28, 1)), r"was given the shape \(28, 28, 1\); the first dimension is the batch"),
        (np.zeros((1, 28, 28)), r"image: float32 \(batch, 28, 28, 1\) was given the shape \(1, 28, 28\)"),
        ([[1.0], [2.0, 3.0]], "ragged"),
        ([["a"]], "was given str"),
        (np.zeros((1, 28, 28, 1), complex), "do not fit without loss"),
        (np.full((1, 28, 28, 1), np.nan), r"'image' holds NaN, first at \[0, 0, 0, 0\]"),
        ({"picture": np.zeros((1, 28, 28, 1))}, "takes the inputs image; given: picture"),
        ({}, "takes the inputs image; given: none"),
        (np.zeros((0, 28, 28, 1)), "was given an empty batch; give at least one row"),
        (np.full((1, 28, 28, 1), 1e39), "was given numbers that are too large for float32"),
    ],
)
def test_bad_inputs_are_told_before_anything_travels(open_client: Open, inputs: object, text: str) -> None:
    with open_client("cnn") as client, pytest.raises(InputError, match=text):
        client.predict(inputs)


def test_nan_can_be_sent_on_purpose(open_client: Open) -> None:
    with open_client("celsius") as client:
        assert client.predict([[np.nan]], allow_nan=True).shape == (1, 1)


def test_an_unknown_signature_is_told_with_the_known_ones(open_client: Open) -> None:
    with open_client("cnn") as client, pytest.raises(NotFoundError, match="no signature 'serve_byte'; did you mean"):
        client.predict([b""], signature="serve_byte")


def test_closing_twice_is_harmless(open_client: Open) -> None:
    client = open_client("celsius")
    client.close()
    client.close()


def test_a_closed_client_says_so(open_client: Open) -> None:
    client = open_client("celsius")
    client.predict([[1.0]])
    client.close()
    for call in (client.metadata, lambda: client.predict([[1.0]])):
        with pytest.raises(UnavailableError, match="is closed"):
            call()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e12])
def test_a_timeout_that_is_none(open_client: Open, timeout: float) -> None:
    with open_client("celsius") as client, pytest.raises(InvalidArgumentError, match="the timeout is"):
        client.predict([[1.0]], timeout=timeout)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_more_threads_than_a_pool_keeps(server: Server, scheme: str) -> None:
    port = server.grpc_port if scheme == "grpc" else server.rest_port
    with connect(f"{scheme}://127.0.0.1:{port}/celsius") as client, ThreadPoolExecutor(120) as pool:
        values = list(pool.map(lambda i: float(client.predict([[i]]).item()), range(600)))
    assert values == pytest.approx([1.8 * i + 32 for i in range(600)], abs=0.1)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_an_unknown_model_and_version(server: Server, scheme: str) -> None:
    port = server.grpc_port if scheme == "grpc" else server.rest_port
    for target in ("nope", "cnn/versions/9"):
        with connect(f"{scheme}://127.0.0.1:{port}/{target}") as client, pytest.raises(NotFoundError) as caught:
            client.predict([[1.0]])
        assert "Servable not found for request" in str(caught.value)
        assert target in str(caught.value)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_is_down(free_port: int, scheme: str) -> None:
    target = f"{scheme}://127.0.0.1:{free_port}/cnn"
    with connect(target) as client, pytest.raises(UnavailableError) as caught:
        client.predict([[1.0]])
    assert str(caught.value).startswith(f"{target} cannot be reached")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_wrong_port_is_one_line(server: Server, scheme: str) -> None:
    crossed = server.rest_port if scheme == "grpc" else server.grpc_port
    with connect(f"{scheme}://127.0.0.1:{crossed}/cnn") as client, pytest.raises(ServableError) as caught:
        client.metadata()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_readiness(server: Server, free_port: int, scheme: str) -> None:
    port = server.grpc_port if scheme == "grpc" else server.rest_port
    assert is_ready(f"{scheme}://127.0.0.1:{port}/cnn")
    assert not is_ready(f"{scheme}://127.0.0.1:{free_port}/cnn")
    with pytest.raises(NotFoundError):
        is_ready(f"{scheme}://127.0.0.1:{port}/nope")
