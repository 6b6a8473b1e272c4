"""Several processes that serve the same: starts the workers, starts anew what dies, and speaks for all of them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple, Self

from ..errors import (
    AddressInUseError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    ProcessError,
    ServableError,
    UnavailableError,
    UnknownError,
)
from ..process import describe_exit
from . import families, model_config, server
from .core import RELOAD_TIMEOUT_S
from .families import Family, Snapshot
from .fleet import PART_LIMIT_S
from .link import Link, Question
from .model_config import ModelConfig
from .options import ServerOptions
from .orders import END_LIMIT_S, CommandLine, Config, Load, Start, portable
from .status import VersionStatus

_log = logging.getLogger("servable.workers")

# How long a worker may take to open its ports, or to look at a configuration.
_STEP_LIMIT_S = 30.0
# A worker that was ready for so long did not die of its start.
_STEADY_S = 5.0
_MAX_PAUSE_S = 30.0
_RELOAD_LIMIT_S = RELOAD_TIMEOUT_S + _STEP_LIMIT_S


class _Worker:
    """A place in the fleet, and the process that has it now."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], link: Link, config: Config | None) -> None:
        self.number = number
        self.process = process
        self.link = link
        self.config = config  # that it had when it joined
        self.joined = False  # whether it is asked what all are asked
        self.ready_since: float | None = None
        self.counted: Snapshot = ()

    def __str__(self) -> str:
        return f"worker {self.number} (process {self.process.pid})"


