"""Which file of a version folder answers: foreign TFLite, ONNX and SavedModels, tags, runtimes, devices."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

from servable.errors import ArtifactError, InputError, ServableError, StoreError, UnimplementedError
from servable.manifest import Manifest, measure_artifact
from servable.serving import Aspired, Server, ServerOptions
from servable.serving.engines import LoadOptions
from servable.serving.servable import Servable
from servable.store import Store

GRPC = ServerOptions(port=0, rest_api_port=None)


class Doubler(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
    def __call__(self, x: Any) -> Any:
        return {"y": 2.0 * x}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel of TensorFlow's own making: y = 2x."""
    folder = tmp_path_factory.mktemp("foreign") / "1"
    module = Doubler()
    tf.saved_model.save(module, str(folder), signatures=module.__call__.get_concrete_function())
    return folder


@pytest.fixture(scope="module")
def tflite(foreign: Path) -> bytes:
    """The same as a TFLite file, but y = 2x + 1, to be told apart."""

    class Other(Doubler):
        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
        def __call__(self, x: Any) -> Any:
            return {"y": 2.0 * x + 1.0}

    module = Other()
    concrete = module.__call__.get_concrete_function()
    data: bytes = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module).convert()
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty version folder."""
    (tmp_path / "m" / "1").mkdir(parents=True)
    return tmp_path / "m" / "1"


@contextmanager
def served(folder: Path, **load: Any) -> Iterator[Any]:
    """The official stub on a server of one version."""
    options = replace(GRPC, load=LoadOptions(**load))
    with (
        Server([Aspired("m", {1: folder})], options) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def predict(stub: Any, signature: str = "", output: str = "", **inputs: Any) -> np.ndarray:
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    outputs = stub.Predict(request, timeout=30).outputs
    array: np.ndarray = tf.make_ndarray(outputs[output or next(iter(outputs))])
    return array


def signatures(stub: Any) -> dict[str, Any]:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "m"
    found = get_model_metadata_pb2.SignatureDefMap()
    assert stub.GetModelMetadata(request, timeout=30).metadata["signature_def"].Unpack(found)
    return dict(found.signature_def)


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def runtimes_of(folder: Path, **load: Any) -> set[str]:
    servable = Servable.load("m", 1, folder, LoadOptions(**load))
    try:
        return {engine.runtime for engine in servable.engines.values()}
    finally:
        servable.close()


# TFLite


@pytest.mark.parametrize("load", [{}, {"prefer_tflite": True}, {"runtime": "tflite"}])
def test_a_tflite_file_alone(folder: Path, tflite: bytes, load: dict[str, Any]) -> None:
    (folder / "model.tflite").write_bytes(tflite)
    with served(folder, **load) as stub:
        for rows in (1, 2, 7):
            x = np.ones((rows, 3), np.float32)
            np.testing.assert_array_equal(predict(stub, x=x), 2 * x + 1)
        info = signatures(stub)["serving_default"]
        assert info.inputs["x"].dtype == tf.float32.as_datatype_enum
        assert info.outputs["y"].dtype == tf.float32.as_datatype_enum
        assert info.method_name == "tensorflow/serving/predict"
        with pytest.raises(grpc.RpcError) as caught:
            predict(stub, x=X.astype(np.float64))
        assert caught.value.details() == "Expects arg[0] to be float but double is provided"
        with pytest.raises(grpc.RpcError) as caught:
            predict(stub, x=np.ones((2, 4), np.float32))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_tflite_file_beside_a_foreign_saved_model(folder: Path, foreign: Path, tflite: bytes) -> None:
    shutil.copytree(foreign, folder, dirs_exist_ok=True)
    (folder / "model.tflite").write_bytes(tflite)
    with served(folder) as stub:
        np.testing.assert_array_equal(predict(stub, x=X), 2 * X)
    for load in ({"prefer_tflite": True}, {"runtime": "tflite"}):
        with served(folder, **load) as stub:
            np.testing.assert_array_equal(predict(stub, x=X), 2 * X + 1)
    with served(folder, runtime="tensorflow", prefer_tflite=True) as stub:
        np.testing.assert_array_equal(predict(stub, x=X), 2 * X)


def test_without_a_tflite_file_the_saved_model_is_served(foreign: Path) -> None:
    assert runtimes_of(foreign, prefer_tflite=True) == {"tensorflow"}
    with pytest.raises(ArtifactError, match="no proven TFLite twin for the signatures serving_default"):
        runtimes_of(foreign, runtime="tflite")


def test_a_damaged_tflite_file_is_no_silent_fallback(folder: Path, foreign: Path) -> None:
    shutil.copytree(foreign, folder, dirs_exist_ok=True)
    (folder / "model.tflite").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"model\.tflite is not a TFLite file"):
        runtimes_of(folder, prefer_tflite=True)


# ONNX


def test_an_onnx_file_alone(store: Store, folder: Path) -> None:
    shutil.copyfile(store.path("celsius") / "model.onnx", folder / "model.onnx")
    for load in ({}, {"runtime": "onnx"}):
        with served(folder, **load) as stub:
            assert predict(stub, celsius=np.float32([[100], [0]])).ravel() == pytest.approx([212, 32], abs=0.1)
            assert list(signatures(stub)) == ["serving_default"]
    with pytest.raises(ArtifactError, match=r"has no saved_model\.pb"):
        runtimes_of(folder, runtime="tensorflow")
    with pytest.raises(ArtifactError, match=r"has no saved_model\.pb"):
        runtimes_of(folder, runtime="tflite")


def test_both_files_and_no_saved_model(store: Store, folder: Path, tflite: bytes) -> None:
    shutil.copyfile(store.path("celsius") / "model.onnx", folder / "model.onnx")
    (folder / "model.tflite").write_bytes(tflite)
    assert runtimes_of(folder) == {"onnx"}
    assert runtimes_of(folder, prefer_tflite=True) == {"tflite"}


def test_an_onnx_file_beside_a_foreign_saved_model_proves_nothing(store: Store, folder: Path, foreign: Path) -> None:
    shutil.copytree(foreign, folder, dirs_exist_ok=True)
    shutil.copyfile(store.path("celsius") / "model.onnx", folder / "model.onnx")
    assert runtimes_of(folder) == {"tensorflow"}
    with pytest.raises(ArtifactError, match="no proven ONNX twin"):
        runtimes_of(folder, runtime="onnx")


@pytest.mark.parametrize("runtime", ["auto", "onnx", "tflite", "tensorflow"])
def test_an_empty_folder(folder: Path, runtime: str) -> None:
    with pytest.raises(ArtifactError, match=r"has no saved_model\.pb"):
        runtimes_of(folder, runtime=runtime)


# Our own store


@pytest.mark.parametrize(("runtime", "expected"), [("onnx", "onnx"), ("tensorflow", "tensorflow"), ("auto", "onnx")])
@pytest.mark.parametrize("model", ["celsius", "mlp", "cnn"])
def test_the_store_in_a_chosen_runtime(store: Store, model: str, runtime: str, expected: str) -> None:
    assert runtimes_of(store.path(model), runtime=runtime) == {expected}


def test_prefer_tflite_takes_the_proven_twin_where_it_is_proven(store: Store) -> None:
    manifest = Manifest.read(store.path("cnn"))
    servable = Servable.load("cnn", 1, store.path("cnn"), LoadOptions(prefer_tflite=True))
    try:
        artifact = manifest.artifact("tflite")
        assert artifact
        for name, engine in servable.engines.items():
            assert engine.runtime == ("tflite" if artifact.proves(name) else "onnx")
        assert servable.engines["serving_default"].runtime == "tflite"
        answer = servable.run("serving_default", {"image": np.zeros((2, 28, 28, 1), np.float32)}, ["probabilities"])
        assert answer["probabilities"].sum(axis=-1) == pytest.approx([1.0, 1.0], abs=1e-5)
    finally:
        servable.close()


# SavedModels


def test_a_saved_model_in_text_format(folder: Path, foreign: Path) -> None:
    shutil.copytree(foreign, folder, dirs_exist_ok=True)
    message = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    (folder / "saved_model.pb").unlink()
    (folder / "saved_model.pbtxt").write_text(text_format.MessageToString(message))
    assert tf.saved_model.load(str(folder)).signatures["serving_default"](x=tf.constant(X))["y"][0][1] == 2.0
    assert runtimes_of(folder) == {"tensorflow"}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TF1 SavedModel with a variable, several signatures, and a second MetaGraph with other tags."""
    folder = tmp_path_factory.mktemp("first") / "1"
    v1 = tf.compat.v1
    builder = v1.saved_model.builder.SavedModelBuilder(str(folder))
    with tf.Graph().as_default(), v1.Session() as session:
        a, b = v1.placeholder(tf.float32, [None], "a"), v1.placeholder(tf.float32, [], "b")
        weight = v1.get_variable("weight", initializer=3.0, use_resource=False)
        session.run(v1.global_variables_initializer())
        info = v1.saved_model.utils.build_tensor_info
        build = v1.saved_model.signature_def_utils.build_signature_def
        outputs = {"sum": info(weight * a + b), "text": info(tf.constant("done")), "size": info(tf.size(a))}
        both = build({"a": info(a), "b": info(b)}, outputs, "tensorflow/serving/predict")
        constant = build({}, {"weight": info(weight.value())}, "tensorflow/serving/predict")
        map_ = {"serving_default": both, "constant": constant}
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=map_)
        other = build({"a": info(a)}, {"other": info(-a)}, "tensorflow/serving/predict")
        builder.add_meta_graph(["serve", "other"], signature_def_map={"serving_default": other})
        builder.save()
    return folder


