"""Models that are not ours, from a file or a callable to gRPC, REST and the device."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras import layers
from numpy.typing import NDArray

from servable.clients import connect
from servable.export import Source, export_model
from servable.export.assemble import Description, open_source
from servable.export.origin import Opening
from servable.manifest import Manifest
from servable.serving import Server, ServerOptions
from servable.store import Store

CUSTOM = """
import keras

@keras.saving.register_keras_serializable(package="foreign")
class Scale(keras.layers.Layer):
    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(8, activation="relu")
        self.scores = keras.layers.Dense(3, activation="softmax")

    def call(self, inputs, training=False):
        return self.scores(self.hidden(inputs))


def subclassed():
    keras.utils.set_random_seed(4)
    model = Subclassed()
    model(keras.ops.zeros((1, 5)))
    return model
"""


def two_inputs(folder: Path) -> str:
    left, right = layers.Input((3,), name="left"), layers.Input((2,), name="right")
    hidden = layers.concatenate([layers.Dense(8, activation="relu")(left), right])
    outputs = [
        layers.Dense(1, name="score")(hidden),
        layers.Dense(3, activation="softmax", name="kind")(hidden),
        layers.Dense(4, name="code")(hidden),
    ]
    return save(keras.Model([left, right], outputs), folder / "two_inputs.keras")


def custom(folder: Path) -> str:
    scale = sys.modules["foreign_objects"].Scale
    inputs = layers.Input((4,), name="x1")
    return save(keras.Model(inputs, layers.Dense(2, name="scaled")(scale(3.0)(inputs))), folder / "custom.keras")


def strings(folder: Path) -> str:
    word = layers.Input((1,), dtype="string", name="word")
    codes = layers.StringLookup(vocabulary=["red", "green", "blue"])(word)
    flat = layers.Flatten()(layers.Embedding(4, 5)(codes))
    return save(keras.Model(word, layers.Dense(3, activation="softmax")(flat)), folder / "strings.keras")


def integers(folder: Path) -> str:
    model = keras.Sequential(
        [
            layers.Input((6,), dtype="int64"),
            layers.Embedding(50, 8),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1),
        ]
    )
    return save(model, folder / "integers.keras")


def doubles(folder: Path) -> str:
    model = keras.Sequential([layers.Input((3,), dtype="float64"), layers.Dense(2, dtype="float64", name="pair")])
    return save(model, folder / "doubles.keras")


def batch_norm(folder: Path) -> str:
    model = keras.Sequential(
        [
            layers.Input((12, 12, 3)),
            layers.Conv2D(8, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, activation="softmax"),
        ]
    )
    rows = np.random.default_rng(0).standard_normal((64, 12, 12, 3))
    model.compile("adam", "mse")
    model.fit(rows, np.zeros((64, 5)), epochs=1, verbose=0)  # moves its means and variances away from 0 and 1
    return save(model, folder / "batch_norm.keras")


def classes(folder: Path) -> str:
    """One output of integers, and one of floats."""
    row = layers.Input((4,), name="row")
    scores = layers.Dense(5, activation="softmax", name="scores")(row)
    likely = keras.ops.cast(keras.ops.greater(scores, 0.5), "int32")
    return save(keras.Model(row, {"scores": scores, "likely": likely}), folder / "classes.keras")


def open_sizes(folder: Path) -> str:
    """Pictures of any height and width."""
    image = layers.Input((None, None, 3), name="image")
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image))
    return save(keras.Model(image, layers.Dense(2, name="pair")(pooled)), folder / "open_sizes.keras")


def half(folder: Path) -> str:
    row = layers.Input((4,), name="row")
    hidden = layers.Dense(8, dtype="mixed_float16", activation="relu")(row)
    return save(keras.Model(row, layers.Dense(3, dtype="float32", name="code")(hidden)), folder / "half.keras")


def keras_2(folder: Path) -> str:
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Input((7, 4)),
            tf_keras.layers.LSTM(6),
            tf_keras.layers.Dense(3, activation="softmax"),
        ]
    )
    return save(model, folder / "keras_2.h5")


def tensorflow_1(folder: Path) -> str:
    path = folder / "tensorflow_1"
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        given = tf.compat.v1.placeholder(tf.float32, (None, 3), name="given")
        start = tf.compat.v1.random_normal_initializer(seed=1)
        weights = tf.compat.v1.get_variable("weights", (3, 2), initializer=start)
        answer = tf.matmul(given, weights)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(path), {"given": given}, {"answer": answer})
    return str(path)


def module(folder: Path) -> str:
    """What a TensorFlow Hub module often is: a SavedModel with a call and no signature."""

    class Doubler(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec((None, 4), tf.float32)])  # type: ignore[untyped-decorator]  # tensorflow is untyped
        def __call__(self, values: Any) -> Any:
            return tf.nn.relu(values @ self.weights)

    tf.saved_model.save(Doubler(), str(folder / "module"), signatures={})
    return str(folder / "module")


def save(model: Any, path: Path) -> str:
    model.save(path)
    return str(path)


@dataclass(frozen=True)
class Foreign:
    """How one is made and opened, and which files it goes without."""

    make: Callable[[Path], str]
    opening: Opening = field(default_factory=Opening)
    signature: str = ""
    absent: frozenset[str] = frozenset()
    shapes: tuple[str, ...] = ()
    limit: float = 1e-4


TFLITE = frozenset({"tflite", "tflite float16", "tflite dynamic", "tflite int8", "tflite int16x8"})
ONNX = frozenset({"onnx", "onnx float16", "onnx int8"})

FOREIGN = {
    "two_inputs": Foreign(
        two_inputs,
        signature="left: float32 (batch, 3); right: float32 (batch, 2) → "
        "score: float32 (batch, 1); kind: float32 (batch, 3); code: float32 (batch, 4)",
    ),
    "subclassed": Foreign(
        lambda folder: "foreign_objects:subclassed",
        signature="features: float32 (batch, 5) → probabilities: float32 (batch, 3)",
    ),
    "custom": Foreign(
        custom,
        Opening(custom_objects="foreign_objects"),
        "x1: float32 (batch, 4) → scaled: float32 (batch, 2)",
    ),
    "strings": Foreign(
        strings,
        signature="word: string (batch, 1) → probabilities: float32 (batch, 3)",
        absent=TFLITE | ONNX,
    ),
    "integers": Foreign(
        integers,
        signature="tokens: int64 (batch, 6) → value: float32 (batch, 1)",
        absent=frozenset({"tflite int16x8"}),
    ),
    "doubles": Foreign(
        doubles,
        signature="features: float64 (batch, 3) → pair: float64 (batch, 2)",
        absent=TFLITE | {"onnx float16", "onnx int8"},
    ),
    "batch_norm": Foreign(
        batch_norm, signature="image: float32 (batch, 12, 12, 3) → probabilities: float32 (batch, 5)"
    ),
    "classes": Foreign(
        classes,
        signature="row: float32 (batch, 4) → scores: float32 (batch, 5); likely: int32 (batch, 5)",
        absent=frozenset({"tflite int16x8"}),
    ),
    "open_sizes": Foreign(
        open_sizes,
        signature="image: float32 (batch, ?, ?, 3) → pair: float32 (batch, 2)",
        shapes=("image=9x7x3",),
    ),
    "half": Foreign(half, signature="row: float32 (batch, 4) → code: float32 (batch, 3)", absent=TFLITE, limit=2e-3),
    "keras_2": Foreign(keras_2, signature="sequence: float32 (batch, 7, 4) → probabilities: float32 (batch, 3)"),
    "tensorflow_1": Foreign(tensorflow_1, signature="given: float32 (batch, 3) → answer: float32 (batch, 2)"),
    "module": Foreign(module, signature="values: float32 (batch, 4) → output: float32 (batch, 3)"),
}


@dataclass(frozen=True)
class World:
    """A store with all of them, a server on it, and the sources to compare with."""

    store: Store
    server: Server
    sources: dict[str, Source]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "foreign_objects.py").write_text(CUSTOM)
    store = Store(folder / "store")
    sources = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        __import__("foreign_objects")
        for name, foreign in FOREIGN.items():
            keras.utils.set_random_seed(2)
            said = Description(name=name, opening=foreign.opening, shapes=foreign.shapes)
            sources[name] = open_source(foreign.make(folder), said)
            export_model(sources[name], store)
        with Server(store, ServerOptions(port=0, rest_api_port=0)) as server:
            yield World(store, server, sources)
        del sys.modules["foreign_objects"]


def rows_of(source: Source) -> dict[str, NDArray[Any]]:
    return {name: array[:5] for name, array in source.data.inputs.items()}


@pytest.mark.parametrize("name", FOREIGN)
def test_names_mean_something(world: World, name: str) -> None:
    assert str(world.sources[name].signature) == f"serving_default: {FOREIGN[name].signature}"


@pytest.mark.parametrize("name", FOREIGN)
def test_only_what_a_format_cannot_hold_is_absent(world: World, name: str) -> None:
    manifest = Manifest.read(world.store.path(name))
    assert {absent.label for absent in manifest.absent} == FOREIGN[name].absent
    assert not [absent for absent in manifest.absent if absent.failed]
    assert {artifact.label for artifact in manifest.artifacts} == ({"saved_model"} | TFLITE | ONNX) - FOREIGN[
        name
    ].absent


@pytest.mark.parametrize("transport", ["grpc", "http"])
@pytest.mark.parametrize("name", FOREIGN)
def test_the_server_answers_as_the_source(world: World, name: str, transport: str) -> None:
    source = world.sources[name]
    port = world.server.grpc_port if transport == "grpc" else world.server.rest_port
    inputs = rows_of(source)
    with connect(f"{transport}://127.0.0.1:{port}/{name}") as client:
        answers = client.predict(inputs, outputs=list(source.signature.outputs))
    if not isinstance(answers, dict):
        answers = {next(iter(source.signature.outputs)): answers}
    for output, expected in source.model.predict(inputs).items():
        assert answers[output].dtype == expected.dtype
        np.testing.assert_allclose(answers[output], expected, atol=FOREIGN[name].limit)


@pytest.mark.parametrize("name", FOREIGN)
def test_every_file_answers_as_the_source(world: World, name: str) -> None:
    source, folder = world.sources[name], world.store.path(name)
    inputs = rows_of(source)
    expected = source.model.predict(inputs)
    for artifact in Manifest.read(folder).artifacts:
        with connect(str(folder / artifact.path)) as client:
            answers = client.predict(inputs)
        if not isinstance(answers, dict):
            answers = {next(iter(expected)): answers}
        for output, array in expected.items():
            coarse = 0.2 * max(1.0, float(np.ptp(array)))
            limit = FOREIGN[name].limit if artifact.quantization == "float32" else coarse
            assert answers[output].dtype == array.dtype
            np.testing.assert_allclose(answers[output], array, atol=limit, err_msg=artifact.label)
