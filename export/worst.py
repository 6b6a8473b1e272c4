"""The rows on which an artifact is furthest from its source, told to people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import pictures
from .cases import Case
from .source import Source
from .source_model import Arrays
from .verify import MIN_SCORE

_VALUES, _TENSORS, _OBJECTS, _CLASSES = 4, 3, 4, 3
_LONGEST = 60


@dataclass(frozen=True)
class WorstSample:
    """One row: its number, what it is, and what the source and an artifact say of it.

    ``png`` is the input as a picture, with the boxes or masks of both in it where they answer such; None
    where it is none. ``given`` has the inputs in words then, ``right`` what is right, where that is known.
    """

    row: int
    source: str
    artifact: str
    given: str = ""
    right: str = ""
    png: bytes | None = None

    @property
    def differs(self) -> bool:
        """Whether the source and the artifact say different things, as far as the words tell."""
        return self.source != self.artifact


def worst_samples(source: Source, case: Case, rows: Sequence[int], answers: Arrays) -> tuple[WorstSample, ...]:
    """Rows of a case, with what an artifact answers for exactly these, in this order.

    The rows are those of `Evidence.worst_samples`, and the case the one of that evidence, on the source's
    base signature.
    """
    at = list(rows)
    inputs = {name: array[at] for name, array in case.inputs.items()}
    expected = {name: array[at] for name, array in case.expected.items()}
    right = _targets(case.targets, at)
    shares = source.task != "detection" or _are_shares(case.expected)
    return tuple(_sample(source, row, i, inputs, expected, answers, right, shares) for i, row in enumerate(rows))


def _sample(
    source: Source, row: int, i: int, inputs: Arrays, expected: Arrays, answers: Arrays, right: Any, shares: bool
) -> WorstSample:
    theirs, ours = (_row(side, i) for side in (expected, answers))
    truth = None if right is None else _targets(right, i)
    name = _scores_of(source, theirs)
    words: tuple[str, str, str]
    if source.task == "detection" and {"boxes", "scores", "classes"} <= theirs.keys():
        words = _objects(source, theirs), _objects(source, ours), ""
    elif name and source.task == "segmentation":
        words = _areas(source, theirs[name]), _areas(source, ours[name], theirs[name]), ""
    elif name and source.task == "classification":
        words = _class(source, theirs[name]), _class(source, ours[name]), _right_class(source, truth)
    else:
        words = *_values(theirs, ours), _number(truth)
    picture = None
    if pictures.has_pictures(source):
        picture = pictures.encoded(_picture(source, pictures.of_row(source, inputs, i), theirs, ours, name, shares))
    given = "" if picture else _inputs(_row(inputs, i))
    return WorstSample(row, words[0], words[1], given, words[2], picture)


def _picture(
    source: Source, picture: pictures.Pixels, theirs: Arrays, ours: Arrays, name: str | None, shares: bool
) -> pictures.Pixels:
    if source.task == "detection" and "boxes" in theirs and "scores" in theirs:
        height, width = picture.shape[:2]
        unit = np.ones(4) if shares else np.array([height, width, height, width], np.float64)
        sides = (theirs, pictures.SOURCE_COLOUR), (ours, pictures.ARTIFACT_COLOUR)
        return pictures.with_boxes(picture, [(a["boxes"][a["scores"] > MIN_SCORE] / unit, c) for a, c in sides])
    if source.task == "segmentation" and name and theirs[name].ndim == 3:
        return pictures.with_masks(picture, [np.argmax(side[name], -1) for side in (theirs, ours)])
    return picture


def _row(arrays: Arrays, i: int) -> Arrays:
    """One row of each, still arrays where a row is a single text."""
    return {name: array[i : i + 1].reshape(array.shape[1:]) for name, array in arrays.items()}


def _targets(targets: Any, at: Any) -> Any:
    """The right answers of some rows."""
    if targets is None:
        return None
    return {name: array[at] for name, array in targets.items()} if isinstance(targets, Mapping) else targets[at]


def _are_shares(expected: Arrays) -> bool:
    """Whether boxes are in shares of the picture's sides: in pixels, some would be further from the corner than 2."""
    kept = expected["boxes"][expected["scores"] > MIN_SCORE] if {"boxes", "scores"} <= expected.keys() else np.zeros(0)
    return float(np.nan_to_num(kept.astype(np.float64)).max(initial=0.0)) <= 2.0


