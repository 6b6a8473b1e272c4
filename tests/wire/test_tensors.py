"""Tensors on the wire, held against TensorFlow's own reader and writer of the same messages."""

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
from servable.wire import messages, tensors

# Written here anew, from TensorFlow's headers: name → (enum value, storage, TensorProto field).
TABLE = {
    "float32": (1, "float32", "float_val"),
    "float64": (2, "float64", "double_val"),
    "int32": (3, "int32", "int_val"),
    "uint8": (4, "uint8", "int_val"),
    "int16": (5, "int16", "int_val"),
    "int8": (6, "int8", "int_val"),
    "string": (7, "object", "string_val"),
    "complex64": (8, "complex64", "scomplex_val"),
    "int64": (9, "int64", "int64_val"),
    "bool": (10, "bool", "bool_val"),
    "qint8": (11, "int8", "int_val"),
    "quint8": (12, "uint8", "int_val"),
    "qint32": (13, "int32", "int_val"),
    "bfloat16": (14, "bfloat16", "half_val"),
    "qint16": (15, "int16", "int_val"),
    "quint16": (16, "uint16", "int_val"),
    "uint16": (17, "uint16", "int_val"),
    "complex128": (18, "complex128", "dcomplex_val"),
    "float16": (19, "float16", "half_val"),
    "uint32": (22, "uint32", "uint32_val"),
    "uint64": (23, "uint64", "uint64_val"),
}
# Types of less than a byte and of eight bits, for which TensorFlow has hardly a kernel: name → number, field.
SMALL = {
    "float8_e5m2": (24, "float8_val"),
    "float8_e4m3fn": (25, "float8_val"),
    "float8_e4m3fnuz": (26, "float8_val"),
    "float8_e4m3b11fnuz": (27, "float8_val"),
    "float8_e5m2fnuz": (28, "float8_val"),
    "int4": (29, "int_val"),
    "uint4": (30, "int_val"),
    "int2": (31, "int_val"),
    "uint2": (32, "int_val"),
    "float4_e2m1fn": (33, "tensor_content"),
}
NAMES = sorted(TABLE)
NUMERIC = [name for name in NAMES if name != "string"]
QUANTIZED = [name for name in NAMES if name.startswith("q")]
PLAIN = [name for name in NAMES if name not in QUANTIZED]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
EXAMPLES = settings(max_examples=25, deadline=None)


def storage(name: str) -> np.dtype[Any]:
    return BFLOAT16 if name == "bfloat16" else np.dtype(TABLE[name][1])


@st.composite
def arrays(draw: st.DrawFn, name: str) -> NDArray[Any]:
    if name == "bfloat16":
        return draw(npst.arrays(np.uint16, SHAPES)).view(BFLOAT16)
    if name == "string":
        return draw(npst.arrays(object, SHAPES, elements=st.binary(max_size=5), fill=st.just(b"")))
    return draw(npst.arrays(storage(name), SHAPES))


def tensorflow_reads(serialized: bytes, name: str) -> NDArray[Any]:
    """What TensorFlow's C++ makes of a serialized TensorProto; ValueError where it refuses it."""
    import tensorflow as tf

    try:
        tensor = tf.io.parse_tensor(serialized, tf.as_dtype(TABLE[name][0]))
    except tf.errors.OpError as error:
        raise ValueError(str(error)) from error
    if name in QUANTIZED:
        tensor = tf.bitcast(tensor, tf.as_dtype(TABLE[name][1]))
    value = tensor.numpy()
    return value if isinstance(value, np.ndarray) else np.array(value, storage(name))


def tensorflow_writes(array: NDArray[Any], name: str) -> bytes:
    import tensorflow as tf

    serialized: bytes = tf.io.serialize_tensor(tf.constant(array, tf.as_dtype(TABLE[name][0]))).numpy()
    return serialized


def assert_same(got: NDArray[Any], want: NDArray[Any]) -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if got.dtype == object:
        assert got.tolist() == want.tolist()
        return
    if got.dtype == BFLOAT16:  # NumPy does not know that its NaN is one
        got, want = got.view(np.uint16), want.view(np.uint16)
    np.testing.assert_array_equal(got, want)
    if got.dtype.kind == "f":  # minus zero equals zero
        real = ~np.isnan(want)
        np.testing.assert_array_equal(np.signbit(got[real]), np.signbit(want[real]))


def message(number: int, shape: list[int], **fields: Any) -> Any:
    proto = messages.TensorProto(dtype=number, **fields)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def test_the_table_is_complete() -> None:
    rows = {row.name: (row.number, row.numpy_name, row.field) for row in tensors.BY_NUMBER.values()}
    assert rows == TABLE | {name: (number, name, field) for name, (number, field) in SMALL.items()}
    assert tensors.BY_NAME.keys() == rows.keys()


