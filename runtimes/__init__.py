"""Engines that run model files, behind one interface: SavedModel, TFLite (LiteRT) and ONNX."""

from .base import Runtime, load

__all__ = ["Runtime", "load"]
