"""The first step of an export: the source is asked and its SavedModel written, with all that later steps read."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import ExportError
from ..manifest import Manifest
from ..signature import Signature
from . import saved_model, steps, warmup
from .cases import base_case, derived_cases, least_rows
from .operations import LOOPS, operations
from .options import ExportOptions
from .registry import Job
from .source import Source
from .source_model import TracedModel
from .steps import guarded
from .tolerance import check_overrides

Sizes = Mapping[str, tuple[int, ...]]

_PRODUCERS = ("tensorflow", "keras", "tf_keras", "tf2onnx", "onnx", "onnxruntime", "ai-edge-litert", "numpy")
# More calibration rows than these change no range that matters, and large models take long for each.
_CALIBRATION_ROWS = {512: 512, 64: 128, 8: 32}


@dataclass(frozen=True)
class Unopened:
    """A source that the first step opens, in a process of its own: what crashes there takes nothing along.

    ``name`` is that of the source; ``open`` can be pickled.
    """

    name: str
    open: Callable[[], Source]


@dataclass(frozen=True)
class Place:
    """Where an export works: the version's ``staged`` folder, and ``folder`` for what only steps read.

    ``for_tflite`` says whether TFLite files are wanted, which take models without loops.
    """

    staged: Path
    folder: Path
    for_tflite: bool

    @property
    def comparison(self) -> Path:
        """What artifacts are compared with: a `steps.Comparison`."""
        return self.folder / "comparison.pkl"

    @property
    def for_twins(self) -> Path:
        """The cases that the verified SavedModel is the reference of."""
        return self.folder / "for_twins.pkl"

    @property
    def job(self) -> Path:
        """What is converted: a `Job`."""
        return self.folder / "job.pkl"


@dataclass(frozen=True)
class Prepared:
    """What the steps have in common: the manifest without artifacts, and the job without its rows."""

    draft: Manifest
    job: Job


def prepare(given: Source | Unopened, place: Place, options: ExportOptions) -> Prepared:
    """Ask the source, write its SavedModel with labels and warm-up requests, and the files of later steps.

    Raises what opening the source raises, `InvalidArgumentError` for limits that do not fit it, and
    `ExportError` if it fails or cannot be written.
    """
    source = given.open() if isinstance(given, Unopened) else given
    check_overrides(options.tolerances, source)
    base = base_case(source)
    draft = _draft(source, options)
    try:
        guarded(lambda: saved_model.write(source, place.staged))
        job = _job(source, draft, place, options)
    except ExportError as error:
        raise ExportError(f"{source.name}: the conversion to saved_model failed: {error}") from error
    if source.labels:
        labels = "".join(f"{label}\n" for label in source.labels)
        (place.staged / "labels.txt").write_text(labels, encoding="utf-8")
    derived = tuple(derived_cases(source, base))
    warmup.write([base, *derived], source.name, place.staged)
    comparison = steps.Comparison(
        source=source.without_model(),
        draft=draft,
        staged=place.staged,
        base=base,
        derived=derived,
        overrides=options.tolerances,
        opset=options.opset,
    )
    steps.save(comparison, place.comparison)
    steps.save(job, place.job)
    return Prepared(draft, replace(job, calibration={}))


def _job(source: Source, draft: Manifest, place: Place, options: ExportOptions) -> Job:
    model = source.model
    found = operations(place.staged, source.signature.name)
    unrolled = fixed = sized = None
    if place.for_tflite and LOOPS & found.keys() and isinstance(model, TracedModel):
        if model.unrolls():
            unrolled = _unrolled(model, place.folder, source.signature)
        else:
            fixed = place.folder / "fixed"
            guarded(lambda: saved_model.write_base(model, _sized(source.signature, {}, rows=1), fixed))
            sizes = {name: array.shape[1:] for name, array in source.data.calibration.items()}
            if model.unrolls(_longest_open(source.signature, sizes)):
                with suppress(ExportError):  # what is not to be had without the loop is left out
                    sized = _unrolled(model, place.folder, _sized(source.signature, sizes))
    rows = _CALIBRATION_ROWS[least_rows(model.parameters)]
    return Job(
        model=source.name,
        signature=source.signature,
        saved_model=place.staged,
        calibration={name: array[:rows] for name, array in source.data.calibration.items()},
        unrolled=unrolled,
        fixed=fixed,
        sized=sized,
        operations=frozenset(found),
        labels=source.labels,
        preprocessing=source.preprocessing,
        task=source.task,
        source=str(draft.source["sha256"]),
        producer=draft.producers["servable"],
        opset=options.opset,
        int8_io=options.int8_io,
    )


def _unrolled(model: TracedModel, place: Path, signature: Signature) -> Path:
    folder = place / "unrolled"
    with model.unrolled():
        guarded(lambda: saved_model.write_base(model, signature, folder))
    return folder


def _draft(source: Source, options: ExportOptions) -> Manifest:
    """The manifest without artifacts."""
    return Manifest(
        model=source.name,
        version=0,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        task=source.task,
        source={**source.model.describe(), "trained": source.trained, "random_data": source.data.random},
        producers=_versions(),
        signatures=source.signatures,
        artifacts=(),
        labels=source.labels,
        preprocessing=source.preprocessing,
        derivations=source.derivations,
        extra={"tolerances": options.tolerances} if options.tolerances else {},
    )


def _sized(signature: Signature, sizes: Sizes, rows: int | None = None) -> Signature:
    """The same signature with these sizes in place of open ones, and a batch of ``rows``."""
    inputs = {}
    for name, spec in signature.inputs.items():
        inputs[name] = replace(spec, shape=(rows, *sizes.get(name, (spec.shape or ())[1:])))
    return replace(signature, inputs=inputs)


def _longest_open(signature: Signature, sizes: Sizes) -> int:
    """The largest of ``sizes`` that the signature leaves open, 0 where it leaves none."""
    specs = [(spec.shape or (), sizes[name]) for name, spec in signature.inputs.items()]
    return max(
        (size for shape, row in specs for own, size in zip(shape[1:], row, strict=True) if own is None), default=0
    )


def _versions() -> dict[str, str]:
    """Versions of what made the artifacts, for the manifest's ``producers``."""
    found = {"python": platform.python_version()}
    for package in ("servable", *_PRODUCERS):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
