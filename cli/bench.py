"""``servable bench``: latency, size and accuracy of each artifact of a version."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from ..clients.bench import BenchResult, bench_version
from ..errors import MissingExtraError, TargetError
from ..manifest import FILE_NAME, Artifact, Manifest
from ..store import Store
from .console import progress, quiet, stderr, stdout
from .tables import bench_table


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--duration",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Seconds for each artifact.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(target: Path, duration: float, as_json: bool) -> None:
    """Time each artifact of TARGET on this machine: one sample a run, one thread.

    TARGET is STORE/MODEL for the newest version, or a version folder. Models of the catalogue also
    show their metric on the shipped test data.
    """
    folder = target if (target / FILE_NAME).is_file() else newest(target)
    manifest = Manifest.read(folder)
    results, missing = run_bench(folder, manifest, duration)
    if missing and not results:
        raise MissingExtraError("timing a model", "onnxruntime", "edge")
    for note in missing:
        stderr().print(f"note: {note}", soft_wrap=True)
    if as_json:
        rows = [asdict(result) for result in results]
        print(json.dumps({"model": manifest.model, "version": manifest.version, "results": rows}, indent=2))
        return
    stdout().print(bench_table(f"{manifest.model} version {manifest.version}, one thread, batch 1", results))


def newest(target: Path) -> Path:
    """The newest version of STORE/MODEL; `TargetError` or `NotFoundError` if it is none."""
    target = target.resolve()
    store = Store(target.parent)
    if store.versions(target.name) or (not target.exists() and target.parent.is_dir() and store.models()):
        return store.path(target.name)
    models = Store(target).models() if target.is_dir() else []
    hint = f": {', '.join(str(target / model) for model in models)}" if models else ""
    raise TargetError(f"target {str(target)!r} is no model; give STORE/MODEL or a version folder{hint}")


def run_bench(folder: Path, manifest: Manifest, duration_s: float) -> tuple[list[BenchResult], list[str]]:
    """Bench a version with progress; the second list says which artifacts were left out and why."""
    from .course import labelled_data

    missing: list[str] = []

    def skipped(artifact: Artifact, error: MissingExtraError) -> None:
        missing.append(f"{artifact.label} left out: {error}")

    results = []
    with quiet() as console, progress(console, f"bench {manifest.model}") as step:
        total = len(manifest.artifacts)
        step("begin", 0, total)
        for result in bench_version(folder, manifest, labelled_data(manifest.model), duration_s, skipped):
            results.append(result)
            step(result.artifact, len(results), total)
    return results, missing
