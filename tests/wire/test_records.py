"""TFRecord files, held against TensorFlow's own reader and writer."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import google_crc32c
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servable.errors import DataLossError, NotFoundError, PermissionDeniedError
from servable.wire.records import read_records, write_records

# One file that every example writes anew.
SHARED = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RECORDS = st.lists(st.binary(max_size=40), max_size=4)
TAIL = r"\. Please verify your warmup data is in TFRecord format\.$"


def tensorflow_writes(path: Path, records: list[bytes]) -> bytes:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path.read_bytes()


def tensorflow_reads(path: Path) -> list[bytes]:
    """The records of a file; ValueError where TensorFlow refuses it."""
    try:
        return [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    except tf.errors.DataLossError as error:
        raise ValueError(str(error)) from error


def damaged(path: Path) -> tuple[list[bytes], str]:
    """The records before the damage, and what is said about it."""
    records, found = read_records(path), []
    with pytest.raises(DataLossError, match=TAIL) as caught:
        found.extend(records)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return found, message


@given(records=RECORDS)
@SHARED
def test_what_tensorflow_writes_is_read(records: list[bytes], tmp_path: Path) -> None:
    tensorflow_writes(tmp_path / "records", records)
    assert list(read_records(tmp_path / "records")) == records


@given(records=RECORDS)
@SHARED
def test_what_is_written_is_what_tensorflow_writes_and_reads(records: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "records"
    want = tensorflow_writes(path, records)
    write_records(path, iter(records))
    assert path.read_bytes() == want
    assert tensorflow_reads(path) == records


def test_a_large_record_survives(tmp_path: Path) -> None:
    records = [os.urandom(3_000_000), b"", b"x" * 100_000]
    write_records(tmp_path / "records", records)
    assert list(read_records(tmp_path / "records")) == records == tensorflow_reads(tmp_path / "records")


@given(records=st.lists(st.binary(max_size=40), min_size=1, max_size=3), data=st.data())
@SHARED
def test_any_byte_changed_is_found(records: list[bytes], data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "records"
    write_records(path, records)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found, _ = damaged(path)
    assert found == records[: len(found)]
    assert len(found) < len(records)
    with pytest.raises(ValueError, match=r"(corrupted|truncated) record at"):
        tensorflow_reads(path)


@given(records=RECORDS, data=st.data())
@SHARED
def test_a_cut_file_gives_its_whole_records_and_no_other(
    records: list[bytes], data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "records"
    write_records(path, records)
    content = path.read_bytes()
    ends = [0]
    for record in records:
        ends.append(ends[-1] + 16 + len(record))
    size = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:size])
    whole = records[: sum(end <= size for end in ends[1:])]
    if size in ends:
        assert list(read_records(path)) == whole == tensorflow_reads(path)
        return
    found, message = damaged(path)
    assert found == whole
    assert f": record {len(whole) + 1}, at byte {ends[len(whole)]}, is truncated" in message
    if size - ends[len(whole)] < 12:  # TensorFlow takes a piece of a header for the end
        assert tensorflow_reads(path) == whole
        return
    with pytest.raises(ValueError, match=f"truncated record at {ends[len(whole)]}"):
        tensorflow_reads(path)


@given(content=st.binary(min_size=1, max_size=100))
@SHARED
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "records").write_bytes(content)
    assert damaged(tmp_path / "records")[0] == []


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 5])
def test_a_length_beyond_the_file_asks_for_no_memory(length: int, tmp_path: Path) -> None:
    packed = struct.pack("<Q", length)
    crc = google_crc32c.value(packed)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
    write_records(tmp_path / "records", [b"good"])
    with (tmp_path / "records").open("ab") as file:
        file.write(packed + struct.pack("<I", masked) + b"tiny" + b"\0\0\0\0")
    found, message = damaged(tmp_path / "records")
    assert found == [b"good"]
    assert f"record 2, at byte 20, is truncated: {length} bytes should follow" in message


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    path = tmp_path / "records"
    write_records(path, [b"one", b"two"])
    content = path.read_bytes()
    path.write_bytes(content[:19] + b"\xff" + content[20:])
    assert "record 2, at byte 19, is corrupted: the checksum of its length is wrong" in damaged(path)[1]
    path.write_bytes(content[:-5] + b"?" + content[-4:])
    assert "record 2, at byte 19, is corrupted: the checksum of its data is wrong" in damaged(path)[1]


def test_a_file_that_shrinks_while_it_is_read_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "records"
    write_records(path, [b"x" * 300_000] * 3)  # more than a buffer
    records = read_records(path)
    assert next(records) == b"x" * 300_000
    os.truncate(path, 400_000)
    with pytest.raises(DataLossError, match=r"record 2, at byte 300016, is truncated"):
        next(records)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        next(read_records(tmp_path / "none"))
    assert str(caught.value) == f"{tmp_path / 'none'}; No such file or directory"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "is not a file" in damaged(tmp_path)[1]
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in damaged(tmp_path / "pipe")[1]


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    write_records(tmp_path / "records", [b"x"])
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionDeniedError, match=r"records cannot be read: Permission denied$"):
        next(read_records(tmp_path / "records"))


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    write_records(tmp_path / "records", [b"x"])
    monkeypatch.setattr(Path, "open", fail)
    assert "cannot be read: Input/output error" in damaged(tmp_path / "records")[1]
