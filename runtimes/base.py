"""The `Runtime` interface, and the choice of an engine by what a path holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from numpy.typing import NDArray

from ..errors import ArtifactError, InputError, NotFoundError, nearest
from ..signature import Signature


class Runtime(ABC):
    """One loaded model file.

    ``signatures`` carry the signature's own names, whatever the file calls its tensors. `run` may be
    called from several threads at once.
    """

    name: ClassVar[str]
    signatures: Mapping[str, Signature]

    @classmethod
    @abstractmethod
    def load(cls, path: Path, *, threads: int = 0) -> Self:
        """Load a file or folder; ``threads`` bounds the threads of one run (0: the engine decides).

        Raises `ArtifactError` if it cannot be loaded and `MissingExtraError` without the engine.
        """

    @abstractmethod
    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """Run one signature on named arrays and return the named outputs (all where none is named).

        Raises `NotFoundError` for an unknown signature or output, `InputError` for inputs that do not
        fit, and the error of the engine's own status otherwise.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model; calling it twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _signature(self, name: str) -> Signature:
        if name not in self.signatures:
            raise NotFoundError(f"no signature {name!r}; {nearest(name, self.signatures)}")
        return self.signatures[name]


def select_outputs(signature: Signature, outputs: Sequence[str]) -> list[str]:
    """The output names to fetch; `NotFoundError` for one that the signature does not have."""
    for name in outputs:
        if name not in signature.outputs:
            raise NotFoundError(
                f"signature {signature.name!r} has no output {name!r}; {nearest(name, signature.outputs)}"
            )
    return list(outputs or signature.outputs)


def check_names(signature: Signature, inputs: Mapping[str, Any]) -> None:
    """Raise `InputError` unless exactly the signature's inputs are given."""
    if inputs.keys() != signature.inputs.keys():
        raise InputError(
            f"signature {signature.name!r} takes the inputs {', '.join(sorted(signature.inputs)) or 'none'}; "
            f"given: {', '.join(sorted(inputs)) or 'none'}"
        )


_ENGINES = {".tflite": "litert:LiteRtRuntime", ".onnx": "onnx:OnnxRuntime"}


def load(path: Path | str, *, threads: int = 0) -> Runtime:
    """Load a ``.tflite`` file, an ``.onnx`` file or a SavedModel folder with its engine.

    Raises `ArtifactError` if the path is none of them.
    """
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"there is no model file {path}")
    engine = "saved_model:SavedModelRuntime" if path.is_dir() else _ENGINES.get(path.suffix)
    if engine is None or (path.is_dir() and not (path / "saved_model.pb").is_file()):
        raise ArtifactError(f"{path} is not a model: expected a .tflite file, an .onnx file or a SavedModel folder")
    module, name = engine.split(":")
    runtime: type[Runtime] = getattr(import_module(f".{module}", __package__), name)
    return runtime.load(path, threads=threads)
