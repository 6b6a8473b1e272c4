"""How versions are loaded, replaced, tried again, drained and unloaded; with loaders that do as they are told."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servable.errors import ArtifactError, NotFoundError, ServableError
from servable.serving import manager as manager_module
from servable.serving.engines import Engine, Loaded
from servable.serving.manager import MAX_ENDED, LifecycleOptions, Manager
from servable.serving.monitoring import Monitor
from servable.serving.servable import Servable
from servable.serving.status import State

LIMIT_S = 20.0
ONCE = LifecycleOptions(max_num_load_retries=0)
AT_ONCE = LifecycleOptions(load_retry_interval_micros=-1)
BAD = ArtifactError("it is broken")


def until(is_so: Callable[[], bool]) -> None:
    """Wait for it, but not for ever."""
    end = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


class Fake(Servable):
    """A servable that notes its end."""

    def __init__(self, name: str, version: int, folder: Path, loader: Fakes) -> None:
        super().__init__(name, version, Loaded({}, {"serving_default": Engine("onnx", "it is fake")}))
        self.folder = folder
        self.loader = loader

    def close(self) -> None:
        self.loader.on_close(self)


class Fakes:
    """A loader of fakes: what it does with a version can be held up, or made to fail."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.events: list[str] = []
        self.made: list[Fake] = []
        self.alive: set[Fake] = set()
        self.errors: dict[int, Exception] = {}
        self.loading = self.most_loading = 0
        self._loads: defaultdict[int, threading.Event] = defaultdict(_opened)
        self._closes: defaultdict[int, threading.Event] = defaultdict(_opened)

    def __call__(self, name: str, version: int, folder: Path) -> Servable:
        with self.lock:
            self.events.append(f"load {version}")
            self.loading += 1
            self.most_loading = max(self.most_loading, self.loading)
            gate = self._loads[version]
        try:
            assert gate.wait(LIMIT_S)
            if error := self.errors.get(version):
                raise error
            made = Fake(name, version, folder, self)
        finally:
            with self.lock:
                self.loading -= 1
        with self.lock:
            self.made.append(made)
            self.alive.add(made)
        return made

    def on_close(self, fake: Fake) -> None:
        with self.lock:
            self.events.append(f"close {fake.version}")
            gate = self._closes[fake.version]
        assert gate.wait(LIMIT_S)
        with self.lock:
            assert fake in self.alive, "closed twice"
            assert fake._users == 0, "closed while it was used"
            self.alive.remove(fake)

    @contextmanager
    def held(self, *versions: int) -> Iterator[None]:
        """Loads of these versions do not end before the end of the block."""
        with _closed(self._loads, versions):
            yield

    @contextmanager
    def closes_held(self, *versions: int) -> Iterator[None]:
        with _closed(self._closes, versions):
            yield

    def count(self, event: str) -> int:
        return self.events.count(event)


def _opened() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@contextmanager
def _closed(gates: dict[int, threading.Event], versions: tuple[int, ...]) -> Iterator[None]:
    for version in versions:
        gates[version].clear()
    try:
        yield
    finally:
        for version in versions:
            gates[version].set()


def folders(*versions: int, root: str = "/m") -> dict[int, Path]:
    return {version: Path(root, str(version)) for version in versions}


class World:
    """A manager over a loader of fakes, with one model."""

    def __init__(self, options: LifecycleOptions, loader: Fakes | None = None, **more: Any) -> None:
        self.loader = loader or Fakes()
        self.manager = Manager(self.loader, options, **more)
        self.manager.settle_down()

    def aspire(self, *versions: int, root: str = "/m") -> None:
        self.manager.aspire("m", folders(*versions, root=root))

    def state(self, version: int) -> State | None:
        try:
            return self.manager.statuses("m", version)[0].state
        except NotFoundError:
            return None

    def states(self) -> dict[int, State]:
        return {status.version: status.state for status in self.manager.statuses("m", None)}

    def wait(self, version: int, state: State) -> None:
        until(lambda: self.state(version) is state)

    def available(self) -> list[int]:
        return sorted(self.manager.engines("m"))

    def message(self, version: int) -> str:
        return self.manager.statuses("m", version)[0].message


