"""Functions in processes of their own, with limits: what crashes, hangs or swallows memory costs nobody else."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .errors import ProcessError
from .nursery import DISK_FULL, LOG, RESULT, Nursery, Outcome, borrow, give_back, write_task
from .process import Limits, describe_exit, last_words

POLL_S = 0.1
MOST_LOG_BYTES = 100_000_000
_LAST_BYTES = 65536


Then = Callable[[Outcome], None]


@dataclass(frozen=True)
class _Waiting:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    then: Then
    begin: Callable[[], None]


@dataclass
class _Running:
    waiting: _Waiting
    folder: Path
    pid: int | None = None
    since: float = field(default_factory=time.monotonic)
    over: str | None = None


class Pool:
    """Runs tasks, so many at once; a context manager that leaves no process behind.

    A `ServableError` or an OSError that a task raises is its outcome. Any other exception, a signal, an
    exit and a limit that is passed give a `ProcessError` that says so, with the last lines of the task's log:
    "was killed by SIGSEGV; its last words: …", to be put behind what it was.
    """

    def __init__(self, folder: Path, modules: Sequence[str], at_once: int, limits: Limits) -> None:
        """``folder``, for tasks, results and logs, exists; ``modules`` are those that tasks import.

        The import begins here, beside whatever the caller does until `run`.
        """
        self._folder = folder
        self._modules = list(modules)
        self._at_once = at_once
        self._limits = limits
        self._waiting: deque[_Waiting] = deque()
        self._running: dict[int, _Running] = {}
        self._count = 0
        self._lost = False
        self._nursery: Nursery = borrow(modules)

    def submit(
        self, then: Then, function: Callable[..., Any], *arguments: Any, begin: Callable[[], None] = lambda: None
    ) -> None:
        """Call a function when there is room; ``then`` gets the outcome, in `run`, and may submit more.

        The function travels by name, so it can be imported; its arguments and what it returns are pickled.
        ``begin`` is called when the task is started.
        """
        self._waiting.append(_Waiting(function, arguments, then, begin))

    def run(self) -> None:
        """Run all tasks, also those that are submitted meanwhile. What a ``then`` raises ends it at once."""
        while self._waiting or self._running:
            while self._waiting and len(self._running) < self._at_once:
                self._start(self._waiting.popleft())
            self._step()

    def _start(self, waiting: _Waiting) -> None:
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        write_task(folder, waiting.function, waiting.arguments)
        if not self._running and not self._nursery.alive():  # it has waited for too long
            self._nursery.close()
            self._nursery = borrow(self._modules)
        self._running[self._count] = _Running(waiting, folder)
        waiting.begin()
        self._nursery.start(self._count, folder)

    def _step(self) -> None:
        """Hear the news, and have tasks killed that pass a limit."""
        try:
            news = self._nursery.news(POLL_S)
        except ProcessError as error:
            self._lose(f"{error}{self._nursery.close()}")
            return
        for each in news:
            running = self._running[each.task]
            if each.pid is not None:
                running.pid, running.since = each.pid, time.monotonic()
            if each.exit is not None:
                del self._running[each.task]
                outcome = _outcome(running, each.exit)
                shutil.rmtree(running.folder)
                running.waiting.then(outcome)
        for task, running in self._running.items():
            if running.pid is None and time.monotonic() - running.since > self._limits.seconds:
                self._lose(f"did not begin within {self._limits.seconds:g} s{self._nursery.close()}")
                return
            if running.pid is not None and not running.over:
                running.over = self._limits.passed_by(running.pid, running.since) or _overflow(running.folder / LOG)
                if running.over:
                    self._nursery.kill(task)

    def _lose(self, reason: str) -> None:
        """The nursery is gone, and its tasks with it; those that wait get another."""
        lost, self._running = list(self._running.values()), {}
        self._nursery = borrow(self._modules)
        again, self._lost = not self._lost, True
        for running in lost:
            if running.pid is None and again:  # it had waited too long, and ended when it was asked
                self._waiting.appendleft(running.waiting)
            else:
                running.waiting.then(Outcome(error=ProcessError(reason)))

    def close(self) -> None:
        """End what runs, and wait for it."""
        if self._running:
            self._nursery.close()
        elif self._nursery.alive():
            give_back(self._nursery, self._modules)
        else:
            self._nursery.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _overflow(log: Path) -> str | None:
    size = log.stat().st_size if log.exists() else 0
    return f"wrote more than {MOST_LOG_BYTES / 1e6:g} MB into its log" if size > MOST_LOG_BYTES else None


def _tail(log: Path) -> bytes:
    if not log.exists():
        return b""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LAST_BYTES))
        return file.read()


def _outcome(running: _Running, code: int) -> Outcome:
    words = last_words(_tail(running.folder / LOG))
    if running.over:
        return Outcome(error=ProcessError(f"{running.over}, and was stopped{words}"))
    if code == DISK_FULL:
        return Outcome(error=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    if code:
        return Outcome(error=ProcessError(f"{describe_exit(code)}{words}"))
    try:
        with (running.folder / RESULT).open("rb") as file:
            outcome: Outcome = pickle.load(file)  # noqa: S301  # our own child wrote it
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        return Outcome(error=ProcessError(f"left no result: {error}{words}"))
    return outcome
