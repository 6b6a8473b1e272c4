"""What we export, inspected, against what the formats' own packages say of it."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from servable import runtimes
from servable.inspection import Model, inspect
from servable.manifest import Manifest, measure_artifact
from servable.models import card
from servable.store import Store

NAMES = ("celsius", "mlp", "cnn")


@pytest.fixture(params=NAMES)
def version(request: pytest.FixtureRequest, store: Store) -> Path:
    return store.path(request.param)


def model_of(version: Path, format: str, quantization: str = "float32") -> Model:
    artifact = Manifest.read(version).artifact(format, quantization)
    assert artifact is not None
    for entry in inspect(version).entries:
        if entry.path == artifact.path:
            assert entry.model is not None
            return entry.model
    raise AssertionError(artifact)


def test_a_version_is_sound_and_clean(version: Path) -> None:
    found = inspect(version)
    assert found.sound
    assert found.findings == ()
    assert found.manifest == Manifest.read(version)
    assert [(entry.label, entry.path) for entry in found.entries] == [
        (artifact.label, artifact.path) for artifact in Manifest.read(version).artifacts
    ]


def test_every_file_has_the_weights_that_keras_counts(version: Path) -> None:
    expected = card(version.parent.name).build().count_params()
    assert [entry.model and entry.model.parameters for entry in inspect(version).entries] == [expected] * 5


def test_sizes_and_hashes_are_the_manifest_s(version: Path) -> None:
    for entry in inspect(version).entries:
        assert entry.model is not None
        assert (entry.model.sha256, entry.model.bytes) == measure_artifact(version, entry.path)


def test_signatures_are_those_of_the_runtimes(version: Path) -> None:
    for entry in inspect(version).entries:
        with runtimes.load(version / entry.path) as runtime:
            found = entry.model.signatures if entry.model else {}
            for name, signature in runtime.signatures.items():
                if name.startswith("__saved_model_"):
                    continue
                assert dict(found[name].inputs) == dict(signature.inputs)
                assert dict(found[name].outputs) == dict(signature.outputs)
                assert found[name].method_name == signature.method_name
            assert found.keys() == {name for name in runtime.signatures if not name.startswith("__saved_model_")}


def test_the_saved_model_against_tensorflow(version: Path) -> None:
    model = model_of(version, "saved_model")
    (graph,) = import_module("tensorflow.python.saved_model.loader_impl").parse_saved_model(str(version)).meta_graphs
    nodes = [*graph.graph_def.node, *(node for f in graph.graph_def.library.function for node in f.node_def)]
    assert Counter(node.op for node in nodes) == model.ops
    assert list(model.ops.values()) == sorted(model.ops.values(), reverse=True)
    tool = import_module("tensorflow.python.tools.saved_model_utils")
    assert set(tool.get_meta_graph_def(str(version), "serve").signature_def) - {"__saved_model_init_op"} == set(
        model.signatures
    )
    assert model.producers["tensorflow"] == graph.meta_info_def.tensorflow_version == tf.__version__
    assert model.metadata == {"tags": [["serve"]]}
    loaded = tf.saved_model.load(str(version))  # its variables live no longer than this
    variables = loaded.signatures["serving_default"].variables
    assert sum(variable.shape.num_elements() for variable in variables) == model.parameters
    assert {each.op for each in model.expected} == {"SaveV2", "RestoreV2", "MergeV2Checkpoints"}


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_tflite_against_litert(version: Path, quantization: str) -> None:
    model = model_of(version, "tflite", quantization)
    interpreter = Interpreter(model_path=model.path, experimental_op_resolver_type=_without_delegates())
    operators = [detail["op_name"] for detail in interpreter._get_ops_details()]
    assert Counter(operators) == model.ops
    assert set(interpreter.get_signature_list()) == set(model.signatures)
    dtypes = Counter(str(detail["dtype"].__name__) for detail in interpreter.get_tensor_details())
    assert set(model.weights) | set(model.activations) <= set(dtypes)
    assert sum(model.activations.values()) <= sum(dtypes.values())
    assert (
        model.quantization
        == {
            "float32": "float32",
            "int8": "full integer: int8 weights and activations",
        }[quantization]
    )
    assert model.producers["tensorflow"] == tf.__version__
    assert model.metadata["name"] == version.parent.name
    if version.parent.name != "celsius":
        assert model.metadata["outputs"] == [{"name": "probabilities", "labels": 10}]
        assert model.metadata["inputs"] == [{"name": "image", "mean": [0.0], "std": [255.0]}]


def _without_delegates() -> Any:
    types: Any = import_module("ai_edge_litert.interpreter").OpResolverType
    return types.BUILTIN_WITHOUT_DEFAULT_DELEGATES


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_onnx_against_onnx(version: Path, quantization: str) -> None:
    model = model_of(version, "onnx", quantization)
    official = onnx.load(model.path)
    assert Counter(node.op_type for node in official.graph.node) == model.ops
    assert model.opsets == {item.domain or "ai.onnx": item.version for item in official.opset_import}
    assert model.producers == {
        "producer": f"{official.producer_name} {official.producer_version}".strip(),
        "ir_version": str(official.ir_version),
    }
    assert {item.key: item.value for item in official.metadata_props}.items() <= model.metadata.items()
    expected = {"float32": "float32", "int8": "int8 weights and activations, around float operators (QDQ)"}
    assert model.quantization == expected[quantization]


def test_a_single_file_is_checked_against_the_manifest_beside_it(store: Store) -> None:
    version = store.path("cnn")
    for name in ("model.tflite", "model_int8.onnx", "saved_model.pb"):
        (entry,) = inspect(version / name).entries
        assert entry.state == "ok"


def test_a_copy_without_a_manifest_is_unchecked(store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "mine.tflite"
    copy.write_bytes((store.path("cnn") / "model.tflite").read_bytes())
    found = inspect(copy)
    assert [entry.state for entry in found.entries] == ["unchecked"]
    assert found.sound
    assert found.manifest is None


def test_the_text_form_of_a_saved_model(store: Store, tmp_path: Path) -> None:
    proto = import_module("tensorflow.python.saved_model.loader_impl").parse_saved_model(str(store.path("mlp")))
    (tmp_path / "saved_model.pbtxt").write_text(str(proto))
    (tmp_path / "variables").symlink_to(store.path("mlp") / "variables")
    (entry,) = inspect(tmp_path).entries
    (expected, *_) = inspect(store.path("mlp")).entries
    assert entry.model is not None
    assert expected.model is not None
    for name in ("ops", "signatures", "parameters", "findings", "expected", "producers"):
        assert getattr(entry.model, name) == getattr(expected.model, name)
