"""The benchmark of a version's artifacts: every one timed, measured, and honest about what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from servable.cli.course import labelled_data
from servable.clients.bench import bench_version, percentile
from servable.errors import MissingExtraError
from servable.export import Data, ExportOptions, KerasModel, Source, export_model
from servable.manifest import WARMUP_REQUESTS, Artifact, Manifest
from servable.store import Store


def test_every_artifact_is_timed_and_measured(store: Store) -> None:
    folder = store.path("cnn")
    manifest = Manifest.read(folder)
    results = list(bench_version(folder, manifest, labelled_data("cnn"), duration_s=0.05))
    assert [result.artifact for result in results] == [artifact.label for artifact in manifest.artifacts]
    for result, artifact in zip(results, manifest.artifacts, strict=True):
        assert result.runs >= 1
        assert 0 < result.p50_ms <= result.p90_ms <= result.p99_ms
        assert result.init_ms > 0
        assert result.bytes == artifact.bytes
        evidence = artifact.evidence["serving_default"]
        assert result.metric_value == pytest.approx(evidence.metric_value, abs=0.002)


def test_without_data_nothing_is_claimed(store: Store) -> None:
    folder = store.path("celsius")
    for result in bench_version(folder, Manifest.read(folder), None, duration_s=0.01):
        assert result.metric_value is None
        assert result.runs >= 1


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version that takes pictures of any size, but none of a single pixel."""
    layers = keras.layers
    picture = keras.Input((None, None, 1), name="image")
    hidden = layers.GlobalAveragePooling2D()(layers.Conv2D(2, 5)(picture))
    rows = np.random.default_rng(0).random((40, 9, 12, 1), np.float32)
    source = Source(
        "free", KerasModel.of(keras.Model(picture, hidden)), Data({"image": rows}, {"image": rows}, "noise")
    )
    store = Store(tmp_path_factory.mktemp("free"))
    export_model(source, store, ExportOptions(("tflite", "onnx"), ("float32",)))
    return store.path("free")


def test_a_model_of_free_sizes_is_timed_on_a_sample_of_its_own(free: Path) -> None:
    results = list(bench_version(free, Manifest.read(free), None, duration_s=0.01))
    assert [result.artifact for result in results] == ["saved_model", "tflite", "onnx"]


@pytest.mark.parametrize("content", [b"no record", b""])
def test_without_a_sample_it_is_timed_on_zeros(store: Store, tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "celsius"
    shutil.copytree(store.path("celsius"), folder)
    (folder / WARMUP_REQUESTS).write_bytes(content)
    assert [result.runs > 0 for result in bench_version(folder, Manifest.read(folder), None, duration_s=0.01)] == [
        True
    ] * 5


def test_an_artifact_whose_engine_is_missing_is_reported(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from servable import extras

    original = extras.load

    def without_litert(module: str, what: str) -> object:
        if module.startswith("ai_edge_litert"):
            raise MissingExtraError(what, "ai-edge-litert", "edge")
        return original(module, what)

    monkeypatch.setattr(extras, "load", without_litert)
    folder = store.path("celsius")
    skipped: list[Artifact] = []
    results = list(
        bench_version(folder, Manifest.read(folder), None, 0.01, lambda artifact, _: skipped.append(artifact))
    )
    assert [artifact.format for artifact in skipped] == ["tflite", "tflite"]
    assert [result.artifact for result in results] == ["saved_model", "onnx", "onnx int8"]


@pytest.mark.parametrize(("percent", "value"), [(1, 1.0), (50, 50.0), (90, 90.0), (99, 99.0), (100, 100.0)])
def test_percentiles_are_nearest_rank(percent: float, value: float) -> None:
    assert percentile([float(i) for i in range(1, 101)], percent) == value
