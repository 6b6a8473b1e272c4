"""Classify, Regress, MultiInference and Predict's finer points: the official stubs and curl call our server.

Beside our own store they run on a SavedModel that TensorFlow writes here, with a signature for every
way to be wrong.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from servable.models import card
from servable.models.samples import test_samples as labelled_samples
from servable.serving import Aspired, Server, ServerOptions
from servable.serving.engines import LoadOptions
from servable.serving.grpc_front import GrpcOptions
from servable.store import Store

CLASSIFY, REGRESS, PREDICT = (f"tensorflow/serving/{name}" for name in ("classify", "regress", "predict"))
ANY = ServerOptions(port=0, rest_api_port=0)
Stub = prediction_service_pb2_grpc.PredictionServiceStub


# The SavedModel: examples hold x (two floats) and b (a float that the context may bring).

Outputs = dict[str, Any]


def signatures(x: Any, b: Any) -> dict[str, tuple[str, str, Outputs]]:
    """Signature → method name, input key, outputs; the tensors have as many rows as there are examples."""
    rows = tf.shape(x)[0]
    scores = x + b
    value = tf.reduce_sum(x, axis=1) + b[:, 0]
    classes = tf.tile(tf.constant([["no", "yes"]]), [rows, 1])
    three = tf.concat([scores, scores[:, :1]], axis=1)
    return {
        "both": (CLASSIFY, "inputs", {"classes": classes, "scores": scores}),
        "only_scores": (CLASSIFY, "inputs", {"scores": scores}),
        "only_classes": (CLASSIFY, "inputs", {"classes": classes}),
        "scores_and_another": (CLASSIFY, "inputs", {"scores": scores, "more": classes}),
        "not_utf8": (CLASSIFY, "inputs", {"classes": tf.tile(tf.constant([[b"caf\xe9"]]), [rows, 1])}),
        "classify_called_predict": (PREDICT, "inputs", {"scores": scores}),
        "classify_input_key": (CLASSIFY, "examples", {"scores": scores}),
        "classify_three_outputs": (CLASSIFY, "inputs", {"scores": scores, "classes": classes, "more": value}),
        "classify_no_known_output": (CLASSIFY, "inputs", {"probabilities": scores}),
        "flat_scores": (CLASSIFY, "inputs", {"scores": value}),
        "flat_classes": (CLASSIFY, "inputs", {"classes": classes[:, 0], "scores": scores}),
        "deep_scores": (CLASSIFY, "inputs", {"scores": scores[:, :, None]}),
        "double_scores": (CLASSIFY, "inputs", {"scores": tf.cast(scores, tf.float64)}),
        "float_classes": (CLASSIFY, "inputs", {"classes": scores}),
        "short_scores": (CLASSIFY, "inputs", {"scores": scores[:1]}),
        "short_classes": (CLASSIFY, "inputs", {"classes": classes[:1]}),
        "wide_scores": (CLASSIFY, "inputs", {"classes": classes, "scores": three}),
        "regress": (REGRESS, "inputs", {"outputs": value}),
        "regress_column": (REGRESS, "inputs", {"outputs": value[:, None]}),
        "regress_called_classify": (CLASSIFY, "inputs", {"outputs": value}),
        "regress_input_key": (REGRESS, "examples", {"outputs": value}),
        "regress_output_key": (REGRESS, "inputs", {"value": value}),
        "regress_two_outputs": (REGRESS, "inputs", {"outputs": value, "more": scores}),
        "wide_outputs": (REGRESS, "inputs", {"outputs": scores}),
        "deep_outputs": (REGRESS, "inputs", {"outputs": value[:, None, None]}),
        "scalar_output": (REGRESS, "inputs", {"outputs": tf.reduce_sum(value)}),
        "double_output": (REGRESS, "inputs", {"outputs": tf.cast(value, tf.float64)}),
        "int_output": (REGRESS, "inputs", {"outputs": tf.cast(value, tf.int32)}),
        "short_output": (REGRESS, "inputs", {"outputs": value[:1]}),
        "own_method": ("mine/own", "inputs", {"outputs": value}),
    }


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the SavedModel."""
    folder = tmp_path_factory.mktemp("odd") / "1"
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        serialized = v1.placeholder(tf.string, [None], "examples")
        other = v1.placeholder(tf.float32, [None, 2], "other")
        features = {"x": tf.io.FixedLenFeature([2], tf.float32), "b": tf.io.FixedLenFeature([1], tf.float32, [0.0])}
        parsed = tf.io.parse_example(serialized, features)
        info = v1.saved_model.utils.build_tensor_info
        found = signatures(parsed["x"], parsed["b"])
        build = v1.saved_model.signature_def_utils.build_signature_def
        map_ = {
            name: build({key: info(serialized)}, {alias: info(tensor) for alias, tensor in outputs.items()}, method)
            for name, (method, key, outputs) in found.items()
        }
        two = {"inputs": info(serialized), "other": info(other)}
        map_["classify_two_inputs"] = build(two, map_["both"].outputs, CLASSIFY)
        map_["regress_two_inputs"] = build(two, map_["regress"].outputs, REGRESS)
        map_["classify_takes_floats"] = build({"inputs": info(other)}, {"scores": info(other + 1)}, CLASSIFY)
        builder = v1.saved_model.builder.SavedModelBuilder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=map_)
        builder.save()
    return folder


