"""A published version once more: whether its files are those that were measured, and answer as they did."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import ArtifactError, ExportError, ProcessError, StoreError
from ..manifest import Artifact, Manifest
from ..nursery import Outcome
from ..tasks import Pool
from . import steps
from .cases import base_case, derived_cases
from .data import parse_shapes, random_data, read_calibration
from .options import ExportOptions, limits
from .pipeline import MODULES, Progress
from .registry import OPSET, REGISTRY, Exporter
from .saved_source import SavedModelFolder, open_saved_model
from .source import TASKS, Source, Task
from .source_model import first_line
from .tolerance import Overrides, parse_overrides


@dataclass(frozen=True)
class Rechecked:
    """One artifact as its manifest has it, as it was found ``now``, and what is ``wrong`` with it, if anything.

    ``damaged`` says that it is not the file that was measured. ``now`` is None where it was not run, and where
    it could not be or was too far off.
    """

    recorded: Artifact
    now: Artifact | None = None
    wrong: str = ""
    damaged: bool = False


def version_source(
    folder: Path, manifest: Manifest, calibration: Path | None = None, shapes: tuple[str, ...] = ()
) -> Source:
    """A published version's own SavedModel as the source that its other artifacts are compared with.

    The data is that of ``calibration`` (`read_calibration`), else random rows (`random_data`), with
    ``shapes`` for free dimensions. Raises what these raise, and `StoreError` for a version without a
    SavedModel that evidence speaks of.
    """
    saved = manifest.artifact("saved_model")
    evidence = saved.base_evidence if saved else None
    if saved is None or evidence is None:
        raise StoreError(f"the manifest in {folder} has no evidence of a SavedModel, which others are compared with")
    model = open_saved_model(folder, next(iter(saved.evidence)))
    assert isinstance(model, SavedModelFolder)
    model.derivations = manifest.derivations
    sizes, how = parse_shapes(shapes, model.signature), manifest.preprocessing
    data = read_calibration(calibration, model, how) if calibration else random_data(model, sizes, how)
    task: Task = next((task for task in TASKS if task == manifest.task), "other")
    return Source(
        name=manifest.model,
        model=model,
        data=data,
        task=task,
        metric=evidence.metric if data.targets is not None else None,
        labels=manifest.labels,
        preprocessing=how,
        trained=bool(manifest.source.get("trained", True)),
    )


def recheck(
    folder: Path,
    manifest: Manifest,
    open_source: Callable[[], Source],
    options: ExportOptions | None = None,
    progress: Progress = lambda *_: None,
) -> list[Rechecked]:
    """Compare every artifact's hash with the manifest, and its answers with the source's.

    ``open_source`` is called only if the SavedModel is the one that was measured; ``options`` are the
    tolerances, limits and the number at once. An artifact that is too far off, cannot be run or is
    another file is in the list, with what is wrong. Raises what ``open_source`` and `base_case` raise.
    """
    return _Recheck(folder, manifest, options or ExportOptions(), progress).run(open_source)


class _Recheck:
    def __init__(self, folder: Path, manifest: Manifest, options: ExportOptions, progress: Progress) -> None:
        self._folder, self._manifest, self._options, self._progress = folder, manifest, options, progress
        self._found: dict[str, Rechecked] = {}
        self._done = 0

    def run(self, open_source: Callable[[], Source]) -> list[Rechecked]:
        self._step("compare hashes")
        sound = []
        for artifact in self._manifest.artifacts:
            self._found[artifact.label] = found = self._hashed(artifact)
            exporter = _exporter(artifact)
            if exporter and not found.wrong:
                sound.append((artifact, exporter))
        if sound and sound[0][1].key == "saved_model":
            self._verify(open_source(), sound)
        else:
            self._not_comparable(artifact for artifact, _ in sound)
        return list(self._found.values())

    def _step(self, text: str) -> None:
        self._progress(text, self._done, len(self._manifest.artifacts) + 2)
        self._done += 1

    def _overrides(self) -> Overrides:
        """The limits that its export was given, and those that are given now."""
        recorded = self._manifest.extra.get("tolerances", {})
        try:
            texts = [f"{key}:{name}={value}" for key, each in recorded.items() for name, value in each.items()]
        except AttributeError:
            raise StoreError(f"the manifest in {self._folder} has no sound tolerances: {recorded!r}") from None
        found = parse_overrides(texts, ["", *REGISTRY])
        for key, each in self._options.tolerances.items():
            found[key] = {**found.get(key, {}), **each}
        return found

    def _not_comparable(self, artifacts: Iterable[Artifact]) -> None:
        for artifact in artifacts:
            wrong = "it is what was measured, but there is no sound SavedModel to compare its answers with"
            self._found[artifact.label] = Rechecked(artifact, wrong=wrong)

    def _hashed(self, artifact: Artifact) -> Rechecked:
        exporter = _exporter(artifact)
        if exporter is None:
            return Rechecked(artifact, wrong=f"this servable makes no {artifact.label}, and cannot measure it")
        if artifact.path != exporter.path:
            wrong = f"the manifest says that it is {artifact.path!r}; expected {exporter.path!r}"
            return Rechecked(artifact, wrong=wrong, damaged=True)
        try:
            self._manifest.check_artifact(self._folder, artifact)
        except ArtifactError as error:
            return Rechecked(artifact, wrong=str(error), damaged=True)
        return Rechecked(artifact)

    def _verify(self, source: Source, sound: list[tuple[Artifact, Exporter]]) -> None:
        with tempfile.TemporaryDirectory(prefix="servable-") as name:
            place, options = Path(name), self._options
            with Pool(place, MODULES, options.at_once, limits(options)) as pool:
                self._step("run the source model")
                base = base_case(source)
                comparison = steps.Comparison(
                    source=source.without_model(),
                    draft=self._manifest,
                    staged=self._folder.absolute(),
                    base=base,
                    derived=tuple(derived_cases(source, base)),
                    overrides=self._overrides(),
                    opset=OPSET,
                )
                files = steps.save(comparison, place / "comparison.pkl"), place / "for_twins.pkl"

                def submit(artifact: Artifact, exporter: Exporter) -> None:
                    verify = steps.verify_saved_model if exporter.key == "saved_model" else steps.verify_file
                    begin = partial(self._step, f"verify {exporter.key}")
                    pool.submit(partial(settled, artifact), verify, exporter, *files, begin=begin)

                def settled(artifact: Artifact, outcome: Outcome) -> None:
                    self._settle(artifact, outcome)
                    if artifact is not sound[0][0]:
                        return
                    if outcome.error:
                        self._not_comparable(each for each, _ in sound[1:])
                        return
                    for each in sound[1:]:
                        submit(*each)

                submit(*sound[0])
                pool.run()

    def _settle(self, artifact: Artifact, outcome: Outcome) -> None:
        error = outcome.error
        if isinstance(error, ProcessError):
            error = ExportError(f"the verification {error}")
        if isinstance(error, OSError):
            error = ExportError(f"the verification failed with {first_line(error)}")
        if error and not isinstance(error, ExportError):
            raise error
        now = None if error else outcome.get().artifact
        self._found[artifact.label] = Rechecked(artifact, now, str(error or ""))


def _exporter(artifact: Artifact) -> Exporter | None:
    for exporter in REGISTRY.values():
        if (exporter.format, exporter.quantization) == (artifact.format, artifact.quantization):
            return exporter
    return None
