"""The process that tasks are born of: it has imported what they need, and does nothing else.

Importing TensorFlow takes seconds, so each task is a fork of one process that has paid for it. A fork is
sound while no thread holds a lock: TensorFlow starts its threads at its first operation, and here runs
none. Where the system has no sound fork (macOS, Windows), each task is a new interpreter.

``python -m servable.nursery MODULE...`` reads a JSON object a line, to start a task or to kill one, and
writes one for each task that has begun and that has ended. At the end of its input it kills what still
runs: nothing outlives the process that wanted it.
"""

from __future__ import annotations

import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from . import extras
from .errors import ProcessError, ServableError, is_disk_full
from .process import describe_exit, last_words

TASK, RESULT, LOG = "task.pkl", "result.pkl", "log.txt"
# How long it waits for another task: it holds as much memory as TensorFlow's code takes.
IDLE_S = 60.0
_POLL_S = 0.05
# The exit code of a task that had no space for its log or its result: EX_CANTCREAT of sysexits.h.
DISK_FULL = 73
# Steps work on TensorFlow, and on the CPU: the process that they work for may hold the memory of a GPU.
_OURS = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}


@dataclass(frozen=True)
class Outcome:
    """What came of a task: its value, or the error that it raised or met."""

    value: Any = None
    error: ServableError | OSError | None = None

    def get(self) -> Any:
        """The value; raises the error, if there is one."""
        if self.error:
            raise self.error
        return self.value


@dataclass(frozen=True)
class News:
    """A task has begun as the process ``pid``, or has ended with the code ``exit``; negative for a signal."""

    task: int
    pid: int | None = None
    exit: int | None = None


class Nursery(ABC):
    """Starts tasks that lie in folders of their own, each in a process of its own."""

    @abstractmethod
    def start(self, task: int, folder: Path) -> None:
        """Run what lies in the folder; its number is what news will call it."""

    @abstractmethod
    def kill(self, task: int) -> None:
        """End a task at once; one that has ended is left alone."""

    @abstractmethod
    def news(self, wait_s: float) -> list[News]:
        """What has happened since, or within that many seconds. Raises `ProcessError` if it is gone."""

    @abstractmethod
    def alive(self) -> bool:
        """Whether it takes tasks."""

    @abstractmethod
    def close(self) -> str:
        """End it with all its tasks, and wait for it; what it said last, as the end of a message."""


_idle: dict[tuple[int, tuple[str, ...]], list[Nursery]] = {}


def borrow(modules: Sequence[str]) -> Nursery:
    """One with these modules imported, for one user at a time; `give_back` hands it on to the next.

    It forks, where a fork is sound. It ends with this process, and after a minute without tasks.
    """
    waiting = _idle.setdefault(_key(modules), [])
    while waiting:
        found = waiting.pop()
        if found.alive():
            return found
        found.close()
    return _Forking(modules) if sys.platform == "linux" else _Spawning()


def give_back(nursery: Nursery, modules: Sequence[str]) -> None:
    """End the use of one that runs no task any more."""
    _idle.setdefault(_key(modules), []).append(nursery)