@pytest.fixture(scope="module")
def odd_server(odd: Path) -> Iterator[Server]:
    with Server([Aspired("odd", {1: odd})], ANY) as server:
        yield server


@pytest.fixture(scope="module")
def strict_server(odd: Path) -> Iterator[Server]:
    """With --enable_signature_method_name_check."""
    with Server([Aspired("odd", {1: odd})], replace(ANY, check_method_names=True)) as server:
        yield server


@contextmanager
def stub_of(server: Server) -> Iterator[Stub]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield Stub(channel)


@pytest.fixture(scope="module")
def stub(odd_server: Server) -> Iterator[Stub]:
    with stub_of(odd_server) as stub:
        yield stub


@pytest.fixture(scope="module")
def strict(strict_server: Server) -> Iterator[Stub]:
    with stub_of(strict_server) as stub:
        yield stub


@pytest.fixture(scope="module")
def ours(server: Server) -> Iterator[Stub]:
    """On the store."""
    with stub_of(server) as stub:
        yield stub


def example(**features: Any) -> tf.train.Example:
    message = tf.train.Example()
    for name, values in features.items():
        kind = message.features.feature[name]
        if isinstance(values, bytes):
            kind.bytes_list.value.append(values)
        else:
            kind.float_list.value.extend(np.ravel(values))
    return message


TWO = (example(x=[1.0, 2.0]), example(x=[3.0, 4.0]))


def classification(signature: str = "", *examples: Any, model: str = "odd") -> classification_pb2.ClassificationRequest:
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if examples:
        request.input.example_list.examples.extend(examples)
    return request


def regression(signature: str = "", *examples: Any, model: str = "odd") -> regression_pb2.RegressionRequest:
    request = regression_pb2.RegressionRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if examples:
        request.input.example_list.examples.extend(examples)
    return request


