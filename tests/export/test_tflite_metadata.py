"""TFLite Metadata in a converted file: the model in it is the same, and what was said of it can be read.

What the file says is read here with `zipfile`, LiteRT and TensorFlow's own reader of the model's schema;
MediaPipe's reader of the metadata's schema has a test of its own, which is slow.
"""

from __future__ import annotations

import io
import random
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from flatbuffers.table import Table
from numpy.typing import NDArray

from servable.errors import ExportError
from servable.export import tflite_metadata
from servable.export.tflite_metadata import TensorMetadata, image_input, pack
from servable.manifest import Preprocessing

schema: Any = import_module("tensorflow.lite.python.schema_py_generated")

CLOTHES = ("T-shirt/top", "Überrock", "靴")
SIZES = ("XS", "S", "M", "L")


def convert(folder: Path, model: Any, function: Callable[..., Any], *specs: Any, int8: bool = False) -> bytes:
    """A TFLite file by way of a SavedModel, as the exporter makes it."""
    module = tf.Module()
    module.variables_of_model = [variable.value for variable in model.variables]
    module.served = tf.function(function, input_signature=list(specs))
    tf.saved_model.save(module, str(folder), signatures=module.served.get_concrete_function())
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=["serving_default"])
    if int8:
        rows = np.random.default_rng(0).random((8, 1, *specs[0].shape[1:]), np.float32)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ({specs[0].name: row} for row in rows)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    data: bytes = converter.convert()
    return data


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory, reordered: Callable[[bytes], bytes]) -> bytes:
    """Two inputs and two outputs (one of them under two names), in the reverse order of their names."""
    first, second = keras.Input((3,)), keras.Input((2,))
    model = keras.Model([first, second], [keras.layers.Dense(4)(first), keras.layers.Dense(5)(second)])

    def served(zeta: Any, alpha: Any) -> dict[str, Any]:
        narrow, wide = model([zeta, alpha])
        return {"narrow": narrow, "wide": wide, "again": narrow}

    specs = tf.TensorSpec([None, 3], name="zeta"), tf.TensorSpec([None, 2], name="alpha")
    return reordered(convert(tmp_path_factory.mktemp("two"), model, served, *specs))


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """A classifier of pictures of 8 × 8 pixels, as float32 and as int8."""
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Flatten()(keras.layers.Conv2D(3, 3, activation="relu")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(hidden))
    spec = tf.TensorSpec([None, 8, 8, 1], name="image")

    def served(image: Any) -> dict[str, Any]:
        return {"probabilities": model(image)}

    return {
        kind: convert(tmp_path_factory.mktemp(kind), model, served, spec, int8=kind == "int8")
        for kind in ("float32", "int8")
    }


TWO: dict[str, Any] = {
    "name": "two",
    "version": "3",
    "inputs": [TensorMetadata("alpha"), TensorMetadata("zeta", mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))],
    "outputs": [TensorMetadata("again"), TensorMetadata("narrow", labels=SIZES), TensorMetadata("wide")],
}
IMAGE: dict[str, Any] = {
    "name": "clothes",
    "version": "1",
    "inputs": [image_input(Preprocessing(8, 8, 1), "image")],
    "outputs": [TensorMetadata("probabilities", labels=CLOTHES)],
}


@pytest.fixture(params=["two", "float32", "int8"])
def pair(request: pytest.FixtureRequest, two: bytes, image: Mapping[str, bytes]) -> tuple[bytes, bytes]:
    """A file before and after."""
    if request.param == "two":
        return two, pack(two, **TWO)
    return image[request.param], pack(image[request.param], **IMAGE)


def unpack(data: bytes) -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))


def repack(model: Any) -> bytes:
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def entries(model: Any) -> dict[bytes, bytes]:
    return {entry.name: bytes(model.buffers[entry.buffer].data) for entry in model.metadata}


