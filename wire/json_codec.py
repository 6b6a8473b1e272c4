"""The JSON of TensorFlow Serving's REST API: Predict requests and responses.

Row format is ``{"instances": [...]}`` → ``{"predictions": [...]}``, columnar format
``{"inputs": ...}`` → ``{"outputs": ...}``. Strings may travel as ``{"b64": "..."}``, and do so in
responses where the output's name ends in ``_bytes``. NaN, Infinity and -Infinity are bare words, as
the original reads and writes them. Message texts are the original's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from ..errors import InvalidArgumentError, ServableError
from ..signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from .json_numeric import read_numbers
from .json_output import format_predict, format_predict_request
from .json_reader import members
from .json_tensors import build, elements, fast_array, flush, from_numbers, is_b64, to_array
from .json_text import debug, parse_plain

__all__ = ["PredictBody", "format_predict", "format_predict_request", "parse_predict", "parse_predict_response"]


class PredictBody:
    """A parsed Predict request.

    ``signature_name`` is empty if the request names none; ``row`` is whether it is in row format, in
    which the response answers too.
    """

    signature_name: str
    row: bool

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._numbers = read_numbers(body)
        if self._numbers is not None:
            self.signature_name = self._numbers.signature_name
            self.row = self._numbers.key == "instances"
        else:
            self._document, self._plain = parse_plain(body)
            self.signature_name = signature_name(self._document)
            self.row = "instances" in self._document

    def arrays(self, signature: Signature) -> dict[str, NDArray[Any]]:
        """The input tensors of ``signature``, shaped by the JSON's own nesting.

        Raises `InvalidArgumentError` for values that do not fit and `UnimplementedError` for dtypes
        that JSON cannot carry, with TensorFlow Serving's texts.
        """
        if self._numbers is not None:
            spec = self._numbers.spec(signature.inputs)
            array = None if spec is None else from_numbers(self._numbers.values, spec)
            if spec is not None and array is not None:
                return {spec.name: flush(array)}
            # Something else than these numbers is expected; the whole document says what is wrong.
            self._document, self._plain = parse_plain(self._body)
        return {name: flush(array) for name, array in self._read(signature).items()}

    def _read(self, signature: Signature) -> dict[str, NDArray[Any]]:
        if not signature.inputs:
            name = "DEFAULT" if signature.name == DEFAULT_SIGNATURE else signature.name
            raise InvalidArgumentError(f"Failed to get input map for signature: {name}")
        if self.row and "inputs" in self._document:
            raise InvalidArgumentError(
                f"JSON Value: {debug(self._document)} Not formatted correctly expecting only one of 'inputs' or "
                "'instances' keys to exist "
            )
        if self.row:
            return _from_instances(self._document, signature.inputs, self._plain)
        if "inputs" not in self._document:
            raise InvalidArgumentError("Missing 'inputs' or 'instances' key")
        return _from_inputs(self._document["inputs"], signature.inputs, self._plain)


def parse_predict(body: bytes) -> PredictBody:
    """Parse the body of ``:predict``; `InvalidArgumentError` for bad JSON or a bad signature name.

    The values are looked at when the signature is known, as the original does: the model is looked up
    in between.
    """
    return PredictBody(body)


def signature_name(document: Any) -> str:
    """The signature that a request names, or "".

    Raises `InvalidArgumentError` if the request is no object, or the name no text.
    """
    if not isinstance(document, dict):
        raise InvalidArgumentError(f"JSON Value: {debug(document)} Is not object")
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise InvalidArgumentError(
            f"JSON Value: {debug(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def _from_instances(document: dict[str, Any], specs: Mapping[str, TensorSpec], plain: bool) -> dict[str, NDArray[Any]]:
    values = document["instances"]
    if not isinstance(values, list):
        raise InvalidArgumentError(f"JSON Value: {debug(document)} Expecting 'instances' to be an list/array")
    if not values:
        raise InvalidArgumentError(f"JSON Value: {debug(document)} No values in 'instances' array")
    if _is_row(values[0]):
        columns = _fast_columns(values, specs, plain)
        return _columns(values, specs) if columns is None else columns
    if len(specs) > 1 and not isinstance(values[0], dict):
        raise InvalidArgumentError(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    name = min(specs)
    fast = fast_array(values, specs[name], plain)
    if fast is not None:
        return {name: fast}
    column = _Column(specs[name])
    for i, item in enumerate(values):
        if _is_row(item):
            raise InvalidArgumentError(f"Expecting value/list but got object at item {i} of input list")
        column.append(item, f"element: {i}")
    return {name: column.array(len(values))}


def _is_row(item: Any) -> bool:
    """Whether an instance is an object of named values, and not one value."""
    return isinstance(item, dict) and not is_b64(item)


def _fast_columns(values: list[Any], specs: Mapping[str, TensorSpec], plain: bool) -> dict[str, NDArray[Any]] | None:
    """The rows column by column, or None if anything is wrong with them."""
    if not all(type(item) is dict and item.keys() == specs.keys() for item in values):
        return None
    columns: dict[str, NDArray[Any]] = {}
    for name, spec in specs.items():
        items = [item[name] for item in values]
        array = fast_array(items, spec, plain)
        if array is None:
            column = _Column(spec)
            try:
                for item in items:
                    column.append(item, name)
            except InvalidArgumentError:
                return None
            array = column.array(len(values))
        columns[name] = array
    return columns


def _columns(values: list[Any], specs: Mapping[str, TensorSpec]) -> dict[str, NDArray[Any]]:
    """The rows row by row, with the error for the first value that does not fit."""
    columns = {name: _Column(spec) for name, spec in specs.items()}
    for i, item in enumerate(values):
        if not _is_row(item):
            raise InvalidArgumentError(f"Expecting object but got list at item {i} of input list")
        keys = set()
        for key, value in members(item):
            name = key.partition("\0")[0]  # to the original a name ends there
            where = f"element: {i} key: {name}"
            if name not in columns:
                raise _failure(where, InvalidArgumentError(f"JSON object: does not have named input: {name}"))
            columns[name].append(value, where)
            keys.add(name)
        if keys != specs.keys():
            raise InvalidArgumentError(
                f"Failed to process element: {i} of 'instances' list. JSON object: {debug(item)} keys must be equal "
                f"to: {','.join(sorted(specs))}"
            )
    return {name: column.array(len(values)) for name, column in columns.items()}


class _Column:
    """One input in row format: the values of all instances, which have to be of one shape.

    Where a key is repeated in an instance all its values come in, as in the original; what is then too
    much is cut off at the end.
    """

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec
        self._shape: tuple[int, ...] | None = None
        self._size = 0
        self._flat: list[Any] = []

    def append(self, value: Any, where: str) -> None:
        """Add an instance; an error says ``where`` it is."""
        try:
            shape, flat = elements(value, self._spec)
            if self._shape is None:
                self._shape, self._size = shape, len(flat)
            if len(flat) != self._size:
                raise InvalidArgumentError(f"Expecting tensor size: {self._size} but got: {len(flat)}")
            if shape != self._shape:
                raise InvalidArgumentError(f"Expecting shape {_shape(self._shape)} but got: {_shape(shape)}")
        except ServableError as error:
            raise _failure(where, error) from None
        self._flat += flat

    def array(self, count: int) -> NDArray[Any]:
        """The values of ``count`` instances, stacked."""
        return build(self._flat, (count, *(self._shape or ())), self._spec)


def _failure(where: str, error: ServableError) -> InvalidArgumentError:
    return InvalidArgumentError(f"Failed to process {where} of 'instances' list. Error: {error.code.name}: {error}")


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _from_inputs(values: Any, specs: Mapping[str, TensorSpec], plain: bool) -> dict[str, NDArray[Any]]:
    if not isinstance(values, dict) or is_b64(values):
        if len(specs) > 1:
            raise InvalidArgumentError(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        ((name, spec),) = specs.items()
        return {name: to_array(values, spec, plain)}
    arrays: dict[str, NDArray[Any]] = {}
    for name, spec in specs.items():
        if name not in values:
            raise InvalidArgumentError(f"Missing named input: {name} in 'inputs' object.")
        arrays[name] = to_array(values[name], spec, plain)
    return arrays


def parse_predict_response(body: bytes, specs: Mapping[str, TensorSpec]) -> dict[str, NDArray[Any]]:
    """The outputs of a columnar Predict response as arrays of the dtypes that ``specs`` say.

    Raises `InvalidArgumentError` if the body is not such a response.
    """
    response, plain = parse_plain(body)
    if not isinstance(response, dict) or "outputs" not in response:
        raise InvalidArgumentError(f"not a Predict response: {debug(response)}")
    value = response["outputs"]
    named = value if len(specs) > 1 else {next(iter(specs)): value}
    missing = [name for name in specs if not isinstance(named, dict) or name not in named]
    if missing:
        raise InvalidArgumentError(f"the Predict response lacks the outputs {', '.join(missing)}")
    return {name: to_array(named[name], spec, plain) for name, spec in specs.items()}