def refused(call: Callable[..., Any], request: Any) -> tuple[str, str]:
    """Code and text of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=30)
    return caught.value.code().name, caught.value.details()


def pairs(response: classification_pb2.ClassificationResponse) -> list[list[tuple[str, float]]]:
    return [[(c.label, c.score) for c in item.classes] for item in response.result.classifications]


def curl(server: Server, path: str, body: Any) -> tuple[int, Any]:
    """Status and decoded JSON of a POST."""
    tool = shutil.which("curl")
    assert tool, "curl is not installed"
    command = [tool, "-sS", "-w", "\n%{http_code}", "--data-binary", "@-"]
    command.append(f"http://127.0.0.1:{server.rest_port}/v1/models/{path}")
    done = subprocess.run(command, input=json.dumps(body).encode(), capture_output=True, check=True, timeout=30)
    text, _, status = done.stdout.decode().rpartition("\n")
    return int(status), json.loads(text)


# Classify


def test_classify_answers_labels_and_scores(stub: Stub) -> None:
    response = stub.Classify(classification("both", *TWO), timeout=30)
    assert pairs(response) == [[("no", 1.0), ("yes", 2.0)], [("no", 3.0), ("yes", 4.0)]]
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("odd", 1, "both")
    assert spec.WhichOneof("version_choice") == "version"


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("only_scores", [("", 1.0), ("", 2.0)]),
        ("only_classes", [("no", 0.0), ("yes", 0.0)]),
        ("scores_and_another", [("", 1.0), ("", 2.0)]),
        ("classify_called_predict", [("", 1.0), ("", 2.0)]),
        ("not_utf8", [("caf\ufffd", 0.0)]),
    ],
)
def test_classify_fills_in_what_the_signature_lacks(
    stub: Stub, signature: str, expected: list[tuple[str, float]]
) -> None:
    assert pairs(stub.Classify(classification(signature, TWO[0]), timeout=30)) == [expected]


def test_the_context_is_merged_into_each_example_and_the_example_wins(stub: Stub) -> None:
    request = regression("regress")
    with_context = request.input.example_list_with_context
    with_context.context.CopyFrom(example(b=[10.0]))
    with_context.examples.extend([*TWO, example(x=[0.0, 0.0], b=[5.0])])
    response = stub.Regress(request, timeout=30)
    assert [item.value for item in response.result.regressions] == [13.0, 17.0, 5.0]


def test_a_context_without_examples_is_an_empty_input(stub: Stub) -> None:
    request = regression("regress")
    request.input.example_list_with_context.context.CopyFrom(example(b=[10.0]))
    assert refused(stub.Regress, request) == ("INVALID_ARGUMENT", "Input is empty.")


CLASSIFY_ERRORS = [
    ("nope", "No signature was found with the name: nope"),
    ("", "No signature was found with the name: serving_default"),
    ("classify_two_inputs", "Expected one input Tensor."),
    ("classify_three_outputs", "Expected one or two output Tensors, found 3"),
    ("classify_input_key", "No classification inputs found in SignatureDef: …"),
    (
        "classify_no_known_output",
        'Expected classification signature outputs to contain at least one of "classes" or "scores". Signature was: …',
    ),
    ("flat_scores", "Expected Tensor shape: [batch_size num_classes] but got [2]"),
    ("flat_classes", "Expected Tensor shape: [batch_size num_classes] but got [2]"),
    ("deep_scores", "Expected Tensor shape: [batch_size num_classes] but got [2,2,1]"),
    ("double_scores", "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
    ("float_classes", "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
    ("short_scores", "Expected scores output batch size of 2. Got: 1"),
    ("short_classes", "Expected classes output batch size of 2. Got: 1"),
    ("wide_scores", "Tensors class and score should match in dim_size(1). Got 2 vs. 3"),
    ("classify_takes_floats", "Expects arg[0] to be float but string is provided"),
]
REGRESS_ERRORS = [
    ("nope", "No signature was found with the name: nope"),
    ("", "No signature was found with the name: serving_default"),
    ("regress_two_inputs", "Expected one input Tensor."),
    ("regress_two_outputs", "Expected one output Tensor."),
    ("regress_input_key", "No regression inputs found in SignatureDef: …"),
    ("regress_output_key", "No regression outputs found in SignatureDef: …"),
    ("wide_outputs", "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]"),
    ("deep_outputs", "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,1,1]"),
    ("scalar_output", "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got []"),
    ("double_output", "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE"),
    ("int_output", "Expected output Tensor of DT_FLOAT.  Got: DT_INT32"),
    ("short_output", "Input batch size did not match output batch size: 2 vs. 1"),
]


def same(found: str, expected: str) -> bool:
    """Whether a text is the expected one; behind … stands a dump that the original calls unstable."""
    return found.startswith(expected[:-1]) if expected.endswith("…") else found == expected


@pytest.mark.parametrize(("signature", "text"), CLASSIFY_ERRORS)
def test_classify_errors(stub: Stub, odd_server: Server, signature: str, text: str) -> None:
    code, found = refused(stub.Classify, classification(signature, *TWO))
    assert code == "INVALID_ARGUMENT"
    assert same(found, text), found
    body = {"signature_name": signature, "examples": [{"x": [1.0, 2.0]}, {"x": [3.0, 4.0]}]}
    status, answer = curl(odd_server, "odd:classify", body)
    assert status == 400
    assert same(answer["error"], text), answer


@pytest.mark.parametrize(("signature", "text"), REGRESS_ERRORS)
def test_regress_errors(stub: Stub, odd_server: Server, signature: str, text: str) -> None:
    code, found = refused(stub.Regress, regression(signature, *TWO))
    assert code == "INVALID_ARGUMENT"
    assert same(found, text), found
    body = {"signature_name": signature, "examples": [{"x": [1.0, 2.0]}, {"x": [3.0, 4.0]}]}
    status, answer = curl(odd_server, "odd:regress", body)
    assert status == 400
    assert same(answer["error"], text), answer


@pytest.mark.parametrize("signature", ["regress", "regress_column", "regress_called_classify", "own_method"])
def test_regress_answers_a_value_for_each_example(stub: Stub, signature: str) -> None:
    response = stub.Regress(regression(signature, *TWO), timeout=30)
    assert [item.value for item in response.result.regressions] == [3.0, 7.0]
    assert response.model_spec.signature_name == signature
    assert response.model_spec.version.value == 1


def test_no_examples_and_no_kind_are_an_empty_input(stub: Stub) -> None:
    for call, make in ((stub.Classify, classification), (stub.Regress, regression)):
        request = make("both" if make is classification else "regress")
        assert refused(call, request) == ("INVALID_ARGUMENT", "Input is empty.")
        request.input.example_list.SetInParent()
        assert refused(call, request) == ("INVALID_ARGUMENT", "Input is empty.")


def test_an_example_without_a_feature_is_the_callers_fault(stub: Stub) -> None:
    code, text = refused(stub.Classify, classification("both", example(y=[1.0])))
    assert code == "INVALID_ARGUMENT"
    assert "x" in text


def test_a_missing_model_spec_and_unknown_models(stub: Stub) -> None:
    for call, make in ((stub.Classify, classification), (stub.Regress, regression)):
        request = make("both", *TWO, model="nope")
        assert refused(call, request) == ("NOT_FOUND", "Servable not found for request: Latest(nope)")
        request.ClearField("model_spec")
        assert refused(call, request) == ("INVALID_ARGUMENT", "Missing ModelSpec")
        request.model_spec.version.value = 1
        assert refused(call, request) == ("INVALID_ARGUMENT", "ModelSpec has no name specified.")
        request.model_spec.name = "odd"
        request.model_spec.version.value = 5
        assert refused(call, request) == ("NOT_FOUND", "Servable not found for request: Specific(odd, 5)")


# --enable_signature_method_name_check


def test_checked_method_names(strict: Stub, strict_server: Server) -> None:
    assert len(pairs(strict.Classify(classification("both", *TWO), timeout=30))) == 2
    assert len(strict.Regress(regression("regress", *TWO), timeout=30).result.regressions) == 2
    text = f"Expected classification signature method_name to be {CLASSIFY}. Was: {PREDICT}"
    assert refused(strict.Classify, classification("classify_called_predict", *TWO)) == ("INVALID_ARGUMENT", text)
    body = {"signature_name": "classify_called_predict", "examples": [{"x": [1.0, 2.0]}]}
    assert curl(strict_server, "odd:classify", body) == (400, {"error": text})
    text = f"Expected regression signature method_name to be {REGRESS}. Was: {CLASSIFY}"
    assert refused(strict.Regress, regression("regress_called_classify", *TWO)) == ("INVALID_ARGUMENT", text)


@pytest.mark.parametrize("signature", ["both", "regress", "classify_called_predict"])
def test_predict_takes_all_three_methods_where_they_are_checked(strict: Stub, signature: str) -> None:
    assert strict.Predict(predict(signature, inputs=serialized(*TWO)), timeout=30).outputs


def test_predict_refuses_other_methods_where_they_are_checked(strict: Stub, stub: Stub) -> None:
    request = predict("own_method", inputs=serialized(*TWO))
    assert stub.Predict(request, timeout=30).outputs["outputs"].float_val == [3.0, 7.0]
    assert refused(strict.Predict, request) == (
        "INTERNAL",
        f"Expected prediction signature method_name to be one of {{{PREDICT}, {CLASSIFY}, {REGRESS}}}. Was: mine/own",
    )


# MultiInference


def multi(*tasks: tuple[str, str], model: str = "odd", examples: Any = TWO) -> inference_pb2.MultiInferenceRequest:
    request = inference_pb2.MultiInferenceRequest()
    for signature, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name = model
        task.model_spec.signature_name = signature
    request.input.example_list.examples.extend(examples)
    return request


def test_multi_inference_answers_in_the_order_of_the_tasks(stub: Stub) -> None:
    response = stub.MultiInference(multi(("regress", REGRESS), ("both", CLASSIFY)), timeout=30)
    first, second = response.results
    assert [item.value for item in first.regression_result.regressions] == [3.0, 7.0]
    assert [[c.score for c in item.classes] for item in second.classification_result.classifications] == [
        [1, 2],
        [3, 4],
    ]
    assert (first.model_spec.signature_name, second.model_spec.signature_name) == ("regress", "both")
    assert {(r.model_spec.name, r.model_spec.version.value) for r in response.results} == {("odd", 1)}


def test_multi_inference_looks_at_the_version_of_the_first_task_alone(stub: Stub) -> None:
    request = multi(("regress", REGRESS), ("both", CLASSIFY))
    request.tasks[1].model_spec.version.value = 77
    assert len(stub.MultiInference(request, timeout=30).results) == 2
    request.tasks[0].model_spec.version.value = 77
    text = "Servable not found for request: Specific(odd, 77)"
    assert refused(stub.MultiInference, request) == ("NOT_FOUND", text)


def other_model() -> inference_pb2.MultiInferenceRequest:
    request = multi(("regress", REGRESS), ("both", CLASSIFY))
    request.tasks[1].model_spec.name = "another"
    return request


def nameless_second() -> inference_pb2.MultiInferenceRequest:
    request = multi(("regress", REGRESS), ("both", CLASSIFY))
    request.tasks[1].model_spec.name = ""
    return request


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (multi(), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (multi(("regress", REGRESS), model=""), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (nameless_second(), "INVALID_ARGUMENT", "Found ModelSpec with an empty model name."),
        (
            other_model(),
            "INVALID_ARGUMENT",
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            multi(("both", CLASSIFY), ("both", CLASSIFY)),
            "INVALID_ARGUMENT",
            "Duplicate evaluation of signature: both",
        ),
        (
            multi(("both", CLASSIFY), ("nope", CLASSIFY)),
            "INVALID_ARGUMENT",
            "Requested signature not found in model graph: nope",
        ),
        (
            multi(("", CLASSIFY)),
            "INVALID_ARGUMENT",
            "Requested signature not found in model graph: serving_default",
        ),
        (multi(("both", PREDICT)), "UNIMPLEMENTED", f"Unsupported signature method_name: {PREDICT}"),
        (multi(("both", "")), "UNIMPLEMENTED", "Unsupported signature method_name: "),
        (multi(("regress", REGRESS), ("flat_scores", CLASSIFY)), "INVALID_ARGUMENT", CLASSIFY_ERRORS[6][1]),
        (multi(("both", CLASSIFY), ("regress_output_key", REGRESS)), "INVALID_ARGUMENT", REGRESS_ERRORS[5][1]),
        (multi(("both", CLASSIFY), examples=()), "INVALID_ARGUMENT", "Input is empty."),
        (multi(("regress", REGRESS), model="nope"), "NOT_FOUND", "Servable not found for request: Latest(nope)"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_multi_inference_errors(
    stub: Stub, request_: inference_pb2.MultiInferenceRequest, code: str, text: str
) -> None:
    found = refused(stub.MultiInference, request_)
    assert found[0] == code
    assert same(found[1], text), found


# What we export


@pytest.mark.parametrize("runtime", ["auto", "tensorflow"])
def test_classify_and_regress_of_the_store_answer_what_tensorflow_answers(store: Store, runtime: Any) -> None:
    """The twin that ``auto`` chooses, and TensorFlow behind our server, beside tf.saved_model itself."""
    images = labelled_samples(card("cnn")).inputs[:4]
    examples = [example(image=image) for image in images]
    loaded = tf.saved_model.load(str(store.path("cnn"))).signatures["classify"]
    expected = loaded(inputs=tf.constant([e.SerializeToString() for e in examples]))
    options = replace(ANY, load=LoadOptions(runtime=runtime))
    celsius = [example(celsius=[degrees]) for degrees in (-40.0, 0.0, 100.0)]
    with Server(store, options) as server, stub_of(server) as stub:
        response = stub.Classify(classification("classify", *examples, model="cnn"), timeout=30)
        values = stub.Regress(regression("regress", *celsius, model="celsius"), timeout=30).result.regressions
        rest = curl(server, "celsius:regress", {"signature_name": "regress", "examples": [{"celsius": 100.0}]})
    labels = [[label.decode() for label in row] for row in expected["classes"].numpy().tolist()]
    assert [[label for label, _ in row] for row in pairs(response)] == labels
    scores = [[score for _, score in row] for row in pairs(response)]
    np.testing.assert_allclose(scores, expected["scores"].numpy(), atol=1e-5)
    regress = tf.saved_model.load(str(store.path("celsius"))).signatures["regress"]
    expected = regress(inputs=tf.constant([e.SerializeToString() for e in celsius]))
    np.testing.assert_allclose([v.value for v in values], expected["outputs"].numpy().ravel(), rtol=1e-5)
    assert rest[1]["results"] == pytest.approx(expected["outputs"].numpy().ravel()[2:], rel=1e-5)


@pytest.mark.parametrize(
    ("make", "model", "signature", "examples"),
    [
        (classification, "cnn", "classify", [example(wrong=[1.0])]),
        (classification, "cnn", "classify", [example(image=np.zeros(5))]),
        (classification, "cnn", "classify", [example(image=b"bytes")]),
        (regression, "celsius", "regress", [example(celsius=[1.0]), example()]),
        (regression, "celsius", "regress", [example(celsius=[1.0, 2.0])]),
    ],
)
def test_examples_that_do_not_fit_are_the_callers_fault(
    ours: Stub, make: Any, model: str, signature: str, examples: list[Any]
) -> None:
    call = ours.Classify if make is classification else ours.Regress
    code, text = refused(call, make(signature, *examples, model=model))
    assert code == "INVALID_ARGUMENT"
    assert ("image" if model == "cnn" else "celsius") in text


def test_bytes_that_are_no_example_are_the_callers_fault(ours: Stub) -> None:
    """Predict on a classify signature takes the serialized examples themselves."""
    code, text = refused(ours.Predict, predict("classify", model="cnn", inputs=np.array([b"\xff\xff"], object)))
    assert code == "INVALID_ARGUMENT"
    assert text


def test_the_wrong_method_on_our_signatures(ours: Stub) -> None:
    assert refused(ours.Regress, regression("classify", *TWO, model="cnn"))[1] == "Expected one output Tensor."
    code, text = refused(ours.Classify, classification("", *TWO, model="cnn"))
    assert code == "INVALID_ARGUMENT"
    assert text.startswith("No classification inputs found in SignatureDef: ")


# REST


def test_rest_classify(odd_server: Server) -> None:
    body = {"signature_name": "both", "examples": [{"x": [1.0, 2.0]}, {"x": [3.0, 4.0]}]}
    expected = {"results": [[["no", 1.0], ["yes", 2.0]], [["no", 3.0], ["yes", 4.0]]]}
    assert curl(odd_server, "odd:classify", body) == (200, expected)
    assert curl(odd_server, "odd/versions/1:classify", body) == (200, expected)
    body["signature_name"] = "only_scores"
    assert curl(odd_server, "odd:classify", body)[1]["results"][0] == [["", 1.0], ["", 2.0]]
    body["signature_name"] = "only_classes"
    assert curl(odd_server, "odd:classify", body)[1]["results"][0] == [["no", 0.0], ["yes", 0.0]]


def test_rest_regress_with_context(odd_server: Server) -> None:
    examples = [{"x": [1.0, 2.0]}, {"x": [3.0, 4.0], "b": 1.5}]
    body: dict[str, Any] = {"signature_name": "regress", "examples": examples}
    assert curl(odd_server, "odd:regress", body) == (200, {"results": [3.0, 8.5]})
    body["context"] = {"b": [10.0]}
    assert curl(odd_server, "odd:regress", body) == (200, {"results": [13.0, 8.5]})


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
        ({"examples": []}, "JSON Value: …"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{"x": None}]}, "Feature: x has element with unexpected JSON type: Null"),
        ({"examples": [{"x": [8.0, 9]}]}, "Unexpected element type in feature: x expecting type: float"),
        ({"examples": [{"x": 9}], "context": 4}, "Example must be JSON object but got JSON Number"),
    ],
)
@pytest.mark.parametrize("verb", ["classify", "regress"])
def test_rest_examples_are_checked_before_the_model_is_looked_for(
    odd_server: Server, verb: str, body: Any, text: str
) -> None:
    status, answer = curl(odd_server, f"nope:{verb}", body)
    assert status == 400
    assert same(answer["error"], text), answer


def test_rest_unknown_model(odd_server: Server) -> None:
    body = {"examples": [{"x": [1.0, 2.0]}]}
    for verb in ("classify", "regress"):
        expected = {"error": "Servable not found for request: Latest(nope)"}
        assert curl(odd_server, f"nope:{verb}", body) == (404, expected)


# Predict: default values, output_filter, tensor_content


def predict(signature: str = "", model: str = "odd", **inputs: Any) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return request


def serialized(*examples: tf.train.Example) -> Any:
    return np.array([e.SerializeToString() for e in examples], object)


class Scaled(tf.Module):
    """y = scale·x + bias, where scale and bias may be left out."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, "x"),
            tf.TensorSpec([], tf.float32, "scale"),
            tf.TensorSpec([], tf.float32, "bias"),
        ]
    )
    def scaled(self, x: Any, scale: Any = tf.constant(2.0), bias: Any = tf.constant(0.5)) -> Any:  # noqa: B008  # a SignatureDef default
        return {"y": scale * x + bias}

    @tf.function(input_signature=[tf.TensorSpec([2], tf.float32, "x")])
    def optional(self, x: Any = tf.constant([1.0, 2.0])) -> Any:  # noqa: B008  # a SignatureDef default
        return {"y": x, "text_bytes": tf.strings.as_string(x), "pairs": tf.stack([x, x])}

    @tf.function(input_signature=[])
    def nothing(self) -> Any:
        return {"y": tf.constant([7.0])}


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scaled") / "1"
    module = Scaled()
    signatures = {"serving_default": module.scaled, "optional": module.optional, "nothing": module.nothing}
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