def _scores_of(source: Source, row: Arrays) -> str | None:
    """The output with a score for each of several classes: one list of a classifier, one a pixel of a segmenter."""
    wanted = {"classification": 1, "segmentation": 3}.get(source.task)
    name = next((name for name, array in row.items() if array.dtype.kind == "f"), None)
    return name if name and row[name].ndim == wanted and row[name].shape[-1] > 1 else None


def _label(source: Source, number: Any) -> str:
    if not np.isfinite(number) or not 0 <= int(number) < len(source.labels):
        return f"class {number:.0f}"
    return source.labels[int(number)]


def _class(source: Source, scores: NDArray[Any]) -> str:
    """The class with the highest score: probabilities with two digits, others with three."""
    best = int(np.argmax(scores))
    is_share = float(scores.min()) >= 0 and float(scores.max()) <= 1
    return f"{_label(source, best)} {scores[best]:.2f}" if is_share else f"{_label(source, best)} {scores[best]:.3g}"


def _right_class(source: Source, truth: Any) -> str:
    return "" if truth is None or isinstance(truth, Mapping) or np.ndim(truth) else _label(source, truth)


def _objects(source: Source, row: Arrays) -> str:
    """The detections above the least score, the best first."""
    scores = np.nan_to_num(row["scores"].astype(np.float64))
    order = [int(k) for k in np.argsort(-scores, kind="stable") if scores[k] > MIN_SCORE]
    named = [f"{_label(source, row['classes'][k])} {scores[k]:.2f}" for k in order[:_OBJECTS]]
    more = f" and {len(order) - _OBJECTS} more" if len(order) > _OBJECTS else ""
    return ", ".join(named) + more if named else f"nothing above {MIN_SCORE:g}"


def _areas(source: Source, scores: NDArray[Any], reference: NDArray[Any] | None = None) -> str:
    """The classes with the most pixels and, against a reference, how many pixels have another class."""
    mask = np.argmax(scores, -1)
    ids, counts = np.unique(mask, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_CLASSES]
    words = ", ".join(f"{_label(source, ids[k])} {counts[k] / mask.size:.1%}" for k in order)
    other = 0.0 if reference is None else float(np.mean(mask != np.argmax(reference, -1)))
    return f"{words} ({100 * other:.3g}% of the pixels differ)" if other else words


def _values(theirs: Arrays, ours: Arrays) -> tuple[str, str]:
    """All values of small outputs, and of large ones the value that is furthest off, with its place."""
    found: tuple[list[str], list[str]] = ([], [])
    for name, array in list(theirs.items())[:_TENSORS]:
        if array.size > _VALUES and array.dtype.kind != "O":
            distance = np.abs(array.astype(np.float64) - ours[name].astype(np.float64))
            place = np.unravel_index(int(np.argmax(np.nan_to_num(distance, nan=np.inf))), array.shape)
            where = f"{name}[{', '.join(str(int(index)) for index in place)}]"
            values: Sequence[Any] = (array[place], ours[name][place])
        else:
            where, values = name, (array, ours[name])
        for words, value in zip(found, values, strict=True):
            words.append(_number(value) if len(theirs) == 1 and where == name else f"{where} {_number(value)}")
    return "; ".join(found[0]), "; ".join(found[1])


def _inputs(row: Arrays) -> str:
    """Small inputs as they are, large ones by their shape and range."""
    words = []
    for name, array in list(row.items())[:_TENSORS]:
        if array.size <= _VALUES or array.dtype.kind == "O":
            words.append(f"{name} {_number(array)}")
        else:
            low, high = float(array.min()), float(array.max())
            words.append(f"{name} ({' × '.join(map(str, array.shape))}, from {low:.3g} to {high:.3g})")
    return "; ".join(words)


def _number(value: Any) -> str:
    """One value or a few of them; six digits of a real number, and no more of a text than fits."""
    if value is None or isinstance(value, Mapping):
        return ""
    flat = list(np.asarray(value).ravel())
    words = []
    for item in flat[:_VALUES]:
        if isinstance(item, bytes):
            words.append(repr(item.decode("utf-8", "replace")))
        else:
            words.append(f"{float(item):.6g}" if isinstance(item, np.floating) else str(item))
    text = ", ".join(words) + (", …" if len(flat) > _VALUES else "")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