class Supervisor:
    """Serves with several processes; a context manager that stops on exit, as `Server` is one.

    Making one takes the ports and has every worker load the models; `start` has them answer.
    """

    def __init__(self, count: int, command_line: CommandLine, options: ServerOptions) -> None:
        """``options`` are those that follow from the command line.

        Raises what a `Server` raises, and `ProcessError` if a worker ends before it is ready.
        """
        server.check(options)
        _check(options)
        self.grpc_port = options.port
        self.rest_port = options.rest_api_port
        self._count = count
        self._command_line = command_line
        self._config: Config | None = None  # that came by a reload
        file = options.core.model_config_file
        self._from_file = portable(model_config.read(file)) if file else None  # what a worker last took from it
        self._reloading = threading.Lock()
        self._lock = threading.Lock()  # held for what is known of the workers
        self._workers: dict[int, _Worker] = {}
        self._restarts = 0
        self._dead: Snapshot = ()  # what the workers had counted that are no more
        self._closing = threading.Event()
        self._may_open = threading.Event()
        # What the start waits for; a signal may interrupt it, which would leave a lock held.
        self._news: SimpleQueue[Start | ServableError | None] = SimpleQueue()
        self._keepers: list[threading.Thread] = []
        self._held: list[socket.socket] = []
        try:
            self._hold_ports(options)
            for number in range(1, count + 1):
                keeper = threading.Thread(target=self._keep, args=(number,), name=f"worker-{number}", daemon=True)
                keeper.start()
                self._keepers.append(keeper)
            starts = [self._hear() for _ in range(count)]
        except BaseException:
            self.stop(at_once=True)
            raise
        self.found = starts[0] or Start()

    def _hold_ports(self, options: ServerOptions) -> None:
        if options.port is not None:
            self._held.append(_hold(options.host, options.port, "gRPC", "--port"))
        if options.rest_api_port is not None:
            self._held.append(_hold(options.host, options.rest_api_port, "REST", "--rest_api_port"))

    def _hear(self) -> Start | None:
        news = self._news.get()
        if isinstance(news, ServableError):
            raise news
        return news

    def start(self) -> Self:
        """Have all workers answer."""
        try:
            self._may_open.set()
            for _ in range(self._count):
                self._hear()
        except BaseException:
            self.stop(at_once=True)
            raise
        return self

    def stop(self, *, at_once: bool = False) -> None:
        """Have all workers let their running requests finish, or end at once, and wait for their end."""
        self._closing.set()
        self._may_open.set()
        with self._lock:  # nothing is started after this
            processes = [worker.process for worker in self._workers.values()]
        for process in processes:
            process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
        end = time.monotonic() + END_LIMIT_S
        for process in processes:
            _end(process, max(0.0, end - time.monotonic()))
        for keeper in self._keepers:
            keeper.join()
        for held in self._held:
            held.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    # keeping a place filled

    def _keep(self, number: int) -> None:
        """Run one worker after the other, until the end."""
        # Ctrl-C is for the supervisor: a process inherits this from the thread that starts it.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        was_ready, failures = False, 0
        while True:
            end = self._run(number, is_first=not was_ready)
            if self._closing.is_set():
                return
            was_ready = was_ready or end.ready_s > 0
            if not was_ready:
                self._news.put(end.error)
                return
            failures = 1 if end.ready_s > _STEADY_S else failures + 1
            pause_s = _pause_s(failures)
            _log.warning("%s; it is started again %s", end.text, f"in {pause_s:g} s" if pause_s else "at once")
            if self._closing.wait(pause_s):
                return
            with self._lock:
                self._restarts += 1

    def _run(self, number: int, *, is_first: bool) -> _End:
        """Start a worker, and wait for its end."""
        worker: _Worker | None = None
        try:
            worker = self._spawn(number)
            listener = threading.Thread(target=self._listen, args=(worker,), name=f"link-{number}", daemon=True)
            listener.start()
        except Exception as error:  # noqa: BLE001  # the place is not to stay empty
            if worker:
                worker.link.close()
                _end(worker.process, 0.0)
            problem = ProcessError(f"worker {number} cannot be started: {error}")
            return _End(problem, str(problem), 0.0)
        failure: ServableError | None = None
        try:
            self._bring_up(worker, is_first=is_first)
        except ServableError as error:
            failure = error if worker.link.is_open else None  # if it has died, how it did says more
        except Exception as error:  # noqa: BLE001  # the place is not to stay empty
            _log.exception("%s cannot be brought up", worker)
            failure = InternalError(f"{type(error).__name__}: {error}")
        if failure:
            worker.process.kill()
        listener.join()
        code = _end(worker.process, END_LIMIT_S)
        with self._lock:
            ready_s = 0.0 if worker.ready_since is None else time.monotonic() - worker.ready_since
            worker.joined, worker.ready_since = False, None
            counts = [family for family in worker.counted if family.kind != "gauge"]
            self._dead, worker.counted = families.total([self._dead, counts]), ()
        if failure:
            return _End(failure, f"{worker} cannot start: {failure}", ready_s)
        text = f"{worker} {describe_exit(code)}{'' if ready_s else ' before it was ready'}"
        return _End(ProcessError(text), text, ready_s)

    def _spawn(self, number: int) -> _Worker:
        # It shall find what this process finds, and nothing else in the folder that it runs in (-P).
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        ours, theirs = socket.socketpair()
        with ours, theirs, self._lock:
            if self._closing.is_set():
                raise ProcessError("the server is shutting down")
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": path},
            )
            worker = _Worker(number, process, Link(Connection(ours.detach())), self._config)
            self._workers[number] = worker
        return worker

    def _bring_up(self, worker: _Worker, *, is_first: bool) -> None:
        """Have a worker load and then answer; raises `ServableError` if it cannot, or dies."""
        load = Load(worker.number, is_first, self._command_line, worker.config, self._from_file)
        start: Start = worker.link.ask("load", load, limit_s=None)
        if is_first:
            self._news.put(start)
        else:
            for name, number in start.not_served:
                _log.warning("%s does not serve %s version %d: %s", worker, name, number, start.versions[name, number])
            for warning in start.warnings:
                _log.warning("%s: %s", worker, warning)
        self._may_open.wait()
        if self._closing.is_set():
            raise UnavailableError("the server is shutting down")
        while not self._join(worker):  # there was a reload while it started
            config = worker.config = self._config
            with suppress(UnknownError, DeadlineExceededError):  # it is in force, and others have told why
                worker.link.ask("reload", config, limit_s=_RELOAD_LIMIT_S)
        worker.link.ask("open", limit_s=_STEP_LIMIT_S)
        with self._lock:
            worker.ready_since = time.monotonic()
        if is_first:
            self._news.put(None)
        else:
            _log.info("%s is ready", worker)

    def _join(self, worker: _Worker) -> bool:
        """Have a worker asked what all are asked, if it has the configuration of all."""
        with self._lock:
            worker.joined = worker.config is self._config
            return worker.joined

    # what workers ask

    def _listen(self, worker: _Worker) -> None:
        worker.link.listen(
            {
                "counted": partial(self._note_counts, worker),
                "unloaded": self._forget_counts,
                "configs": self._note_configs,
                "metrics": partial(self._metrics, worker),
                "statuses": partial(self._statuses, worker),
                "reload": self._reload,
            }
        )

    def _note_counts(self, worker: _Worker, snapshot: Snapshot) -> None:
        with self._lock:
            worker.counted = snapshot

    def _note_configs(self, configs: list[ModelConfig]) -> None:
        self._from_file = configs

    def _forget_counts(self, model: str, version: int) -> None:
        """Show no more what workers that are no more had counted of a version that is gone."""
        with self._lock:
            self._dead = [family.copy() for family in self._dead]  # they may be on their way
            for family in self._dead:
                if tuple(family.labels[:2]) == ("model_name", "version"):
                    family.drop(lambda labels: labels[:2] == (model, str(version)))

    def _metrics(self, asker: _Worker) -> list[Snapshot]:
        """The counts of all workers as they are now; of one that does not answer, those of its last word."""
        self._ask_all("count", limit_s=PART_LIMIT_S, but=asker)
        with self._lock:
            ready = sum(worker.ready_since is not None for worker in self._workers.values())
            workers = Family("servable_workers", "gauge", ("state",))
            workers.add(("ready",), ready)
            workers.add(("starting",), self._count - ready)
            restarts = Family("servable_worker_restarts_total", "counter", ())
            restarts.add((), self._restarts)
            return [self._dead, *(worker.counted for worker in self._workers.values()), [workers, restarts]]

    def _statuses(self, asker: _Worker, name: str, version: int | None) -> list[list[VersionStatus]]:
        """What the other workers say; one that does not answer is left out."""
        answers = self._ask_all("statuses", name, version, limit_s=PART_LIMIT_S, but=asker)
        return [answer for answer in answers if not isinstance(answer, ServableError)]

    def _reload(self, serialized: bytes) -> None:
        """Have all workers take a configuration, or none if one of them refuses it."""
        if not self._reloading.acquire(timeout=RELOAD_TIMEOUT_S):
            raise DeadlineExceededError("another reload of the configuration is still waiting for its models")
        try:
            config = Config(serialized)
            _raise_first(self._ask_all("check", config, limit_s=_STEP_LIMIT_S))
            with self._lock:  # in force from here on, also for those that join later
                self._config = config
            _raise_first(self._ask_all("reload", config, limit_s=_RELOAD_LIMIT_S))
        finally:
            self._reloading.release()

    def _ask_all(self, name: str, *arguments: Any, limit_s: float, but: _Worker | None = None) -> list[Any]:
        """The answers of all workers, or the error in place of one; those that die are left out."""
        with self._lock:
            asked = [worker for worker in self._workers.values() if worker.joined and worker is not but]
        questions: list[Question | ServableError] = []
        for worker in asked:
            try:
                questions.append(worker.link.begin(name, *arguments, limit_s=limit_s))
            except ServableError as error:
                questions.append(error)
        answers: list[Any] = []
        for worker, question in zip(asked, questions, strict=True):
            try:
                answer = question if isinstance(question, ServableError) else question.wait()
            except ServableError as error:
                answer = error
            if worker.link.is_open:
                answers.append(answer)
        return answers


