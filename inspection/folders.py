"""What a path holds: one model, or a version folder whose files are checked against its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ..errors import ArtifactError, NotFoundError, StoreError, TargetError
from ..manifest import FILE_NAME, Artifact, Manifest, measure_artifact
from .graph_audit import leaves_folder
from .onnx import inspect_onnx
from .report import Entry, Inspection, Model
from .saved_model import BINARY, TEXT, inspect_saved_model
from .tflite import IDENTIFIER, inspect_tflite

_GRAPHS = (BINARY, TEXT)
_SUFFIXES = (".tflite", ".onnx")


def inspect(path: Path | str) -> Inspection:
    """Look into a ``.tflite`` or ``.onnx`` file, a SavedModel folder or a version folder.

    In a version folder every artifact is looked into, and what cannot be read is said in its `Entry`.
    Raises `NotFoundError` if there is nothing at ``path``, `TargetError` for a folder that holds no model,
    `ArtifactError` for a file that is no model or a damaged one, and `StoreError` for a damaged manifest.
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"there is no file or folder {path}")
    if not path.is_dir():
        return Inspection(str(path), None, (_single(path),))
    if (path / FILE_NAME).is_file():
        manifest = Manifest.read(path)
        return Inspection(str(path), manifest, tuple(_entries(path, manifest)))
    if not _is_saved_model(path):
        raise TargetError(f"{path} is neither a SavedModel nor a version folder{_hint(path)}")
    return Inspection(str(path), None, (Entry("saved_model", str(path), "unchecked", model=inspect_saved_model(path)),))


def _hint(folder: Path) -> str:
    with suppress(OSError):
        found = sorted(entry for entry in folder.iterdir() if entry.suffix in _SUFFIXES or _is_saved_model(entry))
        if found:
            return f"; give one of the models in it: {', '.join(map(str, found[:5]))}"
    return f"; give a folder with {BINARY} or {FILE_NAME}, or a .tflite or .onnx file"


def _is_saved_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _GRAPHS)


def _single(path: Path) -> Entry:
    """A single file; where it lies in a version folder, with what the manifest there says of it."""
    is_graph = path.name in _GRAPHS and path.is_file()
    model = inspect_saved_model(path.parent) if is_graph else _inspect_file(path)
    with suppress(StoreError):
        for artifact in Manifest.read(path.parent).artifacts:
            if artifact.path == ("." if is_graph else path.name):
                same = artifact.sha256 == model.sha256
                return Entry(artifact.label, str(path), "ok" if same else "damaged", "" if same else _CHANGED, model)
        return Entry(model.format, str(path), "not listed", _UNLISTED, model)
    return Entry(model.format, str(path), "unchecked", model=model)


def _inspect_file(path: Path) -> Model:
    if not path.is_file():
        raise ArtifactError(f"{path} is not a file that holds a model")
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    if path.suffix == ".tflite" or head[4:8] == IDENTIFIER:
        return inspect_tflite(path)
    if path.suffix == ".onnx":
        return inspect_onnx(path)
    hint = "; export it first: servable export" if path.suffix in (".keras", ".h5", ".hdf5") else ""
    raise ArtifactError(f"{path} is not a model: expected a .tflite file, an .onnx file or a SavedModel folder{hint}")


_CHANGED = "its SHA-256 is not the one in the manifest: it is damaged or was changed after its export"


_UNLISTED = f"{FILE_NAME} does not speak of it"


def _entries(folder: Path, manifest: Manifest) -> Iterator[Entry]:
    for artifact in manifest.artifacts:
        yield _check(folder, artifact)
    listed = {str(PurePosixPath(artifact.path)) for artifact in manifest.artifacts}
    if "." not in listed and _is_saved_model(folder):
        yield _unlisted(folder, ".", "saved_model")
    for file in sorted(folder.iterdir()):
        if file.suffix in _SUFFIXES and file.name not in listed:
            yield _unlisted(folder, file.name, file.suffix[1:])


def _check(folder: Path, artifact: Artifact) -> Entry:
    where = folder / artifact.path
    if leaves_folder(artifact.path):
        return Entry(artifact.label, artifact.path, "damaged", "the manifest's path leads out of the folder")
    there = _is_saved_model(folder) if artifact.path == "." else where.is_file()
    if not there:
        return Entry(artifact.label, artifact.path, "missing", f"there is no {where}")
    model, note = None, ""
    try:
        model = inspect_saved_model(folder) if artifact.path == "." else _inspect_file(where)
        sha256 = model.sha256
    except ArtifactError as error:
        note = str(error)
        try:
            sha256, _ = measure_artifact(folder, artifact.path)
        except OSError:
            return Entry(artifact.label, artifact.path, "damaged", note)
    if sha256 != artifact.sha256:
        return Entry(artifact.label, artifact.path, "damaged", f"{_CHANGED}; {note}" if note else _CHANGED, model)
    return Entry(artifact.label, artifact.path, "ok", note, model)


def _unlisted(folder: Path, path: str, label: str) -> Entry:
    note = _UNLISTED
    try:
        model = inspect_saved_model(folder) if path == "." else _inspect_file(folder / path)
    except ArtifactError as error:
        return Entry(label, path, "not listed", f"{note}; {error}")
    return Entry(label, path, "not listed", note, model)
