"""What batching is told, and how the tensors of several requests become those of one run and back.

The parameters, rules and texts are TensorFlow Serving's (``batching_session.cc``, ``batching_util.cc``);
when what runs with what is the affair of `batch_queue`.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FailedPreconditionError, InvalidArgumentError
from ..wire import messages, text_config

Arrays = Mapping[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]

# Of each input, sorted by name: dtype and all dimensions but the first, or their number where they are padded.
Layout = tuple[tuple[str, np.dtype[Any], tuple[int, ...] | int], ...]

_MAX_PADDED_RANK = 6


@dataclass(frozen=True)
class BatchingParameters:
    """How requests wait for each other and run together; the fields are those of the message.

    ``num_batch_threads`` and ``thread_pool_name`` are the scheduler's, the others each version's own.
    Sizes are rows, that is examples, along the first dimension.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = os.cpu_count() or 1
    thread_pool_name: str = "batch_threads"
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int | None = None  # None: as max_batch_size

    @classmethod
    def read(cls, path: Path) -> BatchingParameters:
        """Parse a file in text format, unchecked; raises `InvalidArgumentError` if it cannot be parsed."""
        message = text_config.read(path, messages.BatchingParameters)
        given = {field.name: getattr(value, "value", value) for field, value in message.ListFields()}
        return cls(**given | {"allowed_batch_sizes": tuple(message.allowed_batch_sizes)})

    @property
    def execution_limit(self) -> int:
        """The most rows that one batch runs with, padding left out."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size is not None:
            return self.max_execution_batch_size
        return self.max_batch_size

    def padding(self, size: int) -> int:
        """How many rows bring a batch to the next allowed size; none beyond the largest."""
        place = bisect_left(self.allowed_batch_sizes, size)
        if not size or place == len(self.allowed_batch_sizes):
            return 0
        return self.allowed_batch_sizes[place] - size

    def refusal(self, size: int, batches: int, room: int, *, splits: bool) -> str | None:
        """Why a task that does not fit into the open batch may not be queued, or None.

        There are so many ``batches``, and room for so many rows in the last one.
        """
        most = max(self.max_enqueued_batches, 1)  # the original takes 0 for 1
        count = max(batches, 1)  # and counts an open batch even if it is empty
        text = "The batch scheduling queue to which this task was submitted is full; "
        if not splits:
            full = f"{text}currently {count} batches enqueued and max_enqueued_batches is {most}"
            return full if count >= most else None
        limit = self.execution_limit
        capacity = (most - count) * limit + room
        full = (
            f"{text}task size is {size} but scheduling capacity is only {capacity} "
            f"(num_enqueued_batches={count}, max_enqueued_batches={most}, "
            f"open_batch_size={limit - room}, max_execution_batch_size={limit})"
        )
        return full if size > capacity else None

    def check(self) -> None:
        """Raise `InvalidArgumentError` for what no version can be loaded with.

        The number of threads is not looked at: it counts only where the threads are started.
        """
        sizes = self.allowed_batch_sizes
        if sizes and sizes[-1] != self.max_batch_size:
            raise InvalidArgumentError(
                "Last entry in allowed_batch_sizes must match max_batch_size; "
                f"last entry was {sizes[-1]}; expected {self.max_batch_size}"
            )
        listed = ", ".join(map(str, sizes))
        if any(size < 1 for size in sizes):
            raise InvalidArgumentError(f"allowed_batch_sizes entries must be positive; were {listed}")
        if any(left >= right for left, right in pairwise(sizes)):
            raise InvalidArgumentError(f"allowed_batch_sizes entries must be monotonically increasing; were {listed}")
        least = 1 if self.enable_large_batch_splitting else 0
        _check_least("max_batch_size", self.max_batch_size, 1)
        _check_least("batch_timeout_micros", self.batch_timeout_micros, 0)
        _check_least("max_enqueued_batches", self.max_enqueued_batches, least)
        if self.max_execution_batch_size is not None:
            _check_least("max_execution_batch_size", self.max_execution_batch_size, 1)
        if self.execution_limit > self.max_batch_size:
            raise InvalidArgumentError(
                "max_execution_batch_size must not be larger than max_batch_size; "
                f"was {self.execution_limit}, and max_batch_size is {self.max_batch_size}"
            )


def read_checked(path: Path) -> BatchingParameters:
    """The parameters of a file; what is wrong with them is raised with the file's name before it."""
    parameters = BatchingParameters.read(path)
    try:
        parameters.check()
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{path}: {error}") from error
    return parameters


