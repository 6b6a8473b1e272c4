"""The REST front: TensorFlow Serving's HTTP API over the data plane."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter_ns
from typing import Any

from ..errors import (
    Code,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    ServableError,
)
from ..wire import json_codec, json_examples, json_text
from . import monitoring, openapi, routes, steps
from .access_log import REQUEST_ID, AccessLog, is_good_id, new_id
from .data_plane import DataPlane, ModelSpec
from .encode import engines_header, metadata_json, status_json
from .http import HTML, Request, Response, page
from .http_server import HttpServer
from .monitoring import ENCODE, QUEUE, Call, Monitor
from .pace import QUICK_NS, Stopwatch

_log = logging.getLogger(__name__)

_MAX_UNZIPPED = 100 * 2**20
_CACHED_TARGET_BYTES = 512
_CORS = (
    (b"Access-Control-Allow-Origin", b"*"),
    (b"Access-Control-Allow-Methods", b"POST, GET"),
    (b"Access-Control-Allow-Headers", b"Content-Type"),
)
_OPTIONS_TYPE = b"text/html; charset=ISO-8859-1"
_REQUEST_ID = REQUEST_ID.encode()


@dataclass(frozen=True)
class RestOptions:
    """``timeout_s`` limits a model's run; a ``metrics_path`` of "" shows no metrics."""

    threads: int = 4
    timeout_s: float | None = 30.0
    cors: bool = False
    metrics_path: str = ""
    reuse_port: bool = False


class RestFront:
    """The REST API on one TCP address."""

    def __init__(
        self, plane: DataPlane, host: str, port: int, options: RestOptions, monitor: Monitor, access_log: AccessLog
    ) -> None:
        """Bind the address; raises what `HttpServer` raises."""
        self.batching = plane.batching
        self._plane = plane
        self._options = options
        self._monitor = monitor
        self._access_log = access_log
        self._find_route = lru_cache(maxsize=1024)(routes.find)
        self._http = HttpServer(
            self._exchange, host, port, options.threads, routes.is_plain, reuse_port=options.reuse_port
        )
        self.port = self._http.port

    def start(self) -> None:
        """Begin to answer."""
        self._http.start()

    def stop(self, grace_s: float) -> None:
        """Refuse new connections, let running requests finish within ``grace_s`` seconds."""
        self._http.stop(grace_s)

    def _exchange(self, request: Request) -> _Exchange:
        # A long target is hardly asked for twice, and none of them shall fill the memory.
        find = self._find_route if len(request.target) <= _CACHED_TARGET_BYTES else routes.find
        return _Exchange(self, request, find(request.method, request.target))

    # what an exchange asks of its front

    @property
    def timeout_s(self) -> float | None:
        """Limit of a model's run."""
        return self._options.timeout_s

    async def answer(self, request: Request, route: routes.Route | None, call: Call) -> Response:
        """The response to anything that came over the wire; raises `ServableError`."""
        if request.method not in _ROUTED_METHODS:
            return page(501)
        if route is None:
            return page(400)
        if self._is_metrics(route):
            return self._metrics(route)
        if not route.api:
            return self._outside(request, route)
        if request.method == b"OPTIONS":
            found = _header(request, b"origin")
            allowed = any(b"http://" in value or b"https://" in value for value in found)
            return Response(200 if allowed else 400, b"", _OPTIONS_TYPE)
        if route.problem:
            raise InvalidArgumentError(route.problem)
        if route.verb == "metadata":
            return Response(200, metadata_json(self._plane, route.spec))
        if route.verb == "status":
            statuses = self._plane.status(route.spec)
            engines = engines_header(self._plane.engines(route.spec.name))
            return Response(200, status_json(statuses), headers=((b"Servable-Engines", engines.encode()),))
        call.lap(QUEUE)
        body = await _VERBS[route.verb](self._plane, route.spec, _decoded(request), call)
        call.lap(ENCODE)
        return Response(200, body)

    def asks_others(self, route: routes.Route | None) -> bool:
        """Whether an answer that runs no model has to be fetched from other processes, which takes time."""
        return self._plane.is_shared and route is not None and (route.verb == "status" or self._is_metrics(route))

    def _is_metrics(self, route: routes.Route) -> bool:
        path = self._options.metrics_path
        return bool(path) and route.path.partition("?")[0] == path

    def _metrics(self, route: routes.Route) -> Response:
        if "?" in route.path:
            path = self._options.metrics_path
            return Response(400, f"Unexpected path: {route.path}. Should be {path}".encode(), monitoring.CONTENT_TYPE)
        return Response(200, self._monitor.page(), monitoring.CONTENT_TYPE)

    def _outside(self, request: Request, route: routes.Route) -> Response:
        if request.method in (b"GET", b"HEAD"):
            if route.path == "/healthz":
                return Response(200, b'{"status": "SERVING"}\n')
            if route.path == "/openapi.json":
                return Response(200, openapi.document(self._plane.models(), self._options.metrics_path))
        return Response(404, _NOT_FOUND, HTML)

    def cors_headers(self, route: routes.Route | None) -> tuple[tuple[bytes, bytes], ...]:
        """What to add to a response under /v1/."""
        return _CORS if self._options.cors and route is not None and route.api else ()

    def finished(
        self, request: Request, route: routes.Route | None, call: Call, response: Response, code: Code
    ) -> None:
        """Count and log a request that was answered."""
        if route is not None and route.api and request.method in _ROUTED_METHODS:
            self._monitor.finish(call, code)
        if self._access_log.enabled:
            self._access_log.http(request, response, call)


