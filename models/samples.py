"""The shipped samples: 1,000 labelled test images, 500 calibration images and ten PNG files.

They come with the package, so that export, bench and demo need neither the data set nor a download.
``python -m servable.models.samples`` makes them anew from the full data set.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .catalogue import FASHION_MNIST_LABELS, ModelCard
from .data import Split, celsius_pairs, load_celsius, load_fashion_mnist, scale_images

SAMPLES = Path(__file__).parent / "samples"
TEST_PER_CLASS = 100
CALIBRATION_PER_CLASS = 50
# Which test image of a class becomes its picture: not among the test samples, and a clear example.
PICTURE = TEST_PER_CLASS + 2


def test_samples(card: ModelCard) -> Split:
    """Labelled test data of a model: 100 test images a class, or every quarter of a degree of −40…100 °C."""
    if card.dataset == "celsius":
        return celsius_pairs(0.25)
    with np.load(SAMPLES / "fashion_mnist_test.npz") as data:
        return Split(scale_images(data["images"]), data["labels"].astype(np.int64))


def calibration_samples(card: ModelCard) -> np.ndarray:
    """Inputs for calibrating int8 ranges: 50 training images a class, or the training degrees."""
    if card.dataset == "celsius":
        return load_celsius().train.inputs
    with np.load(SAMPLES / "fashion_mnist_calibration.npz") as data:
        return scale_images(data["images"])


def sample_pictures() -> dict[str, Path]:
    """Ten PNG files, one a class: label → path, in the order of the classes."""
    return {label: SAMPLES / "png" / f"{_slug(i, label)}.png" for i, label in enumerate(FASHION_MNIST_LABELS)}


def _slug(index: int, label: str) -> str:
    return f"{index}-{label.lower().replace('/', '-').replace(' ', '-')}"


def write_samples(folder: Path = SAMPLES, data: Path | None = None) -> None:
    """Draw the samples from the full data set (the first ones of each class) and write them."""
    dataset = load_fashion_mnist(data)
    (folder / "png").mkdir(parents=True, exist_ok=True)
    for name, split, count in (
        ("test", dataset.test, TEST_PER_CLASS),
        ("calibration", dataset.train, CALIBRATION_PER_CLASS),
    ):
        first = [np.flatnonzero(split.targets == label)[:count] for label in range(len(FASHION_MNIST_LABELS))]
        chosen = np.sort(np.concatenate(first))
        images = np.rint(split.inputs[chosen, :, :, 0] * 255).astype(np.uint8)
        labels = split.targets[chosen].astype(np.uint8)
        np.savez_compressed(folder / f"fashion_mnist_{name}.npz", images=images, labels=labels)
    for i, label in enumerate(FASHION_MNIST_LABELS):
        index = np.flatnonzero(dataset.test.targets == i)[PICTURE]
        pixels = np.rint(dataset.test.inputs[index, :, :, 0] * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "png" / f"{_slug(i, label)}.png", optimize=True)


if __name__ == "__main__":
    write_samples()
