"""Export as a whole: convert, verify in the real runtimes, and publish in one step."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import extras, runtimes
from ..errors import ExportError, ParityError, ServableError, StoreError
from ..manifest import Artifact, Manifest, measure_artifact
from ..signature import DEFAULT_SIGNATURE
from ..store import Store
from ..twin import Twin
from . import onnx, saved_model, tflite  # noqa: F401  # importing an exporter registers it
from .registry import Exporter, choose
from .source import Source
from .verify import Run, cases, verify

Progress = Callable[[str, int, int], None]

_PRODUCERS = ("tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "ai-edge-litert", "numpy")


def export_model(
    source: Source, store: Store, formats: tuple[str, ...] = (), progress: Progress = lambda *_: None
) -> Manifest:
    """Export a model to all formats (or the named ones) and publish it as the next version.

    Nothing appears under the model's folder unless every artifact was converted and agrees with the
    source. Raises `ExportError` if a conversion fails, `ParityError` if an artifact disagrees,
    `MissingExtraError` without the extra, and `StoreError` if the store cannot be written.
    """
    exporters = choose(formats)
    for exporter in exporters:
        for module in exporter.requires:
            extras.load(module, f"exporting to {exporter.format}")
    if set("[]") & set(str(store.root.resolve())):
        raise StoreError(
            f"TensorFlow cannot read a path with '[' or ']': {store.root.resolve()}; choose another --store"
        )
    steps = 2 * len(exporters) + 1
    done = 0

    def step(text: str) -> None:
        nonlocal done
        progress(text, done, steps)
        done += 1

    with store.staging(source.name) as staged:
        for exporter in exporters:
            step(f"convert {exporter.key}")
            _convert(exporter, source, staged)
        if source.labels:
            (staged / "labels.txt").write_text("".join(f"{label}\n" for label in source.labels), encoding="utf-8")
        draft = _draft(source)
        artifacts = []
        with ExitStack() as loaded:
            reference = loaded.enter_context(runtimes.load(staged)).run
            for exporter in exporters:
                step(f"verify {exporter.key}")
                if exporter.path == ".":
                    artifacts.append(_artifact(exporter, source, staged, reference, None))
                    continue
                with runtimes.load(staged / exporter.path) as runtime:
                    artifacts.append(_artifact(exporter, source, staged, Twin(draft, runtime).run, reference))
        step("publish")
        _, manifest = store.publish(staged, replace(draft, artifacts=tuple(artifacts)))
    progress("done", steps, steps)
    return manifest


def _convert(exporter: Exporter, source: Source, staged: Path) -> None:
    try:
        exporter.convert(source, staged)
        if not (staged / exporter.path).exists():
            raise ExportError(f"{source.name}: the conversion to {exporter.key} wrote no {exporter.path}")
    except (ServableError, OSError):
        raise
    except Exception as error:  # converters raise every kind
        text = str(error).strip()
        if os.strerror(errno.ENOSPC) in text:  # TensorFlow and the converters have errors of their own for it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        reason = text.splitlines()[0] if text else type(error).__name__
        raise ExportError(f"{source.name}: the conversion to {exporter.key} failed: {reason}") from error


def _artifact(exporter: Exporter, source: Source, staged: Path, run: Run, reference: Run | None) -> Artifact:
    """Measure one converted artifact; `ParityError` if it is too far from the source."""
    evidence = {}
    for case in cases(source, derived=exporter.derived, reference=reference):
        found = verify(f"{source.name} {exporter.key}", run, case, exporter.tolerance, source)
        if not found.passed:
            raise ParityError(
                f"{source.name} {exporter.key} is too far from the source model on {case.signature.name}: "
                f"{found.criterion}; nothing was published"
            )
        evidence[case.signature.name] = found
    sha256, size = measure_artifact(staged, exporter.path)
    return Artifact(
        format=exporter.format,
        quantization=exporter.quantization,
        path=exporter.path,
        sha256=sha256,
        bytes=size,
        signatures=tuple(source.signatures) if exporter.path == "." else (DEFAULT_SIGNATURE,),
        batch="dynamic",
        evidence=evidence,
        opset=exporter.opset,
    )


def _draft(source: Source) -> Manifest:
    return Manifest(
        model=source.name,
        version=0,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        task=source.task,
        source=source.describe(),
        producers=_versions(),
        signatures=source.signatures,
        artifacts=(),
        labels=source.labels,
        preprocessing=source.preprocessing,
        derivations=source.derivations,
    )


def _versions() -> dict[str, str]:
    """Versions of what made the artifacts, for the manifest's ``producers``."""
    found = {"python": platform.python_version()}
    for package in ("servable", *_PRODUCERS):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
