"""The ONNX twin: answers a SavedModel's signatures without TensorFlow.

A signature that takes encoded pictures or tf.Examples is the base signature with a prologue; here
the prologue runs outside the graph, and the base signature in whatever runtime is given. Export
measures this very composition, the server answers with it, and on-device clients run it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import preprocess
from .errors import InputError, InternalError
from .manifest import Derivation, Manifest
from .runtimes import Runtime
from .runtimes.base import check_names, select_outputs
from .wire import examples

Arrays = Mapping[str, NDArray[Any]]


class Twin:
    """Runs the signatures of a manifest on a runtime that has only the base signatures."""

    def __init__(self, manifest: Manifest, runtime: Runtime) -> None:
        self._manifest = manifest
        self.runtime = runtime

    def signatures(self) -> list[str]:
        """Names of the signatures that can be answered: the runtime's own and those derived from them."""
        own = [name for name in self._manifest.signatures if name in self.runtime.signatures]
        derived = [name for name, how in self._manifest.derivations.items() if how.signature in own]
        return own + derived

    def run(self, signature: str, inputs: Arrays, outputs: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        """Run one signature of the manifest, batch first; the same contract as `Runtime.run`."""
        how = self._manifest.derivations.get(signature)
        if how is None:
            return self.runtime.run(signature, inputs, outputs)
        spec = self._manifest.signatures[signature]
        check_names(spec, inputs)
        wanted = select_outputs(spec, outputs)
        ((key, given),) = inputs.items()
        if given.dtype.kind != "O" or given.ndim != 1:
            raise InputError(
                f"input {key!r} has dtype {given.dtype} and shape {given.shape}; expected {spec.inputs[key]}"
            )
        base = self.runtime.run(how.signature, self._prologue(how, given))
        rows = len(given)
        results = {name: base[source] for name, source in how.outputs.items()}
        if how.labels_as:
            labels = np.array([label.encode() for label in self._manifest.labels], dtype=object)
            results[how.labels_as] = np.broadcast_to(labels, (rows, len(labels)))
        return {name: results[name] for name in wanted}

    def close(self) -> None:
        """Free the runtime."""
        self.runtime.close()

    def _prologue(self, how: Derivation, given: NDArray[Any]) -> Arrays:
        specs = self._manifest.signatures[how.signature].inputs
        if how.prologue == "parse_example":
            return examples.decode(given.ravel().tolist(), specs)
        (spec,) = specs.values()
        if self._manifest.preprocessing is None or spec.shape is None:
            raise InternalError(f"the manifest of {self._manifest.model!r} does not say how pictures are prepared")
        batch = preprocess.decode_images(given, self._manifest.preprocessing)
        return {spec.name: batch.reshape(len(batch), *(size or 0 for size in spec.shape[1:]))}
