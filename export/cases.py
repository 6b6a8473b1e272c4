"""What an artifact is asked for its evidence: the source's data, and a part of it through other signatures."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ExportError
from ..signature import Signature
from ..wire import examples
from .source import Source
from .source_model import Arrays

DERIVED_SAMPLES = 64
# What the source model's own answers may take, after the samples that are needed at least.
REFERENCE_BUDGET_S = 60.0
_CHUNK_ROWS = 125
_CHUNK_VALUES = 4_000_000


@dataclass(frozen=True)
class Case:
    """Inputs of one signature and the answers to expect; ``targets`` where the task metric applies.

    ``least`` rows are run however long they take.
    """

    signature: Signature
    data: str
    inputs: Arrays
    expected: Arrays
    targets: NDArray[Any] | Arrays | None = None
    least: int = 1

    @property
    def rows(self) -> int:
        """Number of samples that the source model has answered."""
        return len(next(iter(self.expected.values())))


def least_rows(parameters: int) -> int:
    """How many samples evidence needs at least, by the size of the model."""
    return 512 if parameters < 1_000_000 else 64 if parameters < 10_000_000 else 8


def chunk_rows(inputs: Arrays) -> int:
    """How many rows to run at a time, so that their inputs take no more than some 16 MB."""
    values = sum(int(np.prod(array.shape[1:])) for array in inputs.values())
    return max(1, min(_CHUNK_ROWS, _CHUNK_VALUES // max(values, 1)))


def reference_answers(source: Source) -> dict[str, NDArray[Any]]:
    """What the source model answers for its data, or for as much of it as there is time for.

    Raises `ExportError` where it answers NaN or infinity itself: then nothing can be compared.
    """
    inputs = source.data.inputs
    count = len(next(iter(inputs.values())))
    least, step = least_rows(source.model.parameters), chunk_rows(inputs)
    parts: list[Arrays] = []
    rows, end = 0, time.monotonic() + REFERENCE_BUDGET_S
    while rows < count and (rows < least or time.monotonic() < end):
        parts.append(source.model.predict({name: array[rows : rows + step] for name, array in inputs.items()}))
        rows += step
    answers = {name: np.concatenate([part[name] for part in parts]) for name in source.signature.outputs}
    for name, array in answers.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ExportError(
                f"the source model itself answers NaN or infinity in {name!r} for {source.data.words}; give inputs "
                "that it is made for with --calibration"
            )
    return answers


def base_case(source: Source) -> Case:
    """The signature that every artifact answers, on all of the data."""
    expected = reference_answers(source)
    rows = len(next(iter(expected.values())))
    return Case(
        signature=source.signature,
        data=source.data.words,
        inputs={name: array[:rows] for name, array in source.data.inputs.items()},
        expected=expected,
        targets=source.data.targets,
        least=least_rows(source.model.parameters),
    )


def derived_cases(source: Source, base: Case, reference: Callable[[str, Arrays], Arrays] | None = None) -> list[Case]:
    """The derived signatures on a part of the data.

    With a ``reference`` (the verified SavedModel), signatures that take pictures are asked with
    pictures that have to be resized and converted, and compared with what its graph answers.
    """
    found = []
    count = min(DERIVED_SAMPLES, base.rows)
    some = np.linspace(0, base.rows - 1, count).astype(int)
    for name, how in source.derivations.items():
        signature = source.signatures[name]
        (key,) = signature.inputs
        if how.prologue == "decode_image" and reference:
            inputs = {key: _pictures(source, some)}
            data = f"{source.data.words}, as PNG and JPEG of many sizes, against the SavedModel"
            found.append(Case(signature, data, inputs, reference(name, inputs), least=count))
            continue
        expected = {alias: base.expected[output][some] for alias, output in how.outputs.items()}
        if how.labels_as:
            labels = np.array([label.encode() for label in source.labels], dtype=object)
            expected[how.labels_as] = np.broadcast_to(labels, (count, len(labels)))
        if how.prologue == "decode_image":
            (rows,) = source.data.inputs.values()
            data, encoded = f"{source.data.words}, as PNG", [_png(source, row) for row in rows[some]]
            if source.data.random:
                # Random pixels are rounded on their way into a picture.
                expected = source.model.predict(_as_pixels(source, rows[some]))
        else:
            data = f"{source.data.words}, as tf.Example"
            rows_of = [{name: array[i] for name, array in source.data.inputs.items()} for i in some]
            encoded = [examples.encode(row) for row in rows_of]
        found.append(Case(signature, data, {key: _strings(encoded)}, expected, least=count))
    return found


def _strings(values: list[bytes]) -> NDArray[Any]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _pictures(source: Source, rows: NDArray[Any]) -> NDArray[Any]:
    """Rows as PNG and JPEG, grey and colour, larger and smaller than the model's input; seeded."""
    rng = np.random.default_rng(0)
    (inputs,) = source.data.inputs.values()
    encoded = []
    for i, row in enumerate(inputs[rows]):
        image: Image.Image = Image.open(io.BytesIO(_png(source, row)))
        width, height = (int(side) for side in rng.integers(9, 97, 2))
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        if i % 2:
            red, green, blue = (int(c) for c in rng.integers(0, 256, 3))
            image = Image.blend(image.convert("RGB"), Image.new("RGB", image.size, (red, green, blue)), 0.2)
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG" if i % 4 < 2 else "PNG")
        encoded.append(buffer.getvalue())
    return _strings(encoded)


def pixels(source: Source, rows: NDArray[Any]) -> NDArray[np.uint8]:
    """Input rows back to the pixels that they came from."""
    how = source.preprocessing
    assert how is not None
    pictures = rows.reshape(-1, how.height, how.width, how.channels)
    return np.clip(np.rint((pictures - how.offset) / how.scale), 0, 255).astype(np.uint8)


def _as_pixels(source: Source, rows: NDArray[Any]) -> Arrays:
    """The same rows as they are once they have been pixels."""
    how = source.preprocessing
    assert how is not None
    (name,) = source.signature.inputs
    values = pixels(source, rows).astype(np.float32) * np.float32(how.scale) + np.float32(how.offset)
    return {name: values.reshape(rows.shape)}


def _png(source: Source, row: NDArray[Any]) -> bytes:
    """An input row as a lossless picture."""
    picture = pixels(source, row)[0]
    buffer = io.BytesIO()
    Image.fromarray(picture[:, :, 0] if picture.shape[-1] == 1 else picture).save(buffer, format="PNG")
    return buffer.getvalue()
