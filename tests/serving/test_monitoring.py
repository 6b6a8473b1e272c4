"""The page that Prometheus reads, held to a strict grammar of its format."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from servable.errors import Code
from servable.serving import Server, ServerOptions
from servable.serving.monitoring import DEFAULT_PATH, MAX_UNKNOWN_MODELS, OTHER_MODELS, Call, Monitor
from servable.serving.rest_front import RestOptions
from servable.store import Store

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"'
TYPE = re.compile(rf"# TYPE ({NAME}) (counter|gauge|histogram)")
SAMPLE = re.compile(rf"({NAME})\{{((?:{LABEL}(?:,(?!\}}))?)*)\}} (-?[0-9.]+(?:e[+-][0-9]+)?)")

LATENCY_LIMITS = [f"{10 * 1.8**i:.6g}" for i in range(33)] + ["+Inf"]
COUNT = ":tensorflow:serving:request_count"
LATENCY = ":tensorflow:serving:request_latency"
RUNTIME = ":tensorflow:serving:runtime_latency"
STAGES = "servable_request_stage_seconds"

Labels = frozenset[tuple[str, str]]


@dataclass
class Family:
    """One metric: its type, and the value of each sample by the name's suffix and the labels, in order."""

    kind: str
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)

    def get(self, suffix: str = "", **labels: str) -> float:
        return self.samples.get((suffix, frozenset(labels.items())), 0.0)

    def limits(self, **labels: str) -> list[str]:
        """The bucket limits of one histogram, in the order of the page."""
        return [
            dict(found)["le"]
            for suffix, found in self.samples
            if suffix == "_bucket" and dict(found).items() >= labels.items()
        ]

    def buckets(self, **labels: str) -> list[float]:
        return [self.get("_bucket", le=limit, **labels) for limit in self.limits(**labels)]


def unescaped(value: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]), value)


