"""Keras models of both libraries as sources: names, nesting, answers, and what is tracked of them."""

from __future__ import annotations

import doctest
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from numpy.typing import NDArray

from servable.errors import ExportError, InvalidArgumentError
from servable.export import keras_model, naming, structure
from servable.export.keras_model import KerasModel
from servable.signature import TensorSpec

LIBRARIES = {"keras": keras, "tf_keras": tf_keras}
Array = NDArray[Any]

RNG = np.random.default_rng(0)
LEFT, RIGHT = RNG.normal(size=(5, 3)).astype(np.float32), RNG.normal(size=(5, 4)).astype(np.float32)
TOKENS = RNG.integers(0, 10, (5, 3)).astype(np.int32)
WORDS = np.array([["a"], ["b"], ["?"], [""], ["a"]], object)


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Any:
    return LIBRARIES[request.param]


def flat(answers: Any) -> list[Array]:
    """The leaves of what a model itself answers, dictionaries in their own order."""
    if isinstance(answers, dict):
        answers = list(answers.values())
    if isinstance(answers, list | tuple):
        return [leaf for answer in answers for leaf in flat(answer)]
    return [np.asarray(answers)]


def assert_same(model: KerasModel, arrays: list[Array], answers: Any) -> None:
    """The opened model answers what the original did, by `predict` and traced by `call`."""
    inputs = dict(zip(model.signature.inputs, arrays, strict=True))
    expected = dict(zip(model.signature.outputs, flat(answers), strict=True))
    found = model.predict(inputs)
    specs = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in model.signature.inputs.items()]
    traced = tf.function(lambda *tensors: model.call(dict(zip(inputs, tensors, strict=True))), input_signature=specs)
    called = traced(*(tf.constant(array) for array in inputs.values()))
    assert list(found) == list(called) == list(expected)
    for name, array in expected.items():
        spec = model.signature.outputs[name]
        assert found[name].dtype == array.dtype == spec.dtype
        assert spec.accepts_shape(array.shape)
        for other in (found[name], called[name].numpy()):
            np.testing.assert_allclose(other, array, rtol=1e-5, atol=1e-6)


def two(library: Any, *names: str | None) -> tuple[Any, Any]:
    first, second = names or (None, None)
    return library.Input((3,), name=first), library.Input((4,), name=second)


def dense(library: Any, units: int, name: str | None = None) -> Any:
    return library.layers.Dense(units, name=name, bias_initializer="random_normal")


def test_two_inputs_and_three_outputs(library: Any) -> None:
    left, right = two(library)
    both = library.layers.Concatenate()([left, right])
    outputs = [dense(library, 2, "zeta")(left), dense(library, 3, "alpha")(right), dense(library, 4)(both)]
    original = library.Model([left, right], outputs)
    model = KerasModel.of(original)
    assert model.kind == library.__name__
    assert model.parameters == 4 * 2 + 5 * 3 + 8 * 4
    assert model.signature.inputs == {
        "features_1": TensorSpec("features_1", "float32", (None, 3)),
        "features_2": TensorSpec("features_2", "float32", (None, 4)),
    }
    assert {name: spec.shape for name, spec in model.signature.outputs.items()} == {
        "zeta": (None, 2),
        "alpha": (None, 3),
        "output": (None, 4),
    }
    assert_same(model, [LEFT, RIGHT], original([LEFT, RIGHT]))


def nested(library: Any) -> tuple[Any, Any, Any]:
    left, right = two(library)
    outputs = [[dense(library, 2, "zeta")(left), dense(library, 3)(right)], dense(library, 4, "last")(left)]
    return library.Model([left, [right]], outputs), [LEFT, [RIGHT]], ["features_1", "features_2"]


def tuples(library: Any) -> tuple[Any, Any, Any]:
    left, right = two(library)
    model = library.Model((left, right), (dense(library, 2)(left), dense(library, 2)(right)))
    return model, (LEFT, RIGHT), ["features_1", "features_2"]


def dictionaries(library: Any) -> tuple[Any, Any, Any]:
    left, right = two(library, "zz", "bb")
    model = library.Model(
        {"zz": left, "bb": right}, {"zulu": dense(library, 2)(left), "alfa": dense(library, 3)(right)}
    )
    return model, {"zz": LEFT, "bb": RIGHT}, ["zz", "bb"]


