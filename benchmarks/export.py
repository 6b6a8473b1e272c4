"""Every model of the catalogue in every artifact: how long it takes, how large it is, how close it stays.

Prints the table of the README: seconds to convert and to verify, size beside the float32 TFLite file,
distance from the Keras model, agreement on the class, and the task metric with its change. Then it
times the TFLite files at batch 1 against the same conversion with a batch fixed at 1, interleaved, to
show what a dynamic batch costs. Exits with 1 if cnn takes more than 60 s with every artifact, an int8
file is larger than 0.30 of the float32 one (mlp, cnn), or model.tflite loses more than 5 % by its batch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .. import extras
from ..cli import course
from ..draw import change_text, metric_text, size_text
from ..export import ExportOptions, Source, export_model, saved_model
from ..export.registry import REGISTRY, Job
from ..export.source_model import TracedModel
from ..manifest import Artifact, Manifest
from ..models import CATALOGUE, card
from ..store import Store
from .machine import describe
from .verdict import Verdict

PACKAGES = ["tensorflow", "keras", "ai-edge-litert", "tf2onnx", "onnx", "onnxruntime"]
EXPORT_LIMIT_S = 60.0
SIZE_LIMIT = 0.30
BATCH_LIMIT = 1.05
SIZED = ("mlp", "cnn")


class Clock:
    """Seconds of each step of an export, by what it is called."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._at, self._text = time.perf_counter(), ""

    def __call__(self, text: str, done: int, total: int) -> None:
        """One step begins, and the one before it has ended."""
        now = time.perf_counter()
        if self._text:
            self.seconds[self._text] = now - self._at
        self._at, self._text = now, text


def main() -> int:
    """Run the benchmark and print it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"of the catalogue (default: {' '.join(CATALOGUE)})")
    parser.add_argument("--runs", type=int, default=3000, help="of each TFLite file (default: 3000)")
    arguments = parser.parse_args()
    print(describe(PACKAGES))
    extras.load("tensorflow", "the benchmark")
    verdict = Verdict()
    with tempfile.TemporaryDirectory(prefix="servable-export-benchmark-") as folder:
        store = Store(Path(folder) / "store")
        export_model(course.source(card("celsius")), store)  # imports what the steps need, which counts for none
        for name in arguments.models or CATALOGUE:
            source, clock = course.source(card(name)), Clock()
            manifest = export_model(source, store, ExportOptions(at_once=1), clock)  # each step by itself
            began = time.perf_counter()
            export_model(source, store, ExportOptions(report=True))
            total = time.perf_counter() - began
            print(f"\n{name}, {source.model.parameters:,} parameters: {total:.1f} s in all, two steps at a time\n")
            print(table(manifest, clock.seconds))
            if name == "cnn":
                verdict.at_most("cnn with every artifact", total, EXPORT_LIMIT_S, " s")
            if name in SIZED:
                ratio = _bytes(manifest, "int8") / _bytes(manifest, "float32")
                verdict.at_most(f"{name}, int8 over float32 TFLite", ratio, SIZE_LIMIT)
            _compare_batches(source, store.path(name), Path(folder), arguments.runs, verdict)
    print(f"\n{verdict.summary()}")
    return verdict.exit_code


def table(manifest: Manifest, seconds: Mapping[str, float]) -> str:
    """One row an artifact, as Markdown."""
    rows = ["| model | artifact | convert | verify | size | of TFLite | max error | agreement | metric | change |"]
    rows.append("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    reference = _bytes(manifest, "float32")
    rows += [f"| {manifest.model} | {row(artifact, seconds, reference)} |" for artifact in manifest.artifacts]
    rows += [
        f"| {manifest.model} | {absent.label} | – | – | – | – | – | – | – | {absent.reason} |"
        for absent in manifest.absent
    ]
    return "\n".join(rows)


def row(artifact: Artifact, seconds: Mapping[str, float], reference: int) -> str:
    """The figures of one artifact, for the signature that every artifact answers."""
    found = artifact.base_evidence
    assert found is not None  # the export has measured it
    key = artifact.label.replace(" ", "_")
    cells = (
        artifact.label,
        f"{seconds[f'convert {key}']:.1f} s",
        f"{seconds[f'verify {key}']:.1f} s",
        size_text(artifact.bytes),
        f"{artifact.bytes / reference:.2f}",
        f"{found.max_abs_error:.2g}",
        "–" if found.top1_agreement is None else f"{found.top1_agreement:.2%}",
        f"{found.metric or ''} {metric_text(found.metric, found.metric_value)}".strip(),
        change_text(found.metric, found.metric_value, found.metric_source_value),
    )
    return " | ".join(cells)


def _bytes(manifest: Manifest, quantization: str) -> int:
    artifact = manifest.artifact("tflite", quantization)
    if artifact is None:
        raise SystemExit(f"error: {manifest.model} has no TFLite file in {quantization}")
    return artifact.bytes


def _compare_batches(source: Source, version: Path, folder: Path, runs: int, verdict: Verdict) -> None:
    """p50 of each TFLite file at batch 1 against the same conversion with its batch fixed at 1."""
    (spec,) = source.signature.inputs.values()
    fixed = replace(source.signature, inputs={spec.name: replace(spec, shape=(1, *(spec.shape or ())[1:]))})
    model = source.model
    assert isinstance(model, TracedModel)
    converted = folder / f"{source.name}-fixed"
    with model.unrolled():
        saved_model.write_base(model, fixed, converted)
    job = Job(source.name, fixed, converted, {name: a[:100] for name, a in source.data.calibration.items()})
    sample = {name: array[:1] for name, array in source.data.inputs.items()}
    for exporter in REGISTRY.values():
        if exporter.format != "tflite" or exporter.convert is None:
            continue
        path = folder / f"{source.name}-{exporter.path}"
        exporter.convert(job, path)
        ours, theirs = interleaved([version / exporter.path, path], sample, runs)
        print(f"{source.name} {exporter.key}: dynamic {ours:.1f} µs, fixed at 1 {theirs:.1f} µs")
        if exporter.quantization == "float32":
            verdict.at_most(f"{source.name}, dynamic over fixed batch", ours / theirs, BATCH_LIMIT)


def interleaved(paths: list[Path], sample: Mapping[str, NDArray[Any]], runs: int) -> list[float]:
    """Median microseconds of one run of each file, one thread, in turns of a hundred."""
    litert = extras.load("ai_edge_litert.interpreter", "the benchmark")
    interpreters = []
    for path in paths:
        interpreter = litert.Interpreter(model_path=str(path), num_threads=1)
        (details,) = interpreter.get_input_details()
        (array,) = sample.values()
        if details["shape"].tolist() != list(array.shape):
            interpreter.resize_tensor_input(details["index"], array.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(details["index"], array)
        interpreters.append(interpreter)
    times: list[list[int]] = [[] for _ in paths]
    for turn in range(-2, runs // 100):
        for interpreter, found in zip(interpreters, times, strict=True):
            for _ in range(100):
                started = time.perf_counter_ns()
                interpreter.invoke()
                if turn >= 0:
                    found.append(time.perf_counter_ns() - started)
    return [statistics.median(found) / 1000 for found in times]


if __name__ == "__main__":
    sys.exit(main())
