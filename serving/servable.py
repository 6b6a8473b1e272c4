"""One loaded version of a model: its signatures, and for each the runtime that answers it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from .. import extras, runtimes
from ..errors import ArtifactError, MissingExtraError, OutOfRangeError
from ..manifest import FILE_NAME, Artifact, Manifest
from ..runtimes.saved_model import ONEDNN_SWITCH
from ..signature import Signature
from ..twin import Twin
from ..wire import signatures as wire_signatures

RuntimeChoice = Literal["auto", "tensorflow", "onnx"]
RUNTIME_CHOICES: tuple[RuntimeChoice, ...] = ("auto", "tensorflow", "onnx")

# tf.saved_model.save adds this one; it returns nothing and TensorFlow Serving cannot run it either.
INIT_OP = "__saved_model_init_op"


@dataclass(frozen=True)
class Engine:
    """Which runtime answers a signature, and why that one."""

    runtime: str
    reason: str


class Servable:
    """A version that is ready to be called; `run` may be called from several threads at once."""

    def __init__(
        self,
        name: str,
        version: int,
        signature_defs: Mapping[str, Any],
        engines: Mapping[str, Engine],
        tensorflow: runtimes.Runtime | None,
        twin: Twin | None,
    ) -> None:
        self.name = name
        self.version = version
        self.signature_defs = signature_defs
        self.signatures: Mapping[str, Signature] = {
            key: wire_signatures.from_signature_def(key, message) for key, message in signature_defs.items()
        }
        self.engines = engines
        self._tensorflow = tensorflow
        self._twin = twin

    @classmethod
    def load(cls, name: str, version: int, folder: Path, choice: RuntimeChoice = "auto") -> Servable:
        """Load a version folder.

        ``auto`` answers a signature from the ONNX twin where the manifest proves parity for it, and
        from TensorFlow otherwise; TensorFlow is imported only if a signature needs it. Raises
        `ArtifactError` if the folder cannot be loaded and `MissingExtraError` without the engine.
        """
        signature_defs = wire_signatures.read_saved_model(folder)
        twin, proven, reason = _load_twin(folder) if choice != "tensorflow" else (None, set(), "--runtime tensorflow")
        engines = {}
        for key in signature_defs:
            if key in proven:
                engines[key] = Engine("onnx", "the manifest proves parity")
            elif key != INIT_OP:
                engines[key] = Engine("tensorflow", reason)
        unproven = sorted(key for key, engine in engines.items() if engine.runtime == "tensorflow")
        tensorflow = None
        if unproven:
            if choice == "onnx":
                raise ArtifactError(
                    f"{folder} has no proven ONNX twin for the signatures {', '.join(unproven)} ({reason}); "
                    "use --runtime auto"
                )
            _choose_kernels()
            tensorflow = runtimes.load(folder)
        return cls(name, version, signature_defs, engines, tensorflow, twin)

    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Run a signature on checked inputs and return the named outputs."""
        engine = self.engines.get(signature)
        if engine is None:
            raise OutOfRangeError("Node 'NoOp' (type: 'NoOp', num of outputs: 0) does not have output 0")
        if engine.runtime == "onnx" and self._twin:
            return self._twin.run(signature, inputs, outputs)
        assert self._tensorflow is not None
        return self._tensorflow.run(signature, inputs, outputs)

    def close(self) -> None:
        """Free the runtimes."""
        if self._tensorflow:
            self._tensorflow.close()
        if self._twin:
            self._twin.runtime.close()


def _choose_kernels() -> None:
    """Have TensorFlow start without oneDNN, unless the environment says otherwise.

    Its kernels are faster by a fifth at batch 1, but they fail on an empty batch and end the process
    at some wrong shapes, which a server must survive. TensorFlow reads the switch when it is imported.
    """
    if "tensorflow" not in sys.modules:
        os.environ.setdefault(ONEDNN_SWITCH, "0")


def _load_twin(folder: Path) -> tuple[Twin | None, set[str], str]:
    """The twin, the signatures that it may answer, and why it may not answer the others."""
    if not (folder / FILE_NAME).is_file():
        return None, set(), f"no {FILE_NAME}"
    manifest = Manifest.read(folder)
    artifact: Artifact | None = manifest.artifact("onnx")
    if artifact is None:
        return None, set(), "no ONNX twin"
    try:
        extras.load("onnxruntime", "answering from the ONNX twin")
    except MissingExtraError as error:
        return None, set(), str(error)
    manifest.check_artifact(folder, artifact)
    twin = Twin(manifest, runtimes.load(folder / artifact.path, threads=1))
    proven = {name for name in twin.signatures() if artifact.proves(name)}
    return twin, proven, "no evidence for the ONNX twin"
