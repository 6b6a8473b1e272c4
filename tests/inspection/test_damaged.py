"""Files that are cut, scrambled, empty or of another kind: one line that names the file, whatever is in it."""

from __future__ import annotations

import random
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from servable.errors import ArtifactError, NotFoundError, ServableError, TargetError
from servable.inspection import inspect, protobuf
from servable.store import Store
from servable.wire import messages

FILES = ("model.tflite", "model_int8.tflite", "model.onnx", "model_int8.onnx", "saved_model.pb", "variables.index")


@pytest.fixture(params=FILES)
def broken(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> tuple[Path, Path, bytes]:
    """What to inspect, which file of it to spoil, and that file's content."""
    version = store.path("cnn")
    if request.param.endswith((".tflite", ".onnx")):
        path = tmp_path / request.param
        return path, path, (version / request.param).read_bytes()
    shutil.copytree(version / "variables", tmp_path / "variables")
    shutil.copy(version / "saved_model.pb", tmp_path)
    place = tmp_path / "variables" / request.param if request.param.endswith("index") else tmp_path / request.param
    return tmp_path, place, place.read_bytes()


def refusal(target: Path, file: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        inspect(target)
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message
    assert message.isprintable()
    return message


def cuts(size: int) -> Iterator[int]:
    yield from range(min(size, 100))
    yield from range(100, size, max(1, size // 200))
    yield from range(max(0, size - 30), size)


def complaint(target: Path) -> str | None:
    """What is said of it, if it is refused."""
    try:
        inspect(target)
    except ServableError as error:
        return str(error)
    return None


def test_cut_anywhere(broken: tuple[Path, Path, bytes]) -> None:
    target, file, content = broken
    # Labels are an archive behind a TFLite file, which runs without them.
    end = content.index(b"PK\x03\x04") if file.suffix == ".tflite" else len(content)
    for size in sorted(set(cuts(end))):
        file.write_bytes(content[:size])
        message = complaint(target)
        assert message is None or (str(file) in message and message.isprintable())
        # A message may end between two fields, of which the first has all that counts.
        assert message is not None or (file.suffix in (".onnx", ".pb") and size > end - 200)


def test_labels_that_are_cut_off(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes((store.path("cnn") / "model.tflite").read_bytes()[:-1])
    (entry,) = inspect(path).entries
    assert entry.model is not None
    (output,) = entry.model.metadata["outputs"]
    assert output["labels"] == "labels.txt is missing or damaged"


def test_scrambled(broken: tuple[Path, Path, bytes]) -> None:
    target, file, content = broken
    chance = random.Random(1)
    messages_seen = set()
    for _ in range(300):
        data = bytearray(content)
        for _ in range(chance.choice([1, 4, 64])):
            data[chance.randrange(len(data))] = chance.choice([0, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        file.write_bytes(data)
        messages_seen.add(complaint(target))
    assert all(message is None or message.isprintable() for message in messages_seen)


@pytest.mark.parametrize("content", [b"", b"no", b"no model at all", bytes(4096), b"\xff" * 4096, b"\0\0\0\0TFL3"])
def test_no_model_at_all(broken: tuple[Path, Path, bytes], content: bytes) -> None:
    target, file, _ = broken
    file.write_bytes(content)
    refusal(target, file)


def test_a_file_that_claims_to_be_huge(tmp_path: Path) -> None:
    for name, head in (("m.onnx", b""), ("m.tflite", b"\x10\0\0\0TFL3")):
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(head)
            file.truncate(2**42)
        started = time.monotonic()
        refusal(path, path)
        assert time.monotonic() - started < 10


def test_a_message_of_very_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bytes for each would ask for a hundred each in memory."""
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 50_000)
    path = tmp_path / "m.onnx"
    nodes = b"\x0a\x00" * 60_000
    graph = b"\x3a" + _varint(len(nodes)) + nodes
    path.write_bytes(b"\x08\x08" + graph)
    assert "has more than" in refusal(path, path)


def _varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def test_a_message_that_is_nested_deeply(tmp_path: Path) -> None:
    inner = b""
    for _ in range(2000):  # attributes with functions with attributes
        value = b"\x52" + _varint(len(inner)) + inner
        entry = b"\x0a\x01a\x12" + _varint(len(value)) + value
        inner = b"\x12" + _varint(len(entry)) + entry
    node = b"\x2a" + _varint(len(inner)) + inner
    graph = b"\x0a" + _varint(len(node)) + node
    meta = b"\x12" + _varint(len(graph)) + graph
    (tmp_path / "saved_model.pb").write_bytes(b"\x12" + _varint(len(meta)) + meta)
    refusal(tmp_path, tmp_path / "saved_model.pb")


def test_damaged_text(tmp_path: Path) -> None:
    path = tmp_path / "saved_model.pbtxt"
    for content in (b"meta_graphs {", b"meta_graphs { \x1b[2J }", b"\xff\xfe", b"meta_graphs {" * 5000, b""):
        path.write_bytes(content)
        message = refusal(tmp_path, path if content else tmp_path)
        assert message.isprintable()


def test_offsets_of_a_table_that_lead_nowhere(store: Store, tmp_path: Path) -> None:
    content = (store.path("cnn") / "model.tflite").read_bytes()
    path = tmp_path / "m.tflite"
    for offset in (0, 1, 2**31, 2**32 - 1, len(content), len(content) - 1):
        path.write_bytes(struct.pack("<I", offset) + content[4:])
        refusal(path, path)


def test_an_index_of_variables_with_wrong_numbers(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.path("cnn") / "variables", tmp_path / "variables")
    shutil.copy(store.path("cnn") / "saved_model.pb", tmp_path)
    index = tmp_path / "variables" / "variables.index"
    content = index.read_bytes()
    compressed = bytearray(content)
    for end in range(len(content) - 60, len(content) - 48):
        compressed[end] = 1
    for data in (
        bytes(compressed),
        content[:-48] + b"\xff" * 40 + content[-8:],
        content[:-48] + bytes(40) + content[-8:],
    ):
        index.write_bytes(data)
        refusal(tmp_path, index)


def test_paths_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file or folder"):
        inspect(tmp_path / "nothing")
    with pytest.raises(TargetError, match=r"is neither a SavedModel nor a version folder; give a folder with"):
        inspect(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(TargetError, match=r"give one of the models in it: .*a\.onnx"):
        inspect(tmp_path)
    for name in ("notes.txt", "model.keras"):
        (tmp_path / name).write_text("notes")
        with pytest.raises(ArtifactError, match="is not a model: expected a"):
            inspect(tmp_path / name)
    with pytest.raises(ArtifactError, match="is not a file that holds a model"):
        inspect("/dev/null")


def test_a_saved_model_without_a_graph(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(messages.SavedModel(saved_model_schema_version=1).SerializeToString())
    with pytest.raises(ArtifactError, match="it has no graph"):
        inspect(tmp_path)