def plain(value: Any) -> Any:
    """An object of the schema as nested tuples that can be compared."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.tobytes()
    if isinstance(value, list):
        return tuple(plain(item) for item in value)
    if hasattr(value, "__dict__"):
        return type(value).__name__, tuple((key, plain(item)) for key, item in sorted(vars(value).items()))
    return value


def answers(data: bytes, rows: int) -> Mapping[str, NDArray[Any]]:
    interpreter = Interpreter(model_content=data)
    assert list(interpreter.get_signature_list()) == ["serving_default"]
    runner = interpreter.get_signature_runner("serving_default")
    random_of = np.random.default_rng(1)
    inputs = {
        name: random_of.random((rows, *detail["shape"][1:]), np.float32)
        for name, detail in sorted(runner.get_input_details().items())
    }
    return runner(**inputs)  # type: ignore[no-any-return]  # ai_edge_litert is untyped


@pytest.mark.parametrize("rows", [1, 5])
def test_answers_are_the_same(pair: tuple[bytes, bytes], rows: int) -> None:
    before, after = (answers(data, rows) for data in pair)
    assert before.keys() == after.keys()
    for name, expected in before.items():
        assert np.ptp(expected) > 0
        np.testing.assert_array_equal(after[name], expected)


def test_signature_and_tensors_are_the_same(pair: tuple[bytes, bytes]) -> None:
    before, after = (Interpreter(model_content=data) for data in pair)
    assert after.get_signature_list() == before.get_signature_list()
    assert str(after.get_tensor_details()) == str(before.get_tensor_details())


def test_the_rest_of_the_model_is_the_same(pair: tuple[bytes, bytes]) -> None:
    before, after = (unpack(data) for data in pair)
    assert after.metadata.pop().name == b"TFLITE_METADATA"
    after.buffers.pop()
    assert {entry.name for entry in after.metadata} == {b"min_runtime_version", b"CONVERSION_METADATA"}
    assert plain(after) == plain(before)


def test_buffers_stay_aligned(image: Mapping[str, bytes]) -> None:
    def places(data: bytes) -> list[int]:
        model = schema.Model.GetRootAsModel(data, 0)
        whole = np.frombuffer(data, np.uint8)
        contents = [model.Buffers(i).DataAsNumpy() for i in range(model.BuffersLength())]
        return [content.ctypes.data - whole.ctypes.data for content in contents if isinstance(content, np.ndarray)]

    before, after = places(image["float32"]), places(pack(image["float32"], **IMAGE))
    assert len(after) == len(before) + 1
    assert after[-1] % 16 == 0
    assert [place % 64 for place in after[:-1]] == [place % 64 for place in before]


def test_metadata_entry_is_a_flatbuffer_of_its_own(pair: tuple[bytes, bytes]) -> None:
    content = entries(unpack(pair[1]))[b"TFLITE_METADATA"]
    assert content[4:8] == b"M001"


def test_tensors_are_in_the_order_of_the_file(two: bytes) -> None:
    model = unpack(two)
    (signature,) = model.signatureDefs
    of_index = [
        {item.tensorIndex: item.name.decode() for item in items} for items in (signature.inputs, signature.outputs)
    ]
    order = [
        [names[index] for index in indices]
        for names, indices in zip(of_index, (model.subgraphs[0].inputs, model.subgraphs[0].outputs), strict=True)
    ]
    assert order == [["zeta", "alpha"], ["wide", "narrow", "narrow"]]
    content = entries(unpack(pack(two, **TWO)))[b"TFLITE_METADATA"]
    root = Table(content, flatbuffers.encode.Get(flatbuffers.packer.uoffset, content, 0))
    subgraph = element(root, 3, 0)
    found = [[text(element(subgraph, field, i), 0) for i in range(count)] for field, count in ((2, 2), (3, 3))]
    assert found[0] == ["zeta", "alpha"]
    assert found[1][0] == "wide"
    assert sorted(found[1][1:]) == ["again", "narrow"]


def element(table: Any, field: int, index: int) -> Any:
    """An element of a vector of tables, by the field's number in the schema."""
    return Table(table.Bytes, table.Indirect(table.Vector(table.Offset(4 + 2 * field)) + 4 * index))


def text(table: Any, field: int) -> str:
    value: bytes = table.String(table.Pos + table.Offset(4 + 2 * field))
    return value.decode()


def archive(data: bytes) -> dict[str, list[str]]:
    """The label files behind the model, as lines."""
    with zipfile.ZipFile(io.BytesIO(data)) as files:
        assert files.testzip() is None
        for info in files.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert info.external_attr >> 16 == 0o644  # what unzip gives the file
            assert info.date_time == (1980, 1, 1, 0, 0, 0)  # not the time of day: equal models make equal files
        return {name: files.read(name).decode().split("\n") for name in files.namelist()}


def test_labels_are_a_file_in_a_zip(image: Mapping[str, bytes]) -> None:
    assert archive(pack(image["int8"], **IMAGE)) == {"labels.txt": [*CLOTHES, ""]}


