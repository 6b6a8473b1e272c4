"""What we export loads and answers in the TensorFlow of the newest TensorFlow Serving image, older than ours.

That TensorFlow gets an environment of its own, and one script in it runs every signature of every
version: with ``tf.saved_model.load``, and with the loader of sessions, as TensorFlow Serving itself does.
"""

from __future__ import annotations

import io
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from numpy.typing import NDArray
from PIL import Image
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import prediction_log_pb2

from servable.cli.course import source
from servable.export import Data, ExportOptions, KerasModel, Source, export_model
from servable.manifest import Preprocessing
from servable.models import card, samples
from servable.store import Store

SERVED = "2.19.1"
ROWS = 32
LOADERS = ("saved_model.load", "session")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.version_info >= (3, 13) or (platform.system() == "Darwin" and platform.machine() == "x86_64"),
        reason=f"TensorFlow {SERVED} has no wheel for this Python and machine",
    ),
]

# The wheels of tensorflow bring everything for GPUs on x86_64; those of tensorflow-cpu are for x86_64 only.
REQUIREMENT = f"{'tensorflow-cpu' if platform.machine() in ('x86_64', 'AMD64') else 'tensorflow'}=={SERVED}"

SCRIPT = """
import json, sys
from pathlib import Path
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto

def write(folder, answers):
    folder.mkdir()
    for name, array in answers.items():
        (folder / name).write_bytes(tf.make_tensor_proto(array).SerializeToString())

methods = {}
for case in Path(sys.argv[1]).iterdir():
    version = (case / "version").read_text()
    requests = {
        folder: {file.name: tf.make_ndarray(TensorProto.FromString(file.read_bytes())) for file in folder.iterdir()}
        for folder in (case / "requests").iterdir()
    }
    answers = case / "saved_model.load"
    answers.mkdir()
    loaded = tf.saved_model.load(version)
    for folder, inputs in requests.items():
        found = loaded.signatures[folder.name](**{name: tf.constant(array) for name, array in inputs.items()})
        write(answers / folder.name, {name: tensor.numpy() for name, tensor in found.items()})
    answers = case / "session"
    answers.mkdir()
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        definitions = tf.compat.v1.saved_model.loader.load(session, ["serve"], version).signature_def
        for folder, inputs in requests.items():
            definition = definitions[folder.name]
            fetches = {name: info.name for name, info in definition.outputs.items()}
            feeds = {definition.inputs[name].name: array for name, array in inputs.items()}
            write(answers / folder.name, session.run(fetches, feeds))
    public = {name: definition for name, definition in definitions.items() if not name.startswith("__")}
    methods[case.name] = {name: definition.method_name for name, definition in public.items()}
print(json.dumps({"version": tf.__version__, "methods": methods}))
"""

PREDICT, CLASSIFY, REGRESS = (f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress"))
LABELS = ("ankle boot", "bag", "Überrock")

Array = NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Case:
    """A Keras model that was exported, and how to ask it: its inputs and outputs, in its own order."""

    source: Source
    model: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def answer(self, rows: Arrays) -> dict[str, Array]:
        tensors = [tf.constant(rows[name]) for name in self.inputs]
        answers = self.model(tensors if len(tensors) > 1 else tensors[0], training=False)
        found = answers if isinstance(answers, list | tuple) else [answers]
        return {name: np.asarray(tensor) for name, tensor in zip(self.outputs, found, strict=True)}


def course(name: str) -> Case:
    found = source(card(name))
    assert isinstance(found.model, KerasModel)
    return Case(found, found.model.model, tuple(found.signature.inputs), tuple(found.signature.outputs))


def case(model: Any, rows: Arrays, outputs: tuple[str, ...], **about: Any) -> Case:
    """A model of this file. Nobody trained it, but its weights are moved: biases of zero hide mistakes."""
    rng = np.random.default_rng(1)
    model.set_weights([array + rng.uniform(0, 0.2, array.shape) for array in model.get_weights()])
    data = Data(rows, rows, "rows of a test", random=True)
    found = Source("small", KerasModel.of(model), data, trained=False, **about)
    return Case(found, model, tuple(rows), outputs)


def random_rows(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((ROWS, *shape)).astype(np.float32)


def sequences() -> dict[str, Array]:
    return {"sequence": samples.test_samples(card("cnn")).inputs[:ROWS].reshape(ROWS, 28, 28)}


def recurrent(*layers: Any, of: Any = keras) -> Case:
    """A classifier of pictures, row by row."""
    ends = of.Input((28, 28), name="sequence"), of.layers.Dense(3, "softmax", name="probabilities")
    how = Preprocessing(height=28, width=28, channels=1)
    model = of.Sequential([ends[0], *layers, ends[1]])
    return case(
        model, sequences(), ("probabilities",), task="classification", labels=LABELS, metric=None, preprocessing=how
    )


def normalised_cnn() -> Case:
    """With moving averages that are not as they were initialised."""
    layers = keras.layers
    inputs = keras.Input((12, 10, 3), name="image")
    hidden = layers.Conv2D(4, 3, activation="relu")(layers.Normalization(mean=0.4, variance=0.1)(inputs))
    hidden = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(hidden))
    outputs = layers.Dense(3, "softmax", name="probabilities")(layers.GlobalAveragePooling2D()(hidden))
    model = keras.Model(inputs, outputs)
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 12, 10, 3))
    rows = {"image": (pixels / 255).astype(np.float32)}
    model(rows["image"] * 3, training=True)
    how = Preprocessing(height=12, width=10, channels=3)
    return case(model, rows, ("probabilities",), task="classification", labels=LABELS, preprocessing=how)