@pytest.fixture(scope="module")
def scaled_server(scaled: Path) -> Iterator[Server]:
    with Server([Aspired("scaled", {3: scaled})], ANY) as server:
        yield server


@pytest.fixture(scope="module")
def defaults(scaled_server: Server) -> Iterator[Stub]:
    with stub_of(scaled_server) as stub:
        yield stub


F = np.float32


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({}, [2.5, 4.5]),
        ({"bias": F(10)}, [12.0, 14.0]),
        ({"scale": F(3)}, [3.5, 6.5]),
        ({"scale": F(0), "bias": F(1)}, [1.0, 1.0]),
    ],
)
def test_inputs_with_a_default_may_be_left_out(defaults: Stub, inputs: dict[str, Any], expected: list[float]) -> None:
    response = defaults.Predict(predict("", "scaled", x=np.array([1, 2], F), **inputs), timeout=30)
    assert list(response.outputs["y"].float_val) == expected
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("scaled", 3, "serving_default")


def test_a_request_without_inputs_where_all_have_defaults_or_there_are_none(defaults: Stub) -> None:
    assert list(defaults.Predict(predict("optional", "scaled"), timeout=30).outputs["y"].float_val) == [1.0, 2.0]
    assert list(defaults.Predict(predict("nothing", "scaled"), timeout=30).outputs["y"].float_val) == [7.0]


