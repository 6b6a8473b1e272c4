"""Which requests run where they were received: the quick ones, and no slow one for long."""

from __future__ import annotations

from servable.serving.pace import QUICK_NS, Pace

FAST, SLOW = QUICK_NS // 10, 50 * QUICK_NS


def test_nothing_is_quick_before_it_was_seen() -> None:
    assert not Pace().is_quick(0)


def test_small_work_is_quick_and_larger_work_is_not() -> None:
    pace = Pace()
    for _ in range(20):
        pace.note(1000, FAST)
    assert pace.is_quick(1000)
    assert not pace.is_quick(20_000)


def test_a_cold_first_run_is_forgotten_soon() -> None:
    pace = Pace()
    pace.note(1000, SLOW)
    assert not pace.is_quick(1000)
    for _ in range(20):
        pace.note(1000, FAST)
    assert pace.is_quick(1000)


def test_one_slow_run_among_fast_ones_sends_the_next_to_the_pool() -> None:
    pace = Pace()
    for _ in range(20):
        pace.note(1000, FAST)
    pace.note(1000, SLOW)
    assert not pace.is_quick(1000)
    for _ in range(1000):
        pace.note(1000, FAST)
    assert pace.is_quick(1000)


def test_small_requests_of_a_slow_model_are_not_quick_because_large_ones_are_cheap_by_the_byte() -> None:
    pace = Pace()
    for _ in range(50):
        pace.note(2_000_000, SLOW)
    assert not pace.is_quick(15_000)


def test_one_that_waited_for_another_thread_changes_little() -> None:
    pace = Pace()
    for _ in range(20):
        pace.note(1000, FAST)
    pace.note(1000, 5 * QUICK_NS)
    assert pace.is_quick(1000)
