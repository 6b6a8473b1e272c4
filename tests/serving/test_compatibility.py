"""serving/COMPATIBILITY.md says what the code does: its tables are held against flags, services, routes and metrics."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import descriptor_pb2

from servable.serving import Server, ServerOptions, openapi, routes
from servable.serving.flags import FLAGS, Flag
from servable.serving.model_config import ModelConfig
from servable.serving.monitoring import DEFAULT_PATH, Monitor
from servable.serving.rest_front import RestOptions
from servable.serving.sources import ConfigSource
from servable.store import Store
from servable.wire import messages

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "serving" / "COMPATIBILITY.md").read_text()
BEGIN, END = "<!-- flags: begin -->", "<!-- flags: end -->"
# Defaults that depend on the machine.
BY_CPUS = {"rest_api_num_threads": "4 × CPUs", "grpc_max_threads": "4 × CPUs", "num_tflite_pools": "CPUs"}
QUALIFIERS = ("", "/versions/{version}", "/labels/{label}")
NAMED_TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")


def section(title: str) -> str:
    """The text below a heading of the second level."""
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"serving/COMPATIBILITY.md has no section {title!r}"
    return found[1]


def rows(title: str) -> Iterator[list[str]]:
    """The cells of the tables in a section whose first cell is code, without its backquotes."""
    for line in section(title).splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            yield [cells[0].strip("`"), *cells[1:]]


def by_first_cell(title: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for first, *others in rows(title):
        assert first not in found, f"{first} is listed twice"
        found[first] = others
    return found


# flags


def default_text(flag: Flag) -> str:
    if flag.name in BY_CPUS:
        return BY_CPUS[flag.name]
    if flag.kind == "bool":
        return str(flag.default).lower()
    if flag.kind == "string":
        return flag.default or "empty"
    return f"{flag.default:g}" if flag.kind == "float" else str(flag.default)


def flags_table() -> str:
    lines = ["| flag | type | default | state | note |", "|---|---|---|---|---|"]
    for flag in FLAGS:
        assert "|" not in flag.note
        cells = (f"`--{flag.name}`", flag.kind, default_text(flag), flag.support.value, flag.note)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_table_of_flags_is_that_of_the_code() -> None:
    written = TEXT.partition(BEGIN)[2].partition(END)[0].strip()
    expected = flags_table()
    assert written == expected, f"put this between {BEGIN} and {END}:\n{expected}"


# gRPC


def declared_methods() -> set[str]:
    raw = resources.files("servable.wire").joinpath("descriptors.binpb").read_bytes()
    return {
        f"{file.package}.{service.name}/{method.name}"
        for file in descriptor_pb2.FileDescriptorSet.FromString(raw).file
        for service in file.service
        for method in service.method
    }


def test_every_method_of_the_services_is_listed() -> None:
    listed = by_first_cell("gRPC")
    assert declared_methods() <= listed.keys()
    assert {state for state, *_ in listed.values()} <= {"served", "not there"}


@pytest.mark.parametrize("method", [method for method, *_ in rows("gRPC")])
def test_a_method_is_served_where_the_table_says_so(server: Server, method: str) -> None:
    state = by_first_cell("gRPC")[method][0]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        # A stream that gets no message ends at once; whether there is such a method is told before.
        call = channel.stream_stream(f"/{method}")
        try:
            list(call(iter(()), timeout=2))
            code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            code = error.code()
    assert (code is not grpc.StatusCode.UNIMPLEMENTED) == (state == "served")


# REST


def expanded(path: str) -> bytes:
    return path.replace("{model}", "m").replace("{version}", "1").replace("{label}", "l").encode()


def test_every_route_is_listed_and_leads_where_it_says() -> None:
    found = set()
    for request, _, verb, *_ in rows("REST"):
        method, path = request.split(" ")
        if not path.startswith("/v1/"):
            continue
        route = routes.find(method.encode(), expanded(path))
        assert route
        assert (route.problem, route.verb, route.spec.name) == ("", verb, "m")
        part = next(part for part in QUALIFIERS[::-1] if part in path)
        assert (route.spec.version is not None, route.spec.version_label is not None) == (
            part == QUALIFIERS[1],
            part == QUALIFIERS[2],
        )
        found.add((verb, part))
    assert found == set(product((*routes.VERBS, "status", "metadata"), QUALIFIERS))


IMAGE = {"image": [0.5] * 784}
# What to ask for each verb, and of which model.
ASKED: dict[str, tuple[str, dict[str, Any] | None]] = {
    "predict": ("celsius", {"instances": [[100.0]]}),
    "classify": ("mlp", {"signature_name": "classify", "examples": [IMAGE]}),
    "regress": ("celsius", {"signature_name": "regress", "examples": [{"celsius": 100.0}]}),
    "status": ("celsius", None),
    "metadata": ("celsius", None),
}


@pytest.fixture(scope="module")
def address(store: Store) -> Iterator[str]:
    options = ServerOptions(port=None, rest_api_port=0, rest=RestOptions(metrics_path=DEFAULT_PATH))
    models = [ModelConfig(name, store.root / name, labels={"stable": 1}) for name in store.models()]
    with Server(ConfigSource(models), options) as running:
        yield f"http://127.0.0.1:{running.rest_port}"


@pytest.mark.parametrize("request_", [first for first, *_ in rows("REST")])
def test_every_route_answers_as_the_table_says(address: str, request_: str) -> None:
    state, verb = by_first_cell("REST")[request_][:2]
    method, path = request_.split(" ")
    model, body = ASKED.get(verb, ("", None))
    path = path.format(model=model, version=1, label="stable")
    answer = httpx.request(method, address + path, json=body, trust_env=False)
    assert (state, answer.status_code) == ("served", 200)


def test_the_openapi_document_has_the_same_paths() -> None:
    described = json.loads(openapi.document([], DEFAULT_PATH))["paths"]
    wanted = {
        f"{method.upper()} {path}" for path, item in described.items() for method in item if method != "parameters"
    }
    assert wanted | {"GET /openapi.json"} == by_first_cell("REST").keys()


# configuration files


# Messages whose fields are listed; others are values, or have a note of their own.
LISTED = {"ModelConfigList", "ModelConfig", "PrometheusConfig"}


def fields(message: Any, prefix: str) -> Iterator[str]:
    for field in message.fields:
        if field.message_type and field.message_type.name in LISTED:
            yield from fields(field.message_type, f"{prefix}.{field.name}")
        else:
            yield f"{prefix}.{field.name}"


def test_every_configuration_field_is_listed() -> None:
    files = (messages.BatchingParameters, messages.ModelServerConfig, messages.MonitoringConfig, messages.SSLConfig)
    known = {name for message in files for name in fields(message.DESCRIPTOR, message.DESCRIPTOR.name)}
    states = {name: cells[0] for name, *cells in rows("Configuration fields")}
    assert states.keys() == known
    assert set(states.values()) <= {"honoured", "refused"}


# metrics


def test_every_metric_is_listed() -> None:
    families = {family.name: family for family in Monitor()._families}
    listed = by_first_cell("Metrics")
    assert {name for name, (_, _, state, *_) in listed.items() if state in ("recorded", "declared")} == families.keys()
    assert {state for _, _, state, *_ in listed.values()} <= {"recorded", "declared", "not there"}
    for name, family in families.items():
        kind, labels = listed[name][:2]
        assert kind == family.kind
        assert labels == (", ".join(family.labels) or "none")


# tests


def functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_that_is_named_exists() -> None:
    named = set(NAMED_TEST.findall(TEXT))
    missing = sorted(
        f"{file}::{name}" for file, name in named if not (ROOT / file).is_file() or name not in functions(file)
    )
    assert named
    assert not missing


def test_everything_that_is_served_names_its_test() -> None:
    without = [first for first, state, *cells in rows("gRPC") if state == "served" and not NAMED_TEST.search(cells[-1])]
    without += [
        first for first, state, *cells in rows("REST") if state == "served" and not NAMED_TEST.search(cells[-1])
    ]
    assert not without
