"""What several workers say of the same, as one answer: statuses and counts."""

from __future__ import annotations

import pickle
import socket
import threading
import time
from multiprocessing.connection import Connection

import pytest

from servable.errors import Code
from servable.serving import families, fleet, link
from servable.serving.engines import Engine
from servable.serving.fleet import FleetMonitor, merge
from servable.serving.link import Link
from servable.serving.monitoring import Call, Monitor
from servable.serving.status import State, VersionStatus

START, LOADING, AVAILABLE = State.START, State.LOADING, State.AVAILABLE
UNLOADING, END = State.UNLOADING, State.END


@pytest.mark.parametrize(
    ("states", "merged"),
    [
        ([AVAILABLE, AVAILABLE], AVAILABLE),
        ([AVAILABLE, LOADING], LOADING),
        ([LOADING, START], START),
        ([AVAILABLE, None], START),
        ([None, LOADING], START),
        ([AVAILABLE, UNLOADING], UNLOADING),
        ([AVAILABLE, END], UNLOADING),
        ([UNLOADING, END], UNLOADING),
        ([UNLOADING, None], UNLOADING),
        ([END, None], END),
        ([END, END], END),
        ([AVAILABLE, AVAILABLE, LOADING, AVAILABLE], LOADING),
    ],
)
def test_the_state_of_a_version_is_the_one_farthest_from_available(states: list[State | None], merged: State) -> None:
    for order in (states, states[::-1]):
        answers = [[] if state is None else [VersionStatus(1, state)] for state in order]
        assert merge(answers) == [VersionStatus(1, merged)]


@pytest.mark.parametrize("other", [START, LOADING, AVAILABLE, UNLOADING, END])
def test_the_first_error_is_told(other: State) -> None:
    failed = VersionStatus(1, END, Code.INTERNAL, "it broke")
    worse = VersionStatus(1, END, Code.UNKNOWN, "it broke too")
    assert merge([[VersionStatus(1, other)], [failed], [worse]]) == [failed]
    trying = VersionStatus(1, LOADING, Code.INTERNAL, "it broke")
    (merged,) = merge([[trying], [VersionStatus(1, other)]])
    assert (merged.code, merged.message) == (Code.INTERNAL, "it broke")
    assert merged.state == (LOADING if other is AVAILABLE else other)


def test_versions_stand_highest_first() -> None:
    assert merge([]) == merge([[], []]) == []
    answers = [[VersionStatus(10, AVAILABLE), VersionStatus(9, AVAILABLE)], [VersionStatus(9, AVAILABLE)]]
    assert merge(answers) == [VersionStatus(10, START), VersionStatus(9, AVAILABLE)]


def counting(*requests: tuple[str, Code]) -> Monitor:
    monitor = Monitor()
    for model, code in requests:
        call = Call("Predict", "GRPC")
        call.model, call.version, call.engine = model, 1, Engine("onnx", "")
        call.lap(2)
        monitor.finish(call, code)
    return monitor


def test_counts_add_up_and_gauges_do_not() -> None:
    one = counting(("a", Code.OK), ("a", Code.OK), ("b", Code.NOT_FOUND))
    two = counting(("a", Code.OK), ("c", Code.OK))
    for monitor in (one, two):
        monitor.engine("a", 1, "serving_default", Engine("onnx", "because"))
    all_at_once = counting(*[("a", Code.OK)] * 3, ("b", Code.NOT_FOUND), ("c", Code.OK))
    all_at_once.engine("a", 1, "serving_default", Engine("onnx", "because"))
    snapshots = [pickle.loads(pickle.dumps(monitor.snapshot())) for monitor in (one, two)]
    page = families.page(families.total(snapshots)).decode()
    assert without_times(page) == without_times(all_at_once.page().decode())
    # What was added up has not changed.
    assert [families.page(snapshot) for snapshot in snapshots] == [one.page(), two.page()]


def without_times(page: str) -> list[str]:
    return sorted(line for line in page.splitlines() if "_sum{" not in line and "_bucket{" not in line)


def test_buckets_are_added_one_by_one() -> None:
    one, two = (families.Family("f", "histogram", ("x",), (1.0, 2.0)) for _ in range(2))
    for family, values in ((one, (0.5, 1.5)), (two, (1.0, 5.0, 0.1))):
        for value in values:
            family.add(("y",), value)
    (total,) = families.total([[one], [two], []])
    assert total.lines() == [
        "# TYPE f histogram",
        'f_bucket{x="y",le="1"} 2',
        'f_bucket{x="y",le="2"} 4',
        'f_bucket{x="y",le="+Inf"} 5',
        'f_sum{x="y"} 8.1',
        'f_count{x="y"} 5',
    ]
    assert one.lines()[-1] == 'f_count{x="y"} 2'


def test_a_snapshot_stands_still() -> None:
    monitor = counting(("a", Code.OK))
    snapshot = monitor.snapshot()
    before = families.page(snapshot)
    monitor.finish(Call("Predict", "GRPC"), Code.OK)
    assert families.page(snapshot) == before != monitor.page()


def test_counts_are_told_as_long_as_the_line_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_PUBLISH_S", 0.005)
    monkeypatch.setattr(link, "_SEND_LIMIT_S", 0.005)
    ours, theirs = socket.socketpair()
    other = Connection(theirs.detach())
    line = Link(Connection(ours.detach()))
    listener = threading.Thread(target=line.listen, args=({},), daemon=True)
    listener.start()
    monitor = FleetMonitor(line)
    before = set(threading.enumerate())
    with line._sending:  # nobody gets through, as where the supervisor does not read
        monitor.start()
        (publisher,) = set(threading.enumerate()) - before
        time.sleep(0.1)
        assert publisher.is_alive()
    assert other.poll(20)
    kind, _, (name, _) = other.recv()
    assert (kind, name) == ("note", "counted")
    other.close()
    for thread in (listener, publisher):
        thread.join(20)
        assert not thread.is_alive()