def parse(text: str) -> dict[str, Family]:
    """A whole page; fails at the first line that is not exactly as it should be."""
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    families: dict[str, Family] = {}
    name = ""
    for line in text.removesuffix("\n").split("\n"):
        if found := TYPE.fullmatch(line):
            name = found[1]
            assert name not in families, f"{name} is declared twice"
            families[name] = Family(found[2])
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        family = families[name]
        suffix = match[1].removeprefix(name)
        assert match[1] == name + suffix, f"{line} stands below {name}"
        assert suffix in (("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)), line
        pairs = [(key, unescaped(value)) for key, value in re.findall(LABEL, match[2])]
        assert len({key for key, _ in pairs}) == len(pairs), line
        sample = (suffix, frozenset(pairs))
        assert sample not in family.samples, f"{line} stands there twice"
        family.samples[sample] = float(match[5])
    for family in families.values():
        if family.kind == "histogram":
            check_histogram(family)
    return families


def check_histogram(family: Family) -> None:
    groups = {frozenset(p for p in labels if p[0] != "le") for _, labels in family.samples}
    for group in groups:
        labels = dict(group)
        buckets = family.buckets(**labels)
        assert buckets == sorted(buckets), "buckets are cumulative"
        assert family.limits(**labels)[-1] == "+Inf"
        assert buckets[-1] == family.get("_count", **labels)
        assert ("_sum", group) in family.samples


@pytest.fixture
def watched(store: Store) -> Iterator[Server]:
    options = ServerOptions(port=0, rest_api_port=0, rest=RestOptions(metrics_path=DEFAULT_PATH))
    with Server(store, options) as server:
        yield server


def page(server: Server, path: str = DEFAULT_PATH) -> dict[str, Family]:
    response = httpx.get(f"http://127.0.0.1:{server.rest_port}{path}", trust_env=False)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain"
    return parse(response.text)


def rest(server: Server, path: str, method: str = "GET", body: str = "") -> httpx.Response:
    return httpx.request(method, f"http://127.0.0.1:{server.rest_port}{path}", content=body, trust_env=False)


def call(server: Server, method: str, request: Any) -> Any:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        return getattr(prediction_service_pb2_grpc.PredictionServiceStub(channel), method)(request, timeout=30)


def predict(model: str = "celsius") -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.inputs["celsius"].CopyFrom(tf.make_tensor_proto(np.float32([[1]])))
    return request


def example(**features: Any) -> tf.train.Example:
    message = tf.train.Example()
    for name, values in features.items():
        message.features.feature[name].float_list.value.extend(np.ravel(values))
    return message


def test_a_fresh_page_declares_every_metric(watched: Server) -> None:
    families = page(watched)
    assert {name: family.kind for name, family in families.items()} == {
        COUNT: "counter",
        LATENCY: "histogram",
        RUNTIME: "histogram",
        ":tensorflow:serving:request_example_counts": "histogram",
        ":tensorflow:serving:request_example_count_total": "counter",
        ":tensorflow:serving:request_log_count": "counter",
        ":tensorflow:serving:mlmd_map": "gauge",
        ":tensorflow:core:graph_runs": "counter",
        ":tensorflow:serving:batching_session:queuing_latency": "histogram",
        ":tensorflow:serving:batching_session:wrapped_run_count": "counter",
        ":tensorflow:serving:batching_session:padding_size": "histogram",
        ":tensorflow:serving:batching_session:input_batch_size": "histogram",
        ":tensorflow:serving:batching_session:processed_batch_size": "histogram",
        ":tensorflow:serving:model_warmup_latency": "histogram",
        ":tensorflow:serving:model_warmup_records_read": "counter",
        ":tensorflow:core:graph_run_time_usecs": "counter",
        ":tensorflow:cc:saved_model:load_attempt_count": "counter",
        ":tensorflow:cc:saved_model:load_latency": "counter",
        "servable_request_stage_seconds": "histogram",
        "servable_engine_info": "gauge",
    }
    assert families[COUNT].samples == {}, "reading the page is not counted"


def test_the_page_answers_any_method(watched: Server) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert rest(watched, DEFAULT_PATH, method).status_code == 200
    assert page(watched)[COUNT].samples == {}


def test_grpc_calls(watched: Server, store: Store) -> None:
    call(watched, "Predict", predict())
    call(watched, "Predict", predict())
    with pytest.raises(grpc.RpcError):
        call(watched, "Predict", predict("nope"))
    with pytest.raises(grpc.RpcError):
        call(watched, "Predict", predict_pb2.PredictRequest())
    classify = classification_pb2.ClassificationRequest()
    classify.model_spec.name, classify.model_spec.signature_name = "cnn", "classify"
    classify.input.example_list.examples.append(example(image=np.zeros(784)))
    call(watched, "Classify", classify)
    regress = regression_pb2.RegressionRequest()
    regress.model_spec.name, regress.model_spec.signature_name = "celsius", "regress"
    regress.input.example_list.examples.append(example(celsius=[1.0]))
    call(watched, "Regress", regress)
    # These two are not counted, but for MultiInference's examples.
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.name = "celsius"
    call(watched, "GetModelMetadata", metadata)
    multi = inference_pb2.MultiInferenceRequest()
    task = multi.tasks.add(method_name="tensorflow/serving/regress")
    task.model_spec.name, task.model_spec.signature_name = "celsius", "regress"
    multi.input.example_list.examples.extend([example(celsius=[1.0])] * 3)
    call(watched, "MultiInference", multi)

    families = page(watched)
    assert families[COUNT].samples == {
        ("", frozenset({("model_name", model), ("status", status)})): count
        for model, status, count in (
            ("celsius", "OK", 3),
            ("cnn", "OK", 1),
            ("nope", "NOT_FOUND", 1),
            ("", "INVALID_ARGUMENT", 1),
        )
    }
    for model, api, count in (("celsius", "Predict", 2), ("cnn", "Classify", 1), ("celsius", "Regress", 1)):
        labels = {"model_name": model, "API": api, "entrypoint": "GRPC"}
        assert families[LATENCY].limits(**labels) == LATENCY_LIMITS
        assert families[LATENCY].get("_count", **labels) == count
        assert families[LATENCY].get("_sum", **labels) > 0
        assert families[RUNTIME].get("_count", model_name=model, API=api, runtime="onnx") == count
    assert not families[LATENCY].limits(model_name="nope"), "only successes have a latency"
    counts = families[":tensorflow:serving:request_example_counts"]
    assert counts.limits(model="celsius") == [str(2**i) for i in range(15)] + ["+Inf"]
    assert counts.buckets(model="celsius")[:4] == [0, 0, 1, 1], "a limit is exclusive: 3 < 4"
    assert families[":tensorflow:serving:request_example_count_total"].get(model="celsius") == 3


def test_rest_calls(watched: Server) -> None:
    body = '{"instances": [[1.0]]}'
    for path, method, content in (
        ("/v1/models/celsius:predict", "POST", body),
        ("/v1/models/celsius:predict", "POST", "{"),
        ("/v1/models/celsius:predict", "POST", body),
        ("/v1/models/celsius:regress", "POST", '{"signature_name": "regress", "examples": [{"celsius": 1.0}]}'),
        ("/v1/models/celsius", "GET", ""),
        ("/v1/models/celsius/metadata", "GET", ""),
        ("/v1/models/nope", "GET", ""),
        ("/v1/models/nope:predict", "POST", body),
        ("/v1/models", "GET", ""),
        ("/v1/x", "DELETE", ""),
        ("/v1/x", "OPTIONS", ""),
        ("/healthz", "GET", ""),
        ("/nothing", "GET", ""),
        ("/openapi.json", "GET", ""),
    ):
        rest(watched, path, method, content)
    families = page(watched)
    found = {
        (dict(labels)["model_name"], dict(labels)["status"]): value
        for (_, labels), value in families[COUNT].samples.items()
    }
    assert found[("celsius", "OK")] == 5
    assert found[("celsius", "INVALID_ARGUMENT")] == 1
    assert found[("nope", "NOT_FOUND")] == 2
    assert found[("", "INVALID_ARGUMENT")] >= 2
    assert sum(found.values()) == 11, "every call below /v1/ and no other"
    for api, count in (("predict", 2), ("regress", 1), ("", 2)):
        labels = {"model_name": "celsius", "API": api, "entrypoint": "REST"}
        assert families[LATENCY].limits(**labels) == LATENCY_LIMITS
        assert families[LATENCY].get("_count", **labels) == count
    for api, count in (("Predict", 2), ("Regress", 1)):
        assert families[RUNTIME].get("_count", model_name="celsius", API=api, runtime="onnx") == count
    assert families[RUNTIME].limits(model_name="celsius", API="Predict") == LATENCY_LIMITS


def test_stages_and_engines(watched: Server) -> None:
    for _ in range(3):
        rest(watched, "/v1/models/celsius:predict", "POST", '{"instances": [[1.0]]}')
    families = page(watched)
    for stage in ("queue", "decode", "run", "encode"):
        labels = {"model_name": "celsius", "version": "1", "runtime": "onnx", "stage": stage}
        assert families[STAGES].get("_count", **labels) == 3
        limits = families[STAGES].limits(**labels)
        assert limits[0] == "1e-05"
        assert limits[-2:] == ["10", "+Inf"]
    engines = families["servable_engine_info"].samples
    assert set(engines.values()) == {1.0}
    told = {(dict(labels)["model_name"], dict(labels)["signature"]): dict(labels) for _, labels in engines}
    assert {key for key in told if key[0] == "cnn"} == {
        ("cnn", name) for name in ("serving_default", "serve_bytes", "classify")
    }
    assert told["cnn", "classify"]["runtime"] == "onnx"
    assert told["cnn", "classify"]["version"] == "1"
    assert told["cnn", "classify"]["reason"] == "the manifest proves parity"


def test_loads(watched: Server, store: Store) -> None:
    families = page(watched)
    for model in ("celsius", "mlp", "cnn"):
        path = str(store.path(model))
        attempts = families[":tensorflow:cc:saved_model:load_attempt_count"]
        assert attempts.get(model_path=path, status="success") == 1
        assert families[":tensorflow:cc:saved_model:load_latency"].get(model_path=path) > 0


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "a\rb", "é", 'le="+Inf"} 1', "a\tb", "{}", "\u2028", "\x00"])
def test_hostile_names_do_not_break_the_page(watched: Server, name: str) -> None:
    quoted = "".join(f"%{byte:02X}" for byte in name.encode())
    assert rest(watched, f"/v1/models/{quoted}").status_code == 404
    assert page(watched)[COUNT].get(model_name=name, status="NOT_FOUND") == 1


