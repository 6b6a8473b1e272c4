"""``servable export``: a model to a version folder of the store."""

from __future__ import annotations

import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..errors import ExportError, InvalidArgumentError, NotFoundError
from ..export import ExportOptions, export_model
from ..export.assemble import Description, open_source
from ..export.origin import Opening, check_origin, default_name, is_origin
from ..export.pipeline import import_ahead
from ..export.preparation import Unopened
from ..export.registry import FORMATS, OPSET, OPSETS, QUANTIZATIONS, choose
from ..export.report import HTML
from ..export.source import TASKS
from ..export.tolerance import parse_overrides
from ..extras import require
from ..manifest import Manifest
from ..models import card as find_card
from ..store import Store, check_name
from .console import progress, quiet, stdout
from .course import source
from .tables import evidence_table

_FILE = click.Path(path_type=Path)
# Options that describe a model of one's own; the catalogue knows all this of its models.
_OF_ONE = (
    "labels",
    "calibration",
    "pixels",
    "input_shape",
    "task",
    "signature",
    "inputs",
    "outputs",
    "custom_objects",
    "trust_source",
)


def _names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",")) if value is not None else ()


def _range(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = (float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not two numbers, such as 0,1") from None
    if not low < high:
        raise click.BadParameter(f"{value!r}: the first number has to be the smaller one")
    return low, high


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--store", type=_FILE, default=Path("store"), show_default=True, help="The model store.")
@click.option("--name", help="What the model is called in the store.  [default: the source's name]")
@click.option("--version", type=click.IntRange(1), help="Version number.  [default: the next one]")
@click.option(
    "--formats", callback=_names, help=f"Comma-separated: {', '.join(FORMATS)}, or single artifacts.  [default: all]"
)
@click.option("--quantize", callback=_names, help=f"Comma-separated: {', '.join(QUANTIZATIONS)}.  [default: all]")
@click.option(
    "--tolerance",
    multiple=True,
    metavar="[ARTIFACT:]LIMIT=NUMBER",
    help="Another limit, such as tflite_int8:max_metric_drop=0.02; may be repeated.",
)
@click.option("--opset", type=click.IntRange(*OPSETS), help=f"Opset of the ONNX files.  [default: {OPSET}]")
@click.option("--int8-io", is_flag=True, help="int8 inputs and outputs in model_int8.tflite.  [default: float32]")
@click.option("--c-array", is_flag=True, help="Also write each TFLite file as C source, for microcontrollers.")
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    default=3600.0,
    show_default=True,
    help="Seconds that one conversion, or one verification, may take.",
)
@click.option(
    "--memory-limit",
    type=click.FloatRange(0, min_open=True),
    help="GB of memory that one may hold.  [default: three quarters of the machine's]",
)
@click.option("--allow-missing", is_flag=True, help="Exit with 0 although an artifact, not named in --formats, failed.")
@click.option("--weights", type=_FILE, help="Weights of a catalogue model, as 'servable train' writes them.")
@click.option("--labels", type=_FILE, help="A file with the label of one class a line.")
@click.option("--calibration", type=_FILE, help="A folder of pictures, or a .npy or .npz file of inputs.")
@click.option("--pixels", callback=_range, metavar="LOW,HIGH", help="What black and white are to the model: 0,1.")
@click.option("--input-shape", multiple=True, metavar="INPUT=224x224x3", help="Size of an input that leaves it open.")
@click.option("--task", type=click.Choice(TASKS), help="What the model is for.  [default: by its outputs]")
@click.option("--signature", help="The signature of a SavedModel to export.  [default: serving_default]")
@click.option("--inputs", callback=_names, help="Names for the inputs of a Keras model, comma-separated.")
@click.option("--outputs", callback=_names, help="Names for the outputs of a Keras model, comma-separated.")
@click.option("--custom-objects", metavar="MODULE", help="A module with the custom layers of a Keras file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--trust-source", is_flag=True, help="Load a Keras file that holds code, such as a Lambda layer.")
def command(sources: tuple[str, ...], store: Path, allow_missing: bool, as_json: bool, **given: Any) -> None:
    """Export models, each as the next version STORE/NAME/VERSION.

    A SOURCE is a model of the catalogue, a .keras or .h5 file, a SavedModel folder, a TensorFlow Hub
    handle (URL, folder or .tar.gz), or package.module:callable that returns a Keras model.

    Every artifact is run in its own runtime and compared with the source; the version appears in one
    step, and only if all of them agree. Exits with 7 if one does not, or could not be made.
    """
    if len(sources) > 1:
        single = [name for name in ("name", "version", "weights", *_OF_ONE) if given[name]]
        if single:
            raise InvalidArgumentError(f"{_flag(single[0])} goes with one model; export the others by themselves")
    target = Store(store)
    target.check()
    exporters = choose(given["formats"], given["quantize"])
    if given["int8_io"] and not any(exporter.key == "tflite_int8" for exporter in exporters):
        raise InvalidArgumentError("--int8-io is for tflite_int8, which --formats and --quantize leave out")
    if given["opset"] and not any(exporter.format == "onnx" for exporter in exporters):
        raise InvalidArgumentError("--opset is for ONNX files, which --formats and --quantize leave out")
    if given["c_array"] and not any(exporter.format == "tflite" for exporter in exporters):
        raise InvalidArgumentError("--c-array is for TFLite files, which --formats and --quantize leave out")
    options = ExportOptions(
        formats=given["formats"],
        quantizations=given["quantize"],
        version=given["version"],
        tolerances=parse_overrides(given["tolerance"], [exporter.key for exporter in exporters]),
        opset=given["opset"] or OPSET,
        int8_io=given["int8_io"],
        c_array=given["c_array"],
        report=True,
        time_limit_s=given["time_limit"],
        memory_limit_bytes=int(given["memory_limit"] * 1e9) if given["memory_limit"] else None,
    )
    for exporter in exporters:
        for module in exporter.requires:
            require(module, f"exporting to {exporter.format}", "export")
    require("matplotlib", "the report of an export", "export")
    for text in sources:
        _check(text, given)  # before TensorFlow is loaded, and before anything is published
    import_ahead()
    exported: list[Manifest] = []
    try:
        for text in sources:
            with quiet() as console, progress(console, f"export {text}") as step:
                step("load TensorFlow", 0, 1)
                exported.append(export_model(_source(text, given), target, options, step))
            if not as_json:
                _print(exported[-1], target)
    finally:  # what is published is told, also where the next one fails
        if as_json and exported:
            print(json.dumps([_to_dict(manifest, target) for manifest in exported], indent=2, ensure_ascii=False))
    incomplete = [f"{each.model} {absent.label}" for each in exported for absent in each.absent if absent.failed]
    if incomplete and not allow_missing:
        raise ExportError(
            f"published without {', '.join(incomplete)}, which could not be made; --allow-missing accepts that"
        )


def _print(manifest: Manifest, store: Store) -> None:
    out = stdout()
    out.print(evidence_table(manifest))
    out.print(f"compared on {_data(manifest)}", soft_wrap=True)
    for artifact in manifest.artifacts:
        if artifact.sizes:
            sizes = ", ".join(f"{name} {'x'.join(map(str, size))}" for name, size in artifact.sizes.items())
            out.print(f"{artifact.label} takes only {sizes}", soft_wrap=True)
    for absent in manifest.absent:
        out.print(f"no {absent.label}: {absent.reason}", soft_wrap=True)
    out.print(f"published {store.path(manifest.model, manifest.version)}", soft_wrap=True)
    report = store.reports(manifest.model, manifest.version) / HTML
    if report.is_file():
        out.print(f"report    {report}", soft_wrap=True)


def _to_dict(manifest: Manifest, store: Store) -> dict[str, Any]:
    """What a machine wants to know of an export: where it is, and all that the manifest says."""
    return {
        "path": str(store.path(manifest.model, manifest.version)),
        "report": str(store.reports(manifest.model, manifest.version)),
        "manifest": json.loads(manifest.to_json()),
    }


def _flag(name: str) -> str:
    """The option of a parameter's name."""
    return "--" + name.replace("_", "-")


def _data(manifest: Manifest) -> str:
    """What the evidence is about, and what it says nothing about."""
    evidence = manifest.artifacts[0].base_evidence
    assert evidence is not None  # the export has measured it
    data = evidence.data
    if not manifest.source.get("random_data"):
        return data
    return f"{data}: they say nothing of accuracy, and int8 ranges come from them too; better: --calibration"


def _check(text: str, given: dict[str, Any]) -> None:
    """Raise for a source that does not exist, a name that cannot be one, and options that do not go together."""
    if given["name"]:
        check_name(given["name"])
    if is_origin(text):
        if given["weights"]:
            raise InvalidArgumentError(
                "--weights is for models of the catalogue; give a file that holds the whole model"
            )
        if given["input_shape"] and given["calibration"]:
            raise InvalidArgumentError("--input-shape sizes random numbers; --calibration brings its own sizes along")
        check_origin(text, _opening(given))
        return
    try:
        find_card(text)
    except NotFoundError as error:
        if Path(text).exists():
            raise NotFoundError(f"{error}; for what lies in this folder, write ./{text}") from None
        raise
    described = next((name for name in _OF_ONE if given[name]), None)
    if described:
        raise InvalidArgumentError(
            f"{_flag(described)} is not for models of the catalogue; {text!r} brings all that along"
        )


def _source(text: str, given: dict[str, Any]) -> Unopened:
    """A model of the catalogue, or one of the user's own."""
    if not is_origin(text):
        card = find_card(text)
        return Unopened(given["name"] or card.name, partial(source, card, given["weights"], given["name"]))
    said = Description(
        name=given["name"],
        labels=given["labels"],
        calibration=given["calibration"],
        pixels=given["pixels"],
        shapes=given["input_shape"],
        task=given["task"],
        opening=_opening(given),
    )
    # Where tensorflow_hub keeps what it downloads, if nobody says otherwise; the temporary files of a step go with it.
    os.environ.setdefault("TFHUB_CACHE_DIR", str(Path(tempfile.gettempdir(), "tfhub_modules")))
    return Unopened(given["name"] or default_name(text), partial(open_source, text, said))


def _opening(given: dict[str, Any]) -> Opening:
    return Opening(
        signature=given["signature"],
        inputs=given["inputs"],
        outputs=given["outputs"],
        trust=given["trust_source"],
        custom_objects=given["custom_objects"],
    )
