"""A gRPC server on grpcio's C core, with one thread that takes what comes from its completion queue.

grpcio's own Python server hands each call through a condition variable to a thread pool and back, at
about twice the price of the call itself. Here a handler that is known to be quick runs on the queue's
thread; the others run in a pool. HTTP/2, TLS, flow control, deadlines and compression are the C
core's. It is reached through ``grpc._cython.cygrpc``, as grpcio's own server (``grpc/_server.py``)
reaches it: that layer is not public, so the tests hold every use of it against public clients.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter_ns
from typing import Any, Protocol

import grpc
from grpc._cython import cygrpc

from ..errors import Code

_log = logging.getLogger(__name__)

Metadata = Sequence[tuple[str, str | bytes]]
_NO_FLAGS = 0


class Reply:
    """What a unary call is answered with: a serialized message, or a code with a message text."""

    __slots__ = ("code", "data", "details", "initial", "trailing")

    def __init__(
        self,
        data: bytes = b"",
        code: Code = Code.OK,
        details: str = "",
        *,
        initial: Metadata = (),
        trailing: Metadata = (),
    ) -> None:
        self.data = data
        self.code = code
        self.details = details
        self.initial = initial
        self.trailing = trailing


class Work(Protocol):
    """A unary call in the hands of a service."""

    quick: bool  # whether `run` may run on the queue's thread

    def run(self, done: Callable[[Reply], None]) -> Reply | None:
        """Answer, or return None and call ``done`` with the answer later, from any thread; never raises."""

    def abandon(self) -> None:
        """Hear that nobody waits for the answer any more."""


# What makes a call's work of its serialized request, its metadata and the time it came (perf_counter_ns).
Unary = Callable[[bytes, Metadata, int], Work]
# What hears of a stream's messages; None is the end of the client's side.
StreamHandler = Callable[["Stream", bytes | None], None]


class CoreServer:
    """Serves methods on any number of addresses."""

    def __init__(self, options: Sequence[tuple[str, int | str]], threads: int) -> None:
        """``options`` are grpc server options, ``threads`` the pool's for calls that are not quick."""
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(tuple(options), xds=False)
        self._server.register_completion_queue(self._queue)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="grpc")
        self._unary: dict[bytes, Unary] = {}
        self._streams: dict[bytes, StreamHandler] = {}
        # Held in every call into the C server, for its thread destroys it when nothing is pending any more.
        self._lock = threading.Lock()
        self._pending = 0  # operations that the queue will still tell of
        self._started = False
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="grpc", daemon=True)

    def add_unary(self, service: str, method: str, handler: Unary) -> None:
        """Serve a method of one message in, one out."""
        self._unary[f"/{service}/{method}".encode()] = handler

    def add_stream(self, service: str, method: str, handler: StreamHandler) -> None:
        """Serve a method with streams in one or both directions."""
        self._streams[f"/{service}/{method}".encode()] = handler

    def listen(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Bind ``host:port`` or ``unix:path``; returns the port, 0 if it cannot be bound."""
        if credentials is None:
            port: int = self._server.add_http2_port(address.encode())
            return port
        secure: int = self._server.add_http2_port(address.encode(), credentials._credentials)
        return secure

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()
        self._started = True
        self._request_call()
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """Refuse new calls, let running ones finish within ``grace_s`` seconds, and wait for the end."""
        if not self._started:
            self._server.start()  # the C core cannot shut down a server that never ran
            self._started = True
            self._thread.start()
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
            self._pending += 1
            self._server.shutdown(self._queue, self._on_shutdown)
        self._thread.join(grace_s)
        with self._lock:
            if self._pending:
                self._server.cancel_all_calls()
        self._thread.join(5.0)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _serve(self) -> None:
        while True:
            event = self._queue.poll()
            try:
                event.tag(event)
            except Exception:  # noqa: BLE001  # one call must not end the server
                _log.exception("a gRPC event failed")
            event = None  # a reference to a finished call would keep the C core from ending it
            with self._lock:
                self._pending -= 1
                if self._stopping and not self._pending:
                    self._server.destroy()
                    return

    def _on_shutdown(self, event: Any) -> None:
        """All calls have ended."""

    def _request_call(self) -> None:
        with self._lock:
            if self._stopping:
                return
            self._pending += 1
            self._server.request_call(self._queue, self._queue, self._on_call)

    def _on_call(self, event: Any) -> None:
        arrived_ns = perf_counter_ns()
        if not event.success:
            return  # the server stops
        self._request_call()
        method = event.call_details.method
        unary = self._unary.get(method)
        if unary:
            _UnaryCall(self, event, unary, arrived_ns).receive()
        elif method in self._streams:
            Stream(self, event, self._streams[method]).receive()
        else:
            _Call(self, event).fail(Code.UNIMPLEMENTED, "")

    # what a call asks of its server

    def begin(self, call: _Call, operations: Sequence[Any], on_done: Callable[[Any], None]) -> None:
        """Start a batch of operations, unless the call has ended: the C core takes no more for it then.

        ``on_done`` hears of the batch's end on the queue's thread.
        """
        with self._lock:
            self._begin(call, operations, on_done)

    def watch(self, call: _Call, on_closed: Callable[[Any], None]) -> None:
        """Have ``on_closed`` hear of the call's end, unless somebody does already."""
        with self._lock:
            if not call.watched:
                call.watched = True
                self._begin(call, (cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),), on_closed)

    def end(self, call: _Call, operations: tuple[Any, ...]) -> None:
        """Start the last operations of a call."""
        with self._lock:
            if not call.watched:
                call.watched = True
                operations = (*operations, cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS))
            self._begin(call, operations, _ignore)

    def _begin(self, call: _Call, operations: Sequence[Any], on_done: Callable[[Any], None]) -> None:
        if not call.closed:
            call.core.start_server_batch(operations, on_done)
            self._pending += 1

    def close(self, call: _Call) -> None:
        """Begin no more for this call."""
        with self._lock:
            call.closed = True

    def submit(self, work: Callable[[], None]) -> bool:
        """Run in the pool; False if the server has stopped."""
        try:
            self._pool.submit(work)
        except RuntimeError:
            return False
        return True


