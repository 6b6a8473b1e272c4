"""float16 and int8 ONNX files: near to the float32 one in ONNX Runtime, same outside, smaller inside.

The oracles are ONNX Runtime on the float32 model, numpy where the quantized values are known in
advance, and the trained models' targets.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from servable.errors import ExportError, UnimplementedError
from servable.export.onnx_quantize import to_float16, to_int8
from servable.models import card, samples, training

Array = NDArray[Any]
Arrays = Mapping[str, Array]

PROPS = {"servable.model": "toy", "servable.labels": '["a", "b"]'}
ROWS = 200


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def build(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: Mapping[str, tuple[int, list[Any]]],
    weights: Arrays,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
        producer_name="maker",
        producer_version="1.2",
    )
    helper.set_model_props(model, PROPS)
    onnx.checker.check_model(model, full_check=True)
    return model


FLOAT, INT64, DOUBLE, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.DOUBLE, TensorProto.STRING


def dense(opset: int = 17, batch: Any = "n", scale: float = 1.0, dtype: Any = np.float32) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return build(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        {"x": (kind, [batch, 8])},
        {"y": (kind, [batch, 6])},
        {"w": (random(8, 6) * scale).astype(dtype)},
        opset,
    )


def two_inputs() -> onnx.ModelProto:
    return build(
        [
            helper.make_node("MatMul", ["left", "a"], ["l"], name="l"),
            helper.make_node("Tanh", ["l"], ["lt"], name="lt"),
            helper.make_node("MatMul", ["right", "b"], ["r"], name="r"),
            helper.make_node("Sigmoid", ["r"], ["rs"], name="rs"),
            helper.make_node("Concat", ["lt", "rs"], ["both"], name="both", axis=1),
            helper.make_node("MatMul", ["both", "c"], ["h"], name="h"),
            helper.make_node("Add", ["h", "bias"], ["score"], name="score"),
            helper.make_node("Softmax", ["score"], ["share"], name="share"),
        ],
        {"left": (FLOAT, ["n", 8]), "right": (FLOAT, ["n", 4])},
        {"score": (FLOAT, ["n", 3]), "share": (FLOAT, ["n", 3])},
        {"a": random(8, 16), "b": random(4, 16), "c": random(32, 3) / 4, "bias": random(3), "unused": random(3)},
    )


def residual() -> onnx.ModelProto:
    """Convolutions with batch norm as the exporter writes it (a product and a sum), and a skip connection."""
    kernel = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    return build(
        [
            helper.make_node("Conv", ["image", "w1"], ["c1"], name="c1", **kernel),
            helper.make_node("Mul", ["c1", "gamma"], ["m1"], name="m1"),
            helper.make_node("Add", ["m1", "beta"], ["a1"], name="a1"),
            helper.make_node("Relu", ["a1"], ["r1"], name="r1"),
            helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="c2", **kernel),
            helper.make_node("Add", ["r1", "c2"], ["sum"], name="sum"),
            helper.make_node("Relu", ["sum"], ["r2"], name="r2"),
            helper.make_node("Conv", ["r2", "w3", "b3"], ["c3"], name="c3", **kernel),
            helper.make_node("GlobalAveragePool", ["c3"], ["pool"], name="pool"),
            helper.make_node("Flatten", ["pool"], ["flat"], name="flat"),
            helper.make_node("Gemm", ["flat", "w4", "b4"], ["scores"], name="scores"),
        ],
        {"image": (FLOAT, ["n", 2, 9, 9])},
        {"scores": (FLOAT, ["n", 4])},
        {
            "w1": random(8, 2, 3, 3),
            "gamma": random(8, 1, 1) * 3,
            "beta": random(8, 1, 1),
            "w2": random(8, 8, 3, 3, seed=1) / 8,
            "b2": random(8),
            "w3": random(8, 8, 3, 3, seed=2) / 8,
            "b3": random(8),
            "w4": random(8, 4),
            "b4": random(4),
        },
    )


def embedding() -> onnx.ModelProto:
    return build(
        [
            helper.make_node("Gather", ["table", "tokens"], ["rows"], name="rows"),
            helper.make_node("ReduceMean", ["rows"], ["mean"], name="mean", axes=[1], keepdims=0),
            helper.make_node("MatMul", ["mean", "w"], ["y"], name="y"),
        ],
        {"tokens": (INT64, ["n", 5])},
        {"y": (FLOAT, ["n", 4])},
        {"table": random(100, 16), "w": random(16, 4)},
    )


def lstm() -> onnx.ModelProto:
    return build(
        [
            helper.make_node("Transpose", ["sequence"], ["steps"], name="steps", perm=[1, 0, 2]),
            helper.make_node("LSTM", ["steps", "w", "r", "b"], ["", "last"], name="lstm", hidden_size=24),
            helper.make_node("Squeeze", ["last", "axis"], ["state"], name="state"),
            helper.make_node("MatMul", ["state", "v"], ["y"], name="y"),
        ],
        {"sequence": (FLOAT, ["n", 7, 12])},
        {"y": (FLOAT, ["n", 3])},
        {
            "w": random(1, 96, 12) / 4,
            "r": random(1, 96, 24, seed=1) / 4,
            "b": random(1, 192) / 4,
            "v": random(24, 3),
            "axis": np.array([0]),
        },
    )


def loop(captured: str = "weight") -> onnx.ModelProto:
    """Five times state = tanh(state · w), the weight handed to the body as tf2onnx does for a cell, or ``captured``."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["s", captured], ["p"], name="in_body"),
            helper.make_node("Tanh", ["p"], ["s_next"], name="tanh"),
            helper.make_node("Identity", ["weight"], ["weight_next"], name="same"),
            helper.make_node("Identity", ["go"], ["go_next"], name="go_on"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", FLOAT, ["n", 24]),
            helper.make_tensor_value_info("weight", FLOAT, [24, 24]),
        ],
        [
            helper.make_tensor_value_info("go_next", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s_next", FLOAT, ["n", 24]),
            helper.make_tensor_value_info("weight_next", FLOAT, [24, 24]),
        ],
    )
    weights = {"trips": np.array(5), "w": random(24, 24) / 5, "v": random(24, 3)}
    if captured != "weight":
        weights[captured] = random(24, 24) / 5
    return build(
        [
            helper.make_node("Loop", ["trips", "", "x", "w"], ["state", "unused"], name="loop", body=body),
            helper.make_node("MatMul", ["state", "v"], ["y"], name="y"),
        ],
        {"x": (FLOAT, ["n", 24])},
        {"y": (FLOAT, ["n", 3])},
        weights,
    )


