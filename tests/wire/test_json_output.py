"""Predict responses in JSON, and requests and responses there and back."""

from __future__ import annotations

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from servable.errors import InputError, InvalidArgumentError
from servable.signature import Signature, TensorSpec
from servable.wire import json_text
from servable.wire.json_codec import format_predict, format_predict_request, parse_predict, parse_predict_response

FLOATS = ("float32", "float64")
SUPPORTED = (*FLOATS, "int8", "int16", "int32", "uint8", "int64", "uint32", "uint64", "bool", "string")
UNSUPPORTED = {"float16": "half", "bfloat16": "bfloat16", "uint16": "uint16", "complex64": "complex64"}


def signature(**dtypes: str) -> Signature:
    """A signature whose inputs and outputs have these dtypes, of any shape."""
    specs = {name: TensorSpec(name, dtype, None) for name, dtype in dtypes.items()}
    return Signature(specs, specs)


@pytest.mark.parametrize(
    ("outputs", "row", "expected"),
    [
        ({"y": np.array([1.5, 2.0], np.float32)}, True, {"predictions": [1.5, 2.0]}),
        ({"y": np.array([1.5, 2.0], np.float32)}, False, {"outputs": [1.5, 2.0]}),
        ({"y": np.array(2.5, np.float32)}, False, {"outputs": 2.5}),
        ({"y": np.array([[1], [2]], np.int64)}, True, {"predictions": [[1], [2]]}),
        ({"y": np.zeros((0, 3), np.float32)}, True, {"predictions": []}),
        ({"y": np.zeros((2, 0), np.float32)}, True, {"predictions": [[], []]}),
        ({"y": np.array([True, False])}, True, {"predictions": [True, False]}),
        ({"y": np.array([2**64 - 1], np.uint64)}, True, {"predictions": [2**64 - 1]}),
        ({"y": np.array([-128], np.int8)}, True, {"predictions": [-128]}),
        ({"y": np.array([b"a", b"\xc3\xbc"], object)}, True, {"predictions": ["a", "\u00fc"]}),
        ({"y_bytes": np.array([b"a"], object)}, True, {"predictions": [{"b64": "YQ=="}]}),
        ({"bytes": np.array([b"a"], object)}, True, {"predictions": ["a"]}),
        (
            {"y": np.array([1.5, 2.5], np.float32), "n": np.array([1, 2], np.int32)},
            True,
            {"predictions": [{"y": 1.5, "n": 1}, {"y": 2.5, "n": 2}]},
        ),
        (
            {"y": np.array([[1.5], [2.5]], np.float32), "s_bytes": np.array([b"a", b"b"], object)},
            True,
            {"predictions": [{"y": [1.5], "s_bytes": {"b64": "YQ=="}}, {"y": [2.5], "s_bytes": {"b64": "Yg=="}}]},
        ),
        (
            {"y": np.array([1.5], np.float32), "n": np.array([1, 2, 3], np.int32), "s": np.array(True)},
            False,
            {"outputs": {"y": [1.5], "n": [1, 2, 3], "s": True}},
        ),
    ],
)
def test_responses(outputs: dict[str, NDArray[Any]], row: bool, expected: dict[str, Any]) -> None:
    assert json.loads(format_predict(outputs, row=row)) == expected


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array([3.0, 0.1], np.float32), b"[3.0,0.1]"),
        (np.array(3.0, np.float64), b"3.0"),
        (np.array([-0.0, 0.3333333], np.float32), b"[-0.0,0.3333333]"),
        (np.array([[np.nan, 1.0], [np.inf, -np.inf]], np.float64), b"[[NaN,1.0],[Infinity,-Infinity]]"),
        (np.array(np.nan, np.float32), b"NaN"),
        (np.array(b"a"), b'"a"'),
        (np.zeros((2, 0, 3)), b"[[],[]]"),
        (np.zeros((0, 3), object), b"[]"),
        (np.arange(4, dtype=np.int32).reshape(2, 2).T, b"[[0,2],[1,3]]"),
        (np.array(["a", 'b"'], object), b'["a","b\\""]'),
    ],
)
def test_text_of_an_array(array: NDArray[Any], text: bytes) -> None:
    assert format_predict({"y": array}, row=False) == b'{"outputs":%b}' % text


@pytest.mark.parametrize("row", [True, False])
def test_not_a_number_is_written_bare(row: bool) -> None:
    text = format_predict({"y": np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)}, row=row)
    assert text.endswith(b":[NaN,Infinity,-Infinity,1.0]}")
    (values,) = json.loads(text).values()
    np.testing.assert_array_equal(values, [math.nan, math.inf, -math.inf, 1.0])


def test_not_a_number_among_several_outputs() -> None:
    outputs = {"y": np.array([np.nan], np.float64), "s": np.array([b"a"], object)}
    (row,) = json.loads(format_predict(outputs, row=True))["predictions"]
    assert math.isnan(row["y"])
    assert row["s"] == "a"


