"""Evidence: how far an artifact is from its source model, as it stands in the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .json_fields import Fields, present


@dataclass(frozen=True)
class OutputError:
    """How far one output is from the source's: absolute differences, and the range of the source's answers."""

    max_abs_error: float
    mean_abs_error: float
    source_min: float
    source_max: float


@dataclass(frozen=True)
class Evidence:
    """How far an artifact is from its source model for one signature.

    Errors are absolute differences over all outputs and ``samples`` rows of ``data``, and in
    ``outputs`` for each numeric output by itself; ``criterion`` says in words what had to hold and
    ``passed`` whether it did. ``top1_agreement`` is a share in [0, 1] and None where the task has no
    classes. ``worst_samples`` are the rows that are furthest off, the furthest first.
    """

    data: str
    samples: int
    max_abs_error: float
    mean_abs_error: float
    criterion: str
    passed: bool
    top1_agreement: float | None = None
    metric: str | None = None
    metric_value: float | None = None
    metric_source_value: float | None = None
    outputs: Mapping[str, OutputError] = field(default_factory=dict)
    worst_samples: tuple[int, ...] = ()


def parse_evidence(value: Any, where: str) -> Evidence:
    """An entry of an artifact's ``evidence``; raises `StoreError` that begins with ``where``."""
    fields = Fields(value, where)
    number = (int, float)
    return Evidence(
        data=fields.take("data", str),
        samples=fields.take("samples", int),
        max_abs_error=fields.take("max_abs_error", number),
        mean_abs_error=fields.take("mean_abs_error", number),
        criterion=fields.take("criterion", str),
        passed=fields.take("passed", bool),
        top1_agreement=fields.take("top1_agreement", number, None),
        metric=fields.take("metric", str, None),
        metric_value=fields.take("metric_value", number, None),
        metric_source_value=fields.take("metric_source_value", number, None),
        outputs=fields.mapping("outputs", _parse_output_error, {}),
        worst_samples=tuple(fields.take("worst_samples", list, [])),
    )


def _parse_output_error(value: Any, where: str) -> OutputError:
    fields = Fields(value, where)
    number = (int, float)
    return OutputError(
        max_abs_error=fields.take("max_abs_error", number),
        mean_abs_error=fields.take("mean_abs_error", number),
        source_min=fields.take("source_min", number),
        source_max=fields.take("source_max", number),
    )


def evidence_to_dict(evidence: Evidence) -> dict[str, Any]:
    """The same as JSON has it."""
    outputs = {name: vars(error) for name, error in evidence.outputs.items()}
    return present({**vars(evidence), "outputs": outputs, "worst_samples": list(evidence.worst_samples)})
