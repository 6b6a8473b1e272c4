"""Bad input: one clear line on stderr, the right exit code, nothing on stdout and no traceback."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from servable.cli import run
from servable.manifest import FILE_NAME
from servable.models import card, samples
from servable.serving import Server
from servable.store import Store

Done = subprocess.CompletedProcess[str]
Cli = Callable[..., Done]

Here = Callable[..., Done]

TROUSER = samples.sample_pictures()["Trouser"]


def the_error(done: Done, code: int) -> str:
    """The one line that a failed command printed."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Here:
    """Run a command line in this process, for verbs that leave nothing behind in it: half a second less."""

    def run_here(*arguments: Any) -> Done:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        stdout, stderr = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, stdout, stderr)

    return run_here


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "exprot",
            "no command 'exprot'; did you mean 'export'? Known: bench, demo, export, inspect, list, models,",
        ),
        ("--verison", "No such option '--verison'. Did you mean '--version'? (see servable --help)"),
        (
            "export cnn --stor x",
            "No such option '--stor'. (Did you mean one of: '--json', '--store', '--trust-source'?) "
            "(see servable export --help)",
        ),
        ("export", "Missing argument 'SOURCE...'. (see servable export --help)"),
        (
            "serve",
            "there is nothing to serve: give a STORE, --model_name and --model_base_path, or --model_config_file",
        ),
        ("serve s --port 99999", "--port is 99999; give a port from 0 to 65535"),
        (
            "serve s --runtime torch",
            "Invalid value for '--runtime': 'torch' is not one of 'auto', 'tensorflow', 'onnx'",
        ),
        ("train cnn --epochs none", "Invalid value for '--epochs': 'none' is not a valid integer range."),
        ("train cnn --epochs 0", "Invalid value for '--epochs': 0 is not in the range x>=1."),
        ("bench s/cnn --duration 0", "Invalid value for '--duration': 0.0 is not in the range x>0."),
        ("predict s/cnn x.png --top-kk 2", "No such option '--top-kk'. Did you mean '--top-k'?"),
        ("predict --topk 2 s/cnn", "No such option '--topk'. Did you mean '--top-k'?"),
        ("models cnn", "Got unexpected extra argument (cnn)"),
    ],
)
def test_usage(here: Here, arguments: str, message: str) -> None:
    assert message in the_error(here(*arguments.split()), 2)


def test_no_verb_at_all_shows_the_help(cli: Cli) -> None:
    done = cli()
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: servable [OPTIONS] COMMAND [ARGS]...")


@pytest.mark.parametrize("verb", ["export", "train"])
def test_unknown_model(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.chdir(tmp_path)
    error = the_error(here(verb, "ccn"), 3)
    assert error == "no model 'ccn' in the catalogue; did you mean 'cnn'? Known: celsius, cnn, mlp"
    assert list(tmp_path.iterdir()) == []


def test_unknown_model_in_a_store(here: Here, store: Store) -> None:
    error = the_error(here("bench", store.root / "ccn"), 3)
    assert error == f"no model 'ccn' in the store {store.root}; did you mean 'cnn'? Known: celsius, cnn, mlp"


def test_unknown_format(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = the_error(here("export", "cnn", "--formats", "tflite,onxx"), 2)
    assert error == (
        "no format 'onxx'; did you mean 'onnx'? Known: onnx, onnx_float16, onnx_int8, saved_model, tflite, "
        "tflite_dynamic, tflite_float16, tflite_int16x8, tflite_int8"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("export", "cnn", "--store", "FILE"), 4),
        (("serve", "FILE"), 4),
        (("predict", "FILE", TROUSER), 4),
        (("predict", "FILE/cnn", TROUSER), 2),
        (("bench", "FILE"), 2),
        (("bench", "FILE/cnn"), 2),
        (("train", "celsius", "--output", "FILE"), 4),
        (("train", "celsius", "--output", "FILE/deeper"), 4),
    ],
    ids=lambda value: " ".join(map(str, value[:2])) if isinstance(value, tuple) else None,
)
def test_a_file_where_a_folder_belongs(
    cli: Cli, tmp_path: Path, free_port: int, arguments: tuple[Any, ...], code: int
) -> None:
    path = tmp_path / "file"
    path.write_text("not a store")
    given = [str(argument).replace("FILE", str(path)) for argument in arguments]
    if given[0] == "serve":
        given += [f"--port={free_port}", "--rest_api_port=0"]
    error = the_error(cli(*given), code)
    assert str(path) in error
    assert path.read_text() == "not a store"


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_serving_no_store(cli: Cli, tmp_path: Path, free_port: int, kind: str) -> None:
    if kind == "empty":
        (tmp_path / "store").mkdir()
    error = the_error(cli("serve", tmp_path / "store", f"--port={free_port}", "--rest_api_port=0"), 4)
    assert str(tmp_path / "store") in error
    assert "make one with: servable export NAME" in error