@pytest.fixture
def make() -> Iterator[Callable[..., World]]:
    """Makes worlds, which end with the test; nothing that was loaded may be left."""
    with ExitStack() as stack:

        def made(options: LifecycleOptions = ONCE, **more: Any) -> World:
            world = World(options, **more)
            stack.callback(lambda: until(lambda: not world.loader.alive and not world.loader.loading))
            stack.callback(world.manager.close)
            return world

        yield made


@pytest.fixture
def world(make: Callable[..., World]) -> World:
    return make()


# One after the other


def test_the_newest_version_is_loaded_first(world: World) -> None:
    world.aspire(2, 10, 1, 3)
    until(lambda: world.available() == [1, 2, 3, 10])
    assert world.loader.events == ["load 10", "load 3", "load 2", "load 1"]


def test_the_old_version_serves_until_the_new_one_is_available(world: World) -> None:
    world.aspire(1)
    world.wait(1, State.AVAILABLE)
    with world.loader.held(2):
        world.aspire(2)
        until(lambda: world.loader.count("load 2") == 1)
        assert world.states() == {2: State.LOADING, 1: State.AVAILABLE}
        assert world.manager.find("m", None).version == 1
    world.wait(1, State.END)
    assert world.manager.find("m", None).version == 2
    assert world.loader.events == ["load 1", "load 2", "close 1"]
    assert world.states() == {2: State.AVAILABLE, 1: State.END}
    assert world.message(1) == ""


def test_a_broken_version_never_displaces_a_good_one(world: World) -> None:
    world.loader.errors[2] = BAD
    world.aspire(1)
    world.wait(1, State.AVAILABLE)
    world.aspire(2)
    world.wait(2, State.END)
    world.aspire(2)
    assert world.manager.find("m", None).version == 1
    (two, one) = world.manager.statuses("m", None)
    assert (two.version, two.state, two.code, two.message) == (2, State.END, ArtifactError.code, "it is broken")
    assert (one.version, one.state, one.message) == (1, State.AVAILABLE, "")
    assert world.manager.failures("m") == [two]
    world.aspire(3)
    world.wait(1, State.END)
    assert world.available() == [3]
    assert world.manager.failures("m") == []


def test_of_several_old_versions_the_highest_stays_in_the_place_of_a_broken_one(world: World) -> None:
    world.aspire(1, 2, 3)
    until(lambda: world.available() == [1, 2, 3])
    with world.loader.held(9):
        world.aspire(9)
        until(lambda: world.available() == [3])
        world.wait(2, State.END)
    world.wait(3, State.END)


def test_nothing_is_kept_where_nothing_is_asked_for(world: World) -> None:
    world.aspire(1, 2)
    until(lambda: world.available() == [1, 2])
    world.aspire()
    until(lambda: not world.loader.alive)
    until(lambda: world.states() == {2: State.END, 1: State.END})
    assert not world.manager.is_available("m")
    assert world.manager.models() == []


def test_models_do_not_touch_each_other(world: World) -> None:
    world.manager.aspire("other", folders(7))
    world.aspire(1)
    until(lambda: world.manager.is_available("other") and world.manager.is_available("m"))
    world.manager.aspire("other", {})
    until(lambda: not world.manager.is_available("other"))
    assert world.available() == [1]
    assert world.manager.models() == ["m"]


def test_what_is_there_is_not_loaded_again(world: World) -> None:
    world.aspire(1)
    world.wait(1, State.AVAILABLE)
    world.aspire(1)
    world.aspire(1, root="/elsewhere")
    world.aspire(1, 2)
    world.wait(2, State.AVAILABLE)
    assert world.loader.events == ["load 1", "load 2"]


# A change of mind


