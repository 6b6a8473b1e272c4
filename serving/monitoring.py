"""Counters and histograms under TensorFlow Serving's names, and the page that Prometheus reads.

Names, labels, bucket limits and the page's format are the original's (``util/prometheus_exporter.cc``,
``servables/tensorflow/util.cc``); ``servable_…`` metrics are our own.
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from time import perf_counter_ns

from ..errors import Code
from .engines import Engine

DEFAULT_PATH = "/monitoring/prometheus/metrics"
CONTENT_TYPE = b"text/plain"

# Any name can be asked for; beyond these many, names that were never served share one cell.
MAX_UNKNOWN_MODELS = 100
MAX_UNKNOWN_LENGTH = 256
OTHER_MODELS = "(other)"

_LATENCY_US = tuple(10 * 1.8**i for i in range(33))
_EXAMPLES = tuple(float(2**i) for i in range(15))
_STAGE_S = (*(a * 10.0**b for b in range(-5, 1) for a in (1, 2.5, 5)), 10.0)

# The runtime label that the original gives to a run of a session.
_RUNTIME_LABEL = {"tensorflow": "TF1"}
_METHODS = {name: name for name in ("Predict", "Classify", "Regress", "MultiInference")}
_METHODS |= {name.lower(): name for name in _METHODS}
STAGES = ("queue", "decode", "run", "encode")

# Finished requests are counted in bundles of so many.
_FOLD_AT = 256

_NAME_CHAR = re.compile(r"[^a-zA-Z0-9_]")
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class _Histogram:
    """Counts of values by bucket; a limit is the exclusive upper bound of its bucket."""

    __slots__ = ("counts", "limits", "total")

    def __init__(self, limits: Sequence[float]) -> None:
        self.limits = limits
        self.counts = [0] * (len(limits) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_right(self.limits, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> list[str]:
        start = f"{labels}," if labels else ""
        lines, seen = [], 0
        for limit, count in zip((*map(_number, self.limits), "+Inf"), self.counts, strict=True):
            seen += count
            lines.append(f'{name}_bucket{{{start}le="{limit}"}} {seen}')
        return [*lines, f"{name}_sum{{{labels}}} {_number(self.total)}", f"{name}_count{{{labels}}} {seen}"]


class _Family:
    """One metric: a counter, gauge or histogram for each combination of label values."""

    def __init__(self, raw_name: str, kind: str, labels: Sequence[str], limits: Sequence[float] = ()) -> None:
        self.name = _NAME_CHAR.sub(":", raw_name)
        self._kind = kind
        self._labels = labels
        self._limits = limits
        self._numbers: dict[tuple[str, ...], int] = {}
        self._histograms: dict[tuple[str, ...], _Histogram] = {}

    def add(self, labels: tuple[str, ...], value: float = 1) -> None:
        """Count ``value`` up (counters) or in (histograms), or set it (gauges)."""
        if self._kind == "histogram":
            self.histogram(labels).add(value)
        elif self._kind == "gauge":
            self._numbers[labels] = int(value)
        else:
            self._numbers[labels] = self._numbers.get(labels, 0) + int(value)

    def histogram(self, labels: tuple[str, ...]) -> _Histogram:
        """The histogram of these label values, for those who keep it."""
        found = self._histograms.get(labels)
        if found is None:
            found = self._histograms[labels] = _Histogram(self._limits)
        return found

    def lines(self) -> list[str]:
        lines = [f"# TYPE {self.name} {self._kind}"]
        lines += [f"{self.name}{{{self._text(key)}}} {value}" for key, value in self._numbers.items()]
        for key, histogram in self._histograms.items():
            lines += histogram.lines(self.name, self._text(key))
        return lines

    def _text(self, values: tuple[str, ...]) -> str:
        return ",".join(
            f'{label}="{value.translate(_ESCAPES)}"' for label, value in zip(self._labels, values, strict=True)
        )


def _number(value: float) -> str:
    return f"{value:.6g}"


class Call:
    """One request on its way: what it asks for, and when each stage of it ended.

    ``api`` is the method (``Predict``, or ``predict`` over REST; "" for a GET), ``entrypoint`` is
    ``GRPC`` or ``REST``.
    """

    __slots__ = (
        *("_last_ns", "api", "engine", "entrypoint", "examples", "model"),
        *("pooled", "request_id", "stages_ns", "started_ns", "version"),
    )

    def __init__(self, api: str, entrypoint: str, started_ns: int | None = None) -> None:
        self.api = api
        self.entrypoint = entrypoint
        self.request_id = ""
        self.pooled = False  # whether it runs in a thread of its own
        self.model = ""
        self.examples = 0
        self.version = 0
        self.engine: Engine | None = None
        self.started_ns = self._last_ns = started_ns or perf_counter_ns()
        self.stages_ns = [0, 0, 0, 0]

    def lap(self, stage: int) -> None:
        """Count the time since the last call as one of ``STAGES``, given by its position."""
        now = perf_counter_ns()
        self.stages_ns[stage] += now - self._last_ns
        self._last_ns = now

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
        self._run_histograms: dict[tuple[str, int, str, str], tuple[_Histogram, list[_Histogram]]] = {}
        serving = "/tensorflow/serving"
        self._requests = _Family(f"{serving}/request_count", "counter", ("model_name", "status"))
        self._latency = _Family(
            f"{serving}/request_latency", "histogram", ("model_name", "API", "entrypoint"), _LATENCY_US
        )
        self._runs = _Family(f"{serving}/runtime_latency", "histogram", ("model_name", "API", "runtime"), _LATENCY_US)
        self._examples = _Family(f"{serving}/request_example_counts", "histogram", ("model",), _EXAMPLES)
        self._example_total = _Family(f"{serving}/request_example_count_total", "counter", ("model",))
        self._graph_runs = _Family("/tensorflow/core/graph_runs", "counter", ())
        self._graph_time = _Family("/tensorflow/core/graph_run_time_usecs", "counter", ())
        self._loads = _Family("/tensorflow/cc/saved_model/load_attempt_count", "counter", ("model_path", "status"))
        self._load_time = _Family("/tensorflow/cc/saved_model/load_latency", "counter", ("model_path",))
        self._stages = _Family(
            "servable_request_stage_seconds", "histogram", ("model_name", "version", "runtime", "stage"), _STAGE_S
        )
        self._engines = _Family(
            "servable_engine_info", "gauge", ("model_name", "version", "signature", "runtime", "reason")
        )
        self._families = [family for family in vars(self).values() if isinstance(family, _Family)]
        self._families.append(_Family(f"{serving}/request_log_count", "counter", ("model_name", "status_code")))
        self._families.append(_Family(f"{serving}/mlmd_map", "gauge", ("model_name", "version")))

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

    def engine(self, model: str, version: int, signature: str, engine: Engine) -> None:
        """Show which engine answers a signature, and why."""
        with self._lock:
            self._engines.add((model, str(version), signature, engine.runtime, engine.reason))

    def page(self) -> bytes:
        """All metrics as text."""
        with self._lock:
            self._fold()
            lines = [line for family in sorted(self._families, key=lambda f: f.name) for line in family.lines()]
        return ("\n".join(lines) + "\n").encode("utf-8", "replace")
