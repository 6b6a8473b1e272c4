"""``servable predict``: pictures or numbers through any target, without TensorFlow."""

from __future__ import annotations

import time
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..clients import Client, connect
from ..errors import InputError
from ..manifest import Preprocessing
from ..signature import DEFAULT_SIGNATURE, TensorSpec
from .console import quiet, stderr, stdout

if TYPE_CHECKING:
    from numpy.typing import NDArray

BAR_WIDTH = 24

_Given = TypeVar("_Given", str, tuple[str, ...])


@dataclass(frozen=True)
class Answer:
    """The outputs of one input, and how long the call took."""

    name: str
    outputs: NDArray[Any]
    latency_ms: float
    note: str = ""


def _no_options(ctx: click.Context, _: click.Parameter, given: _Given) -> _Given:
    """Refuse an argument that was meant as an option; negative numbers are inputs."""
    for text in (given,) if isinstance(given, str) else given:
        if text.startswith("-") and text != "-" and not _is_number(text):
            known = [name for parameter in ctx.command.params for name in parameter.opts if name.startswith("--")]
            raise click.NoSuchOption(text, possibilities=get_close_matches(text, known), ctx=ctx)
    return given


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@click.command(context_settings={"ignore_unknown_options": True})  # else -40 would be an option
@click.argument("target", callback=_no_options)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, callback=_no_options)
@click.option("--top-k", type=click.IntRange(1), default=3, show_default=True, help="Classes to show.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds that a request may take.",
)
def command(target: str, inputs: tuple[str, ...], top_k: int, timeout: float) -> None:
    """Predict each INPUT with TARGET and print the result and the latency.

    TARGET is grpc://host:port/model, http://host:port/model, a .tflite or .onnx file, a version
    folder, or store/model. INPUT is a picture (PNG or JPEG) for models of images, a number
    for models of one number.
    """
    with quiet():  # LiteRT announces its delegate on stderr
        client = connect(target, timeout=timeout)
    with client:
        spec = _single_input(client)
        how = client.preprocessing or _image_shape(spec)

        def ask(text: str) -> Answer:
            if how:
                return predict_picture(client, Path(text), how)
            return predict_number(client, text, spec)

        out = stdout()
        for text in inputs:
            answer = ask(text)
            if answer.note:
                stderr().print(f"note: {answer.note}", soft_wrap=True)
            for line in describe(answer, client.labels if how else (), top_k):
                out.print(line, soft_wrap=True)


def _single_input(client: Client) -> TensorSpec:
    specs = list(client.signature().inputs.values())
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise InputError(f"{client.target} takes the inputs {names}; this command predicts models of one input")
    return specs[0]


def _image_shape(spec: TensorSpec) -> Preprocessing | None:
    """How to prepare pictures where only the signature is known: (batch, h, w, 1 or 3) in [0, 1]."""
    sizes = (spec.shape or ())[1:]
    if len(sizes) == 2 and all(sizes):
        sizes = (*sizes, 1)
    if len(sizes) != 3 or sizes[2] not in (1, 3) or not sizes[0] or not sizes[1]:
        return None
    return Preprocessing(height=sizes[0], width=sizes[1], channels=sizes[2])


def predict_picture(client: Client, path: Path, how: Preprocessing) -> Answer:
    """Predict one picture file.

    A server that has ``serve_bytes`` gets the file as it is and prepares it itself; it is decoded here
    all the same, so that a bad file is named before anything travels.
    """
    from ..preprocess import read_image

    picture = read_image(path, how)
    note = ""
    if picture.resized:
        width, height = picture.original_size
        note = f"{path} is {width}×{height}; resized to {how.width}×{how.height}"
    signatures = client.metadata().signatures
    if client.preprocessing is None and "serve_bytes" in signatures:
        inputs: Any = [picture.encoded]
        signature = "serve_bytes"
    else:
        spec = _single_input(client)
        inputs = picture.tensor.reshape(1, *(size or 1 for size in (spec.shape or ())[1:]))
        signature = DEFAULT_SIGNATURE
    return _timed(client, str(path), inputs, signature, note)


def predict_number(client: Client, text: str, spec: TensorSpec) -> Answer:
    """Predict one number given as text."""
    import numpy as np

    if spec.shape is None or any(size not in (None, 1) for size in spec.shape):
        raise InputError(f"{client.target} takes {spec}; this command sends pictures and single numbers")
    try:
        value = float(text)
    except ValueError:
        hint = " (a picture file?)" if Path(text).suffix else ""
        raise InputError(f"{text!r} is not a number{hint}; {client.target} takes {spec}") from None
    return _timed(client, text, np.full([1] * len(spec.shape), value), None)


def _timed(client: Client, name: str, inputs: Any, signature: str | None, note: str = "") -> Answer:
    client.signature(signature)  # asks for the metadata now, so that it is not timed
    started = time.perf_counter()
    outputs = client.predict(inputs, signature=signature)
    elapsed = (time.perf_counter() - started) * 1e3
    if isinstance(outputs, dict):
        raise InputError(
            f"{client.target} has the outputs {', '.join(outputs)}; this command shows models of one output"
        )
    return Answer(name, outputs[0], elapsed, note)


def describe(answer: Answer, labels: tuple[str, ...], top_k: int) -> list[str]:
    """Lines for people: the best label with bars for a classification, the numbers otherwise."""
    scores = answer.outputs.ravel()
    head = f"{answer.name}  →  "
    tail = f"  ({answer.latency_ms:.1f} ms)"
    if len(scores) < 2:
        return [f"{head}{', '.join(f'{value:.6g}' for value in scores.tolist())}{tail}"]
    names = labels if len(labels) == len(scores) else tuple(f"class {i}" for i in range(len(scores)))
    best = scores.argsort()[::-1][:top_k]
    width = max(len(names[i]) for i in best)
    lines = [f"{head}{names[best[0]]}{tail}"]
    probabilities = bool(((scores >= 0) & (scores <= 1)).all())  # not logits, not NaN
    for i in best:
        value = (
            f"{scores[i]:7.2%}  {'█' * round(float(scores[i]) * BAR_WIDTH)}" if probabilities else f"{scores[i]:.6g}"
        )
        lines.append(f"    {names[i]:<{width}}  {value}")
    return lines
