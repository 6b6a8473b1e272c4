"""The standard gRPC services beside TensorFlow Serving's: health and server reflection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .. import extras
from ..errors import Code
from ..wire import messages
from .grpc_core import CoreServer, Metadata, Reply, Stream

HEALTH = "grpc.health.v1.Health"
# The original sets these two beside "".
HEALTH_NAMES = ("", "ModelService", "PredictionService")


class Health:
    """``grpc.health.v1``: Check and Watch, for the names that the original sets."""

    def __init__(self, server: CoreServer) -> None:
        self._pb = extras.load("grpc_health.v1.health_pb2", "the gRPC health service")
        messages.POOL.AddSerializedFile(self._pb.DESCRIPTOR.serialized_pb)
        self._lock = threading.Lock()
        self._status = self._pb.HealthCheckResponse.NOT_SERVING
        self._watchers: list[tuple[Stream, str]] = []
        server.add_unary(HEALTH, "Check", self._check)
        server.add_stream(HEALTH, "Watch", self._watch)

    def set_serving(self, *, serving: bool) -> None:
        """Change the status and tell all who watch."""
        response = self._pb.HealthCheckResponse
        with self._lock:
            self._status = response.SERVING if serving else response.NOT_SERVING
            self._watchers = [(stream, name) for stream, name in self._watchers if not stream.closed]
            for stream, name in self._watchers:
                if name in HEALTH_NAMES:
                    stream.send(response(status=self._status).SerializeToString())

    def end(self) -> None:
        """End all watches, so that they do not hold up a stop."""
        with self._lock:
            watchers, self._watchers = self._watchers, []
        for stream, _ in watchers:
            stream.finish(Code.UNAVAILABLE, "the server is shutting down")

    def _check(self, raw: bytes, metadata: Metadata, arrived_ns: int) -> _Done:
        name = self._service(raw)
        if name is None:
            return _Done(Reply(code=Code.INVALID_ARGUMENT, details="the request is not a HealthCheckRequest"))
        if name not in HEALTH_NAMES:
            return _Done(Reply(code=Code.NOT_FOUND, details=f"unknown service {name}"))
        return _Done(Reply(self._pb.HealthCheckResponse(status=self._status).SerializeToString()))

    def _watch(self, stream: Stream, raw: bytes | None) -> None:
        name = None if raw is None else self._service(raw)
        if name is None:
            stream.finish(Code.INVALID_ARGUMENT, "the request is not a HealthCheckRequest")
            return
        response = self._pb.HealthCheckResponse
        with self._lock:
            self._watchers = [known for known in self._watchers if not known[0].closed]
            self._watchers.append((stream, name))
            status = self._status if name in HEALTH_NAMES else response.SERVICE_UNKNOWN
            stream.send(response(status=status).SerializeToString())  # before the next change is told

    def _service(self, raw: bytes) -> str | None:
        try:
            name: str = self._pb.HealthCheckRequest.FromString(raw).service
        except Exception:  # noqa: BLE001  # protobuf's DecodeError
            return None
        return name


class _Done:
    """Work that needs no doing."""

    quick = True

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def run(self, done: Callable[[Reply], None]) -> Reply:
        return self._reply

    def abandon(self) -> None:
        """There is nothing to be done."""


class Reflection:
    """``grpc.reflection.v1alpha``, answered by grpcio-reflection from our descriptor pool."""

    def __init__(self, server: CoreServer, services: list[str]) -> None:
        reflection = extras.load("grpc_reflection.v1alpha.reflection", "gRPC server reflection")
        self._pb: Any = extras.load("grpc_reflection.v1alpha.reflection_pb2", "gRPC server reflection")
        messages.POOL.AddSerializedFile(self._pb.DESCRIPTOR.serialized_pb)
        self._servicer = reflection.ReflectionServicer([*services, reflection.SERVICE_NAME], pool=messages.POOL)
        self._lock = threading.Lock()
        self._streams: list[Stream] = []
        server.add_stream(reflection.SERVICE_NAME, "ServerReflectionInfo", self._answer)

    def end(self) -> None:
        """End all streams, so that they do not hold up a stop."""
        with self._lock:
            streams, self._streams = self._streams, []
        for stream in streams:
            stream.finish(Code.UNAVAILABLE, "the server is shutting down")

    def _answer(self, stream: Stream, raw: bytes | None) -> None:
        if raw is None:
            stream.finish(Code.OK)
            return
        try:
            request = self._pb.ServerReflectionRequest.FromString(raw)
        except Exception:  # noqa: BLE001  # protobuf's DecodeError
            stream.finish(Code.INVALID_ARGUMENT, "the request is not a ServerReflectionRequest")
            return
        with self._lock:
            self._streams = [known for known in self._streams if not known.closed and known is not stream]
            self._streams.append(stream)
        for response in self._servicer.ServerReflectionInfo(iter([request]), None):
            stream.send(response.SerializeToString())
        stream.receive()
