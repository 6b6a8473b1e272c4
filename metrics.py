"""Task metrics over whole arrays: for classifiers, regressors, detectors and segmenters.

Boxes are [ymin, xmin, ymax, xmax], all in one unit (pixels, or shares of the image's sides in [0, 1]).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidArgumentError

Arrays = Mapping[str, NDArray[Any]]


def accuracy(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of rows in [0, 1] whose highest score is at the labelled class.

    ``scores`` (n, classes), ``labels`` integers (n,). A row with NaN counts as wrong. Raises
    `InvalidArgumentError` for other shapes and for no rows at all.
    """
    if scores.ndim < 2 or scores.size == 0:
        raise _wrong_shape("scores", scores, "(n, classes), neither of them 0")
    if labels.shape != scores.shape[:-1]:
        raise _wrong_shape("labels", labels, f"{scores.shape[:-1]}, one for each row of scores")
    right = np.argmax(scores, axis=-1) == labels
    return float(np.mean(right & ~np.isnan(scores).any(axis=-1)))


def mae(outputs: NDArray[Any], targets: NDArray[Any]) -> float:
    """Mean absolute error in the target's unit; both arrays of one shape.

    Raises `InvalidArgumentError` for two shapes and for empty arrays.
    """
    if outputs.size == 0:
        raise _wrong_shape("outputs", outputs, "at least one value")
    if targets.shape != outputs.shape:
        raise _wrong_shape("targets", targets, f"{outputs.shape}, as outputs has")
    return float(np.mean(np.abs(outputs.astype(np.float64) - targets.astype(np.float64))))


def mean_iou(mask: NDArray[Any], target: NDArray[Any]) -> float:
    """Mean over classes, in [0, 1], of the intersection over union of predicted and true pixels.

    ``mask`` (batch, height, width, classes) scores or probabilities, of which the highest is the
    predicted class; ``target`` (batch, height, width) integer class ids below ``classes``. For each
    class true positives / (true positives + false positives + false negatives) over the pixels of all
    images: the segmentation accuracy of PASCAL VOC (Everingham et al., "The PASCAL Visual Object
    Classes Challenge: A Retrospective", IJCV 111, 2015) and the mean IU of Long, Shelhamer and Darrell,
    "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015. Classes that are neither in
    the target nor predicted have no such value and are left out of the mean. A pixel with NaN counts
    as wrong. Raises `InvalidArgumentError` for other shapes, no pixels, and ids that ``mask`` lacks.
    """
    if mask.ndim != 4 or mask.size == 0:
        raise _wrong_shape("mask", mask, "(batch, height, width, classes), none of them 0")
    if target.shape != mask.shape[:-1]:
        raise _wrong_shape("target", target, f"{mask.shape[:-1]}, one class id for each pixel of mask")
    if target.dtype.kind not in "iub":
        raise InvalidArgumentError(f"target has dtype {target.dtype}; expected integer class ids")
    classes = mask.shape[-1]
    for extreme in (int(target.min()), int(target.max())):
        if not 0 <= extreme < classes:
            raise InvalidArgumentError(f"target holds class id {extreme}; mask has classes 0 to {classes - 1}")
    # Rows: true class. Columns: predicted class, and a last one for pixels with NaN, which name no class.
    confusion = np.zeros((classes, classes + 1), np.int64)
    for scores, truth in zip(mask, target, strict=True):
        predicted = np.where(np.isnan(scores).any(axis=-1), classes, np.argmax(scores, axis=-1))
        cells = truth.astype(np.int64) * (classes + 1) + predicted
        confusion += np.bincount(cells.ravel(), minlength=confusion.size).reshape(confusion.shape)
    intersection = np.diagonal(confusion)
    union = confusion.sum(axis=1) + confusion[:, :classes].sum(axis=0) - intersection
    occurs = union > 0
    return float(np.mean(intersection[occurs] / union[occurs]))