def test_what_is_not_wanted_any_more_when_it_is_loaded_is_thrown_away(world: World) -> None:
    with world.loader.held(1):
        world.aspire(1)
        until(lambda: world.loader.count("load 1") == 1)
        world.aspire()
        assert world.state(1) is State.LOADING
    world.wait(1, State.END)
    until(lambda: world.loader.count("close 1") == 1)
    (status,) = world.manager.statuses("m", 1)
    assert (status.code.name, status.message) == ("CANCELLED", "Loading of servable cancelled")
    assert not world.manager.is_available("m")
    assert world.manager.failures("m") == []


def test_what_is_not_wanted_any_more_when_it_fails_is_not_tried_again(make: Callable[..., World]) -> None:
    world = make(AT_ONCE)
    world.loader.errors[1] = BAD
    with world.loader.held(1):
        world.aspire(1)
        until(lambda: world.loader.count("load 1") == 1)
        world.aspire()
    world.wait(1, State.END)
    assert world.message(1) == "it is broken"
    assert world.loader.events == ["load 1"]


def test_a_version_that_is_wanted_again_while_it_is_loaded_is_loaded_once(world: World) -> None:
    with world.loader.held(1):
        world.aspire(1)
        until(lambda: world.loader.count("load 1") == 1)
        world.aspire()
        world.aspire(1)
    world.wait(1, State.AVAILABLE)
    assert world.loader.events == ["load 1"]


def test_a_version_that_is_wanted_again_while_it_is_unloaded_is_loaded_anew(world: World) -> None:
    world.aspire(1)
    world.wait(1, State.AVAILABLE)
    with world.manager.enter("m", 1) as first:
        world.aspire()
        world.wait(1, State.UNLOADING)
        world.aspire(1, root="/new")
        assert world.manager.is_untried("m")
        assert world.state(1) is State.UNLOADING
        assert world.loader.events == ["load 1"]
    world.wait(1, State.AVAILABLE)
    assert world.loader.events == ["load 1", "close 1", "load 1"]
    second = world.manager.find("m", 1)
    assert second is not first
    assert isinstance(second, Fake)
    assert second.folder == Path("/new/1")


def test_a_version_that_is_not_wanted_any_more_before_its_turn_is_not_loaded(world: World) -> None:
    with world.loader.held(2):
        world.aspire(1, 2)
        until(lambda: world.loader.events == ["load 2"])
        assert world.state(1) is State.START
        world.aspire(2)
        world.wait(1, State.END)
    world.wait(2, State.AVAILABLE)
    assert world.message(1) == ""
    assert world.loader.events == ["load 2"]


def test_an_old_version_that_is_wanted_again_while_it_still_serves_goes_on(world: World) -> None:
    world.aspire(1)
    world.wait(1, State.AVAILABLE)
    with world.loader.held(2):
        world.aspire(2)
        until(lambda: world.loader.count("load 2") == 1)
        world.aspire(1)
    world.wait(2, State.END)
    assert world.available() == [1]
    assert world.loader.count("load 1") == 1


def test_a_version_that_comes_back_is_loaded_anew(world: World) -> None:
    world.aspire(1)
    world.wait(1, State.AVAILABLE)
    world.aspire()
    world.wait(1, State.END)
    world.aspire(1)
    world.wait(1, State.AVAILABLE)
    assert world.loader.events == ["load 1", "close 1", "load 1"]


# Trying again


@pytest.mark.parametrize("interval", [0, -1, -(2**63)])
@pytest.mark.parametrize(("retries", "tries"), [(0, 1), (1, 2), (5, 6), (-1, 1)])
def test_a_failed_load_is_tried_so_many_times_more(
    make: Callable[..., World], retries: int, tries: int, interval: int
) -> None:
    world = make(LifecycleOptions(max_num_load_retries=retries, load_retry_interval_micros=interval))
    world.loader.errors[1] = BAD
    world.aspire(1)
    world.wait(1, State.END)
    assert world.loader.events == ["load 1"] * tries
    assert not world.manager.is_trying("m")