def words() -> Case:
    """Strings, by way of a table that has to be initialised."""
    inputs = keras.Input((2,), dtype="string", name="words")
    numbers = keras.layers.StringLookup(vocabulary=["cat", "dog", "été"])(inputs)
    hidden = keras.layers.Flatten()(keras.layers.Embedding(4, 5)(numbers))
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax", name="probabilities")(hidden))
    known = np.array([word.encode() for word in ("cat", "dog", "été", "", "nobody's", "a\0b")], object)
    rows = {"words": known[np.random.default_rng(0).integers(0, len(known), (ROWS, 2))]}
    return case(model, rows, ("probabilities",), task="classification", labels=LABELS)


def tokens() -> Case:
    """Integers, of which zeros are masked: some rows end early, one is empty."""
    inputs = keras.Input((9,), dtype="int64", name="tokens")
    hidden = keras.layers.LSTM(6)(keras.layers.Embedding(20, 8, mask_zero=True)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1, name="score")(hidden))
    rows = np.random.default_rng(0).integers(1, 20, (ROWS, 9))
    rows[np.arange(9) >= np.arange(ROWS)[:, np.newaxis] % 10] = 0
    return case(model, {"tokens": rows}, ("score",), task="regression")


def two_inputs_three_outputs() -> Case:
    layers = keras.layers
    image, extras = keras.Input((6, 6, 1), name="image"), keras.Input((4,), name="extras")
    pooled = layers.GlobalMaxPooling2D()(layers.Conv2D(5, 3, activation="gelu")(image))
    hidden = layers.LayerNormalization()(layers.Concatenate()([pooled, layers.Dense(5, "tanh")(extras)]))
    heads = [
        layers.Dense(3, "softmax", name="probabilities")(hidden),
        layers.Reshape((2, 4), name="boxes")(layers.Dense(8)(hidden)),
        layers.Dense(1, "sigmoid", name="score")(pooled),
    ]
    rows = {"image": random_rows(6, 6, 1), "extras": random_rows(4, seed=1)}
    return case(keras.Model([image, extras], heads), rows, ("probabilities", "boxes", "score"))


def float64() -> Case:
    inputs = keras.Input((5,), dtype="float64", name="features")
    hidden = keras.layers.Dense(7, "swish", dtype="float64")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, dtype="float64", name="values")(hidden))
    return case(model, {"features": random_rows(5).astype(np.float64)}, ("values",))


CASES: Mapping[str, tuple[Callable[[], Case], Mapping[str, str]]] = {
    "celsius": (lambda: course("celsius"), {"serving_default": PREDICT, "regress": REGRESS}),
    **{
        name: (build, {"serving_default": PREDICT, "serve_bytes": PREDICT, "classify": CLASSIFY})
        for name, build in {
            "mlp": lambda: course("mlp"),
            "cnn": lambda: course("cnn"),
            "simple_rnn": lambda: recurrent(keras.layers.SimpleRNN(8)),
            "lstm": lambda: recurrent(keras.layers.LSTM(8)),
            "gru": lambda: recurrent(keras.layers.GRU(8)),
            "bidirectional": lambda: recurrent(keras.layers.Bidirectional(keras.layers.LSTM(5))),
            "tf_keras_lstm": lambda: recurrent(tf_keras.layers.LSTM(8), of=tf_keras),
            "tf_keras_gru": lambda: recurrent(tf_keras.layers.GRU(8), of=tf_keras),
            "normalised_cnn": normalised_cnn,
        }.items()
    },
    "words": (words, {"serving_default": PREDICT, "classify": CLASSIFY}),
    "tokens": (tokens, {"serving_default": PREDICT, "regress": REGRESS}),
    "two_inputs_three_outputs": (two_inputs_three_outputs, {"serving_default": PREDICT}),
    "float64": (float64, {"serving_default": PREDICT}),
}


