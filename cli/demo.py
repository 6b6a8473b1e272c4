"""``servable demo``: everything at once for the course models, with a report to look at."""

from __future__ import annotations

import io
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import numpy as np
from rich.console import Console

from .. import draw
from ..clients import Client, connect, is_ready
from ..clients.bench import BenchResult
from ..errors import DataError, ParityError, ServableError
from ..export import ExportOptions, Unopened, export_model
from ..extras import require
from ..manifest import Manifest
from ..models import CATALOGUE, ModelCard, samples
from ..process import Child
from ..store import Store
from . import tables
from .bench import run_bench
from .console import progress, quiet, stdout
from .course import source
from .predict import Answer, predict_number, predict_picture

MODELS = ("celsius", "mlp", "cnn")
DEGREES = ("-40", "0", "37", "100")
# int8 activations have 256 steps: a regression may be off by 1 % of its output range.
CELSIUS_LIMIT_F = 2.6
SERVER_START_S = 60.0


@dataclass
class Outcome:
    """What the demo found for one model: evidence, predictions by path, and timings."""

    card: ModelCard
    manifest: Manifest
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    bench: list[BenchResult] = field(default_factory=list)

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs, as the tables show them."""
        return [answer.name for answer in next(iter(self.answers.values()))]

    def shown(self, path: str) -> list[str]:
        """What one path answered, as labels or numbers."""
        return [show(self.card, answer) for answer in self.answers[path]]


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Folder for report.html and report.png.",
)
@click.option(
    "--duration",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Seconds to time each artifact.",
)
def command(output: Path, duration: float) -> None:
    """Take celsius, mlp and cnn from Keras to gRPC, REST and the device, and compare all paths.

    Exports each model to a temporary store, serves it, predicts the same pictures and numbers over
    gRPC, over REST and with every exported file, times each file, and writes report.html and
    report.png. Exits with 7 if any path disagrees on a label or an export is too far from its source.
    """
    for module in ("tensorflow", "matplotlib", "httptools"):
        require(module, "the demo", "all")
    try:
        output.mkdir(parents=True, exist_ok=True)  # now, and not after all the work
    except OSError as error:
        raise DataError(f"--output {output} cannot be made: {error.strerror}") from error
    started = time.monotonic()
    out = stdout()
    with tempfile.TemporaryDirectory(prefix="servable-demo-") as folder:
        store = Store(Path(folder) / "store")
        outcomes = [Outcome(CATALOGUE[name], manifest) for name, manifest in _export(store).items()]
        _predict(store, outcomes, Path(folder) / "serve.log")
        for outcome in outcomes:
            version = store.path(outcome.card.name, outcome.manifest.version)
            outcome.bench, _ = run_bench(version, outcome.manifest, duration)
    for outcome in outcomes:
        _print(out, outcome)
    png = draw.bar_charts("servable demo: the same model in every format", [_charts(outcome) for outcome in outcomes])
    (output / "report.png").write_bytes(png)
    (output / "report.html").write_text(_page(outcomes, png), encoding="utf-8")
    disagreements = [line for outcome in outcomes for line in _disagreements(outcome)]
    if disagreements:
        raise ParityError(f"{len(disagreements)} predictions disagree: {'; '.join(disagreements)}")
    out.print(
        f"All paths agree. Wrote {output / 'report.html'} and {output / 'report.png'} "
        f"in {time.monotonic() - started:.0f} s.",
        soft_wrap=True,
    )


def _export(store: Store) -> dict[str, Manifest]:
    manifests = {}
    with quiet() as console:
        for name in MODELS:
            with progress(console, f"export {name}") as step:
                step("load TensorFlow", 0, 1)
                opened = Unopened(name, partial(source, CATALOGUE[name]))
                manifests[name] = export_model(opened, store, ExportOptions(quantizations=("float32", "int8")), step)
    return manifests


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _predict(store: Store, outcomes: Sequence[Outcome], log: Path) -> None:
    """Start ``servable serve`` on the store and ask every path for the same inputs."""
    grpc_port, rest_port = _free_port(), _free_port()
    ports = [f"--port={grpc_port}", f"--rest_api_port={rest_port}"]
    serve = [sys.executable, "-m", "servable", "serve", str(store.root), *ports]
    with quiet() as console, Child(serve, log, "servable serve") as server, progress(console, "predict") as step:
        step("start the server", 0, len(outcomes))
        server.wait_until(lambda: is_ready(f"http://127.0.0.1:{rest_port}/{outcomes[-1].card.name}"), SERVER_START_S)
        for done, outcome in enumerate(outcomes):
            name = outcome.card.name
            step(name, done, len(outcomes))
            version = store.path(name, outcome.manifest.version)
            targets = {"gRPC": f"grpc://127.0.0.1:{grpc_port}/{name}", "REST": f"http://127.0.0.1:{rest_port}/{name}"}
            targets |= {a.label: str(version / a.path) for a in outcome.manifest.artifacts if a.path != "."}
            with ExitStack() as opened:
                for path, target in targets.items():
                    client = opened.enter_context(connect(target))
                    outcome.answers[path] = [ask(client) for ask in _questions(outcome.card)]
        code = server.stop()
        step("server stopped", len(outcomes), len(outcomes))
        if code != 0:
            raise ServableError(f"servable serve ended with exit code {code}; it should end with 0 on SIGTERM")


def _questions(card: ModelCard) -> list[Callable[[Client], Answer]]:
    """The sample pictures of an image model, or a few degrees."""
    how = card.preprocessing
    if how is None:
        (spec,) = card.signature.inputs.values()
        return [partial(predict_number, text=text, spec=spec) for text in DEGREES]
    pictures = samples.sample_pictures().values()
    return [partial(predict_picture, path=path, how=how) for path in pictures]


def show(card: ModelCard, answer: Answer) -> str:
    """One answer as people read it: the label with its probability, or the number."""
    scores = answer.outputs.ravel()
    if card.labels:
        return f"{card.labels[int(np.argmax(scores))]} {scores.max():.0%}"
    return f"{scores[0]:.1f}"


def _disagreements(outcome: Outcome) -> list[str]:
    """Inputs for which a path answers another label, or another number, than gRPC does."""
    found = []
    reference = outcome.answers["gRPC"]
    for path, answers in outcome.answers.items():
        for ours, theirs in zip(answers, reference, strict=True):
            if outcome.card.labels:
                same = np.argmax(ours.outputs) == np.argmax(theirs.outputs)
            else:
                same = bool(np.abs(ours.outputs - theirs.outputs).max() <= CELSIUS_LIMIT_F)
            if not same:
                found.append(
                    f"{outcome.card.name} on {ours.name}: {path} says {show(outcome.card, ours)}, "
                    f"gRPC {show(outcome.card, theirs)}"
                )
    return found


def _prediction_rows(outcome: Outcome) -> list[list[str]]:
    columns = [outcome.shown(path) for path in outcome.answers]
    names = [Path(name).stem if outcome.card.labels else f"{name} °C" for name in outcome.inputs]
    return [[name, *cells] for name, cells in zip(names, zip(*columns, strict=True), strict=True)]


def _print(out: Console, outcome: Outcome) -> None:
    from rich.table import Table

    table = Table("input", *outcome.answers, title=f"{outcome.card.name}: the same inputs through every path")
    for row in _prediction_rows(outcome):
        table.add_row(*row)
    out.print(table)
    out.print(tables.bench_table(f"{outcome.card.name}: one thread, batch 1", outcome.bench))


def _charts(outcome: Outcome) -> list[draw.Bars]:
    name, metric = outcome.card.name, outcome.card.metric
    return [
        draw.Bars(f"{name}: p50 latency, ms", [(r.artifact, r.p50_ms, f"{r.p50_ms:.3f}") for r in outcome.bench]),
        draw.Bars(f"{name}: size", [(r.artifact, r.bytes, draw.size_text(r.bytes)) for r in outcome.bench]),
        draw.Bars(
            f"{name}: {metric}" + ("" if outcome.card.labels else ", °F"),
            [(r.artifact, r.metric_value or 0.0, draw.metric_text(r.metric, r.metric_value)) for r in outcome.bench],
        ),
    ]


def _page(outcomes: Sequence[Outcome], png: bytes) -> str:
    found = []
    for outcome in outcomes:
        found.append(
            draw.Table(
                f"{outcome.card.name}: latency, size and {outcome.card.metric}",
                tables.bench_header(outcome.bench),
                [tables.bench_row(result) for result in outcome.bench],
                "One thread, one sample a run. The metric is measured on the samples that ship with servable.",
            )
        )
        found.append(
            draw.Table(
                f"{outcome.card.name}: predictions",
                ["input", *outcome.answers],
                _prediction_rows(outcome),
                "gRPC and REST ask the embedded server, the others run the exported file on this machine.",
            )
        )
    made = outcomes[0].manifest
    producers = ", ".join(f"{name} {version}" for name, version in made.producers.items())
    lead = f"Made {made.created} with {producers}."
    images = [("Side by side", png), ("The sample pictures", _contact_sheet())]
    return draw.page("servable demo", lead, found, images)


def _contact_sheet() -> bytes:
    """The ten sample pictures in a row, four times enlarged."""
    from PIL import Image

    pictures = [
        Image.open(path).convert("L").resize((84, 84), Image.Resampling.NEAREST)
        for path in samples.sample_pictures().values()
    ]
    sheet = Image.new("L", (88 * len(pictures) - 4, 84), 255)
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (88 * i, 0))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()
