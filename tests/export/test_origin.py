"""Models from anywhere: files of both Keras libraries and of long ago, custom objects, archives, handles, code."""

from __future__ import annotations

import doctest
import importlib
import io
import json
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from numpy.typing import NDArray

from servable.errors import (
    ArtifactError,
    ExportError,
    InvalidArgumentError,
    NotFoundError,
    ServableError,
    UnavailableError,
)
from servable.export import origin
from servable.export.keras_model import KerasModel
from servable.export.origin import Opening, default_name, is_origin, open_model
from servable.export.saved_source import HubModule, SavedModelFolder
from servable.store import Store

LIBRARIES = {"keras": keras, "tf_keras": tf_keras}
Array = NDArray[Any]

RNG = np.random.default_rng(0)
LEFT, RIGHT = RNG.normal(size=(5, 3)).astype(np.float32), RNG.normal(size=(5, 4)).astype(np.float32)
SEQUENCES = RNG.normal(size=(5, 6, 3)).astype(np.float32)
IMAGES = RNG.normal(size=(5, 8, 8, 3)).astype(np.float32)


def open_keras(path: Path | str, how: Opening | None = None) -> KerasModel:
    model = open_model(str(path), how)
    assert isinstance(model, KerasModel)
    return model


def assert_answers(model: Any, inputs: list[Array], expected: Any) -> None:
    """The opened model answers what the original did."""
    if isinstance(expected, Mapping):
        assert list(model.signature.outputs) == list(expected)
        expected = list(expected.values())
    arrays = [np.asarray(array) for array in (expected if isinstance(expected, list | tuple) else [expected])]
    found = model.predict(dict(zip(model.signature.inputs, inputs, strict=True)))
    for answer, array in zip(found.values(), arrays, strict=True):
        assert (answer.dtype, answer.shape) == (array.dtype, array.shape)
        np.testing.assert_allclose(answer, array, rtol=1e-5, atol=1e-6)


def functional(library: Any) -> Any:
    """Two inputs, three outputs, one of them without a name."""
    left, right = library.Input((3,), name="left"), library.Input((4,), name="right")
    layers = library.layers
    hidden = layers.BatchNormalization()(layers.Dense(3, activation="gelu")(left))
    outputs = [layers.Dense(2, name="zeta")(hidden), layers.Dense(3, name="alpha")(right), layers.Add()([hidden, left])]
    return library.Model([left, right], outputs)


def test_a_model_that_keras_3_cannot_read_from_hdf5(tmp_path: Path) -> None:
    left = keras.Input((3,))
    keras.Model(left, keras.layers.Dense(3)(left) + left).save(tmp_path / "m.h5")
    with pytest.raises(ArtifactError, match=r"cannot be loaded: .*save it with model\.save\('model\.keras'\)"):
        open_model(str(tmp_path / "m.h5"))


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".hdf5"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_files_of_both_libraries(tmp_path: Path, library: str, suffix: str) -> None:
    original = functional(LIBRARIES[library])
    path = tmp_path / f"m{suffix}"
    if suffix == ".hdf5" and library == "tf_keras":
        original.save(path, save_format="h5")
    else:
        original.save(path)
    model = open_keras(path)
    assert model.kind == ("tf_keras" if library == "tf_keras" and suffix == ".keras" else "keras")
    assert list(model.signature.inputs) == ["left", "right"]
    assert list(model.signature.outputs) == ["zeta", "alpha", "output"]
    assert model.parameters == original.count_params()
    assert_answers(model, [LEFT, RIGHT], original([LEFT, RIGHT]))


def chain(library: Any, shape: tuple[int, ...], *layers: Any, dtype: str | None = None) -> Any:
    return library.Sequential([library.Input(shape, dtype=dtype), *layers])


