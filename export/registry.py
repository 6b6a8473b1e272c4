"""One declaration per exported artifact; CLI help, pipeline, manifest and tests derive from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidArgumentError, nearest
from .source import Source


@dataclass(frozen=True)
class Tolerance:
    """How far an artifact may be from its source; a limit that is None is not checked.

    ``max_abs_error`` is in the output's unit; ``max_relative_error`` a share of the source's output
    range over the samples (regression only); ``min_top1_agreement`` and ``max_metric_drop`` are
    shares in [0, 1] (classification only).
    """

    max_abs_error: float | None = None
    max_relative_error: float | None = None
    min_top1_agreement: float | None = None
    max_metric_drop: float | None = None


FLOAT32 = Tolerance(max_abs_error=1e-4, min_top1_agreement=1.0)
INT8 = Tolerance(max_relative_error=0.01, max_metric_drop=0.005)

Convert = Callable[[Source, Path], None]


@dataclass(frozen=True)
class Exporter:
    """How one artifact is made.

    ``convert(source, folder)`` writes ``path`` (``.`` for the folder itself) into ``folder``, in which
    the SavedModel already lies. ``requires`` are the modules that it needs, ``derived`` whether the
    artifact answers the derived signatures too, ``opset`` the ONNX opset.
    """

    format: str
    quantization: str
    path: str
    requires: tuple[str, ...]
    tolerance: Tolerance
    convert: Convert
    derived: bool = False
    opset: int | None = None

    @property
    def key(self) -> str:
        """``saved_model``, ``tflite``, ``tflite_int8``, …: the name on the command line."""
        return self.format if self.quantization == "float32" else f"{self.format}_{self.quantization}"


REGISTRY: dict[str, Exporter] = {}

# The order in which artifacts are made and listed; the others are converted from the SavedModel.
_ORDER = ("saved_model", "tflite", "onnx")


def register(exporter: Exporter) -> Exporter:
    """Add an exporter; two with one key are a programming error and raise ValueError."""
    if exporter.key in REGISTRY:
        raise ValueError(f"an exporter for {exporter.key} is registered already")
    REGISTRY[exporter.key] = exporter
    return exporter


def choose(keys: tuple[str, ...]) -> list[Exporter]:
    """The exporters of these keys, the SavedModel always first; no keys mean all.

    Raises `InvalidArgumentError` for an unknown key.
    """
    for key in keys:
        if key not in REGISTRY:
            raise InvalidArgumentError(f"no format {key!r}; {nearest(key, REGISTRY)}")
    chosen = [exporter for key, exporter in REGISTRY.items() if not keys or key in keys or key == "saved_model"]
    return sorted(chosen, key=lambda exporter: (_ORDER.index(exporter.format), exporter.quantization != "float32"))
