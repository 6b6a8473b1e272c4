"""Evidence: an artifact is run in its own runtime and compared with the source model."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import metrics
from ..errors import ParityError, ServableError
from ..manifest import Evidence
from ..signature import Signature
from ..wire import examples
from .registry import Tolerance
from .source import Source

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[str, Arrays], Arrays]

BATCH = 125
DERIVED_SAMPLES = 64


@dataclass(frozen=True)
class Case:
    """Inputs of one signature and the answers to expect; ``targets`` where the task metric applies."""

    signature: Signature
    data: str
    inputs: Arrays
    expected: Arrays
    targets: NDArray[Any] | None = None

    @property
    def rows(self) -> int:
        """Number of samples."""
        return len(next(iter(self.inputs.values())))


def cases(source: Source, *, derived: bool, reference: Run | None = None) -> list[Case]:
    """What to ask an artifact: all of the source's data, and a part of it through derived signatures.

    With a ``reference`` (the verified SavedModel), signatures that take pictures are asked with
    pictures that have to be resized and converted, and compared with what its graph answers.
    """
    found = [
        Case(
            signature=source.signature,
            data=source.data,
            inputs={source.input.name: source.inputs},
            expected={source.output.name: source.expected},
            targets=source.targets,
        )
    ]
    if not derived:
        return found
    some = np.linspace(0, len(source.inputs) - 1, min(DERIVED_SAMPLES, len(source.inputs))).astype(int)
    for name, how in source.derivations.items():
        signature = source.signatures[name]
        (key,) = signature.inputs
        if how.prologue == "decode_image" and reference:
            inputs = {key: _pictures(source, some)}
            data = f"{source.data}, as PNG and JPEG of many sizes, against the SavedModel"
            found.append(Case(signature, data, inputs, reference(name, inputs)))
            continue
        expected: dict[str, NDArray[Any]] = dict.fromkeys(how.outputs, source.expected[some])
        if how.labels_as:
            labels = np.array([label.encode() for label in source.labels], dtype=object)
            expected[how.labels_as] = np.broadcast_to(labels, (len(some), len(labels)))
        if how.prologue == "decode_image":
            data, encoded = f"{source.data}, as PNG", [_png(source, row) for row in source.inputs[some]]
        else:
            data = f"{source.data}, as tf.Example"
            encoded = [examples.encode({source.input.name: row}) for row in source.inputs[some]]
        found.append(Case(signature, data, {key: _strings(encoded)}, expected))
    return found


def _strings(values: list[bytes]) -> NDArray[Any]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _pictures(source: Source, rows: NDArray[Any]) -> NDArray[Any]:
    """Rows as PNG and JPEG, grey and colour, larger and smaller than the model's input; seeded."""
    rng = np.random.default_rng(0)
    encoded = []
    for i, row in enumerate(source.inputs[rows]):
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


def _png(source: Source, row: NDArray[Any]) -> bytes:
    """An input row back to the lossless picture that it came from."""
    how = source.preprocessing
    assert how is not None
    pixels = np.rint((row.reshape(how.height, how.width, how.channels) - how.offset) / how.scale).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if how.channels == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def verify(label: str, run: Run, case: Case, tolerance: Tolerance, source: Source) -> Evidence:
    """Run all of a case, in batches and its first row alone, and measure the distance.

    Distances beyond the tolerance are in the evidence (``passed`` is False; the criterion names the
    worst sample). Raises `ParityError` if the artifact cannot be run, answers other names, dtypes,
    shapes or strings, or answers NaN.
    """
    answers = _run_all(label, run, case.inputs, case)
    alone = _run_all(label, run, {name: array[:1] for name, array in case.inputs.items()}, case)
    differences = [_difference(label, name, answers[name], expected) for name, expected in case.expected.items()]
    worst = int(np.argmax(np.stack([d.max(axis=1, initial=0.0) for d in differences]).max(axis=0)))
    differences += [_difference(label, name, alone[name], expected[:1]) for name, expected in case.expected.items()]
    flat = np.concatenate([d.ravel() for d in differences])
    name = next(name for name, expected in case.expected.items() if expected.dtype.kind != "O")
    answer, expected = answers[name], case.expected[name]
    agreement = value = source_value = None
    if source.task == "classification":
        agreement = float(np.mean(np.argmax(answer, -1) == np.argmax(expected, -1)))
    if case.targets is not None:
        value = metrics.compute(source.metric, answer, case.targets)
        source_value = metrics.compute(source.metric, expected, case.targets)
    spread = float(expected.max() - expected.min())
    limits = _limits(tolerance, source.task, float(flat.max()), agreement, value, source_value, spread)
    return Evidence(
        data=case.data,
        samples=case.rows,
        max_abs_error=float(flat.max()),
        mean_abs_error=float(flat.mean()),
        criterion="; ".join(text for text, _ in limits) + f"; worst sample {worst}",
        passed=all(holds for _, holds in limits),
        top1_agreement=agreement,
        metric=source.metric if value is not None else None,
        metric_value=value,
        metric_source_value=source_value,
    )