@pytest.mark.parametrize("interval", [3_600_000_000, 2**63 - 1])
def test_between_two_tries_it_is_loading_and_its_error_is_shown(make: Callable[..., World], interval: int) -> None:
    world = make(LifecycleOptions(load_retry_interval_micros=interval))
    world.loader.errors[1] = BAD
    world.aspire(1)
    until(lambda: world.message(1) == "it is broken")
    assert world.state(1) is State.LOADING
    assert world.manager.is_trying("m")
    assert not world.manager.is_untried("m")
    # It holds up nobody, though one is loaded at a time.
    world.aspire(1, 2)
    world.wait(2, State.AVAILABLE)
    assert world.loader.events == ["load 1", "load 2"]
    world.aspire(2)
    world.wait(1, State.END)
    assert world.message(1) == "it is broken"


def test_a_try_that_succeeds_takes_the_error_away(make: Callable[..., World]) -> None:
    world = make(LifecycleOptions(load_retry_interval_micros=1000, max_num_load_retries=2**31 - 1))
    world.loader.errors[1] = BAD
    world.aspire(1)
    until(lambda: world.loader.count("load 1") > 3)
    del world.loader.errors[1]
    world.wait(1, State.AVAILABLE)
    assert world.message(1) == ""
    assert world.manager.failures("m") == []


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> defaultdict[str, int]:
    """What the files of each folder look like, instead of what they do."""
    found: defaultdict[str, int] = defaultdict(int)
    monkeypatch.setattr(manager_module, "_marks", lambda folder: (str(folder), found[str(folder)]))
    return found


def test_a_failed_version_is_tried_again_where_its_files_change(
    make: Callable[..., World], files: defaultdict[str, int]
) -> None:
    world = make(LifecycleOptions(max_num_load_retries=1, load_retry_interval_micros=-1))
    world.loader.errors[1] = BAD
    world.aspire(1)
    world.wait(1, State.END)
    for _ in range(3):
        world.aspire(1)
    assert world.loader.count("load 1") == 2
    files["/m/1"] = 1
    world.aspire(1)
    until(lambda: world.loader.count("load 1") == 4)  # with as many retries as before
    world.wait(1, State.END)
    del world.loader.errors[1]
    files["/m/1"] = 2
    world.aspire(1)
    world.wait(1, State.AVAILABLE)
    assert world.message(1) == ""
    files["/m/1"] = 3
    world.aspire(1)
    assert world.state(1) is State.AVAILABLE
    assert world.loader.count("load 1") == 5


def test_a_change_of_files_does_not_wait_for_the_next_try(
    make: Callable[..., World], files: defaultdict[str, int]
) -> None:
    world = make(LifecycleOptions())
    world.loader.errors[1] = BAD
    world.aspire(1)
    until(lambda: world.message(1) == "it is broken")
    del world.loader.errors[1]
    files["/m/1"] = 1
    world.aspire(1)
    world.wait(1, State.AVAILABLE)


def test_files_that_change_while_they_are_loaded_count_as_changed(world: World, files: defaultdict[str, int]) -> None:
    world.loader.errors[1] = BAD
    with world.loader.held(1):
        world.aspire(1)
        until(lambda: world.loader.count("load 1") == 1)
        files["/m/1"] = 1
    world.wait(1, State.END)
    world.aspire(1)
    until(lambda: world.loader.count("load 1") == 2)


def test_a_failed_version_is_tried_again_from_another_folder(world: World) -> None:
    world.loader.errors[1] = BAD
    world.aspire(1)
    world.wait(1, State.END)
    del world.loader.errors[1]
    world.aspire(1, root="/elsewhere")
    world.wait(1, State.AVAILABLE)
    found = world.manager.find("m", 1)
    assert isinstance(found, Fake)
    assert found.folder == Path("/elsewhere/1")


def test_a_failed_version_that_went_and_came_back_is_tried_again(world: World) -> None:
    world.loader.errors[1] = BAD
    world.aspire(1)
    world.wait(1, State.END)
    world.aspire()
    assert world.message(1) == "it is broken"
    del world.loader.errors[1]
    world.aspire(1)
    world.wait(1, State.AVAILABLE)


