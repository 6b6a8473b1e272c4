"""One HTTP/1.1 connection: parses with httptools, keeps the order of pipelined requests, writes the answers.

It answers what a request line, a header or a body is worth before any route is looked at, as
libevent does under the original: bad targets and headers with 400, unknown methods with 501.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from time import perf_counter_ns
from typing import Any, Protocol

from .http import Application, Exchange, Request, Response, page

_log = logging.getLogger(__name__)

# Longer than clients keep an idle connection, so that the server does not close one that is being used.
KEEP_ALIVE_S = 75.0
# How long a client may pause within a request.
STALL_S = 60.0
# How long a client that was refused may go on sending.
LINGER_S = 2.0
MAX_BODY_BYTES = 2**31 - 1
# Request line and headers.
MAX_HEAD_BYTES = 64 * 2**10
# Requests of one connection that are read ahead while an earlier one is answered.
MAX_PIPELINED = 16

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("latin-1") for status in HTTPStatus
}
_STATUS_LINES[499] = b"HTTP/1.1 499 Client Closed Request\r\n"


class Host(Protocol):
    """What a connection asks of its server."""

    httptools: Any
    application: Application
    is_plain: Callable[[bytes], bool]
    pool: ThreadPoolExecutor
    loop: asyncio.AbstractEventLoop
    connections: set[Connection]
    stopping: bool
    now: float
    date: bytes

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Run a callback on the loop, from any thread."""


