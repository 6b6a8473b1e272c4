"""The gRPC client, on our own message classes: no TensorFlow, no generated stubs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc

from ..errors import ServableError, UnavailableError, error_for_code
from ..signature import Signature
from ..wire import messages, signatures, tensors
from . import status
from .base import DEFAULT_TIMEOUT_S, Arrays, Client, Metadata
from .status import VersionStatus
from .targets import Address


class GrpcClient(Client):
    """A model behind ``PredictionService``."""

    def __init__(self, target: str, address: Address, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__(target, timeout_s)
        self._address = address
        self._channel = grpc.insecure_channel(
            address.authority,
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        self._predict = self._method("Predict", messages.PredictResponse)
        self._get_metadata = self._method("GetModelMetadata", messages.GetModelMetadataResponse)
        self._get_status = self._method(
            "GetModelStatus", messages.GetModelStatusResponse, service=messages.MODEL_SERVICE
        ).with_call

    def _method(self, name: str, response: Any, service: str = messages.PREDICTION_SERVICE) -> Any:
        return self._channel.unary_unary(
            f"/{service}/{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=response.FromString,
        )

    def _run(self, signature: Signature, inputs: Arrays, outputs: Sequence[str], timeout_s: float) -> Arrays:
        request = messages.PredictRequest()
        self._fill(request.model_spec)
        request.model_spec.signature_name = signature.name
        for name, array in inputs.items():
            dtype = signature.inputs[name].dtype
            # Strings in tensor_content are legal, but not every server reads them.
            tensors.encode_into(request.inputs[name], array, dtype, content=dtype != "string")
        request.output_filter.extend(outputs)
        response = self._call(self._predict, request, timeout_s)
        return {name: tensors.decode(proto) for name, proto in response.outputs.items()}

    def _ask_metadata(self, timeout_s: float) -> Metadata:
        request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._fill(request.model_spec)
        response = self._call(self._get_metadata, request, timeout_s)
        definitions = messages.SignatureDefMap()
        response.metadata["signature_def"].Unpack(definitions)
        return Metadata(
            model=response.model_spec.name,
            version=response.model_spec.version.value,
            signatures={
                name: signatures.from_signature_def(name, message)
                for name, message in sorted(definitions.signature_def.items())
            },
        )

    def _ask_status(self, timeout_s: float) -> list[VersionStatus]:
        request = messages.GetModelStatusRequest()
        self._fill(request.model_spec)
        response, call = self._call(self._get_status, request, timeout_s)
        told = {key.lower(): value for key, value in call.trailing_metadata() or ()}
        return status.from_message(response, told.get(status.ENGINES_HEADER.lower()))

    def _fill(self, spec: Any) -> None:
        spec.name = self._address.model
        if self._address.version is not None:
            spec.version.value = self._address.version
        elif self._address.label:
            spec.version_label = self._address.label

    def _call(self, method: Callable[..., Any], request: Any, timeout_s: float) -> Any:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._translate(error) from error

    def _translate(self, error: Any) -> ServableError:
        code, details = error.code(), error.details() or ""
        # A server that shuts down cancels what it has not begun; the caller has cancelled nothing.
        if code == grpc.StatusCode.CANCELLED and details.upper() in ("", "CANCELLED"):
            return UnavailableError(f"{self.target} is shutting down")
        if code == grpc.StatusCode.UNAVAILABLE:
            return UnavailableError(f"{self.target} cannot be reached: {details}; is the server running?")
        return error_for_code(code.value[0], f"{self.target}: {details}")

    def _close(self) -> None:
        self._channel.close()
