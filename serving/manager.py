"""The servables of a store: loaded at start, found by name, version or latest, with their states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from ..errors import Code, NotFoundError, ServableError, StoreError
from ..store import Store
from .servable import RuntimeChoice, Servable


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

    def __init__(self) -> None:
        self._servables: dict[str, dict[int, Servable]] = {}
        self._statuses: dict[str, dict[int, VersionStatus]] = {}

    def load_store(self, store: Store, choice: RuntimeChoice, report: Report = lambda *_: None) -> None:
        """Load all versions of all models; ``report`` hears of each, loaded or failed.

        Raises `StoreError` if the store is empty or a model has no version that can be loaded.
        """
        models = store.models()
        if not models:
            raise StoreError(f"the store {store.root} holds no models; make one with: servable export NAME")
        for name in models:
            for version in store.versions(name):
                self._load(store, name, version, choice, report)
            if not self._servables.get(name):
                newest = max(self._statuses[name].values(), key=lambda status: status.version)
                raise StoreError(f"no version of model {name!r} can be served: {newest.message}")

    def _load(self, store: Store, name: str, version: int, choice: RuntimeChoice, report: Report) -> None:
        statuses = self._statuses.setdefault(name, {})
        statuses[version] = VersionStatus(version, State.LOADING)
        try:
            servable = Servable.load(name, version, store.path(name, version), choice)
        except ServableError as error:
            statuses[version] = VersionStatus(version, State.END, error.code, str(error))
            report(name, version, error)
            return
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
