"""A TFLite file as an array in C, for firmware that has no file system: a header, and a source beside it."""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import ArtifactError, StoreError, is_disk_full

LINE_BYTES = 12
# As TensorFlow Lite wants its buffers.
ALIGNMENT = 16

_CHUNK = LINE_BYTES * 100_000
_MAGIC = b"TFL3"
_INDENT = b"  "
_UNSAFE = re.compile(r"[^ -~]|[\\?]")
_DIGITS = np.frombuffer(b"".join(b"0x%02x, " % value for value in range(256)), np.uint8).reshape(256, 6)


def write(
    tflite: Path, folder: Path, *, model: str, artifact: str, quantization: str, producer: str, version: int = 0
) -> tuple[Path, Path]:
    """Write ``<name>.h`` and ``<name>.cc`` of a TFLite file into a folder, and return their paths.

    They are valid C++11 and C11 and hold ``g_<model>_<artifact>_data``, aligned for TensorFlow Lite
    Micro, and its ``…_size``. ``artifact`` is a label such as ``tflite int8``; a ``version`` of 0 is not known
    yet; ``producer`` is the version of servable. Raises `ArtifactError` for what is no TFLite file, and
    `StoreError` if they cannot be written.
    """
    try:
        data = tflite.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{tflite} cannot be read: {error.strerror}") from error
    if data[4:8] != _MAGIC:
        raise ArtifactError(f"{tflite} is no TFLite file")
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", tflite.stem)
    header, source = folder / f"{stem}.h", folder / f"{stem}.cc"
    name = identifier(model, artifact)
    about = [
        f"{model}{f', version {version}' if version else ''}: {artifact}",
        f"Quantization: {quantization}",
        f"Bytes: {len(data)}",
        f"SHA-256: {hashlib.sha256(data).hexdigest()}",
        f"Made by servable {producer} of {tflite.name}",
    ]
    _replace(header, _header(header.name, name, about).encode("ascii"))
    _replace(source, _source(header.name, name, about, len(data)).encode("ascii"), data)
    return header, source


def identifier(model: str, artifact: str) -> str:
    """What the array's names in C begin with.

    What C does not take in a name is an underscore, and never two of them, which C++ keeps for itself;
    models whose names differ in nothing else cannot be linked into one program.

    >>> identifier("resnet-50.v2", "tflite int8")
    'g_resnet_50_v2_tflite_int8'
    """
    return re.sub(r"[^A-Za-z0-9]+", "_", f"g_{model}_{artifact}").strip("_")


def _header(file: str, name: str, about: list[str]) -> str:
    use = [
        "",
        "With TensorFlow Lite Micro:",
        f'  #include "{file}"',
        f"  const tflite::Model* model = tflite::GetModel({name}_data);",
        "  if (model->version() != TFLITE_SCHEMA_VERSION) { return; }",
        "  tflite::MicroInterpreter interpreter(model, resolver, arena, arena_size);",
    ]
    guard = f"SERVABLE_{name}_H_"
    return f"""{_comment([*about, *use])}
#ifndef {guard}
#define {guard}

#ifdef __cplusplus
extern "C" {{
#endif

extern const unsigned char {name}_data[];
extern const unsigned int {name}_size;

#ifdef __cplusplus
}}
#endif

#endif  // {guard}
"""


def _source(header: str, name: str, about: list[str], size: int) -> str:
    return f"""{_comment(about)}
#include "{header}"

#ifndef __cplusplus
#include <stdalign.h>
#endif

const unsigned int {name}_size = {size}u;

alignas({ALIGNMENT}) const unsigned char {name}_data[{size}] = {{
"""


def _comment(lines: list[str]) -> str:
    """Lines of a comment, of characters that cannot end it; nor can a trigraph or a backslash join lines."""
    return "".join(f"// {_UNSAFE.sub('_', line)}".rstrip() + "\n" for line in lines)


def _replace(path: Path, text: bytes, data: bytes = b"") -> None:
    """Write a file, with the bytes as numbers behind the text, and put it in its place when it is whole."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(text)
            if data:
                _write_numbers(file, data)
                file.write(b"};\n")
        temporary.replace(path)
    except OSError as error:
        if is_disk_full(error):  # of a store that is full, its owner speaks
            raise
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_numbers(file: BinaryIO, data: bytes) -> None:
    """Twelve bytes a line; a table of digits makes all of a chunk at once."""
    for start in range(0, len(data), _CHUNK):
        chunk = np.frombuffer(data, np.uint8, min(_CHUNK, len(data) - start), start)
        whole = len(chunk) // LINE_BYTES * LINE_BYTES
        lines = _DIGITS[chunk[:whole]].reshape(-1, LINE_BYTES * _DIGITS.shape[1])
        indented = np.empty((len(lines), len(_INDENT) + lines.shape[1]), np.uint8)
        indented[:, : len(_INDENT)] = np.frombuffer(_INDENT, np.uint8)
        indented[:, len(_INDENT) :] = lines
        indented[:, -1:] = ord("\n")
        file.write(indented.tobytes())
        if whole < len(chunk):
            file.write(_INDENT + _DIGITS[chunk[whole:]].tobytes().rstrip() + b"\n")
