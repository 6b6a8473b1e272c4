"""What an export holds: parity in each format's own engine, names, signatures, sizes, evidence and versions."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from servable import extras, metrics
from servable.cli.course import source
from servable.clients import connect
from servable.errors import AlreadyExistsError, InvalidArgumentError
from servable.export import ExportOptions, export_model
from servable.export.registry import REGISTRY, Exporter, register
from servable.manifest import Manifest
from servable.models import card, samples, training
from servable.signature import DEFAULT_SIGNATURE
from servable.store import Store

NAMES = ("celsius", "mlp", "cnn")
IMAGE_MODELS = ("mlp", "cnn")
ROWS = 200

Array = NDArray[Any]


def with_tensorflow(path: Path, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    answers = tf.saved_model.load(str(path)).signatures[DEFAULT_SIGNATURE](
        **{name: tf.constant(array) for name, array in inputs.items()}
    )
    return {name: tensor.numpy() for name, tensor in answers.items()}


def with_litert(path: Path, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    answers: Mapping[str, Array] = Interpreter(model_path=str(path)).get_signature_runner(DEFAULT_SIGNATURE)(**inputs)
    return answers


def with_onnxruntime(path: Path, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
    onnxruntime = extras.load("onnxruntime", "the test")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip((item.name for item in session.get_outputs()), session.run(None, dict(inputs)), strict=True))


@dataclass(frozen=True)
class Parity:
    """How an artifact is run without servable, and how far it may be off: °F, and share of probability."""

    path: str
    run: Callable[[Path, Mapping[str, Array]], Mapping[str, Array]]
    fahrenheit: float
    probability: float
    agreement: float = 1.0


PARITY = {
    "saved_model": Parity(".", with_tensorflow, 1e-4, 1e-6),
    "tflite": Parity("model.tflite", with_litert, 1e-4, 1e-5),
    "tflite_float16": Parity("model_float16.tflite", with_litert, 0.03, 5e-3, agreement=0.998),
    "tflite_dynamic": Parity("model_dynamic.tflite", with_litert, 0.1, 0.1, agreement=0.98),
    "tflite_int8": Parity("model_int8.tflite", with_litert, 2.6, 0.15, agreement=0.98),
    "tflite_int16x8": Parity("model_int16x8.tflite", with_litert, 0.1, 0.1, agreement=0.98),
    "onnx": Parity("model.onnx", with_onnxruntime, 1e-4, 1e-5),
    "onnx_float16": Parity("model_float16.onnx", with_onnxruntime, 0.1, 5e-3, agreement=0.998),
    "onnx_int8": Parity("model_int8.onnx", with_onnxruntime, 2.6, 0.2, agreement=0.97),
}
TFLITE = [key for key in PARITY if key.startswith("tflite")]
ONNX = [key for key in PARITY if key.startswith("onnx")]


@cache
def model(name: str) -> Any:
    return training.load(card(name))


def given(name: str, count: int) -> dict[str, Array]:
    (spec,) = card(name).signature.inputs.values()
    rows = samples.test_samples(card(name)).inputs
    return {spec.name: np.tile(rows, (-(-count // len(rows)), *[1] * (rows.ndim - 1)))[:count]}


def manifest(store: Store, name: str) -> Manifest:
    return Manifest.read(store.path(name))


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_every_registered_format_has_a_parity_case() -> None:
    assert PARITY.keys() == REGISTRY.keys()
    assert {key: case.path for key, case in PARITY.items()} == {key: e.path for key, e in REGISTRY.items()}


def test_a_format_cannot_be_registered_twice() -> None:
    exporter: Exporter = REGISTRY["onnx"]
    with pytest.raises(ValueError, match="an exporter for onnx is registered already"):
        register(exporter)


@pytest.mark.parametrize("key", PARITY)
@pytest.mark.parametrize("name", NAMES)
def test_parity_with_the_source_model(store: Store, name: str, key: str) -> None:
    case = PARITY[key]
    inputs = given(name, ROWS)
    answers = case.run(store.path(name) / case.path, inputs)
    (spec,) = card(name).signature.outputs.values()
    assert list(answers) == [spec.name]
    answer, expected = answers[spec.name], model(name).predict(next(iter(inputs.values())), verbose=0)
    assert (answer.dtype, answer.shape) == (expected.dtype, expected.shape)
    limit = case.fahrenheit if name == "celsius" else case.probability
    assert np.abs(answer - expected).max() <= limit
    if name != "celsius":
        assert np.mean(answer.argmax(-1) == expected.argmax(-1)) >= case.agreement


@pytest.mark.parametrize("count", [1, 3, 64])
@pytest.mark.parametrize("key", PARITY)
def test_the_batch_is_dynamic(store: Store, key: str, count: int) -> None:
    case = PARITY[key]
    answers = case.run(store.path("cnn") / case.path, given("cnn", count))
    assert answers["probabilities"].shape == (count, 10)
    np.testing.assert_allclose(answers["probabilities"].sum(-1), 1, atol=0.02)


@pytest.mark.parametrize("key", TFLITE)
@pytest.mark.parametrize("name", NAMES)
def test_tflite_signatures_have_the_card_s_names(store: Store, name: str, key: str) -> None:
    interpreter = Interpreter(model_path=str(store.path(name) / PARITY[key].path))
    signature = card(name).signature
    expected = {"inputs": list(signature.inputs), "outputs": list(signature.outputs)}
    assert interpreter.get_signature_list() == {DEFAULT_SIGNATURE: expected}
    runner = interpreter.get_signature_runner(DEFAULT_SIGNATURE)
    (details,) = runner.get_input_details().values()
    (spec,) = signature.inputs.values()
    assert details["dtype"] == np.float32
    assert details["shape_signature"].tolist() == [size or -1 for size in spec.shape or ()]
    (details,) = runner.get_output_details().values()
    assert details["dtype"] == np.float32


def analysis(path: Path, capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    tf.lite.experimental.Analyzer.analyze(model_path=str(path))
    return capfd.readouterr().out


@pytest.mark.parametrize("key", TFLITE)
@pytest.mark.parametrize("name", NAMES)
def test_tflite_files_hold_their_weights_as_constants(
    store: Store, name: str, key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    operations = re.findall(r"Op#\d+ (\w+)\(", analysis(store.path(name) / PARITY[key].path, capfd))
    assert "FULLY_CONNECTED" in operations
    assert not {"READ_VARIABLE", "VAR_HANDLE", "ASSIGN_VARIABLE", "CALL_ONCE"} & set(operations)
    assert not [operation for operation in operations if operation.startswith("Flex")]


@pytest.mark.parametrize("name", NAMES)
def test_int8_files_compute_in_int8(store: Store, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    text = analysis(store.path(name) / "model_int8.tflite", capfd)
    floats = re.findall(r"^  T#(\d+)\(.*type:FLOAT32", text, re.MULTILINE)
    (ends,) = re.findall(r"Subgraph#0 main\(T#(\d+)\) -> \[T#(\d+)\]", text)
    assert set(floats) == set(ends)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_int8_files_are_less_than_a_third_of_float32(store: Store, name: str) -> None:
    folder = store.path(name)
    assert (folder / "model_int8.tflite").stat().st_size <= 0.30 * (folder / "model.tflite").stat().st_size


@pytest.mark.parametrize("key", ONNX)
@pytest.mark.parametrize("name", NAMES)
def test_onnx_files_are_valid_and_named_as_the_card_says(store: Store, name: str, key: str) -> None:
    loaded = onnx.load(store.path(name) / PARITY[key].path)
    onnx.checker.check_model(loaded, full_check=True)
    artifact = manifest(store, name).artifact("onnx", REGISTRY[key].quantization)
    assert artifact is not None
    assert [entry.version for entry in loaded.opset_import if entry.domain in ("", "ai.onnx")] == [artifact.opset]
    signature = card(name).signature
    for found, specs in ((loaded.graph.input, signature.inputs), (loaded.graph.output, signature.outputs)):
        (tensor,), (spec,) = found, specs.values()
        sizes = [dim.dim_value or None for dim in tensor.type.tensor_type.shape.dim]
        assert (tensor.name, tuple(sizes)) == (spec.name, spec.shape)
        assert tensor.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    properties = {item.key: item.value for item in loaded.metadata_props}
    assert properties["servable.model"] == name
    assert tuple(json.loads(properties["servable.labels"])) == card(name).labels
    assert properties["servable.task"] == card(name).task
    assert properties["servable.source"] == manifest(store, name).source["sha256"]


def as_saved_model_cli(signatures: Mapping[str, tuple[dict[str, str], dict[str, str], str]]) -> dict[str, Any]:
    return {
        name: ({**inputs}, {**outputs}, f"tensorflow/serving/{method}")
        for name, (inputs, outputs, method) in signatures.items()
    }


SIGNATURES: dict[str, dict[str, Any]] = {
    "celsius": as_saved_model_cli(
        {
            "serving_default": ({"celsius": "DT_FLOAT (-1, 1)"}, {"fahrenheit": "DT_FLOAT (-1, 1)"}, "predict"),
            "regress": ({"inputs": "DT_STRING (-1)"}, {"outputs": "DT_FLOAT (-1, 1)"}, "regress"),
        }
    ),
    "cnn": as_saved_model_cli(
        {
            "serving_default": (
                {"image": "DT_FLOAT (-1, 28, 28, 1)"},
                {"probabilities": "DT_FLOAT (-1, 10)"},
                "predict",
            ),
            "serve_bytes": ({"image_bytes": "DT_STRING (-1)"}, {"probabilities": "DT_FLOAT (-1, 10)"}, "predict"),
            "classify": (
                {"inputs": "DT_STRING (-1)"},
                {"scores": "DT_FLOAT (-1, 10)", "classes": "DT_STRING (-1, 10)"},
                "classify",
            ),
        }
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_tensorflow_s_own_tool_shows_the_signatures(store: Store, name: str) -> None:
    tool = Path(sys.executable).with_name("saved_model_cli")
    shown = subprocess.run(
        [tool, "show", "--dir", store.path(name), "--tag_set", "serve", "--all"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = {}
    for section in shown.split("signature_def['")[1:]:
        parts: dict[str, dict[str, str]] = {"inputs": {}, "outputs": {}}
        tensors = r"    (inputs|outputs)\['(\w+)'\] tensor_info:\n\s+dtype: (\w+)\n\s+shape: (.+)\n"
        for side, tensor, dtype, shape in re.findall(tensors, section):
            parts[side][tensor] = f"{dtype} {shape}"
        (method,) = re.findall(r"Method name is: (.*)", section)
        found[section.split("']")[0]] = (parts["inputs"], parts["outputs"], method)
    found.pop("__saved_model_init_op")  # tf.saved_model.save adds it to every SavedModel
    assert found == SIGNATURES[name]


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_the_graph_decodes_pictures_itself(store: Store, name: str) -> None:
    loaded = tf.saved_model.load(str(store.path(name)))
    paths = list(samples.sample_pictures().values())
    answers = loaded.signatures["serve_bytes"](image_bytes=tf.constant([path.read_bytes() for path in paths]))
    pixels = np.stack([tf.io.decode_png(path.read_bytes()).numpy() for path in paths]).astype(np.float32) / 255
    np.testing.assert_allclose(answers["probabilities"].numpy(), model(name).predict(pixels, verbose=0), atol=1e-5)


def example(name: str, row: Array) -> bytes:
    (spec,) = card(name).signature.inputs.values()
    feature = tf.train.Feature(float_list=tf.train.FloatList(value=row.ravel()))
    encoded: bytes = tf.train.Example(features=tf.train.Features(feature={spec.name: feature})).SerializeToString()
    return encoded


def test_classify_answers_scores_and_labels(store: Store) -> None:
    rows = given("cnn", 5)["image"]
    loaded = tf.saved_model.load(str(store.path("cnn")))
    answers = loaded.signatures["classify"](inputs=tf.constant([example("cnn", row) for row in rows]))
    np.testing.assert_allclose(answers["scores"].numpy(), model("cnn").predict(rows, verbose=0), atol=1e-5)
    labels = [label.encode() for label in card("cnn").labels]
    assert answers["classes"].numpy().tolist() == [labels] * 5


def test_regress_answers_numbers(store: Store) -> None:
    rows = given("celsius", 5)["celsius"]
    loaded = tf.saved_model.load(str(store.path("celsius")))
    answers = loaded.signatures["regress"](inputs=tf.constant([example("celsius", row) for row in rows]))
    np.testing.assert_allclose(answers["outputs"].numpy(), rows * 1.8 + 32, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_manifest_lists_what_lies_there(store: Store, name: str) -> None:
    folder, found = store.path(name), manifest(store, name)
    assert (found.model, found.version, found.task) == (name, 1, card(name).task)
    assert {(a.format, a.quantization) for a in found.artifacts} == {
        (e.format, e.quantization) for e in REGISTRY.values()
    }
    for artifact in found.artifacts:
        if artifact.path == ".":
            files = [folder / "saved_model.pb", folder / "fingerprint.pb", *(folder / "variables").iterdir()]
            assert artifact.bytes == sum(file.stat().st_size for file in files)
        else:
            content = (folder / artifact.path).read_bytes()
            assert (artifact.sha256, artifact.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert found.labels == card(name).labels
    assert found.preprocessing == card(name).preprocessing
    assert found.source["parameters"] == card(name).record["parameters"]
    weights = hashlib.sha256(b"".join(np.ascontiguousarray(w).tobytes() for w in model(name).get_weights()))
    assert found.source["sha256"] == weights.hexdigest()
    assert {"servable", "tensorflow", "keras", "onnx", "tf2onnx", "ai-edge-litert"} <= found.producers.keys()


@pytest.mark.parametrize("name", NAMES)
def test_there_is_evidence_for_all_that_an_artifact_answers(store: Store, name: str) -> None:
    found = manifest(store, name)
    rows = len(samples.test_samples(card(name)).inputs)
    for artifact in found.artifacts:
        expected = set(found.signatures) if artifact.quantization == "float32" else {DEFAULT_SIGNATURE}
        assert artifact.batch == "dynamic"
        assert set(artifact.evidence) == expected >= set(artifact.signatures)
        assert all(artifact.proves(signature) for signature in expected)
        main = artifact.evidence[DEFAULT_SIGNATURE]
        assert (main.samples, main.metric) == (rows, card(name).metric)
        assert all(0 <= e.mean_abs_error <= e.max_abs_error for e in artifact.evidence.values())
        (error,) = main.outputs.values()
        assert error.max_abs_error == main.max_abs_error
        assert error.source_min < error.source_max
        assert len(set(main.worst_samples)) == 5


@pytest.mark.parametrize("key", PARITY)
@pytest.mark.parametrize("name", NAMES)
def test_the_evidence_is_what_one_measures(store: Store, name: str, key: str) -> None:
    exporter, case = REGISTRY[key], PARITY[key]
    artifact = manifest(store, name).artifact(exporter.format, exporter.quantization)
    assert artifact is not None
    found = artifact.evidence[DEFAULT_SIGNATURE]
    split = samples.test_samples(card(name))
    (spec,) = card(name).signature.inputs.values()
    (answer,) = case.run(store.path(name) / case.path, {spec.name: split.inputs}).values()
    expected = model(name).predict(split.inputs, batch_size=250, verbose=0)
    assert found.metric_value == pytest.approx(metrics.compute(card(name).metric, answer, split.targets), abs=2e-3)
    assert found.metric_source_value == pytest.approx(
        metrics.compute(card(name).metric, expected, split.targets), abs=1e-5
    )
    assert found.max_abs_error == pytest.approx(np.abs(answer - expected).max(), rel=0.1, abs=1e-4)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_labels_txt_has_a_line_a_class(store: Store, name: str) -> None:
    assert (store.path(name) / "labels.txt").read_text().splitlines() == list(card(name).labels)


def test_a_model_without_classes_has_no_labels_txt(store: Store) -> None:
    assert not (store.path("celsius") / "labels.txt").exists()


def test_nothing_is_left_beside_the_models(store: Store) -> None:
    assert sorted(entry.name for entry in store.root.iterdir()) == sorted(NAMES)
    assert all([entry.name for entry in (store.root / name).iterdir()] == ["1"] for name in NAMES)


def test_a_second_export_is_version_2_and_leaves_version_1(store: Store, tmp_path: Path) -> None:
    copy = Store(tmp_path / "store")
    shutil.copytree(store.path("celsius"), copy.root / "celsius" / "1")
    before = digests(copy.path("celsius", 1))
    published = export_model(source(card("celsius")), copy)
    assert published.version == 2
    assert copy.versions("celsius") == [1, 2]
    assert digests(copy.path("celsius", 1)) == before
    assert manifest(copy, "celsius") == published
    assert digests(copy.path("celsius", 2)).keys() == before.keys()


@pytest.mark.parametrize(
    ("formats", "files"),
    [
        ((("saved_model",), ()), set()),
        ((("tflite_int8",), ()), {"model_int8.tflite"}),
        ((("onnx", "tflite"), ("float32",)), {"model.onnx", "model.tflite"}),
        ((("onnx",), ()), {"model.onnx", "model_float16.onnx", "model_int8.onnx"}),
        (((), ("float16",)), {"model_float16.onnx", "model_float16.tflite"}),
        ((("onnx", "tflite_dynamic"), ("int8",)), {"model_int8.onnx", "model_dynamic.tflite"}),
    ],
)
def test_a_subset_of_formats(tmp_path: Path, formats: tuple[tuple[str, ...], tuple[str, ...]], files: set[str]) -> None:
    store = Store(tmp_path)
    published = export_model(source(card("celsius")), store, ExportOptions(*formats))
    assert {artifact.path for artifact in published.artifacts} == files | {"."}
    assert {path.name for path in store.path("celsius").glob("model*")} == files
    assert (store.path("celsius") / "saved_model.pb").is_file()


def test_an_unknown_format_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"no format 'onxx'; did you mean 'onnx'\? Known: onnx, .*tflite"):
        export_model(source(card("celsius")), Store(tmp_path / "store"), ExportOptions(("onxx",)))
    with pytest.raises(InvalidArgumentError, match=r"no quantization 'int9'; did you mean 'int8'\?"):
        export_model(source(card("celsius")), Store(tmp_path / "store"), ExportOptions((), ("int9",)))
    with pytest.raises(InvalidArgumentError, match="no artifact is both one of onnx and dynamic"):
        export_model(source(card("celsius")), Store(tmp_path / "store"), ExportOptions(("onnx",), ("dynamic",)))
    assert not (tmp_path / "store").exists()


def test_a_version_has_the_number_that_was_asked_for_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    options = ExportOptions(("saved_model",), version=7)
    assert export_model(source(card("celsius")), store, options).version == 7
    before = digests(store.path("celsius", 7))
    with pytest.raises(AlreadyExistsError, match="7 exists already, and a published version is never changed"):
        export_model(source(card("celsius")), store, options)
    assert digests(store.path("celsius", 7)) == before
    assert export_model(source(card("celsius")), store, ExportOptions(("saved_model",))).version == 8


def test_int8_inputs_and_outputs_where_they_are_asked_for(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    published = export_model(source(card("cnn")), store, ExportOptions(("tflite_int8",), int8_io=True))
    runner = Interpreter(model_path=str(store.path("cnn") / "model_int8.tflite")).get_signature_runner()
    (given,), (answered,) = runner.get_input_details().values(), runner.get_output_details().values()
    assert (given["dtype"], answered["dtype"]) == (np.int8, np.int8)
    artifact = published.artifact("tflite", "int8")
    assert artifact is not None
    # The evidence is of real numbers all the same, and clients hand them in and out.
    assert artifact.evidence[DEFAULT_SIGNATURE].metric_value == pytest.approx(0.935, abs=0.01)
    rows = samples.test_samples(card("cnn")).inputs[:50]
    with connect(str(store.path("cnn") / "model_int8.tflite")) as client:
        scores = client.predict(rows)
    assert scores.dtype == np.float32
    assert np.mean(scores.argmax(-1) == model("cnn").predict(rows, verbose=0).argmax(-1)) >= 0.96


def test_another_opset(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    published = export_model(source(card("celsius")), store, ExportOptions(("onnx",), ("float32",), opset=15))
    loaded = onnx.load(store.path("celsius") / "model.onnx")
    artifact = published.artifact("onnx")
    assert artifact is not None
    assert artifact.opset == 15
    assert [entry.version for entry in loaded.opset_import if entry.domain in ("", "ai.onnx")] == [15]


def test_progress_counts_every_step(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    export_model(
        source(card("celsius")),
        Store(tmp_path),
        ExportOptions(("onnx",), ("float32",)),
        lambda *step: steps.append(step),
    )
    assert [text for text, _, _ in steps] == [
        "convert saved_model",
        "verify saved_model",
        "convert onnx",
        "verify onnx",
        "publish",
        "done",
    ]
    assert [done for _, done, _ in steps] == list(range(6))
    assert {total for _, _, total in steps} == {5}
