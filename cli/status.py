"""``servable status``: the versions of a served model, their states, and the engines that answer."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.table import Table

from .console import quiet, stdout


@click.command()
@click.argument("target")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds to wait for the answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(target: str, timeout: float, as_json: bool) -> None:
    """Say which versions of the model at TARGET there are, their states, and what runs them.

    TARGET is grpc://host:port/model, http://host:port/model, STORE/MODEL or a model file. Which engine
    answers a signature, and why, is told by servable's own server only.
    """
    from ..clients import connect

    with quiet(), connect(target, timeout=timeout) as client:
        statuses = client.status()
    if as_json:
        click.echo(json.dumps([asdict(status) for status in statuses], indent=2))
        return
    table = Table("version", "state", "engine", "signatures", "why")
    for status in statuses:
        version = "–" if status.version is None else str(status.version)
        if not status.engines:
            why = f"{status.error_code}: {status.error_message}" if status.error_code != "OK" else ""
            table.add_row(version, status.state, "–", "–", why)
        for use in status.engines:
            table.add_row(version, status.state, use.runtime, ", ".join(use.signatures) or "–", use.reason)
            version = ""
    stdout().print(table)