def test_a_tf1_saved_model(first: Path) -> None:
    with served(first) as stub:
        inputs = {"a": np.float32([1, 2]), "b": np.float32(0.5)}
        np.testing.assert_array_equal(predict(stub, output="sum", **inputs), [3.5, 6.5])
        text = predict(stub, output="text", **inputs)
        assert (text.shape, text.item()) == ((), b"done")
        assert predict(stub, output="size", **inputs).item() == 2
        assert predict(stub, "constant").item() == 3.0


def test_saved_model_tags(first: Path) -> None:
    for tags in (("serve", "other"), ("other", "serve")):
        with served(first, tags=tags) as stub:
            np.testing.assert_array_equal(predict(stub, a=np.float32([1])), [-1])
            assert list(signatures(stub)) == ["serving_default"]
    for tags in (("other",), ("serve", "gpu"), ()):
        with pytest.raises(ArtifactError, match=r"no MetaGraph with the tags \{"):
            runtimes_of(first, tags=tags)


# Devices


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="there is a GPU here")
@pytest.mark.parametrize(("runtime", "way_out"), [("auto", "onnxruntime-gpu"), ("tensorflow", "no GPU here")])
def test_a_gpu_that_there_is_not(store: Store, runtime: Any, way_out: str) -> None:
    with pytest.raises(UnimplementedError, match=way_out) as caught:
        runtimes_of(store.path("celsius"), runtime=runtime, device="gpu")
    assert "--device cpu" in str(caught.value)
    load = LoadOptions(runtime=runtime, device="gpu")
    with pytest.raises(StoreError, match=r"no version of model 'celsius' can be served: .*--device cpu") as whole:
        Server(store, replace(GRPC, load=load))
    assert "\n" not in str(whole.value)


