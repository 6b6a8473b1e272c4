"""The catalogue against the models that its cards build, and the shipped weights against their records."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import pytest

from servable import metrics
from servable.errors import NotFoundError
from servable.models import CATALOGUE, card, samples, training
from servable.models.data import DEBIAN_FOLDER, Split, load_celsius, load_fashion_mnist

NAMES = ("celsius", "mlp", "cnn")
IMAGE_MODELS = ("mlp", "cnn")
MAX_WEIGHTS_BYTES = 1_300_000

# As the course builds them; a layer is its class with the settings that matter.
LAYERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "celsius": [("Dense", {"units": 1, "activation": "linear", "use_bias": True})],
    "mlp": [
        ("Flatten", {}),
        ("Dense", {"units": 256, "activation": "relu"}),
        ("Dropout", {"rate": 0.4}),
        ("Dense", {"units": 256, "activation": "relu"}),
        ("Dropout", {"rate": 0.4}),
        ("Dense", {"units": 10, "activation": "softmax"}),
    ],
    "cnn": [
        ("Conv2D", {"filters": 64, "kernel_size": (3, 3), "activation": "relu"}),
        ("MaxPooling2D", {"pool_size": (2, 2)}),
        ("Conv2D", {"filters": 64, "kernel_size": (3, 3), "activation": "relu"}),
        ("MaxPooling2D", {"pool_size": (2, 2)}),
        ("Flatten", {}),
        ("Dropout", {"rate": 0.2}),
        ("Dense", {"units": 10, "activation": "softmax"}),
    ],
}


@cache
def trained(name: str) -> Any:
    return training.load(card(name))


@cache
def whole_test_split(dataset: str) -> Split:
    return load_celsius().test if dataset == "celsius" else load_fashion_mnist().test


def measure(name: str, split: Split) -> float:
    outputs = trained(name).predict(split.inputs, batch_size=500, verbose=0)
    return metrics.compute(card(name).metric, outputs, split.targets)


def test_the_catalogue_holds_the_models_of_these_tests() -> None:
    assert set(CATALOGUE) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_the_course_s(name: str) -> None:
    built = card(name).build()
    found = [
        (type(layer).__name__, {key: layer.get_config()[key] for key in expected})
        for layer, (_, expected) in zip(built.layers, LAYERS[name], strict=True)
    ]
    assert found == LAYERS[name]


@pytest.mark.parametrize(("name", "count"), [("celsius", 2), ("mlp", 269_322), ("cnn", 53_578)])
def test_parameter_counts(name: str, count: int) -> None:
    assert card(name).build().count_params() == count
    assert card(name).record["parameters"] == count


@pytest.mark.parametrize("name", NAMES)
def test_signatures_match_the_built_models(name: str) -> None:
    model = card(name).build()
    (given,) = model.inputs
    (spec,) = card(name).signature.inputs.values()
    assert (given.name, given.dtype, tuple(given.shape)) == (spec.name, spec.dtype, spec.shape)
    (answered,) = model.outputs
    (spec,) = card(name).signature.outputs.values()
    assert (answered.dtype, tuple(answered.shape)) == (spec.dtype, spec.shape)


@pytest.mark.parametrize(
    ("name", "given", "answered"),
    [("celsius", "celsius", "fahrenheit"), ("mlp", "image", "probabilities"), ("cnn", "image", "probabilities")],
)
def test_names_mean_something(name: str, given: str, answered: str) -> None:
    signature = card(name).signature
    assert (list(signature.inputs), list(signature.outputs)) == ([given], [answered])


@pytest.mark.parametrize("name", NAMES)
def test_labels_and_preprocessing_fit_the_signature(name: str) -> None:
    entry = card(name)
    (given,), (answered,) = entry.signature.inputs.values(), entry.signature.outputs.values()
    if entry.task == "regression":
        assert entry.labels == ()
        assert entry.preprocessing is None
        return
    how = entry.preprocessing
    assert how is not None
    assert given.shape == (None, how.height, how.width, how.channels)
    assert answered.shape == (None, len(entry.labels))
    assert len(set(entry.labels)) == len(entry.labels)


@pytest.mark.parametrize(("name", "least"), [("mlp", 0.89), ("cnn", 0.915)])
def test_recorded_accuracy(name: str, least: float) -> None:
    test = card(name).record["test"]
    assert test["metric"] == "accuracy"
    assert test["samples"] == 10_000
    assert test["value"] >= least


def test_recorded_error_of_celsius() -> None:
    test = card("celsius").record["test"]
    assert test["metric"] == "mae"
    assert test["samples"] == 141
    assert test["value"] < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_are_small_and_those_of_the_record(name: str) -> None:
    content = card(name).weights_path.read_bytes()
    assert len(content) < MAX_WEIGHTS_BYTES
    assert hashlib.sha256(content).hexdigest() == card(name).record["weights_sha256"]
    assert card(name).record["model"] == name


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_shipped_weights_reach_about_their_record_on_the_shipped_samples(name: str) -> None:
    value = measure(name, samples.test_samples(card(name)))
    assert value == pytest.approx(card(name).record["test"]["value"], abs=0.03)


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_shipped_weights_reach_their_record_on_the_whole_test_set(name: str) -> None:
    value = measure(name, whole_test_split(card(name).dataset))
    assert value == pytest.approx(card(name).record["test"]["value"], abs=0.002)


def test_shipped_celsius_converts_every_degree() -> None:
    split = whole_test_split("celsius")
    assert split.inputs.ravel().tolist() == list(range(-40, 101))
    assert measure("celsius", split) < 0.1


@pytest.mark.parametrize(("name", "suggested"), [("ccn", "cnn"), ("celcius", "celsius"), ("MLP", "mlp")])
def test_an_unknown_name_suggests_the_nearest(name: str, suggested: str) -> None:
    with pytest.raises(NotFoundError, match=rf"no model '{name}' in the catalogue.*Known: celsius, cnn, mlp") as caught:
        card(name)
    if name.islower():
        assert f"did you mean {suggested!r}" in str(caught.value)
