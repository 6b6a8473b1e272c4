"""What the verbs share on a terminal: consoles, progress, and silence around noisy libraries."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .. import streams

PIPE_WIDTH = 140

Step = Callable[[str, int, int], None]


def stdout() -> Console:
    """For results; plain text when it is not a terminal."""
    return _console(sys.stdout, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def stderr() -> Console:
    """For notes and progress."""
    return _console(sys.stderr)


def _console(file: TextIO, width: int | None = None) -> Console:
    """Prints text as it is: a path with brackets or colons in it is neither markup nor an emoji."""
    return Console(file=file, highlight=False, markup=False, emoji=False, width=width)


@contextmanager
def quiet() -> Iterator[Console]:
    """Send what libraries write to the standard streams to a log, also what C++ code writes.

    Yields a console on the real stderr. If something unexpected is raised, the log's end is printed.
    """
    with streams.silenced() as real:
        yield _console(real)


@contextmanager
def progress(console: Console, title: str) -> Iterator[Step]:
    """A progress bar on a terminal, one plain line a step in a pipe.

    The yielded function takes the step's name, the steps done and their total.
    """
    if not console.is_terminal:
        last = ""

        def plain(text: str, done: int, total: int) -> None:
            nonlocal last
            if text != last:
                with suppress(BrokenPipeError):  # nobody reads the progress; the work goes on
                    print(f"{title}: {text}", file=console.file, flush=True)  # rich would end the process
                last = text

        yield plain
        return
    columns = (
        TextColumn("[bold]{task.fields[title]}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    # Redirected, what quiet() holds back would be printed above the bar.
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task("", total=None, title=title)
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total)
