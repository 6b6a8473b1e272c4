"""Targets met and missed, and the exit code."""

from __future__ import annotations

import pytest

from servable.benchmarks.machine import spread
from servable.benchmarks.verdict import Verdict, ratio


def test_ratio_is_of_medians() -> None:
    assert ratio([100.0, 3.0, 2.0], [2.0, 2.0, 0.001]) == 1.5


def test_spread() -> None:
    assert spread([3.0, 1.0, 2.0], "s") == "median 2.000 s (min 1.000, max 3.000, n=3)"
    assert spread([1234.5678], "requests/s", digits=0) == "median 1235 requests/s (min 1235, max 1235, n=1)"


def test_a_limit_itself_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    verdict = Verdict()
    verdict.at_least("a / b", 0.75, 0.75)
    verdict.at_most("start", 1.5, 1.5, " s")
    assert verdict.exit_code == 0
    assert capsys.readouterr().out == (
        "  PASS  a / b: 0.75, at least 0.75 is wanted\n  PASS  start: 1.5 s, at most 1.5 s is wanted\n"
    )


@pytest.mark.parametrize("kind", ["at_least", "at_most"])
def test_one_miss_makes_the_exit_code(kind: str) -> None:
    verdict = Verdict()
    verdict.at_least("fine", 2, 1)
    getattr(verdict, kind)("wrong", {"at_least": 0.7499, "at_most": 0.7501}[kind], 0.75)
    verdict.at_most("fine", 1, 2)
    assert verdict.exit_code == 1
    assert verdict.summary().endswith("2 targets met, 1 missed, 0 not measured")


def test_what_was_left_out_is_said_and_is_no_miss() -> None:
    verdict = Verdict()
    verdict.left_out("a / BentoML", "--skip-bentoml")
    assert verdict.exit_code == 0
    assert verdict.summary() == (
        "  ----  a / BentoML: not measured, --skip-bentoml\n0 targets met, 0 missed, 1 not measured"
    )


def test_nan_is_a_miss() -> None:
    verdict = Verdict()
    verdict.at_least("a / b", float("nan"), 0.75)
    verdict.at_most("growth", float("nan"), 2)
    assert verdict.summary().endswith("0 targets met, 2 missed, 0 not measured")
