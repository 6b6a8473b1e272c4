"""The server as a whole: a store, a data plane, and the fronts that speak for it."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ..errors import InvalidArgumentError
from ..store import Store
from .data_plane import DataPlane
from .grpc_front import GrpcFront
from .manager import Manager, Report
from .rest_front import RestFront
from .servable import RuntimeChoice


@dataclass(frozen=True)
class ServerOptions:
    """Where to listen and how to run; a port of None is not opened, 0 takes any free one.

    ``threads`` bounds the requests that each front runs at the same time.
    """

    host: str = "127.0.0.1"
    port: int | None = 8500
    rest_api_port: int | None = 8501
    runtime: RuntimeChoice = "auto"
    threads: int = 4 * (os.cpu_count() or 1)


class Server:
    """Serves all models and versions of a store; a context manager that stops on exit.

    Making one binds the ports and loads the models, so that bad ports and bad stores are known
    before anything is answered; `start` begins to answer.
    """

    def __init__(self, store: Store, options: ServerOptions, report: Report = lambda *_: None) -> None:
        """Raises `AddressInUseError`, `StoreError` or `MissingExtraError`."""
        if options.port is None and options.rest_api_port is None:
            raise InvalidArgumentError("neither a gRPC port nor a REST port is given: there is nothing to serve")
        try:
            socket.getaddrinfo(options.host, None)
        except OSError as error:
            raise InvalidArgumentError(f"cannot listen on {options.host!r}: {error.strerror or error}") from error
        self._manager = Manager()
        plane = DataPlane(self._manager)
        self._fronts: list[GrpcFront | RestFront] = []
        self.grpc_port: int | None = None
        self.rest_port: int | None = None
        try:
            if options.port is not None:
                grpc = GrpcFront(plane, options.host, options.port, options.threads)
                self._fronts.append(grpc)
                self.grpc_port = grpc.port
            if options.rest_api_port is not None:
                rest = RestFront(plane, options.host, options.rest_api_port, options.threads)
                self._fronts.append(rest)
                self.rest_port = rest.port
            self._manager.load_store(store, options.runtime, report)
        except BaseException:
            self.stop(grace_s=0.0)
            raise

    def start(self) -> Self:
        """Open both fronts."""
        try:
            for front in self._fronts:
                front.start()
        except BaseException:
            self.stop(grace_s=0.0)
            raise
        return self

    def stop(self, grace_s: float = 5.0) -> None:
        """Stop both fronts, let running requests finish within ``grace_s`` seconds, unload the models."""
        for front in self._fronts:
            front.stop(grace_s)
        self._fronts.clear()
        self._manager.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
