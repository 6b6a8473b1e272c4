"""Warm-up: the requests that a version folder brings along are run before the version is called loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from ..errors import Code, InvalidArgumentError, ServableError, UnimplementedError
from ..manifest import WARMUP_REQUESTS
from ..wire import messages
from ..wire.records import read_records
from .monitoring import Monitor

MAX_RECORDS = 1000

# A record that is none is shown up to here.
_MAX_SHOWN = 64

_METHODS = {
    "classify_log": "Classify",
    "regress_log": "Regress",
    "predict_log": "Predict",
    "multi_inference_log": "MultiInference",
}

_E = TypeVar("_E", bound=ServableError)


@dataclass(frozen=True)
class Warmup:
    """Whether warm-up requests are run, and how often each."""

    enabled: bool = True
    iterations: int = 1


def read(folder: Path) -> Iterator[Any]:
    """The PredictionLog messages of a version folder, in their order; none where it has no such file.

    Raises `InvalidArgumentError` for a record that is no such message and for too many of them, and
    what `read_records` raises.
    """
    path = folder / WARMUP_REQUESTS
    if not _exists(path):
        return
    for i, record in enumerate(read_records(path)):
        if i == MAX_RECORDS:
            raise InvalidArgumentError(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
        try:
            log = messages.PredictionLog.FromString(record)
        except DecodeError as error:
            raise InvalidArgumentError(f"Failed to parse warmup record: {_shown(record)} from {path}") from error
        yield log


def replay(
    folder: Path, servable_name: str, run: Callable[[str, Any], object], iterations: int, monitor: Monitor
) -> int:
    """Hand each request of a version folder to ``run``, ``iterations`` times; how many records there were.

    ``run`` takes the method's name (``Predict``) and the request, which names the model, no version and
    no label. Raises what `read` raises, `UnimplementedError` for logs of other calls, and what ``run``
    raises with the file and the record's number before its text.
    """
    path = folder / WARMUP_REQUESTS
    if not _exists(path):
        return 0
    start = perf_counter()
    count, code = 0, Code.UNKNOWN
    try:
        for count, log in enumerate(read(folder), 1):
            try:
                _run(log, servable_name, run, iterations)
            except ServableError as error:
                raise _renamed(error, f"{path}: record {count}: {error}") from error
        code = Code.OK
    except ServableError as error:
        code = error.code
        raise
    finally:
        monitor.warmed_up(str(folder), perf_counter() - start, count, code)
    return count


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return True  # it may; reading it says what is wrong


def _run(log: Any, servable_name: str, run: Callable[[str, Any], object], iterations: int) -> None:
    kind = log.WhichOneof("log_type")
    if kind is None:
        return
    if kind not in _METHODS:
        number = log.DESCRIPTOR.fields_by_name[kind].number
        raise UnimplementedError(f"Unsupported log_type for warmup: {number}")
    request = getattr(log, kind).request
    # The file may have been made for another name, and for a version that is not this one.
    for holder in request.tasks if kind == "multi_inference_log" else [request]:
        holder.model_spec.name = servable_name
        holder.model_spec.ClearField("version_choice")
    for _ in range(iterations):
        run(_METHODS[kind], request)


def _renamed(error: _E, message: str) -> _E:
    """The same error with another text; not by its constructor, which may take other things than a text."""
    renamed = type(error).__new__(type(error), message)
    renamed.__dict__.update(vars(error))
    return renamed


def _shown(record: bytes) -> str:
    """The beginning of a record, printable."""
    return repr(record[:_MAX_SHOWN])[2:-1] + ("..." if len(record) > _MAX_SHOWN else "")
