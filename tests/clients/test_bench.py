"""The benchmark of a version's artifacts: every one timed, measured, and honest about what is missing."""

from __future__ import annotations

import pytest

from servable.cli.course import labelled_data
from servable.clients.bench import bench_version, percentile
from servable.errors import MissingExtraError
from servable.manifest import Artifact, Manifest
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
