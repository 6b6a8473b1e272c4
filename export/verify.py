"""Evidence: an artifact is run in its own runtime and compared with the source model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import metrics
from ..errors import ExportError, InputError, ParityError, ServableError
from ..evidence import Evidence, OutputError
from .cases import Case, chunk_rows
from .source import Source
from .source_model import Arrays
from .tolerance import Tolerance

Run = Callable[[str, Arrays], Arrays]

# What one artifact's evidence for one signature may take, after the samples that it needs at least.
BUDGET_S = 30.0
WORST_SAMPLES = 5
# Detections below it are guesses, of which a detector has any number; they may come and go.
MIN_SCORE = 0.3


@dataclass(frozen=True)
class Measured:
    """What was found for one case, before anybody judges it."""

    rows: int
    outputs: Mapping[str, OutputError]
    max_abs_error: float
    mean_abs_error: float
    range_error: float
    worst: tuple[int, ...]
    agreement: float | None = None
    equal: float | None = None
    value: float | None = None
    source_value: float | None = None


def verify(label: str, run: Run, case: Case, tolerance: Tolerance, source: Source) -> Evidence:
    """Run a case, in batches and its first row alone, and measure the distance.

    Distances beyond the tolerance are in the evidence (``passed`` is False; the criterion names the
    worst samples). Raises `ParityError` if the artifact takes or answers other names, dtypes, shapes
    or strings than the source, or answers NaN, and `ExportError` if it cannot be run.
    """
    found = _measure(label, run, case, source)
    limits = _limits(tolerance, found)
    words = [text for text, _ in limits]
    if found.rows < case.rows:
        words.append(f"{found.rows} of {case.rows} samples within {BUDGET_S:g} s")
    elif found.rows < case.least:
        words.append(f"{found.rows} samples, where {case.least} are wanted for a model of this size")
    words.append(f"worst samples {', '.join(map(str, found.worst))}")
    return Evidence(
        data=case.data,
        samples=found.rows,
        max_abs_error=found.max_abs_error,
        mean_abs_error=found.mean_abs_error,
        criterion="; ".join(words),
        passed=all(holds for _, holds in limits),
        top1_agreement=found.agreement,
        metric=source.metric if found.value is not None else None,
        metric_value=found.value,
        metric_source_value=found.source_value,
        outputs=found.outputs,
        worst_samples=found.worst,
    )


def _measure(label: str, run: Run, case: Case, source: Source) -> Measured:
    answers, rows = _run_all(label, run, case)
    expected = {name: array[:rows] for name, array in case.expected.items()}
    alone = _run(label, run, case, {name: array[:1] for name, array in case.inputs.items()})
    for name, array in expected.items():
        _check(label, name, answers[name], array)
        _check(label, name, alone[name], array[:1])
    if source.task == "detection":
        errors, agreement = _detections(answers, expected)
    else:
        errors, agreement = _distances(answers, expected), _agreement(source, answers, expected)
        for name, error in errors.items():  # the first row counts as it is worse: in a batch, or alone
            error[:1] = np.maximum(error[:1], _distance(alone[name], expected[name][:1]))
    by_row = np.stack([error.max(axis=1, initial=0.0) for error in errors.values()]) if errors else np.zeros((1, rows))
    real = {name: error for name, error in errors.items() if expected[name].dtype.kind not in "iub"}
    whole = [error == 0 for name, error in errors.items() if name not in real]
    flat = np.concatenate([error.ravel() for error in real.values()]) if real else np.zeros(1)
    value: float | None = None
    source_value: float | None = None
    if case.targets is not None and source.metric:
        targets = _rows(case.targets, rows)
        value = metrics.compute(source.metric, _scored(source, answers), targets)
        source_value = metrics.compute(source.metric, _scored(source, expected), targets)
    return Measured(
        rows=rows,
        outputs={name: _output_error(error, expected[name]) for name, error in errors.items()},
        max_abs_error=float(flat.max(initial=0.0)),
        mean_abs_error=float(flat.mean()),
        range_error=max(
            (float(error.max(initial=0.0)) / _range(expected[name]) for name, error in real.items()), default=0.0
        ),
        worst=tuple(int(i) for i in np.argsort(-by_row.max(axis=0), kind="stable")[:WORST_SAMPLES]),
        agreement=agreement,
        equal=float(np.mean(np.concatenate([same.ravel() for same in whole]))) if whole else None,
        value=value,
        source_value=source_value,
    )


def _run_all(label: str, run: Run, case: Case) -> tuple[dict[str, NDArray[Any]], int]:
    """The answers for the rows of a case, and for how many of them time was."""
    parts: list[Arrays] = []
    rows, step = 0, chunk_rows(case.inputs)
    end = time.monotonic() + BUDGET_S
    while rows < case.rows and (rows < case.least or time.monotonic() < end):
        chunk = {name: array[rows : rows + step] for name, array in case.inputs.items()}
        parts.append(_run(label, run, case, chunk))
        rows = min(rows + step, case.rows)
    return {name: np.concatenate([part[name] for part in parts]) for name in case.expected}, rows


def _run(label: str, run: Run, case: Case, inputs: Arrays) -> Arrays:
    try:
        answers = run(case.signature.name, inputs)
    except InputError as error:  # the source took them
        raise ParityError(f"{label} takes other inputs on {case.signature.name}: {error}") from error
    except ServableError as error:
        raise ExportError(f"{label} cannot be run on {case.signature.name}: {error}") from error
    if answers.keys() != case.expected.keys():
        raise ParityError(
            f"{label}: signature {case.signature.name} answers {', '.join(sorted(answers))}; "
            f"expected {', '.join(sorted(case.expected))}"
        )
    return answers


def _check(label: str, name: str, got: NDArray[Any], expected: NDArray[Any]) -> None:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise ParityError(
            f"{label}: output {name!r} is {got.dtype} {got.shape}; expected {expected.dtype} {expected.shape}"
        )
    if got.dtype.kind == "O" and not np.array_equal(got, expected):
        raise ParityError(f"{label}: output {name!r} has other strings than the source")
    if got.dtype.kind in "fV" and not np.isfinite(got.astype(np.float64)).all():
        finite = np.isfinite(got.astype(np.float64)).reshape(len(got), -1).all(axis=1)
        raise ParityError(
            f"{label}: output {name!r} holds NaN or infinity, first in sample {int(np.flatnonzero(~finite)[0])}"
        )


def _distances(answers: Arrays, expected: Arrays) -> dict[str, NDArray[np.float64]]:
    """The distance of each output that has numbers."""
    return {name: _distance(answers[name], array) for name, array in expected.items() if array.dtype.kind != "O"}


def _distance(got: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """Absolute differences, one row a sample."""
    difference: NDArray[np.float64] = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    return difference.reshape(len(got), int(np.prod(got.shape[1:])))


def _detections(answers: Arrays, expected: Arrays) -> tuple[dict[str, NDArray[np.float64]], float | None]:
    """Errors of boxes and scores of detections that have a partner in the source's answer, and their share."""
    matches = metrics.match_detections(answers, expected, min_score=MIN_SCORE)
    errors = {name: np.zeros((len(expected["scores"]), 1)) for name in ("boxes", "scores")}
    for row, (ours, theirs) in enumerate(matches.pairs):
        for name, error in errors.items():
            difference = np.abs(
                answers[name][row][ours].astype(np.float64) - expected[name][row][theirs].astype(np.float64)
            )
            error[row] = difference.max(initial=0.0)
    return errors, matches.agreement


