"""The catalogue: one `ModelCard` for each model of the course."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from ..errors import NotFoundError, nearest
from ..manifest import Preprocessing
from ..signature import Signature, TensorSpec

Task = Literal["classification", "regression"]

FASHION_MNIST_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class ModelCard:
    """What the other rooms need to know of a model, without building it.

    ``builder`` is ``module:function`` inside this package; `build` calls it. ``metric`` is what
    ``servable.metrics`` computes for the task. ``reference`` says what accuracy others report and
    where.
    """

    name: str
    summary: str
    task: Task
    builder: str
    signature: Signature
    dataset: str
    metric: str
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    reference: str = ""

    def build(self) -> Any:
        """A new ``keras.Model`` of this architecture with freshly initialised weights."""
        module, function = self.builder.split(":")
        return getattr(import_module(f".{module}", __package__), function)()

    @property
    def weights_path(self) -> Path:
        """The trained weights that ship with the package."""
        return WEIGHTS / f"{self.name}.weights.h5"

    @property
    def record(self) -> Mapping[str, Any]:
        """The record of the training run that made the shipped weights."""
        record: dict[str, Any] = json.loads((WEIGHTS / f"{self.name}.json").read_text(encoding="utf-8"))
        return record


def _signature(inputs: TensorSpec, outputs: TensorSpec) -> Signature:
    return Signature(inputs={inputs.name: inputs}, outputs={outputs.name: outputs})


_IMAGE = TensorSpec("image", "float32", (None, 28, 28, 1))
_PROBABILITIES = TensorSpec("probabilities", "float32", (None, 10))
_FASHION_MNIST: dict[str, Any] = {
    "task": "classification",
    "signature": _signature(_IMAGE, _PROBABILITIES),
    "dataset": "fashion-mnist",
    "metric": "accuracy",
    "labels": FASHION_MNIST_LABELS,
    "preprocessing": Preprocessing(height=28, width=28, channels=1),
}

CATALOGUE: dict[str, ModelCard] = {
    entry.name: entry
    for entry in (
        ModelCard(
            name="celsius",
            summary="Celsius to Fahrenheit, one Dense unit",
            task="regression",
            builder="architectures:celsius",
            signature=_signature(
                TensorSpec("celsius", "float32", (None, 1)), TensorSpec("fahrenheit", "float32", (None, 1))
            ),
            dataset="celsius",
            metric="mae",
            reference="exact: f = 1.8 c + 32",
        ),
        ModelCard(
            name="mlp",
            summary="two Dense layers of 256 with dropout",
            builder="architectures:mlp",
            reference="0.8833 for an MLP of 256-128-100, data set authors' list, README of Fashion-MNIST",
            **_FASHION_MNIST,
        ),
        ModelCard(
            name="cnn",
            summary="two convolutions of 64 with max pooling",
            builder="architectures:cnn",
            reference="0.916 for two convolutions with pooling, benchmark list, README of Fashion-MNIST",
            **_FASHION_MNIST,
        ),
    )
}


def card(name: str) -> ModelCard:
    """The card of a model; `NotFoundError` suggests the nearest name for an unknown one."""
    try:
        return CATALOGUE[name]
    except KeyError:
        raise NotFoundError(f"no model {name!r} in the catalogue; {nearest(name, CATALOGUE)}") from None
