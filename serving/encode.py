"""Status and metadata as messages, and as the JSON text that the REST API prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format

from ..wire import messages
from .data_plane import DataPlane, ModelSpec
from .manager import VersionStatus


def model_status(statuses: Sequence[VersionStatus]) -> Any:
    """A GetModelStatusResponse."""
    response = messages.GetModelStatusResponse()
    for status in statuses:
        item = response.model_version_status.add(version=status.version, state=int(status.state))
        item.status.error_code = int(status.code)
        item.status.error_message = status.message
    return response


def model_metadata(plane: DataPlane, spec: ModelSpec, fields: Sequence[str]) -> Any:
    """A GetModelMetadataResponse with the signatures as an Any of SignatureDefMap."""
    servable = plane.metadata(spec, fields)
    response = messages.GetModelMetadataResponse()
    response.model_spec.name = spec.name
    response.model_spec.version.value = servable.version
    response.metadata["signature_def"].Pack(_signature_def_map(servable.signature_defs))
    return response


def _signature_def_map(signature_defs: Any) -> Any:
    message = messages.SignatureDefMap()
    for name, definition in signature_defs.items():
        message.signature_def[name].CopyFrom(definition)
    return message


def _to_json(message: Any) -> str:
    """Protobuf's JSON as the original prints it: one blank of indent, defaults and snake case kept."""
    return json_format.MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        indent=1,
        descriptor_pool=messages.POOL,
    )


def status_json(statuses: Sequence[VersionStatus]) -> bytes:
    """The body of ``GET /v1/models/NAME``."""
    return f"{_to_json(model_status(statuses))}\n".encode()


def metadata_json(plane: DataPlane, spec: ModelSpec) -> bytes:
    """The body of ``GET …/metadata``: the original assembles this text by hand, with its line breaks."""
    servable = plane.metadata(spec, ["signature_def"])
    model_spec = messages.ModelSpec(name=spec.name)
    model_spec.version.value = servable.version
    definitions = _to_json(_signature_def_map(servable.signature_defs))
    return (
        f'{{\n"model_spec":{_to_json(model_spec)}\n,\n"metadata": {{"signature_def": {definitions}\n}}\n}}\n'
    ).encode()
