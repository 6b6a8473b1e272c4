"""The transport-free core: numpy in, numpy out, TensorFlow Serving's errors.

The gRPC and REST fronts only decode requests into these calls and encode what they return. Message
texts are the original's (``servables/tensorflow/predict_util.cc``), since clients and scripts match
on them. Each call takes the `Call` of its request, in which it notes the engine and the time of a run.
Calls that run a model are coroutines: with batching they wait for a run that others share (`steps`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from time import thread_time_ns
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import FailedPreconditionError, InputError, InternalError, InvalidArgumentError, UnimplementedError
from ..signature import CLASSIFY_METHOD, DEFAULT_SIGNATURE, PREDICT_METHOD, REGRESS_METHOD, Signature
from ..wire.tensors import dtype_of
from . import inference
from .batch_queue import Task
from .engines import Engine
from .inference import Classification
from .monitoring import DECODE, QUEUE, RUN, Call
from .servable import Servable
from .status import VersionStatus
from .steps import Wait

_PREDICT_METHODS = (PREDICT_METHOD, CLASSIFY_METHOD, REGRESS_METHOD)


class ModelSpec(NamedTuple):
    """Which model, version and signature a request asks for; an empty signature is the default one."""

    name: str
    version: int | None = None
    version_label: str | None = None
    signature_name: str = ""

    @property
    def signature_key(self) -> str:
        """The signature's name with the default filled in."""
        return self.signature_name or DEFAULT_SIGNATURE


class Servables(Protocol):
    """Where a data plane finds what it is asked for."""

    is_shared: bool  # whether others serve the same, so that to ask for a status takes time

    def enter(self, name: str, version: int | None) -> Servable:
        """The servable of this version, or of the highest, entered; else `NotFoundError`."""

    def labelled(self, name: str, label: str) -> int:
        """The version that a label stands for; else `InvalidArgumentError`."""

    def statuses(self, name: str, version: int | None) -> list[VersionStatus]:
        """Status of one version or of all, highest first; `NotFoundError` if there is none."""

    def models(self) -> list[str]:
        """Names of all models, sorted."""

    def engines(self, name: str) -> dict[int, Mapping[str, Engine]]:
        """The engines of a model's loaded versions, by version and signature."""

    def reload(self, config: Any) -> None:
        """Serve what a ModelServerConfig says, and nothing else."""


