"""Which engine answers which signature of a version folder, and why that one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from .. import extras, runtimes
from ..errors import ArtifactError, MissingExtraError
from ..manifest import FILE_NAME, Manifest
from ..runtimes import Device, RuntimeOptions
from ..runtimes.saved_model import ONEDNN_SWITCH
from ..twin import Twin
from ..wire import signatures as wire_signatures

RuntimeChoice = Literal["auto", "tensorflow", "onnx", "tflite"]
RUNTIME_CHOICES: tuple[RuntimeChoice, ...] = ("auto", "tensorflow", "onnx", "tflite")

# tf.saved_model.save adds this one; it returns nothing and TensorFlow Serving cannot run it either.
INIT_OP = "__saved_model_init_op"

# The package that runs a twin, its file where no manifest names one, and what people call it.
_TWINS = {
    "onnx": ("onnxruntime", "model.onnx", "ONNX"),
    "tflite": ("ai_edge_litert.interpreter", "model.tflite", "TFLite"),
}


@dataclass(frozen=True)
class LoadOptions:
    """How versions are loaded.

    ``auto`` answers a signature from a twin where the manifest proves parity for it, and from
    TensorFlow otherwise. ``threads`` of 0 is one thread for a twin and TensorFlow's own choice there.
    """

    runtime: RuntimeChoice = "auto"
    prefer_tflite: bool = False
    device: Device = "cpu"
    threads: int = 0
    inter_op_threads: int = 0
    tflite_pools: int = os.cpu_count() or 1
    gpu_memory_fraction: float = 0.0
    tags: tuple[str, ...] = ("serve",)

    @property
    def wants_tflite(self) -> bool:
        """Whether a TFLite file comes before the other engines."""
        return self.runtime == "tflite" or (self.runtime == "auto" and self.prefer_tflite)


@dataclass(frozen=True)
class Engine:
    """The engine of one signature: ``onnx``, ``tflite`` or ``tensorflow``, and why it was chosen."""

    runtime: str
    reason: str


class Backend(Protocol):
    """What runs signatures: a `Runtime`, or a `Twin` around one."""

    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """The same contract as `Runtime.run`."""

    def close(self) -> None:
        """Free the model."""


@dataclass
class Loaded:
    """A version folder in memory: its SignatureDefs, the engine of each, and what runs them."""

    signature_defs: Mapping[str, Any]
    engines: dict[str, Engine] = field(default_factory=dict)
    backends: dict[str, Backend] = field(default_factory=dict)

    def close(self) -> None:
        """Free all models."""
        for backend in self.backends.values():
            backend.close()


def load(folder: Path, options: LoadOptions) -> Loaded:
    """Load what is needed to answer every signature of a version folder.

    TensorFlow is imported only if a signature needs it. Raises `ArtifactError` if the folder cannot
    be loaded or the chosen runtime cannot answer, and `MissingExtraError` without the engine.
    """
    manifest = Manifest.read(folder) if (folder / FILE_NAME).is_file() else None
    bare = _bare_file(folder, manifest, options)
    # What is not the thing that was measured is not served; the twins are looked at when they are loaded.
    artifact = manifest.artifact(bare or "saved_model") if manifest else None
    if manifest and artifact:
        manifest.check_artifact(folder, artifact)
    if bare:
        return _load_bare(folder, bare, options)
    loaded = Loaded(wire_signatures.read_saved_model(folder, frozenset(options.tags)))
    try:
        reason = _load_twins(folder, manifest, options, loaded)
        rest = sorted(key for key in loaded.signature_defs if key not in loaded.engines and key != INIT_OP)
        if rest:
            if options.runtime in ("onnx", "tflite"):
                kind, names = _TWINS[options.runtime][2], ", ".join(rest)
                raise ArtifactError(
                    f"{folder} has no proven {kind} twin for the signatures {names} ({reason}); use --runtime auto"
                )
            _choose_kernels()
            loaded.backends["tensorflow"] = runtimes.load(folder, _runtime_options("tensorflow", options))
            loaded.engines.update(dict.fromkeys(rest, Engine("tensorflow", reason)))
    except BaseException:
        loaded.close()
        raise
    return loaded


def _bare_file(folder: Path, manifest: Manifest | None, options: LoadOptions) -> str | None:
    """The kind of a model file that is served by its own signatures, as no SavedModel stands behind it."""
    if not wire_signatures.is_saved_model(folder):
        kinds = ["tflite", "onnx"] if options.wants_tflite else ["onnx", "tflite"]
        allowed = kinds if options.runtime == "auto" else [kind for kind in kinds if kind == options.runtime]
        return next((kind for kind in allowed if (folder / _TWINS[kind][1]).is_file()), None)
    foreign = manifest is None or manifest.artifact("tflite") is None
    return "tflite" if options.wants_tflite and foreign and (folder / _TWINS["tflite"][1]).is_file() else None


def _load_bare(folder: Path, kind: str, options: LoadOptions) -> Loaded:
    file = _TWINS[kind][1]
    # As the original does with TFLite files: what the graph cannot take, the runtime refuses.
    runtime = runtimes.load(folder / file, replace(_runtime_options(kind, options), resize=True))
    definitions = {name: wire_signatures.to_signature_def(signature) for name, signature in runtime.signatures.items()}
    engine = Engine(kind, f"{file} is served by its own signatures")
    return Loaded(definitions, dict.fromkeys(definitions, engine), {kind: runtime})


def _load_twins(folder: Path, manifest: Manifest | None, options: LoadOptions, loaded: Loaded) -> str:
    """Give signatures to the twins that may answer them; returns why the others need TensorFlow."""
    if options.runtime == "tensorflow":
        return "--runtime tensorflow"
    if manifest is None:
        return f"no {FILE_NAME}"
    kinds = ["tflite"] if options.wants_tflite else []
    kinds += ["onnx"] if options.runtime in ("auto", "onnx") else []
    reasons = []
    for kind in kinds:
        artifact = manifest.artifact(kind)
        if artifact is None:
            reasons.append(f"no {_TWINS[kind][2]} twin")
            continue
        try:
            extras.load(_TWINS[kind][0], f"answering from the {_TWINS[kind][2]} twin")
        except MissingExtraError as error:
            if options.runtime == kind:
                raise
            reasons.append(str(error))
            continue
        manifest.check_artifact(folder, artifact)
        runtime = runtimes.load(folder / artifact.path, _runtime_options(kind, options))
        twin = Twin(manifest, runtime, artifact)
        loaded.backends[kind] = twin
        for name in twin.signatures():
            if artifact.proves(name) and name in loaded.signature_defs:
                loaded.engines.setdefault(name, Engine(kind, "the manifest proves parity"))
        reasons.append(f"no evidence for the {_TWINS[kind][2]} twin")
    return "; ".join(reasons)


def _runtime_options(kind: str, options: LoadOptions) -> RuntimeOptions:
    return RuntimeOptions(
        threads=options.threads or (0 if kind == "tensorflow" else 1),
        inter_op_threads=options.inter_op_threads,
        instances=options.tflite_pools if kind == "tflite" else 1,
        device=options.device,
        gpu_memory_fraction=options.gpu_memory_fraction,
        tags=options.tags,
    )


def _choose_kernels() -> None:
    """Have TensorFlow start without oneDNN, unless the environment says otherwise.

    Its kernels are faster by a fifth at batch 1, but they fail on an empty batch and end the process
    at some wrong shapes, which a server must survive. TensorFlow reads the switch when it is imported.
    """
    if "tensorflow" not in sys.modules:
        os.environ.setdefault(ONEDNN_SWITCH, "0")