def test_serving_on_no_port(cli: Cli, store: Store) -> None:
    error = the_error(cli("serve", store.root, "--port=0", "--rest_api_port=0"), 2)
    assert "At least one of server_options.grpc_port" in error


@pytest.mark.parametrize("option", ["--port", "--rest_api_port"])
def test_port_in_use(cli: Cli, store: Store, free_port: int, option: str) -> None:
    other = {"--port": "--rest_api_port", "--rest_api_port": "--port"}[option]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = the_error(cli("serve", store.root, f"{option}={port}", f"{other}={free_port}"), 4)
    assert error.startswith(f"cannot listen on 127.0.0.1:{port} for ")
    assert error.endswith(f"choose another with {option}")


@pytest.fixture(params=["grpc", "http", "onnx", "tflite", "store"])
def target(request: pytest.FixtureRequest, store: Store, server: Server) -> str:
    """The cnn behind every kind of target."""
    return {
        "grpc": f"grpc://127.0.0.1:{server.grpc_port}/cnn",
        "http": f"http://127.0.0.1:{server.rest_port}/cnn",
        "onnx": str(store.path("cnn") / "model.onnx"),
        "tflite": str(store.path("cnn") / "model_int8.tflite"),
        "store": str(store.root / "cnn"),
    }[request.param]


PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "there is no file {}"),
    "empty": (lambda path: path.write_bytes(b""), "{} is empty: not a picture"),
    "text": (lambda path: path.write_text("no picture"), "{} is not a picture: expected a PNG"),
    "cut short": (lambda path: path.write_bytes(TROUSER.read_bytes()[:200]), "{} is damaged and cannot be decoded"),
    "folder": (lambda path: path.mkdir(), "{} cannot be read: Is a directory"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_bad_pictures(here: Here, store: Store, tmp_path: Path, kind: str) -> None:
    make, message = PICTURES[kind]
    path = tmp_path / "picture.png"
    make(path)
    assert message.format(path) in the_error(here("predict", store.root / "cnn", path), 2)


def test_a_bad_picture_is_found_whatever_the_target(here: Here, target: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(TROUSER.read_bytes()[:200])
    assert f"{path} is damaged and cannot be decoded" in the_error(here("predict", target, path), 2)


def test_pictures_before_the_bad_one_are_answered(here: Here, store: Store, tmp_path: Path) -> None:
    done = here("predict", store.root / "cnn", TROUSER, tmp_path / "missing.png")
    assert done.returncode == 2
    assert "→  Trouser" in done.stdout
    assert done.stderr == f"error: there is no file {tmp_path / 'missing.png'}\n"


def test_a_picture_of_another_size_is_resized_with_a_note(here: Here, target: str, tmp_path: Path) -> None:
    path = tmp_path / "[bold]large:smile:.png"  # a name is printed as it is
    Image.open(TROUSER).resize((96, 60)).save(path)
    done = here("predict", target, path)
    assert done.returncode == 0
    assert done.stderr == f"note: {path} is 96×60; resized to 28×28\n"
    assert done.stdout.startswith(f"{path}  →  Trouser  (")


@pytest.mark.parametrize("text", ["nan", "NaN", "-nan"])
def test_nan(here: Here, store: Store, server: Server, text: str) -> None:
    for place in (store.root / "celsius", f"grpc://127.0.0.1:{server.grpc_port}/celsius"):
        assert "input 'celsius' holds NaN" in the_error(here("predict", place, text), 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("warm", "'warm' is not a number; "),
        ("12,5", "'12,5' is not a number; "),
        ("", "'' is not a number; "),
        ("picture.png", "'picture.png' is not a number (a picture file?); "),
    ],
)
def test_text_for_a_number(here: Here, store: Store, text: str, message: str) -> None:
    error = the_error(here("predict", store.root / "celsius", text), 2)
    assert error.startswith(message)
    assert error.endswith("takes celsius: float32 (batch, 1)")


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_server_down(here: Here, free_port: int, scheme: str) -> None:
    place = f"{scheme}://127.0.0.1:{free_port}/cnn"
    error = the_error(here("predict", place, TROUSER), 5)
    assert error.startswith(f"{place} cannot be reached: ")
    assert error.endswith("is the server running?")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("ftp://127.0.0.1/cnn", "unknown scheme 'ftp'; use grpc://, http://, https:// or a path"),
        ("grpc://127.0.0.1:8500", "should read grpc://HOST:PORT/MODEL"),
        ("http://127.0.0.1:99999/cnn", "the port is not a number from 1 to 65535"),
        ("grpc:///cnn", "should read grpc://HOST:PORT/MODEL"),
        ("nowhere/cnn", "there is no such file or folder, and it is no grpc:// or http:// address"),
    ],
)
def test_bad_targets(here: Here, place: str, message: str) -> None:
    error = the_error(here("predict", place, TROUSER), 2)
    assert error.startswith(f"target {place!r}")
    assert message in error


