"""The REST front: an ASGI application over the data plane, and the uvicorn server that runs it."""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
import socket
import threading
import zlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

from .. import extras
from ..errors import AddressInUseError, InternalError, InvalidArgumentError, ServableError, UnimplementedError
from ..wire import json_codec, json_text
from .data_plane import DataPlane, ModelSpec
from .encode import metadata_json, status_json

_log = logging.getLogger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_POST = re.compile(
    r"(?i)/v1/models/([^/:]+)(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?:(classify|regress|predict)", re.ASCII
)
_GET = re.compile(
    r"(?i)/v1/models(?:/([^/:]+))?(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?(?:/(metadata))?", re.ASCII
)
_METHODS = {"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"}
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")
# Longer than clients keep an idle connection, so that the server does not close one that is being used.
KEEP_ALIVE_S = 75
_MAX_UNZIPPED = 100 * 2**20
_NOT_FOUND_PAGE = (
    b"<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1>"
    b"<p>The API begins at /v1/models</p></body></html>\n"
)


class RestApp:
    """The ASGI application. Models run in ``pool``, so that a slow one does not hold up the others."""

    def __init__(self, plane: DataPlane, pool: ThreadPoolExecutor) -> None:
        self._plane = plane
        self._pool = pool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        target = scope["raw_path"].decode("latin-1")
        if scope["query_string"]:
            target += "?" + scope["query_string"].decode("latin-1")
        try:
            body = await _read_body(receive)
        except asyncio.CancelledError:
            return  # the server stops while the client is still sending
        if body is None:
            return
        if not target.lower().startswith("/v1/"):
            await _reply(send, 404, b"text/html", _NOT_FOUND_PAGE)
            return
        if scope["method"] == "OPTIONS":
            await _reply(send, 200 if _has_origin(scope) else 400, b"text/html; charset=ISO-8859-1", b"")
            return
        loop = asyncio.get_running_loop()
        status, answer = await loop.run_in_executor(self._pool, self._handle, scope, target, body)
        await _reply(send, status, b"application/json", answer)

    def _handle(self, scope: Scope, target: str, body: bytes) -> tuple[int, bytes]:
        try:
            return 200, self._answer(scope, target, body)
        except ServableError as error:
            return error.http_status, json_text.format_error(str(error))
        except Exception as error:  # noqa: BLE001  # whatever a model does, the caller gets a status
            _log.exception("request failed")
            failure = InternalError(f"{type(error).__name__}: {error}")
            return failure.http_status, json_text.format_error(str(failure))

    def _answer(self, scope: Scope, target: str, body: bytes) -> bytes:
        method = scope["method"]
        if method not in _METHODS:
            raise UnimplementedError(f"Method not implemented: {method}")
        if _BAD_ESCAPE.search(target):
            raise InvalidArgumentError(f"Malformed request: {method} {target}: % begins no escape of two hex digits")
        if method == "POST" and (match := _POST.fullmatch(target)) and match[4] == "predict":
            return self._predict(_spec(match), _decoded(scope, body))
        if method == "GET" and (match := _GET.fullmatch(target)):
            if not match[1]:
                raise InvalidArgumentError("Missing model name in request.")
            spec = _spec(match)
            if match[4] == "metadata":
                return metadata_json(self._plane, spec)
            return status_json(self._plane.status(spec))
        raise InvalidArgumentError(f"Malformed request: {method} {target}")

    def _predict(self, spec: ModelSpec, body: bytes) -> bytes:
        request = json_codec.parse_predict(body)
        spec = ModelSpec(spec.name, spec.version, spec.version_label, request.signature_name)
        servable = self._plane.resolve(spec)
        signature = servable.signatures.get(spec.signature_key)
        if signature is None:
            raise InvalidArgumentError(f'Serving signature name: "{spec.signature_key}" not found in signature def')
        result = self._plane.predict_on(servable, spec, request.arrays(signature))
        return json_codec.format_predict(result.outputs, row=request.row)


def _spec(match: re.Match[str]) -> ModelSpec:
    digits = (match[2] or "").lstrip("0")
    version = int(digits[:20] or "0") if match[2] else None
    if version is not None and version >= 2**63:
        raise InvalidArgumentError(f"Version {match[2][:40]} does not fit into a 64-bit integer")
    label = unquote(match[3]) if match[3] else None
    return ModelSpec(unquote(match[1]), version, label)


def _decoded(scope: Scope, body: bytes) -> bytes:
    """The body, gunzipped if the request says so; a bad gzip counts as an empty document."""
    encodings = [value for name, value in scope["headers"] if name == b"content-encoding"]
    if not any(b"gzip" in value for value in encodings):
        return body
    unzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = unzip.decompress(body, _MAX_UNZIPPED)
    except (zlib.error, gzip.BadGzipFile):
        return b""
    return plain if unzip.eof and not unzip.unused_data else b""


def _has_origin(scope: Scope) -> bool:
    origins = [value for name, value in scope["headers"] if name == b"origin"]
    return any(b"http://" in value or b"https://" in value for value in origins)


async def _read_body(receive: Receive) -> bytes | None:
    """The whole request body, or None if the client went away."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def _reply(send: Send, status: int, content_type: bytes, body: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class RestFront:
    """A uvicorn server on one TCP address, in a thread of its own."""

    def __init__(self, plane: DataPlane, host: str, port: int, threads: int) -> None:
        """Bind the address. Raises `AddressInUseError` if it cannot be bound."""
        uvicorn = extras.load("uvicorn", "the REST API")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
            self._socket.listen(2048)  # now, for only this tells that another server is starting on the port
        except OSError as error:
            self._socket.close()
            raise AddressInUseError(
                f"cannot listen on {host}:{port} for REST: {error.strerror}; choose another with --rest_api_port"
            ) from error
        self.port: int = self._socket.getsockname()[1]
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="rest")
        config = uvicorn.Config(
            RestApp(plane, self._pool),
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="rest", daemon=True)

    def start(self) -> None:
        """Begin to answer; connections made before wait in the socket's queue."""
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """Refuse new connections, let running requests finish within ``grace_s`` seconds."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(grace_s)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(1.0)
        self._socket.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
