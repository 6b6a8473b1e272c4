"""What is looked for, when, and what configurations and labels are taken; over folders without models in them."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from servable.errors import (
    ArtifactError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ServableError,
    StoreError,
    UnavailableError,
    UnknownError,
)
from servable.serving import model_config
from servable.serving.core import Core, CoreOptions
from servable.serving.engines import Loaded
from servable.serving.manager import LifecycleOptions, Manager
from servable.serving.model_config import All, Latest, ModelConfig, Policy, Specific
from servable.serving.servable import Servable
from servable.serving.sources import Aspired, ConfigSource, Fixed, Source, StoreSource, Unseen
from servable.serving.status import State
from servable.store import Store
from servable.wire import messages

LIMIT_S = 20.0
LIFECYCLE = LifecycleOptions()
LATEST = Latest()
NEVER = CoreOptions(file_system_poll_wait_seconds=0)
SOON: Any = 0.02  # seconds are whole ones on the command line only
POLLING = CoreOptions(file_system_poll_wait_seconds=SOON)


def until(is_so: Callable[[], bool]) -> None:
    """Wait for it, but not for ever."""
    end = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


class Fakes:
    """Loads a version folder, unless there is a file ``broken`` in it; can be held up for ``m 1``."""

    def __init__(self) -> None:
        self.tries: list[str] = []
        self.held: set[str] = set()
        self.changed = threading.Condition()

    def __call__(self, name: str, version: int, folder: Path) -> Servable:
        with self.changed:
            self.tries.append(f"{name} {version}")
            assert self.changed.wait_for(lambda: f"{name} {version}" not in self.held, LIMIT_S)
        if (folder / "broken").exists():
            raise ArtifactError(f"{name} {version} is broken")
        return Servable(name, version, Loaded({}))

    @contextmanager
    def hold(self, what: str) -> Iterator[None]:
        self.held.add(what)
        try:
            yield
        finally:
            with self.changed:
                self.held.remove(what)
                self.changed.notify_all()


class World:
    """A core that has not been started."""

    def __init__(self, source: Source, options: CoreOptions, lifecycle: LifecycleOptions) -> None:
        self.loader = Fakes()
        self.warnings: list[str] = []
        self.manager = Manager(self.loader, lifecycle)
        self.core = Core(self.manager, source, options, self.warnings.append)

    def start(self) -> World:
        self.core.start()
        return self

    def available(self, model: str = "m") -> list[int]:
        return sorted(self.core.engines(model))

    def wait(self, *versions: int, model: str = "m") -> None:
        until(lambda: self.available(model) == list(versions))

    def status(self, version: int, model: str = "m") -> tuple[str, str]:
        (found,) = self.core.statuses(model, version)
        return found.state.name, found.message


Make = Callable[..., World]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes worlds, which end with the test."""
    with ExitStack() as stack:

        def made(source: Source, options: CoreOptions = NEVER, lifecycle: LifecycleOptions = LIFECYCLE) -> World:
            world = World(source, options, lifecycle)
            stack.callback(world.manager.close)
            stack.callback(world.core.close)
            return world

        yield made


def folder(base: Path, *versions: int, broken: bool = False) -> Path:
    for version in versions:
        (base / str(version)).mkdir(parents=True)
        if broken:
            (base / str(version) / "broken").touch()
    return base


def config(base: Path, name: str = "m", policy: Policy = LATEST, **labels: int) -> ModelConfig:
    return ModelConfig(name, base, policy, labels)


def message(*models: str) -> Any:
    """Our ModelServerConfig, out of the bytes of the official one."""
    text = f"model_config_list {{ {' '.join(f'config {{ {model} }}' for model in models)} }}"
    official = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    return messages.ModelServerConfig.FromString(official.SerializeToString())


def entry(base: Path, name: str = "m", more: str = "", **labels: int) -> str:
    """The text of one model's configuration."""
    label_text = " ".join(f'version_labels {{ key: "{key}" value: {value} }}' for key, value in labels.items())
    return f'name: "{name}" base_path: "{base}" model_platform: "tensorflow" {more} {label_text}'


ALL = "model_version_policy { all {} }"


def specific(*versions: int) -> str:
    return f"model_version_policy {{ specific {{ {' '.join(f'versions: {version}' for version in versions)} }} }}"


# What there is to see


