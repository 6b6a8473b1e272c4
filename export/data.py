"""Inputs for a model that nobody knows: files of the user's, or numbers drawn from a seed."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, InvalidArgumentError
from ..manifest import Preprocessing
from ..preprocess import read_image
from ..signature import Signature, TensorSpec
from .cases import least_rows
from .source import Data
from .source_model import Arrays, SourceModel

PICTURES = (".png", ".jpg", ".jpeg")
_SEED = 7

Sizes = Mapping[str, tuple[int, ...]]


def parse_shapes(texts: Sequence[str], signature: Signature) -> dict[str, tuple[int, ...]]:
    """``["image=224x224x3"]`` as sizes without the batch, for inputs with free dimensions.

    Raises `InvalidArgumentError` for an unknown input, for what is no shape, and for one that does
    not fit the signature.
    """
    found = {}
    for text in texts:
        name, equals, sizes = text.partition("=")
        if name not in signature.inputs or not equals:
            raise InvalidArgumentError(
                f"--input-shape {text}: give INPUT=SIZExSIZE…; the inputs are {', '.join(signature.inputs)}"
            )
        spec = signature.inputs[name]
        parts = sizes.split("x")
        shape = tuple(int(part) for part in parts if part.isdecimal() and int(part) > 0)
        if len(shape) != len(parts) or not spec.accepts_shape((1, *shape)):
            raise InvalidArgumentError(f"--input-shape {text}: {sizes!r} is no shape, without the batch, of {spec}")
        found[name] = shape
    return found


def random_data(model: SourceModel, sizes: Sizes | None = None, preprocessing: Preprocessing | None = None) -> Data:
    """Seeded random rows by the signature, as many as evidence needs; ranges are calibrated on the same.

    Others would have other extremes, and their error would tell of the draw. Floats are normal, of
    pictures uniform over the range of their pixels; integers are below `SourceModel.vocabulary`;
    strings are its words. Raises `InvalidArgumentError` for an input with free dimensions that ``sizes``
    does not give.
    """
    rng = np.random.default_rng(_SEED)
    count = least_rows(model.parameters)
    inputs = _draw(rng, model, sizes or {}, preprocessing, count)
    return Data(inputs, inputs, f"{count} rows of random numbers, seed {_SEED}", random=True)


def _draw(
    rng: np.random.Generator, model: SourceModel, sizes: Sizes, how: Preprocessing | None, count: int
) -> dict[str, NDArray[Any]]:
    found = {}
    for name, spec in model.signature.inputs.items():
        shape = (count, *_row_shape(spec, sizes))
        kind = np.dtype(spec.dtype).kind if spec.dtype not in ("string", "bfloat16") else spec.dtype
        if spec.dtype == "string":
            words = np.array([word.encode() for word in model.words], dtype=object)
            found[name] = words[rng.integers(0, len(words), shape)]
        elif kind == "b":
            found[name] = rng.random(shape) < 0.5
        elif kind in "iu":
            limit = min(model.vocabulary, int(np.iinfo(spec.dtype).max) + 1)
            found[name] = rng.integers(0, limit, shape).astype(spec.dtype)
        elif how:
            found[name] = (rng.integers(0, 256, shape) * how.scale + how.offset).astype(spec.dtype)
        elif kind == "f":
            found[name] = rng.standard_normal(shape).astype(spec.dtype)
        else:
            raise InvalidArgumentError(f"no random values are drawn for {spec}; give inputs with --calibration")
    return found


def _row_shape(spec: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
    if spec.name in sizes:
        return sizes[spec.name]
    if spec.shape is None or None in spec.shape[1:]:
        raise InvalidArgumentError(
            f"input {spec} has free dimensions; give sizes with --input-shape {spec.name}=SIZExSIZE…, or inputs with "
            "--calibration"
        )
    return tuple(size for size in spec.shape[1:] if size is not None)


def read_calibration(path: Path, model: SourceModel, preprocessing: Preprocessing | None = None) -> Data:
    """Rows from a ``.npy`` or ``.npz`` file, or from a folder of pictures.

    A ``.npz`` has an array for each input, and may have ``targets``. A folder has pictures, or a
    folder of them for each class: then the classes, in the order of their names, are the targets.
    Raises `DataError` naming the file that is missing, damaged, empty or of another shape or dtype.
    """
    if path.is_dir():
        return _from_folder(path, model, preprocessing)
    if path.suffix not in (".npy", ".npz"):
        raise DataError(f"{path} is no calibration data: give a folder of pictures, a .npy or a .npz file")
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = dict(loaded) if path.suffix == ".npz" else {next(iter(model.signature.inputs)): loaded}
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    targets = arrays.pop("targets", None)
    inputs = _checked(path, arrays, model.signature)
    rows = len(next(iter(inputs.values())))
    if targets is not None and len(targets) != rows:
        raise DataError(f"{path}: {len(targets)} targets for {rows} rows of inputs")
    return Data(inputs, inputs, f"{rows} rows of {path.name}", targets)


def _checked(path: Path, arrays: Arrays, signature: Signature) -> dict[str, NDArray[Any]]:
    if arrays.keys() != signature.inputs.keys():
        raise DataError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; the inputs are {', '.join(signature.inputs)}"
        )
    found, counts = {}, set()
    for name, spec in signature.inputs.items():
        array = arrays[name]
        if spec.dtype == "string" and array.dtype.kind in "US":
            array = np.array([v.encode() if isinstance(v, str) else bytes(v) for v in array.ravel().tolist()], object)
            array = array.reshape(arrays[name].shape)
        elif spec.dtype not in ("string", array.dtype):
            if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
                raise DataError(f"{path}: {name!r} is {array.dtype}; expected {spec}")
            array = array.astype(spec.dtype)
        if not array.ndim or not spec.accepts_shape((1, *array.shape[1:])):
            raise DataError(f"{path}: {name!r} has the shape {array.shape}; expected {spec}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{path}: {name!r} holds NaN or infinity")
        found[name] = array
        counts.add(len(array))
    if counts == {0} or len(counts) > 1:
        raise DataError(f"{path}: the inputs have {' and '.join(map(str, sorted(counts)))} rows")
    return found


def _from_folder(path: Path, model: SourceModel, how: Preprocessing | None) -> Data:
    if how is None:
        raise DataError(f"{path} is a folder of pictures: say which pixel values the model takes with --pixels 0,1")
    classes = sorted(child for child in path.iterdir() if child.is_dir())
    files = [(file, i) for i, folder in enumerate(classes) for file in sorted(folder.iterdir()) if _is_picture(file)]
    if not classes:
        files = [(file, -1) for file in sorted(path.iterdir()) if _is_picture(file)]
    if not files:
        raise DataError(f"{path} has no pictures ({', '.join(PICTURES)}), and no folders of them")
    order = np.random.default_rng(_SEED).permutation(len(files))  # a part of them has all classes then
    files = [files[i] for i in order]
    (spec,) = model.signature.inputs.values()
    rows = np.stack([read_image(file, how).tensor for file, _ in files])
    inputs = {spec.name: rows.reshape(len(rows), *(size or 0 for size in (spec.shape or ())[1:]))}
    targets = np.array([label for _, label in files]) if classes else None
    return Data(inputs, inputs, f"{len(rows)} pictures of {path.name}", targets)


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURES and file.is_file()
