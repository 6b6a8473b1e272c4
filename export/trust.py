"""Keras files read before any loader sees them, and what in them is code rather than a model.

Keras's own safe mode is not enough for files of strangers: tf_keras does not know it for HDF5 files, and
in both formats imports and calls whatever the file names. So a file is judged by its configuration, which
both formats hold as JSON: ``config.json`` in the zip archive of a ``.keras`` file, the attribute
``model_config`` of an HDF5 file.
"""

from __future__ import annotations

import builtins
import json
import zipfile
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from .. import extras
from ..errors import ArtifactError, ExportError, ServableError
from .source_model import first_line

HDF5_SUFFIXES = (".h5", ".hdf5")
MAX_CONFIG_BYTES = 64 << 20
# What is declared to be this much larger than what is stored was made to fill the memory.
MAX_EXPANSION = 100
BOMB_BYTES = 256 << 20
_TOO_LARGE = "declares far more than the file holds"
_ELSEWHERE = "takes the weights {!r} from another file, which may be any on this machine: save the whole model anew"

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_LIBRARIES = ("keras", "tf_keras")
# Parts of module names that say where a library keeps its code, not what it is for.
_WRAPPING = ("src", "api", "_tf_keras", "keras")
_FUNCTIONS = {"activations", "constraints", "initializers", "losses", "metrics", "ops", "regularizers"}
_CLASSES = {*_FUNCTIONS, "dtype_policies", "engine", "layers", "legacy", "mixed_precision", "models", "optimizers"}
_CLASSES |= {"applications", "premade_models", "quantizers", "random"}
_INITIALIZERS = ("tensorflow.python.ops.init_ops_v2", "tensorflow.python.ops.init_ops")
_RUNS = "which is code that runs when the model does"
_CODE = {
    "Lambda": _RUNS,
    "FlaxLayer": _RUNS,
    "JaxLayer": _RUNS,
    "TorchModuleWrapper": "which unpickles what the file holds",
    "TFSMLayer": "which loads another model from the disk",
}
# Operations of TensorFlow that reach files or Python, by parts of their names.
_REACHING = ("File", "PyFunc", "Save", "Restore", "Library", "Asset")
# Modules of TensorFlow whose functions only compute, and functions of its root that do more.
_COMPUTING = {"__operators__", "bitwise", "dtypes", "image", "keras", "linalg", "math", "nn", "quantization"}
_COMPUTING |= {"ragged", "random", "sets", "signal", "sparse", "strings"}
_DOING_MORE = {"import_graph_def", "load_library", "load_op_library", "numpy_function", "print", "py_function"}
_TENSOR_CLASSES = ("RaggedTensor", "SparseTensor", "sparse.SparseTensor")


@dataclass(frozen=True)
class KerasFile:
    """What a Keras file says of itself: the configuration of its model, and the version that wrote it."""

    path: Path
    config: dict[str, Any]
    keras_version: str = ""

    @property
    def of_keras_2(self) -> bool:
        """Whether Keras 2 wrote it, or may have: Keras 3 always says its version."""
        return not self.keras_version.startswith("3.")

    def mentions(self, word: str) -> bool:
        """Whether some value of the configuration is this word."""
        return any(value == word for value, _ in _walk(self.config))


class _Object(NamedTuple):
    """One object of a configuration: a ``class``, ``function`` or ``type spec``, and the layer that it belongs to."""

    layer: str
    kind: str
    class_name: str
    module: str | None
    registered_name: str
    fields: dict[str, Any]

    @property
    def full_name(self) -> str:
        return f"{self.module}.{self.class_name}" if self.module else self.class_name


def read(path: Path) -> KerasFile:
    """Read the configuration of a ``.keras``, ``.h5`` or ``.hdf5`` file without building anything.

    Raises `ArtifactError` for a file that is damaged, that holds weights without a model, that unpacks
    to far more than it holds, or that takes weights from other files.
    """
    try:
        return _read_hdf5(path) if path.suffix.lower() in HDF5_SUFFIXES else _read_zip(path)
    except ServableError:
        raise
    except PermissionError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{path} is damaged: its configuration is not JSON: {error}") from error
    except Exception as error:  # zipfile, zlib and h5py raise every kind for damaged files
        raise ArtifactError(f"{path} is damaged: {first_line(error)}") from error


