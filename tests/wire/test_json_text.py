"""JSON as TensorFlow Serving reads it, byte by byte, and as its error texts show it."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servable.errors import InvalidArgumentError
from servable.wire import json_reader, json_text
from servable.wire.json_numbers import number_text


def refusal(body: bytes) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        json_text.parse(body)
    return str(caught.value).removeprefix("JSON Parse error: ")


# --- what is no JSON


EMPTY, INVALID = "The document is empty.", "Invalid value."
NAME, COLON = "Missing a name for object member.", "Missing a colon after a name of object member."
OBJECT, ARRAY = "Missing a comma or '}' after an object member.", "Missing a comma or ']' after an array element."
ESCAPE, QUOTE = "Invalid escape character in string.", "Missing a closing quotation mark in string."
HEX, PAIR = "Incorrect hex digit after \\u escape in string.", "The surrogate pair in string is invalid."
FRACTION, EXPONENT = "Miss fraction part in number.", "Miss exponent in number."
BIG = "Number too big to be stored in double."


@pytest.mark.parametrize(
    ("body", "reason", "offset"),
    [
        (b" \n\t ", EMPTY, 4),
        (b"\0{}", EMPTY, 0),
        (b"}", EMPTY, 0),
        (b" ]", EMPTY, 1),
        (b", 1", EMPTY, 0),
        (b"[", INVALID, 1),
        (b"[1,", INVALID, 3),
        (b"[1, ]", INVALID, 4),
        (b"[,1]", INVALID, 1),
        (b"[}", INVALID, 1),
        (b"[1}", ARRAY, 2),
        (b"[1 2]", ARRAY, 3),
        (b"[1:2]", ARRAY, 2),
        (b"[1\0,2]", ARRAY, 2),
        (b"[01]", ARRAY, 2),
        (b"[1_0]", ARRAY, 2),
        (b"[0x10]", ARRAY, 2),
        (b"[1.5, 2.5, 3.5 4]", ARRAY, 15),
        (b"{", NAME, 1),
        (b"{ 'a': 1}", NAME, 2),
        (b"{a: 1}", NAME, 1),
        (b'{"a": 1, }', NAME, 9),
        (b'{"a": 1,,', NAME, 8),
        (b'{"a"', COLON, 4),
        (b'{"a" 1}', COLON, 5),
        (b'{"a", 1}', COLON, 4),
        (b'{"a":', INVALID, 5),
        (b'{"a":}', INVALID, 5),
        (b'{"a": 1', OBJECT, 7),
        (b'{"a": 1 "b": 2}', OBJECT, 8),
        (b'{"a": [{"c": "]"} 2]}', ARRAY, 18),
        (b'{"a": [[1], {"b": "[" 2}]}', OBJECT, 22),
        (b'{"a": 1]', OBJECT, 7),
        (b"nul", INVALID, 3),
        (b"[nulL]", INVALID, 4),
        (b"True", INVALID, 0),
        (b"tRue", INVALID, 1),
        (b"falsy", INVALID, 4),
        (b"None", INVALID, 1),
        (b"nan", INVALID, 1),
        (b"inf", INVALID, 0),
        (b"Nan", INVALID, 2),
        (b"Infinite", INVALID, 7),
        (b"-I", INVALID, 2),
        (b"[+Infinity]", INVALID, 1),
        (b"+1", INVALID, 0),
        (b".5", INVALID, 0),
        (b"-", INVALID, 1),
        (b"--1", INVALID, 1),
        (b"<html>", INVALID, 0),
        (b"// remark\n{}", INVALID, 0),
        (b"\xff", INVALID, 0),
        (b"1.", FRACTION, 2),
        (b"[1.,2]", FRACTION, 3),
        (b"[-0.e1]", FRACTION, 4),
        (b"1e", EXPONENT, 2),
        (b"[1.5e+]", EXPONENT, 6),
        (b"[Inf.]", FRACTION, 5),
        (b"1e309", BIG, 0),
        (b"[2, 1e400]", BIG, 4),
        (b"[0e309]", BIG, 1),
        (b"[0.0e310]", BIG, 1),
        (b"[" + b"1" * 310 + b"]", BIG, 1),
        (b"[" + b"1" * 310 + b".]", BIG, 1),
        (b"1" * 100_000, BIG, 0),
        (b'"abc', QUOTE, 4),
        (b'"abc\0"', QUOTE, 4),
        (b'"\xc3\xbc', QUOTE, 3),
        (b'"a\nb"', ESCAPE, 2),
        (b'["ab\\x"]', ESCAPE, 4),
        (b'"\\', ESCAPE, 1),
        (b'"a\\u12g4"', HEX, 2),
        (b'"\\ud83d\\u12"', HEX, 1),
        (b'"\\ud83d"', PAIR, 1),
        (b'"\\ud83d\\n"', PAIR, 1),
        (b'"a\\ud83d\\ud83d"', PAIR, 2),
        (b"\xef\xbb\xbf", EMPTY, 3),
        (b"\xef\xbb\xbf{", NAME, 4),
        (b"[" * 9_000, INVALID, 9_000),
        (b"[" * 100_000, "The document is nested deeper than 10000 levels.", 10_001),
        (b'{"a":' * 9_000, INVALID, 45_000),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_errors_say_what_and_where(body: bytes, reason: str, offset: int) -> None:
    assert refusal(body) == f"{reason} at offset: {offset}"


def test_an_empty_body_has_no_offset() -> None:
    assert refusal(b"") == "The document is empty"


# --- what is JSON to the original


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"[1] and more", [1]),
        (b'{"a": 1}{"a": 2}', {"a": 1}),
        (b"[1]\0", [1]),
        (b"\xef\xbb\xbf[1]", [1]),
        (b"0x10", 0),
        (b"[Infinity, -Infinity, Inf, -Inf]", [math.inf, -math.inf, math.inf, -math.inf]),
        (b"[NInf, NaInf]", [math.inf, math.inf]),
        (b"[Inf.5, NaNe1]", [0.5, 0.0]),
        (b'"\xff"', "\udcff"),
        (b'"\\udc00"', "\udced\udcb0\udc80"),
        (b'"\\u0000\x7f\\/"', "\0\x7f/"),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b"[10e308, 1.7976931348623159e308, -1e308]", [math.inf, math.inf, -1e308]),
        (b"1" + b"0" * 308 + b" ", 1e308),
        (b"17976931348623157" + b"0" * 291, 1.7976931348623157e307),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_what_the_original_accepts(body: bytes, value: Any) -> None:
    assert json_text.parse(body) == value


@pytest.mark.parametrize("more", ["", "x"])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-0", 0),
        ("-0.0", -0.0),
        ("1e2", 100.0),
        ("18446744073709551615", 2**64 - 1),
        ("18446744073709551616", 2.0**64),
        ("-9223372036854775808", -(2**63)),
        ("-9223372036854775809", -(2.0**63)),
        ("1234567890123456789", 1234567890123456789),
        ("0.1000000000000000055511151231257827", 0.1),
    ],
)
def test_integers_of_64_bits_are_integers_and_nothing_else_is(text: str, value: float, more: str) -> None:
    for body, got in ((text, value), (f"[{text}]", [value]), (f"[2, {text} ]", [2, value])):
        parsed = json_text.parse((body + more).encode())
        assert repr(parsed) == repr(got)


def test_not_a_number() -> None:
    values = json_text.parse(b"[NaN, -NaN, 1, 2.5, true]")
    assert [math.isnan(value) for value in values] == [True, True, False, False, False]
    assert [type(value) for value in values[2:]] == [int, float, bool]


@pytest.mark.parametrize("more", [b"", b" x"])
def test_repeated_keys_are_kept(more: bytes) -> None:
    value = json_text.parse(b'{"a": {"b": 1, "c": 2, "b": 3}, "d": [{"e": 1}, {"e": 1, "e": 2}], "a": 4}' + more)
    assert isinstance(value, json_reader.Repeated)
    assert list(json_reader.members(value["a"])) == [("b", 1), ("c", 2), ("b", 3)]
    assert [value["a"]["b"], value["d"][1]["e"]] == [1, 1]
    assert list(json_reader.members(value["d"][0])) == [("e", 1)]


@pytest.mark.parametrize("more", [b"", b" x"])
@pytest.mark.parametrize("depth", [100, 2000, json_reader.MAX_DEPTH])
def test_nesting_within_the_limit_is_read(depth: int, more: bytes) -> None:
    value = json_text.parse(b"[" * depth + b"]" * depth + more)
    for _ in range(depth - 1):
        (value,) = value
    assert value == []


BLANKS = st.sampled_from(["", " ", "\n\t", "\r "])
TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@given(value=VALUES, before=BLANKS, separators=st.tuples(BLANKS, BLANKS), ascii_only=st.booleans())
@settings(max_examples=300, deadline=None)
def test_both_readers_agree_with_pythons(
    value: Any, before: str, separators: tuple[str, str], ascii_only: bool
) -> None:
    comma, colon = separators[0] + "," + separators[1], separators[1] + ":" + separators[0]
    text = before + json.dumps(value, ensure_ascii=ascii_only, separators=(comma, colon)) + separators[0]
    for parse in (json_text.parse, json_reader.read):
        assert repr(parse(text.encode())) == repr(json.loads(text))


PIECES = [
    *rb'{ } [ ] , : " "a" \ 1 - .5 e5 NaN Inf true null [1,2] {"a":1} \ud800 1e400'.split(),
    b" ",
    b"\x00",
    b"\xff",
]


@given(body=st.lists(st.sampled_from(PIECES), max_size=9).map(b"".join))
@settings(max_examples=500, deadline=None)
def test_the_readers_agree_on_what_is_wrong(body: bytes) -> None:
    outcomes = []
    for parse in (json_text.parse, json_reader.read):
        try:
            outcomes.append(repr(parse(body)))
        except InvalidArgumentError as error:
            outcomes.append(str(error))
    if body:
        assert outcomes[0] == outcomes[1]


@given(body=st.binary(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_value_or_an_error(body: bytes) -> None:
    try:
        json_text.parse(body)
    except InvalidArgumentError as error:
        assert str(error).startswith("JSON Parse error: ")  # noqa: PT017  # a value would be as good


VALUES = (
    *("1", "-0", "-0.0", "1.5", "-2e5", "1E-3", "1e308", "1e309", "01", "1.", "-", "x"),
    *("123456789012345678", "1234567890123456789", "18446744073709551616", "NaN", "-NaN", "Inf", "-Infinity", "Inf.5"),
    *('""', '"a"', '"\\n"', '"é"', '"Inf,[NaN"', '"\\"]"', "true", "null", "nul", "{}", '{"a": [1, 2], "a": 1}'),
)
LISTS = st.recursive(
    st.sampled_from(VALUES),
    lambda inner: st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
    max_leaves=20,
)


@given(text=LISTS, at=st.integers(0, 100), more=st.sampled_from(["", "", ",", "[", "]", "]]", '"', " ", "1", "\0"]))
@settings(max_examples=500, deadline=None)
def test_values_read_together_are_those_read_one_by_one(text: str, at: int, more: str) -> None:
    body = (text[:at] + more + text[at:]).encode()
    with pytest.MonkeyPatch.context() as patch:
        together = outcome(body)
        patch.setattr(json_reader, "_RUN", re.compile(b"(?!)"))
        assert outcome(body) == together


def outcome(body: bytes) -> str:
    try:
        return repr(json_reader.read(body))
    except InvalidArgumentError as error:
        return str(error)


def test_a_large_list_with_a_fault_at_its_end() -> None:
    body = b"[%b[%b[1, x]]]" % (b"[[1.5], [NaN]], " * 100_000, b"[1], " * 100_000)
    assert refusal(body) == f"Invalid value. at offset: {body.index(b'x')}"


def test_an_unterminated_string_of_quotes_costs_no_more_than_its_length() -> None:
    """Looked for anew at each of a million quotes, its end would take hours; the suite would not finish."""
    with pytest.raises(InvalidArgumentError, match="Missing a closing quotation mark in string"):
        json_text.parse(b'{"a": Inf, "b": "' + b'\\"' * 1_000_000)


# --- numbers as RapidJSON writes them


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (3.0, "3.0"),
        (-1500.0, "-1500.0"),
        (0.1, "0.1"),
        (123.456, "123.456"),
        (0.00001, "0.00001"),
        (0.0000012, "0.0000012"),
        (1e-7, "1e-7"),
        (1.5e-7, "1.5e-7"),
        (1e10, "10000000000.0"),
        (1e20, "100000000000000000000.0"),
        (1e21, "1e21"),
        (1.25e21, "1.25e21"),
        (1e308, "1e308"),
        (2.2250738585072014e-308, "2.2250738585072014e-308"),
        # The digits are those of Grisu2, which does not always find the nearest.
        (2.0**64, "18446744073709553000.0"),
        (-(2.0**63), "-9223372036854776000.0"),
    ],
)
def test_number_text(value: float, text: str) -> None:
    assert number_text(value) == text


@given(value=st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False))
@settings(max_examples=500, deadline=None)
def test_number_text_stands_for_the_number(value: float) -> None:
    text = number_text(value)
    assert repr(float(text)) == repr(value)
    assert len(text.strip("-").split("e")[0].replace(".", "").strip("0")) <= 17


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
        ([{"x": 1.0}], '[{\n        "x": 1.0\n    }]'),
        (
            {"a": [{"x": [{"y": 1}], "z": {}}]},
            '{\n    "a": [{\n            "x": [{\n                    "y": 1\n                }],\n'
            '            "z": {}\n        }]\n}',
        ),
        ('a"b\\c/\n\x1f\x7f\0', '"a\\"b\\\\c/\\n\\u001F\x7f\\u0000"'),
        (5e-324, "0.0"),
        # It stops dead at what is not finite.
        (math.nan, ""),
        ([1, math.inf, 2], "[1, "),
        ({"a": -math.inf, "b": 1}, '{\n    "a": '),
    ],
)
def test_debug_text(value: Any, expected: str) -> None:
    assert json_text.debug(value) == expected


@pytest.mark.parametrize(
    ("value", "length"),
    [
        # The token that goes beyond 256 bytes is the last, and is shown whole.
        ("x" * 300, 302),
        ({"k": "x" * 300}, 11 + 302),
        ({"k" * 300: 1, "l": 2}, 6 + 302),
        (["\u00fc" * 300, 1], 1 + 602),
        (["x" * 252, 1], 1 + 254 + 3),
        (["x" * 253, 1], 1 + 255 + 3),
        (["x" * 254, 1], 1 + 256),
        (list(range(10**6)), 257),
        ([[["\u00fc" * 10]] * 10**6], 259),
    ],
)
def test_debug_text_is_cut_behind_a_token(value: Any, length: int) -> None:
    assert len(json_text.debug(value).encode()) == length


def nested(innermost: str, depth: int, before: str, after: str) -> bytes:
    return (before * depth + innermost + after * depth).encode()


@pytest.mark.parametrize(("before", "after"), [("[", "]"), ('{"k": ', "}"), ('[{"k": ', "}]")])
def test_debug_text_of_a_deep_document_is_cut(before: str, after: str) -> None:
    assert 256 < len(json_text.debug(json_text.parse(nested("[]", 4_000, before, after)))) < 500


def test_debug_text_shows_repeated_keys() -> None:
    assert json_text.debug(json_text.parse(b'{"a": 1, "a": 2}')) == '{\n    "a": 1,\n    "a": 2\n}'


# --- errors


@pytest.mark.parametrize("message", ["plain", 'quote " and \\ and\nline', "\u00fc", "caf\udce9"])
def test_error_body(message: str) -> None:
    body = json_text.format_error(message)
    assert body.startswith(b'{\n    "error": "')
    assert json.loads(body.decode("utf-8", "surrogateescape")) == {"error": message}
