"""``servable inspect``: what it prints of each kind of target, its JSON, its exit codes, without any extra."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from servable.cli import run
from servable.manifest import FILE_NAME, Manifest
from servable.store import Store

Done = subprocess.CompletedProcess[str]
Here = Callable[..., Done]


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Here:
    """Run a command line in this process."""

    def run_here(*arguments: Any) -> Done:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        stdout, stderr = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, stdout, stderr)

    return run_here


def row(text: str, name: str) -> str:
    """The value beside a name in what was printed."""
    (found,) = re.findall(rf"^  {name}  +(.*?) *$", text, re.MULTILINE)
    return str(found)


@pytest.fixture
def version(store: Store, tmp_path: Path) -> Path:
    folder = tmp_path / "cnn" / "1"
    shutil.copytree(store.path("cnn"), folder)
    return folder


def test_a_tflite_file(here: Here, store: Store) -> None:
    path = store.path("cnn") / "model_int8.tflite"
    done = here("inspect", path)
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert text.splitlines()[0] == str(path)
    assert row(text, "format") == "tflite"
    assert row(text, "sha256") == Manifest.read(path.parent).artifact("tflite", "int8").sha256  # type: ignore[union-attr]
    assert row(text, "manifest") == "ok: the file that was measured"
    assert row(text, "weights") == "53,578 in constants (int8 53,440, int32 138)"
    assert row(text, "quantization") == "full integer: int8 weights and activations"
    assert "min_runtime_version" in row(text, "made by")
    assert "outputs: probabilities, labels 10" in text
    assert row(text, "signatures").startswith("serving_default: image: float32 (batch, 28, 28, 1) → ")
    assert row(text, "operations").startswith("9: CONV_2D 2, MAX_POOL_2D 2, ")
    assert row(text, "audit").startswith("nothing in it reaches files")


def test_an_onnx_file(here: Here, store: Store) -> None:
    text = here("inspect", store.path("mlp") / "model.onnx").stdout
    assert row(text, "opset").startswith("ai.onnx 1")
    assert "ir_version" in row(text, "made by")
    assert "servable.model: mlp" in text


def test_a_saved_model(here: Here, store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.path("mlp"), tmp_path / "copy")
    (tmp_path / "copy" / FILE_NAME).unlink()
    text = here("inspect", tmp_path / "copy").stdout
    assert row(text, "format") == "saved_model"
    assert row(text, "weights") == "269,322 in variables"
    assert "expected: MergeV2Checkpoints, RestoreV2, SaveV2: saves and restores" in text


@pytest.mark.parametrize("target", ["cnn/1", "cnn"])
def test_a_version(here: Here, store: Store, target: str) -> None:
    done = here("inspect", store.root / target)
    assert (done.returncode, done.stderr) == (0, "")
    assert row(done.stdout, "model") == "cnn version 1"
    rows = re.findall(r"^│ ([\w ]+?) +│ +([\d.]+ kB) │ (\w+) +│ +([\d,]+) │", done.stdout, re.MULTILINE)
    assert [(label, state, weights) for label, _, state, weights in rows] == [
        (artifact.label, "ok", "53,578") for artifact in Manifest.read(store.path("cnn")).artifacts
    ]


def test_what_is_absent_and_why(here: Here, version: Path) -> None:
    path = version / FILE_NAME
    manifest = json.loads(path.read_text())
    manifest["absent"] = [{"format": "onnx", "quantization": "float16", "reason": "no \x1b[2Jroom", "failed": True}]
    path.write_text(json.dumps(manifest))
    done = here("inspect", version)
    assert done.returncode == 0
    assert row(done.stdout, "onnx float16") == "no \\x1b[2Jroom"


def test_how_many_operations(here: Here, store: Store) -> None:
    path = store.path("cnn") / "model_int8.tflite"
    assert row(here("inspect", path, "--ops", 1).stdout, "operations") == "9: CONV_2D 2, and 6 more kinds"
    assert "operations" not in here("inspect", path, "--ops", 0).stdout
    assert here("inspect", path, "--ops", -1).returncode == 2


def test_json_has_all_of_it(here: Here, store: Store) -> None:
    done = here("inspect", store.root / "cnn", "--json")
    found = json.loads(done.stdout)
    assert found["sound"] is True
    assert found["manifest"]["model"] == "cnn"
    by_label = {entry["label"]: entry for entry in found["artifacts"]}
    assert by_label.keys() == {artifact.label for artifact in Manifest.read(store.path("cnn")).artifacts}
    for entry in by_label.values():
        assert entry["state"] == "ok"
        assert entry["model"]["parameters"] == 53578
        assert entry["model"]["findings"] == []
        assert sum(entry["model"]["ops"].values()) > 5
    assert by_label["onnx"]["model"]["signatures"]["serving_default"]["inputs"]["image"]["dtype"] == "float32"


def test_a_version_that_is_not_as_its_manifest_says(here: Here, version: Path) -> None:
    (version / "model.onnx").write_bytes(b"\0" * 100)
    (version / "model.tflite").unlink()
    shutil.copy(version / "model_int8.onnx", version / "mine.onnx")
    for more in ((), ("--json",)):
        done = here("inspect", version, *more)
        assert done.returncode == 4
        assert done.stdout
        assert done.stderr == (
            f"error: {version} is not sound: tflite is missing, onnx is damaged, onnx is not listed\n"
        )


def evil(path: Path) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("\x1b[31mMine", ["x"], ["y"], domain="my.own")], "g", [x], [y])
    onnx.save(helper.make_model(graph), path)
    return path


def test_findings_fail_only_where_that_is_wanted(here: Here, tmp_path: Path) -> None:
    path = evil(tmp_path / "evil.onnx")
    done = here("inspect", path)
    assert done.returncode == 0
    assert "custom: my.own.\\x1b[31mMine: no domain of ONNX: some library has the code" in done.stdout
    assert "\x1b" not in done.stdout
    done = here("inspect", path, "--strict")
    assert done.returncode == 4
    assert done.stderr.startswith(f"error: {path}: the audit has findings (1); ")


@pytest.mark.parametrize(
    ("target", "code", "message"),
    [
        ("cnn/1/nothing", 3, "there is no file or folder "),
        ("cnn/1/labels.txt", 4, "is not a model: expected a .tflite file"),
        ("cnn/1/variables", 2, "is neither a SavedModel nor a version folder; give a folder with"),
    ],
)
def test_bad_targets(here: Here, version: Path, target: str, code: int, message: str) -> None:
    done = here("inspect", version.parent.parent / target)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert message in line


def test_an_unknown_model_of_a_store(here: Here, store: Store) -> None:
    done = here("inspect", store.root / "ccn")
    assert done.returncode == 3
    assert "did you mean 'cnn'?" in done.stderr
    assert here("inspect", store.root).returncode == 2


BLOCKED = "import sys; [sys.modules.__setitem__(name, None) for name in {!r}]; from servable.cli import main; main()"
EXTRAS = ["tensorflow", "keras", "onnx", "onnxruntime", "ai_edge_litert", "flatbuffers", "google_crc32c"]


def test_the_base_install_is_enough(store: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(EXTRAS), "inspect", str(store.root / "cnn")],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("53,578") == 5
