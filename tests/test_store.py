"""The model store: versions appear in one step, are never changed, and leave nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from servable.errors import InvalidArgumentError, NotFoundError, StoreError
from servable.manifest import Manifest
from servable.signature import Signature
from servable.store import STAGING, Store


def manifest(model: str = "cnn") -> Manifest:
    return Manifest(
        model=model,
        version=0,
        created="2026-01-01T00:00:00Z",
        task="regression",
        source={},
        producers={},
        signatures={"serving_default": Signature({}, {})},
        artifacts=(),
    )


def publish(store: Store, model: str = "cnn", content: str = "") -> Path:
    with store.staging(model) as staged:
        (staged / "model.bin").write_text(content)
        return store.publish(staged, manifest(model))[0]


@contextmanager
def child(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that is spoken to line by line."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"the child ended with {process.wait()}"
    return line.strip()


def write_line(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


HOLDER = """
import sys
from servable.store import Store
with Store(sys.argv[1]).staging(sys.argv[2]) as staged:
    (staged / "half").write_text("written")
    print(staged, flush=True)
    input()
"""

PUBLISHER = """
import sys
from pathlib import Path
from servable.manifest import Manifest
from servable.store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
input()
for i in range(int(sys.argv[3])):
    with store.staging("cnn") as staged:
        (staged / "who").write_text(f"{sys.argv[2]} {i}")
        draft = Manifest("cnn", 0, "", "regression", {}, {}, {}, ())
        print(store.publish(staged, draft)[1].version, flush=True)
