"""SignatureDef messages ⇄ `Signature`, and the signatures of a SavedModel without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from ..errors import ArtifactError
from ..signature import Signature, TensorSpec
from . import messages
from .tensors import BY_NUMBER


def from_signature_def(name: str, message: Any) -> Signature:
    """A SignatureDef as a `Signature`; dtypes outside the interface are called by their number."""
    return Signature(
        inputs={key: _spec(key, message.inputs[key]) for key in sorted(message.inputs)},
        outputs={key: _spec(key, message.outputs[key]) for key in sorted(message.outputs)},
        method_name=message.method_name,
        name=name,
    )


def _spec(name: str, info: Any) -> TensorSpec:
    row = BY_NUMBER.get(info.dtype)
    shape = (
        None
        if info.tensor_shape.unknown_rank
        else tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
    )
    return TensorSpec(name, row.name if row else f"dtype {info.dtype}", shape, tensor_name=info.name)


def read_saved_model(folder: Path, tags: frozenset[str] = frozenset({"serve"})) -> Mapping[str, Any]:
    """The SignatureDef messages of ``saved_model.pb``, by name.

    Raises `ArtifactError` if the file is missing or damaged, or if no MetaGraph has exactly these tags.
    """
    path = folder / "saved_model.pb"
    try:
        saved_model = messages.SavedModel.FromString(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactError(f"{folder} has no saved_model.pb") from None
    except (OSError, DecodeError) as error:
        raise ArtifactError(f"{path} is not a SavedModel: {error}") from error
    for graph in saved_model.meta_graphs:
        if frozenset(graph.meta_info_def.tags) == tags:
            signatures: Mapping[str, Any] = graph.signature_def
            return signatures
    raise ArtifactError(f"{path} has no MetaGraph with the tags {{{', '.join(sorted(tags))}}}")
