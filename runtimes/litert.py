"""TFLite files in LiteRT's interpreter, with the XNNPACK delegate that it applies by default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .. import extras
from ..errors import ArtifactError, InputError, InternalError, UnavailableError, UnimplementedError
from ..signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from .base import DEFAULT_OPTIONS, Runtime, RuntimeOptions, check_names, select_outputs


class LiteRtRuntime(Runtime):
    """One TFLite file.

    Its signatures are called through the interpreter's signature runners; a file without any gets
    one ``serving_default`` with the tensors' names, stripped of ``:0``. An interpreter runs one
    request at a time; ``RuntimeOptions.instances`` says how many there are.
    """

    name = "litert"

    def __init__(self, interpreters: Sequence[Any], *, resize: bool = False) -> None:
        self._resize = resize
        self._free: SimpleQueue[_Interpreter | None] = SimpleQueue()
        self._closed = False
        instances = [_Interpreter(interpreter) for interpreter in interpreters]
        self.signatures = instances[0].signatures()
        for instance in instances:
            self._free.put(instance)

    @classmethod
    def load(cls, path: Path, options: RuntimeOptions = DEFAULT_OPTIONS) -> Self:
        litert = extras.load("ai_edge_litert.interpreter", "running a TFLite file")
        if options.device == "gpu":
            raise UnimplementedError("LiteRT runs on the CPU only; use --device cpu")
        interpreters = []
        try:
            content = path.read_bytes()
            for _ in range(options.instances):
                interpreter = litert.Interpreter(model_content=content, num_threads=options.threads or None)
                if not _is_open(interpreter):  # of which no size is known before the first run
                    interpreter.allocate_tensors()
                interpreters.append(interpreter)
        except (ValueError, RuntimeError, OSError) as error:
            raise ArtifactError(f"{path} is not a TFLite file that LiteRT can load: {_first_line(error)}") from error
        return cls(interpreters, resize=options.resize)

    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        spec = self._signature(signature)
        check_names(spec, inputs)
        wanted = select_outputs(spec, outputs)
        for name, array in inputs.items():
            want = spec.inputs[name]
            if self._resize and want.shape is not None and array.ndim:
                want = TensorSpec(want.name, want.dtype, (None, *want.shape[1:]))
            if not want.accepts_shape(array.shape):
                raise InputError(f"input {name!r} has shape {array.shape}; expected {spec.inputs[name]}")
            if array.dtype != spec.inputs[name].dtype:
                raise InputError(f"input {name!r} has dtype {array.dtype}; expected {spec.inputs[name]}")
        with self._interpreter() as interpreter:
            try:
                results = interpreter.run(signature, inputs)
            except (ValueError, RuntimeError) as error:
                raise InternalError(f"LiteRT failed on signature {signature!r}: {_first_line(error)}") from error
        return {name: results[name] for name in wanted}

    @contextmanager
    def _interpreter(self) -> Iterator[_Interpreter]:
        """A free interpreter, waited for; `UnavailableError` when the model was unloaded."""
        if self._closed:
            raise UnavailableError("the model was unloaded")
        interpreter = self._free.get()
        if interpreter is None:
            self._free.put(None)  # for the next one that waits
            raise UnavailableError("the model was unloaded")
        try:
            yield interpreter
        finally:
            if not self._closed:
                self._free.put(interpreter)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            with suppress(Empty):  # one that is in use is dropped by its user
                while True:
                    self._free.get_nowait()
            self._free.put(None)


class _Interpreter:
    """One interpreter with its signature runners; used by one thread at a time."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        self._runners = {name: interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()}

    def signatures(self) -> dict[str, Signature]:
        if not self._runners:
            ins = [_spec(_alias(item["name"]), item) for item in self._interpreter.get_input_details()]
            outs = [_spec(_alias(item["name"]), item) for item in self._interpreter.get_output_details()]
            return {DEFAULT_SIGNATURE: Signature({s.name: s for s in ins}, {s.name: s for s in outs})}
        return {
            name: Signature(
                inputs={key: _spec(key, item) for key, item in runner.get_input_details().items()},
                outputs={key: _spec(key, item) for key, item in runner.get_output_details().items()},
                name=name,
            )
            for name, runner in self._runners.items()
        }

    def run(self, signature: str, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        if self._runners:
            results: Mapping[str, NDArray[Any]] = self._runners[signature](**inputs)
            return results
        details = {_alias(item["name"]): item for item in self._interpreter.get_input_details()}
        if any(tuple(details[name]["shape"]) != array.shape for name, array in inputs.items()):
            for name, array in inputs.items():
                self._interpreter.resize_tensor_input(details[name]["index"], array.shape)
            self._interpreter.allocate_tensors()
        for name, array in inputs.items():
            self._interpreter.set_tensor(details[name]["index"], array)
        self._interpreter.invoke()
        return {
            _alias(item["name"]): self._interpreter.get_tensor(item["index"])
            for item in self._interpreter.get_output_details()
        }


def _is_open(interpreter: Any) -> bool:
    """Whether an input leaves more open than its batch."""
    return any((details["shape_signature"][1:] < 0).any() for details in interpreter.get_input_details())


def _alias(tensor: str) -> str:
    return tensor.rsplit(":", 1)[0]


def _spec(name: str, details: Mapping[str, Any]) -> TensorSpec:
    sizes = details["shape_signature"] if len(details["shape_signature"]) else details["shape"]
    shape = tuple(None if size < 0 else int(size) for size in sizes)
    dtype = "string" if details["dtype"] in (np.bytes_, np.object_) else np.dtype(details["dtype"]).name
    scale, zero_point = details["quantization"]
    quantization = (float(scale), int(zero_point)) if scale else None
    return TensorSpec(name, dtype, shape, tensor_name=details["name"], quantization=quantization)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
