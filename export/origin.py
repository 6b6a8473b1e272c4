"""Where a model comes from: a Keras file, a SavedModel, a handle of TensorFlow Hub, or Python code."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import re
import sys
import tarfile
import tempfile
import urllib.error
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Literal
from urllib.parse import urlsplit

from .. import extras
from ..errors import (
    ArtifactError,
    ExportError,
    InvalidArgumentError,
    MissingExtraError,
    NotFoundError,
    UnavailableError,
    nearest,
)
from ..wire.signatures import is_saved_model
from . import trust
from .keras_model import KerasModel
from .saved_source import open_saved_model
from .source_model import SourceModel, first_line

KERAS_SUFFIXES = (".keras", *trust.HDF5_SUFFIXES)
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz")
_WHAT = (
    "a .keras or .h5 file, a SavedModel folder, a TensorFlow Hub handle (URL, folder or .tar.gz) or "
    "package.module:callable"
)

_PLAIN_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://.+", re.IGNORECASE)
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_CALLABLE = re.compile(rf"({_DOTTED.pattern}):({_DOTTED.pattern})")
# Parts of handles that say what every module of a kind is.
_NO_NAMES = {"classification", "classifier", "feature_vector", "feature-vector", "frameworks", "variations"}
_NO_NAMES |= {"tensorflow1", "tensorflow2", "tensorflow", "tf1", "tf2", "default", "versions"}
# Keras 3 gives another function this name of Keras 2 (slope 1/6, not 0.2), and would load the file.
_CHANGED = "hard_sigmoid"
_UNKNOWN_OBJECT = re.compile(r"(?:Unknown \w+: '|Could not locate (?:class|function) ')([^']+)'")
_REASON_LENGTH = 300


@dataclass(frozen=True)
class Opening:
    """How a source is opened.

    ``signature`` is one of a SavedModel (None: ``serving_default``, or the only one). ``inputs`` and
    ``outputs`` are names for those of a Keras model. ``trust`` allows a Keras file to hold code.
    ``custom_objects`` is a module, importable from the working directory, with the layers, models and
    functions that a Keras file needs and that are not Keras's own.
    """

    signature: str | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    trust: bool = False
    custom_objects: str | None = None


def is_origin(text: str) -> bool:
    """Whether a text says where a model lies, and is not just the name of one in the catalogue.

    >>> is_origin("cnn"), is_origin("./cnn"), is_origin("cnn.keras"), is_origin("models:cnn")
    (False, True, True, True)
    """
    return not _PLAIN_WORD.fullmatch(text)


def default_name(text: str) -> str:
    """The name in the store of a model that nobody named: a valid one, made of where it comes from.

    >>> default_name("trained/half plus two.keras"), default_name("models/half_plus_two/00000123")
    ('half_plus_two', 'half_plus_two')
    >>> default_name("https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/classification/5")
    'mobilenet_v2_100_224'
    >>> default_name("package.module:build_cnn")
    'build_cnn'
    """
    if _URL.fullmatch(text):
        parts = [part for part in (urlsplit(text).netloc + urlsplit(text).path).split("/") if part]
        if "models" in parts[1:-2]:  # Kaggle's: …/models/<owner>/<model>/<framework>/<variation>/<version>
            parts = parts[: parts.index("models") + 3]
        parts = [part for part in parts if part.lower() not in _NO_NAMES] or [text]
    elif _CALLABLE.fullmatch(text) and not Path(text).exists():
        parts = [re.split("[.:]", text)[-1]]
    else:
        parts = list(Path(text).resolve().parts)
    while len(parts) > 1 and parts[-1].isdecimal():
        parts.pop()
    name = parts[-1]
    suffix = next((each for each in (*KERAS_SUFFIXES, *ARCHIVE_SUFFIXES) if name.endswith(each)), "")
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", name[: len(name) - len(suffix)]).lstrip("._-").rstrip("_")
    return name or "model"


def open_model(text: str, how: Opening | None = None) -> SourceModel:
    """Open a model: a Keras file, a SavedModel folder or archive, a TensorFlow Hub handle, or a callable.

    Keras files are loaded by Keras 3, and those that Keras 2 wrote by tf_keras where Keras 3 cannot. A
    handle is downloaded to the cache of tensorflow_hub. An archive is unpacked for as long as the
    process runs. A callable is imported, from the working directory too, and called without arguments.

    Raises `NotFoundError` for what does not exist, `ArtifactError` for what is damaged or of another
    format, `ExportError` for a file with code that nobody vouched for and for a model that cannot be
    built, `InvalidArgumentError` for options that do not go with the source, `UnavailableError` for a
    failed download, and `MissingExtraError` without a package that it takes.
    """
    how = how or Opening()
    kind = check_origin(text, how)
    if kind == "url":
        return _open_folder(text, _download(text), how)
    if kind == "callable":
        return _call(text, how)
    if kind == "archive":
        return _open_folder(text, _unpack(Path(text)), how)
    return _open_folder(text, Path(text), how) if kind == "folder" else _open_keras(Path(text), how)


def check_origin(text: str, how: Opening) -> Literal["url", "callable", "folder", "archive", "keras"]:
    """What kind of source this is, with nothing loaded.

    Raises what `open_model` raises for a source that is missing or of no format that can be exported, and
    for options that do not go with it.
    """
    path = Path(text)
    if _URL.fullmatch(text):
        _refuse(text, how, "custom_objects")
        return "url"
    if not path.exists() and _CALLABLE.fullmatch(text):
        _refuse(text, how, "signature", "custom_objects")
        _check_module(text.partition(":")[0])
        return "callable"
    if not path.exists():
        raise NotFoundError(f"there is no {text}: give {_WHAT}")
    if path.is_dir():
        _refuse(text, how, "custom_objects")
        _saved_model_in(text, path)
        return "folder"
    if path.name.endswith(ARCHIVE_SUFFIXES):
        _refuse(text, how, "custom_objects")
        return "archive"
    if path.suffix in KERAS_SUFFIXES:
        _refuse(text, how, "signature")
        return "keras"
    if path.name.startswith("saved_model.pb"):
        raise ArtifactError(f"{text} is part of a SavedModel: give its folder, {path.parent}")
    raise ArtifactError(f"{text} is of no format that can be exported: give {_WHAT}")


def _refuse(text: str, how: Opening, *options: str) -> None:
    for option in options:
        if getattr(how, option):
            raise InvalidArgumentError(f"--{option.replace('_', '-')} does not go with {text}")


def _open_folder(text: str, folder: Path, how: Opening) -> SourceModel:
    return open_saved_model(_saved_model_in(text, folder), how.signature, how.inputs, how.outputs)


def _saved_model_in(text: str, folder: Path) -> Path:
    """The folder that is a SavedModel: this one, or the only one in an archive."""
    if is_saved_model(folder):
        return folder
    inside = sorted(child for child in folder.iterdir() if child.is_dir() and is_saved_model(child))
    if folder != Path(text) and len(inside) == 1:  # an archive of a folder
        return inside[0]
    hint = f"; it has several inside: give one of them, such as {inside[-1]}" if inside else ""
    raise ArtifactError(f"{text} is no SavedModel: it has no saved_model.pb{hint}")


def _unpack(path: Path) -> Path:
    """The contents of an archive, in a folder that is removed when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="servable-")
    atexit.register(folder.cleanup)
    try:
        with tarfile.open(path, "r:gz") as archive:
            archive.extractall(folder.name, filter="data")
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        folder.cleanup()
        raise ArtifactError(f"{path} cannot be unpacked: {first_line(error)}") from error
    return Path(folder.name)


