"""Feed-forward models run wholly in XNNPACK, with a batch of any size: LiteRT itself says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from ai_edge_litert.compiled_model import CompiledModel
from keras import layers

from servable.export import ExportOptions, KerasModel, Source, export_model
from servable.export.data import random_data
from servable.store import Store

FLOATS = ("float32", "float16", "dynamic")


def is_delegated(path: Path) -> bool:
    return bool(CompiledModel.from_file(str(path)).is_fully_accelerated())


@pytest.mark.parametrize("quantization", ["", "_float16", "_dynamic"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_the_catalogue_s_models(store: Store, name: str, quantization: str) -> None:
    assert is_delegated(store.path(name) / f"model{quantization}.tflite")


def residual() -> Any:
    image = layers.Input((16, 16, 3), name="image")
    left = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", activation="relu")(image))
    right = layers.SeparableConv2D(8, 3, padding="same", activation="relu")(image)
    pooled = layers.GlobalAveragePooling2D()(layers.add([left, right]))
    return keras.Model(image, layers.Dense(4, activation="softmax")(pooled))


def nested() -> Any:
    """A Flatten inside a model inside a model."""
    inner = keras.Sequential([layers.Input((8, 8, 2)), layers.Conv2D(4, 3), layers.Flatten()])
    return keras.Sequential([layers.Input((8, 8, 2), name="image"), inner, layers.Dense(3, activation="softmax")])


@pytest.mark.parametrize("build", [residual, nested])
def test_other_models(tmp_path: Path, build: Callable[[], Any]) -> None:
    keras.utils.set_random_seed(0)
    model = KerasModel.of(build())
    given = Source(name="other", model=model, data=random_data(model), task="classification")
    store = Store(tmp_path)
    manifest = export_model(given, store, ExportOptions(("tflite",), FLOATS))
    for artifact in manifest.artifacts[1:]:
        assert artifact.batch == "dynamic"
        assert is_delegated(store.path("other") / artifact.path)
    flattens = [layer for layer in model.model._flatten_layers() if isinstance(layer, layers.Flatten)]
    assert all("call" not in vars(layer) for layer in flattens)  # the model is as it was
    rows = np.ones((2, *model.signature.inputs["image"].shape[1:]), np.float32)
    assert model.model.predict(rows, verbose=0).shape == (2, model.model.output_shape[-1])