@pytest.mark.parametrize("content", [False, True], ids=["typed", "content"])
@pytest.mark.parametrize("name", SMALL)
@given(data=st.data())
@EXAMPLES
def test_small_types_there_and_back(name: str, content: bool, data: st.DataObject) -> None:
    """Both directions against TensorFlow's own Python codec, byte for byte."""
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2, types_pb2

    number, _ = SMALL[name]
    assert types_pb2.DataType.Name(number) == f"DT_{name.upper()}"
    dtype = np.dtype(getattr(ml_dtypes, name))
    array = data.draw(npst.arrays(np.int32, SHAPES, elements=st.integers(-2, 1))).astype(dtype)
    ours = tensors.encode(array, name, content=content)
    np.testing.assert_array_equal(tensors.decode(ours).view(np.uint8), array.view(np.uint8))
    if array.size < 2:  # TensorFlow writes some of these types as longer arrays only
        return
    official = tf.make_tensor_proto(array)
    back = tensors.decode(messages.TensorProto.FromString(official.SerializeToString()))
    np.testing.assert_array_equal(back.view(np.uint8), array.view(np.uint8))
    if ours.tensor_content:  # make_ndarray knows float8_val not at all
        read = tf.make_ndarray(tensor_pb2.TensorProto.FromString(ours.SerializeToString()))
        np.testing.assert_array_equal(read.view(np.uint8), array.view(np.uint8))


@pytest.mark.parametrize("name", NAMES)
def test_names_are_tensorflows(name: str) -> None:
    import tensorflow as tf
    from tensorflow.core.framework import types_pb2

    row = tensors.BY_NAME[name]
    assert tf.as_dtype(row.number).name == name
    assert types_pb2.DataType.Name(row.number) == f"DT_{row.wire_name.upper()}"


@pytest.mark.parametrize("content", [False, True], ids=["typed", "content"])
@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@EXAMPLES
def test_tensorflow_reads_what_we_write(name: str, content: bool, data: st.DataObject) -> None:
    array = data.draw(arrays(name))
    proto = tensors.encode(array, name, content=content)
    field = TABLE[name][2]
    if array.size:
        assert bool(proto.tensor_content) is content
        per_value = 2 if "complex" in name else 1
        assert len(getattr(proto, field)) == (0 if proto.tensor_content else array.size * per_value)
    assert_same(tensorflow_reads(proto.SerializeToString(), name), array)


@pytest.mark.parametrize("name", PLAIN)
@given(data=st.data())
@EXAMPLES
def test_make_ndarray_reads_what_we_write(name: str, data: st.DataObject) -> None:
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    array = data.draw(arrays(name))
    proto = tensor_pb2.TensorProto.FromString(tensors.encode(array).SerializeToString())
    assert_same(tf.make_ndarray(proto), array)


@pytest.mark.parametrize("name", PLAIN)
@given(data=st.data())
@EXAMPLES
def test_we_read_what_tensorflow_writes(name: str, data: st.DataObject) -> None:
    array = data.draw(arrays(name))
    proto = messages.TensorProto.FromString(tensorflow_writes(array, name))
    assert_same(tensors.decode(proto), array)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@EXAMPLES
def test_we_read_what_make_tensor_proto_writes(name: str, data: st.DataObject) -> None:
    import tensorflow as tf

    array = data.draw(arrays(name))
    dtype = tf.as_dtype(TABLE[name][0])
    given_array = array.view(dtype.as_numpy_dtype) if name in QUANTIZED else array
    proto = tf.make_tensor_proto(given_array, dtype=dtype, shape=array.shape)
    assert_same(tensors.decode(messages.TensorProto.FromString(proto.SerializeToString())), array)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@EXAMPLES
def test_round_trip(name: str, data: st.DataObject) -> None:
    array = data.draw(arrays(name))
    assert_same(tensors.decode(tensors.encode(array, name)), array)
    assert_same(tensors.decode(tensors.encode(array, name, content=True)), array)


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "float_val": st.floats(width=32),
    "double_val": st.floats(),
    "int_val": st.integers(-(2**31), 2**31 - 1),
    "half_val": st.integers(-(2**31), 2**31 - 1),
    "string_val": st.binary(max_size=4),
    "scomplex_val": st.floats(width=32),
    "dcomplex_val": st.floats(),
    "int64_val": st.integers(-(2**63), 2**63 - 1),
    "bool_val": st.booleans(),
    "uint32_val": st.integers(0, 2**32 - 1),
    "uint64_val": st.integers(0, 2**64 - 1),
}


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_number_of_values_is_read_as_tensorflow_reads_it(name: str, data: st.DataObject) -> None:
    # Too few, none, too many; integers that do not fit the dtype.
    number, _, field = TABLE[name]
    shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
    values = data.draw(st.lists(VALUES[field], max_size=2 * int(np.prod(shape, dtype=int)) + 2))
    if "complex" in name and len(values) % 2:
        values.pop()  # half a number: TensorFlow reads past its end
    proto = message(number, shape, **{field: values})
    assert_same(tensors.decode(proto), tensorflow_reads(proto.SerializeToString(), name))


