"""The servables that a server holds: loaded at start, found by name, version or latest, with their states."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from ..errors import Code, NotFoundError, ServableError, StoreError
from .engines import Engine, LoadOptions
from .monitoring import Monitor
from .servable import Servable
from .sources import Aspired


class State(IntEnum):
    """States of a version, numbered as ``ModelVersionStatus.State``."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionStatus:
    """State of one version; ``code`` and ``message`` say why loading failed."""

    version: int
    state: State
    code: Code = Code.OK
    message: str = ""


Report = Callable[[str, int, Servable | ServableError], None]


class Manager:
    """Holds the loaded servables.

    A version that cannot be loaded ends in state END with its error, and the others go on.
    """

    def __init__(self, options: LoadOptions | None = None, monitor: Monitor | None = None) -> None:
        self._options = options or LoadOptions()
        self._monitor = monitor or Monitor()
        self._servables: dict[str, dict[int, Servable]] = {}
        self._statuses: dict[str, dict[int, VersionStatus]] = {}

    def load(self, aspired: Sequence[Aspired], report: Report = lambda *_: None) -> None:
        """Load all versions of all models; ``report`` hears of each, loaded or failed.

        Raises `StoreError` if a model has no version that can be loaded.
        """
        for source in aspired:
            for version, folder in sorted(source.versions.items()):
                self._load(source.model, version, folder, report)
            if not self._servables.get(source.model):
                newest = max(self._statuses[source.model].values(), key=lambda status: status.version)
                raise StoreError(f"no version of model {source.model!r} can be served: {newest.message}")

    def _load(self, name: str, version: int, folder: Path, report: Report) -> None:
        statuses = self._statuses.setdefault(name, {})
        statuses[version] = VersionStatus(version, State.LOADING)
        started = time.monotonic()
        try:
            servable = Servable.load(name, version, folder, self._options)
        except ServableError as error:
            statuses[version] = VersionStatus(version, State.END, error.code, str(error))
            self._monitor.loaded(name, str(folder), time.monotonic() - started, ok=False)
            report(name, version, error)
            return
        self._monitor.loaded(name, str(folder), time.monotonic() - started, ok=True)
        for signature, engine in servable.engines.items():
            self._monitor.engine(name, version, signature, engine)
        self._servables.setdefault(name, {})[version] = servable
        statuses[version] = VersionStatus(version, State.AVAILABLE)
        report(name, version, servable)

    def find(self, name: str, version: int | None) -> Servable:
        """The servable of this version, or of the highest available one; else `NotFoundError`."""
        versions = self._servables.get(name, {})
        if version is None:
            if not versions:
                raise NotFoundError(f"Servable not found for request: Latest({name})")
            return versions[max(versions)]
        if version not in versions:
            raise NotFoundError(f"Servable not found for request: Specific({name}, {version})")
        return versions[version]

    def models(self) -> list[str]:
        """Names of all models, sorted."""
        return sorted(self._statuses)

    def engines(self, name: str) -> dict[int, Mapping[str, Engine]]:
        """The engines of a model's loaded versions, by version and signature."""
        return {version: servable.engines for version, servable in self._servables.get(name, {}).items()}

    def statuses(self, name: str, version: int | None) -> list[VersionStatus]:
        """Status of one version or of all, highest first; `NotFoundError` if there is none."""
        known = self._statuses.get(name, {})
        if version is not None:
            if version not in known:
                raise NotFoundError(f"Could not find version {version} of model {name}")
            return [known[version]]
        if not known:
            raise NotFoundError(f"Could not find any versions of model {name}")
        return sorted(known.values(), key=lambda status: -status.version)

    def close(self) -> None:
        """Unload everything."""
        for versions in self._servables.values():
            for servable in versions.values():
                servable.close()
        self._servables.clear()
