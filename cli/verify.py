"""``servable verify``: the hashes and the evidence of a published version once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from ..draw import metric_text
from ..errors import ArtifactError, InvalidArgumentError, ParityError
from ..evidence import Evidence, evidence_to_dict
from ..export import ExportOptions, Source
from ..export.pipeline import import_ahead
from ..export.recheck import Rechecked, recheck, version_source
from ..export.registry import REGISTRY
from ..export.tolerance import parse_overrides
from ..extras import load, require
from ..manifest import FILE_NAME, Artifact, Manifest
from ..models import CATALOGUE
from .bench import newest
from .console import progress, quiet, stdout


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--calibration", type=click.Path(path_type=Path), help="A folder of pictures, or a .npy or .npz file.")
@click.option("--input-shape", multiple=True, metavar="INPUT=224x224x3", help="Size of an input that leaves it open.")
@click.option(
    "--tolerance", multiple=True, metavar="[ARTIFACT:]LIMIT=NUMBER", help="Another limit, as of 'servable export'."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    target: Path, calibration: Path | None, input_shape: tuple[str, ...], tolerance: tuple[str, ...], as_json: bool
) -> None:
    """Repeat what an export has measured of TARGET: a version folder, or STORE/MODEL for the newest version.

    Files are compared with the hashes of the manifest. Their answers are compared with the source model
    where it is one of the catalogue, and else with the version's own SavedModel, on --calibration data, or
    on random numbers where it was measured on such. Exits with 4 for a file that is not the one that was
    measured, and with 7 for one that is too far off.
    """
    folder = target if (target / FILE_NAME).is_file() else newest(target)
    manifest = Manifest.read(folder)
    require("tensorflow", "verifying a version", "export")
    options = ExportOptions(tolerances=parse_overrides(tolerance, list(REGISTRY)))
    import_ahead()
    data: list[str] = []

    def opened() -> Source:
        load("tensorflow", "verifying a version")
        source = None if calibration else _original(manifest)
        if input_shape and (source or calibration):
            raise InvalidArgumentError("--input-shape sizes random numbers, and there is data to compare on")
        kind = "its source model" if source else "its SavedModel"
        if not source and not calibration and not manifest.source.get("random_data"):
            measured = {evidence.data for evidence in map(_evidence, manifest.artifacts) if evidence}
            raise InvalidArgumentError(
                f"{folder} was measured on {', '.join(sorted(measured)) or 'nothing'}, which it does not hold; give "
                "the like with --calibration ('servable inspect' compares the hashes alone)"
            )
        source = source or version_source(folder, manifest, calibration, input_shape)
        data.append(f"compared with {kind} on {source.data.words}")
        return source

    with quiet() as console, progress(console, f"verify {manifest.model}") as step:
        found = recheck(folder, manifest, opened, options, step)
    if as_json:
        print(json.dumps({"path": str(folder), "artifacts": [_to_dict(each) for each in found]}, indent=2))
    else:
        _print(folder, found, data)
    _raise(folder, found)


def _original(manifest: Manifest) -> Source | None:
    """The model of the catalogue that was exported, if it is still the same."""
    card = CATALOGUE.get(manifest.model)
    if card is None or manifest.source.get("kind") != "keras":
        return None
    from .course import source

    found = source(card)
    return found if found.model.describe()["sha256"] == manifest.source.get("sha256") else None


def _evidence(artifact: Artifact | None) -> Evidence | None:
    return artifact.base_evidence if artifact else None


def _print(folder: Path, found: list[Rechecked], data: list[str]) -> None:
    table = Table("artifact", "max abs error", "now", "top-1 agreement", "now", "metric", "now", "verdict")
    for column in table.columns[1:-1]:
        column.justify = "right"
    for each in found:
        cells = [_cells(_evidence(artifact)) for artifact in (each.recorded, each.now)]
        pairs = [cell for pair in zip(*cells, strict=True) for cell in pair]
        table.add_row(each.recorded.label, *pairs, "wrong" if each.wrong else "ok", style="red" if each.wrong else "")
    out = stdout()
    out.print(table)
    for line in data:
        out.print(line, soft_wrap=True)
    for each in found:
        if each.wrong:
            out.print(f"{each.recorded.label}: {each.wrong}", soft_wrap=True)
    if not any(each.wrong for each in found):
        out.print(f"verified {folder}", soft_wrap=True)


def _cells(evidence: Evidence | None) -> tuple[str, str, str]:
    if evidence is None:
        return "–", "–", "–"
    agreement = "–" if evidence.top1_agreement is None else f"{evidence.top1_agreement:.2%}"
    return f"{evidence.max_abs_error:.2g}", agreement, metric_text(evidence.metric, evidence.metric_value)


def _to_dict(each: Rechecked) -> dict[str, Any]:
    sides = {"recorded": _evidence(each.recorded), "now": _evidence(each.now)}
    shown = {name: evidence and evidence_to_dict(evidence) for name, evidence in sides.items()}
    return {"artifact": each.recorded.label, "ok": not each.wrong, "wrong": each.wrong, **shown}


def _raise(folder: Path, found: list[Rechecked]) -> None:
    files = [each.recorded.label for each in found if each.damaged]
    if files:
        raise ArtifactError(f"{folder} is not what was published: {', '.join(files)}")
    far = [each.recorded.label for each in found if each.wrong]
    if far:
        raise ParityError(f"{folder} is further off than allowed, or cannot be run: {', '.join(far)}")
