"""The server as a whole: its models, a data plane, and the fronts that speak for it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from .. import extras
from ..errors import InvalidArgumentError
from ..store import Store
from . import sources
from .access_log import AccessLog
from .data_plane import DataPlane
from .grpc_front import GrpcFront
from .manager import Manager, Report
from .monitoring import Monitor
from .options import ServerOptions
from .rest_front import RestFront
from .sources import Aspired


class Server:
    """Serves models; a context manager that stops on exit.

    Making one binds the ports and loads the models, so that bad ports and bad models are known
    before anything is answered; `start` begins to answer.
    """

    def __init__(
        self, source: Store | Sequence[Aspired], options: ServerOptions, report: Report = lambda *_: None
    ) -> None:
        """Raises `AddressInUseError`, `StoreError` or `MissingExtraError`.

        ``source`` is a store, all of whose versions are served, or the versions to serve.
        """
        extras.require("httptools", "the server")
        if options.port is None and options.rest_api_port is None and not options.grpc.socket_path:
            raise InvalidArgumentError("neither a gRPC port nor a REST port is given: there is nothing to serve")
        try:
            socket.getaddrinfo(options.host, None)
        except OSError as error:
            raise InvalidArgumentError(f"cannot listen on {options.host!r}: {error.strerror or error}") from error
        monitor, log = Monitor(), AccessLog(enabled=options.access_log)
        self._manager = Manager(options.load, monitor)
        plane = DataPlane(self._manager, check_method_names=options.check_method_names)
        self._fronts: list[GrpcFront | RestFront] = []
        self.grpc_port: int | None = None
        self.rest_port: int | None = None
        try:
            if options.port is not None or options.grpc.socket_path:
                grpc_options = replace(options.grpc, host=options.host, port=options.port)
                grpc = GrpcFront(plane, grpc_options, monitor, log)
                self._fronts.append(grpc)
                self.grpc_port = grpc.port
            if options.rest_api_port is not None:
                rest = RestFront(plane, options.host, options.rest_api_port, options.rest, monitor, log)
                self._fronts.append(rest)
                self.rest_port = rest.port
            self._manager.load(sources.from_store(source) if isinstance(source, Store) else source, report)
        except BaseException:
            self.stop(grace_s=0.0)
            raise

    def start(self) -> Self:
        """Open the fronts."""
        try:
            for front in self._fronts:
                front.start()
        except BaseException:
            self.stop(grace_s=0.0)
            raise
        return self

    def stop(self, grace_s: float = 5.0) -> None:
        """Stop the fronts, let running requests finish within ``grace_s`` seconds, unload the models."""
        stopping = [threading.Thread(target=front.stop, args=(grace_s,)) for front in self._fronts]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()
        self._fronts.clear()
        self._manager.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
