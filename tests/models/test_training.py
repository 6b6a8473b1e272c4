"""Training for real but briefly: seeds, the record, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

import keras
import numpy as np
import pytest

from servable.errors import ArtifactError, ServableError
from servable.models import card, samples, training
from servable.models.data import Dataset, Split, load_celsius
from servable.models.training import TrainingOptions

NAMES = ("celsius", "mlp", "cnn")
BRIEF = TrainingOptions(epochs=3, batch_size=8, learning_rate=0.5)


def tiny() -> Dataset:
    """64 pictures to learn by heart: twice in the training split, of which a twelfth is held out."""
    split = samples.test_samples(card("mlp"))
    inputs, targets = split.inputs[:64], split.targets[:64]
    train = Split(np.concatenate([inputs, inputs]), np.concatenate([targets, targets]))
    return Dataset("tiny", train, Split(inputs, targets), "0" * 64)


def weights(model: Any) -> list[np.ndarray]:
    return [np.asarray(array) for array in model.get_weights()]


def test_celsius_learns() -> None:
    seen: list[tuple[int, int, dict[str, float]]] = []
    options = replace(BRIEF, epochs=30)
    _, record = training.train(card("celsius"), load_celsius(), options, lambda *step: seen.append(step))
    losses = record["history"]["val_loss"]
    assert losses[-1] < losses[0] / 10
    done, total, logs = seen[-1]
    assert done == total == 30 * 4  # 27 of 29 pairs are trained on, eight a step
    assert logs["val_loss"] == pytest.approx(losses[-1], abs=1e-5)
    assert [step[0] for step in seen] == sorted(step[0] for step in seen)


def test_mlp_learns_a_few_pictures_by_heart() -> None:
    options = TrainingOptions(epochs=30, batch_size=16, learning_rate=2e-3)
    model, record = training.train(card("mlp"), tiny(), options)
    assert record["test"]["value"] >= 0.95
    split = tiny().test
    assert np.mean(np.argmax(model.predict(split.inputs, verbose=0), -1) == split.targets) == record["test"]["value"]


@pytest.mark.parametrize("name", ["celsius", "mlp"])
def test_the_seed_decides_the_weights(name: str) -> None:
    dataset = load_celsius() if name == "celsius" else tiny()
    first, again, other = (
        weights(training.train(card(name), dataset, replace(BRIEF, learning_rate=1e-3, seed=seed))[0])
        for seed in (1, 1, 2)
    )
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert any(not np.array_equal(one, two) for one, two in zip(first, other, strict=True))


def test_the_record_says_how_the_weights_were_made() -> None:
    dataset = load_celsius()
    model, record = training.train(card("celsius"), dataset, BRIEF)
    assert record["model"] == "celsius"
    assert record["parameters"] == 2
    assert record["dataset"] == {"name": "celsius", "sha256": dataset.sha256, "train": 27, "held_out": 2}
    assert record["options"] == {"epochs": 3, "batch_size": 8, "learning_rate": 0.5, "seed": 7}
    assert record["test"]["metric"] == "mae"
    assert record["test"]["samples"] == len(dataset.test.inputs)
    off = model.predict(dataset.test.inputs, verbose=0) - dataset.test.targets
    assert record["test"]["value"] == pytest.approx(float(np.abs(off).mean()), rel=1e-5)
    assert record["history"].keys() == {"loss", "mae", "val_loss", "val_mae"}
    assert all(len(values) == BRIEF.epochs for values in record["history"].values())
    assert record["versions"]["keras"] == keras.__version__
    assert record["duration_s"] >= 0
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize("name", NAMES)
def test_shipped_records_have_the_fields_of_a_fresh_one(name: str) -> None:
    _, fresh = training.train(card("celsius"), load_celsius(), replace(BRIEF, epochs=1))
    record = card(name).record
    assert record.keys() == fresh.keys() | {"weights_sha256"}
    for key in ("dataset", "options", "test", "versions"):
        assert record[key].keys() == fresh[key].keys()


@pytest.fixture(scope="module")
def model() -> Any:
    return training.load(card("celsius"))


def test_saved_weights_come_back(model: Any, tmp_path: Path) -> None:
    path = training.save(card("celsius"), model, {"model": "celsius"}, tmp_path / "new" / "folder")
    assert sorted(file.name for file in path.parent.iterdir()) == ["celsius.json", "celsius.weights.h5"]
    record = json.loads((path.parent / "celsius.json").read_text())
    assert record == {"model": "celsius", "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    for saved, loaded in zip(weights(model), weights(training.load(card("celsius"), path)), strict=True):
        np.testing.assert_array_equal(saved, loaded)


def test_the_optimizer_is_not_saved(tmp_path: Path) -> None:
    trained, record = training.train(card("mlp"), tiny(), replace(BRIEF, epochs=1))
    path = training.save(card("mlp"), trained, record, tmp_path)
    assert path.stat().st_size < 1.02 * card("mlp").weights_path.stat().st_size


@pytest.mark.parametrize("failing", ["weights", "record"])
@pytest.mark.parametrize("before", ["nothing", "an older run"])
def test_a_full_disk_leaves_the_folder_as_it_was(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, before: str
) -> None:
    if before == "an older run":
        training.save(card("celsius"), card("celsius").build(), {"run": 1}, tmp_path)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(path: Path, *_: object, **__: object) -> Never:
        path.touch() if isinstance(path, Path) else None
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        if failing == "weights":
            patched.setattr(keras.Model, "save_weights", full)
        else:
            patched.setattr(Path, "write_text", full)
        with pytest.raises(ServableError, match=f"could not be written to {tmp_path}: .*No space left") as caught:
            training.save(card("celsius"), model, {"run": 2}, tmp_path)
    assert "\n" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files


@pytest.mark.parametrize(("name", "other"), [(a, b) for a in NAMES for b in NAMES if a != b])
def test_weights_of_another_model_are_refused(name: str, other: str) -> None:
    path = card(other).weights_path
    with pytest.raises(ArtifactError) as caught:
        training.load(card(name), path)
    assert str(caught.value).startswith(f"{path} does not hold weights of '{name}': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["empty", "text", "head only", "cut short", "zeros at the end"])
def test_damaged_weights_are_refused(tmp_path: Path, damage: str) -> None:
    whole = card("cnn").weights_path.read_bytes()
    content = {
        "empty": b"",
        "text": b"<html>Not found</html>\n",
        "head only": whole[:3000],
        "cut short": whole[:-1000],
        "zeros at the end": whole[:100_000] + bytes(len(whole) - 100_000),
    }[damage]
    path = tmp_path / "cnn.weights.h5"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        training.load(card("cnn"), path)
    assert str(caught.value).startswith(f"{path} does not hold weights of 'cnn': ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_weights_that_are_no_file_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mlp.weights.h5"
    if kind == "folder":
        path.mkdir()
    with pytest.raises(ArtifactError, match=rf"no weights file {path}; train one with: servable train mlp"):
        training.load(card("mlp"), path)
