"""Answers as messages and, for status and metadata, as the JSON text that the REST API prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import json_format
from numpy.typing import NDArray

from ..wire import messages
from ..wire.predict_response import serialize
from .data_plane import DataPlane, ModelSpec
from .engines import Engine
from .inference import Classification
from .servable import Servable
from .status import VersionStatus

# A gRPC client refuses metadata of more than 8 KiB in all.
MAX_HEADER_BYTES = 4096


def set_model_spec(message: Any, servable: Servable, spec: ModelSpec) -> None:
    """Say which version and signature answered; a label is never echoed."""
    message.name = spec.name
    message.version.value = servable.version
    message.signature_name = spec.signature_key


def predict_response(
    servable: Servable, spec: ModelSpec, outputs: Mapping[str, NDArray[Any]], *, as_content: bool
) -> bytes:
    """A serialized PredictResponse, its tensors in typed fields or as ``tensor_content``."""
    key = spec.signature_key
    specs = servable.signatures[key].outputs
    arrays = {alias: (array, specs[alias].dtype) for alias, array in outputs.items()}
    return serialize(spec.name, servable.version, key, arrays, content=as_content)


def set_classification(result: Any, found: Classification) -> None:
    """Fill a ClassificationResult; missing labels are "", missing scores 0."""
    shape = (found.scores if found.classes is None else found.classes).shape  # type: ignore[union-attr]  # one is there
    labels = np.full(shape, b"", object) if found.classes is None else found.classes
    scores = np.zeros(shape, np.float32) if found.scores is None else found.scores
    for row_labels, row_scores in zip(labels.tolist(), scores.tolist(), strict=True):
        classes = result.classifications.add().classes
        for label, score in zip(row_labels, row_scores, strict=True):
            # A proto string is UTF-8; what is not cannot travel in one.
            classes.add(label=label.decode("utf-8", "replace"), score=score)


def set_regression(result: Any, values: NDArray[Any]) -> None:
    """Fill a RegressionResult."""
    for value in values.tolist():
        result.regressions.add(value=value)


def model_status(statuses: Sequence[VersionStatus]) -> Any:
    """A GetModelStatusResponse."""
    response = messages.GetModelStatusResponse()
    for status in statuses:
        item = response.model_version_status.add(version=status.version, state=int(status.state))
        item.status.error_code = int(status.code)
        item.status.error_message = status.message
    return response


def engines_header(engines: Mapping[int, Mapping[str, Engine]]) -> str:
    """Which engine answers which signature of which version and why, as one line of ASCII JSON.

    ``{"1": [["onnx", "the manifest proves parity", ["serving_default"]]]}``: it goes with a model's
    status, as the header ``Servable-Engines`` over REST and as trailing metadata over gRPC. What would
    be too long for a header is left out: first the names of the signatures, then all.
    """
    text = ""
    for with_names in (True, False):
        found: dict[str, list[list[Any]]] = {}
        for version, by_signature in engines.items():
            grouped: dict[Engine, list[str]] = {}
            for name, engine in sorted(by_signature.items()):
                grouped.setdefault(engine, []).append(name)
            found[str(version)] = [
                [engine.runtime, engine.reason, names if with_names else []] for engine, names in grouped.items()
            ]
        text = json.dumps(found, separators=(",", ":"))
        if len(text) <= MAX_HEADER_BYTES:
            return text
    return "{}"


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
