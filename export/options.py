"""What a user asks of an export."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .. import extras
from ..process import Limits
from .registry import OPSET
from .tolerance import Overrides

_MEMORY_SHARE = 0.75
# What Linux lets a container have, of cgroups in version 2 and 1.
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class ExportOptions:
    """What to make and how.

    ``formats`` and ``quantizations`` choose the artifacts (`registry.choose`; empty: all). ``version``
    is the number to publish as, None for the next one. ``tolerances`` replaces limits
    (`tolerance.parse_overrides`). ``int8_io`` gives int8 TFLite files int8 inputs and outputs, ``c_array``
    puts each TFLite file beside itself as C source, and ``report`` asks for a report (`Store.reports`); that one
    cannot be drawn is told as progress.

    Each conversion of the SavedModel and each verification is a process of its own, ``at_once`` at a time. One
    that takes longer than ``time_limit_s`` or holds more memory than ``memory_limit_bytes`` (None: three
    quarters of what the machine or the container has) is stopped, and the version goes without its artifact.
    """

    formats: Sequence[str] = ()
    quantizations: Sequence[str] = ()
    version: int | None = None
    tolerances: Overrides = field(default_factory=dict)
    opset: int = OPSET
    int8_io: bool = False
    c_array: bool = False
    report: bool = False
    at_once: int = 2
    time_limit_s: float = 3600.0
    memory_limit_bytes: int | None = None


def limits(options: ExportOptions) -> Limits:
    """What one step may take."""
    psutil = extras.load("psutil", "exporting a model")
    memory = [psutil.virtual_memory().total]
    for path in _CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # there is none, or it is "max"
            memory.append(int(path.read_text()))
    return Limits(options.time_limit_s, options.memory_limit_bytes or int(min(memory) * _MEMORY_SHARE))
