"""The exception tree, and the one table from an error to a gRPC code, an HTTP status and an exit code.

    ServableError                    UNKNOWN              500   exit 1
    ├── CancelledError               CANCELLED            499   exit 1
    ├── UnknownError                 UNKNOWN              500   exit 1
    ├── InvalidArgumentError         INVALID_ARGUMENT     400   exit 2
    │   ├── InputError               INVALID_ARGUMENT     400   exit 2
    │   ├── ImageError               INVALID_ARGUMENT     400   exit 2
    │   └── TargetError              INVALID_ARGUMENT     400   exit 2
    ├── DeadlineExceededError        DEADLINE_EXCEEDED    504   exit 6
    ├── NotFoundError                NOT_FOUND            404   exit 3
    ├── AlreadyExistsError           ALREADY_EXISTS       409   exit 4
    ├── PermissionDeniedError        PERMISSION_DENIED    403   exit 9
    ├── ResourceExhaustedError       RESOURCE_EXHAUSTED   429   exit 5
    ├── FailedPreconditionError      FAILED_PRECONDITION  400   exit 4
    │   ├── AddressInUseError        FAILED_PRECONDITION  400   exit 4
    │   ├── ArtifactError            FAILED_PRECONDITION  400   exit 4
    │   ├── DataError                FAILED_PRECONDITION  400   exit 4
    │   ├── ExportError              FAILED_PRECONDITION  400   exit 7
    │   │   └── ParityError          FAILED_PRECONDITION  400   exit 7
    │   ├── MissingExtraError        FAILED_PRECONDITION  400   exit 8
    │   └── StoreError               FAILED_PRECONDITION  400   exit 4
    ├── AbortedError                 ABORTED              409   exit 1
    ├── OutOfRangeError              OUT_OF_RANGE         400   exit 2
    ├── UnimplementedError           UNIMPLEMENTED        501   exit 1
    ├── InternalError                INTERNAL             500   exit 1
    │   └── ProcessError             INTERNAL             500   exit 1
    ├── UnavailableError             UNAVAILABLE          503   exit 5
    ├── DataLossError                DATA_LOSS            500   exit 1
    └── UnauthenticatedError         UNAUTHENTICATED      401   exit 9

Codes are the canonical gRPC ones, statuses the ones that TensorFlow Serving answers with.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from enum import IntEnum
from importlib.metadata import PackageNotFoundError, distribution
from typing import ClassVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

__all__ = [
    "HTTP_STATUS",
    "AbortedError",
    "AddressInUseError",
    "AlreadyExistsError",
    "ArtifactError",
    "CancelledError",
    "Code",
    "DataError",
    "DataLossError",
    "DeadlineExceededError",
    "ExportError",
    "FailedPreconditionError",
    "ImageError",
    "InputError",
    "InternalError",
    "InvalidArgumentError",
    "MissingExtraError",
    "NotFoundError",
    "OutOfRangeError",
    "ParityError",
    "PermissionDeniedError",
    "ProcessError",
    "ResourceExhaustedError",
    "ServableError",
    "StoreError",
    "TargetError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UnknownError",
    "error_for_code",
    "error_for_http_status",
    "is_disk_full",
    "nearest",
]


class Code(IntEnum):
    """Canonical status codes, numbered as gRPC and ``tensorflow.error.Code`` number them."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


HTTP_STATUS: dict[Code, int] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


class ServableError(Exception):
    """Root of everything that servable raises on purpose.

    ``str(error)`` is one line that names the thing at fault and the way out. It can be pickled, to come
    out of a process of its own.
    """

    code: ClassVar[Code] = Code.UNKNOWN
    exit_code: ClassVar[int] = 1

    @property
    def http_status(self) -> int:
        """HTTP status that TensorFlow Serving gives this error's code."""
        return HTTP_STATUS[self.code]


class CancelledError(ServableError):
    """The caller gave up."""

    code = Code.CANCELLED


class UnknownError(ServableError):
    """A server answered with an error that it could not classify."""

    code = Code.UNKNOWN


class InvalidArgumentError(ServableError):
    """The request itself is wrong, whatever the state of the server."""

    code = Code.INVALID_ARGUMENT
    exit_code = 2


class InputError(InvalidArgumentError):
    """An input tensor has the wrong name, dtype, shape or values."""


class ImageError(InvalidArgumentError):
    """A file or byte string is not a picture that can be decoded."""


class TargetError(InvalidArgumentError):
    """A target string names no server, file or store that a client could connect to."""


class DeadlineExceededError(ServableError):
    """No answer came within the time limit."""

    code = Code.DEADLINE_EXCEEDED
    exit_code = 6


class NotFoundError(ServableError):
    """A model, version, signature or file does not exist."""

    code = Code.NOT_FOUND
    exit_code = 3


