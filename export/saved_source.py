"""SavedModels as sources of an export: published as they stand, or, where they have no signature, by their call."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray

from .. import extras, runtimes
from ..errors import (
    ArtifactError,
    ExportError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ServableError,
    nearest,
)
from ..inspection.variables import count_weights
from ..manifest import measure_artifact
from ..signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from . import naming
from .source_model import Arrays, SourceModel, TracedModel, first_line, one_line
from .structure import leaves, rebuild

ROWS = 250
_SERVE = frozenset({"serve"})
# Modules in the TF1 Hub format carry their inference graph without a tag, and a signature of this name.
_HUB1_TAGS: frozenset[str] = frozenset()
_HUB1_SIGNATURE = "default"
# TensorFlow keeps what initializes a model among its signatures.
_INTERNAL = "__saved_model_"
_OPAQUE = ("resource", "variant", "invalid")


def open_saved_model(
    folder: Path, signature: str | None = None, inputs: Sequence[str] = (), outputs: Sequence[str] = ()
) -> SourceModel:
    """A SavedModel of TensorFlow 1 or 2, or a module in the TF1 Hub format.

    ``signature`` is the one that all artifacts answer: None for ``serving_default``, or the only one.
    ``inputs`` and ``outputs`` are names for a model without signatures; the others have their own.
    Raises `ArtifactError` for a folder that cannot be loaded, `NotFoundError` for an unknown signature,
    `InvalidArgumentError` where there are several to choose from or names are given in vain, and
    `ExportError` for tensors that no artifact can take: sparse, ragged, or without a batch.
    """
    graphs = _meta_graphs(folder)
    tags = _SERVE if _SERVE in graphs else _HUB1_TAGS
    if tags not in graphs:
        found = "; ".join(", ".join(sorted(each)) for each in graphs) or "none"
        raise ArtifactError(f"{folder} has no graph with the tag 'serve', which servers load; its tags are: {found}")
    graph = graphs[tags]
    names = [name for name in sorted(graph.signature_def) if not name.startswith(_INTERNAL)]
    if tags == _SERVE and names:
        chosen = choose_signature(folder, names, signature)
        if inputs or outputs:
            raise InvalidArgumentError(f"{folder} is published with the names that its signature {chosen!r} has")
        _check_tensors(folder, chosen, graph.signature_def[chosen])
        return SavedModelFolder(folder, chosen, str(graph.meta_info_def.tensorflow_version))
    if signature and not names:
        raise NotFoundError(f"{folder} has no signature {signature!r}: it has none, and is exported by its call")
    return HubModule.load(folder, tags, choose_signature(folder, names, signature) if names else None, inputs, outputs)


def choose_signature(folder: Path, names: Sequence[str], wanted: str | None) -> str:
    """The wanted signature, else the default one, else the only one; raises as `open_saved_model` says."""
    if wanted is not None and wanted not in names:
        raise NotFoundError(f"{folder} has no signature {wanted!r}; {nearest(wanted, names)}")
    standard = [name for name in (DEFAULT_SIGNATURE, _HUB1_SIGNATURE) if name in names]
    candidates = [wanted] if wanted is not None else standard or list(names)
    if len(candidates) > 1 and not standard:
        raise InvalidArgumentError(f"{folder} has several signatures: choose one of {', '.join(names)} by --signature")
    return candidates[0]


class SavedModelFolder(SourceModel):
    """A SavedModel with signatures; it is published as it stands, with all of them.

    A signature whose batch has a fixed size keeps it: `predict` then runs as many rows at a time.
    """

    def __init__(self, folder: Path, signature: str, tensorflow: str = "") -> None:
        """``signature`` is one that the SavedModel has; ``tensorflow`` the version that wrote it, if known."""
        self.kind = "saved_model"
        self.folder = folder
        self.tensorflow = tensorflow
        self._runtime = runtimes.load(folder)
        self.signatures: Mapping[str, Signature] = {
            name: each for name, each in self._runtime.signatures.items() if not name.startswith(_INTERNAL)
        }
        self.signature = self.signatures[signature]
        self.parameters = sum(count_weights(folder).values())

    def predict(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        batch = next(iter(_fixed_batches(self.signature)), None)
        try:
            return _in_batches(lambda rows: self._runtime.run(self.signature.name, rows), inputs, batch)
        except ServableError as error:
            # As tf.saved_model.save of a Keras 3 model with batch normalization: its variables are not there.
            never_ran = type(error) is FailedPreconditionError
            hint = (
                "; no server could run it either: save it anew, Keras 3 models with model.export" if never_ran else ""
            )
            raise ExportError(
                f"the signature {self.signature.name!r} of {self.folder} fails: {first_line(error)}{hint}"
            ) from error

    def describe(self) -> dict[str, Any]:
        """The digest is the one that the manifest gives the SavedModel itself (`measure_artifact`)."""
        return _description(self, self.folder)


class HubModule(TracedModel):
    """A SavedModel that is exported by what it computes when it is called.

    So are many modules of TensorFlow Hub, which have no signature that a server could answer: those of
    TensorFlow 2 are called, in inference mode, and of the TF1 Hub format a signature is.
    """

    def __init__(self, folder: Path, loaded: Any, function: Any, paths: Sequence[str]) -> None:
        """``function`` is a ConcreteFunction; ``paths`` lead to its answers, in the order of the outputs."""
        self.kind = "hub_module"
        self.folder = folder
        self.parameters = sum(count_weights(folder).values())
        self._loaded = loaded
        self._function = function
        self._arguments = _sorted(function.structured_input_signature)
        self._paths = paths
        self.tensorflow = str(getattr(loaded, "tensorflow_version", ""))

    @classmethod
    def load(
        cls,
        folder: Path,
        tags: Iterable[str] = _SERVE,
        signature: str | None = None,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
    ) -> HubModule:
        """Load and find out what the call (or, where one is named, the signature) takes and answers.

        ``inputs`` and ``outputs`` are names to give. Raises as `open_saved_model` says.
        """
        tf = extras.load("tensorflow", "exporting a model")
        try:
            loaded = tf.saved_model.load(str(folder), tags=sorted(tags))
        except Exception as error:  # TensorFlow and its parsers raise every kind
            raise ArtifactError(f"{folder} is not a SavedModel that TensorFlow can load: {one_line(error)}") from error
        calls = getattr(loaded.__call__, "concrete_functions", ()) if callable(loaded) else ()
        if signature is not None:
            function = loaded.signatures[signature]
        elif not calls:
            raise ExportError(
                f"{folder} has no signature and cannot be called, so nothing says what to export: save it with "
                "signatures, or export package.module:callable that returns a Keras model around it"
            )
        else:
            function = _for_inference(calls)
        answers = leaves(_sorted(function.structured_outputs))
        model = cls(folder, loaded, function, [path for path, _ in answers])
        taken = [_spec(tf, folder, path, leaf) for path, leaf in leaves(model._arguments) if _is_input(tf, leaf)]
        # What an answer itself is called is TensorFlow's business: "unknown", "Gather:0".
        given = [replace(_spec(tf, folder, path, leaf), name=path) for path, leaf in answers]
        if signature == _HUB1_SIGNATURE:  # where a lone tensor is called so too
            taken, given = ([_unnamed(spec) for spec in side] if len(side) == 1 else side for side in (taken, given))
        model.signature = Signature(
            inputs=_named(naming.input_names(taken, inputs), taken),
            outputs=_named(naming.output_names([spec.name for spec in given], outputs), given),
        )
        _check_batch(folder, model.signature, open_only=True)
        return model

    def call(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        tf = extras.load("tensorflow", "exporting a model")
        rest = iter([tensors[name] for name in self.signature.inputs])
        values = [next(rest) if _is_input(tf, leaf) else _constant(tf, leaf) for _, leaf in leaves(self._arguments)]
        positional, by_name = rebuild(self._arguments, iter(values))
        # Not the loaded object: of its functions, it would take one for another batch as well.
        answers = dict(leaves(self._function(*positional, **by_name)))
        return {name: answers[path] for name, path in zip(self.signature.outputs, self._paths, strict=True)}

    @property
    def tracked(self) -> Sequence[Any]:
        # All of it: what initializes the tables of a TF1 module belongs to none of them.
        return [self._loaded]

    def predict(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        tf = extras.load("tensorflow", "running a SavedModel")

        def run(rows: Arrays) -> dict[str, NDArray[Any]]:
            tensors = {name: tf.constant(rows[name], spec.dtype) for name, spec in self.signature.inputs.items()}
            return {name: np.asarray(tensor.numpy()) for name, tensor in self.call(tensors).items()}

        try:
            return _in_batches(run, inputs, None)
        except Exception as error:  # the module's own operations raise every kind
            raise ExportError(f"the call of {self.folder} fails: {first_line(error)}") from error

    def describe(self) -> dict[str, Any]:
        """The digest is the one that a manifest would give the SavedModel itself (`measure_artifact`)."""
        return _description(self, self.folder)


def _meta_graphs(folder: Path) -> dict[frozenset[str], Any]:
    """The MetaGraphDefs of a SavedModel by their tags. Raises `ArtifactError` for a damaged one."""
    extras.load("tensorflow", "exporting a model")
    message = import_module("tensorflow.core.protobuf.saved_model_pb2").SavedModel
    binary, text = folder / "saved_model.pb", folder / "saved_model.pbtxt"
    path = binary if binary.is_file() else text
    try:
        content = path.read_bytes()
        parsed = message.FromString(content) if path == binary else text_format.Parse(content, message())
    except Exception as error:  # each implementation of protobuf raises its own kind
        raise ArtifactError(f"{path} is not a SavedModel: {one_line(error)}") from error
    if not parsed.meta_graphs:
        raise ArtifactError(f"{path} is not a SavedModel: it holds no graph")
    return {frozenset(graph.meta_info_def.tags): graph for graph in parsed.meta_graphs}


def _check_tensors(folder: Path, name: str, definition: Any) -> None:
    """Raise `ExportError` unless all tensors of a SignatureDef are dense and have a batch dimension."""
    tf = extras.load("tensorflow", "exporting a model")
    specs: list[dict[str, TensorSpec]] = []
    for side in (definition.inputs, definition.outputs):
        specs.append({})
        for key, info in sorted(side.items()):
            dtype = tf.dtypes.as_dtype(info.dtype).name if info.dtype else "invalid"
            if info.WhichOneof("encoding") not in (None, "name"):
                raise ExportError(
                    f"{folder} has a sparse or ragged {key!r} in its signature {name!r}, which no other format takes: "
                    "choose another by --signature, or save one with dense tensors"
                )
            if dtype in _OPAQUE:
                raise ExportError(f"{folder} has {key!r} of dtype {dtype} in its signature {name!r}: choose another")
            shape = info.tensor_shape
            sizes = None if shape.unknown_rank else tuple(None if d.size < 0 else d.size for d in shape.dim)
            specs[-1][key] = TensorSpec(key, dtype, sizes)
    _check_batch(folder, Signature(specs[0], specs[1], name=name))


def _check_batch(folder: Path, signature: Signature, *, open_only: bool = False) -> None:
    """Raise `ExportError` for tensors without a batch dimension, for several batches, or for a fixed one."""
    if not signature.inputs:
        raise ExportError(f"the signature {signature.name!r} of {folder} has no inputs, so nothing can be asked of it")
    for spec in (*signature.inputs.values(), *signature.outputs.values()):
        if spec.shape == ():
            raise ExportError(
                f"{folder} has a single {spec.dtype} {spec.name!r} where rows of a batch are needed: give another "
                "signature by --signature, or save one whose tensors begin with the batch"
            )
    fixed = _fixed_batches(signature)
    if len(set(fixed)) > 1 or (fixed and open_only):
        raise ExportError(
            f"{folder} takes a batch of {' and '.join(map(str, sorted(set(fixed))))} only: save it with a batch of any "
            "size, or with a signature"
        )


def _fixed_batches(signature: Signature) -> list[int]:
    """Sizes of the batch of those inputs that do not take every size."""
    return [spec.shape[0] for spec in signature.inputs.values() if spec.shape and spec.shape[0] is not None]


def _in_batches(run: Callable[[Arrays], Arrays], inputs: Arrays, batch: int | None) -> dict[str, NDArray[Any]]:
    """Run all rows, some at a time; exactly ``batch`` of them where that is given.

    Rows that lack to the last batch are made of its last one, and left out of the answers.
    """
    count = len(next(iter(inputs.values())))
    size = batch or ROWS
    parts = []
    for start in range(0, max(count, 1), size):
        rows = {name: array[start : start + size] for name, array in inputs.items()}
        found = len(next(iter(rows.values())))
        if batch and found < batch:
            rows = {name: np.concatenate([array, array[-1:].repeat(batch - found, 0)]) for name, array in rows.items()}
        answers = run(rows)
        for name, array in answers.items():
            if array.shape[:1] != (batch or found,):
                raise ExportError(f"output {name!r} has shape {array.shape} for {batch or found} rows: it has no batch")
        parts.append({name: array[:found] for name, array in answers.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _description(model: SavedModelFolder | HubModule, folder: Path) -> dict[str, Any]:
    sha256, _ = measure_artifact(folder, ".")
    version = {"tensorflow": model.tensorflow} if model.tensorflow else {}
    return {"kind": model.kind, **version, "parameters": model.parameters, "sha256": sha256}


def _sorted(structure: Any) -> Any:
    """The same nesting with sorted keys; a SavedModel does not keep their order."""
    if isinstance(structure, Mapping):
        return {key: _sorted(structure[key]) for key in sorted(structure)}
    if isinstance(structure, list | tuple):
        children = [_sorted(child) for child in structure]
        return tuple(children) if isinstance(structure, tuple) else children
    return structure


def _for_inference(functions: Sequence[Any]) -> Any:
    """Of all that a call was traced for, what infers, with a batch of any size if there is one."""

    def unfit(function: Any) -> tuple[bool, int]:
        found = [leaf for _, leaf in leaves(function.structured_input_signature)]
        batches = [leaf.shape[0] for leaf in found if hasattr(leaf, "shape") and leaf.shape.rank]
        return any(leaf is True for leaf in found), sum(size is not None for size in batches)

    return min(functions, key=unfit)


def _is_input(tf: Any, leaf: Any) -> bool:
    """Whether an argument is one that the model is asked with; a lone bool tensor switches the training."""
    return isinstance(leaf, tf.TypeSpec) and not (isinstance(leaf, tf.TensorSpec) and _is_switch(leaf))


def _is_switch(leaf: Any) -> bool:
    return bool(leaf.shape.rank == 0 and leaf.dtype.name == "bool")


def _constant(tf: Any, leaf: Any) -> Any:
    return tf.constant(value=False) if isinstance(leaf, tf.TensorSpec) else leaf


def _spec(tf: Any, folder: Path, path: str, leaf: Any) -> TensorSpec:
    """What an argument or answer of a call is; ``path`` leads to it."""
    if not isinstance(leaf, tf.TensorSpec | tf.Tensor):
        raise ExportError(f"{folder} takes or answers a {type(leaf).__name__}, which no other format takes")
    key = re.sub(r"^(\d+(_|$))+", "", path)  # without its place among the arguments
    name = key or str(getattr(leaf, "name", "") or "")
    sizes = None if leaf.shape.rank is None else tuple(leaf.shape.as_list())
    return TensorSpec(name, leaf.dtype.name, sizes)


def _unnamed(spec: TensorSpec) -> TensorSpec:
    return replace(spec, name="") if spec.name == _HUB1_SIGNATURE else spec


def _named(names: Sequence[str], specs: Sequence[TensorSpec]) -> dict[str, TensorSpec]:
    return {name: replace(spec, name=name) for name, spec in zip(names, specs, strict=True)}
