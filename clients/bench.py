"""Latency and accuracy of each artifact of a version, side by side on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from .. import metrics, runtimes
from ..errors import DataLossError, InvalidArgumentError, MissingExtraError
from ..manifest import WARMUP_REQUESTS, Artifact, Manifest
from ..runtimes import Runtime, RuntimeOptions
from ..signature import Signature
from ..twin import Arrays, Twin
from ..wire import messages, tensors
from ..wire.records import read_records

WARMUP_RUNS = 20
ACCURACY_BATCH = 125
ONE_THREAD = RuntimeOptions(threads=1)

Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class LabelledData:
    """Inputs and targets to measure the task metric on; ``metric`` names one of ``servable.metrics``."""

    inputs: NDArray[Any]
    targets: NDArray[Any]
    metric: str


@dataclass(frozen=True)
class BenchResult:
    """One artifact on one thread, one sample a run.

    Times are in milliseconds, ``bytes`` the size on disk. ``init_ms`` is loading the file, the engine
    having been imported before. Percentiles are nearest-rank over all timed runs.
    """

    artifact: str
    runtime: str
    bytes: int
    init_ms: float
    runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    metric: str | None = None
    metric_value: float | None = None


def percentile(sorted_values: list[float], percent: float) -> float:
    """Nearest-rank percentile of ascending values.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 50)
    2.0
    >>> percentile([1.0, 2.0, 3.0, 4.0], 99)
    4.0
    """
    rank = max(1, -(-len(sorted_values) * percent // 100))
    return sorted_values[int(rank) - 1]


def bench_version(
    folder: Path,
    manifest: Manifest,
    data: LabelledData | None,
    duration_s: float = 1.0,
    skipped: Callable[[Artifact, MissingExtraError], None] = lambda *_: None,
) -> Iterator[BenchResult]:
    """Time every artifact of a version folder for ``duration_s`` each, one after the other.

    Artifacts whose engine is not installed go to ``skipped``. Without labelled data the input is the
    version's first warm-up request, or one row of zeros, and no metric is given.
    """
    if not 0 < duration_s < math.inf:
        raise InvalidArgumentError(f"the duration is {duration_s} s; give a positive number of seconds")
    for artifact in manifest.artifacts:
        try:
            manifest.check_artifact(folder, artifact)
            yield _bench_artifact(folder / artifact.path, artifact, manifest, data, duration_s)
        except MissingExtraError as error:
            skipped(artifact, error)


def _bench_artifact(
    path: Path, artifact: Artifact, manifest: Manifest, data: LabelledData | None, duration_s: float
) -> BenchResult:
    runtimes.load(path, ONE_THREAD).close()  # imports the engine
    started = time.perf_counter_ns()
    with runtimes.load(path, ONE_THREAD) as runtime:
        init_ns = time.perf_counter_ns() - started
        base = artifact.signatures[0]
        signature = manifest.signatures[base]
        run = runtime.run if _is_plain(runtime, artifact, signature) else Twin(manifest, runtime, artifact).run
        (name, *_) = signature.inputs
        rows = {name: data.inputs} if data else _sample(path if path.is_dir() else path.parent, signature)
        times = sorted(_time_runs(partial(run, base), rows, duration_s))
        value = _measure(partial(run, base), name, data) if data else None
        return BenchResult(
            artifact=artifact.label,
            runtime=runtime.name,
            bytes=artifact.bytes,
            init_ms=init_ns / 1e6,
            runs=len(times),
            p50_ms=percentile(times, 50),
            p90_ms=percentile(times, 90),
            p99_ms=percentile(times, 99),
            metric=data.metric if data else None,
            metric_value=value,
        )


def _is_plain(runtime: Runtime, artifact: Artifact, signature: Signature) -> bool:
    """Whether the file can be asked as it is: by the signature's name, dtypes and any number of rows."""
    own = runtime.signatures.get(signature.name)
    return (
        own is not None
        and artifact.batch == "dynamic"
        and all(spec.dtype == own.inputs[name].dtype for name, spec in signature.inputs.items())
        and all(spec.dtype == own.outputs[name].dtype for name, spec in signature.outputs.items())
    )


def _sample(folder: Path, signature: Signature) -> Arrays:
    """The first row of the signature's warm-up request; zeros where the version brings none along."""
    path = folder / WARMUP_REQUESTS
    with suppress(DecodeError, DataLossError):  # a damaged file is its server's matter
        for record in read_records(path) if path.is_file() else ():
            request = messages.PredictionLog.FromString(record).predict_log.request
            if request.model_spec.signature_name == signature.name and request.inputs.keys() == signature.inputs.keys():
                return {name: tensors.decode(tensor)[:1] for name, tensor in request.inputs.items()}
    return _zeros(signature)


def _zeros(signature: Signature) -> dict[str, NDArray[Any]]:
    """One row of zeros, or of empty strings, for each input; free dimensions are 1."""
    rows = {}
    for name, spec in signature.inputs.items():
        shape = (1, *(size or 1 for size in (spec.shape or ())[1:]))
        rows[name] = np.full(shape, b"", object) if spec.dtype == "string" else np.zeros(shape, spec.dtype)
    return rows


def _time_runs(run: Run, rows: Arrays, duration_s: float) -> list[float]:
    count = min(len(next(iter(rows.values()))), 100)
    samples = [{name: array[i : i + 1] for name, array in rows.items()} for i in range(count)]
    for i in range(WARMUP_RUNS):
        run(samples[i % count])
    times: list[float] = []
    end = time.perf_counter() + duration_s
    while time.perf_counter() < end:
        sample = samples[len(times) % count]
        started = time.perf_counter_ns()
        run(sample)
        times.append((time.perf_counter_ns() - started) / 1e6)
    return times


def _measure(run: Run, name: str, data: LabelledData) -> float:
    parts = [
        next(iter(run({name: data.inputs[i : i + ACCURACY_BATCH]}).values()))
        for i in range(0, len(data.inputs), ACCURACY_BATCH)
    ]
    return metrics.compute(data.metric, np.concatenate(parts), data.targets)
