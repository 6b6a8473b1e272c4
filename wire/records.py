"""TFRecord files: what warm-up requests, and TensorFlow's data sets, are kept in; uncompressed ones."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from .. import extras
from ..errors import DataLossError, NotFoundError, PermissionDeniedError

# Each record: the length of its data, a checksum of that length, the data, a checksum of the data.
_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = _LENGTH.size + _CHECKSUM.size

_WAY_OUT = "Please verify your warmup data is in TFRecord format."


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a file, one after the other; those before a damaged one are still given.

    Raises `DataLossError` where the file is truncated or corrupt, `NotFoundError` if there is none.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for whoever writes to it
            raise DataLossError(f"{path} is not a file. {_WAY_OUT}")
        with path.open("rb") as file:
            yield from _records(file, path)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}; No such file or directory") from error
    except PermissionError as error:
        raise PermissionDeniedError(f"{path} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise DataLossError(f"{path} cannot be read: {error.strerror}. {_WAY_OUT}") from error


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Write a file of these records, over what was there."""
    with path.open("wb") as file:
        for data in records:
            length = _LENGTH.pack(len(data))
            file.write(b"".join((length, _checksum(length), data, _checksum(data))))


def _records(file: BinaryIO, path: Path) -> Iterator[bytes]:
    left = os.fstat(file.fileno()).st_size
    offset, number = 0, 0

    def damaged(what: str) -> DataLossError:
        return DataLossError(f"{path}: record {number}, at byte {offset}, {what}. {_WAY_OUT}")

    while header := file.read(_HEADER_BYTES):
        number += 1
        if len(header) < _HEADER_BYTES:
            raise damaged("is truncated")
        if _checksum(header[: _LENGTH.size]) != header[_LENGTH.size :]:
            raise damaged("is corrupted: the checksum of its length is wrong")
        (length,) = _LENGTH.unpack_from(header)
        left -= _HEADER_BYTES + length + _CHECKSUM.size
        if left < 0:  # before so much memory is asked for
            raise damaged(f"is truncated: {length} bytes should follow")
        data, checksum = file.read(length), file.read(_CHECKSUM.size)
        if len(data) < length or len(checksum) < _CHECKSUM.size:
            raise damaged(f"is truncated: {length} bytes should follow")
        if _checksum(data) != checksum:
            raise damaged("is corrupted: the checksum of its data is wrong")
        yield data
        offset += _HEADER_BYTES + length + _CHECKSUM.size


def _checksum(data: bytes) -> bytes:
    """The masked CRC-32C, as the file has it."""
    crc: int = extras.load("google_crc32c", "reading TFRecord files").value(data)
    return _CHECKSUM.pack(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