class _Call:
    """One call and its end: closed by the client, cancelled, past its deadline, or answered.

    The C core is asked to tell of the end (`watch`) before anything that takes time; a call that is
    answered at once asks for it with the answer.
    """

    __slots__ = ("_server", "closed", "core", "metadata", "watched")

    def __init__(self, server: CoreServer, event: Any) -> None:
        self._server = server
        self.core = event.call
        self.metadata: Metadata = event.invocation_metadata
        self.closed = False  # whether nobody waits for an answer any more
        self.watched = False  # whether the C core was asked to tell of the end

    def watch(self) -> None:
        """Have `closed` tell from now on whether the call has ended."""
        self._server.watch(self, self._on_closed)

    def _on_closed(self, event: Any) -> None:
        self._server.close(self)

    def reply(self, reply: Reply) -> None:
        """Answer a unary call and end it."""
        if reply.code is not Code.OK:
            self.fail(reply.code, reply.details, reply.initial, reply.trailing)
            return
        self._server.end(
            self,
            (
                cygrpc.SendInitialMetadataOperation(reply.initial, _NO_FLAGS),
                cygrpc.SendMessageOperation(reply.data, _NO_FLAGS),
                cygrpc.SendStatusFromServerOperation(reply.trailing, 0, b"", _NO_FLAGS),
            ),
        )

    def fail(self, code: Code, details: str, initial: Metadata = (), trailing: Metadata = ()) -> None:
        """End a call that has been sent nothing with a status."""
        text = details.encode("utf-8", "replace")
        self._server.end(
            self,
            (
                cygrpc.SendInitialMetadataOperation(initial, _NO_FLAGS),
                cygrpc.SendStatusFromServerOperation(trailing, int(code), text, _NO_FLAGS),
            ),
        )


