"""The REST API's JSON: what is accepted, what is refused and in which words, and what is written."""

from __future__ import annotations

import base64
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

from servable.errors import InvalidArgumentError, ServableError, UnimplementedError
from servable.signature import Signature, TensorSpec
from servable.wire import json_text
from servable.wire.json_codec import format_predict, format_predict_request, parse_predict, parse_predict_response

FLOATS = ("float32", "float64")
INT32_RANGE = ("int8", "int16", "int32", "uint8")
INTEGERS = (*INT32_RANGE, "int64", "uint32", "uint64")
SUPPORTED = (*FLOATS, *INTEGERS, "bool", "string")
UNSUPPORTED = {"float16": "half", "bfloat16": "bfloat16", "uint16": "uint16", "complex64": "complex64"}


def signature(**dtypes: str) -> Signature:
    """A signature whose inputs and outputs have these dtypes, of any shape."""
    specs = {name: TensorSpec(name, dtype, None) for name, dtype in dtypes.items()}
    return Signature(specs, specs)


ONE = signature(x="float32")
TWO = signature(x="float32", y="int32")


def arrays(body: str | bytes, spec: Signature = ONE) -> dict[str, NDArray[Any]]:
    raw = body.encode() if isinstance(body, str) else body
    return parse_predict(raw).arrays(spec)


def refusal(body: str | bytes, spec: Signature = ONE) -> ServableError:
    with pytest.raises(ServableError) as caught:
        arrays(body, spec)
    return caught.value


INNER_LAST_WINS = pytest.mark.xfail(reason="inside an instance the fast parser keeps the last of two equal keys")


# --- the document


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b" \n\t ", "JSON Parse error: The document is empty. at offset: "),
        (b"{", "Missing a name for object member. at offset: 1"),
        (b'{"inputs" 1}', "Missing a colon after a name of object member. at offset: 10"),
        (b'{"inputs": 1 "a": 2}', "Missing a comma or '}' after an object member. at offset: 13"),
        (b'{"inputs": [1 2]}', "Missing a comma or ']' after an array element. at offset: 14"),
        (b'{"a": {"b": [{"c": "]"} 2]}}', "Missing a comma or ']' after an array element. at offset: 24"),
        (b'{"a": [[1], {"b": "[" 2}]}', "Missing a comma or '}' after an object member. at offset: 22"),
        (b'{"inputs": [1,]}', "Invalid value. at offset: 14"),
        (b'{"inputs": nope}', "Invalid value. at offset: "),
        (b'{"inputs": 1,}', "Missing a name for object member. at offset: 13"),
        (b"{inputs: 1}", "Missing a name for object member. at offset: 1"),
        (b"{'inputs': 1}", "Missing a name for object member. at offset: 1"),
        (b'{"inputs": "\\x"}', "Invalid escape character in string. at offset: "),
        (b'{"inputs": "a\nb"}', "Invalid escape character in string. at offset: "),
        (b'{"inputs": "abc', "Missing a closing quotation mark in string. at offset: "),
        (b'{"inputs": Nan}', "Invalid value. at offset: "),
        (b'{"inputs": nan}', "Invalid value. at offset: "),
        (b'{"inputs": +1}', "Invalid value. at offset: "),
        (b'// a comment\n{"inputs": 1}', "Invalid value. at offset: "),
        (b'{"inputs": 1e309}', "Number too big to be stored in double. at offset: "),
        (b'{"inputs": "\\ud83d"}', "The surrogate pair in string is invalid. at offset: "),
    ],
)
def test_bad_json(body: bytes, expected: str) -> None:
    error = refusal(body)
    assert type(error) is InvalidArgumentError
    assert str(error).startswith("JSON Parse error: ")
    assert expected in str(error)


@pytest.mark.parametrize("body", [b"[1]", b"1", b'"text"', b"null", b"true"])
def test_top_level_must_be_an_object(body: bytes) -> None:
    assert str(refusal(body)) in {f"JSON Value: {body.decode()} Is not object", "JSON Value: [1] Is not object"}