@pytest.mark.parametrize(
    ("policy", "versions", "problem"),
    [
        (Latest(), [10], ""),
        (Latest(2), [2, 10], ""),
        (Latest(9), [1, 2, 10], ""),
        (All(), [1, 2, 10], ""),
        (Specific((1, 2)), [1, 2], ""),
        (Specific((2, 3)), [2], "version 3 of servable m not found under base path {}"),
        (Specific((4, 3)), [], "versions 3, 4 of servable m not found under base path {}"),
        (Specific(()), [], ""),
    ],
)
def test_a_policy_chooses_among_the_versions_below_a_base_path(
    tmp_path: Path, policy: Policy, versions: list[int], problem: str
) -> None:
    folder(tmp_path, 1, 2, 10)
    (tmp_path / "notes").touch()
    (seen,) = ConfigSource([config(tmp_path, policy=policy)]).look()
    assert isinstance(seen, Aspired)
    assert {number: path.name for number, path in seen.versions.items()} == {n: str(n) for n in versions}
    assert seen.problem == problem.format(tmp_path)


def test_a_base_path_without_versions_and_one_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty" / "v1").mkdir(parents=True)
    configs = [config(tmp_path / name, name) for name in ("empty", "file", "none")]
    assert ConfigSource(configs).look() == [
        Aspired(
            "empty",
            {},
            f"No versions of servable empty found under base path {tmp_path / 'empty'}. "
            "Did you forget to name your leaf directory as a number (eg. '/1/')?",
        ),
        Unseen("file", f"the base path {tmp_path / 'file'} cannot be read: Not a directory"),
        Unseen("none", f"the base path {tmp_path / 'none'} cannot be read: No such file or directory"),
    ]


def test_a_store_shows_all_versions_of_all_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        StoreSource(Store(tmp_path / "none"))
    folder(tmp_path / "a", 1, 2)
    source = StoreSource(Store(tmp_path))
    folder(tmp_path / "b", 7)
    (tmp_path / "c").mkdir()
    folder(tmp_path / ".staging", 1)
    (tmp_path / "a" / "3").touch()
    a, b = tmp_path / "a", tmp_path / "b"
    assert source.look() == [Aspired("a", {1: a / "1", 2: a / "2"}), Aspired("b", {7: b / "7"})]
    versions = Store.versions

    def refuse(store: Store, model: str) -> list[int]:
        if model == "a":
            raise PermissionError(13, "Permission denied")
        if model == "c":
            raise FileNotFoundError(2, "No such file or directory")
        return versions(store, model)

    monkeypatch.setattr(Store, "versions", refuse)
    assert source.look() == [
        Unseen("a", f"the folder {a} cannot be read: Permission denied"),
        Aspired("b", {7: b / "7"}),
    ]


# The start


def test_the_start_loads_what_there_is(make: Make, tmp_path: Path) -> None:
    folder(tmp_path / "a", 1, 2)
    folder(tmp_path / "b", 5)
    world = make(ConfigSource([config(tmp_path / "a", "a", All()), config(tmp_path / "b", "b")])).start()
    assert (world.available("a"), world.available("b")) == ([1, 2], [5])
    assert world.core.models() == ["a", "b"]
    assert world.warnings == []
    with world.core.enter("a", None) as servable:
        assert servable.version == 2


def test_nothing_at_all_can_be_served(make: Make) -> None:
    world = make(ConfigSource([])).start()
    assert world.core.models() == []
    with pytest.raises(NotFoundError):
        world.core.enter("m", None)


def test_a_model_of_which_no_version_can_be_loaded_ends_the_start(make: Make, tmp_path: Path) -> None:
    folder(tmp_path / "a", 1, 2, broken=True)
    folder(tmp_path / "b", 3)
    folder(tmp_path / "c", 4, broken=True)
    configs = [config(tmp_path / name, name, All()) for name in ("a", "b", "c")]
    world = make(ConfigSource(configs))
    with pytest.raises(StoreError) as caught:
        world.start()
    assert str(caught.value) == (
        "no version of model 'a' can be served: a 2 is broken; no version of model 'c' can be served: c 4 is broken"
    )
    assert sorted(world.loader.tries) == ["a 1", "a 2", "b 3", "c 4"]


def test_a_start_in_part_goes_on_without_what_cannot_be_loaded(make: Make, tmp_path: Path) -> None:
    folder(tmp_path / "a", 1, broken=True)
    folder(tmp_path / "b", 2)
    options = CoreOptions(file_system_poll_wait_seconds=0, start_in_part=True)
    world = make(ConfigSource([config(tmp_path / "a", "a", gone=1), config(tmp_path / "b", "b", now=2)]), options)
    world.start()
    assert (world.available("a"), world.available("b")) == ([], [2])
    assert (world.core.labelled("a", "gone"), world.core.labelled("b", "now")) == (1, 2)
    assert world.status(1, "a") == ("LOADING", "a 1 is broken")


def test_one_version_that_can_be_loaded_is_enough(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1)
    folder(tmp_path, 2, broken=True)
    world = make(ConfigSource([config(tmp_path, policy=All())])).start()
    assert world.available() == [1]
    assert world.status(2) == ("LOADING", "m 2 is broken")
    assert world.loader.tries.count("m 2") == 1


