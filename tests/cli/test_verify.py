"""``servable verify`` and the report, the C source and the JSON of ``servable export``, as a user calls them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from servable.cli import run
from servable.export import report
from servable.manifest import FILE_NAME, Manifest
from servable.store import Store

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What the command leaves behind, and what it says in JSON."""
    store = Store(tmp_path_factory.mktemp("cli") / "store")
    arguments = ["export", "celsius", "mlp", "--store", str(store.root), "--quantize", "float32,int8", "--c-array"]
    assert run(arguments) == 0
    return store


def test_an_export_leaves_a_report_beside_the_models(exported: Store) -> None:
    assert sorted(entry.name for entry in exported.root.iterdir()) == [".reports", "celsius", "mlp"]
    for name in ("celsius", "mlp"):
        folder = exported.reports(name, 1)
        assert folder == exported.root / ".reports" / f"{name}-1"
        with Image.open(folder / "report.png") as picture:
            assert picture.width >= 800
        text = (folder / "report.html").read_text(encoding="utf-8")
        manifest = Manifest.read(exported.path(name))
        for artifact in manifest.artifacts:
            assert artifact.label in text
        assert "FULLY_CONNECTED" in text  # operations of the TFLite file
        assert "MatMul" in text
    assert "data:image/png;base64," in text  # of the samples that are furthest off
    assert exported.models() == ["celsius", "mlp"]  # no server takes it for a model


def test_c_source_lies_beside_each_tflite_file(exported: Store) -> None:
    folder = exported.path("mlp")
    assert sorted(path.name for path in folder.glob("*.cc")) == ["model.cc", "model_int8.cc"]
    text = (folder / "model_int8.cc").read_text()
    data = bytes(int(value, 16) for value in re.findall(r"\b0x([0-9a-f]{2})\b", text))
    assert data == (folder / "model_int8.tflite").read_bytes()
    assert hashlib.sha256(data).hexdigest() in (folder / "model_int8.h").read_text()


def test_an_export_in_json(tmp_path: Path, capfd: Capture) -> None:
    store = tmp_path / "store"
    assert run(["export", "celsius", "--store", str(store), "--formats", "saved_model", "--json"]) == 0
    (said,) = json.loads(capfd.readouterr().out)
    assert said["path"] == str(store / "celsius" / "1")
    assert said["report"] == str(store / ".reports" / "celsius-1")
    assert said["manifest"] == json.loads((store / "celsius" / "1" / FILE_NAME).read_text())


def test_a_sound_version(exported: Store, capfd: Capture) -> None:
    assert run(["verify", str(exported.root / "mlp")]) == 0
    stdout, stderr = capfd.readouterr()
    assert "compared with its source model on 1,000 Fashion-MNIST test images" in stdout
    assert stdout.splitlines()[-1] == f"verified {exported.path('mlp')}"
    assert "verify mlp: verify onnx_int8" in stderr.splitlines()


