"""The states of a version, as clients are told them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ..errors import Code


class State(IntEnum):
    """States of a version, numbered as ``ModelVersionStatus.State``."""

    UNKNOWN = 0
    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True)
class VersionStatus:
    """State of one version; ``code`` and ``message`` say why loading failed."""

    version: int
    state: State
    code: Code = Code.OK
    message: str = ""