def iou(boxes_a: NDArray[Any], boxes_b: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union of each box of one array with each of another, in [0, 1].

    ``boxes_a`` (n, 4) and ``boxes_b`` (m, 4) give (n, m): area of the intersection / area of the union
    (P. Jaccard, "The distribution of the flora in the alpine zone", New Phytologist 11, 1912). A box
    without an area (a side that is not positive, or NaN) gives 0. Coordinates are continuous: a box
    from 0 to 1 is one long, unlike in the PASCAL VOC code, which counts both end pixels. Raises
    `InvalidArgumentError` for other shapes.
    """
    for name, boxes in (("boxes_a", boxes_a), ("boxes_b", boxes_b)):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise _wrong_shape(name, boxes, "(n, 4)")
    # In float64 no area of a float32 box overflows, and none of a positive one underflows to 0.
    a, b = boxes_a.astype(np.float64)[:, np.newaxis], boxes_b.astype(np.float64)
    area_a, area_b = _area(a), _area(b)
    corners = [np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])]
    intersection = _area(np.concatenate(corners, axis=-1))
    intersection[(area_a == 0) | (area_b == 0)] = 0
    union = area_a + area_b - intersection
    shares: NDArray[np.float64] = np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)
    return shares


def _area(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas of boxes (…, 4); 0 where a side is not positive or a coordinate is not finite."""
    finite = np.where(np.isfinite(boxes).all(axis=-1, keepdims=True), boxes, 0.0)
    sides: NDArray[np.float64] = np.maximum(finite[..., 2:] - finite[..., :2], 0)
    return sides[..., 0] * sides[..., 1]


def mean_average_precision(
    detections: Arrays, truth: Arrays, iou_threshold: float = 0.5, min_score: float = 0.0
) -> float:
    """Mean over classes, in [0, 1], of a detector's average precision.

    ``detections``: ``boxes`` (batch, k, 4), ``scores`` (batch, k) in any order, ``classes`` (batch, k)
    ids as integers or floats. ``truth``: ``boxes`` (batch, t, 4), ``classes`` (batch, t), padded with
    class -1. Other entries are not looked at. Detections with a score of ``min_score`` or less are
    padding and take no part; ``-math.inf`` keeps all.

    In each image, detections in descending order of score each take the object of their class that
    they overlap most among those that are still free, if that IoU is at least ``iou_threshold``; the
    others are false. Average precision is that of PASCAL VOC since 2010 (Everingham and Winn, VOC2010
    Development Kit, 3.4.1): the area under the curve of precision over recall, over all images, after
    precision at each recall was raised to the highest at any recall not below it. Its mean is taken
    over the classes that occur in the truth.

    Two things the definition leaves open. A detection whose best object is taken may have the next
    best, as in the evaluation of COCO (the VOC code calls it false). Detections of equal score pass a
    score threshold together, so the curve has one point for all of them and the order in which they
    were given does not matter; an int8 score has 256 values at most.

    A NaN score is never right: its detection is dropped, and the object counts as missed. Raises
    `InvalidArgumentError` for a missing entry, wrong or unequal shapes, class ids of the truth that
    are none, a threshold outside (0, 1], and a truth without objects.
    """
    _check_threshold(iou_threshold)
    found = _detections("detections", detections)
    objects, ids = _truth(truth)
    if len(found.boxes) != len(objects):
        raise InvalidArgumentError(f"batch sizes differ: detections {len(found.boxes)}, truth {len(objects)}")
    scores, classes, right = [], [], []
    for i in range(len(objects)):
        order = found.ranked(i, min_score)
        # Padding of the truth has a class of its own, -1, over which no mean is taken.
        partners = _pair(found.boxes[i][order], found.classes[i][order], objects[i], ids[i], iou_threshold)
        scores.append(found.scores[i][order])
        classes.append(found.classes[i][order])
        right.append(partners >= 0)
    all_scores, all_classes, all_right = (np.concatenate(parts) for parts in (scores, classes, right))
    known, counts = np.unique(ids[ids >= 0], return_counts=True)
    precisions = [
        _average_precision(all_scores[all_classes == known_id], all_right[all_classes == known_id], int(count))
        for known_id, count in zip(known, counts, strict=True)
    ]
    return float(np.mean(precisions))


def _average_precision(scores: NDArray[np.float64], right: NDArray[np.bool_], objects: int) -> float:
    """Area under the precision-recall curve of one class that has ``objects`` true objects."""
    _, level = np.unique(-scores, return_inverse=True)
    hits = np.cumsum(np.bincount(level, weights=right))
    precision = hits / np.cumsum(np.bincount(level))
    highest_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    # Steps of recall are steps of hits / objects; dividing last makes a perfect detector exactly 1.
    return float(np.diff(hits, prepend=0) @ highest_from_here / objects)


@dataclass(frozen=True, eq=False)
class Matches:
    """Which detections of one model are those of another.

    ``pairs`` has two int64 arrays (p,) for each image, in descending order of our score: the indices of
    our detections and those of their partners, in the arrays as they were given. ``unmatched_ours`` and
    ``unmatched_theirs`` count, over all images, detections that took part and found no partner.
    """

    pairs: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]
    unmatched_ours: int
    unmatched_theirs: int

    @property
    def matched(self) -> int:
        """Number of pairs over all images."""
        return sum(len(ours) for ours, _ in self.pairs)

    @property
    def agreement(self) -> float:
        """Pairs as a share, in [0, 1], of the detections of the side that has more; 1 if neither has any."""
        more = self.matched + max(self.unmatched_ours, self.unmatched_theirs)
        return self.matched / more if more else 1.0


