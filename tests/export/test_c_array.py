"""TFLite files as C arrays: two compilers take them without a warning, and the bytes are the same."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from servable.errors import ArtifactError, StoreError
from servable.export import c_array
from servable.models import card
from servable.store import Store

WARNINGS = ("-Wall", "-Wextra", "-Werror", "-pedantic")
CXX = ("g++", "-std=c++11", *WARNINGS)
C = ("gcc", "-std=c11", *WARNINGS)
# Writes the array to the file that it is given, and ends with 3 if it does not lie at a multiple of 16.
PROGRAM = """
#include <{stdint}>
#include <{stdio}>

#include "{header}"
#include "{header}"

int main(int count, char** arguments) {{
  if (count != 2) return 1;
  FILE* file = fopen(arguments[1], "wb");
  if (!file) return 2;
  fwrite({name}_data, 1, {name}_size, file);
  if (fclose(file)) return 2;
  return (uintptr_t){name}_data % 16 ? 3 : 0;
}}
"""


def tflite_like(size: int) -> bytes:
    """Bytes with a TFLite file's mark, and every value in them if they are enough."""
    noise = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    return noise[:4] + b"TFL3" + noise[8:]


def written(folder: Path, data: bytes, model: str = "cnn", artifact: str = "tflite int8") -> tuple[Path, Path]:
    path = folder / "model_int8.tflite"
    path.write_bytes(data)
    return c_array.write(
        path, folder / "c", model=model, artifact=artifact, quantization="int8", producer="1.2", version=3
    )


def run(*command: str | Path) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr}"


def read_back(folder: Path, source: Path, name: str, compiler: tuple[str, ...], main: str) -> bytes:
    """What a program says that is linked with the array; ``main`` is the ending of its own source."""
    headers = ("cstdint", "cstdio") if main == "cc" else ("stdint.h", "stdio.h")
    program = folder / f"main.{main}"
    text = PROGRAM.format(stdint=headers[0], stdio=headers[1], header=source.with_suffix(".h").name, name=name)
    program.write_text(text, encoding="ascii")
    run(*CXX, "-c", source, "-o", folder / "array.o")
    run(*compiler, f"-I{source.parent}", "-c", program, "-o", folder / "main.o")
    run(compiler[0], folder / "main.o", folder / "array.o", "-o", folder / "program")
    run(folder / "program", folder / "bytes")
    return (folder / "bytes").read_bytes()


@pytest.mark.parametrize(("compiler", "main"), [(CXX, "cc"), (C, "c")], ids=["C++11", "C11"])
@pytest.mark.parametrize("size", [8, 12, 25, 5000])
def test_a_program_has_the_same_bytes(tmp_path: Path, size: int, compiler: tuple[str, ...], main: str) -> None:
    _, source = written(tmp_path, tflite_like(size))
    assert read_back(tmp_path, source, "g_cnn_tflite_int8", compiler, main) == tflite_like(size)


def test_a_model_of_the_catalogue(store: Store, tmp_path: Path) -> None:
    tflite = store.path("cnn") / "model_int8.tflite"
    header, source = c_array.write(
        tflite, tmp_path, model=card("cnn").name, artifact="tflite int8", quantization="int8", producer="1.2"
    )
    assert [path.name for path in (header, source)] == ["model_int8.h", "model_int8.cc"]
    assert sorted(tmp_path.iterdir()) == [source, header]
    assert read_back(tmp_path, source, "g_cnn_tflite_int8", CXX, "cc") == tflite.read_bytes()


def test_the_source_is_c11_too(tmp_path: Path) -> None:
    _, source = written(tmp_path, tflite_like(100))
    run(*C, "-x", "c", "-c", source, "-o", tmp_path / "array.o")


@pytest.mark.parametrize(
    ("model", "artifact", "name"),
    [
        ("resnet-50.v2", "tflite int16x8", "g_resnet_50_v2_tflite_int16x8"),
        ("int", "tflite", "g_int_tflite"),
        ("3d", "tflite", "g_3d_tflite"),
        ("a.-_b--", "tflite", "g_a_b_tflite"),
        ("*/ int x; /*\n#error no\\\n??/", "tflite int8", "g_int_x_error_no_tflite_int8"),
    ],
)
def test_any_name_is_valid_in_c(tmp_path: Path, model: str, artifact: str, name: str) -> None:
    assert c_array.identifier(model, artifact) == name
    assert "__" not in name
    _, source = written(tmp_path, tflite_like(40), model, artifact)
    assert read_back(tmp_path, source, name, C, "c") == tflite_like(40)


def test_the_head_says_where_it_comes_from(tmp_path: Path) -> None:
    data = tflite_like(1234)
    for path in written(tmp_path, data):
        comment = [line for line in path.read_text("ascii").split("#", 1)[0].splitlines() if line]
        assert all(line.startswith("//") for line in comment)
        head = "\n".join(comment)
        assert "cnn, version 3: tflite int8" in head
        assert "Quantization: int8" in head
        assert "Bytes: 1234" in head
        assert f"SHA-256: {hashlib.sha256(data).hexdigest()}" in head
        assert "servable 1.2" in head
    assert "tflite::GetModel(g_cnn_tflite_int8_data)" in path.with_suffix(".h").read_text("ascii")


def test_a_version_that_is_not_known_yet_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(tflite_like(30))
    header, _ = c_array.write(
        tmp_path / "model.tflite", tmp_path, model="cnn", artifact="tflite", quantization="float32", producer="1.2"
    )
    assert header.read_text("ascii").startswith("// cnn: tflite\n")


# 1,200,000 is what is made at a time.
@pytest.mark.parametrize("size", [8, 11, 12, 13, 1_199_999, 1_200_000, 1_200_001, 2_400_012])
def test_every_byte_in_lines_of_twelve(tmp_path: Path, size: int) -> None:
    data = tflite_like(size)
    _, source = written(tmp_path, data)
    text = source.read_text("ascii")
    body = text[text.index("{\n") + 2 : text.index("};")]
    lines = body.splitlines()
    assert bytes.fromhex(re.sub(r"0x|[,\s]", "", body)) == data
    assert [line.count("0x") for line in lines[:-1]] == [12] * (len(lines) - 1)
    assert len(lines) == -(-size // 12)
    assert all(line == line.rstrip() for line in lines)


def test_what_is_no_tflite_file_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"TFL3", b"\x08\x00\x00\x00ONNX" * 4):
        (tmp_path / "model.tflite").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"model\.tflite is no TFLite file"):
            c_array.write(
                tmp_path / "model.tflite", tmp_path, model="a", artifact="b", quantization="int8", producer="1"
            )
    with pytest.raises(ArtifactError, match=r"gone\.tflite cannot be read: No such file"):
        c_array.write(tmp_path / "gone.tflite", tmp_path, model="a", artifact="b", quantization="int8", producer="1")


def test_nothing_half_is_left_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "model_int8.cc").mkdir()
    with pytest.raises(StoreError, match=r"model_int8\.cc cannot be written"):
        written(tmp_path, tflite_like(30))
    assert not [path for path in (tmp_path / "c").iterdir() if path.name.startswith(".")]