def check(file: KerasFile, known: Container[str], module: str | None = None) -> None:
    """Raise `ExportError` if the file holds code, or reaches beyond the model; it names layer and class.

    ``known`` are names of classes and functions that the user vouches for, those of ``module`` among them.
    """
    for thing in _objects(file.config):
        reason = _unsafe(thing) or _out_of_place(thing, known)
        if reason:
            raise ExportError(f"{file.path} holds {reason}: export it with --trust-source if you trust its author")
    missing = unknown_object(file, known)
    if missing:
        raise ExportError(missing_object(file.path, missing, module))


def unknown_object(file: KerasFile, known: Container[str]) -> str:
    """Dotted name of an object in the file that is neither Keras's own nor ``known``; empty if there is none."""
    for thing in _objects(file.config):
        if thing.module is not None and not _is_of_keras(thing.module) and thing.registered_name not in known:
            return thing.full_name
    return ""


def missing_object(path: Path, name: str, module: str | None = None) -> str:
    """The message about an object of a file that nobody knows; ``module`` is where it was looked for."""
    if module:
        return f"{path} needs {name!r}, which {module} neither defines nor registers; name another --custom-objects"
    return f"{path} needs {name!r}, which is not part of Keras: name the module that defines it with --custom-objects"


def _read_zip(path: Path) -> KerasFile:
    with path.open("rb") as stream:
        if stream.read(len(_HDF5_MAGIC)) == _HDF5_MAGIC:
            raise ArtifactError(f"{path} is an HDF5 file: rename it to {path.with_suffix('.h5').name}")
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > max(BOMB_BYTES, MAX_EXPANSION * member.compress_size):
                raise ArtifactError(f"{path}: {member.filename!r} {_TOO_LARGE}: {member.file_size} bytes")
        names = archive.namelist()
        if "config.json" not in names:
            raise ArtifactError(f"{path} is no Keras model: it has no config.json")
        if archive.getinfo("config.json").file_size > MAX_CONFIG_BYTES:
            raise ArtifactError(f"{path}: a config.json of more than {MAX_CONFIG_BYTES} bytes is not read")
        config = _parse(path, archive.read("config.json"))
        metadata = json.loads(archive.read("metadata.json")) if "metadata.json" in names else {}
        if "model.weights.h5" in names:
            with archive.open("model.weights.h5") as weights:
                _check_weights(path, weights)
    # Nothing is compiled, so what the training needed is never looked at.
    return KerasFile(path, {**config, "compile_config": None}, str(metadata.get("keras_version", "")))


def _read_hdf5(path: Path) -> KerasFile:
    with path.open("rb") as stream:
        _check_weights(path, stream)
    h5py = extras.load("h5py", "reading an HDF5 file")
    with h5py.File(path, "r") as file:
        config, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
        if config is None:
            what = "holds weights only" if path.name.endswith(".weights.h5") or "layer_names" in file.attrs else ""
            raise ArtifactError(
                f"{path} {what or 'holds no Keras model'}, so nothing says what to compute: save the whole model with "
                "model.save('model.keras'), or export package.module:callable that builds it and loads the weights"
            )
    return KerasFile(path, _parse(path, config), version.decode() if isinstance(version, bytes) else str(version))


def _parse(path: Path, text: str | bytes) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except RecursionError:
        raise ArtifactError(f"{path}: its configuration is nested too deeply to be read") from None
    if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
        raise ArtifactError(f"{path} is no Keras model: its configuration names no class")
    return config


def _check_weights(path: Path, stream: IO[bytes]) -> None:
    """Refuse HDF5 that reads other files, or that declares arrays which it does not hold."""
    h5py = extras.load("h5py", "reading an HDF5 file")

    # A visitor that raises leaves h5py in disorder; what it returns ends the visit.
    def external(name: str, link: Any) -> str | None:
        return name if isinstance(link, h5py.ExternalLink) else None

    def unsound(name: str, item: Any) -> ServableError | None:
        if not isinstance(item, h5py.Dataset):
            return None
        if item.external or item.is_virtual:
            return ExportError(f"{path} {_ELSEWHERE.format(name)}")
        if item.nbytes > max(BOMB_BYTES, MAX_EXPANSION * item.id.get_storage_size()):
            return ArtifactError(f"{path}: {name!r} {_TOO_LARGE}: {item.nbytes} bytes")
        return None

    with h5py.File(stream, "r") as file:
        link = file.visititems_links(external)
        if link:
            raise ExportError(f"{path} {_ELSEWHERE.format(link)}")
        error: ServableError | None = file.visititems(unsound)
        if error:
            raise error


