"""One loaded version of a model: its signatures, and for each the engine that answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import OutOfRangeError
from ..signature import Signature
from ..wire import signatures as wire_signatures
from ..wire import tensors
from .engines import Engine, Loaded, LoadOptions, load


class Servable:
    """A version that is ready to be called; `run` may be called from several threads at once."""

    def __init__(self, name: str, version: int, loaded: Loaded) -> None:
        self.name = name
        self.version = version
        self.signature_defs = loaded.signature_defs
        self.signatures: Mapping[str, Signature] = {
            key: wire_signatures.from_signature_def(key, message) for key, message in loaded.signature_defs.items()
        }
        # What the interface calls the dtype of each input; None for one that it cannot carry.
        self.input_dtypes: Mapping[str, Mapping[str, tensors.DType | None]] = {
            key: {name: tensors.BY_NAME.get(spec.dtype) for name, spec in signature.inputs.items()}
            for key, signature in self.signatures.items()
        }
        # What an input is where a request leaves it out: signature → input → value.
        self.defaults: Mapping[str, Mapping[str, NDArray[Any]]] = {
            key: {alias: tensors.decode(value) for alias, value in message.defaults.items()}
            for key, message in loaded.signature_defs.items()
        }
        self.engines: Mapping[str, Engine] = loaded.engines
        self._loaded = loaded

    @classmethod
    def load(cls, name: str, version: int, folder: Path, options: LoadOptions | None = None) -> Servable:
        """Load a version folder; raises what `engines.load` raises."""
        return cls(name, version, load(folder, options or LoadOptions()))

    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Run a signature on checked inputs and return the named outputs."""
        engine = self.engines.get(signature)
        if engine is None:
            raise OutOfRangeError("Node 'NoOp' (type: 'NoOp', num of outputs: 0) does not have output 0")
        return self._loaded.backends[engine.runtime].run(signature, inputs, outputs)

    def close(self) -> None:
        """Free the models."""
        self._loaded.close()
