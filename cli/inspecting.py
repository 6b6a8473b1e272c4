"""``servable inspect``: what is in a model file or version, and whether it is sound."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from ..draw import size_text
from ..errors import ArtifactError
from ..inspection import Entry, Finding, Inspection, Model, inspect
from ..inspection.report import printable
from ..manifest import Manifest
from ..signature import Signature
from ..store import Store
from .console import stdout

_CLEAN = "nothing in it reaches files, other machines, or code outside of the engine"


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--ops", type=click.IntRange(0), default=10, show_default=True, help="How many operations to list of each file."
)
@click.option("--strict", is_flag=True, help="Fail if the audit finds anything.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with everything.")
def command(path: Path, ops: int, strict: bool, as_json: bool) -> None:
    """Show what is in PATH: a .tflite or .onnx file, a SavedModel, a version folder, or STORE/MODEL.

    Nothing is loaded or run. A version's files are compared with its manifest; if they are not those that
    were measured, the command ends with 4. The audit lists operations that touch files, run code or come
    from other libraries: a model is a program.
    """
    found = inspect(_newest(path))
    if as_json:
        click.echo(json.dumps(_as_json(found), indent=2))
    else:
        _print(found, ops, stdout())
    if not found.sound:
        wrong = ", ".join(f"{_name(entry)} is {_state(entry)}" for entry in found.entries if not entry.sound)
        raise ArtifactError(f"{found.path} is not sound: {wrong}")
    if strict and found.findings:
        count = sum(finding.count for finding in found.findings)
        raise ArtifactError(f"{found.path}: the audit has findings ({count}); do not load it unless you know its maker")


def _newest(path: Path) -> Path:
    """The newest version where the path is a model of a store, or the folder of a model; else the path itself."""
    place = path.resolve()
    store = Store(place.parent)
    if place.is_dir() and store.versions(place.name) and not (place / "saved_model.pb").is_file():
        return store.path(place.name)
    if not place.exists() and place.parent.is_dir() and store.models():
        return store.path(place.name)  # which says what there is
    return path


def _as_json(found: Inspection) -> dict[str, Any]:
    manifest = found.manifest
    head = manifest and {
        **{name: getattr(manifest, name) for name in ("model", "version", "created", "task")},
        "source": dict(manifest.source),
        "absent": [vars(absent) for absent in manifest.absent],
    }
    return {
        "path": found.path,
        "sound": found.sound,
        "manifest": head,
        "artifacts": [asdict(entry) for entry in found.entries],
    }


def _state(entry: Entry) -> str:
    return entry.state if entry.model is not None or entry.state != "ok" else "not readable"


def _name(entry: Entry) -> str:
    return printable(entry.label)


def _print(found: Inspection, ops: int, console: Console) -> None:
    if found.manifest is None:
        for entry in found.entries:
            if entry.model is not None:
                console.print(printable(found.path), style="bold")
                _print_grid(console, _model_rows(entry, entry.model, ops))
    else:
        _print_version(found, found.manifest, ops, console)


def _print_version(found: Inspection, manifest: Manifest, ops: int, console: Console) -> None:
    console.print(printable(found.path), style="bold")
    head: dict[str, Any] = {
        "model": f"{printable(manifest.model)} version {manifest.version}",
        "created": printable(manifest.created),
        "task": printable(manifest.task),
        "source": _pairs(manifest.source),
        "signatures": _signatures(manifest.signatures),
    }
    _print_grid(console, head.items())
    right: dict[str, Any] = {"justify": "right", "no_wrap": True}
    table = Table("artifact", Column("size", **right), "manifest", Column("weights", **right), "quantization", "audit")
    for entry in found.entries:
        model = entry.model
        state = _state(entry)
        table.add_row(
            _name(entry),
            size_text(model.bytes) if model else "–",
            Text(state, style="green" if entry.sound else "bold red"),
            f"{model.parameters:,}" if model else "–",
            model.quantization if model else "–",
            _verdict(model) if model else "–",
        )
    console.print(table)
    for entry in found.entries:
        if entry.note:
            console.print(f"{_name(entry)} ({printable(entry.path)}): {printable(entry.note)}", soft_wrap=True)
    if ops:
        console.print("operations", style="bold")
        _print_grid(console, ((_name(entry), _ops(entry.model, ops)) for entry in found.entries if entry.model))
    console.print("audit", style="bold")
    together: dict[str, list[str]] = {}
    for entry in found.entries:
        if entry.model:
            together.setdefault(_audit(entry.model), []).append(_name(entry))
    _print_grid(console, ((",\n  ".join(names), audit) for audit, names in together.items()))
    if manifest.absent:
        console.print("absent", style="bold")
        _print_grid(console, ((printable(absent.label), printable(absent.reason)) for absent in manifest.absent))


def _model_rows(entry: Entry, model: Model, ops: int) -> Iterator[tuple[str, str]]:
    yield "format", model.format
    yield "size", f"{size_text(model.bytes)} ({model.bytes:,} bytes)"
    yield "sha256", model.sha256
    if entry.state == "ok":
        yield "manifest", "ok: the file that was measured"
    elif entry.state != "unchecked":
        yield "manifest", f"{entry.state}: {printable(entry.note)}"
    by_dtype = f" ({_counts(model.weights)})" if len(model.weights) > 1 else ""
    yield "weights", f"{model.parameters:,} in {model.parameters_in}{by_dtype}"
    yield "quantization", model.quantization
    if model.activations:
        yield "other tensors", _counts(model.activations)
    if model.opsets:
        yield "opset", _counts(model.opsets, thousands=False)
    yield "made by", "; ".join(f"{name} {version}" for name, version in model.producers.items())
    if model.metadata:
        yield "metadata", "\n".join(f"{name}: {_value(value)}" for name, value in model.metadata.items())
    if model.external:
        files = (f"{file.path} ({'–' if file.bytes is None else size_text(file.bytes)})" for file in model.external)
        yield "external files", "\n".join(files)
    yield "signatures", _signatures(model.signatures)
    if ops:
        yield "operations", _ops(model, ops)
    yield "audit", _audit(model)


def _print_grid(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    """Names and values in two columns, without the blanks that fill up the second."""
    table = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))
    for name, value in rows:
        table.add_row(f"  {name}", value)
    with console.capture() as printed:
        console.print(table)
    for line in printed.get().splitlines():
        console.print(line.rstrip(), soft_wrap=True)


def _counts(counts: Mapping[str, int], *, thousands: bool = True) -> str:
    return ", ".join(f"{name} {count:,}" if thousands else f"{name} {count}" for name, count in counts.items())


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{printable(name)} {printable(str(value))}" for name, value in values.items() if value is not None
    )


def _value(value: Any) -> str:
    """A value of the metadata: a text, or a list of texts or of descriptions of tensors."""
    if not isinstance(value, list):
        return str(value)
    return "; ".join(_described(item) for item in value)


def _described(item: Any) -> str:
    if isinstance(item, dict):
        more = (f"{name} {_value_of(value)}" for name, value in item.items() if name != "name")
        return ", ".join([item["name"], *more])
    return ", ".join(item) if isinstance(item, list) else str(item)


def _value_of(value: Any) -> str:
    return "/".join(f"{number:g}" for number in value) if isinstance(value, list) else str(value)


def _signatures(signatures: Mapping[str, Signature]) -> str:
    return "\n".join(printable(str(signature)) for signature in signatures.values()) or "none"


def _ops(model: Model, limit: int) -> str:
    """The most frequent operations; ``limit`` of them."""
    total = sum(model.ops.values())
    shown = ", ".join(f"{name} {count:,}" for name, count in list(model.ops.items())[:limit])
    rest = len(model.ops) - limit
    return f"{total:,}: {shown}{f', and {rest} more kinds' if rest > 0 else ''}"


def _verdict(model: Model) -> str:
    count = sum(finding.count for finding in model.findings)
    return "clean" if not count else f"{count} finding{'s'[: count > 1]}"


def _audit(model: Model) -> str:
    lines = [_finding(finding) for finding in model.findings] or [_CLEAN]
    why: dict[str, list[str]] = {}
    for each in model.expected:
        why.setdefault(each.why, []).append(each.op if each.count == 1 else f"{each.op} {each.count}×")
    return "\n".join([*lines, *(f"expected: {', '.join(names)}: {reason}" for reason, names in why.items())])


def _finding(finding: Finding) -> str:
    times = f" {finding.count}×" if finding.count > 1 else ""
    detail = f" {finding.detail!r}" if finding.detail else ""
    load = "; runs when the model is loaded" if finding.at_load else ""
    return f"{finding.kind}: {finding.op}{times}{detail}: {finding.why}; in {', '.join(finding.places)}{load}"
