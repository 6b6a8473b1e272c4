"""tf.Example messages, held against TensorFlow's own classes and parser."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from servable.errors import InputError
from servable.signature import TensorSpec
from servable.wire import examples, messages

SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
FLOATS = npst.arrays(np.float32, SHAPES)
INTEGERS = npst.arrays(np.int64, SHAPES)
STRINGS = npst.arrays(object, SHAPES, elements=st.binary(max_size=4), fill=st.just(b""))
FEATURES = st.dictionaries(st.text(max_size=5), st.one_of(FLOATS, INTEGERS, STRINGS), min_size=1, max_size=3)
SPECS = {"x": TensorSpec("x", "float32", (None, 2)), "n": TensorSpec("n", "int64", (None,))}


def official(features: dict[str, NDArray[Any]]) -> Any:
    """The same example in TensorFlow's class."""
    import tensorflow as tf

    kinds = {
        "f": lambda flat: tf.train.Feature(float_list=tf.train.FloatList(value=flat)),
        "i": lambda flat: tf.train.Feature(int64_list=tf.train.Int64List(value=flat)),
        "O": lambda flat: tf.train.Feature(bytes_list=tf.train.BytesList(value=flat)),
    }
    feature = {name: kinds[array.dtype.kind](array.ravel().tolist()) for name, array in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=feature))


def tensorflow_parses(serialized: list[bytes], specs: dict[str, TensorSpec]) -> dict[str, NDArray[Any]]:
    """What tf.io.parse_example makes of a batch; ValueError where it refuses it."""
    import tensorflow as tf

    features = {
        name: tf.io.FixedLenFeature(list((spec.shape or ())[1:]), tf.as_dtype(spec.dtype))
        for name, spec in specs.items()
    }
    try:
        parsed = tf.io.parse_example(np.array(serialized, dtype=object), features)
    except tf.errors.OpError as error:
        raise ValueError(str(error)) from error
    return {name: tensor.numpy() for name, tensor in parsed.items()}


@given(features=FEATURES)
@settings(max_examples=60, deadline=None)
def test_encoded_example_is_the_official_one(features: dict[str, NDArray[Any]]) -> None:
    import tensorflow as tf

    got = tf.train.Example.FromString(examples.encode(features))
    want = official(features)
    assert got.SerializeToString(deterministic=True) == want.SerializeToString(deterministic=True)


@given(features=FEATURES, rows=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_decoded_batch_is_what_tensorflow_parses(features: dict[str, NDArray[Any]], rows: int) -> None:
    specs = {
        name: TensorSpec(name, "string" if array.dtype == object else array.dtype.name, (None, *array.shape))
        for name, array in features.items()
    }
    serialized = [official(features).SerializeToString()] * rows
    got, want = examples.decode(serialized, specs), tensorflow_parses(serialized, specs)
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == want[name].dtype
        assert got[name].shape == want[name].shape
        np.testing.assert_array_equal(got[name], want[name])
        np.testing.assert_array_equal(got[name][:1].reshape(features[name].shape), features[name])


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, 2], np.uint8),
        np.array([True, False]),
        np.array([0.5], np.float16),
        np.array([0.5], np.float64),
        np.array(["a", "\u00fc"]),
        np.array([b"a"]),
        np.array(7),
        np.array([2**63 - 1], np.uint64),
    ],
    ids=lambda array: str(array.dtype),
)
def test_other_dtypes_travel_as_the_nearest_kind(array: NDArray[Any]) -> None:
    kind = {"u": "int64", "b": "int64", "f": "float32", "U": "string", "S": "string", "i": "int64"}[array.dtype.kind]
    spec = TensorSpec("x", kind, (None, *array.shape))
    got = tensorflow_parses([examples.encode({"x": array})], {"x": spec})["x"][0]
    want = [text.encode() if isinstance(text, str) else text for text in array.ravel().tolist()]
    assert np.ravel(got).tolist() == want


@pytest.mark.parametrize(
    "array",
    [
        np.array([1j]),
        np.array([2**63], np.uint64),
        np.array([1], "datetime64[s]"),
        np.array([1.0], ml_dtypes.bfloat16),
        np.array([1, None], dtype=object),
    ],
    ids=lambda array: str(array.dtype),
)
def test_what_an_example_cannot_hold_is_refused(array: NDArray[Any]) -> None:
    with pytest.raises(InputError):
        examples.encode({"x": array})


def serialized(**features: Any) -> bytes:
    return examples.encode({name: np.asarray(value) for name, value in features.items()})


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def unpacked() -> bytes:
    """GOOD with one tag for each value, as writers of old wrote lists."""
    floats = field(2, b"".join(b"\x0d" + np.float32(value).tobytes() for value in (1.0, 2.0)))
    integers = field(3, b"\x08\x07")
    return field(1, field(1, field(1, b"x") + field(2, floats)) + field(1, field(1, b"n") + field(2, integers)))


