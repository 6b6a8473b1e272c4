"""How long the requests of one kind take, and whether the next one is quick enough to run at once."""

from __future__ import annotations

from time import thread_time_ns

from .monitoring import QUEUE, Call

# A request that is expected to take less runs where it was received: a change of thread costs about as much.
QUICK_NS = 1_000_000
# One that takes so long is no accident of the scheduler, and so many are looked at before it is forgotten.
_SLOW_NS = 10 * QUICK_NS
_WARY_FOR = 1000


class Pace:
    """The time for each byte of a request, old requests counting less than new ones.

    Requests that took longer than was expected count little: most of them only waited for another
    thread. But one that was really slow sends the next thousand to the pool, whatever their size; and
    no request is expected to take less than the quickest of late.
    """

    __slots__ = ("_floor_ns", "_ns_per_byte", "_wary")

    def __init__(self) -> None:
        self._ns_per_byte: float | None = None
        self._floor_ns = 0.0
        self._wary = 0  # how many more requests go to the pool in any case

    def is_quick(self, size: int) -> bool:
        """Whether a request of ``size`` bytes will be answered within ``QUICK_NS``, as far as is known."""
        if self._wary or self._ns_per_byte is None:
            return False
        return self._ns_per_byte * size < QUICK_NS and self._floor_ns < QUICK_NS

    def note(self, size: int, elapsed_ns: int) -> None:
        """Count a request that took so long."""
        slow = elapsed_ns > _SLOW_NS and self._ns_per_byte is not None  # the first one only warms up
        self._wary = _WARY_FOR if slow else max(0, self._wary - 1)
        self._floor_ns = min(self._floor_ns * 1.05, elapsed_ns) if self._floor_ns else elapsed_ns
        ns_per_byte = elapsed_ns / max(size, 1)
        old = ns_per_byte if self._ns_per_byte is None else self._ns_per_byte
        weight = 0.5 if ns_per_byte < old else 0.05
        self._ns_per_byte = (1 - weight) * old + weight * ns_per_byte


class Stopwatch:
    """Times a call from now on.

    Where a thread waits for others too, in the pool or with batching, what counts is the time that it was
    at work itself; but TensorFlow works in threads of its own, and there the clock on the wall has to do.
    Of a call that is handed over to a batcher, only what comes before that counts.
    """

    __slots__ = ("_busy_ns", "_call")

    def __init__(self, call: Call, *, batching: bool) -> None:
        self._call = call
        self._busy_ns = thread_time_ns() if call.pooled or batching else None

    def elapsed_ns(self) -> int:
        """The time that the call took, its queue left out."""
        call = self._call
        if self._busy_ns is None or (call.engine and call.engine.runtime == "tensorflow" and not call.handed_over_ns):
            return sum(call.stages_ns) - call.stages_ns[QUEUE]
        return (call.handed_over_ns or thread_time_ns()) - self._busy_ns