TOYS: dict[str, tuple[Callable[[], onnx.ModelProto], Arrays]] = {
    "two_inputs": (two_inputs, {"left": random(ROWS, 8), "right": random(ROWS, 4, seed=1)}),
    "residual": (residual, {"image": random(ROWS, 2, 9, 9)}),
    "embedding": (embedding, {"tokens": np.random.default_rng(0).integers(0, 100, (ROWS, 5))}),
    "lstm": (lstm, {"sequence": random(ROWS, 7, 12)}),
    "loop": (loop, {"x": random(ROWS, 24)}),
}


def run(model: onnx.ModelProto, inputs: Arrays, *, optimize: bool = True) -> list[Array]:
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    answers: list[Array] = session.run(None, dict(inputs))
    return answers


def outside(model: onnx.ModelProto) -> list[bytes]:
    """All that a caller sees: inputs and outputs with dtypes and shapes, properties, opset, producer."""
    seen = [*model.graph.input, *model.graph.output, *model.metadata_props, *model.opset_import]
    return [*(entry.SerializeToString() for entry in seen), f"{model.producer_name} {model.producer_version}".encode()]


def stored(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def dequantized(model: onnx.ModelProto, kind: str) -> list[tuple[Array, Array]]:
    """Stored values and scale of the weights of each node of a kind."""
    values = stored(model)
    made = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found = [made[name] for node in model.graph.node if node.op_type == kind for name in node.input if name in made]
    return [(values[node.input[0]], values[node.input[1]]) for node in found if node.input[0] in values]


CONVERSIONS: dict[str, tuple[Callable[[onnx.ModelProto, Arrays], onnx.ModelProto], float]] = {
    "float16": (lambda model, rows: to_float16(model), 0.002),
    "int8": (to_int8, 0.03),
}


@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize("toy", TOYS)
def test_a_toy_answers_alike_and_looks_the_same_from_outside(toy: str, conversion: str) -> None:
    maker, inputs = TOYS[toy]
    convert, tolerance = CONVERSIONS[conversion]
    model = maker()
    untouched = model.SerializeToString()
    small = convert(model, inputs)
    assert model.SerializeToString() == untouched
    onnx.checker.check_model(small, full_check=True)
    assert outside(small) == outside(model)
    expected = run(model, inputs)
    for rows in (1, 5, ROWS):
        some = {name: array[:rows] for name, array in inputs.items()}
        for answer, right in zip(run(small, some), expected, strict=True):
            assert answer.dtype == right.dtype
            assert answer.shape == (rows, *right.shape[1:])
            assert np.abs(answer - right[:rows]).max() <= tolerance * np.ptp(right)
    # What ONNX Runtime makes of the nodes for this processor answers as the nodes themselves do.
    for answer, plain in zip(run(small, inputs), run(small, inputs, optimize=False), strict=True):
        assert np.abs(answer - plain).max() <= 0.03 * np.ptp(plain)


@pytest.mark.parametrize("toy", TOYS)
def test_float16_weights_are_rounded_ones_and_become_float32_again(toy: str) -> None:
    model = TOYS[toy][0]()
    small = to_float16(model)
    before, after = stored(model), stored(small)
    layers = [name for name, array in before.items() if array.dtype == np.float32 and array.ndim > 1]
    layers = [name for name in layers if name not in ("gamma", "beta")]  # factors and terms are no layer's weights
    assert {name for name, array in after.items() if array.dtype == np.float16} == {f"{n}_float16" for n in layers}
    for name in layers:
        np.testing.assert_array_equal(after[f"{name}_float16"], before[name].astype(np.float16))
    assert kinds(small) - kinds(model) == Counter(Cast=len(layers))
    assert small.ByteSize() < model.ByteSize()


def test_float16_keeps_a_weight_that_it_cannot_hold() -> None:
    model = build(
        [
            helper.make_node("MatMul", ["x", "huge"], ["h"], name="h"),
            helper.make_node("MatMul", ["h", "tiny"], ["t"], name="t"),
            helper.make_node("MatMul", ["t", "normal"], ["y"], name="y"),
        ],
        {"x": (FLOAT, ["n", 8])},
        {"y": (FLOAT, ["n", 8])},
        {"huge": random(8, 8) * 1e5, "tiny": random(8, 8, seed=1) * 1e-7, "normal": random(8, 8, seed=2)},
    )
    small = to_float16(model)
    dtypes = {name: array.dtype for name, array in stored(small).items()}
    assert dtypes == {"huge": np.float32, "tiny": np.float32, "normal_float16": np.float16}
    x = {"x": random(5, 8)}
    np.testing.assert_allclose(run(small, x)[0], run(model, x)[0], rtol=0.01, atol=1e-4)


def test_float16_computes_in_float32() -> None:
    inputs = {"x": random(5, 8) * 1e6}
    (answer,), (expected,) = run(to_float16(dense()), inputs), run(dense(), inputs)
    assert np.abs(expected).max() > np.finfo(np.float16).max
    np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e3)


