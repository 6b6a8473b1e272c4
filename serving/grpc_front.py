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
from ..wire import messages
from . import steps
from .access_log import REQUEST_ID, AccessLog, is_good_id
from .data_plane import DataPlane
from .encode import engines_header, model_status
from .grpc_core import CoreServer, Metadata, Reply
from .grpc_services import HEALTH, Health, Reflection
from .methods import Method, PredictionService, given_spec, serialized
from .monitoring import ENCODE, QUEUE, Call, Monitor
from .pace import Pace, Stopwatch

_log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 2**31 - 1
MAX_ERROR_BYTES = 1024
RELOAD = "HandleReloadConfigRequest"
STATUS = "GetModelStatus"
# Versions come and go; what is known of those that went is not kept for ever.
_MAX_PACES = 4096
# Trailing metadata of GetModelStatus.
ENGINES = "servable-engines"


@dataclass(frozen=True)
class GrpcOptions:
    """Where and how to listen.

    ``port`` of None opens no TCP port and 0 any free one; ``socket_path`` adds a UNIX socket.
    ``arguments`` are grpc server options; ``as_content`` answers Predict with ``tensor_content``;
    ``reuse_port`` shares the port with other processes that do so too.
    """

    host: str = "127.0.0.1"
    port: int | None = 8500
    socket_path: str = ""
    threads: int = 4
    credentials: grpc.ServerCredentials | None = None
    arguments: Sequence[tuple[str, int | str]] = ()
    health: bool = True
    as_content: bool = False
    reuse_port: bool = False


class _ModelService:
    """ModelService over the data plane."""

    def __init__(self, plane: DataPlane, monitor: Monitor) -> None:
        self._plane = plane
        self._monitor = monitor

    async def get_status(self, request: Any, call: Call) -> bytes:
        spec = given_spec(request)
        call.model = spec.name
        return serialized(model_status(self._plane.status(spec)))

    async def reload_config(self, request: Any, call: Call) -> bytes:
        """Replace the server's whole configuration, and tell how the metrics asked for have changed by it."""
        before = {name: self._monitor.first_value(name) for name in request.metric_names}
        try:
            self._plane.reload(request.config)
        except ServableError as error:
            _log.warning("a reload of the configuration failed: %s", error)
            raise
        response = messages.ReloadConfigResponse()
        response.status.SetInParent()
        for name in request.metric_names:
            increase = self._monitor.first_value(name) - before[name]
            response.metric.add(name=name, int64_value_increase=increase)
        return serialized(response)


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
            # Unasked, a second server would share the port and take every other connection.
            "grpc.so_reuseport": int(options.reuse_port),
        }
        # Of two options of one name the C core takes the first.
        self._server = CoreServer([*(defaults | dict(options.arguments)).items()], options.threads)
        predict, models = PredictionService(plane, as_content=options.as_content), _ModelService(plane, monitor)
        for name, kind, method in (
            ("Predict", messages.PredictRequest, predict.predict),
            ("Classify", messages.ClassificationRequest, predict.classify),
            ("Regress", messages.RegressionRequest, predict.regress),
            ("MultiInference", messages.MultiInferenceRequest, predict.multi_inference),
            ("GetModelMetadata", messages.GetModelMetadataRequest, predict.get_metadata),
            (STATUS, messages.GetModelStatusRequest, models.get_status),
            (RELOAD, messages.ReloadConfigRequest, models.reload_config),
        ):
            service = messages.MODEL_SERVICE if name in (RELOAD, STATUS) else messages.PREDICTION_SERVICE
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
        self, front: GrpcFront, name: str, kind: Any, method: Method, raw: bytes, metadata: Metadata, arrived_ns: int
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
        # Whether it will be answered at once, as far as the last calls of its kind tell.
        if name in _INFERENCE:
            pace = front.paces.get(self._key)
            self.quick = pace is not None and pace.is_quick(self._size)
        else:
            self.quick = name != RELOAD and not (front.plane.is_shared and name == STATUS)

    def run(self, done: Callable[[Reply], None]) -> Reply | None:
        return steps.advance(self._reply(), done)

    def abandon(self) -> None:
        self._call.abandon()

    async def _reply(self) -> Reply:
        call, front = self._call, self._front
        call.lap(QUEUE)
        call.pooled = not self.quick
        watch = Stopwatch(call, batching=front.plane.batching)
        initial = ((REQUEST_ID, call.request_id),) if call.request_id else ()
        reply = Reply(initial=initial)
        try:
            if self._wrong:
                raise InvalidArgumentError(f"the request is not a {self._kind.DESCRIPTOR.name}")
            reply.data = await self._method(self._request, call)
            if self._name == STATUS:
                reply.trailing = ((ENGINES, engines_header(front.plane.engines(call.model))),)
        except ServableError as error:
            reply = Reply(code=error.code, details=_cut(str(error)), initial=initial)
        except Exception as error:  # noqa: BLE001  # whatever a model does, the caller gets a status
            _log.exception("request %s failed", call.request_id or "without id")
            reply = Reply(code=Code.INTERNAL, details=_cut(f"{type(error).__name__}: {error}"), initial=initial)
        call.lap(ENCODE)
        if call.engine is not None:
            if len(front.paces) > _MAX_PACES:
                front.paces.clear()
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
    elif getattr(request, "tasks", None):
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