class DataPlane:
    """Answers the calls of both services from servables.

    ``check_method_names`` holds each call to signatures of its own method name
    (``--enable_signature_method_name_check``); ``batching`` says that runs may be joined.
    """

    def __init__(self, servables: Servables, *, check_method_names: bool = False, batching: bool = False) -> None:
        self.batching = batching
        self._servables = servables
        self._check_method_names = check_method_names
        # More runs at a time than processors only take the caches from each other.
        self._slots = threading.Semaphore(_processors())

    def resolve(self, spec: ModelSpec) -> Servable:
        """The servable that a spec names, entered: to be used in a with-block, which leaves it.

        Raises `InvalidArgumentError` without a name or for an unknown label, else `NotFoundError`.
        """
        if spec.version_label is not None:
            return self._servables.enter(spec.name, self._servables.labelled(spec.name, spec.version_label))
        if not spec.name:
            raise InvalidArgumentError("ModelSpec has no name specified.")
        return self._servables.enter(spec.name, spec.version)

    async def predict(
        self,
        servable: Servable,
        spec: ModelSpec,
        inputs: Mapping[str, NDArray[Any]],
        output_filter: Sequence[str],
        call: Call,
    ) -> dict[str, NDArray[Any]]:
        """Run one signature of a servable that was resolved before; all outputs where the filter is empty."""
        key = spec.signature_key
        signature = servable.signatures.get(key)
        if signature is None:
            raise FailedPreconditionError(f'Serving signature key "{key}" not found.')
        if self._check_method_names and signature.method_name not in _PREDICT_METHODS:
            raise InternalError(
                f"Expected prediction signature method_name to be one of {{{', '.join(_PREDICT_METHODS)}}}. "
                f"Was: {signature.method_name}"
            )
        complete, wanted = _complete(servable, signature, inputs), _wanted(signature, output_filter)
        return await self._run(servable, key, complete, wanted, call)

    async def classify(
        self, servable: Servable, spec: ModelSpec, examples: Sequence[bytes], call: Call
    ) -> Classification:
        """Run a classification signature on serialized tf.Examples."""
        signature = _signature(servable, spec)
        if self._check_method_names:
            inference.check_method(signature, "classification", CLASSIFY_METHOD)
        names = inference.check_classify_signature(signature)
        outputs = await self._run_examples(servable, signature, examples, names, call)
        return inference.to_classification(outputs, len(examples))

    async def regress(self, servable: Servable, spec: ModelSpec, examples: Sequence[bytes], call: Call) -> NDArray[Any]:
        """Run a regression signature on serialized tf.Examples; float32 of shape (batch,)."""
        signature = _signature(servable, spec)
        if self._check_method_names:
            inference.check_method(signature, "regression", REGRESS_METHOD)
        names = inference.check_regress_signature(signature)
        outputs = await self._run_examples(servable, signature, examples, names, call)
        return inference.to_regression(outputs, len(examples))

    async def multi_inference(
        self, servable: Servable, tasks: Sequence[tuple[ModelSpec, str]], examples: Sequence[bytes], call: Call
    ) -> list[Classification | NDArray[Any]]:
        """Run several signatures on the same examples; ``tasks`` are specs with the method to use."""
        signatures = []
        for spec, method in tasks:
            if not spec.name:
                raise InvalidArgumentError("Found ModelSpec with an empty model name.")
            if spec.name != tasks[0][0].name:
                raise InvalidArgumentError("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
            key = spec.signature_key
            if key in signatures:
                raise InvalidArgumentError(f"Duplicate evaluation of signature: {key}")
            signatures.append(key)
            if key not in servable.signatures:
                raise InvalidArgumentError(f"Requested signature not found in model graph: {key}")
            if method not in (CLASSIFY_METHOD, REGRESS_METHOD):
                raise UnimplementedError(f"Unsupported signature method_name: {method}")
        return [
            await (
                self.classify(servable, spec, examples, call)
                if method == CLASSIFY_METHOD
                else self.regress(servable, spec, examples, call)
            )
            for spec, method in tasks
        ]

    async def _run_examples(
        self, servable: Servable, signature: Signature, examples: Sequence[bytes], outputs: Sequence[str], call: Call
    ) -> dict[str, NDArray[Any]]:
        if not examples:
            raise InvalidArgumentError("Input is empty.")
        batch = np.empty(len(examples), dtype=object)
        batch[:] = examples
        inputs = {"inputs": batch}
        _check_dtypes(servable, signature.name, inputs)
        return await self._run(servable, signature.name, inputs, outputs, call)

    async def _run(
        self, servable: Servable, key: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str], call: Call
    ) -> dict[str, NDArray[Any]]:
        engine = servable.engines.get(key)
        call.version = servable.version
        call.engine = engine
        call.lap(DECODE)
        if servable.batcher is not None and engine is not None:
            return await _batched(servable.batcher.task(key, inputs, outputs), call)
        # TensorFlow has threads of its own, and of a TFLite model only so many run as it has interpreters.
        if not call.pooled or engine is None or engine.runtime != "onnx":
            try:
                return servable.run(key, inputs, outputs)
            finally:
                call.lap(RUN)
        with self._slots:
            call.lap(QUEUE)
            try:
                return servable.run(key, inputs, outputs)
            finally:
                call.lap(RUN)

    def metadata(self, spec: ModelSpec, fields: Sequence[str]) -> Servable:
        """The servable whose ``signature_defs`` are the metadata asked for."""
        if not spec.name:
            raise InvalidArgumentError("ModelSpec has no name specified.")
        if not fields:
            raise InvalidArgumentError("GetModelMetadataRequest must specify at least one metadata_field")
        for field in fields:
            if field != "signature_def":
                raise InvalidArgumentError(f"Metadata field {field} is not supported")
        with self.resolve(spec) as servable:
            return servable

    def status(self, spec: ModelSpec) -> list[VersionStatus]:
        """States of one version or of all, highest first; a label is ignored, as in the original."""
        return self._servables.statuses(spec.name, spec.version)

    @property
    def is_shared(self) -> bool:
        """Whether to ask for a status takes time, as other processes are asked too."""
        return self._servables.is_shared

    def reload(self, config: Any) -> None:
        """Serve what a ModelServerConfig says, and nothing else; raises `ServableError` where that cannot be."""
        self._servables.reload(config)

    def models(self) -> list[str]:
        """Names of the models that were configured."""
        return self._servables.models()

    def engines(self, name: str) -> dict[int, Mapping[str, Engine]]:
        """Version → signature → `Engine` of the loaded versions of a model."""
        return self._servables.engines(name)


