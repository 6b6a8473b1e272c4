"""How many numbers a SavedModel's variables hold, without those of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .. import extras
from ..errors import ArtifactError
from .source_model import one_line

# Names that optimizers of TensorFlow 1 give to what they keep beside a variable.
_SLOTS = ("Adadelta", "Adagrad", "Adam", "ExponentialMovingAverage", "Ftrl", "Momentum", "RMSProp")
# Where checkpoints of TensorFlow 2 say what belongs to what, and attributes of Keras models without weights.
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_TRAINING = ("optimizer", "_optimizer", "keras_api")
_NO_NUMBERS = ("string", "resource", "variant", "invalid")


def count_parameters(folder: Path) -> int:
    """How many numbers the variables of a SavedModel hold.

    What was kept for the training does not count, where it can be told: optimizers and what they keep,
    metrics, counters and states of random generators. Constants of a frozen graph are not variables.
    """
    tf = extras.load("tensorflow", "exporting a model")
    prefix = folder / "variables" / "variables"
    if not prefix.with_suffix(".index").is_file():
        return 0
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        names = _tracked_variables(reader.get_tensor(_OBJECTS)) if _OBJECTS in shapes else _tf1_variables(shapes)
    except Exception as error:  # TensorFlow's own errors, RuntimeError for damage, those of protobuf
        raise ArtifactError(f"{folder} has damaged variables: {one_line(error)}") from error
    # Keras 3's export writes each variable a second time.
    twice = any(name.startswith("variables/") for name in names)
    return sum(
        int(np.prod(shapes[name]))
        for name in names
        if _is_weight(dtypes[name]) and not (twice and name.startswith("_all_variables/"))
    )


def _tracked_variables(content: bytes) -> set[str]:
    """Keys in a TF2 checkpoint of the variables that are found without looking into an optimizer.

    The keys alone do not tell: a weight may be found on the way through the optimizer first.
    """
    nodes = import_module("tensorflow.core.protobuf.trackable_object_graph_pb2").TrackableObjectGraph
    graph = nodes.FromString(content).nodes
    seen, todo = {0}, [0]
    while todo:
        found = {child.node_id for child in graph[todo.pop()].children if child.local_name not in _TRAINING}
        todo += found - seen
        seen |= found
    attributes = (attribute for number in seen for attribute in graph[number].attributes)
    return {attribute.checkpoint_key for attribute in attributes if attribute.name == "VARIABLE_VALUE"}


def _tf1_variables(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """Names in a TF1 checkpoint, without those that an optimizer has given."""

    def is_slot(name: str) -> bool:
        parent, _, last = name.rpartition("/")
        beside = last.partition("_")[0] in _SLOTS and shapes.get(parent) == shapes[name]
        return beside or last in ("beta1_power", "beta2_power")

    return {name for name in shapes if not is_slot(name)}


def _is_weight(dtype: Any) -> bool:
    # Large integers count steps or are states of random generators; quantized weights are small ones.
    return dtype.name not in _NO_NUMBERS and not (dtype.is_integer and dtype.size >= 4)
