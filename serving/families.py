"""Families of metrics: counters, gauges and histograms by label values, added up and written for Prometheus.

The text is the original's (``util/prometheus_exporter.cc``).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

_NAME_CHAR = re.compile(r"[^a-zA-Z0-9_]")
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class Histogram:
    """Counts of values by bucket; a limit is the exclusive upper bound of its bucket."""

    __slots__ = ("counts", "limits", "total")

    def __init__(self, limits: Sequence[float]) -> None:
        self.limits = limits
        self.counts = [0] * (len(limits) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_right(self.limits, value)] += 1
        self.total += value

    def add_all(self, other: Histogram) -> None:
        """Count what another one has counted."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def lines(self, name: str, labels: str) -> list[str]:
        """Its part of the page."""
        start = f"{labels}," if labels else ""
        lines, seen = [], 0
        for limit, count in zip((*map(_number, self.limits), "+Inf"), self.counts, strict=True):
            seen += count
            lines.append(f'{name}_bucket{{{start}le="{limit}"}} {seen}')
        return [*lines, f"{name}_sum{{{labels}}} {_number(self.total)}", f"{name}_count{{{labels}}} {seen}"]


class Family:
    """One metric: a counter, gauge or histogram for each combination of label values."""

    def __init__(self, raw_name: str, kind: str, labels: Sequence[str], limits: Sequence[float] = ()) -> None:
        self.name = clean_name(raw_name)
        self.kind = kind
        self.labels = labels
        self._limits = limits
        self._numbers: dict[tuple[str, ...], int] = {}
        self._histograms: dict[tuple[str, ...], Histogram] = {}

    def add(self, labels: tuple[str, ...], value: float = 1) -> None:
        """Count ``value`` up (counters) or in (histograms), or set it (gauges)."""
        if self.kind == "histogram":
            self.histogram(labels).add(value)
        elif self.kind == "gauge":
            self._numbers[labels] = int(value)
        else:
            self._numbers[labels] = self._numbers.get(labels, 0) + int(value)

    def histogram(self, labels: tuple[str, ...]) -> Histogram:
        """The histogram of these label values, for those who keep it."""
        found = self._histograms.get(labels)
        if found is None:
            found = self._histograms[labels] = Histogram(self._limits)
        return found

    def drop(self, is_old: Callable[[tuple[str, ...]], bool]) -> None:
        """Forget the cells with such label values."""
        for cells in (self._numbers, self._histograms):
            for labels in [labels for labels in cells if is_old(labels)]:
                del cells[labels]

    def add_all(self, other: Family) -> None:
        """Add what the same family of another process has counted; of a gauge the higher value stands."""
        for labels, value in other._numbers.items():
            mine = self._numbers.get(labels, 0)
            self._numbers[labels] = max(mine, value) if self.kind == "gauge" else mine + value
        for labels, histogram in other._histograms.items():
            self.histogram(labels).add_all(histogram)

    def copy(self) -> Family:
        """The same, to be kept or sent while this one goes on counting."""
        new = Family(self.name, self.kind, self.labels, self._limits)
        new.add_all(self)
        return new

    def first_value(self) -> int:
        """The first cell of a counter or gauge; 0 if there is none."""
        return next(iter(self._numbers.values()), 0)

    def lines(self) -> list[str]:
        """Its part of the page."""
        lines = [f"# TYPE {self.name} {self.kind}"]
        lines += [f"{self.name}{{{self._text(key)}}} {value}" for key, value in self._numbers.items()]
        for key, histogram in self._histograms.items():
            lines += histogram.lines(self.name, self._text(key))
        return lines

    def _text(self, values: tuple[str, ...]) -> str:
        return ",".join(
            f'{label}="{value.translate(_ESCAPES)}"' for label, value in zip(self.labels, values, strict=True)
        )


# The families of one process, as they were at one moment.
Snapshot = Sequence[Family]


def total(snapshots: Iterable[Snapshot]) -> list[Family]:
    """The families of several processes, added up."""
    found: dict[str, Family] = {}
    for snapshot in snapshots:
        for family in snapshot:
            if family.name in found:
                found[family.name].add_all(family)
            else:
                found[family.name] = family.copy()
    return list(found.values())


def page(families: Iterable[Family]) -> bytes:
    """Metrics as text."""
    lines = [line for family in sorted(families, key=lambda f: f.name) for line in family.lines()]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def clean_name(raw_name: str) -> str:
    """A metric's name as the page has it."""
    return _NAME_CHAR.sub(":", raw_name)


def _number(value: float) -> str:
    return f"{value:.6g}"
