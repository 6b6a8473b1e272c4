"""The states of a model's versions, as a server tells them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..wire import messages

# What servable's own server adds to a status: a REST header, and gRPC trailing metadata in lower case.
ENGINES_HEADER = "Servable-Engines"


@dataclass(frozen=True)
class EngineUse:
    """An engine that answers signatures of a version, and why it does; no names means all the others."""

    runtime: str
    reason: str
    signatures: tuple[str, ...]


@dataclass(frozen=True)
class VersionStatus:
    """State of one version; ``engines`` is empty where the server does not tell.

    ``state`` is a name of ``ModelVersionStatus.State``, such as ``AVAILABLE``; ``error_code`` is a
    name of ``tensorflow.error.Code`` and ``error_message`` says why loading failed. ``version`` is
    None for a bare file.
    """

    version: int | None
    state: str
    error_code: str = "OK"
    error_message: str = ""
    engines: tuple[EngineUse, ...] = ()


def from_message(response: Any, engines: str | None) -> list[VersionStatus]:
    """A GetModelStatusResponse with the engines' header, highest version first."""
    known = _engines(engines)
    kind = messages.GetModelStatusResponse.DESCRIPTOR.fields_by_name["model_version_status"].message_type
    states = kind.fields_by_name["state"].enum_type.values_by_number
    codes = kind.fields_by_name["status"].message_type.fields_by_name["error_code"].enum_type.values_by_number
    return [
        VersionStatus(
            item.version,
            states[item.state].name if item.state in states else str(item.state),
            codes[item.status.error_code].name if item.status.error_code in codes else str(item.status.error_code),
            item.status.error_message,
            known.get(str(item.version), ()),
        )
        for item in response.model_version_status
    ]


def _engines(text: str | None) -> dict[str, tuple[EngineUse, ...]]:
    """What the header says; nothing where it is missing or not ours."""
    try:
        found: dict[str, Iterable[Any]] = json.loads(text or "{}")
        return {
            version: tuple(EngineUse(runtime, reason, tuple(names)) for runtime, reason, names in uses)
            for version, uses in found.items()
        }
    except (ValueError, TypeError, AttributeError):
        return {}