def test_int8_of_a_product_is_what_numpy_computes() -> None:
    inputs = {"x": random(ROWS, 8)}
    small = to_int8(dense(), inputs)
    x, w = inputs["x"], random(8, 6)
    weight_scale = 2 * np.abs(w).max(axis=0) / 128
    weight = np.rint(w / weight_scale)
    low, high = x.min(), x.max()
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    quantized = np.clip(np.rint(x / scale) + zero, 0, 255)
    expected = (quantized - zero) @ weight * scale * weight_scale
    ((values, scales),) = dequantized(small, "MatMul")
    assert values.dtype == np.int8
    np.testing.assert_array_equal(values, weight)
    np.testing.assert_allclose(scales, weight_scale, rtol=1e-6)
    np.testing.assert_allclose(run(small, inputs)[0], expected, rtol=1e-4, atol=1e-4)


def test_int8_has_a_quantized_path_and_a_float32_end() -> None:
    small = to_int8(residual(), TOYS["residual"][1])
    count = kinds(small)
    assert (count["Mul"], count["Conv"], count["Gemm"]) == (0, 3, 1)  # the batch norm is in the convolution
    weights = dequantized(small, "Conv") + dequantized(small, "Gemm")
    matrices = [values for values, _ in weights if values.ndim > 1]
    assert [values.dtype for values in matrices] == [np.int8] * 4
    assert all(np.abs(values.astype(int)).max() == 64 for values in matrices)  # 7 bits, all used
    assert [scale.size for values, scale in weights if values.ndim > 1] == [8, 8, 8, 4]
    makers = {name: node.op_type for node in small.graph.node for name in node.output}
    for node in small.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert [makers[name] for name in node.input] == ["DequantizeLinear"] * len(node.input)
    assert makers["scores"] == "Gemm"
    zeros = [stored(small)[node.input[2]] for node in small.graph.node if node.op_type == "QuantizeLinear"]
    assert len(zeros) >= 6
    assert {zero.dtype for zero in zeros} == {np.dtype(np.uint8)}


