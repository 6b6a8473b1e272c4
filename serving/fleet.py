"""What a worker knows of the others: the status and the metrics of all, and a reload that reaches all."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..errors import Code, NotFoundError, ServableError, UnavailableError
from . import families
from .core import RELOAD_TIMEOUT_S, Core
from .data_plane import Servables
from .engines import Engine
from .link import Link
from .model_config import ModelConfig
from .monitoring import Monitor
from .orders import portable
from .servable import Servable
from .status import State, VersionStatus

# How long the supervisor waits for a worker's part of an answer, and a worker for the whole of it.
PART_LIMIT_S = 2.0
WHOLE_LIMIT_S = 2 * PART_LIMIT_S
# A reload may have to wait for another one before it begins.
RELOAD_LIMIT_S = 2 * RELOAD_TIMEOUT_S + 60

# What a worker has counted in this time is lost if it is killed.
_PUBLISH_S = 0.25


class Fleet:
    """All workers of a server, in the hands of one of them."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.monitor = FleetMonitor(link)
        self.core: Core | None = None

    def join(self, core: Core) -> Servables:
        """What this worker serves, with what all say of it."""
        self.core = core
        core.on_file = self._tell_configs
        self.monitor.start()
        return _FleetServables(core, self._link)

    def _tell_configs(self, configs: Sequence[ModelConfig]) -> None:
        with suppress(UnavailableError):
            self._link.note("configs", portable(configs))

    def statuses(self, name: str, version: int | None) -> list[VersionStatus]:
        """What this worker says, for the others; empty where it knows nothing."""
        return _known(self.core, name, version) if self.core else []


class FleetMonitor(Monitor):
    """Counts for this worker, and shows the metrics of all."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self._publishing = threading.Lock()  # the supervisor shall get later counts later

    def start(self) -> None:
        """Begin to tell the supervisor now and then, so that little is lost with this worker."""
        threading.Thread(target=self._publish, name="publish", daemon=True).start()

    def _publish(self) -> None:
        pause = threading.Event()
        while self._link.is_open and not pause.wait(_PUBLISH_S):
            with suppress(UnavailableError):  # a busy supervisor hears it later
                self.publish()

    def publish(self) -> None:
        """Tell the supervisor what was counted until now."""
        with self._publishing:
            self._link.note("counted", self.snapshot())

    def unloaded(self, model: str, version: int) -> None:
        super().unloaded(model, version)
        with suppress(UnavailableError):
            self._link.note("unloaded", model, version)

    def page(self) -> bytes:
        """The metrics of all workers as text. Raises `ServableError` if the supervisor does not answer."""
        self.publish()
        return families.page(families.total(self._link.ask("metrics", limit_s=WHOLE_LIMIT_S)))


class _FleetServables:
    """What one worker serves; the status is that of all workers, and a reload reaches all."""

    is_shared = True

    def __init__(self, core: Core, link: Link) -> None:
        self._core = core
        self._link = link

    def enter(self, name: str, version: int | None) -> Servable:
        return self._core.enter(name, version)

    def labelled(self, name: str, label: str) -> int:
        return self._core.labelled(name, label)

    def models(self) -> list[str]:
        return self._core.models()

    def engines(self, name: str) -> dict[int, Mapping[str, Engine]]:
        return self._core.engines(name)

    def statuses(self, name: str, version: int | None) -> list[VersionStatus]:
        others: Sequence[Sequence[VersionStatus]] = ()
        with suppress(ServableError):  # where the supervisor does not answer, this worker answers for itself
            others = self._link.ask("statuses", name, version, limit_s=WHOLE_LIMIT_S)
        merged = merge([_known(self._core, name, version), *others])
        return merged or self._core.statuses(name, version)

    def reload(self, config: Any) -> None:
        self._link.ask("reload", config.SerializeToString(), limit_s=RELOAD_LIMIT_S)


def _known(core: Core, name: str, version: int | None) -> list[VersionStatus]:
    try:
        return core.statuses(name, version)
    except NotFoundError:
        return []


# From available on, how far a state is from it.
_FARTHER = (State.AVAILABLE, State.LOADING, State.START, State.UNLOADING, State.END)


def merge(answers: Iterable[Sequence[VersionStatus]]) -> list[VersionStatus]:
    """The statuses of a model's versions from those that each worker gave, highest version first."""
    known = [{status.version: status for status in answer} for answer in answers]
    versions = sorted({version for by_version in known for version in by_version}, reverse=True)
    return [_merge_one(version, [by_version.get(version) for by_version in known]) for version in versions]


def _merge_one(version: int, found: Sequence[VersionStatus | None]) -> VersionStatus:
    """Available where it is so in all; a worker that has not found the version yet is at its start."""
    states = {State.START if status is None else status.state for status in found}
    failed = next((status for status in found if status and status.code is not Code.OK), None)
    if failed is None and State.END in states and states & {State.AVAILABLE, State.UNLOADING}:
        states = {State.UNLOADING}  # one has done with it, and another has not yet
    state = max(states, key=_FARTHER.index)
    return VersionStatus(version, state, failed.code, failed.message) if failed else VersionStatus(version, state)
