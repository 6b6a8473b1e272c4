"""Counters and histograms under TensorFlow Serving's names, and the page that Prometheus reads.

Names, labels and bucket limits are the original's (``servables/tensorflow/util.cc``); ``servable_…``
metrics are our own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Protocol

from ..errors import Code
from . import families
from .engines import Engine
from .families import Family, Histogram

DEFAULT_PATH = "/monitoring/prometheus/metrics"
CONTENT_TYPE = b"text/plain"

# Any name can be asked for; beyond these many, names that were never served share one cell.
MAX_UNKNOWN_MODELS = 100
MAX_UNKNOWN_LENGTH = 256
OTHER_MODELS = "(other)"

_LATENCY_US = tuple(10 * 1.8**i for i in range(33))
_EXAMPLES = tuple(float(2**i) for i in range(15))
_BATCH_WAIT_US = tuple(100 * 1.2**i for i in range(52))
_BATCH_ROWS = tuple(float(2**i) for i in range(14))
_STAGE_S = (*(a * 10.0**b for b in range(-5, 1) for a in (1, 2.5, 5)), 10.0)

# The runtime label that the original gives to a run of a session.
_RUNTIME_LABEL = {"tensorflow": "TF1"}
_METHODS = {name: name for name in ("Predict", "Classify", "Regress", "MultiInference")}
_METHODS |= {name.lower(): name for name in _METHODS}
STAGES = ("queue", "decode", "run", "encode")

# Finished requests are counted in bundles of so many.
_FOLD_AT = 256


class Cancellable(Protocol):
    """What a call waits for."""

    queued: bool
    cancelled: bool


class Call:
    """One request on its way: what it asks for, and when each stage of it ended.

    ``api`` is the method (``Predict``, or ``predict`` over REST; "" for a GET), ``entrypoint`` is
    ``GRPC`` or ``REST``.
    """

    __slots__ = (
        *("_last_ns", "api", "engine", "entrypoint", "examples", "handed_over_ns", "model"),
        *("pooled", "request_id", "stages_ns", "started_ns", "task", "version"),
    )

    def __init__(self, api: str, entrypoint: str, started_ns: int | None = None) -> None:
        self.api = api
        self.entrypoint = entrypoint
        self.request_id = ""
        self.pooled = False  # whether it runs in a thread of its own
        self.task: Cancellable | None = None  # of a batcher
        self.handed_over_ns = 0  # when it became one: its thread's own time until then
        self.model = ""
        self.examples = 0
        self.version = 0
        self.engine: Engine | None = None
        self.started_ns = self._last_ns = started_ns or perf_counter_ns()
        self.stages_ns = [0, 0, 0, 0]

    def lap(self, stage: int, now: int = 0) -> None:
        """Count the time since the last call as one of ``STAGES``, given by its position."""
        now = now or perf_counter_ns()
        self.stages_ns[stage] += now - self._last_ns
        self._last_ns = now

    def abandon(self) -> bool:
        """Nobody waits for the answer any more: do not run what is still queued; whether it was."""
        if self.task is None or not self.task.queued:
            return False
        self.task.cancelled = True
        return True

    @property
    def duration_ns(self) -> int:
        """From the start to the last stage that ended."""
        return self._last_ns - self.started_ns


QUEUE, DECODE, RUN, ENCODE = range(4)


class Monitor:
    """All metrics of a server; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._finished: deque[tuple[Call, Code, bool]] = deque()
        self._models: set[str] = set()
        self._unknown: set[str] = set()
        self._run_histograms: dict[tuple[str, int, str, str], tuple[Histogram, list[Histogram]]] = {}
        serving = "/tensorflow/serving"
        self._requests = Family(f"{serving}/request_count", "counter", ("model_name", "status"))
        self._latency = Family(
            f"{serving}/request_latency", "histogram", ("model_name", "API", "entrypoint"), _LATENCY_US
        )
        self._runs = Family(f"{serving}/runtime_latency", "histogram", ("model_name", "API", "runtime"), _LATENCY_US)
        self._examples = Family(f"{serving}/request_example_counts", "histogram", ("model",), _EXAMPLES)
        self._example_total = Family(f"{serving}/request_example_count_total", "counter", ("model",))
        self._graph_runs = Family("/tensorflow/core/graph_runs", "counter", ())
        self._graph_time = Family("/tensorflow/core/graph_run_time_usecs", "counter", ())
        self._loads = Family("/tensorflow/cc/saved_model/load_attempt_count", "counter", ("model_path", "status"))
        self._load_time = Family("/tensorflow/cc/saved_model/load_latency", "counter", ("model_path",))
        warmup = ("model_path", "status")
        self._warmups = Family(f"{serving}/model_warmup_latency", "histogram", warmup, _LATENCY_US)
        self._warmup_records = Family(f"{serving}/model_warmup_records_read", "counter", warmup)
        batching = f"{serving}/batching_session"
        self._batch_waits = Family(f"{batching}/queuing_latency", "histogram", ("thread_pool_name",), _BATCH_WAIT_US)
        self._batch_runs = Family(f"{batching}/wrapped_run_count", "counter", ())
        self._batch_padding = Family(f"{batching}/padding_size", "histogram", ("execution_batch_size",), _BATCH_ROWS)
        self._batch_inputs = Family(f"{batching}/input_batch_size", "histogram", (), _BATCH_ROWS)
        self._batch_sizes = Family(f"{batching}/processed_batch_size", "histogram", (), _BATCH_ROWS)
        self._stages = Family(
            "servable_request_stage_seconds", "histogram", ("model_name", "version", "runtime", "stage"), _STAGE_S
        )
        self._engines = Family(
            "servable_engine_info", "gauge", ("model_name", "version", "signature", "runtime", "reason")
        )
        self._families = [family for family in vars(self).values() if isinstance(family, Family)]
        self._families.append(Family(f"{serving}/request_log_count", "counter", ("model_name", "status_code")))
        self._families.append(Family(f"{serving}/mlmd_map", "gauge", ("model_name", "version")))

    def finish(self, call: Call, code: Code, *, counted: bool = True) -> None:
        """Count a request that was answered with ``code``.

        Of calls that are not ``counted``, the original counts no more than MultiInference's examples.
        """
        self._finished.append((call, code, counted))
        if len(self._finished) >= _FOLD_AT:
            with self._lock:
                self._fold()

    def _fold(self) -> None:
        """Count the finished requests, under the lock: many at a time cost a fraction of one by one."""
        while self._finished:
            try:
                call, code, counted = self._finished.popleft()
            except IndexError:  # another thread folded the last one
                break
            model = self._model(call.model)
            if counted:
                self._requests.add((model, code.name))
                if code is Code.OK:
                    self._latency.add((model, call.api, call.entrypoint), call.duration_ns / 1000)
            elif call.examples and code is Code.OK:
                self._examples.add((model,), call.examples)
                self._example_total.add((model,), call.examples)
            self._count_run(call, model)

    def _count_run(self, call: Call, model: str) -> None:
        if call.engine is None:
            return
        runtime = call.engine.runtime
        key = (model, call.version, call.api, runtime)
        found = self._run_histograms.get(key)
        if found is None:
            # REST writes its verbs small, but not in this metric.
            runs = self._runs.histogram((model, _METHODS[call.api], _RUNTIME_LABEL.get(runtime, runtime)))
            labels = (model, str(call.version), runtime)
            found = runs, [self._stages.histogram((*labels, stage)) for stage in STAGES]
            self._run_histograms[key] = found
        runs, stages = found
        run_us = call.stages_ns[RUN] / 1000
        runs.add(run_us)
        for histogram, spent in zip(stages, call.stages_ns, strict=True):
            histogram.add(spent / 1e9)
        if runtime == "tensorflow":
            self._graph_runs.add(())
            self._graph_time.add((), run_us)

    def _model(self, name: str) -> str:
        """The label for a requested name, under the lock: the page must not grow with every typing error."""
        if name in self._models or name in self._unknown or not name:
            return name
        if len(self._unknown) >= MAX_UNKNOWN_MODELS or len(name) > MAX_UNKNOWN_LENGTH:
            return OTHER_MODELS
        self._unknown.add(name)
        return name

    def loaded(self, model: str, path: str, seconds: float, *, ok: bool) -> None:
        """Count an attempt to load a version's folder."""
        with self._lock:
            self._models.add(model)
            self._loads.add((path, "success" if ok else "fail"))
            self._load_time.add((path,), seconds * 1e6)

    def warmed_up(self, path: str, seconds: float, records: int, code: Code) -> None:
        """Count the warm-up of a version's folder, with how many records of it were read."""
        with self._lock:
            self._warmups.add((path, code.name), seconds * 1e6)
            self._warmup_records.add((path, code.name), records)

    def batch(self, size: int, padding: int, input_sizes: Sequence[int], waits_us: Sequence[float]) -> None:
        """Count a run of ``size`` rows, ``padding`` among them, and the tasks that waited for it."""
        with self._lock:
            self._batch_runs.add(())
            self._batch_padding.add((str(size),), padding)
            self._batch_sizes.add((), size)
            for input_size in input_sizes:
                self._batch_inputs.add((), input_size)
            for wait_us in waits_us:
                self._batch_waits.add(("",), wait_us)

    def engine(self, model: str, version: int, signature: str, engine: Engine) -> None:
        """Show which engine answers a signature, and why."""
        with self._lock:
            self._engines.add((model, str(version), signature, engine.runtime, engine.reason))

    def unloaded(self, model: str, version: int) -> None:
        """Show no more what was said of a version that is gone."""
        with self._lock:
            self._fold()
            self._engines.drop(lambda labels: labels[:2] == (model, str(version)))
            self._stages.drop(lambda labels: labels[:2] == (model, str(version)))
            for key in [key for key in self._run_histograms if key[:2] == (model, version)]:
                del self._run_histograms[key]

    def first_value(self, raw_name: str) -> int:
        """The first cell of a counter or gauge by its raw name; 0 if there is none."""
        name = families.clean_name(raw_name)
        with self._lock:
            self._fold()
            return next((family.first_value() for family in self._families if family.name == name), 0)

    def snapshot(self) -> families.Snapshot:
        """All metrics as they are now."""
        with self._lock:
            self._fold()
            return [family.copy() for family in self._families]

    def page(self) -> bytes:
        """All metrics as text."""
        return families.page(self.snapshot())
