"""A model from anywhere, with what its user says of it, as a `Source`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..errors import DataError, InvalidArgumentError
from ..manifest import Preprocessing
from ..signature import TensorSpec
from .cases import chunk_rows
from .data import parse_shapes, random_data, read_calibration
from .origin import Opening, default_name, open_model
from .source import Data, Source, Task
from .source_model import SourceModel, TracedModel

_METRICS: dict[Task, str] = {
    "classification": "accuracy",
    "regression": "mae",
    "detection": "map50",
    "segmentation": "mean_iou",
}
# What an output is called that nobody named, where the task says what it is.
_OUTPUTS: dict[Task, str] = {"regression": "value", "segmentation": "mask"}
_UNNAMED = "output"


@dataclass(frozen=True)
class Description:
    """What a user says of a model; all of it may be left out.

    ``labels`` is a file with one label a line, ``calibration`` a folder of pictures or an array file
    (`read_calibration`), ``pixels`` the values that stand for black and white, ``shapes`` sizes of free
    dimensions (``image=224x224x3``).
    """

    name: str | None = None
    labels: Path | None = None
    calibration: Path | None = None
    pixels: tuple[float, float] | None = None
    shapes: Sequence[str] = ()
    task: Task | None = None
    opening: Opening = field(default_factory=Opening)


def open_source(text: str, said: Description) -> Source:
    """Open a model (`open_model`) and find out what it is for.

    The task is the given one, else classification where there are labels or the only output has rows
    of probabilities, regression where it is one number, and ``other``. Raises what `open_model` and
    `read_calibration` raise, `DataError` for a bad label file and `InvalidArgumentError` for what does
    not fit the model.
    """
    model = open_model(text, said.opening)
    labels = _read_labels(said.labels) if said.labels else ()
    how = _preprocessing(model, said.pixels) if said.pixels else None
    sizes = parse_shapes(said.shapes, model.signature)
    data = read_calibration(said.calibration, model, how) if said.calibration else random_data(model, sizes, how)
    task = said.task or _task(model, data, labels)
    _check_task(model, task)
    if labels:
        _check_labels(model, task, labels)
    data = _check_targets(model, task, data, said.calibration)
    return Source(
        name=said.name or default_name(text),
        model=_named(model, data, task),
        data=data,
        task=task,
        metric=_METRICS.get(task) if data.targets is not None else None,
        labels=labels,
        preprocessing=how,
    )


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"there is no label file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the label file {path} cannot be read: {error}") from error
    labels = tuple(line.strip() for line in lines)
    if not labels or not all(labels):
        raise DataError(f"the label file {path} has an empty line; it needs one label a line")
    return labels


def _preprocessing(model: SourceModel, pixels: tuple[float, float]) -> Preprocessing:
    """How a picture becomes the one input: its size and channels, from black to white."""
    specs = list(model.signature.inputs.values())
    shape = specs[0].shape or ()
    sizes = shape[1:] if len(shape) == 4 else (*shape[1:], 1)
    if len(specs) != 1 or specs[0].dtype != "float32" or len(sizes) != 3 or sizes[2] not in (1, 3) or None in sizes:
        raise InvalidArgumentError(
            f"--pixels is for a model with one float32 input of pictures; this one takes {'; '.join(map(str, specs))}"
        )
    low, high = pixels
    height, width, channels = (int(size or 0) for size in sizes)
    return Preprocessing(height, width, channels, scale=(high - low) / 255, offset=low)


def _only_output(model: SourceModel) -> TensorSpec | None:
    """The output of a model that has one, of floats in rows."""
    specs = list(model.signature.outputs.values())
    return specs[0] if len(specs) == 1 and specs[0].dtype == "float32" and len(specs[0].shape or ()) == 2 else None


def _task(model: SourceModel, data: Data, labels: tuple[str, ...]) -> Task:
    spec = _only_output(model)
    if spec is None:
        return "other"
    width = (spec.shape or ())[-1]
    if width == 1:
        return "regression"
    return "classification" if labels or _are_probabilities(model, data) else "other"


def _are_probabilities(model: SourceModel, data: Data) -> bool:
    rows = min(32, chunk_rows(data.inputs))
    (answers,) = model.predict({name: array[:rows] for name, array in data.inputs.items()}).values()
    return bool(answers.min() >= 0 and np.allclose(answers.sum(axis=-1), 1.0, atol=1e-3))


def _check_task(model: SourceModel, task: Task) -> None:
    """Raise `InvalidArgumentError` unless the outputs are what the task needs."""
    outputs = model.signature.outputs
    spec = _only_output(model)
    width = (spec.shape or ())[-1] if spec else None
    only = next(iter(outputs.values()))
    needs = {
        "classification": (spec is not None and width != 1, "one float32 output (batch, classes) of two or more"),
        "regression": (spec is not None and width == 1, "one float32 output (batch, 1)"),
        "segmentation": (
            len(outputs) == 1 and only.dtype == "float32" and len(only.shape or ()) == 4,
            "one float32 output (batch, height, width, classes)",
        ),
        "detection": ({"boxes", "scores", "classes"} <= outputs.keys(), "the outputs boxes, scores and classes"),
        "other": (True, ""),
    }
    fits, need = needs[task]
    if not fits:
        raise InvalidArgumentError(
            f"{task} needs {need}; the model has {'; '.join(map(str, outputs.values()))} (--task other takes any)"
        )


def _check_labels(model: SourceModel, task: Task, labels: tuple[str, ...]) -> None:
    spec = _only_output(model)
    width = None if spec is None else (spec.shape or ())[-1]
    if task in ("regression", "other"):
        raise InvalidArgumentError(f"labels are for classes, and this is a model for {task}: {model.signature}")
    if task == "classification" and width not in (None, len(labels)):
        raise InvalidArgumentError(f"{len(labels)} labels are given for {width} classes: {spec}")


def _check_targets(model: SourceModel, task: Task, data: Data, path: Path | None) -> Data:
    """The data with targets in the shape that the metric takes; `DataError` for those that fit no output."""
    targets = data.targets
    if targets is None or task not in ("classification", "regression"):
        return data
    values = np.asarray(targets)
    rows = len(next(iter(data.inputs.values())))
    width = (next(iter(model.signature.outputs.values())).shape or ())[-1]
    if task == "regression":
        fits = values.dtype.kind in "fiu" and values.size == rows and bool(np.isfinite(values).all())
        if not fits:
            raise DataError(f"{path}: targets are {values.dtype} {values.shape}; expected {rows} finite numbers")
        return replace(data, targets=values.reshape(rows, 1).astype(np.float32))
    if values.dtype.kind not in "iu" or values.shape != (rows,):
        raise DataError(f"{path}: targets are {values.dtype} {values.shape}; expected the class of each row, ({rows},)")
    if values.min() < 0 or (width is not None and values.max() >= width):
        raise DataError(f"{path}: targets are from {values.min()} to {values.max()}; the model has {width} classes")
    return data


def _named(model: SourceModel, data: Data, task: Task) -> SourceModel:
    """The model with an output that is called what it is, where nobody named the only one."""
    if list(model.signature.outputs) != [_UNNAMED] or not isinstance(model, TracedModel):
        return model
    name = _OUTPUTS.get(task, _UNNAMED)
    if task == "classification":
        name = "probabilities" if _are_probabilities(model, data) else "logits"
    named = copy.copy(model)
    spec = model.signature.outputs[_UNNAMED]
    named.signature = replace(model.signature, outputs={name: replace(spec, name=name)})
    return named