def _download(handle: str) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources, which says that it is deprecated
        extras.load("tensorflow", "a TensorFlow Hub handle")
        hub = extras.load("tensorflow_hub", "a TensorFlow Hub handle")
    try:
        return Path(hub.resolve(handle))
    except urllib.error.HTTPError as error:
        kind = NotFoundError if error.code in (404, 410) else UnavailableError
        raise kind(f"{handle} could not be downloaded: {error.code} {error.reason}") from error
    except Exception as error:  # the errors of sockets, of TensorFlow's file systems and of tensorflow_hub itself
        reason = getattr(error, "reason", None) or first_line(error)
        raise UnavailableError(
            f"{handle} could not be downloaded: {reason}; download it elsewhere, and give its folder or .tar.gz"
        ) from error


def _call(text: str, how: Opening) -> KerasModel:
    module_name, _, path = text.partition(":")
    target: Any = _import(module_name)
    for part in path.split("."):
        if not hasattr(target, part):
            names = [name for name, value in vars(target).items() if callable(value) and name[0] != "_"]
            where = getattr(sys.modules[module_name], "__file__", None) or "built in"
            raise NotFoundError(f"{module_name} ({where}) has no {path!r}; {nearest(part, names)}")
        target = getattr(target, part)
    # A model is callable itself, but a class of models is there to be called.
    if isinstance(target, type) or not hasattr(target, "count_params"):
        if not callable(target):
            raise InvalidArgumentError(f"{text} is no callable that returns a Keras model: {type(target).__name__}")
        try:
            target = target()
        except (Exception, SystemExit) as error:  # the user's own code raises every kind
            raise ExportError(f"{text} failed: {_said(error)}") from error
    try:
        return KerasModel.of(target, how.inputs, how.outputs)
    except ExportError as error:
        raise ExportError(f"{text} returned nothing to export: {error}") from error