@pytest.mark.parametrize("build", [nested, tuples, dictionaries])
def test_nested_inputs_and_outputs(library: Any, build: Callable[[Any], tuple[Any, Any, list[str]]]) -> None:
    original, inputs, names = build(library)
    model = KerasModel.of(original)
    assert list(model.signature.inputs) == names
    assert_same(model, [LEFT, RIGHT], original(inputs))


def test_dictionaries_name_the_outputs_in_their_own_order(library: Any) -> None:
    original, inputs, _ = dictionaries(library)
    model = KerasModel.of(original)
    assert list(model.signature.outputs) == ["zulu", "alfa"]
    answers = original(inputs)
    np.testing.assert_allclose(
        model.predict({"zz": LEFT, "bb": RIGHT})["zulu"], np.asarray(answers["zulu"]), rtol=1e-5, atol=1e-6
    )


def test_operations_between_layers_name_nothing(library: Any) -> None:
    left = library.Input((3,))
    original = library.Model(left, left * 2.0 + 1.0)
    model = KerasModel.of(original)
    assert list(model.signature.outputs) == ["output"]
    assert_same(model, [LEFT], LEFT * 2 + 1)


def test_a_model_within_a_model(library: Any) -> None:
    inner = library.Sequential([library.Input((4,)), dense(library, 3)], name="inner")
    original = library.Sequential([library.Input((4,)), inner, library.layers.ReLU()])
    assert_same(KerasModel.of(original), [RIGHT], original(RIGHT))


def subclassed(library: Any) -> tuple[Any, Any]:
    class Switch(library.Model):  # type: ignore[misc,name-defined]  # which library is the test's choice
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = dense(library, 2), dense(library, 3)

        def call(self, inputs: Any, training: bool | None = None) -> Any:
            return {"zulu": self.first(inputs["zz"]) * (2.0 if training else 1.0), "alfa": self.second(inputs["bb"])}

    class Pair(library.Model):  # type: ignore[misc,name-defined]  # which library is the test's choice
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = dense(library, 2), dense(library, 3)

        def call(self, inputs: Any) -> Any:
            left, right = inputs
            return self.first(left), self.second(right)

    return Switch(), Pair()


def test_a_subclassed_model_of_dictionaries(library: Any) -> None:
    original, _ = subclassed(library)
    answers = original({"zz": LEFT, "bb": RIGHT})
    model = KerasModel.of(original)
    assert list(model.signature.inputs) == ["zz", "bb"]
    assert list(model.signature.outputs) == ["zulu", "alfa"]
    assert_same(model, [LEFT, RIGHT], answers)


def test_a_subclassed_model_of_lists(library: Any) -> None:
    _, original = subclassed(library)
    answers = original([LEFT, RIGHT])
    model = KerasModel.of(original)
    assert list(model.signature.outputs) == ["output_1", "output_2"]
    assert_same(model, [LEFT, RIGHT], answers)


def test_integers(library: Any) -> None:
    tokens = library.Input((3,), dtype="int32")
    original = library.Model(tokens, library.layers.Embedding(10, 2)(tokens))
    model = KerasModel.of(original)
    assert model.signature.inputs == {"tokens": TensorSpec("tokens", "int32", (None, 3))}
    assert model.vocabulary == 10
    assert_same(model, [TOKENS], original(TOKENS))


def test_strings(library: Any) -> None:
    words = library.Input((1,), dtype="string")
    numbers = library.layers.StringLookup(vocabulary=["a", "b"])(words)
    original = library.Model(words, library.layers.Embedding(4, 2)(numbers))
    model = KerasModel.of(original)
    assert model.signature.inputs == {"text": TensorSpec("text", "string", (None, 1))}
    assert_same(model, [WORDS], original(tf.constant(WORDS)))


@pytest.fixture
def doubles_everywhere(library: Any) -> Iterator[None]:
    def choose(dtype: str) -> None:
        library.backend.set_floatx(dtype)
        if library is keras:
            keras.config.set_dtype_policy(dtype)

    choose("float64")
    yield
    choose("float32")


@pytest.mark.usefixtures("doubles_everywhere")
def test_doubles(library: Any) -> None:
    values = library.Input((3,))
    layer = library.layers.Dense(2)
    model = KerasModel.of(library.Model(values, layer(values)))
    assert model.signature.inputs == {"features": TensorSpec("features", "float64", (None, 3))}
    doubles = LEFT.astype(np.float64) + 1e-9
    (answer,) = model.predict({"features": doubles}).values()
    kernel, bias = layer.get_weights()
    np.testing.assert_allclose(answer, doubles @ kernel + bias, rtol=1e-12)
    assert answer.dtype == kernel.dtype == np.float64


