"""The `Client` interface, and what all transports share: checked inputs, unwrapped outputs, labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, InvalidArgumentError, NotFoundError, UnavailableError, nearest
from ..manifest import Preprocessing
from ..signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from ..wire import examples
from ..wire.tensors import BY_NAME, as_bytes
from .status import VersionStatus

Arrays = Mapping[str, NDArray[Any]]
DEFAULT_TIMEOUT_S = 30.0
MAX_TIMEOUT_S = 86400.0


@dataclass(frozen=True)
class Metadata:
    """What a target serves: the model's name, the version that answered, and its signatures.

    ``version`` is None for a bare file, which does not know its own.
    """

    model: str
    version: int | None
    signatures: Mapping[str, Signature]


class Client(ABC):
    """One model, wherever it runs. Use it as a context manager or call `close`; calls are thread-safe."""

    def __init__(self, target: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.target = target
        self.timeout_s = timeout_s
        self._known: Metadata | None = None
        self._closed = False

    def predict(
        self,
        inputs: Any,
        *,
        signature: str | None = None,
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
        allow_nan: bool = False,
    ) -> Any:
        """Run the model on a batch.

        ``inputs`` is a dict of arrays (or nested lists, numbers, bytes), or for a model with one input
        just the array; the first dimension is the batch. Returns a dict of ndarrays, or just the
        ndarray where there is one output. ``outputs`` names the outputs to return; ``timeout`` is in
        seconds, for each request that it takes.

        Inputs are checked before they travel: `InputError` shows what was expected and what was given.
        NaN is refused unless ``allow_nan``. Raises `NotFoundError` for an unknown model, version or
        signature, `UnavailableError` if the server cannot be reached, `DeadlineExceededError` on
        timeout, and the error that stands for whatever other status the server answers.
        """
        limit_s = self._limit(timeout)
        spec = self.signature(signature, timeout=limit_s)
        arrays = prepare_inputs(inputs, spec, allow_nan=allow_nan)
        for name in outputs or ():
            if name not in spec.outputs:
                raise NotFoundError(f"signature {spec.name!r} has no output {name!r}; {nearest(name, spec.outputs)}")
        results = self._run(spec, arrays, list(outputs or ()), limit_s)
        return next(iter(results.values())) if len(results) == 1 else dict(results)

    @abstractmethod
    def _run(self, signature: Signature, inputs: Arrays, outputs: Sequence[str], timeout_s: float) -> Arrays:
        """Carry checked inputs over the transport and bring the outputs back."""

    @abstractmethod
    def _ask_metadata(self, timeout_s: float) -> Metadata:
        """Bring name, version and signatures over the transport."""

    def metadata(self, *, timeout: float | None = None) -> Metadata:
        """Name, version and signatures of the model, asked for once and remembered.

        ``timeout`` is in seconds. Raises what `predict` raises.
        """
        limit_s = self._limit(timeout)
        if self._known is None:
            self._known = self._ask_metadata(limit_s)
        return self._known

    def status(self, *, timeout: float | None = None) -> list[VersionStatus]:
        """States of the target's version, or of all the model's versions, highest first.

        ``timeout`` is in seconds. Raises `NotFoundError` for a model or version that the server has
        never seen, and what `predict` raises for a server that cannot be asked.
        """
        return self._ask_status(self._limit(timeout))

    @abstractmethod
    def _ask_status(self, timeout_s: float) -> list[VersionStatus]:
        """Bring the states over the transport."""

    def _limit(self, timeout: float | None) -> float:
        """The time limit of a request in seconds, if this client may make one at all."""
        if self._closed:
            raise UnavailableError(f"the client of {self.target} is closed")
        limit_s = self.timeout_s if timeout is None else timeout
        if not 0 < limit_s <= MAX_TIMEOUT_S:
            raise InvalidArgumentError(f"the timeout is {limit_s} s; give more than 0 and at most {MAX_TIMEOUT_S:g} s")
        return limit_s

    @abstractmethod
    def _close(self) -> None:
        """Free the connection or the model."""

    def close(self) -> None:
        """Free the connection or the model; calling it twice is harmless, calling the model is an error."""
        if not self._closed:
            self._closed = True
            self._close()

    def signature(self, name: str | None = None, *, timeout: float | None = None) -> Signature:
        """One signature, ``serving_default`` where none is named.

        A model with just one signature needs no name for it, whatever it is called. Raises
        `NotFoundError` with the names that there are.
        """
        signatures = self.metadata(timeout=timeout).signatures
        if name is None and DEFAULT_SIGNATURE not in signatures and len(signatures) == 1:
            return next(iter(signatures.values()))
        key = name or DEFAULT_SIGNATURE
        if key not in signatures:
            raise NotFoundError(f"{self.target} has no signature {key!r}; {nearest(key, signatures)}")
        return signatures[key]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The class labels in the order of the scores, or an empty tuple if the model does not tell.

        A server is asked through the ``classify`` signature, which answers the labels of every class.
        """
        signatures = self.metadata().signatures
        if not {"classify", DEFAULT_SIGNATURE} <= signatures.keys() or "classes" not in signatures["classify"].outputs:
            return ()
        zeros = {name: _one_row(spec) for name, spec in signatures[DEFAULT_SIGNATURE].inputs.items()}
        classes = self.predict([examples.encode(zeros)], signature="classify", outputs=["classes"])
        return tuple(value.decode() for value in classes[0])

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How pictures are prepared, as far as it is known on this side."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _one_row(spec: TensorSpec) -> NDArray[Any]:
    shape = [size or 1 for size in (spec.shape or ())[1:]]
    return np.zeros(shape, BY_NAME[spec.dtype].numpy)


