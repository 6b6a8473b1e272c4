"""Predict requests in JSON: which tensors they hold, what is refused, and in which words."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from servable.errors import InvalidArgumentError, ServableError, UnimplementedError
from servable.signature import Signature, TensorSpec
from servable.wire.json_codec import parse_predict

FLOATS = ("float32", "float64")
INT32_RANGE = ("int8", "int16", "int32", "uint8")
INTEGERS = (*INT32_RANGE, "int64", "uint32", "uint64")
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
    ("body", "expected"),
    [
        ('{"instances": [1.0], "instances": [2.0]}', [1.0]),
        # Bytes after the value send the text to another parser, which must not matter.
        ('{"instances": [1.0], "instances": [2.0]} trailing', [1.0]),
        ('{"inputs": {"x": [1.0], "x": [2.0]}}', [1.0]),
        ('{"instances": [{"x": 1.0, "x": 2.0}]}', [1.0]),
        # What comes too often is cut off at the end, wherever it stood: the original is no better.
        ('{"instances": [{"x": 1.0, "x": 2.0}, {"x": 3.0}]}', [1.0, 2.0]),
    ],
)
def test_of_two_equal_keys_the_first_counts(body: str, expected: list[float]) -> None:
    assert arrays(body)["x"].tolist() == expected


def test_a_second_value_for_a_key_is_looked_at_too() -> None:
    message = str(refusal('{"instances": [{"x": 1.0, "x": [2.0, 3.0]}]}'))
    assert message.endswith("key: x of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 1 but got: 2")


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


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # One after the other, as they stand: the first thing that is wrong is reported.
        ('{"instances": [{"x": "a", "z": 1}]}', "key: x of"),
        ('{"instances": [{"z": 1, "x": "a"}]}', "does not have named input: z"),
        ('{"instances": [{"x": 1, "y": 1}, {"x": "a", "y": 1}, 3]}', "element: 1 key: x"),
        ('{"instances": [{"x": 1, "y": 1.5}, 3]}', "element: 0 key: y"),
        ('{"instances": [{"x": 1, "y": 1}, 3, {"x": "a"}]}', "Expecting object but got list at item 1"),
        ('{"instances": [{"y": true}]}', "element: 0 key: y"),
        ('{"inputs": {"x": "a"}}', "is not of expected type: float"),
        ('{"inputs": {"y": 1.5}}', "Missing named input: x"),
        # A base64 value as first instance is a plain value, for whichever input comes first.
        ('{"instances": [{"b64": "YQ=="}]}', "element: 0 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: {"),
    ],
)
def test_order_of_the_checks(body: str, expected: str) -> None:
    assert expected in str(refusal(body, TWO))


def test_a_name_ends_at_a_nul_in_instances_only() -> None:
    assert arrays('{"instances": [{"x\\u0000y": 1.0}]}')["x"].tolist() == [1.0]
    assert str(refusal('{"inputs": {"x\\u0000y": 1.0}}')) == "Missing named input: x in 'inputs' object."


@pytest.mark.parametrize("depth", [32, 70, 300, 900, 1100, 9_000])
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


@pytest.mark.parametrize(
    "form", ['{{"inputs": [{0}]}}', '{{"instances": [{0}, NaN]}}', '{{"instances": [{{"x": {0}}}]}}']
)
@pytest.mark.parametrize(
    ("dtype", "text", "value"),
    [
        ("float32", "1e-40", 0.0),
        ("float32", "-1e-40", -0.0),
        ("float32", "1.17549435e-38", 1.1754943508222875e-38),
        ("float64", "1e-40", 1e-40),
        ("float64", "-2.2e-308", -0.0),
        ("float64", "2.2250738585072014e-308", 2.2250738585072014e-308),
        ("float64", "1e-400", 0.0),
    ],
)
def test_subnormal_numbers_are_flushed_to_zero(dtype: str, text: str, value: float, form: str) -> None:
    got = float(arrays(form.format(text), signature(x=dtype))["x"].ravel()[0])
    assert (got, math.copysign(1, got)) == (value, math.copysign(1, value))


def test_integers_become_floats_by_way_of_doubles() -> None:
    # In one step it would be rounded up.
    number = 2**55 + 2**31 + 1
    for body in (f'{{"inputs": [{number}]}}', f'{{"inputs": [{number}, NaN]}}', f'{{"inputs": {number}}}'):
        assert arrays(body)["x"].ravel()[0] == np.float32(np.float64(number))


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
        ("YQ..", b"a"),
        ("YR", b"a"),
    ],
)
@pytest.mark.parametrize("form", ['{{"inputs": [{0}]}}', '{{"instances": [{0}]}}', '{{"instances": [{{"x": {0}}}]}}'])
def test_base64(form: str, text: str, value: bytes) -> None:
    got = arrays(form.format(f'{{"b64": "{text}"}}'), signature(x="string"))["x"]
    assert got.tolist() == [value]


@pytest.mark.parametrize("text", ["-_-_", "aGVsbG8*", "a", "aGVsbG8===", "YQ=", "YWJj=", "YQ==YQ==", "Y\u00fc=="])
def test_bad_base64(text: str) -> None:
    assert str(refusal(f'{{"inputs": {{"b64": "{text}"}}}}', signature(x="string"))) == "Unable to base64 decode"


def test_whole_input_may_be_one_base64_value() -> None:
    got = arrays('{"inputs": {"b64": "aGVsbG8="}}', signature(x="string"))["x"]
    assert (got.shape, got.item()) == ((), b"hello")


@pytest.mark.parametrize(
    "value", ['{"b64": "YQ==", "b64": "YQ=="}', '{"b64": 5}', '{"b64": "YQ==", "more": 1}', '{"b65": "YQ=="}', "{}"]
)
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


def test_long_texts_among_numbers_cost_no_more_than_their_length() -> None:
    """As an array of text each of a hundred thousand elements would be as long as the longest."""
    message = str(refusal(f'{{"inputs": [{"1.0, " * 100_000}"{"a" * 1_000_000}"]}}'))
    assert message.endswith(" Type: String is not of expected type: float")


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
