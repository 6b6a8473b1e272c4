"""constraints.txt: exact versions without addresses, which resolve for other Pythons and machines as well."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Environment, default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import servable

ROOT = Path(servable.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
EXTRAS = ("serve", "edge", "export", "dev")

PLATFORMS = [(python, machine) for python in ("3.11", "3.12", "3.13") for machine in ("x86_64", "aarch64")]


def requirements() -> list[Requirement]:
    found = list(PROJECT["dependencies"])
    for extra in EXTRAS:
        found += PROJECT["optional-dependencies"][extra]
    return [Requirement(text) for text in found]


@pytest.mark.parametrize("line", LINES)
def test_a_line_pins_one_version_exactly(line: str) -> None:
    pin = Requirement(line)
    assert pin.url is None
    assert not pin.extras
    (specifier,) = pin.specifier
    assert specifier.operator == "=="
    assert "*" not in specifier.version


def test_there_are_no_options_and_no_addresses() -> None:
    assert not [line for line in LINES if re.search(r"://|@|^\s*-|^\s*$", line)]


def test_no_package_is_pinned_twice_for_one_environment() -> None:
    for python, machine in PLATFORMS:
        names = [canonicalize_name(Requirement(line).name) for line in pins(python, machine)]
        assert len(names) == len(set(names))


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    for python, machine in PLATFORMS:
        versions = {canonicalize_name(pin.name): str(next(iter(pin.specifier)).version)
                    for pin in map(Requirement, pins(python, machine))}  # fmt: skip
        for requirement in requirements():
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def environment(python: str, machine: str) -> Environment:
    """What markers see there."""
    there = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_version": f"{python}.0",
        "platform_machine": machine,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
    }
    found: dict[str, Any] = {**default_environment(), **there}
    return found  # type: ignore[return-value]  # a TypedDict of strings


def holds(requirement: Requirement, python: str, machine: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment(python, machine))


def pins(python: str, machine: str) -> list[str]:
    """The lines of constraints.txt that apply there, without their markers."""
    return [line.split(";")[0].strip() for line in LINES if holds(Requirement(line), python, machine)]


@pytest.mark.parametrize(("python", "machine"), PLATFORMS)
def test_the_pins_resolve_from_wheels_alone(tmp_path: Path, python: str, machine: str) -> None:
    """By uv, which looks at the target's markers, wheel tags and Requires-Python; pip takes those of its own Python."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--target", tmp_path / "nothing"),
            *("--python-version", python, "--python-platform", f"{machine}-manylinux_2_35"),
            *("--only-binary", ":all:", "--constraints", ROOT / "constraints.txt", "-r", ROOT / "pyproject.toml"),
            *(f"--extra={extra}" for extra in EXTRAS),
        ],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    chosen = set(re.findall(r"^ \+ (\S+==\S+)$", done.stderr, re.MULTILINE))
    assert {canonicalize_name(requirement.name) for requirement in requirements()} <= {
        pin.split("==")[0] for pin in chosen
    }
    assert chosen <= set(pins(python, machine))


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_pinned_versions_are_made_for_the_python(python: str) -> None:
    """uv does not look at upper bounds of Requires-Python, and pip does: look at those of what is installed."""
    refusing = []
    looked_at = 0
    for pin in map(Requirement, pins(python, "x86_64")):
        try:
            found = metadata.distribution(pin.name)
        except metadata.PackageNotFoundError:
            continue
        if pin.specifier.contains(found.version):
            looked_at += 1
            if not SpecifierSet(found.metadata.get("Requires-Python", "")).contains(f"{python}.0"):
                refusing.append(str(pin))
    assert refusing == []
    assert looked_at > 50
