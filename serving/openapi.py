"""The REST API described in OpenAPI 3.1, for the models that are served."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import orjson

_VERSIONED = ("", "/versions/{version}", "/labels/{label}")
_ERROR = {
    "description": "what was wrong",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}


def document(models: Sequence[str], metrics_path: str) -> bytes:
    """The description as JSON; ``models`` are the names that a path may hold."""
    paths: dict[str, Any] = {}
    for part in _VERSIONED:
        base = f"/v1/models/{{model}}{part}"
        parameters = [_parameter("model", models), *([_parameter(part.split("/")[-1].strip("{}"))] if part else [])]
        paths[base] = {"get": _operation("GetModelStatus", part, "ModelStatus"), "parameters": parameters}
        paths[f"{base}/metadata"] = {"get": _operation("GetModelMetadata", part, "Metadata"), "parameters": parameters}
        for verb in ("predict", "classify", "regress"):
            kind = "Predict" if verb == "predict" else "Examples"
            operation = _operation(verb.capitalize(), part, f"{verb.capitalize()}Response", f"{kind}Request")
            paths[f"{base}:{verb}"] = {"post": operation, "parameters": parameters}
    paths["/healthz"] = {"get": {"operationId": "Health", "responses": {"200": {"description": "the server answers"}}}}
    if metrics_path:
        page = {"description": "metrics in Prometheus's text format", "content": {"text/plain": {}}}
        paths[metrics_path] = {"get": {"operationId": "Metrics", "responses": {"200": page}}}
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "TensorFlow Serving REST API",
                "version": version("servable"),
                "description": "Numbers may be the bare words NaN, Infinity and -Infinity, as in TensorFlow Serving.",
            },
            "paths": paths,
            "components": {"schemas": _SCHEMAS},
        }
    )


def _parameter(name: str, values: Sequence[str] = ()) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer", "format": "int64"} if name == "version" else {"type": "string"}
    if values:
        schema["enum"] = list(values)
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _operation(name: str, part: str, response: str, request: str = "") -> dict[str, Any]:
    suffix = {"": "", "/versions/{version}": "OfVersion", "/labels/{label}": "OfLabel"}[part]
    operation: dict[str, Any] = {
        "operationId": f"{name}{suffix}",
        "responses": {
            "200": {
                "description": "the answer",
                "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{response}"}}},
            },
            "default": _ERROR,
        },
    }
    if request:
        schema = {"schema": {"$ref": f"#/components/schemas/{request}"}}
        operation["requestBody"] = {"required": True, "content": {"application/json": schema}}
    return operation


_SIGNATURE_NAME = {"type": "string", "description": "serving_default if absent"}
_SCHEMAS = {
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "PredictRequest": {
        "type": "object",
        "properties": {
            "signature_name": _SIGNATURE_NAME,
            "instances": {"type": "array", "minItems": 1, "description": "one value, or one object of inputs, a row"},
            "inputs": {"description": "the whole batch: a value, or an object of inputs"},
        },
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    },
    "PredictResponse": {
        "type": "object",
        "properties": {
            "predictions": {"type": "array", "description": "in answer to instances"},
            "outputs": {"description": "in answer to inputs"},
        },
    },
    "ExamplesRequest": {
        "type": "object",
        "required": ["examples"],
        "properties": {
            "signature_name": _SIGNATURE_NAME,
            "context": {"type": "object", "description": "features that all examples share"},
            "examples": {"type": "array", "minItems": 1, "items": {"type": "object"}},
        },
    },
    "ClassifyResponse": {
        "type": "object",
        "required": ["results"],
        "properties": {"results": {"type": "array", "description": "for each example a list of [label, score]"}},
    },
    "RegressResponse": {
        "type": "object",
        "required": ["results"],
        "properties": {"results": {"type": "array", "items": {"type": "number"}}},
    },
    "ModelStatus": {
        "type": "object",
        "required": ["model_version_status"],
        "properties": {
            "model_version_status": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["version", "state", "status"],
                    "properties": {
                        "version": {"type": "string"},
                        "state": {"enum": ["UNKNOWN", "START", "LOADING", "AVAILABLE", "UNLOADING", "END"]},
                        "status": {
                            "type": "object",
                            "properties": {"error_code": {"type": "string"}, "error_message": {"type": "string"}},
                        },
                    },
                },
            }
        },
    },
    "Metadata": {
        "type": "object",
        "required": ["model_spec", "metadata"],
        "properties": {"model_spec": {"type": "object"}, "metadata": {"type": "object"}},
    },
}
