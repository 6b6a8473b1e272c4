"""A published version is measured once more: what is still as it was, what is not, and what cannot be said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from servable.cli.course import source
from servable.errors import DataError, StoreError
from servable.export import ExportOptions, KerasModel, Source, export_model
from servable.export.assemble import Description, open_source
from servable.export.recheck import Rechecked, recheck, version_source
from servable.manifest import FILE_NAME, Manifest, measure_artifact
from servable.models import card, samples
from servable.store import Store


@pytest.fixture
def copied(store: Store, tmp_path: Path) -> Callable[[str], tuple[Path, Manifest]]:
    def copy(name: str) -> tuple[Path, Manifest]:
        folder = tmp_path / name
        shutil.copytree(store.path(name), folder)
        return folder, Manifest.read(folder)

    return copy


def by_label(found: list[Rechecked]) -> dict[str, Rechecked]:
    return {each.recorded.label: each for each in found}


def test_a_sound_version_is_what_it_was(store: Store) -> None:
    folder = store.path("mlp")
    manifest, steps = Manifest.read(folder), []
    found = recheck(folder, manifest, lambda: source(card("mlp")), progress=lambda *step: steps.append(step))
    assert [each.recorded for each in found] == list(manifest.artifacts)
    for each in found:
        assert (each.wrong, each.damaged) == ("", False)
        assert each.now is not None
        assert each.now.sha256 == each.recorded.sha256
        assert list(each.now.evidence) == list(each.recorded.evidence)
        for name, evidence in each.recorded.evidence.items():
            assert each.now.evidence[name].samples == evidence.samples
            assert each.now.evidence[name].max_abs_error == pytest.approx(evidence.max_abs_error, rel=0.05, abs=1e-6)
            assert each.now.evidence[name].metric_value == evidence.metric_value
    assert steps[0] == ("compare hashes", 0, len(found) + 2)
    assert not list(folder.parent.parent.glob(".staging"))


def test_without_its_source_the_saved_model_is_what_others_are_compared_with(store: Store) -> None:
    folder = store.path("cnn")
    manifest = Manifest.read(folder)
    found = recheck(folder, manifest, lambda: version_source(folder, manifest))
    assert not [each.wrong for each in found if each.wrong]
    for each in found:
        assert each.now is not None
        evidence = each.now.evidence
        assert set(evidence) >= set(each.recorded.evidence) - {"serve_bytes"}
        assert evidence["serving_default"].data == "512 rows of random numbers, seed 7"
        assert evidence["serving_default"].metric is None


def test_on_data_of_one_s_own_with_its_metric(store: Store, tmp_path: Path) -> None:
    folder = store.path("cnn")
    manifest, data = Manifest.read(folder), samples.test_samples(card("cnn"))
    np.savez(tmp_path / "mine.npz", image=data.inputs[:300], targets=data.targets[:300])
    opened = version_source(folder, manifest, tmp_path / "mine.npz")
    assert (opened.metric, opened.labels, opened.task) == ("accuracy", manifest.labels, "classification")
    now = by_label(recheck(folder, manifest, lambda: opened))["onnx"].now
    assert now is not None
    assert now.evidence["serving_default"].samples == 300
    assert now.evidence["serving_default"].metric_value == pytest.approx(0.93, abs=0.04)
    with pytest.raises(DataError, match=r"there is no file .*nothing\.npy"):
        version_source(folder, manifest, tmp_path / "nothing.npy")


def test_a_changed_file_is_named_and_the_others_are_measured(copied: Callable[[str], tuple[Path, Manifest]]) -> None:
    folder, manifest = copied("celsius")
    with (folder / "model_int8.tflite").open("ab") as file:
        file.write(b"x")
    (folder / "model.onnx").unlink()
    found = by_label(recheck(folder, manifest, lambda: source(card("celsius"))))
    assert found["tflite int8"].damaged
    assert "model_int8.tflite is damaged or was changed after its export" in found["tflite int8"].wrong
    assert found["onnx"].damaged
    assert "model.onnx cannot be read: No such file" in found["onnx"].wrong
    rest = [each for label, each in found.items() if label not in ("tflite int8", "onnx")]
    assert all(each.now and not each.wrong for each in rest)


def test_without_a_sound_saved_model_only_hashes_are_compared(copied: Callable[[str], tuple[Path, Manifest]]) -> None:
    folder, manifest = copied("celsius")
    (folder / "saved_model.pb").write_bytes(b"rubbish")

    def never() -> Source:
        raise AssertionError("there is nothing to open")

    found = by_label(recheck(folder, manifest, never))
    assert found["saved_model"].damaged
    assert found["onnx"].wrong == (
        "it is what was measured, but there is no sound SavedModel to compare its answers with"
    )
    assert not found["onnx"].damaged


def test_what_was_not_run_is_not_sound(store: Store) -> None:
    """Where the SavedModel itself is too far off, nobody knows what the others should answer."""
    folder = store.path("celsius")
    options = ExportOptions(tolerances={"saved_model": {"max_abs_error": 0.0}})
    shifted = source(card("celsius"))
    assert isinstance(shifted.model, KerasModel)
    slope, offset = shifted.model.model.get_weights()
    shifted.model.model.set_weights([slope, offset + 1])
    found = by_label(recheck(folder, Manifest.read(folder), lambda: shifted, options))
    assert "celsius saved_model is too far from the source model" in found["saved_model"].wrong
    assert not [each for each in found.values() if not each.wrong or each.now or each.damaged]


def test_the_limits_of_the_export_are_those_of_its_verification(
    copied: Callable[[str], tuple[Path, Manifest]],
) -> None:
    folder, manifest = copied("celsius")
    strict = replace(manifest, extra={"tolerances": {"onnx_int8": {"max_range_error": 1e-6}}})
    found = by_label(recheck(folder, strict, lambda: source(card("celsius"))))
    assert [label for label, each in found.items() if each.wrong] == ["onnx int8"]
    options = ExportOptions(tolerances={"onnx_int8": {"max_range_error": 0.01}})
    assert not [each for each in recheck(folder, strict, lambda: source(card("celsius")), options) if each.wrong]
    for unsound in ([1], {"": 3}):
        with pytest.raises(StoreError, match="has no sound tolerances"):
            recheck(folder, replace(manifest, extra={"tolerances": unsound}), lambda: source(card("celsius")))


def test_a_manifest_that_names_another_file(copied: Callable[[str], tuple[Path, Manifest]]) -> None:
    folder, manifest = copied("celsius")
    other = replace(manifest.artifacts[-1], path="../other.onnx")
    changed = replace(manifest, artifacts=(*manifest.artifacts[:-1], other))
    found = recheck(folder, changed, lambda: source(card("celsius")))
    assert found[-1].wrong == "the manifest says that it is '../other.onnx'; expected 'model_int8.onnx'"
    assert found[-1].damaged


def rewritten(folder: Path, manifest: Manifest, label: str) -> Manifest:
    """A manifest that says of a file that it is what was measured, whatever it is."""
    artifacts = []
    for artifact in manifest.artifacts:
        sha256, size = measure_artifact(folder, artifact.path)
        artifacts.append(replace(artifact, sha256=sha256, bytes=size) if artifact.label == label else artifact)
    manifest = replace(manifest, artifacts=tuple(artifacts))
    (folder / FILE_NAME).write_text(manifest.to_json())
    return manifest


def test_a_file_that_answers_otherwise_is_too_far_off(
    store: Store, copied: Callable[[str], tuple[Path, Manifest]]
) -> None:
    folder, manifest = copied("mlp")
    shutil.copyfile(store.path("cnn") / "model.onnx", folder / "model.onnx")
    found = by_label(recheck(folder, rewritten(folder, manifest, "onnx"), lambda: source(card("mlp"))))
    assert found["onnx"].now is None
    assert not found["onnx"].damaged
    assert "mlp onnx is too far from the source model on serving_default" in found["onnx"].wrong
    assert not found["tflite"].wrong


def test_a_file_that_cannot_be_run(copied: Callable[[str], tuple[Path, Manifest]]) -> None:
    folder, manifest = copied("celsius")
    (folder / "model.tflite").write_bytes(b"rubbish")
    found = by_label(recheck(folder, rewritten(folder, manifest, "tflite"), lambda: source(card("celsius"))))
    assert "model.tflite is not a TFLite file that LiteRT can load" in found["tflite"].wrong
    assert not found["onnx"].wrong


def test_an_artifact_that_this_release_does_not_make(copied: Callable[[str], tuple[Path, Manifest]]) -> None:
    folder, manifest = copied("celsius")
    unknown = replace(manifest.artifacts[-1], quantization="int2")
    found = recheck(
        folder, replace(manifest, artifacts=(*manifest.artifacts[:-1], unknown)), lambda: source(card("celsius"))
    )
    assert found[-1].wrong == "this servable makes no onnx int2, and cannot measure it"


def test_a_version_without_evidence_of_its_saved_model(store: Store) -> None:
    folder = store.path("celsius")
    manifest = Manifest.read(folder)
    with pytest.raises(StoreError, match="has no evidence of a SavedModel, which others are compared with"):
        version_source(folder, replace(manifest, artifacts=manifest.artifacts[1:]))


def test_a_saved_model_that_was_published_as_it_is(store: Store, tmp_path: Path) -> None:
    target, options = Store(tmp_path / "store"), ExportOptions(("onnx",), ("float32", "float16"))
    export_model(open_source(str(store.path("cnn")), Description(name="copy")), target, options)
    folder = target.path("copy")
    manifest = Manifest.read(folder)
    found = recheck(folder, manifest, lambda: version_source(folder, manifest))
    assert [(each.recorded.label, each.wrong) for each in found] == [
        ("saved_model", ""),
        ("onnx", ""),
        ("onnx float16", ""),
    ]
