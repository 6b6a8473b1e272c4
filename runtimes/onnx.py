"""ONNX files in ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from .. import extras
from ..errors import ArtifactError, InputError, InternalError, UnavailableError
from ..signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from .base import Runtime, check_names, select_outputs

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "string",
}


class OnnxRuntime(Runtime):
    """One ONNX file; its graph is the signature ``serving_default``."""

    name = "onnx"

    def __init__(self, session: Any, errors: Any) -> None:
        self._session: Any = session
        self._errors = errors
        self.signatures = {
            DEFAULT_SIGNATURE: Signature(
                inputs={item.name: _spec(item) for item in session.get_inputs()},
                outputs={item.name: _spec(item) for item in session.get_outputs()},
            )
        }

    @classmethod
    def load(cls, path: Path, *, threads: int = 0) -> Self:
        ort = extras.load("onnxruntime", "running an ONNX file")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        # Its threads would otherwise spin between requests and take the processor from their callers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        errors = ort.capi.onnxruntime_pybind11_state
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except (
            errors.Fail,
            errors.InvalidArgument,
            errors.InvalidGraph,
            errors.InvalidProtobuf,
            errors.NoSuchFile,
            errors.NotImplemented,
        ) as error:
            raise ArtifactError(f"{path} is not an ONNX file that ONNX Runtime can load: {_reason(error)}") from error
        return cls(session, errors)

    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        spec = self._signature(signature)
        check_names(spec, inputs)
        wanted = select_outputs(spec, outputs)
        session = self._session
        if session is None:
            raise UnavailableError("the model was unloaded")
        try:
            results = session.run(wanted, dict(inputs))
        except self._errors.InvalidArgument as error:
            raise InputError(f"the inputs do not fit {spec}: {_reason(error)}") from error
        except (self._errors.Fail, self._errors.RuntimeException) as error:
            raise InternalError(f"ONNX Runtime failed: {_reason(error)}") from error
        return dict(zip(wanted, results, strict=True))

    def close(self) -> None:
        self._session = None


def _spec(item: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in item.shape)
    return TensorSpec(item.name, _DTYPES.get(item.type, item.type), shape)


def _reason(error: Exception) -> str:
    """ONNX Runtime's own sentence, without its ``[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : `` head."""
    return str(error).split(" : ", 3)[-1].strip().splitlines()[0]