def match_detections(ours: Arrays, theirs: Arrays, iou_threshold: float = 0.5, min_score: float = 0.0) -> Matches:
    """Pair the detections of an exported detector with those of its source model.

    Both sides as ``detections`` in `mean_average_precision`; k may differ. In each image, our
    detections in descending order of score each take the one of theirs of the same class that they
    overlap most among those that are still free, if that IoU is at least ``iou_threshold``.
    Detections with a score of ``min_score`` or less take no part. One with a NaN score, class or
    coordinate takes part and stays unmatched. Raises `InvalidArgumentError` for a missing entry,
    wrong or unequal shapes, and a threshold outside (0, 1].
    """
    _check_threshold(iou_threshold)
    a, b = _detections("ours", ours), _detections("theirs", theirs)
    if len(a.boxes) != len(b.boxes):
        raise InvalidArgumentError(f"batch sizes differ: ours {len(a.boxes)}, theirs {len(b.boxes)}")
    pairs, unmatched_a, unmatched_b = [], 0, 0
    for i in range(len(a.boxes)):
        order_a, order_b = a.ranked(i, min_score), b.ranked(i, min_score)
        partners = _pair(
            a.boxes[i][order_a], a.classes[i][order_a], b.boxes[i][order_b], b.classes[i][order_b], iou_threshold
        )
        paired = partners >= 0
        pairs.append((order_a[paired], order_b[partners[paired]]))
        unmatched_a += len(order_a) - int(paired.sum())
        unmatched_b += len(order_b) - int(paired.sum())
    return Matches(tuple(pairs), unmatched_a, unmatched_b)


class _Detections(NamedTuple):
    """Checked arrays as float64: boxes (batch, k, 4), scores and classes (batch, k)."""

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: NDArray[np.float64]

    def ranked(self, image: int, min_score: float) -> NDArray[np.int64]:
        """Indices of an image's detections above ``min_score`` and of NaN ones, best first, NaN last.

        Equal scores are ordered by coordinates, so that the order in which they came does not matter.
        """
        boxes, scores = self.boxes[image], self.scores[image]
        order: NDArray[np.int64] = np.lexsort((*boxes.T[::-1], self.classes[image], -scores)).astype(np.int64)
        above: NDArray[np.bool_] = ~(scores[order] <= min_score)
        return order[above]


def _detections(side: str, given: Arrays) -> _Detections:
    boxes = _boxes(side, given)
    scores, classes = (_entry(side, given, key, boxes.shape[:2]) for key in ("scores", "classes"))
    # NaN equals nothing, so a detection without a class is never right.
    return _Detections(boxes, scores, np.where(np.isnan(scores), np.nan, classes))