def test_int8_rounds_nothing_after_the_last_layer() -> None:
    small = to_int8(two_inputs(), TOYS["two_inputs"][1])
    makers = {name: node.op_type for node in small.graph.node for name in node.output}
    assert makers["share"] == "Softmax"
    score, share = run(small, TOYS["two_inputs"][1])
    assert len(np.unique(score)) > 0.9 * score.size
    np.testing.assert_allclose(share.sum(axis=1), 1, atol=1e-6)


def test_int8_of_recurrent_layers_is_their_weights() -> None:
    for toy, kind, count in (("lstm", "LSTM", 2), ("loop", "Loop", 1)):
        maker, inputs = TOYS[toy]
        small = to_int8(maker(), inputs)
        weights = dequantized(small, kind)
        assert [values.dtype for values, _ in weights] == [np.int8] * count
        assert all(np.abs(values.astype(int)).max() == 127 for values, _ in weights)
        before = [array for array in stored(maker()).values() if array.ndim > 1]
        for values, scale in weights:
            (original,) = [array for array in before if array.shape == values.shape and array.size > 256]
            shape = [1, -1] + [1] * (values.ndim - 2)
            error = np.abs(values * scale.reshape(shape) - original) / scale.reshape(shape)
            assert error.max() <= 0.5001


@pytest.mark.filterwarnings("error")
def test_int8_of_weights_that_are_zero() -> None:
    model = lstm()
    (w,) = [tensor for tensor in model.graph.initializer if tensor.name == "w"]
    array = numpy_helper.to_array(w).copy()
    array[:, :10] = 0
    w.CopyFrom(numpy_helper.from_array(array, "w"))
    inputs = TOYS["lstm"][1]
    (answer,), (expected,) = run(to_int8(model, inputs), inputs), run(model, inputs)
    assert np.abs(answer - expected).max() <= 0.03 * np.ptp(expected)


def test_a_body_may_use_a_weight_of_the_graph_around_it() -> None:
    model, inputs = loop("outer"), TOYS["loop"][1]
    (expected,) = run(model, inputs)
    half = to_float16(model)
    assert stored(half)["outer_float16"].dtype == np.float16
    for small in (half, to_int8(model, inputs)):
        assert np.abs(run(small, inputs)[0] - expected).max() <= 0.03 * np.ptp(expected)


