"""The ONNX twin answers every signature of the SavedModel, without TensorFlow, with the same numbers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from servable import runtimes
from servable.errors import ImageError, InputError, InternalError, NotFoundError
from servable.manifest import Artifact, Manifest
from servable.models.samples import sample_pictures
from servable.runtimes import Runtime, RuntimeOptions
from servable.runtimes.base import DEFAULT_OPTIONS
from servable.signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from servable.store import Store
from servable.twin import Twin
from servable.wire import examples

MODELS = ("celsius", "mlp", "cnn")
DERIVED = [
    ("celsius", "regress"),
    ("mlp", "classify"),
    ("mlp", "serve_bytes"),
    ("cnn", "classify"),
    ("cnn", "serve_bytes"),
]


@pytest.fixture(scope="module")
def pairs(store: Store) -> Iterator[dict[str, tuple[Twin, Runtime]]]:
    """For each model its twin and its SavedModel."""
    loaded: dict[str, tuple[Twin, Runtime]] = {}
    for model in MODELS:
        folder = store.path(model)
        twin = Twin(Manifest.read(folder), runtimes.load(folder / "model.onnx"))
        loaded[model] = (twin, runtimes.load(folder))
    yield loaded
    for twin, runtime in loaded.values():
        twin.runtime.close()
        runtime.close()


def batch_for(manifest: Manifest, signature: str, rows: int) -> dict[str, NDArray[Any]]:
    """A batch for any signature: noise, shipped pictures, or tf.Examples of noise."""
    (spec,) = manifest.signatures[signature].inputs.values()
    how = manifest.derivations.get(signature)
    noise = np.random.default_rng(rows)
    if how is None:
        return {spec.name: noise.random((rows, *[size or 1 for size in (spec.shape or ())[1:]]), np.float32)}
    array = np.empty(rows, dtype=object)
    if how.prologue == "decode_image":
        pictures = [path.read_bytes() for path in sample_pictures().values()]
        array[:] = [pictures[i % len(pictures)] for i in range(rows)]
    else:
        (base,) = batch_for(manifest, how.signature, rows).items()
        array[:] = [examples.encode({base[0]: row}) for row in base[1]]
    return {spec.name: array}


@pytest.mark.parametrize("model", MODELS)
def test_every_signature_of_the_saved_model_is_answered(
    model: str, pairs: dict[str, tuple[Twin, Runtime]], store: Store
) -> None:
    twin, runtime = pairs[model]
    assert sorted(twin.signatures()) == sorted(Manifest.read(store.path(model)).signatures)
    assert set(twin.signatures()) <= set(runtime.signatures)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize(("model", "signature"), [*[(model, DEFAULT_SIGNATURE) for model in MODELS], *DERIVED])
def test_twin_equals_the_saved_model(
    model: str, signature: str, rows: int, pairs: dict[str, tuple[Twin, Runtime]], store: Store
) -> None:
    twin, runtime = pairs[model]
    batch = batch_for(Manifest.read(store.path(model)), signature, rows)
    got, want = twin.run(signature, batch), runtime.run(signature, batch)
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].shape == want[name].shape
        assert got[name].dtype == want[name].dtype
        if want[name].dtype == object:
            assert got[name].tolist() == want[name].tolist()
        else:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_pictures_of_the_ten_classes_are_recognised(
    model: str, pairs: dict[str, tuple[Twin, Runtime]], store: Store
) -> None:
    manifest = Manifest.read(store.path(model))
    pictures = np.array([path.read_bytes() for path in sample_pictures().values()], dtype=object)
    scores = pairs[model][0].run("serve_bytes", {"image_bytes": pictures})["probabilities"]
    right = [
        manifest.labels[best] == label for best, label in zip(scores.argmax(axis=1), sample_pictures(), strict=True)
    ]
    assert sum(right) >= 8


def test_other_sizes_and_formats_of_a_picture(pairs: dict[str, tuple[Twin, Runtime]], tmp_path: Path) -> None:
    from PIL import Image

    encoded = []
    for i, path in enumerate(sample_pictures().values()):
        with Image.open(path) as image:
            target = tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}"
            image.convert("RGB").resize((20 + 13 * i, 90 - 5 * i)).save(target)
        encoded.append(target.read_bytes())
    twin, runtime = pairs["cnn"]
    batch = {"image_bytes": np.array(encoded, dtype=object)}
    got, want = twin.run("serve_bytes", batch), runtime.run("serve_bytes", batch)
    np.testing.assert_allclose(got["probabilities"], want["probabilities"], atol=1e-4)


@pytest.mark.parametrize(("signature", "outputs"), [("classify", ["classes"]), ("classify", ["scores", "classes"])])
def test_selected_outputs(
    signature: str, outputs: list[str], pairs: dict[str, tuple[Twin, Runtime]], store: Store
) -> None:
    batch = batch_for(Manifest.read(store.path("cnn")), signature, 2)
    for engine in pairs["cnn"]:
        assert list(engine.run(signature, batch, outputs)) == outputs


@pytest.mark.parametrize(("signature", "output"), [("classify", "score"), (DEFAULT_SIGNATURE, "probability")])
def test_unknown_output(signature: str, output: str, pairs: dict[str, tuple[Twin, Runtime]], store: Store) -> None:
    batch = batch_for(Manifest.read(store.path("cnn")), signature, 1)
    for engine in pairs["cnn"]:
        with pytest.raises(NotFoundError, match=rf"has no output '{output}'; did you mean"):
            engine.run(signature, batch, [output])


def test_unknown_signature(pairs: dict[str, tuple[Twin, Runtime]]) -> None:
    for engine in pairs["cnn"]:
        with pytest.raises(NotFoundError, match="no signature 'clasify'"):
            engine.run("clasify", {})


@pytest.mark.parametrize(
    "inputs", [{}, {"x": np.empty(0, object)}, {"inputs": np.empty(0, object), "more": np.empty(0)}]
)
def test_wrong_input_names_of_a_derived_signature(
    inputs: dict[str, NDArray[Any]], pairs: dict[str, tuple[Twin, Runtime]]
) -> None:
    for engine in pairs["cnn"]:
        with pytest.raises(InputError, match="'classify' takes the inputs inputs"):
            engine.run("classify", inputs)


@pytest.mark.parametrize(
    ("signature", "content", "expected"),
    [
        ("serve_bytes", b"text", ImageError),
        ("serve_bytes", b"", ImageError),
        ("classify", b"no example at all", InputError),
        ("classify", b"", InputError),
    ],
)
def test_content_that_the_prologue_refuses(
    signature: str, content: bytes, expected: type[Exception], pairs: dict[str, tuple[Twin, Runtime]], store: Store
) -> None:
    batch = batch_for(Manifest.read(store.path("cnn")), signature, 2)
    next(iter(batch.values()))[1] = content
    with pytest.raises(expected):
        pairs["cnn"][0].run(signature, batch)


@pytest.mark.parametrize(
    "value", [np.array(b"scalar", object), np.array([[b"a"], [b"b"]], object), np.zeros(2, np.float32)]
)
@pytest.mark.parametrize(("signature", "name"), [("classify", "inputs"), ("serve_bytes", "image_bytes")])
def test_input_of_another_shape_or_dtype(
    signature: str, name: str, value: NDArray[Any], pairs: dict[str, tuple[Twin, Runtime]]
) -> None:
    with pytest.raises(InputError, match=name):
        pairs["cnn"][0].run(signature, {name: value})


def test_empty_batch(pairs: dict[str, tuple[Twin, Runtime]]) -> None:
    got = pairs["cnn"][0].run("classify", {"inputs": np.empty(0, dtype=object)})
    assert {name: array.shape for name, array in got.items()} == {"scores": (0, 10), "classes": (0, 10)}


def test_manifest_without_preprocessing_is_our_fault(store: Store, pairs: dict[str, tuple[Twin, Runtime]]) -> None:
    manifest = replace(Manifest.read(store.path("cnn")), preprocessing=None)
    twin = Twin(manifest, pairs["cnn"][0].runtime)
    with pytest.raises(InternalError, match="'cnn' does not say how pictures are prepared"):
        twin.run("serve_bytes", {"image_bytes": np.array([b"x"], dtype=object)})


def test_twin_needs_no_tensorflow(store: Store) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from servable import runtimes
from servable.manifest import Manifest
from servable.twin import Twin
folder = Path(sys.argv[1])
twin = Twin(Manifest.read(folder), runtimes.load(folder / "model.onnx"))
picture = np.array([Path(sys.argv[2]).read_bytes()], dtype=object)
assert twin.run("serve_bytes", {"image_bytes": picture})["probabilities"].shape == (1, 10)
print([name for name in sys.modules if name.split(".")[0] in ("tensorflow", "keras")])
"""
    picture = next(iter(sample_pictures().values()))
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.path("cnn")), str(picture)], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


