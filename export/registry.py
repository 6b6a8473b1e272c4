"""One declaration per exported artifact; CLI help, pipeline, manifest and tests derive from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidArgumentError, nearest
from ..manifest import Preprocessing
from ..signature import Signature
from .source_model import Arrays

OPSET = 17
# Quantization by channel begins with the first of these, and tf2onnx ends with the last.
OPSETS = (13, 18)

# The orders in which artifacts are made and listed; all are converted from the SavedModel.
FORMATS = ("saved_model", "tflite", "onnx")
QUANTIZATIONS = ("float32", "float16", "dynamic", "int8", "int16x8")


@dataclass(frozen=True)
class Job:
    """What a converter is given: paths and arrays, and nothing of TensorFlow.

    ``saved_model`` is the folder to convert from, ``signature`` the one to convert. ``unrolled`` is a
    SavedModel of the same signature without loops, where the model has a loop that can be taken out;
    ``fixed`` one with a batch of 1, where it has one that cannot, and ``sized`` one without the loop,
    for sequences as long as the calibration rows. ``calibration`` are rows of inputs,
    ``operations`` those of the SavedModel, ``source`` the digest of the model's weights, and ``producer``
    the version of servable.
    """

    model: str
    signature: Signature
    saved_model: Path
    calibration: Arrays
    unrolled: Path | None = None
    fixed: Path | None = None
    sized: Path | None = None
    operations: frozenset[str] = frozenset()
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    task: str = "other"
    source: str = ""
    producer: str = ""
    opset: int = OPSET
    int8_io: bool = False


Convert = Callable[[Job, Path], None]


def _always(job: Job) -> str | None:
    return None


@dataclass(frozen=True)
class Exporter:
    """How one artifact is made.

    ``convert(job, path)`` writes the file; it is None for the SavedModel (path ``.``), which the pipeline
    makes before all others, from the model itself. ``unsupported(job)`` says why the format cannot hold this
    model, None where it can. ``requires`` are the modules that it needs, and ``derived`` says whether
    the artifact answers the derived signatures too. ``after`` is the key of another one that `convert` reads
    the file of, where there is one.

    Each conversion is a process of its own, so ``convert`` can be pickled.
    """

    format: str
    quantization: str
    path: str
    requires: tuple[str, ...]
    convert: Convert | None
    unsupported: Callable[[Job], str | None] = _always
    derived: bool = False
    after: str = ""

    @property
    def key(self) -> str:
        """``saved_model``, ``tflite``, ``tflite_int8``, …: the name on the command line."""
        return self.format if self.quantization == "float32" else f"{self.format}_{self.quantization}"


REGISTRY: dict[str, Exporter] = {}


def register(exporter: Exporter) -> Exporter:
    """Add an exporter; two with one key are a programming error and raise ValueError."""
    if exporter.key in REGISTRY:
        raise ValueError(f"an exporter for {exporter.key} is registered already")
    REGISTRY[exporter.key] = exporter
    return exporter


def ordered() -> list[Exporter]:
    """All exporters, in the order in which artifacts are made and listed."""
    return sorted(REGISTRY.values(), key=lambda e: (FORMATS.index(e.format), QUANTIZATIONS.index(e.quantization)))


def choose(formats: Sequence[str] = (), quantizations: Sequence[str] = ()) -> list[Exporter]:
    """The exporters to run, the SavedModel always first.

    ``formats`` are formats (``tflite``, with every quantization) or single artifacts (``tflite_int8``);
    ``quantizations`` keeps those of the formats. Without either, all. Raises `InvalidArgumentError`
    for unknown names, and where nothing but the SavedModel is left of what was asked for.
    """
    every = ordered()
    known = [*FORMATS, *(exporter.key for exporter in every if exporter.key not in FORMATS)]
    for name in formats:
        if name not in known:
            raise InvalidArgumentError(f"no format {name!r}; {nearest(name, known)}")
    for name in quantizations:
        if name not in QUANTIZATIONS:
            raise InvalidArgumentError(f"no quantization {name!r}; {nearest(name, QUANTIZATIONS)}")
    singles = {name for name in formats if name not in FORMATS}
    chosen = [
        exporter
        for exporter in every
        if exporter.key in singles
        or (
            (not formats or exporter.format in formats)
            and (not quantizations or exporter.quantization in quantizations)
        )
    ]
    if not chosen:
        raise InvalidArgumentError(
            f"no artifact is both one of {', '.join(formats)} and {' or '.join(quantizations)}; "
            f"there are {', '.join(exporter.key for exporter in every)}"
        )
    return [REGISTRY["saved_model"], *(exporter for exporter in chosen if exporter.key != "saved_model")]
