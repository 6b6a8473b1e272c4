"""TFLite files of others: custom and Flex operators, several subgraphs, and what their bytes can claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from servable.errors import ArtifactError
from servable.inspection import Model, inspect
from servable.store import Store

SPEC = tf.TensorSpec([1, 4], tf.float32, name="x")


def inverse(x: Any) -> Any:
    """Something that TFLite has no operator for."""
    return tf.reshape(tf.linalg.inv(tf.reshape(x, [2, 2])), [1, 4])


def converted(path: Path, call: Callable[[Any], Any], flex: bool = False, custom: bool = False) -> Path:
    module = tf.Module()
    module.call = tf.function(call, input_signature=[SPEC])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.call.get_concrete_function()], module)
    ops = [tf.lite.OpsSet.TFLITE_BUILTINS, *([tf.lite.OpsSet.SELECT_TF_OPS] if flex else [])]
    converter.target_spec.supported_ops = ops
    converter.allow_custom_ops = custom
    path.write_bytes(converter.convert())
    return path


def model_at(path: Path) -> Model:
    (entry,) = inspect(path).entries
    assert entry.model is not None
    return entry.model


def unpack(path: Path) -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(path.read_bytes(), 0))


def repack(path: Path, model: Any) -> Path:
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def test_operations_of_tensorflow(tmp_path: Path) -> None:
    model = model_at(converted(tmp_path / "m.tflite", inverse, flex=True))
    (finding,) = model.findings
    assert (finding.kind, finding.op) == ("custom", "FlexMatrixInverse")
    assert "Flex delegate" in finding.why


def test_files_through_tensorflow(tmp_path: Path) -> None:
    def call(x: Any) -> Any:
        return x + tf.strings.to_number(tf.io.read_file("number"))

    model = model_at(converted(tmp_path / "m.tflite", call, flex=True))
    assert ("files", "FlexReadFile") in {(finding.kind, finding.op) for finding in model.findings}


def test_custom_operators(tmp_path: Path) -> None:
    model = model_at(converted(tmp_path / "m.tflite", lambda x: tf.raw_ops.Betainc(a=x, b=x, x=x), custom=True))
    (finding,) = model.findings
    assert (finding.kind, finding.op, finding.why) == ("custom", "Betainc", "some library has its code")
    assert model.ops == {"custom Betainc": 1}


def test_custom_operators_of_litert_itself_are_expected(tmp_path: Path) -> None:
    path = converted(tmp_path / "m.tflite", lambda x: tf.raw_ops.Betainc(a=x, b=x, x=x), custom=True)
    model = unpack(path)
    model.operatorCodes[0].customCode = b"TFLite_Detection_PostProcess"
    found = model_at(repack(path, model))
    assert found.findings == ()
    assert [each.op for each in found.expected] == ["TFLite_Detection_PostProcess"]


def test_all_subgraphs_are_looked_into(tmp_path: Path) -> None:
    def call(x: Any) -> Any:
        def body(i: Any, v: Any) -> Any:
            return i + 1, tf.cond(tf.reduce_sum(v) > 9, lambda: inverse(v), lambda: v * 2)

        return tf.while_loop(lambda i, v: i < 3, body, [0, x])[1]

    path = converted(tmp_path / "m.tflite", call, flex=True)
    model = model_at(path)
    official = unpack(path)
    assert len(official.subgraphs) >= 4
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    codes = [
        f"custom {code.customCode.decode()}" if code.builtinCode == 32 else names[code.builtinCode]
        for code in official.operatorCodes
    ]
    assert model.ops == Counter(codes[op.opcodeIndex] for graph in official.subgraphs for op in graph.operators)
    (finding,) = model.findings
    assert finding.op == "FlexMatrixInverse"
    assert finding.places != ("main",)


def test_a_file_without_signatures(store: Store, tmp_path: Path) -> None:
    model = unpack(store.path("cnn") / "model.tflite")
    model.signatureDefs = []
    path = repack(tmp_path / "m.tflite", model)
    assert Interpreter(model_path=str(path)).get_signature_list() == {}
    (signature,) = model_at(path).signatures.values()
    assert [len(side) for side in (signature.inputs, signature.outputs)] == [1, 1]
    assert next(iter(signature.inputs.values())).shape == (None, 28, 28, 1)


def test_quantization_in_words(tmp_path: Path) -> None:
    weights = tf.constant(np.random.default_rng(1).normal(size=(4, 1024)).astype(np.float32))
    module = tf.Module()
    module.call = tf.function(lambda x: tf.matmul(x, weights), input_signature=[SPEC])

    def made(**options: Any) -> Model:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([module.call.get_concrete_function()], module)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        for name, value in options.items():
            holder = converter.target_spec if name.startswith("supported") else converter
            setattr(holder, name, value)
        path = tmp_path / "m.tflite"
        path.write_bytes(converter.convert())
        return model_at(path)

    data = [[np.ones((1, 4), np.float32)]]
    dynamic, half = made(), made(supported_types=[tf.float16])
    full = made(representative_dataset=lambda: data, inference_input_type=tf.int8, inference_output_type=tf.int8)
    assert dynamic.quantization == "dynamic range: int8 weights, float activations"
    assert half.quantization == "float16 weights"
    assert full.quantization == "full integer: int8 weights and activations"
    assert set(full.activations) == {"int8"}
    assert dynamic.parameters == half.parameters == full.parameters == 4096


def test_names_cannot_move_the_cursor(store: Store, tmp_path: Path) -> None:
    model = unpack(store.path("cnn") / "model.tflite")
    model.description = b"\x1b[2Jevil"
    model.signatureDefs[0].signatureKey = b"\x9b2Jevil"
    found = model_at(repack(tmp_path / "m.tflite", model))
    assert found.metadata["file description"] == "\\x1b[2Jevil"
    assert all(name.isprintable() for name in found.signatures)


def test_a_small_file_cannot_claim_to_be_a_large_model(tmp_path: Path) -> None:
    """Each of many offsets leads to the same subgraph."""
    model = unpack(converted(tmp_path / "m.tflite", lambda x: x + 1.0))
    (graph,) = model.subgraphs
    graph.operators *= 1000
    builder = flatbuffers.Builder()
    place = graph.Pack(builder)
    schema.ModelStartSubgraphsVector(builder, 3000)
    for _ in range(3000):
        builder.PrependUOffsetTRelative(place)
    subgraphs = builder.EndVector()
    codes = [code.Pack(builder) for code in model.operatorCodes]
    schema.ModelStartOperatorCodesVector(builder, len(codes))
    for code in reversed(codes):
        builder.PrependUOffsetTRelative(code)
    operator_codes = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, subgraphs)
    schema.ModelAddOperatorCodes(builder, operator_codes)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    (tmp_path / "m.tflite").write_bytes(bytes(builder.Output()))
    with pytest.raises(ArtifactError, match=r"m\.tflite is not a sound TFLite file: it "):
        inspect(tmp_path / "m.tflite")