class Doubler(Runtime):
    """Answers twice its input, in whatever dtype and number of rows it was made for."""

    name = "test"

    def __init__(self, given: TensorSpec, answered: TensorSpec, signature: str = DEFAULT_SIGNATURE) -> None:
        self.signatures = {signature: Signature({"x": given}, {"y": answered}, name=signature)}
        self.seen: list[NDArray[Any]] = []

    @classmethod
    def load(cls, path: Path, options: RuntimeOptions = DEFAULT_OPTIONS) -> Doubler:
        raise NotImplementedError

    def run(
        self, signature: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        spec = self._signature(signature).inputs["x"]
        assert inputs["x"].dtype == spec.dtype
        assert spec.accepts_shape(inputs["x"].shape)
        self.seen.append(inputs["x"])
        return {"y": inputs["x"] * np.asarray(2, spec.dtype)}

    def close(self) -> None:
        """There is nothing to free."""


def described(store: Store, signature: str = DEFAULT_SIGNATURE, batch: str = "dynamic") -> tuple[Manifest, Artifact]:
    promised = Signature(
        {"x": TensorSpec("x", "float32", (None, 2))}, {"y": TensorSpec("y", "float32", (None, 2))}, name=signature
    )
    manifest = replace(Manifest.read(store.path("celsius")), signatures={signature: promised}, derivations={})
    return manifest, replace(manifest.artifacts[0], signatures=(signature,), batch=batch)


def test_integers_stand_for_real_numbers(store: Store) -> None:
    stored = TensorSpec("x", "int8", (None, 2), quantization=(0.5, -10))
    runtime = Doubler(stored, TensorSpec("y", "int8", (None, 2), quantization=(0.25, 0)))
    manifest, artifact = described(store)
    twin = Twin(manifest, runtime, artifact)
    got = twin.run(DEFAULT_SIGNATURE, {"x": np.array([[5.0, 9.9], [-100.0, 100.0]], np.float32)})["y"]
    # 5.0 / 0.5 - 10 = 0; 9.9 / 0.5 - 10 = 9.8, so 10; what is out of range is clipped to -128 and 127.
    assert runtime.seen[0].tolist() == [[0, 10], [-128, 127]]
    assert got.dtype == np.float32
    assert got.tolist() == [[0.0, 5.0], [0.0, -0.5]]  # the doubled extremes wrap around in the fake


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 7])
def test_a_file_of_a_fixed_batch_is_fed_in_parts(store: Store, rows: int) -> None:
    runtime = Doubler(TensorSpec("x", "float32", (3, 2)), TensorSpec("y", "float32", (3, 2)))
    manifest, artifact = described(store, batch="3")
    batch = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    got = Twin(manifest, runtime, artifact).run(DEFAULT_SIGNATURE, {"x": batch})["y"]
    np.testing.assert_array_equal(got, batch * 2)
    assert len(runtime.seen) == max(1, -(-rows // 3))


def test_the_only_graph_of_a_file_answers_the_signature_that_it_was_made_of(store: Store) -> None:
    spec = TensorSpec("x", "float32", (None, 2))
    manifest, artifact = described(store, signature="score")
    twin = Twin(manifest, Doubler(spec, TensorSpec("y", "float32", (None, 2))), artifact)
    assert twin.signatures() == ["score"]
    assert twin.run("score", {"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[2.0, 2.0]]