@pytest.mark.parametrize("toy", TOYS)
def test_int8_names_are_the_original_s_or_short(toy: str) -> None:
    model = TOYS[toy][0]()
    small = to_int8(model, TOYS[toy][1])
    values = {name for node in model.graph.node for name in (*node.input, *node.output)}
    made = {name for node in small.graph.node for name in (*node.input, *node.output)} - values
    assert all(re.fullmatch(r"q\d+", name) for name in made)
    assert {node.name for node in small.graph.node} - {""} <= {node.name for node in model.graph.node}
    assert not small.graph.value_info


def test_int8_table_and_shared_weights() -> None:
    table = to_int8(embedding(), TOYS["embedding"][1])
    assert {array.dtype for array in stored(table).values() if array.shape == (100, 16)} == {np.dtype(np.uint8)}
    tied = build(
        [
            helper.make_node("Gather", ["w", "tokens"], ["rows"], name="rows"),
            helper.make_node("MatMul", ["rows", "w"], ["y"], name="y"),
        ],
        {"tokens": (INT64, ["n", 4])},
        {"y": (FLOAT, ["n", 4, 8])},
        {"w": random(8, 8)},
    )
    inputs = {"tokens": np.random.default_rng(0).integers(0, 8, (50, 4))}
    (answer,), (expected,) = run(to_int8(tied, inputs), inputs), run(tied, inputs)
    assert np.abs(answer - expected).max() <= 0.03 * np.ptp(expected)


def test_int8_leaves_products_that_onnx_runtime_cannot_run_as_integers() -> None:
    """A stack of weights and a product of activations, as in attention, beside a layer that is quantized."""
    model = build(
        [
            helper.make_node("MatMul", ["x", "v"], ["h"], name="layer"),
            helper.make_node("MatMul", ["h", "stack"], ["s"], name="stacked"),
            helper.make_node("Transpose", ["s"], ["t"], name="turned", perm=[0, 1, 3, 2]),
            helper.make_node("MatMul", ["s", "t"], ["y"], name="activations"),
        ],
        {"x": (FLOAT, ["n", 2, 3, 8])},
        {"y": (FLOAT, ["n", 2, 3, 3])},
        {"v": random(8, 8), "stack": random(2, 8, 6)},
    )
    inputs = {"x": random(50, 2, 3, 8)}
    small = to_int8(model, inputs)
    assert [array.dtype for array in stored(small).values() if array.shape == (2, 8, 6)] == [np.float32]
    assert kinds(small)["QuantizeLinear"] == 1
    (answer,), (expected,) = run(small, inputs), run(model, inputs)
    assert np.abs(answer - expected).max() <= 0.03 * np.ptp(expected)


def test_int8_passes_strings_on() -> None:
    model = build(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"], name="y"),
            helper.make_node("Identity", ["text"], ["same"], name="same"),
        ],
        {"x": (FLOAT, ["n", 8]), "text": (STRING, ["n"])},
        {"y": (FLOAT, ["n", 6]), "same": (STRING, ["n"])},
        {"w": random(8, 6)},
    )
    inputs = {"x": random(3, 8), "text": np.array(["ä", "", "c"], dtype=object)}
    assert run(to_int8(model, inputs), inputs)[1].tolist() == ["ä", "", "c"]


@pytest.mark.parametrize("opset", [13, 15, 21])
def test_the_opset_stays(opset: int) -> None:
    model, inputs = dense(opset), {"x": random(20, 8)}
    for small in (to_float16(model), to_int8(model, inputs)):
        assert outside(small) == outside(model)
        assert np.abs(run(small, inputs)[0] - run(model, inputs)[0]).max() < 0.2


