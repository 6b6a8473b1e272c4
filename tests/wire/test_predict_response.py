"""The response that is written at once is the one that the official messages would be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from tensorflow_serving.apis import predict_pb2

from servable.errors import InputError
from servable.wire import tensors
from servable.wire.predict_response import serialize

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
PLAIN = [
    *("float32", "float64", "int32", "uint8", "int16", "int8", "complex64", "int64", "bool", "uint16"),
    *("complex128", "float16", "uint32", "uint64", "string", "bfloat16"),
]
QUANTIZED = {"qint8": "int8", "quint8": "uint8", "qint32": "int32", "qint16": "int16", "quint16": "uint16"}


@st.composite
def outputs(draw: st.DrawFn) -> dict[str, tuple[NDArray[Any], str]]:
    found = {}
    for alias in draw(st.lists(st.text(max_size=20), max_size=4, unique=True)):
        dtype = draw(st.sampled_from([*PLAIN, *QUANTIZED]))
        if dtype == "string":
            array = draw(npst.arrays(object, SHAPES, elements=st.binary(max_size=200), fill=st.just(b"")))
        elif dtype == "bfloat16":
            array = draw(npst.arrays(np.uint16, SHAPES)).view(tensors.BY_NAME["bfloat16"].numpy)
        else:
            array = draw(npst.arrays(QUANTIZED.get(dtype, dtype), SHAPES))
        found[alias] = (array, dtype)
    return found


@given(
    name=st.text(max_size=200),
    version=st.integers(-(2**63), 2**63 - 1),
    signature=st.text(max_size=20),
    arrays=outputs(),
    content=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_the_official_message_reads_it(
    name: str, version: int, signature: str, arrays: dict[str, tuple[NDArray[Any], str]], content: bool
) -> None:
    response = predict_pb2.PredictResponse.FromString(serialize(name, version, signature, arrays, content=content))
    expected = predict_pb2.PredictResponse()
    expected.model_spec.name = name
    expected.model_spec.version.value = version
    expected.model_spec.signature_name = signature
    for alias, (array, dtype) in arrays.items():
        expected.outputs[alias].ParseFromString(tensors.encode(array, dtype, content=content).SerializeToString())
    # As bytes: NaN equals nothing.
    assert response.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


@pytest.mark.parametrize("size", [0, 1, 31, 32, 4095, 4096, 600_000])
@pytest.mark.parametrize("content", [False, True])
def test_lengths_of_one_to_four_bytes(size: int, content: bool) -> None:
    array = np.arange(size, dtype=np.float32)
    message = serialize("m", 1, "s", {"y": (array, "float32")}, content=content)
    tensor = predict_pb2.PredictResponse.FromString(message).outputs["y"]
    values = np.frombuffer(tensor.tensor_content, np.float32) if content else np.array(tensor.float_val, np.float32)
    np.testing.assert_array_equal(values, array)
    assert [dim.size for dim in tensor.tensor_shape.dim] == [size]


def test_memory_that_is_not_in_a_row() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    tensor = predict_pb2.PredictResponse.FromString(
        serialize("m", 1, "s", {"y": (array, "float32")}, content=False)
    ).outputs["y"]
    assert list(tensor.float_val) == array.ravel().tolist()


def test_a_dtype_that_cannot_travel() -> None:
    with pytest.raises(InputError, match="cannot be sent"):
        serialize("m", 1, "s", {"y": (np.zeros(1, np.longdouble), "float32")}, content=False)
