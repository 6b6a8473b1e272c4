"""The line between two processes, here with both ends in one."""

from __future__ import annotations

import inspect
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest

from servable import errors
from servable.errors import DeadlineExceededError, InternalError, ServableError, UnavailableError
from servable.serving.link import Link

LIMIT_S = 20.0
Handlers = Mapping[str, Callable[..., Any]]


@contextmanager
def pair(here: Handlers, there: Handlers) -> Iterator[tuple[Link, Link]]:
    """Two ends that listen; what is not answered by the end is left."""
    sockets = socket.socketpair()
    copies = [end.dup() for end in sockets]
    links = [Link(Connection(end.detach())) for end in sockets]
    listeners = [
        threading.Thread(target=link.listen, args=(handlers,), daemon=True)
        for link, handlers in zip(links, (here, there), strict=True)
    ]
    for listener in listeners:
        listener.start()
    try:
        yield links[0], links[1]
    finally:
        for end in copies:
            end.shutdown(socket.SHUT_RDWR)
            end.close()
        for listener in listeners:
            listener.join(LIMIT_S)
            assert not listener.is_alive()


def test_questions_go_both_ways_at_the_same_time() -> None:
    with ExitStack() as stack:
        ends: list[Link] = []
        there = {
            "half": lambda number: number / ends[1].ask("double", 1, limit_s=LIMIT_S),
            "large": lambda data: data[::-1],
        }
        ends += stack.enter_context(pair({"double": lambda number: 2 * number}, there))
        asked = [ends[0].begin("half", number, limit_s=LIMIT_S) for number in range(50)]
        assert [question.wait() for question in asked] == [number / 2 for number in range(50)]
        assert ends[0].ask("large", b"ab" * 10**6, limit_s=LIMIT_S) == b"ba" * 10**6


def test_notes_are_heard_in_order_and_before_an_answer_that_follows_them() -> None:
    heard: list[int] = []
    with ExitStack() as stack:
        ends: list[Link] = []

        def tell() -> None:
            for number in range(100):
                ends[1].note("heard", number)

        ends += stack.enter_context(pair({"heard": heard.append}, {"tell": tell}))
        ends[0].ask("tell", limit_s=LIMIT_S)
        assert heard == list(range(100))


KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ServableError)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_arrives_as_it_was_raised(kind: type[ServableError]) -> None:
    raised = kind("what", "package", "extra") if kind is errors.MissingExtraError else kind("it is so")  # type: ignore[call-arg]  # three

    def fail() -> None:
        raise raised

    with pair({}, {"fail": fail}) as (link, _), pytest.raises(kind) as caught:
        link.ask("fail", limit_s=LIMIT_S)
    assert type(caught.value) is kind
    assert str(caught.value) == str(raised)
    assert caught.value.exit_code == raised.exit_code


def test_what_nobody_expected_is_an_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    with pair({}, {"divide": lambda a, b: a / b}) as (link, _):
        with pytest.raises(InternalError, match="ZeroDivisionError: division by zero"):
            link.ask("divide", 1, 0, limit_s=LIMIT_S)
        assert "divide failed" in caplog.text
        with pytest.raises(InternalError, match="KeyError"):
            link.ask("nothing", limit_s=LIMIT_S)


def test_the_end_of_the_other_process_ends_every_question() -> None:
    with pair({}, {"wait": threading.Event().wait}) as (link, _):
        asked = [link.begin("wait", limit_s=limit_s) for limit_s in (None, LIMIT_S)]
        assert link.is_open
    for question in asked:
        with pytest.raises(UnavailableError, match="the process has ended"):
            question.wait()
    assert not link.is_open
    for say in (lambda: link.ask("wait", limit_s=None), lambda: link.note("wait")):
        with pytest.raises(UnavailableError, match="the process has ended"):
            say()


def test_one_that_does_not_answer_is_not_asked_more() -> None:
    answers = threading.Event()
    with pair({}, {"wait": answers.wait, "add": lambda a, b: a + b}) as (link, _):
        asked = link.begin("wait", limit_s=0.0)
        with pytest.raises(DeadlineExceededError):
            asked.wait()
        with pytest.raises(UnavailableError, match="has not answered an earlier question"):
            link.begin("add", 1, 2, limit_s=LIMIT_S)
        answers.set()
        end = threading.Event()
        while not end.wait(0.01):
            try:
                assert link.ask("add", 1, 2, limit_s=LIMIT_S) == 3
                end.set()
            except UnavailableError:
                pass  # the late answer is still on its way