def test_the_start_waits_for_retries_where_it_is_told_to(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1, broken=True)
    options = CoreOptions(file_system_poll_wait_seconds=0, retry_at_start=True)
    lifecycle = LifecycleOptions(max_num_load_retries=3, load_retry_interval_micros=-1)
    world = make(ConfigSource([config(tmp_path)]), options, lifecycle)
    with pytest.raises(StoreError, match="m 1 is broken"):
        world.start()
    assert world.loader.tries == ["m 1"] * 4
    # One that is mended meanwhile saves the start.
    lifecycle = LifecycleOptions(max_num_load_retries=2**31 - 1, load_retry_interval_micros=1000)
    world = make(ConfigSource([config(tmp_path)]), options, lifecycle)
    threading.Timer(0.05, (tmp_path / "1" / "broken").unlink).start()
    world.start()
    assert world.available() == [1]


def test_a_start_with_retries_does_not_wait_for_them_where_another_version_is_there(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1)
    folder(tmp_path, 2, broken=True)
    options = CoreOptions(file_system_poll_wait_seconds=0, retry_at_start=True)
    world = make(ConfigSource([config(tmp_path, policy=All())]), options).start()
    assert world.available() == [1]
    assert world.status(2) == ("LOADING", "m 2 is broken")


def test_a_missing_base_path_does_not_hang_the_start(make: Make, tmp_path: Path) -> None:
    folder(tmp_path / "good", 1)
    (tmp_path / "empty").mkdir()
    configs = [config(tmp_path / name, name) for name in ("bad", "empty", "good")]
    world = make(ConfigSource(configs), POLLING).start()
    assert world.available("good") == [1]
    assert world.core.models() == ["good"]
    bad, empty = world.warnings
    assert bad == f"model bad: the base path {tmp_path / 'bad'} cannot be read: No such file or directory"
    assert empty.startswith("No versions of servable empty found under base path")
    folder(tmp_path / "bad", 3)
    world.wait(3, model="bad")
    folder(tmp_path / "empty", 4)
    world.wait(4, model="empty")
    folder(tmp_path / "good", 2)
    world.wait(2, model="good")
    assert len(world.warnings) == 2


