"""The versions that a server holds, from the moment they are aspired to until they are unloaded.

What TensorFlow Serving's AspiredVersionsManager does under its availability-preserving policy: a new
version is loaded beside the old one, the old one goes when a new one is available, and stays where
none can be loaded.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..errors import CancelledError, Code, InternalError, NotFoundError, ResourceExhaustedError, ServableError
from .engines import Engine
from .monitoring import Monitor
from .servable import Servable
from .status import State, VersionStatus

_log = logging.getLogger("servable.lifecycle")

# Of versions that were unloaded or failed, so many of a model are remembered.
MAX_ENDED = 100
# Until the next try where the system refuses a thread.
_BREAK_S = 1.0

Loader = Callable[[str, int, Path], Servable]
Report = Callable[[str, int, Servable | ServableError], None]


@dataclass(frozen=True)
class LifecycleOptions:
    """How versions are loaded and unloaded; the fields are TensorFlow Serving's flags of the same names.

    0 threads are one. A load that fails is tried again so many times, an interval apart; a negative
    interval is no wait.
    """

    num_load_threads: int = 0
    num_unload_threads: int = 0
    max_num_load_retries: int = 5
    load_retry_interval_micros: int = 60_000_000


class _Version:
    """One version of one model."""

    __slots__ = (*("aspired", "error", "failures", "folder", "marks"), *("next_try", "number", "servable", "state"))

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.folder = folder
        self.state = State.START
        self.aspired = True
        self.error: tuple[Code, str] | None = None  # not the exception, whose traceback would hold what was loaded
        self.failures = 0
        self.next_try = 0.0  # of time.monotonic
        self.marks: object = None  # of the files that could not be loaded
        self.servable: Servable | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether it is to be loaded, for the first time or again, and is not being loaded."""
        return self.state is State.START or self.next_try > 0

    @property
    def is_stuck(self) -> bool:
        """Whether loading failed, and nothing is tried at the moment."""
        return self.error is not None and (self.state is State.END or self.next_try > 0)

    def status(self) -> VersionStatus:
        return VersionStatus(self.number, self.state, *(self.error or ()))


