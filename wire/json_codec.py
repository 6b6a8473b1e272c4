"""The JSON of TensorFlow Serving's REST API: Predict requests and responses, and errors.

Row format is ``{"instances": [...]}`` → ``{"predictions": [...]}``, columnar format
``{"inputs": ...}`` → ``{"outputs": ...}``. Strings may travel as ``{"b64": "..."}``, and do so in
responses where the output's name ends in ``_bytes``. NaN, Infinity and -Infinity are bare words, as
the original reads and writes them. Message texts are the original's.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import InvalidArgumentError, ServableError
from ..signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from .json_tensors import carries, exact_array, fast_array, is_b64, to_array
from .json_text import debug, parse
from .tensors import dtype_of

_TOP_LEVEL = (b'"signature_name"', b'"instances"', b'"inputs"')


@dataclass(frozen=True)
class PredictBody:
    """A parsed Predict request: the signature's name ("" if none was given) and the whole document.

    ``plain`` says that the text holds no true or false, which NumPy would take for 1 and 0.
    """

    signature_name: str
    document: dict[str, Any]
    plain: bool

    @property
    def row(self) -> bool:
        """Whether the request is in row format; the response answers in the same."""
        return "instances" in self.document

    def arrays(self, signature: Signature) -> dict[str, NDArray[Any]]:
        """The input tensors of ``signature``, shaped by the JSON's own nesting.

        Raises `InvalidArgumentError` for values that do not fit and `UnimplementedError` for dtypes
        that JSON cannot carry, with TensorFlow Serving's texts.
        """
        if not signature.inputs:
            name = "DEFAULT" if signature.name == DEFAULT_SIGNATURE else signature.name
            raise InvalidArgumentError(f"Failed to get input map for signature: {name}")
        if self.row and "inputs" in self.document:
            raise InvalidArgumentError(
                f"JSON Value: {debug(self.document)} Not formatted correctly expecting only one of 'inputs' or "
                "'instances' keys to exist "
            )
        if self.row:
            return _from_instances(self.document, signature.inputs, self.plain)
        if "inputs" not in self.document:
            raise InvalidArgumentError("Missing 'inputs' or 'instances' key")
        return _from_inputs(self.document["inputs"], signature.inputs, self.plain)


def parse_predict(body: bytes) -> PredictBody:
    """Parse the body of ``:predict``; `InvalidArgumentError` for bad JSON or a bad signature name.

    The values are looked at when the signature is known, as the original does: the model is looked up
    in between.
    """
    request = parse(body, first_wins=any(body.count(key) > 1 for key in _TOP_LEVEL))
    if not isinstance(request, dict):
        raise InvalidArgumentError(f"JSON Value: {debug(request)} Is not object")
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise InvalidArgumentError(
            f"JSON Value: {debug(request)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return PredictBody(name, request, plain=b"true" not in body and b"false" not in body)


def _from_instances(document: dict[str, Any], specs: Mapping[str, TensorSpec], plain: bool) -> dict[str, NDArray[Any]]:
    values = document["instances"]
    if not isinstance(values, list):
        raise InvalidArgumentError(f"JSON Value: {debug(document)} Expecting 'instances' to be an list/array")
    if not values:
        raise InvalidArgumentError(f"JSON Value: {debug(document)} No values in 'instances' array")
    if isinstance(values[0], dict) and not is_b64(values[0]):
        return _from_objects(values, specs, plain)
    if len(specs) > 1:
        raise InvalidArgumentError(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    ((name, spec),) = specs.items()
    fast = fast_array(values, spec, plain)
    if fast is not None:
        return {name: fast}
    rows: list[NDArray[Any]] = []
    for i, item in enumerate(values):
        if isinstance(item, dict) and not is_b64(item):
            raise InvalidArgumentError(f"Expecting value/list but got object at item {i} of input list")
        _append_row(rows, item, spec, f"element: {i}")
    return {name: np.stack(rows)}


def _from_objects(values: list[Any], specs: Mapping[str, TensorSpec], plain: bool) -> dict[str, NDArray[Any]]:
    rows: dict[str, list[Any]] = {name: [] for name in specs}
    for i, item in enumerate(values):
        if not isinstance(item, dict) or is_b64(item):
            raise InvalidArgumentError(f"Expecting object but got list at item {i} of input list")
        for key in item:
            if key not in specs:
                raise InvalidArgumentError(
                    f"Failed to process element: {i} key: {key} of 'instances' list. Error: INVALID_ARGUMENT: "
                    f"JSON object: does not have named input: {key}"
                )
        if item.keys() != specs.keys():
            raise InvalidArgumentError(
                f"Failed to process element: {i} of 'instances' list. JSON object: {debug(item)} keys must be equal "
                f"to: {','.join(sorted(specs))}"
            )
        for key, value in item.items():
            rows[key].append(value)
    return {name: _column(name, rows[name], spec, plain) for name, spec in specs.items()}


def _column(name: str, values: list[Any], spec: TensorSpec, plain: bool) -> NDArray[Any]:
    fast = fast_array(values, spec, plain)
    if fast is not None:
        return fast
    tensors: list[NDArray[Any]] = []
    for i, value in enumerate(values):
        _append_row(tensors, value, spec, f"element: {i} key: {name}")
    return np.stack(tensors)


def _append_row(rows: list[NDArray[Any]], value: Any, spec: TensorSpec, where: str) -> None:
    """Convert one instance and hold its shape against the first one's; errors say which it is."""
    try:
        row = exact_array(value, spec)
        first = rows[0] if rows else row
        if row.size != first.size:
            raise InvalidArgumentError(f"Expecting tensor size: {first.size} but got: {row.size}")
        if row.shape != first.shape:
            raise InvalidArgumentError(f"Expecting shape {_shape(first)} but got: {_shape(row)}")
    except ServableError as error:
        raise InvalidArgumentError(
            f"Failed to process {where} of 'instances' list. Error: {error.code.name}: {error}"
        ) from None
    rows.append(row)