def test_a_source_that_cannot_be_seen_at_start_is_seen_later(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder(tmp_path / "store" / "m", 1)
    source = StoreSource(Store(tmp_path / "store"))
    (tmp_path / "store").rename(tmp_path / "gone")
    world = make(source, POLLING).start()
    (warning,) = world.warnings
    assert "there is no store" in warning
    (tmp_path / "gone").rename(tmp_path / "store")
    world.wait(1)
    until(lambda: caplog.messages == ["m version 1 is available"])
    (tmp_path / "store").rename(tmp_path / "gone")
    until(lambda: warning in caplog.messages)  # again


# Looking again


def test_new_versions_are_found_and_old_ones_go(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1)
    world = make(ConfigSource([config(tmp_path)]), POLLING).start()
    folder(tmp_path, 2)
    world.wait(2)
    until(lambda: world.status(1)[0] == "END")
    shutil.rmtree(tmp_path / "2")
    world.wait(1)
    shutil.rmtree(tmp_path / "1")
    world.wait()
    until(lambda: [status.state for status in world.core.statuses("m", None)] == [State.END] * 2)


def test_a_store_is_looked_at_again_too(make: Make, tmp_path: Path) -> None:
    folder(tmp_path / "a", 1)
    world = make(StoreSource(Store(tmp_path)), POLLING).start()
    folder(tmp_path / "a", 2)
    folder(tmp_path / "b", 1)
    world.wait(1, 2, model="a")
    world.wait(1, model="b")
    assert world.core.models() == ["a", "b"]
    shutil.rmtree(tmp_path / "a")
    world.wait(model="a")
    assert world.core.models() == ["b"]


def test_what_is_served_stays_while_its_base_path_is_missing(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder(tmp_path / "a", 1)
    folder(tmp_path / "b", 1)
    world = make(ConfigSource([config(tmp_path / name, name) for name in "ab"]), POLLING).start()
    reason = f"model a: the base path {tmp_path / 'a'} cannot be read: No such file or directory"
    for version in (2, 3):
        (tmp_path / "a").rename(tmp_path / "away")
        until(lambda told=version - 1: caplog.messages.count(reason) == told)
        folder(tmp_path / "b", version)
        world.wait(version, model="b")  # some looks later
        assert world.available("a") == [version - 1]
        folder(tmp_path / "away", version)
        (tmp_path / "away").rename(tmp_path / "a")
        world.wait(version, model="a")
    assert caplog.messages.count(reason) == 2


def test_what_is_served_stays_while_a_store_is_missing(make: Make, tmp_path: Path) -> None:
    folder(tmp_path / "store" / "m", 1)
    world = make(StoreSource(Store(tmp_path / "store")), POLLING).start()
    (tmp_path / "store").rename(tmp_path / "away")
    time.sleep(5 * SOON)
    assert world.available() == [1]
    folder(tmp_path / "away" / "m", 2)
    (tmp_path / "away").rename(tmp_path / "store")
    world.wait(1, 2)


def test_a_base_path_that_is_emptied_unloads_everything(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder(tmp_path, 1, 2)
    world = make(ConfigSource([config(tmp_path, policy=All())]), POLLING).start()
    for version in (1, 2):
        (tmp_path / str(version)).rename(tmp_path / f"v{version}")
    world.wait()
    until(lambda: any("Did you forget to name your leaf directory" in line for line in caplog.messages))


def test_missing_versions_of_a_policy_are_told_once(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1)
    world = make(ConfigSource([config(tmp_path, policy=Specific((1, 2)))]), POLLING).start()
    assert world.warnings == [f"version 2 of servable m not found under base path {tmp_path}"]
    folder(tmp_path, 2, 3)
    world.wait(1, 2)
    assert len(world.warnings) == 1


def test_a_broken_version_is_tried_again_when_its_files_change(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1)
    world = make(ConfigSource([config(tmp_path)]), POLLING).start()
    folder(tmp_path, 2, broken=True)
    until(lambda: "m 2" in world.loader.tries and world.status(2)[1] == "m 2 is broken")
    time.sleep(5 * SOON)
    assert world.loader.tries.count("m 2") == 1
    assert world.status(2)[0] == "LOADING"
    assert world.available() == [1]
    (tmp_path / "2" / "broken").unlink()
    world.wait(2)
    assert world.status(2) == ("AVAILABLE", "")


def test_an_error_of_one_look_does_not_end_looking(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder(tmp_path, 1)
    world = make(ConfigSource([config(tmp_path)]), POLLING).start()
    look = ConfigSource.look

    def fail(source: ConfigSource) -> Any:
        monkeypatch.setattr(ConfigSource, "look", look)
        raise RuntimeError("oh")

    monkeypatch.setattr(ConfigSource, "look", fail)
    folder(tmp_path, 2)
    world.wait(2)
    assert caplog.messages.count("looking for models failed") == 1


def test_with_a_wait_of_0_there_is_one_look(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1)
    world = make(ConfigSource([config(tmp_path)])).start()
    folder(tmp_path, 2)
    time.sleep(5 * SOON)
    assert world.available() == [1]
    assert not world.core._pollers
    world.core.reload(message(entry(tmp_path)))
    world.wait(2)


def test_with_a_negative_wait_there_is_none(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1)
    world = make(ConfigSource([config(tmp_path)]), CoreOptions(file_system_poll_wait_seconds=-1)).start()
    assert world.core.models() == []
    assert world.warnings == [
        "--file_system_poll_wait_seconds is negative: nothing is served before a reload says what"
    ]
    world.core.reload(message(entry(tmp_path)))
    assert world.available() == [1]


def test_a_closed_core_looks_no_more(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1)
    world = make(ConfigSource([config(tmp_path)]), POLLING).start()
    world.core.close()
    assert not any(thread.is_alive() for thread in world.core._pollers)
    folder(tmp_path, 2)
    time.sleep(3 * SOON)
    assert world.available() == [1]


# Reloading


def test_a_reload_replaces_everything(make: Make, tmp_path: Path) -> None:
    for name in "abc":
        folder(tmp_path / name, 1, 2)
    source = ConfigSource([config(tmp_path / "a", "a", one=2), config(tmp_path / "b", "b")])
    world = make(source).start()
    world.core.reload(message(entry(tmp_path / "b", "b", ALL), entry(tmp_path / "c", "c", specific(1))))
    assert world.available("c") == [1]  # new models are waited for
    world.wait(1, 2, model="b")  # the others are not
    world.wait(model="a")
    assert world.core.models() == ["b", "c"]
    with pytest.raises(InvalidArgumentError, match=r"^Unrecognized servable version label: one$"):
        world.core.labelled("a", "one")
    world.core.reload(message())
    for name in "bc":
        world.wait(model=name)
    assert world.core.models() == []


def test_a_reload_takes_the_place_of_a_store(make: Make, tmp_path: Path) -> None:
    folder(tmp_path / "a", 1)
    folder(tmp_path / "b", 1, 2)
    world = make(StoreSource(Store(tmp_path)), POLLING).start()
    assert world.available("b") == [1, 2]
    world.core.reload(message(entry(tmp_path / "b", "b")))
    world.wait(2, model="b")
    world.wait(model="a")
    folder(tmp_path / "a", 2)
    time.sleep(3 * SOON)
    assert world.available("a") == []


REFUSED = [
    (['name: "m" base_path: "BASE"'] * 2, "Illegal to list model m multiple times in config list"),
    (
        ['name: "m" base_path: "models/m" model_platform: "tensorflow"'],
        "Expected model m to have an absolute path or URI; got base_path()=models/m",
    ),
    (
        ['name: "m" base_path: "BASE" model_platform: "tensorflow" model_type: TENSORFLOW'],
        "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform, "
        "model name is m",
    ),
    (
        ['name: "m" base_path: "BASE"'],
        "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform, "
        "model name is m",
    ),
    (
        ['name: "m" base_path: "BASE" model_type: OTHER'],
        "ModelServerConfig::model_type choice 2 not supported.",
    ),
    (
        ['name: "m" base_path: "BASE" model_platform: "torch"'],
        "Model m requests unsupported platform torch",
    ),
    (
        ['name: "m" base_path: "BASE" model_platform: "tensorflow" logging_config { }'],
        "No request-logger-creator provided. Model m sets logging_config",
    ),
]


@pytest.mark.parametrize(("models", "text"), REFUSED)
def test_a_refused_configuration_changes_nothing_and_poisons_nothing(
    make: Make, tmp_path: Path, models: list[str], text: str
) -> None:
    folder(tmp_path / "m", 1)
    folder(tmp_path / "n", 1)
    world = make(ConfigSource([config(tmp_path / "m", stable=1)]), POLLING).start()
    bad = message(*(model.replace("BASE", str(tmp_path / "n")) for model in models))
    for call in (world.core.check, world.core.reload):
        with pytest.raises(InvalidArgumentError) as caught:
            call(bad)
        assert str(caught.value) == text
    assert (world.available(), world.core.labelled("m", "stable")) == ([1], 1)
    folder(tmp_path / "m", 2)
    world.wait(2)  # the old configuration is still looked after
    world.core.reload(message(entry(tmp_path / "n", "m"), entry(tmp_path / "n", "n")))
    assert world.available("n") == [1]
    world.wait(1)


def test_only_a_list_of_models_can_be_taken(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1)
    world = make(ConfigSource([config(tmp_path)])).start()
    for empty in (messages.ModelServerConfig(), messages.ModelServerConfig(custom_model_config={})):
        with pytest.raises(InvalidArgumentError, match=r"^ServerModelConfig type not supported by Handle"):
            world.core.reload(empty)
    assert world.available() == [1]


def test_a_new_model_that_cannot_be_loaded_is_an_error_and_is_configured(make: Make, tmp_path: Path) -> None:
    folder(tmp_path / "m", 1)
    folder(tmp_path / "n", 3, 4, broken=True)
    folder(tmp_path / "o", 5, broken=True)
    world = make(ConfigSource([config(tmp_path / "m")]), POLLING).start()
    models = [entry(tmp_path / "m"), entry(tmp_path / "n", "n", ALL), entry(tmp_path / "o", "o")]
    with pytest.raises(UnknownError) as caught:
        world.core.reload(message(*models))
    assert str(caught.value) == (
        "2 model(s) did not become available: {"
        "{{name: n version: 4} due to error: FAILED_PRECONDITION: n 4 is broken}, "
        "{{name: o version: 5} due to error: FAILED_PRECONDITION: o 5 is broken}, }"
    )
    assert world.available() == [1]
    assert world.status(4, "n") == ("LOADING", "n 4 is broken")
    (tmp_path / "n" / "4" / "broken").unlink()
    world.wait(4, model="n")
    world.core.reload(message(*models))  # they are not new any more


def test_one_version_of_a_new_model_is_enough_for_a_reload(make: Make, tmp_path: Path) -> None:
    folder(tmp_path / "n", 3)
    folder(tmp_path / "n", 4, broken=True)
    folder(tmp_path / "n", 5)
    world = make(ConfigSource([]), NEVER, LifecycleOptions(num_load_threads=3)).start()
    with world.loader.hold("n 5"):
        world.core.reload(message(entry(tmp_path / "n", "n", ALL)))
        assert world.available("n") == [3]
    world.wait(3, 5, model="n")


def test_a_reload_waits_for_retries_where_it_is_told_to(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1, broken=True)
    options = CoreOptions(file_system_poll_wait_seconds=0, retry_at_start=True)
    lifecycle = LifecycleOptions(max_num_load_retries=3, load_retry_interval_micros=-1)
    world = make(ConfigSource([]), options, lifecycle).start()
    with pytest.raises(UnknownError, match="m 1 is broken"):
        world.core.reload(message(entry(tmp_path)))
    assert world.loader.tries == ["m 1"] * 4
    assert world.status(1) == ("END", "m 1 is broken")
    # And says what is wrong where the time is up before.
    options = CoreOptions(file_system_poll_wait_seconds=0, retry_at_start=True, reload_timeout_s=0.1)
    world = make(ConfigSource([]), options).start()
    with pytest.raises(UnknownError, match="m 1 is broken"):
        world.core.reload(message(entry(tmp_path)))
    assert world.status(1) == ("LOADING", "m 1 is broken")


def test_a_new_model_without_a_base_path_is_an_error_and_served_once_it_appears(make: Make, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    folder(tmp_path / "some", 1)
    world = make(ConfigSource([]), POLLING).start()
    with pytest.raises(UnknownError) as caught:
        world.core.reload(
            message(
                entry(tmp_path / "bad", "bad"),
                entry(tmp_path / "empty", "empty"),
                entry(tmp_path / "some", "some", specific(2)),
                entry(tmp_path / "some", "none", specific()),
            )
        )
    assert str(caught.value) == (
        "3 model(s) did not become available: {"
        f"{{{{name: bad}} due to error: NOT_FOUND: the base path {tmp_path / 'bad'} cannot be read: "
        "No such file or directory}, "
        "{{name: empty} due to error: NOT_FOUND: No versions of servable empty found under base path "
        f"{tmp_path / 'empty'}. Did you forget to name your leaf directory as a number (eg. '/1/')?}}, "
        f"{{{{name: some}} due to error: NOT_FOUND: version 2 of servable some not found under base path "
        f"{tmp_path / 'some'}}}, }}"
    )
    folder(tmp_path / "bad", 1)
    folder(tmp_path / "empty", 7)
    world.wait(1, model="bad")
    world.wait(7, model="empty")


def test_a_model_that_is_taken_out_is_told_of_again_when_it_is_back(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "servable.lifecycle")
    world = make(ConfigSource([])).start()
    for _ in range(2):
        with pytest.raises(UnknownError):
            world.core.reload(message(entry(tmp_path / "bad")))
        world.core.reload(message())
    reason = f"model m: the base path {tmp_path / 'bad'} cannot be read: No such file or directory"
    assert caplog.messages == [reason] * 2


def test_a_reload_has_a_time_limit_and_the_next_one_is_not_held_up(make: Make, tmp_path: Path) -> None:
    folder(tmp_path / "slow", 1)
    folder(tmp_path / "n", 1)
    options = CoreOptions(file_system_poll_wait_seconds=0, reload_timeout_s=0.2)
    world = make(ConfigSource([]), options, LifecycleOptions(num_load_threads=2)).start()
    with world.loader.hold("slow 1"):
        with pytest.raises(DeadlineExceededError) as caught:
            world.core.reload(message(entry(tmp_path / "slow", "slow")))
        assert str(caught.value) == "not available within 0.2 s, and still being loaded: slow"
        world.core.reload(message(entry(tmp_path / "slow", "slow"), entry(tmp_path / "n", "n")))
        assert world.available("n") == [1]
    world.wait(1, model="slow")


def test_reloads_take_turns_and_do_not_wait_for_ever(make: Make, tmp_path: Path) -> None:
    folder(tmp_path / "slow", 1)
    options = CoreOptions(file_system_poll_wait_seconds=0, reload_timeout_s=LIMIT_S)
    world = make(ConfigSource([]), options).start()
    slow, results = message(entry(tmp_path / "slow", "slow")), []
    with world.loader.hold("slow 1"):
        first = threading.Thread(target=lambda: results.append(world.core.reload(slow)))
        first.start()
        until(lambda: world.loader.tries == ["slow 1"])
        world.core._options = CoreOptions(reload_timeout_s=0.05)
        with pytest.raises(DeadlineExceededError, match="another reload of the configuration is still waiting"):
            world.core.reload(message())
    first.join(LIMIT_S)
    assert results == [None]
    assert world.available("slow") == [1]


def test_a_reload_ends_with_the_server(make: Make, tmp_path: Path) -> None:
    folder(tmp_path / "slow", 1)
    world = make(ConfigSource([])).start()
    errors: list[ServableError] = []

    def reload() -> None:
        try:
            world.core.reload(message(entry(tmp_path / "slow", "slow")))
        except ServableError as error:
            errors.append(error)

    with world.loader.hold("slow 1"):
        thread = threading.Thread(target=reload)
        thread.start()
        until(lambda: world.loader.tries == ["slow 1"])
        world.core.close()
        world.manager.close()
        thread.join(LIMIT_S)
    (error,) = errors
    assert isinstance(error, UnavailableError)
    assert str(error) == "the server is shutting down"


def test_a_model_that_was_taken_out_and_put_back_is_waited_for(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1)
    world = make(ConfigSource([config(tmp_path)])).start()
    with world.core.enter("m", None):
        world.core.reload(message())
        until(lambda: world.status(1)[0] == "UNLOADING")
        thread = threading.Thread(target=world.core.reload, args=(message(entry(tmp_path)),))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert world.available() == [1]


def test_reloads_and_looks_at_the_same_time(make: Make, tmp_path: Path) -> None:
    for name in "abcd":
        folder(tmp_path / name, 1, 2, 3)
    often = CoreOptions(file_system_poll_wait_seconds=0.001)  # type: ignore[arg-type]  # more than the flag allows
    world = make(ConfigSource([]), often).start()
    errors: list[BaseException] = []

    def reload(names: str) -> None:
        try:
            for i in range(30):
                wanted = names if i % 2 else names[:1]
                world.core.reload(message(*(entry(tmp_path / name, name, ALL) for name in wanted)))
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=reload, args=(names,)) for names in ("abc", "bcd", "dca")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert errors == []
    world.core.reload(message(entry(tmp_path / "a", "a"), entry(tmp_path / "b", "b", ALL)))
    world.wait(3, model="a")
    world.wait(1, 2, 3, model="b")
    world.wait(model="c")
    world.wait(model="d")


# Labels


def taken(world: World, base: Path, more: str = "", **labels: int) -> str:
    """What a reload says to labels; "" if it takes them."""
    try:
        world.core.reload(message(entry(base, "m", more, **labels)))
    except FailedPreconditionError as error:
        return str(error)
    return ""


UNAVAILABLE = "Request to assign label to version {} of model m, which is not currently available for inference"


def test_a_label_stands_for_an_available_version(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1, 2, 3)
    folder(tmp_path, 4, broken=True)
    world = make(ConfigSource([config(tmp_path, policy=Latest(3), stable=2, canary=3, also=3)])).start()
    assert [world.core.labelled("m", label) for label in ("stable", "canary", "also")] == [2, 3, 3]
    assert taken(world, tmp_path, ALL, stable=3, canary=3) == ""
    assert world.core.labelled("m", "stable") == 3
    for label in ("also", "", "nope"):
        with pytest.raises(InvalidArgumentError, match=f"^Unrecognized servable version label: {label}$"):
            world.core.labelled("m", label)
    for version in (4, 99):
        assert taken(world, tmp_path, ALL, stable=2, canary=version) == UNAVAILABLE.format(version)
    assert world.core.labelled("m", "stable") == 3


def test_a_label_of_a_version_that_went_is_refused_from_then_on(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1, 2)
    world = make(ConfigSource([config(tmp_path, policy=All(), old=1)]), POLLING).start()
    shutil.rmtree(tmp_path / "1")
    world.wait(2)
    assert world.core.labelled("m", "old") == 1
    with pytest.raises(NotFoundError, match=r"^Servable not found for request: Specific\(m, 1\)$"):
        world.core.enter("m", world.core.labelled("m", "old"))
    until(lambda: world.status(1)[0] == "END")
    assert taken(world, tmp_path, ALL, old=1) == UNAVAILABLE.format(1)


def test_labels_are_checked_against_the_versions_before_the_reload(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1, 2)
    world = make(ConfigSource([config(tmp_path)])).start()
    assert taken(world, tmp_path, ALL, old=1) == UNAVAILABLE.format(1)
    assert world.available() == [2]  # nothing of it was taken
    assert taken(world, tmp_path, ALL) == ""
    world.wait(1, 2)
    assert taken(world, tmp_path, ALL, old=1) == ""


def test_labels_of_the_first_configuration_are_checked_after_it_was_loaded(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1, 2)
    world = make(ConfigSource([config(tmp_path, stable=1)]))
    with pytest.raises(FailedPreconditionError) as caught:
        world.start()
    assert str(caught.value) == UNAVAILABLE.format(1)


def test_a_new_label_may_stand_for_any_version_where_that_is_allowed(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1, 2)
    options = CoreOptions(file_system_poll_wait_seconds=0, allow_version_labels_for_unavailable_models=True)
    world = make(ConfigSource([config(tmp_path, stable=2, next=3)]), options).start()
    assert world.core.labelled("m", "next") == 3
    assert taken(world, tmp_path, stable=2, next=3, later=4) == ""
    assert taken(world, tmp_path, stable=1, next=3) == UNAVAILABLE.format(1)
    assert taken(world, tmp_path, stable=2, next=4) == UNAVAILABLE.format(4)
    assert taken(world, tmp_path, stable=2, next=2) == ""
    assert taken(world, tmp_path, stable=2) == ""
    assert taken(world, tmp_path, stable=2, next=4) == ""


# The config file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "models.config"


def write(file: Path, *models: str) -> str:
    """Replace a config file as a careful owner does."""
    text = f"model_config_list {{ {' '.join(f'config {{ {model} }}' for model in models)} }}\n"
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)
    return text


def from_file(make: Make, file: Path, **more: Any) -> World:
    options = CoreOptions(model_config_file=file, model_config_file_poll_wait_seconds=SOON, **more)
    return make(ConfigSource(model_config.read(file)), options).start()


def test_the_config_file_is_read_again(
    make: Make, tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder(tmp_path / "m", 1, 2)
    folder(tmp_path / "n", 1)
    write(file, entry(tmp_path / "m"))
    world = from_file(make, file)
    write(file, entry(tmp_path / "m", "m", ALL), entry(tmp_path / "n", "n"))
    world.wait(1, 2)
    world.wait(1, model="n")
    write(file, entry(tmp_path / "m", "m", ALL, stable=1))
    until(lambda: world.core.models() == ["m"])
    until(lambda: world.core.labelled("m", "stable") == 1)
    os.utime(file)
    time.sleep(5 * SOON)
    assert [line for line in caplog.messages if "configuration" in line] == [
        "a new configuration is in force: m, n",
        "a new configuration is in force: m",
    ]
    write(file)
    world.wait()


def test_without_a_wait_the_config_file_is_read_once(make: Make, tmp_path: Path, file: Path) -> None:
    folder(tmp_path / "m", 1)
    write(file, entry(tmp_path / "m"))
    for wait_s in (0, -1):
        options = CoreOptions(model_config_file=file, model_config_file_poll_wait_seconds=wait_s)
        world = make(ConfigSource(model_config.read(file)), options).start()
        assert [thread.name for thread in world.core._pollers] == ["poll"]


def test_a_half_written_config_file_changes_nothing(make: Make, tmp_path: Path, file: Path) -> None:
    folder(tmp_path / "m", 1)
    folder(tmp_path / "n", 1)
    write(file, entry(tmp_path / "m", stable=1))
    world = make(ConfigSource(model_config.read(file)), CoreOptions(model_config_file=file)).start()
    whole = write(file, entry(tmp_path / "m", "m", ALL, stable=1), entry(tmp_path / "n", "n"))
    for length in range(len(whole.rstrip())):
        file.write_text(whole[:length])
        world.core._read_config()
        assert world.core.models() == ["m"], whole[:length]
        assert world.core.labelled("m", "stable") == 1
    file.write_text(whole)
    world.core._read_config()
    world.wait(1, model="n")


def test_what_is_wrong_with_the_config_file_is_told_once(
    make: Make, tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder(tmp_path / "m", 1, 2)
    write(file, entry(tmp_path / "m"))
    world = from_file(make, file)

    def told(text: str) -> int:
        return sum(text in line and line.endswith("(what is served stays as it is)") for line in caplog.messages)

    file.write_text("model_config_list {")
    until(lambda: told("Invalid protobuf file") > 0)
    file.unlink()
    until(lambda: told("No such file or directory") > 0)
    write(file, entry(tmp_path / "m", stable=1))
    until(lambda: told(UNAVAILABLE.format(1)) > 0)
    write(file, 'name: "m" base_path: "m"')
    until(lambda: told(f"{file}: Expected model m to have an absolute path or URI; got base_path()=m") > 0)
    time.sleep(5 * SOON)
    assert world.available() == [2]
    write(file, entry(tmp_path / "m", "m", ALL))
    world.wait(1, 2)
    file.unlink()
    until(lambda: told("No such file or directory") > 1)
    assert len([line for line in caplog.messages if "stays as it is" in line]) == 5


def test_a_broken_model_of_the_config_file_holds_up_nothing(make: Make, tmp_path: Path, file: Path) -> None:
    folder(tmp_path / "m", 1)
    folder(tmp_path / "bad", 1, broken=True)
    folder(tmp_path / "slow", 1)
    write(file, entry(tmp_path / "m"))
    world = from_file(make, file)
    with world.loader.hold("slow 1"):
        write(file, entry(tmp_path / "m"), entry(tmp_path / "slow", "slow"), entry(tmp_path / "bad", "bad"))
        until(lambda: "slow 1" in world.loader.tries)
        write(file, entry(tmp_path / "m", stable=1), entry(tmp_path / "bad", "bad"))
        until(lambda: world.core.models() == ["bad", "m"])
        assert world.core.labelled("m", "stable") == 1
    until(lambda: world.status(1, "bad")[1] == "bad 1 is broken")
    assert world.available("slow") == []


def test_a_reload_is_in_force_until_the_config_file_is_read_again(make: Make, tmp_path: Path, file: Path) -> None:
    folder(tmp_path / "m", 1)
    folder(tmp_path / "n", 1)
    write(file, entry(tmp_path / "m"))
    world = from_file(make, file)
    world.core.reload(message(entry(tmp_path / "n", "n")))
    assert "n 1" in world.loader.tries
    until(lambda: world.core.models() == ["m"])
    world.wait(1)


# A fixed list


def test_a_fixed_list_is_what_it_is(make: Make, tmp_path: Path) -> None:
    folder(tmp_path, 1, 2)
    world = make(Fixed([Aspired("m", {1: tmp_path / "1"})]), POLLING).start()
    time.sleep(3 * SOON)
    assert world.available() == [1]