"""


def test_versions_are_ordered_as_numbers(tmp_path: Path) -> None:
    for name in ("9", "10", "100", "2"):
        (tmp_path / "cnn" / name).mkdir(parents=True)
    assert Store(tmp_path).versions("cnn") == [2, 9, 10, 100]
    assert Store(tmp_path).path("cnn").name == "100"
    assert Store(tmp_path).path("cnn", 9) == tmp_path / "cnn" / "9"


@pytest.mark.parametrize(
    "name", ["latest", "v1", "01", "0", "-1", "1.0", "1 ", ".1", "1_0", "1" * 19, "\u0661", ".tmp"]
)
def test_children_that_are_no_version_are_ignored(name: str, tmp_path: Path) -> None:
    (tmp_path / "cnn" / "3").mkdir(parents=True)
    (tmp_path / "cnn" / name).mkdir()
    assert Store(tmp_path).versions("cnn") == [3]


def test_models_are_folders_with_versions(tmp_path: Path) -> None:
    for name in ("mlp/1", "cnn/2", "empty", "other/latest", ".reports/1", STAGING + "/1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").touch()
    assert Store(tmp_path).models() == ["cnn", "mlp"]


def test_publish_counts_up(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert [publish(store).name for _ in range(3)] == ["1", "2", "3"]
    assert publish(store, "mlp").name == "1"


def test_publish_goes_on_after_the_largest_number(tmp_path: Path) -> None:
    (tmp_path / "cnn" / "1764000000").mkdir(parents=True)
    assert publish(Store(tmp_path)).name == "1764000001"


def test_published_manifest_has_the_number_and_the_folder_can_be_read(tmp_path: Path) -> None:
    folder = publish(Store(tmp_path), content="weights")
    assert Manifest.read(folder).version == 1
    assert (folder / "model.bin").read_text() == "weights"
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_publish_never_overwrites(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    taken = tmp_path / "cnn" / "1"
    if kind == "folder":
        publish(store, content="first")
    else:
        taken.parent.mkdir()
        taken.write_text("first")
    # As if the number had been taken between the look and the rename.
    monkeypatch.setattr(Store, "versions", lambda *_: [])
    assert publish(store, content="second").name == "2"
    assert (taken / "model.bin" if kind == "folder" else taken).read_text() == "first"
    assert Manifest.read(tmp_path / "cnn" / "2").version == 2


def test_processes_that_publish_at_once_get_different_versions(tmp_path: Path) -> None:
    count, each = 4, 12
    contexts = [child(PUBLISHER, tmp_path, who, each) for who in range(count)]
    children = [context.__enter__() for context in contexts]
    try:
        for one in children:
            assert read_line(one) == "ready"
        for one in children:
            write_line(one)
        got = [[int(read_line(one)) for _ in range(each)] for one in children]
        assert [one.wait(60) for one in children] == [0] * count
    finally:
        for context in contexts:
            context.__exit__(None, None, None)
    assert sorted(number for numbers in got for number in numbers) == list(range(1, count * each + 1))
    for who, numbers in enumerate(got):
        written = [(tmp_path / "cnn" / str(number) / "who").read_text() for number in numbers]
        assert written == [f"{who} {i}" for i in range(each)]
        assert [Manifest.read(tmp_path / "cnn" / str(number)).version for number in numbers] == numbers
    assert not (tmp_path / STAGING).exists()


def test_leftover_of_a_killed_process_is_swept_and_a_live_one_is_kept(tmp_path: Path) -> None:
    with child(HOLDER, tmp_path, "cnn") as killed, child(HOLDER, tmp_path, "cnn.v2") as living:
        stale, fresh = Path(read_line(killed)), Path(read_line(living))
        killed.send_signal(signal.SIGKILL)
        assert killed.wait(60) == -signal.SIGKILL
        assert (stale / "half").exists()
        with Store(tmp_path).staging("mlp") as staged:
            assert not stale.exists()
            assert (fresh / "half").exists()
            left = {path.name for path in (tmp_path / STAGING).iterdir()}
            assert left == {staged.name, f"{staged.name}.lock", fresh.name, f"{fresh.name}.lock"}
        write_line(living)
        assert living.wait(60) == 0
    assert not (tmp_path / STAGING).exists()


def test_staging_is_on_the_file_system_of_the_store_but_in_no_model(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with store.staging("cnn") as staged:
        assert staged.is_dir()
        assert not any(staged.iterdir())
        assert staged.parent == store.root / STAGING
        assert not (store.root / "cnn").exists()
        assert store.models() == []


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_failure_inside_staging_leaves_no_trace(error: type[BaseException], tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store)

    def fail() -> None:
        with store.staging("cnn") as staged:
            (staged / "half").mkdir()
            (staged / "half" / "file").touch()
            raise error

    with pytest.raises(error):
        fail()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "cnn",
        "cnn/1",
        "cnn/1/model.bin",
        "cnn/1/servable.json",
    ]


def test_two_stagings_of_one_process_do_not_sweep_each_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.staging("cnn") as first, store.staging("cnn") as second:
        assert first != second
        assert first.is_dir()
        assert second.is_dir()


def unusable(root: Path, what: str) -> Path:
    """A path where no store can be; permissions alone would not stop a test that runs as root."""
    (root / "file").touch()
    return {"file": root / "file", "below a file": root / "file" / "store", "proc": Path("/proc/store")}[what]


@pytest.mark.parametrize("what", ["file", "below a file", "proc"])
def test_store_that_cannot_be_written(what: str, tmp_path: Path) -> None:
    path = unusable(tmp_path, what)
    with pytest.raises(StoreError) as caught, Store(path).staging("cnn"):
        pytest.fail("nothing can be staged here")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("what", ["file", "below a file", "proc"])
def test_store_that_cannot_be_listed(what: str, tmp_path: Path) -> None:
    path = unusable(tmp_path, what)
    with pytest.raises(StoreError) as caught:
        Store(path).models()
    assert str(path) in str(caught.value)


def test_a_file_in_the_place_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "cnn").write_text("mine")
    with pytest.raises(StoreError, match="nothing was published"):
        publish(Store(tmp_path))
    assert (tmp_path / "cnn").read_text() == "mine"
    assert not (tmp_path / STAGING).exists()


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "/etc", "-x", "a b", "a\n", "caf\u00e9", "a\0b", "..\\x", "_x"]
)
def test_bad_model_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError) as caught, Store(tmp_path).staging(name):
        pytest.fail("this name must be refused")
    assert repr(name) in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a", "A1", "resnet-50", "v1.2_x", "7"])
def test_good_model_names(name: str, tmp_path: Path) -> None:
    assert publish(Store(tmp_path), name) == tmp_path / name / "1"


@pytest.mark.parametrize(
    ("model", "version", "expected"),
    [
        ("ccn", None, r"no model 'ccn' in the store .*; did you mean 'cnn'\? Known: cnn, mlp$"),
        ("zzz", 1, r"no model 'zzz' in the store .*; Known: cnn, mlp$"),
        ("cnn", 7, r"model 'cnn' in the store .* has no version 7; versions: 1, 2$"),
        ("cnn", 0, r"has no version 0; versions: 1, 2$"),
    ],
)
def test_unknown_names_say_what_there_is(model: str, version: int | None, expected: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("cnn", "cnn", "mlp"):
        publish(store, name)
    with pytest.raises(NotFoundError, match=expected):
        store.path(model, version)


def test_empty_store_and_no_store_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is none"):
        Store(tmp_path).path("cnn")
    with pytest.raises(StoreError, match=r"no store at .*servable export"):
        Store(tmp_path / "absent").path("cnn")


@pytest.mark.parametrize("model", ["..", ".", "", "../other", "/", STAGING, "other/../other"])
def test_a_name_never_leads_out_of_the_store(model: str, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "other" / "1").mkdir(parents=True)
    (tmp_path / "store" / "1").mkdir(parents=True)
    (tmp_path / "store" / STAGING / "1").mkdir(parents=True)
    with pytest.raises(NotFoundError):
        Store(tmp_path / "store").path(model)
