"""Recurrent models in every TFLite quantization, asked in LiteRT's own interpreter.

The models read a picture of 28 × 28 pixels row by row. In the fast tests each step is seven rows, for
the converter's time grows with the steps; the slow tests take one row a step, as the course does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from servable.clients import connect
from servable.errors import InputError
from servable.export import Data, ExportOptions, KerasModel, Source, export_model
from servable.export.keras_model import MAX_UNROLLED_STEPS
from servable.manifest import Manifest
from servable.models import card, samples
from servable.store import Store

schema: Any = import_module("tensorflow.lite.python.schema_py_generated")

FILES = {
    "float32": "model.tflite",
    "float16": "model_float16.tflite",
    "dynamic": "model_dynamic.tflite",
    "int8": "model_int8.tflite",
    "int16x8": "model_int16x8.tflite",
}
QUANTIZED = ("dynamic", "int8", "int16x8")
LOOPED = ("float32", "float16", "dynamic")

LAYERS: Mapping[str, Callable[[Any], list[Any]]] = {
    "SimpleRNN": lambda layers: [layers.SimpleRNN(32)],
    "LSTM": lambda layers: [layers.LSTM(32)],
    "GRU": lambda layers: [layers.GRU(32)],
    "Bidirectional": lambda layers: [layers.Bidirectional(layers.LSTM(16))],
    "stacked": lambda layers: [layers.LSTM(16, return_sequences=True), layers.LSTM(16)],
    "dropout": lambda layers: [
        layers.GRU(16, return_sequences=True, recurrent_dropout=0.2),
        layers.LSTM(16, dropout=0.1, recurrent_dropout=0.2),
    ],
}
TRAINED_ROWS = 700
# With it the quick models in int8 lose 0.2 percent at most; of five seeds, one lost 1.2 percent of the stacked one.
SEED = 5

Array = NDArray[Any]


def with_litert(path: Path, rows: Array) -> Array:
    answer: Array = Interpreter(model_path=str(path)).get_signature_runner()(sequence=rows)["probabilities"]
    return answer


def operators(path: Path) -> set[str]:
    """What a file computes with: names of the schema, and of custom operators as they are in the file."""
    model = schema.Model.GetRootAsModel(path.read_bytes(), 0)
    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()}
    found = set()
    for i in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(i)
        name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        found.add(code.CustomCode().decode() if name == "CUSTOM" else name)
    return found


def flags(model: Any) -> list[tuple[str, dict[str, Any]]]:
    """What an export may change of a layer for a while: its own flags, and methods put over those of its class."""
    names = ("unroll", "_could_use_gpu_kernel", "call", "get_initial_state", "dropout", "recurrent_dropout")
    names += ("implementation",)
    layers = model._flatten_layers()
    return [(layer.name, {name: vars(layer)[name] for name in names if name in vars(layer)}) for layer in layers]


@dataclass(frozen=True)
class Exported:
    """A trained model with all of its files, and its own answers for all labelled rows."""

    model: Any
    steps: int
    flags_before: list[tuple[str, dict[str, Any]]]
    manifest: Manifest
    folder: Path
    rows: Array
    labels: Array
    answers: Array

    def accuracy(self, answers: Array) -> float:
        return float(np.mean(np.argmax(answers, -1) == self.labels))


def train(of: Any, model: Any, rows: Array, labels: Array) -> None:
    model.compile(of.optimizers.Adam(0.003), "sparse_categorical_crossentropy")
    model.fit(rows, labels, batch_size=32, epochs=20, verbose=0)


def fit_last_layer(of: Any, model: Any, rows: Array, labels: Array) -> None:
    """Ridge regression on what recurrent layers say that nobody trained: quick, and alike everywhere.

    Their weights are those that they were initialised with, moved a little: biases of zero hide mistakes.
    """
    rng = np.random.default_rng(SEED)
    model.set_weights([array + rng.normal(0, 0.2, array.shape) for array in model.get_weights()])
    hidden = np.asarray(of.Model(model.inputs, model.layers[-1].input)(rows), np.float64)
    mean, count = hidden.mean(axis=0), len(rows)
    centred = np.column_stack([hidden - mean, np.ones(count)])
    penalty = 0.03 * count * hidden.var() * np.eye(centred.shape[1])
    targets = np.eye(10)[labels] - 0.1
    *weights, bias = 6 * np.linalg.solve(centred.T @ centred + penalty, centred.T @ targets)
    model.layers[-1].set_weights([np.array(weights), bias - mean @ np.array(weights)])


FAST = [(keras, name, 4) for name in LAYERS]
SLOW = [(keras, name, 28) for name in LAYERS] + [(tf_keras, "LSTM", 28), (tf_keras, "GRU", 28)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((of, name, steps), id=f"{of.__name__}-{name}-{steps}", marks=marks)
        for cases, marks in ((FAST, ()), (SLOW, pytest.mark.slow))
        for of, name, steps in cases
    ],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The quantized files are held to all labelled rows: in a few hundred, few that change sides are a percent."""
    of, name, steps = request.param
    data = samples.test_samples(card("cnn"))
    rows, labels = data.inputs.reshape(1000, steps, -1), data.targets
    calibration = samples.calibration_samples(card("cnn")).reshape(500, steps, -1)
    of.utils.set_random_seed(SEED)
    ends = of.Input(rows.shape[1:], name="sequence"), of.layers.Dense(10, "softmax", name="probabilities")
    model = of.Sequential([ends[0], *LAYERS[name](of.layers), ends[1]])
    (train if steps == 28 else fit_last_layer)(of, model, rows[:TRAINED_ROWS], labels[:TRAINED_ROWS])
    before = flags(model)
    source = Source(
        name="recurrent",
        model=KerasModel.of(model),
        data=Data({"sequence": rows}, {"sequence": calibration}, "1,000 rows", labels),
        task="classification",
        metric="accuracy",
    )
    store = Store(tmp_path_factory.mktemp("recurrent"))
    manifest = export_model(source, store, ExportOptions(formats=("tflite",)))
    answers = np.asarray(model(rows, training=False))
    return Exported(model, steps, before, manifest, store.path("recurrent"), rows, labels, answers)


