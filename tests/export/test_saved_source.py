"""SavedModels as sources: of TensorFlow 1 and 2, with signatures and without, in the TF1 Hub format, damaged."""

from __future__ import annotations

import doctest
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from google.protobuf import text_format
from numpy.typing import NDArray
from tensorflow.core.protobuf import saved_model_pb2

from servable.errors import ArtifactError, ExportError, InvalidArgumentError, NotFoundError
from servable.export import saved_source
from servable.export.saved_source import HubModule, SavedModelFolder, open_saved_model
from servable.signature import CLASSIFY_METHOD, TensorSpec

v1 = tf.compat.v1

Array = NDArray[Any]
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(5, 3)).astype(np.float32)
KERNEL = RNG.normal(size=(3, 2)).astype(np.float32)
WORDS = np.array([b"b", b"a", b"?", b"c", b"b"], object)
EMBEDDING = np.arange(8, dtype=np.float32).reshape(4, 2)
EMBEDDED = EMBEDDING[[1, 0, 3, 2, 1]]  # rows of WORDS; what is not in the vocabulary has the last


def vocabulary(folder: Path) -> str:
    path = folder / "vocabulary.txt"
    path.write_text("a\nb\nc\n")
    return str(path)


def file_table(path: str) -> Any:
    """Words of a vocabulary file to 0, 1, 2, and 3 for all others."""
    initializer = tf.lookup.TextFileInitializer(
        path, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
    )
    return tf.lookup.StaticHashTable(initializer, 3)


def save_tf1(folder: Path, assets: Path, tags: list[str], make_signatures: Callable[..., dict[str, Any]]) -> Path:
    """A SavedModel of TensorFlow 1: a table from a file, a trained variable with its optimizer's slots."""
    with tf.Graph().as_default(), v1.Session() as session:
        words = v1.placeholder(tf.string, [None], "words")
        embedding = v1.get_variable("embedding", initializer=EMBEDDING)
        answers = tf.gather(embedding, file_table(vocabulary(assets)).lookup(words))
        step = v1.train.get_or_create_global_step()
        train = v1.train.AdamOptimizer(0.0).minimize(tf.reduce_sum(answers), step)
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        session.run(train, {words: [b"a"]})
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session,
            tags,
            make_signatures(words, answers),
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=v1.tables_initializer(),
        )
        builder.save()
    return folder


def serving_signatures(words: Any, answers: Any) -> dict[str, Any]:
    make, info = v1.saved_model.build_signature_def, v1.saved_model.build_tensor_info
    return {
        "serving_default": make({"words": info(words)}, {"vectors": info(answers)}, "tensorflow/serving/predict"),
        "classify": make({"inputs": info(words)}, {"scores": info(answers)}, CLASSIFY_METHOD),
    }


@pytest.fixture(scope="module")
def tf1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tf1")
    return save_tf1(folder / "saved", folder, ["serve"], serving_signatures)


def test_tensorflow_1(tf1: Path) -> None:
    model = open_saved_model(tf1)
    assert isinstance(model, SavedModelFolder)
    assert {name: str(signature) for name, signature in model.signatures.items()} == {
        "classify": "classify: inputs: string (batch) → scores: float32 (batch, 2)",
        "serving_default": "serving_default: words: string (batch) → vectors: float32 (batch, 2)",
    }
    assert model.signature is model.signatures["serving_default"]
    assert model.parameters == EMBEDDING.size  # not Adam's slots and powers, not the global step
    answers = model.predict({"words": WORDS})
    np.testing.assert_array_equal(answers["vectors"], EMBEDDED)


def test_another_signature_of_tensorflow_1(tf1: Path) -> None:
    model = open_saved_model(tf1, "classify")
    assert model.signature.method_name == CLASSIFY_METHOD
    np.testing.assert_array_equal(model.predict({"inputs": WORDS})["scores"], EMBEDDED)


def test_what_initializes_a_model_is_no_signature(tf2: Path) -> None:
    graph = saved_model_pb2.SavedModel.FromString((tf2 / "saved_model.pb").read_bytes()).meta_graphs[0]
    assert "__saved_model_init_op" in graph.signature_def
    assert open_saved_model(tf2, "three").signatures.keys() == {"three", "other"}
    with pytest.raises(NotFoundError, match="has no signature '__saved_model_init_op'"):
        open_saved_model(tf2, "__saved_model_init_op")


def test_the_description(tf1: Path) -> None:
    found = open_saved_model(tf1).describe()
    assert (found["kind"], found["parameters"]) == ("saved_model", 8)
    assert found["tensorflow"] == tf.__version__
    assert re.fullmatch("[0-9a-f]{64}", found["sha256"])


