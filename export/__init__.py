"""From a Keras model to a published version folder: SavedModel, TFLite and ONNX, with evidence."""

from .keras_model import KerasModel
from .options import ExportOptions
from .pipeline import export_model
from .preparation import Unopened
from .source import Data, Source

__all__ = ["Data", "ExportOptions", "KerasModel", "Source", "Unopened", "export_model"]