def test_what_changes_in_a_folder_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "1"
    seen = [manager_module._marks(folder)]
    (folder / "variables").mkdir(parents=True)
    file = folder / "variables" / "data"
    for text in ("one", "three"):
        file.write_text(text)
        seen.append(manager_module._marks(folder))
    (tmp_path / "new").write_text("three")
    (tmp_path / "new").replace(file)
    seen.append(manager_module._marks(folder))
    (folder / "link").symlink_to(tmp_path / "nowhere")
    seen.append(manager_module._marks(folder))
    assert seen[-1] == manager_module._marks(folder)
    for i, marks in enumerate(seen):
        assert marks not in seen[:i]


# Whatever a model does


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("oh"), "INTERNAL", "RuntimeError: oh"),
        (MemoryError(), "RESOURCE_EXHAUSTED", "not enough memory to load /m/1"),
        (OSError(5, "Input/output error"), "INTERNAL", "OSError: [Errno 5] Input/output error"),
    ],
)
def test_no_error_of_a_load_ends_the_manager(world: World, error: Exception, code: str, message: str) -> None:
    world.loader.errors[1] = error
    world.aspire(1)
    world.wait(1, State.END)
    (status,) = world.manager.statuses("m", 1)
    assert (status.code.name, status.message) == (code, message)
    world.aspire(1, 2)
    world.wait(2, State.AVAILABLE)


