"""Packages of extras: imported by one function, with one message where they are missing."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

import servable
from servable import extras
from servable.errors import MissingExtraError


@pytest.mark.parametrize("module", sorted(extras.EXTRA_OF))
def test_missing_package_names_its_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, module.split(".", maxsplit=1)[0], None)
    with pytest.raises(MissingExtraError) as caught:
        extras.load(module, "the thing in question")
    message = str(caught.value)
    assert "the thing in question" in message
    assert re.search(rf"run: pip install (-e )?'.+\[{extras.EXTRA_OF[module]}\]'$", message)


@pytest.mark.parametrize("module", sorted(extras.EXTRA_OF))
def test_the_extra_installs_the_package_that_the_message_names(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = tomllib.loads((Path(servable.__file__).parent / "pyproject.toml").read_text())
    requirements = declared["project"]["optional-dependencies"][extras.EXTRA_OF[module]]
    if module == "keras":
        requirements = [*requirements, "keras"]  # tensorflow brings it
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, module.split(".", maxsplit=1)[0], None)
    with pytest.raises(MissingExtraError) as caught:
        extras.load(module, "it")
    assert any(requirement.split(">")[0] == caught.value.package for requirement in requirements)


def test_present_package_is_returned() -> None:
    import onnxruntime

    assert extras.load("onnxruntime", "the test") is onnxruntime


def test_a_package_that_lacks_one_of_its_own_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_engine.py").write_text("import servable_has_no_such_module\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(extras.EXTRA_OF, "broken_engine", "edge")
    with pytest.raises(ModuleNotFoundError) as caught:
        extras.load("broken_engine", "the test")
    assert caught.value.name == "servable_has_no_such_module"


@pytest.mark.parametrize(("before", "after"), [(None, "3"), ("0", "0")])
def test_tensorflow_is_quiet_unless_the_user_wants_its_log(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", before or "")
    if before is None:
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingExtraError):
        extras.load("tensorflow", "the test")
    assert extras.os.environ["TF_CPP_MIN_LOG_LEVEL"] == after