def _import(name: str) -> ModuleType:
    """Import a module of the working directory, or an installed one."""
    _check_module(name)
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the user's own code raises every kind
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise _no_module(missing, name) from None
        raise ExportError(f"the module {name} cannot be imported: {_said(error)}") from error


def _check_module(name: str) -> None:
    """Raise `NotFoundError` unless the module, or the package that it is in, can be found."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    package = name.split(".", maxsplit=1)[0]
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise _no_module(package, name)


def _no_module(missing: str, name: str) -> NotFoundError:
    hint = f"; did you mean {name.removesuffix('.py')!r}?" if name.endswith(".py") else ""
    return NotFoundError(f"there is no module {missing!r}, here in {Path.cwd()} or installed{hint}")


def _open_keras(path: Path, how: Opening) -> KerasModel:
    file = trust.read(path)
    objects = _custom_objects(how.custom_objects) if how.custom_objects else {}
    if not how.trust:
        trust.check(file, {*objects, *_registered()}, how.custom_objects)
    libraries = [] if file.of_keras_2 and file.mentions(_CHANGED) else ["keras"]
    if file.of_keras_2:
        libraries.append("tf_keras")
    errors: list[Exception] = []
    for library in libraries:
        try:
            return _load(library, path, objects, how)
        except (InvalidArgumentError, MissingExtraError):
            raise
        except Exception as error:  # noqa: BLE001  # Keras raises every kind, and another library may be able
            errors.append(error)
    unknown = _UNKNOWN_OBJECT.search(str(errors[-1]))
    if unknown:
        raise ExportError(trust.missing_object(path, unknown[1], how.custom_objects)) from errors[-1]
    reasons = [_reason(error) for error in errors]
    also = f"; tf_keras says: {reasons[1]}" if len(reasons) > 1 else ""
    if path.suffix in trust.HDF5_SUFFIXES and not file.of_keras_2:
        also = "; Keras 3 cannot put every model into HDF5: save it with model.save('model.keras')"
    kind = ExportError if isinstance(errors[0], ExportError) else ArtifactError
    raise kind(f"{path} cannot be loaded: {reasons[0]}{also}") from errors[0]


def _load(library: str, path: Path, objects: Mapping[str, Any], how: Opening) -> KerasModel:
    keras = _library(library)
    model = keras.saving.load_model(str(path), custom_objects=objects, compile=False, safe_mode=not how.trust)
    # Where Keras 3 does not look, it makes a custom model of tf_keras, and finds no weights in it to set.
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise ExportError(f"it holds no model of {library} but a {kind}")
    return KerasModel.of(model, how.inputs, how.outputs)


def _library(name: str) -> Any:
    extras.load("tensorflow", "loading a Keras file")
    return extras.load(name, "loading a Keras file" if name == "keras" else "loading a file of Keras 2")


def _registered() -> set[str]:
    """Names that ``register_keras_serializable`` has given in this process."""
    names = set(_library("keras").saving.get_custom_objects())
    # Who has registered something there has imported it.
    return names | set(sys.modules["tf_keras"].saving.get_custom_objects()) if "tf_keras" in sys.modules else names


def _custom_objects(module: str) -> dict[str, Any]:
    """Classes and functions of a module by name; what it registers with Keras is registered by then."""
    if not _DOTTED.fullmatch(module):
        raise InvalidArgumentError(f"--custom-objects {module}: give the name of a module, as in package.module")
    found = vars(_import(module)).items()
    return {
        name: value
        for name, value in found
        if (isinstance(value, FunctionType) or (isinstance(value, type) and hasattr(value, "from_config")))
        and value.__module__.split(".")[0] not in ("keras", "tf_keras", "tensorflow")
    }


def _reason(error: Exception) -> str:
    """What a loader says, without the configurations that it quotes on the way."""
    text = str(error).rpartition("Exception encountered: ")[2]
    line = re.sub(r"\x1b\[\d*m", "", first_line(Exception(text)) if text else type(error).__name__)
    line = re.split(r" (?:Full object config|using config|config|Please ensure you|Make sure)\b", line)[0]
    return line if len(line) <= _REASON_LENGTH else f"{line[:_REASON_LENGTH]}…"


def _said(error: BaseException) -> str:
    lines = str(error).split("\n")
    return f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__
