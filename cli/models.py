"""``servable models``: the catalogue as a table."""

from __future__ import annotations

import click
from rich.table import Table

from ..models import CATALOGUE
from .console import stdout


@click.command()
def command() -> None:
    """List the models of the catalogue, with what their shipped weights reach on the test data."""
    table = Table("model", "summary", "task", "parameters", "shipped weights")
    for column in table.columns[3:]:
        column.justify = "right"
    for card in CATALOGUE.values():
        record = card.record
        value = record["test"]["value"]
        shown = f"accuracy {value:.4f}" if card.metric == "accuracy" else f"MAE {value:.1g} °F"
        table.add_row(card.name, card.summary, card.task, f"{record['parameters']:,}", shown)
    stdout().print(table)
