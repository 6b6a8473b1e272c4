"""Calibration files and folders, random rows, and what is said of bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from servable.errors import DataError, ImageError, InvalidArgumentError
from servable.export.data import parse_shapes, random_data, read_calibration
from servable.export.source_model import Arrays, SourceModel
from servable.manifest import Preprocessing
from servable.signature import Signature, TensorSpec

PIXELS = Preprocessing(height=4, width=6, channels=3)


class Model(SourceModel):
    """Nothing but a signature."""

    kind = "test"
    parameters = 5

    def __init__(self, *specs: TensorSpec) -> None:
        self.signature = Signature({spec.name: spec for spec in specs}, {})

    def predict(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        return {}

    def describe(self) -> dict[str, Any]:
        return {}


IMAGE = Model(TensorSpec("image", "float32", (None, 4, 6, 3)))
PAIR = Model(TensorSpec("a", "float32", (None, 3)), TensorSpec("text", "string", (None,)))


def test_random_rows_are_the_same_each_time_and_enough() -> None:
    one, two = random_data(IMAGE), random_data(IMAGE)
    np.testing.assert_array_equal(one.inputs["image"], two.inputs["image"])
    assert one.inputs["image"].shape == (512, 4, 6, 3)
    assert one.random
    assert one.words == "512 rows of random numbers, seed 7"
    assert one.calibration is one.inputs


@pytest.mark.parametrize(("parameters", "rows"), [(999_999, 512), (1_000_000, 64), (9_999_999, 64), (10_000_000, 8)])
def test_larger_models_get_fewer_rows(parameters: int, rows: int) -> None:
    model = Model(TensorSpec("x", "float32", (None, 1)))
    model.parameters = parameters
    assert random_data(model).inputs["x"].shape == (rows, 1)


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool", "string"]
)
def test_random_rows_of_every_dtype(dtype: str) -> None:
    rows = random_data(Model(TensorSpec("x", dtype, (None, 2)))).inputs["x"]
    assert rows.dtype == (object if dtype == "string" else dtype)
    assert len(set(rows.ravel().tolist())) > 1
    if dtype in ("int8", "uint8", "int32", "int64"):
        assert (rows.min(), rows.max()) == (0, 9)


def test_random_pictures_are_pixels_as_the_model_takes_them() -> None:
    rows = random_data(IMAGE, preprocessing=Preprocessing(4, 6, 3, scale=2 / 255, offset=-1)).inputs["image"]
    assert rows.dtype == np.float32
    assert (rows.min(), rows.max()) == (-1, 1)
    np.testing.assert_allclose((rows + 1) * 127.5, np.rint((rows + 1) * 127.5), atol=1e-4)


def test_free_dimensions_need_a_size() -> None:
    model = Model(TensorSpec("image", "float32", (None, None, None, 3)))
    with pytest.raises(InvalidArgumentError, match=r"free dimensions; give sizes with --input-shape image=SIZExSIZE"):
        random_data(model)
    sizes = parse_shapes(["image=8x9x3"], model.signature)
    assert random_data(model, sizes).inputs["image"].shape == (512, 8, 9, 3)


@pytest.mark.parametrize(
    "text", ["image", "picture=1x1x3", "image=8x9", "image=8x9x4", "image=0x9x3", "image=axbx3", "=1"]
)
def test_a_shape_that_is_none(text: str) -> None:
    signature = Signature({"image": TensorSpec("image", "float32", (None, None, None, 3))}, {})
    with pytest.raises(InvalidArgumentError, match=f"--input-shape {text}: "):
        parse_shapes([text], signature)


def test_an_npy_file(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((5, 4, 6, 3))
    np.save(tmp_path / "rows.npy", rows)
    data = read_calibration(tmp_path / "rows.npy", IMAGE)
    assert data.inputs["image"].dtype == np.float32
    np.testing.assert_allclose(data.inputs["image"], rows, rtol=1e-6)
    assert (data.words, data.targets, data.random) == ("5 rows of rows.npy", None, False)


def test_an_npz_file_with_targets_and_strings(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", a=np.zeros((2, 3)), text=np.array(["é", "b"]), targets=np.array([1, 0]))
    data = read_calibration(tmp_path / "rows.npz", PAIR)
    assert data.inputs["text"].tolist() == ["é".encode(), b"b"]
    assert data.targets is not None
    assert np.asarray(data.targets).tolist() == [1, 0]


def save(folder: Path, **arrays: NDArray[Any]) -> Path:
    np.savez(folder / "rows.npz", **arrays)  # type: ignore[arg-type]  # NumPy's stubs take a flag there
    return folder / "rows.npz"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((2, 3))}, "holds a; the inputs are a, text"),
        ({"a": np.zeros((2, 4)), "text": np.array(["a", "b"])}, r"'a' has the shape \(2, 4\); expected a: float32"),
        ({"a": np.zeros((2, 3)), "text": np.array(["a"])}, "the inputs have 1 and 2 rows"),
        ({"a": np.zeros((0, 3)), "text": np.array([], str)}, "the inputs have 0 rows"),
        ({"a": np.full((1, 3), np.nan), "text": np.array(["a"])}, "'a' holds NaN or infinity"),
        ({"a": np.zeros((1, 3), complex), "text": np.array(["a"])}, "'a' is complex128; expected a: float32"),
        ({"a": np.zeros((1, 3)), "text": np.array(["a"]), "targets": np.zeros(2)}, "2 targets for 1 rows"),
        ({"a": np.float32(1), "text": np.array(["a"])}, r"'a' has the shape \(\)"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, NDArray[Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_calibration(save(tmp_path, **arrays), PAIR)


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x93NUMPY\x01\x00", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_damaged_file(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.np. cannot be read: ") as caught:
        read_calibration(path, IMAGE)
    assert "\n" not in str(caught.value)


def test_pickled_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read: Object arrays cannot be loaded"):
        read_calibration(tmp_path / "rows.npy", IMAGE)


@pytest.mark.parametrize(
    ("name", "message"), [("none.npy", "there is no file"), ("rows.csv", "is no calibration data")]
)
def test_a_path_that_is_no_data(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_calibration(tmp_path / name, IMAGE)


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new("RGB", (12, 8), (shade, shade, shade)).save(path)


def test_a_folder_of_classes_has_targets(tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / "dark" / f"{i}.png", 0)
        picture(tmp_path / "light" / f"{i}.JPG", 255)
    (tmp_path / "light" / "notes.txt").write_text("no picture")
    data = read_calibration(tmp_path, IMAGE, PIXELS)
    rows, targets = data.inputs["image"], np.asarray(data.targets)
    assert rows.shape == (40, 4, 6, 3)
    np.testing.assert_allclose(rows.mean(axis=(1, 2, 3)), targets, atol=1e-6)
    assert 0 < targets[:10].sum() < 10  # the first ones are of both


def test_a_flat_folder_has_none(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 10)
    data = read_calibration(tmp_path, IMAGE, PIXELS)
    assert (data.targets, data.words) == (None, f"1 pictures of {tmp_path.name}")


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no pictures \(\.png, \.jpg, \.jpeg\)"):
        read_calibration(tmp_path, IMAGE, PIXELS)
    picture(tmp_path / "a.png", 10)
    with pytest.raises(DataError, match="say which pixel values the model takes with --pixels 0,1"):
        read_calibration(tmp_path, IMAGE)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"a\.png is not a picture"):
        read_calibration(tmp_path, IMAGE, PIXELS)
