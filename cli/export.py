"""``servable export``: a model to a version folder of the store."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InvalidArgumentError
from ..export import export_model
from ..export.registry import choose
from ..extras import load, require
from ..models import card as find_card
from ..store import Store
from .console import progress, quiet, stdout
from .tables import evidence_table


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "--store", type=click.Path(path_type=Path), default=Path("store"), show_default=True, help="The model store."
)
@click.option("--weights", type=click.Path(path_type=Path), help="Weights that 'servable train' wrote.")
@click.option("--formats", help=f"Comma-separated: {', '.join(e.key for e in choose(()))}.  [default: all]")
def command(names: tuple[str, ...], store: Path, weights: Path | None, formats: str | None) -> None:
    """Export models of the catalogue, each as the next version STORE/NAME/VERSION.

    Every artifact is run in its own runtime and compared with the Keras model; the version appears
    in one step, and only if all of them agree.
    """
    cards = [find_card(name) for name in names]
    if weights and len(cards) > 1:
        raise InvalidArgumentError("--weights goes with one model; export the others by themselves")
    target = Store(store)
    target.check()
    chosen = tuple(part.strip() for part in formats.split(",")) if formats is not None else ()
    for exporter in choose(chosen):
        for module in exporter.requires:
            require(module, f"exporting to {exporter.format}", "export")
    out = stdout()
    for card in cards:
        with quiet() as console, progress(console, f"export {card.name}") as step:
            step("load TensorFlow", 0, 1)
            load("tensorflow", "exporting a model")
            from .course import source

            manifest = export_model(source(card, weights), target, chosen, step)
        out.print(evidence_table(manifest))
        out.print(f"published {target.path(card.name, manifest.version)}", soft_wrap=True)
