"""Which limits hold for which quantization and task, and how a user changes them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from servable.cli.course import source
from servable.errors import InvalidArgumentError
from servable.export import Source
from servable.export.registry import QUANTIZATIONS, REGISTRY
from servable.export.tolerance import Tolerance, check_overrides, override, parse_overrides, tolerance
from servable.models import card


@cache
def trained(name: str) -> Source:
    return source(card(name))


def recurrent(given: Source) -> Source:
    class Recurrent(type(given.model)):  # type: ignore[misc]  # a base that is found out at run time
        recurrent = True

        def __init__(self) -> None:
            """Nothing is run here."""

    return replace(given, model=Recurrent())


@pytest.mark.parametrize(
    ("quantization", "limits"),
    [
        ("float32", Tolerance(max_abs_error=1e-4, min_top1_agreement=1.0)),
        ("float16", Tolerance(min_top1_agreement=0.998)),
        ("dynamic", Tolerance(max_metric_drop=0.005)),
        ("int8", Tolerance(max_metric_drop=0.005)),
        ("int16x8", Tolerance(max_metric_drop=0.005)),
    ],
)
def test_a_classifier(quantization: str, limits: Tolerance) -> None:
    assert tolerance(trained("cnn"), quantization, 1.0) == limits


def test_a_recurrent_classifier_may_lose_a_whole_point() -> None:
    assert tolerance(recurrent(trained("cnn")), "int8", 1.0) == Tolerance(max_metric_drop=0.01)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_detectors_and_segmenters(task: Any) -> None:
    given = replace(trained("cnn"), task=task)
    assert tolerance(given, "float32", 1.0) == Tolerance(max_abs_error=1e-4, min_top1_agreement=1.0)
    assert tolerance(given, "int8", 1.0) == Tolerance(max_metric_drop=0.01)


def test_a_regressor() -> None:
    assert tolerance(trained("celsius"), "float32", 212.0) == Tolerance(max_abs_error=1e-4)
    assert tolerance(trained("celsius"), "int8", 212.0) == Tolerance(max_range_error=0.01)
    large = tolerance(trained("celsius"), "float32", 1e6).max_abs_error
    assert large is not None
    assert large >= np.spacing(np.float32(1e6))  # float32 cannot be closer than that


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_answers_that_say_nothing_are_held_to_their_range_alone(quantization: str) -> None:
    random = replace(trained("cnn"), data=replace(trained("cnn").data, random=True))
    fresh = replace(trained("cnn"), trained=False)
    for given in (random, fresh):
        limits = tolerance(given, quantization, 1.0)
        assert limits == Tolerance(max_range_error=limits.max_range_error, min_equal=limits.min_equal)
        assert limits.max_range_error is not None


def test_without_targets_a_quantized_classifier_is_held_to_the_source_s_classes() -> None:
    given = replace(trained("cnn"), data=replace(trained("cnn").data, targets=None))
    assert tolerance(given, "int8", 1.0) == Tolerance(min_top1_agreement=0.97)


def test_a_model_in_half_precision_is_held_to_three_digits() -> None:
    class Half(type(trained("cnn").model)):  # type: ignore[misc]  # a base that is found out at run time
        half = True

        def __init__(self) -> None:
            """Nothing is run here."""

    given = replace(trained("cnn"), model=Half())
    assert tolerance(given, "float32", 1.0) == tolerance(trained("cnn"), "float16", 1.0)


@pytest.mark.parametrize(
    ("model", "limit", "reason"),
    [
        ("celsius", "min_top1_agreement", "celsius: the limit min_top1_agreement needs classes, and this is for regre"),
        ("cnn", "max_metric_drop", "cnn: the limit max_metric_drop needs a metric, and no targets are given"),
        ("cnn", "min_equal", "cnn: the limit min_equal needs an output of integers, and the model has none"),
    ],
)
@pytest.mark.parametrize("key", ["", "tflite_int8"])
def test_a_limit_on_what_is_not_measured_is_refused(model: str, limit: str, reason: str, key: str) -> None:
    given = replace(trained(model), metric=None)
    with pytest.raises(InvalidArgumentError, match=reason):
        check_overrides({key: {limit: 0.5}}, given)
    check_overrides({key: {"max_abs_error": 0.5, "max_range_error": 0.1}}, given)
    check_overrides({key: {"max_metric_drop": 0.5}}, trained(model))


def test_limits_are_replaced_for_all_or_for_one() -> None:
    found = parse_overrides(["max_abs_error=0.5", "tflite_int8:max_metric_drop=0"], list(REGISTRY))
    limits = Tolerance(max_abs_error=1.0, max_metric_drop=1.0)
    assert override(limits, "onnx", found) == Tolerance(max_abs_error=0.5, max_metric_drop=1.0)
    assert override(limits, "tflite_int8", found) == Tolerance(max_abs_error=0.5, max_metric_drop=0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_error=1", r"no limit 'max_error'; did you mean 'max_\w+_error'\?"),
        ("tflite_int9:max_abs_error=1", r"no artifact 'tflite_int9'; did you mean 'tflite_int8'\?"),
        ("max_abs_error", r"give \[ARTIFACT:\]LIMIT=NUMBER"),
        ("max_abs_error=much", "'much' is no number of 0 or more"),
        ("max_abs_error=-1", "'-1' is no number of 0 or more"),
        ("max_abs_error=nan", "'nan' is no number of 0 or more"),
        ("max_abs_error=inf", "'inf' is no number of 0 or more"),
        ("min_top1_agreement=98", "min_top1_agreement is a share: give a number from 0 to 1"),
    ],
)
def test_a_limit_that_is_none(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        parse_overrides([text], list(REGISTRY))
