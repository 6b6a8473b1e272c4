"""Tables that several verbs print: artifacts with their evidence, and benchmark results."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ..clients.bench import BenchResult
from ..draw import metric_text, size_text
from ..manifest import Manifest

BENCH_HEADER = ("artifact", "size", "init", "p50", "p90", "p99")


def evidence_table(manifest: Manifest) -> Table:
    """One row an artifact: size, distance from the source, agreement, metric."""
    table = Table("artifact", "size", "max abs error", "top-1 agreement", "metric")
    for column in table.columns[1:]:
        column.justify = "right"
    for artifact in manifest.artifacts:
        found = artifact.base_evidence
        assert found is not None  # the export has measured it
        agreement = "–" if found.top1_agreement is None else f"{found.top1_agreement:.2%}"
        name = found.metric or ""
        table.add_row(
            artifact.label,
            size_text(artifact.bytes),
            f"{found.max_abs_error:.2g}",
            agreement,
            f"{name} {metric_text(found.metric, found.metric_value)}".strip(),
        )
    return table


def bench_header(results: Sequence[BenchResult]) -> list[str]:
    """Column titles; the last is the metric's name."""
    return [*BENCH_HEADER, next((result.metric for result in results if result.metric), "metric")]


def bench_row(result: BenchResult) -> list[str]:
    """One result as text cells."""
    times = (f"{value:.3f} ms" for value in (result.p50_ms, result.p90_ms, result.p99_ms))
    return [
        result.artifact,
        size_text(result.bytes),
        f"{result.init_ms:.1f} ms",
        *times,
        metric_text(result.metric, result.metric_value),
    ]


def bench_table(title: str, results: Sequence[BenchResult]) -> Table:
    """The results with the fastest artifact marked."""
    table = Table(*bench_header(results), title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    best = min(results, key=lambda result: result.p50_ms, default=None)
    for result in results:
        table.add_row(*bench_row(result), style="bold green" if result is best else "")
    return table
