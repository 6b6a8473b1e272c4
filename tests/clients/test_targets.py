"""Target strings: what is understood, and what each wrong one is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from servable.clients import connect
from servable.clients.targets import Address, parse_address
from servable.errors import ArtifactError, NotFoundError, TargetError
from servable.store import Store


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("grpc://localhost:8500/cnn", Address("grpc", "localhost", 8500, "cnn")),
        ("grpc://localhost/cnn", Address("grpc", "localhost", 8500, "cnn")),
        ("http://h/cnn", Address("http", "h", 8501, "cnn")),
        ("https://h/cnn", Address("https", "h", 443, "cnn")),
        ("http://h:1/v1/models/cnn", Address("http", "h", 1, "cnn")),
        ("grpc://h:1/cnn/versions/003", Address("grpc", "h", 1, "cnn", version=3)),
        ("http://h:1/v1/models/cnn/labels/stable", Address("http", "h", 1, "cnn", label="stable")),
        ("grpc://[::1]:1/a%2Fb", Address("grpc", "::1", 1, "a/b")),
    ],
)
def test_addresses(target: str, address: Address) -> None:
    assert parse_address(target) == address


def test_an_ipv6_authority_and_an_escaped_model_travel_well() -> None:
    address = parse_address("grpc://[::1]:1/a%2Fb")
    assert address
    assert address.authority == "[::1]:1"
    assert address.rest_path == "/v1/models/a%2Fb"


@pytest.mark.parametrize("path", ["model.tflite", "store/cnn", "/abs/store/cnn/3", "./x.onnx", "C-drive"])
def test_paths_are_no_addresses(path: str) -> None:
    assert parse_address(path) is None


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("ftp://h/cnn", "unknown scheme 'ftp'"),
        ("grpc://h:8500", "should read grpc://HOST:PORT/MODEL"),
        ("grpc://h:8500/", "should read"),
        ("grpc:///cnn", "should read"),
        ("grpc://h:99999/cnn", "the port is not a number from 1 to 65535"),
        ("grpc://h:x/cnn", "the port is not a number"),
        ("grpc://h:0/cnn", "the port is not a number"),
        ("http://[::1/cnn", "Invalid IPv6 URL"),
        ("grpc://h:1/cnn/versions/99999999999999999999", "the version does not fit"),
        ("http://h/cnn/versions/new", "should read"),
        ("http://h/cnn?x=1", "should read"),
        ("nowhere/to/be/found", "there is no such file or folder"),
    ],
)
def test_bad_targets(target: str, text: str) -> None:
    with pytest.raises(TargetError, match=text.replace("?", r"\?")):
        connect(target)


def test_a_store_is_no_model_and_its_models_are_named(store: Store) -> None:
    with pytest.raises(TargetError, match=r"it looks like a store: name one of its models, .*celsius.*cnn.*mlp"):
        connect(store.root)


def test_an_empty_folder_and_a_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="neither a version folder nor a model with versions"):
        connect(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"notes.txt is not a model"):
        connect(tmp_path / "notes.txt")


def test_a_model_that_the_store_does_not_have(store: Store) -> None:
    with pytest.raises(NotFoundError, match="did you mean 'cnn'"):
        connect(store.root / "cmn")


def test_a_file_that_is_not_the_one_that_was_measured(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "celsius" / "1"
    shutil.copytree(store.path("celsius"), folder)
    for name, target in (("model.tflite", folder / "model.tflite"), ("model.onnx", folder)):
        shutil.copyfile(store.path("mlp") / name, folder / name)
        with pytest.raises(ArtifactError, match=f"{name} is damaged or was changed after its export"):
            connect(target)
