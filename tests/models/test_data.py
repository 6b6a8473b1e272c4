"""Reading Fashion-MNIST from every place, refusing what is not it, and the samples that ship with servable."""

from __future__ import annotations

import gzip
import hashlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from servable.errors import DataError
from servable.models import card, data, samples
from servable.models.catalogue import FASHION_MNIST_LABELS

DAMAGED = "t10k-labels-idx1-ubyte"

needs_fashion_mnist = pytest.mark.skipif(
    not data.DEBIAN_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)


@cache
def fashion_mnist() -> data.Dataset:
    return data.load_fashion_mnist()


def as_idx(array: NDArray[np.uint8]) -> bytes:
    """An IDX file: two zeros, 8 for unsigned bytes, the rank, big-endian sizes, the values."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def contents() -> dict[str, bytes]:
    """A small data set in the four files' format: 12 images to train on, 5 to test."""
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (12, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": rng.integers(0, 10, 12, np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (5, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": rng.integers(0, 10, 5, np.uint8),
    }
    return {name: as_idx(array) for name, array in arrays.items()}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The small data set, taken for Fashion-MNIST: its digests are the known ones."""
    files = contents()
    digests = {name: hashlib.sha256(raw).hexdigest() for name, raw in files.items()}
    monkeypatch.setattr(data, "FASHION_MNIST_SHA256", digests)
    return files


def write_gz(folder: Path, name: str, raw: bytes) -> None:
    (folder / f"{name}.gz").write_bytes(gzip.compress(raw))


def write_recompressed(folder: Path, name: str, raw: bytes) -> None:
    (folder / f"{name}.gz").write_bytes(gzip.compress(raw, compresslevel=1, mtime=12345))


def write_plain(folder: Path, name: str, raw: bytes) -> None:
    (folder / name).write_bytes(raw)


@pytest.mark.parametrize("write", [write_gz, write_recompressed, write_plain])
def test_loads_compressed_and_plain_files(
    small: dict[str, bytes], tmp_path: Path, write: Callable[[Path, str, bytes], None]
) -> None:
    for name, raw in small.items():
        write(tmp_path, name, raw)
    loaded = data.load_fashion_mnist(tmp_path)
    assert loaded.train.inputs.shape == (12, 28, 28, 1)
    assert loaded.test.inputs.shape == (5, 28, 28, 1)
    assert (loaded.train.inputs.dtype, loaded.train.targets.dtype) == (np.float32, np.int64)
    pixels = np.frombuffer(small["t10k-images-idx3-ubyte"], np.uint8, offset=16)
    np.testing.assert_array_equal(loaded.test.inputs.ravel(), pixels.astype(np.float32) / np.float32(255))
    assert loaded.test.targets.tolist() == list(small["t10k-labels-idx1-ubyte"][8:])


def flip_a_byte(folder: Path, raw: bytes) -> Path:
    flipped = raw[:-1] + bytes([raw[-1] ^ 1])
    write_gz(folder, DAMAGED, flipped)
    return folder / f"{DAMAGED}.gz"


def flip_a_plain_byte(folder: Path, raw: bytes) -> Path:
    (folder / f"{DAMAGED}.gz").unlink()
    (folder / DAMAGED).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    return folder / DAMAGED


def truncate(folder: Path, raw: bytes) -> Path:
    path = folder / f"{DAMAGED}.gz"
    path.write_bytes(gzip.compress(raw)[:-9])
    return path


def damage_the_stream(folder: Path, raw: bytes) -> Path:
    path = folder / f"{DAMAGED}.gz"
    packed = bytearray(gzip.compress(raw))
    packed[12] ^= 0xFF
    path.write_bytes(packed)
    return path


def no_gzip(folder: Path, raw: bytes) -> Path:
    path = folder / f"{DAMAGED}.gz"
    path.write_bytes(b"<html>Not found</html>")
    return path


def empty(folder: Path, raw: bytes) -> Path:
    path = folder / f"{DAMAGED}.gz"
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize("damage", [flip_a_byte, flip_a_plain_byte, truncate, damage_the_stream, no_gzip, empty])
def test_a_damaged_file_is_named(
    small: dict[str, bytes], tmp_path: Path, damage: Callable[[Path, bytes], Path]
) -> None:
    for name, raw in small.items():
        write_gz(tmp_path, name, raw)
    path = damage(tmp_path, small[DAMAGED])
    with pytest.raises(DataError) as caught:
        data.load_fashion_mnist(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", list(contents()))
def test_a_missing_file_is_named(small: dict[str, bytes], tmp_path: Path, missing: str) -> None:
    for name, raw in small.items():
        if name != missing:
            write_gz(tmp_path, name, raw)
    with pytest.raises(DataError, match=f"neither {missing}.gz nor {missing}"):
        data.load_fashion_mnist(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "file", "empty folder"])
def test_a_folder_that_is_none_is_named(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "data"
    if kind == "file":
        place.write_text("no folder")
    elif kind == "empty folder":
        place.mkdir()
    with pytest.raises(DataError) as caught:
        data.load_fashion_mnist(place)
    assert str(caught.value).startswith(str(place))


def test_other_images_in_the_same_format_are_refused(tmp_path: Path) -> None:
    for name, raw in contents().items():
        write_gz(tmp_path, name, raw)
    with pytest.raises(DataError, match="is not Fashion-MNIST's train-images-idx3-ubyte: its decompressed SHA-256"):
        data.load_fashion_mnist(tmp_path)


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    asked: list[str] = []

    def refuse(name: str, *, origin: str, cache_subdir: str) -> str:
        asked.append(origin)
        raise Exception(f"URL fetch failure on {origin}: None -- [Errno -2] Name or service not known")  # noqa: TRY002

    monkeypatch.setattr(data, "DEBIAN_FOLDER", tmp_path / "absent")
    monkeypatch.setattr(keras.utils, "get_file", refuse)
    with pytest.raises(DataError, match=r"install Debian's package dataset-fashion-mnist or give the folder .* --data"):
        data.load_fashion_mnist()
    assert [origin.rsplit("/", 1)[1] for origin in asked] == ["train-images-idx3-ubyte.gz"]


def test_a_download_is_read_from_where_keras_put_it(
    small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    def fetch(name: str, *, origin: str, cache_subdir: str) -> str:
        write_gz(tmp_path, name.removesuffix(".gz"), small[name.removesuffix(".gz")])
        return str(tmp_path / name)

    monkeypatch.setattr(data, "DEBIAN_FOLDER", tmp_path / "absent")
    monkeypatch.setattr(keras.utils, "get_file", fetch)
    assert data.load_fashion_mnist().train.inputs.shape == (12, 28, 28, 1)


@needs_fashion_mnist
def test_debian_s_files_are_fashion_mnist() -> None:
    loaded = fashion_mnist()
    assert loaded.train.inputs.shape == (60_000, 28, 28, 1)
    assert Counter(loaded.train.targets.tolist()) == dict.fromkeys(range(10), 6_000)
    assert Counter(loaded.test.targets.tolist()) == dict.fromkeys(range(10), 1_000)
    assert (loaded.train.inputs.min(), loaded.train.inputs.max()) == (0.0, 1.0)


def test_celsius_pairs_are_exact() -> None:
    loaded = data.load_dataset("celsius")
    for split in (loaded.train, loaded.test):
        np.testing.assert_allclose(split.targets, split.inputs * 1.8 + 32, rtol=1e-6)


def shipped(name: str) -> tuple[NDArray[np.uint8], list[int]]:
    with np.load(samples.SAMPLES / f"fashion_mnist_{name}.npz") as loaded:
        return loaded["images"], loaded["labels"].tolist()


def rows(images: NDArray[np.uint8]) -> set[bytes]:
    return {image.tobytes() for image in images}


def pictures() -> list[NDArray[np.uint8]]:
    return [np.asarray(Image.open(path)) for path in samples.sample_pictures().values()]


@pytest.mark.parametrize(("name", "each"), [("test", 100), ("calibration", 50)])
def test_shipped_samples_are_balanced(name: str, each: int) -> None:
    images, labels = shipped(name)
    assert images.shape == (10 * each, 28, 28)
    assert images.dtype == np.uint8
    assert Counter(labels) == dict.fromkeys(range(10), each)


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_samples_are_model_inputs(model: str) -> None:
    images, labels = shipped("test")
    split = samples.test_samples(card(model))
    np.testing.assert_array_equal(np.rint(split.inputs[..., 0] * 255), images)
    assert split.targets.tolist() == labels
    calibration = samples.calibration_samples(card(model))
    assert calibration.shape == (500, 28, 28, 1)
    assert calibration.dtype == np.float32
    assert 0.0 <= calibration.min() <= calibration.max() <= 1.0


def test_samples_of_celsius() -> None:
    assert samples.test_samples(card("celsius")).inputs.shape == (561, 1)
    assert samples.calibration_samples(card("celsius")).min() == -40.0
    assert samples.calibration_samples(card("celsius")).max() == 100.0


def test_no_sample_is_in_two_of_the_three_sets() -> None:
    test, calibration, shown = rows(shipped("test")[0]), rows(shipped("calibration")[0]), rows(np.stack(pictures()))
    assert not test & calibration
    assert not shown & test
    assert not shown & calibration


def test_ten_pictures_one_a_class() -> None:
    found = samples.sample_pictures()
    assert tuple(found) == FASHION_MNIST_LABELS
    assert len(set(found.values())) == 10
    for path in found.values():
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (28, 28))
    assert sorted(found.values()) == sorted((samples.SAMPLES / "png").iterdir())


@needs_fashion_mnist
@pytest.mark.parametrize(("name", "part"), [("test", "test"), ("calibration", "train")])
def test_samples_come_from_their_split(name: str, part: str) -> None:
    split: data.Split = getattr(fashion_mnist(), part)
    known = {}
    for image, label in zip(np.rint(split.inputs[..., 0] * 255).astype(np.uint8), split.targets, strict=True):
        known[image.tobytes()] = int(label)
    images, labels = shipped(name)
    assert [known[image.tobytes()] for image in images] == labels


@needs_fashion_mnist
def test_pictures_are_test_images_of_their_class() -> None:
    split = fashion_mnist().test
    pixels = np.rint(split.inputs[..., 0] * 255).astype(np.uint8)
    for label, picture in enumerate(pictures()):
        (index,) = np.flatnonzero((pixels == picture).all(axis=(1, 2)))
        assert split.targets[index] == label


@needs_fashion_mnist
def test_the_samples_can_be_made_anew(tmp_path: Path) -> None:
    samples.write_samples(tmp_path)
    for name in ("test", "calibration"):
        with np.load(tmp_path / f"fashion_mnist_{name}.npz") as made:
            images, labels = shipped(name)
            np.testing.assert_array_equal(made["images"], images)
            assert made["labels"].tolist() == labels
    for path in samples.sample_pictures().values():
        np.testing.assert_array_equal(
            np.asarray(Image.open(tmp_path / "png" / path.name)), np.asarray(Image.open(path))
        )
