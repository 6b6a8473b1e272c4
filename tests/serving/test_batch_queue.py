"""Batches fill up, run and come apart as TensorFlow Serving's do, and no request suffers from another.

A batch thread is kept busy by a task that waits for an event, so that what is queued behind it is known.
"""

from __future__ import annotations

import gc
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from servable.errors import (
    CancelledError,
    InvalidArgumentError,
    ServableError,
    UnavailableError,
)
from servable.serving.batch_queue import Batcher, Task
from servable.serving.batch_scheduler import BatchScheduler
from servable.serving.batching import BatchingParameters
from servable.serving.monitoring import Monitor

LIMIT_S = 60.0
FOREVER_US = 10**18
POISON = -1.0
FULL = "The batch scheduling queue to which this task was submitted is full; "

Arrays = dict[str, NDArray[Any]]


def doubled(signature: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
    """Each output is twice the input x; a poisoned row is refused."""
    if inputs["x"].dtype != object and (inputs["x"] == POISON).any():
        raise InvalidArgumentError("poison")
    return dict.fromkeys(outputs, inputs["x"] * 2)


class Model:
    """Notes every run; a run of the signature ``hold`` waits until it is released."""

    def __init__(self, run: Callable[[str, Arrays, Sequence[str]], Arrays] = doubled) -> None:
        self.run = run
        self.runs: list[tuple[str, Arrays, tuple[str, ...]]] = []
        self.held = threading.Semaphore(0)
        self.release = threading.Event()

    def __call__(self, signature: str, inputs: Any, outputs: Sequence[str]) -> Arrays:
        if signature == "hold":
            self.held.release()
            assert self.release.wait(2 * LIMIT_S)  # longer than any test waits for it
            return dict.fromkeys(outputs, inputs["x"])
        self.runs.append((signature, inputs, tuple(outputs)))
        return self.run(signature, inputs, outputs)

    @property
    def sizes(self) -> list[int]:
        return [len(inputs["x"]) for _, inputs, _ in self.runs]


class Started:
    """A task under way."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.calls = 0
        self.thread: threading.Thread | None = None
        self._done = threading.Event()
        task.start(self._note)

    def _note(self) -> None:
        self.calls += 1
        self.thread = threading.current_thread()
        self._done.set()

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def result(self) -> Arrays:
        assert self._done.wait(LIMIT_S)
        assert self.calls == 1
        assert not self.task.queued
        return self.task.result()

    def y(self) -> list[Any]:
        return self.result()["y"].tolist()

    def error(self) -> str:
        with pytest.raises(ServableError) as caught:
            self.result()
        return f"{type(caught.value).__name__}: {caught.value}"


class Pool:
    """A scheduler, its monitor, and the batchers that it is given."""

    def __init__(self, threads: int = 1) -> None:
        self.monitor = Monitor()
        self.scheduler = BatchScheduler(threads, self.monitor, "batch_test")
        self.threads = threads
        self.batchers: list[Batcher] = []
        self.models: list[Model] = []

    def batcher(self, model: Model | None = None, **parameters: Any) -> tuple[Batcher, Model]:
        model = model or Model()
        batcher = Batcher(self.scheduler, BatchingParameters(**parameters), model)
        self.batchers.append(batcher)
        self.models.append(model)
        return batcher, model

    def hold(self, threads: int | None = None) -> Callable[[], None]:
        """Keep the threads busy until the returned function is called."""
        batcher, model = self.batcher(max_batch_size=1, max_enqueued_batches=1000)
        for _ in range(threads or self.threads):
            start(batcher, [0.0], signature="hold")
            assert model.held.acquire(timeout=LIMIT_S)
        return model.release.set

    def close(self) -> None:
        for model in self.models:
            model.release.set()
        for batcher in self.batchers:
            batcher.close()
        self.scheduler.close()

    def is_clean(self) -> bool:
        return not any((self.scheduler._ready, self.scheduler._waiting, *(b.queues for b in self.batchers)))


@pytest.fixture
def pool() -> Iterator[Pool]:
    """One batch thread."""
    pool = Pool()
    yield pool
    pool.close()
    assert pool.is_clean()


def task(batcher: Batcher, x: Any, signature: str = "s", outputs: Sequence[str] = ("y",)) -> Task:
    return batcher.task(signature, {"x": x if isinstance(x, np.ndarray) else np.array(x, np.float32)}, outputs)


def start(batcher: Batcher, x: Any, signature: str = "s", outputs: Sequence[str] = ("y",)) -> Started:
    return Started(task(batcher, x, signature, outputs))


def strings(rows: list[Any]) -> NDArray[Any]:
    return np.array(rows, dtype=object)


def eventually(is_so: Callable[[], bool]) -> None:
    """The batch thread has not always let go of all that it had when the last task is done."""
    end = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.001)


# One batch


def test_a_lone_task_runs_as_it_is(pool: Pool) -> None:
    batcher, model = pool.batcher()
    x = np.ones((3, 2), np.float32)
    answer = np.zeros((3, 1), np.float32)
    model.run = lambda *_: {"y": answer, "more": x}
    started = start(batcher, x)
    assert np.array_equal(started.result()["y"], answer)
    assert np.shares_memory(started.result()["y"], answer)
    assert list(started.result()) == ["y"]
    ((signature, inputs, outputs),) = model.runs
    assert (signature, list(inputs), outputs) == ("s", ["x"], ("y",))
    assert inputs["x"] is x


def test_tasks_that_wait_run_together_and_each_gets_its_rows(pool: Pool) -> None:
    batcher, model = pool.batcher()
    release = pool.hold()
    started = [start(batcher, [[1.0], [2.0]]), start(batcher, [[3.0]]), start(batcher, [[4.0], [5.0], [6.0]])]
    assert all(one.task.queued and not one.is_done for one in started)
    release()
    assert [one.y() for one in started] == [[[2], [4]], [[6]], [[8], [10], [12]]]
    assert [inputs["x"].tolist() for _, inputs, _ in model.runs] == [[[1], [2], [3], [4], [5], [6]]]
    assert len({(one.task.started_ns, one.task.ended_ns) for one in started}) == 1
    assert 0 < started[0].task.started_ns <= started[0].task.ended_ns


def test_several_inputs_and_outputs_stay_apart_whatever_their_order(pool: Pool) -> None:
    batcher, model = pool.batcher()
    model.run = lambda _, inputs, __: {"sum": inputs["a"] + inputs["b"], "a": inputs["a"], "name": inputs["n"]}
    release = pool.hold()
    a, b, n = np.array([[1], [2]]), np.array([[10], [20]]), strings([b"one", b"two\0"])
    first = Started(batcher.task("s", {"a": a, "b": b, "n": n}, ["sum", "name"]))
    second = Started(batcher.task("s", {"n": n[:1], "b": b[:1], "a": a[:1]}, ["name", "sum"]))
    release()
    assert [(name, value.tolist()) for name, value in first.result().items()] == [
        ("sum", [[11], [22]]),
        ("name", [b"one", b"two\0"]),
    ]
    assert [(name, value.tolist()) for name, value in second.result().items()] == [("name", [b"one"]), ("sum", [[11]])]
    ((_, inputs, outputs),) = model.runs
    assert {name: len(value) for name, value in inputs.items()} == {"a": 3, "b": 3, "n": 3}
    assert outputs == ("name", "sum")


def test_only_the_same_signature_outputs_and_version_share_a_batch(pool: Pool) -> None:
    batcher, model = pool.batcher()
    other, other_model = pool.batcher()
    release = pool.hold()
    started = [
        start(batcher, [1.0]),
        start(batcher, [1.0], signature="t"),
        start(batcher, [1.0], outputs=["z"]),
        start(batcher, [1.0], outputs=["y", "z"]),
        start(other, [1.0]),
        start(batcher, [1.0], outputs=["z", "y"]),
        start(batcher, [1.0]),
    ]
    release()
    for one in started:
        assert all(value.tolist() == [2.0] for value in one.result().values())
    assert [(signature, outputs, len(inputs["x"])) for signature, inputs, outputs in model.runs] == [
        ("s", ("y",), 2),
        ("t", ("y",), 1),
        ("s", ("z",), 1),
        ("s", ("y", "z"), 2),
    ]
    assert other_model.sizes == [1]


def test_a_small_task_does_not_keep_the_outputs_of_all(pool: Pool) -> None:
    batcher, _ = pool.batcher()
    release = pool.hold()
    small, large = start(batcher, [[1.0]]), start(batcher, [[2.0]] * 9)
    release()
    assert small.result()["y"].base is None
    assert large.y() == [[4.0]] * 9


# How batches fill up


def test_a_task_that_does_not_fit_begins_a_new_batch(pool: Pool) -> None:
    batcher, model = pool.batcher(max_batch_size=6)
    release = pool.hold()
    started = [start(batcher, [float(i)] * size) for i, size in enumerate([4, 3, 3, 1, 6, 5, 1])]
    release()
    for i, one in enumerate(started):
        assert set(one.y()) == {2.0 * i}
    assert model.sizes == [4, 6, 1, 6, 6]


def test_a_full_queue_refuses_at_once(pool: Pool) -> None:
    batcher, model = pool.batcher(max_batch_size=4, max_enqueued_batches=2)
    release = pool.hold()
    first, second = start(batcher, [1.0] * 3), start(batcher, [2.0] * 3)
    refused = start(batcher, [3.0] * 2)
    assert refused.is_done
    assert refused.thread is threading.current_thread()
    assert not refused.task.queued
    assert refused.task.ended_ns == 0
    assert refused.error() == f"UnavailableError: {FULL}currently 2 batches enqueued and max_enqueued_batches is 2"
    fits = start(batcher, [4.0])
    other = start(batcher, [5.0] * 4, outputs=["z"])
    release()
    assert [len(one.y()) for one in (first, second, fits)] == [3, 3, 1]
    assert len(other.result()["z"]) == 4
    assert sorted(model.sizes) == [3, 4, 4]


def test_no_enqueued_batches_are_one(pool: Pool) -> None:
    batcher, _ = pool.batcher(max_batch_size=2, max_enqueued_batches=0)
    release = pool.hold()
    first = start(batcher, [1.0] * 2)
    text = f"UnavailableError: {FULL}currently 1 batches enqueued and max_enqueued_batches is 1"
    assert start(batcher, [1.0]).error() == text
    release()
    assert first.y() == [2.0, 2.0]


def test_an_open_batch_waits_for_more_tasks_and_runs_when_it_is_full(pool: Pool) -> None:
    batcher, model = pool.batcher(max_batch_size=3, batch_timeout_micros=FOREVER_US)
    other, _ = pool.batcher()
    first = start(batcher, [1.0])
    assert start(other, [1.0]).y() == [2.0]  # the thread was free, and took what was to run
    second = start(batcher, [2.0])
    assert start(other, [1.0]).y() == [2.0]
    assert not first.is_done
    third = start(batcher, [3.0])
    assert [one.y() for one in (first, second, third)] == [[2], [4], [6]]
    assert model.sizes == [3]


def test_a_batch_that_is_closed_runs_and_the_next_one_waits(pool: Pool) -> None:
    batcher, model = pool.batcher(max_batch_size=3, batch_timeout_micros=FOREVER_US)
    first, second = start(batcher, [1.0] * 2), start(batcher, [2.0] * 2)
    assert first.y() == [2.0] * 2
    assert not second.is_done
    third = start(batcher, [3.0])
    assert second.y() + third.y() == [4.0, 4.0, 6.0]
    assert model.sizes == [2, 3]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_open_batch_runs_when_its_time_has_come(threads: int) -> None:
    pool = Pool(threads)
    forever, _ = pool.batcher(max_batch_size=2, batch_timeout_micros=FOREVER_US)
    later, _ = pool.batcher(batch_timeout_micros=20_000)
    soon, _ = pool.batcher(batch_timeout_micros=1_000)
    for round_ in range(10):
        waiting = start(forever, [1.0])
        tasks = [start(batcher, [float(round_)]) for batcher in (later, soon, later, soon)]
        assert [one.y() for one in tasks] == [[2.0 * round_]] * 4
        assert not waiting.is_done
        assert start(forever, [1.0]).y() == waiting.y() == [2.0]
    assert pool.is_clean()
    pool.close()


def idle(pool: Pool) -> None:
    """Start the threads, and wait until all of them wait."""
    start(pool.batcher()[0], [1.0]).result()
    eventually(lambda: len(pool.scheduler._changed._waiters) == pool.threads)  # type: ignore[attr-defined]


def test_a_thread_that_is_called_to_several_batches_calls_the_others() -> None:
    pool = Pool(threads=3)
    batcher, model = pool.batcher(max_batch_size=3, enable_large_batch_splitting=True, max_execution_batch_size=1)
    idle(pool)
    started = start(batcher, [1.0, 2.0, 3.0], signature="hold")
    for _ in range(3):
        assert model.held.acquire(timeout=LIMIT_S)
    model.release.set()
    assert started.y() == [1.0, 2.0, 3.0]
    pool.close()


def test_a_thread_that_becomes_busy_leaves_its_watch_to_another() -> None:
    pool = Pool(threads=2)
    batcher, _ = pool.batcher(max_batch_size=2, batch_timeout_micros=3_600_000_000)
    idle(pool)
    release = pool.hold(threads=1)
    first = start(batcher, [1.0])
    eventually(lambda: pool.scheduler._watched_ns < 2**63)  # by the only thread that is free
    release()
    eventually(lambda: len(pool.scheduler._changed._waiters) == 2)  # type: ignore[attr-defined]
    release = pool.hold(threads=1)  # takes the one that has waited longer, which is the watch
    eventually(lambda: pool.scheduler._watched_ns < 2**63)
    second = start(batcher, [2.0])
    assert first.y() + second.y() == [2.0, 4.0]
    release()
    pool.close()


def test_queues_take_turns(pool: Pool) -> None:
    batcher, model = pool.batcher(max_batch_size=1)
    release = pool.hold()
    started = [start(batcher, [1.0], signature=signature) for signature in "aaabbc"]
    release()
    for one in started:
        one.result()
    assert [signature for signature, _, _ in model.runs] == ["a", "b", "c", "a", "b", "a"]


# Splitting


def test_a_large_task_fills_the_open_batch_first_and_then_others(pool: Pool) -> None:
    batcher, model = pool.batcher(max_batch_size=30, enable_large_batch_splitting=True, max_execution_batch_size=10)
    release = pool.hold()
    rows = [np.arange(begin, begin + size, dtype=np.float32) for begin, size in ((0, 4), (100, 25), (200, 1), (300, 5))]
    started = [start(batcher, x) for x in rows]
    release()
    for one, x in zip(started, rows, strict=True):
        assert one.y() == (2 * x).tolist()
    assert model.sizes == [10, 10, 10, 5]
    split = started[1].task
    assert split.started_ns <= split.ended_ns
    assert split.started_ns == started[0].task.started_ns
    assert split.ended_ns == started[2].task.ended_ns


def test_without_a_size_of_its_own_a_batch_runs_with_as_many_rows_as_a_task_may_have(pool: Pool) -> None:
    batcher, model = pool.batcher(max_batch_size=4, enable_large_batch_splitting=True)
    release = pool.hold()
    started = [start(batcher, [1.0] * 3), start(batcher, [2.0] * 3)]
    release()
    assert [one.y() for one in started] == [[2.0] * 3, [4.0] * 3]
    assert model.sizes == [4, 2]


def test_a_full_queue_tells_its_capacity_with_splitting(pool: Pool) -> None:
    batcher, model = pool.batcher(
        max_batch_size=100, enable_large_batch_splitting=True, max_execution_batch_size=10, max_enqueued_batches=3
    )

    def text(size: int, capacity: int, batches: int, in_open: int) -> str:
        return (
            f"UnavailableError: {FULL}task size is {size} but scheduling capacity is only {capacity} "
            f"(num_enqueued_batches={batches}, max_enqueued_batches=3, open_batch_size={in_open}, "
            "max_execution_batch_size=10)"
        )

    release = pool.hold()
    assert start(batcher, [1.0] * 31).error() == text(31, 30, 1, 0)
    assert not batcher.queues
    first = start(batcher, [1.0] * 14)
    assert start(batcher, [1.0] * 17).error() == text(17, 16, 2, 4)
    second = start(batcher, [2.0] * 16)
    assert start(batcher, [1.0]).error() == text(1, 0, 3, 10)
    release()
    assert first.y() + second.y() == [2.0] * 14 + [4.0] * 16
    assert model.sizes == [10, 10, 10]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_split_task_of_which_a_piece_fails_fails_with_that_error(threads: int) -> None:
    pool = Pool(threads)
    batcher, model = pool.batcher(max_batch_size=9, enable_large_batch_splitting=True, max_execution_batch_size=3)
    release = pool.hold()
    first = start(batcher, [1.0, 1.0])
    bad = start(batcher, [2.0, 2.0, POISON, 2.0, 2.0, 2.0])
    last = start(batcher, [3.0])
    release()
    assert bad.error() == "InvalidArgumentError: poison"
    assert first.y() + last.y() == [2.0, 2.0, 6.0]
    if threads == 1:
        assert model.sizes == [3, 3, 1], "what is left of a task that has failed does not run"
    pool.close()
    assert pool.is_clean()


# Padding


def test_a_batch_is_filled_with_the_first_row_of_its_last_task(pool: Pool) -> None:
    batcher, model = pool.batcher(max_batch_size=8, allowed_batch_sizes=(4, 8))
    release = pool.hold()
    started = [start(batcher, [[1.0], [2.0]]), start(batcher, [[3.0], [4.0], [5.0]])]
    release()
    assert [one.y() for one in started] == [[[2], [4]], [[6], [8], [10]]]
    assert model.runs[0][1]["x"].ravel().tolist() == [1, 2, 3, 4, 5, 3, 3, 3]
    assert start(batcher, [[7.0]]).y() == [[14.0]]
    assert model.runs[1][1]["x"].ravel().tolist() == [7, 7, 7, 7]
    x = np.ones((4, 1), np.float32)
    assert start(batcher, x).y() == [[2.0]] * 4
    assert model.runs[2][1]["x"] is x


def test_strings_fill_a_batch_too(pool: Pool) -> None:
    batcher, model = pool.batcher(max_batch_size=4, allowed_batch_sizes=(4,))
    assert start(batcher, strings([b"a\0", b"b"])).y() == [b"a\0a\0", b"bb"]
    assert model.runs[0][1]["x"].tolist() == [b"a\0", b"b", b"a\0", b"a\0"]


def test_with_splitting_batches_are_filled_to_allowed_sizes_as_well(pool: Pool) -> None:
    batcher, model = pool.batcher(
        max_batch_size=16, allowed_batch_sizes=(4, 16), enable_large_batch_splitting=True, max_execution_batch_size=6
    )
    assert start(batcher, [1.0] * 9).y() == [2.0] * 9
    assert model.sizes == [16, 4]


def test_inputs_of_different_lengths_are_padded_with_their_own_first_element(pool: Pool) -> None:
    batcher, model = pool.batcher(max_batch_size=4, pad_variable_length_inputs=True, allowed_batch_sizes=(4,))
    release = pool.hold()
    started = [
        start(batcher, [[[1.0, 2.0]]]),
        start(batcher, [[[3.0], [4.0]], [[5.0], [6.0]]]),
    ]
    release()
    assert started[0].y() == [[[2, 4], [2, 2]]]
    assert started[1].y() == [[[6, 6], [8, 6]], [[10, 6], [12, 6]]]
    assert model.runs[0][1]["x"].tolist() == [
        [[1, 2], [1, 1]],
        [[3, 3], [4, 3]],
        [[5, 3], [6, 3]],
        [[3, 3], [4, 3]],
    ]


def test_strings_of_different_lengths_are_padded(pool: Pool) -> None:
    batcher, model = pool.batcher(pad_variable_length_inputs=True)
    release = pool.hold()
    started = [start(batcher, strings([[b"a\0"]])), start(batcher, strings([[b"b", b"c"], [b"d", b"e"]]))]
    release()
    assert [one.y() for one in started] == [[[b"a\0a\0"] * 2], [[b"bb", b"cc"], [b"dd", b"ee"]]]
    assert model.sizes == [3]


def test_what_cannot_be_padded_runs_by_itself(pool: Pool) -> None:
    batcher, model = pool.batcher(pad_variable_length_inputs=True)
    release = pool.hold()
    arrays = [
        np.ones((1, 3), np.float32),
        np.ones((1, 0), np.float32),
        np.ones((1, 5), np.float32),
        np.ones((1, 5), np.float64),
        np.ones((1, 1, 1), np.float32),
        np.ones((2, 1, 1, 1, 1, 1, 1), np.float32),
        np.ones((2, 1, 1, 1, 1, 1, 2), np.float32),
        np.ones((2, 1, 1, 1, 1, 1, 2), np.float32),
        np.ones((1,), np.float32),
    ]
    started = [start(batcher, x) for x in arrays]
    release()
    for i, (one, x) in enumerate(zip(started, arrays, strict=True)):
        wanted = (1, 5) if i == 0 else x.shape
        assert one.result()["y"].shape == wanted
        assert one.result()["y"].dtype == x.dtype
    assert sorted(inputs["x"].shape for _, inputs, _ in model.runs) == sorted(
        [(2, 5), (1, 0), (1, 5), (1, 1, 1), (2, 1, 1, 1, 1, 1, 1), (4, 1, 1, 1, 1, 1, 2), (1,)]
    )


def test_a_split_task_keeps_its_own_length(pool: Pool) -> None:
    batcher, _ = pool.batcher(
        max_batch_size=8, enable_large_batch_splitting=True, max_execution_batch_size=3, pad_variable_length_inputs=True
    )
    release = pool.hold()
    long, split = start(batcher, [[1.0] * 4]), start(batcher, [[2.0] * 2] * 5)
    release()
    assert long.y() == [[2.0] * 4]
    assert split.y() == [[4.0] * 2] * 5


# What does not fit together


def test_tasks_of_other_shapes_and_dtypes_do_not_disturb_each_other(pool: Pool) -> None:
    batcher, model = pool.batcher()
    release = pool.hold()
    arrays = [
        np.float32([[1, 2]]),
        np.float32([[1, 2, 3]]),
        np.float64([[1, 2]]),
        np.float32([[4, 5], [6, 7]]),
        np.float32([1]),
    ]
    started = [start(batcher, x) for x in arrays]
    release()
    for one, x in zip(started, arrays, strict=True):
        assert one.y() == (2 * x).tolist()
        assert one.result()["y"].dtype == x.dtype
    assert model.sizes == [3, 1, 1, 1]


def test_other_input_names_do_not_disturb_either(pool: Pool) -> None:
    batcher, model = pool.batcher()
    model.run = lambda _, inputs, __: {"y": next(iter(inputs.values()))}
    release = pool.hold()
    started = [Started(batcher.task("s", {name: np.array([1.0])}, ["y"])) for name in "aba"]
    release()
    assert [one.y() for one in started] == [[1.0]] * 3
    assert [(list(inputs), len(next(iter(inputs.values())))) for _, inputs, _ in model.runs] == [(["a"], 2), (["b"], 1)]


@pytest.mark.parametrize("parameters", [{}, {"max_batch_size": 4, "allowed_batch_sizes": (4,)}])
def test_a_task_without_rows_is_answered_by_a_run_of_its_own(pool: Pool, parameters: Any) -> None:
    batcher, model = pool.batcher(**parameters)
    release = pool.hold()
    started = [start(batcher, np.ones((rows, 2), np.float32)) for rows in (1, 0, 1, 0)]
    release()
    assert [one.result()["y"].shape for one in started] == [(1, 2), (0, 2), (1, 2), (0, 2)]
    assert sorted(model.sizes) == sorted([0, 0, 4 if parameters else 2])


def test_a_task_without_rows_needs_no_full_batch(pool: Pool) -> None:
    batcher, _ = pool.batcher(batch_timeout_micros=FOREVER_US)
    assert start(batcher, np.ones((0, 2))).result()["y"].shape == (0, 2)


@pytest.mark.parametrize("splits", [False, True])
def test_a_queue_can_be_full_of_tasks_without_rows(pool: Pool, splits: bool) -> None:
    batcher, _ = pool.batcher(max_enqueued_batches=2, enable_large_batch_splitting=splits)
    release = pool.hold()
    started = [start(batcher, np.ones((0,))) for _ in range(3)]
    text = f"UnavailableError: {FULL}currently 2 batches enqueued and max_enqueued_batches is 2"
    assert started[2].error() == text
    release()
    assert [one.y() for one in started[:2]] == [[], []]


# What cannot be batched at all


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "Batching Run() must have at least one input tensor"),
        ({"a": np.ones(1), "b": np.ones(())}, "Batching Run() input tensors must have at least one dimension"),
        ({"a": np.ones((2, 1)), "b": np.ones(3)}, "Batching Run() input tensors must have equal 0th-dimension size"),
        ({"a": np.ones(0), "b": np.ones(1)}, "Batching Run() input tensors must have equal 0th-dimension size"),
        ({"a": np.ones(6)}, "Task size 6 is larger than maximum input batch size 5"),
    ],
)
@pytest.mark.parametrize("splits", [False, True])
def test_inputs_that_cannot_be_batched_are_refused(pool: Pool, inputs: Any, message: str, splits: bool) -> None:
    batcher, _ = pool.batcher(max_batch_size=5, enable_large_batch_splitting=splits, max_execution_batch_size=2)
    with pytest.raises(InvalidArgumentError) as caught:
        batcher.task("s", inputs, ["y"])
    assert str(caught.value) == message


# Failures


def test_only_the_guilty_fail(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    batcher, model = pool.batcher(max_batch_size=8, allowed_batch_sizes=(4, 8))
    release = pool.hold()
    started = [
        start(batcher, [1.0]),
        start(batcher, [2.0, POISON]),
        start(batcher, [3.0, 3.0]),
        start(batcher, [POISON]),
    ]
    release()
    assert started[0].y() + started[2].y() == [2.0, 6.0, 6.0]
    assert started[1].error() == started[3].error() == "InvalidArgumentError: poison"
    assert model.sizes == [8, 4, 4, 4, 4]
    assert not caplog.records, "a request's own error is not the server's"
    assert started[1].task.ended_ns > started[0].task.ended_ns > 0


@pytest.mark.parametrize("error", [MemoryError("too much"), ValueError("no"), SystemExit(3), KeyError("k")])
def test_what_a_model_raises_unplanned_is_internal(
    pool: Pool, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def run(_: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        if (inputs["x"] == POISON).any():
            raise error
        return doubled("", inputs, outputs)

    batcher, _ = pool.batcher(Model(run))
    assert start(batcher, [POISON]).error() == f"InternalError: {type(error).__name__}: {error}"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info
    release = pool.hold()
    good, bad = start(batcher, [1.0]), start(batcher, [POISON])
    release()
    assert good.y() == [2.0]
    assert bad.error() == f"InternalError: {type(error).__name__}: {error}"
    assert [record.levelname for record in caplog.records[1:]] == ["WARNING", "ERROR"]
    assert sum(bool(record.exc_info) for record in caplog.records) == 2
    assert start(batcher, [5.0]).y() == [10.0], "the thread goes on"


def test_a_batch_that_fails_only_as_a_whole_fails_nobody(pool: Pool) -> None:
    def run(_: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        if len(inputs["x"]) > 2:
            raise MemoryError
        return doubled("", inputs, outputs)

    batcher, _ = pool.batcher(Model(run))
    release = pool.hold()
    started = [start(batcher, [1.0, 2.0]), start(batcher, [3.0])]
    release()
    assert [one.y() for one in started] == [[2.0, 4.0], [6.0]]


ZERO_DIMENSIONS = "FailedPreconditionError: Batched output tensor has 0 dimensions"
OTHER_ROWS = (
    "FailedPreconditionError: Batched output tensor's 0th dimension does not equal the sum of the "
    "0th dimension sizes of the input tensors"
)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x.sum(), ZERO_DIMENSIONS),
        (lambda x: np.array(1.0), ZERO_DIMENSIONS),
        (lambda x: x[:1], OTHER_ROWS),
        (lambda x: np.concatenate([x, x]), OTHER_ROWS),
    ],
)
def test_outputs_without_a_row_for_each_row_are_refused(pool: Pool, answer: Any, message: str) -> None:
    batcher, _ = pool.batcher(Model(lambda _, inputs, __: {"y": answer(inputs["x"])}))
    assert start(batcher, [1.0, 2.0]).error() == message
    release = pool.hold()
    started = [start(batcher, [1.0, 2.0]), start(batcher, [1.0] * 3)]
    release()
    assert [one.error() for one in started] == [message, message]


def test_outputs_that_only_some_tasks_spoil_fail_only_those(pool: Pool) -> None:
    def run(_: str, inputs: Arrays, __: Sequence[str]) -> Arrays:
        return {"y": inputs["x"][inputs["x"] > 0]}

    batcher, _ = pool.batcher(Model(run))
    release = pool.hold()
    started = [start(batcher, [1.0, 2.0]), start(batcher, [-2.0, 3.0])]
    release()
    assert started[0].y() == [1.0, 2.0]
    assert started[1].error() == OTHER_ROWS


def test_an_output_that_is_missing_fails_the_task(pool: Pool) -> None:
    batcher, _ = pool.batcher(Model(lambda *_: {}))
    assert start(batcher, [1.0]).error() == "InternalError: KeyError: 'y'"


def test_parts_that_cannot_be_joined_fail_the_task(pool: Pool) -> None:
    batcher, _ = pool.batcher(
        Model(lambda _, inputs, __: {"y": np.ones((len(inputs["x"]), int(inputs["x"][0])))}),
        max_batch_size=4,
        enable_large_batch_splitting=True,
        max_execution_batch_size=2,
    )
    assert start(batcher, [1.0, 1.0, 2.0, 2.0]).error().startswith("InternalError: ValueError: ")
    assert start(batcher, [2.0] * 4).y() == [[1.0, 1.0]] * 4


def test_an_error_keeps_no_tensors(pool: Pool) -> None:
    def run(_: str, inputs: Arrays, __: Sequence[str]) -> Arrays:
        try:
            raise ValueError("inner")
        except ValueError as error:
            raise InvalidArgumentError(f"{len(inputs['x'])} rows") from error

    batcher, model = pool.batcher(Model(run))
    model.runs = Forgetful()
    x = np.ones(1000)
    kept = weakref.ref(x)
    started = start(batcher, x)
    del x
    assert started._done.wait(LIMIT_S)
    gc.disable()
    try:
        eventually(lambda: kept() is None)
    finally:
        gc.enable()
    assert started.error() == "InvalidArgumentError: 1000 rows"


def test_an_error_may_be_its_causes_cause(pool: Pool) -> None:
    def run(*_: Any) -> Arrays:
        try:
            raise InvalidArgumentError("first")
        except InvalidArgumentError as first:
            try:
                raise ValueError("second")
            except ValueError as second:
                raise first from second

    batcher, _ = pool.batcher(Model(run))
    assert start(batcher, [1.0]).error() == "InvalidArgumentError: first"


class Forgetful(list[Any]):
    def append(self, _: Any) -> None:
        pass


# Cancelling


def test_a_cancelled_task_is_dropped_and_the_others_run(pool: Pool) -> None:
    batcher, model = pool.batcher()
    release = pool.hold()
    started = [start(batcher, [float(i)]) for i in range(4)]
    started[1].task.cancelled = started[2].task.cancelled = True
    release()
    assert [started[i].y() for i in (0, 3)] == [[0.0], [6.0]]
    for i in (1, 2):
        assert started[i].error() == "CancelledError: The request was cancelled before it could run"
        assert started[i].task.ended_ns == 0
    assert model.sizes == [2]


def test_a_batch_of_cancelled_tasks_does_not_run(pool: Pool) -> None:
    batcher, model = pool.batcher()
    release = pool.hold()
    started = [start(batcher, [1.0]), start(batcher, np.ones(0))]
    for one in started:
        one.task.cancelled = True
    release()
    for one in started:
        assert one.error().startswith("CancelledError")
    assert not model.runs


def test_a_task_cancelled_while_its_batch_fails_is_not_run_again(pool: Pool) -> None:
    batcher, model = pool.batcher()
    release = pool.hold()
    good, bad = start(batcher, [1.0]), start(batcher, [POISON])

    def run(_: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        bad.task.cancelled = True
        return doubled("", inputs, outputs)

    model.run = run
    release()
    assert good.y() == [2.0]
    assert bad.error().startswith("CancelledError")
    assert model.sizes == [2, 1]


def test_a_task_cancelled_too_late_is_answered(pool: Pool) -> None:
    batcher, model = pool.batcher()
    held = start(batcher, [1.0], signature="hold")
    assert model.held.acquire(timeout=LIMIT_S)
    assert not held.task.queued
    held.task.cancelled = True
    model.release.set()
    assert held.y() == [1.0]


def test_the_rest_of_a_cancelled_split_task_does_not_run(pool: Pool) -> None:
    batcher, model = pool.batcher(max_batch_size=6, enable_large_batch_splitting=True, max_execution_batch_size=2)
    split = task(batcher, [1.0] * 6)

    def run(_: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        split.cancelled = True
        return doubled("", inputs, outputs)

    model.run = run
    assert Started(split).error().startswith("CancelledError")
    assert model.sizes == [2]


# Callbacks


def test_a_callback_that_fails_hurts_nobody(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    batcher, _ = pool.batcher()
    release = pool.hold()

    def fail() -> None:
        raise ZeroDivisionError("in a callback")

    bad = task(batcher, [1.0])
    bad.start(fail)
    good = start(batcher, [2.0])
    release()
    assert good.y() == [4.0]
    assert bad.result()["y"].tolist() == [2.0]
    assert "in a callback" in caplog.text


def test_callbacks_start_further_tasks_on_the_only_thread(pool: Pool) -> None:
    batcher, _ = pool.batcher(max_enqueued_batches=1, max_batch_size=2)
    done = threading.Event()
    values: list[float] = []

    def next_after(one: Task) -> None:
        values.append(float(one.result()["y"][0]))
        if len(values) == 10:
            done.set()
        else:
            following = task(batcher, [values[-1]])
            following.start(lambda: next_after(following))

    first = task(batcher, [1.0])
    first.start(lambda: next_after(first))
    assert done.wait(LIMIT_S)
    assert values == [2.0**i for i in range(1, 11)]


def test_callbacks_run_on_named_daemon_threads(pool: Pool) -> None:
    batcher, _ = pool.batcher()
    assert not pool.scheduler._threads, "they are started when there is something to run"
    started = start(batcher, [1.0])
    started.result()
    assert started.thread
    assert started.thread.name == "batch_test_0"
    assert started.thread.daemon


def test_the_pool_has_as_many_threads_as_it_is_told() -> None:
    pool = Pool(threads=3)
    batcher, model = pool.batcher(max_batch_size=1)
    started = [start(batcher, [1.0], signature="hold") for _ in range(3)]
    for _ in range(3):
        assert model.held.acquire(timeout=LIMIT_S)
    fourth = start(batcher, [1.0])
    assert fourth.task.queued
    model.release.set()
    for one in (*started, fourth):
        one.result()
    assert len({one.thread for one in started}) == 3
    pool.close()


def test_too_few_threads_are_better_than_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(threads=3)
    batcher, _ = pool.batcher()
    started: list[threading.Thread] = []
    begin = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name.startswith("batch_test") and len(started) == allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    allowed = 0
    assert start(batcher, [1.0]).error() == "UnavailableError: no batch thread can be started"
    allowed = 1
    assert start(batcher, [1.0]).y() == [2.0]
    assert "only 1 of 3 batch threads can be started: can't start new thread" in caplog.text
    pool.close()


# Closing


def test_a_closed_batcher_fails_what_is_queued_and_takes_no_more(pool: Pool) -> None:
    text = "UnavailableError: The version was unloaded before the request could run"
    batcher, model = pool.batcher(max_batch_size=2)
    waiting, _ = pool.batcher(batch_timeout_micros=FOREVER_US)
    other, _ = pool.batcher()
    open_ = start(waiting, [1.0])
    release = pool.hold()
    queued = [start(batcher, [1.0, 1.0]), start(batcher, [1.0]), start(batcher, [1.0], outputs=["z"])]
    untouched = start(other, [1.0])
    never = task(batcher, [1.0])
    batcher.close()
    waiting.close()
    assert [one.error() for one in (*queued, open_, Started(never), start(waiting, [1.0]))] == [text] * 6
    assert not batcher.queues
    assert not waiting.queues
    release()
    assert untouched.y() == [2.0]
    assert not model.runs
    batcher.close()


def test_closing_waits_for_what_runs_and_lets_it_finish() -> None:
    pool = Pool(threads=2)
    batcher, model = pool.batcher(max_batch_size=1)
    running = [start(batcher, [float(i)], signature="hold") for i in range(2)]
    for _ in running:
        assert model.held.acquire(timeout=LIMIT_S)
    queued = start(batcher, [1.0])
    runs_after_close: list[int] = []

    def close() -> None:
        batcher.close()
        runs_after_close.append(batcher._running)

    closing = threading.Thread(target=close)
    closing.start()
    assert queued.error().startswith("UnavailableError")
    assert not runs_after_close
    model.release.set()
    closing.join(LIMIT_S)
    assert runs_after_close == [0]
    assert [one.y() for one in running] == [[0.0], [1.0]]
    pool.close()


def test_a_callback_can_close_its_batcher_and_its_scheduler() -> None:
    pool = Pool()
    batcher, _ = pool.batcher()
    done = threading.Event()

    def close() -> None:
        batcher.close()
        pool.scheduler.close()
        done.set()

    task(batcher, [1.0]).start(close)
    assert done.wait(LIMIT_S)


def test_a_batch_whose_version_goes_while_it_runs_ends_with_that_run(pool: Pool) -> None:
    batcher, model = pool.batcher()
    release = pool.hold()
    started = [start(batcher, [1.0]), start(batcher, np.ones((1, 1)))]  # two runs, as they do not fit together

    def run(_: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
        pool.scheduler.drop(batcher)  # what close does first
        return doubled("", inputs, outputs)

    model.run = run
    release()
    assert started[0].y() == [2.0]
    assert started[1].error() == "UnavailableError: The version was unloaded before the request could run"


def test_a_closed_scheduler_fails_what_is_queued_and_ends_its_threads() -> None:
    text = "UnavailableError: The server was stopped before the request could run"
    pool = Pool(threads=2)
    batcher, _ = pool.batcher(max_batch_size=8, enable_large_batch_splitting=True, max_execution_batch_size=2)
    waiting, _ = pool.batcher(batch_timeout_micros=FOREVER_US)
    release = pool.hold()
    started = [start(batcher, [1.0]), start(batcher, [1.0] * 7), start(waiting, [1.0])]
    closing = threading.Thread(target=pool.scheduler.close)
    closing.start()
    assert [one.error() for one in started] == [text] * 3
    assert start(batcher, [1.0]).error() == text
    release()
    closing.join(LIMIT_S)
    assert not closing.is_alive()
    assert not any(thread.is_alive() for thread in pool.scheduler._threads)
    assert pool.is_clean()
    pool.close()


def test_a_scheduler_that_was_never_used_closes() -> None:
    BatchScheduler(2, Monitor()).close()


# What stays behind


def test_nothing_stays_behind(pool: Pool) -> None:
    batcher, model = pool.batcher(max_batch_size=8)
    model.runs = Forgetful()
    names = [f"output_{i}" for i in range(6)]
    for i in range(200):
        wanted = [name for j, name in enumerate(names) if i >> j & 1] or names
        start(batcher, [1.0], signature=f"s{i % 3}", outputs=wanted).result()
    assert pool.is_clean()
    x = np.ones((2, 2))
    kept = weakref.ref(x)
    started = start(batcher, x)
    started.result()
    del x
    gc.disable()
    try:
        eventually(lambda: kept() is None)  # the task is still there, and the thread waits for another one
    finally:
        gc.enable()
    finished = weakref.ref(started)
    del started
    eventually(lambda: gc.collect() >= 0 and finished() is None)


def test_a_task_is_free_to_go_without_the_garbage_collector(pool: Pool) -> None:
    batcher, model = pool.batcher()
    model.runs = Forgetful()
    results: list[weakref.ref[Any]] = []
    done = threading.Event()

    def run_one() -> None:
        one = task(batcher, np.ones((2, 2)))

        def on_done() -> None:  # it refers to the task, and the task to it
            results.append(weakref.ref(one.result()["y"]))
            done.set()

        one.start(on_done)

    gc.disable()
    try:
        run_one()
        assert done.wait(LIMIT_S)
        eventually(lambda: results[0]() is None)
    finally:
        gc.enable()


# Metrics


def test_runs_are_counted(pool: Pool) -> None:
    batcher, _ = pool.batcher(
        max_batch_size=8, allowed_batch_sizes=(4, 8), enable_large_batch_splitting=True, max_execution_batch_size=5
    )
    page = pool.monitor.page().decode()
    for name, kind in (
        ("queuing_latency", "histogram"),
        ("wrapped_run_count", "counter"),
        ("padding_size", "histogram"),
        ("input_batch_size", "histogram"),
        ("processed_batch_size", "histogram"),
    ):
        assert f"# TYPE :tensorflow:serving:batching_session:{name} {kind}\n" in page
    release = pool.hold()  # 1 row
    started = [start(batcher, [1.0] * 3), start(batcher, [2.0] * 6), start(batcher, np.ones(0))]
    release()
    for one in started:
        one.result()
    # 3 + 2 rows run as 8, 4 rows as 4, none as none.
    page = pool.monitor.page().decode().replace(":tensorflow:serving:batching_session:", "")
    for line in (
        "wrapped_run_count{} 4",
        'padding_size_sum{execution_batch_size="8"} 3',
        'padding_size_bucket{execution_batch_size="8",le="2"} 0',
        'padding_size_bucket{execution_batch_size="8",le="4"} 1',
        'padding_size_bucket{execution_batch_size="8",le="8192"} 1',
        'padding_size_count{execution_batch_size="4"} 1',
        'padding_size_count{execution_batch_size="0"} 1',
        "input_batch_size_count{} 4",
        "input_batch_size_sum{} 10",
        "processed_batch_size_count{} 4",
        "processed_batch_size_sum{} 13",
        'queuing_latency_count{thread_pool_name=""} 5',
    ):
        assert f"\n{line}\n" in page
    limits = [line for line in page.splitlines() if line.startswith("queuing_latency_bucket")]
    assert len(limits) == 53
    assert 'le="120"' in limits[1]


def test_runs_that_are_tried_again_count_but_their_tasks_do_not(pool: Pool) -> None:
    batcher, _ = pool.batcher()
    release = pool.hold()
    started = [start(batcher, [1.0]), start(batcher, [POISON])]
    release()
    started[0].result()
    started[1].error()
    page = pool.monitor.page().decode().replace(":tensorflow:serving:batching_session:", "")
    assert "\nwrapped_run_count{} 4\n" in page
    assert "\ninput_batch_size_count{} 3\n" in page
    assert '\nqueuing_latency_count{thread_pool_name=""} 3\n' in page


# Many at once


parameters_of_all_kinds = st.builds(
    lambda limit, splits, execution, allowed, timeout, pads: BatchingParameters(
        max_batch_size=limit,
        batch_timeout_micros=timeout,
        max_enqueued_batches=10_000,
        enable_large_batch_splitting=splits,
        max_execution_batch_size=min(execution, limit) if splits else None,
        allowed_batch_sizes=tuple(sorted({size for size in allowed if size < limit} | {limit})) if allowed else (),
        pad_variable_length_inputs=pads,
    ),
    limit=st.integers(1, 40),
    splits=st.booleans(),
    execution=st.integers(1, 40),
    allowed=st.lists(st.integers(1, 40), max_size=4),
    timeout=st.sampled_from([0, 0, 200, 2000]),
    pads=st.booleans(),
)


def rows_of(number: int, size: int, width: int, *, as_strings: bool, poisoned: bool) -> NDArray[Any]:
    """Rows that nobody else has: width values, each with the task's number in it."""
    cells = number * 10_000 + np.arange(size * width).reshape(size, width)
    if as_strings:
        x = np.array([[str(cell).encode() for cell in row] for row in cells.tolist()], dtype=object)
        return x.reshape(size, width)
    x = cells.astype(np.float64)
    if poisoned and size:
        x[size // 2, 0] = POISON
    return x


def echoed(_: str, inputs: Arrays, outputs: Sequence[str]) -> Arrays:
    x, tag = inputs["x"], inputs["tag"]
    assert len(x) == len(tag)
    if x.dtype != object and (x == POISON).any():
        raise InvalidArgumentError(f"poison among {len(x)} rows")
    return {"y": x, "tag": tag, **{name: x for name in outputs if name not in ("y", "tag")}}


@settings(max_examples=30)
@given(
    parameters=parameters_of_all_kinds,
    threads=st.integers(1, 4),
    clients=st.integers(1, 4),
    poison=st.sampled_from([0.0, 0.0, 0.1, 0.5]),
    cancel=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 2**32),
)
def test_everybody_gets_exactly_the_own_rows(
    parameters: BatchingParameters, threads: int, clients: int, poison: float, cancel: float, seed: int
) -> None:
    pool = Pool(threads)
    batcher = Batcher(pool.scheduler, parameters, echoed)
    pool.batchers.append(batcher)
    failures: list[BaseException] = []

    def client(number: int) -> None:
        dice = random.Random(seed + number)
        try:
            for _ in range(6):
                burst = [one_task(dice, number * 1000 + i) for i in range(dice.randint(1, 12))]
                for check in burst:
                    check()
        except BaseException as error:  # noqa: BLE001  # told by the test's own thread
            failures.append(error)

    def one_task(dice: random.Random, number: int) -> Callable[[], None]:
        size = dice.choice([0, 1, 1, dice.randint(1, parameters.max_batch_size)])
        width, as_strings = dice.choice([1, 2, 3]), dice.random() < 0.2
        is_poisoned = dice.random() < poison and not as_strings and size > 0
        x = rows_of(number, size, width, as_strings=as_strings, poisoned=is_poisoned)
        tag = np.full(size, number)
        outputs = dice.choice([["y", "tag"], ["tag", "y"], ["y"], ["y", "other"]])
        started = Started(batcher.task("s", {"x": x, "tag": tag}, outputs))
        is_cancelled = dice.random() < cancel
        started.task.cancelled = is_cancelled

        def check() -> None:
            try:
                found = started.result()
            except CancelledError:
                assert is_cancelled
                return
            except InvalidArgumentError:
                assert is_poisoned
                return
            assert not is_poisoned
            assert list(found) == outputs
            assert found["y"].dtype == x.dtype
            assert np.array_equal(found["y"][:, :width], x)
            if not parameters.pad_variable_length_inputs:
                assert found["y"].shape == x.shape
            elif size and found["y"].shape[1] > width:
                padding = found["y"][:, width:]
                # Of a task the first element, and of a piece of one the first of that.
                assert np.isin(padding, x[:, 0]).all()
            if "tag" in outputs:
                assert found["tag"].tolist() == [number] * size

        return check

    workers = [threading.Thread(target=client, args=(number,)) for number in range(1, clients + 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(LIMIT_S)
        assert not worker.is_alive()
    pool.close()
    assert not failures, failures
    assert pool.is_clean()
    assert batcher._running == 0


def test_a_small_queue_under_load_answers_or_refuses() -> None:
    pool = Pool(threads=2)
    batcher = Batcher(pool.scheduler, BatchingParameters(max_batch_size=4, max_enqueued_batches=2), echoed)
    pool.batchers.append(batcher)
    outcomes: list[str] = []

    def client(number: int) -> None:
        for round_ in range(20):
            burst = []
            for i in range(6):
                x = np.full((2, 1), float(number * 1000 + round_ * 10 + i))
                burst.append((x, Started(batcher.task("s", {"x": x, "tag": x}, ["y"]))))
            for x, started in burst:
                try:
                    outcomes.append("right" if np.array_equal(started.result()["y"], x) else "wrong")
                except UnavailableError:
                    outcomes.append("refused")

    workers = [threading.Thread(target=client, args=(number,)) for number in range(1, 4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(LIMIT_S)
        assert not worker.is_alive()
    pool.close()
    assert pool.is_clean()
    assert len(outcomes) == 3 * 20 * 6
    assert "wrong" not in outcomes
    assert "right" in outcomes


def test_versions_come_and_go_under_load() -> None:
    pool = Pool(threads=2)
    ended = threading.Event()
    current: list[Batcher] = [Batcher(pool.scheduler, BatchingParameters(max_batch_size=8), echoed)]
    pool.batchers.append(current[0])
    wrong: list[object] = []
    answered = [0]

    def client(number: int) -> None:
        while not ended.is_set():
            x = np.full((3, 1), float(number))
            started = Started(current[0].task("s", {"x": x, "tag": x}, ["y"]))
            try:
                if not np.array_equal(started.result()["y"], x):
                    wrong.append(number)
                answered[0] += 1
            except UnavailableError:
                pass
            except BaseException as error:  # noqa: BLE001  # told by the test's own thread
                wrong.append(error)

    workers = [threading.Thread(target=client, args=(number,)) for number in range(1, 4)]
    for worker in workers:
        worker.start()
    for _ in range(30):
        seen = answered[0]
        new = Batcher(pool.scheduler, BatchingParameters(max_batch_size=8), echoed)
        pool.batchers.append(new)
        old, current[0] = current[0], new
        old.close()
        assert not old.queues
        assert old._running == 0
        eventually(lambda seen=seen: answered[0] > seen)  # type: ignore[misc]
    ended.set()
    for worker in workers:
        worker.join(LIMIT_S)
        assert not worker.is_alive()
    pool.close()
    assert pool.is_clean()
    assert not wrong
