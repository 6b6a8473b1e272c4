"""What is exported: a Keras model with the names, data and labels that its card knows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..manifest import Derivation, Preprocessing
from ..signature import CLASSIFY_METHOD, DEFAULT_SIGNATURE, REGRESS_METHOD, Signature, TensorSpec

_STRINGS = "string"


@dataclass(frozen=True)
class Source:
    """One model to export.

    ``model`` maps the one input of ``signature`` (batch first) to its one output. ``inputs`` and
    ``targets`` are labelled data for the evidence, ``calibration`` inputs for int8 ranges; ``metric``
    names one of ``servable.metrics``; ``data`` says in words what the inputs are.
    """

    name: str
    model: Any
    signature: Signature
    task: str
    metric: str
    data: str
    inputs: NDArray[Any]
    targets: NDArray[Any]
    calibration: NDArray[Any]
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None

    @property
    def input(self) -> TensorSpec:
        """The one input."""
        (spec,) = self.signature.inputs.values()
        return spec

    @property
    def output(self) -> TensorSpec:
        """The one output."""
        (spec,) = self.signature.outputs.values()
        return spec

    @cached_property
    def expected(self) -> NDArray[Any]:
        """What the source model itself answers for ``inputs``: the reference of all evidence."""
        answers: NDArray[Any] = self.model.predict(self.inputs, batch_size=250, verbose=0)
        return answers

    @property
    def derivations(self) -> Mapping[str, Derivation]:
        """The signatures beside ``serving_default``: pictures as bytes, and tf.Examples by task."""
        derived = {}
        if self.preprocessing:
            derived["serve_bytes"] = Derivation(DEFAULT_SIGNATURE, "decode_image", {self.output.name: self.output.name})
        if self.task == "classification" and self.labels:
            derived["classify"] = Derivation(
                DEFAULT_SIGNATURE, "parse_example", {"scores": self.output.name}, labels_as="classes"
            )
        if self.task == "regression":
            derived["regress"] = Derivation(DEFAULT_SIGNATURE, "parse_example", {"outputs": self.output.name})
        return derived

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """All signatures that the SavedModel gets."""
        methods = {"classify": CLASSIFY_METHOD, "regress": REGRESS_METHOD}
        signatures = {DEFAULT_SIGNATURE: self.signature}
        for name, how in self.derivations.items():
            key = "image_bytes" if how.prologue == "decode_image" else "inputs"
            outputs = {alias: TensorSpec(alias, self.output.dtype, self.output.shape) for alias in how.outputs}
            if how.labels_as:
                outputs[how.labels_as] = TensorSpec(how.labels_as, _STRINGS, (None, len(self.labels)))
            signatures[name] = Signature(
                inputs={key: TensorSpec(key, _STRINGS, (None,))},
                outputs=outputs,
                method_name=methods.get(name, self.signature.method_name),
                name=name,
            )
        return signatures

    def describe(self) -> dict[str, Any]:
        """The manifest's ``source``: kind, class, parameter count and a digest of the weights.

        The digest is SHA-256 over the bytes of each weight array, in the order of ``get_weights``.
        """
        digest = hashlib.sha256()
        for array in self.model.get_weights():
            digest.update(np.ascontiguousarray(array).tobytes())
        return {
            "kind": "keras",
            "class": f"{type(self.model).__module__}.{type(self.model).__qualname__}".replace(".src", ""),
            "parameters": int(self.model.count_params()),
            "sha256": digest.hexdigest(),
        }
