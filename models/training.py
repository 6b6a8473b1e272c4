"""Training: seeds, Keras's own ``fit``, the weights file and the JSON record beside it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from .. import metrics
from ..errors import ArtifactError, FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError, is_disk_full
from .catalogue import ModelCard
from .data import Dataset

VALIDATION_SHARE = 1 / 12

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class TrainingOptions:
    """Hyper-parameters of one run.

    The learning rate falls from ``learning_rate`` to zero along a cosine over all steps
    (Loshchilov & Hutter, 2016); the optimizer is Adam.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int = 7


DEFAULT_OPTIONS = {
    "celsius": TrainingOptions(epochs=400, batch_size=8, learning_rate=0.5),
    "mlp": TrainingOptions(epochs=40, batch_size=128, learning_rate=1e-3),
    "cnn": TrainingOptions(epochs=25, batch_size=64, learning_rate=1e-3),
}


class _Reporter(keras.callbacks.Callback):  # type: ignore[misc]  # keras is untyped
    """Hands the number of finished batches and the running metrics to a progress function."""

    def __init__(self, progress: Progress, total: int) -> None:
        super().__init__()
        self.progress, self.total, self.done = progress, total, 0

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self.done += 1
        self.progress(self.done, self.total, dict(logs or {}))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.progress(self.done, self.total, dict(logs or {}))


def train(
    card: ModelCard, dataset: Dataset, options: TrainingOptions, progress: Progress = lambda *_: None
) -> tuple[Any, dict[str, Any]]:
    """Train a new model of ``card`` and return it with its record.

    A twelfth of the training split, drawn by the seed, is held out: the record shows its metrics
    for every epoch. The test split is used once, at the end.
    """
    if not math.isfinite(options.learning_rate):
        raise InvalidArgumentError(f"the learning rate is {options.learning_rate}; give a finite number")
    started = time.monotonic()
    keras.utils.set_random_seed(options.seed)
    model = card.build()
    count = len(dataset.train.inputs)
    order = np.random.default_rng(options.seed).permutation(count)
    held_out = int(count * VALIDATION_SHARE)
    train_rows, validation_rows = order[held_out:], order[:held_out]
    steps = -(-len(train_rows) // options.batch_size) * options.epochs
    classification = card.task == "classification"
    model.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(options.learning_rate, steps)),
        loss="sparse_categorical_crossentropy" if classification else "mse",
        metrics=["accuracy" if classification else "mae"],
    )
    history = model.fit(
        dataset.train.inputs[train_rows],
        dataset.train.targets[train_rows],
        validation_data=(dataset.train.inputs[validation_rows], dataset.train.targets[validation_rows]),
        epochs=options.epochs,
        batch_size=options.batch_size,
        callbacks=[_Reporter(progress, steps)],
        verbose=0,
    ).history
    outputs = model.predict(dataset.test.inputs, batch_size=256, verbose=0)
    if not np.isfinite(outputs).all():
        raise InvalidArgumentError(
            f"the training diverged: the model answers NaN; lower the learning rate, {options.learning_rate:g}"
        )
    record = {
        "model": card.name,
        "parameters": model.count_params(),
        "dataset": {"name": dataset.name, "sha256": dataset.sha256, "train": len(train_rows), "held_out": held_out},
        "options": asdict(options),
        "optimizer": "adam, cosine decay to zero",
        "test": {
            "metric": card.metric,
            "value": metrics.compute(card.metric, outputs, dataset.test.targets),
            "samples": len(dataset.test.inputs),
        },
        "history": {key: [round(float(v), 6) for v in values] for key, values in history.items()},
        "duration_s": round(time.monotonic() - started, 1),
        "versions": {"python": platform.python_version(), "keras": keras.__version__, "numpy": np.__version__},
    }
    return model, record


def save(card: ModelCard, model: Any, record: dict[str, Any], folder: Path) -> Path:
    """Write ``NAME.weights.h5`` and ``NAME.json`` to ``folder``; each file appears whole or not at all.

    The weights are saved without the optimizer's state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{card.name}.weights.h5"
    partial = folder / f".{os.getpid()}.{card.name}.weights.h5"
    try:
        plain = card.build()
        plain.set_weights(model.get_weights())
        plain.save_weights(partial)
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
        text = json.dumps({**record, "weights_sha256": digest}, indent=2, allow_nan=False) + "\n"
        partial_record = partial.with_suffix(".json")
        partial_record.write_text(text, encoding="utf-8")
        partial.replace(weights)
        partial_record.replace(folder / f"{card.name}.json")
    except OSError as error:
        for leftover in (partial, partial.with_suffix(".json")):
            leftover.unlink(missing_ok=True)
        kind = ResourceExhaustedError if is_disk_full(error) else FailedPreconditionError
        raise kind(f"the trained weights could not be written to {folder}: {error.strerror or error}") from error
    return weights


def load(card: ModelCard, weights: Path | None = None) -> Any:
    """The model of ``card`` with the given weights file, or with the shipped one.

    Raises `ArtifactError` if the file is missing, damaged or of another architecture.
    """
    path = weights or card.weights_path
    if not path.is_file():
        raise ArtifactError(f"no weights file {path}; train one with: servable train {card.name}")
    model = card.build()
    try:
        model.load_weights(path)
    except Exception as error:  # h5py and Keras raise many kinds for a damaged or foreign file
        reason = textwrap.shorten(str(error), 240, placeholder=" …") or type(error).__name__
        raise ArtifactError(f"{path} does not hold weights of {card.name!r}: {reason}") from error
    return model
