"""Every module of the benchmarks can be imported, says what it is, and its examples hold."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODULES = sorted(
    ".".join(["servable.benchmarks", *file.relative_to(FOLDER).with_suffix("").parts])
    for file in FOLDER.rglob("*.py")
    if file.stem not in ("__init__", "bentoml_rest")  # BentoML lives in an environment of its own
)


@pytest.mark.parametrize("name", MODULES)
def test_module(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert doctest.testmod(module).failed == 0
