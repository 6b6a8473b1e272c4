"""The three engines behind one interface: the same answers, the same refusals."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from servable import runtimes
from servable.errors import (
    ArtifactError,
    InputError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnimplementedError,
)
from servable.manifest import Manifest
from servable.runtimes import Runtime
from servable.signature import DEFAULT_SIGNATURE
from servable.store import Store

MODELS = ("celsius", "mlp", "cnn")
FILES = {"tensorflow": ".", "litert": "model.tflite", "onnx": "model.onnx"}
ENGINES = tuple(FILES)

Loaded = dict[tuple[str, str], Runtime]


@pytest.fixture(scope="module")
def loaded(store: Store) -> Iterator[Loaded]:
    """Every model in every engine."""
    everything = {
        (model, engine): runtimes.load(store.path(model) / FILES[engine]) for model in MODELS for engine in ENGINES
    }
    yield everything
    for runtime in everything.values():
        runtime.close()


def batch(runtime: Runtime, rows: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    noise = np.random.default_rng(seed)
    return {
        name: noise.random((rows, *[size or 1 for size in (spec.shape or ())[1:]]), np.float32)
        for name, spec in runtime.signatures[DEFAULT_SIGNATURE].inputs.items()
    }


@pytest.mark.parametrize("engine", ENGINES)
def test_the_path_decides_the_engine(engine: str, loaded: Loaded) -> None:
    assert loaded["celsius", engine].name == engine


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", MODELS)
def test_names_dtypes_and_shapes_are_the_manifests(model: str, engine: str, loaded: Loaded, store: Store) -> None:
    want = Manifest.read(store.path(model)).signatures[DEFAULT_SIGNATURE]
    got = loaded[model, engine].signatures[DEFAULT_SIGNATURE]
    assert got.name == want.name
    for ours, theirs in ((got.inputs, want.inputs), (got.outputs, want.outputs)):
        assert {key: (spec.name, spec.dtype, spec.shape) for key, spec in ours.items()} == {
            key: (spec.name, spec.dtype, spec.shape) for key, spec in theirs.items()
        }


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("model", MODELS)
def test_same_answers(model: str, rows: int, loaded: Loaded) -> None:
    inputs = batch(loaded[model, "tensorflow"], rows)
    want = loaded[model, "tensorflow"].run(DEFAULT_SIGNATURE, inputs)
    for engine in ("litert", "onnx"):
        got = loaded[model, engine].run(DEFAULT_SIGNATURE, inputs)
        assert got.keys() == want.keys()
        for name in want:
            assert got[name].dtype == want[name].dtype
            assert len(got[name]) == rows
            np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_empty_batch(engine: str, loaded: Loaded) -> None:
    runtime = loaded["celsius", engine]
    assert runtime.run(DEFAULT_SIGNATURE, batch(runtime, 0))["fahrenheit"].shape == (0, 1)
    # And the next batch is answered as if nothing had been.
    assert runtime.run(DEFAULT_SIGNATURE, {"celsius": np.array([[100.0]], np.float32)})["fahrenheit"] == pytest.approx(
        212, abs=0.01
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_earlier_results_and_inputs_are_left_alone(engine: str, loaded: Loaded) -> None:
    runtime = loaded["mlp", engine]
    first, second = batch(runtime, 3, seed=1), batch(runtime, 3, seed=2)
    given = {name: array.copy() for name, array in first.items()}
    result = runtime.run(DEFAULT_SIGNATURE, first)["probabilities"]
    before = result.copy()
    runtime.run(DEFAULT_SIGNATURE, second)
    np.testing.assert_array_equal(result, before)
    for name, array in given.items():
        np.testing.assert_array_equal(first[name], array)


@pytest.mark.parametrize("engine", ENGINES)
def test_read_only_and_strided_inputs(engine: str, loaded: Loaded) -> None:
    runtime = loaded["mlp", engine]
    inputs = batch(runtime, 6)
    want = runtime.run(DEFAULT_SIGNATURE, inputs)["probabilities"]
    read_only = {name: array.copy() for name, array in inputs.items()}
    for array in read_only.values():
        array.flags.writeable = False
    strided = {name: np.repeat(array, 2, axis=0)[::2] for name, array in inputs.items()}
    for other in (read_only, strided):
        np.testing.assert_array_equal(runtime.run(DEFAULT_SIGNATURE, other)["probabilities"], want)


def test_selected_outputs(loaded: Loaded, store: Store) -> None:
    runtime = loaded["cnn", "tensorflow"]
    from servable.wire import examples

    example = examples.encode({"image": np.zeros((28, 28, 1), np.float32)})
    inputs = {"inputs": np.array([example], dtype=object)}
    everything = runtime.run("classify", inputs)
    assert set(everything) == {"classes", "scores"}
    for names in (["scores"], ["classes"], ["scores", "classes"]):
        got = runtime.run("classify", inputs, names)
        assert list(got) == names
        for name in names:
            assert got[name].tolist() == everything[name].tolist()
    assert tuple(everything["classes"][0]) == tuple(label.encode() for label in Manifest.read(store.path("cnn")).labels)


@pytest.mark.parametrize("engine", ENGINES)
def test_selected_output_of_one(engine: str, loaded: Loaded) -> None:
    runtime = loaded["celsius", engine]
    assert list(runtime.run(DEFAULT_SIGNATURE, batch(runtime, 1), ["fahrenheit"])) == ["fahrenheit"]


@pytest.mark.parametrize("engine", ENGINES)
def test_unknown_output(engine: str, loaded: Loaded) -> None:
    runtime = loaded["celsius", engine]
    with pytest.raises(NotFoundError, match=r"no output 'farenheit'; did you mean 'fahrenheit'\?"):
        runtime.run(DEFAULT_SIGNATURE, batch(runtime, 1), ["farenheit"])


@pytest.mark.parametrize("engine", ENGINES)
def test_unknown_signature(engine: str, loaded: Loaded) -> None:
    with pytest.raises(NotFoundError, match=r"no signature 'serving'; .*Known: .*serving_default"):
        loaded["celsius", engine].run("serving", {})


@pytest.mark.parametrize("names", [[], ["celcius"], ["celsius", "more"]])
@pytest.mark.parametrize("engine", ENGINES)
def test_wrong_input_names(engine: str, names: list[str], loaded: Loaded) -> None:
    inputs = {name: np.zeros((1, 1), np.float32) for name in names}
    with pytest.raises(InputError) as caught:
        loaded["celsius", engine].run(DEFAULT_SIGNATURE, inputs)
    assert f"takes the inputs celsius; given: {', '.join(sorted(names)) or 'none'}" in str(caught.value)


@pytest.mark.parametrize(
    ("engine", "shape"),
    [
        # Kernels of oneDNN end the process where an input has too few dimensions.
        *[(engine, shape) for engine in ENGINES for shape in [(), (28,), (28, 28, 1), (1, 28, 28, 1, 1)]],
        # TensorFlow leaves it to the kernels whether a size fits, as TensorFlow Serving does.
        *[(engine, shape) for engine in ENGINES for shape in [(1, 1, 1, 1), (1, 28, 28, 0)]],
        *[(engine, (1, 27, 28, 1)) for engine in ENGINES if engine != "tensorflow"],
    ],
    ids=str,
)
def test_wrong_shape(engine: str, shape: tuple[int, ...], loaded: Loaded) -> None:
    runtime = loaded["cnn", engine]
    # What oneDNN says of an image without channels is UNIMPLEMENTED.
    with pytest.raises((InvalidArgumentError, UnimplementedError)):
        runtime.run(DEFAULT_SIGNATURE, {"image": np.zeros(shape, np.float32)})
    assert runtime.run(DEFAULT_SIGNATURE, batch(runtime, 1))["probabilities"].shape == (1, 10)


@pytest.mark.parametrize("dtype", ["float64", "int32", "uint8", "bool", "object", "S3"])
@pytest.mark.parametrize("engine", ENGINES)
def test_wrong_dtype(engine: str, dtype: str, loaded: Loaded) -> None:
    runtime = loaded["cnn", engine]
    with pytest.raises(InvalidArgumentError):
        runtime.run(DEFAULT_SIGNATURE, {"image": np.full((1, 28, 28, 1), b"" if dtype == "object" else 0, dtype)})
    assert runtime.run(DEFAULT_SIGNATURE, batch(runtime, 1))["probabilities"].shape == (1, 10)


def test_an_error_that_quotes_bytes_of_the_input(loaded: Loaded) -> None:
    runtime = loaded["celsius", "tensorflow"]
    with pytest.raises(InputError, match="Could not parse example input") as caught:
        runtime.run("regress", {"inputs": np.array([b"\x0b\xd3"], object)})
    assert "value: '\x0b\N{REPLACEMENT CHARACTER}'" in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_eight_threads_get_the_answers_of_one(engine: str, loaded: Loaded) -> None:
    runtime = loaded["mlp", engine]
    batches = [batch(runtime, 1 + i % 4, seed=i) for i in range(64)]
    want = [runtime.run(DEFAULT_SIGNATURE, inputs)["probabilities"] for inputs in batches]
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda inputs: runtime.run(DEFAULT_SIGNATURE, inputs)["probabilities"], batches))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_number_of_threads_changes_no_answer(engine: str, threads: int, loaded: Loaded, store: Store) -> None:
    inputs = batch(loaded["mlp", engine], 4)
    with runtimes.load(store.path("mlp") / FILES[engine], runtimes.RuntimeOptions(threads=threads)) as runtime:
        got = runtime.run(DEFAULT_SIGNATURE, inputs)["probabilities"]
    np.testing.assert_allclose(got, loaded["mlp", engine].run(DEFAULT_SIGNATURE, inputs)["probabilities"], atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_close_twice_and_no_answer_after(engine: str, store: Store) -> None:
    runtime = runtimes.load(store.path("celsius") / FILES[engine])
    inputs = batch(runtime, 1)
    runtime.run(DEFAULT_SIGNATURE, inputs)
    runtime.close()
    runtime.close()
    with pytest.raises(UnavailableError):
        runtime.run(DEFAULT_SIGNATURE, inputs)


@pytest.mark.parametrize("quantization", ["int8"])
@pytest.mark.parametrize("model", MODELS)
def test_quantized_file_is_called_like_the_others(model: str, quantization: str, loaded: Loaded, store: Store) -> None:
    inputs = batch(loaded[model, "tensorflow"], 3)
    want = loaded[model, "tensorflow"].run(DEFAULT_SIGNATURE, inputs)
    with runtimes.load(store.path(model) / f"model_{quantization}.tflite") as runtime:
        got = runtime.run(DEFAULT_SIGNATURE, inputs)
    for name in want:
        assert (got[name].shape, got[name].dtype) == (want[name].shape, want[name].dtype)


@pytest.fixture(scope="module")
def unsigned(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TFLite file of mlp without its signature, as converters of old wrote it."""
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(store.path("mlp") / "model.tflite"))
    model.signatureDefs = []
    path = tmp_path_factory.mktemp("unsigned") / "model.tflite"
    flatbuffer_utils.write_model(model, str(path))
    return path


