"""Clients of a served model and of a model file, behind one interface: gRPC, REST and on-device."""

from .base import Client, Metadata
from .dispatch import connect, is_ready
from .status import EngineUse, VersionStatus

__all__ = ["Client", "EngineUse", "Metadata", "VersionStatus", "connect", "is_ready"]