def test_outputs_share_a_label_file_or_have_their_own(two: bytes) -> None:
    wide = ("1", "2", "3", "4", "5")
    outputs = [
        TensorMetadata("narrow", labels=SIZES),
        TensorMetadata("again", labels=SIZES),
        TensorMetadata("wide", labels=wide),
    ]
    found = archive(pack(two, **{**TWO, "outputs": outputs}))
    assert found == {"labels.txt": [*wide, ""], "labels_2.txt": [*SIZES, ""]}  # wide is the file's first output


def test_without_labels_nothing_follows_the_model(two: bytes) -> None:
    outputs = [replace(output, labels=()) for output in TWO["outputs"]]
    packed = pack(two, **{**TWO, "outputs": outputs})
    assert not zipfile.is_zipfile(io.BytesIO(packed))
    assert packed.endswith(two)


def test_weights_that_look_like_the_end_of_a_zip_stay(two: bytes) -> None:
    weights = next(buffer.data for buffer in unpack(two).buffers if buffer.data is not None)
    end = b"PK\x05\x06".ljust(22, b"\0")
    model = two.replace(weights.tobytes(), end + weights.tobytes()[22:])
    assert zipfile.is_zipfile(io.BytesIO(model))
    packed = pack(model, **TWO)
    assert model in packed
    assert archive(packed) == {"labels.txt": [*SIZES, ""]}


