"""The three ways to read a request: whichever takes it, arrays and refusals are the same."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from servable.errors import ServableError
from servable.signature import Signature, TensorSpec
from servable.wire import json_codec, json_numeric, json_reader
from servable.wire.json_codec import parse_predict


def signature(**dtypes: str) -> Signature:
    """A signature whose inputs and outputs have these dtypes, of any shape."""
    specs = {name: TensorSpec(name, dtype, None) for name, dtype in dtypes.items()}
    return Signature(specs, specs)


SIGNATURES = [
    *(signature(x=dtype) for dtype in ("float32", "float64", "int8", "int64", "uint32", "uint64", "bool", "string")),
    signature(x="float16"),
    signature(x="float32", y="int32"),
    Signature({}, {}),
]
FLOAT = SIGNATURES[0]


@pytest.fixture(autouse=True)
def short_texts_too() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_numeric, "_WORTHWHILE_BYTES", 0)
        yield


def takes(body: str | bytes) -> bool:
    """Whether the short way takes this body."""
    if json_numeric.simdjson is None:
        pytest.skip("simdjson is not installed")
    return json_numeric.read_numbers(body.encode() if isinstance(body, str) else body) is not None


def outcome(body: bytes, spec: Signature) -> Any:
    """All that can be seen of a request."""
    try:
        request = parse_predict(body)
    except ServableError as error:
        return str(error)
    seen: list[Any] = [request.signature_name, request.row]
    try:
        arrays = request.arrays(spec)
    except ServableError as error:
        return [*seen, type(error), str(error)]
    for name, array in arrays.items():
        values = array.tolist() if array.dtype == object else array.tobytes()
        seen += [name, array.dtype, array.shape, values]
    return seen


def assert_all_agree(body: bytes) -> None:
    for spec in SIGNATURES:
        outcomes = [outcome(body, spec)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_numeric, "simdjson", None)
            outcomes.append(outcome(body, spec))
            if body:
                patch.setattr(json_codec, "parse_plain", lambda text: (json_reader.read(text), False))
                outcomes.append(outcome(body, spec))
        assert all(one == outcomes[0] for one in outcomes), outcomes


# --- what the short way takes


@pytest.mark.parametrize(
    "body",
    [
        '{"instances": [1.0, 2.5]}',
        '{"inputs": [[1, 2], [3, 4]]}',
        '{"inputs":{"x":[1]}}',
        '{"signature_name": "serving_default", "instances": [[[1.5]], [[-2e-5]]]}',
        '{"instances": [[1.5]], "signature_name": "a/b.c-d_1"}',
        ' {\n "inputs" : { "x" : [ [ 1 , 2 ] ] } , "signature_name" : "" } \n',
        '{"instances": [18446744073709551615]}',
        '{"instances": [{"x": [[1, 2]]}]}',
        '{"signature_name":"s","instances":[ {"x": [1.5]} ]}',
        '{"instances":[{"x": [1.5]}], "signature_name":"s"}',
        '{"inputs": {"x": [1.5]}, "signature_name":"s"}',
    ],
)
def test_taken(body: str) -> None:
    assert takes(body)
    assert_all_agree(body.encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[1]",
        b'{"instances": 1}',
        b'{"instances": []}',
        b'{"instances": [[], []]}',
        b'{"instances": [[1, 2], [3]]}',
        b'{"instances": [[1, 2], 3]}',
        b'{"instances": [1, [2]]}',
        b'{"instances": [[[1], [2]], [[3]], [[4], [5], [6]]]}',
        b'{"instances": [1, true]}',
        b'{"instances": [1, null]}',
        b'{"instances": [1, "2"]}',
        b'{"instances": [1, {}]}',
        b'{"instances": [1, NaN]}',
        b'{"instances": [1, 18446744073709551616]}',
        b'{"instances": [1.5, 0e400]}',
        b'{"instances": [1.7976931348623158e308]}',
        b'{"instances": [10e308]}',
        b'{"instances": [1]} x',
        b'{"instances": [1]}\0',
        b'{"instances": [1]',
        b'{"instances": [01]}',
        b'\xef\xbb\xbf{"instances": [1]}',
        b'{"instances": {"x": [1]}}',
        b'{"instances": [1], "instances": [2]}',
        b'{"instances": [1], "inputs": [2]}',
        b'{"inputs": {"x": [1], "x": [2]}}',
        b'{"inputs": {"x": [1], "y": [2]}}',
        b'{"signature_name": "a", "instances": [1], "signature_name": "b"}',
        b'{"signature_name": "a\\u0062", "instances": [1]}',
        b'{"signature_name": "[,]", "instances": [1]}',
        b'{"signature_name": 1, "instances": [1]}',
        b'{"instances": [{"x": [1]}, {"x": [2]}]}',
        b'{"instances": [{"x": [1], "x": [2]}]}',
        b'{"instances": [{"x": [1]}, {}]}',
        b'{"instances": [{"x": [1]}, 2]}',
        b'{"instances": [{"x": [[1], 2]}]}',
        b'{"instances": [{"x": [1], "signature_name": "s"}]}',
        b'{"inputs": {"x": [1], "signature_name": "s"}}',
        b'{"inputs": [{"x": [1]}]}',
        b'{"instances": [1], "more": []}',
        b'{"instances": [1], "signature_name": "a", "b": [1]}',
        b'{"inputs": {"x": [1]}, "signature_name": "a", "\xff": 1}',
        b'{"instances": %b1%b}' % (b"[" * 40, b"]" * 40),
    ],
    ids=lambda body: ascii(body)[2:40],
)
def test_left_to_the_others(body: bytes) -> None:
    assert not takes(body)
    assert_all_agree(body)


def test_without_simdjson_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_numeric, "simdjson", None)
    assert json_numeric.read_numbers(b'{"instances": [1.0]}') is None
    assert parse_predict(b'{"instances": [1.0]}').arrays(FLOAT)["x"].tolist() == [1.0]


def test_one_shape_does_not_promise_what_the_text_cannot_hold() -> None:
    """A regular list of this shape would be a thousand times as long as the text."""
    rows = ", ".join(["[1]"] * 10_000)
    body = f'{{"inputs": [[{", ".join(["1"] * 10_000)}], {rows}]}}'
    assert not takes(body)


def test_arrays_outlive_the_parser() -> None:
    first = parse_predict(b'{"instances": [1.0, 2.0]}').arrays(FLOAT)["x"]
    parse_predict(b'{"instances": [3.0, 4.0]}').arrays(FLOAT)
    assert first.tolist() == [1.0, 2.0]
    assert first.flags.writeable


def test_a_request_may_be_asked_twice() -> None:
    request = parse_predict(b'{"inputs": {"x": [1, 2]}}')
    for _ in range(2):
        assert request.arrays(signature(x="int64"))["x"].tolist() == [1, 2]
        assert request.arrays(FLOAT)["x"].tolist() == [1.0, 2.0]
        with pytest.raises(ServableError, match="Missing named input: y"):
            request.arrays(signature(y="float32"))


def test_threads_do_not_disturb_each_other() -> None:
    bodies = [json.dumps({"instances": [[k + 0.5] * 50] * 20}).encode() for k in range(4)]
    wrong: list[float] = []

    def work(k: int) -> None:
        for _ in range(200):
            values = set(parse_predict(bodies[k]).arrays(FLOAT)["x"].ravel().tolist())
            wrong.extend(values - {k + 0.5})

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- all ways agree

EDGES = """
    0 -0 -0.0 0e400 0e309 0E5 1e-400 1e-40 1e39 1e308 1.7976931348623157e308 1.7976931348623158e308 10e308 1e309 5e-324
    2147483647 2147483648 -2147483649 4294967295 4294967296 9223372036854775807 9223372036854775808
    -9223372036854775809 18446744073709551615 18446744073709551616 36028797018963969 9007199254740993 16777217
    NaN -Infinity Inf true null "a" {} [] [1] 01 1. 1e {"b64":"YQ=="} {"b64":"!"} {"a":1,"a":2}
