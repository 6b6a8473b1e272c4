"""What a Keras file may hold without its user's trust, and files that were damaged or made to harm."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from servable.errors import ArtifactError, ExportError
from servable.export import trust
from servable.export.origin import Opening, open_model
from servable.export.trust import KerasFile

LIBRARIES = {"keras": keras, "tf_keras": tf_keras}
ROWS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def with_lambda(library: Any) -> Any:
    layers = library.layers
    return library.Sequential(
        [library.Input((3,)), layers.Dense(2), layers.Lambda(lambda x: x * 3.0, output_shape=(2,), name="scale")]
    )


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_lambda_layer_is_refused_by_name_unless_trusted(tmp_path: Path, library: str, suffix: str) -> None:
    original = with_lambda(LIBRARIES[library])
    path = tmp_path / f"m{suffix}"
    original.save(path)
    with pytest.raises(ExportError) as caught:
        open_model(str(path))
    assert str(caught.value) == (
        f"{path} holds the Lambda layer 'scale', which is code that runs when the model does: export it with "
        "--trust-source if you trust its author"
    )
    (answer,) = open_model(str(path), Opening(trust=True)).predict({"features": ROWS}).values()
    np.testing.assert_allclose(answer, np.asarray(original(ROWS)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_code_runs_only_with_trust(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the refusal is for: loading the file is enough to run what its author wrote."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"m{suffix}"
    layer = tf_keras.layers.Lambda(lambda x: [x, open("it_ran", "w").close()][0], name="write")  # noqa: PTH123  # kept as bytecode
    tf_keras.Sequential([tf_keras.Input((3,)), layer]).save(path)
    trace = tmp_path / "it_ran"
    trace.unlink()
    with pytest.raises(ExportError, match="the Lambda layer 'write'"):
        open_model(str(path))
    assert not trace.exists()
    open_model(str(path), Opening(trust=True))
    assert trace.exists()


def test_lambda_layers_inside_others(tmp_path: Path) -> None:
    layers = keras.layers

    def scale() -> Any:
        return layers.Lambda(lambda x: x * 3.0, output_shape=(3,), name="inner_scale")

    inner = keras.Sequential([keras.Input((3,)), scale()])
    models = [
        keras.Sequential([keras.Input((3,)), inner, layers.Dense(2)]),
        keras.Sequential([keras.Input((4, 3)), layers.TimeDistributed(scale())]),
        keras.Sequential([keras.Input((4, 3)), layers.TimeDistributed(keras.Sequential([inner]))]),
    ]
    for i, model in enumerate(models):
        for suffix in (".keras", ".h5"):
            path = tmp_path / f"{i}{suffix}"
            model.save(path)
            with pytest.raises(ExportError, match="holds the Lambda layer 'inner_scale'"):
                open_model(str(path))


def in_keras_file(tmp_path: Path, library: Any, change: Callable[[dict[str, Any]], None]) -> Path:
    """A .keras file of a model of one Dense layer, whose configuration was changed by hand."""
    plain, path = tmp_path / "plain.keras", tmp_path / "m.keras"
    library.Sequential([library.Input((3,)), library.layers.Dense(2, name="head")]).save(plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            target.writestr(name, content)
    return path


def function(module: str, name: str) -> dict[str, Any]:
    return {"class_name": "function", "module": module, "config": name, "registered_name": name}


def test_what_a_file_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tf_keras imports whatever a file names, safe mode or not; so it must not see such a file."""
    (tmp_path / "stranger.py").write_text("import pathlib\npathlib.Path('it_ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = in_keras_file(tmp_path, tf_keras, lambda config: config.update(module="stranger", class_name="Thing"))
    with pytest.raises(
        ExportError, match=r"needs 'stranger\.Thing', .* name the module that defines it with --custom-ob"
    ):
        open_model(str(path))
    assert not (tmp_path / "it_ran").exists()
    with pytest.raises(TypeError):
        tf_keras.saving.load_model(path, compile=False, safe_mode=True)
    assert (tmp_path / "it_ran").exists()


def layer(class_name: str, module: str | None = "keras.layers", **config: Any) -> dict[str, Any]:
    return {"class_name": class_name, "module": module, "config": {"name": "culprit", **config}}


HARMFUL = {
    "lambda": (layer("Lambda"), "the Lambda layer 'culprit', which is code"),
    "lambda of an old file": (layer("Lambda", None, function=["4wAA", None, None]), "the Lambda layer 'culprit'"),
    "lambda by another path": (layer("Lambda", "keras.src.layers.core.lambda_layer"), "the Lambda layer 'culprit'"),
    "lambda under a known name": (
        {**layer("Lambda"), "registered_name": "mine>Known"},
        "the Lambda layer 'culprit', which is code",
    ),
    "lambda in both directions": (
        layer("Bidirectional", layer=layer("RNN", cell=layer("Lambda"))),
        "the Lambda layer 'culprit', which is code",
    ),
    "bytecode": (
        layer("Dense", activation={"class_name": "__lambda__", "config": {"value": "4wAA"}}),
        "a function in the layer 'culprit', which is code",
    ),
    "bytecode around a cell": (
        layer("RNN", None, cell=layer("ResidualWrapper", None, residual_fn="4wAA", residual_fn_type="lambda")),
        "a function in the layer 'culprit'",
    ),
    "function around a cell": (
        layer(
            "RNN",
            None,
            cell=layer("R", None, residual_fn="system", residual_fn_module="os", residual_fn_type="function"),
        ),
        "a function in the layer 'culprit'",
    ),
    "pickle": (
        layer("TorchModuleWrapper", module="keras.layers"),
        "TorchModuleWrapper layer 'culprit', which unpickles",
    ),
    "jax": (layer("JaxLayer"), "the JaxLayer layer 'culprit', which is code"),
    "flax": (layer("FlaxLayer"), "the FlaxLayer layer 'culprit', which is code"),
    "another model": (layer("TFSMLayer", filepath="/x"), "TFSMLayer layer 'culprit', which loads another model"),
    "a file": (layer("StringLookup", vocabulary="/etc/passwd"), "which reads the file '/etc/passwd'"),
    "a system call": (function("os", "system"), "needs 'os.system', which is not part of Keras"),
    "python": (function("builtins", "exec"), "a reference to 'builtins.exec'"),
    "a class of python": (layer("object", "builtins"), "a reference to 'builtins.object'"),
    "a download": (function("keras.utils", "get_file"), "a reference to 'keras.utils.get_file'"),
    "a download as class": (layer("get_file", "keras.utils"), "a reference to 'keras.utils.get_file'"),
    "a loader": (layer("load_model", "keras.models"), "a reference to 'keras.models.load_model'"),
    "a switch": (function("keras.config", "enable_unsafe_deserialization"), "a reference to 'keras.config.enable"),
    "through a module": (function("keras.activations", "np.load"), "a reference to 'keras.activations.np.load'"),
    "under another name": (
        {**layer("Dense", "keras.src.engine.training"), "registered_name": "func_load"},
        "a reference to 'keras.src.engine.training.Dense'",
    ),
    "tensorflow": (layer("Popen", "tensorflow.python.lib.io"), "a reference to 'tensorflow.python.lib.io.Popen'"),
    "tensorflow's files": (layer("TFOpLambda", function="io.write_file"), "which calls 'tf.io.write_file'"),
    "tensorflow's files of old": (layer("TFOpLambda", function="compat.v1.gfile.Remove"), "which calls 'tf.compat.v1"),
    "tensorflow's python": (layer("TFOpLambda", function="numpy_function"), "which calls 'tf.numpy_function'"),
    "tensorflow's classes": (layer("ClassMethod", cls_symbol="data.Dataset"), "which calls 'data.Dataset'"),
    "tensorflow's operations": (layer("TensorFlowOpLayer", node_def="op: ReadFile"), "which calls 'File operations'"),
    "a stranger": (layer("Scale", "somewhere.layers"), "needs 'somewhere.layers.Scale', which is not part of Keras"),
}
HARMLESS = {
    "custom": {**layer("Known", "mine"), "registered_name": "mine>Known"},
    "custom function": function("mine", "known"),
    "activation": layer("Dense", activation=function("builtins", "relu")),
    "operation": layer("GetItem", "keras.src.ops.numpy"),
    "top level": layer("Sequential", "keras"),
    "keras 2": layer("Functional", "keras.src.engine.functional"),
    "tf_keras": layer("Functional", "tf_keras.src.engine.functional"),
    "application": layer("LayerScale", "keras.src.applications.convnext"),
    "initializer of tensorflow": layer("Constant", "tensorflow.python.ops.init_ops_v2"),
    "policy": layer("QuantizedDTypePolicy", "keras.dtype_policies"),
    "arithmetic": layer("TFOpLambda", None, function="math.add"),
    "operator": layer("TFOpLambda", None, function="__operators__.getitem"),
    "reshape": layer("TFOpLambda", None, function="compat.v1.reshape"),
    "ragged": layer("ClassMethod", None, cls_symbol="RaggedTensor"),
    "words": layer("StringLookup", vocabulary=["/etc/passwd"]),
    "type": {
        "class_name": "__typespec__",
        "module": "tensorflow.python.framework.tensor",
        "spec_name": "TensorSpec",
        "registered_name": None,
        "config": [[None, 3], "float32", None],
    },
    "tensor": {"class_name": "__keras_tensor__", "config": {"shape": [None, 3], "dtype": "float32"}},
    "nothing": None,
}


def model_around(thing: Any) -> KerasFile:
    """A file whose model holds the thing, deep inside."""
    inner = {"class_name": "Sequential", "config": {"name": "inner", "layers": [thing]}}
    return KerasFile(Path("m.keras"), {"class_name": "Model", "config": {"name": "m", "layers": [[{"x": inner}]]}})


@pytest.mark.parametrize("name", HARMFUL)
def test_what_is_refused(name: str) -> None:
    thing, words = HARMFUL[name]
    with pytest.raises(ExportError, match=re.escape(words)):
        trust.check(model_around(thing), {"mine>Known", "known"})


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_not(name: str) -> None:
    trust.check(model_around(HARMLESS[name]), {"mine>Known", "known"})


def test_what_the_training_needed_is_not_looked_at(tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["compile_config"] = {"optimizer": "adam", "loss": function("training.losses", "mine")}

    path = in_keras_file(tmp_path, keras, change)
    assert open_model(str(path)).parameters == 8


def zipped(path: Path, config: bytes | None = None, **members: bytes) -> Path:
    """A .keras file of this configuration and other members, ``model_weights`` for model.weights.h5."""
    names = {"metadata": "metadata.json", "model_weights": "model.weights.h5"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if config is not None:
            archive.writestr("config.json", config)
        for name, content in members.items():
            archive.writestr(names.get(name, name), content)
    return path


def truncated(folder: Path) -> Path:
    path = folder / "m.keras"
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def flipped(folder: Path) -> Path:
    path = truncated(folder)
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"Sequential")] ^= 1  # the checksum of the archive tells
    path.write_bytes(content)
    return path


def hdf5_in_disguise(folder: Path) -> Path:
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(folder / "m.h5")
    return (folder / "m.h5").rename(folder / "m.keras")


NESTED = b'{"class_name":' * 20_000
DAMAGED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated": (truncated, "is damaged: File is not a zip file"),
    "flipped bit": (flipped, "is damaged: Bad CRC-32 for file 'config.json'"),
    "text": (lambda folder: zipped(folder / "m.keras").write_bytes(b"text") and folder / "m.keras", "is damaged"),
    "hdf5": (hdf5_in_disguise, "is an HDF5 file: rename it to m.h5"),
    "empty": (lambda folder: zipped(folder / "m.keras"), "is no Keras model: it has no config.json"),
    "no json": (
        lambda folder: zipped(folder / "m.keras", config=b"{"),
        "is damaged: its configuration is not JSON",
    ),
    "a list": (lambda folder: zipped(folder / "m.keras", config=b"[1]"), "its configuration names no class"),
    "nested": (lambda folder: zipped(folder / "m.keras", config=NESTED), "is nested too deeply to be read"),
    "metadata": (
        lambda folder: zipped(folder / "m.keras", config=b'{"class_name": "X"}', metadata=b"[]"),
        "is damaged",
    ),
    "weights": (
        lambda folder: zipped(folder / "m.keras", config=b'{"class_name": "X"}', model_weights=b"x"),
        "is damaged: ",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_archives(tmp_path: Path, name: str) -> None:
    make, words = DAMAGED[name]
    path = make(tmp_path)
    with pytest.raises((ArtifactError, ExportError), match=re.escape(words)) as caught:
        open_model(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_archive_that_unpacks_to_far_more_than_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "BOMB_BYTES", 1 << 20)
    path = zipped(tmp_path / "m.keras", config=b'{"class_name": "X"}', filler=bytes(4 << 20))
    with pytest.raises(ArtifactError, match="'filler' declares far more than the file holds: 4194304 bytes"):
        trust.read(path)
    monkeypatch.setattr(trust, "MAX_CONFIG_BYTES", 4)
    with pytest.raises(ArtifactError, match=r"a config\.json of more than 4 bytes is not read"):
        trust.read(zipped(tmp_path / "m.keras", config=b'{"class_name": "X"}'))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_that_may_not_be_read(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / f"m{suffix}"
    path.touch()
    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    with pytest.raises(ArtifactError, match=f"^{re.escape(str(path))} cannot be read: Permission denied$"):
        trust.read(path)


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    """A sound HDF5 file, to be changed."""
    path = tmp_path / "m.h5"
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")]).save(path)
    assert trust.read(path).keras_version == keras.__version__
    return path


def without_model(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file.attrs["model_config"]


def without_json(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = "{"


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other(path: Path) -> None:
    path.write_bytes(b"text")


def weights_of(file: Any) -> tuple[Any, str]:
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    group, _, name = names[0].rpartition("/")
    return file[group], name


def external_link(path: Path) -> None:
    with h5py.File(path, "a") as file:
        group, name = weights_of(file)
        del group[name]
        group[name] = h5py.ExternalLink("/etc/secret.h5", "/x")


def external_data(path: Path) -> None:
    with h5py.File(path, "a") as file:
        group, name = weights_of(file)
        del group[name]
        group.create_dataset(name, (2,), "f4", external=[("/etc/passwd", 0, 8)])


def virtual_data(path: Path) -> None:
    with h5py.File(path, "a") as file:
        group, name = weights_of(file)
        del group[name]
        layout = h5py.VirtualLayout((2,), "f4")
        layout[:] = h5py.VirtualSource("/etc/secret.h5", "x", (2,))
        group.create_virtual_dataset(name, layout)


def huge(path: Path) -> None:
    with h5py.File(path, "a") as file:
        group, name = weights_of(file)
        del group[name]
        group.create_dataset(name, (1 << 40,), "f4", chunks=(1 << 20,))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_model, "holds no Keras model, so nothing says what to compute: save the whole model with model.save"),
        (without_json, "is damaged: its configuration is not JSON"),
        (half, "is damaged: "),
        (other, "is damaged: "),
        (external_link, "takes the weights"),
        (external_data, "from another file, which may be any"),
        (virtual_data, "from another file, which may be any"),
        (huge, "declares far more than the file holds"),
    ],
)
def test_damaged_hdf5(hdf5: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(hdf5)
    with pytest.raises((ArtifactError, ExportError), match=re.escape(words)) as caught:
        open_model(str(hdf5))
    assert str(hdf5) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_from_another_file_within_an_archive(tmp_path: Path) -> None:
    path = in_keras_file(tmp_path, keras, lambda config: None)
    with zipfile.ZipFile(path) as archive:
        archive.extract("model.weights.h5", tmp_path)
        config = archive.read("config.json")
    external_link(tmp_path / "model.weights.h5")
    zipped(path, config=config)
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
    with pytest.raises(ExportError, match="from another file, which may be any on this machine"):
        open_model(str(path))


@pytest.mark.parametrize(
    ("library", "name"), [("keras", "m.weights.h5"), ("tf_keras", "m.weights.h5"), ("tf_keras", "m.h5")]
)
def test_weights_without_a_model(tmp_path: Path, library: str, name: str) -> None:
    module = LIBRARIES[library]
    module.Sequential([module.Input((3,)), module.layers.Dense(2)]).save_weights(tmp_path / name)
    with pytest.raises(
        ArtifactError, match=r"holds weights only, so nothing says what to compute: .*package\.module:call"
    ):
        open_model(str(tmp_path / name))


def test_the_version_decides_who_may_have_written_a_file() -> None:
    config = {"class_name": "Sequential", "config": {"layers": [{"activation": "hard_sigmoid"}]}}
    versions = {"3.15.1": False, "2.21.0": True, "2.2.4-tf": True, "": True}
    assert {version: KerasFile(Path("m"), config, version).of_keras_2 for version in versions} == versions
    assert KerasFile(Path("m"), config).mentions("hard_sigmoid")
    assert not KerasFile(Path("m"), config).mentions("sigmoid")


def test_tensorflow_reads_what_was_checked() -> None:
    """The names that are refused exist: a list of words that nobody has would be no protection."""
    for name in ("io.write_file", "io.read_file", "numpy_function", "py_function", "load_library", "load_op_library"):
        symbol: Any = tf
        for part in name.split("."):
            symbol = getattr(symbol, part)
        assert callable(symbol)