@pytest.mark.parametrize("rows", [1, 3])
def test_tflite_file_without_signatures(rows: int, unsigned: Path, loaded: Loaded) -> None:
    inputs = batch(loaded["mlp", "litert"], rows)
    want = loaded["mlp", "litert"].run(DEFAULT_SIGNATURE, inputs)["probabilities"]
    with runtimes.load(unsigned) as runtime:
        assert list(runtime.signatures) == [DEFAULT_SIGNATURE]
        signature = runtime.signatures[DEFAULT_SIGNATURE]
        ((name, array),) = zip(signature.inputs, inputs.values(), strict=True)
        assert not name.endswith(":0")
        for _ in range(2):
            (got,) = runtime.run(DEFAULT_SIGNATURE, {name: array}).values()
            np.testing.assert_allclose(got, want, atol=1e-6)
        with pytest.raises(InputError):
            runtime.run(DEFAULT_SIGNATURE, {name: array[0]})


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "text": lambda _: b"no model, just a text",
    "empty": lambda _: b"",
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", sorted(set(DAMAGE) - {"cut by a byte"}))
@pytest.mark.parametrize(
    "file",
    [
        "model.tflite",
        "model.onnx",
        "saved_model.pb",
        "variables/variables.index",
        "variables/variables.data-00000-of-00001",
    ],
)
def test_damaged_file_is_refused_and_named(file: str, damage: str, store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "1"
    shutil.copytree(store.path("mlp"), folder)
    (folder / file).write_bytes(DAMAGE[damage]((folder / file).read_bytes()))
    path = folder / file if file.startswith("model.") else folder
    with pytest.raises(ArtifactError) as caught:
        runtimes.load(path)
    assert str(caught.value).startswith(f"{path} is not a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["model.onnx"])
def test_file_cut_by_a_byte_is_refused(file: str, store: Store, tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_bytes(DAMAGE["cut by a byte"]((store.path("mlp") / file).read_bytes()))
    with pytest.raises(ArtifactError):
        runtimes.load(path)


def test_saved_model_without_variables(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "1"
    shutil.copytree(store.path("mlp"), folder)
    shutil.rmtree(folder / "variables")
    with pytest.raises(ArtifactError, match="is not a SavedModel that TensorFlow can load"):
        runtimes.load(folder)


@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_file_of_another_format(suffix: str, store: Store, tmp_path: Path) -> None:
    other = {".tflite": "model.onnx", ".onnx": "model.tflite"}[suffix]
    shutil.copy(store.path("celsius") / other, tmp_path / f"model{suffix}")
    with pytest.raises(ArtifactError, match=r"is not an? (TFLite|ONNX) file"):
        runtimes.load(tmp_path / f"model{suffix}")


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("gone.tflite", "missing", "there is no model file"),
        ("gone", "missing", "there is no model file"),
        ("folder", "folder", "is not a model: expected a .tflite file, an .onnx file or a SavedModel folder"),
        ("folder.tflite", "folder", "is not a model"),
        ("model.h5", "file", "is not a model"),
        ("model.TFLITE", "file", "is not a model"),
        ("saved_model.pb", "file", "is not a model"),
        ("model", "file", "is not a model"),
    ],
)
def test_path_that_is_no_model(name: str, kind: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.touch()
    with pytest.raises(ArtifactError) as caught:
        runtimes.load(str(path))
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)
