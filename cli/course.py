"""Where the catalogue meets export and bench: a model's card, weights and data, handed on as one."""

from __future__ import annotations

from pathlib import Path

from .. import extras
from ..clients.bench import LabelledData
from ..export import Source
from ..models import CATALOGUE, ModelCard, samples


def source(card: ModelCard, weights: Path | None = None, name: str | None = None) -> Source:
    """The trained model of a card, ready to be exported as ``name``. Builds it, so this imports TensorFlow.

    Raises `MissingExtraError` without it and `ArtifactError` for weights that do not fit.
    """
    extras.load("tensorflow", "building a model")
    from ..export import Data, KerasModel
    from ..models import training

    data = samples.test_samples(card)
    (key,) = card.signature.inputs
    words = "1,000 Fashion-MNIST test images" if card.dataset == "fashion-mnist" else "every 0.25 °C of -40…100 °C"
    return Source(
        name=name or card.name,
        model=KerasModel(training.load(card, weights), card.signature),
        data=Data({key: data.inputs}, {key: samples.calibration_samples(card)}, words, data.targets),
        task=card.task,
        metric=card.metric,
        labels=card.labels,
        preprocessing=card.preprocessing,
    )


def labelled_data(model: str) -> LabelledData | None:
    """Test data for a model of the catalogue, None for others."""
    card = CATALOGUE.get(model)
    if card is None:
        return None
    data = samples.test_samples(card)
    return LabelledData(data.inputs, data.targets, card.metric)
