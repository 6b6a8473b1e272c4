"""What is found out of a model that nobody describes, and what is said of descriptions that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from servable.errors import DataError, ExportError, InvalidArgumentError
from servable.export import KerasModel
from servable.export.assemble import Description, open_source
from servable.export.cases import reference_answers
from servable.export.operations import LOOPS, operations
from servable.export.saved_model import write
from servable.manifest import Preprocessing


def save(folder: Path, *stack: Any, name: str = "some model") -> str:
    keras.utils.set_random_seed(0)
    keras.Sequential(list(stack)).save(folder / f"{name}.keras")
    return str(folder / f"{name}.keras")


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """A model of three classes of pictures (8, 6, 3)."""
    return save(tmp_path, layers.Input((8, 6, 3)), layers.Flatten(), layers.Dense(3, activation="softmax"))


def labels(folder: Path, text: str) -> Path:
    (folder / "labels.txt").write_text(text, encoding="utf-8")
    return folder / "labels.txt"


@pytest.mark.parametrize(
    ("stack", "task", "output"),
    [
        ([layers.Dense(3, activation="softmax")], "classification", "probabilities"),
        ([layers.Dense(1)], "regression", "value"),
        ([layers.Dense(3)], "other", "output"),
        ([layers.Dense(3, name="embedding")], "other", "embedding"),
        ([layers.Reshape((2, 2))], "other", "output"),
    ],
)
def test_the_task_is_seen_in_the_outputs(tmp_path: Path, stack: list[Any], task: str, output: str) -> None:
    source = open_source(save(tmp_path, layers.Input((4,)), *stack), Description())
    assert (source.name, source.task, list(source.signature.outputs)) == ("some_model", task, [output])
    assert (source.data.random, source.metric, source.labels) == (True, None, ())


def test_labels_make_a_classifier(tmp_path: Path) -> None:
    path = save(tmp_path, layers.Input((4,)), layers.Dense(3))
    source = open_source(path, Description(labels=labels(tmp_path, "cat\ndog \nété\n")))
    assert (source.task, source.labels) == ("classification", ("cat", "dog", "été"))
    assert list(source.signature.outputs) == ["logits"]
    assert list(source.signatures) == ["serving_default", "classify"]


def test_a_task_can_be_said(tmp_path: Path) -> None:
    path = save(tmp_path, layers.Input((4,)), layers.Dense(3, activation="softmax"))
    assert open_source(path, Description(task="other")).task == "other"


def test_pixels_make_a_signature_for_pictures(pictures: str) -> None:
    source = open_source(pictures, Description(pixels=(-1.0, 1.0)))
    assert source.preprocessing == Preprocessing(8, 6, 3, scale=2 / 255, offset=-1.0)
    assert list(source.signatures) == ["serving_default", "serve_bytes"]


def test_a_folder_of_classes_gives_accuracy(pictures: str, tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (9, 9), (i, i, i)).save(tmp_path / "data" / name / f"{i}.png")
    source = open_source(pictures, Description(pixels=(0.0, 1.0), calibration=tmp_path / "data"))
    assert (source.metric, source.data.random) == ("accuracy", False)
    assert len(source.data.inputs["image"]) == 12


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "has an empty line"), ("a\n\nb\n", "has an empty line"), ("a\nb\n", "2 labels are given for 3 classes")],
)
def test_labels_that_do_not_fit(pictures: str, tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises((DataError, InvalidArgumentError), match=message):
        open_source(pictures, Description(labels=labels(tmp_path, content)))


def test_label_files_that_cannot_be_read(pictures: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no label file"):
        open_source(pictures, Description(labels=tmp_path / "none.txt"))
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9\n")
    with pytest.raises(DataError, match=r"the label file .*latin\.txt cannot be read"):
        open_source(pictures, Description(labels=tmp_path / "latin.txt"))


@pytest.mark.parametrize("shape", [(4,), (4, 4, 5), (None, None, 3)])
def test_pixels_need_pictures(tmp_path: Path, shape: tuple[int | None, ...]) -> None:
    inputs = layers.Input(shape, name="given")
    keras.Model(inputs, layers.Dense(2)(inputs)).save(tmp_path / "m.keras")
    with pytest.raises(InvalidArgumentError, match=r"--pixels is for a model with one float32 input of pictures"):
        open_source(str(tmp_path / "m.keras"), Description(pixels=(0.0, 1.0), shapes=()))


def test_free_sizes_are_given_or_asked_for(tmp_path: Path) -> None:
    inputs = layers.Input((None, None, 3), name="image")
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(inputs))
    keras.Model(inputs, pooled).save(tmp_path / "m.keras")
    with pytest.raises(InvalidArgumentError, match="give sizes with --input-shape image="):
        open_source(str(tmp_path / "m.keras"), Description())
    source = open_source(str(tmp_path / "m.keras"), Description(shapes=("image=9x8x3",)))
    assert source.data.inputs["image"].shape == (512, 9, 8, 3)
    assert source.signature.inputs["image"].shape == (None, None, None, 3)


def test_a_model_that_answers_nan_itself_cannot_be_compared(tmp_path: Path) -> None:
    model = keras.Sequential([layers.Input((2,), name="x_in"), layers.Dense(1)])
    model.set_weights([np.full((2, 1), np.nan, np.float32), np.zeros(1, np.float32)])
    model.save(tmp_path / "m.keras")
    source = open_source(str(tmp_path / "m.keras"), Description())
    with pytest.raises(ExportError, match="the source model itself answers NaN or infinity in 'value' for 512 rows"):
        reference_answers(source)


def test_operations_of_a_signature_include_those_of_its_functions(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    plain = open_source(save(tmp_path, layers.Input((4,)), layers.Dense(3), name="plain"), Description())
    looped = open_source(save(tmp_path, layers.Input((4, 2)), layers.GRU(3), name="looped"), Description())
    for source in (plain, looped):
        write(source, tmp_path / source.name)
    assert {"MatMul", "BiasAdd"} <= operations(tmp_path / "plain", "serving_default").keys()
    assert not LOOPS & operations(tmp_path / "plain", "serving_default").keys()
    assert LOOPS & operations(tmp_path / "looped", "serving_default").keys()
    assert isinstance(looped.model, KerasModel)
    assert looped.model.recurrent
    assert looped.model.unrolls()


@pytest.mark.parametrize(
    ("task", "need"),
    [
        ("regression", r"one float32 output \(batch, 1\)"),
        ("segmentation", r"one float32 output \(batch, height, width, classes\)"),
        ("detection", "the outputs boxes, scores and classes"),
    ],
)
def test_a_task_that_the_outputs_do_not_fit(tmp_path: Path, task: Any, need: str) -> None:
    path = save(tmp_path, layers.Input((4,)), layers.Dense(3))
    with pytest.raises(InvalidArgumentError, match=f"{task} needs {need}; the model has output: float32"):
        open_source(path, Description(task=task))


def test_one_number_is_no_class(tmp_path: Path) -> None:
    path = save(tmp_path, layers.Input((4,)), layers.Dense(1, activation="sigmoid"))
    with pytest.raises(InvalidArgumentError, match=r"classification needs one float32 output .* of two or more"):
        open_source(path, Description(task="classification"))
    with pytest.raises(InvalidArgumentError, match="labels are for classes, and this is a model for regression"):
        open_source(path, Description(labels=labels(tmp_path, "no\nyes\n")))


@pytest.mark.parametrize(
    ("width", "targets", "message"),
    [
        (3, np.array([0, 1, 3]), "targets are from 0 to 3; the model has 3 classes"),
        (3, np.array([-1, 1, 2]), "targets are from -1 to 2"),
        (3, np.array(["a", "b", "c"]), r"expected the class of each row, \(3,\)"),
        (3, np.eye(3), r"targets are float64 \(3, 3\)"),
        (1, np.array([1.0, np.nan, 2.0]), "expected 3 finite numbers"),
        (1, np.zeros((3, 2)), "expected 3 finite numbers"),
    ],
)
def test_targets_that_do_not_fit(tmp_path: Path, width: int, targets: Any, message: str) -> None:
    activation = "softmax" if width > 1 else None
    path = save(tmp_path, layers.Input((4,), name="row"), layers.Dense(width, activation=activation))
    np.savez(tmp_path / "rows.npz", row=np.zeros((3, 4)), targets=targets)
    with pytest.raises(DataError, match=f"rows.npz: .*{message}"):
        open_source(path, Description(calibration=tmp_path / "rows.npz"))


def test_flat_targets_of_a_regression_are_a_column(tmp_path: Path) -> None:
    path = save(tmp_path, layers.Input((4,), name="row"), layers.Dense(1))
    np.savez(tmp_path / "rows.npz", row=np.zeros((3, 4)), targets=np.arange(3))
    source = open_source(path, Description(calibration=tmp_path / "rows.npz"))
    assert np.asarray(source.data.targets).tolist() == [[0.0], [1.0], [2.0]]
    assert source.metric == "mae"


def test_strings_are_words_that_the_model_knows(tmp_path: Path) -> None:
    word = layers.Input((1,), dtype="string", name="word")
    codes = layers.StringLookup(vocabulary=["w1", "w2"])(word)
    keras.Model(word, layers.Embedding(3, 2)(codes)).save(tmp_path / "m.keras")
    source = open_source(str(tmp_path / "m.keras"), Description())
    assert {b"w1", b"w2", b"no such word"} <= set(source.data.inputs["word"].ravel().tolist())


def test_a_stateful_layer_is_refused_by_name(tmp_path: Path) -> None:
    model = keras.Sequential([layers.Input(batch_shape=(1, 4, 2)), layers.LSTM(3, stateful=True, name="memory")])
    model.save(tmp_path / "m.keras")
    with pytest.raises(ExportError, match="the layer 'memory' is stateful"):
        open_source(str(tmp_path / "m.keras"), Description())
