"""What is built, installed and imported: sdist, wheel, a base install without TensorFlow, the public names."""

from __future__ import annotations

import doctest
import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import servable
from servable.clients import is_ready
from servable.models import samples
from servable.process import Child
from servable.serving import Server
from servable.store import Store

ROOT = Path(servable.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]
TROUSER = samples.sample_pictures()["Trouser"]

MODULES = sorted(
    f"{package}.{file.stem}" if file.stem != "__init__" else package
    for package in PACKAGES
    for file in ROOT.joinpath(*package.split(".")[1:]).glob("*.py")
    if file.stem != "__main__"
)


def run(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, timeout=300, **options)


def must(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    done = run(*command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it; the source is a copy, to leave no build/ there."""
    source, dist = tmp_path_factory.mktemp("source") / "servable", tmp_path_factory.mktemp("dist")
    made_here = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo", "store", "trained")
    shutil.copytree(ROOT, source, ignore=made_here, symlinks=True)
    must(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source)
    return dist


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def test_the_files_are_named_for_the_version(built: Path) -> None:
    version = servable.__version__
    assert sorted(path.name for path in built.iterdir()) == [
        f"servable-{version}-py3-none-any.whl",
        f"servable-{version}.tar.gz",
    ]


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = f"servable-{servable.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"servable", info}
    inside = {name.removeprefix("servable/") for name in names if name.startswith("servable/")}
    assert not [name for name in inside if name.split("/")[0] in ("tests", "benchmarks", "demo", "build", "docs")]
    code = {name for name in inside if name.endswith(".py")}
    expected = {
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in ROOT.joinpath(*package.split(".")[1:]).glob("*.py")
    }
    assert code == expected
    data = {
        "py.typed",
        "wire/descriptors.binpb",
        "inspection/tensorflow_operations.txt",
        "inspection/tflite_operators.txt",
        *(
            f"models/weights/{name}{suffix}"
            for name in ("celsius", "mlp", "cnn")
            for suffix in (".weights.h5", ".json")
        ),
        *(f"models/samples/fashion_mnist_{name}.npz" for name in ("test", "calibration")),
        *(path.relative_to(ROOT).as_posix() for path in samples.sample_pictures().values()),
    }
    assert inside - code == data
    assert f"{info}/licenses/LICENSE" in names


def test_the_metadata_of_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"servable-{servable.__version__}.dist-info"
        lines = archive.read(f"{info}/METADATA").decode().splitlines()
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        licence = archive.read(f"{info}/licenses/LICENSE").decode()
    assert "Name: servable" in lines
    assert f"Version: {servable.__version__}" in lines
    assert "License-Expression: Apache-2.0" in lines
    assert "Requires-Python: <3.14,>=3.11" in lines
    extras = {line.removeprefix("Provides-Extra: ") for line in lines if line.startswith("Provides-Extra: ")}
    assert extras == {"serve", "edge", "gpu", "export", "all", "dev"}
    base = [line for line in lines if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert len(base) == len(PROJECT["project"]["dependencies"])
    assert not [line for line in base if "tensorflow" in line or "onnx" in line]
    assert "servable = servable.cli:main" in scripts
    assert "Apache License" in licence


def test_the_sdist_builds_alone(built: Path) -> None:
    """The wheel above was built from it; it holds what that takes, and no test data or virtual environment."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "__init__.py", "wire/descriptors.binpb", "py.typed"} <= names
    assert not [name for name in names if name.startswith((".", "demo/", "store/"))]


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's own folder, to be put before everything else on the path."""
    folder = tmp_path_factory.mktemp("installed")
    must(
        sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index",
        "--no-deps", "--target", folder, wheel,
    )  # fmt: skip
    return folder


def test_the_installed_wheel_exports_and_predicts_elsewhere(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    script = (
        "import pathlib, sys, servable, servable.export; print(pathlib.Path(servable.__file__).parent); "
        "from servable.cli import main; main()"
    )
    exported = must(sys.executable, "-c", script, "export", "cnn", cwd=tmp_path, env=environment)
    assert exported.stdout.splitlines()[0] == str(installed / "servable")
    assert "published store/cnn/1" in exported.stdout
    picture = installed / "servable" / TROUSER.relative_to(ROOT)
    for target in ("store/cnn", "store/cnn/1/model_int8.tflite"):
        predicted = must(sys.executable, "-c", script, "predict", target, picture, cwd=tmp_path, env=environment)
        assert predicted.stdout.splitlines()[0] == str(installed / "servable")
        assert "→  Trouser" in predicted.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.fixture(scope="session")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts of a fresh environment with the base install alone."""
    folder = tmp_path_factory.mktemp("base") / "venv"
    must(sys.executable, "-m", "venv", folder)
    must(
        folder / "bin" / "pip", "install", "-q", "--disable-pip-version-check", "--only-binary=:all:",
        "-c", ROOT / "constraints.txt", wheel,
    )  # fmt: skip
    return folder / "bin"


def test_the_base_install_has_no_tensorflow(base: Path) -> None:
    listed = must(base / "pip", "list", "--format=freeze", "--disable-pip-version-check").stdout.lower()
    names = {line.split("==")[0] for line in listed.splitlines()}
    assert {"servable", "numpy", "grpcio", "protobuf", "pillow"} <= names
    assert not {name for name in names if name.startswith(("tensorflow", "keras", "onnx", "ai-edge", "tf"))}
    assert must(base / "pip", "check", "--disable-pip-version-check").returncode == 0


def test_the_base_install_helps(base: Path, tmp_path: Path) -> None:
    assert "Usage: servable" in must(base / "servable", "--help", cwd=tmp_path).stdout
    for verb in ("export", "train", "serve", "predict", "bench", "demo", "models", "inspect"):
        assert f"Usage: servable {verb}" in must(base / "servable", verb, "--help", cwd=tmp_path).stdout
    assert "269,322" in must(base / "servable", "models", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (("export", "cnn"), "tensorflow", "export"),
        (("train", "cnn"), "tensorflow", "export"),
        (("demo",), "tensorflow", "all"),
        (("serve", "STORE"), "httptools", "serve"),
        (("predict", "STORE/cnn/1/model.tflite", TROUSER), "ai-edge-litert", "edge"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_the_base_install_names_the_extra(
    base: Path, store: Store, tmp_path: Path, arguments: tuple[Any, ...], package: str, extra: str
) -> None:
    given = [str(argument).replace("STORE", str(store.root)) for argument in arguments]
    done = run(base / "servable", *given, cwd=tmp_path)
    assert done.returncode == 8
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert f"needs the package {package!r}, which is not installed; run: pip install '" in line
    # From the very file that pip installed: there is no index to take it from.
    assert line.endswith(f".whl[{extra}]'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_base_install_predicts_from_a_server(base: Path, server: Server, tmp_path: Path, scheme: str) -> None:
    port = server.grpc_port if scheme == "grpc" else server.rest_port
    predicted = must(base / "servable", "predict", f"{scheme}://127.0.0.1:{port}/cnn", TROUSER, cwd=tmp_path)
    assert "→  Trouser" in predicted.stdout
    assert predicted.stderr == ""
    predicted = must(base / "servable", "predict", f"{scheme}://127.0.0.1:{port}/celsius", "100", cwd=tmp_path)
    assert "→  212" in predicted.stdout


def test_the_base_install_inspects(base: Path, store: Store, tmp_path: Path) -> None:
    shown = must(base / "servable", "inspect", store.path("cnn"), cwd=tmp_path)
    assert shown.stdout.count("53,578") == 5
    assert shown.stderr == ""


@pytest.fixture(scope="session")
def serving(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the base install and the extra ``serve``."""
    folder = tmp_path_factory.mktemp("serving") / "venv"
    must(sys.executable, "-m", "venv", folder)
    must(
        folder / "bin" / "pip", "install", "-q", "--disable-pip-version-check", "--only-binary=:all:",
        "-c", ROOT / "constraints.txt", f"{wheel}[serve]",
    )  # fmt: skip
    return folder


def test_the_serving_install_is_small(serving: Path) -> None:
    (packages,) = serving.glob("lib/python*/site-packages")
    ours = [path for path in packages.iterdir() if not path.name.startswith(("pip", "setuptools", "pkg_resources"))]
    files = [file for path in ours for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    assert megabytes <= 260
    assert not [path.name for path in ours if path.name.startswith(("tensorflow", "keras"))]


def test_the_serving_install_serves_twins(serving: Path, store: Store, free_port: int, tmp_path: Path) -> None:
    command = [str(serving / "bin" / "servable"), "serve", str(store.root), "--port=0", f"--rest_api_port={free_port}"]
    target = f"http://127.0.0.1:{free_port}/cnn"
    with Child(command, tmp_path / "log", "servable serve") as child:
        child.wait_until(lambda: is_ready(target), 60)
        predicted = must(serving / "bin" / "servable", "predict", target, TROUSER, cwd=tmp_path)
        assert "→  Trouser" in predicted.stdout
        assert child.stop() == 0


def test_importing_servable_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys, servable; "
        "print(sorted({'numpy', 'grpc', 'google.protobuf', 'tensorflow', 'keras', 'onnxruntime'} & set(sys.modules)))"
    )
    assert must(sys.executable, "-c", script, cwd=tmp_path).stdout == "[]\n"


def test_clients_import_no_tensorflow(tmp_path: Path) -> None:
    script = "import sys; from servable import connect, Store; print('tensorflow' in sys.modules)"
    assert must(sys.executable, "-c", script, cwd=tmp_path).stdout == "False\n"


def test_the_public_names() -> None:
    assert servable.__all__ == [
        "Client",
        "Metadata",
        "ServableError",
        "Signature",
        "Source",
        "Store",
        "TensorSpec",
        "__version__",
        "connect",
        "export_model",
    ]
    assert dir(servable) == servable.__all__


@pytest.mark.parametrize("name", servable.__all__)
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(servable, name)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'servable' has no attribute 'conect'"):
        _ = servable.conect  # type: ignore[attr-defined]


def test_every_folder_with_code_is_listed_for_the_wheel() -> None:
    folders = {file.parent.name for file in ROOT.glob("*/__init__.py")} - {"benchmarks"}
    assert {package.split(".")[1] for package in PACKAGES if "." in package} == folders


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert doctest.testmod(module).failed == 0


def test_there_are_doctests() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {name for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples}
    assert {"servable.errors", "servable.signature", "servable.process", "servable.clients.targets"} <= found
