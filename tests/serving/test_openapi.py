"""/openapi.json: a sound OpenAPI 3.1 document, and answers that are as it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import httpx
import pytest

from servable.serving import Server, ServerOptions
from servable.serving.monitoring import DEFAULT_PATH
from servable.serving.rest_front import RestOptions
from servable.store import Store

METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


@pytest.fixture(scope="module")
def watched(store: Store) -> Iterator[Server]:
    options = ServerOptions(port=None, rest_api_port=0, rest=RestOptions(metrics_path=DEFAULT_PATH))
    with Server(store, options) as server:
        yield server


@pytest.fixture(scope="module")
def url(watched: Server) -> str:
    return f"http://127.0.0.1:{watched.rest_port}"


@pytest.fixture(scope="module")
def document(url: str) -> dict[str, Any]:
    response = httpx.get(f"{url}/openapi.json", trust_env=False)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    found: dict[str, Any] = response.json()
    return found


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every object within a value."""
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item)


def resolve(document: Any, reference: str) -> Any:
    assert reference.startswith("#/")
    found = document
    for part in reference[2:].split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in METHODS:
                yield path, method, item, operation


def test_the_head(document: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert isinstance(document["info"]["title"], str)
    assert isinstance(document["info"]["version"], str)
    assert document.keys() <= {"openapi", "info", "servers", "paths", "components", "tags"}


def test_every_reference_resolves_and_every_schema_is_used(document: dict[str, Any]) -> None:
    references = {item["$ref"] for item in walk(document) if "$ref" in item}
    for reference in references:
        assert isinstance(resolve(document, reference), dict)
    assert references == {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


def test_operations_are_whole(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for *_, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    for path, method, item, operation in operations(document):
        assert item.keys() - METHODS <= {"parameters", "summary", "description"}
        parameters = [*item.get("parameters", []), *operation.get("parameters", [])]
        assert [p["name"] for p in parameters] == re.findall(r"\{([^}]+)\}", path)
        for parameter in parameters:
            assert (parameter["in"], parameter["required"]) == ("path", True)
            assert parameter["schema"]["type"] in ("string", "integer")
        assert "200" in operation["responses"]
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[1-5]\d\d|default", status)
            assert response["description"]
        assert ("requestBody" in operation) == (method == "post")


TYPES = {"object", "array", "string", "number", "integer", "boolean", "null"}


def test_schemas_are_json_schema(document: dict[str, Any]) -> None:
    for schema in walk(document["components"]["schemas"]):
        if isinstance(schema.get("type"), str):
            assert schema["type"] in TYPES
        if "required" in schema and "properties" in schema:
            assert set(schema["required"]) <= schema["properties"].keys()
        if isinstance(schema.get("enum"), list):
            assert len(set(schema["enum"])) == len(schema["enum"])


def test_every_route_is_there(document: dict[str, Any]) -> None:
    base = "/v1/models/{model}"
    expected = {("/healthz", "get"), (DEFAULT_PATH, "get")}
    for part in ("", "/versions/{version}", "/labels/{label}"):
        expected |= {(f"{base}{part}", "get"), (f"{base}{part}/metadata", "get")}
        expected |= {(f"{base}{part}:{verb}", "post") for verb in ("predict", "classify", "regress")}
    assert {(path, method) for path, method, *_ in operations(document)} == expected


def test_the_models_are_those_that_are_served(document: dict[str, Any]) -> None:
    for path, _, item, _ in operations(document):
        if "{model}" in path:
            assert item["parameters"][0]["schema"]["enum"] == ["celsius", "cnn", "mlp"]


def test_without_metrics_their_path_is_not_described(server: Server) -> None:
    found = httpx.get(f"http://127.0.0.1:{server.rest_port}/openapi.json", trust_env=False).json()
    assert not [path for path in found["paths"] if PurePosixPath(path).name == "metrics"]


def check(document: Any, schema: Any, value: Any, where: str = "$") -> None:
    """Hold a value to as much of JSON Schema as the document uses."""
    if "$ref" in schema:
        check(document, resolve(document, schema["$ref"]), value, where)
        return
    python = {"object": dict, "array": list, "string": str, "number": (int, float), "integer": int}
    if "type" in schema:
        assert isinstance(value, python[schema["type"]]), where
    if "enum" in schema:
        assert value in schema["enum"], where
    assert schema.keys() <= {
        "$ref",
        "type",
        "enum",
        "required",
        "properties",
        "items",
        "description",
        "minItems",
        "oneOf",
    }
    if "oneOf" in schema:
        assert sum(set(choice["required"]) <= value.keys() for choice in schema["oneOf"]) == 1, where
    for name in schema.get("required", []):
        assert name in value, f"{where}.{name}"
    for name, inner in schema.get("properties", {}).items():
        if name in value:
            check(document, inner, value[name], f"{where}.{name}")
    if isinstance(value, list):
        assert len(value) >= schema.get("minItems", 0), where
        for i, item in enumerate(value):
            check(document, schema.get("items", {}), item, f"{where}[{i}]")


PIXELS = {"image": [0.0] * 784}
CALLS = [
    ("GET", "celsius", "", None),
    ("GET", "celsius", "/metadata", None),
    ("POST", "celsius", ":predict", {"instances": [[1.0]]}),
    ("POST", "celsius", ":predict", {"inputs": {"celsius": [[1.0]]}}),
    ("POST", "celsius", ":regress", {"signature_name": "regress", "examples": [{"celsius": 1.0}]}),
    ("POST", "cnn", ":classify", {"signature_name": "classify", "examples": [PIXELS], "context": {}}),
]


@pytest.mark.parametrize(("method", "model", "end", "body"), CALLS)
@pytest.mark.parametrize("part", ["", "/versions/1"])
def test_answers_are_as_described(
    document: dict[str, Any], url: str, method: str, model: str, end: str, body: Any, part: str
) -> None:
    described = document["paths"]["/v1/models/{model}" + part.replace("1", "{version}") + end][method.lower()]
    if body:
        check(document, described["requestBody"]["content"]["application/json"]["schema"], body)
    content = json.dumps(body) if body else None
    response = httpx.request(method, f"{url}/v1/models/{model}{part}{end}", content=content, trust_env=False)
    assert response.status_code == 200, response.text
    (kind,) = described["responses"]["200"]["content"]
    assert response.headers["content-type"] == kind
    check(document, described["responses"]["200"]["content"][kind]["schema"], response.json())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "nope", 404), ("GET", "celsius/metadata/", 400), ("POST", "celsius:predict", 400), ("PUT", "x", 400)],
)
def test_errors_are_as_described(document: dict[str, Any], url: str, method: str, path: str, status: int) -> None:
    response = httpx.request(method, f"{url}/v1/models/{path}", trust_env=False)
    assert response.status_code == status
    check(document, {"$ref": "#/components/schemas/Error"}, response.json())
    assert response.json().keys() == {"error"}


def test_the_other_pages(document: dict[str, Any], url: str) -> None:
    assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    page = httpx.get(f"{url}{DEFAULT_PATH}", trust_env=False)
    (kind,) = document["paths"][DEFAULT_PATH]["get"]["responses"]["200"]["content"]
    assert page.headers["content-type"] == kind