def test_there_is_every_quantization(exported: Exported) -> None:
    assert exported.manifest.absent == ()
    assert {a.quantization: a.path for a in exported.manifest.artifacts if a.format == "tflite"} == FILES
    assert all((exported.folder / path).is_file() for path in FILES.values())
    assert {artifact.batch for artifact in exported.manifest.artifacts} == {"dynamic"}


@pytest.mark.parametrize("quantization", FILES)
def test_the_loop_is_taken_out(exported: Exported, quantization: str) -> None:
    found = operators(exported.folder / FILES[quantization])
    assert "FULLY_CONNECTED" in found
    assert not found & {"WHILE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE"}
    assert not [name for name in found if name.startswith("Flex") or name != name.upper()]


@pytest.mark.parametrize("quantization", FILES)
def test_rows_are_answered_alike_in_batches_of_any_size(exported: Exported, quantization: str) -> None:
    path = exported.folder / FILES[quantization]
    (details,) = Interpreter(model_path=str(path)).get_input_details()
    assert details["shape_signature"].tolist() == [-1, exported.steps, 784 // exported.steps]
    runner = Interpreter(model_path=str(path)).get_signature_runner()
    together = runner(sequence=exported.rows[:32])["probabilities"]
    assert together.shape == (32, 10)
    for some in (slice(5, 8), slice(9, 10)):
        answer = runner(sequence=exported.rows[some])["probabilities"]
        np.testing.assert_allclose(answer, together[some], rtol=0, atol=1e-5)


def test_float32_answers_as_keras_does(exported: Exported) -> None:
    np.testing.assert_allclose(
        with_litert(exported.folder / FILES["float32"], exported.rows), exported.answers, rtol=0, atol=1e-4
    )


def test_float16_answers_nearly_as_keras_does(exported: Exported) -> None:
    answers = with_litert(exported.folder / FILES["float16"], exported.rows)
    np.testing.assert_allclose(answers, exported.answers, rtol=0, atol=0.01)


@pytest.mark.parametrize("quantization", QUANTIZED)
def test_quantized_files_classify_as_well_as_keras(exported: Exported, quantization: str) -> None:
    of_keras = exported.accuracy(exported.answers)
    assert of_keras > 0.5  # guessing is 0.1
    accuracy = exported.accuracy(with_litert(exported.folder / FILES[quantization], exported.rows))
    assert accuracy >= of_keras - 0.010


def test_the_model_is_as_it_was(exported: Exported) -> None:
    assert flags(exported.model) == exported.flags_before
    recurrent = [kept["unroll"] for _, kept in exported.flags_before if "unroll" in kept]
    assert recurrent
    assert not any(recurrent)


@pytest.mark.parametrize("of", [keras, tf_keras], ids=lambda of: of.__name__)
def test_the_model_is_as_it_was_after_a_failure_too(of: Any) -> None:
    layers = of.layers
    inputs = of.Input((6, 4), name="sequence")
    hidden = layers.Bidirectional(layers.GRU(3, return_sequences=True))(inputs)
    model = of.Model(inputs, layers.Dense(2)(layers.LSTM(3, unroll=True)(hidden)))
    before = flags(model)

    def fail() -> None:
        with KerasModel.of(model).unrolled():
            assert flags(model) != before
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        fail()
    assert flags(model) == before


@dataclass(frozen=True)
class Loop:
    """A model whose loop cannot be taken out; its own answers for sequences, by the number of their steps."""

    manifest: Manifest
    folder: Path
    steps: int | None
    answers: Mapping[int, Array]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((of, name, steps), id=f"{of.__name__}-{name}-{steps or 'any'}")
        for of, name, steps in ((keras, "LSTM", 300), (keras, "GRU", None), (tf_keras, "LSTM", None))
    ],
)
def loop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loop:
    of, name, steps = request.param
    of.utils.set_random_seed(1)
    inputs = of.Input((steps, 4), name="sequence")
    outputs = of.layers.Dense(2, "softmax", name="probabilities")(getattr(of.layers, name)(3)(inputs))
    model = of.Model(inputs, outputs)
    rows = sequences(40, steps or 11)
    source = Source("loop", KerasModel.of(model), Data({"sequence": rows}, {"sequence": rows}, "40 rows"))
    store = Store(tmp_path_factory.mktemp("loop"))
    manifest = export_model(source, store, ExportOptions(("tflite",)))
    answers = {n: model.predict(sequences(5, n), verbose=0) for n in ([steps] if steps else (1, 7, 11))}
    return Loop(manifest, store.path("loop"), steps, answers)


