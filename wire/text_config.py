"""The text-format configuration files of TensorFlow Serving's command line."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from google.protobuf import text_format
from google.protobuf.message import Message

from ..errors import InvalidArgumentError
from . import messages

_M = TypeVar("_M", bound=Message)


def read(path: Path, kind: type[_M]) -> _M:
    """Parse a file as a message of ``kind``.

    Raises `InvalidArgumentError` naming the file and, where it is no such message, line and reason.
    """
    try:
        return text_format.Parse(path.read_bytes(), kind(), descriptor_pool=messages.POOL)
    except OSError as error:
        raise InvalidArgumentError(f"{path} cannot be read: {error.strerror}") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(
            f"Invalid protobuf file: '{path}': not a {kind.DESCRIPTOR.name} in text format: {error}"
        ) from error
