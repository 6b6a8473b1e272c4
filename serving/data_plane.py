"""The transport-free core: numpy in, numpy out, TensorFlow Serving's errors.

The gRPC and REST fronts only decode requests into these calls and encode what they return. Message
texts are the original's, since clients and scripts match on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ..errors import FailedPreconditionError, InputError, InvalidArgumentError
from ..signature import DEFAULT_SIGNATURE, Signature
from ..wire.tensors import BY_NAME, dtype_of
from .manager import Manager, VersionStatus
from .servable import Servable


@dataclass(frozen=True)
class ModelSpec:
    """Which model, version and signature a request asks for; an empty signature is the default one."""

    name: str
    version: int | None = None
    version_label: str | None = None
    signature_name: str = ""

    @property
    def signature_key(self) -> str:
        """The signature's name with the default filled in."""
        return self.signature_name or DEFAULT_SIGNATURE


@dataclass(frozen=True)
class PredictResult:
    """The version that answered, and its outputs."""

    servable: Servable
    signature_key: str
    outputs: Mapping[str, NDArray[Any]]


class DataPlane:
    """Answers the calls of both services from a `Manager`'s servables."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    def resolve(self, spec: ModelSpec) -> Servable:
        """The servable that a spec names.

        Raises `InvalidArgumentError` without a name or for an unknown label, else `NotFoundError`.
        """
        if spec.version_label is not None:
            raise InvalidArgumentError(f"Unrecognized servable version label: {spec.version_label}")
        if not spec.name:
            raise InvalidArgumentError("ModelSpec has no name specified.")
        return self._manager.find(spec.name, spec.version)

    def predict(
        self, spec: ModelSpec, inputs: Mapping[str, NDArray[Any]], output_filter: Sequence[str] = ()
    ) -> PredictResult:
        """Run one signature; all of its outputs where the filter is empty."""
        return self.predict_on(self.resolve(spec), spec, inputs, output_filter)

    def predict_on(
        self,
        servable: Servable,
        spec: ModelSpec,
        inputs: Mapping[str, NDArray[Any]],
        output_filter: Sequence[str] = (),
    ) -> PredictResult:
        """The same on a servable that was resolved before, so that both look at one version."""
        key = spec.signature_key
        signature = servable.signatures.get(key)
        if signature is None:
            raise FailedPreconditionError(f'Serving signature key "{key}" not found.')
        _check_inputs(signature, inputs)
        wanted = _wanted(signature, output_filter)
        return PredictResult(servable, key, servable.run(key, inputs, wanted))

    def metadata(self, spec: ModelSpec, fields: Sequence[str]) -> Servable:
        """The servable whose ``signature_defs`` are the metadata asked for."""
        if not spec.name:
            raise InvalidArgumentError("ModelSpec has no name specified.")
        if not fields:
            raise InvalidArgumentError("GetModelMetadataRequest must specify at least one metadata_field")
        for field in fields:
            if field != "signature_def":
                raise InvalidArgumentError(f"Metadata field {field} is not supported")
        return self.resolve(spec)

    def status(self, spec: ModelSpec) -> list[VersionStatus]:
        """States of one version or of all, highest first; a label is ignored, as in the original."""
        return self._manager.statuses(spec.name, spec.version)


def _check_inputs(signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> None:
    if len(inputs) != len(signature.inputs):
        extra = ",".join(sorted(inputs.keys() - signature.inputs.keys()))
        missing = ",".join(sorted(signature.inputs.keys() - inputs.keys()))
        raise InputError(
            f"input size does not match signature: {len(inputs)}!={len(signature.inputs)} "
            f"len({{{','.join(sorted(inputs))}}}) != len({{{','.join(sorted(signature.inputs))}}}). "
            f"Sent extra: {{{extra}}}. Missing but required: {{{missing}}}."
        )
    for name, spec in signature.inputs.items():
        if name not in inputs:
            raise InputError(
                f"Signature input alias: {name}(feed name: {spec.tensor_name}) not found in request and no default "
                f"value provided. Inputs expected to be in the request {{{','.join(sorted(inputs))}}}, or default "
                "input alias set: "
            )
    for position, (name, spec) in enumerate(signature.inputs.items()):
        given = dtype_of(inputs[name])
        want = BY_NAME.get(spec.dtype)
        if want is not None and given.numpy_name != want.numpy_name:
            raise InputError(f"Expects arg[{position}] to be {want.wire_name} but {given.wire_name} is provided")


def _wanted(signature: Signature, output_filter: Sequence[str]) -> list[str]:
    for i, name in enumerate(output_filter):
        if name not in signature.outputs:
            known = ",".join(sorted(signature.outputs))
            raise InvalidArgumentError(
                f"output tensor alias not found in signature: {name} Outputs expected to be in the set {{{known}}}."
            )
        if name in output_filter[:i]:
            raise InvalidArgumentError(f"duplicate output tensor alias: {name}")
    return list(output_filter or signature.outputs)
