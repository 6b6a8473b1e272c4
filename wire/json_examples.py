"""The JSON of ``:classify`` and ``:regress``: examples in, classes and scores or values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidArgumentError
from . import messages
from .json_codec import signature_name
from .json_layout import as_original
from .json_output import number_text, string_text
from .json_reader import members
from .json_tensors import flush, is_b64, type_name, unbase64
from .json_text import debug, parse

# What error texts call the kinds of a feature.
_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


@dataclass(frozen=True)
class ExamplesBody:
    """A parsed Classify or Regress request.

    ``signature_name`` is empty if the request names none. ``examples`` are serialized tf.Examples; a
    context stands before each of them in the same bytes, which merges the two when they are parsed.
    """

    signature_name: str
    examples: list[bytes]


def parse_examples(body: bytes) -> ExamplesBody:
    """Parse the body of ``:classify`` or ``:regress``.

    Raises `InvalidArgumentError`, with TensorFlow Serving's texts, for bad JSON and for whatever does not
    go into a tf.Example.
    """
    document = parse(body)
    name = signature_name(document)
    context = _example(document["context"]) if "context" in document else b""
    if "examples" not in document:
        raise InvalidArgumentError(
            f"JSON Value: {debug(document)} When method is classify, key 'examples' is expected and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise InvalidArgumentError(f"JSON Value: {debug(document)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise InvalidArgumentError(f"JSON Value: {debug(document)} 'examples' value is an empty array")
    return ExamplesBody(name, [context + _example(example) for example in examples])


def _example(value: Any) -> bytes:
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"Example must be JSON object but got JSON {type_name(value)}")
    example = messages.Example()
    for key, content in members(value):
        name = key.partition("\0")[0]  # to the original a name ends there
        kind, values = _feature(name, content)
        if not name.isascii() and not _is_utf8(name):
            continue
        feature = example.features.feature[name]
        feature.Clear()  # of several values for one name the last one stays
        if kind is not None:
            getattr(feature, kind).value.extend(values)
    serialized: bytes = example.SerializeToString()
    return serialized


def _is_utf8(name: str) -> bool:
    """Whether a message can hold a name; if not, no model can ask for it either."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _feature(name: str, content: Any) -> tuple[str | None, Sequence[Any]]:
    """The field of a feature and what goes into it; an empty list has no field."""
    items = content if isinstance(content, list) else [content]
    kind: str | None = None
    values: list[Any] = []
    for item in items:
        own = _kind(name, item)
        if kind not in (None, own):
            raise InvalidArgumentError(f"Unexpected element type in feature: {name} expecting type: {_KINDS[kind]}")
        kind = own
        if isinstance(item, int) and item >= 2**63:
            raise InvalidArgumentError(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        values.append(_bytes(item) if own == "bytes_list" else int(item) if own == "int64_list" else item)
    if kind == "float_list":
        with np.errstate(over="ignore"):
            return kind, flush(np.array(values, np.float64).astype(np.float32)).tolist()
    return kind, values


def _kind(name: str, value: Any) -> str:
    if isinstance(value, float):
        return "float_list"
    if isinstance(value, int):
        return "int64_list"
    if isinstance(value, str) or is_b64(value):
        return "bytes_list"
    raise InvalidArgumentError(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")


def _bytes(value: Any) -> bytes:
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else unbase64(value["b64"])


def format_classification(classes: NDArray[Any] | None, scores: NDArray[Any] | None) -> bytes:
    """The body of a Classify response: for each example a list of its labels with their scores.

    ``classes`` is an object array (examples, classes) of bytes and ``scores`` a float32 array of the
    same shape; where one is missing, labels are "" and scores 0.0. Raises `InvalidArgumentError` if
    there are no examples.
    """
    given = scores if classes is None else classes
    if given is None or not len(given):
        raise InvalidArgumentError("Cannot convert empty ClassificationResults to JSON")
    labels = [b'""'] * given.size if classes is None else [string_text(label) for label in classes.ravel().tolist()]
    numbers = [b"0.0"] * given.size if scores is None else _numbers(scores)
    pairs = [b"[%b,%b]" % pair for pair in zip(labels, numbers, strict=True)]
    width = given.shape[1]
    rows = [b"[%b]" % b",".join(pairs[i * width : (i + 1) * width]) for i in range(len(given))]
    return as_original(b'{"results":[%b]}' % b",".join(rows), single_line=True)


def format_regression(values: NDArray[Any]) -> bytes:
    """The body of a Regress response from a float32 array (examples,) or (examples, 1).

    Raises `InvalidArgumentError` if there are no examples.
    """
    if not values.size:
        raise InvalidArgumentError("Cannot convert empty RegressionResults to JSON")
    return b'{"results":[%b]}' % b",".join(_numbers(values))


def _numbers(values: NDArray[Any]) -> list[bytes]:
    flat = values.ravel()
    return number_text(flat)[1:-1].split(b",") if flat.size else []