def check_threads(count: int) -> None:
    """Raise `InvalidArgumentError` for a number of threads that can run nothing."""
    if count < 1:
        raise InvalidArgumentError(f"num_batch_threads must be positive; was {count}")


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InvalidArgumentError(f"{name} must be {'positive' if least else 'non-negative'}; was {value}")


def count_rows(inputs: Arrays) -> int:
    """How many rows the inputs of a request have; raises `InvalidArgumentError` unless all have as many."""
    if not inputs:
        raise InvalidArgumentError("Batching Run() must have at least one input tensor")
    first = None
    for array in inputs.values():
        if not array.ndim:
            raise InvalidArgumentError("Batching Run() input tensors must have at least one dimension")
        if first is not None and len(array) != first:
            raise InvalidArgumentError("Batching Run() input tensors must have equal 0th-dimension size")
        first = len(array)
    assert first is not None
    return first


def layout(inputs: Arrays) -> Layout:
    """What has to be equal where requests run together."""
    return tuple(sorted((name, array.dtype, array.shape[1:]) for name, array in inputs.items()))


def padded_layout(exact: Layout) -> Layout:
    """The same where inputs are padded; what cannot be padded has to be equal nevertheless."""
    return tuple(
        (name, dtype, shape if isinstance(shape, int) or not _can_be_padded(shape) else len(shape))
        for name, dtype, shape in exact
    )


def _can_be_padded(shape: tuple[int, ...]) -> bool:
    return 0 not in shape and len(shape) < _MAX_PADDED_RANK


def merge(parts: Sequence[Arrays], padding: int) -> Arrays:
    """The inputs of a run: those of its parts one after another, then copies of the last part's first row."""
    if len(parts) == 1 and not padding:
        return parts[0]
    return {name: _concatenate([part[name] for part in parts], padding) for name in parts[0]}


def _concatenate(arrays: list[NDArray[Any]], padding: int) -> NDArray[Any]:
    if padding:
        arrays.append(np.repeat(arrays[-1][:1], padding, axis=0))
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) == 1:
        return np.concatenate(arrays)
    merged = np.empty((sum(map(len, arrays)), *map(max, *shapes)), arrays[0].dtype)
    begin = 0
    for array in arrays:
        rows = merged[begin : begin + len(array)]
        if rows.shape != array.shape:
            rows.fill(array.flat[0])
        rows[tuple(map(slice, array.shape))] = array
        begin += len(array)
    return merged


def split(outputs: Arrays, sizes: Sequence[int], padding: int) -> list[Outputs]:
    """The outputs of each part of a run; raises `FailedPreconditionError` if they have other rows than the inputs."""
    rows = sum(sizes) + padding
    for array in outputs.values():
        if not array.ndim:
            raise FailedPreconditionError("Batched output tensor has 0 dimensions")
        if len(array) != rows:
            raise FailedPreconditionError(
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes "
                "of the input tensors"
            )
    parts, begin = [], 0
    for size in sizes:
        parts.append({name: _rows(array, begin, begin + size) for name, array in outputs.items()})
        begin += size
    return parts


def _rows(array: NDArray[Any], begin: int, end: int) -> NDArray[Any]:
    part = array[begin:end]
    # A view would keep all of it in memory for as long as the slowest of many requests takes.
    return part if 2 * len(part) >= len(array) else part.copy()


def join(parts: Sequence[Outputs], names: Iterable[str]) -> Outputs:
    """The named outputs of a request, of which ``parts`` are the rows, in their order."""
    if len(parts) == 1:
        return {name: parts[0][name] for name in names}
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
