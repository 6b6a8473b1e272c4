"""TFLite files in LiteRT's interpreter, with the XNNPACK delegate that it applies by default."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .. import extras
from ..errors import ArtifactError, InputError, InternalError, UnavailableError
from ..signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from .base import Runtime, check_names, select_outputs


class LiteRtRuntime(Runtime):
    """One TFLite file.

    Its signatures are called through the interpreter's signature runners; a file without any gets
    one ``serving_default`` with the tensors' names, stripped of ``:0``.
    """

    name = "litert"

    def __init__(self, interpreter: Any) -> None:
        self._interpreter: Any = interpreter
        self._lock = threading.Lock()
        self._runners = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}
        if self._runners:
            self.signatures = {
                name: Signature(
                    inputs={key: _spec(key, item) for key, item in runner.get_input_details().items()},
                    outputs={key: _spec(key, item) for key, item in runner.get_output_details().items()},
                    name=name,
                )
                for name, runner in self._runners.items()
            }
        else:
            ins = [_spec(_alias(item["name"]), item) for item in interpreter.get_input_details()]
            outs = [_spec(_alias(item["name"]), item) for item in interpreter.get_output_details()]
            self.signatures = {DEFAULT_SIGNATURE: Signature({s.name: s for s in ins}, {s.name: s for s in outs})}

    @classmethod
    def load(cls, path: Path, *, threads: int = 0) -> Self:
        litert = extras.load("ai_edge_litert.interpreter", "running a TFLite file")
        try:
            content = path.read_bytes()
            interpreter = litert.Interpreter(model_content=content, num_threads=threads or None)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError, OSError) as error:
            raise ArtifactError(f"{path} is not a TFLite file that LiteRT can load: {_first_line(error)}") from error
        return cls(interpreter)

    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        spec = self._signature(signature)
        check_names(spec, inputs)
        wanted = select_outputs(spec, outputs)
        for name, array in inputs.items():
            if not spec.inputs[name].accepts_shape(array.shape):
                raise InputError(f"input {name!r} has shape {array.shape}; expected {spec.inputs[name]}")
            if array.dtype != spec.inputs[name].dtype:
                raise InputError(f"input {name!r} has dtype {array.dtype}; expected {spec.inputs[name]}")
        with self._lock:
            if self._interpreter is None:
                raise UnavailableError("the model was unloaded")
            try:
                results = self._runners[signature](**inputs) if self._runners else self._run_unsigned(inputs)
            except (ValueError, RuntimeError) as error:
                raise InternalError(f"LiteRT failed on signature {signature!r}: {_first_line(error)}") from error
        return {name: results[name] for name in wanted}

    def _run_unsigned(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        details = {_alias(item["name"]): item for item in self._interpreter.get_input_details()}
        if any(tuple(details[name]["shape"]) != array.shape for name, array in inputs.items()):
            for name, array in inputs.items():
                self._interpreter.resize_tensor_input(details[name]["index"], array.shape, strict=True)
            self._interpreter.allocate_tensors()
        for name, array in inputs.items():
            self._interpreter.set_tensor(details[name]["index"], array)
        self._interpreter.invoke()
        return {
            _alias(item["name"]): self._interpreter.get_tensor(item["index"])
            for item in self._interpreter.get_output_details()
        }

    def close(self) -> None:
        with self._lock:
            self._runners = {}
            self._interpreter = None


def _alias(tensor: str) -> str:
    return tensor.rsplit(":", 1)[0]


def _spec(name: str, details: Mapping[str, Any]) -> TensorSpec:
    sizes = details["shape_signature"] if len(details["shape_signature"]) else details["shape"]
    shape = tuple(None if size < 0 else int(size) for size in sizes)
    dtype = "string" if details["dtype"] in (np.bytes_, np.object_) else np.dtype(details["dtype"]).name
    return TensorSpec(name, dtype, shape, tensor_name=details["name"])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
