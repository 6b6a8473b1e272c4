"""The report of an export: all that is in the manifest, the samples that are furthest off, and nothing half."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from servable.errors import ResourceExhaustedError, StoreError
from servable.evidence import Evidence, OutputError
from servable.export import report
from servable.export.cases import Case
from servable.export.source import Data, Source
from servable.export.source_model import Arrays, SourceModel
from servable.export.worst import WorstSample, worst_samples
from servable.manifest import Absent, Artifact, Manifest, Preprocessing
from servable.models import card, samples
from servable.signature import Signature, TensorSpec

HOSTILE = """<script>alert("x")</script> & 'quoted'"""
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page's tables by title, its captions, pictures and tags; fails where a tag is not closed in its place."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.captions: list[str] = []
        self.groups: list[str] = []
        self.text = ""
        self._title = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self._title = ""
        if tag == "table":
            self.tables[self._title] = []
        if tag == "tr":
            self.tables[self._title].append([])
        if tag in ("td", "th"):
            self.tables[self._title][-1].append("")
        if tag == "figcaption":
            self.captions.append("")
        if tag == "details":
            self.groups.append("open " if ("open", None) in attrs else "closed ")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "h2" in self.open:
            self._title += data
        if "td" in self.open or "th" in self.open:
            self.tables[self._title][-1][-1] += data
        if "figcaption" in self.open:
            self.captions[-1] += data
        if "summary" in self.open:
            self.groups[-1] += data


def evidence(error: float = 0.01, **changes: Any) -> Evidence:
    found = Evidence(
        data="1,000 test images",
        samples=1000,
        max_abs_error=error,
        mean_abs_error=error / 10,
        criterion=f"max abs error {error:g} <= 1",
        passed=True,
        top1_agreement=0.998,
        metric="accuracy",
        metric_value=0.925,
        metric_source_value=0.93,
        outputs={"probabilities": OutputError(error, error / 10, 0.0, 0.5)},
        worst_samples=(3, 1),
    )
    return replace(found, **changes)


def artifact(format: str, quantization: str, size: int, found: dict[str, Evidence], **changes: Any) -> Artifact:
    made = Artifact(format, quantization, f"model.{format}", "ab" * 32, size, ("serving_default",), "dynamic")
    return replace(made, evidence=found, **changes)


def manifest(*artifacts: Artifact, **changes: Any) -> Manifest:
    images = {"image": TensorSpec("image", "float32", (None, 28, 28, 1))}
    scores = {"probabilities": TensorSpec("probabilities", "float32", (None, 10))}
    made = Manifest(
        model="shoes",
        version=7,
        created="2026-01-02T03:04:05Z",
        task="classification",
        source={"kind": "keras", "class": "Sequential", "parameters": 12345, "sha256": "cd" * 32, "random_data": False},
        producers={"servable": "1.2.3", "tensorflow": "2.20.0"},
        signatures={
            "serving_default": Signature(images, scores),
            "classify": Signature({"inputs": TensorSpec("inputs", "string", (None,))}, scores, name="classify"),
        },
        artifacts=artifacts,
        labels=("Sneaker", "Sandal"),
    )
    return replace(made, **changes)


def usual(**changes: Any) -> Manifest:
    classify = evidence(0.0, data="64 test images, as tf.Example", samples=64, metric=None, metric_value=None)
    return manifest(
        artifact("saved_model", "float32", 300_000, {"serving_default": evidence(0.0), "classify": classify}, path="."),
        artifact("tflite", "float32", 200_000, {"serving_default": evidence(1e-6)}),
        artifact(
            "tflite", "int8", 50_000, {"serving_default": evidence(0.05)}, batch="1", sizes={"image": (28, 28, 1)}
        ),
        **changes,
    )


def page(made: Manifest, operations: Any = None, worst: Any = None) -> Page:
    return Page(report.page(made, operations or {}, worst or {}, b"png"))


def errors_header(*first: str) -> list[str]:
    return [*first, "max abs error", "mean abs error"]


def test_the_artifacts_with_their_evidence() -> None:
    found = page(usual()).tables
    assert found["Artifacts"] == [
        [*errors_header("artifact", "size", "of TFLite"), "agreement", "accuracy", "change", "samples"],
        ["saved_model", "300 kB", "150%", "0", "0", "99.80%", "92.50%", "-0.50", "1,000"],
        ["tflite", "200 kB", "100%", "1e-06", "1e-07", "99.80%", "92.50%", "-0.50", "1,000"],
        ["tflite int8", "50 kB", "25%", "0.05", "0.005", "99.80%", "92.50%", "-0.50", "1,000"],
    ]
    assert found["What had to hold"][3] == [
        "tflite int8",
        "model.tflite",
        "1; image 28 × 28 × 1",
        "max abs error 0.05 <= 1",
    ]
    assert found["Signature classify"][1:] == [
        ["saved_model", "0", "0", "99.80%", "64", "64 test images, as tf.Example"]
    ]
    assert found["Outputs"][1:] == [
        ["saved_model", "probabilities", "0", "0.000%", "0", "0 … 0.5"],
        ["tflite", "probabilities", "1e-06", "0.0002%", "1e-07", "0 … 0.5"],
        ["tflite int8", "probabilities", "0.05", "10.000%", "0.005", "0 … 0.5"],
    ]
    assert "What is missing" not in found


def test_where_the_export_comes_from() -> None:
    facts = dict(page(usual()).tables["The export"])
    signatures = [cells[1] for cells in page(usual()).tables["The export"] if cells[0] == "signature"]
    assert facts | {"signature": ""} == {
        "model": "shoes",
        "version": "7",
        "created": "2026-01-02T03:04:05Z",
        "task": "classification",
        "source kind": "keras",
        "source class": "Sequential",
        "parameters": "12,345",
        "source SHA-256": "cd" * 32,
        "random data": "no",
        "data": "1,000 test images",
        "signature": "",
        "labels": "2: Sneaker, Sandal",
        "made with": "servable 1.2.3, tensorflow 2.20.0",
    }
    assert len(signatures) == 2


def test_random_data_and_fresh_weights_are_said_first() -> None:
    source = {"kind": "keras", "random_data": True, "trained": False}
    assert "they show how exact the files are, not how good" in page(usual(source=source)).text
    assert "The model is not trained." in page(usual(source=source)).text
    assert "how good" not in page(usual()).text


def test_what_is_missing_and_why() -> None:
    absent = (Absent("onnx", "int8", "no such operation"), Absent("tflite", "int16x8", "it crashed", failed=True))
    assert page(usual(absent=absent)).tables["What is missing"][1:] == [
        ["onnx int8", "not\u00a0possible", "no such operation"],
        ["tflite int16x8", "failed", "it crashed"],
    ]


def test_operations_with_the_rare_ones_as_one() -> None:
    counts = {f"OP_{i:02}": 20 - i for i in range(20)}
    table = page(usual(), {"tflite": counts, "onnx": {"MatMul": 2, "Add": 2}, "none": {}}).tables["Operations"]
    assert [row[:2] for row in table[1:]] == [["tflite", "210"], ["onnx", "4"]]
    words = table[1][2].split(", ")
    assert words[:11] == [f"OP_{i:02} × {20 - i}" for i in range(11)]
    assert words[11:] == ["others of 9 types × 45"]
    assert table[2][2] == "Add × 2, MatMul × 2"


def test_every_text_is_escaped() -> None:
    wicked = replace(
        usual(
            model=HOSTILE,
            task=HOSTILE,
            labels=(HOSTILE,),
            source={HOSTILE: HOSTILE},
            producers={HOSTILE: HOSTILE},
            absent=(Absent(HOSTILE, HOSTILE, HOSTILE),),
        ),
        signatures={HOSTILE: Signature({}, {}, name=HOSTILE)},
    )
    found = evidence(data=HOSTILE, criterion=HOSTILE, metric=HOSTILE, outputs={HOSTILE: OutputError(0, 0, 0, 1)})
    wicked = replace(
        wicked, artifacts=(artifact(HOSTILE, HOSTILE, 5, {HOSTILE: found, HOSTILE + "2": found}, path=HOSTILE),)
    )
    picture = io.BytesIO()
    Image.new("L", (2, 2)).save(picture, format="PNG")
    told = [WorstSample(1, HOSTILE, HOSTILE + "!", HOSTILE, HOSTILE, png) for png in (None, picture.getvalue())]
    html = report.page(wicked, {HOSTILE: {HOSTILE: 1}}, {HOSTILE: told}, report.picture(wicked))
    assert "script" not in Page(html).tags
    assert not re.search(r"<script", html, re.IGNORECASE)
    assert not [name for name, _ in Page(html).attributes if name.startswith("on")]
    assert Page(html).text.count(HOSTILE) > 25


def test_the_same_export_has_the_same_report() -> None:
    pictures = {"tflite int8": [WorstSample(1, "a", "b")]}
    once, again = (report.page(usual(), {"tflite": {"ADD": 1}}, pictures, report.picture(usual())) for _ in range(2))
    assert once == again


VARIANTS = {
    "usual": usual(),
    "one": manifest(artifact("saved_model", "float32", 300_000, {"serving_default": evidence(0.0)}, path=".")),
    "nine": manifest(
        *(
            artifact(
                f"format {i}", "int16x8 with a name that is longer than any", 10 ** (i + 1), {"a": evidence(10.0**-i)}
            )
            for i in range(9)
        )
    ),
    "no metric": manifest(
        artifact("onnx", "int8", 5, {"a": evidence(0.0, top1_agreement=None, metric=None, metric_value=None)})
    ),
    "no evidence": manifest(artifact("onnx", "int8", 0, {})),
    "long": usual(model="a-model." * 40),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("made", VARIANTS.values(), ids=VARIANTS)
def test_two_whole_files(tmp_path: Path, made: Manifest) -> None:
    folder = tmp_path / ".reports" / "shoes-7"
    report.write(folder, made, {}, {})
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.png"]
    with Image.open(folder / "report.png") as image:
        assert image.format == "PNG"
        assert image.width == 1100
        assert 150 < image.height < 1000
        assert (np.asarray(image.convert("L")) > 200).mean() > 0.7  # a light ground
    html = (folder / "report.html").read_text(encoding="utf-8")
    Page(html)
    sources = [value or "" for name, value in Page(html).attributes if name in ("src", "href", "srcset")]
    assert sources
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    assert "url(" not in html
    assert "@import" not in html


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report.write(tmp_path, usual(), {}, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResourceExhaustedError, match="no space left for the report in"):
        report.write(tmp_path, usual(model="other"), {}, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"the report cannot be written to .*file/x"):
        report.write(tmp_path / "file" / "x", usual(), {}, {})


class Model(SourceModel):
    """A source model that nobody asks."""

    kind = "test"
    parameters = 1

    def predict(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        return {}


def source(task: Any, inputs: Arrays, **changes: Any) -> Source:
    random = changes.pop("random", False)
    return Source("m", Model(), Data(inputs, inputs, "rows", random=random), task, **changes)


def told(given: Source, rows: list[int], expected: Arrays, answers: Arrays, targets: Any = None) -> list[WorstSample]:
    """The samples, of an artifact that was asked for these rows only."""
    case = Case(Signature({}, {}), "rows", given.data.inputs, expected, targets)
    asked = {name: array[rows] for name, array in answers.items()}
    return list(worst_samples(given, case, rows, asked))


def opened(sample: WorstSample) -> NDArray[np.uint8]:
    assert sample.png is not None
    with Image.open(io.BytesIO(sample.png)) as image:
        return np.asarray(image)


def one_hot(*classes: tuple[int, float], size: int = 10) -> NDArray[np.float32]:
    rows = np.zeros((len(classes), size), np.float32)
    for row, (number, score) in zip(rows, classes, strict=True):
        row[number] = score
        row[(number + 1) % size] = 1 - score
    return rows


def test_a_classifier_s_samples_are_the_very_input_rows() -> None:
    chosen = card("cnn")
    data = samples.test_samples(chosen)
    given = source(
        "classification", {"image": data.inputs[:9]}, labels=chosen.labels, preprocessing=chosen.preprocessing
    )
    expected = {"p": one_hot(*[(7, 0.93)] * 9)}
    answers = {"p": one_hot(*[(7, 0.93)] * 4, (5, 0.6), *[(7, 0.93)] * 4)}
    first, second = told(given, [4, 2], expected, answers, data.targets[:9])
    assert (first.row, first.source, first.artifact) == (4, "Sneaker 0.93", "Sandal 0.60")
    assert first.right == chosen.labels[data.targets[4]]
    assert (first.differs, second.differs) == (True, False)
    for sample in (first, second):
        assert opened(sample).shape == (28, 28)
        np.testing.assert_allclose(opened(sample) / 255, data.inputs[sample.row][:, :, 0], atol=1e-6)
    shown = page(usual(), worst={"tflite int8": [first], "tflite": [second]})
    assert shown.groups == ["open tflite int8", "closed tflite"]
    right = f" (right is {first.right})"
    assert shown.captions[0] == f"sample 4{right}: source says Sneaker 0.93, tflite int8 says Sandal 0.60"


@pytest.mark.parametrize(
    ("how", "scale"),
    [
        (Preprocessing(8, 9, 3, scale=1 / 127.5, offset=-1.0), lambda pixels: pixels / np.float32(127.5) - 1),
        (Preprocessing(8, 9, 3, scale=1.0), lambda pixels: pixels.astype(np.float32)),
        (None, lambda pixels: pixels / np.float32(255)),
        (None, lambda pixels: pixels),
    ],
)
def test_colour_and_any_scale(how: Preprocessing | None, scale: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 9, 3)).astype(np.uint8)
    given = source("classification", {"image": scale(pixels)}, preprocessing=how)
    (sample,) = told(given, [1], {"p": one_hot(*[(7, 0.93)] * 3)}, {"p": one_hot(*[(8, 0.5)] * 3)})
    np.testing.assert_array_equal(opened(sample), pixels[1])
    assert sample.source == "class 7 0.93"  # without labels


def test_large_pictures_are_made_smaller() -> None:
    given = source("classification", {"image": np.zeros((1, 600, 300, 3), np.float32)})
    (sample,) = told(given, [0], {"p": one_hot((1, 0.9))}, {"p": one_hot((1, 0.9))})
    assert opened(sample).shape == (256, 128, 3)


def test_random_pictures_are_not_shown() -> None:
    rows = np.linspace(-1, 1, 2 * 64, dtype=np.float32).reshape(2, 8, 8, 1)
    given = source("classification", {"image": rows}, random=True)
    (sample,) = told(given, [1], {"p": one_hot(*[(1, 0.9)] * 2)}, {"p": one_hot(*[(1, 0.9)] * 2)})
    assert sample.png is None
    assert sample.given == "image (8 × 8 × 1, from 0.00787 to 1)"


def test_a_regression_s_samples_are_numbers() -> None:
    given = source("regression", {"celsius": np.array([[0.0], [37.25]], np.float32)})
    expected = {"fahrenheit": np.array([[32.0], [99.05]], np.float32)}
    answers = {"fahrenheit": np.array([[32.0], [98.5]], np.float32)}
    first, second = told(given, [1, 0], expected, answers, expected["fahrenheit"])
    assert first == WorstSample(1, "99.05", "98.5", "celsius 37.25", "99.05")
    table = page(usual(), worst={"tflite int8": [first, second]})
    assert table.tables["The samples that are furthest off"] == [
        ["artifact", "sample", "given", "right is", "source says", "artifact says"],
        ["tflite int8", "1", "celsius 37.25", "99.05", "99.05", "98.5"],
    ]
    assert "Left out are 1 for which both say the same" in table.text


def test_of_large_outputs_the_value_that_is_furthest_off() -> None:
    given = source("other", {"text": np.array([b"red", b"a" * 200], object), "ids": np.arange(12).reshape(2, 6)})
    expected = {"embedding": np.zeros((2, 3, 4), np.float32), "words": np.array([[b"<a>"], [b"b"]], object)}
    answers = {name: array.copy() for name, array in expected.items()}
    answers["embedding"][1, 2, 3] = 0.25
    answers["embedding"][1, 0, 0] = 0.125
    (sample,) = told(given, [1], expected, answers)
    assert sample.source == "embedding[2, 3] 0; words 'b'"
    assert sample.artifact == "embedding[2, 3] 0.25; words 'b'"
    assert sample.given.startswith("text 'aaaa")
    assert sample.given.endswith("…; ids (6, from 6 to 11)")


def detections(boxes: list[list[float]], scores: list[float], classes: list[float]) -> Arrays:
    arrays = {"boxes": boxes, "scores": scores, "classes": classes}
    return {name: np.array([values], np.float32) for name, values in arrays.items()}


@pytest.mark.parametrize("unit", [1.0, 32.0], ids=["shares", "pixels"])
def test_boxes_are_drawn_where_they_are(unit: float) -> None:
    given = source("detection", {"image": np.zeros((1, 32, 32, 3), np.float32)}, labels=("cat", "dog"))
    low, high = [0.25 * unit, 0.5 * unit, 0.75 * unit, 0.75 * unit], [0.0, 0.0, unit, unit]
    expected = detections([low, high, low], [0.9, 0.2, 0.0], [1.0, 0.0, 0.0])
    answers = detections([low, high, low], [0.1, 0.8, 0.0], [1.0, 0.0, 9.0])
    (sample,) = told(given, [0], expected, answers)
    assert (sample.source, sample.artifact) == ("dog 0.90", "cat 0.80")
    picture = opened(sample).astype(int)
    assert picture.shape == (256, 256, 3)
    green = np.argwhere((picture == (46, 160, 67)).all(axis=-1))
    orange = np.argwhere((picture == (230, 110, 30)).all(axis=-1))
    np.testing.assert_allclose([green.min(axis=0), green.max(axis=0)], [[64, 128], [191, 191]], atol=3)
    np.testing.assert_allclose([orange.min(axis=0), orange.max(axis=0)], [[0, 0], [255, 255]], atol=2)
    shown = page(usual(task="detection"), worst={"onnx int8": [sample]})
    assert "Thick green boxes are the source's" in shown.text


def test_a_detector_that_finds_nothing() -> None:
    given = source("detection", {"image": np.zeros((1, 32, 32, 3), np.float32)})
    nothing = detections([[0.0, 0.0, 1.0, 1.0]], [0.1], [1.0])
    (sample,) = told(given, [0], nothing, nothing)
    assert sample.source == "nothing above 0.3"
    assert not opened(sample).any()


def test_masks_are_beside_the_picture() -> None:
    pixels = np.full((1, 8, 8, 3), 200, np.uint8)
    given = source("segmentation", {"image": pixels}, labels=("ground", "road"))
    theirs = np.zeros((1, 8, 8, 2), np.float32)
    theirs[..., 0] = 1
    theirs[0, :4, :, 1] = 2  # the upper half is road
    ours = theirs.copy()
    ours[0, 0, :, 1] = 0  # but not its first row, says the artifact
    (sample,) = told(given, [0], {"mask": theirs}, {"mask": ours})
    assert sample.source == "ground 50.0%, road 50.0%"
    assert sample.artifact == "ground 62.5%, road 37.5% (12.5% of the pixels differ)"
    sheet = opened(sample)
    assert sheet.shape == (8, 8 + 2 + 8 + 2 + 8, 3)
    np.testing.assert_array_equal(sheet[:, :8], pixels[0])
    for start, scores in ((10, theirs), (20, ours)):
        part = sheet[:, start : start + 8].reshape(-1, 3)
        classes = scores[0].argmax(-1).ravel()
        assert len(np.unique(part, axis=0)) == 2
        assert [len(np.unique(part[classes == number], axis=0)) for number in (0, 1)] == [1, 1]