def test_batch_norm_is_that_of_inference(library: Any) -> None:
    values = library.Input((3,))
    layer = library.layers.BatchNormalization(epsilon=1e-3)
    original = library.Model(values, layer(values))
    layer.set_weights([np.float32([1, 2, 3]), np.float32([0, 1, 0]), np.float32([5, 0, 1]), np.float32([4, 1, 9])])
    model = KerasModel.of(original)
    expected = (LEFT - [5, 0, 1]) / np.sqrt(np.array([4, 1, 9]) + 1e-3) * [1, 2, 3] + [0, 1, 0]
    assert_same(model, [LEFT], expected.astype(np.float32))


def test_a_recurrent_model_unrolled_and_not(library: Any) -> None:
    sequence = library.Input((3, 3))
    original = library.Model(sequence, library.layers.LSTM(4)(library.layers.GRU(5, return_sequences=True)(sequence)))
    rows = RNG.normal(size=(5, 3, 3)).astype(np.float32)
    answers = original(rows)
    model = KerasModel.of(original)
    assert model.recurrent
    assert model.unrolls()
    spec = tf.TensorSpec((None, 3, 3), tf.float32)

    def operations() -> set[str]:
        graph = tf.function(lambda x: model.call({"sequence": x}), input_signature=[spec]).get_concrete_function().graph
        return {node.op for node in graph.as_graph_def().node} | {
            node.op for function in graph.as_graph_def().library.function for node in function.node_def
        }

    assert operations() & {"While", "StatelessWhile"}
    with model.unrolled():
        assert not operations() & {"While", "StatelessWhile"}
        assert_same(model, [rows], answers)
    assert operations() & {"While", "StatelessWhile"}
    assert_same(model, [rows], answers)


def test_cells_with_dropout_draw_no_masks_for_inference() -> None:
    sequence = keras.Input((3, 3))
    lstm = keras.layers.Bidirectional(keras.layers.LSTM(4, dropout=0.5, recurrent_dropout=0.5, return_sequences=True))
    original = keras.Model(sequence, keras.layers.GRU(5, recurrent_dropout=0.5)(lstm(sequence)))
    rows = RNG.normal(size=(5, 3, 3)).astype(np.float32)
    answers = original(rows, training=False)
    model = KerasModel.of(original)
    spec = tf.TensorSpec((None, 3, 3), tf.float32)
    graph = tf.function(lambda x: model.call({"sequence": x}), input_signature=[spec]).get_concrete_function().graph
    found = {node.op for node in graph.as_graph_def().node}
    found |= {node.op for function in graph.as_graph_def().library.function for node in function.node_def}
    assert not [name for name in found if "Random" in name or "Assign" in name]
    assert_same(model, [rows], answers)
    cells = [layer for layer in original._flatten_layers() if hasattr(layer, "get_recurrent_dropout_mask")]
    assert [(cell.dropout, cell.recurrent_dropout, cell.implementation) for cell in cells] == [
        (0.5, 0.5, 1),
        (0.5, 0.5, 1),
        (0.0, 0.5, 1),
    ]


def test_keras_on_another_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ExportError, match=r"Keras runs on 'jax' in this process.*KERAS_BACKEND=tensorflow"):
        KerasModel.of(model)


def test_given_names(library: Any) -> None:
    left, right = two(library, "zz", "bb")
    original = library.Model([left, right], [dense(library, 2)(left), dense(library, 2)(right)])
    model = KerasModel.of(original, ("first", "second"), ("one", "other"))
    assert list(model.signature.inputs) == ["first", "second"]
    assert list(model.signature.outputs) == ["one", "other"]
    assert_same(model, [LEFT, RIGHT], original([LEFT, RIGHT]))


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        (("one",), (), "2 inputs, .*; 1 names are given"),
        ((), ("one", "one"), "two outputs cannot have one name"),
        (("1st", "x"), (), "'1st' cannot be the name of an input"),
        ((), ("a b", "c"), "'a b' cannot be the name of an output"),
    ],
)
def test_names_that_do_not_fit(inputs: tuple[str, ...], outputs: tuple[str, ...], words: str) -> None:
    left, right = two(keras)
    model = keras.Model([left, right], [dense(keras, 2)(left), dense(keras, 2)(right)])
    with pytest.raises(InvalidArgumentError, match=words):
        KerasModel.of(model, inputs, outputs)


