"""Take a trained Keras model to every place where it has to run, and prove that it is still the same.

The names below are loaded when they are first used: importing servable imports neither TensorFlow
nor grpc nor NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clients import Client, Metadata, connect
    from .errors import ServableError
    from .export import Source, export_model
    from .signature import Signature, TensorSpec
    from .store import Store

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Metadata",
    "ServableError",
    "Signature",
    "Source",
    "Store",
    "TensorSpec",
    "__version__",
    "connect",
    "export_model",
]

_HOME = {
    "Client": "clients",
    "Metadata": "clients",
    "ServableError": "errors",
    "Signature": "signature",
    "Source": "export",
    "Store": "store",
    "TensorSpec": "signature",
    "connect": "clients",
    "export_model": "export",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'servable' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