@pytest.mark.parametrize(
    ("model", "rows", "batches"),
    [
        (dense(), random(150, 8), [64, 64, 22]),
        (dense(batch=4), random(10, 8), [4, 4, 4]),
        (
            build(
                [helper.make_node("Conv", ["x", "w"], ["y"], name="c")],
                {"x": (FLOAT, ["n", 3, 224, 224])},
                {"y": (FLOAT, ["n", 2, 224, 224])},
                {"w": random(2, 3, 1, 1)},
            ),
            random(3, 3, 224, 224),
            [1, 1, 1],
        ),
    ],
    ids=["small rows", "a fixed batch", "pictures"],
)
def test_calibration_runs_in_small_batches_and_sees_every_row(
    model: onnx.ModelProto, rows: Array, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows[-1].flat[0] = 30.0  # the maximum, in the last batch
    rows[0].flat[0] = -10.0
    seen: list[int] = []
    original = onnxruntime.InferenceSession.run

    def recorded(self: Any, names: Any, feed: Arrays, *more: Any) -> Any:
        seen.append(len(feed["x"]))
        return original(self, names, feed, *more)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", recorded)
    small = to_int8(model, {"x": rows})
    assert seen == batches
    (first,) = [node for node in small.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x"]
    assert stored(small)[first.input[1]] == pytest.approx(40 / 255)


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "no weights in float16": (
        lambda: to_float16(relu()),
        "toy has no layer with float32 weights that float16 can hold",
    ),
    "weights beyond float16": (
        lambda: to_float16(dense(scale=1e6)),
        "toy has no layer with float32 weights that float16 can hold; it has matrices of float32",
    ),
    "float64 in float16": (
        lambda: to_float16(dense(dtype=np.float64)),
        "toy has no layer with float32 weights that float16 can hold; it has matrices of float64",
    ),
    "no weights in int8": (
        lambda: to_int8(relu(), {"x": random(9, 8)}),
        "toy has nothing to quantize: no layer has one matrix or kernel of float32 weights",
    ),
    "float64 in int8": (
        lambda: to_int8(dense(dtype=np.float64), {"x": random(9, 8).astype(np.float64)}),
        "toy has nothing to quantize: no layer has one matrix or kernel of float32 weights; it has matrices of float64",
    ),
    "another input": (
        lambda: to_int8(two_inputs(), {"left": random(9, 8), "wrong": random(9, 4)}),
        "toy takes left, right; the calibration data are for left, wrong",
    ),
    "no calibration": (lambda: to_int8(dense(), {}), "toy takes x; the calibration data are for nothing"),
    "no rows": (
        lambda: to_int8(dense(), {"x": random(0, 8)}),
        "toy needs calibration rows, as many for each input; there are 0 for x",
    ),
    "uneven rows": (
        lambda: to_int8(two_inputs(), {"left": random(9, 8), "right": random(8, 4)}),
        "toy needs calibration rows, as many for each input; there are 9 for left, 8 for right",
    ),
    "NaN": (
        lambda: to_int8(dense(), {"x": np.full((3, 8), np.nan, np.float32)}),
        "the calibration data for x of toy hold NaN or infinity",
    ),
    "another dtype": (
        lambda: to_int8(dense(), {"x": random(9, 8).astype(np.float64)}),
        "toy cannot be quantized to int8: Unexpected input data type. Actual: (tensor(double)) , expected: "
        "(tensor(float))",
    ),
    "another shape": (
        lambda: to_int8(dense(), {"x": random(9, 7)}),
        "toy cannot be quantized to int8: Got invalid dimensions for input: x for the following indices index: 1 "
        "Got: 7 Expected: 8",
    ),
    "an old opset": (
        lambda: to_int8(dense(opset=12), {"x": random(9, 8)}),
        "toy has opset 12; int8 takes 13 or higher",
    ),
    "an invalid model": (lambda: to_float16(broken()), "toy is not valid ONNX: "),
}


def relu() -> onnx.ModelProto:
    return build(
        [helper.make_node("Relu", ["x"], ["y"], name="r")], {"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, ["n", 8])}, {}
    )


def broken() -> onnx.ModelProto:
    model = dense()
    model.graph.node[0].op_type = "Gemm"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    return model


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_done_is_said_in_one_line(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    call, message = ERRORS[case]
    with pytest.raises((ExportError, UnimplementedError)) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_model_without_a_name_is_called_by_its_graph_s() -> None:
    model = relu()
    del model.metadata_props[:]
    with pytest.raises(UnimplementedError, match=r"^graph has no layer"):
        to_float16(model)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("toy", TOYS)
def test_nothing_is_said_and_no_file_left(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    caplog.set_level(logging.DEBUG)
    filters = list(logging.getLogger().filters)
    maker, inputs = TOYS[toy]
    to_float16(maker())
    to_int8(maker(), inputs)
    with pytest.raises(ExportError):
        to_int8(maker(), {name: array[:, :1] for name, array in inputs.items()})
    assert set(tmp_path.rglob("*")) == {here, temporary}
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert logging.getLogger().filters == filters


def test_logging_stays_as_it_was(tmp_path: Path) -> None:
    """The quantizer uses logging's functions, which give the root logger a handler if it has none."""
    onnx.save(two_inputs(), tmp_path / "model.onnx")
    script = """
        import logging
        import numpy as np
        import onnx
        from servable.export.onnx_quantize import to_int8
        to_int8(onnx.load("model.onnx"), {"left": np.ones((3, 8), np.float32), "right": np.ones((3, 4), np.float32)})
        assert logging.getLogger().handlers == [], logging.getLogger().handlers
        logging.warning("still heard")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "WARNING:root:still heard\n")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def exported(model: Any, name: str, shape: list[int | None]) -> onnx.ModelProto:
    import tensorflow as tf
    import tf2onnx

    spec = [tf.TensorSpec(shape, tf.float32, name=name)]
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    converted, _ = tf2onnx.convert.from_function(
        tf.function(lambda tensor: {"answer": model(tensor, training=False)}, input_signature=spec),
        input_signature=spec,
        opset=17,
    )
    return converted


@pytest.mark.parametrize(("name", "ratio"), [("celsius", None), ("mlp", 0.27), ("cnn", 0.28)])
def test_trained_models_stay_as_good(name: str, ratio: float | None) -> None:
    ((key, spec),) = card(name).signature.inputs.items()
    model = exported(training.load(card(name)), key, list(spec.shape or ()))
    data = samples.test_samples(card(name))
    half, small = to_float16(model), to_int8(model, {key: samples.calibration_samples(card(name))})
    (expected,), (halved,), (answer,) = (run(which, {key: data.inputs}) for which in (model, half, small))
    if ratio is None:
        assert np.abs(answer - expected).max() <= 0.0025 * np.ptp(expected)
        assert np.abs(halved - expected).max() <= 0.0001 * np.ptp(expected)
        return
    assert small.ByteSize() <= ratio * model.ByteSize()
    assert half.ByteSize() <= 0.52 * model.ByteSize()
    labels = expected.argmax(-1)
    accuracy = [np.mean(which.argmax(-1) == data.targets) for which in (expected, answer)]
    assert accuracy[0] > 0.9
    assert accuracy[0] - accuracy[1] <= 0.005
    assert np.mean(answer.argmax(-1) == labels) >= 0.99
    assert np.mean(halved.argmax(-1) == labels) >= 0.998


@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU"])
def test_recurrent_models_stay_as_good(kind: str) -> None:
    import keras

    keras.utils.set_random_seed(1)
    data = samples.test_samples(card("cnn"))
    sequences = data.inputs[..., 0]
    model = keras.Sequential(
        [
            keras.Input((28, 28), name="sequence"),
            getattr(keras.layers, kind)(32),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(sequences, data.targets, batch_size=50, epochs=3, verbose=0)
    converted = exported(model, "sequence", [None, 28, 28])
    calibration = samples.calibration_samples(card("cnn"))[..., 0]
    half, small = to_float16(converted), to_int8(converted, {"sequence": calibration})
    (expected,), (halved,), (answer,) = (run(which, {"sequence": sequences}) for which in (converted, half, small))
    accuracy = [np.mean(which.argmax(-1) == data.targets) for which in (expected, answer)]
    assert accuracy[0] > 0.5
    assert abs(accuracy[0] - accuracy[1]) <= 0.01
    assert np.mean(halved.argmax(-1) == expected.argmax(-1)) >= 0.998
    assert small.ByteSize() < half.ByteSize() < converted.ByteSize()
