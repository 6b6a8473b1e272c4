"""The gRPC front: PredictionService and ModelService over the data plane, health and reflection."""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from ..errors import AddressInUseError, Code, InvalidArgumentError, ServableError
from ..wire import messages, tensors
from .access_log import REQUEST_ID, AccessLog, is_good_id
from .data_plane import DataPlane, ModelSpec
from .encode import (
    engines_header,
    model_metadata,
    model_status,
    predict_response,
    set_classification,
    set_model_spec,
    set_regression,
)
from .grpc_core import CoreServer, Metadata, Reply
from .grpc_services import HEALTH, Health, Reflection
from .inference import Classification
from .monitoring import ENCODE, QUEUE, Call, Monitor
from .pace import Pace, Stopwatch

_log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 2**31 - 1
MAX_ERROR_BYTES = 1024
# Trailing metadata of GetModelStatus.
ENGINES = "servable-engines"


@dataclass(frozen=True)
class GrpcOptions:
    """Where and how to listen.

    ``port`` of None opens no TCP port and 0 any free one; ``socket_path`` adds a UNIX socket.
    ``arguments`` are grpc server options; ``as_content`` answers Predict with ``tensor_content``.
    """

    host: str = "127.0.0.1"
    port: int | None = 8500
    socket_path: str = ""
    threads: int = 4
    credentials: grpc.ServerCredentials | None = None
    arguments: Sequence[tuple[str, int | str]] = ()
    health: bool = True
    as_content: bool = False


def model_spec(request: Any) -> ModelSpec:
    """The request's ModelSpec; `InvalidArgumentError` if it has none."""
    if not request.HasField("model_spec"):
        raise InvalidArgumentError("Missing ModelSpec")
    return _spec(request.model_spec)


def _spec(spec: Any) -> ModelSpec:
    return ModelSpec(
        name=spec.name,
        version=spec.version.value if spec.HasField("version") else None,
        version_label=spec.version_label if spec.HasField("version_label") else None,
        signature_name=spec.signature_name,
    )


def _examples(request: Any) -> list[bytes]:
    """The serialized examples of an Input, each behind the context, as protobuf merges them."""
    kind = request.input.WhichOneof("kind")
    if kind is None:
        return []
    listed = getattr(request.input, kind)
    context = listed.context.SerializeToString() if kind == "example_list_with_context" else b""
    return [context + example.SerializeToString() for example in listed.examples]


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


class _Methods:
    """The methods of both services: message in, serialized message out."""

    def __init__(self, plane: DataPlane, *, as_content: bool) -> None:
        self._plane = plane
        self._as_content = as_content

    def predict(self, request: Any, call: Call) -> bytes:
        spec = model_spec(request)
        call.model = spec.name
        servable = self._plane.resolve(spec)
        inputs = {}
        for alias, proto in request.inputs.items():
            try:
                inputs[alias] = tensors.decode(proto)
            except ServableError:
                raise InvalidArgumentError(f"tensor parsing error: {alias}") from None
        outputs = self._plane.predict(servable, spec, inputs, request.output_filter, call)
        return predict_response(servable, spec, outputs, as_content=self._as_content)

    def classify(self, request: Any, call: Call) -> bytes:
        spec = model_spec(request)
        call.model = spec.name
        servable = self._plane.resolve(spec)
        response = messages.ClassificationResponse()
        set_classification(response.result, self._plane.classify(servable, spec, _examples(request), call))
        set_model_spec(response.model_spec, servable, spec)
        return _serialized(response)

    def regress(self, request: Any, call: Call) -> bytes:
        spec = model_spec(request)
        call.model = spec.name
        servable = self._plane.resolve(spec)
        response = messages.RegressionResponse()
        set_regression(response.result, self._plane.regress(servable, spec, _examples(request), call))
        set_model_spec(response.model_spec, servable, spec)
        return _serialized(response)

    def multi_inference(self, request: Any, call: Call) -> bytes:
        tasks = [(_spec(task.model_spec), task.method_name) for task in request.tasks]
        if not tasks:
            raise InvalidArgumentError("ModelSpec has no name specified.")
        call.model = tasks[0][0].name
        servable = self._plane.resolve(tasks[0][0])
        examples = _examples(request)
        response = messages.MultiInferenceResponse()
        results = self._plane.multi_inference(servable, tasks, examples, call)
        call.examples = len(examples)
        for (spec, _), found in zip(tasks, results, strict=True):
            result = response.results.add()
            set_model_spec(result.model_spec, servable, spec)
            if isinstance(found, Classification):
                result.classification_result.SetInParent()
                set_classification(result.classification_result, found)
            else:
                result.regression_result.SetInParent()
                set_regression(result.regression_result, found)
        return _serialized(response)

    def get_metadata(self, request: Any, call: Call) -> bytes:
        spec = model_spec(request)
        call.model = spec.name
        return _serialized(model_metadata(self._plane, spec, request.metadata_field))

    def get_status(self, request: Any, call: Call) -> bytes:
        spec = model_spec(request)
        call.model = spec.name
        return _serialized(model_status(self._plane.status(spec)))


