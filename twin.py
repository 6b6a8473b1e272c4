"""A version's signatures on one of its files: without TensorFlow, and with one interface for all files.

A signature that takes encoded pictures or tf.Examples is the base signature with a prologue; here
the prologue runs outside the graph, and the base signature in whatever runtime is given. A file that
takes integers for real numbers gets them, and one that takes one row at a time gets rows. Export
measures this very composition, the server answers with it, and on-device clients run it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import preprocess
from .errors import InputError, InternalError
from .manifest import Artifact, Derivation, Manifest
from .runtimes import Runtime
from .runtimes.base import check_names, select_outputs
from .signature import TensorSpec
from .wire import examples

Arrays = Mapping[str, NDArray[Any]]


class Twin:
    """Runs the signatures of a manifest on a runtime that has only the base signatures."""

    def __init__(self, manifest: Manifest, runtime: Runtime, artifact: Artifact | None = None) -> None:
        """``artifact`` is the manifest's entry for the file; without it, the file's own names count."""
        self._manifest = manifest
        self.runtime = runtime
        self._names = {name: name for name in runtime.signatures}
        if artifact and len(artifact.signatures) == len(runtime.signatures) == 1:
            # An ONNX file has one graph and no name for it.
            self._names = {artifact.signatures[0]: next(iter(runtime.signatures))}
        self._rows = int(artifact.batch) if artifact and artifact.batch != "dynamic" else None
        # Most files take and give what the manifest promises, and a server asks them for every request.
        self._plain = {name for name in self._names if not self._rows and not self._stores_integers(name)}

    def _stores_integers(self, signature: str) -> bool:
        """Whether the file has integers where the manifest promises real numbers."""
        promised = self._manifest.signatures.get(signature)
        own = self.runtime.signatures[self._names[signature]]
        if promised is None:
            return False
        specs = [(own.inputs.get(name), spec) for name, spec in promised.inputs.items()]
        specs += [(own.outputs.get(name), spec) for name, spec in promised.outputs.items()]
        return any(mine is not None and mine.quantization and mine.dtype != spec.dtype for mine, spec in specs)

    def signatures(self) -> list[str]:
        """Names of the signatures that can be answered: the runtime's own and those derived from them."""
        own = [name for name in self._manifest.signatures if name in self._names]
        derived = [name for name, how in self._manifest.derivations.items() if how.signature in own]
        return own + derived

    def run(self, signature: str, inputs: Arrays, outputs: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        """Run one signature of the manifest, batch first; the same contract as `Runtime.run`."""
        how = self._manifest.derivations.get(signature)
        if how is None:
            return self._run(signature, inputs, outputs)
        spec = self._manifest.signatures[signature]
        check_names(spec, inputs)
        wanted = select_outputs(spec, outputs)
        ((key, given),) = inputs.items()
        if given.dtype.kind != "O" or given.ndim != 1:
            raise InputError(
                f"input {key!r} has dtype {given.dtype} and shape {given.shape}; expected {spec.inputs[key]}"
            )
        base = self._run(how.signature, self._prologue(how, given))
        rows = len(given)
        results = {name: base[source] for name, source in how.outputs.items()}
        if how.labels_as:
            labels = np.array([label.encode() for label in self._manifest.labels], dtype=object)
            results[how.labels_as] = np.broadcast_to(labels, (rows, len(labels)))
        return {name: results[name] for name in wanted}

    def close(self) -> None:
        """Free the runtime."""
        self.runtime.close()

    def _run(self, signature: str, inputs: Arrays, outputs: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        name = self._names.get(signature, signature)
        if signature in self._plain or name not in self.runtime.signatures:
            return self.runtime.run(name, inputs, outputs)
        taken, promised = self.runtime.signatures[name], self._manifest.signatures[signature]
        given = {
            key: _quantize(array, taken.inputs.get(key), promised.inputs.get(key)) for key, array in inputs.items()
        }
        answers = self._by_rows(name, given, outputs) if self._rows else self.runtime.run(name, given, outputs)
        return {
            key: _dequantize(array, taken.outputs[key], promised.outputs.get(key)) for key, array in answers.items()
        }

    def _by_rows(self, name: str, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """As many runs as it takes, the last one filled up with zeros; one for no rows, to have the outputs."""
        rows = self._rows or 1
        count = len(next(iter(inputs.values()), ()))
        parts = []
        for start in range(0, max(count, 1), rows):
            chunk = {}
            for key, array in inputs.items():
                chunk[key] = np.zeros((rows, *array.shape[1:]), array.dtype)
                chunk[key][: count - start] = array[start : start + rows]
            parts.append(self.runtime.run(name, chunk, outputs))
        return {key: np.concatenate([part[key] for part in parts])[:count] for key in parts[0]}

    def _prologue(self, how: Derivation, given: NDArray[Any]) -> Arrays:
        specs = self._manifest.signatures[how.signature].inputs
        if how.prologue == "parse_example":
            return examples.decode(given.ravel().tolist(), specs)
        (spec,) = specs.values()
        if self._manifest.preprocessing is None or spec.shape is None:
            raise InternalError(f"the manifest of {self._manifest.model!r} does not say how pictures are prepared")
        batch = preprocess.decode_images(given, self._manifest.preprocessing)
        return {spec.name: batch.reshape(len(batch), *(size or 0 for size in spec.shape[1:]))}


def _quantize(array: NDArray[Any], taken: TensorSpec | None, promised: TensorSpec | None) -> NDArray[Any]:
    """Real numbers as the integers that the file takes for them."""
    if taken is None or promised is None or taken.quantization is None or array.dtype != promised.dtype:
        return array
    if taken.dtype == promised.dtype:
        return array
    scale, zero_point = taken.quantization
    limits = np.iinfo(taken.dtype)
    stored: NDArray[Any] = np.clip(np.rint(array / scale) + zero_point, limits.min, limits.max).astype(taken.dtype)
    return stored


def _dequantize(array: NDArray[Any], given: TensorSpec, promised: TensorSpec | None) -> NDArray[Any]:
    """The integers that the file answers as the real numbers that they stand for."""
    if promised is None or given.quantization is None or given.dtype == promised.dtype:
        return array
    scale, zero_point = given.quantization
    real: NDArray[Any] = ((array.astype(np.float64) - zero_point) * scale).astype(promised.dtype)
    return real
