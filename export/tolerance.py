"""How far an artifact may be from its source, by quantization and task, and how a user changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from ..errors import InvalidArgumentError, nearest
from .source import Source


@dataclass(frozen=True)
class Tolerance:
    """Limits on the distance from the source; one that is None is not checked.

    ``max_abs_error`` is in the output's unit, ``max_range_error`` a share of the range of the source's
    answers. ``min_top1_agreement`` is the share of rows with the same class (segmentation: of pixels;
    detection: of detections that have a partner), ``min_equal`` the share of equal values in outputs of
    integers, and ``max_metric_drop`` how far the task metric may fall; all three are shares in [0, 1].
    """

    max_abs_error: float | None = None
    max_range_error: float | None = None
    min_top1_agreement: float | None = None
    min_equal: float | None = None
    max_metric_drop: float | None = None


# A softmax that was quantized answers in steps of 1/256; the rest is what was measured, with a margin.
_RANGE = {"float32": 1e-4, "float16": 0.01, "dynamic": 0.05, "int16x8": 0.05, "int8": 0.15}
_EQUAL = {"float32": 0.998, "float16": 0.98, "dynamic": 0.9, "int16x8": 0.9, "int8": 0.9}
_AGREEMENT = {"float32": 1.0, "float16": 0.998}
# Without targets nothing says what is right, and a quantized classifier is held to its source's answers.
_UNLABELLED_AGREEMENT = 0.97
_METRIC_DROP = 0.01
_CLASSIFICATION_DROP = 0.005
_REGRESSION_RANGE = 0.01
# float32 has seven digits: large answers cannot agree to four decimals.
FLOAT32_ERROR = 1e-4
FLOAT32_RELATIVE_ERROR = 4e-7


def tolerance(source: Source, quantization: str, largest: float) -> Tolerance:
    """The limits for an artifact of this quantization; ``largest`` is the source's largest absolute answer.

    Answers of a model with fresh weights, and answers to random numbers, say nothing about classes:
    then only the error is limited, as a share of the range of the answers.
    """
    if quantization == "float32" and source.model.half:  # its own answers have three digits
        quantization = "float16"
    equal = _EQUAL[quantization]
    if source.data.random or not source.trained:
        return Tolerance(max_range_error=_RANGE[quantization], min_equal=equal)
    exact = quantization == "float32"
    error = max(FLOAT32_ERROR, FLOAT32_RELATIVE_ERROR * largest) if exact else None
    if source.task == "regression":
        return Tolerance(max_abs_error=error, max_range_error=None if exact else _REGRESSION_RANGE)
    if source.task == "other":
        return Tolerance(max_abs_error=error, max_range_error=None if exact else _RANGE[quantization], min_equal=equal)
    agreement = _AGREEMENT.get(quantization)
    if exact or quantization == "float16":
        return Tolerance(max_abs_error=error, min_top1_agreement=agreement)
    if source.data.targets is None:
        return Tolerance(min_top1_agreement=_UNLABELLED_AGREEMENT)
    strict = source.task == "classification" and not source.model.recurrent
    return Tolerance(max_metric_drop=_CLASSIFICATION_DROP if strict else _METRIC_DROP)


_SHARES = ("min_top1_agreement", "min_equal", "max_metric_drop")

Overrides = Mapping[str, Mapping[str, float]]


def override(limits: Tolerance, key: str, overrides: Overrides) -> Tolerance:
    """The limits with those replaced that were given for all artifacts (key ``""``) or for this one."""
    return replace(limits, **overrides.get("", {}), **overrides.get(key, {}))


def check_overrides(overrides: Overrides, source: Source) -> None:
    """Raise `InvalidArgumentError` for a limit on something that is not measured of this source."""
    integers = any(spec.dtype.startswith(("int", "uint", "bool")) for spec in source.signature.outputs.values())
    needs = {
        "min_top1_agreement": (source.task not in ("regression", "other"), f"classes, and this is for {source.task}"),
        "max_metric_drop": (source.metric is not None, "a metric, and no targets are given to compute one from"),
        "min_equal": (integers, "an output of integers, and the model has none"),
    }
    for limits in overrides.values():
        for name in limits:
            fits, need = needs.get(name, (True, ""))
            if not fits:
                raise InvalidArgumentError(f"{source.name}: the limit {name} needs {need}")


def parse_overrides(texts: Sequence[str], keys: Sequence[str]) -> dict[str, dict[str, float]]:
    """``["max_abs_error=0.001", "tflite_int8:max_metric_drop=0.02"]`` as limits by artifact; "" is all.

    Raises `InvalidArgumentError` for an unknown artifact or limit and for what is no number.
    """
    known = [field.name for field in fields(Tolerance)]
    found: dict[str, dict[str, float]] = {}
    for text in texts:
        key, colon, rest = text.rpartition(":")
        name, equals, value = rest.partition("=")
        if colon and key not in keys:
            raise InvalidArgumentError(f"--tolerance {text}: no artifact {key!r}; {nearest(key, keys)}")
        if not equals or name not in known:
            raise InvalidArgumentError(
                f"--tolerance {text}: give [ARTIFACT:]LIMIT=NUMBER; no limit {name!r}; {nearest(name, known)}"
            )
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            raise InvalidArgumentError(f"--tolerance {text}: {value!r} is no number of 0 or more")
        if name in _SHARES and number > 1:
            raise InvalidArgumentError(f"--tolerance {text}: {name} is a share: give a number from 0 to 1")
        found.setdefault(key, {})[name] = number
    return found