def test_the_file_on_disk_is_both(image: Mapping[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(pack(image["float32"], **IMAGE))
    Interpreter(model_path=str(path)).allocate_tensors()
    with zipfile.ZipFile(path) as files:
        files.extractall(tmp_path)
    assert (tmp_path / "labels.txt").read_text(encoding="utf-8").splitlines() == list(CLOTHES)


@pytest.mark.parametrize(("scale", "offset"), [(1 / 255, 0.0), (1 / 127.5, -1.0), (1.0, 0.0), (-2.0, 3.0)])
@pytest.mark.parametrize(("channels", "space"), [(1, "GRAYSCALE"), (3, "RGB")])
def test_normalisation_is_the_preprocessing(scale: float, offset: float, channels: int, space: str) -> None:
    said = image_input(Preprocessing(8, 8, channels, scale, offset), "image", "a picture")
    pixels = np.arange(256, dtype=np.float32)
    assert said.mean is not None
    assert said.std is not None
    values = (pixels - np.float32(said.mean)) / np.float32(said.std)
    np.testing.assert_allclose(values, pixels * scale + offset, rtol=1e-6, atol=1e-6)
    assert (said.min, said.max) == (pytest.approx((values.min(),)), pytest.approx((values.max(),)))
    assert (said.name, said.description, said.color_space) == ("image", "a picture", space)
    assert str(said.mean[0]) != "-0.0"


@pytest.mark.parametrize(
    ("preprocessing", "why"),
    [(Preprocessing(8, 8, 4), "1 or 3 channels.*'image' has 4"), (Preprocessing(8, 8, 3, scale=0.0), "scale of 0")],
)
def test_preprocessing_that_the_format_cannot_say(preprocessing: Preprocessing, why: str) -> None:
    with pytest.raises(ExportError, match=why):
        image_input(preprocessing, "image")


def refusal(model: bytes, arguments: Mapping[str, Any]) -> str:
    with pytest.raises(ExportError) as caught:
        pack(model, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{arguments['name']}: ")
    return message


def test_what_is_not_tflite_is_refused() -> None:
    for data in (b"", b"TFL3", b"PK\x03\x04" + bytes(100)):
        assert "not a TFLite file" in refusal(data, TWO)


def test_a_file_cut_anywhere_is_refused(image: Mapping[str, bytes], two: bytes) -> None:
    for data, arguments in ((two, TWO), (image["float32"], IMAGE), (image["int8"], IMAGE)):
        for size in {*range(8, len(data), 37), len(data) - 1}:
            assert "is damaged" in refusal(data[:size], arguments)


def test_weights_that_end_outside_of_the_file_are_refused(two: bytes) -> None:
    weights = next(buffer.data for buffer in unpack(two).buffers if buffer.data is not None)
    place = weights.ctypes.data - np.frombuffer(two, np.uint8).ctypes.data
    longer = two[: place - 4] + len(two).to_bytes(4, "little") + two[place:]
    assert "is damaged" in refusal(longer, TWO)


def test_scrambled_bytes_never_end_in_another_error(two: bytes) -> None:
    chance = random.Random(0)
    refused = 0
    for _ in range(1000):
        data = bytearray(two)
        for _ in range(3):
            data[chance.randrange(8, len(data))] = chance.randrange(256)
        try:
            pack(bytes(data), **TWO)
        except ExportError:
            refused += 1
    assert refused > 100


def test_a_file_with_metadata_is_refused(two: bytes) -> None:
    assert "has metadata already" in refusal(pack(two, **TWO), TWO)


def test_weights_outside_the_flatbuffer_are_refused(two: bytes) -> None:
    model = unpack(two)
    model.buffers[3].offset = 4096
    assert "outside its flatbuffer" in refusal(repack(model), TWO)


def test_a_file_that_grows_too_large_is_refused(two: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflite_metadata, "_MAX_SIZE", len(two) + 10)
    assert "smaller than 2 GiB" in refusal(two, TWO)


def test_a_newer_schema_is_refused(two: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflite_metadata, "_MODEL_FIELDS", 7)  # as if signatures had come after this release
    assert "upgrade servable" in refusal(two, TWO)


def test_an_unknown_signature_is_refused_with_those_that_are(two: bytes) -> None:
    message = refusal(two, {**TWO, "signature": "serving_defualt"})
    assert "did you mean 'serving_default'?" in message


def test_a_signature_of_another_subgraph_is_refused(two: bytes) -> None:
    model = unpack(two)
    model.subgraphs.append(model.subgraphs[0])
    model.signatureDefs[0].subgraphIndex = 1
    assert "not the file's main one" in refusal(repack(model), TWO)


def test_a_signature_without_one_of_the_inputs_is_refused(two: bytes) -> None:
    model = unpack(two)
    model.signatureDefs[0].inputs.pop()
    arguments = {**TWO, "inputs": TWO["inputs"][:1]}
    assert "inputs of the TFLite file are not those of its signature" in refusal(repack(model), arguments)


WIDE = TensorMetadata("wide")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"inputs": [TensorMetadata("alpha")]}, "inputs are alpha, zeta, but those described are alpha$"),
        ({"outputs": [WIDE, WIDE, WIDE]}, "outputs are again, narrow, wide, but those described are wide"),
        ({"inputs": []}, "described are none"),
        ({"description": "\ud800"}, r"'\\ud800' cannot be written as UTF-8"),
        ({"zeta": {"labels": ("a", "b", "c")}}, "the input 'zeta' has labels; only outputs can"),
        ({"zeta": {"mean": None}}, "'zeta' has only one of mean and std"),
        ({"zeta": {"min": (0.0,)}}, "'zeta' has only one of min and max"),
        ({"zeta": {"mean": (1.0,)}}, "mean and std need one value each, or one for each of the 3 channels"),
        ({"zeta": {"mean": (1.0, 2.0), "std": (1.0, 2.0)}}, "one for each of the 3 channels"),
        ({"zeta": {"std": (1.0, 2.0, 0.0)}}, "a std of 0"),
        ({"zeta": {"std": (1e-60,), "mean": (0.0,)}}, "a std of 0"),
        ({"zeta": {"std": (1.0,), "mean": (float("nan"),)}}, "must be finite float32 values"),
        ({"zeta": {"min": (0.0,), "max": (1e39,)}}, "must be finite float32 values"),
        ({"zeta": {"color_space": "GREY"}}, "no color space 'GREY'; .*Known: GRAYSCALE, RGB"),
        ({"wide": {"labels": SIZES}}, "'wide' has 4 labels for a last axis of 5"),
        ({"wide": {"labels": (*SIZES, "two\nlines")}}, r"the label 'two\\nlines' cannot be one line"),
        ({"wide": {"labels": (*SIZES, "two\rlines")}}, r"the label 'two\\rlines' cannot be one line"),
        ({"wide": {"labels": (*SIZES, " ")}}, "the label ' ' cannot be one line"),
        ({"wide": {"labels": (*SIZES, "\udcff")}}, r"'\\udcff' cannot be written as UTF-8"),
    ],
)
def test_what_does_not_fit_is_refused(two: bytes, change: Mapping[str, Any], why: str) -> None:
    def changed(tensor: TensorMetadata) -> TensorMetadata:
        return replace(tensor, **change.get(tensor.name, {}))

    arguments = {key: [changed(x) for x in said] if isinstance(said, list) else said for key, said in TWO.items()}
    arguments |= {key: said for key, said in change.items() if key in ("inputs", "outputs", "description")}
    assert re.search(why, refusal(two, arguments))


def test_a_color_picture_of_one_channel_is_refused(image: Mapping[str, bytes]) -> None:
    inputs = [image_input(Preprocessing(8, 8, 3), "image")]
    assert "'image' has 1 channels, which is not RGB" in refusal(image["float32"], {**IMAGE, "inputs": inputs})