class _End(NamedTuple):
    """Why a worker ended, as an error and in words, and how long it was ready."""

    error: ServableError
    text: str
    ready_s: float


def _pause_s(failures: int) -> float:
    """How long to wait after so many failures in a row: not at all, then 1, 2, 4, … seconds."""
    return min(_MAX_PAUSE_S, 2.0 ** min(failures - 2, 10)) if failures > 1 else 0.0


def _raise_first(answers: list[Any]) -> None:
    for answer in answers:
        if isinstance(answer, ServableError):
            raise answer


def _end(process: subprocess.Popen[bytes], limit_s: float) -> int:
    """The exit code of a process, which is killed if it does not end by itself."""
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _check(options: ServerOptions) -> None:
    if options.grpc.socket_path:
        raise InvalidArgumentError("--grpc_socket_path cannot be given with --workers: processes share ports only")
    if not hasattr(socket, "SO_REUSEPORT"):
        raise InvalidArgumentError("--workers needs SO_REUSEPORT, which this platform does not have; leave it out")


def _hold(host: str, port: int, protocol: str, flag: str) -> socket.socket:
    """A socket that keeps a port for this process and its workers, and takes no connections itself."""
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # As a server binds, so that connections of an earlier one, which are closed, are no hindrance.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, port))
    except OSError as error:
        held.close()
        raise AddressInUseError(
            f"cannot listen on {host}:{port} for {protocol}: {error.strerror}; choose another with {flag}"
        ) from error
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # from here on no other server can bind it
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # and the workers can
    return held
