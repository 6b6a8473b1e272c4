"""SavedModels in TensorFlow, through a session as TensorFlow Serving itself runs them.

A session callable answers a small model in half the time of a TF2 signature function, loads TF1 and
TF2 SavedModels alike, and gives the error texts that TensorFlow Serving gives.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .. import extras
from ..errors import ArtifactError, InputError, UnavailableError, UnimplementedError, error_for_code
from ..signature import Signature, TensorSpec
from .base import DEFAULT_OPTIONS, Runtime, RuntimeOptions, check_names, select_outputs

ONEDNN_SWITCH = "TF_ENABLE_ONEDNN_OPTS"


class SavedModelRuntime(Runtime):
    """One SavedModel folder, one MetaGraph of it (by default tagged ``serve``); TF1 and TF2, any signature."""

    name = "tensorflow"

    def __init__(self, tf: Any, session: Any, signature_defs: Mapping[str, Any]) -> None:
        self._tf = tf
        # Shapes are left to the kernels, as TensorFlow Serving does; but oneDNN's convolutions end the
        # process at an input of too few dimensions.
        self._onednn = os.environ.get(ONEDNN_SWITCH) != "0"
        self._callable_options = import_module("tensorflow.core.protobuf.config_pb2").CallableOptions
        self._session: Any = session
        self._callables: dict[tuple[str, tuple[str, ...]], Callable[..., list[NDArray[Any] | bytes]]] = {}
        self._lock = threading.Lock()
        self.signatures = {
            name: Signature(
                inputs={key: _spec(tf, key, definition.inputs[key]) for key in sorted(definition.inputs)},
                outputs={key: _spec(tf, key, definition.outputs[key]) for key in sorted(definition.outputs)},
                method_name=definition.method_name,
                name=name,
            )
            for name, definition in signature_defs.items()
        }

    @classmethod
    def load(cls, path: Path, options: RuntimeOptions = DEFAULT_OPTIONS) -> Self:
        tf = extras.load("tensorflow", "running a SavedModel")
        if set("[]") & set(str(path)):
            raise ArtifactError(f"TensorFlow cannot read a path with '[' or ']': {path}; rename the folder")
        v1 = tf.compat.v1
        if options.device == "gpu" and not tf.config.list_physical_devices("GPU"):
            raise UnimplementedError("TensorFlow finds no GPU here; use --device cpu")
        config = v1.ConfigProto(
            intra_op_parallelism_threads=options.threads,
            inter_op_parallelism_threads=options.inter_op_threads,
            device_count={} if options.device == "gpu" else {"GPU": 0},
            gpu_options=v1.GPUOptions(per_process_gpu_memory_fraction=options.gpu_memory_fraction),
        )
        session = v1.Session(graph=tf.Graph(), config=config)
        try:
            with session.graph.as_default():
                meta_graph = v1.saved_model.loader.load(session, list(options.tags), str(path))
        except (tf.errors.OpError, OSError, RuntimeError, ValueError) as error:
            session.close()
            reason = " ".join(str(error).split())
            raise ArtifactError(f"{path} is not a SavedModel that TensorFlow can load: {reason}") from error
        return cls(tf, session, meta_graph.signature_def)

    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        spec = self._signature(signature)
        check_names(spec, inputs)
        wanted = select_outputs(spec, outputs)
        if self._onednn:
            for name, array in inputs.items():
                if len(spec.inputs[name].shape or array.shape) != array.ndim:
                    raise InputError(f"input {name!r} has shape {array.shape}; expected {spec.inputs[name]}")
        fetched = tuple(sorted(wanted))  # one callable for each set of outputs, whatever their order
        call = self._callable(spec, fetched)
        try:
            results = call(*(inputs[name] for name in spec.inputs))
        except self._tf.errors.OpError as error:
            raise error_for_code(error.error_code, error.message) from error
        except UnicodeDecodeError as error:
            # A text that quotes bytes of the inputs; TensorFlow fails to hand it on, and its code is lost.
            raise InputError(error.object.decode("utf-8", "replace")) from error
        # A scalar string comes back as plain bytes.
        arrays = (np.array(value, object) if isinstance(value, bytes) else value for value in results)
        by_name = dict(zip(fetched, arrays, strict=True))
        return {name: by_name[name] for name in wanted}

    def _callable(self, spec: Signature, wanted: tuple[str, ...]) -> Callable[..., list[NDArray[Any] | bytes]]:
        key = (spec.name, wanted)
        call = self._callables.get(key)
        if call is None:
            with self._lock:
                if self._session is None:
                    raise UnavailableError("the model was unloaded")
                # Not the public make_callable: that is session.run in disguise, at twice the time, and it
                # refuses shapes that differ from the placeholder's, which TensorFlow Serving leaves to the kernels.
                call = self._session._make_callable_from_options(
                    self._callable_options(
                        feed=[item.tensor_name for item in spec.inputs.values()],
                        fetch=[spec.outputs[name].tensor_name for name in wanted],
                    )
                )
                self._callables[key] = call
        return call

    def close(self) -> None:
        with self._lock:
            if self._session is not None:
                self._session.close()
                self._session = None
                self._callables.clear()


def _spec(tf: Any, name: str, info: Any) -> TensorSpec:
    dtype = tf.dtypes.as_dtype(info.dtype).name if info.dtype else "invalid"
    shape = (
        None
        if info.tensor_shape.unknown_rank
        else tuple(None if dim.size < 0 else int(dim.size) for dim in info.tensor_shape.dim)
    )
    return TensorSpec(name, dtype, shape, tensor_name=info.name)
