"""``servable train``: train a model of the catalogue from scratch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..errors import DataError
from ..extras import load, require
from ..models import card as find_card
from ..models.data import load_dataset
from .console import progress, quiet, stdout


@click.command()
@click.argument("name")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of Fashion-MNIST's IDX files.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training data.")
@click.option("--batch-size", type=click.IntRange(1), help="Samples a step.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Of Adam, at the first step.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of initialisation, shuffling and dropout.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("trained"),
    show_default=True,
    help="Folder for NAME.weights.h5 and NAME.json.",
)
def command(
    name: str,
    data: Path | None,
    epochs: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    seed: int | None,
    output: Path,
) -> None:
    """Train the catalogue's model NAME and write its weights and a JSON record.

    Without options the hyper-parameters are those of the shipped weights. Fashion-MNIST is taken
    from --data, else from Debian's package dataset-fashion-mnist, else downloaded by Keras. The
    result is exported with: servable export NAME --weights trained/NAME.weights.h5
    """
    card = find_card(name)
    if output.exists() and not output.is_dir():
        raise DataError(f"--output {output} is a file; give a folder")
    require("tensorflow", "training a model")
    try:
        output.mkdir(parents=True, exist_ok=True)  # now, and not after minutes of training
    except OSError as error:
        raise DataError(f"--output {output} cannot be made: {error.strerror}") from error
    with quiet() as console, progress(console, f"train {name}") as step:
        step("load the data", 0, 1)
        dataset = load_dataset(card.dataset, data)
        step("load TensorFlow", 0, 1)
        load("tensorflow", "training a model")
        from ..models import training

        given: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
        }
        options = replace(
            training.DEFAULT_OPTIONS[name], **{key: value for key, value in given.items() if value is not None}
        )

        def report(done: int, total: int, logs: dict[str, float]) -> None:
            words = "  ".join(f"{key} {value:.4f}" for key, value in logs.items())
            if console.is_terminal or "val_loss" in logs:
                step(words, done, total)

        model, record = training.train(card, dataset, options, report)
        weights = training.save(card, model, record, output)
    test = record["test"]
    out = stdout()
    out.print(f"test {test['metric']} {test['value']:.4f} on {test['samples']:,} samples, {record['duration_s']} s")
    out.print(f"wrote {weights} and {weights.with_name(f'{name}.json')}", soft_wrap=True)
