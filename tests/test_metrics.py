"""Task metrics against values computed by hand, definitions written out plainly, and what other libraries give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from servable import metrics
from servable.errors import InvalidArgumentError

NAN = float("nan")

Arrays = dict[str, NDArray[Any]]
Detection = tuple[float, Sequence[float], float]  # score, box, class
Object = tuple[Sequence[float], int]  # box, class


def detections(*images: Sequence[Detection]) -> Arrays:
    """One list of detections for each image, padded with score 0."""
    most = max(len(image) for image in images)
    rows = [[*image, *[(0.0, (0, 0, 0, 0), 0)] * (most - len(image))] for image in images]
    return {
        "boxes": np.array([[box for _, box, _ in row] for row in rows], np.float32).reshape(len(rows), most, 4),
        "scores": np.array([[score for score, _, _ in row] for row in rows], np.float32),
        "classes": np.array([[kind for _, _, kind in row] for row in rows], np.float32),
    }


def objects(*images: Sequence[Object]) -> Arrays:
    """One list of true objects for each image, padded with class -1."""
    most = max(len(image) for image in images)
    rows = [[*image, *[((0, 0, 0, 0), -1)] * (most - len(image))] for image in images]
    return {
        "boxes": np.array([[box for box, _ in row] for row in rows], np.float32).reshape(len(rows), most, 4),
        "classes": np.array([[kind for _, kind in row] for row in rows], np.int64).reshape(len(rows), most),
    }


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([[0.9, 0.1], [0.2, 0.8]], [0, 1], 1.0),
        ([[0.9, 0.1], [0.2, 0.8]], [1, 0], 0.0),
        ([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], [0, 1, 1, 1], 0.75),
        ([[-3.0, -1.0, -2.0]], [1], 1.0),
        ([[NAN, 0.1], [0.2, 0.8]], [0, 1], 0.5),  # NumPy's argmax would point at the NaN
        ([[0.9, NAN], [0.2, 0.8]], [0, 1], 0.5),
    ],
)
def test_accuracy(scores: list[list[float]], labels: list[int], expected: float) -> None:
    assert metrics.accuracy(np.array(scores, np.float32), np.array(labels)) == expected


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        ([[1.0], [2.0]], [[1.0], [2.0]], 0.0),
        ([[1.0], [2.0]], [[2.0], [0.0]], 1.5),
        ([[-1.0, 1.0]], [[1.0, -1.0]], 2.0),
    ],
)
def test_mae(outputs: list[list[float]], targets: list[list[float]], expected: float) -> None:
    assert metrics.mae(np.array(outputs, np.float32), np.array(targets, np.float32)) == expected


def test_mae_of_unsigned_integers_does_not_wrap() -> None:
    assert metrics.mae(np.array([3], np.uint8), np.array([5], np.uint8)) == 2.0


def test_mae_of_float16_does_not_overflow() -> None:
    assert metrics.mae(np.array([60000.0], np.float16), np.array([-60000.0], np.float16)) == 2 * float(
        np.float16(60000)
    )


@pytest.mark.parametrize(
    ("metric", "outputs", "targets", "message"),
    [
        (metrics.accuracy, np.zeros(3), np.zeros(3, int), r"scores has shape \(3,\); expected \(n, classes\)"),
        (metrics.accuracy, np.zeros((0, 3)), np.zeros(0, int), r"scores has shape \(0, 3\)"),
        # NumPy would compare each row with each label
        (metrics.accuracy, np.zeros((3, 2)), np.zeros((3, 1), int), r"labels has shape \(3, 1\); expected \(3,\)"),
        (metrics.mae, np.zeros((3, 1)), np.zeros(3), r"targets has shape \(3,\); expected \(3, 1\)"),
        (metrics.mae, np.zeros((0, 1)), np.zeros((0, 1)), r"outputs has shape \(0, 1\)"),
        (metrics.mean_iou, np.zeros((2, 2, 3)), np.zeros((2, 2), int), r"mask has shape \(2, 2, 3\); expected \(batch"),
        (metrics.mean_iou, np.zeros((0, 2, 2, 3)), np.zeros((0, 2, 2), int), r"mask has shape \(0, 2, 2, 3\)"),
        (metrics.mean_iou, np.zeros((1, 2, 2, 3)), np.zeros((2, 2, 2), int), r"target has shape \(2, 2, 2\); expected"),
        (metrics.mean_iou, np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2)), "target has dtype float64; expected integer"),
        (metrics.mean_iou, np.zeros((1, 1, 1, 3)), np.array([[[3]]]), "class id 3; mask has classes 0 to 2"),
        (metrics.mean_iou, np.zeros((1, 1, 2, 3)), np.array([[[-1, 0]]]), "class id -1; mask has classes 0 to 2"),
    ],
)
def test_arrays_that_do_not_fit(metric: Any, outputs: NDArray[Any], targets: NDArray[Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        metric(outputs, targets)


# segmentation


def scores_for(predicted: NDArray[Any], classes: int) -> NDArray[np.float32]:
    """Scores whose highest is at the given classes."""
    return np.eye(classes, dtype=np.float32)[predicted]


@pytest.mark.parametrize(
    ("predicted", "target", "classes", "expected"),
    [
        ([[[0, 1], [1, 1]]], [[[0, 1], [1, 1]]], 2, 1.0),
        # class 0: 1 of the 2 pixels that it has on either side; class 1: 2 of 3; (1/2 + 2/3) / 2
        ([[[0, 1], [1, 1]]], [[[0, 0], [1, 1]]], 2, 7 / 12),
        # classes 2 and 3 are nowhere: not in the mean
        ([[[0, 1], [1, 1]]], [[[0, 0], [1, 1]]], 4, 7 / 12),
        # class 0: 3 of 4; class 1 is predicted and not there: 0 of 1
        ([[[0, 0], [0, 1]]], [[[0, 0], [0, 0]]], 2, 3 / 8),
        # class 0: 3 of 4; class 1 is there and not predicted: 0 of 1
        ([[[0, 0], [0, 0]]], [[[0, 0], [0, 1]]], 2, 3 / 8),
        # over both images, class 0: 2 of 3; class 1: 1 of 2. The mean of the images' own values would be 5/8.
        ([[[0, 0]], [[0, 1]]], [[[0, 0]], [[1, 1]]], 2, 7 / 12),
    ],
)
def test_mean_iou(predicted: Any, target: Any, classes: int, expected: float) -> None:
    mask = scores_for(np.array(predicted), classes)
    assert metrics.mean_iou(mask, np.array(target, np.uint8)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_pixel_with_nan_is_wrong_and_no_class(wrong: int) -> None:
    mask = scores_for(np.array([[[0, 0, 1]]]), 2)
    mask[0, 0, 2, wrong] = NAN  # NumPy's argmax would point at the NaN
    # class 0: 2 of 2, for the pixel with NaN is no false positive of it; class 1: 0 of 1
    assert metrics.mean_iou(mask, np.array([[[0, 0, 1]]])) == 0.5


def test_mean_iou_is_that_of_keras() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        classes = int(rng.integers(2, 7))
        shape = tuple(rng.integers(1, 6, 3))
        mask = rng.random((*shape, classes), np.float32)
        mask[..., rng.integers(classes)] -= rng.integers(2)  # in half of the cases one class is never predicted
        target = rng.integers(0, classes, shape)
        oracle = keras.metrics.MeanIoU(num_classes=classes, sparse_y_pred=False)
        oracle.update_state(target, mask)
        assert metrics.mean_iou(mask, target) == pytest.approx(float(oracle.result()), abs=1e-6)


# boxes


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7),  # 1 / (4 + 4 - 1)
        ((0, 0, 4, 4), (1, 1, 2, 3), 1 / 8),  # 2 / 16, one inside the other
        ((0, 0, 1, 4), (0, 2, 1, 6), 1 / 3),  # 2 / (4 + 4 - 2)
        ((0, 0, 0.5, 0.5), (0, 0.25, 0.5, 0.75), 1 / 3),  # 0.125 / (0.25 + 0.25 - 0.125)
        ((0, 0, 2, 2), (2, 0, 4, 2), 0.0),  # a common edge
        ((0, 0, 2, 2), (5, 5, 6, 6), 0.0),
        ((0, 0, 2, 2), (5, 0, 6, 2), 0.0),  # one pair of sides overlaps
        ((1, 0, 1, 2), (1, 0, 1, 2), 0.0),  # a line
        ((1, 1, 1, 1), (0, 0, 2, 2), 0.0),  # a point
        ((2, 2, 0, 0), (2, 2, 0, 0), 0.0),  # both sides negative: their product is not
        ((2, 2, 0, 0), (0, 0, 2, 2), 0.0),
        ((NAN, 0, 2, 2), (0, 0, 2, 2), 0.0),
        ((0, 0, math.inf, 2), (0, 0, 2, 2), 0.0),
        ((-math.inf, 0, math.inf, 2), (-math.inf, 0, math.inf, 2), 0.0),
        ((1e-30, 0, 2e-30, 1e-30), (1e-30, 0, 2e-30, 1e-30), 1.0),  # the area is no float32
    ],
)
def test_iou(a: Sequence[float], b: Sequence[float], expected: float) -> None:
    found = metrics.iou(np.array([a], np.float32), np.array([b], np.float32))
    assert found == pytest.approx(np.array([[expected]]), abs=1e-15)


def test_iou_of_integers_does_not_wrap() -> None:
    assert metrics.iou(np.array([[0, 0, 200, 200]], np.uint8), np.array([[0, 0, 200, 100]], np.uint8)) == 0.5


def test_iou_is_pairwise() -> None:
    a = np.array([[0, 0, 2, 2], [0, 0, 4, 4]])
    b = np.array([[0, 0, 2, 2], [0, 0, 4, 2], [9, 9, 10, 10]])
    assert metrics.iou(a, b).tolist() == [[1.0, 0.5, 0.0], [0.25, 0.5, 0.0]]  # 4/4, 4/8; 4/16, 8/16
    assert metrics.iou(a, np.zeros((0, 4))).shape == (2, 0)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros(4), np.zeros((1, 4)), r"boxes_a has shape \(4,\); expected \(n, 4\)"),
        (np.zeros((1, 4)), np.zeros((4, 1)), r"boxes_b has shape \(4, 1\); expected \(n, 4\)"),
    ],
)
def test_iou_of_what_is_no_boxes(a: NDArray[Any], b: NDArray[Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        metrics.iou(a, b)


boxes_of_any_kind = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 4), st.just(4)), elements=st.floats(width=32) | st.integers(0, 3).map(float)
)


@given(boxes_of_any_kind, boxes_of_any_kind)
def test_iou_is_symmetric_and_a_share(a: NDArray[Any], b: NDArray[Any]) -> None:
    found = metrics.iou(a, b)
    assert found.shape == (len(a), len(b))
    assert np.array_equal(found, metrics.iou(b, a).T)
    assert ((found >= 0) & (found <= 1)).all()


# detection

A, B, C = (0, 0, 10, 10), (20, 20, 30, 30), (40, 40, 50, 50)
NOWHERE = (90, 90, 95, 95)


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [
        # right, wrong, right, wrong (A is taken), right. Precision 1/1, 1/2, 2/3, 2/4, 3/5; with each raised to the
        # highest that follows 1, 2/3, 2/3, 3/5, 3/5. Recall grows by 1/3 at the 1st, 3rd and 5th.
        (
            [[(0.9, A, 0), (0.6, A, 0), (0.5, B, 0)], [(0.7, A, 0), (0.8, NOWHERE, 0)]],
            [[(A, 0), (B, 0)], [(A, 0)]],
            (1 + 2 / 3 + 3 / 5) / 3,
        ),
        # wrong, right, right: precision 0, 1/2, 2/3; the 1/2 counts as 2/3
        ([[(0.9, NOWHERE, 0), (0.8, A, 0), (0.7, B, 0)]], [[(A, 0), (B, 0)]], 2 / 3),
        # one of two found: recall ends at 1/2
        ([[(0.9, A, 0)]], [[(A, 0), (B, 0)]], 1 / 2),
        # class 0: 1; class 3: 0; class 1, which is not in the truth, does not count
        ([[(0.9, A, 0), (0.8, C, 1)]], [[(A, 0), (B, 3)]], 1 / 2),
        # the right place, the wrong class
        ([[(0.9, A, 1)]], [[(A, 0)]], 0.0),
        # the right place, in the other image
        ([[], [(0.9, A, 0)]], [[(A, 0)], []], 0.0),
        # nothing found
        ([[]], [[(A, 0)]], 0.0),
        # the second overlaps the first object more (90/110) than the second (70/130): that one is taken, this is free
        ([[(0.9, A, 0), (0.8, (0, 1, 10, 11), 0)]], [[(A, 0), ((0, 4, 10, 14), 0)]], 1.0),
        # the first fits both objects (80/120 and 1) and takes the better; the second fits the other only (80/120)
        ([[(0.9, A, 0), (0.8, (0, 4, 10, 14), 0)]], [[((0, 2, 10, 12), 0), (A, 0)]], 1.0),
        # both pass a threshold together, so precision is 1/2 at recall 1, whichever is given first
        ([[(0.9, A, 0), (0.9, NOWHERE, 0)]], [[(A, 0)]], 1 / 2),
        ([[(0.9, NOWHERE, 0), (0.9, A, 0)]], [[(A, 0)]], 1 / 2),
        ([[(0.9, NOWHERE, 0)], [(0.9, A, 0)]], [[], [(A, 0)]], 1 / 2),
        # what is no number is never right: A is missed, B is found
        ([[(NAN, A, 0), (0.9, B, 0)]], [[(A, 0), (B, 0)]], 1 / 2),
        ([[(0.9, A, 0), (0.8, (20, NAN, 30, 30), 0)]], [[(A, 0), (B, 0)]], 1 / 2),
        ([[(0.9, A, 0), (0.8, B, NAN)]], [[(A, 0), (B, 0)]], 1 / 2),
        ([[(NAN, A, 0)]], [[(A, 0)]], 0.0),
    ],
)
def test_mean_average_precision(
    found: Sequence[Sequence[Detection]], truth: Sequence[Sequence[Object]], expected: float
) -> None:
    value = metrics.mean_average_precision(detections(*found), objects(*truth))
    assert value == pytest.approx(expected, abs=1e-15)


def test_equal_scores_are_matched_in_an_order_of_their_own() -> None:
    # The first fits both objects (IoU 1 and 80/120), the second only the first object (60/100). If the first chooses
    # first, the second has none; so the order must not be that in which they are given. By coordinates both are right.
    rows: list[Detection] = [(0.9, A, 0), (0.9, (0, 0, 10, 6), 0)]
    truth = objects([(A, 0), ((0, 2, 10, 12), 0)])
    assert metrics.mean_average_precision(detections(rows), truth) == 1.0
    assert metrics.mean_average_precision(detections(rows[::-1]), truth) == 1.0


def test_the_iou_threshold_is_included() -> None:
    found, truth = detections([(0.9, (0, 0, 10, 5), 0)]), objects([(A, 0)])  # 50 / 100
    assert metrics.mean_average_precision(found, truth, iou_threshold=0.5) == 1.0
    assert metrics.mean_average_precision(found, truth, iou_threshold=0.51) == 0.0


def test_padding_takes_no_part_unless_asked() -> None:
    found, truth = detections([(0.0, A, 0), (0.4, B, 0)]), objects([(A, 0), (B, 0)])
    assert metrics.mean_average_precision(found, truth) == 0.5
    assert metrics.mean_average_precision(found, truth, min_score=0.4) == 0.5  # 0.4 as float32 is a bit more
    assert metrics.mean_average_precision(found, truth, min_score=0.41) == 0.0
    assert metrics.mean_average_precision(found, truth, min_score=-math.inf) == 1.0


def test_padding_of_the_truth_is_no_class() -> None:
    found, truth = detections([(0.9, A, 0), (0.8, B, -1)]), objects([(A, 0), (B, -1)])
    assert metrics.mean_average_precision(found, truth) == 1.0


# image, class, score (of a detection), box
TRUE_ROWS = [
    (0, 0, (28, 1, 46, 17)),
    (0, 0, (15, 19, 27, 36)),
    (0, 0, (27, 0, 42, 14)),
    (0, 0, (11, 18, 19, 26)),
    (1, 1, (3, 23, 13, 41)),
    (1, 1, (29, 3, 51, 27)),
    (1, 1, (11, 5, 20, 27)),
    (1, 1, (12, 14, 20, 29)),
]
FOUND_ROWS = [
    (0, 0, 0.96, (30, -2, 42, 18)),
    (0, 0, 0.54, (13, 23, 26, 35)),
    (0, 0, 0.33, (30, 2, 42, 15)),
    (0, 0, 0.19, (7, 22, 20, 30)),
    (0, 0, 0.12, (15, 21, 22, 28)),
    (0, 0, 0.05, (26, -3, 38, 10)),
    (1, 1, 0.89, (4, 19, 13, 42)),
    (1, 0, 0.82, (8, 12, 21, 31)),
    (1, 0, 0.75, (11, 9, 17, 30)),
    (1, 1, 0.68, (26, -1, 50, 23)),
    (1, 1, 0.61, (7, 7, 20, 23)),
    (1, 0, 0.47, (7, 26, 12, 38)),
]


@pytest.mark.parametrize(("iou_threshold", "expected"), [(0.5, 0.625), (0.6, 0.2708333333333333)])
def test_what_the_code_of_coco_gives(iou_threshold: float, expected: float) -> None:
    # pycocotools 2.0.11, class by class, with recThrs at 1/n, 2/n, … n/n for its n objects
    found = detections(*([(s, box, c) for i, c, s, box in FOUND_ROWS if i == image] for image in (0, 1)))
    truth = objects(*([(box, c) for i, c, box in TRUE_ROWS if i == image] for image in (0, 1)))
    assert metrics.mean_average_precision(found, truth, iou_threshold) == pytest.approx(expected, abs=1e-15)


Box = tuple[int, int, int, int]
places = st.builds(
    lambda y, x, height, width: (y, x, y + height, x + width),
    st.integers(0, 6),
    st.integers(0, 6),
    st.integers(1, 6),
    st.integers(1, 6),
)
kinds = st.integers(0, 1)
levels = st.sampled_from([0.25, 0.5, 0.75, 1.0])
true_images = st.lists(st.lists(st.tuples(places, kinds), max_size=4), min_size=2, max_size=2).filter(any)
found_images = st.lists(st.lists(st.tuples(levels, places, kinds), max_size=6), min_size=2, max_size=2)


def plain_iou(a: Box, b: Box) -> Fraction:
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(height, 0) * max(width, 0)
    return Fraction(common, (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def plain_hits(found: list[tuple[float, Box]], truth: list[Box]) -> int:
    """How many of one class in one image are right."""
    free, hits = list(truth), 0
    for _, box in sorted(found, key=lambda row: (-row[0], row[1])):
        best = max(free, key=lambda other: plain_iou(box, other), default=None)
        if best is not None and plain_iou(box, best) >= Fraction(1, 2):
            free.remove(best)
            hits += 1
    return hits


def plain_average_precision(
    found: list[list[tuple[float, Box, int]]], truth: list[list[tuple[Box, int]]], kind: int
) -> Fraction:
    """Everything is matched anew at each score threshold; then precision at each share of the objects."""
    boxes = [[box for box, c in image if c == kind] for image in truth]
    total = sum(map(len, boxes))
    points = []
    for threshold in {score for image in found for score, _, c in image if c == kind}:
        kept = [[(score, box) for score, box, c in image if c == kind and score >= threshold] for image in found]
        hits = sum(map(plain_hits, kept, boxes))
        points.append((hits, Fraction(hits, sum(map(len, kept)))))
    highest = [max((p for hits, p in points if hits >= wanted), default=Fraction(0)) for wanted in range(1, total + 1)]
    return sum(highest, Fraction(0)) / total


@given(found_images, true_images)
@settings(max_examples=300)
def test_the_definition_written_out(
    found: list[list[tuple[float, Box, int]]], truth: list[list[tuple[Box, int]]]
) -> None:
    there = {kind for image in truth for _, kind in image}
    expected = sum((plain_average_precision(found, truth, kind) for kind in there), Fraction(0)) / len(there)
    value = metrics.mean_average_precision(detections(*found), objects(*truth))
    assert value == pytest.approx(float(expected), abs=1e-12)


@given(true_images, st.data())
def test_a_perfect_detector_has_one(truth: list[list[tuple[Box, int]]], data: st.DataObject) -> None:
    found = [[(data.draw(levels), box, kind) for box, kind in image] for image in truth]
    assert metrics.mean_average_precision(detections(*found), objects(*truth)) == 1.0


@given(found_images, true_images, st.randoms(use_true_random=False))
def test_the_order_of_detections_does_not_matter(
    found: list[list[tuple[float, Box, int]]], truth: list[list[tuple[Box, int]]], random: Any
) -> None:
    shuffled = [random.sample(image, len(image)) for image in found]
    assert metrics.mean_average_precision(detections(*shuffled), objects(*truth)) == metrics.mean_average_precision(
        detections(*found), objects(*truth)
    )


@given(found_images, true_images, kinds, st.sampled_from([0.1, 0.25]))
def test_a_wrong_detection_with_the_lowest_score_gains_nothing(
    found: list[list[tuple[float, Box, int]]], truth: list[list[tuple[Box, int]]], kind: int, score: float
) -> None:
    more = [[*found[0], (score, NOWHERE, kind)], found[1]]
    before = metrics.mean_average_precision(detections(*found), objects(*truth))
    assert metrics.mean_average_precision(detections(*more), objects(*truth)) <= before + 1e-12


ONE = detections([(0.9, A, 0)])
TRUE_ONE = objects([(A, 0)])


@pytest.mark.parametrize(
    ("found", "truth", "message"),
    [
        ({"boxes": ONE["boxes"], "classes": ONE["classes"]}, {}, "detections: no 'scores'; given: 'boxes', 'classes'"),
        ({}, {}, "detections: no 'boxes'; given: nothing"),
        ({"boxes": np.zeros((1, 4))}, {}, r"detections: 'boxes' has shape \(1, 4\); expected \(batch, number, 4\)"),
        ({"boxes": np.zeros((1, 1, 5))}, {}, r"detections: 'boxes' has shape \(1, 1, 5\)"),
        ({"scores": np.zeros((1, 2))}, {}, r"detections: 'scores' has shape \(1, 2\); expected \(1, 1\), one for each"),
        ({"classes": np.zeros((1, 1, 1))}, {}, r"detections: 'classes' has shape \(1, 1, 1\)"),
        (
            {"classes": np.array([[b"cat"]], object)},
            {},
            "detections: 'classes' has dtype object; expected real numbers",
        ),
        ({}, {"classes": np.zeros((2, 1))}, r"truth: 'classes' has shape \(2, 1\); expected \(1, 1\)"),
        ({}, {"classes": np.array([[0.5]])}, "truth: 'classes' holds 0.5; expected class ids, or -1"),
        ({}, {"classes": np.array([[NAN]])}, "truth: 'classes' holds nan"),
        ({}, {"classes": np.array([[-2]])}, "truth: 'classes' holds -2"),
        ({}, {"classes": np.array([[-1]])}, "truth: 'classes' holds no object"),
        ({}, objects([(A, 0)], [(B, 0)]), "batch sizes differ: detections 1, truth 2"),
    ],
)
def test_detections_that_do_not_fit(found: Arrays, truth: Arrays, message: str) -> None:
    whole = "given" in message
    with pytest.raises(InvalidArgumentError, match=message):
        metrics.mean_average_precision(found if whole else {**ONE, **found}, {**TRUE_ONE, **truth})


@pytest.mark.parametrize("iou_threshold", [0.0, -0.5, 1.5, NAN])
def test_an_iou_threshold_that_is_none(iou_threshold: float) -> None:
    with pytest.raises(InvalidArgumentError, match=r"iou_threshold is .*; expected more than 0 and at most 1"):
        metrics.mean_average_precision(ONE, TRUE_ONE, iou_threshold)
    with pytest.raises(InvalidArgumentError, match=r"iou_threshold is .*; expected more than 0 and at most 1"):
        metrics.match_detections(ONE, ONE, iou_threshold)


# two detectors


def test_matching_by_hand() -> None:
    ours = detections(
        # by score: B takes theirs at 1; A theirs at 0; the last two find no partner (class; place)
        [(0.5, A, 0), (0.9, B, 1), (0.4, C, 0), (0.3, NOWHERE, 0)],
        # the better one takes it, though the other is nearer
        [(0.6, A, 2), (0.8, (0, 0, 10, 9), 2)],
    )
    theirs = detections(
        [(0.6, A, 0), (0.8, (20, 20, 30, 29), 1), (0.4, C, 1)],
        [(0.7, A, 2)],
    )
    found = metrics.match_detections(ours, theirs)
    assert [(a.tolist(), b.tolist()) for a, b in found.pairs] == [([1, 0], [1, 0]), ([1], [0])]
    assert all(side.dtype == np.int64 for pairs in found.pairs for side in pairs)
    assert (found.matched, found.unmatched_ours, found.unmatched_theirs) == (3, 3, 1)
    assert found.agreement == 0.5  # 3 pairs; ours are 6, theirs 4
    # What the pairs are for: scores 0.9 and 0.8, 0.5 and 0.6, 0.8 and 0.7; boxes differ by 1 at most.
    errors = {
        name: max(np.abs(ours[name][i][a] - theirs[name][i][b]).max() for i, (a, b) in enumerate(found.pairs))
        for name in ("scores", "boxes")
    }
    assert errors == pytest.approx({"scores": 0.1, "boxes": 1.0})


def test_matching_above_a_score() -> None:
    ours, theirs = detections([(0.9, A, 0), (0.3, B, 0)]), detections([(0.2, B, 0), (0.8, A, 0), (0.7, C, 0)])
    found = metrics.match_detections(ours, theirs, min_score=0.5)
    assert [side.tolist() for side in found.pairs[0]] == [[0], [1]]
    assert (found.unmatched_ours, found.unmatched_theirs, found.agreement) == (0, 1, 0.5)


@pytest.mark.parametrize("broken", [(NAN, A, 0), (0.9, (0, NAN, 10, 10), 0), (0.9, A, NAN)])
def test_what_is_no_number_stays_unmatched(broken: Detection) -> None:
    for ours, theirs in (([broken], [(0.9, A, 0)]), ([(0.9, A, 0)], [broken]), ([broken], [broken])):
        found = metrics.match_detections(detections(ours), detections(theirs))
        assert (found.matched, found.unmatched_ours, found.unmatched_theirs) == (0, 1, 1)
        assert found.agreement == 0.0


def test_two_detectors_that_find_nothing_agree() -> None:
    found = metrics.match_detections(detections([(0.0, A, 0)]), detections([(0.0, B, 0)]))
    assert [side.tolist() for side in found.pairs[0]] == [[], []]
    assert (found.unmatched_ours, found.unmatched_theirs, found.agreement) == (0, 0, 1.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"boxes": np.zeros((1, 4))}, {}, r"ours: 'boxes' has shape \(1, 4\)"),
        ({}, {"scores": np.zeros((1, 3))}, r"theirs: 'scores' has shape \(1, 3\); expected \(1, 1\)"),
        ({}, detections([(0.9, A, 0)], []), "batch sizes differ: ours 1, theirs 2"),
    ],
)
def test_detectors_that_do_not_fit(ours: Arrays, theirs: Arrays, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        metrics.match_detections({**ONE, **ours}, {**ONE, **theirs})


@given(found_images, found_images)
def test_pairs_are_allowed_and_none_is_left_out(
    ours: list[list[tuple[float, Box, int]]], theirs: list[list[tuple[float, Box, int]]]
) -> None:
    found = metrics.match_detections(detections(*ours), detections(*theirs))
    for a, b, pairs in zip(ours, theirs, found.pairs, strict=True):
        fits = {
            (i, j)
            for i, (_, box, kind) in enumerate(a)
            for j, (_, other, other_kind) in enumerate(b)
            if kind == other_kind and plain_iou(box, other) >= Fraction(1, 2)
        }
        taken = [set(side.tolist()) for side in pairs]
        assert len(taken[0]) == len(taken[1]) == len(pairs[0])
        assert fits >= {(int(i), int(j)) for i, j in zip(*pairs, strict=True)}
        assert not [pair for pair in fits if pair[0] not in taken[0] and pair[1] not in taken[1]]
        scores = [a[i][0] for i in pairs[0]]
        assert scores == sorted(scores, reverse=True)
    assert found.matched + found.unmatched_ours == sum(map(len, ours))
    assert found.matched + found.unmatched_theirs == sum(map(len, theirs))


@given(found_images)
def test_a_detector_agrees_with_itself(images: list[list[tuple[float, Box, int]]]) -> None:
    found = metrics.match_detections(detections(*images), detections(*images))
    assert found.agreement == 1.0
    for image, pairs in zip(images, found.pairs, strict=True):
        assert all(image[i] == image[j] or image[i][1:] == image[j][1:] for i, j in zip(*pairs, strict=True))


# by name

EXAMPLES: Mapping[str, tuple[Any, Any, float]] = {
    "accuracy": (np.array([[0.0, 2.0]]), np.array([1]), 1.0),
    "mae": (np.array([[0.0, 2.0]]), np.array([[1.0, 1.0]]), 1.0),
    "mean_iou": (np.array([[[[0.0, 2.0]]]]), np.array([[[1]]]), 1.0),
    # one right of two, at an IoU of exactly 0.5
    "map50": (detections([(0.9, (0, 0, 10, 5), 0)]), objects([(A, 0), (B, 0)]), 0.5),
}


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_compute_takes_the_metric_by_name(name: str) -> None:
    outputs, targets, expected = EXAMPLES[name]
    assert metrics.compute(name, outputs, targets) == expected
    assert metrics.METRICS[name](outputs, targets) == expected


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_compute_says_whether_it_takes_arrays_or_mappings(name: str) -> None:
    outputs, targets, _ = EXAMPLES[name]
    takes = "takes outputs and targets as mappings" if name == "map50" else "takes one array of outputs"
    other = np.zeros((1, 1)) if name == "map50" else {"outputs": np.zeros((1, 1))}
    for wrong in ((other, targets), (outputs, other)):
        with pytest.raises(InvalidArgumentError, match=f"metric '{name}' {takes}"):
            metrics.compute(name, *wrong)


def test_unknown_metric_lists_the_known_ones() -> None:
    with pytest.raises(InvalidArgumentError, match=r"no metric 'acuracy'.*accuracy.*mae.*mean_iou.*map50"):
        metrics.compute("acuracy", np.zeros(1), np.zeros(1))
