"""Engines that run model files, behind one interface: SavedModel, TFLite (LiteRT) and ONNX."""

from .base import Device, Runtime, RuntimeOptions, load

__all__ = ["Device", "Runtime", "RuntimeOptions", "load"]
