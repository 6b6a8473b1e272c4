"""``servable list``: what a store holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.table import Column, Table

from ..draw import size_text
from ..errors import StoreError
from ..manifest import Manifest
from ..store import Store
from .console import stdout


@click.command()
@click.argument("store", type=click.Path(path_type=Path), default=Path("store"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(store: Path, as_json: bool) -> None:
    """List the models and versions of STORE (default: ./store), newest version first."""
    place = Store(store)
    rows = [_describe(place, model, version) for model in place.models() for version in place.versions(model)[::-1]]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table(
        "model", "version", "task", "created", Column("artifacts", overflow="fold"), Column("size", no_wrap=True)
    )
    for row in rows:
        total = size_text(sum(artifact["bytes"] for artifact in row["artifacts"])) if row["artifacts"] else "–"
        told = row["note"] or _summary([artifact["artifact"] for artifact in row["artifacts"]])
        table.add_row(row["model"], str(row["version"]), row["task"] or "–", row["created"] or "–", told, total)
    stdout().print(table)


def _summary(labels: Sequence[str]) -> str:
    """Formats, with the number of files where there are several: ``saved_model, 5 tflite, 3 onnx``."""
    count = Counter(label.split()[0] for label in labels)
    return ", ".join(name if number == 1 else f"{number} {name}" for name, number in count.items())


def _describe(store: Store, model: str, version: int) -> dict[str, Any]:
    """One version; ``note`` says why a folder without a sound manifest shows no more."""
    row: dict[str, Any] = {"model": model, "version": version, "task": None, "created": None, "artifacts": []}
    try:
        manifest = Manifest.read(store.path(model, version))
    except StoreError as error:
        return {**row, "note": str(error)}
    artifacts = [{"artifact": a.label, "path": a.path, "bytes": a.bytes} for a in manifest.artifacts]
    return {**row, "task": manifest.task, "created": manifest.created, "artifacts": artifacts, "note": None}