@pytest.mark.parametrize(
    "body",
    [
        '{"instances": [1.0, 2.0]} and more',
        '{"instances": [1.0, 2.0]}{"instances": [3]}',
        '\ufeff{"instances": [1.0, 2.0]}',
        ' \r\n\t{"instances": [1.0, 2.0]}\n',
        '{"unknown": {"deep": [1]}, "instances": [1.0, 2.0]}',
        '{"instances": [1, 2e0], "signature_name": ""}',
        b'{"junk": "\xff\xfe", "instances": [1.0, 2.0]}',
    ],
)
def test_what_the_original_overlooks(body: str | bytes) -> None:
    assert arrays(body)["x"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param('{"instances": [1.0], "instances": [2.0]}'),
        # Bytes after the value send the text to another parser, which must not matter.
        '{"instances": [1.0], "instances": [2.0]} trailing',
        pytest.param('{"instances": [{"x": 1.0, "x": 2.0}]}', marks=INNER_LAST_WINS),
    ],
)
def test_of_two_equal_keys_the_first_counts(body: str) -> None:
    assert arrays(body)["x"].tolist() == [1.0]


@pytest.mark.parametrize("name", ["", "serving_default", "\u00fc"])
def test_signature_name(name: str) -> None:
    assert parse_predict(json.dumps({"signature_name": name, "inputs": 1}).encode()).signature_name == name
    assert parse_predict(b'{"inputs": 1}').signature_name == ""


@pytest.mark.parametrize("name", ["7", "null", "true", "[]", "{}"])
def test_signature_name_must_be_text(name: str) -> None:
    message = str(refusal(f'{{"signature_name": {name}, "inputs": 1}}'))
    assert message.startswith('JSON Value: {\n    "signature_name": ')
    assert message.endswith(" not formatted correctly. 'signature_name' key must be a string value.")


@pytest.mark.parametrize(("body", "row"), [('{"instances": [1]}', True), ('{"inputs": [1]}', False)])
def test_format(body: str, row: bool) -> None:
    assert parse_predict(body.encode()).row is row


# --- the tensors