"""
ORDINARY = st.integers(-300, 300).map(str) | st.floats(-1e6, 1e6).map(repr)
BLANKS = st.sampled_from(["", " ", "\n\t"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Bodies that are nearly what the short way takes."""
    shape = draw(npst.array_shapes(min_dims=0, max_dims=3, max_side=3))
    leaves = [draw(ORDINARY) for _ in range(int(np.prod(shape)))]
    if draw(st.booleans()):
        leaves[draw(st.integers(0, len(leaves) - 1))] = draw(st.sampled_from(EDGES.split()))
    blank = draw(BLANKS)
    for size in reversed(shape):
        leaves = [f"[{blank}{f'{blank},'.join(leaves[i : i + size])}]" for i in range(0, len(leaves), size)]
    value = leaves[0]
    form = draw(
        st.sampled_from(['"instances":{0}', '"inputs":{0}', '"inputs":{{"x":{0}}}', '"instances":[{{"x":{0}}}]'])
    )
    parts = [form.format(value)]
    names = st.sampled_from(
        ['"signature_name":"s"', '"signature_name" : "\\u0061"', '"more":"[1]"', '"inputs":{"y":1}']
    )
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, 1)), draw(names))
    return f"{{{blank}{f'{blank},'.join(parts)}{blank}}}{draw(st.sampled_from(['', '', ' ', 'x']))}".encode()


@given(body=requests())
@settings(max_examples=250, deadline=None)
def test_all_ways_agree(body: bytes) -> None:
    assert_all_agree(body)


@given(body=requests(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_all_ways_agree_on_damaged_bodies(body: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(body) - 1))
    put = data.draw(st.sampled_from([b"", b"[", b"]", b",", b'"', b"{", b"}", b"-", b".", b"e", b"\0", b"\xff", b"1"]))
    assert_all_agree(body[:at] + put + body[at + data.draw(st.integers(0, 1)) :])


@given(values=npst.arrays(np.float64, npst.array_shapes(max_dims=4, max_side=4), elements=st.floats(allow_nan=False)))
@example(values=np.array([1.7976931348623157e308, -0.0, 2.2250738585072014e-308]))
@settings(max_examples=150, deadline=None)
def test_pythons_numbers_come_back(values: Any) -> None:
    body = json.dumps({"inputs": values.tolist()}).encode()
    want = np.where(np.abs(values) < np.finfo(np.float64).tiny, np.copysign(0.0, values), values)
    for text in (body, body + b" x"):
        got = parse_predict(text).arrays(signature(x="float64"))["x"]
        assert got.shape == values.shape
        assert got.tobytes() == want.tobytes()