def test_a_sound_version_in_json(exported: Store, capfd: Capture) -> None:
    assert run(["verify", str(exported.path("celsius")), "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["path"] == str(exported.path("celsius"))
    assert [each["artifact"] for each in said["artifacts"]] == [
        "saved_model",
        "tflite",
        "tflite int8",
        "onnx",
        "onnx int8",
    ]
    for each in said["artifacts"]:
        assert (each["ok"], each["wrong"]) == (True, "")
        assert each["now"]["samples"] == each["recorded"]["samples"] == 561


def test_a_version_that_was_changed(exported: Store, tmp_path: Path, capfd: Capture) -> None:
    folder = tmp_path / "1"
    shutil.copytree(exported.path("celsius"), folder)
    (folder / "model.onnx").write_bytes(b"x")
    assert run(["verify", str(folder)]) == 4
    stdout, stderr = capfd.readouterr()
    assert stderr.splitlines()[-1] == f"error: {folder} is not what was published: onnx"
    assert f"onnx: {folder}/model.onnx is damaged or was changed after its export" in stdout
    assert "verified" not in stdout


def test_a_version_that_is_too_far_off(exported: Store, capfd: Capture) -> None:
    arguments = ["verify", str(exported.path("celsius")), "--tolerance", "onnx_int8:max_range_error=0.000001"]
    assert run(arguments) == 7
    stdout, stderr = capfd.readouterr()
    assert (
        stderr.splitlines()[-1]
        == f"error: {exported.path('celsius')} is further off than allowed, or cannot be run: onnx int8"
    )
    assert "onnx int8: celsius onnx_int8 is too far from the source model" in stdout


@pytest.fixture
def another(exported: Store, tmp_path: Path) -> Path:
    """A version of a model that is none of the catalogue."""
    folder = tmp_path / "store" / "another" / "1"
    shutil.copytree(exported.path("celsius"), folder)
    manifest = (folder / FILE_NAME).read_text()
    (folder / FILE_NAME).write_text(manifest.replace('"model": "celsius"', '"model": "another"'))
    return folder


def test_without_its_source(another: Path, tmp_path: Path, capfd: Capture) -> None:
    np.save(tmp_path / "degrees.npy", np.arange(-40, 100, 0.25, dtype=np.float32)[:, np.newaxis])
    assert run(["verify", str(another), "--calibration", str(tmp_path / "degrees.npy")]) == 0
    assert "compared with its SavedModel on 560 rows of degrees.npy" in capfd.readouterr().out


def test_without_the_data_that_it_was_measured_on(another: Path, capfd: Capture) -> None:
    """Other numbers would be other questions, whose answers say nothing of the file."""
    assert run(["verify", str(another)]) == 2
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert stderr.splitlines()[-1].startswith(
        f"error: {another} was measured on every 0.25 °C of -40…100 °C, which it does not hold; give the like with"
    )


def test_on_the_random_numbers_that_it_was_measured_on(tmp_path: Path, capfd: Capture) -> None:
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(tmp_path / "own.keras")
    store = tmp_path / "store"
    arguments = ["--store", str(store), "--quantize", "float32,int8", "--tolerance", "onnx_int8:max_range_error=0.5"]
    assert run(["export", str(tmp_path / "own.keras"), *arguments]) == 0
    manifest = Manifest.read(store / "own" / "1")
    assert manifest.extra["tolerances"] == {"onnx_int8": {"max_range_error": 0.5}}
    assert run(["verify", str(store / "own")]) == 0
    assert "compared with its SavedModel on 512 rows of random numbers, seed 7" in capfd.readouterr().out


def test_a_report_that_cannot_be_drawn_is_no_failed_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no fonts\nat all")

    monkeypatch.setattr(report, "write", refuse)
    assert run(["export", "celsius", "--store", str(tmp_path), "--formats", "saved_model"]) == 0
    stdout, stderr = capfd.readouterr()
    assert stdout.splitlines()[-1] == f"published {tmp_path}/celsius/1"
    assert "export celsius: no report: no fonts" in stderr.splitlines()


def test_json_tells_what_is_published_where_the_next_one_fails(tmp_path: Path, capfd: Capture) -> None:
    keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x)]).save(tmp_path / "own.keras")
    arguments = ["--store", str(tmp_path / "store"), "--formats", "saved_model", "--json"]
    assert run(["export", "celsius", str(tmp_path / "own.keras"), *arguments]) == 7
    stdout, stderr = capfd.readouterr()
    assert [each["manifest"]["model"] for each in json.loads(stdout)] == ["celsius"]
    assert stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere",), 2, "target '/"),
        (("{store}/mpl",), 3, "no model 'mpl' in the store"),
        (
            ("{store}/mlp", "--tolerance", "onxx:max_abs_error=1"),
            2,
            "--tolerance onxx:max_abs_error=1: no artifact 'onxx'",
        ),
        (("{store}/mlp", "--calibration", "nothing.npy"), 4, "there is no file nothing.npy"),
        (("{store}/mlp", "--input-shape", "picture=3"), 2, "--input-shape sizes random numbers, and there is data"),
    ],
)
def test_bad_input(
    exported: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Capture,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["verify", *(text.format(store=exported.root) for text in arguments)]) == code
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert stderr.splitlines()[-1].startswith(f"error: {message}")


def test_c_source_of_nothing(capfd: Capture) -> None:
    assert run(["export", "celsius", "--formats", "onnx", "--c-array"]) == 2
    assert capfd.readouterr().err == "error: --c-array is for TFLite files, which --formats and --quantize leave out\n"