def _agreement(source: Source, answers: Arrays, expected: Arrays) -> float | None:
    """The share of rows (segmentation: of pixels) with the class that the source gives them."""
    if source.task not in ("classification", "segmentation"):
        return None
    name = next(name for name, array in expected.items() if array.dtype.kind == "f")
    return float(np.mean(np.argmax(answers[name], -1) == np.argmax(expected[name], -1)))


def _scored(source: Source, answers: Arrays) -> Any:
    """What the task metric looks at: all outputs of a detector, the one with numbers of any other model."""
    return answers if source.task == "detection" else next(a for a in answers.values() if a.dtype.kind == "f")


def _rows(targets: NDArray[Any] | Arrays, rows: int) -> Any:
    if isinstance(targets, Mapping):
        return {name: array[:rows] for name, array in targets.items()}
    return targets[:rows]


def _output_error(error: NDArray[np.float64], expected: NDArray[Any]) -> OutputError:
    return OutputError(
        max_abs_error=float(error.max(initial=0.0)),
        mean_abs_error=float(error.mean()) if error.size else 0.0,
        source_min=float(expected.min()) if expected.size else 0.0,
        source_max=float(expected.max()) if expected.size else 0.0,
    )


def _range(expected: NDArray[Any]) -> float:
    """The range of the source's answers: 1 for probabilities, however close together they lie."""
    values = expected.astype(np.float64)
    if not values.size:
        return 1.0
    if values.ndim > 1 and values.min() >= 0 and np.allclose(values.sum(axis=-1), 1.0, atol=1e-3):
        return 1.0
    spread = float(values.max() - values.min())
    return spread or float(np.abs(values).max()) or 1.0


def _limits(tolerance: Tolerance, found: Measured) -> Sequence[tuple[str, bool]]:
    """Each limit that applies, in words, and whether it holds."""
    limits = []
    limit = tolerance.max_abs_error
    if limit is not None:
        limits.append((f"max abs error {found.max_abs_error:.2g} <= {limit:g}", found.max_abs_error <= limit))
    limit = tolerance.max_range_error
    if limit is not None:
        text = f"max abs error {found.max_abs_error:.3g}, {found.range_error:.3%} of the output range <= {limit:.6g}"
        limits.append((text.replace(f"<= {limit:.6g}", f"<= {limit:.4%}"), found.range_error <= limit))
    limit = tolerance.min_top1_agreement
    if limit is not None and found.agreement is not None:
        limits.append((f"top-1 agreement {found.agreement:.2%} >= {limit:.2%}", found.agreement >= limit))
    limit = tolerance.min_equal
    if limit is not None and found.equal is not None:
        limits.append((f"{found.equal:.2%} of the integers equal >= {limit:.2%}", found.equal >= limit))
    limit = tolerance.max_metric_drop
    if limit is not None and found.value is not None and found.source_value is not None:
        drop = found.source_value - found.value
        limits.append((f"metric drop {drop:.4f} <= {limit:g}", drop <= limit))
    return limits
