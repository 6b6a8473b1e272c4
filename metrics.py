"""Task metrics over whole arrays: accuracy and mean absolute error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidArgumentError


def accuracy(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of rows in [0, 1] whose highest score is at the labelled class.

    ``scores`` (n, classes), ``labels`` integers (n,). A row with NaN counts as wrong.
    """
    right = np.argmax(scores, axis=-1) == labels
    return float(np.mean(right & ~np.isnan(scores).any(axis=-1)))


def mae(outputs: NDArray[Any], targets: NDArray[Any]) -> float:
    """Mean absolute error in the target's unit; both arrays of one shape."""
    return float(np.mean(np.abs(outputs.astype(np.float64) - targets.astype(np.float64))))


METRICS: dict[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {"accuracy": accuracy, "mae": mae}


def compute(name: str, outputs: NDArray[Any], targets: NDArray[Any]) -> float:
    """The metric of that name; `InvalidArgumentError` lists the known ones for an unknown name."""
    if name not in METRICS:
        raise InvalidArgumentError(f"no metric {name!r}; known: {', '.join(METRICS)}")
    return METRICS[name](outputs, targets)
