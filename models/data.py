"""Data sets: Fashion-MNIST from a folder, Debian's package or Keras's download, and Celsius pairs."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

# SHA-256 of the decompressed IDX files; distributors compress them anew, so the .gz differ.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@dataclass(frozen=True)
class Split:
    """Inputs (n, …) and targets (n, …) of one part of a data set.

    Images are float32 in [0, 1] of shape (n, 28, 28, 1) with int64 labels (n,); Celsius pairs are
    float32 of shape (n, 1) on both sides.
    """

    inputs: NDArray[Any]
    targets: NDArray[Any]


@dataclass(frozen=True)
class Dataset:
    """A training and a test split, with one digest over their source for the training record."""

    name: str
    train: Split
    test: Split
    sha256: str


def scale_images(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 images (n, 28, 28) → float32 (n, 28, 28, 1) in [0, 1]."""
    return (pixels.astype(np.float32) / np.float32(255.0))[..., np.newaxis]


def fashion_mnist_folder(folder: Path | None = None) -> Path:
    """The folder with the four IDX files: the given one, Debian's, or where Keras downloads them.

    Raises `DataError` if none has them and the download fails.
    """
    if folder is not None:
        return folder
    if DEBIAN_FOLDER.is_dir():
        return DEBIAN_FOLDER
    import keras

    base = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
    try:
        paths = [
            keras.utils.get_file(f"{name}.gz", origin=f"{base}{name}.gz", cache_subdir="datasets/fashion-mnist")
            for name in FASHION_MNIST_SHA256
        ]
    except Exception as error:  # keras raises bare Exception when a download fails
        raise DataError(
            "Fashion-MNIST is not on this machine and could not be downloaded; install Debian's package "
            f"dataset-fashion-mnist or give the folder of the IDX files with --data ({error})"
        ) from error
    return Path(paths[0]).parent


def load_fashion_mnist(folder: Path | None = None) -> Dataset:
    """60,000 training and 10,000 test images, each file checked against its known SHA-256.

    Raises `DataError` naming the file that is missing, damaged or not Fashion-MNIST.
    """
    place = fashion_mnist_folder(folder)
    parts = {name: _read_idx(place, name) for name in FASHION_MNIST_SHA256}
    digest = hashlib.sha256("".join(FASHION_MNIST_SHA256.values()).encode()).hexdigest()

    def split(prefix: str) -> Split:
        images, labels = parts[f"{prefix}-images-idx3-ubyte"], parts[f"{prefix}-labels-idx1-ubyte"]
        return Split(scale_images(images), labels.astype(np.int64))

    return Dataset("fashion-mnist", split("train"), split("t10k"), digest)


def _read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """One IDX file of unsigned bytes, plain or gzipped; format: http://yann.lecun.com/exdb/mnist/."""
    candidates = [folder / f"{name}.gz", folder / name]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise DataError(f"{folder} has neither {name}.gz nor {name}: not a folder of Fashion-MNIST's IDX files")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    digest = hashlib.sha256(raw).hexdigest()
    if digest != FASHION_MNIST_SHA256[name]:
        raise DataError(
            f"{path} is not Fashion-MNIST's {name}: its decompressed SHA-256 is {digest[:16]}…, "
            f"expected {FASHION_MNIST_SHA256[name][:16]}…"
        )
    rank = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def celsius_pairs(step: float) -> Split:
    """Pairs of f = 1.8 c + 32 from −40 to 100 °C, a step apart."""
    celsius = np.arange(-40, 100 + step, step, dtype=np.float32)[:, np.newaxis]
    return Split(celsius, celsius * np.float32(1.8) + np.float32(32.0))


def load_celsius() -> Dataset:
    """Every fifth degree to train on, every degree to test."""
    train, test = celsius_pairs(5), celsius_pairs(1)
    digest = hashlib.sha256(train.inputs.tobytes() + train.targets.tobytes()).hexdigest()
    return Dataset("celsius", train, test, digest)


def load_dataset(name: str, folder: Path | None = None) -> Dataset:
    """The data set of a `ModelCard` by its name; ``folder`` says where Fashion-MNIST lies."""
    return load_celsius() if name == "celsius" else load_fashion_mnist(folder)
