"""The demo: everything at once, a report to look at, nothing left behind, and an exit code that means something."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from servable.cli import demo, run
from servable.cli.demo import Outcome
from servable.cli.predict import Answer
from servable.manifest import Manifest
from servable.models import card, samples
from servable.store import Store

LIMIT_S = 300
PATHS = ("gRPC", "REST", "tflite", "tflite int8", "onnx", "onnx int8")


def alive(group: int) -> bool:
    """Whether any process of a process group still runs."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_whole_demo(tmp_path: Path) -> None:
    for folder in ("work", "tmp"):
        (tmp_path / folder).mkdir()
    output = tmp_path / "work" / "report"
    process = subprocess.Popen(
        [sys.executable, "-m", "servable", "demo", "--duration", "0.1", "--output", "report"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path / "work",
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    assert not alive(process.pid)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"work/report/report.html", "work/report/report.png"}
    check_report(output)
    for name in demo.MODELS:
        assert f"{name}: the same inputs through every path" in stdout
        assert f"{name}: one thread, batch 1" in stdout
        assert f"bench {name}: onnx" in stderr
    assert "All paths agree. Wrote report/report.html and report/report.png in " in stdout
    assert "predict: server stopped" in stderr
    # The table of predictions: every picture's own label, the same through all six paths.
    for label, path in samples.sample_pictures().items():
        rows = [line for line in stdout.splitlines() if f" {path.stem} " in line]
        assert len(rows) == 2
        assert all(row.count(f" {label} ") == len(PATHS) for row in rows)


def check_report(folder: Path) -> None:
    with Image.open(folder / "report.png") as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 400
        assert len(image.getcolors(1 << 24) or []) > 5
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert set(re.findall(r'(?:src|href)="?([^",]+)', page)) == {"data:image/png;base64"}  # nothing from elsewhere
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(text)[:4] for text in pictures] == [b"\x89PNG"] * 2
    for name in demo.MODELS:
        assert f"{name}: predictions" in page
    for path in PATHS:
        assert f"<th>{path}</th>" in page


def outcome(name: str, answers: dict[str, Sequence[Sequence[float]]]) -> Outcome:
    found = {
        path: [Answer(f"input {i}", np.array(row, np.float32), 1.0) for i, row in enumerate(rows)]
        for path, rows in answers.items()
    }
    return Outcome(card(name), manifest=replace(EMPTY, model=name), answers=found)


EMPTY = Manifest("m", 1, "", "", {}, {}, {}, ())


def scores(label: int, top: float = 0.9) -> list[float]:
    return [top if i == label else (1 - top) / 9 for i in range(10)]


@pytest.mark.parametrize(
    ("name", "reference", "other"),
    [
        ("cnn", scores(1), scores(1, 0.6)),
        ("cnn", scores(9), scores(9)),
        ("celsius", [212.0], [214.5]),
        ("celsius", [-40.0], [-40.0]),
    ],
)
def test_answers_that_agree(name: str, reference: list[float], other: list[float]) -> None:
    assert demo._disagreements(outcome(name, {"gRPC": [reference] * 2, "tflite int8": [other] * 2})) == []


def test_another_label_is_a_disagreement() -> None:
    found = demo._disagreements(
        outcome("cnn", {"gRPC": [scores(0), scores(1)], "REST": [scores(0), scores(3)], "onnx": [scores(0), scores(1)]})
    )
    assert found == ["cnn on input 1: REST says Dress 90%, gRPC Trouser 90%"]


@pytest.mark.parametrize("number", [215.0, 0.0, float("nan")])
def test_another_number_is_a_disagreement(number: float) -> None:
    found = demo._disagreements(outcome("celsius", {"gRPC": [[212.0]], "tflite": [[number]]}))
    assert found == [f"celsius on input 0: tflite says {number:.1f}, gRPC 212.0"]


def test_a_path_without_an_answer_is_no_agreement() -> None:
    with pytest.raises(ValueError, match="zip"):
        demo._disagreements(outcome("celsius", {"gRPC": [[212.0], [32.0]], "REST": [[212.0]]}))


def test_a_disagreement_ends_with_7_and_names_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The real demo on one model, but one answer on its way is another."""
    real = demo._predict

    def export(target: Store) -> dict[str, Manifest]:
        shutil.copytree(store.root / "celsius", target.root / "celsius")
        return {"celsius": Manifest.read(target.path("celsius"))}

    def predict(target: Store, outcomes: Sequence[Outcome], log: Path) -> Any:
        real(target, outcomes, log)
        answers = outcomes[0].answers["onnx"]
        answers[-1] = replace(answers[-1], outputs=answers[-1].outputs + 5)

    monkeypatch.setattr(demo, "_export", export)
    monkeypatch.setattr(demo, "_predict", predict)
    assert run(["demo", "--duration", "0.01", "--output", str(tmp_path / "report")]) == 7
    stdout, stderr = capfd.readouterr()
    assert stderr.splitlines()[-1] == ("error: 1 predictions disagree: celsius on 100: onnx says 217.0, gRPC 212.0")
    assert "All paths agree" not in stdout
    assert (tmp_path / "report" / "report.html").is_file()  # to look at what disagrees