def test_strings_that_are_no_utf8_are_written_raw() -> None:
    assert b'"a\xff"' in format_predict({"y": np.array([b"a\xff"], object)}, row=True)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({}, "Cannot convert empty tensor map to JSON"),
        ({"y": np.array(1.0, np.float32)}, "Tensor name: y has no shape information "),
        (
            {"y": np.zeros(2, np.float32), "z": np.zeros(3, np.float32)},
            "Tensor name: z has inconsistent batch size: 3 expecting: 2",
        ),
    ],
)
def test_responses_that_have_no_rows(outputs: dict[str, NDArray[Any]], expected: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        format_predict(outputs, row=True)
    assert str(caught.value) == expected


@pytest.mark.parametrize(("dtype", "wire"), UNSUPPORTED.items())
def test_other_dtypes_are_not_written(dtype: str, wire: str) -> None:
    array = np.ones(2, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    with pytest.raises(InvalidArgumentError) as caught:
        format_predict({"y": array}, row=True)
    assert str(caught.value) == f"Failed to write JSON value for tensor type: {wire}"
    with pytest.raises(InvalidArgumentError, match=rf"input 'y': .*{dtype}.*gRPC"):
        format_predict_request({"y": array})


def test_what_is_no_text_cannot_be_sent_as_one() -> None:
    with pytest.raises(InputError, match="a string tensor holds bytes or text, got int"):
        format_predict_request({"y": np.array([1], object)})


# --- round trips

SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
RESPONSE_SHAPES = npst.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=3)


@st.composite
def tensors(
    draw: st.DrawFn, dtype: str, shapes: st.SearchStrategy[tuple[int, ...]], subnormal: bool = True
) -> NDArray[Any]:
    if dtype == "string":
        return draw(npst.arrays(object, shapes, elements=st.binary(max_size=6), fill=st.just(b"")))
    # A server flushes subnormal numbers of a request to zero; answers may hold them.
    elements = {} if subnormal or dtype not in FLOATS else {"allow_subnormal": False}
    return draw(npst.arrays(dtype, shapes, elements=elements))


def assert_same(got: NDArray[Any], want: NDArray[Any]) -> None:
    assert got.dtype == want.dtype
    # JSON has no way to say how long the dimensions after an empty one are.
    empty = want.shape.index(0) + 1 if 0 in want.shape else None
    assert got.shape == want.shape[:empty]
    if want.dtype == object:
        assert got.tolist() == want.reshape(got.shape).tolist()
    else:
        np.testing.assert_array_equal(got, want.reshape(got.shape))


@pytest.mark.parametrize("dtype", SUPPORTED)
@given(data=st.data(), name=st.sampled_from(["", "s", "true", "\u00fc"]))
@settings(max_examples=40, deadline=None)
def test_request_round_trip(dtype: str, data: st.DataObject, name: str) -> None:
    inputs = {"x": data.draw(tensors(dtype, SHAPES, subnormal=False)), "y_bytes": data.draw(tensors("string", SHAPES))}
    parsed = parse_predict(format_predict_request(inputs, name))
    assert parsed.signature_name == name
    got = parsed.arrays(signature(x=dtype, y_bytes="string"))
    for key, want in inputs.items():
        assert_same(got[key], want)
    alone = parse_predict(format_predict_request({"x": inputs["x"]})).arrays(signature(x=dtype))
    assert_same(alone["x"], inputs["x"])


@pytest.mark.parametrize("names", [["y"], ["y_bytes"], ["y", "z_bytes"]], ids=",".join)
@pytest.mark.parametrize("dtype", SUPPORTED)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_response_round_trip(dtype: str, names: list[str], data: st.DataObject) -> None:
    outputs = {name: data.draw(tensors(dtype, RESPONSE_SHAPES)) for name in names}
    specs = signature(**dict.fromkeys(names, dtype)).outputs
    got = parse_predict_response(format_predict(outputs, row=False), specs)
    assert got.keys() == outputs.keys()
    for name, want in outputs.items():
        assert_same(got[name], want)


@pytest.mark.parametrize("dtype", SUPPORTED)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_rows_and_columns_say_the_same(dtype: str, data: st.DataObject) -> None:
    array = data.draw(tensors(dtype, RESPONSE_SHAPES))
    outputs = {"y_bytes": array, "z_bytes": array}
    rows = json_text.parse(format_predict(outputs, row=True))["predictions"]
    columns = json_text.parse(format_predict(outputs, row=False))["outputs"]
    for name in outputs:
        column = [row[name] for row in rows]
        assert repr(column) == repr(columns[name])


@given(values=npst.arrays(np.float32, st.integers(1, 20), elements=st.floats(width=32, allow_subnormal=False)))
@settings(max_examples=60, deadline=None)
def test_rows_of_a_request_are_its_column(values: NDArray[np.float32]) -> None:
    text = json.dumps(values.tolist())
    for key in ("instances", "inputs"):
        body = f'{{"{key}": {text}}}'.encode()
        assert_same(parse_predict(body).arrays(signature(x="float32"))["x"], values)


@pytest.mark.parametrize(
    ("body", "specs", "expected"),
    [
        (b"[]", ["y"], "not a Predict response: "),
        (b"{}", ["y"], "not a Predict response: "),
        (b'{"predictions": [1]}', ["y"], "not a Predict response: "),
        (b'{"error": "no"}', ["y"], "not a Predict response: "),
        (b"<html>", ["y"], "JSON Parse error: "),
        (b'{"outputs": [1]}', ["y", "z"], "the Predict response lacks the outputs y, z"),
        (b'{"outputs": {"y": [1]}}', ["y", "z"], "the Predict response lacks the outputs z"),
        (b'{"outputs": ["a"]}', ["y"], "is not of expected type: float"),
        (b'{"outputs": [[1], [1, 2]]}', ["y"], "Encountered list at unexpected size"),
    ],
)
def test_what_is_no_response(body: bytes, specs: list[str], expected: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_predict_response(body, signature(**dict.fromkeys(specs, "float32")).outputs)
    assert expected in str(caught.value)


def test_an_answer_keeps_its_subnormal_numbers() -> None:
    values = np.array([1e-40, 5e-45], np.float32)
    specs = signature(y="float32").outputs
    assert_same(parse_predict_response(format_predict({"y": values}, row=False), specs)["y"], values)
