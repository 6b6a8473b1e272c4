"""`RuntimeOptions`: threads, interpreters at a time, batches of other sizes, devices, tags."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from servable import runtimes
from servable.errors import ArtifactError, InputError, UnavailableError, UnimplementedError
from servable.runtimes import RuntimeOptions
from servable.store import Store

FILES = {"tensorflow": ".", "litert": "model.tflite", "onnx": "model.onnx"}


@pytest.mark.parametrize("engine", FILES)
@pytest.mark.parametrize("options", [RuntimeOptions(threads=2, inter_op_threads=2), RuntimeOptions(instances=3)])
def test_options_change_no_answer(store: Store, engine: str, options: RuntimeOptions) -> None:
    images = np.random.default_rng(0).random((4, 28, 28, 1), np.float32)
    path = store.path("cnn") / FILES[engine]
    with runtimes.load(path) as plain, runtimes.load(path, options) as tuned:
        expected = plain.run("serving_default", {"image": images})["probabilities"]
        found = tuned.run("serving_default", {"image": images})["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("instances", [1, 2, 5])
def test_any_number_of_interpreters_gives_each_caller_its_own_answer(store: Store, instances: int) -> None:
    path = store.path("celsius") / "model.tflite"
    with runtimes.load(path, RuntimeOptions(instances=instances)) as runtime, ThreadPoolExecutor(16) as pool:

        def ask(degrees: int) -> float:
            rows = np.full((1 + degrees % 3, 1), degrees, np.float32)
            answers = runtime.run("serving_default", {"celsius": rows})["fahrenheit"]
            assert len(answers) == len(rows)
            assert np.ptp(answers) < 1e-3
            return float(answers[0, 0])

        assert list(pool.map(ask, range(300))) == pytest.approx([32 + 1.8 * d for d in range(300)], abs=0.3)


def test_closing_ends_those_who_wait_for_an_interpreter(store: Store) -> None:
    runtime = runtimes.load(store.path("celsius") / "model.tflite", RuntimeOptions(instances=1))
    inputs = {"celsius": np.zeros((1, 1), np.float32)}
    started, ends = threading.Barrier(5), []

    def ask() -> None:
        started.wait()
        try:
            while True:
                runtime.run("serving_default", inputs)
        except UnavailableError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    runtime.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert ends == ["the model was unloaded"] * 4


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFLite file without signatures that declares a batch of one."""
    values = tf.keras.Input((3,), batch_size=1, name="x")
    model = tf.keras.Model(values, tf.keras.layers.Rescaling(2.0)(values))
    path = tmp_path_factory.mktemp("fixed") / "model.tflite"
    concrete = tf.function(model).get_concrete_function(tf.TensorSpec([1, 3], tf.float32))
    path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([concrete], model).convert())
    return path


def test_a_fixed_batch_is_kept_unless_it_may_be_resized(fixed: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with runtimes.load(fixed) as runtime:
        (name,) = runtime.signatures["serving_default"].inputs
        np.testing.assert_array_equal(*runtime.run("serving_default", {name: x[:1]}).values(), 2 * x[:1])
        with pytest.raises(InputError, match="has shape"):
            runtime.run("serving_default", {name: x})
    with runtimes.load(fixed, RuntimeOptions(resize=True)) as runtime:
        for rows in (x, x[:1], x):
            np.testing.assert_array_equal(*runtime.run("serving_default", {name: rows}).values(), 2 * rows)
        for wrong in (np.zeros((2, 4), np.float32), np.zeros(3, np.float32), np.zeros((), np.float32)):
            with pytest.raises(InputError, match="has shape"):
                runtime.run("serving_default", {name: wrong})


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="there is a GPU here")
@pytest.mark.parametrize("engine", FILES)
def test_a_gpu_that_there_is_not(store: Store, engine: str) -> None:
    with pytest.raises(UnimplementedError, match="--device cpu") as caught:
        runtimes.load(store.path("celsius") / FILES[engine], RuntimeOptions(device="gpu"))
    assert "\n" not in str(caught.value)


def test_tags_choose_the_meta_graph(store: Store) -> None:
    with runtimes.load(store.path("celsius"), RuntimeOptions(tags=("serve",))) as runtime:
        assert "serving_default" in runtime.signatures
    with pytest.raises(ArtifactError, match="gpu"):
        runtimes.load(store.path("celsius"), RuntimeOptions(tags=("serve", "gpu")))
