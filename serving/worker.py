"""The process of one worker: a server whose ports others share, at the end of a supervisor's line."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from queue import SimpleQueue

from .. import streams
from ..errors import ServableError
from . import logs, model_config, options
from .core import Core
from .fleet import Fleet
from .link import Link
from .options import Plan, ServerOptions
from .orders import GRACE_S, WORKER_END_LIMIT_S, Config, Load, Start
from .server import Server
from .sources import ConfigSource, Source

# More connections than this many are not to be expected, and so many more files than connections.
_HIGHEST = 4096
_SPARE = 64


class Worker:
    """Answers its supervisor, and serves until that ends or SIGTERM comes."""

    def __init__(self, connection: Connection) -> None:
        self._link = Link(connection)
        self._fleet = Fleet(self._link)
        self._server: Server | None = None
        self._is_open = False
        self._ends: SimpleQueue[None] = SimpleQueue()  # whose put may come from a signal at any time

    def run(self) -> None:
        """Serve, then end the process. Running requests may finish before; a load is not waited for."""
        signal.signal(signal.SIGTERM, lambda *_: self._ends.put(None))
        threading.Thread(target=self._listen, name="link", daemon=True).start()
        self._ends.get()
        if self._server and self._is_open:
            threading.Timer(WORKER_END_LIMIT_S, os._exit, (1,)).start()
            self._server.stop(GRACE_S)
            with suppress(ServableError):
                self._fleet.monitor.publish()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # the interpreter would wait for runs that go on past the grace period

    def _listen(self) -> None:
        try:
            self._link.listen(
                {
                    "load": self._load,
                    "open": self._open,
                    "statuses": self._fleet.statuses,
                    "count": self._fleet.monitor.publish,
                    "check": self._check,
                    "reload": self._reload,
                }
            )
        finally:
            self._ends.put(None)  # without its supervisor no worker goes on

    # what the supervisor asks

    def _load(self, load: Load) -> Start:
        logs.configure(load.command_line.log_format, worker=load.number)
        start = Start()
        with streams.silenced():
            line = load.command_line
            # The config file may be half-written just now.
            plan = options.from_flags(line.given, line.own, line.store, load.from_file)
            given = _shared(plan.options, load)
            self._server = Server(_source(plan, load), given, start.note, start.warnings.append, self._fleet)
        return start

    def _open(self) -> None:
        assert self._server
        with _high_descriptors():
            self._server.start()
        self._is_open = True

    def _check(self, config: Config) -> None:
        self._core().check(config.message())

    def _reload(self, config: Config) -> None:
        self._core().reload(config.message())

    def _core(self) -> Core:
        assert self._fleet.core
        return self._fleet.core


def _source(plan: Plan, load: Load) -> Source:
    if load.reloaded:
        return ConfigSource(model_config.parse(load.reloaded.message(), where=""))
    return plan.source


def _shared(given: ServerOptions, load: Load) -> ServerOptions:
    """The same options for ports that others bind too, and for this start."""
    core = replace(given.core, start_in_part=not load.is_first)
    if load.reloaded:
        wait_s = max(0, core.file_system_poll_wait_seconds)  # look once at least, as a reload does
        core = replace(core, file_system_poll_wait_seconds=wait_s)
    return replace(
        given, grpc=replace(given.grpc, reuse_port=True), rest=replace(given.rest, reuse_port=True), core=core
    )


@contextmanager
def _high_descriptors() -> Iterator[None]:
    """Have what is opened get high numbers, as the sockets that listen shall.

    When a process is killed, Linux closes its highest descriptor first. Were the connections first, their
    clients would come back at once, to a socket that still listens and is closed before anybody answers.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = min(_HIGHEST, soft) - _SPARE if soft > 0 else _HIGHEST
    taken = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while taken[-1] < limit:
            taken.append(os.dup(taken[0]))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)


def main() -> None:
    """Be the worker at the end of the socket whose number is the only argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    streams.prepare()
    Worker(Connection(int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
