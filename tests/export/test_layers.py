"""Layers that a converter stumbles over when it is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers

from servable.export import Data, ExportOptions, KerasModel, Source, export_model
from servable.export.data import random_data
from servable.manifest import Absent
from servable.store import Store


def normalized() -> Any:
    """Its mean and variance are constants that are captured, not variables."""
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(3, 2, (100, 4)).astype(np.float32))
    return keras.Sequential([layers.Input((4,), name="row"), layer, layers.Dense(3)])


def gelu() -> Any:
    """The exact GELU is made of Erfc, for which tf2onnx has nothing."""
    return keras.Sequential([layers.Input((4,), name="row"), layers.Dense(6, activation="gelu"), layers.Dense(3)])


def attention() -> Any:
    rows = layers.Input((6, 8), name="row")
    mixed = layers.LayerNormalization()(layers.MultiHeadAttention(2, 4)(rows, rows) + rows)
    return keras.Model(rows, layers.Dense(3)(layers.GlobalAveragePooling1D()(mixed)))


def upsampling() -> Any:
    rows = layers.Input((8, 8, 3), name="row")
    wide = layers.UpSampling2D()(layers.Conv2DTranspose(4, 3, strides=2, padding="same")(rows))
    return keras.Model(rows, layers.GlobalMaxPooling2D()(layers.PReLU()(layers.DepthwiseConv2D(3)(wide))))


BUILDERS = [normalized, gelu, attention, upsampling]


def exported(folder: Path, build: Callable[[], Any], *formats: str) -> tuple[Store, Any, tuple[Absent, ...]]:
    keras.utils.set_random_seed(0)
    model = KerasModel.of(build())
    source = Source(name="layers", model=model, data=random_data(model))
    store = Store(folder)
    manifest = export_model(source, store, ExportOptions(formats))
    return store, model, manifest.absent


@pytest.mark.parametrize("build", BUILDERS)
def test_onnx_has_the_model_s_own_inputs_and_answers(tmp_path: Path, build: Callable[[], Any]) -> None:
    store, model, absent = exported(tmp_path, build, "onnx")
    assert absent == ()
    shape = model.signature.inputs["row"].shape[1:]
    rows = np.random.default_rng(1).standard_normal((3, *shape)).astype(np.float32)
    session = onnxruntime.InferenceSession(store.path("layers") / "model.onnx")
    assert [item.name for item in session.get_inputs()] == ["row"]
    (answer,) = session.run(None, {"row": rows})
    np.testing.assert_allclose(answer, model.model.predict(rows, verbose=0), atol=1e-5)


@pytest.mark.parametrize(("build", "operation"), [(attention, "NEG"), (upsampling, "PRELU")])
def test_tflite_says_which_operation_a_quantization_lacks(
    tmp_path: Path, build: Callable[[], Any], operation: str
) -> None:
    _, _, absent = exported(tmp_path, build, "tflite")
    reason = f"Quantization to 16x8-bit not yet supported for op: '{operation}'."
    assert absent == (Absent("tflite", "int16x8", reason, failed=False),)


def test_a_bias_that_two_operations_share_is_right_in_int16x8(tmp_path: Path) -> None:
    """The quantizer would give it the scale of one of them; the inputs here differ a hundredfold."""
    keras.utils.set_random_seed(0)
    shared = layers.Dense(4, bias_initializer="ones")
    small, large = layers.Input((3,), name="small"), layers.Input((3,), name="large")
    outputs = [layers.Identity(name="a")(shared(small)), layers.Identity(name="b")(shared(large))]
    model = KerasModel.of(keras.Model([small, large], outputs))
    rng = np.random.default_rng(0)
    rows = {
        "small": rng.standard_normal((600, 3)).astype(np.float32),
        "large": 100 * rng.standard_normal((600, 3)).astype(np.float32),
    }
    source = Source(name="shared", model=model, data=Data(rows, rows, "600 rows"))
    manifest = export_model(source, Store(tmp_path), ExportOptions(("tflite",), ("int16x8",)))
    artifact = manifest.artifact("tflite", "int16x8")
    assert artifact is not None
    for error in artifact.evidence["serving_default"].outputs.values():
        assert error.max_abs_error <= 0.01 * (error.source_max - error.source_min)