class Affine(tf.Module):  # type: ignore[misc]  # tensorflow is untyped
    """Two inputs, three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = tf.Variable(KERNEL)
        self.steps = tf.Variable(7, dtype=tf.int64)

    @tf.function(
        input_signature=[tf.TensorSpec([None, 3], tf.float32, "x"), tf.TensorSpec([None, 2], tf.float64, "args_1")]
    )  # type: ignore[untyped-decorator]  # tensorflow is untyped
    def three(self, x: Any, args_1: Any) -> dict[str, Any]:
        product = x @ self.kernel
        return {"output_0": product, "b": tf.cast(product, tf.float64) + args_1, "a": tf.argmax(product, -1)}


@pytest.fixture(scope="module")
def tf2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Signatures ``three`` and ``other``, none of them the default."""
    folder, module = tmp_path_factory.mktemp("tf2") / "saved", Affine()
    concrete = module.three.get_concrete_function()
    tf.saved_model.save(module, str(folder), signatures={"three": concrete, "other": concrete})
    return folder


def test_several_inputs_and_outputs_keep_their_names(tf2: Path) -> None:
    model = open_saved_model(tf2, "three")
    assert model.signature.name == "three"
    assert {name: (spec.dtype, spec.shape) for name, spec in model.signature.inputs.items()} == {
        "args_1": ("float64", (None, 2)),
        "x": ("float32", (None, 3)),
    }
    assert model.parameters == KERNEL.size
    shift = RNG.normal(size=(5, 2))
    answers = model.predict({"x": ROWS, "args_1": shift})
    product = ROWS @ KERNEL
    assert answers.keys() == {"a", "b", "output_0"}
    np.testing.assert_allclose(answers["output_0"], product, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(answers["b"], product.astype(np.float64) + shift, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(answers["a"], product.argmax(-1))


def test_rows_are_run_some_at_a_time(tf2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_source, "ROWS", 2)
    inputs = {"x": ROWS, "args_1": np.zeros((5, 2))}
    np.testing.assert_allclose(
        open_saved_model(tf2, "three").predict(inputs)["output_0"], ROWS @ KERNEL, rtol=1e-5, atol=1e-6
    )


def test_a_signature_has_to_be_chosen_of_several(tf2: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="choose one of other, three by --signature"):
        open_saved_model(tf2)
    with pytest.raises(NotFoundError, match=r"no signature 'thre'; did you mean 'three'\? Known: other, three"):
        open_saved_model(tf2, "thre")


def test_names_are_not_given_to_a_published_signature(tf2: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="is published with the names that its signature 'three' has"):
        open_saved_model(tf2, "three", inputs=("left", "right"))


def test_data_that_the_model_cannot_take(tf2: Path) -> None:
    inputs = {"x": np.zeros((2, 3), np.float32), "args_1": np.zeros((2, 5))}
    with pytest.raises(ExportError, match=r"'three' of .* fails: ") as caught:
        open_saved_model(tf2, "three").predict(inputs)
    assert "\n" not in str(caught.value)


def test_text_form(tf2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    shutil.copytree(tf2, folder)
    message = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    (folder / "saved_model.pb").unlink()
    (folder / "saved_model.pbtxt").write_text(text_format.MessageToString(message))
    model = open_saved_model(folder, "three")
    answers = model.predict({"x": ROWS, "args_1": np.zeros((5, 2))})
    np.testing.assert_allclose(answers["output_0"], ROWS @ KERNEL, rtol=1e-5, atol=1e-6)
    before = model.describe()["sha256"]
    with (folder / "saved_model.pbtxt").open("a") as file:
        file.write("# changed\n")
    assert model.describe()["sha256"] != before


def save(
    folder: Path, function: Callable[..., Any], *specs: Any, name: str = "serving_default", **tracked: Any
) -> Path:
    """A SavedModel of one function as its only signature."""
    module = tf.Module()
    for key, value in tracked.items():
        setattr(module, key, value)
    module.function = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, str(folder), signatures={name: module.function.get_concrete_function()})
    return folder


def test_the_only_signature_is_taken_whatever_its_name(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", lambda x: {"y": 2 * x}, tf.TensorSpec([None, 3], name="x"), name="embed")
    model = open_saved_model(folder)
    assert model.signature.name == "embed"
    np.testing.assert_array_equal(model.predict({"x": ROWS})["y"], 2 * ROWS)
    assert model.parameters == 0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_fixed_batch_is_kept_and_filled(tmp_path: Path, count: int) -> None:
    # The mean over the batch shows which rows were run together: pairs, the last row with itself.
    folder = save(tmp_path / "m", lambda x: {"y": x - tf.reduce_mean(x, 0)}, tf.TensorSpec([2, 3], name="x"))
    model = open_saved_model(folder)
    assert model.signature.inputs["x"] == TensorSpec("x", "float32", (2, 3), "serving_default_x:0")
    pairs = [ROWS[[0, 1]], ROWS[[2, 3]], ROWS[[4, 4]]] if count > 1 else [ROWS[[0, 0]]]
    expected = np.concatenate([pair - pair.mean(0) for pair in pairs])[:count]
    np.testing.assert_allclose(model.predict({"x": ROWS[:count]})["y"], expected, atol=1e-6)


def test_no_rows(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", lambda x: {"y": 2 * x}, tf.TensorSpec([None, 3], name="x"))
    assert open_saved_model(folder).predict({"x": ROWS[:0]})["y"].shape == (0, 3)


def sparse(folder: Path) -> Path:
    spec = tf.SparseTensorSpec([None, 3], tf.float32)
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.sparse_placeholder(tf.float32, [None, 3])
        y = tf.sparse.to_dense(x)
        info = v1.saved_model.build_tensor_info
        signature = v1.saved_model.build_signature_def({"x": info(x)}, {"y": info(y)}, "tensorflow/serving/predict")
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
    assert spec.shape.rank == 2
    return folder


SCALAR, ROW = tf.TensorSpec([], tf.float32, name="x"), tf.TensorSpec([None, 3], name="x")
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "sparse": (sparse, "has a sparse or ragged 'x' in its signature 'serving_default'"),
    "scalar input": (lambda folder: save(folder, lambda x: {"y": x[tf.newaxis]}, SCALAR), "has a single float32 'x'"),
    "scalar output": (lambda folder: save(folder, lambda x: {"y": x[0, 0]}, ROW), "has a single float32 'y'"),
    "no inputs": (lambda folder: save(folder, lambda: {"y": tf.ones([3])}), "has no inputs"),
    "several batches": (
        lambda folder: save(
            folder, lambda x, y: {"z": x[:1] + y}, tf.TensorSpec([2, 3], name="x"), tf.TensorSpec([1, 3], name="y")
        ),
        "takes a batch of 1 and 2 only",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_signatures_that_no_artifact_can_answer(tmp_path: Path, case: str) -> None:
    make, words = REFUSED[case]
    with pytest.raises(ExportError, match=words):
        open_saved_model(make(tmp_path / "m"))


def test_an_output_without_the_batch_is_found_out_when_it_runs(tmp_path: Path) -> None:
    def function(x: Any, shape: Any) -> dict[str, Any]:
        return {"y": tf.reshape(x, shape[0])}

    shape = tf.TensorSpec([None, None], tf.int32, name="shape")
    model = open_saved_model(save(tmp_path / "m", function, ROW, shape))
    assert model.signature.outputs["y"].shape is None
    with pytest.raises(ExportError, match=r"output 'y' has shape \(15,\) for 5 rows"):
        model.predict({"x": ROWS, "shape": np.full((5, 1), -1, np.int32)})


def test_other_tags(tmp_path: Path) -> None:
    folder = save_tf1(tmp_path / "m", tmp_path, ["train", "gpu"], serving_signatures)
    with pytest.raises(
        ArtifactError, match="no graph with the tag 'serve', which servers load; its tags are: gpu, train"
    ):
        open_saved_model(folder)


@pytest.mark.parametrize("library", [keras, tf_keras])
@pytest.mark.parametrize("way", ["export", "save"])
def test_parameters_are_those_that_keras_counts(tmp_path: Path, library: Any, way: str) -> None:
    layers = library.layers
    model = library.Sequential([library.Input((3,)), layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.1)])
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.ones((4, 3)), np.ones((4, 4)), verbose=0)
    folder = str(tmp_path / "m")
    if way == "export":
        model.export(folder, **({"verbose": False} if library is keras else {}))
    else:
        tf.saved_model.save(model, folder)
    opened = open_saved_model(Path(folder))
    assert opened.parameters == model.count_params() == 32
    (name,), (output,) = opened.signature.inputs, opened.signature.outputs
    if library is keras and way == "save":
        # TensorFlow 2 can load what this writes, but sessions, and so servers, do not find its variables.
        with pytest.raises(
            ExportError, match=r"Could not find variable .* save it anew, Keras 3 models with model.export"
        ):
            opened.predict({name: ROWS})
        return
    expected = np.asarray(model(ROWS, training=False))
    np.testing.assert_allclose(opened.predict({name: ROWS})[output], expected, rtol=1e-5, atol=1e-6)


class Callable2(tf.Module):  # type: ignore[misc]  # tensorflow is untyped
    """As modules of TensorFlow Hub are: to be called, with a switch for the training and no signature."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.embedding, self.table = tf.Variable(EMBEDDING), file_table(path)
        self.mode = tf.Variable(1.0)

    @tf.function  # type: ignore[untyped-decorator]  # tensorflow is untyped
    def __call__(self, inputs: Any, training: bool = False) -> Any:
        vectors = tf.gather(self.embedding, self.table.lookup(inputs["word_list"]))
        scaled = inputs["numbers"] * (100.0 if training else self.mode)
        return {"zulu": scaled, "alfa": [vectors, (-vectors, scaled[:, 0])]}


@pytest.fixture(scope="module")
def hub2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub2")
    module = Callable2(vocabulary(folder))
    for batch in (4, None):
        for training in (True, False):
            words, x = tf.TensorSpec([batch], tf.string), tf.TensorSpec([batch, 3], tf.float32)
            module.__call__.get_concrete_function({"word_list": words, "numbers": x}, training=training)
    tf.saved_model.save(module, str(folder / "saved"))
    return folder / "saved"


def assert_answers(answers: Any) -> None:
    assert list(answers) == ["alfa_0", "alfa_1_0", "alfa_1_1", "zulu"]
    expected = [EMBEDDED, -EMBEDDED, ROWS[:, 0], ROWS]
    for found, array in zip(answers.values(), expected, strict=True):
        np.testing.assert_array_equal(found, array)


def test_a_module_without_signatures_is_called(hub2: Path) -> None:
    model = open_saved_model(hub2)
    assert isinstance(model, HubModule)
    assert {name: (spec.dtype, spec.shape) for name, spec in model.signature.inputs.items()} == {
        "numbers": ("float32", (None, 3)),
        "word_list": ("string", (None,)),
    }
    assert model.parameters == 9
    assert model.describe()["kind"] == "hub_module"
    assert model.describe()["tensorflow"] == tf.__version__
    assert_answers(model.predict({"word_list": WORDS, "numbers": ROWS}))


def test_names_for_a_module_without_signatures(hub2: Path) -> None:
    model = open_saved_model(hub2, inputs=("first", "second"), outputs=("p", "q", "r", "s"))
    assert list(model.signature.inputs) == ["first", "second"]
    np.testing.assert_array_equal(model.predict({"first": ROWS, "second": WORDS})["p"], EMBEDDED)
    with pytest.raises(InvalidArgumentError, match=r"2 inputs, .*; 1 names are given"):
        open_saved_model(hub2, inputs=("words",))
    with pytest.raises(NotFoundError, match="has no signature 'default': it has none"):
        open_saved_model(hub2, "default")


def publish(model: HubModule, folder: Path) -> Any:
    """A SavedModel of the traced call and of what is tracked; its signature, loaded anew."""
    module, inputs = tf.Module(), model.signature.inputs
    module.tracked = list(model.tracked)
    specs = [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in inputs.items()]
    module.function = tf.function(
        lambda *tensors: model.call(dict(zip(inputs, tensors, strict=True))), input_signature=specs, autograph=False
    )
    tf.saved_model.save(module, str(folder), signatures=module.function.get_concrete_function())
    return folder


def test_a_called_module_is_saved_whole(hub2: Path, tmp_path: Path) -> None:
    """Table, vocabulary file and weights are in the new folder: the old one is gone when it is loaded."""
    shutil.copytree(hub2, tmp_path / "old")
    model = open_saved_model(tmp_path / "old")
    assert isinstance(model, HubModule)
    publish(model, tmp_path / "new")
    shutil.rmtree(tmp_path / "old")
    loaded = tf.saved_model.load(str(tmp_path / "new")).signatures["serving_default"]
    answers = loaded(word_list=tf.constant(WORDS), numbers=tf.constant(ROWS))
    assert_answers({name: answers[name].numpy() for name in model.signature.outputs})


@pytest.fixture(scope="module")
def hub1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module in the TF1 Hub format: no tag, a signature ``default``, and a file that says so."""

    def signatures(words: Any, answers: Any) -> dict[str, Any]:
        make, info = v1.saved_model.build_signature_def, v1.saved_model.build_tensor_info
        return {
            "default": make({"default": info(words)}, {"default": info(answers)}),
            "pair": make({"words": info(words)}, {"default": info(answers), "negative": info(-answers)}),
        }

    folder = tmp_path_factory.mktemp("hub1")
    save_tf1(folder / "saved", folder, [], signatures)
    (folder / "saved" / "tfhub_module.pb").write_bytes(b"\x08\x03")
    return folder / "saved"


def test_the_tf1_hub_format(hub1: Path, tmp_path: Path) -> None:
    model = open_saved_model(hub1)
    assert isinstance(model, HubModule)
    assert str(model.signature) == "serving_default: text: string (batch) → output: float32 (batch, 2)"
    assert model.parameters == EMBEDDING.size
    np.testing.assert_array_equal(model.predict({"text": WORDS})["output"], EMBEDDED)
    loaded = tf.saved_model.load(str(publish(model, tmp_path / "new"))).signatures["serving_default"]
    np.testing.assert_array_equal(loaded(text=tf.constant(WORDS))["output"].numpy(), EMBEDDED)


def test_another_signature_of_the_tf1_hub_format(hub1: Path) -> None:
    model = open_saved_model(hub1, "pair")
    assert (list(model.signature.inputs), list(model.signature.outputs)) == (["words"], ["default", "negative"])
    np.testing.assert_array_equal(model.predict({"words": WORDS})["negative"], -EMBEDDED)


class Uncallable(tf.Module):  # type: ignore[misc]  # tensorflow is untyped
    @tf.function(input_signature=[tf.RaggedTensorSpec([None, None], tf.int64)])  # type: ignore[untyped-decorator]  # tensorflow is untyped
    def encode(self, x: Any) -> Any:
        return tf.reduce_sum(x, -1)


class Ragged(tf.Module):  # type: ignore[misc]  # tensorflow is untyped
    @tf.function  # type: ignore[untyped-decorator]  # tensorflow is untyped
    def __call__(self, x: Any) -> Any:
        return tf.reduce_sum(x, -1)


def uncallable() -> Any:
    module = Uncallable()
    module.encode.get_concrete_function()
    return module


def ragged() -> Any:
    module = Ragged()
    module.__call__.get_concrete_function(tf.RaggedTensorSpec([None, None], tf.int64))
    module.__call__.get_concrete_function(tf.RaggedTensorSpec([None, None], tf.int32))
    return module


def fixed() -> Any:
    module = Ragged()
    for batch in (1, 8):
        module.__call__.get_concrete_function(tf.TensorSpec([batch, 3], tf.float32))
    return module


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (uncallable, "has no signature and cannot be called"),
        (ragged, "takes or answers a RaggedTensorSpec"),
        (fixed, "takes a batch of 1 only"),
    ],
)
def test_modules_that_cannot_be_exported(tmp_path: Path, make: Callable[[], Any], words: str) -> None:
    tf.saved_model.save(make(), str(tmp_path / "m"), signatures={})
    with pytest.raises(ExportError, match=words):
        open_saved_model(tmp_path / "m")


def no_graph(folder: Path) -> None:
    (folder / "saved_model.pb").write_bytes(b"")


def no_message(folder: Path) -> None:
    (folder / "saved_model.pb").write_bytes(b"not a protocol buffer")


def truncated(folder: Path) -> None:
    content = (folder / "saved_model.pb").read_bytes()
    (folder / "saved_model.pb").write_bytes(content[: len(content) // 2])


def no_variables(folder: Path) -> None:
    shutil.rmtree(folder / "variables")


def half_the_variables(folder: Path) -> None:
    (folder / "variables" / "variables.index").write_bytes(b"nothing")


def no_asset(folder: Path) -> None:
    shutil.rmtree(folder / "assets")


@pytest.mark.parametrize("damage", [no_graph, no_message, truncated, no_variables, half_the_variables, no_asset])
@pytest.mark.parametrize("kind", ["tf1", "hub2"])
def test_damage(kind: str, damage: Callable[[Path], None], request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(request.getfixturevalue(kind), folder)
    damage(folder)
    with pytest.raises(ArtifactError, match=re.escape(str(folder))) as caught:
        open_saved_model(folder)
    assert "\n" not in str(caught.value)


def test_an_operation_that_this_tensorflow_does_not_have(tf2: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tf2, folder)
    content = (folder / "saved_model.pb").read_bytes()
    (folder / "saved_model.pb").write_bytes(content.replace(b"MatMul", b"MatMol"))
    with pytest.raises(ArtifactError, match="MatMol"):
        open_saved_model(folder, "three")


def test_the_examples_of_the_module() -> None:
    assert doctest.testmod(saved_source).failed == 0
