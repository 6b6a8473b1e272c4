"""The server as a whole: its models, a data plane, and the fronts that speak for it."""

from __future__ import annotations

import logging
import socket
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .. import extras
from ..errors import InvalidArgumentError
from ..store import Store
from .access_log import AccessLog
from .core import Core
from .data_plane import DataPlane
from .grpc_front import GrpcFront
from .loader import Loader
from .manager import Manager, Report
from .monitoring import Monitor
from .options import ServerOptions
from .rest_front import RestFront
from .sources import Aspired, Fixed, Source, StoreSource

if TYPE_CHECKING:
    from .fleet import Fleet


_log = logging.getLogger(__name__)

# How long a stop waits for models to be unloaded; one whose run never ends cannot be.
_CLOSE_LIMIT_S = 5.0


class Server:
    """Serves models; a context manager that stops on exit.

    Making one binds the ports and loads the models, so that bad ports and bad models are known
    before anything is answered; `start` begins to answer.
    """

    def __init__(
        self,
        source: Source | Store | Sequence[Aspired],
        options: ServerOptions,
        report: Report = lambda *_: None,
        warn: Callable[[str], None] = warnings.warn,
        fleet: Fleet | None = None,
    ) -> None:
        """Raises `AddressInUseError`, `StoreError` or `MissingExtraError`.

        ``source`` says what is served: a store, all of whose versions are, or the versions themselves.
        ``report`` hears of each version that was loaded or failed at start, ``warn`` of models of which
        there are none. In a ``fleet`` the ports are those of others too, and are bound by `start`: what
        is bound gets connections.
        """
        check(options)
        self._options = options
        self._monitor = fleet.monitor if fleet else Monitor()
        self._loader = Loader(options.load, options.batching, options.warmup, self._monitor)
        self._manager = Manager(self._loader, options.lifecycle, self._monitor, report)
        self._core = Core(self._manager, _source(source), options.core, warn)
        self._plane = DataPlane(
            fleet.join(self._core) if fleet else self._core,
            check_method_names=options.check_method_names,
            batching=bool(options.batching),
        )
        self._fronts: list[GrpcFront | RestFront] = []
        self.grpc_port: int | None = None
        self.rest_port: int | None = None
        try:
            if not fleet:
                self._bind()
            self._core.start()
        except BaseException:
            self.stop(grace_s=0.0)
            raise

    def _bind(self) -> None:
        options, log = self._options, AccessLog(enabled=self._options.access_log)
        if options.port is not None or options.grpc.socket_path:
            grpc_options = replace(options.grpc, host=options.host, port=options.port)
            grpc = GrpcFront(self._plane, grpc_options, self._monitor, log)
            self._fronts.append(grpc)
            self.grpc_port = grpc.port
        if options.rest_api_port is not None:
            rest = RestFront(self._plane, options.host, options.rest_api_port, options.rest, self._monitor, log)
            self._fronts.append(rest)
            self.rest_port = rest.port

    def start(self) -> Self:
        """Open the fronts."""
        try:
            if not self._fronts:
                self._bind()
            for front in self._fronts:
                front.start()
        except BaseException:
            self.stop(grace_s=0.0)
            raise
        return self

    def stop(self, grace_s: float = 5.0) -> None:
        """Stop the fronts, let running requests finish within ``grace_s`` seconds, unload the models."""
        self._loader.hurry()
        stopping = [threading.Thread(target=front.stop, args=(grace_s,)) for front in self._fronts]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()
        self._fronts.clear()
        closing = threading.Thread(target=self._close, name="close", daemon=True)
        closing.start()
        closing.join(_CLOSE_LIMIT_S)
        if closing.is_alive():
            _log.warning("a model is still running; it is left behind")

    def _close(self) -> None:
        self._core.close()
        self._manager.close()
        self._loader.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def check(options: ServerOptions) -> None:
    """Raise `MissingExtraError` or `InvalidArgumentError` where no server can be made with these options."""
    extras.require("httptools", "the server")
    if options.port is None and options.rest_api_port is None and not options.grpc.socket_path:
        raise InvalidArgumentError("neither a gRPC port nor a REST port is given: there is nothing to serve")
    try:
        socket.getaddrinfo(options.host, None)
    except OSError as error:
        raise InvalidArgumentError(f"cannot listen on {options.host!r}: {error.strerror or error}") from error


def _source(given: Source | Store | Sequence[Aspired]) -> Source:
    if isinstance(given, Store):
        return StoreSource(given)
    return Fixed(given) if isinstance(given, Sequence) else given