def _run_all(label: str, run: Run, inputs: Arrays, case: Case) -> dict[str, NDArray[Any]]:
    parts: list[Arrays] = []
    for start in range(0, len(next(iter(inputs.values()))), BATCH):
        chunk = {name: array[start : start + BATCH] for name, array in inputs.items()}
        try:
            parts.append(run(case.signature.name, chunk))
        except ServableError as error:
            raise ParityError(f"{label} cannot be run on {case.signature.name}: {error}") from error
    if parts[0].keys() != case.expected.keys():
        raise ParityError(
            f"{label}: signature {case.signature.name} answers {', '.join(sorted(parts[0]))}; "
            f"expected {', '.join(sorted(case.expected))}"
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in case.expected}


def _difference(label: str, name: str, got: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """Absolute differences, one row a sample; strings have to be equal and differ by nothing."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise ParityError(
            f"{label}: output {name!r} is {got.dtype} {got.shape}; expected {expected.dtype} {expected.shape}"
        )
    if got.dtype.kind == "O":
        if not np.array_equal(got, expected):
            raise ParityError(f"{label}: output {name!r} has other strings than the source")
        return np.zeros((len(got), 0))
    if not np.isfinite(got).all():
        bad = int(np.flatnonzero(~np.isfinite(got).reshape(len(got), -1).all(axis=1))[0])
        raise ParityError(f"{label}: output {name!r} holds NaN or infinity, first in sample {bad}")
    difference: NDArray[np.float64] = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    return difference.reshape(len(got), -1)


def _limits(
    tolerance: Tolerance,
    task: str,
    error: float,
    agreement: float | None,
    value: float | None,
    source_value: float | None,
    spread: float,
) -> Sequence[tuple[str, bool]]:
    """Each limit that applies, in words, and whether it holds."""
    found = []
    if tolerance.max_abs_error is not None:
        found.append((f"max abs error {error:.2g} <= {tolerance.max_abs_error:g}", error <= tolerance.max_abs_error))
    if tolerance.max_relative_error is not None and task == "regression":
        limit = tolerance.max_relative_error * spread
        found.append(
            (
                f"max abs error {error:.3g} <= {limit:.3g}, {tolerance.max_relative_error:.0%} of the output range",
                error <= limit,
            )
        )
    if tolerance.min_top1_agreement is not None and agreement is not None:
        found.append(
            (
                f"top-1 agreement {agreement:.2%} >= {tolerance.min_top1_agreement:.2%}",
                agreement >= tolerance.min_top1_agreement,
            )
        )
    if (
        tolerance.max_metric_drop is not None
        and task == "classification"
        and value is not None
        and source_value is not None
    ):
        drop = source_value - value
        found.append((f"metric drop {drop:.4f} <= {tolerance.max_metric_drop:g}", drop <= tolerance.max_metric_drop))
    return found