@pytest.fixture(scope="module")
def served_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Python of an environment with TensorFlow as it is served, which takes more than 1 GB while it is needed."""
    folder = tmp_path_factory.mktemp("served") / "environment"
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:"]
    try:
        for command in [sys.executable, "-m", "venv", str(folder)], [*install, REQUIREMENT, "numpy"]:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1200)
            assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}"
        yield python
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Served:
    """What the script found: where the answers are, by case, and what it said."""

    folder: Path
    expected: Mapping[str, Mapping[str, Arrays]]
    said: Any

    def answers(self, name: str, loader: str, signature: str) -> dict[str, Array]:
        files = (self.folder / name / loader / signature).iterdir()
        return {file.name: tf.make_ndarray(TensorProto.FromString(file.read_bytes())) for file in files}


@pytest.fixture(scope="module")
def served(served_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Every case exported here, and run there."""
    folder, stores = tmp_path_factory.mktemp("cases"), tmp_path_factory.mktemp("stores")
    expected: dict[str, dict[str, Arrays]] = {}
    for name, (build, _) in CASES.items():
        keras.utils.set_random_seed(1)
        made, expected[name] = build(), {}
        store = Store(stores / name)
        export_model(made.source, store, ExportOptions(formats=("saved_model",)))
        version = store.path(made.source.name)
        for signature, inputs in requests(made, version).items():
            expected[name][signature] = expectations(made, signature, inputs)
            place = folder / name / "requests" / signature
            place.mkdir(parents=True)
            for key, array in inputs.items():
                (place / key).write_bytes(tf.make_tensor_proto(array).SerializeToString())
        (folder / name / "version").write_text(str(version))
    command = [str(served_python), "-I", "-c", SCRIPT, str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return Served(folder, expected, json.loads(done.stdout))


def requests(made: Case, version: Path) -> dict[str, dict[str, Array]]:
    """Inputs for each signature: the row that the version's own warm-up request has, and rows of the data."""
    file = version / "assets.extra" / "tf_serving_warmup_requests"
    found = {}
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        kind = log.WhichOneof("log_type")
        request = getattr(log, kind).request
        name = request.model_spec.signature_name
        if kind == "predict_log":
            first = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        else:
            (example,) = request.input.example_list.examples
            first = {"inputs": np.array([example.SerializeToString()], object)}
        rows = {key: array[: ROWS - 1] for key, array in made.source.data.inputs.items()}
        if "image_bytes" in first:
            rows = {"image_bytes": encoded_pictures(made, rows)}
        elif kind != "predict_log":
            rows = {"inputs": encoded_examples(rows)}
        found[name] = {key: np.concatenate([first[key], rows[key]]) for key in first}
    return found


def encoded_pictures(made: Case, rows: Arrays) -> Array:
    """The shipped pictures where the model takes such, and for the rest the rows as PNG."""
    (pixels,) = (np.rint(array * 255).astype(np.uint8) for array in rows.values())
    how = made.source.preprocessing
    assert how is not None
    found = [path.read_bytes() for path in samples.sample_pictures().values()] if how.height == 28 else []
    for picture in pixels[len(found) :]:
        buffer = io.BytesIO()
        Image.fromarray(picture.reshape(how.height, how.width, how.channels).squeeze()).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return np.array(found, object)


def encoded_examples(rows: Arrays) -> Array:
    found = []
    for i in range(ROWS - 1):
        example = tf.train.Example()
        for name, array in rows.items():
            feature = example.features.feature[name]
            values = {"f": feature.float_list, "i": feature.int64_list, "O": feature.bytes_list}[array.dtype.kind]
            values.value.extend(array[i].ravel().tolist())
        found.append(example.SerializeToString())
    return np.array(found, object)


def expectations(made: Case, signature: str, inputs: Arrays) -> Arrays:
    """What the Keras model itself answers, once the test has decoded what the signature takes."""
    like = made.source.data.inputs
    if signature == "serving_default":
        return made.answer(inputs)
    if signature == "serve_bytes":
        ((name, array),) = like.items()
        mode = {1: "L", 3: "RGB"}[made.source.preprocessing.channels if made.source.preprocessing else 0]
        pictures = [np.asarray(Image.open(io.BytesIO(data)).convert(mode)) for data in inputs["image_bytes"]]
        return made.answer({name: np.stack(pictures).reshape(-1, *array.shape[1:]).astype(np.float32) / 255})
    rows = {}
    for name, array in like.items():
        features = [tf.train.Example.FromString(data).features.feature[name] for data in inputs["inputs"]]
        lists = [list(getattr(feature, str(feature.WhichOneof("kind"))).value) for feature in features]
        rows[name] = np.array(lists, array.dtype).reshape(-1, *array.shape[1:])
    (answer,) = made.answer(rows).values()
    if signature == "regress":
        return {"outputs": answer}
    labels = np.array([label.encode() for label in made.source.labels], object)
    return {"scores": answer, "classes": np.tile(labels, (len(answer), 1))}


def test_it_is_the_version_that_is_served(served: Served) -> None:
    assert served.said["version"] == SERVED


@pytest.mark.parametrize("name", CASES)
def test_the_method_names_are_read_as_they_were_meant(served: Served, name: str) -> None:
    assert served.said["methods"][name] == CASES[name][1]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", CASES)
def test_the_answers_are_those_of_the_keras_model(served: Served, name: str, loader: str) -> None:
    assert served.expected[name].keys() == CASES[name][1].keys()
    for signature, expected in served.expected[name].items():
        answers = served.answers(name, loader, signature)
        assert answers.keys() == expected.keys()
        for key, array in expected.items():
            assert (answers[key].dtype, answers[key].shape) == (array.dtype, array.shape), key
            assert len(array) == ROWS
            if array.dtype.kind == "O":
                np.testing.assert_array_equal(answers[key], array)
            else:
                np.testing.assert_allclose(answers[key], array, rtol=1e-6, atol=1e-5)
