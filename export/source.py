"""What is exported: a model with the data, labels and preprocessing that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from numpy.typing import NDArray

from ..manifest import Derivation, Preprocessing
from ..signature import CLASSIFY_METHOD, REGRESS_METHOD, Signature, TensorSpec
from .source_model import Arrays, Facts, SourceModel

Task = Literal["classification", "regression", "detection", "segmentation", "other"]
TASKS: tuple[Task, ...] = ("classification", "regression", "detection", "segmentation", "other")

# What a tf.Example can hold as it is.
_EXAMPLE_DTYPES = ("float32", "int64", "string")
_STRINGS = "string"


@dataclass(frozen=True)
class Data:
    """Inputs to compare an artifact with its source on, and inputs to find int8 ranges with.

    ``inputs`` and ``calibration`` are one array for each input of the signature, rows first.
    ``targets`` are what is right for ``inputs``: labels (n,), numbers, masks (n, height, width) or a
    mapping of boxes and classes; None where nobody knows. ``words`` says what the inputs are, and
    ``random`` that nobody measured them: numbers drawn from a seed.
    """

    inputs: Arrays
    calibration: Arrays
    words: str
    targets: NDArray[Any] | Arrays | None = None
    random: bool = False


@dataclass(frozen=True)
class Source:
    """One model to export.

    ``metric`` names one of ``servable.metrics``, for data with targets. ``trained`` is False for a
    model with fresh weights, whose answers say nothing.
    """

    name: str
    model: SourceModel
    data: Data
    task: Task = "other"
    metric: str | None = None
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    trained: bool = True

    @property
    def signature(self) -> Signature:
        """The signature that every artifact answers."""
        return self.model.signature

    def without_model(self) -> Source:
        """The same with `Facts` in place of the model: it can be pickled."""
        return replace(self, model=Facts(self.model))

    @cached_property
    def derivations(self) -> Mapping[str, Derivation]:
        """The signatures beside it: pictures as bytes, and tf.Examples by task.

        Of a SavedModel, which is published with the signatures that it has, those that its manifest names.
        """
        if self.model.signatures is not None:
            return dict(self.model.derivations)
        derived: dict[str, Derivation] = {}
        inputs, outputs = list(self.signature.inputs.values()), list(self.signature.outputs.values())
        base = self.signature.name
        if self.preprocessing:
            derived["serve_bytes"] = Derivation(base, "decode_image", {spec.name: spec.name for spec in outputs})
        fits = all(spec.dtype in _EXAMPLE_DTYPES and None not in (spec.shape or (None, None))[1:] for spec in inputs)
        if not fits or len(outputs) != 1 or outputs[0].dtype != "float32" or len(outputs[0].shape or ()) != 2:
            return derived
        if self.task == "classification" and self.labels:
            derived["classify"] = Derivation(base, "parse_example", {"scores": outputs[0].name}, labels_as="classes")
        if self.task == "regression" and (outputs[0].shape or ())[1:] == (1,):
            derived["regress"] = Derivation(base, "parse_example", {"outputs": outputs[0].name})
        return derived

    @cached_property
    def signatures(self) -> Mapping[str, Signature]:
        """All signatures that the SavedModel has."""
        methods = {"classify": CLASSIFY_METHOD, "regress": REGRESS_METHOD}
        if self.model.signatures is not None:
            return self.model.signatures
        signatures = {self.signature.name: self.signature}
        for name, how in self.derivations.items():
            key = "image_bytes" if how.prologue == "decode_image" else "inputs"
            outputs = {}
            for alias, base in how.outputs.items():
                spec = self.signature.outputs[base]
                outputs[alias] = TensorSpec(alias, spec.dtype, spec.shape)
            if how.labels_as:
                outputs[how.labels_as] = TensorSpec(how.labels_as, _STRINGS, (None, len(self.labels)))
            signatures[name] = Signature(
                inputs={key: TensorSpec(key, _STRINGS, (None,))},
                outputs=outputs,
                method_name=methods.get(name, self.signature.method_name),
                name=name,
            )
        return signatures
