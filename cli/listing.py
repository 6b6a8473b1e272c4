"""``servable list``: what a store holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ..errors import StoreError
from ..manifest import Manifest
from ..store import Store
from .console import stdout
from .tables import size


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
    table = Table("model", "version", "task", "created", "artifacts")
    for row in rows:
        artifacts = ", ".join(f"{a['artifact']} {size(a['bytes'])}" for a in row["artifacts"])
        table.add_row(
            row["model"], str(row["version"]), row["task"] or "–", row["created"] or "–", row["note"] or artifacts
        )
    stdout().print(table)


def _describe(store: Store, model: str, version: int) -> dict[str, Any]:
    """One version; ``note`` says why a folder without a sound manifest shows no more."""
    row: dict[str, Any] = {"model": model, "version": version, "task": None, "created": None, "artifacts": []}
    try:
        manifest = Manifest.read(store.path(model, version))
    except StoreError as error:
        return {**row, "note": str(error)}
    artifacts = [{"artifact": a.label, "path": a.path, "bytes": a.bytes} for a in manifest.artifacts]
    return {**row, "task": manifest.task, "created": manifest.created, "artifacts": artifacts, "note": None}
