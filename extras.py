"""Packages that only an extra installs: one table, one way to import them, one message if missing."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .errors import MissingExtraError

EXTRA_OF = {
    "ai_edge_litert.interpreter": "edge",
    "flatbuffers": "export",
    "google_crc32c": "serve",
    "grpc_health.v1.health": "serve",
    "grpc_health.v1.health_pb2": "serve",
    "grpc_health.v1.health_pb2_grpc": "serve",
    "grpc_reflection.v1alpha.reflection": "serve",
    "grpc_reflection.v1alpha.reflection_pb2": "serve",
    "h5py": "export",
    "httptools": "serve",
    "keras": "export",
    "matplotlib": "export",
    "onnx": "export",
    "onnxruntime": "serve",
    "psutil": "export",
    "tensorflow": "export",
    "tensorflow_hub": "export",
    "tf2onnx": "export",
    "tf_keras": "export",
}

# Packages that are not called as what they install.
_PACKAGES = {"grpc_health": "grpcio-health-checking", "grpc_reflection": "grpcio-reflection"}


def load(module: str, what: str) -> Any:
    """Import a package of the table; ``what`` names who needs it ("the server", "exporting a model").

    Raises `MissingExtraError` with the pip command if it is not installed.
    """
    if module in ("tensorflow", "keras", "tf2onnx"):
        # Without this, every TensorFlow process starts with a page of notes about CUDA and oneDNN.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if module == "onnxruntime":
        # Its official builds report usage to their maker, and keep an identifier under the home folder.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".", maxsplit=1)[0]
        if (error.name or "").split(".")[0] != package:
            raise
        raise MissingExtraError(what, _distribution(package), EXTRA_OF[module]) from error


def require(module: str, what: str, extra: str | None = None) -> None:
    """Raise the `MissingExtraError` of `load` without importing the package, which may take seconds.

    ``extra`` is the one to name where ``what`` needs more of it than this package.
    """
    package = module.split(".", maxsplit=1)[0]
    if find_spec(package) is None:
        raise MissingExtraError(what, _distribution(package), extra or EXTRA_OF[module])


def _distribution(package: str) -> str:
    return _PACKAGES.get(package, package.replace("_", "-"))