def test_a_store_for_a_model_names_its_models(here: Here, store: Store) -> None:
    for verb, more in (("predict", [TROUSER]), ("bench", [])):
        error = the_error(here(verb, store.root, *more), 2)
        assert str(store.root / "cnn") in error


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("name", ["ccn", "cnn/versions/7"])
def test_unknown_model_on_a_server(here: Here, server: Server, scheme: str, name: str) -> None:
    place = f"{scheme}://127.0.0.1:{server.grpc_port if scheme == 'grpc' else server.rest_port}/{name}"
    error = the_error(here("predict", place, TROUSER), 3)
    assert error.startswith(f"{place}: Servable not found for request: ")


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
@pytest.mark.parametrize("content", [b"", b"no model", b"\x00" * 4096], ids=["empty", "text", "zeros"])
def test_a_file_that_is_no_model(here: Here, tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    assert the_error(here("predict", path, TROUSER), 4).startswith(f"{path} ")


def test_a_damaged_manifest(here: Here, store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "cnn"
    shutil.copytree(store.path("cnn"), folder)
    (folder / FILE_NAME).write_text('{"schema_version": 1,')
    for verb, more in (("predict", [TROUSER]), ("bench", [])):
        assert f"{folder / FILE_NAME} is not valid JSON" in the_error(here(verb, folder, *more), 4)


def test_weights_of_another_model(cli: Cli, tmp_path: Path) -> None:
    weights = card("mlp").weights_path
    done = cli("export", "cnn", "--store", tmp_path / "store", "--weights", weights)
    assert done.returncode == 4
    (error,) = [line for line in done.stderr.splitlines() if not line.startswith("export cnn: ")]
    assert error.startswith(f"error: {weights} does not hold weights of 'cnn': ")
    assert list((tmp_path / "store").iterdir()) == []


def test_weights_for_two_models(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = the_error(here("export", "cnn", "mlp", "--weights", "x.weights.h5"), 2)
    assert "--weights goes with one model" in error


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("celsius", "missing.keras"), 3, "there is no missing.keras: give a .keras or .h5 file"),
        (("celsius", "nowhere.models:build"), 3, "there is no module 'nowhere', here in "),
        (("celsius", "."), 4, ". is no SavedModel: it has no saved_model.pb"),
        (("celsius", "notes.txt"), 4, "notes.txt is of no format that can be exported"),
        (("celsius", "--name", "c/d"), 2, "'c/d' cannot be a model name: use letters, digits, '.', '_' and '-'"),
        (("celsius", "--opset", "15", "--formats", "tflite"), 2, "--opset is for ONNX files, which --formats and"),
        (("celsius", "--input-shape", "celsius=1"), 2, "--input-shape is not for models of the catalogue"),
        (("mine.keras", "--weights", "x"), 2, "--weights is for models of the catalogue"),
        (
            ("mine.keras", "--input-shape", "a=3", "--calibration", "a.npy"),
            2,
            "--input-shape sizes random numbers; --calibration brings its own sizes along",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_everything_is_looked_at_before_anything_is_exported(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "mine.keras").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("notes")
    monkeypatch.chdir(tmp_path)
    assert the_error(here("export", *arguments), code).startswith(message)
    assert not (tmp_path / "store").exists()


def test_data_that_is_not_there(here: Here, tmp_path: Path) -> None:
    done = here("train", "mlp", "--data", tmp_path, "--output", tmp_path / "trained")
    assert done.returncode == 4
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path} has neither train-images-idx3-ubyte.gz nor ")


def test_debug_shows_the_traceback_too(cli: Cli) -> None:
    done = cli("--debug", "export", "ccn")
    assert done.returncode == 3
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1].startswith("error: no model 'ccn' in the catalogue")
    assert sum(line.startswith("error: ") for line in lines) == 1


BLOCKED = "import sys; [sys.modules.__setitem__(name, None) for name in {!r}]; from servable.cli import main; main()"


@pytest.fixture
def without(tmp_path: Path) -> Iterator[Callable[..., Done]]:
    """Run ``servable`` as if packages were not installed."""

    def run(packages: list[str], *arguments: Any) -> Done:
        return subprocess.run(
            [sys.executable, "-c", BLOCKED.format(packages), *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=120,
        )

    yield run
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("tensorflow", ("export", "cnn"), "export"),
        ("tf2onnx", ("export", "cnn"), "export"),
        ("onnx", ("export", "cnn"), "export"),
        ("tensorflow", ("train", "cnn"), "export"),
        ("tensorflow", ("demo",), "all"),
        ("matplotlib", ("demo",), "all"),
        ("httptools", ("demo",), "all"),
        ("httptools", ("serve", "STORE"), "serve"),
        ("ai_edge_litert", ("predict", "STORE/cnn/1/model.tflite", TROUSER), "edge"),
        ("onnxruntime", ("predict", "STORE/cnn/1/model.onnx", TROUSER), "serve"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_missing_extra(
    without: Callable[..., Done],
    store: Store,
    free_port: int,
    package: str,
    arguments: tuple[str, ...],
    extra: str,
) -> None:
    given = [str(argument).replace("STORE", str(store.root)) for argument in arguments]
    if given[0] == "serve":
        given += ["--port=0", f"--rest_api_port={free_port}"]
    error = the_error(without([package], *given), 8)
    shown = package.replace("_", "-")
    assert f" needs the package {shown!r}, which is not installed; " in error
    assert re.search(rf"run: pip install (-e )?'.+\[{extra}\]'$", error)


def test_a_format_that_needs_no_missing_extra_is_exported(without: Callable[..., Done], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("partly") / "store"
    done = without(["tf2onnx"], "export", "celsius", "--formats", "tflite", "--store", folder)
    assert done.returncode == 0, done.stderr
    assert Store(folder).versions("celsius") == [1]


def test_predict_takes_the_engine_that_is_there(without: Callable[..., Done], store: Store) -> None:
    done = without(["onnxruntime", "tensorflow"], "predict", store.root / "cnn", TROUSER)
    assert done.returncode == 0, done.stderr
    assert "→  Trouser" in done.stdout


def test_bench_leaves_out_what_cannot_run(without: Callable[..., Done], store: Store) -> None:
    done = without(["ai_edge_litert", "tensorflow"], "bench", store.root / "cnn", "--duration", "0.05")
    assert done.returncode == 0
    assert "onnx" in done.stdout
    assert "tflite" not in done.stdout
    notes = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert [note.split(" left out: ")[0] for note in notes] == [
        "note: saved_model",
        "note: tflite",
        "note: tflite int8",
    ]
    assert all("; run: pip install " in note for note in notes)


def test_bench_without_any_engine(without: Callable[..., Done], store: Store) -> None:
    done = without(["ai_edge_litert", "tensorflow", "onnxruntime"], "bench", store.root / "cnn")
    assert done.returncode == 8
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].endswith("[edge]'")