_Method = Callable[[Any, Call], bytes]

# Those that the original counts, by the name of their API label, and those that run a model.
_COUNTED = ("Predict", "Classify", "Regress")
_INFERENCE = (*_COUNTED, "MultiInference")


class GrpcFront:
    """PredictionService and ModelService on a TCP address, a UNIX socket, or both."""

    def __init__(self, plane: DataPlane, options: GrpcOptions, monitor: Monitor, access_log: AccessLog) -> None:
        """Bind the addresses. Raises `AddressInUseError` if one cannot be bound."""
        self.plane = plane
        self.monitor = monitor
        self.access_log = access_log
        # By method, model, version and signature that have answered: names that clients make up are not kept.
        self.paces: dict[tuple[str, str, int, str], Pace] = {}
        defaults: dict[str, int | str] = {
            "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
            "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
            # Else a second server would share the port and take every other connection.
            "grpc.so_reuseport": 0,
        }
        # Of two options of one name the C core takes the first.
        self._server = CoreServer([*(defaults | dict(options.arguments)).items()], options.threads)
        methods = _Methods(plane, as_content=options.as_content)
        for service, name, kind, method in (
            (messages.PREDICTION_SERVICE, "Predict", messages.PredictRequest, methods.predict),
            (messages.PREDICTION_SERVICE, "Classify", messages.ClassificationRequest, methods.classify),
            (messages.PREDICTION_SERVICE, "Regress", messages.RegressionRequest, methods.regress),
            (messages.PREDICTION_SERVICE, "MultiInference", messages.MultiInferenceRequest, methods.multi_inference),
            (messages.PREDICTION_SERVICE, "GetModelMetadata", messages.GetModelMetadataRequest, methods.get_metadata),
            (messages.MODEL_SERVICE, "GetModelStatus", messages.GetModelStatusRequest, methods.get_status),
        ):
            self._server.add_unary(service, name, partial(_Work, self, name, kind, method))
        services = [messages.PREDICTION_SERVICE, messages.MODEL_SERVICE]
        self._health: Health | None = None
        if options.health:
            self._health = Health(self._server)
            services.append(HEALTH)
        self._reflection = Reflection(self._server, services)
        self.port = self._bind(options)

    def _bind(self, options: GrpcOptions) -> int | None:
        port = None
        if options.port is not None:
            host = f"[{options.host}]" if ":" in options.host else options.host
            address = f"{host}:{options.port}"
            port = self._listen(address, options, "the port is taken; choose another with --port")
        if options.socket_path:
            if _answers(options.socket_path):  # gRPC would take the name away from the server that has it
                self._server.stop(0)
                raise AddressInUseError(
                    f"cannot listen on unix:{options.socket_path} for gRPC: another server does; choose another "
                    "with --grpc_socket_path"
                )
            way_out = "the socket is taken, or its folder missing; choose another with --grpc_socket_path"
            self._listen(f"unix:{options.socket_path}", options, way_out)
        return port

    def _listen(self, address: str, options: GrpcOptions, way_out: str) -> int:
        port = self._server.listen(address, options.credentials)
        if not port:
            self._server.stop(0)
            raise AddressInUseError(f"cannot listen on {address} for gRPC: {way_out}")
        return port

    def start(self) -> None:
        """Begin to answer."""
        if self._health:
            self._health.set_serving(serving=True)  # before a Watch can come between
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Refuse new calls, let running ones finish within ``grace_s`` seconds, and wait for the end."""
        if self._health:
            self._health.set_serving(serving=False)
            self._health.end()
        self._reflection.end()
        self._server.stop(grace_s)


class _Work:
    """One unary call of a method."""

    __slots__ = ("_call", "_front", "_key", "_kind", "_method", "_name", "_raw", "_request", "_size", "_wrong", "quick")

    def __init__(
        self, front: GrpcFront, name: str, kind: Any, method: _Method, raw: bytes, metadata: Metadata, arrived_ns: int
    ) -> None:
        self._front = front
        self._name = name
        self._kind = kind
        self._method = method
        self._raw = raw
        self._call = Call(name, "GRPC", arrived_ns)
        self._call.request_id = _request_id(metadata)
        self._wrong = False
        try:
            self._request = kind.FromString(raw)
        except DecodeError:
            self._wrong = True
            self._request = kind()
        self._key = (name, *_asked_for(self._request))
        self._size = max(len(raw), _elements(self._request)) if name == "Predict" else len(raw)
        pace = front.paces.get(self._key)
        # Whether it will be answered at once, as far as the last calls of its kind tell.
        self.quick = name not in _INFERENCE or (pace is not None and pace.is_quick(self._size))

    def run(self) -> Reply:
        call, front = self._call, self._front
        call.lap(QUEUE)
        call.pooled = not self.quick
        watch = Stopwatch(call)
        initial = ((REQUEST_ID, call.request_id),) if call.request_id else ()
        reply = Reply(initial=initial)
        try:
            if self._wrong:
                raise InvalidArgumentError(f"the request is not a {self._kind.DESCRIPTOR.name}")
            reply.data = self._method(self._request, call)
            if self._name == "GetModelStatus":
                reply.trailing = ((ENGINES, engines_header(front.plane.engines(call.model))),)
        except ServableError as error:
            reply = Reply(code=error.code, details=_cut(str(error)), initial=initial)
        except Exception as error:  # noqa: BLE001  # whatever a model does, the caller gets a status
            _log.exception("request %s failed", call.request_id or "without id")
            reply = Reply(code=Code.INTERNAL, details=_cut(f"{type(error).__name__}: {error}"), initial=initial)
        call.lap(ENCODE)
        if call.engine is not None:
            front.paces.setdefault(self._key, Pace()).note(self._size, watch.elapsed_ns())
        front.monitor.finish(call, reply.code, counted=self._name in _COUNTED)
        if front.access_log.enabled:
            front.access_log.rpc(call, self._name, reply.code, len(self._raw), len(reply.data))
        return reply


def _answers(path: str) -> bool:
    """Whether somebody listens on a UNIX socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _asked_for(request: Any) -> tuple[str, int, str]:
    """Model, version and signature of a request, as far as they are given."""
    if hasattr(request, "model_spec"):
        spec = request.model_spec
    elif request.tasks:
        spec = request.tasks[0].model_spec
    else:
        return "", 0, ""
    return spec.name, spec.version.value, spec.signature_name


def _elements(request: Any) -> int:
    """Elements of the largest input: a tensor of one value repeated is short on the wire, and large to run."""
    return max((math.prod([dim.size for dim in t.tensor_shape.dim]) for t in request.inputs.values()), default=0)


def _request_id(metadata: Metadata) -> str:
    for key, value in metadata:
        if key == REQUEST_ID and isinstance(value, str) and is_good_id(value):
            return value
    return ""


def _cut(message: str) -> str:
    raw = message.encode("utf-8", "replace")
    if len(raw) <= MAX_ERROR_BYTES:
        return message
    return raw[:MAX_ERROR_BYTES].decode("utf-8", "ignore") + "...TRUNCATED"