def _walk(config: Any) -> Iterator[tuple[Any, str]]:
    """Each value of a configuration, however deep, and the name of the layer around it."""
    stack = [(config, "")]
    while stack:
        value, layer = stack.pop()
        yield value, layer
        if isinstance(value, dict):
            if "class_name" in value:
                layer = _own_name(value) or layer
            stack += [(child, layer) for child in reversed(value.values())]
        elif isinstance(value, list):
            stack += [(child, layer) for child in reversed(value)]


def _objects(config: Any) -> Iterator[_Object]:
    """Each object that a loader would build."""
    for value, layer in _walk(config):
        if not isinstance(value, dict) or "class_name" not in value:
            continue
        inner, name, module = value.get("config"), str(value["class_name"]), value.get("module")
        fields = inner if isinstance(inner, dict) else {}
        kind, registered = "class", value.get("registered_name")
        if name == "function":
            # Functions are looked up by their own name.
            kind, name, registered = "function", str(inner), None
        elif name == "__typespec__":
            kind, name = "type spec", str(value.get("spec_name"))
        own = _own_name(value)
        module = None if module is None else str(module)
        # As Keras looks a class up: by its registered name, before anything is imported.
        yield _Object(own or layer, kind, name, module, str(registered or name), fields)


def _own_name(value: dict[str, Any]) -> str:
    """The name of a layer, empty for other objects."""
    inner = value.get("config")
    name = value.get("name") or (inner.get("name") if isinstance(inner, dict) else None)
    return name if isinstance(name, str) else ""


def _unsafe(thing: _Object) -> str | None:
    """What an object is and what it would do, if that is more than to compute; else None."""
    name, fields = thing.class_name, thing.fields
    what = f"the {name} layer {thing.layer!r}"
    if name in _CODE:
        return f"{what}, {_CODE[name]}"
    # Keras 2 says beside a function how it is kept: as bytecode, or by name.
    kept = [key for key, value in fields.items() if key.endswith("_type") and value in ("lambda", "function")]
    if name == "__lambda__" or kept:
        return f"a function in the layer {thing.layer!r}, {_RUNS}"
    if isinstance(fields.get("vocabulary"), str) and fields["vocabulary"]:
        return f"{what}, which reads the file {fields['vocabulary']!r}"
    operation = _operation(thing)
    if operation:
        return f"{what}, which calls {operation!r}"
    return None


def _out_of_place(thing: _Object, known: Container[str]) -> str | None:
    """What of Keras or TensorFlow an object is, if that is nothing that models are made of."""
    if thing.module is None or not _is_of_keras(thing.module) or thing.registered_name in known:
        return None
    if _is_part_of_model(thing):
        return None
    return f"a reference to {thing.full_name!r} in the layer {thing.layer!r}, which is no part of a model"


def _operation(thing: _Object) -> str:
    """What a layer around an operation of TensorFlow calls, if that does more than to compute; else empty."""
    fields = thing.fields
    if thing.class_name == "TensorFlowOpLayer":
        found = next((word for word in _REACHING if word in str(fields.get("node_def"))), "")
        return f"{found} operations" if found else ""
    if thing.class_name == "ClassMethod":
        symbol = str(fields.get("cls_symbol"))
        return "" if symbol in _TENSOR_CLASSES else symbol
    if thing.class_name != "TFOpLambda":
        return ""
    symbol = str(fields.get("function"))
    first, dot, _ = symbol.removeprefix("compat.v1.").partition(".")
    computes = first in _COMPUTING if dot else first not in _DOING_MORE
    return "" if computes else f"tf.{symbol}"


def _is_of_keras(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] in (*_LIBRARIES, "builtins", "tensorflow")


def _is_part_of_model(thing: _Object) -> bool:
    """Whether an object of Keras or TensorFlow is one that models are made of, and not some function of theirs."""
    assert thing.module is not None
    root, *rest = thing.module.split(".")
    if root == "builtins":
        # Keras writes it for its own functions; tf_keras would take Python's.
        return thing.kind == "function" and not hasattr(builtins, thing.class_name)
    if root == "tensorflow":
        allowed = thing.kind == "type spec" or (thing.kind == "class" and thing.module in _INITIALIZERS)
        return allowed and _is_class_name(thing.class_name)
    parts = [part for part in rest if part not in _WRAPPING]
    if thing.kind == "function":
        return bool(parts) and parts[0] in _FUNCTIONS and thing.class_name.isidentifier()
    names = (thing.class_name, thing.registered_name.rpartition(">")[2])
    return (not parts or parts[0] in _CLASSES) and all(map(_is_class_name, names))


def _is_class_name(name: str) -> bool:
    return name.isidentifier() and name[0].isupper()