def sequences(count: int, steps: int) -> Array:
    return np.random.default_rng(steps).standard_normal((count, steps, 4)).astype(np.float32)


def test_the_longest_loop_that_is_taken_out_is_shorter_than_the_tests_own() -> None:
    assert 28 <= MAX_UNROLLED_STEPS < 300


def test_loops_that_stay_take_one_row(loop: Loop) -> None:
    made = {a.quantization: (a.path, a.batch, a.sizes) for a in loop.manifest.artifacts if a.format == "tflite"}
    for quantization in LOOPED:
        assert made[quantization] == (FILES[quantization], "1", {})


def test_what_takes_no_loop_is_made_for_as_many_steps_as_the_data_has(loop: Loop) -> None:
    made = {a.quantization: a for a in loop.manifest.artifacts if a.format == "tflite"}
    if loop.steps == 300:  # too many
        absent = {item.quantization: item for item in loop.manifest.absent}
        assert absent.keys() == {"int8", "int16x8"}
        for quantization, item in absent.items():
            assert (item.format, item.failed) == ("tflite", False)
            assert "loop" in item.reason
            assert not (loop.folder / FILES[quantization]).exists()
        return
    assert loop.manifest.absent == ()
    for quantization in ("int8", "int16x8"):
        assert (made[quantization].batch, made[quantization].sizes) == ("dynamic", {"sequence": (11, 4)})
        path = loop.folder / FILES[quantization]
        assert "WHILE" not in operators(path)
        with connect(str(path)) as client:
            np.testing.assert_allclose(client.predict({"sequence": sequences(5, 11)}), loop.answers[11], atol=0.05)
            expected = r"input 'sequence' has shape \(5, 7, 4\); expected sequence: float32 \(batch, 11, 4\)"
            with pytest.raises(InputError, match=expected):
                client.predict({"sequence": sequences(5, 7)})


@pytest.mark.parametrize("quantization", LOOPED)
def test_files_of_one_row_answer_several(loop: Loop, quantization: str) -> None:
    path = loop.folder / FILES[quantization]
    (details,) = Interpreter(model_path=str(path)).get_input_details()
    assert details["shape"][0] == details["shape_signature"][0] == 1
    assert "WHILE" in operators(path)
    assert (details["shape_signature"][1] == -1) == (len(loop.answers) > 1)
    with connect(str(path)) as client:
        for steps, expected in loop.answers.items():
            for count in (5, 1):
                answers = client.predict({"sequence": sequences(5, steps)[:count]})
                atol = 1e-5 if quantization == "float32" else 0.01
                np.testing.assert_allclose(answers, expected[:count], rtol=0, atol=atol)