@pytest.mark.parametrize(
    ("name", "shape", "values", "expected"),
    [
        ("float32", [2, 2], [1, 2], [[1, 2], [2, 2]]),
        ("float32", [3], [], [0, 0, 0]),
        ("float32", [2], [1, 2, 3, 4], [1, 2]),
        ("float32", [], [], 0),
        ("float32", [], [7, 8], 7),
        ("float32", [0], [7], []),
        ("int8", [3], [127, 128, -129], [127, -128, 127]),
        ("uint8", [3], [255, 256, -1], [255, 0, 255]),
        ("bool", [3], [True], [True, True, True]),
        ("string", [3], [b"a", b"b"], [b"a", b"b", b"b"]),
        ("string", [2], [], [b"", b""]),
        ("complex64", [2], [1, 2], [1 + 2j, 1 + 2j]),
        ("float16", [2], [0x3C00], [1, 1]),
        ("bfloat16", [2], [0x3F80, 0x10000 + 0x4000], [1, 2]),
    ],
)
def test_short_long_and_missing_values(name: str, shape: list[int], values: list[Any], expected: Any) -> None:
    number, _, field = TABLE[name]
    got = tensors.decode(message(number, shape, **{field: values}))
    assert_same(got, np.array(expected, storage(name)).reshape(shape))


def test_values_of_another_field_do_not_count() -> None:
    assert tensors.decode(message(1, [2], int_val=[7, 7], double_val=[7.0])).tolist() == [0, 0]


def test_absent_shape_is_a_scalar() -> None:
    assert tensors.decode(messages.TensorProto(dtype=1, float_val=[2.5])).shape == ()
    assert tensors.encode(np.float32(2.5).reshape(())).HasField("tensor_shape")


@pytest.mark.parametrize("name", NUMERIC)
def test_content_is_a_view_of_the_message(name: str) -> None:
    proto = tensors.encode(np.arange(6).astype(storage(name)).reshape(2, 3), name, content=True)
    got = tensors.decode(proto)
    base: Any = got
    while isinstance(base, np.ndarray):
        base = base.base
    assert type(base) is bytes
    assert base == proto.tensor_content
    assert not got.flags.writeable


def string_content(*values: bytes) -> bytes:
    return bytes(len(value) for value in values) + b"".join(values)


@given(content=st.binary(min_size=1, max_size=8), count=st.integers(1, 4))
@settings(max_examples=400, deadline=None)
def test_string_content_is_read_or_refused_as_tensorflow_does(content: bytes, count: int) -> None:
    proto = message(7, [count], tensor_content=content)
    try:
        want = tensorflow_reads(proto.SerializeToString(), "string")
    except ValueError:
        with pytest.raises(InputError):
            tensors.decode(proto)
    else:
        assert_same(tensors.decode(proto), want)


def test_string_content_with_long_strings() -> None:
    long = b"x" * 300
    proto = message(7, [2], tensor_content=b"\xac\x02\x01" + long + b"y")
    assert tensors.decode(proto).tolist() == [long, b"y"]
    assert_same(tensors.decode(proto), tensorflow_reads(proto.SerializeToString(), "string"))


