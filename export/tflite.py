"""TFLite files, converted from the SavedModel.

Never from a concrete function of the Keras model: that conversion loses a Keras 3 model's weights
without a word (the file reads uninitialised variables and answers NaN), and what it makes where it
works runs five times slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import extras
from ..signature import DEFAULT_SIGNATURE
from .registry import FLOAT32, INT8, Exporter, register
from .source import Source


def _converter(folder: Path) -> Any:
    tf = extras.load("tensorflow", "exporting a model")
    return tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=[DEFAULT_SIGNATURE])


def convert_float32(source: Source, folder: Path) -> None:
    """Write ``model.tflite``: float32 weights, dynamic batch."""
    (folder / "model.tflite").write_bytes(_converter(folder).convert())


def convert_int8(source: Source, folder: Path) -> None:
    """Write ``model_int8.tflite``: int8 weights and activations, float32 inputs and outputs.

    Activation ranges come from ``source.calibration``, one row at a time.
    """
    tf = extras.load("tensorflow", "exporting a model")

    def representative() -> Iterator[dict[str, Any]]:
        for row in source.calibration:
            yield {source.input.name: row[np.newaxis]}

    converter = _converter(folder)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    (folder / "model_int8.tflite").write_bytes(converter.convert())


_REQUIRES = ("tensorflow", "ai_edge_litert.interpreter")

register(Exporter("tflite", "float32", "model.tflite", _REQUIRES, FLOAT32, convert_float32, derived=True))
register(Exporter("tflite", "int8", "model_int8.tflite", _REQUIRES, INT8, convert_int8))