def test_a_runtime_that_fails_leaves_nothing_loaded(store: Store, tmp_path: Path) -> None:
    """The twin was loaded when TensorFlow turned out to be missing its files."""
    folder = tmp_path / "1"
    shutil.copytree(store.path("celsius"), folder)
    manifest = Manifest.read(folder)
    shutil.rmtree(folder / "variables")
    artifacts = tuple(
        replace(
            artifact,
            sha256=measure_artifact(folder, artifact.path)[0],
            evidence={name: found for name, found in artifact.evidence.items() if name != "regress"},
        )
        for artifact in manifest.artifacts
    )
    (folder / "servable.json").write_text(replace(manifest, artifacts=artifacts).to_json())
    with pytest.raises(ArtifactError, match="is not a SavedModel that TensorFlow can load"):
        runtimes_of(folder)


def test_threads_are_handed_on(store: Store) -> None:
    for runtime in ("onnx", "tensorflow"):
        assert runtimes_of(store.path("celsius"), runtime=runtime, threads=2, inter_op_threads=1) == {runtime}


def test_errors_are_ours(store: Store) -> None:
    servable = Servable.load("cnn", 1, store.path("cnn"))
    with pytest.raises(InputError):
        servable.run("serving_default", {"image": np.zeros((1, 3), np.float32)}, ["probabilities"])
    servable.close()
    with pytest.raises(ServableError, match="unloaded"):
        servable.run("serving_default", {"image": np.zeros((1, 28, 28, 1), np.float32)}, ["probabilities"])


@pytest.mark.parametrize("runtime", ["auto", "onnx", "tensorflow", "tflite"])
@pytest.mark.parametrize("file", ["saved_model.pb", "variables/variables.index"])
def test_a_saved_model_that_was_exchanged_is_not_served(store: Store, tmp_path: Path, runtime: str, file: str) -> None:
    folder = tmp_path / "1"
    shutil.copytree(store.path("celsius"), folder)
    shutil.copyfile(store.path("mlp") / file, folder / file)
    with pytest.raises(ArtifactError, match=r"^the SavedModel in .* is damaged or was changed after its export"):
        runtimes_of(folder, runtime=runtime)


def test_what_belongs_to_no_artifact_may_be_added(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "1"
    shutil.copytree(store.path("celsius"), folder)
    (folder / "batching_params.pbtxt").write_text("")
    (folder / "assets.extra").mkdir(exist_ok=True)
    (folder / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"")
    assert runtimes_of(folder) == {"onnx"}
