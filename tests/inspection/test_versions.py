"""Version folders: every artifact against its manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servable.errors import StoreError
from servable.inspection import Entry, inspect
from servable.manifest import FILE_NAME
from servable.store import Store


@pytest.fixture
def version(store: Store, tmp_path: Path) -> Path:
    folder = tmp_path / "7"
    shutil.copytree(store.path("cnn"), folder)
    return folder


def entries(folder: Path) -> dict[str, Entry]:
    return {entry.path: entry for entry in inspect(folder).entries}


def test_a_changed_byte(version: Path) -> None:
    path = version / "model_int8.tflite"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    found = inspect(version)
    assert not found.sound
    assert {entry.path: entry.state for entry in found.entries if entry.state != "ok"} == {path.name: "damaged"}
    assert "SHA-256" in entries(version)[path.name].note
    (entry,) = inspect(path).entries
    assert entry.state == "damaged"


def test_a_changed_variable(version: Path) -> None:
    (path,) = (version / "variables").glob("*.data-*")
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    assert entries(version)["."].state == "damaged"


def test_a_file_that_is_cut_off(version: Path) -> None:
    path = version / "model.onnx"
    path.write_bytes(path.read_bytes()[:1000])
    entry = entries(version)[path.name]
    assert (entry.state, entry.model) == ("damaged", None)
    assert str(path) in entry.note


def test_missing_files(version: Path) -> None:
    (version / "model.onnx").unlink()
    (version / "saved_model.pb").unlink()
    found = entries(version)
    assert (found["model.onnx"].state, found["."].state) == ("missing", "missing")
    assert not inspect(version).sound


def test_files_that_the_manifest_does_not_list(version: Path) -> None:
    shutil.copy(version / "model.onnx", version / "mine.onnx")
    (version / "more.tflite").write_bytes(b"no model")
    found = entries(version)
    assert found["mine.onnx"].state == found["more.tflite"].state == "not listed"
    assert found["mine.onnx"].model is not None
    assert found["more.tflite"].model is None
    assert not inspect(version).sound
    (entry,) = inspect(version / "mine.onnx").entries
    assert entry.state == "not listed"


def edited(version: Path, change: Callable[[Any], None]) -> Path:
    path = version / FILE_NAME
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return version


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a/../../b"])
def test_a_manifest_that_leads_out_of_the_folder(version: Path, path: str) -> None:
    def lead_out(manifest: Any) -> None:
        manifest["artifacts"][1]["path"] = path

    entry = entries(edited(version, lead_out))[path]
    assert (entry.state, entry.note) == ("damaged", "the manifest's path leads out of the folder")


def test_a_damaged_manifest(version: Path) -> None:
    (version / FILE_NAME).write_text("{")
    with pytest.raises(StoreError, match=FILE_NAME):
        inspect(version)
    (entry,) = inspect(version / "model.onnx").entries  # the file itself is none the worse for it
    assert entry.state == "unchecked"
