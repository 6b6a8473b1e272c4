"""One loaded version of a model: its signatures, and for each the engine that answers it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

from ..errors import OutOfRangeError
from ..signature import Signature
from ..wire import signatures as wire_signatures
from ..wire import tensors
from .engines import Engine, Loaded, LoadOptions, load

if TYPE_CHECKING:
    from .batch_queue import Batcher


class Servable:
    """A version that is ready to be called; `run` may be called from several threads at once.

    Who calls it does so between `enter` and the end of a with-block, so that it is not unloaded under
    a request. ``batcher`` joins runs of different requests, where that is asked for.
    """

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
        self.batcher: Batcher | None = None
        self._loaded = loaded
        self._lock = threading.Lock()
        self._users = 0
        self._on_idle: Callable[[], None] | None = None

    @classmethod
    def load(cls, name: str, version: int, folder: Path, options: LoadOptions | None = None) -> Servable:
        """Load a version folder; raises what `engines.load` raises."""
        loaded = load(folder, options or LoadOptions())
        try:
            return cls(name, version, loaded)
        except BaseException:
            loaded.close()
            raise

    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Run a signature on checked inputs and return the named outputs."""
        engine = self.engines.get(signature)
        if engine is None:
            raise OutOfRangeError("Node 'NoOp' (type: 'NoOp', num of outputs: 0) does not have output 0")
        return self._loaded.backends[engine.runtime].run(signature, inputs, outputs)

    def enter(self) -> bool:
        """Count one more user, who leaves with a with-block; False where it is being unloaded."""
        with self._lock:
            if self._on_idle:
                return False
            self._users += 1
            return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self._users -= 1
            on_idle = None if self._users else self._on_idle
        if on_idle:
            on_idle()

    def retire(self, on_idle: Callable[[], None]) -> None:
        """Let nobody enter any more, and call ``on_idle`` once when the last user has left."""
        with self._lock:
            self._on_idle = on_idle
            idle = not self._users
        if idle:
            on_idle()

    def close(self) -> None:
        """Free the models."""
        if self.batcher:
            self.batcher.close()
        self._loaded.close()