def test_the_initializer_cannot_be_called(defaults: Stub) -> None:
    """Every TF2 SavedModel has this signature, and the original lists it and cannot run it either."""
    assert refused(defaults.Predict, predict("__saved_model_init_op", "scaled")) == (
        "OUT_OF_RANGE",
        "Node 'NoOp' (type: 'NoOp', num of outputs: 0) does not have output 0",
    )


def test_an_empty_label_is_a_label(stub: Stub) -> None:
    request = classification("both", *TWO)
    request.model_spec.version_label = ""
    text = "Unrecognized servable version label: "
    assert refused(stub.Classify, request) == ("INVALID_ARGUMENT", text)
    request.model_spec.name = "nope"
    assert refused(stub.Classify, request) == ("INVALID_ARGUMENT", text)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (
            predict("", "scaled", bias=F(1)),
            "Signature input alias: x(feed name: serving_default_x:0) not found in request and no default value "
            "provided. Inputs expected to be in the request {bias}, or default input alias set: bias,scale",
        ),
        (
            predict("", "scaled", x=F([1]), q=F(1)),
            "Inputs contains invalid name. Used request inputs: x, request input: q,x",
        ),
        (
            predict("optional", "scaled", y=F([1, 2])),
            "Inputs contains invalid name. Used request inputs: , request input: y",
        ),
        (
            predict("", "scaled", x=F([1]), q=F(1), r=F(2), s=F(3)),
            "input size does not match signature: 4!=3 len({q,r,s,x}) != len({bias,scale,x}). "
            "Sent extra: {q,r,s}. Missing but required: {bias,scale}.",
        ),
        (
            predict("both", "odd", a=F(1), b=F(2)),
            "input size does not match signature: 2!=1 len({a,b}) != len({inputs}). "
            "Sent extra: {a,b}. Missing but required: {inputs}.",
        ),
        (predict("", "scaled", x=F([1]), bias=np.int32(1)), "Expects arg[…"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_wrong_inputs(defaults: Stub, stub: Stub, request_: predict_pb2.PredictRequest, text: str) -> None:
    call = stub.Predict if request_.model_spec.name == "odd" else defaults.Predict
    code, found = refused(call, request_)
    assert code == "INVALID_ARGUMENT"
    assert same(found, text), found


def test_rest_needs_every_input_in_row_form_and_in_columns(scaled_server: Server) -> None:
    status, answer = curl(scaled_server, "scaled:predict", {"instances": [{"x": 1.0}]})
    assert status == 400
    assert "keys must be equal to: bias,scale,x" in answer["error"]
    status, answer = curl(scaled_server, "scaled:predict", {"inputs": {"x": [1.0]}})
    assert (status, answer["error"]) == (400, "Missing named input: bias in 'inputs' object.")
    status, answer = curl(scaled_server, "scaled:predict", {"signature_name": "nothing", "inputs": {}})
    assert (status, answer["error"]) == (400, "Failed to get input map for signature: nothing")


def test_outputs_are_those_of_the_filter(defaults: Stub) -> None:
    request = predict("optional", "scaled")
    request.output_filter.extend(["text_bytes", "y"])
    response = defaults.Predict(request, timeout=30)
    assert set(response.outputs) == {"text_bytes", "y"}
    request.output_filter.append("nope")
    known = "pairs,text_bytes,y"
    text = f"output tensor alias not found in signature: nope Outputs expected to be in the set {{{known}}}."
    assert refused(defaults.Predict, request) == ("INVALID_ARGUMENT", text)
    request.output_filter[2] = "y"
    assert refused(defaults.Predict, request) == ("INVALID_ARGUMENT", "duplicate output tensor alias: y")
    request.output_filter[:] = [""]
    assert refused(defaults.Predict, request)[1].startswith("output tensor alias not found in signature:  Outputs")


def test_serialization_as_tensor_content(scaled: Path, scaled_server: Server) -> None:
    """--enable_serialization_as_tensor_content; REST goes on as before."""
    options = replace(ANY, grpc=GrpcOptions(as_content=True))
    with Server([Aspired("scaled", {3: scaled})], options) as server, stub_of(server) as stub:
        response = stub.Predict(predict("optional", "scaled"), timeout=30)
        body = {"signature_name": "optional", "inputs": [1.0, 2.0]}
        assert curl(server, "scaled:predict", body) == curl(scaled_server, "scaled:predict", body)
    for alias, fields in (("y", "float_val"), ("pairs", "float_val"), ("text_bytes", "string_val")):
        proto = response.outputs[alias]
        assert proto.tensor_content
        assert not len(getattr(proto, fields))
    np.testing.assert_array_equal(tf.make_ndarray(response.outputs["pairs"]), [[1, 2], [1, 2]])
    # make_ndarray does not read strings from tensor_content; TensorFlow's own kernel does.
    text = tf.io.parse_tensor(response.outputs["text_bytes"].SerializeToString(), tf.string)
    assert text.numpy().tolist() == [b"1.000000", b"2.000000"]


def test_strings_in_tensor_content_are_read(stub: Stub) -> None:
    """As TensorFlow's own encoding has them: varint lengths, then the bytes."""
    texts = [e.SerializeToString() for e in TWO]
    request = predict("regress", "odd", inputs=serialized(*TWO))
    proto = request.inputs["inputs"]
    del proto.string_val[:]
    proto.tensor_content = bytes(map(len, texts)) + b"".join(texts)
    assert tf.io.parse_tensor(proto.SerializeToString(), tf.string).numpy().tolist() == texts
    assert list(stub.Predict(request, timeout=30).outputs["outputs"].float_val) == [3.0, 7.0]
