"""Requests as coroutines: they run where they are called, and go on elsewhere after they had to wait.

A batched request waits for a run that it shares with others. No thread waits with it: the thread that
ran the batch takes up each of its requests where it stopped. What never waits costs little more than
a call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar

_T = TypeVar("_T")


class Waitable(Protocol):
    """Something that ends later."""

    def start(self, on_done: Callable[[], None]) -> None:
        """Begin; ``on_done`` is called once when it has ended, from any thread."""


class Wait:
    """``await Wait(task)`` begins a task and goes on when it has ended."""

    __slots__ = ("_task",)

    def __init__(self, task: Waitable) -> None:
        self._task = task

    def __await__(self) -> Generator[Waitable, None, None]:
        yield self._task


def advance(steps: Coroutine[Any, Any, _T], done: Callable[[_T], None]) -> _T | None:
    """Run until the result, which is returned, or until it waits: then ``done`` gets the result later.

    What is run must not return None, and must not raise.
    """
    try:
        task: Waitable = steps.send(None)
    except StopIteration as stop:
        result: _T = stop.value
        return result
    task.start(lambda: _go_on(steps, done))
    return None


def _go_on(steps: Coroutine[Any, Any, _T], done: Callable[[_T], None]) -> None:
    result = advance(steps, done)
    if result is not None:
        done(result)


def finish(steps: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end, waiting in this thread; raises what the steps raise."""
    ended = threading.Event()
    while True:
        try:
            task: Waitable = steps.send(None)
        except StopIteration as stop:
            result: _T = stop.value
            return result
        ended.clear()
        task.start(ended.set)
        ended.wait()
