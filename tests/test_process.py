"""Child processes: how they end is always said, and they always end."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from servable.errors import ProcessError
from servable.process import Child, describe_exit

LIMIT_S = 60.0


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, "ended with exit code 0"),
        (3, "ended with exit code 3"),
        (-11, "was killed by SIGSEGV"),
        (-9, "was killed by SIGKILL"),
        (-4711, "was killed by signal 4711"),
    ],
)
def test_describe_exit(code: int, expected: str) -> None:
    assert describe_exit(code) == expected


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("print('the last words'); raise SystemExit(3)", "ended with exit code 3"),
        ("print('the last words'); raise SystemExit(0)", "ended with exit code 0"),
        (
            "import os, signal; print('the last words', flush=True); os.kill(os.getpid(), signal.SIGSEGV)",
            "was killed by SIGSEGV",
        ),
        ("import sys; print('a log'); sys.stdout.flush(); sys.exit('the last words')", "ended with exit code 1"),
    ],
)
def test_death_before_readiness_says_how_and_quotes_the_log(code: str, how: str, tmp_path: Path) -> None:
    with Child(python(code), tmp_path / "log", "the engine") as child, pytest.raises(ProcessError) as caught:
        child.wait_until(lambda: False, LIMIT_S)
    assert str(caught.value) == f"the engine {how} before it was ready: the last words"


def test_silent_death_says_so(tmp_path: Path) -> None:
    with Child(python(""), tmp_path / "log", "the engine") as child, pytest.raises(ProcessError) as caught:
        child.wait_until(lambda: False, LIMIT_S)
    assert str(caught.value).endswith(": it wrote nothing")


def test_log_that_is_not_text_is_quoted_too(tmp_path: Path) -> None:
    code = r"import sys; sys.stdout.buffer.write(b'bad \xff byte\n')"
    with Child(python(code), tmp_path / "log", "it") as child, pytest.raises(ProcessError, match=r"bad \ufffd byte"):
        child.wait_until(lambda: False, LIMIT_S)


def test_never_ready(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Child(python("print('waiting', flush=True); input()"), log, "the engine") as child:
        stuck = Child(python("import signal; print('stuck', flush=True); signal.pause()"), tmp_path / "b", "the engine")
        with stuck:
            stuck.wait_until(lambda: "stuck" in (tmp_path / "b").read_text(), LIMIT_S)
            with pytest.raises(ProcessError, match=r"^the engine was not ready within 0.1 s: stuck$"):
                stuck.wait_until(lambda: False, 0.1)
        # Its input is closed, so that a child that asks something ends instead of hanging.
        with pytest.raises(ProcessError, match="EOFError"):
            child.wait_until(lambda: False, LIMIT_S)


def test_stop_ends_a_polite_child(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = Child(python("import signal; print('up', flush=True); signal.pause()"), log, "it")
    child.wait_until(lambda: "up" in log.read_text(), LIMIT_S)
    assert child.stop() == -signal.SIGTERM
    assert child.stop() == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_stop_kills_a_child_that_ignores_sigterm(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('deaf', flush=True)
while True:
    signal.pause()
"""
    child = Child(python(code), log, "it")
    child.wait_until(lambda: "deaf" in log.read_text(), LIMIT_S)
    assert child.stop(grace_s=0.2) == -signal.SIGKILL


def test_stop_returns_the_code_of_a_child_that_ended(tmp_path: Path) -> None:
    child = Child(python("raise SystemExit(5)"), tmp_path / "log", "it")
    with pytest.raises(ProcessError):
        child.wait_until(lambda: False, LIMIT_S)
    assert child.stop() == 5


def test_leaving_the_block_stops_the_child_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Child(python("import signal; signal.pause()"), tmp_path / "log", "it") as child:
        raise KeyError
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_the_log_is_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("earlier\n")
    with Child(python("print('later')"), log, "it") as child, pytest.raises(ProcessError):
        child.wait_until(lambda: False, LIMIT_S)
    assert log.read_text().split() == ["earlier", "later"]


def test_a_command_that_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match=r"the engine cannot be started.*no-such-program"):
        Child([str(tmp_path / "no-such-program")], tmp_path / "log", "the engine")
