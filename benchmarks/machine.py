"""What every benchmark prints first: the machine, the versions, and the command."""

from __future__ import annotations

import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def describe(packages: Sequence[str]) -> str:
    """Processor, cores, system, Python, the versions of ``packages``, and the command line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    try:
        versions = ", ".join(f"{name} {version(name)}" for name in packages)
    except PackageNotFoundError as error:
        raise SystemExit(f"error: this benchmark needs {error.name}; run once: make unit") from None
    command = shlex.join(["python", "-m", f"servable.benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    return (
        f"machine:  {cpu}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}\n"
        f"versions: Python {platform.python_version()}, {versions}\n"
        f"command:  {command}"
    )


def spread(values: Sequence[float], unit: str, digits: int = 3) -> str:
    """Median with minimum and maximum."""
    median, least, most = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"median {median} {unit} (min {least}, max {most}, n={len(values)})"