def prepare_inputs(inputs: Any, signature: Signature, *, allow_nan: bool = False) -> dict[str, NDArray[Any]]:
    """Inputs as arrays of the signature's names, dtypes and shapes.

    Casts that keep the kind of number are made (float64 → float32, int → float) and others refused.
    Raises `InputError` naming the input, what it takes and what was given.
    """
    if not isinstance(inputs, Mapping):
        if len(signature.inputs) != 1:
            names = ", ".join(signature.inputs)
            raise InputError(f"signature {signature.name!r} takes the inputs {names}: give a dict of arrays")
        inputs = {next(iter(signature.inputs)): inputs}
    if inputs.keys() != signature.inputs.keys():
        raise InputError(
            f"signature {signature.name!r} takes the inputs {', '.join(sorted(signature.inputs))}; "
            f"given: {', '.join(sorted(map(str, inputs))) or 'none'}"
        )
    return {name: _prepare(value, signature.inputs[name], allow_nan) for name, value in inputs.items()}


def _prepare(value: Any, spec: TensorSpec, allow_nan: bool) -> NDArray[Any]:
    array = _strings(value, spec) if spec.dtype == "string" else _numbers(value, spec)
    if not spec.accepts_shape(array.shape):
        raise InputError(f"input {spec} was given the shape {array.shape}{_batch_hint(array.shape, spec)}")
    if array.ndim and not len(array):
        raise InputError(f"input {spec} was given an empty batch; give at least one row")
    if not allow_nan and array.dtype.kind == "f" and np.isnan(array).any():
        first = [int(axis[0]) for axis in np.nonzero(np.isnan(array))]
        raise InputError(
            f"input {spec.name!r} holds NaN, first at {first}; clean the data (in Python, allow_nan=True sends it)"
        )
    return array


def _batch_hint(shape: tuple[int, ...], spec: TensorSpec) -> str:
    if spec.shape and spec.accepts_shape((1, *shape)):
        return "; the first dimension is the batch: give array[None]"
    return ""


def _numbers(value: Any, spec: TensorSpec) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"input {spec} was given a ragged list: {error}") from error
    row = BY_NAME.get(spec.dtype)
    if row is None:
        raise InputError(f"input {spec} has a dtype that cannot be sent")
    want = row.numpy
    if array.dtype.kind not in "biufc" and array.dtype != want:
        raise InputError(f"input {spec} was given {array.dtype.name} values")
    if array.dtype == want:
        return array
    lossy = not np.can_cast(array.dtype, want, "same_kind")
    if not lossy and want.kind in "iu" and array.size:
        limits = np.iinfo(want)
        lossy = bool(int(array.min()) < limits.min or int(array.max()) > limits.max)
    if lossy:
        raise InputError(f"input {spec} was given {array.dtype.name} values, which do not fit without loss")
    with np.errstate(over="ignore"):
        cast = array.astype(want)
    if want.kind == "f" and np.isinf(cast).any() and (np.isinf(cast) != np.isinf(array)).any():
        raise InputError(f"input {spec} was given numbers that are too large for {spec.dtype}")
    return cast


def _strings(value: Any, spec: TensorSpec) -> NDArray[Any]:
    if isinstance(value, (bytes, str)):
        raise InputError(f"input {spec} was given a single string; the first dimension is the batch: give [value]")
    array = np.array(value, dtype=object)
    flat = np.empty(array.size, dtype=object)
    try:
        flat[:] = [as_bytes(item) for item in array.ravel().tolist()]
    except InputError as error:
        raise InputError(f"input {spec}: {error}") from None
    return flat.reshape(array.shape)