@pytest.mark.parametrize(
    ("body", "spec", "expected"),
    [
        ("{}", ONE, "Missing 'inputs' or 'instances' key"),
        (
            '{"instances": [1], "inputs": [1]}',
            ONE,
            'JSON Value: {\n    "instances": [1],\n    "inputs": [1]\n} Not formatted correctly expecting only one of '
            "'inputs' or 'instances' keys to exist ",
        ),
        (
            '{"instances": 1}',
            ONE,
            "JSON Value: {\n    \"instances\": 1\n} Expecting 'instances' to be an list/array",
        ),
        ('{"instances": []}', ONE, "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
        (
            '{"instances": [1.0]}',
            TWO,
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map",
        ),
        (
            '{"inputs": [1.0]}',
            TWO,
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
            "tensorinfo_map",
        ),
        ('{"instances": [{"x": 1}, [1]]}', ONE, "Expecting object but got list at item 1 of input list"),
        ('{"instances": [[1], {"x": 1}]}', ONE, "Expecting value/list but got object at item 1 of input list"),
        (
            '{"instances": [{"x": 1, "y": 2}, {"x": 1}]}',
            TWO,
            "Failed to process element: 1 of 'instances' list. JSON object: {\n    \"x\": 1\n} keys must be equal to: "
            "x,y",
        ),
        ('{"inputs": {"x": 1.0}}', TWO, "Missing named input: y in 'inputs' object."),
        ('{"inputs": {"z": 1.0}}', ONE, "Missing named input: x in 'inputs' object."),
        ('{"inputs": {}}', ONE, "Missing named input: x in 'inputs' object."),
        ('{"inputs": 1}', Signature({}, {}), "Failed to get input map for signature: DEFAULT"),
        ('{"inputs": 1}', Signature({}, {}, name="init"), "Failed to get input map for signature: init"),
        (
            '{"inputs": [1.0, "a"]}',
            ONE,
            'JSON Value: "a" Type: String is not of expected type: float',
        ),
        (
            '{"instances": [1.0, "a"]}',
            ONE,
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
            'JSON Value: "a" Type: String is not of expected type: float',
        ),
        (
            '{"instances": [{"x": 1.0, "y": 1.5}]}',
            TWO,
            "Failed to process element: 0 key: y of 'instances' list. Error: INVALID_ARGUMENT: "
            "JSON Value: 1.5 Type: Number is not of expected type: int32",
        ),
        (
            '{"inputs": [[1, 2], [3]]}',
            ONE,
            "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
        ),
        ('{"inputs": [[1, 2], [3, [4]]]}', ONE, "Encountered list at unexpected level: 2 expected < 2"),
        (
            '{"inputs": [[1], 2]}',
            ONE,
            "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
        (
            '{"instances": [[1, 2], [3]]}',
            ONE,
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
            "Expecting tensor size: 2 but got: 1",
        ),
        (
            '{"instances": [[1, 2], [[3, 4]]]}',
            ONE,
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
            "Expecting shape [2] but got: [1,2]",
        ),
        (
            '{"instances": [{"x": [1, 2], "y": 1}, {"x": [1], "y": 1}]}',
            TWO,
            "Failed to process element: 1 key: x of 'instances' list. Error: INVALID_ARGUMENT: "
            "Expecting tensor size: 2 but got: 1",
        ),
    ],
)
def test_refusals_are_word_for_word_the_originals(body: str, spec: Signature, expected: str) -> None:
    error = refusal(body, spec)
    assert type(error) is InvalidArgumentError
    assert str(error) == expected


def test_unknown_key_is_reported_before_missing_keys() -> None:
    message = str(refusal('{"instances": [{"z": 1}]}', TWO))
    assert message.startswith("Failed to process element: 0 ")
    assert message.endswith("JSON object: does not have named input: z")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("null", "Null"),
        ("true", "True"),
        ("false", "False"),
        ('{"a": 1}', "Object"),
        ('"1"', "String"),
    ],
)
def test_wrong_types_are_named(value: str, kind: str) -> None:
    message = str(refusal(f'{{"inputs": [1.0, {value}]}}'))
    assert message.startswith("JSON Value: ")
    assert message.endswith(f" Type: {kind} is not of expected type: float")


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ('{"inputs": 1}', ()),
        ('{"inputs": [1]}', (1,)),
        ('{"inputs": []}', (0,)),
        ('{"inputs": [[], []]}', (2, 0)),
        ('{"inputs": [[[1, 2, 3]], [[4, 5, 6]]]}', (2, 1, 3)),
        ('{"inputs": {"x": 1}}', ()),
        ('{"inputs": {"x": [1], "extra": "ignored"}}', (1,)),
        ('{"instances": [1]}', (1,)),
        ('{"instances": [[]]}', (1, 0)),
        ('{"instances": [[1], [2]]}', (2, 1)),
        ('{"instances": [{"x": 1}]}', (1,)),
        ('{"instances": [{"x": [1, 2]}, {"x": [3, 4]}]}', (2, 2)),
    ],
)
def test_shapes_come_from_the_nesting(body: str, shape: tuple[int, ...]) -> None:
    got = arrays(body)["x"]
    assert (got.shape, got.dtype) == (shape, np.float32)


def test_several_inputs_in_both_formats() -> None:
    for body in (
        '{"instances": [{"x": [1, 2], "y": 3}, {"y": 6, "x": [4, 5]}]}',
        '{"inputs": {"y": [3, 6], "x": [[1, 2], [4, 5]]}}',
    ):
        got = arrays(body, TWO)
        assert got["x"].tolist() == [[1, 2], [4, 5]]
        assert got["y"].tolist() == [3, 6]
        assert (got["x"].dtype, got["y"].dtype) == (np.float32, np.int32)


def test_columns_may_differ_in_their_first_dimension() -> None:
    got = arrays('{"inputs": {"x": [1, 2, 3], "y": 4}}', TWO)
    assert (got["x"].shape, got["y"].shape) == ((3,), ())