LAYERS = tf_keras.layers
# What Keras 2 wrote, and which library has to read it: Keras 3 where it can do so faithfully.
KERAS_2: dict[str, tuple[Callable[[], Any], Array, str]] = {
    "dense": (lambda: chain(tf_keras, (3,), LAYERS.Dense(4, "softmax")), LEFT, "keras"),
    "lstm": (lambda: chain(tf_keras, (6, 3), LAYERS.LSTM(4)), SEQUENCES, "tf_keras"),
    "separable": (lambda: chain(tf_keras, (8, 8, 3), LAYERS.SeparableConv2D(2, 3)), IMAGES, "tf_keras"),
    # Keras 3 knows another function of this name, and would answer something else.
    "hard sigmoid": (lambda: chain(tf_keras, (3,), LAYERS.Dense(4, "hard_sigmoid")), LEFT, "tf_keras"),
    # Keras 3 loads this one, and fails when it runs.
    "resizing": (lambda: chain(tf_keras, (8, 8, 3), LAYERS.Resizing(5, 4, "mitchellcubic")), IMAGES, "tf_keras"),
}


@pytest.mark.parametrize("name", KERAS_2)
def test_files_of_keras_2(tmp_path: Path, name: str) -> None:
    build, inputs, library = KERAS_2[name]
    original = build()
    original.save(tmp_path / "m.h5")
    model = open_keras(tmp_path / "m.h5")
    assert model.kind == library
    assert_answers(model, [inputs], original(inputs))


def as_of_tensorflow_1_14(path: Path) -> None:
    """Edit an HDF5 file of today to what Keras in TensorFlow 1.14 wrote: its header, and its configurations."""

    def old(value: Any) -> Any:
        if isinstance(value, list):
            return [old(each) for each in value]
        if not isinstance(value, dict):
            return value
        found = {key: old(each) for key, each in value.items() if key not in ("module", "registered_name")}
        if "class_name" in found:
            found.pop("build_config", None)
            found["class_name"] = {"Functional": "Model", "BatchNormalization": "BatchNormalizationV1"}.get(
                found["class_name"], found["class_name"]
            )
            if found["class_name"] in ("GlorotUniform", "Orthogonal", "Zeros", "Ones"):
                found["config"]["dtype"] = "float32"
        return found

    with h5py.File(path, "a") as file:
        config = old(json.loads(file.attrs["model_config"]))
        layers = config["config"]["layers"]
        if config["class_name"] == "Sequential":
            first = layers.pop(0)
            assert first["class_name"] == "InputLayer"
            layers[0]["config"]["batch_input_shape"] = first["config"]["batch_input_shape"]
        file.attrs["model_config"] = json.dumps(config).encode()
        for group in (file, file["model_weights"]):
            group.attrs["keras_version"] = b"2.2.4-tf"
            del group.attrs["backend"]


def test_recurrent_file_of_tensorflow_1_14(tmp_path: Path) -> None:
    original = chain(tf_keras, (6, 3), LAYERS.LSTM(4), LAYERS.Dense(2))
    original.save(tmp_path / "m.h5")
    as_of_tensorflow_1_14(tmp_path / "m.h5")
    model = open_keras(tmp_path / "m.h5")
    assert model.kind == "tf_keras"
    assert_answers(model, [SEQUENCES], original(SEQUENCES))


def test_convolutional_file_of_tensorflow_1_14(tmp_path: Path) -> None:
    image = tf_keras.Input((8, 8, 3))
    hidden = LAYERS.ReLU()(LAYERS.BatchNormalization()(LAYERS.Conv2D(4, 3)(image)))
    original = tf_keras.Model(image, LAYERS.Dense(2, "softmax")(LAYERS.GlobalAveragePooling2D()(hidden)))
    original.set_weights([RNG.random(weight.shape) for weight in original.get_weights()])
    original.save(tmp_path / "m.h5")
    as_of_tensorflow_1_14(tmp_path / "m.h5")
    model = open_keras(tmp_path / "m.h5")
    assert list(model.signature.inputs) == ["image"]
    assert_answers(model, [IMAGES], original(IMAGES))


