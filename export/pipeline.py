"""Export as a whole: convert, verify in the real runtimes, and publish in one step."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from .. import extras
from ..errors import ExportError, ParityError, ProcessError, StoreError, UnimplementedError, is_disk_full
from ..inspection import inspect
from ..manifest import Absent, Artifact, Manifest
from ..nursery import Outcome, borrow, give_back
from ..store import Store
from ..tasks import Pool
from . import c_array, onnx, report, steps, tflite  # noqa: F401  # importing an exporter registers it
from .options import ExportOptions, limits
from .preparation import Place, Prepared, Unopened, prepare
from .registry import FORMATS, Exporter, Job, choose
from .source import Source
from .source_model import first_line
from .worst import WorstSample

Progress = Callable[[str, int, int], None]

# What the steps import; a process that has done so is there for all of them.
MODULES = ("tensorflow", "keras", "ai_edge_litert.interpreter", "tf2onnx", "onnx", "onnxruntime")


def export_model(
    source: Source | Unopened,
    store: Store,
    options: ExportOptions | None = None,
    progress: Progress = lambda *_: None,
) -> Manifest:
    """Export a model to all formats (or the chosen ones) and publish it as a version of the store.

    A source that is `Unopened` is opened in a process of its own; one that is a `Source` is asked, and its
    SavedModel written, in this one.

    Nothing appears under the model's folder unless all that was made agrees with the source. An
    artifact that the format cannot hold or that fails to be made is left out, and the manifest's
    ``absent`` says why. Raises `ExportError` if the source or its SavedModel fails, or an artifact that
    was chosen by name cannot be; `ParityError` if an artifact disagrees; `InvalidArgumentError` for options
    that do not fit; `MissingExtraError` without the extra; `AlreadyExistsError` for a version that
    exists; and `StoreError` if the store cannot be written.
    """
    options = options or ExportOptions()
    exporters = choose(options.formats, options.quantizations)
    for module in dict.fromkeys(module for exporter in exporters for module in exporter.requires):
        extras.require(module, "exporting a model")
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
            worst = {artifact.label: work.worst[artifact.label] for artifact in manifest.artifacts}
            report.write(store.reports(source.name, manifest.version), manifest, found, worst)
        except Exception as error:  # noqa: BLE001  # whatever keeps it from being drawn, the version is published
            progress(f"no report: {first_line(error)}", work.steps, work.steps)
    progress("done", work.steps, work.steps)
    return manifest


def import_ahead() -> None:
    """Begin to import what the steps need, beside what the caller does before `export_model`."""
    give_back(borrow(MODULES), MODULES)


class _Work:
    """One export on its way: the staged folder, and what has been found out so far."""

    def __init__(
        self,
        source: Source | Unopened,
        staged: Path,
        folder: Path,
        options: ExportOptions,
        progress: Progress,
        exporters: Sequence[Exporter],
    ) -> None:
        self.source, self.staged, self.options = source, staged, options
        self.exporters = exporters
        self._place = Place(staged, folder, any(exporter.format == "tflite" for exporter in exporters))
        self.worst: dict[str, tuple[WorstSample, ...]] = {}
        self.steps = 2 * len(exporters) + 1 + options.report
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
        options = self.options
        with Pool(self._place.folder, MODULES, options.at_once, limits(options)) as self._pool:
            if isinstance(self.source, Unopened):
                begin = partial(self.step, "convert saved_model")
                self._pool.submit(self._prepared, prepare, self.source, self._place, options, begin=begin)
            else:  # it lives in this process, and cannot be asked in another one
                self.step("convert saved_model")
                self._prepared(Outcome(prepare(self.source, self._place, options)))
            self._pool.run()
        keys = [exporter.key for exporter in self.exporters]
        return replace(
            self._draft,
            artifacts=tuple(self._artifacts[key] for key in keys if key in self._artifacts),
            absent=tuple(self._absent[key] for key in keys if key in self._absent),
        )

    def _prepared(self, outcome: Outcome) -> None:
        error = outcome.error
        if isinstance(error, ProcessError) and not is_disk_full(error):
            raise ExportError(f"{self.source.name}: the conversion to saved_model {error}")
        if error and is_disk_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        prepared: Prepared = outcome.get()
        self._draft = prepared.draft
        self._submit(self.exporters[0], self._saved_model_verified, steps.verify_saved_model)
        self._unmade = [exporter for exporter in self.exporters[1:] if not self._unsupported(exporter, prepared.job)]
        self._convert_more()

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
                self._place.job,
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
        self._pool.submit(then, verify, exporter, self._place.comparison, self._place.for_twins, begin=begin)

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
        if is_disk_full(error):
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