@pytest.mark.parametrize("depth", [32, 70, 300, 900, 1100, 100_000])
@pytest.mark.parametrize("key", ["inputs", "instances"])
def test_deep_nesting_is_an_error_at_most(key: str, depth: int) -> None:
    body = f'{{"{key}": {"[" * depth}1{"]" * depth}}}'
    if depth > 64:
        assert type(refusal(body)) is InvalidArgumentError
    else:
        assert arrays(body)["x"].ndim == depth


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", ['{{"inputs": [{0}]}}', '{{"instances": [{0}]}}', '{{"instances": [{{"x": {0}}}]}}'])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("NaN", math.nan),
        ("Infinity", math.inf),
        ("-Infinity", -math.inf),
        ("Inf", math.inf),
        ("-Inf", -math.inf),
        ("1", 1.0),
        ("-0.0", -0.0),
        ("1e2", 100.0),
        ("18446744073709551616", 2.0**64),
    ],
)
def test_floats_take_any_number(text: str, value: float, form: str, dtype: str) -> None:
    got = arrays(form.format(text), signature(x=dtype))["x"]
    np.testing.assert_array_equal(got, np.array([value], dtype))
    assert math.copysign(1, got[0]) == math.copysign(1, value) or math.isnan(value)


@pytest.mark.parametrize("text", ["1e39", "-1e39"])
def test_too_large_for_float32_is_infinite(text: str) -> None:
    assert math.isinf(arrays(f'{{"inputs": [{text}]}}')["x"][0])


@pytest.mark.parametrize("form", ['{{"inputs": {0}}}', '{{"inputs": [{0}]}}', '{{"instances": [{0}]}}'])
@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        *[(dtype, -(2**31), 2**31 - 1) for dtype in INT32_RANGE],
        ("int64", -(2**63), 2**63 - 1),
        ("uint32", 0, 2**32 - 1),
        ("uint64", 0, 2**64 - 1),
    ],
)
def test_integer_ranges(dtype: str, low: int, high: int, form: str) -> None:
    spec = signature(x=dtype)
    for value in (low, high, 0, 1):
        # A small dtype takes the whole range of int32, and wraps.
        want = np.array(value, object).astype(np.uint64 if dtype == "uint64" else np.int64).astype(dtype)
        assert arrays(form.format(value), spec)["x"].ravel()[0] == want
    for value in (low - 1, high + 1, "1.0", "1e2", "NaN", "true", "null", '"1"'):
        error = refusal(form.format(value), spec)
        assert type(error) is InvalidArgumentError
        assert str(error).endswith(f"is not of expected type: {dtype}")


@pytest.mark.parametrize("bad", ["1", "0", "null", '"true"', "1.0"])
@pytest.mark.parametrize("form", ['{{"inputs": [true, {0}]}}', '{{"instances": [false, {0}]}}', '{{"inputs": [{0}]}}'])
def test_bool_takes_true_and_false_only(form: str, bad: str) -> None:
    assert str(refusal(form.format(bad), signature(x="bool"))).endswith("is not of expected type: bool")
    got = arrays(form.format("true"), signature(x="bool"))["x"]
    assert got.dtype == np.bool_
    assert got.ravel()[-1]


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
@pytest.mark.parametrize("body", ['{"inputs": [1, true]}', '{"instances": [1, false]}', '{"instances": [[true]]}'])
def test_true_is_no_number(body: str, dtype: str) -> None:
    assert str(refusal(body, signature(x=dtype))).endswith(f"is not of expected type: {_wire_name(dtype)}")


def _wire_name(dtype: str) -> str:
    return {"float32": "float", "float64": "double"}.get(dtype, dtype)


# --- strings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("aGVsbG8=", b"hello"),
        ("aGVsbG8", b"hello"),
        ("aGVs\\nbG8=", b"hello"),
        (" aGV sbG8 = ", b"hello"),
        ("", b""),
        ("+/+/", b"\xfb\xff\xbf"),
        ("AAD/", b"\x00\x00\xff"),
    ],
)
@pytest.mark.parametrize("form", ['{{"inputs": [{0}]}}', '{{"instances": [{0}]}}', '{{"instances": [{{"x": {0}}}]}}'])
def test_base64(form: str, text: str, value: bytes) -> None:
    got = arrays(form.format(f'{{"b64": "{text}"}}'), signature(x="string"))["x"]
    assert got.tolist() == [value]