def test_when_neither_library_can_read_a_file_both_say_why(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    chain(tf_keras, (6, 3), LAYERS.LSTM(4), LAYERS.Dense(2)).save(path)
    with h5py.File(path, "a") as file:
        config = json.loads(file.attrs["model_config"])
        config["config"]["layers"][2]["config"]["units"] = -1
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(ArtifactError) as caught:
        open_model(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be loaded: Unrecognized keyword arguments passed to LSTM")
    assert "; tf_keras says: " in message
    assert "units" in message
    assert "\n" not in message


def test_a_model_of_the_other_library_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader that makes such a model leaves its weights as they were made."""
    original, fresh = (chain(tf_keras, (3,), LAYERS.Dense(4)) for _ in range(2))
    original.save(tmp_path / "m.h5")
    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: fresh)
    assert_answers(open_keras(tmp_path / "m.h5"), [LEFT], original(LEFT))


def test_a_file_of_keras_3_is_read_by_keras_3_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    chain(keras, (3,), keras.layers.Dense(4)).save(path)
    with pytest.raises(ArtifactError) as caught:
        open_model(str(edited(path, '"units": 4', '"units": 5')))
    assert "tf_keras" not in str(caught.value)
    assert "\n" not in str(caught.value)


def edited(path: Path, old: str, new: str) -> Path:
    """The same .keras file with another text in its configuration."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert old.encode() in members["config.json"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(old.encode(), new.encode()) if name == "config.json" else content)
    return path


CUSTOM = """
import {library} as library


@library.saving.register_keras_serializable("mine")
class Registered(library.layers.Layer):
    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor

    def get_config(self):
        return {{**super().get_config(), "factor": self.factor}}


class Unregistered(Registered):
    pass


def shifted(x):
    return x + 2.0


class Classifier(library.Model):
    def __init__(self, units=2, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.head = library.layers.Dense(units)

    def call(self, inputs, training=None):
        return self.head(inputs) * (2.0 if training else 1.0)

    def get_config(self):
        return {{**super().get_config(), "units": self.units}}


def build(activation):
    return library.Sequential(
        [library.Input((3,)), Registered(2.0), Unregistered(3.0), library.layers.Dense(2, activation=activation)]
    )


def build_subclassed():
    return Classifier(4)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, from which modules are imported and forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with forgotten(tmp_path):
        yield tmp_path


@contextmanager
def forgotten(folder: Path) -> Iterator[None]:
    """What is imported from the folder, and registered with Keras, is so in here only."""
    registries = [library.saving.get_custom_objects() for library in LIBRARIES.values()]
    before = [dict(registry) for registry in registries]
    yield
    for registry, content in zip(registries, before, strict=True):
        registry.clear()
        registry.update(content)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]


@dataclass(frozen=True)
class Custom:
    """A module of custom objects, and what its models answer to LEFT."""

    module: str
    library: str
    expected: Mapping[str, Array]


@pytest.fixture(params=LIBRARIES)
def custom(request: pytest.FixtureRequest, here: Path) -> Custom:
    """Files ``whole.keras``, ``whole.h5`` and ``subclassed.keras``, whose module is not imported any more."""
    name = f"layers_of_{request.param}"
    (here / f"{name}.py").write_text(CUSTOM.format(library=request.param))
    with forgotten(here):
        sys.path.insert(0, str(here))
        module = importlib.import_module(name)
        # From HDF5, tf_keras does not read what it writes of an activation that is a function.
        models = {
            "whole.keras": module.build(module.shifted),
            "whole.h5": module.build(module.shifted if request.param == "keras" else "relu"),
            "subclassed.keras": module.build_subclassed(),
        }
        expected = {file: np.asarray(model(LEFT)) for file, model in models.items()}
        for file, model in models.items():
            model.save(file)
        sys.path.remove(str(here))
    return Custom(name, request.param, expected)


FILES = ("whole.keras", "whole.h5", "subclassed.keras")


@pytest.mark.parametrize("file", FILES)
def test_custom_objects(custom: Custom, file: str) -> None:
    with pytest.raises(
        ExportError, match="which is not part of Keras: name the module that defines it with --custom-o"
    ):
        open_model(file)
    assert custom.module not in sys.modules
    model = open_keras(file, Opening(custom_objects=custom.module))
    assert model.kind == custom.library
    assert_answers(model, [LEFT], custom.expected[file])


def test_registered_objects_need_no_module(custom: Custom) -> None:
    """Who has imported the module in this process has registered its classes."""
    sys.path.insert(0, str(Path.cwd()))
    original = chain(LIBRARIES[custom.library], (3,), importlib.import_module(custom.module).Registered(5.0))
    original.save("registered.keras")
    assert_answers(open_keras("registered.keras"), [LEFT], original(LEFT))


@pytest.mark.parametrize("file", FILES)
def test_a_module_without_the_object(custom: Custom, here: Path, file: str) -> None:
    (here / "empty.py").write_text("from tensorflow import keras\n\n\ndef helper():\n    pass\n")
    with pytest.raises(ExportError, match=r"needs '[\w.>]+', which empty neither defines nor registers") as caught:
        open_model(file, Opening(custom_objects="empty"))
    assert re.search("Registered|Unregistered|Classifier", str(caught.value))


@pytest.mark.parametrize("custom", ["keras"], indirect=True)
def test_trust_alone_finds_no_objects(custom: Custom) -> None:
    for file in custom.expected:
        with pytest.raises(ExportError, match="name the module that defines it with --custom-objects"):
            open_model(file, Opening(trust=True))
    assert custom.module not in sys.modules


BROKEN = {
    "missing": (None, NotFoundError, r"there is no module 'broken', here in .* or installed$"),
    "failing": ("1 / 0", ExportError, "the module broken cannot be imported: ZeroDivisionError: division by zero"),
    "leaving": ("raise SystemExit(3)", ExportError, "the module broken cannot be imported: SystemExit: 3"),
    "lacking": (
        "import no_such_module",
        ExportError,
        "imported: ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "wrong": ("x = (", ExportError, "the module broken cannot be imported: SyntaxError: "),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("way", ["custom objects", "callable"])
def test_modules_that_cannot_be_imported(here: Path, name: str, way: str) -> None:
    code, kind, words = BROKEN[name]
    if code is not None:
        (here / "broken.py").write_text(code)
    chain(keras, (3,), keras.layers.Dense(2)).save("m.keras")
    with pytest.raises(kind, match=words) as caught:
        open_model("m.keras", Opening(custom_objects="broken")) if way == "custom objects" else open_model("broken:f")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_names_of_modules_that_are_none(here: Path) -> None:
    chain(keras, (3,), keras.layers.Dense(2)).save("m.keras")
    (here / "layers.py").touch()
    with pytest.raises(NotFoundError, match=r"no module 'layers\.py', .*; did you mean 'layers'\?"):
        open_model("m.keras", Opening(custom_objects="layers.py"))
    with pytest.raises(InvalidArgumentError, match=r"--custom-objects \./layers\.py: give the name of a module"):
        open_model("m.keras", Opening(custom_objects="./layers.py"))


CODE = """
import keras


def build():
    return keras.Sequential([keras.Input((3,), name="left"), keras.layers.Dense(2, name="scores")])


model = build()
number = 7


class Builders:
    @staticmethod
    def small():
        return build()


class Unbuilt(keras.Model):
    pass


def failing():
    raise RuntimeError("no weights here\\nat all")


def leaving():
    raise SystemExit


def nothing():
    return None


def taking(units):
    return build()
"""


@pytest.fixture
def code(here: Path) -> Path:
    (here / "trained").mkdir()
    (here / "trained" / "__init__.py").touch()
    (here / "trained" / "mine.py").write_text(CODE)
    return here


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize("text", ["trained.mine:build", "trained.mine:model", "trained.mine:Builders.small"])
def test_callables(text: str) -> None:
    model = open_keras(text)
    (left,), (scores,) = model.signature.inputs, model.signature.outputs
    assert (left, scores) == ("left", "scores")
    kernel, bias = model.model.get_weights()
    np.testing.assert_allclose(model.predict({"left": LEFT})["scores"], LEFT @ kernel + bias, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("code")
def test_names_are_given_to_what_a_callable_returns() -> None:
    model = open_keras("trained.mine:build", Opening(inputs=("x",), outputs=("y",)))
    assert (list(model.signature.inputs), list(model.signature.outputs)) == (["x"], ["y"])


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        (
            "trained.mine:biuld",
            NotFoundError,
            r"trained\.mine \(.*mine\.py\) has no 'biuld'; did you mean 'build'\? Known: Builders, ",
        ),
        ("trained.mine:Builders.smal", NotFoundError, "did you mean 'small'"),
        ("trained.mein:build", NotFoundError, r"there is no module 'trained\.mein'"),
        ("trainde.mine:build", NotFoundError, "there is no module 'trainde'"),
        ("trained.mine:number", InvalidArgumentError, "is no callable that returns a Keras model: int"),
        ("trained.mine:failing", ExportError, "trained.mine:failing failed: RuntimeError: no weights here$"),
        ("trained.mine:leaving", ExportError, "trained.mine:leaving failed: SystemExit$"),
        ("trained.mine:taking", ExportError, "failed: TypeError: .*missing 1 required positional argument"),
        ("trained.mine:nothing", ExportError, "returned nothing to export: a builtins.NoneType is no Keras model"),
        ("trained.mine:Unbuilt", ExportError, "returned nothing to export: the model '.*' was never built"),
    ],
)
def test_callables_that_give_nothing(text: str, kind: type[ServableError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        open_model(text)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a SavedModel that doubles."""
    folder = tmp_path_factory.mktemp("saved") / "doubling" / "00000123"
    module = tf.Module()
    module.function = tf.function(lambda x: {"y": 2 * x}, input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
    tf.saved_model.save(module, str(folder), signatures=module.function.get_concrete_function())
    return folder


class Doubling(tf.Module):  # type: ignore[misc]  # tensorflow is untyped
    @tf.function  # type: ignore[untyped-decorator]  # tensorflow is untyped
    def __call__(self, values: Any, training: bool = False) -> Any:
        return values * (9.0 if training else 2.0)


@pytest.fixture(scope="module")
def module_without_signatures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, module = tmp_path_factory.mktemp("hub"), Doubling()
    for training in (True, False):
        module.__call__.get_concrete_function(tf.TensorSpec([None, 3], tf.float32, "values"), training=training)
    tf.saved_model.save(module, str(folder))
    return folder


def packed(folder: Path, path: Path, inside: str = ".") -> Path:
    """A .tar.gz of a folder, under the name that it has inside."""
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, inside)
    return path


def test_a_saved_model_folder(doubling: Path) -> None:
    model = open_model(str(doubling))
    assert isinstance(model, SavedModelFolder)
    assert_answers(model, [LEFT], 2 * LEFT)


@pytest.mark.parametrize("inside", [".", "doubling", "./m"])
def test_an_archive_of_a_saved_model(doubling: Path, tmp_path: Path, inside: str) -> None:
    path = packed(doubling, tmp_path / ("m.tgz" if inside == "." else "m.tar.gz"), inside)
    model = open_model(str(path))
    assert isinstance(model, SavedModelFolder)
    assert_answers(model, [LEFT], 2 * LEFT)
    assert tmp_path not in model.folder.parents


@pytest.mark.parametrize("way", ["folder", "archive"])
def test_a_module_without_signatures(module_without_signatures: Path, tmp_path: Path, way: str) -> None:
    folder = module_without_signatures
    model = open_model(str(folder if way == "folder" else packed(folder, tmp_path / "m.tar.gz")))
    assert isinstance(model, HubModule)
    assert list(model.signature.inputs) == ["values"]
    assert_answers(model, [LEFT], 2 * LEFT)


def test_what_was_unpacked_is_gone_when_the_process_ends(doubling: Path, tmp_path: Path) -> None:
    path = packed(doubling, tmp_path / "m.tar.gz")
    code = (
        f"import servable.export.origin as o, pathlib; p = o._unpack(pathlib.Path({str(path)!r})); print(p, p.is_dir())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    folder, was_there = done.stdout.split()
    assert was_there == "True"
    assert not Path(folder).exists()


def evil(path: Path) -> Path:
    """An archive that would write outside of the folder where it is unpacked."""
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("../escaped")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    return path


def half(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def written(path: Path, content: bytes = b"text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def folder_with(path: Path, *names: str) -> Path:
    for name in names:
        written(path / name / "saved_model.pb")
    path.mkdir(exist_ok=True)
    return path


WRONG: dict[str, tuple[Callable[[Path, Path], Any], type[ServableError], str]] = {
    "no file": (
        lambda here, _: "nothing.keras",
        NotFoundError,
        "there is no nothing.keras: give a .keras or .h5 file, ",
    ),
    "no folder": (lambda here, _: "models/cnn", NotFoundError, "there is no models/cnn: "),
    "suffix": (
        lambda here, _: written(here / "m.tflite"),
        ArtifactError,
        "of no format that can be exported: give a .k",
    ),
    "no suffix": (lambda here, _: written(here / "m"), ArtifactError, "is of no format that can be exported"),
    "part": (lambda here, saved: saved / "saved_model.pb", ArtifactError, "is part of a SavedModel: give its folder, "),
    "folder": (lambda here, _: folder_with(here / "f"), ArtifactError, "f is no SavedModel: it has no saved_model.pb"),
    "versions": (
        lambda here, _: folder_with(here / "f", "1", "2"),
        ArtifactError,
        "no saved_model.pb; it has several inside: give one of them, such as ",
    ),
    "archive": (lambda here, _: written(here / "m.tar.gz"), ArtifactError, "cannot be unpacked: not a gzip file"),
    "half an archive": (
        lambda here, saved: half(packed(saved, here / "m.tgz")),
        ArtifactError,
        "cannot be unpacked: Compressed file ended before the end-of-stream marker was reached",
    ),
    "empty archive": (
        lambda here, _: packed(folder_with(here / "f"), here / "m.tgz"),
        ArtifactError,
        "m.tgz is no SavedModel: it has no saved_model.pb",
    ),
    "escaping archive": (lambda here, _: evil(here / "m.tgz"), ArtifactError, "'../escaped' would be extracted to"),
    "keras": (lambda here, _: written(here / "m.keras"), ArtifactError, "m.keras is damaged: File is not a zip file"),
    "hdf5": (lambda here, _: written(here / "m.h5"), ArtifactError, "m.h5 is damaged: "),
    "saved model": (lambda here, _: folder_with(here, "f") / "f", ArtifactError, "saved_model.pb is not a SavedModel"),
    "word": (lambda here, _: "cnn", NotFoundError, "there is no cnn: "),
    "nothing": (lambda here, _: "", ArtifactError, "is no SavedModel"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_model(here: Path, doubling: Path, name: str) -> None:
    make, kind, words = WRONG[name]
    with pytest.raises(kind, match=re.escape(words)) as caught:
        open_model(str(make(here, doubling)))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert not (here.parent / "escaped").exists()


def test_options_that_do_not_go_with_the_source(here: Path, doubling: Path) -> None:
    chain(keras, (3,), keras.layers.Dense(2)).save("m.keras")
    for text, how, words in [
        ("m.keras", Opening(signature="x"), "--signature does not go with m.keras"),
        ("a.b:c", Opening(signature="x"), "--signature does not go with a.b:c"),
        ("a.b:c", Opening(custom_objects="x"), "--custom-objects does not go with a.b:c"),
        (str(doubling), Opening(custom_objects="x"), "--custom-objects does not go with "),
        (str(doubling), Opening(inputs=("x",)), "is published with the names that its signature"),
        ("m.keras", Opening(inputs=("a", "b")), "the model has 1 inputs, features; 2 names are given: a, b"),
    ]:
        with pytest.raises(InvalidArgumentError, match=re.escape(words)):
            open_model(text, how)


class Hub(BaseHTTPRequestHandler):
    """What tfhub.dev does: archives for those who ask for the compressed format."""

    archives: Mapping[str, bytes]

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        found = self.archives.get(path) if query == "tf-hub-format=compressed" else None
        self.send_response(200 if found else 503 if path == "/busy" else 404)
        self.end_headers()
        self.wfile.write(found or b"")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(doubling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server with the module ``/doubling/1``."""
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    archive = packed(doubling, tmp_path / "m.tar.gz").read_bytes()
    handler = type("Handler", (Hub,), {"archives": {"/doubling/1": archive, "/text/1": b"text"}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_handle_is_downloaded_once(hub: str, tmp_path: Path) -> None:
    model = open_model(f"{hub}/doubling/1")
    assert isinstance(model, SavedModelFolder)
    assert model.folder.parent == tmp_path / "cache"
    assert_answers(model, [LEFT], 2 * LEFT)
    before = model.folder.stat().st_mtime_ns
    assert_answers(open_model(f"{hub}/doubling/1"), [LEFT], 2 * LEFT)
    assert model.folder.stat().st_mtime_ns == before


def test_handles_that_lead_nowhere(hub: str) -> None:
    away = "http://127.0.0.1:1/m/1"
    for handle, kind, words in [
        (f"{hub}/tripling/1", NotFoundError, f"{hub}/tripling/1 could not be downloaded: 404 Not Found"),
        (f"{hub}/busy", UnavailableError, "could not be downloaded: 503 Service Unavailable"),
        (f"{hub}/text/1", UnavailableError, "does not appear to be a valid module"),
        (away, UnavailableError, f"{away} could not be downloaded: [Errno 111] Connection refused; download it elsewh"),
        ("foo://bar/1", UnavailableError, "foo://bar/1 could not be downloaded: "),
    ]:
        with pytest.raises(ServableError, match=re.escape(words)) as caught:
            open_model(handle)
        assert type(caught.value) is kind
        assert "\n" not in str(caught.value)


NAMES = {
    "trained/flowers.keras": "flowers",
    "flowers.weights.h5": "flowers.weights",
    "half_plus_two": "half_plus_two",
    "half_plus_two/1": "half_plus_two",
    "half_plus_two/00000123/": "half_plus_two",
    "./a/../half plus (two)/1": "half_plus_two",
    "downloads/ssd_mobilenet_v2.tar.gz": "ssd_mobilenet_v2",
    "modèle.keras": "mod_le",
    "../été": "t",
    "..keras": "model",
    "/1": "model",
    "https://tfhub.dev/google/imagenet/mobilenet_v2_100_224/classification/5": "mobilenet_v2_100_224",
    "https://tfhub.dev/google/universal-sentence-encoder/4": "universal-sentence-encoder",
    "https://tfhub.dev/tensorflow/centernet/resnet50v1_fpn_512x512/1": "resnet50v1_fpn_512x512",
    "https://www.kaggle.com/models/google/mobilenet-v2/frameworks/TensorFlow2/variations/x/versions/2": "mobilenet-v2",
    "https://www.kaggle.com/models/google/yamnet/tensorFlow2/yamnet/1": "yamnet",
    "gs://bucket/models/flowers.tar.gz": "flowers",
    "https://example.com/flowers.tgz?download=1": "flowers",
    "package.module:build_cnn": "build_cnn",
    "module:Builders.small": "small",
}


@pytest.mark.parametrize("text", NAMES)
def test_names_in_the_store(text: str, here: Path) -> None:
    assert default_name(text) == NAMES[text]
    with Store("store").staging(default_name(text)):
        pass  # a name that cannot be one is refused here


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cnn", False),
        ("resnet-50", False),
        ("vgg_16", False),
        ("./cnn", True),
        ("cnn/1", True),
        ("cnn.keras", True),
        ("models:cnn", True),
        ("https://tfhub.dev/x/1", True),
        (".", True),
        ("", True),
    ],
)
def test_what_is_an_origin(text: str, expected: bool) -> None:
    assert is_origin(text) is expected


def test_the_examples_of_the_module() -> None:
    assert doctest.testmod(origin).failed == 0
