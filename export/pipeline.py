"""Export as a whole: convert, verify in the real runtimes, and publish in one step."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import extras
from ..errors import ExportError, ParityError, ProcessError, StoreError, UnimplementedError
from ..inspection import inspect
from ..manifest import Absent, Artifact, Manifest
from ..nursery import Outcome, borrow, give_back
from ..process import Limits
from ..signature import Signature
from ..store import Store
from ..tasks import Pool
from . import c_array, onnx, report, saved_model, steps, tflite, warmup  # noqa: F401  # importing an exporter registers it
from .cases import base_case, derived_cases, least_rows
from .operations import LOOPS, operations
from .registry import FORMATS, OPSET, Exporter, Job, choose
from .source import Source
from .source_model import TracedModel, first_line
from .steps import guarded
from .tolerance import Overrides, check_overrides
from .worst import WorstSample

Sizes = Mapping[str, tuple[int, ...]]
Progress = Callable[[str, int, int], None]

_PRODUCERS = ("tensorflow", "keras", "tf_keras", "tf2onnx", "onnx", "onnxruntime", "ai-edge-litert", "numpy")
# What the steps import; a process that has done so is there for all of them.
MODULES = ("tensorflow", "keras", "ai_edge_litert.interpreter", "tf2onnx", "onnx", "onnxruntime")
_MEMORY_SHARE = 0.75
# What Linux lets a container have, of cgroups in version 2 and 1.
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
# More calibration rows than these change no range that matters, and large models take long for each.
_CALIBRATION_ROWS = {512: 512, 64: 128, 8: 32}


@dataclass(frozen=True)
class ExportOptions:
    """What to make and how.

    ``formats`` and ``quantizations`` choose the artifacts (`registry.choose`; empty: all). ``version``
    is the number to publish as, None for the next one. ``tolerances`` replaces limits
    (`tolerance.parse_overrides`). ``int8_io`` gives int8 TFLite files int8 inputs and outputs, ``c_array``
    puts each TFLite file beside itself as C source, and ``report`` asks for a report (`Store.reports`); that one
    cannot be drawn is told as progress.

    Each conversion of the SavedModel and each verification is a process of its own, ``at_once`` at a time. One
    that takes longer than ``time_limit_s`` or holds more memory than ``memory_limit_bytes`` (None: three
    quarters of what the machine or the container has) is stopped, and the version goes without its artifact.
    """

    formats: Sequence[str] = ()
    quantizations: Sequence[str] = ()
    version: int | None = None
    tolerances: Overrides = field(default_factory=dict)
    opset: int = OPSET
    int8_io: bool = False
    c_array: bool = False
    report: bool = False
    at_once: int = 2
    time_limit_s: float = 3600.0
    memory_limit_bytes: int | None = None


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
        published, manifest = store.publish(staged, manifest, options.version)
    if options.report:
        work.step("report")
        try:
            found = {entry.label: entry.model.ops for entry in inspect(published).entries if entry.model}
            report.write(store.reports(source.name, manifest.version), manifest, found, work.worst)
        except Exception as error:  # noqa: BLE001  # whatever keeps it from being drawn, the version is published
            progress(f"no report: {first_line(error)}", work.steps, work.steps)
    progress("done", work.steps, work.steps)
    return manifest


def prepare() -> None:
    """Begin to import what the steps need, beside what the caller does before `export_model`."""
    give_back(borrow(MODULES), MODULES)


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
        self.worst: dict[str, tuple[WorstSample, ...]] = {}
        self.steps = 2 * len(exporters) + 2 + options.report
        self._progress = progress
        self._done = 0
        self._artifacts: dict[str, Artifact] = {}
        self._absent: dict[str, Absent] = {}
        # Files that wait: for the one that they are made from; and, made, for what the SavedModel answers.
        self._unmade: list[Exporter] = []
        self._unverified: list[Exporter] = []
        self._converting: set[str] = set()

    def step(self, text: str) -> None:
        """Tell what comes next."""
        self._progress(text, self._done, self.steps)
        self._done += 1

    def run(self) -> Manifest:
        """Convert and verify everything; the manifest of what lies in the staged folder then."""
        tasks = self.folder / "tasks"
        tasks.mkdir()
        options = self.options
        with Pool(tasks, MODULES, options.at_once, limits(options)) as self._pool:
            self.step("run the source model")
            base = base_case(self.source)
            self.step("convert saved_model")
            try:
                guarded(lambda: saved_model.write(self.source, self.staged))
                job = self._job()
            except ExportError as error:
                raise ExportError(f"{self.source.name}: the conversion to saved_model failed: {error}") from error
            if self.source.labels:
                labels = "".join(f"{label}\n" for label in self.source.labels)
                (self.staged / "labels.txt").write_text(labels, encoding="utf-8")
            derived = tuple(derived_cases(self.source, base))
            warmup.write([base, *derived], self.source.name, self.staged)
            self._for_twins = tasks / "for_twins.pkl"
            self._comparison = steps.save(
                steps.Comparison(
                    source=self.source.without_model(),
                    draft=self._draft,
                    staged=self.staged,
                    base=base,
                    derived=derived,
                    overrides=options.tolerances,
                    opset=options.opset,
                ),
                tasks / "comparison.pkl",
            )
            self._job_file = steps.save(job, tasks / "job.pkl")
            self._submit(self.exporters[0], self._saved_model_verified, steps.verify_saved_model)
            self._unmade = [exporter for exporter in self.exporters[1:] if not self._unsupported(exporter, job)]
            self._convert_more()
            self._pool.run()
        keys = [exporter.key for exporter in self.exporters]
        return replace(
            self._draft,
            artifacts=tuple(self._artifacts[key] for key in keys if key in self._artifacts),
            absent=tuple(self._absent[key] for key in keys if key in self._absent),
        )

    def _unsupported(self, exporter: Exporter, job: Job) -> bool:
        reason = exporter.unsupported(job)
        if reason:
            self._leave_out(exporter, reason, failed=False)
        return reason is not None

    def _convert_more(self) -> None:
        """Begin the conversions that need not wait for the file of another one."""
        unmade = {exporter.key for exporter in self._unmade} | self._converting
        ready = [exporter for exporter in self._unmade if exporter.after not in unmade]
        self._unmade = [exporter for exporter in self._unmade if exporter not in ready]
        for exporter in ready:
            self._converting.add(exporter.key)
            self._pool.submit(
                partial(self._converted, exporter),
                steps.convert,
                exporter,
                self._job_file,
                self.staged / exporter.path,
                begin=partial(self.step, f"convert {exporter.key}"),
            )

    def _converted(self, exporter: Exporter, outcome: Outcome) -> None:
        self._converting.discard(exporter.key)
        if self._settled(exporter, outcome, "conversion"):
            self._unverified.append(exporter)
        self._convert_more()
        self._verify_more()

    def _saved_model_verified(self, outcome: Outcome) -> None:
        if isinstance(outcome.error, ProcessError):
            raise ExportError(f"{self.source.name}: the verification of saved_model {outcome.error}")
        self._keep(self.exporters[0], outcome.get())
        self._verify_more()

    def _verify_more(self) -> None:
        """Begin the verifications of files, once the SavedModel has said what they have to answer."""
        if "saved_model" not in self._artifacts:
            return
        for exporter in self._unverified:
            self._submit(exporter, partial(self._verified, exporter), steps.verify_file)
        self._unverified = []

    def _submit(
        self, exporter: Exporter, then: Callable[[Outcome], None], verify: Callable[..., steps.Verified]
    ) -> None:
        begin = partial(self.step, f"verify {exporter.key}")
        self._pool.submit(then, verify, exporter, self._comparison, self._for_twins, begin=begin)

    def _verified(self, exporter: Exporter, outcome: Outcome) -> None:
        if self._settled(exporter, outcome, "verification"):
            self._keep(exporter, outcome.get())

    def _keep(self, exporter: Exporter, verified: steps.Verified) -> None:
        artifact = self._artifacts[exporter.key] = verified.artifact
        self.worst[artifact.label] = verified.worst
        if self.options.c_array and exporter.format == "tflite":
            c_array.write(
                self.staged / exporter.path,
                self.staged,
                model=self.source.name,
                artifact=artifact.label,
                quantization=artifact.quantization,
                producer=self._draft.producers["servable"],
            )

    def _settled(self, exporter: Exporter, outcome: Outcome, what: str) -> bool:
        """Whether a step went well; False if the version goes without its artifact."""
        error = outcome.error
        if error is None:
            return True
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            raise error if isinstance(error, OSError) else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if isinstance(error, ProcessError):
            error = ExportError(f"the {what} {error}")
        elif isinstance(error, OSError):
            error = ExportError(f"the {what} failed with {first_line(error)}")
        if isinstance(error, ParityError) or not isinstance(error, ExportError | UnimplementedError):
            raise error
        (self.staged / exporter.path).unlink(missing_ok=True)
        (self.staged / f"unfinished-{exporter.path}").unlink(missing_ok=True)
        self._leave_out(exporter, str(error), failed=isinstance(error, ExportError))
        return False

    def _leave_out(self, exporter: Exporter, reason: str, *, failed: bool) -> None:
        if exporter.key in self.options.formats and exporter.key not in FORMATS:
            raise ExportError(f"{self.source.name} {exporter.key} cannot be made: {reason}")
        self._absent[exporter.key] = Absent(exporter.format, exporter.quantization, reason, failed)

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
                guarded(lambda: saved_model.write_base(model, _sized(source.signature, {}, rows=1), fixed))
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
            guarded(lambda: saved_model.write_base(model, signature, folder))
        return folder

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
            extra={"tolerances": self.options.tolerances} if self.options.tolerances else {},
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


def limits(options: ExportOptions) -> Limits:
    """What one step may take."""
    psutil = extras.load("psutil", "exporting a model")
    memory = [psutil.virtual_memory().total]
    for path in _CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # there is none, or it is "max"
            memory.append(int(path.read_text()))
    return Limits(options.time_limit_s, options.memory_limit_bytes or int(min(memory) * _MEMORY_SHARE))


def _versions() -> dict[str, str]:
    """Versions of what made the artifacts, for the manifest's ``producers``."""
    found = {"python": platform.python_version()}
    for package in ("servable", *_PRODUCERS):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
