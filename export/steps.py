"""The steps of an export that run in processes of their own: each conversion, and each verification.

What they take lies in files, written once for all of them; what they return is small.
"""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import runtimes
from ..errors import ArtifactError, ExportError, ParityError, ServableError, is_disk_full
from ..manifest import Artifact, Manifest, measure_artifact
from ..runtimes import Runtime
from ..signature import Signature
from ..twin import Twin
from .cases import Case, derived_cases
from .registry import Exporter, Job
from .source import Source
from .source_model import first_line
from .tolerance import Overrides, override, tolerance
from .verify import Run, verify
from .worst import WorstSample, worst_samples


@dataclass(frozen=True)
class Comparison:
    """What artifacts are compared with.

    ``source`` is without its model (`Source.without_model`), ``draft`` the manifest without artifacts, and
    ``staged`` the version's folder. ``derived`` are the cases beside ``base`` that the SavedModel answers.
    """

    source: Source
    draft: Manifest
    staged: Path
    base: Case
    derived: tuple[Case, ...]
    overrides: Overrides
    opset: int


@dataclass(frozen=True)
class Verified:
    """An artifact with its evidence, and the samples of its first case on which it is furthest off."""

    artifact: Artifact
    worst: tuple[WorstSample, ...]


def save(value: Any, path: Path) -> Path:
    """Write a value for `load`."""
    with path.open("wb") as file:
        pickle.dump(value, file)
    return path


def load(path: Path) -> Any:
    """A value that `save` wrote: never one that came from anywhere else."""
    with path.open("rb") as file:
        return pickle.load(file)  # noqa: S301  # written by the process that began this one


def guarded(action: Callable[[], None]) -> None:
    """Turn what a converter raises into an `ExportError` of one line; a full disk stays what it is."""
    try:
        action()
    except (ServableError, OSError):
        raise
    except Exception as error:  # converters raise every kind
        if is_disk_full(error):  # TensorFlow and the converters have errors of their own for it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise ExportError(first_line(error)) from error


def convert(exporter: Exporter, job: Path, path: Path) -> None:
    """Make one file, all of it or nothing.

    Raises `ExportError` if the conversion fails, and `UnimplementedError` where it finds out that the
    format cannot hold the model.
    """
    work, unfinished = exporter.convert, path.with_name(f"unfinished-{path.name}")
    assert work is not None
    given: Job = load(job)
    try:
        guarded(lambda: work(given, unfinished))
        if not unfinished.exists():
            raise ExportError(f"the conversion wrote no {exporter.path}")
        unfinished.rename(path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def verify_saved_model(exporter: Exporter, comparison: Path, for_twins: Path) -> Verified:
    """Verify the SavedModel, and write the cases of other artifacts that its graph is the reference of.

    Raises `ParityError` if it is too far from its source, and `ExportError` if it cannot be run.
    """
    given: Comparison = load(comparison)
    with runtimes.load(given.staged) as runtime:
        artifact = _describe(exporter, given.draft.signatures, runtime, given.opset)
        verified = _verify(given, exporter, artifact, runtime.run, (given.base, *given.derived))
        save(derived_cases(given.source, given.base, runtime.run), for_twins)
    return verified


def verify_file(exporter: Exporter, comparison: Path, for_twins: Path) -> Verified:
    """Verify a file in its own runtime; raises as `verify_saved_model` does."""
    given: Comparison = load(comparison)
    path = given.staged / exporter.path
    cases = (given.base, *(load(for_twins) if exporter.derived else ()))
    try:
        with runtimes.load(path) as runtime:
            base = {given.source.signature.name: given.source.signature}
            artifact = _describe(exporter, base, runtime, given.opset)
            return _verify(given, exporter, artifact, Twin(given.draft, runtime, artifact).run, cases)
    except ArtifactError as error:
        raise ExportError(str(error).replace(str(path), exporter.path)) from error


def _verify(given: Comparison, exporter: Exporter, artifact: Artifact, run: Run, cases: tuple[Case, ...]) -> Verified:
    source = given.source
    evidence = {}
    for case in cases:
        numbers = [array for array in case.expected.values() if array.dtype.kind != "O"]
        largest = max((float(np.abs(array).max(initial=0)) for array in numbers), default=0.0)
        limits = override(tolerance(source, exporter.quantization, largest), exporter.key, given.overrides)
        found = verify(f"{source.name} {exporter.key}", run, case, limits, source)
        if not found.passed:
            raise ParityError(
                f"{source.name} {exporter.key} is too far from the source model on {case.signature.name}: "
                f"{found.criterion}; nothing was published (leave it out with --formats or --quantize, or allow "
                f"more with --tolerance)"
            )
        evidence[case.signature.name] = found
    sha256, size = measure_artifact(given.staged, exporter.path)
    rows = list(evidence[given.base.signature.name].worst_samples)
    answers = run(given.base.signature.name, {name: array[rows] for name, array in given.base.inputs.items()})
    return Verified(
        replace(artifact, sha256=sha256, bytes=size, evidence=evidence),
        worst_samples(source, given.base, rows, answers),
    )


def _describe(exporter: Exporter, signatures: Mapping[str, Signature], runtime: Runtime, opset: int) -> Artifact:
    """The manifest's entry, before it is measured; the file itself says which sizes it takes."""
    (wanted, *_), (own, *_) = signatures.values(), runtime.signatures.values()
    rows, sizes = None, {}
    if exporter.path != ".":
        shapes = {name: spec.shape or () for name, spec in own.inputs.items()}
        batches = {shape[0] for shape in shapes.values() if shape}
        rows = batches.pop() if len(batches) == 1 else None
        for name, spec in wanted.inputs.items():
            if spec.shape and None in spec.shape[1:] and None not in shapes.get(name, (None, None))[1:]:
                sizes[name] = tuple(size or 0 for size in shapes[name][1:])
    return Artifact(
        format=exporter.format,
        quantization=exporter.quantization,
        path=exporter.path,
        sha256="",
        bytes=0,
        signatures=tuple(signatures),
        batch="dynamic" if rows is None else str(rows),
        sizes=sizes,
        opset=opset if exporter.format == "onnx" else None,
    )