def test_a_name_that_is_no_utf8_does_not_break_the_page(watched: Server) -> None:
    assert rest(watched, "/v1/models/%FF%FE").status_code == 404
    assert sum(page(watched)[COUNT].samples.values()) == 1


def test_the_page_does_not_grow_with_made_up_names(watched: Server) -> None:
    for i in range(MAX_UNKNOWN_MODELS + 20):
        rest(watched, f"/v1/models/made-up-{i}")
    rest(watched, "/v1/models/cnn")
    counts = page(watched)[COUNT]
    assert len(counts.samples) == MAX_UNKNOWN_MODELS + 2
    assert counts.get(model_name=OTHER_MODELS, status="NOT_FOUND") == 20
    assert counts.get(model_name="cnn", status="OK") == 1, "a served model keeps its own"


@pytest.mark.parametrize("path", ["/metrics", "/v1/models/celsius", "/healthz"])
def test_a_path_of_ones_own_comes_before_the_api(store: Store, path: str) -> None:
    options = ServerOptions(port=None, rest_api_port=0, rest=RestOptions(metrics_path=path))
    with Server(store, options) as server:
        assert COUNT in page(server, path)
        assert rest(server, DEFAULT_PATH).status_code == 404
        response = rest(server, f"{path}?x=1")
        assert (response.status_code, response.text) == (400, f"Unexpected path: {path}?x=1. Should be {path}")


