"""A child process whose exit is always looked at: own log, readiness with a time limit, a clean stop."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from . import extras
from .errors import ProcessError

POLL_S = 0.05
_LAST_LINES, _LONGEST_WORDS = 3, 400


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


# What libraries write into a log that goes well: TensorFlow's notes with their date, and Python's warnings.
_NOTES = re.compile(
    r"[IW]\d{4} |\d{4}-\d\d-\d\d .*: [IW] |WARNING: All log messages before |\s*warnings\.warn\(|.*Warning: "
)


def last_words(log: bytes) -> str:
    """The last lines of a log that are no mere notes, as the end of a message; empty if there are none."""
    lines = log.decode("utf-8", errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip() and not _NOTES.match(line)]
    return f"; its last words: {' | '.join(said[-_LAST_LINES:])[-_LONGEST_WORDS:]}" if said else ""


@dataclass(frozen=True)
class Limits:
    """What a process may take: seconds by the clock, and bytes of memory that it holds at a moment."""

    seconds: float
    memory_bytes: int

    def passed_by(self, pid: int, since: float) -> str | None:
        """Which limit a process that began at ``since`` (`time.monotonic`) has passed, in words; or None.

        Raises `MissingExtraError` without psutil.
        """
        if time.monotonic() - since > self.seconds:
            return f"took more than {self.seconds:g} s"
        psutil = extras.load("psutil", "a limit on memory")
        try:
            taken = psutil.Process(pid).memory_info().rss
        except psutil.Error:  # it has just ended
            return None
        return f"took more than {self.memory_bytes / 1e9:.3g} GB of memory" if taken > self.memory_bytes else None


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
