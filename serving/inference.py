"""What TensorFlow Serving demands of the signatures and outputs of Classify and Regress.

Every check and text is the original's (``servables/tensorflow/classifier.cc``, ``regressor.cc``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidArgumentError
from ..signature import Signature
from ..wire.tensors import dtype_of

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Classification:
    """Labels (bytes) and scores (float32), both of shape (batch, classes); either may be missing."""

    classes: NDArray[Any] | None
    scores: NDArray[Any] | None


def check_method(signature: Signature, kind: str, expected: str) -> None:
    """Hold a signature to a method name; ``kind`` is ``classification`` or ``regression``."""
    if signature.method_name != expected:
        raise InvalidArgumentError(
            f"Expected {kind} signature method_name to be {expected}. Was: {signature.method_name}"
        )


def check_classify_signature(signature: Signature) -> list[str]:
    """The outputs to fetch for a classification: ``classes``, ``scores`` or both."""
    if len(signature.inputs) != 1:
        raise InvalidArgumentError("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise InvalidArgumentError(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise InvalidArgumentError(f"No classification inputs found in SignatureDef: {signature}")
    names = [name for name in ("classes", "scores") if name in signature.outputs]
    if not names:
        raise InvalidArgumentError(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {signature}"
        )
    return names


def check_regress_signature(signature: Signature) -> list[str]:
    """The output to fetch for a regression: ``outputs``."""
    if len(signature.inputs) != 1:
        raise InvalidArgumentError("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise InvalidArgumentError("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise InvalidArgumentError(f"No regression inputs found in SignatureDef: {signature}")
    if "outputs" not in signature.outputs:
        raise InvalidArgumentError(f"No regression outputs found in SignatureDef: {signature}")
    return ["outputs"]


def to_classification(outputs: Arrays, count: int) -> Classification:
    """The outputs of a run on ``count`` examples as labels and scores."""
    classes, scores = outputs.get("classes"), outputs.get("scores")
    for name, array, kind, wanted in (("classes", classes, "O", "DT_STRING"), ("scores", scores, "f", "DT_FLOAT")):
        if array is None:
            continue
        if array.ndim != 2:
            raise InvalidArgumentError(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
        if (array.dtype.kind, array.dtype.itemsize) != (kind, np.dtype(object if kind == "O" else np.float32).itemsize):
            raise InvalidArgumentError(f"Expected {name} Tensor of {wanted}. Got: {_dtype(array)}")
        if len(array) != count:
            raise InvalidArgumentError(f"Expected {name} output batch size of {count}. Got: {len(array)}")
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise InvalidArgumentError(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    return Classification(classes, scores)


def to_regression(outputs: Arrays, count: int) -> NDArray[Any]:
    """The output of a run on ``count`` examples as float32 of shape (count,)."""
    (array,) = outputs.values()
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] != 1):
        raise InvalidArgumentError(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(array)}"
        )
    if len(array) != count:
        raise InvalidArgumentError(f"Input batch size did not match output batch size: {count} vs. {len(array)}")
    if array.dtype != np.float32:
        raise InvalidArgumentError(f"Expected output Tensor of DT_FLOAT.  Got: {_dtype(array)}")
    return array.ravel()


def _shape(array: NDArray[Any]) -> str:
    return f"[{','.join(map(str, array.shape))}]"


def _dtype(array: NDArray[Any]) -> str:
    return f"DT_{dtype_of(array).wire_name.upper()}"