_ROUTED_METHODS = (b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH")
_NOT_FOUND = (
    b"<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1>"
    b"<p>The API begins at /v1/models; it is described at /openapi.json</p></body></html>\n"
)


class _Exchange:
    """One request between HTTP and the data plane."""

    __slots__ = ("_call", "_code", "_front", "_request", "_route", "quick")

    def __init__(self, front: RestFront, request: Request, route: routes.Route | None) -> None:
        self._front = front
        self._request = request
        self._route = route
        verb = route.verb if route and route.verb in routes.VERBS else ""
        self._call = Call(verb, "REST", request.started_ns)
        self._call.request_id = _request_id(request)
        self._call.model = route.spec.name if route else ""
        self._code = Code.OK
        # Whether it will be answered at once, as far as the last ones of its route tell.
        # What is packed may be large once it is unpacked.
        packed = bool(verb) and bool(_header(request, b"content-encoding"))
        if verb:
            self.quick = route is not None and not packed and route.pace.is_quick(len(request.body))
        else:
            self.quick = not front.asks_others(route)

    @property
    def timeout_s(self) -> float | None:
        return self._front.timeout_s

    def run(self, done: Callable[[Response], None]) -> Response | None:
        return steps.advance(self._respond(), done)

    def abandon(self) -> None:
        self._call.abandon()

    async def _respond(self) -> Response:
        request, front = self._request, self._front
        self._call.pooled = not self.quick
        watch, started_ns = Stopwatch(self._call, batching=front.batching), perf_counter_ns()
        try:
            response = await front.answer(request, self._route, self._call)
            if response.status == 400:  # an OPTIONS without origin
                self._code = Code.INVALID_ARGUMENT
        except ServableError as error:
            self._code = error.code
            response = Response(error.http_status, json_text.format_error(str(error)))
        except Exception as error:  # noqa: BLE001  # whatever a model does, the caller gets a status
            _log.exception("request %s failed", self._call.request_id)
            self._code = Code.INTERNAL
            failure = InternalError(f"{type(error).__name__}: {error}")
            response = Response(failure.http_status, json_text.format_error(str(failure)))
        if self._route and self._call.engine is not None:
            self._route.pace.note(len(request.body), watch.elapsed_ns())
        elif self._route and perf_counter_ns() - started_ns > QUICK_NS:  # a body that took long to refuse
            self._route.pace.note(len(request.body), perf_counter_ns() - started_ns)
        return self._with_headers(response)

    def expired(self) -> Response:
        error: ServableError = DeadlineExceededError("Timed out waiting for notification")
        if self._call.abandon():
            error = ResourceExhaustedError("Run() timeout exceeded while waiting in batching queue")
        self._code = error.code
        return self._with_headers(Response(error.http_status, json_text.format_error(str(error))))

    def _with_headers(self, response: Response) -> Response:
        response.headers = (
            *response.headers,
            (b"X-Request-Id", self._call.request_id.encode()),
            *self._front.cors_headers(self._route),
        )
        return response

    def finish(self, response: Response) -> None:
        self._front.finished(self._request, self._route, self._call, response, self._code)


async def _predict(plane: DataPlane, spec: ModelSpec, body: bytes, call: Call) -> bytes:
    request = json_codec.parse_predict(body)
    spec = _with_signature(spec, request.signature_name)
    with plane.resolve(spec) as servable:
        signature = servable.signatures.get(spec.signature_key)
        if signature is None:
            raise InvalidArgumentError(f'Serving signature name: "{spec.signature_key}" not found in signature def')
        outputs = await plane.predict(servable, spec, request.arrays(signature), (), call)
        return json_codec.format_predict(outputs, row=request.row)


async def _classify(plane: DataPlane, spec: ModelSpec, body: bytes, call: Call) -> bytes:
    request = json_examples.parse_examples(body)
    spec = _with_signature(spec, request.signature_name)
    with plane.resolve(spec) as servable:
        result = await plane.classify(servable, spec, request.examples, call)
        return json_examples.format_classification(result.classes, result.scores)


async def _regress(plane: DataPlane, spec: ModelSpec, body: bytes, call: Call) -> bytes:
    request = json_examples.parse_examples(body)
    spec = _with_signature(spec, request.signature_name)
    with plane.resolve(spec) as servable:
        return json_examples.format_regression(await plane.regress(servable, spec, request.examples, call))


_VERBS: dict[str, Callable[[DataPlane, ModelSpec, bytes, Call], Coroutine[Any, Any, bytes]]] = {
    "predict": _predict,
    "classify": _classify,
    "regress": _regress,
}


def _with_signature(spec: ModelSpec, name: str) -> ModelSpec:
    return ModelSpec(spec.name, spec.version, spec.version_label, name) if name else spec


def _request_id(request: Request) -> str:
    for key, value in request.headers:
        if key == _REQUEST_ID and is_good_id(text := value.decode("latin-1")):
            return text
    return new_id()


def _header(request: Request, name: bytes) -> list[bytes]:
    return [value for key, value in request.headers if key == name]


def _decoded(request: Request) -> bytes:
    """The body, gunzipped if the request says so; a bad gzip counts as an empty document."""
    if not any(b"gzip" in value for value in _header(request, b"content-encoding")):
        return request.body
    unzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = unzip.decompress(request.body, _MAX_UNZIPPED)
    except zlib.error:
        return b""
    return plain if unzip.eof and not unzip.unused_data else b""
