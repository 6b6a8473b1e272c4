"""The manifest: what was read is written again, and what is wrong is named."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servable.errors import StoreError
from servable.manifest import FILE_NAME, Manifest, measure_artifact, parse
from servable.store import Store


def document() -> dict[str, Any]:
    """A manifest with every field that the schema has."""
    return {
        "schema_version": 1,
        "model": "cnn",
        "version": 3,
        "created": "2026-01-01T00:00:00Z",
        "task": "classification",
        "source": {"kind": "keras", "parameters": 7},
        "producers": {"numpy": "2.0"},
        "signatures": {
            "serving_default": {
                "inputs": {"image": {"dtype": "float32", "shape": [None, 28, 28, 1], "tensor_name": "x:0"}},
                "outputs": {"probabilities": {"dtype": "float32", "shape": None}},
                "method_name": "tensorflow/serving/predict",
            }
        },
        "derivations": {
            "classify": {
                "signature": "serving_default",
                "prologue": "parse_example",
                "outputs": {"scores": "probabilities"},
                "labels_as": "classes",
            }
        },
        "labels": ["shoe", "b\u00e4g"],
        "preprocessing": {"height": 28, "width": 28, "channels": 1, "scale": 0.5, "offset": -1.0, "kind": "image"},
        "artifacts": [
            {
                "format": "onnx",
                "quantization": "int8",
                "path": "model_int8.onnx",
                "sha256": "00",
                "bytes": 12,
                "signatures": ["serving_default"],
                "batch": "dynamic",
                "opset": 17,
                "evidence": {
                    "serving_default": {
                        "data": "ten images",
                        "samples": 10,
                        "max_abs_error": 0.5,
                        "mean_abs_error": 0.25,
                        "criterion": "none",
                        "passed": True,
                        "top1_agreement": 1.0,
                        "metric": "accuracy",
                        "metric_value": 0.9,
                        "metric_source_value": 0.91,
                        "outputs": {
                            "probabilities": {
                                "max_abs_error": 0.5,
                                "mean_abs_error": 0.25,
                                "source_min": 0,
                                "source_max": 1,
                            }
                        },
                        "worst_samples": [7, 3],
                    }
                },
            }
        ],
        "absent": [{"format": "tflite", "quantization": "int8", "reason": "it has a loop", "failed": False}],
    }


def written(manifest: Manifest) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(manifest.to_json())
    return result


def test_round_trip_changes_nothing() -> None:
    assert written(parse(document())) == document()


def test_sizes_that_a_file_fixes() -> None:
    value = document()
    value["artifacts"][0]["sizes"] = {"image": [28, 28, 1]}
    manifest = parse(value)
    assert manifest.artifacts[0].sizes == {"image": (28, 28, 1)}
    assert written(manifest) == value


@pytest.mark.parametrize("sizes", [3, ["28"], [-1], [True], None])
def test_sizes_that_are_none(sizes: Any) -> None:
    value = document()
    value["artifacts"][0]["sizes"] = {"image": sizes}
    with pytest.raises(StoreError, match=r"artifacts\[0\]: sizes\.image: expected a list of sizes, got "):
        parse(value)


def test_exported_manifest_round_trips(store: Store) -> None:
    for model in store.models():
        folder = store.path(model)
        assert Manifest.read(folder).to_json() == (folder / FILE_NAME).read_text(encoding="utf-8")


def test_fields_are_read_into_their_types() -> None:
    manifest = parse(document())
    signature = manifest.signatures["serving_default"]
    assert signature.name == "serving_default"
    assert signature.inputs["image"].shape == (None, 28, 28, 1)
    assert signature.inputs["image"].name == "image"
    assert signature.outputs["probabilities"].shape is None
    assert manifest.preprocessing is not None
    assert manifest.preprocessing.offset == -1.0
    artifact = manifest.artifact("onnx", "int8")
    assert artifact is not None
    assert artifact.label == "onnx int8"
    assert artifact.proves("serving_default")
    assert not artifact.proves("classify")
    assert manifest.artifact("onnx") is None


@pytest.mark.parametrize("name", ["a.b", "x: y", "", "a.b.c", "\u00e4"])
def test_any_name_of_a_tensor_survives(name: str) -> None:
    value = document()
    value["signatures"]["serving_default"]["inputs"] = {name: {"dtype": "int8", "shape": [1]}}
    manifest = parse(value)
    assert manifest.signatures["serving_default"].inputs[name].name == name
    assert written(manifest) == value


def test_failed_evidence_proves_nothing() -> None:
    value = document()
    value["artifacts"][0]["evidence"]["serving_default"]["passed"] = False
    assert not parse(value).artifacts[0].proves("serving_default")


@pytest.mark.parametrize("where", [(), ("artifacts", 0)])
def test_unknown_fields_are_kept(where: tuple[Any, ...]) -> None:
    value = document()
    place: Any = value
    for step in where:
        place = place[step]
    place["from_the_future"] = {"deep": [1, None, "text"]}
    assert written(parse(value)) == value


def test_with_version_changes_the_number_only() -> None:
    expected = {**document(), "version": 9}
    assert written(parse(document()).with_version(9)) == expected


@pytest.mark.parametrize("optional", ["derivations", "labels", "preprocessing"])
def test_optional_fields_may_be_absent(optional: str) -> None:
    value = document()
    del value[optional]
    again = parse(json.loads(parse(value).to_json()))
    assert again == parse(value)


SIGNATURE = ("signatures", "serving_default")
IMAGE = (*SIGNATURE, "inputs", "image")
ARTIFACT = ("artifacts", 0)
EVIDENCE = (*ARTIFACT, "evidence", "serving_default")
DELETE = object()


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        *[
            ((key,), DELETE, [f"the field {key!r} is missing"])
            for key in ("schema_version", "model", "version", "created", "task", "source", "producers", "signatures")
        ],
        *[
            ((*ARTIFACT, key), DELETE, ["artifacts[0]", f"the field {key!r} is missing"])
            for key in ("format", "quantization", "path", "sha256", "bytes", "signatures", "batch")
        ],
        *[
            ((*EVIDENCE, key), DELETE, ["artifacts[0]: evidence.serving_default", f"the field {key!r} is missing"])
            for key in ("data", "samples", "max_abs_error", "mean_abs_error", "criterion", "passed")
        ],
        ((*SIGNATURE, "inputs"), DELETE, ["signatures.serving_default", "'inputs' is missing"]),
        ((*IMAGE, "dtype"), DELETE, ["signatures.serving_default: inputs.image", "'dtype' is missing"]),
        (("preprocessing", "height"), DELETE, ["preprocessing", "'height' is missing"]),
        (("derivations", "classify", "signature"), DELETE, ["derivations.classify", "'signature' is missing"]),
        (("version",), "3", ["'version' must be int, got '3'"]),
        (("version",), True, ["'version' must be int, got True"]),
        (("version",), 3.0, ["'version' must be int, got 3.0"]),
        (("version",), None, ["'version' must be int, got None"]),
        (("schema_version",), True, ["'schema_version' must be int"]),
        (("schema_version",), 2, ["schema_version 2 is newer", "upgrade servable"]),
        (("model",), 7, ["'model' must be str, got 7"]),
        (("source",), [], ["'source' must be dict"]),
        (("labels",), "shoe", ["'labels' must be list"]),
        (("labels",), ["shoe", 7], ["'labels'", "7"]),
        (("signatures",), [], ["'signatures' must be dict"]),
        (SIGNATURE, 7, ["signatures.serving_default", "expected an object, got int"]),
        ((*IMAGE, "shape"), [-1, 28], ["inputs.image", "'shape' must hold sizes or null, got [-1, 28]"]),
        ((*IMAGE, "shape"), [None, "28"], ["inputs.image", "'shape' must hold sizes or null"]),
        ((*IMAGE, "shape"), [None, 2.0], ["inputs.image", "'shape' must hold sizes or null"]),
        ((*IMAGE, "shape"), [True], ["inputs.image", "'shape' must hold sizes or null"]),
        ((*IMAGE, "shape"), 28, ["inputs.image", "'shape' must be list, got 28"]),
        ((*IMAGE, "dtype"), 1, ["inputs.image", "'dtype' must be str, got 1"]),
        (("preprocessing",), [], ["'preprocessing' must be dict"]),
        (("preprocessing", "kind"), "audio", ["preprocessing", "kind 'audio' is unknown; allowed: image"]),
        (("preprocessing", "scale"), "1", ["preprocessing", "'scale' must be int or float, got '1'"]),
        (("preprocessing", "scale"), True, ["preprocessing", "'scale' must be int or float, got True"]),
        (("preprocessing", "width"), 28.0, ["preprocessing", "'width' must be int, got 28.0"]),
        (
            ("derivations", "classify", "prologue"),
            "decode_audio",
            ["derivations.classify", "prologue 'decode_audio' is unknown; allowed: decode_image, parse_example"],
        ),
        (("derivations", "classify", "labels_as"), 1, ["derivations.classify", "'labels_as' must be str"]),
        (("artifacts",), DELETE, ["the field 'artifacts' is missing"]),
        (("artifacts",), {}, ["'artifacts' must be list"]),
        (ARTIFACT, "model.onnx", ["artifacts[0]", "expected an object, got str"]),
        ((*ARTIFACT, "bytes"), True, ["artifacts[0]", "'bytes' must be int, got True"]),
        ((*ARTIFACT, "opset"), "17", ["artifacts[0]", "'opset' must be int, got '17'"]),
        ((*ARTIFACT, "signatures"), ["a", None], ["artifacts[0]", "'signatures'", "None"]),
        (EVIDENCE, None, ["evidence.serving_default", "expected an object, got NoneType"]),
        ((*EVIDENCE, "passed"), 1, ["evidence.serving_default", "'passed' must be bool, got 1"]),
        ((*EVIDENCE, "max_abs_error"), "0", ["evidence.serving_default", "'max_abs_error' must be int or float"]),
        ((*EVIDENCE, "samples"), False, ["evidence.serving_default", "'samples' must be int, got False"]),
    ],
)  # fmt: skip
def test_bad_field_is_named_with_its_file(
    path: tuple[Any, ...], value: Any, expected: list[str], tmp_path: Path
) -> None:
    broken = document()
    place: Any = broken
    for step in path[:-1]:
        place = place[step]
    if value is DELETE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    (tmp_path / FILE_NAME).write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(StoreError) as caught:
        Manifest.read(tmp_path)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / FILE_NAME))
    assert [text for text in expected if text not in message] == []


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: path.write_text("{'model': 1}"), "is not valid JSON"),
        (lambda path: path.write_text(""), "is not valid JSON"),
        (lambda path: path.write_text('{"model": "cnn"'), "is not valid JSON"),
        (lambda path: path.write_text("[]"), "expected an object, got list"),
        (lambda path: path.write_text("null"), "expected an object, got NoneType"),
        (lambda path: path.write_bytes(b'{"model": "\xff"}'), "cannot be read"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.write_text("[" * 100_000), "is not valid JSON"),
    ],
)
def test_file_that_is_no_manifest(write: Callable[[Path], object], expected: str, tmp_path: Path) -> None:
    write(tmp_path / FILE_NAME)
    with pytest.raises(StoreError) as caught:
        Manifest.read(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / FILE_NAME))
    assert expected in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"has no servable\.json: not a version that servable exported"):
        Manifest.read(tmp_path)


def test_parse_does_not_change_what_it_is_given() -> None:
    value = document()
    before = copy.deepcopy(value)
    parse(value)
    assert value == before


def sha256sum(folder: Path, *arguments: str, text: str | None = None) -> str:
    done = subprocess.run(["sha256sum", *arguments], cwd=folder, check=True, capture_output=True, text=True, input=text)
    return done.stdout


def test_measured_file_is_what_sha256sum_prints(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(bytes(range(256)) * 5)
    assert measure_artifact(tmp_path, "model.onnx") == (sha256sum(tmp_path, "model.onnx").split()[0], 1280)


def test_measured_saved_model_is_what_sha256sum_prints(tmp_path: Path) -> None:
    counted = ["assets/a b.txt", "assets/deep/z", "fingerprint.pb", "saved_model.pb", "variables/variables.index"]
    ignored = [FILE_NAME, "model.tflite", "labels.txt", "assets.extra/tf_serving_warmup_requests"]
    for i, name in enumerate(counted + ignored):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * i)
    lines = sha256sum(tmp_path, *sorted(counted))
    expected = sha256sum(tmp_path, "-", text=lines).split()[0]
    assert measure_artifact(tmp_path, ".") == (expected, sum(range(len(counted))))


def test_exported_artifacts_are_what_the_manifest_says(store: Store) -> None:
    for model in store.models():
        folder = store.path(model)
        for artifact in Manifest.read(folder).artifacts:
            assert measure_artifact(folder, artifact.path) == (artifact.sha256, artifact.bytes), artifact.label