def _ignore(event: Any) -> None:
    """For batches after which nothing is to be done."""


class _UnaryCall(_Call):
    __slots__ = ("_arrived_ns", "_handler", "_work")

    def __init__(self, server: CoreServer, event: Any, handler: Unary, arrived_ns: int) -> None:
        super().__init__(server, event)
        self._handler = handler
        self._arrived_ns = arrived_ns
        self._work: Work | None = None

    def receive(self) -> None:
        self._server.begin(self, (cygrpc.ReceiveMessageOperation(_NO_FLAGS),), self._on_message)

    def _on_message(self, event: Any) -> None:
        raw = event.batch_operations[0].message()
        if raw is None:
            self.fail(Code.INTERNAL, "the call ended before its request")
            return
        try:
            work = self._handler(raw, self.metadata, self._arrived_ns)
        except Exception:
            self.fail(Code.INTERNAL, "the server failed; its log says where")
            raise
        self._work = work
        if work.quick:
            self._run()
            return
        self.watch()
        if not self._server.submit(self._run):
            self.fail(Code.UNAVAILABLE, "the server is shutting down")

    def _run(self) -> None:
        if self.closed or self._work is None:
            return
        reply = self._work.run(self.reply)
        if reply is None:
            self.watch()
        else:
            self.reply(reply)

    def _on_closed(self, event: Any) -> None:
        super()._on_closed(event)
        if self._work is not None:
            self._work.abandon()


class Stream(_Call):
    """A call whose handler sends any number of messages, from any thread, and then finishes it."""

    __slots__ = ("_finished", "_handler", "_lock", "_messages", "_sending", "_status", "_wants")

    def __init__(self, server: CoreServer, event: Any, handler: StreamHandler) -> None:
        super().__init__(server, event)
        self._handler = handler
        self._lock = threading.Lock()
        self._messages: deque[bytes] = deque()
        self._status: tuple[Code, str] | None = None
        self._finished = False  # the status is on its way
        self._wants = False  # a message of the client, when all of ours are sent
        self._sending = True
        self.watch()
        self._server.begin(self, (cygrpc.SendInitialMetadataOperation((), _NO_FLAGS),), self._on_sent)

    def receive(self) -> None:
        """Wait for the client's next message, once it has taken ours: it cannot make us pile up answers."""
        with self._lock:
            self._wants = True
        self._go_on()

    def _on_message(self, event: Any) -> None:
        try:
            self._handler(self, event.batch_operations[0].message())
        except Exception:
            self.finish(Code.INTERNAL, "the server failed; its log says where")
            raise

    def send(self, data: bytes) -> None:
        """Send a message after those before it."""
        with self._lock:
            self._messages.append(data)
        self._go_on()

    def finish(self, code: Code, details: str = "") -> None:
        """End the call when all messages are sent."""
        with self._lock:
            self._status = (code, details)
        self._go_on()

    def _on_sent(self, event: Any) -> None:
        with self._lock:
            self._sending = False
        self._go_on()

    def _go_on(self) -> None:
        with self._lock:
            if self._sending or self._finished:
                return
            on_done = self._on_sent
            if self._messages:
                operation = cygrpc.SendMessageOperation(self._messages.popleft(), _NO_FLAGS)
                self._sending = True
            elif self._status:
                code, details = self._status
                operation = cygrpc.SendStatusFromServerOperation((), int(code), details.encode(), _NO_FLAGS)
                self._finished = True
            elif self._wants:
                operation, on_done = cygrpc.ReceiveMessageOperation(_NO_FLAGS), self._on_message
                self._wants = False
            else:
                return
        self._server.begin(self, (operation,), on_done)
