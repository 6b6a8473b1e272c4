"""What is in a model file or version folder, read without any engine, and whether its graph touches files or runs code.

Nothing is loaded or run: SavedModels and ONNX files are read as protocol buffers, TFLite files as
flatbuffers, with every length checked, so that files from anywhere can be looked at.
"""

from .folders import inspect
from .report import Entry, Expected, ExternalFile, Finding, Inspection, Model

__all__ = ["Entry", "Expected", "ExternalFile", "Finding", "Inspection", "Model", "inspect"]
