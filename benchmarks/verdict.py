"""Targets: what was measured against what is wanted, and what that makes of the exit code."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of one over the median of the other.

    >>> ratio([1.0, 3.0, 50.0], [2.0, 2.0])
    1.5
    """
    return statistics.median(ours) / statistics.median(theirs)


class Verdict:
    """Prints each target with PASS or MISS as it is checked, and remembers them for the end."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []

    def at_least(self, what: str, value: float, limit: float, unit: str = "") -> None:
        """Check a figure that must not be below ``limit``."""
        self._add(
            "PASS" if value >= limit else "MISS", f"{what}: {value:.4g}{unit}, at least {limit:g}{unit} is wanted"
        )

    def at_most(self, what: str, value: float, limit: float, unit: str = "") -> None:
        """Check a figure that must not be above ``limit``."""
        self._add("PASS" if value <= limit else "MISS", f"{what}: {value:.4g}{unit}, at most {limit:g}{unit} is wanted")

    def left_out(self, what: str, why: str) -> None:
        """Remember a target that this run does not measure."""
        self._add("----", f"{what}: not measured, {why}")

    def _add(self, word: str, text: str) -> None:
        self._lines.append((word, text))
        print(f"  {word}  {text}", flush=True)

    def summary(self) -> str:
        """All targets again, then how many were met, missed and not measured."""
        count = {word: sum(1 for line in self._lines if line[0] == word) for word in ("PASS", "MISS", "----")}
        return "\n".join(
            [f"  {word}  {text}" for word, text in self._lines]
            + [f"{count['PASS']} targets met, {count['MISS']} missed, {count['----']} not measured"]
        )

    @property
    def exit_code(self) -> int:
        """1 if a target was missed."""
        return int(any(word == "MISS" for word, _ in self._lines))