async def _batched(task: Task, call: Call) -> dict[str, NDArray[Any]]:
    """Wait for a task of a batcher; `Call.abandon` takes it out of the queue."""
    call.task = task
    call.handed_over_ns = thread_time_ns()
    await Wait(task)
    call.task = None
    if task.ended_ns:  # else it was refused, or dropped
        call.lap(QUEUE, task.started_ns)
        call.lap(RUN, task.ended_ns)
    return task.result()


def _signature(servable: Servable, spec: ModelSpec) -> Signature:
    signature = servable.signatures.get(spec.signature_key)
    if signature is None:
        raise InvalidArgumentError(f"No signature was found with the name: {spec.signature_key}")
    return signature


def _processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _complete(
    servable: Servable, signature: Signature, inputs: Mapping[str, NDArray[Any]]
) -> Mapping[str, NDArray[Any]]:
    """The inputs of a request with the signature's defaults filled in, checked by name and dtype."""
    defaults = servable.defaults[signature.name]
    if inputs.keys() != signature.inputs.keys():
        inputs = _fill(signature, inputs, defaults)
    _check_dtypes(servable, signature.name, inputs)
    return inputs


def _check_dtypes(servable: Servable, key: str, inputs: Mapping[str, NDArray[Any]]) -> None:
    for position, (name, want) in enumerate(servable.input_dtypes[key].items()):
        if want is not None and inputs[name].dtype != want.numpy:
            given = dtype_of(inputs[name])
            if given.numpy_name != want.numpy_name:
                raise InputError(f"Expects arg[{position}] to be {want.wire_name} but {given.wire_name} is provided")


def _fill(
    signature: Signature, inputs: Mapping[str, NDArray[Any]], defaults: Mapping[str, NDArray[Any]]
) -> Mapping[str, NDArray[Any]]:
    sent, known = sorted(inputs), sorted(signature.inputs)
    if len(sent) > len(known) or (len(sent) < len(known) and not defaults):
        extra = ",".join(sorted(inputs.keys() - signature.inputs.keys()))
        missing = ",".join(sorted(signature.inputs.keys() - inputs.keys()))
        raise InputError(
            f"input size does not match signature: {len(sent)}!={len(known)} "
            f"len({{{','.join(sent)}}}) != len({{{','.join(known)}}}). "
            f"Sent extra: {{{extra}}}. Missing but required: {{{missing}}}."
        )
    used = [name for name in signature.inputs if name in inputs]
    for name, spec in signature.inputs.items():
        if name not in inputs and name not in defaults:
            raise InputError(
                f"Signature input alias: {name}(feed name: {spec.tensor_name}) not found in request and no default "
                f"value provided. Inputs expected to be in the request {{{','.join(sent)}}}, or default "
                f"input alias set: {','.join(sorted(defaults))}"
            )
    if len(used) != len(sent):
        raise InputError(
            f"Inputs contains invalid name. Used request inputs: {','.join(used)}, request input: {','.join(sent)}"
        )
    return {name: inputs[name] if name in inputs else defaults[name] for name in signature.inputs}


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
