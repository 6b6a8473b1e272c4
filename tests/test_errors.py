"""The error tree: what its docstring draws is what the classes are."""

from __future__ import annotations

import errno
import importlib
import os
import re
from collections.abc import Iterator

import grpc
import pytest

from servable import errors
from servable.errors import Code, ServableError, is_disk_full

LINE = re.compile(
    r"^    (?P<prefix>[│├└─ ]*)(?P<name>\w+Error) +(?P<code>[A-Z_]+) +(?P<status>\d+) +exit (?P<exit>\d+)$"
)


def walk(root: type[ServableError]) -> Iterator[type[ServableError]]:
    yield root
    for child in root.__subclasses__():
        yield from walk(child)


CLASSES = list(walk(ServableError))


def drawn() -> Iterator[tuple[str, str, str, int, int]]:
    """(parent, name, code, HTTP status, exit code) of each line of the docstring's tree."""
    branch: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = LINE.match(line)
        if found:
            branch[len(found["prefix"]) // 4 :] = [found["name"]]
            parent = branch[-2] if len(branch) > 1 else "Exception"
            yield parent, found["name"], found["code"], int(found["status"]), int(found["exit"])


def test_drawn_tree_is_the_real_one() -> None:
    real = [
        (cls.__bases__[0].__name__, cls.__name__, cls.code.name, errors.HTTP_STATUS[cls.code], cls.exit_code)
        for cls in CLASSES
    ]
    assert sorted(drawn()) == sorted(real)


@pytest.mark.parametrize("module", ["cli", "clients", "export", "models", "runtimes", "serving", "store", "wire"])
def test_no_error_is_declared_elsewhere(module: str) -> None:
    importlib.import_module(f"servable.{module}")
    strays = [cls for cls in walk(ServableError) if cls.__module__.startswith("servable.") and cls not in CLASSES]
    assert strays == []


def test_every_class_is_public() -> None:
    assert {cls.__name__ for cls in CLASSES} <= set(errors.__all__)


def test_codes_are_those_of_grpc() -> None:
    assert {code.name: int(code) for code in Code} == {code.name: code.value[0] for code in grpc.StatusCode}


@pytest.mark.parametrize("cls", CLASSES)
def test_http_status_of_an_instance(cls: type[ServableError]) -> None:
    error = cls("what", "package", "extra") if cls is errors.MissingExtraError else cls("what")
    assert error.http_status == errors.HTTP_STATUS[cls.code]


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_error_for_code(code: Code) -> None:
    error = errors.error_for_code(code.value, "the text")
    assert error.code is code
    assert type(error).__bases__ == (ServableError,), "a subclass would claim more than the code says"
    assert str(error) == "the text"


@pytest.mark.parametrize("code", [0, 17, -1, 4711])
def test_error_for_a_code_of_no_meaning(code: int) -> None:
    error = errors.error_for_code(code, "the text")
    assert type(error) is errors.UnknownError
    assert str(error) == "the text"


@pytest.mark.parametrize("status", sorted(set(errors.HTTP_STATUS.values()) - {200}))
def test_error_for_http_status(status: int) -> None:
    error = errors.error_for_http_status(status, "the text")
    assert error.http_status == status
    assert str(error) == "the text"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (408, errors.DeadlineExceededError),
        (413, errors.ResourceExhaustedError),
        (502, errors.UnavailableError),
        (302, errors.UnknownError),
        (418, errors.UnknownError),
        (0, errors.UnknownError),
    ],
)
def test_http_statuses_that_no_code_has(status: int, expected: type[ServableError]) -> None:
    assert type(errors.error_for_http_status(status, "")) is expected


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("ccn", ["mlp", "cnn"], "did you mean 'cnn'? Known: cnn, mlp"),
        ("xyz", ["mlp", "cnn"], "Known: cnn, mlp"),
        ("cnn", [], "there is none"),
        ("", ["cnn"], "Known: cnn"),
        ("cn", iter(["cnn"]), "did you mean 'cnn'? Known: cnn"),
    ],
)
def test_nearest(name: str, known: list[str], expected: str) -> None:
    assert errors.nearest(name, known) == expected


def test_missing_extra_names_the_command() -> None:
    error = errors.MissingExtraError("the server", "httptools", "serve")
    assert re.search(r"run: pip install (-e )?'.+\[serve\]'$", str(error))
    assert (error.package, error.extra) == ("httptools", "serve")


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "whatever it says"), True),
        (OSError(errno.EDQUOT, "whatever it says"), True),
        (OSError(errno.EACCES, os.strerror(errno.ENOSPC)), False),
        (OSError("No space left on device"), True),
        (RuntimeError("variables.data: No space left on device; write failed"), True),
        (RuntimeError("no space in the graph"), False),
    ],
)
def test_a_full_disk_is_told_whoever_says_so(error: Exception, full: bool) -> None:
    assert is_disk_full(error) == full
