"""The methods of PredictionService: request message in, serialized response message out."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from ..errors import InvalidArgumentError, ServableError
from ..wire import messages, tensors
from .data_plane import DataPlane, ModelSpec
from .encode import (
    model_metadata,
    predict_response,
    set_classification,
    set_model_spec,
    set_regression,
)
from .inference import Classification
from .monitoring import Call


class Method(Protocol):
    """One method, by its name in the service."""

    def __call__(self, request: Any, call: Call) -> Coroutine[Any, Any, bytes]:
        """Answer a request message; raises `ServableError`."""


class PredictionService:
    """The service's methods over a data plane."""

    def __init__(self, plane: DataPlane, *, as_content: bool = False) -> None:
        """``as_content`` answers Predict with ``tensor_content``."""
        self._plane = plane
        self._as_content = as_content

    async def predict(self, request: Any, call: Call) -> bytes:
        """Predict."""
        spec = _model_spec(request, call)
        with self._plane.resolve(spec) as servable:
            inputs = {}
            for alias, proto in request.inputs.items():
                try:
                    inputs[alias] = tensors.decode(proto)
                except ServableError:
                    raise InvalidArgumentError(f"tensor parsing error: {alias}") from None
            outputs = await self._plane.predict(servable, spec, inputs, request.output_filter, call)
            return predict_response(servable, spec, outputs, as_content=self._as_content)

    async def classify(self, request: Any, call: Call) -> bytes:
        """Classify."""
        spec = _model_spec(request, call)
        response = messages.ClassificationResponse()
        with self._plane.resolve(spec) as servable:
            set_classification(response.result, await self._plane.classify(servable, spec, _examples(request), call))
            set_model_spec(response.model_spec, servable, spec)
        return serialized(response)

    async def regress(self, request: Any, call: Call) -> bytes:
        """Regress."""
        spec = _model_spec(request, call)
        response = messages.RegressionResponse()
        with self._plane.resolve(spec) as servable:
            set_regression(response.result, await self._plane.regress(servable, spec, _examples(request), call))
            set_model_spec(response.model_spec, servable, spec)
        return serialized(response)

    async def multi_inference(self, request: Any, call: Call) -> bytes:
        """MultiInference."""
        tasks = [(to_spec(task.model_spec), task.method_name) for task in request.tasks]
        if not tasks:
            raise InvalidArgumentError("ModelSpec has no name specified.")
        call.model = tasks[0][0].name
        response = messages.MultiInferenceResponse()
        with self._plane.resolve(tasks[0][0]) as servable:
            examples = _examples(request)
            results = await self._plane.multi_inference(servable, tasks, examples, call)
            call.examples = len(examples)
            for (spec, _), found in zip(tasks, results, strict=True):
                result = response.results.add()
                set_model_spec(result.model_spec, servable, spec)
                if isinstance(found, Classification):
                    result.classification_result.SetInParent()
                    set_classification(result.classification_result, found)
                else:
                    result.regression_result.SetInParent()
                    set_regression(result.regression_result, found)
        return serialized(response)

    async def get_metadata(self, request: Any, call: Call) -> bytes:
        """GetModelMetadata."""
        return serialized(model_metadata(self._plane, _model_spec(request, call), request.metadata_field))


def given_spec(request: Any) -> ModelSpec:
    """The request's ModelSpec; `InvalidArgumentError` if it has none."""
    if not request.HasField("model_spec"):
        raise InvalidArgumentError("Missing ModelSpec")
    return to_spec(request.model_spec)


def to_spec(spec: Any) -> ModelSpec:
    """A ModelSpec message as what the data plane takes."""
    return ModelSpec(
        name=spec.name,
        version=spec.version.value if spec.HasField("version") else None,
        version_label=spec.version_label if spec.HasField("version_label") else None,
        signature_name=spec.signature_name,
    )


def serialized(message: Any) -> bytes:
    """The bytes of a message."""
    data: bytes = message.SerializeToString()
    return data


def _model_spec(request: Any, call: Call) -> ModelSpec:
    spec = given_spec(request)
    call.model = spec.name
    return spec


def _examples(request: Any) -> list[bytes]:
    """The serialized examples of an Input, each behind the context, as protobuf merges them."""
    kind = request.input.WhichOneof("kind")
    if kind is None:
        return []
    listed = getattr(request.input, kind)
    context = listed.context.SerializeToString() if kind == "example_list_with_context" else b""
    return [context + example.SerializeToString() for example in listed.examples]
