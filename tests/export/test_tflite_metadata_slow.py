"""TFLite Metadata as MediaPipe, whose format it is, reads it: its Python reader, and its C++ classifier."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from servable.export.tflite_metadata import TensorMetadata, image_input, pack
from servable.manifest import Preprocessing

schema: Any = import_module("tensorflow.lite.python.schema_py_generated")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.version_info >= (3, 13) or platform.machine() == "aarch64",
        reason="MediaPipe 0.10.21, the last with all of its reader of metadata, has no wheel for this Python",
    ),
]

# Releases from 0.10.30 on lack _pywrap_metadata_version, without which the reader cannot be imported.
READER = ("mediapipe==0.10.21",)
CLASSIFIER = ("mediapipe==1.2.3", "opencv-python-headless==5.0.0.93")

# The packages around the reader import every task, with JAX and OpenCV; it needs none of that.
READ = """
import json, sys, types
folder, model = sys.argv[1:]
sys.modules["tensorflow"] = None
for name in ("mediapipe", "mediapipe.tasks.python"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder + "/" + name.replace(".", "/")]
from mediapipe.tasks.cc.metadata.python import _pywrap_metadata_version
from mediapipe.tasks.python.metadata.metadata import MetadataDisplayer
shown = MetadataDisplayer.with_model_file(model)
names = shown.get_packed_associated_file_list()
print(json.dumps({
    "metadata": json.loads(shown.get_metadata_json()),
    "files": {name: shown.get_associated_file_buffer(name).decode() for name in names},
    "needs": _pywrap_metadata_version.GetMinimumMetadataParserVersion(bytes(shown.get_metadata_buffer())),
}))
"""

CLASSIFY = """
import json, sys
folder, model, picture = sys.argv[1:]
sys.modules["tensorflow"] = None
import mediapipe, numpy
from mediapipe.tasks.python import vision
image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=numpy.load(picture))
with vision.ImageClassifier.create_from_model_path(model) as classifier:
    (head,) = classifier.classify(image).classifications
print(json.dumps({"head": head.head_name, "scores": {x.category_name: x.score for x in head.categories}}))
"""

LABELS = ("T-shirt/top", "Überrock", "靴")


def installed(folder: Path, *requirements: str) -> Path:
    """The packages alone: NumPy and flatbuffers come from this environment."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *requirements]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("reader"), *READER)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("classifier"), *CLASSIFIER)


