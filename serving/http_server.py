"""An HTTP/1.1 server on httptools and uvloop, made for the REST API's kind of requests.

A request that is known to be quick runs on the event loop itself, which saves two changes of thread;
the others run in a pool, so that they hold up nobody.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import formatdate
from typing import Any

from .. import extras
from ..errors import AddressInUseError
from .http import Application
from .http_connection import Connection

_TICK_S = 1.0


class HttpServer:
    """Listens on one TCP address, in a thread of its own."""

    def __init__(
        self,
        application: Application,
        host: str,
        port: int,
        threads: int,
        is_plain: Callable[[bytes], bool],
        *,
        reuse_port: bool = False,
    ) -> None:
        """Bind the address; ``threads`` are the pool's, ``is_plain`` tells a clean request target.

        With ``reuse_port`` other processes may bind it too, if they say so as well.

        Raises `AddressInUseError` if the address cannot be bound and `MissingExtraError` without httptools.
        """
        self.httptools = extras.load("httptools", "the REST API")
        self.application = application
        self.is_plain = is_plain
        self._socket = _bind(host, port, reuse_port=reuse_port)
        self.port: int = self._socket.getsockname()[1]
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="rest")
        self.connections: set[Connection] = set()
        self.stopping = False
        self.now = 0.0
        self.date = b""
        self.loop = _new_event_loop()
        self._listener: asyncio.Server | None = None
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="rest", daemon=True)

    def start(self) -> None:
        """Begin to answer; connections made before wait in the socket's queue."""
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self._tick()
        self.loop.run_until_complete(self._listen())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    async def _listen(self) -> None:
        self._listener = await self.loop.create_server(lambda: Connection(self), sock=self._socket, backlog=2048)
        await self._ended.wait()

    def _tick(self) -> None:
        self.now = self.loop.time()
        self.date = formatdate(usegmt=True).encode()
        for connection in list(self.connections):
            connection.check(self.now)
        self.loop.call_later(_TICK_S, self._tick)

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Run a callback on the loop, from any thread; dropped where the loop has ended."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(callback, *arguments)

    def stop(self, grace_s: float) -> None:
        """Refuse new connections, let running requests finish within ``grace_s`` seconds."""
        if self._thread.is_alive():
            self.call_soon(self._drain, self.loop.time() + grace_s)
            self._thread.join(grace_s + 5)
        else:
            self.loop.close()
        self._socket.close()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _drain(self, end: float) -> None:
        self.stopping = True
        if self._listener:
            self._listener.close()
        for connection in list(self.connections):
            connection.drain()
        if self._listener and not self.connections:
            self._ended.set()
        elif self.loop.time() < end or not self._listener:  # a stop may come while it only starts to listen
            self.loop.call_later(0.02, self._drain, end)
        else:
            for connection in list(self.connections):
                connection.abort()
            self.loop.call_soon(self._ended.set)


def _bind(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)  # now, for only this tells that another server is starting on the port
    except OSError as error:
        bound.close()
        raise AddressInUseError(
            f"cannot listen on {host}:{port} for REST: {error.strerror}; choose another with --rest_api_port"
        ) from error
    return bound


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not for Windows
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