def _shape(array: NDArray[Any]) -> str:
    return f"[{','.join(map(str, array.shape))}]"


def _from_inputs(values: Any, specs: Mapping[str, TensorSpec], plain: bool) -> dict[str, NDArray[Any]]:
    if not isinstance(values, dict) or is_b64(values):
        if len(specs) > 1:
            raise InvalidArgumentError(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        ((name, spec),) = specs.items()
        return {name: to_array(values, spec, plain)}
    for name in specs:
        if name not in values:
            raise InvalidArgumentError(f"Missing named input: {name} in 'inputs' object.")
    return {name: to_array(values[name], spec, plain) for name, spec in specs.items()}


def format_predict(outputs: Mapping[str, NDArray[Any]], *, row: bool) -> bytes:
    """The body of a Predict response; a single output is written bare, without its name.

    Raises `InvalidArgumentError` for dtypes that JSON cannot carry and, in row format, for outputs
    without a common batch dimension.
    """
    if not outputs:
        raise InvalidArgumentError("Cannot convert empty tensor map to JSON")
    for array in outputs.values():
        if array.size and not carries(dtype_of(array).name):
            raise InvalidArgumentError(f"Failed to write JSON value for tensor type: {dtype_of(array).wire_name}")
    if row:
        _check_batch(outputs)
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        value = _plain(name, array)
    elif row:
        columns = {name: _plain(name, array) for name, array in outputs.items()}
        count = len(next(iter(outputs.values())))
        value = [{name: column[i] for name, column in columns.items()} for i in range(count)]
    else:
        value = {name: _plain(name, array) for name, array in outputs.items()}
    return _dump({"predictions" if row else "outputs": value})


def _check_batch(outputs: Mapping[str, NDArray[Any]]) -> None:
    expected: int | None = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise InvalidArgumentError(f"Tensor name: {name} has no shape information ")
        expected = len(array) if expected is None else expected
        if len(array) != expected:
            raise InvalidArgumentError(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {expected}"
            )


def _plain(name: str, array: NDArray[Any]) -> Any:
    """What `_dump` writes for one output: a finite numeric array as it is, lists otherwise."""
    if array.dtype.kind == "O":
        return _strings(array, as_b64=name.endswith("_bytes")).tolist()
    if not array.size or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        return array.tolist()
    return np.ascontiguousarray(array) if array.ndim else array.item()


def _strings(array: NDArray[Any], *, as_b64: bool) -> NDArray[Any]:
    def one(value: bytes) -> Any:
        return {"b64": base64.b64encode(value).decode()} if as_b64 else value.decode("utf-8", "surrogateescape")

    converted = np.empty(array.size, dtype=object)
    converted[:] = [one(value) for value in array.ravel().tolist()]
    return converted.reshape(array.shape)


def _dump(value: Any) -> bytes:
    if _only_arrays(value):
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    text = json.dumps(value, ensure_ascii=False, default=lambda item: item.tolist())
    return text.encode("utf-8", "surrogateescape")


def _only_arrays(value: Any) -> bool:
    """Whether orjson can write it: it would turn NaN into null and refuses invalid UTF-8."""
    if isinstance(value, dict):
        return all(_only_arrays(item) for item in value.values())
    return isinstance(value, np.ndarray)


def format_predict_request(inputs: Mapping[str, NDArray[Any]], signature_name: str = "") -> bytes:
    """The body of a Predict request in columnar format; strings travel as ``{"b64": ...}``.

    float16 and bfloat16 arrays are refused with `InvalidArgumentError`: the REST API cannot carry them.
    """
    for name, array in inputs.items():
        if not carries(dtype_of(array).name):
            raise InvalidArgumentError(
                f"input {name!r}: the REST API cannot carry {dtype_of(array).name}; use gRPC for this model"
            )
    columns = {
        name: _strings(array, as_b64=True).tolist() if array.dtype.kind == "O" else _plain(name, array)
        for name, array in inputs.items()
    }
    head = {"signature_name": signature_name} if signature_name else {}
    if all(array.dtype.kind != "O" for array in inputs.values()) and _only_arrays(columns):
        return orjson.dumps({**head, "inputs": columns}, option=orjson.OPT_SERIALIZE_NUMPY)
    return _dump({**head, "inputs": columns})


def parse_predict_response(body: bytes, specs: Mapping[str, TensorSpec]) -> dict[str, NDArray[Any]]:
    """The outputs of a columnar Predict response as arrays of the dtypes that ``specs`` say.

    Raises `InvalidArgumentError` if the body is not such a response.
    """
    response = parse(body)
    if not isinstance(response, dict) or "outputs" not in response:
        raise InvalidArgumentError(f"not a Predict response: {debug(response)}")
    value = response["outputs"]
    named = value if len(specs) > 1 else {next(iter(specs)): value}
    missing = [name for name in specs if not isinstance(named, dict) or name not in named]
    if missing:
        raise InvalidArgumentError(f"the Predict response lacks the outputs {', '.join(missing)}")
    return {name: to_array(named[name], spec, plain=True) for name, spec in specs.items()}
