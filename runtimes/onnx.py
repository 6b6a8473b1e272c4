"""ONNX files in ONNX Runtime, on the CPU or an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from .. import extras
from ..errors import ArtifactError, InputError, InternalError, UnavailableError, UnimplementedError
from ..signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from .base import DEFAULT_OPTIONS, Runtime, RuntimeOptions, check_names, select_outputs

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
    def load(cls, path: Path, options: RuntimeOptions = DEFAULT_OPTIONS) -> Self:
        ort = extras.load("onnxruntime", "running an ONNX file")
        providers = ["CPUExecutionProvider"]
        if options.device == "gpu":
            if "CUDAExecutionProvider" not in ort.get_available_providers():
                raise UnimplementedError(
                    "this ONNX Runtime has no CUDA provider: install onnxruntime-gpu in place of onnxruntime, or use "
                    "--device cpu"
                )
            providers.insert(0, "CUDAExecutionProvider")
        session_options = ort.SessionOptions()
        session_options.log_severity_level = 4
        session_options.intra_op_num_threads = options.threads
        # Its threads would otherwise spin between requests and take the processor from their callers.
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        errors = ort.capi.onnxruntime_pybind11_state
        try:
            session = ort.InferenceSession(str(path), session_options, providers=providers)
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
            # Not session.run: it looks at every input's name and type once more, at a tenth of a small
            # model's time, and on a failing GPU it would change to the CPU without a word.
            results = session._sess.run(wanted, inputs, None)
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