def test_without_a_path_there_is_no_page(server: Server) -> None:
    assert rest(server, DEFAULT_PATH).status_code == 404


# The monitor alone: values that no real call has for certain


def finished(monitor: Monitor, microseconds: float, code: Code = Code.OK) -> None:
    call = Call("Predict", "GRPC", 1)
    call.model = "m"
    call._last_ns = 1 + int(microseconds * 1000)
    monitor.finish(call, code)


def test_a_limit_belongs_to_the_next_bucket() -> None:
    monitor = Monitor()
    for microseconds in (9.999, 10, 17.999, 18, 1e10):
        finished(monitor, microseconds)
    family = parse(monitor.page().decode())[LATENCY]
    labels = {"model_name": "m", "API": "Predict", "entrypoint": "GRPC"}
    assert family.buckets(**labels)[:3] == [1, 3, 4]
    assert family.buckets(**labels)[-2:] == [4, 5]
    assert family.get("_sum", **labels) == pytest.approx(1e10, rel=1e-5)


def test_every_code_is_counted_by_its_name() -> None:
    monitor = Monitor()
    for code in Code:
        finished(monitor, 1, code)
    family = parse(monitor.page().decode())[COUNT]
    assert {dict(labels)["status"] for _, labels in family.samples} == {code.name for code in Code}


def test_no_call_is_lost_or_counted_twice() -> None:
    monitor = Monitor()

    def work(read: Callable[[], bytes]) -> None:
        for i in range(2000):
            finished(monitor, 1)
            if i % 100 == 0:
                parse(read().decode())

    threads = [threading.Thread(target=work, args=(monitor.page,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert parse(monitor.page().decode())[COUNT].get(model_name="m", status="OK") == 8000
