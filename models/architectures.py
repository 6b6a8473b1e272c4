"""Builders of the course's architectures, each returning an uncompiled ``keras.Model``."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers


def celsius() -> Any:
    """Input ``celsius`` (batch, 1) → (batch, 1): a single Dense unit, 2 parameters."""
    return keras.Sequential([layers.Input((1,), name="celsius"), layers.Dense(1)], name="celsius")


def mlp() -> Any:
    """Input ``image`` (batch, 28, 28, 1) → 10 probabilities; 269,322 parameters."""
    return keras.Sequential(
        [
            layers.Input((28, 28, 1), name="image"),
            layers.Flatten(),
            layers.Dense(256, activation="relu"),
            layers.Dropout(0.4),
            layers.Dense(256, activation="relu"),
            layers.Dropout(0.4),
            layers.Dense(10, activation="softmax"),
        ],
        name="mlp",
    )


def cnn() -> Any:
    """Input ``image`` (batch, 28, 28, 1) → 10 probabilities; 53,578 parameters."""
    return keras.Sequential(
        [
            layers.Input((28, 28, 1), name="image"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(10, activation="softmax"),
        ],
        name="cnn",
    )