@pytest.mark.parametrize("text", ["-_-_", "aGVsbG8*", "a", "aGVsbG8==="])
def test_bad_base64(text: str) -> None:
    assert str(refusal(f'{{"inputs": {{"b64": "{text}"}}}}', signature(x="string"))) == "Unable to base64 decode"


def test_whole_input_may_be_one_base64_value() -> None:
    got = arrays('{"inputs": {"b64": "aGVsbG8="}}', signature(x="string"))["x"]
    assert (got.shape, got.item()) == ((), b"hello")


@pytest.mark.parametrize("value", ['{"b64": 5}', '{"b64": "YQ==", "more": 1}', '{"b65": "YQ=="}', "{}"])
def test_object_that_is_no_base64_value(value: str) -> None:
    message = str(refusal(f'{{"inputs": ["a", {value}]}}', signature(x="string")))
    assert message.startswith("JSON Value: {")
    assert message.endswith(" not formatted correctly for base64 data")


@pytest.mark.parametrize("body", [b'{"inputs": ["a\xff", "\xc3\xbc"]}', b'{"instances": ["a\xff", "\\u00fc"]}'])
def test_strings_are_bytes_and_need_not_be_utf8(body: bytes) -> None:
    assert arrays(body, signature(x="string"))["x"].tolist() == [b"a\xff", "\u00fc".encode()]


# --- dtypes that JSON cannot carry


@pytest.mark.parametrize(("dtype", "wire"), UNSUPPORTED.items())
def test_other_dtypes_are_unimplemented_in_columns_and_invalid_in_rows(dtype: str, wire: str) -> None:
    spec = signature(x=dtype)
    expected = f"Conversion of JSON Value: 1.5 to type: {wire}"
    column, row = refusal('{"inputs": [1.5]}', spec), refusal('{"instances": [1.5]}', spec)
    assert (type(column), str(column)) == (UnimplementedError, expected)
    assert type(row) is InvalidArgumentError
    assert str(row) == f"Failed to process element: 0 of 'instances' list. Error: UNIMPLEMENTED: {expected}"
    assert type(refusal('{"inputs": [{"b64": "YQ=="}]}', spec)) is InvalidArgumentError
    assert arrays('{"inputs": []}', spec)["x"].shape == (0,)


@pytest.mark.parametrize(("dtype", "wire"), UNSUPPORTED.items())
def test_other_dtypes_are_not_written(dtype: str, wire: str) -> None:
    array = np.ones(2, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    with pytest.raises(InvalidArgumentError) as caught:
        format_predict({"y": array}, row=True)
    assert str(caught.value) == f"Failed to write JSON value for tensor type: {wire}"
    with pytest.raises(InvalidArgumentError, match=rf"input 'y': .*{dtype}.*gRPC"):
        format_predict_request({"y": array})


# --- what an error shows of the request


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, "1"),
        (1.0, "1.0"),
        ("\u00fc", '"\u00fc"'),
        (None, "null"),
        ([], "[]"),
        ({}, "{}"),
        ([1, [2, "a"]], '[1, [2, "a"]]'),
        ({"a": 1, "b": [1]}, '{\n    "a": 1,\n    "b": [1]\n}'),
        ({"a": {"b": 1}}, '{\n    "a": {\n        "b": 1\n    }\n}'),
        ([{"x": 1.0}], '[{\n            "x": 1.0\n        }]'),
    ],
)
def test_debug_text(value: Any, expected: str) -> None:
    assert json_text.debug(value) == expected


def nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value] if isinstance(value, list) else {"k": value}
    return value


