"""ONNX files by tf2onnx, with the SavedModel's names and a dynamic batch."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from .. import extras
from .registry import FLOAT32, Exporter, register
from .source import Source

OPSET = 17


def convert(source: Source, folder: Path) -> None:
    """Write ``model.onnx``, checked by ``onnx.checker`` with shape inference."""
    tf = extras.load("tensorflow", "exporting a model")
    tf2onnx = extras.load("tf2onnx", "exporting to ONNX")
    onnx = extras.load("onnx", "exporting to ONNX")
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    spec = tf.TensorSpec(source.input.shape, source.input.dtype, name=source.input.name)

    @tf.function(input_signature=[spec])  # type: ignore[untyped-decorator]  # tensorflow is untyped
    def serving_default(tensor: object) -> dict[str, object]:
        return {source.output.name: source.model(tensor, training=False)}

    model, _ = tf2onnx.convert.from_function(serving_default, input_signature=[spec], opset=OPSET)
    onnx.helper.set_model_props(
        model, {"servable.model": source.name, "servable.labels": json.dumps(source.labels, ensure_ascii=False)}
    )
    onnx.checker.check_model(model, full_check=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


register(
    Exporter(
        format="onnx",
        quantization="float32",
        path="model.onnx",
        requires=("tensorflow", "tf2onnx", "onnx", "onnxruntime"),
        tolerance=FLOAT32,
        convert=convert,
        derived=True,
        opset=OPSET,
    )
)