def _truth(given: Arrays) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boxes (batch, t, 4) and class ids (batch, t) of the true objects, with at least one that is not padding."""
    boxes = _boxes("truth", given)
    ids = _entry("truth", given, "classes", boxes.shape[:2])
    strange = ids[~((ids == np.rint(ids)) & (ids >= -1))]
    if strange.size:
        raise InvalidArgumentError(f"truth: 'classes' holds {strange[0]:g}; expected class ids, or -1 for padding")
    if not (ids >= 0).any():
        raise InvalidArgumentError("truth: 'classes' holds no object; without one there is no average precision")
    return boxes, ids


def _boxes(side: str, given: Arrays) -> NDArray[np.float64]:
    boxes = _entry(side, given, "boxes")
    if boxes.ndim != 3 or boxes.shape[2] != 4:
        raise _wrong_shape(f"{side}: 'boxes'", boxes, "(batch, number, 4)")
    return boxes


def _entry(side: str, given: Arrays, key: str, shape: tuple[int, ...] | None = None) -> NDArray[np.float64]:
    if key not in given:
        raise InvalidArgumentError(f"{side}: no {key!r}; given: {', '.join(map(repr, given)) or 'nothing'}")
    array = given[key]
    if array.dtype.kind in "OSUmMc":
        raise InvalidArgumentError(f"{side}: {key!r} has dtype {array.dtype}; expected real numbers")
    if shape is not None and array.shape != shape:
        raise _wrong_shape(f"{side}: {key!r}", array, f"{shape}, one for each of 'boxes'")
    return array.astype(np.float64)


def _pair(
    boxes_a: NDArray[np.float64],
    classes_a: NDArray[np.float64],
    boxes_b: NDArray[np.float64],
    classes_b: NDArray[np.float64],
    iou_threshold: float,
) -> NDArray[np.int64]:
    """For each box of a, in turn, the index of the box of b that it takes, or -1."""
    partners = np.full(len(boxes_a), -1, np.int64)
    if not len(boxes_b):
        return partners
    overlap = np.where(classes_a[:, np.newaxis] == classes_b, iou(boxes_a, boxes_b), 0.0)
    for i, row in enumerate(overlap):
        best = int(np.argmax(row))
        if row[best] >= iou_threshold:
            partners[i] = best
            overlap[:, best] = 0
    return partners


def _check_threshold(iou_threshold: float) -> None:
    if not 0 < iou_threshold <= 1:
        raise InvalidArgumentError(f"iou_threshold is {iou_threshold}; expected more than 0 and at most 1")


def _wrong_shape(name: str, array: NDArray[Any], expected: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{name} has shape {array.shape}; expected {expected}")


def _map50(detections: Arrays, truth: Arrays) -> float:
    return mean_average_precision(detections, truth, iou_threshold=0.5)


_OF_ARRAYS: dict[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {
    "accuracy": accuracy,
    "mae": mae,
    "mean_iou": mean_iou,
}
_OF_MAPPINGS: dict[str, Callable[[Arrays, Arrays], float]] = {"map50": _map50}

METRICS: dict[str, Callable[..., float]] = {**_OF_ARRAYS, **_OF_MAPPINGS}


def compute(name: str, outputs: NDArray[Any] | Arrays, targets: NDArray[Any] | Arrays) -> float:
    """The metric of that name; `InvalidArgumentError` lists the known ones for an unknown name.

    ``map50`` is `mean_average_precision` at an IoU of 0.5: ``outputs`` and ``targets`` are mappings
    from entry to array. The others take one array each. Raises `InvalidArgumentError` for the wrong
    one of the two, and whatever the metric itself does.
    """
    if name not in METRICS:
        raise InvalidArgumentError(f"no metric {name!r}; known: {', '.join(METRICS)}")
    if name in _OF_ARRAYS:
        if isinstance(outputs, Mapping) or isinstance(targets, Mapping):
            raise InvalidArgumentError(f"metric {name!r} takes one array of outputs and one of targets, not mappings")
        return _OF_ARRAYS[name](outputs, targets)
    if not isinstance(outputs, Mapping) or not isinstance(targets, Mapping):
        raise InvalidArgumentError(f"metric {name!r} takes outputs and targets as mappings from name to array")
    return _OF_MAPPINGS[name](outputs, targets)