def in_mediapipe(script: str, folder: Path, *arguments: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={"PYTHONPATH": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def convert(folder: Path, model: Any, function: Callable[..., Any], *specs: Any) -> bytes:
    module = tf.Module()
    module.variables_of_model = [variable.value for variable in model.variables]
    module.served = tf.function(function, input_signature=list(specs))
    tf.saved_model.save(module, str(folder), signatures=module.served.get_concrete_function())
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=["serving_default"])
    data: bytes = converter.convert()
    return data


@pytest.fixture(scope="session")
def picture_model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A classifier of color pictures of 8 × 8 pixels."""
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, outputs)
    spec = tf.TensorSpec([None, 8, 8, 3], name="image")

    def served(image: Any) -> dict[str, Any]:
        return {"probabilities": model(image)}

    return convert(tmp_path_factory.mktemp("picture"), model, served, spec)


PROBABILITIES = TensorMetadata("probabilities", "how likely each class is", min=(0.0,), max=(1.0,), labels=LABELS)
FEATURE = {"content_properties_type": "FeatureProperties", "content_properties": {}}
LABEL_FILE = {
    "name": "labels.txt",
    "description": "One label a line, in the order of the last axis.",
    "type": "TENSOR_AXIS_LABELS",
}


def test_mediapipe_reads_what_was_said_of_a_classifier(picture_model: bytes, reader: Path, tmp_path: Path) -> None:
    said = image_input(Preprocessing(8, 8, 3, scale=1 / 127.5, offset=-1.0), "image", "a garment, seen from the front")
    path = tmp_path / "model.tflite"
    path.write_bytes(
        pack(
            picture_model,
            name="clothes",
            version="12",
            description="Kleider – «garments»",
            author="someone",
            license="Apache-2.0",
            inputs=[said],
            outputs=[PROBABILITIES],
        )
    )
    options = {"mean": [127.5], "std": [127.5]}
    found = in_mediapipe(READ, reader, path)
    assert found["metadata"] == {
        "name": "clothes",
        "description": "Kleider – «garments»",
        "version": "12",
        "subgraph_metadata": [
            {
                "input_tensor_metadata": [
                    {
                        "name": "image",
                        "description": "a garment, seen from the front",
                        "content": {
                            "content_properties_type": "ImageProperties",
                            "content_properties": {"color_space": "RGB"},
                        },
                        "process_units": [{"options_type": "NormalizationOptions", "options": options}],
                        "stats": {"max": [1.0], "min": [-1.0]},
                    }
                ],
                "output_tensor_metadata": [
                    {
                        "name": "probabilities",
                        "description": "how likely each class is",
                        "content": FEATURE,
                        "stats": {"max": [1.0], "min": [0.0]},
                        "associated_files": [LABEL_FILE],
                    }
                ],
            }
        ],
        "author": "someone",
        "license": "Apache-2.0",
        "min_parser_version": found["needs"],
    }
    assert found["files"] == {"labels.txt": "T-shirt/top\nÜberrock\n靴\n"}


def test_mediapipe_reads_tensors_in_the_order_of_the_file(
    reader: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, reordered: Callable[[bytes], bytes]
) -> None:
    first, second = keras.Input((28, 28)), keras.Input((2,))
    hidden = keras.layers.Flatten()(first)
    model = keras.Model([first, second], [keras.layers.Dense(4)(hidden), keras.layers.Dense(3)(second)])

    def served(sequence: Any, extras: Any) -> dict[str, Any]:
        four, three = model([sequence, extras])
        return {"four": four, "three": three}

    specs = tf.TensorSpec([None, 28, 28], name="sequence"), tf.TensorSpec([None, 2], name="extras")
    data = reordered(convert(tmp_path_factory.mktemp("two"), model, served, *specs))
    path = tmp_path / "model.tflite"
    path.write_bytes(
        pack(
            data,
            name="two",
            version="1",
            inputs=[
                TensorMetadata("extras", mean=(1.0, 2.0), std=(0.5, 0.25)),
                image_input(Preprocessing(28, 28, 1), "sequence"),
            ],
            outputs=[replace(PROBABILITIES, name="three"), TensorMetadata("four", labels=("a", "b", "c", "d"))],
        )
    )
    interpreter = Interpreter(model_path=str(path))
    runner = interpreter.get_signature_runner()
    order = [
        [{detail["index"]: name for name, detail in named.items()}[tensor["index"]] for tensor in tensors]
        for named, tensors in (
            (runner.get_input_details(), interpreter.get_input_details()),
            (runner.get_output_details(), interpreter.get_output_details()),
        )
    ]
    assert order == [["sequence", "extras"], ["three", "four"]]

    found = in_mediapipe(READ, reader, path)
    (subgraph,) = found["metadata"]["subgraph_metadata"]
    sequence, extras = subgraph["input_tensor_metadata"]
    three, four = subgraph["output_tensor_metadata"]
    assert [tensor["name"] for tensor in (sequence, extras, three, four)] == ["sequence", "extras", "three", "four"]
    assert sequence["content"]["content_properties"] == {"color_space": "GRAYSCALE"}
    assert sequence["process_units"][0]["options"] == {"mean": [0.0], "std": [255.0]}
    assert extras["process_units"][0]["options"] == {"mean": [1.0, 2.0], "std": [0.5, 0.25]}
    assert extras["content"] == FEATURE
    assert [three["associated_files"][0]["name"], four["associated_files"][0]["name"]] == ["labels.txt", "labels_2.txt"]
    assert found["files"] == {"labels.txt": "T-shirt/top\nÜberrock\n靴\n", "labels_2.txt": "a\nb\nc\nd\n"}


def test_mediapipe_classifies_by_nothing_but_the_file(picture_model: bytes, classifier: Path, tmp_path: Path) -> None:
    how = Preprocessing(8, 8, 3, scale=1 / 100.0, offset=-0.75)
    path, picture = tmp_path / "model.tflite", tmp_path / "picture.npy"
    path.write_bytes(
        pack(picture_model, name="clothes", version="1", inputs=[image_input(how, "image")], outputs=[PROBABILITIES])
    )
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.save(picture, pixels)
    found = in_mediapipe(CLASSIFY, classifier, path, picture)

    # The file without metadata, and the preprocessing by hand.
    image = (pixels[np.newaxis] * how.scale + how.offset).astype(np.float32)
    (expected,) = Interpreter(model_content=picture_model).get_signature_runner()(image=image)["probabilities"]
    assert found["head"] == "probabilities"
    assert found["scores"] == pytest.approx(dict(zip(LABELS, expected, strict=True)), abs=1e-5)
