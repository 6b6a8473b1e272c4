"""The gRPC front: PredictionService and ModelService over the data plane."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from ..errors import AddressInUseError, Code, InvalidArgumentError, ServableError
from ..wire import messages, tensors
from .data_plane import DataPlane, ModelSpec
from .encode import model_metadata, model_status

_log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 2**31 - 1
MAX_ERROR_BYTES = 1024
_STATUS = {code.value[0]: code for code in grpc.StatusCode}

Handler = Callable[[DataPlane, Any], Any]


def model_spec(request: Any) -> ModelSpec:
    """The request's ModelSpec; `InvalidArgumentError` if it has none."""
    if not request.HasField("model_spec"):
        raise InvalidArgumentError("Missing ModelSpec")
    spec = request.model_spec
    return ModelSpec(
        name=spec.name,
        version=spec.version.value if spec.HasField("version") else None,
        version_label=spec.version_label if spec.HasField("version_label") else None,
        signature_name=spec.signature_name,
    )


def _predict(plane: DataPlane, request: Any) -> Any:
    spec = model_spec(request)
    servable = plane.resolve(spec)
    inputs = {}
    for alias, proto in request.inputs.items():
        try:
            inputs[alias] = tensors.decode(proto)
        except ServableError:
            raise InvalidArgumentError(f"tensor parsing error: {alias}") from None
    result = plane.predict_on(servable, spec, inputs, request.output_filter)
    response = messages.PredictResponse()
    response.model_spec.name = spec.name
    response.model_spec.version.value = servable.version
    response.model_spec.signature_name = result.signature_key
    outputs = servable.signatures[result.signature_key].outputs
    for alias, array in result.outputs.items():
        response.outputs[alias].CopyFrom(tensors.encode(array, outputs[alias].dtype))
    return response


def _get_model_metadata(plane: DataPlane, request: Any) -> Any:
    return model_metadata(plane, model_spec(request), request.metadata_field)


def _get_model_status(plane: DataPlane, request: Any) -> Any:
    return model_status(plane.status(model_spec(request)))


_METHODS: dict[str, dict[str, tuple[Any, Handler]]] = {
    messages.PREDICTION_SERVICE: {
        "Predict": (messages.PredictRequest, _predict),
        "GetModelMetadata": (messages.GetModelMetadataRequest, _get_model_metadata),
    },
    messages.MODEL_SERVICE: {"GetModelStatus": (messages.GetModelStatusRequest, _get_model_status)},
}


def _unary(plane: DataPlane, request_class: Any, handler: Handler) -> grpc.RpcMethodHandler:
    def behaviour(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return handler(plane, request)
        except ServableError as error:
            _fail(context, error.code, str(error))
        except Exception as error:  # noqa: BLE001  # whatever a model does, the caller gets a status
            _log.exception("request failed")
            _fail(context, Code.INTERNAL, f"{type(error).__name__}: {error}")

    return grpc.unary_unary_rpc_method_handler(
        behaviour,
        request_deserializer=request_class.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )


def _fail(context: grpc.ServicerContext, code: Code, message: str) -> None:
    raw = message.encode("utf-8", "replace")
    if len(raw) > MAX_ERROR_BYTES:
        message = raw[:MAX_ERROR_BYTES].decode("utf-8", "ignore") + "...TRUNCATED"
    context.abort(_STATUS[code], message)


class GrpcFront:
    """A grpcio server on one TCP address."""

    def __init__(self, plane: DataPlane, host: str, port: int, threads: int) -> None:
        """Bind the address. Raises `AddressInUseError` if it cannot be bound."""
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                # Else a second server would share the port and take every other connection.
                ("grpc.so_reuseport", 0),
            ],
        )
        self._server.add_generic_rpc_handlers(
            tuple(
                grpc.method_handlers_generic_handler(
                    service, {name: _unary(plane, *entry) for name, entry in methods.items()}
                )
                for service, methods in _METHODS.items()
            )
        )
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError:
            raise AddressInUseError(
                f"cannot listen on {address} for gRPC: the port is taken; choose another with --port"
            ) from None

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Refuse new calls, let running ones finish within ``grace_s`` seconds, and wait for the end."""
        self._server.stop(grace_s).wait()
