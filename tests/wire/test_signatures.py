"""Signatures out of SavedModels, held against what TensorFlow's loader says of the same files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from servable.errors import ArtifactError
from servable.manifest import Manifest
from servable.signature import CLASSIFY_METHOD, REGRESS_METHOD, Signature, TensorSpec
from servable.store import Store
from servable.wire import messages
from servable.wire.signatures import from_signature_def, read_saved_model

MODELS = ("celsius", "mlp", "cnn")


def loaded_by_tensorflow(folder: Path) -> dict[str, Any]:
    import tensorflow as tf

    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))
    return dict(graph.signature_def)


def as_tensorflow_says(definitions: dict[str, Any], name: str) -> Signature:
    """The signature that the official message describes, by TensorFlow's own types."""
    import tensorflow as tf

    def spec(alias: str, info: Any) -> TensorSpec:
        shape = tf.TensorShape(info.tensor_shape)
        dims = None if shape.rank is None else tuple(shape.as_list())
        return TensorSpec(alias, tf.as_dtype(info.dtype).name, dims, tensor_name=info.name)

    definition = definitions[name]
    return Signature(
        inputs={alias: spec(alias, info) for alias, info in definition.inputs.items()},
        outputs={alias: spec(alias, info) for alias, info in definition.outputs.items()},
        method_name=definition.method_name,
        name=name,
    )


@pytest.mark.parametrize("model", MODELS)
def test_messages_are_byte_for_byte_those_that_tensorflow_loads(model: str, store: Store) -> None:
    folder = store.path(model)
    ours, theirs = read_saved_model(folder), loaded_by_tensorflow(folder)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        got = type(theirs[name]).FromString(ours[name].SerializeToString())
        assert got == theirs[name]


@pytest.mark.parametrize("model", MODELS)
def test_signatures_are_what_tensorflow_says(model: str, store: Store) -> None:
    folder = store.path(model)
    ours, theirs = read_saved_model(folder), loaded_by_tensorflow(folder)
    for name in Manifest.read(folder).signatures:
        assert from_signature_def(name, ours[name]) == as_tensorflow_says(theirs, name)


@pytest.mark.parametrize("model", MODELS)
def test_signatures_are_what_the_manifest_says(model: str, store: Store) -> None:
    folder = store.path(model)
    read = read_saved_model(folder)
    for name, want in Manifest.read(folder).signatures.items():
        got = from_signature_def(name, read[name])
        assert got.method_name == want.method_name
        for ours, theirs in ((got.inputs, want.inputs), (got.outputs, want.outputs)):
            assert {key: (spec.dtype, spec.shape) for key, spec in ours.items()} == {
                key: (spec.dtype, spec.shape) for key, spec in theirs.items()
            }


def test_exported_methods_are_the_services(store: Store) -> None:
    assert read_saved_model(store.path("cnn"))["classify"].method_name == CLASSIFY_METHOD
    assert read_saved_model(store.path("celsius"))["regress"].method_name == REGRESS_METHOD


def test_unknown_rank_unknown_dtype_and_order() -> None:
    message = messages.SignatureDef()
    message.inputs["z"].tensor_shape.unknown_rank = True
    message.inputs["z"].dtype = 1
    message.inputs["a"].dtype = 20
    for size in (-1, 0, 3):
        message.inputs["a"].tensor_shape.dim.add(size=size)
    message.outputs["scalar"].dtype = 7
    signature = from_signature_def("s", message)
    assert list(signature.inputs) == ["a", "z"]
    assert signature.inputs["z"].shape is None
    assert signature.inputs["a"] == TensorSpec("a", "dtype 20", (None, 0, 3))
    assert signature.outputs["scalar"] == TensorSpec("scalar", "string", ())


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        read_saved_model(tmp_path)
    assert str(caught.value) == f"{tmp_path} has no saved_model.pb"


@pytest.mark.parametrize("kind", ["truncated", "text", "folder"])
def test_damaged_file_is_named(kind: str, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "saved_model.pb"
    if kind == "folder":
        path.mkdir()
    else:
        content = (store.path("cnn") / "saved_model.pb").read_bytes()
        path.write_bytes(content[: len(content) // 2] if kind == "truncated" else b"no model, just a text")
    with pytest.raises(ArtifactError) as caught:
        read_saved_model(tmp_path)
    assert str(caught.value).startswith(f"{path} is not a SavedModel")


def test_empty_file_has_no_graph(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ArtifactError, match=r"has no MetaGraph with the tags \{serve\}"):
        read_saved_model(tmp_path)


@pytest.mark.parametrize("tags", [frozenset[str](), frozenset({"serve", "gpu"}), frozenset({"train"})])
def test_tags_must_be_exactly_those(tags: frozenset[str], store: Store, tmp_path: Path) -> None:
    shutil.copy(store.path("celsius") / "saved_model.pb", tmp_path)
    with pytest.raises(ArtifactError, match="no MetaGraph with the tags"):
        read_saved_model(tmp_path, tags)


def test_the_graph_with_the_tags_is_taken(tmp_path: Path) -> None:
    model = messages.SavedModel()
    for tags in (["train"], ["serve", "gpu"], ["serve"]):
        graph = model.meta_graphs.add()
        graph.meta_info_def.tags.extend(tags)
        graph.signature_def["+".join(sorted(tags))].method_name = "m"
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    assert list(read_saved_model(tmp_path)) == ["serve"]
    assert list(read_saved_model(tmp_path, frozenset({"gpu", "serve"}))) == ["gpu+serve"]
