"""Classify and Regress in JSON: tf.Examples in, labels with scores or values out."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servable.errors import InvalidArgumentError
from servable.wire import messages
from servable.wire.json_examples import format_classification, format_regression, parse_examples


def features(body: str | bytes) -> list[dict[str, Any]]:
    """The features of each example: None, or kind and values."""
    raw = body.encode() if isinstance(body, str) else body
    parsed = [messages.Example.FromString(example) for example in parse_examples(raw).examples]
    return [{name: _content(feature) for name, feature in example.features.feature.items()} for example in parsed]


def _content(feature: Any) -> Any:
    kind = feature.WhichOneof("kind")
    return None if kind is None else (kind.removesuffix("_list"), list(getattr(feature, kind).value))


def refusal(body: str | bytes) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_examples(body.encode() if isinstance(body, str) else body)
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", ("int64", [1])),
        ("[1, -2]", ("int64", [1, -2])),
        ("-9223372036854775808", ("int64", [-(2**63)])),
        ("[true, 2, false]", ("int64", [1, 2, 0])),
        ("1.0", ("float", [1.0])),
        ("1e2", ("float", [100.0])),
        ("[1.5, -0.0, Infinity, 1e300, -1e-40]", ("float", [1.5, -0.0, math.inf, math.inf, -0.0])),
        # No integer of 64 bits, and so no integer at all.
        ("18446744073709551616", ("float", [2.0**64])),
        ('"a"', ("bytes", [b"a"])),
        ('["\\u00fc", {"b64": "/w=="}]', ("bytes", ["\u00fc".encode(), b"\xff"])),
        ("[]", None),
    ],
)
def test_the_values_say_the_kind(value: str, expected: Any) -> None:
    (got,) = features(f'{{"examples": [{{"x": {value}}}]}}')
    assert repr(got["x"]) == repr(expected)


def test_strings_are_bytes() -> None:
    assert features(b'{"examples": [{"x": "a\xff"}]}') == [{"x": ("bytes", [b"a\xff"])}]


@pytest.mark.parametrize(
    ("text", "name"), [('{"examples": [{}]}', ""), ('{"signature_name": "s", "examples": [{}]}', "s")]
)
def test_signature_name(text: str, name: str) -> None:
    body = parse_examples(text.encode())
    assert (body.signature_name, body.examples) == (name, [b""])


def test_context_is_part_of_each_example() -> None:
    got = features('{"examples": [{"x": 1.0}, {"y": 2}], "context": {"x": 3.0, "z": "a"}}')
    assert got == [
        {"x": ("float", [1.0]), "z": ("bytes", [b"a"])},
        {"x": ("float", [3.0]), "y": ("int64", [2]), "z": ("bytes", [b"a"])},
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"examples": [{"x": 1.0, "x": [2.0]}]}', [{"x": ("float", [2.0])}]),
        ('{"examples": [{"x": 1.0, "x": "a"}]}', [{"x": ("bytes", [b"a"])}]),
        ('{"examples": [{"x": 1.0, "x": []}]} x', [{"x": None}]),
        ('{"examples": [{"x": 1.0}], "examples": [{"x": 2.0}]}', [{"x": ("float", [1.0])}]),
        ('{"examples": [{"x\\u0000y": 1.0, "": 2}]}', [{"x": ("float", [1.0]), "": ("int64", [2])}]),
        (b'{"examples": [{"\xff": 1.0, "\xc3\xbc": 2}]}', [{"\u00fc": ("int64", [2])}]),
    ],
)
def test_names(body: str | bytes, expected: Any) -> None:
    assert features(body) == expected


WHEN = " When method is classify, key 'examples' is expected and was not found"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("", "JSON Parse error: The document is empty"),
        ('{"examples":', "JSON Parse error: Invalid value. at offset: 12"),
        ("[]", "JSON Value: [] Is not object"),
        ("NaN", "JSON Value:  Is not object"),
        ("{}", f"JSON Value: {{}}{WHEN}"),
        ('{"examples": {}}', "JSON Value: {\n    \"examples\": {}\n} Expecting 'examples' value to be an list/array"),
        ('{"examples": []}', "JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array"),
        ('{"examples": [null]}', "Example must be JSON object but got JSON Null"),
        ('{"examples": [{}, [1]]}', "Example must be JSON object but got JSON Array"),
        ('{"examples": [{}], "context": true}', "Example must be JSON object but got JSON True"),
        ('{"examples": [{"x": null}]}', "Feature: x has element with unexpected JSON type: Null"),
        ('{"examples": [{"x": [[1]]}]}', "Feature: x has element with unexpected JSON type: Array"),
        ('{"examples": [{"x": {"c": 1}}]}', "Feature: x has element with unexpected JSON type: Object"),
        (
            '{"examples": [{"x": {"b64": "YQ==", "b64": "YQ=="}}]}',
            "Feature: x has element with unexpected JSON type: Object",
        ),
        ('{"examples": [{"x": {"b64": "!"}}]}', "Unable to base64 decode"),
        ('{"examples": [{"x": [8.0, 9]}]}', "Unexpected element type in feature: x expecting type: float"),
        ('{"examples": [{"x": [9, 8.0]}]}', "Unexpected element type in feature: x expecting type: int64"),
        ('{"examples": [{"x": ["a", true]}]}', "Unexpected element type in feature: x expecting type: bytes"),
        (
            '{"examples": [{"x": [1, 9223372036854775808]}]}',
            "Feature: x has uint64_t element. Only int64_t is supported.",
        ),
        # In the order of the text, and the kind before anything else about a value.
        (
            '{"examples": [{"x": [1.0, 9223372036854775808]}]}',
            "Unexpected element type in feature: x expecting type: float",
        ),
        ('{"examples": [{"x": [1.0, {"b64": "!"}]}]}', "Unexpected element type in feature: x expecting type: float"),
        ('{"examples": [{"x": [1.0, null]}]}', "Feature: x has element with unexpected JSON type: Null"),
        ('{"examples": [{"x": [1, "a", null]}]}', "Unexpected element type in feature: x expecting type: int64"),
        ('{"examples": [{"x": null, "x": 1}]}', "Feature: x has element with unexpected JSON type: Null"),
        ('{"signature_name": 1, "context": 1}', "'signature_name' key must be a string value."),
        ('{"context": {"x": null}}', "Feature: x has element with unexpected JSON type: Null"),
        ('{"examples": 1, "context": 1}', "Example must be JSON object but got JSON Number"),
    ],
)
def test_refusals(body: str, expected: str) -> None:
    message = refusal(body)
    assert message == expected or message.endswith(f" not formatted correctly. {expected}")


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3)
FEATURES = (
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3)
    | st.lists(st.floats(width=32, allow_nan=False, allow_subnormal=False), min_size=1, max_size=3)
    | st.lists(st.text(st.characters(codec="utf-8"), max_size=3), min_size=1, max_size=3)
)


@given(examples=st.lists(st.dictionaries(NAMES, FEATURES, max_size=3), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_values_arrive(examples: list[dict[str, Any]]) -> None:
    got = features(json.dumps({"examples": examples}))
    want = [
        {
            name: [value.encode() if isinstance(value, str) else value for value in values]
            for name, values in one.items()
        }
        for one in examples
    ]
    assert [{name: content[1] for name, content in one.items()} for one in got] == want


# --- answers


@pytest.mark.parametrize(
    ("classes", "scores", "expected"),
    [
        ([[b"a", b"b"]], [[0.5, 3.0]], b'{"results":[[["a",0.5],["b",3.0]]]}'),
        (None, [[0.25], [np.nan]], b'{"results":[[["",0.25]],[["",NaN]]]}'),
        # Text that is not UTF-8 leaves a client with the bytes alone: they are the original's.
        ([[b"\xff"], [b'"']], None, b'{\n    "results": [[["\xff", 0.0]], [["\\"", 0.0]]\n    ]\n}'),
        ([[b"a"]], [[-np.inf]], b'{"results":[[["a",-Infinity]]]}'),
        (None, np.zeros((2, 0)), b'{"results":[[],[]]}'),
    ],
)
def test_classification(classes: Any, scores: Any, expected: bytes) -> None:
    labels = None if classes is None else np.array(classes, object)
    numbers = None if scores is None else np.array(scores, np.float32)
    assert format_classification(labels, numbers) == expected


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_regression(shape: tuple[int, ...]) -> None:
    values = np.array([2.0, 0.1, np.inf], np.float32).reshape(shape)
    assert format_regression(values) == b'{"results":[2.0,0.1,Infinity]}'


def test_no_results_are_an_error() -> None:
    with pytest.raises(InvalidArgumentError, match="Cannot convert empty ClassificationResults to JSON"):
        format_classification(None, np.zeros((0, 2), np.float32))
    with pytest.raises(InvalidArgumentError, match="Cannot convert empty RegressionResults to JSON"):
        format_regression(np.zeros(0, np.float32))
