"""A child process whose exit is always looked at: own log, readiness with a time limit, a clean stop."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import ProcessError

POLL_S = 0.05


def describe_exit(code: int) -> str:
    """An exit code in words; a negative one is a signal, by name.

    >>> describe_exit(-11)
    'was killed by SIGSEGV'
    >>> describe_exit(3)
    'ended with exit code 3'
    """
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


class Child:
    """A running command whose output goes to a log file; a context manager that stops it on exit."""

    def __init__(self, command: Sequence[str], log: Path, name: str) -> None:
        """Start ``command``; ``name`` is what errors call it. Raises `ProcessError` if it cannot be started."""
        self.name = name
        self.log = log
        try:
            with log.open("ab") as file:
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        except OSError as error:
            raise ProcessError(f"{name} cannot be started: {error}") from error

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool], limit_s: float) -> None:
        """Poll ``ready`` until it is true.

        Raises `ProcessError` with the last line of the log if the child ends first or the limit passes.
        """
        end = time.monotonic() + limit_s
        while not ready():
            code = self._process.poll()
            if code is not None:
                raise ProcessError(f"{self.name} {describe_exit(code)} before it was ready: {self._last_line()}")
            if time.monotonic() > end:
                raise ProcessError(f"{self.name} was not ready within {limit_s:g} s: {self._last_line()}")
            time.sleep(POLL_S)

    def stop(self, grace_s: float = 10.0) -> int:
        """Ask the child to end (SIGTERM), kill it after ``grace_s``, and return its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()

    def _last_line(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote nothing"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
