"""The on-device client: a model file or a version folder in its own runtime, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import extras, runtimes
from ..errors import ArtifactError, MissingExtraError, TargetError
from ..manifest import FILE_NAME, Artifact, Manifest, Preprocessing
from ..runtimes import Runtime
from ..runtimes.base import SAVED_MODEL_FILES
from ..signature import Signature
from ..store import Store
from ..twin import Twin
from .base import Arrays, Client, Metadata
from .status import EngineUse, VersionStatus

# Which artifact of a version folder answers: the first that the manifest lists and whose engine is here.
_PREFERRED = (("onnx", "onnxruntime"), ("tflite", "ai_edge_litert.interpreter"), ("saved_model", "tensorflow"))


class LocalClient(Client):
    """One artifact; a manifest beside it adds the labels, the preprocessing and the derived signatures."""

    def __init__(
        self, target: str, runtime: Runtime, manifest: Manifest | None, artifact: Artifact | None = None
    ) -> None:
        super().__init__(target)
        self._runtime = runtime
        self._manifest = manifest
        self._twin = Twin(manifest, runtime, artifact) if manifest else None

    @classmethod
    def open(cls, path: Path, *, threads: int = 0) -> LocalClient:
        """Load a ``.tflite`` or ``.onnx`` file, a version folder, or the newest version of ``store/model``.

        Raises `TargetError` if the path is none of these, `NotFoundError` if it is a store's model that
        does not exist, `ArtifactError` if it cannot be loaded.
        """
        if not path.exists():
            if path.parent.is_dir() and Store(path.parent).models():
                Store(path.parent).path(path.name)  # raises, and suggests the nearest model
            raise TargetError(
                f"target {str(path)!r}: there is no such file or folder, and it is no grpc:// or http:// address"
            )
        if path.is_dir() and not any((path / file).exists() for file in (FILE_NAME, *SAVED_MODEL_FILES)):
            path = _newest_version(path)
        folder = path if path.is_dir() else path.parent
        manifest = Manifest.read(folder) if (folder / FILE_NAME).is_file() else None
        artifact = None
        if manifest:
            artifact = _choose(folder, manifest) if path.is_dir() else _described(path, manifest)
            if artifact:
                manifest.check_artifact(folder, artifact)
                path = folder / artifact.path
        return cls(str(path), runtimes.load(path, runtimes.RuntimeOptions(threads=threads)), manifest, artifact)

    def _run(self, signature: Signature, inputs: Arrays, outputs: Sequence[str], timeout_s: float) -> Arrays:
        return (self._twin or self._runtime).run(signature.name, inputs, outputs)

    def _ask_metadata(self, timeout_s: float) -> Metadata:
        if self._manifest is None or self._twin is None:
            return Metadata(Path(self.target).stem, None, self._runtime.signatures)
        signatures = {name: self._manifest.signatures[name] for name in self._twin.signatures()}
        return Metadata(self._manifest.model, self._manifest.version, signatures)

    def _ask_status(self, timeout_s: float) -> list[VersionStatus]:
        known = self._ask_metadata(timeout_s)
        engine = EngineUse(self._runtime.name, "the file itself, in this process", tuple(known.signatures))
        return [VersionStatus(known.version, "AVAILABLE", engines=(engine,))]

    @property
    def labels(self) -> tuple[str, ...]:
        """The manifest's labels."""
        return self._manifest.labels if self._manifest else ()

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The manifest's preprocessing."""
        return self._manifest.preprocessing if self._manifest else None

    def _close(self) -> None:
        self._runtime.close()


def _newest_version(folder: Path) -> Path:
    place = folder.resolve()  # for "." has no name
    store = Store(place.parent)
    if store.versions(place.name):
        return store.path(place.name)
    models = Store(folder).models()
    hint = (
        f"; it looks like a store: name one of its models, {', '.join(str(folder / m) for m in models)}"
        if models
        else ""
    )
    raise TargetError(f"target {str(folder)!r} is neither a version folder nor a model with versions{hint}")


def _described(file: Path, manifest: Manifest) -> Artifact | None:
    """The manifest's entry for a file beside it; None for a file that it does not list."""
    return next((artifact for artifact in manifest.artifacts if artifact.path == file.name), None)


def _choose(folder: Path, manifest: Manifest) -> Artifact:
    missing: MissingExtraError | None = None
    for kind, module in _PREFERRED:
        artifact = manifest.artifact(kind)
        if artifact is None:
            continue
        try:
            extras.load(module, f"running {folder}")
        except MissingExtraError as error:
            missing = missing or error
            continue
        return artifact
    if missing:
        raise missing
    raise ArtifactError(f"{folder} holds no artifact that can be run; its manifest lists none")
