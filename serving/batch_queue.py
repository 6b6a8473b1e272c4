"""Requests that run together: a task for each, the queues where batches fill up, and how a batch is run.

What TensorFlow's SharedBatchScheduler and TensorFlow Serving's BatchingSession do, with their texts, and
three things better: tasks that do not fit together do not fail each other, of a batch that fails only
the guilty fail, and a task without rows is answered.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, NamedTuple

from ..errors import CancelledError, InternalError, InvalidArgumentError, ServableError, UnavailableError
from . import batching
from .batching import Arrays, BatchingParameters, Layout, Outputs

if TYPE_CHECKING:
    from .batch_scheduler import BatchScheduler

Run = Callable[[str, Arrays, Sequence[str]], Outputs]

_CANCELLED = "The request was cancelled before it could run"
UNLOADED = "The version was unloaded before the request could run"
STOPPED = "The server was stopped before the request could run"

_log = logging.getLogger(__name__)


class Task:
    """One request on its way through a batch, or through several where it is split.

    A task that is ``cancelled`` before it runs is dropped. ``queued`` is whether all of it still waits;
    ``started_ns`` and ``ended_ns`` are the ``perf_counter_ns`` of its run, 0 if it never ran.
    """

    __slots__ = (
        *("_error", "_group", "_inputs", "_layout", "_left", "_on_done"),
        *(
            "_outputs",
            "_parts",
            "_results",
            "_size",
            "batcher",
            "cancelled",
            "ended_ns",
            "enqueued_ns",
            "key",
            "queued",
            "started_ns",
        ),
    )

    def __init__(self, batcher: Batcher, signature: str, inputs: Arrays, outputs: Sequence[str], size: int) -> None:
        self.cancelled = False
        self.queued = False
        self.started_ns = self.ended_ns = 0
        self.batcher = batcher
        self._inputs = inputs
        self._outputs = outputs
        self._size = size
        self.key = Key(signature, tuple(sorted(outputs)), size == 0)
        self._layout: Layout = batching.layout(inputs)
        padded = batcher.parameters.pad_variable_length_inputs
        self._group = batching.padded_layout(self._layout) if padded else self._layout
        self.enqueued_ns = 0
        self._left = 1  # how many of its pieces have not ended
        self._parts: dict[int, Outputs] = {}  # what came out for each piece, by its first row
        self._on_done: Callable[[], None] | None = None
        self._results: Outputs | None = None
        self._error: ServableError | None = None

    def start(self, on_done: Callable[[], None]) -> None:
        """Queue it, once; ``on_done`` is called once, by a batch thread, or from here if it is refused."""
        self._on_done = on_done
        refusal = self.batcher.scheduler.add(self)
        if refusal is not None:
            self._error = refusal
            self._call_back()

    def result(self) -> Outputs:
        """The outputs of a task that is done; raises what it failed with."""
        if self._error is not None:
            raise self._error
        assert self._results is not None, "the task is not done"
        return self._results

    @property
    def _is_dead(self) -> bool:
        """Whether there is no use in running it, or the rest of it."""
        return self.cancelled or self._error is not None

    def _end(self, begin: int, outcome: Outputs | ServableError, started_ns: int, ended_ns: int) -> bool:
        """Take in the outcome of the piece that begins at a row; whether it was the last one."""
        with self.batcher.lock:
            if ended_ns:
                self.started_ns = min(self.started_ns or started_ns, started_ns)
                self.ended_ns = max(self.ended_ns, ended_ns)
            if isinstance(outcome, ServableError):
                self._error = self._error or outcome
            else:
                self._parts[begin] = outcome
            self._left -= 1
            if self._left:
                return False
        if self._error is None:
            try:
                self._results = batching.join([self._parts[row] for row in sorted(self._parts)], self._outputs)
            except Exception as error:  # noqa: BLE001  # such as too little memory
                self._error = _to_error(error)
        return True

    def _call_back(self) -> None:
        """Tell that it is done, and let go of what only the run needed."""
        on_done, self._on_done, self._inputs, self._parts = self._on_done, None, {}, {}
        assert on_done is not None
        try:
            on_done()
        except BaseException:  # noqa: BLE001  # the other tasks of the batch have nothing to do with it
            _log.exception("what waited for a task failed")


class Key(NamedTuple):
    """What shares a queue. Tasks without rows have one of their own, in which each is a batch."""

    signature: str
    outputs: tuple[str, ...]
    is_empty: bool


class Piece(NamedTuple):
    """The rows of a task that run in one batch: all of them, unless it is split."""

    task: Task
    begin: int
    end: int

    @property
    def is_whole(self) -> bool:
        return self.end - self.begin == self.task._size

    @property
    def inputs(self) -> Arrays:
        inputs = self.task._inputs
        return inputs if self.is_whole else {name: array[self.begin : self.end] for name, array in inputs.items()}

    def finish(self, outcome: Outputs | ServableError, started_ns: int = 0, ended_ns: int = 0) -> None:
        """Hand the outcome to the task, and end it if this was the last piece of it."""
        if self.task._end(self.begin, outcome, started_ns, ended_ns):
            self.task._call_back()


class Batch:
    """Pieces that run at once."""

    __slots__ = ("key", "opened_ns", "owner", "pieces", "size")

    def __init__(self, owner: Batcher, key: Key, opened_ns: int) -> None:
        self.owner = owner
        self.key = key
        self.opened_ns = opened_ns
        self.pieces: list[Piece] = []
        self.size = 0


class Queue:
    """Batches that wait for a thread; only the last one is open. It exists only while there are any."""

    __slots__ = ("batches", "is_ready", "key", "limit", "owner")

    def __init__(self, owner: Batcher, key: Key) -> None:
        self.owner = owner
        self.key = key
        self.limit = 0 if key.is_empty else owner.parameters.execution_limit
        self.batches: deque[Batch] = deque()
        self.is_ready = False  # whether it stands in the scheduler's line, rather than waits for more tasks

    @property
    def due_ns(self) -> int:
        """From when on its first batch can run."""
        first = self.batches[0]
        if len(self.batches) > 1 or first.size >= self.limit:
            return 0
        return first.opened_ns + self.owner.parameters.batch_timeout_micros * 1000

    def add(self, task: Task, now: int) -> ServableError | None:
        """Put a task into the open batch, new ones, or both; or say why there is no room."""
        splits = self.owner.parameters.enable_large_batch_splitting and not self.key.is_empty
        room = self.limit - self.batches[-1].size if self.batches else self.limit
        fits = task._size <= room and not (self.key.is_empty and self.batches)
        refusal = None if fits else self.owner.parameters.refusal(task._size, len(self.batches), room, splits=splits)
        if refusal is not None:
            return UnavailableError(refusal)
        if not self.batches or not (fits or (splits and room)):
            self._open(now)
        begin, task._left = 0, 0
        while True:
            batch = self.batches[-1]
            end = min(begin + self.limit - batch.size, task._size)
            batch.pieces.append(Piece(task, begin, end))
            batch.size += end - begin
            task._left += 1
            if end == task._size:
                return None
            self._open(now)
            begin = end

    def _open(self, now: int) -> None:
        self.batches.append(Batch(self.owner, self.key, now))


class Batcher:
    """Batches the calls of one loaded version.

    ``run`` runs a signature on its inputs and returns the outputs of these names; several threads call it.
    """

    def __init__(self, scheduler: BatchScheduler, parameters: BatchingParameters, run: Run) -> None:
        """Raises what `BatchingParameters.check` raises."""
        parameters.check()
        self.scheduler = scheduler
        self.parameters = parameters
        self.queues: dict[Key, Queue] = {}  # these two are the scheduler's, under its lock
        self.closed = False
        self.lock = threading.Condition()
        self._run = run
        self._running = 0

    def task(self, signature: str, inputs: Arrays, outputs: Sequence[str]) -> Task:
        """A task that is to be started; raises `InvalidArgumentError` for inputs that cannot be batched."""
        size = batching.count_rows(inputs)
        limit = self.parameters.max_batch_size
        if size > limit:
            raise InvalidArgumentError(f"Task size {size} is larger than maximum input batch size {limit}")
        return Task(self, signature, inputs, outputs, size)

    def close(self) -> None:
        """Fail what is queued, and wait for what runs: then the model can be freed."""
        self.scheduler.drop(self)
        with self.lock:
            self.lock.wait_for(lambda: not self._running)

    def run_batch(self, batch: Batch) -> None:
        """Run a batch, together what fits together; called by the scheduler's threads."""
        for pieces in _groups(_still_wanted(batch.pieces)):
            for piece in self._run_together(batch.key, pieces):
                self._run_together(batch.key, _still_wanted([piece]), again=True)

    def _run_together(self, key: Key, pieces: list[Piece], *, again: bool = False) -> list[Piece]:
        """Run pieces as one and end them; if several fail, return them instead, to be run apart."""
        if not pieces:
            return []
        started = perf_counter_ns()
        outcomes: Sequence[Outputs | ServableError]
        try:
            outcomes = self._outcomes(key, pieces, again=again)
        except BaseException as error:  # noqa: BLE001  # whatever a model does, its callers get an answer
            if len(pieces) > 1:
                if not isinstance(error, ServableError):
                    _log.warning("%d requests failed together and are run apart: %r", len(pieces), error)
                return pieces
            outcomes = [_to_error(error)]
        ended = perf_counter_ns()
        for piece, outcome in zip(pieces, outcomes, strict=True):
            piece.finish(outcome, started, ended)
        return []

    def _outcomes(self, key: Key, pieces: list[Piece], *, again: bool) -> list[Outputs]:
        with self.lock:
            if self.closed:
                raise UnavailableError(UNLOADED)
            self._running += 1
        try:
            sizes = [piece.end - piece.begin for piece in pieces]
            padding = self.parameters.padding(sum(sizes))
            self._count(sum(sizes) + padding, padding, [] if again else pieces)
            inputs = batching.merge([piece.inputs for piece in pieces], padding)
            outputs = self._run(key.signature, inputs, key.outputs)
            return batching.split({name: outputs[name] for name in key.outputs}, sizes, padding)
        finally:
            with self.lock:
                self._running -= 1
                self.lock.notify_all()

    def _count(self, size: int, padding: int, pieces: list[Piece]) -> None:
        now = perf_counter_ns()
        waits_us = [(now - piece.task.enqueued_ns) / 1000 for piece in pieces]
        self.scheduler.monitor.batch(
            size, padding, [piece.task._size for piece in pieces if piece.begin == 0], waits_us
        )


def _still_wanted(pieces: list[Piece]) -> list[Piece]:
    """Those whose tasks are worth running; the others end here."""
    wanted = []
    for piece in pieces:
        if piece.task._is_dead:
            piece.finish(CancelledError(_CANCELLED))
        else:
            wanted.append(piece)
    return wanted


def _groups(pieces: list[Piece]) -> Iterable[list[Piece]]:
    """The pieces that can be run together, for each run."""
    groups: dict[Layout, list[Piece]] = {}
    for piece in pieces:
        # A split task is not padded to the length of others, or its parts could not be joined again.
        task = piece.task
        groups.setdefault(task._group if piece.is_whole else task._layout, []).append(piece)
    return groups.values()


def _to_error(error: BaseException) -> ServableError:
    """What a task fails with."""
    if not isinstance(error, ServableError):
        _log.error("a request failed in its batch", exc_info=error)
        return InternalError(f"{type(error).__name__}: {error}")
    link: BaseException | None = error
    while link is not None and link.__traceback__ is not None:  # whose frames would keep the batch in memory
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
