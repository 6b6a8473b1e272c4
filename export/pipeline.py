"""Export as a whole: convert, verify in the real runtimes, and publish in one step."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from .. import extras, runtimes
from ..errors import ArtifactError, ExportError, ParityError, ServableError, StoreError, UnimplementedError
from ..manifest import Absent, Artifact, Manifest, measure_artifact
from ..runtimes import Runtime
from ..signature import Signature
from ..store import Store
from ..twin import Twin
from . import onnx, saved_model, tflite, warmup  # noqa: F401  # importing an exporter registers it
from .cases import Case, base_case, derived_cases, least_rows
from .operations import LOOPS, operations
from .registry import FORMATS, OPSET, Exporter, Job, choose
from .source import Source
from .source_model import TracedModel, first_line
from .tolerance import Overrides, check_overrides, override, tolerance
from .verify import Run, verify

Sizes = Mapping[str, tuple[int, ...]]
Progress = Callable[[str, int, int], None]

_PRODUCERS = ("tensorflow", "keras", "tf_keras", "tf2onnx", "onnx", "onnxruntime", "ai-edge-litert", "numpy")
# More calibration rows than these change no range that matters, and large models take long for each.
_CALIBRATION_ROWS = {512: 512, 64: 128, 8: 32}


@dataclass(frozen=True)
class ExportOptions:
    """What to make and how.

    ``formats`` and ``quantizations`` choose the artifacts (`registry.choose`; empty: all). ``version``
    is the number to publish as, None for the next one. ``tolerances`` replaces limits
    (`tolerance.parse_overrides`). ``int8_io`` gives int8 TFLite files int8 inputs and outputs.
    """

    formats: Sequence[str] = ()
    quantizations: Sequence[str] = ()
    version: int | None = None
    tolerances: Overrides = field(default_factory=dict)
    opset: int = OPSET
    int8_io: bool = False


def export_model(
    source: Source, store: Store, options: ExportOptions | None = None, progress: Progress = lambda *_: None
) -> Manifest:
    """Export a model to all formats (or the chosen ones) and publish it as a version of the store.

    Nothing appears under the model's folder unless all that was made agrees with the source. An
    artifact that the format cannot hold or that fails to be made is left out, and the manifest's
    ``absent`` says why. Raises `ExportError` if the source or its SavedModel fails, or an artifact that
    was chosen by name cannot be; `ParityError` if an artifact disagrees; `InvalidArgumentError` for options
    that do not fit; `MissingExtraError` without the extra; `AlreadyExistsError` for a version that
    exists; and `StoreError` if the store cannot be written.
    """
    options = options or ExportOptions()
    exporters = choose(options.formats, options.quantizations)
    check_overrides(options.tolerances, source)
    for module in dict.fromkeys(module for exporter in exporters for module in exporter.requires):
        extras.load(module, "exporting a model")
    if set("[]") & set(str(store.root.resolve())):
        raise StoreError(
            f"TensorFlow cannot read a path with '[' or ']': {store.root.resolve()}; choose another --store"
        )
    if options.version is not None:
        store.check_free(source.name, options.version)
    with store.staging(source.name) as folder:
        staged = folder / "version"
        staged.mkdir()
        work = _Work(source, staged, folder, options, progress, exporters)
        manifest = work.run()
        work.step("publish")
        _, manifest = store.publish(staged, manifest, options.version)
    progress("done", work.steps, work.steps)
    return manifest


class _Work:
    """One export on its way: the staged folder, and what has been found out so far."""

    def __init__(
        self,
        source: Source,
        staged: Path,
        folder: Path,
        options: ExportOptions,
        progress: Progress,
        exporters: Sequence[Exporter],
    ) -> None:
        self.source, self.staged, self.folder, self.options = source, staged, folder, options
        self.exporters = exporters
        self.steps = 2 * len(exporters) + 2
        self._progress = progress
        self._done = 0
        self._absent: list[Absent] = []

    def step(self, text: str) -> None:
        """Tell what comes next."""
        self._progress(text, self._done, self.steps)
        self._done += 1

    def run(self) -> Manifest:
        """Convert and verify everything; the manifest of what lies in the staged folder then."""
        source, staged = self.source, self.staged
        self.step("run the source model")
        base = base_case(source)
        self.step("convert saved_model")
        try:
            _guarded(lambda: saved_model.write(source, staged))
            job = self._job()
        except ExportError as error:
            raise ExportError(f"{source.name}: the conversion to saved_model failed: {error}") from error
        made = [exporter for exporter in self.exporters if exporter.convert is None or self._convert(exporter, job)]
        if source.labels:
            (staged / "labels.txt").write_text("".join(f"{label}\n" for label in source.labels), encoding="utf-8")
        draft = self._draft
        with runtimes.load(staged) as original:
            self.step("verify saved_model")
            cases = [base, *derived_cases(source, base)]
            first = _describe(made[0], source.signatures, original, self.options.opset)
            artifacts = [self._verify(made[0], first, original.run, cases)]
            warmup.write(cases, source.name, staged)
            asked = derived_cases(source, base, original.run) if any(exporter.derived for exporter in made[1:]) else []
            twin_cases = [base, *asked]
            for exporter in made[1:]:
                self.step(f"verify {exporter.key}")
                found = self._verify_file(exporter, draft, twin_cases if exporter.derived else [base])
                artifacts += [found] if found else []
        return replace(draft, artifacts=tuple(artifacts), absent=tuple(self._absent))

    def _job(self) -> Job:
        source, model = self.source, self.source.model
        found = operations(self.staged, source.signature.name)
        unrolled = fixed = sized = None
        wanted = any(exporter.format == "tflite" for exporter in self.exporters)
        if wanted and LOOPS & found.keys() and isinstance(model, TracedModel):
            if model.unrolls():
                unrolled = self._unrolled(model, source.signature)
            else:
                fixed = self.folder / "fixed"
                _guarded(lambda: saved_model.write_base(model, _sized(source.signature, {}, rows=1), fixed))
                sizes = {name: array.shape[1:] for name, array in source.data.calibration.items()}
                if model.unrolls(_longest_open(source.signature, sizes)):
                    with suppress(ExportError):  # what is not to be had without the loop is left out
                        sized = self._unrolled(model, _sized(source.signature, sizes))
        rows = _CALIBRATION_ROWS[least_rows(model.parameters)]
        return Job(
            model=source.name,
            signature=source.signature,
            saved_model=self.staged,
            calibration={name: array[:rows] for name, array in source.data.calibration.items()},
            unrolled=unrolled,
            fixed=fixed,
            sized=sized,
            operations=frozenset(found),
            labels=source.labels,
            preprocessing=source.preprocessing,
            task=source.task,
            source=str(self._draft.source["sha256"]),
            producer=self._draft.producers["servable"],
            opset=self.options.opset,
            int8_io=self.options.int8_io,
        )

    def _unrolled(self, model: TracedModel, signature: Signature) -> Path:
        folder = self.folder / "unrolled"
        with model.unrolled():
            _guarded(lambda: saved_model.write_base(model, signature, folder))
        return folder

    def _convert(self, exporter: Exporter, job: Job) -> bool:
        """Make one file; False if the version goes without it."""
        self.step(f"convert {exporter.key}")
        reason = exporter.unsupported(job)
        if reason:
            self._leave_out(exporter, reason, failed=False)
            return False
        convert, path = exporter.convert, self.staged / exporter.path
        assert convert is not None
        try:
            _guarded(lambda: convert(job, path))
            if not path.exists():
                raise ExportError(f"the conversion wrote no {exporter.path}")
        except (ExportError, UnimplementedError) as error:
            path.unlink(missing_ok=True)
            self._leave_out(exporter, str(error), failed=isinstance(error, ExportError))
            return False
        return True

    def _leave_out(self, exporter: Exporter, reason: str, *, failed: bool) -> None:
        if exporter.key in self.options.formats and exporter.key not in FORMATS:
            raise ExportError(f"{self.source.name} {exporter.key} cannot be made: {reason}")
        self._absent.append(Absent(exporter.format, exporter.quantization, reason, failed))

    def _verify_file(self, exporter: Exporter, draft: Manifest, cases: Sequence[Case]) -> Artifact | None:
        """Verify a file in its own runtime; None if it cannot be run, and the version goes without it."""
        path = self.staged / exporter.path
        try:
            with runtimes.load(path) as runtime:
                base = {self.source.signature.name: self.source.signature}
                artifact = _describe(exporter, base, runtime, self.options.opset)
                return self._verify(exporter, artifact, Twin(draft, runtime, artifact).run, cases)
        except ParityError:
            raise
        except (ExportError, ArtifactError) as error:
            path.unlink(missing_ok=True)
            self._leave_out(exporter, str(error).replace(str(path), exporter.path), failed=True)
            return None

    def _verify(self, exporter: Exporter, artifact: Artifact, run: Run, cases: Sequence[Case]) -> Artifact:
        """Measure one converted artifact; `ParityError` if it is too far from the source."""
        source = self.source
        evidence = {}
        for case in cases:
            numbers = [array for array in case.expected.values() if array.dtype.kind != "O"]
            largest = max((float(np.abs(array).max(initial=0)) for array in numbers), default=0.0)
            limits = override(tolerance(source, exporter.quantization, largest), exporter.key, self.options.tolerances)
            found = verify(f"{source.name} {exporter.key}", run, case, limits, source)
            if not found.passed:
                raise ParityError(
                    f"{source.name} {exporter.key} is too far from the source model on {case.signature.name}: "
                    f"{found.criterion}; nothing was published (leave it out with --formats or --quantize, or allow "
                    f"more with --tolerance)"
                )
            evidence[case.signature.name] = found
        sha256, size = measure_artifact(self.staged, exporter.path)
        return replace(artifact, sha256=sha256, bytes=size, evidence=evidence)

    @cached_property
    def _draft(self) -> Manifest:
        """The manifest without artifacts; made once, for it reads all weights."""
        source = self.source
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
        )


def _guarded(action: Callable[[], None]) -> None:
    """Turn what a converter raises into an `ExportError` of one line; a full disk stays what it is."""
    try:
        action()
    except (ServableError, OSError):
        raise
    except Exception as error:  # converters raise every kind
        if os.strerror(errno.ENOSPC) in str(error):  # TensorFlow and the converters have errors of their own for it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise ExportError(first_line(error)) from error


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