@pytest.mark.parametrize(
    ("specs", "names"),
    [
        ([("keras_tensor_17", "float32", (None, 28, 28, 1))], ["image"]),
        ([("input_1", "float32", (None, 28, 28))], ["sequence"]),
        ([("args_0", "int64", (None, 5))], ["tokens"]),
        ([("", "string", (None,))], ["text"]),
        ([("dense_input", "float32", None)], ["features"]),
        ([("My Input-1", "float32", (None, 2)), ("7up", "float32", (None, 2))], ["My_Input_1", "tensor_7up"]),
        (
            [("x", "float32", (None, 2)), ("y", "float32", (None, 2)), ("z", "float32", (None, 2))],
            ["features", "y", "z"],
        ),
        ([("a.b", "float32", (None, 2)), ("a-b", "float32", (None, 2))], ["a_b_1", "a_b_2"]),
    ],
)
def test_names_of_inputs(specs: list[tuple[str, str, Any]], names: list[str]) -> None:
    assert naming.input_names([TensorSpec(*spec) for spec in specs]) == names


@pytest.mark.parametrize(
    ("name", "class_name", "default"),
    [
        ("dense", "Dense", True),
        ("dense_12", "Dense", True),
        ("max_pooling2d_3", "MaxPooling2D", True),
        ("conv2d", "Conv2D", True),
        ("tf.__operators__.add_1", "TFOpLambda", True),
        ("tf.math.multiply", "TFOpLambda", True),
        ("boxes", "Dense", False),
        ("dense_head", "Dense", False),
    ],
)
def test_names_that_keras_gave(name: str, class_name: str, default: bool) -> None:
    assert naming.is_default_layer_name(name, class_name) is default


def test_a_model_that_was_never_built(library: Any) -> None:
    with pytest.raises(ExportError, match=r"never built, .* call it once on a batch"):
        KerasModel.of(library.Sequential([library.layers.Dense(2)]))


@pytest.mark.parametrize("thing", [7, object(), np.zeros(3), keras.layers.Dense(2)])
def test_what_is_no_model(thing: Any) -> None:
    with pytest.raises(ExportError, match=f"a {type(thing).__module__}.{type(thing).__qualname__} is no Keras model"):
        KerasModel.of(thing)


def test_a_model_that_fails_on_its_data(library: Any) -> None:
    class Positive(library.layers.Layer):  # type: ignore[misc,name-defined]  # which library is the test's choice
        def call(self, inputs: Any) -> Any:
            with tf.control_dependencies([tf.debugging.assert_positive(inputs)]):
                return tf.identity(inputs)

    values = library.Input((3,))
    model = KerasModel.of(library.Model(values, Positive()(values)))
    with pytest.raises(ExportError, match="fails on its data") as caught:
        model.predict({"features": -np.ones((2, 3), np.float32)})
    assert "\n" not in str(caught.value)


def test_the_description(library: Any) -> None:
    original = library.Sequential([library.Input((3,)), dense(library, 2)])
    kernel, bias = original.get_weights()
    assert KerasModel.of(original).describe() == {
        "kind": library.__name__,
        "class": "keras.models.sequential.Sequential" if library is keras else "tf_keras.engine.sequential.Sequential",
        "parameters": 8,
        "sha256": hashlib.sha256(kernel.tobytes() + bias.tobytes()).hexdigest(),
    }


@pytest.fixture
def saved(library: Any, tmp_path: Path) -> tuple[KerasModel, Path]:
    """A model with a vocabulary, saved from nothing but its `call` and what is `tracked`."""
    words = library.Input((1,), dtype="string")
    numbers = library.layers.StringLookup(vocabulary=["a", "b"])(words)
    table = library.layers.Embedding(4, 2)(numbers)
    model = KerasModel.of(library.Model(words, library.layers.BatchNormalization()(table)))
    module = tf.Module()
    module.kept = list(model.tracked)
    specs = [tf.TensorSpec((None, 1), tf.string, "text")]
    module.function = tf.function(lambda text: model.call({"text": text}), input_signature=specs)
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.function.get_concrete_function())
    return model, tmp_path / "saved"


def test_what_is_tracked_is_all_that_a_saved_model_needs(saved: tuple[KerasModel, Path]) -> None:
    model, path = saved
    loaded = tf.saved_model.load(str(path)).signatures["serving_default"]
    (expected,) = model.predict({"text": WORDS}).values()
    (found,) = loaded(text=tf.constant(WORDS)).values()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("module", [keras_model, naming, structure])
def test_the_examples_of_the_modules(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