@pytest.mark.parametrize("innermost", [[], {}])
@pytest.mark.parametrize("form", ['{{"inputs": 1, "instances": 1, "a": {0}}}', '{{"instances": 1, "a": {0}}}', "[{0}]"])
def test_debug_text_of_a_deep_document_is_cut(form: str, innermost: Any) -> None:
    message = str(refusal(form.format(json.dumps(nested(innermost, 900)))))
    assert message.startswith("JSON Value: ")
    assert len(message) < 500


@pytest.mark.parametrize("value", [list(range(10**6)), {"x" * 1000: 1}, [["\u00fc" * 10**6]], {"a": list(range(999))}])
def test_debug_text_is_cut(value: Any) -> None:
    assert 200 < len(json_text.debug(value)) <= 260


# --- responses


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


@pytest.mark.parametrize("row", [True, False])
def test_not_a_number_is_written_bare(row: bool) -> None:
    text = format_predict({"y": np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)}, row=row)
    assert b"NaN" in text
    assert b" Infinity" in text
    assert b"-Infinity" in text
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


@pytest.mark.parametrize("message", ["plain", 'quote " and \\ and\nline', "\u00fc", "caf\udce9"])
def test_error_body(message: str) -> None:
    body = json_text.format_error(message)
    assert body.startswith(b'{\n    "error": "')
    assert json.loads(body.decode("utf-8", "surrogateescape")) == {"error": message}


# --- round trips

SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
RESPONSE_SHAPES = npst.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=3)


@st.composite
def tensors(draw: st.DrawFn, dtype: str, shapes: st.SearchStrategy[tuple[int, ...]]) -> NDArray[Any]:
    if dtype == "string":
        return draw(npst.arrays(object, shapes, elements=st.binary(max_size=6), fill=st.just(b"")))
    return draw(npst.arrays(dtype, shapes))


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
    inputs = {"x": data.draw(tensors(dtype, SHAPES)), "y_bytes": data.draw(tensors("string", SHAPES))}
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
        if dtype in FLOATS:  # one is written with the digits of a double, the other with those of a float
            np.testing.assert_array_equal(np.array(column, dtype), np.array(columns[name], dtype))
        else:
            assert column == columns[name]


@given(values=npst.arrays(np.float32, st.integers(1, 20), elements=st.floats(width=32)))
@settings(max_examples=60, deadline=None)
def test_rows_of_a_request_are_its_column(values: NDArray[np.float32]) -> None:
    text = json.dumps(values.tolist())
    row, column = arrays(f'{{"instances": {text}}}'), arrays(f'{{"inputs": {text}}}')
    assert_same(row["x"], values)
    assert_same(column["x"], values)


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


@given(body=st.binary(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_arrays_or_an_error_of_ours(body: bytes) -> None:
    try:
        arrays(body)
    except ServableError as error:
        assert str(error)  # noqa: PT017  # arrays would be as good an answer


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**66), 2**66) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "y", "b64"]), inner, max_size=2),
    max_leaves=8,
)


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint64", "bool", "string", "float16"])
@given(value=JSON, key=st.sampled_from(["inputs", "instances"]))
@settings(max_examples=80, deadline=None)
def test_any_value_gives_arrays_or_an_error_of_ours(dtype: str, value: Any, key: str) -> None:
    body = json.dumps({key: value}).encode()
    for spec in (signature(x=dtype), signature(x=dtype, y=dtype)):
        try:
            got = arrays(body, spec)
        except ServableError as error:
            assert str(error)  # noqa: PT017  # arrays would be as good an answer
        else:
            assert got.keys() == spec.inputs.keys()


def test_base64_of_a_picture_survives() -> None:
    picture = bytes(range(256)) * 64
    body = json.dumps({"instances": [{"b64": base64.b64encode(picture).decode()}]})
    assert arrays(body, signature(x="string"))["x"].tolist() == [picture]


def test_an_unterminated_string_of_quotes_costs_no_more_than_its_length() -> None:
    """Looked for anew at each of a million quotes, its end would take hours; the suite would not finish."""
    with pytest.raises(InvalidArgumentError, match="Missing a closing quotation mark in string"):
        json_text.parse(b'{"a": Inf, "b": "' + b'\\"' * 1_000_000)
