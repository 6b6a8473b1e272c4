"""Decides what is served: looks at the sources again and again, takes new configurations, knows the labels.

TensorFlow Serving's ServerCore with its FileSystemStoragePathSource.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ServableError,
    StoreError,
    UnavailableError,
    UnknownError,
)
from . import model_config
from .engines import Engine
from .manager import Manager
from .model_config import ModelConfig
from .servable import Servable
from .sources import Aspired, ConfigSource, Source
from .status import State, VersionStatus

_log = logging.getLogger("servable.lifecycle")

RELOAD_TIMEOUT_S = 300.0
# How long a look may go on after the end, as on a file system that hangs.
_JOIN_S = 5.0


@dataclass(frozen=True)
class CoreOptions:
    """When to look for versions and for the configuration, as TensorFlow Serving's flags have it.

    ``file_system_poll_wait_seconds`` of 0 looks once at start, a negative one not even then; a reload
    looks in any case. ``model_config_file`` is read again every so many seconds, never if that is 0 or
    less. ``retry_at_start`` has the start wait for a model's retries, where it would else end with the
    first error; ``start_in_part`` has it go on without what cannot be loaded at once.
    """

    file_system_poll_wait_seconds: int = 1
    model_config_file: Path | None = None
    model_config_file_poll_wait_seconds: int = 0
    allow_version_labels_for_unavailable_models: bool = False
    retry_at_start: bool = False
    start_in_part: bool = False
    reload_timeout_s: float = RELOAD_TIMEOUT_S


class Core:
    """What a server serves, as its source and its configuration say."""

    is_shared = False

    def __init__(
        self,
        manager: Manager,
        source: Source,
        options: CoreOptions | None = None,
        warn: Callable[[str], None] = _log.warning,
    ) -> None:
        """``warn`` hears, until the start is over, of models of which nothing is to be found."""
        self._manager = manager
        self._options = options or CoreOptions()
        self._source = source
        self._warn = warn
        self._models: set[str] = set()
        self._labels: dict[str, Mapping[str, int]] = {}
        # What was told already: what a model lacks, what is wrong with the config file, or with the source (None).
        self._problems: dict[str | Path | None, str] = {}
        self._looking = threading.Lock()
        self._reloading = threading.Lock()
        self._closing = threading.Event()
        self._pollers: list[threading.Thread] = []
        # Hears what was taken from the config file after the start.
        self.on_file: Callable[[Sequence[ModelConfig]], None] = lambda _: None

    def start(self) -> None:
        """Load what there is, then go on looking.

        Raises `StoreError` if of a model there are versions and none of them can be loaded, and
        `FailedPreconditionError` for a label whose version is not available.
        """
        if self._options.file_system_poll_wait_seconds < 0:
            self._warn("--file_system_poll_wait_seconds is negative: nothing is served before a reload says what")
        else:
            self._look()
        is_starting = self._manager.is_untried if self._options.start_in_part else self._is_starting
        self._manager.wait_for(lambda: not any(map(is_starting, self._models)), None)
        failures = {model: self._manager.failures(model) for model in sorted(self._models)}
        broken = [
            f"no version of model {model!r} can be served: {failed[0].message}"
            for model, failed in failures.items()
            if failed and not self._manager.is_available(model)
        ]
        if broken and not self._options.start_in_part:
            raise StoreError("; ".join(broken))
        if isinstance(self._source, ConfigSource):
            if not self._options.start_in_part:
                self._check_labels(self._source.configs)
            self._labels = {config.name: config.labels for config in self._source.configs}
        self._manager.settle_down()
        self._warn = _log.warning
        self._begin("poll", self._look, self._options.file_system_poll_wait_seconds)
        if self._options.model_config_file:
            self._begin("config", self._read_config, self._options.model_config_file_poll_wait_seconds)

    def close(self) -> None:
        """Look no more. The manager is not touched."""
        self._closing.set()
        for thread in self._pollers:
            thread.join(_JOIN_S)

    # looking

    def _begin(self, name: str, look: Callable[[], None], wait_s: int) -> None:
        if wait_s > 0:
            thread = threading.Thread(target=self._poll, args=(look, wait_s), name=name, daemon=True)
            self._pollers.append(thread)
            thread.start()

    def _poll(self, look: Callable[[], None], wait_s: int) -> None:
        while not self._closing.wait(wait_s):
            try:
                look()
            except Exception:  # noqa: BLE001  # the next round may succeed
                _log.exception("looking for models failed")

    def _look(self) -> None:
        """Aspire to what the source says now; of what cannot be seen everything stays as it is."""
        with self._looking:
            try:
                seen = self._source.look()
            except StoreError as error:
                self._tell(None, str(error))
                return
            self._tell(None, "")
            for one in seen:
                self._tell(one.model, one.problem, "" if isinstance(one, Aspired) else f"model {one.model}: ")
                if isinstance(one, Aspired):
                    self._manager.aspire(one.model, one.versions)
            models = {one.model for one in seen}
            for model in self._models - models:
                self._tell(model, "")
                self._manager.aspire(model, {})
            self._models = models

    def _tell(self, of: str | Path | None, problem: str, whose: str = "") -> None:
        """Tell of a problem where it is a new one; "" is none. ``whose`` it is stands before it."""
        if not problem:
            self._problems.pop(of, None)
        elif self._problems.get(of) != problem:
            self._problems[of] = problem
            self._warn(f"{whose}{problem}")

    def _is_starting(self, model: str) -> bool:
        """Whether the start has to wait for a model: for the first try of each version, or for the last."""
        if self._options.retry_at_start and not self._manager.is_available(model):
            return self._manager.is_trying(model)
        return self._manager.is_untried(model)

    def _is_pending(self, model: str) -> bool:
        """Whether a reload has to wait for a new model, of which one available version is enough."""
        return not self._manager.is_available(model) and self._is_starting(model)

    # configuring

    def reload(self, config: Any) -> None:
        """Serve what a ModelServerConfig message says, and nothing else.

        Returns when every new model has an available version. A configuration that is refused changes
        nothing: `InvalidArgumentError` for what is wrong in itself, `FailedPreconditionError` for a
        label whose version is not available. `UnknownError` names the new models that cannot be
        loaded, and `DeadlineExceededError` those that take too long: the configuration is in force then.
        """
        configs = model_config.parse(config, where="")
        end = time.monotonic() + self._options.reload_timeout_s
        with self._alone():
            new = self._take(configs)
            self._manager.wait_for(lambda: not any(map(self._is_pending, new)), max(0.0, end - time.monotonic()))
            if self._closing.is_set():
                raise UnavailableError("the server is shutting down")
            self._raise_failures(new)
            if late := ", ".join(filter(self._is_pending, new)):
                raise DeadlineExceededError(
                    f"not available within {self._options.reload_timeout_s:g} s, and still being loaded: {late}"
                )

    def check(self, config: Any) -> None:
        """Raise what `reload` would, without changing anything."""
        self._check_labels(model_config.parse(config, where=""))

    def _read_config(self) -> None:
        """Take the config file as it is now; what is wrong with it is told once. Waits for no model."""
        file = self._options.model_config_file
        assert file
        try:
            configs = model_config.read(file)
            if not (isinstance(self._source, ConfigSource) and list(self._source.configs) == configs):
                with self._alone():
                    self._take(configs)
                self.on_file(configs)
        except ServableError as error:
            self._tell(file, f"{error} (what is served stays as it is)")
        else:
            self._tell(file, "")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other reloads out; `DeadlineExceededError` where one takes too long."""
        if not self._reloading.acquire(timeout=self._options.reload_timeout_s):
            raise DeadlineExceededError("another reload of the configuration is still waiting for its models")
        try:
            yield
        finally:
            self._reloading.release()

    def _take(self, configs: Sequence[ModelConfig]) -> list[str]:
        """Put a configuration in force, unless its labels are refused; returns the models that are new."""
        self._check_labels(configs)
        with self._looking:
            new = [config.name for config in configs if config.name not in self._models]
            self._source = ConfigSource(configs)
            self._labels = {config.name: config.labels for config in configs}
        _log.info("a new configuration is in force: %s", ", ".join(config.name for config in configs) or "no models")
        self._look()
        return new

    def _raise_failures(self, models: Sequence[str]) -> None:
        failures = []
        for model in models:
            if self._manager.is_available(model):
                continue
            problem = self._problems.get(model)
            if failed := self._manager.failures(model):
                newest = failed[0]
                what, why = f"{model} version: {newest.version}", f"{newest.code.name}: {newest.message}"
            elif problem:
                what, why = model, f"{NotFoundError.code.name}: {problem}"
            else:  # it is still being loaded, or told to serve no version
                continue
            failures.append(f"{{{{name: {what}}} due to error: {why}}}, ")
        if failures:
            raise UnknownError(f"{len(failures)} model(s) did not become available: {{{''.join(failures)}}}")

    # labels

    def _check_labels(self, configs: Sequence[ModelConfig]) -> None:
        allowed = self._options.allow_version_labels_for_unavailable_models
        for config in configs:
            now = self._labels.get(config.name, {})
            for label, version in config.labels.items():
                moves = now.get(label, version) != version
                if (moves or not allowed) and not self._is_available(config.name, version):
                    raise FailedPreconditionError(
                        f"Request to assign label to version {version} of model {config.name}, "
                        "which is not currently available for inference"
                    )

    def _is_available(self, model: str, version: int) -> bool:
        try:
            return self._manager.statuses(model, version)[0].state is State.AVAILABLE
        except NotFoundError:
            return False

    def labelled(self, name: str, label: str) -> int:
        """The version that a label stands for."""
        version = self._labels.get(name, {}).get(label)
        if version is None:
            raise InvalidArgumentError(f"Unrecognized servable version label: {label}")
        return version

    # what is there

    def enter(self, name: str, version: int | None) -> Servable:
        """As `Manager.enter`."""
        return self._manager.enter(name, version)

    def statuses(self, name: str, version: int | None) -> list[VersionStatus]:
        """As `Manager.statuses`."""
        return self._manager.statuses(name, version)

    def models(self) -> list[str]:
        """The models that are served now, sorted."""
        return self._manager.models()

    def engines(self, name: str) -> dict[int, Mapping[str, Engine]]:
        """As `Manager.engines`."""
        return self._manager.engines(name)