class Connection(asyncio.Protocol):
    """One client connection: parses, keeps the order of pipelined requests, writes the answers."""

    def __init__(self, server: Host) -> None:
        self._server = server
        self._parser = server.httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._waiting: deque[Request] = deque()
        self._running: Exchange | None = None  # the one whose answer is to come
        self._timer: asyncio.TimerHandle | None = None
        self._can_write = True
        self._closing = False  # after what is being answered
        self._ended = False  # the client has said that it will send no more
        self._refused = 0  # the status for what came behind the waiting requests and was none
        self._request: Request | None = None  # the one being read
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._received = 0
        self._head_bytes = 0
        self.active_at = 0.0

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.active_at = self._server.now
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._waiting.clear()
        self._closing = True
        if self._timer:
            self._timer.cancel()
        if self._running:
            self._running.abandon()

    def data_received(self, data: bytes) -> None:
        if self._closing or self._refused:
            return
        self.active_at = self._server.now
        errors = self._server.httptools
        if self._request is None:
            self._head_bytes += len(data)
        while data and not (self._closing or self._refused):
            try:
                self._parser.feed_data(data)
                if self._request is None and self._head_bytes > MAX_HEAD_BYTES:
                    self._refuse(431)
                return
            except errors.HttpParserUpgrade as upgrade:
                data = self._without_upgrade() + data[upgrade.args[0] :]
            except errors.HttpParserError as error:
                self._refuse(self._status_of(error, data))

    def eof_received(self) -> bool:
        self._ended = True
        return bool(self._running or self._waiting)  # who has asked may end its side, and is answered still

    def pause_writing(self) -> None:
        self._can_write = False
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._can_write = True
        self.active_at = self._server.now
        self._transport.resume_reading()
        self._next()

    # the parser's side

    def on_message_begin(self) -> None:
        self._target, self._headers, self._parts, self._received = b"", [], [], 0

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser.should_upgrade():
            return  # the parser takes the body for the other protocol's and stops: see `_without_upgrade`
        request = Request(parser.get_method(), self._target, self._headers, keep_alive=parser.should_keep_alive())
        self._request = request
        if parser.get_http_version() not in ("1.1", "1.0"):
            self._refuse(400)
            return
        for name, value in request.headers:
            if name == b"expect":
                if value.lower() != b"100-continue":
                    self._refuse(417)
                elif not (self._closing or self._refused):
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        self._received += len(part)
        if self._received > MAX_BODY_BYTES:
            self._refuse(413)
        elif not (self._closing or self._refused):
            self._parts.append(part)

    def on_message_complete(self) -> None:
        request = self._request
        if request is None:
            return
        self._request, self._target, self._head_bytes = None, b"", 0
        if self._closing or self._refused:
            return
        request.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        request.started_ns = perf_counter_ns()
        if self._running or self._waiting or not self._can_write:
            self._waiting.append(request)
            if len(self._waiting) >= MAX_PIPELINED:
                self._transport.pause_reading()
        else:
            self._handle(request)

    def _without_upgrade(self) -> bytes:
        """The head that was read, to be read again as one that does not ask for another protocol.

        There is none to change to, and the original answers as if it had not been asked.
        """
        method, version = self._parser.get_method(), self._parser.get_http_version().encode()
        self._parser = self._server.httptools.HttpRequestParser(self)
        if method == b"CONNECT":
            self._refuse(501)
        headers = [b"%b: %b\r\n" % header for header in self._headers if header[0] != b"upgrade"]
        return b"%b %b HTTP/%b\r\n%b\r\n" % (method, self._target, version, b"".join(headers))

    def _status_of(self, error: Exception, data: bytes) -> int:
        """What libevent answers to what the parser refuses."""
        errors = self._server.httptools
        if isinstance(error, errors.HttpParserCallbackError):  # not the client's fault: a method of ours failed
            _log.error("a request failed", exc_info=error)
            return 500
        words = data.split(b"\r\n", 1)[0].split(b" ")
        if isinstance(error, errors.HttpParserInvalidMethodError):
            return 400 if len(words) == 1 and b"\n" in data else 501
        if self._request is not None:
            return 413  # in the body: a bad chunk
        if isinstance(error, errors.HttpParserInvalidURLError):
            # A relative path is a target of no route; others are no targets.
            relative = len(words) == 3 and words[1] and self._server.is_plain(words[1]) and b"://" not in words[1]
            return 404 if relative else 400
        return 400

    # answering

    def _refuse(self, status: int) -> None:
        """Answer what cannot be understood, in its turn, and close; nothing behind it can be trusted."""
        if self._closing or self._refused:
            return
        if self._running or self._waiting:
            self._refused = status
            return
        self._closing = True
        if self._transport.is_closing():
            return
        self._send(page(status), keep_alive=False, with_body=True)
        # What the client still sends is dropped for a moment: closed at once, it would not see the answer.
        self._transport.write_eof()

    def _handle(self, request: Request) -> None:
        exchange = self._server.application(request)
        self._running = exchange
        done = partial(self._server.call_soon, self._done, request, exchange)
        if exchange.quick:
            response = exchange.run(done)
            if response is not None:
                self._running = None
                self._answer(request, exchange, response)
                return
        else:
            try:
                future = self._server.pool.submit(_run, exchange, done)
            except RuntimeError:  # the pool is shut down: the server stops
                self._running = None
                self._answer(request, exchange, page(503))
                return
            future.add_done_callback(lambda ended: done(page(503)) if ended.cancelled() else None)
        if exchange.timeout_s is not None:
            self._timer = self._server.loop.call_later(exchange.timeout_s, self._expire, request, exchange)

    def _done(self, request: Request, exchange: Exchange, response: Response) -> None:
        if self._running is not exchange:
            return  # answered already: it took too long
        self._release()
        self._answer(request, exchange, response)
        self._next()

    def _expire(self, request: Request, exchange: Exchange) -> None:
        if self._running is exchange:
            self._release()
            self._answer(request, exchange, exchange.expired())
            self._next()

    def _release(self) -> None:
        self._running = None
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _next(self) -> None:
        """Go on with the requests that were read ahead."""
        while self._waiting and not self._running and self._can_write:
            self._handle(self._waiting.popleft())
        if self._refused and not (self._waiting or self._running):
            status, self._refused = self._refused, 0
            self._refuse(status)
        if self._waiting or not self._can_write or self._transport.is_closing():
            return
        if self._ended and not self._running:
            self._transport.close()
        elif not self._ended:
            self._transport.resume_reading()

    def _answer(self, request: Request, exchange: Exchange, response: Response) -> None:
        self.active_at = self._server.now
        keep_alive = request.keep_alive and not (response.closes or self._closing or self._server.stopping)
        if not self._transport.is_closing():
            self._send(response, keep_alive=keep_alive, with_body=request.method != b"HEAD")
        exchange.finish(response)
        if not keep_alive:
            self._closing = True
            self._waiting.clear()
            self._transport.close()

    def _send(self, response: Response, *, keep_alive: bool, with_body: bool) -> None:
        extra = b"".join([b"%b: %b\r\n" % header for header in response.headers])
        self._transport.write(
            b"%bContent-Type: %b\r\nContent-Length: %d\r\nDate: %b\r\n%b%b\r\n%b"
            % (
                _STATUS_LINES[response.status],
                response.content_type,
                len(response.body),
                self._server.date,
                extra,
                b"" if keep_alive else b"Connection: close\r\n",
                response.body if with_body else b"",
            )
        )

    # the server's side

    def check(self, now: float) -> None:
        """Close a connection whose client has been silent for too long."""
        if self._running:
            return
        if not self._can_write:  # it does not take its answers, and close() would wait for it to
            if now - self.active_at > STALL_S:
                self._transport.abort()
            return
        if self._waiting:
            return
        limit = LINGER_S if self._closing else STALL_S if self._target else KEEP_ALIVE_S
        if now - self.active_at > limit:
            self._transport.close()

    def drain(self) -> None:
        """Close now if idle, else after the current answer."""
        if not (self._running or self._waiting or self._target):
            self._transport.close()

    def abort(self) -> None:
        """Close whatever is going on."""
        self._transport.abort()


def _run(exchange: Exchange, done: Callable[[Response], None]) -> None:
    """Answer in the pool."""
    response = exchange.run(done)
    if response is not None:
        done(response)
