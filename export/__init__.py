"""From a Keras model to a published version folder: SavedModel, TFLite and ONNX, with evidence."""

from .pipeline import export_model
from .source import Source

__all__ = ["Source", "export_model"]