def _key(modules: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    return os.getpid(), tuple(modules)  # a fork of this process may not use what this one talks to


def write_task(folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Put a call into a folder, to be run as if here: in this folder, with this environment and this path."""
    with (folder / TASK).open("wb") as file:
        pickle.dump((str(Path.cwd()), dict(os.environ | _OURS), _path()), file)
        pickle.dump((function, arguments), file)


def _path() -> list[str]:
    return [path or str(Path.cwd()) for path in sys.path]


def _environment() -> dict[str, str]:
    """A child imports what its parent can, and nothing of the folder that it happens to be in."""
    return os.environ | _OURS | {"PYTHONPATH": os.pathsep.join(_path())}


class _Forking(Nursery):
    def __init__(self, modules: Sequence[str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for us, who end it
        )
        assert self._process.stdin
        assert self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        self._rest = b""

    def start(self, task: int, folder: Path) -> None:
        self._say({"start": task, "folder": str(folder)})

    def kill(self, task: int) -> None:
        self._say({"kill": task})

    def _say(self, message: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # it is gone, as `news` will say
            self._input.write(json.dumps(message).encode() + b"\n")
            self._input.flush()

    def news(self, wait_s: float) -> list[News]:
        if not self._selector.select(wait_s):
            return []
        data = os.read(self._output.fileno(), 65536)
        if not data:
            raise ProcessError("lost the process that starts tasks")
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [News(**json.loads(line)) for line in lines]

    def alive(self) -> bool:
        return self._process.poll() is None and not self._input.closed

    def close(self) -> str:
        if self._input.closed:
            return ""
        code = self._process.poll()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # it and its tasks are a session of their own
        code = self._process.wait() if code is None else code
        self._selector.close()
        with suppress(BrokenPipeError):
            self._input.close()
        self._output.close()
        self._log.seek(0)
        words = last_words(self._log.read())
        self._log.close()
        return f": it {describe_exit(code)}{words}"


class _Spawning(Nursery):
    def __init__(self) -> None:
        self._tasks: dict[int, subprocess.Popen[bytes]] = {}
        self._begun: list[News] = []

    def start(self, task: int, folder: Path) -> None:
        with (folder / LOG).open("ab") as log:
            self._tasks[task] = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, "--task", str(folder)],
                stdin=subprocess.PIPE,  # its end says that we are gone
                stdout=log,
                stderr=log,
                env=_environment(),
            )
        self._begun.append(News(task, pid=self._tasks[task].pid))

    def kill(self, task: int) -> None:
        if task in self._tasks:
            self._tasks[task].kill()

    def news(self, wait_s: float) -> list[News]:
        end = time.monotonic() + wait_s
        found, self._begun = self._begun, []
        while not found and time.monotonic() < end:
            found = [
                News(task, exit=process.poll()) for task, process in self._tasks.items() if process.poll() is not None
            ]
            time.sleep(0 if found else _POLL_S)
        for each in found:
            if each.exit is not None:
                del self._tasks[each.task]
        return found

    def alive(self) -> bool:
        return True

    def close(self) -> str:
        for process in self._tasks.values():
            process.kill()
            process.wait()
        self._tasks.clear()
        return ""


def work(folder: Path) -> None:
    """In a process of its own: run the task of a folder, and leave its `Outcome` there, pickled."""
    try:
        with (folder / TASK).open("rb") as file:
            place, environment, sys.path[:] = pickle.load(file)  # noqa: S301  # our own parent wrote it
            os.chdir(place)
            os.environ.clear()
            os.environ.update(environment)
            os.environ["TMPDIR"] = tempfile.tempdir = str(folder)  # what is left there goes with the folder
            function, arguments = pickle.load(file)  # noqa: S301  # the same
        outcome = Outcome(function(*arguments))
    except (ServableError, OSError) as error:
        traceback.print_exc()
        outcome = Outcome(error=error)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the outcome
        traceback.print_exc()
        said = str(error).strip().splitlines()
        kind = type(error).__name__
        outcome = Outcome(error=ProcessError(f"failed with {kind}: {said[0]}" if said else f"failed with {kind}"))
    (folder / RESULT).write_bytes(pickle.dumps(outcome))


def _fork(folder: Path, private: Sequence[int]) -> int:
    """A task as a child of this process; ``private`` descriptors are closed in it."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor, place in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, place)
        for descriptor in (nothing, log, *private):
            os.close(descriptor)
        work(folder)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # noqa: BLE001  # nothing may return from here into the loop of the parent
        code = DISK_FULL if is_disk_full(error) else 1
        with suppress(OSError):
            traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # without what the parent registered for its own exit


class _Loop:
    """Start and kill tasks as told, and say what becomes of them."""

    def __init__(self, out: int) -> None:
        self._out = out
        self._tasks: dict[int, int] = {}
        self._private = [out]

    def run(self) -> None:
        """Until the input ends, or nothing is asked for a while; then end all tasks."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._private += [woken, wake]
        selector = selectors.PollSelector()
        for descriptor in (0, woken):
            selector.register(descriptor, selectors.EVENT_READ)
        try:
            self._serve(selector, woken)
        finally:  # also where nobody is left to tell
            for pid in self._tasks.values():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _serve(self, selector: selectors.PollSelector, woken: int) -> None:
        rest = b""
        while True:
            ready = {key.fd for key, _ in selector.select(None if self._tasks else IDLE_S)}
            if not ready:
                return
            if woken in ready:
                os.read(woken, 4096)
            self._reap()
            if 0 not in ready:
                continue
            data = os.read(0, 65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for message in map(json.loads, lines):
                self._obey(message)

    def _reap(self) -> None:
        for task, pid in list(self._tasks.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del self._tasks[task]
                self._say(task=task, exit=os.waitstatus_to_exitcode(status))

    def _obey(self, message: dict[str, Any]) -> None:
        if "start" in message:
            task = message["start"]
            self._tasks[task] = _fork(Path(message["folder"]), self._private)
            self._say(task=task, pid=self._tasks[task])
        elif message["kill"] in self._tasks:
            os.kill(self._tasks[message["kill"]], signal.SIGKILL)

    def _say(self, **news: int) -> None:
        os.write(self._out, json.dumps(news).encode() + b"\n")


def _follow(parent: int) -> None:
    """End with the process that wanted this one."""
    while os.read(parent, 1):
        pass
    os._exit(1)


def _main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["--task"]:
        Thread(target=_follow, args=(os.dup(0),), daemon=True).start()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        try:
            work(Path(arguments[1]))
        except OSError as error:
            sys.exit(DISK_FULL if is_disk_full(error) else 1)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.dup(1)
    os.dup2(2, 1)  # what modules print is no news
    for module in arguments:
        try:
            extras.load(module, "a task")
        except Exception:  # noqa: BLE001  # missing or broken: the task that needs it will say so
            traceback.print_exc()
    _Loop(out).run()


if __name__ == "__main__":
    # Under its own name, so that what is pickled here has the classes that its reader has.
    from servable import nursery

    nursery._main(sys.argv[1:])
