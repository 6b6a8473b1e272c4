"""Task metrics against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from servable import metrics
from servable.errors import InvalidArgumentError

NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([[0.9, 0.1], [0.2, 0.8]], [0, 1], 1.0),
        ([[0.9, 0.1], [0.2, 0.8]], [1, 0], 0.0),
        ([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], [0, 1, 1, 1], 0.75),
        ([[-3.0, -1.0, -2.0]], [1], 1.0),
        ([[NAN, 0.1], [0.2, 0.8]], [0, 1], 0.5),  # NumPy's argmax would point at the NaN
        ([[0.9, NAN], [0.2, 0.8]], [0, 1], 0.5),
    ],
)
def test_accuracy(scores: list[list[float]], labels: list[int], expected: float) -> None:
    assert metrics.accuracy(np.array(scores, np.float32), np.array(labels)) == expected


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        ([[1.0], [2.0]], [[1.0], [2.0]], 0.0),
        ([[1.0], [2.0]], [[2.0], [0.0]], 1.5),
        ([[-1.0, 1.0]], [[1.0, -1.0]], 2.0),
    ],
)
def test_mae(outputs: list[list[float]], targets: list[list[float]], expected: float) -> None:
    assert metrics.mae(np.array(outputs, np.float32), np.array(targets, np.float32)) == expected


def test_mae_of_unsigned_integers_does_not_wrap() -> None:
    assert metrics.mae(np.array([3], np.uint8), np.array([5], np.uint8)) == 2.0


def test_mae_of_float16_does_not_overflow() -> None:
    assert metrics.mae(np.array([60000.0], np.float16), np.array([-60000.0], np.float16)) == 2 * float(
        np.float16(60000)
    )


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_compute_takes_the_metric_by_name(name: str) -> None:
    outputs, targets = np.array([[0.0, 2.0]]), np.array([[1.0, 1.0]])
    if name == "accuracy":
        targets = np.array([1])
    assert metrics.compute(name, outputs, targets) == metrics.METRICS[name](outputs, targets)


def test_unknown_metric_lists_the_known_ones() -> None:
    with pytest.raises(InvalidArgumentError, match=r"no metric 'acuracy'.*accuracy.*mae"):
        metrics.compute("acuracy", np.zeros(1), np.zeros(1))