def test_a_close_that_fails_is_logged_and_ends_the_version(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.aspire(1)
    world.wait(1, State.AVAILABLE)

    def fail(fake: Fake) -> None:
        world.loader.alive.remove(fake)
        raise RuntimeError("no")

    monkeypatch.setattr(Fake, "close", fail)
    world.aspire()
    world.wait(1, State.END)
    assert "unloading m version 1 failed" in caplog.text


def test_a_thread_that_cannot_be_started_is_started_later(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.aspire(1)
    world.wait(1, State.AVAILABLE)
    start, refused = threading.Thread.start, []

    def refuse_once(thread: threading.Thread) -> None:
        if thread.name.startswith("load") and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(manager_module, "_BREAK_S", 0.01)
    monkeypatch.setattr(threading.Thread, "start", refuse_once)
    world.aspire(1, 2)
    world.wait(2, State.AVAILABLE)
    assert refused
    assert "versions cannot be loaded at the moment" in caplog.text


# Requests


def test_a_version_is_unloaded_when_its_last_request_has_ended(world: World) -> None:
    world.aspire(1)
    world.wait(1, State.AVAILABLE)
    with world.manager.enter("m", None):
        with world.manager.enter("m", 1) as old:
            world.aspire(2)
            world.wait(1, State.UNLOADING)
            assert not old.enter()
            with world.manager.enter("m", None) as new:
                assert new.version == 2
            with pytest.raises(NotFoundError):
                world.manager.enter("m", 1)
        assert world.state(1) is State.UNLOADING
        assert old in world.loader.alive
    world.wait(1, State.END)
    assert old not in world.loader.alive


def test_many_requests_and_swaps_never_meet(make: Callable[..., World]) -> None:
    world = make(LifecycleOptions(num_load_threads=2, num_unload_threads=2))
    world.aspire(1)
    world.wait(1, State.AVAILABLE)
    stop, failures, counts = threading.Event(), [], []

    def call() -> None:
        count = 0
        while not stop.is_set():
            try:
                with world.manager.enter("m", None) as servable:
                    if servable not in world.loader.alive:
                        failures.append("it was closed")
                    count += 1
                time.sleep(0.0002)  # else the others would hardly get a turn
            except ServableError as error:
                failures.append(str(error))
        counts.append(count)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in range(2, 52):
        world.aspire(version)
        world.wait(version, State.AVAILABLE)
    stop.set()
    for thread in threads:
        thread.join(LIMIT_S)
    assert failures == []
    assert min(counts) > 0
    until(lambda: len(world.loader.alive) == 1)


def test_what_is_not_there(world: World) -> None:
    manager = world.manager
    for version, text in (
        (None, r"^Servable not found for request: Latest\(m\)$"),
        (7, r"^Servable not found for request: Specific\(m, 7\)$"),
    ):
        with pytest.raises(NotFoundError, match=text):
            manager.enter("m", version)
    with pytest.raises(NotFoundError, match=r"^Could not find any versions of model m$"):
        manager.statuses("m", None)
    with pytest.raises(NotFoundError, match=r"^Could not find version 7 of model m$"):
        manager.statuses("m", 7)
    world.aspire(1)
    world.wait(1, State.AVAILABLE)
    with pytest.raises(NotFoundError, match=r"^Servable not found for request: Specific\(m, 7\)$"):
        manager.enter("m", 7)
    with pytest.raises(NotFoundError, match=r"^Could not find version 7 of model m$"):
        manager.statuses("m", 7)
    world.aspire()
    world.wait(1, State.END)
    with pytest.raises(NotFoundError, match=r"Latest\(m\)"):
        manager.find("m", None)


# The end


def test_closing_waits_for_no_load_and_leaves_nothing(make: Callable[..., World]) -> None:
    world = make()
    world.aspire(1)
    world.wait(1, State.AVAILABLE)
    with world.loader.held(2):
        world.aspire(1, 2, 3)
        until(lambda: world.loader.events[-2:] == ["load 3", "load 2"])
        world.manager.close()
        assert not world.manager.is_available("m")
        until(lambda: not world.loader.alive)
    until(lambda: world.loader.count("close 2") == 1)
    assert sorted(world.loader.events[3:]) == ["close 1", "close 2", "close 3"]


def test_closing_ends_what_waits(world: World) -> None:
    with world.loader.held(1):
        world.aspire(1)
        threading.Timer(0.05, world.manager.close).start()
        assert world.manager.wait_for(lambda: world.manager.is_available("m"), LIMIT_S)
    assert not world.manager.is_available("m")


def test_closing_also_closes_what_was_still_to_be_unloaded(world: World) -> None:
    world.aspire(1, 2, 3)
    until(lambda: world.available() == [1, 2, 3])
    with world.loader.closes_held(1):
        world.aspire()
        until(lambda: world.states() == dict.fromkeys((3, 2, 1), State.UNLOADING))
        until(lambda: world.loader.count("close 1") == 1)  # and the others after it, one at a time
        world.manager.close()
    until(lambda: not world.loader.alive)


def test_a_request_that_outlives_the_server_closes_its_version(world: World) -> None:
    world.aspire(1)
    world.wait(1, State.AVAILABLE)
    with world.manager.enter("m", 1) as servable:
        world.aspire()
        world.wait(1, State.UNLOADING)
        world.manager.close()
        assert servable in world.loader.alive
    until(lambda: not world.loader.alive)


def test_a_manager_that_nothing_was_asked_of_can_be_closed() -> None:
    manager = Manager(Fakes())
    manager.close()
    manager.aspire("m", folders(1))
    assert not manager.wait_for(lambda: False, 0.0) or not manager.is_available("m")
    manager.close()


def test_a_wait_has_a_limit(world: World) -> None:
    assert not world.manager.wait_for(lambda: False, 0.01)
    assert world.manager.wait_for(lambda: True, 0.0)


# How many at a time


@pytest.mark.parametrize(("threads", "most"), [(0, 1), (1, 1), (2, 2), (-3, 1)])
def test_so_many_are_loaded_at_a_time(make: Callable[..., World], threads: int, most: int) -> None:
    world = make(LifecycleOptions(num_load_threads=threads))
    with world.loader.held(1, 2, 3, 4):
        world.aspire(1, 2, 3, 4)
        until(lambda: world.loader.loading == most)
    until(lambda: world.available() == [1, 2, 3, 4])
    assert world.loader.most_loading == most


def test_at_start_as_many_are_loaded_as_there_are_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    loader = Fakes()
    manager = Manager(loader, ONCE)
    with loader.held(1, 2, 3, 4, 5):
        manager.aspire("m", folders(1, 2, 3, 4, 5))
        until(lambda: loader.loading == 3)
        manager.settle_down()
    until(lambda: len(manager.engines("m")) == 5)
    assert loader.most_loading == 3
    with loader.held(6, 7):
        manager.aspire("m", folders(6, 7))
        until(lambda: loader.count("load 7") == 1)
        assert loader.loading == 1
    until(lambda: sorted(manager.engines("m")) == [6, 7])
    manager.close()


@pytest.mark.parametrize(("threads", "most"), [(0, 1), (2, 2)])
def test_so_many_are_unloaded_at_a_time(make: Callable[..., World], threads: int, most: int) -> None:
    world = make(LifecycleOptions(num_unload_threads=threads))
    world.aspire(1, 2, 3)
    until(lambda: world.available() == [1, 2, 3])
    with world.loader.closes_held(1, 2, 3):
        world.aspire()
        until(lambda: world.available() == [])
        until(lambda: sum(event.startswith("close") for event in world.loader.events) == most)
        assert set(world.states().values()) == {State.UNLOADING}
    until(lambda: set(world.states().values()) == {State.END})


# What is told


def test_versions_that_ended_are_remembered_up_to_a_number(world: World) -> None:
    for version in range(1, MAX_ENDED + 12):
        world.aspire(version)
        world.wait(version, State.AVAILABLE)
    until(lambda: list(world.states().values()).count(State.END) == MAX_ENDED)
    assert sorted(world.states()) == list(range(11, MAX_ENDED + 12))


def test_outcomes_are_reported_until_the_start_is_over_and_logged_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    heard: list[tuple[str, int, str]] = []
    loader = Fakes()
    loader.errors[2] = BAD
    manager = Manager(loader, ONCE, report=lambda *what: heard.append((*what[:2], type(what[2]).__name__)))
    manager.aspire("m", folders(1, 2))
    assert manager.wait_for(lambda: not manager.is_untried("m"), LIMIT_S)
    assert sorted(heard) == [("m", 1, "Fake"), ("m", 2, "ArtifactError")]
    assert caplog.messages == []
    manager.settle_down()
    loader.errors[4] = BAD
    manager.aspire("m", folders(3, 4))
    assert manager.wait_for(lambda: not manager.is_untried("m"), LIMIT_S)
    until(lambda: len(caplog.messages) == 4)
    assert len(heard) == 2
    assert sorted(caplog.messages) == [
        "m version 1 is being unloaded",
        "m version 1 is unloaded",
        "m version 3 is available",
        "m version 4 cannot be loaded: it is broken",
    ]
    manager.close()


def test_the_log_says_when_the_next_try_is(make: Callable[..., World], caplog: pytest.LogCaptureFixture) -> None:
    world = make(LifecycleOptions(max_num_load_retries=1, load_retry_interval_micros=-1))
    world.loader.errors[1] = BAD
    world.aspire(1)
    world.wait(1, State.END)
    assert caplog.messages == [
        "m version 1 cannot be loaded, next try in 0 s: it is broken",
        "m version 1 cannot be loaded: it is broken",
    ]


def test_loads_and_engines_are_counted(make: Callable[..., World]) -> None:
    monitor = Monitor()
    world = make(LifecycleOptions(max_num_load_retries=1, load_retry_interval_micros=-1), monitor=monitor)
    world.loader.errors[2] = BAD
    world.aspire(1, 2)
    world.wait(2, State.END)
    world.wait(1, State.AVAILABLE)
    page = monitor.page().decode()
    attempts = ":tensorflow:cc:saved_model:load_attempt_count"
    assert f'{attempts}{{model_path="/m/1",status="success"}} 1\n' in page
    assert f'{attempts}{{model_path="/m/2",status="fail"}} 2\n' in page
    assert 'servable_engine_info{model_name="m",version="1"' in page
    world.aspire()
    world.wait(1, State.END)
    assert 'servable_engine_info{model_name="m",version="1"' not in monitor.page().decode()


# Anything, in any order


class Play:
    """A world in which things happen by name, whatever else is going on."""

    def __init__(self, threads: int, files: defaultdict[Path, int]) -> None:
        self.files = files
        options = LifecycleOptions(threads, threads, max_num_load_retries=1, load_retry_interval_micros=-1)
        self.world = World(options, Fakes())
        self.loader = self.world.loader
        self.held: dict[int, ExitStack] = {}
        self.users: list[Servable] = []

    def aspire(self, versions: set[int]) -> None:
        self.world.aspire(*versions)

    def break_(self, version: int) -> None:
        self.loader.errors[version] = BAD

    def mend(self, version: int) -> None:
        self.loader.errors.pop(version, None)

    def touch(self, version: int) -> None:
        self.files[Path("/m", str(version))] += 1

    def hold(self, version: int) -> None:
        if version not in self.held:
            self.held[version] = ExitStack()
            self.held[version].enter_context(self.loader.held(version))

    def release(self, version: int) -> None:
        if version in self.held:
            self.held.pop(version).close()

    def enter(self, version: int) -> None:
        with suppress(NotFoundError):
            self.users.append(self.world.manager.enter("m", version))

    def leave(self, _: int) -> None:
        if self.users:
            self.users.pop(0).__exit__(None, None, None)

    def settle(self, _: int) -> None:
        if not self.held and not self.users:
            until(self.is_quiet)

    def is_quiet(self) -> bool:
        moving = (State.START, State.LOADING, State.UNLOADING)
        return not any(version.state in moving for version in self.world.manager._models.get("m", {}).values())

    def check(self) -> None:
        """No version is in memory twice, and none that is used has been closed."""
        with self.loader.lock:
            versions = [fake.version for fake in self.loader.alive]
        assert len(versions) == len(set(versions))
        assert all(user in self.loader.alive for user in self.users)

    def let_go(self) -> None:
        for version in list(self.held):
            self.release(version)
        while self.users:
            self.leave(0)

    def expect(self, versions: set[int]) -> None:
        """These are available in the end, and nothing else is left in memory."""
        until(lambda: set(self.world.available()) == versions)
        until(lambda: {fake.version for fake in self.loader.alive} == versions)
        until(self.is_quiet)


VERSIONS = st.integers(1, 4)
NAMES = ["break_", "mend", "touch", "hold", "release", "enter", "leave", "settle"]
STEPS = st.lists(
    st.tuples(st.just("aspire"), st.sets(VERSIONS)) | st.tuples(st.sampled_from(NAMES), VERSIONS), max_size=25
)


@pytest.mark.parametrize("threads", [0, 3])
@settings(max_examples=200)
@given(steps=STEPS, last=st.sets(VERSIONS))
def test_any_sequence_ends_with_what_was_asked_for_last(
    threads: int, steps: list[tuple[str, Any]], last: set[int]
) -> None:
    files: defaultdict[Path, int] = defaultdict(int)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as opened:
        patch.setattr(manager_module, "_marks", lambda folder: files[folder])
        play = Play(threads, files)
        world = play.world
        opened.callback(world.manager.close)
        for what, which in steps:
            getattr(play, what)(which)
            play.check()
        play.let_go()
        world.aspire(*last)
        until(play.is_quiet)
        failed = {version for version in last if world.state(version) is State.END}
        assert failed <= play.loader.errors.keys()
        assert all(world.message(version) == "it is broken" for version in failed)
        if failed != last or not last:
            play.expect(last - failed)
        else:
            until(lambda: len(world.available()) <= 1)  # the one that they were to replace
        # Once they are mended, all of them come.
        play.loader.errors.clear()
        for version in last:
            play.touch(version)
        world.aspire(*last)
        play.expect(last)
    until(lambda: not play.loader.alive)