GOOD = serialized(x=[1.0, 2.0], n=7)
NO_KIND = messages.Example()
NO_KIND.features.feature["x"].SetInParent()
NO_KIND.features.feature["n"].int64_list.value.append(7)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (b"no example at all", "Could not parse example input, value: "),
        (GOOD[:-3], "Could not parse example input, value: "),
        (b"", r"Feature: (x \(data type: float\)|n \(data type: int64\)) is required but could not be found"),
        (serialized(x=[1.0, 2.0]), r"Feature: n \(data type: int64\) is required but could not be found"),
        (serialized(n=7), r"Feature: x \(data type: float\) is required but could not be found"),
        (NO_KIND.SerializeToString(), r"Feature: x \(data type: float\) is required but could not be found"),
        (
            serialized(x=[1, 2], n=7),
            r"Key: x, Index: \d.  Data types don't match. Data type: int64 but expected type: float",
        ),
        (serialized(x=["a", "b"], n=7), r"Key: x, Index: \d.  Data types don't match. Data type: string but expected"),
        (
            serialized(x=[1.0, 2.0], n=7.0),
            r"Key: n, Index: \d.  Data types don't match. Data type: float but expected type: int64",
        ),
        (serialized(x=[1.0], n=7), r"Key: x, Index: \d.  Number of float values != expected.  Values size: 1"),
        (serialized(x=[1.0, 2.0, 3.0], n=7), r"Values size: 3 but output shape: \[2\]"),
        (serialized(x=[1.0, 2.0], n=[7, 8]), r"Values size: 2 but output shape: \[\]"),
        (serialized(x=[[1.0, 2.0], [1.0, 2.0]], n=7), "Values size: 4"),
    ],
)
@pytest.mark.parametrize("index", [0, 1])
def test_what_tensorflow_refuses_is_refused_in_its_words(bad: bytes, expected: str, index: int) -> None:
    batch = [bad, GOOD] if index == 0 else [GOOD, bad]
    with pytest.raises(ValueError, match=expected):
        tensorflow_parses(batch, SPECS)
    with pytest.raises(InputError, match=expected) as caught:
        examples.decode(batch, SPECS)
    assert "Index" not in str(caught.value) or f"Index: {index}." in str(caught.value)


@pytest.mark.parametrize(
    "good",
    [
        serialized(x=[1.0, 2.0], n=7, extra=["ignored"]),
        # A later example of the same message wins, as context and example do when they are joined.
        serialized(x=[9.0, 9.0, 9.0], n=1) + GOOD,
        serialized(x=[9.0, 9.0]) + serialized(n=3),
        unpacked(),
    ],
)
def test_what_tensorflow_accepts_is_accepted(good: bytes) -> None:
    got, want = examples.decode([good], SPECS), tensorflow_parses([good], SPECS)
    for name in SPECS:
        np.testing.assert_array_equal(got[name], want[name])


def test_empty_batch_has_the_shape_and_dtype_of_the_specs() -> None:
    specs = {**SPECS, "s": TensorSpec("s", "string", (None, 3, 1))}
    got = examples.decode([], specs)
    assert {name: (array.shape, array.dtype) for name, array in got.items()} == {
        "x": ((0, 2), np.float32),
        "n": ((0,), np.int64),
        "s": ((0, 3, 1), np.dtype(object)),
    }


@pytest.mark.parametrize("shape", [None, (None, None), (None, 2, None)])
def test_input_without_a_fixed_shape_is_refused(shape: tuple[int | None, ...] | None) -> None:
    with pytest.raises(InputError, match="'x' has no fixed shape"):
        examples.decode([GOOD], {"x": TensorSpec("x", "float32", shape)})


@pytest.mark.parametrize(("dtype", "value"), [("int32", 2**31), ("int8", -129), ("uint8", -1), ("uint64", -1)])
def test_integers_that_do_not_fit_the_input_are_refused(dtype: str, value: int) -> None:
    with pytest.raises(InputError, match="input 'x': "):
        examples.decode([serialized(x=[value])], {"x": TensorSpec("x", dtype, (None, 1))})


@pytest.mark.parametrize("dtype", ["complex64", "bfloat16"])
def test_dtypes_that_an_example_cannot_hold_are_refused(dtype: str) -> None:
    with pytest.raises(InputError, match=dtype):
        examples.decode([serialized(x=[1.0])], {"x": TensorSpec("x", dtype, (None, 1))})