@pytest.mark.parametrize(
    ("proto", "expected"),
    [
        (message(0, [1]), "dtype 0 is not supported"),
        (message(20, [1]), "dtype 20 is not supported"),
        (message(21, [1]), "dtype 21 is not supported"),
        (message(4711, [1]), "dtype 4711 is not supported"),
        (message(101, [1]), "dtype 101 is not supported"),  # DT_FLOAT_REF
        (message(1, [-1], float_val=[1]), r"shape \[-1\] is not fully defined"),
        (message(1, [2, -3]), r"shape \[2, -3\] is not fully defined"),
        (messages.TensorProto(dtype=1, tensor_shape={"unknown_rank": True}), "not fully defined"),
        (message(1, [2], tensor_content=bytes(7)), r"holds 7 bytes, shape \[2\] of float32 needs 8"),
        (message(1, [2], tensor_content=bytes(9)), "holds 9 bytes"),
        (message(1, [2], tensor_content=bytes(16)), "holds 16 bytes"),
        (message(10, [2], tensor_content=bytes(1)), "holds 1 bytes"),
        (message(1, [2**40]), "does not fit"),
        (message(1, [2**31, 2**31]), "does not fit"),
        (message(6, [2**31 + 1]), "does not fit"),
        (message(7, [2**40], string_val=[b"x"]), "does not fit"),
        (message(2, [2**62, 2**62, 2**62]), "does not fit"),
        (message(7, [2], tensor_content=b"\x01"), "truncated"),
        (message(7, [1], tensor_content=b"\x80"), "truncated"),
        (message(7, [1], tensor_content=b"\xff" * 12), "truncated"),
        (message(7, [1], tensor_content=b"\x05ab"), "wrong length"),
        (message(7, [1], tensor_content=b"\x01abc"), "wrong length"),
        (message(7, [1], tensor_content=b"\xff\xff\xff\xff\xff\xff\xff\xff\x7fa"), "wrong length"),
    ],
)
def test_bad_messages_are_refused(proto: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        tensors.decode(proto)


@pytest.mark.parametrize(
    ("number", "count", "values"),
    [
        (1, tensors.MAX_FILL_BYTES // 4, {}),
        (1, tensors.MAX_FILL_BYTES // 4 + 1, {"float_val": [1.0]}),
        (2, tensors.MAX_FILL_BYTES // 8 + 2, {"double_val": [1.0, 2.0]}),
        (6, tensors.MAX_FILL_BYTES, {}),
        (7, tensors.MAX_FILL_BYTES // 8, {}),
        (7, tensors.MAX_FILL_BYTES // 16 + 1, {"string_val": [b"12345678"]}),
    ],
)
def test_as_many_values_are_filled_in_and_no_more(number: int, count: int, values: dict[str, Any]) -> None:
    assert tensors.decode(message(number, [count], **values)).shape == (count,)
    with pytest.raises(InputError, match="more than there are values"):
        tensors.decode(message(number, [count + 1], **values))


@pytest.mark.parametrize(
    "shape", [[2**62, 2**62, 0], [0, 2**62, 2**62], [1] * 33, [2**63 - 1, 0]], ids=["big 0", "0 big", "rank 33", "max"]
)
def test_shapes_that_numpy_cannot_hold_are_refused(shape: list[int]) -> None:
    with pytest.raises(InputError):
        tensors.decode(message(1, shape))
    with pytest.raises(InputError):
        tensors.decode(message(7, shape))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(2, "datetime64[s]"),
        np.zeros(2, "timedelta64[s]"),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2, ml_dtypes.float8_e3m4),
        np.zeros(2, np.longdouble),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_that_cannot_travel_are_refused(array: NDArray[Any]) -> None:
    with pytest.raises(InputError, match=r"cannot be sent; known: float32"):
        tensors.encode(array)


@pytest.mark.parametrize("values", [[b"a", 1], [None], [1.5, "a"], [[b"a"]]])
def test_objects_that_are_no_strings_are_refused(values: list[Any]) -> None:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    with pytest.raises(InputError, match="a string tensor holds bytes or text"):
        tensors.encode(array)


def test_text_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match="surrogate"):
        tensors.encode(np.array(["half a \ud83d pair"], dtype=object))


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([1.5], np.float32), "int8"),
        (np.array([300], np.int32), "qint8"),
        (np.array([1], np.int64), "float32"),
        (np.array([1], np.int64), "string"),
        (np.array([b"a"], object), "float32"),
        (np.array([1.5], np.float32), "float8_e5m2"),
    ],
)
def test_arrays_of_another_dtype_are_not_converted(array: NDArray[Any], dtype: str) -> None:
    with pytest.raises(InputError):
        tensors.encode(array, dtype)


@pytest.mark.parametrize("values", [np.array(["a", "\u00fc"]), np.array([b"a", "\u00fc".encode()]), ["a", b"\xc3\xbc"]])
def test_text_and_bytes_arrays_are_string_tensors(values: Any) -> None:
    array = values if isinstance(values, np.ndarray) else np.array(values, dtype=object)
    assert list(tensors.encode(array).string_val) == [b"a", b"\xc3\xbc"]


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("name", ["float32", "int64", "complex128", "float16"])
def test_layout_in_memory_does_not_matter(name: str, content: bool) -> None:
    array = np.arange(24).astype(name).reshape(2, 3, 4)
    for other in (
        np.asfortranarray(array),
        array.transpose(2, 0, 1).copy().transpose(1, 2, 0),
        np.repeat(array, 2, axis=1)[:, ::2],
        array.astype(array.dtype.newbyteorder(">")),
    ):
        assert_same(tensors.decode(tensors.encode(other, content=content)), array)


@pytest.mark.parametrize(("count", "length"), [(31, 124), (32, 128), (5000, 20000)])
def test_packed_length_of_more_than_one_byte(count: int, length: int) -> None:
    array = np.arange(count, dtype=np.float32)
    assert array.nbytes == length
    assert_same(tensors.decode(tensors.encode(array)), array)
