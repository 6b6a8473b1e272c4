"""The line between the supervisor and a worker: questions with answers in both directions, and notes.

Messages are pickled, between two processes of the same program that nobody else can write to.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from typing import Any

from .. import errors
from ..errors import DeadlineExceededError, InternalError, ServableError, UnavailableError

_log = logging.getLogger(__name__)

# Longer than this nobody waits to write: the other end has stopped to read.
_SEND_LIMIT_S = 1.0


class Question:
    """A question on its way, and its answer."""

    def __init__(self, limit_s: float | None) -> None:
        self.due = None if limit_s is None else time.monotonic() + limit_s
        self._answered = threading.Event()
        self._value: Any = None
        self._error: ServableError | None = None

    def answer(self, value: Any, error: ServableError | None) -> None:
        """Give the answer, or what is raised instead of one."""
        self._value, self._error = value, error
        self._answered.set()

    def wait(self) -> Any:
        """The answer; raises what the other end raised, or `DeadlineExceededError`."""
        if not self._answered.wait(None if self.due is None else max(0.0, self.due - time.monotonic())):
            raise DeadlineExceededError("no answer in time")
        if self._error:
            raise self._error
        return self._value


class Link:
    """One end of the line. Each question is answered in a thread of its own, so that none waits for another."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._handlers: Mapping[str, Callable[..., Any]] = {}
        self._ids = count()
        self._questions: dict[int, Question] = {}
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether the other end is there, as far as is known."""
        return not self._closed

    def listen(self, handlers: Mapping[str, Callable[..., Any]]) -> None:
        """Take what comes, until the other end is closed.

        ``handlers`` answer the questions and hear the notes, by name; notes in the order of their sending.
        """
        self._handlers = handlers
        try:
            while True:
                try:
                    message = self._connection.recv()
                except (EOFError, OSError):
                    break
                self._take(*message)
        finally:
            self.close()

    def close(self) -> None:
        """End it; also every question that waits for an answer."""
        with self._lock:
            self._closed = True
            left = [*self._questions.values()]
            self._questions.clear()
        for question in left:
            question.answer(None, UnavailableError("the process has ended"))
        with self._sending:
            self._connection.close()

    def _take(self, kind: str, number: int, content: Any) -> None:
        if kind == "note":
            name, arguments = content
            self._handlers[name](*arguments)
        elif kind == "question":
            threading.Thread(target=self._answer, args=(number, *content), daemon=True).start()
        else:
            value, failure = content
            with self._lock:
                question = self._questions.pop(number, None)
            if question:
                question.answer(value, _error(*failure) if failure else None)

    def _answer(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        value, failure = None, None
        try:
            value = self._handlers[name](*arguments)
        except ServableError as error:
            failure = type(error).__name__, str(error)
        except Exception as error:  # noqa: BLE001  # the other end waits for an answer
            _log.exception("%s failed", name)
            failure = InternalError.__name__, f"{type(error).__name__}: {error}"
        with suppress(UnavailableError):  # nobody hears it any more
            self._send("answer", number, (value, failure))

    def begin(self, name: str, *arguments: Any, limit_s: float | None) -> Question:
        """Ask, and go on. Raises `UnavailableError` if the other end has ended or gives no answers."""
        question, number = Question(limit_s), next(self._ids)
        with self._lock:
            if self._closed:
                raise UnavailableError("the process has ended")
            now = time.monotonic()
            if any(earlier.due is not None and earlier.due < now for earlier in self._questions.values()):
                raise UnavailableError("the process has not answered an earlier question yet")
            self._questions[number] = question
        try:
            self._send("question", number, (name, arguments))
        except BaseException:
            with self._lock:
                self._questions.pop(number, None)
            raise
        return question

    def ask(self, name: str, *arguments: Any, limit_s: float | None) -> Any:
        """Ask, and wait for the answer; raises what `begin` and `Question.wait` raise."""
        return self.begin(name, *arguments, limit_s=limit_s).wait()

    def note(self, name: str, *arguments: Any) -> None:
        """Tell something that needs no answer. Raises `UnavailableError` if the other end has ended."""
        self._send("note", 0, (name, arguments))

    def _send(self, kind: str, number: int, content: Any) -> None:
        if not self._sending.acquire(timeout=_SEND_LIMIT_S):
            raise UnavailableError("the process does not read what it is told")
        try:
            self._connection.send((kind, number, content))
        except OSError as error:
            raise UnavailableError("the process has ended") from error
        finally:
            self._sending.release()


def _error(name: str, text: str) -> ServableError:
    """What was raised at the other end: its class and text, whatever its constructor takes."""
    kind: type[ServableError] = getattr(errors, name)
    return kind.__new__(kind, text)
