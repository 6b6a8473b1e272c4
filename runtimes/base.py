"""The `Runtime` interface, and the choice of an engine by what a path holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

from numpy.typing import NDArray

from ..errors import ArtifactError, InputError, NotFoundError, nearest
from ..signature import Signature

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class RuntimeOptions:
    """How an engine runs a model; 0 leaves a number to the engine.

    ``threads`` bounds the threads within one operation and ``inter_op_threads`` the operations that
    TensorFlow runs at a time. ``instances`` is how many runs of a TFLite model may overlap, and
    ``resize`` has such a model try batches of other sizes than the one that it declares.
    ``gpu_memory_fraction`` and ``tags`` (of the MetaGraph to load) are TensorFlow's.
    """

    threads: int = 0
    inter_op_threads: int = 0
    instances: int = 1
    resize: bool = False
    device: Device = "cpu"
    gpu_memory_fraction: float = 0.0
    tags: tuple[str, ...] = ("serve",)


DEFAULT_OPTIONS = RuntimeOptions()


class Runtime(ABC):
    """One loaded model file.

    ``signatures`` carry the signature's own names, whatever the file calls its tensors. `run` may be
    called from several threads at once.
    """

    name: ClassVar[str]
    signatures: Mapping[str, Signature]

    @classmethod
    @abstractmethod
    def load(cls, path: Path, options: RuntimeOptions = DEFAULT_OPTIONS) -> Self:
        """Load a file or folder.

        Raises `ArtifactError` if it cannot be loaded, `MissingExtraError` without the engine, and
        `UnimplementedError` if the engine has nothing for the device.
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


# What makes a folder a SavedModel: the graph, in binary or in text form.
SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")

_ENGINES = {".tflite": "litert:LiteRtRuntime", ".onnx": "onnx:OnnxRuntime"}


def load(path: Path | str, options: RuntimeOptions = DEFAULT_OPTIONS) -> Runtime:
    """Load a ``.tflite`` file, an ``.onnx`` file or a SavedModel folder with its engine.

    Raises `ArtifactError` if the path is none of them.
    """
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"there is no model file {path}")
    engine = "saved_model:SavedModelRuntime" if path.is_dir() else _ENGINES.get(path.suffix)
    if engine is None or (path.is_dir() and not any((path / file).is_file() for file in SAVED_MODEL_FILES)):
        raise ArtifactError(f"{path} is not a model: expected a .tflite file, an .onnx file or a SavedModel folder")
    module, name = engine.split(":")
    runtime: type[Runtime] = getattr(import_module(f".{module}", __package__), name)
    return runtime.load(path, options)