class AlreadyExistsError(ServableError):
    """Something would have been overwritten."""

    code = Code.ALREADY_EXISTS
    exit_code = 4


class PermissionDeniedError(ServableError):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED
    exit_code = 9


class ResourceExhaustedError(ServableError):
    """A limit was reached: quota, message size, queue, disk."""

    code = Code.RESOURCE_EXHAUSTED
    exit_code = 5


class FailedPreconditionError(ServableError):
    """The request is sound, but the system is not in the state that it needs."""

    code = Code.FAILED_PRECONDITION
    exit_code = 4


class AddressInUseError(FailedPreconditionError):
    """A port or socket that the server was told to listen on is taken."""


class ArtifactError(FailedPreconditionError):
    """A model file cannot be loaded: missing, truncated, corrupt, or of another format."""


class DataError(FailedPreconditionError):
    """A data set is missing, incomplete or not the one that was asked for."""


class ExportError(FailedPreconditionError):
    """A conversion failed; nothing was published."""

    exit_code = 7


class ParityError(ExportError):
    """An exported artifact differs from its source by more than its tolerance."""


class MissingExtraError(FailedPreconditionError):
    """A command needs a package that only an extra of servable installs."""

    exit_code = 8

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs the package {package!r}, which is not installed; run: {_pip_command(extra)}")
        self.what = what
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        return type(self), (self.what, self.package, self.extra)


def _pip_command(extra: str) -> str:
    """What installs the extra beside the servable that runs: from the same folder or file, if pip knows it."""
    with suppress(PackageNotFoundError, ValueError, KeyError):
        origin = json.loads(distribution("servable").read_text("direct_url.json") or "{}")
        parts = urlsplit(origin["url"])
        if parts.scheme == "file":
            editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
            return f"pip install {editable}'{url2pathname(parts.path)}[{extra}]'"
    return f"pip install 'servable[{extra}]'"


class StoreError(FailedPreconditionError):
    """A model store or a manifest in it is not usable."""


class AbortedError(ServableError):
    """The operation lost against a concurrent one."""

    code = Code.ABORTED


class OutOfRangeError(ServableError):
    """A value lies outside the range that the model accepts."""

    code = Code.OUT_OF_RANGE
    exit_code = 2


class UnimplementedError(ServableError):
    """The server or the model does not support this call."""

    code = Code.UNIMPLEMENTED


class InternalError(ServableError):
    """Something broke that should not break."""

    code = Code.INTERNAL


class ProcessError(InternalError):
    """A child process ended with a failure, was killed by a signal, or never became ready."""


class UnavailableError(ServableError):
    """The server cannot be reached or cannot take the request now; trying again may help."""

    code = Code.UNAVAILABLE
    exit_code = 5


class DataLossError(ServableError):
    """Data was lost or corrupted on the way."""

    code = Code.DATA_LOSS


class UnauthenticatedError(ServableError):
    """The caller did not say who it is."""

    code = Code.UNAUTHENTICATED
    exit_code = 9


_BY_CODE: dict[Code, type[ServableError]] = {cls.code: cls for cls in ServableError.__subclasses__()}

# A status stands for several codes; a client that sees only the status takes the likeliest.
_BY_HTTP_STATUS: dict[int, type[ServableError]] = {
    400: InvalidArgumentError,
    401: UnauthenticatedError,
    403: PermissionDeniedError,
    404: NotFoundError,
    408: DeadlineExceededError,
    409: AlreadyExistsError,
    413: ResourceExhaustedError,
    429: ResourceExhaustedError,
    499: CancelledError,
    500: InternalError,
    501: UnimplementedError,
    502: UnavailableError,
    503: UnavailableError,
    504: DeadlineExceededError,
}


def error_for_code(code: int, message: str) -> ServableError:
    """The error that stands for a canonical status code; unknown numbers give `UnknownError`."""
    try:
        return _BY_CODE[Code(code)](message)
    except (ValueError, KeyError):
        return UnknownError(message)


def error_for_http_status(status: int, message: str) -> ServableError:
    """The error that stands for an HTTP status; a status of no known meaning gives `UnknownError`."""
    return _BY_HTTP_STATUS.get(status, UnknownError)(message)


def is_disk_full(error: BaseException) -> bool:
    """Whether it is for lack of space that something failed.

    An OSError says so by its number, other errors, of libraries and of processes, by the system's words for it.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in numbers
    return any(os.strerror(number) in str(error) for number in numbers)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known name, then all of them.

    >>> nearest("ccn", ["cnn", "mlp"])
    "did you mean 'cnn'? Known: cnn, mlp"
    >>> nearest("resnet", [])
    'there is none'
    """
    names = sorted(known)
    if not names:
        return "there is none"
    close = difflib.get_close_matches(name, names, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}Known: {', '.join(names)}"
