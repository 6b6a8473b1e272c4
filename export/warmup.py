"""Warm-up requests for a version: one of each signature, which any server runs before it serves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..manifest import WARMUP_REQUESTS
from ..signature import CLASSIFY_METHOD, REGRESS_METHOD
from ..wire import messages, tensors
from ..wire.records import write_records
from .cases import Case


def write(cases: Iterable[Case], model: str, folder: Path) -> None:
    """Write the first sample of each case as a PredictionLog; a file that is there already is kept.

    Format: TensorFlow Serving, SavedModel Warmup: a TFRecord file of PredictionLog messages.
    """
    path = folder / WARMUP_REQUESTS
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    write_records(path, [_log(case, model).SerializeToString() for case in cases])


def _log(case: Case, model: str) -> Any:
    """The request that a client would send with this sample."""
    log = messages.PredictionLog()
    method = case.signature.method_name
    if method in (CLASSIFY_METHOD, REGRESS_METHOD):
        request = (log.classify_log if method == CLASSIFY_METHOD else log.regress_log).request
        (serialized,) = case.inputs.values()
        request.input.example_list.examples.add().ParseFromString(serialized[0])
    else:
        request = log.predict_log.request
        for name, array in case.inputs.items():
            tensors.encode_into(request.inputs[name], array[:1], case.signature.inputs[name].dtype)
    request.model_spec.name = model
    request.model_spec.signature_name = case.signature.name
    return log