class Manager:
    """Loads what is aspired to, unloads what is not, and hands out what is available.

    All of it happens in threads of its own, so that a load holds up no request; lookups take no lock.
    """

    is_shared = False

    def __init__(
        self,
        loader: Loader = Servable.load,
        options: LifecycleOptions | None = None,
        monitor: Monitor | None = None,
        report: Report = lambda *_: None,
    ) -> None:
        """``report`` hears of each version that was loaded or failed, until `settle_down`."""
        self._loader = loader
        self._options = options or LifecycleOptions()
        self._monitor = monitor or Monitor()
        self._report = report
        self._models: dict[str, dict[int, _Version]] = {}
        self._available: dict[str, dict[int, Servable]] = {}  # replaced, never changed
        self._changed = threading.Condition(threading.RLock())
        self._closing = False
        self._loading = 0
        self._max_loading = os.cpu_count() or 1  # at a time, until `settle_down`
        self._unloads = ThreadPoolExecutor(max(1, self._options.num_unload_threads), thread_name_prefix="unload")
        self._thread = threading.Thread(target=self._run, name="manager", daemon=True)

    # what is asked for

    def aspire(self, model: str, versions: Mapping[int, Path]) -> None:
        """From now on serve these versions of a model, and no others: number → folder.

        A version that could not be loaded is tried again where its files are not those of the last try.
        """
        changed = self._changed_files(model, versions)
        with self._changed:
            known = self._models.setdefault(model, {}) if versions else self._models.get(model, {})
            for number, folder in versions.items():
                found = known.get(number)
                if found is None or (found.state is State.END and not found.aspired):
                    known[number] = _Version(number, folder)  # one that was gone may be another by now
                    continue
                if found.servable is None:
                    found.folder = folder
                if number in changed and found.is_stuck:
                    found.state, found.failures, found.next_try = State.LOADING, 0, time.monotonic()
            for version in known.values():
                version.aspired = version.number in versions
            self._start()
            self._changed.notify_all()

    def _changed_files(self, model: str, versions: Mapping[int, Path]) -> set[int]:
        """Those of the versions that could not be loaded, and whose files are not the same any more."""
        with self._changed:
            known = self._models.get(model, {})
            failed = {number: known[number].marks for number in versions if number in known and known[number].is_stuck}
        # Not under the lock, as looking at files may take long.
        return {number for number, marks in failed.items() if _marks(versions[number]) != marks}

    def settle_down(self) -> None:
        """The start is over: load no more at a time than the options say, and log what happens."""
        with self._changed:
            self._max_loading = max(1, self._options.num_load_threads)
            self._report = self._log_outcome

    def wait_for(self, is_so: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until something is so, which is looked at whenever a version changes; False after the limit."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closing or is_so(), timeout_s)

    # what is there

    def find(self, name: str, version: int | None) -> Servable:
        """The servable of this version, or of the highest available one; else `NotFoundError`."""
        versions = self._available.get(name)
        if version is None:
            if not versions:
                raise NotFoundError(f"Servable not found for request: Latest({name})")
            return versions[max(versions)]
        if not versions or version not in versions:
            raise NotFoundError(f"Servable not found for request: Specific({name}, {version})")
        return versions[version]

    def enter(self, name: str, version: int | None) -> Servable:
        """The same, kept from being unloaded until the end of a with-block."""
        while True:
            servable = self.find(name, version)
            if servable.enter():
                return servable

    def is_available(self, model: str) -> bool:
        """Whether some version of a model is available."""
        return bool(self._available.get(model))

    def is_untried(self, model: str) -> bool:
        """Whether loading some version of a model has not been tried to the end yet."""
        with self._changed:
            return any(version.error is None for version in self._missing(model))

    def is_trying(self, model: str) -> bool:
        """Whether some version of a model is still being loaded, or will be tried again."""
        with self._changed:
            return any(version.state is not State.END for version in self._missing(model))

    def _missing(self, model: str) -> list[_Version]:
        known = self._models.get(model, {}).values()
        return [version for version in known if version.aspired and version.servable is None]

    def failures(self, model: str) -> list[VersionStatus]:
        """Of the versions that are aspired to, those whose last try failed, highest first."""
        with self._changed:
            failed = [v.status() for v in self._models.get(model, {}).values() if v.aspired and v.error is not None]
        return sorted(failed, key=lambda status: -status.version)

    def models(self) -> list[str]:
        """Names of all models that there are versions of, sorted."""
        with self._changed:
            return sorted(name for name, known in self._models.items() if any(v.aspired for v in known.values()))

    def engines(self, name: str) -> dict[int, Mapping[str, Engine]]:
        """The engines of a model's available versions, by version and signature."""
        return {version: servable.engines for version, servable in self._available.get(name, {}).items()}

    def statuses(self, name: str, version: int | None) -> list[VersionStatus]:
        """Status of one version or of all, highest first; `NotFoundError` if there is none."""
        with self._changed:
            known = {number: found.status() for number, found in self._models.get(name, {}).items()}
        if version is not None:
            if version not in known:
                raise NotFoundError(f"Could not find version {version} of model {name}")
            return [known[version]]
        if not known:
            raise NotFoundError(f"Could not find any versions of model {name}")
        return sorted(known.values(), key=lambda status: -status.version)

    def close(self) -> None:
        """Unload everything, whoever still uses it."""
        with self._changed:
            self._closing = True
            available, self._available = self._available, {}
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._unloads.shutdown(wait=False)
        for versions in available.values():
            for servable in versions.values():
                _close(servable)

    # the loop

    def _start(self) -> None:
        if self._thread.ident is None and not self._closing:
            self._thread.start()

    def _run(self) -> None:
        with self._changed:
            while not self._closing:
                try:
                    wait_s = self._step()
                except Exception:  # noqa: BLE001  # such as no more threads: nobody else would go on
                    _log.exception("versions cannot be loaded at the moment")
                    wait_s = _BREAK_S
                self._changed.wait(wait_s)

    def _step(self) -> float | None:
        """Begin what can be begun; returns after how many seconds something will be due."""
        now, due = time.monotonic(), None
        for model, known in self._models.items():
            self._unload_superseded(model, known)
            for version in sorted(known.values(), key=lambda v: -v.number):
                if not version.is_waiting:
                    continue
                if not version.aspired:
                    version.state, version.next_try = State.END, 0.0
                elif version.next_try > now:
                    due = min(due or version.next_try, version.next_try)
                elif self._loading < self._max_loading:
                    name = f"load {model} {version.number}"
                    # Not a daemon, as its creator is: at its end the interpreter would break into the load.
                    threading.Thread(target=self._load, args=(model, version), name=name, daemon=False).start()
                    self._loading += 1
                    version.state, version.next_try = State.LOADING, 0.0
            _forget_ended(known)
        return None if due is None else min(due - now, threading.TIMEOUT_MAX)

    def _unload_superseded(self, model: str, known: Mapping[int, _Version]) -> None:
        ready = [version for version in known.values() if version.state is State.AVAILABLE]
        superseded = sorted((version for version in ready if not version.aspired), key=lambda v: v.number)
        aspired = [version for version in known.values() if version.aspired]
        if aspired and not any(version.state is State.AVAILABLE for version in aspired):
            superseded = superseded[:-1]  # the highest stays until there is one in its place
        for version in superseded:
            self._unload(model, version)

    def _load(self, model: str, version: _Version) -> None:
        folder = version.folder
        marks = _marks(folder)  # before: what is copied meanwhile counts as changed
        started = time.monotonic()
        servable, error = None, None
        try:
            servable = self._loader(model, version.number, folder)
        except ServableError as failed:
            error = failed
        except MemoryError:
            error = ResourceExhaustedError(f"not enough memory to load {folder}")
        except Exception as failed:  # noqa: BLE001  # whatever a model does, the server goes on
            _log.exception("loading %s version %d failed", model, version.number)
            error = InternalError(f"{type(failed).__name__}: {failed}")
        self._monitor.loaded(model, str(folder), time.monotonic() - started, ok=error is None)
        with self._changed:
            self._loading -= 1
            if servable is not None and version.aspired and not self._closing:
                self._publish(model, version, servable)
                servable = None
            else:
                if error is None:
                    error = CancelledError("Loading of servable cancelled")
                self._note_failure(model, version, error, marks)
            self._changed.notify_all()
        if servable is not None:
            _close(servable)

    def _publish(self, model: str, version: _Version, servable: Servable) -> None:
        for signature, engine in servable.engines.items():
            self._monitor.engine(model, version.number, signature, engine)
        version.servable, version.error, version.failures = servable, None, 0
        version.state = State.AVAILABLE
        versions = self._available.get(model, {})
        self._available = {**self._available, model: {**versions, version.number: servable}}
        self._report(model, version.number, servable)

    def _note_failure(self, model: str, version: _Version, error: ServableError, marks: object) -> None:
        version.error, version.marks = (error.code, str(error)), marks
        version.failures += 1
        if version.aspired and version.failures <= self._options.max_num_load_retries:
            version.next_try = time.monotonic() + max(0, self._options.load_retry_interval_micros) / 1e6
        else:
            version.state = State.END
        if not self._closing:
            self._report(model, version.number, error)

    def _unload(self, model: str, version: _Version) -> None:
        servable, version.servable = version.servable, None
        assert servable is not None
        version.state = State.UNLOADING
        versions = {number: kept for number, kept in self._available[model].items() if number != version.number}
        self._available = {**self._available, model: versions}
        _log.info("%s version %d is being unloaded", model, version.number)
        servable.retire(lambda: self._close_idle(model, version, servable))

    def _close_idle(self, model: str, version: _Version, servable: Servable) -> None:
        """The last request on it has ended, in whose thread nothing shall take long."""
        try:
            self._unloads.submit(self._end, model, version, servable)
        except RuntimeError:  # the server has stopped, or there are no more threads
            self._end(model, version, servable)

    def _end(self, model: str, version: _Version, servable: Servable) -> None:
        _close(servable)
        self._monitor.unloaded(model, version.number)
        with self._changed:
            # It may have been asked for again while it was going.
            version.state = State.START if version.aspired else State.END
            _log.info("%s version %d is unloaded", model, version.number)
            self._changed.notify_all()

    def _log_outcome(self, model: str, number: int, outcome: Servable | ServableError) -> None:
        reason = str(outcome)  # a handler may keep what it gets
        if not isinstance(outcome, ServableError):
            _log.info("%s version %d is available", model, number)
        elif next_try := self._models[model][number].next_try:
            wait_s = max(0.0, round(next_try - time.monotonic(), 1))
            _log.warning("%s version %d cannot be loaded, next try in %g s: %s", model, number, wait_s, reason)
        else:
            _log.warning("%s version %d cannot be loaded: %s", model, number, reason)


def _close(servable: Servable) -> None:
    try:
        servable.close()
    except Exception:  # noqa: BLE001  # whatever a model does, the server goes on
        _log.exception("unloading %s version %d failed", servable.name, servable.version)


def _forget_ended(known: dict[int, _Version]) -> None:
    ended = [version.number for version in known.values() if version.state is State.END and not version.aspired]
    for number in sorted(ended)[: max(0, len(ended) - MAX_ENDED)]:
        del known[number]


def _marks(folder: Path) -> object:
    """What tells a folder and its files from others of the same names: sizes, times and inodes."""
    paths = [folder, *(Path(root, name) for root, _, names in os.walk(folder) for name in names)]
    return sorted(map(_mark, paths))


def _mark(path: Path) -> tuple[str, int, int, int]:
    try:
        stat = path.stat()
    except OSError:
        return str(path), -1, -1, -1
    return str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino
