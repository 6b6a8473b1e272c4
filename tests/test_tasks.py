"""Functions in processes of their own: values and errors come back, and what dies takes nothing along."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from servable import errors, nursery, tasks
from servable.errors import MissingExtraError, ProcessError, ServableError, StoreError
from servable.nursery import Outcome
from servable.process import Limits
from servable.tasks import Pool

FUNCTIONS = """
import ctypes, errno, os, signal, sys, time
from servable.errors import MissingExtraError, StoreError

def add(a, b):
    return a + b

def refuse():
    raise StoreError("no store here")

def lack():
    raise MissingExtraError("this", "onnx", "export")

def fill_up():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

def stumble():
    raise ValueError("first line\\nsecond line")

def say_nothing():
    raise KeyError

def crash():
    print("about to read", flush=True)
    print("I0000 00:00:1795634969.934928    3372 stub.cc:31] a note", file=sys.stderr, flush=True)
    ctypes.string_at(0)

def abort():
    os.abort()

def leave(code):
    sys.exit(code)

def vanish():
    os._exit(0)

def hang():
    time.sleep(600)

def orphan_itself(file):
    file.write_text(str(os.getpid()))
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)

def swallow():
    held = []
    while True:
        held.append(bytearray(20_000_000))
        time.sleep(0.01)

def chatter():
    while True:
        print("more", flush=True)

def litter():
    import tempfile
    return tempfile.mkdtemp(), os.environ["TMPDIR"]

def unpicklable():
    return lambda: None

def where():
    return os.getcwd(), os.environ.get("WHERE"), os.getpid(), os.getppid()

def streams():
    print("said")
    return sys.stdin.read(), [os.readlink(f"/proc/self/fd/{n}") for n in sorted(os.listdir("/proc/self/fd"), key=int)
                              if os.path.exists(f"/proc/self/fd/{n}")]

def meet(folder, own, other):
    (folder / own).touch()
    for _ in range(600):
        if (folder / other).exists():
            return True
        time.sleep(0.05)
    return False
"""
GENEROUS = Limits(60, 2_000_000_000)


@pytest.fixture
def functions(new_module: Callable[[str], Any]) -> Any:
    return new_module(FUNCTIONS)


@pytest.fixture(params=["forked", "spawned"])
def pools(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes pools, as they are on Linux and as they are elsewhere."""
    if request.param == "spawned":
        monkeypatch.setattr(tasks, "borrow", lambda modules: nursery._Spawning())
        monkeypatch.setattr(tasks, "give_back", lambda given, modules: given.close())
    made = []

    def make(limits: Limits = GENEROUS, at_once: int = 2) -> Pool:
        folder = tmp_path / f"pool{len(made)}"
        folder.mkdir()
        made.append(Pool(folder, ["numpy"], at_once, limits))
        return made[-1]

    monkeypatch.setitem(nursery.extras.EXTRA_OF, "numpy", "base")
    yield make
    for pool in made:
        pool.close()


def outcome(pool: Pool, function: Callable[..., Any], *arguments: Any) -> Outcome:
    found: list[Outcome] = []
    pool.submit(found.append, function, *arguments)
    pool.run()
    (only,) = found
    return only


def test_values_come_back(pools: Any, functions: Any) -> None:
    pool = pools()
    assert outcome(pool, functions.add, 1, 2) == Outcome(3)
    assert outcome(pool, functions.add, "a", "b").get() == "ab"
    assert list(pool._folder.iterdir()) == []  # what is done leaves no files


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("refuse", StoreError, "^no store here$"),
        ("lack", MissingExtraError, "^this needs the package 'onnx', which is not installed; run: pip install"),
        ("fill_up", OSError, r"^\[Errno 28\] No space left on device: 'somewhere'$"),
        ("stumble", ProcessError, "^failed with ValueError: first line$"),
        ("say_nothing", ProcessError, "^failed with KeyError$"),
        ("crash", ProcessError, "^was killed by SIGSEGV; its last words: about to read$"),
        ("abort", ProcessError, "^was killed by SIGABRT"),
        ("vanish", ProcessError, "^left no result: "),
        ("unpicklable", ProcessError, "^ended with exit code 1; its last words: .*pickle"),
    ],
)
def test_errors_come_back(pools: Any, functions: Any, name: str, kind: type[Exception], text: str) -> None:
    pool = pools()
    found = outcome(pool, getattr(functions, name))
    assert type(found.error) is kind
    with pytest.raises(kind, match=text):
        found.get()
    assert outcome(pool, functions.add, 1, 2).get() == 3  # and the next one is none the worse


def test_the_number_of_a_full_disk_comes_back(pools: Any, functions: Any) -> None:
    error = outcome(pools(), functions.fill_up).error
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (errno.ENOSPC, "somewhere")


@pytest.mark.parametrize("code", [1, 5])
def test_an_exit_is_a_failure(pools: Any, functions: Any, code: int) -> None:
    with pytest.raises(ProcessError, match=f"^ended with exit code {code}"):
        outcome(pools(), functions.leave, code).get()


def every(kind: type[ServableError]) -> Iterator[type[ServableError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from every(child)


@pytest.mark.parametrize("kind", sorted(set(every(ServableError)), key=lambda kind: kind.__name__))
def test_every_error_of_ours_can_be_pickled(kind: type[ServableError]) -> None:
    error = kind("a", "b", "c") if kind is MissingExtraError else kind("it is wrong")  # type: ignore[call-arg]
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back)) == (kind, str(error))
    assert kind.__module__ != errors.__name__ or kind.__name__ in errors.__all__


def test_what_takes_too_long_is_stopped(pools: Any, functions: Any) -> None:
    pool = pools(Limits(0.5, 2_000_000_000))
    began = time.monotonic()
    with pytest.raises(ProcessError, match=r"^took more than 0\.5 s, and was stopped$"):
        outcome(pool, functions.hang).get()
    assert time.monotonic() - began < 60
    assert outcome(pools(), functions.add, 1, 2).get() == 3


def test_what_writes_too_much_is_stopped(pools: Any, functions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "MOST_LOG_BYTES", 1_000_000)
    with pytest.raises(
        ProcessError, match=r"^wrote more than 1 MB into its log, and was stopped; its last words: more"
    ):
        outcome(pools(), functions.chatter).get()


def test_what_is_left_in_temporary_folders_goes_too(pools: Any, functions: Any) -> None:
    pool = pools()
    places = outcome(pool, functions.litter).get()
    assert [Path(place).is_relative_to(pool._folder) for place in places] == [True, True]
    assert not [place for place in places if Path(place).exists()]


def test_nothing_is_imported_from_the_folder_that_one_is_in(
    pools: Any, functions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other people's folders hold other people's modules."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('this is none')")
    (tmp_path / "json.py").write_text("raise SystemExit('this is none')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(nursery, "_idle", {})
    assert outcome(pools(), functions.add, 1, 2).get() == 3


def test_a_module_that_is_broken_is_the_matter_of_the_task_that_needs_it(
    functions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(functions.__file__).parent
    (place / "broken_module.py").write_text("raise OSError('no such library')")
    monkeypatch.setitem(nursery.extras.EXTRA_OF, "broken_module", "export")
    with Pool(tmp_path, ["broken_module"], 1, GENEROUS) as pool:
        assert outcome(pool, functions.add, 1, 2).get() == 3


def test_what_takes_too_much_memory_is_stopped(pools: Any, functions: Any) -> None:
    with pytest.raises(ProcessError, match=r"^took more than 0\.4 GB of memory, and was stopped$"):
        outcome(pools(Limits(60, 400_000_000)), functions.swallow).get()


def test_so_many_run_at_once(pools: Any, functions: Any, tmp_path: Path) -> None:
    found: list[bool] = []
    pool = pools()
    begun: list[str] = []
    for own, other in (("a", "b"), ("b", "a")):
        pool.submit(
            lambda done: found.append(done.get()), functions.meet, tmp_path, own, other, begin=lambda: begun.append("x")
        )
    assert begun == []
    pool.run()
    assert (found, begun) == ([True, True], ["x", "x"])


def test_one_at_a_time_keep_their_order(pools: Any, functions: Any) -> None:
    seen: list[Any] = []
    pool = pools(at_once=1)
    for i in range(3):
        pool.submit(
            lambda done: seen.append(done.get()), functions.add, i, 0, begin=lambda i=i: seen.append(f"begin {i}")
        )
    pool.run()
    assert seen == ["begin 0", 0, "begin 1", 1, "begin 2", 2]


def test_an_outcome_may_ask_for_more(pools: Any, functions: Any) -> None:
    pool, found = pools(), []

    def then(done: Outcome) -> None:
        found.append(done.get())
        if done.get() < 3:
            pool.submit(then, functions.add, done.get(), 1)

    pool.submit(then, functions.add, 0, 1)
    pool.run()
    assert found == [1, 2, 3]


def test_it_is_as_if_it_were_called_here(
    pools: Any, functions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pools()
    first = outcome(pool, functions.where).get()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHERE", "here")
    second = outcome(pool, functions.where).get()
    assert (first[0], first[1]) != (second[0], second[1]) == (str(tmp_path), "here")
    assert len({first[2], second[2], os.getpid()}) == 3


def test_a_task_has_no_streams_but_its_log(pools: Any, functions: Any) -> None:
    pool = pools()
    given, links = outcome(pool, functions.streams).get()
    assert given == ""
    assert links[0] == "/dev/null"
    assert {os.path.basename(link) for link in links[1:3]} == {nursery.LOG}  # noqa: PTH119  # of what is gone by now
    pipes = [link for link in links[3:] if link.startswith("pipe:")]
    assert len(pipes) == isinstance(pool._nursery, nursery._Spawning)  # which ends with who began it


def test_what_is_raised_on_an_outcome_ends_all(pools: Any, functions: Any) -> None:
    def complain(done: Outcome) -> None:
        raise StoreError("enough")

    before = busy()
    with pools() as pool:
        pool.submit(lambda done: None, functions.hang)
        pool.submit(complain, functions.add, 1, 2)
        with pytest.raises(StoreError, match="enough"):
            pool.run()
    assert busy() <= before  # of other tests' processes


def busy() -> set[int]:
    """Children of this process that are a task, or have one."""
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended meanwhile
            if "--task" in child.cmdline() or child.children():
                found.add(child.pid)
    return found


def test_a_spawned_task_ends_with_who_began_it(tmp_path: Path, functions: Any) -> None:
    nursery.write_task(tmp_path, functions.hang, ())
    command = [sys.executable, "-m", nursery.__name__, "--task", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.close()
        assert process.wait(60) == 1


linux = pytest.mark.skipif(sys.platform != "linux", reason="only there tasks are forked")


@linux
def test_the_import_is_paid_once(tmp_path: Path, functions: Any) -> None:
    parents = set()
    for i in range(3):
        folder = tmp_path / f"pool{i}"
        folder.mkdir()
        with Pool(folder, ["ai_edge_litert.interpreter"], 2, GENEROUS) as pool:
            parents.add(outcome(pool, functions.where).get()[3])
    assert len(parents) == 1
    assert parents != {os.getpid()}


@linux
def test_without_the_process_that_forks_the_rest_gets_another(tmp_path: Path, functions: Any) -> None:
    found: list[Outcome] = []
    with Pool(tmp_path, [], 1, GENEROUS) as pool:
        pool.submit(found.append, functions.orphan_itself, tmp_path / "pid")
        pool.submit(found.append, functions.add, 1, 2)
        pool.run()
    with pytest.raises(ProcessError, match=r"^lost the process that starts tasks: it was killed by SIGKILL"):
        found[0].get()
    assert found[1].get() == 3
    end = time.monotonic() + 20
    while psutil.pid_exists(int((tmp_path / "pid").read_text())):  # what it left behind is ended too
        assert time.monotonic() < end
        time.sleep(0.05)


@linux
def test_it_ends_when_nothing_is_asked_of_it_and_another_takes_over(tmp_path: Path, functions: Any) -> None:
    code = "from servable import nursery; nursery.IDLE_S = 0.2; nursery._main([])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.wait(60) == 0  # its input is still open
    with Pool(tmp_path, [], 1, GENEROUS) as pool:
        first = outcome(pool, functions.where).get()[3]
        psutil.Process(first).terminate()
        psutil.Process(first).wait(10)
        assert outcome(pool, functions.where).get()[3] != first


@linux
def test_nothing_outlives_the_process_that_wanted_it(tmp_path: Path, functions: Any) -> None:
    script = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); functions = __import__(sys.argv[2])\n"
        "from servable.tasks import Pool; from servable.process import Limits\n"
        "pool = Pool(pathlib.Path(sys.argv[3]), [], 2, Limits(600, 10**10))\n"
        "for _ in range(2): pool.submit(print, functions.hang)\n"
        "pool.run()"
    )
    place = Path(functions.__file__).parent
    command = [sys.executable, "-c", script, str(place), functions.__name__, str(tmp_path)]
    with subprocess.Popen(command) as process:
        end = time.monotonic() + 60
        family: list[psutil.Process] = []
        while len(family) < 3:
            assert time.monotonic() < end
            family = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.05)
        process.kill()
    gone, alive = psutil.wait_procs(family, timeout=20)
    assert (len(gone), alive) == (3, [])


def test_pools_at_the_same_time_do_not_hear_each_other(tmp_path: Path, functions: Any) -> None:
    """As of exports in two threads of one process."""
    found: list[int] = []

    def work(start: int) -> None:
        folder = tmp_path / f"pool{start}"
        folder.mkdir()
        with Pool(folder, [], 2, GENEROUS) as pool:
            for i in range(5):
                pool.submit(lambda done: found.append(done.get()), functions.add, start, i)
            pool.run()

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]
