"""From a Keras model to a published version folder: SavedModel, TFLite and ONNX, with evidence."""

from .keras_model import KerasModel
from .pipeline import ExportOptions, export_model
from .source import Data, Source

__all__ = ["Data", "ExportOptions", "KerasModel", "Source", "export_model"]
