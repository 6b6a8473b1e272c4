"""The threads that run the batches of all models, as TensorFlow's SharedBatchScheduler shares them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from time import perf_counter_ns

from ..errors import ServableError, UnavailableError
from .batch_queue import STOPPED, UNLOADED, Batch, Batcher, Piece, Queue, Task
from .batching import check_threads
from .monitoring import Monitor

_NEVER = 2**63

_log = logging.getLogger(__name__)


class BatchScheduler:
    """Threads that run the batches of all versions of all models, the queues taking turns.

    They are started at the first task, and named after ``name``.
    """

    def __init__(self, threads: int, monitor: Monitor, name: str = "batch_threads") -> None:
        """Raises `InvalidArgumentError` if there are to be no threads."""
        check_threads(threads)
        self.monitor = monitor
        self._count = threads
        self._name = name
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition(threading.Lock())
        self._ready: deque[Queue] = deque()  # those that have a batch to run, in the order of their turns
        self._waiting: dict[Queue, None] = {}  # those whose only batch may still get more tasks
        self._watched_ns = _NEVER  # the earliest time at which an idle thread will wake by itself
        self._hurries = False
        self._closed = False

    def hurry(self) -> None:
        """From now on run every batch as soon as a thread is free: the server is about to stop."""
        with self._changed:
            self._hurries = True
            for queue in self._waiting:
                self._line_up(queue)
            self._waiting.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Fail what is queued, and wait for what runs."""
        with self._changed:
            self._closed = True
            owners = {queue.owner for queue in (*self._ready, *self._waiting)}
            dropped = [piece for owner in owners for piece in self._drain(owner)]
            self._changed.notify_all()
        for piece in dropped:
            piece.finish(UnavailableError(STOPPED))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def add(self, task: Task) -> ServableError | None:
        """Queue a task, or say why not."""
        owner, key = task.batcher, task.key
        with self._changed:
            if self._closed or owner.closed:
                return UnavailableError(STOPPED if self._closed else UNLOADED)
            if not self._threads and not self._start():
                return UnavailableError("no batch thread can be started")
            queue = owner.queues.get(key) or Queue(owner, key)
            now = task.enqueued_ns = perf_counter_ns()
            refusal = queue.add(task, now)
            if refusal is not None:
                return refusal
            task.queued = True
            owner.queues[key] = queue
            if queue.is_ready:
                return None
            due = queue.due_ns
            if due <= now or self._hurries:
                self._waiting.pop(queue, None)
                self._line_up(queue)
                self._changed.notify()
            else:
                self._waiting[queue] = None
                if due < self._watched_ns:
                    self._changed.notify()
            return None

    def drop(self, owner: Batcher) -> None:
        """Fail what is queued of a version, and take nothing more of it."""
        with self._changed:
            owner.closed = True
            dropped = self._drain(owner)
        for piece in dropped:
            piece.finish(UnavailableError(UNLOADED))

    def _drain(self, owner: Batcher) -> list[Piece]:
        pieces: list[Piece] = []
        for queue in owner.queues.values():
            if queue.is_ready:
                self._ready.remove(queue)
            else:
                del self._waiting[queue]
            for batch in queue.batches:
                pieces += batch.pieces
        owner.queues.clear()
        for piece in pieces:
            piece.task.queued = False
        return pieces

    def _start(self) -> bool:
        """Start the threads, or as many as there can be; whether there are any."""
        for number in range(self._count):
            thread = threading.Thread(target=self._work, name=f"{self._name}_{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                _log.warning("only %d of %d batch threads can be started: %s", number, self._count, error)
                break
            self._threads.append(thread)
        return bool(self._threads)

    def _work(self) -> None:
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Run one batch, and keep nothing of it while waiting for the next; False at the end."""
        batch = self._next()
        if batch is None:
            return False
        batch.owner.run_batch(batch)
        return True

    def _next(self) -> Batch | None:
        with self._changed:
            while not self._closed:
                now = perf_counter_ns()
                if self._waiting:
                    for queue in [queue for queue in self._waiting if queue.due_ns <= now]:
                        del self._waiting[queue]
                        self._line_up(queue)
                if self._ready:
                    return self._take(now)
                self._sleep(now)
            return None

    def _line_up(self, queue: Queue) -> None:
        queue.is_ready = True
        self._ready.append(queue)

    def _take(self, now: int) -> Batch:
        """The first batch of the queue whose turn it is."""
        queue = self._ready.popleft()
        batch = queue.batches.popleft()
        for piece in batch.pieces:
            piece.task.queued = False
        if not queue.batches:
            del queue.owner.queues[queue.key]
        elif queue.due_ns <= now or self._hurries:
            self._ready.append(queue)
        else:
            queue.is_ready = False
            self._waiting[queue] = None
        # Another thread has to see to what is left, as this one will be busy.
        if self._ready or (self._waiting and self._soonest() < self._watched_ns):
            self._changed.notify()
        return batch

    def _soonest(self) -> int:
        return min((queue.due_ns for queue in self._waiting), default=_NEVER)

    def _sleep(self, now: int) -> None:
        """Wait to be called, and until the next batch is due unless another thread does that already."""
        soonest = self._soonest()
        if soonest >= self._watched_ns:
            self._changed.wait()
            return
        self._watched_ns = soonest
        self._changed.wait(min((soonest - now) / 1e9, threading.TIMEOUT_MAX))
        if self._watched_ns == soonest:
            self._watched_ns = _NEVER
