"""SignatureDef messages ⇄ `Signature`, and the signatures of a SavedModel without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import DecodeError

from ..errors import ArtifactError
from ..signature import Signature, TensorSpec
from . import messages
from .tensors import BY_NAME, BY_NUMBER

_BINARY, _TEXT = "saved_model.pb", "saved_model.pbtxt"


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


def to_signature_def(signature: Signature) -> Any:
    """A `Signature` as a SignatureDef, for model files that carry none; unknown dtypes as DT_INVALID."""
    message = messages.SignatureDef(method_name=signature.method_name)
    for side, specs in ((message.inputs, signature.inputs), (message.outputs, signature.outputs)):
        for key, spec in specs.items():
            info = side[key]
            info.name = spec.tensor_name or spec.name
            info.dtype = BY_NAME[spec.dtype].number if spec.dtype in BY_NAME else 0
            if spec.shape is None:
                info.tensor_shape.unknown_rank = True
            else:
                info.tensor_shape.SetInParent()
                for size in spec.shape:
                    info.tensor_shape.dim.add(size=-1 if size is None else size)
    return message


def is_saved_model(folder: Path) -> bool:
    """Whether a folder holds a SavedModel, as far as file names tell."""
    return (folder / _BINARY).is_file() or (folder / _TEXT).is_file()


def read_saved_model(folder: Path, tags: frozenset[str] = frozenset({"serve"})) -> Mapping[str, Any]:
    """The SignatureDef messages of ``saved_model.pb`` (or ``saved_model.pbtxt``), by name.

    Raises `ArtifactError` if the file is missing or damaged, or if no MetaGraph has exactly these tags.
    """
    path = folder / _BINARY
    try:
        if path.is_file() or not (folder / _TEXT).is_file():
            saved_model = messages.SavedModel.FromString(path.read_bytes())
        else:
            path = folder / _TEXT
            saved_model = text_format.Parse(
                path.read_bytes(), messages.SavedModel(), allow_unknown_field=True, descriptor_pool=messages.POOL
            )
    except FileNotFoundError:
        raise ArtifactError(f"{folder} has no {_BINARY}") from None
    except (OSError, DecodeError, text_format.ParseError) as error:
        raise ArtifactError(f"{path} is not a SavedModel: {error}") from error
    for graph in saved_model.meta_graphs:
        if frozenset(graph.meta_info_def.tags) == tags:
            signatures: Mapping[str, Any] = graph.signature_def
            return signatures
    raise ArtifactError(f"{path} has no MetaGraph with the tags {{{', '.join(sorted(tags))}}}")
