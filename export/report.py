"""The report of an export: what was made, how far it is from the source, and where it is furthest off."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .. import draw
from ..draw import Figure, Gallery, Part, Plot, Table, change_text, metric_text, size_text
from ..errors import ResourceExhaustedError, StoreError, is_disk_full
from ..evidence import Evidence
from ..manifest import Artifact, Manifest
from .comparison import Column, Scatter, comparison
from .worst import WorstSample

Operations = Mapping[str, Mapping[str, int]]
Worst = Mapping[str, Sequence[WorstSample]]

HTML, PNG = "report.html", "report.png"

_SHOWN_OPERATIONS = 12
_SOURCE_WORDS = {"class": "source class", "kind": "source kind", "sha256": "source SHA-256", "trained": "trained"}
_WORST_TITLE = "The samples that are furthest off"
_LEGENDS = {
    "detection": "Thick green boxes are the source's, thin orange ones the artifact's. ",
    "segmentation": "Beside each picture are the mask of the source and the mask of the artifact. ",
}
# Of these metrics, less is better.
_ERRORS = ("mae",)


def write(folder: Path, manifest: Manifest, operations: Operations, worst: Worst) -> None:
    """Write ``report.html`` and ``report.png`` into a folder, which is made; both are whole, or as they were.

    ``operations`` counts an artifact's operations and ``worst`` has the samples on which it is furthest
    off, both by its label. Raises `StoreError` if they cannot be written, `ResourceExhaustedError` on a
    full disk, and `MissingExtraError` without matplotlib.
    """
    png = picture(manifest)
    _write(folder, {PNG: png, HTML: page(manifest, operations, worst, png).encode("utf-8")})


def picture(manifest: Manifest) -> bytes:
    """Size, error, agreement and metric of all artifacts side by side, and size against metric, as PNG."""
    evidence = [artifact.base_evidence for artifact in manifest.artifacts]
    columns = [
        Column("size", [(artifact.bytes, size_text(artifact.bytes)) for artifact in manifest.artifacts]),
        Column(
            "max abs error (| mean)",
            [(e.max_abs_error, _error(e.max_abs_error)) if e else (None, "–") for e in evidence],
            "log",
            [e.mean_abs_error if e else None for e in evidence],
        ),
    ]
    agreements = [e.top1_agreement if e else None for e in evidence]
    if any(value is not None for value in agreements):
        columns.append(Column("agreement", [(value, _share(value)) for value in agreements], "dots"))
    name = next((e.metric for e in evidence if e and e.metric), None)
    values = [e.metric_value if e else None for e in evidence]
    if name:
        before = next((e.metric_source_value for e in evidence if e and e.metric_source_value is not None), None)
        title = f"{name} (¦ source)" if before is not None else name
        columns.append(Column(title, [(v, metric_text(name, v)) for v in values], "dots", reference=before))
    return comparison(
        f"{manifest.model}, version {manifest.version}",
        [(artifact.label, artifact.format) for artifact in manifest.artifacts],
        columns,
        _scatter(manifest, name),
    )


def _scatter(manifest: Manifest, metric: str | None) -> Scatter | None:
    """Size against the metric, or against the error where there is none."""
    points = []
    for artifact in manifest.artifacts:
        found = artifact.base_evidence
        value = (found.metric_value if metric else found.max_abs_error) if found else None
        if value is not None and math.isfinite(value):
            points.append((artifact.label, artifact.format, float(artifact.bytes), value))
    if not points:
        return None
    if metric:
        better = "less" if metric in _ERRORS else "more"
        title, axis = f"size against {metric}: {better} is better", metric
    else:
        title, axis = "size against max abs error: less is better", "max abs error"
    return Scatter(
        title, ("size", axis), points, size_text, lambda value: metric_text(metric, value), log_y=metric is None
    )


def page(manifest: Manifest, operations: Operations, worst: Worst, png: bytes) -> str:
    """The whole report as HTML, with the picture in it; the same for the same arguments."""
    found = [(artifact, evidence) for artifact in manifest.artifacts if (evidence := artifact.base_evidence)]
    data = found[0][1].data if found else "nothing: there is no evidence"
    made_of = [str(manifest.source[key]) for key in ("kind", "class") if key in manifest.source]
    lead = f"Exported {manifest.created}: {manifest.task}, {' '.join(made_of)}"
    if "parameters" in manifest.source:
        lead += f" with {manifest.source['parameters']:,} parameters"
    lead += f". Compared with the source model on {data}."
    if manifest.source.get("random_data"):
        lead += " These are not data that the model is made for: they show how exact the files are, not how good."
    if manifest.source.get("trained") is False:
        lead += " The model is not trained."
    parts: list[Part] = [
        Plot("Side by side", png, "Size, error, agreement and metric of each artifact"),
        *_absent(manifest),
    ]
    parts += [_formats(manifest, found), _criteria(found), *_worst_parts(worst, manifest.task)]
    parts += [*_further(manifest, found), _outputs(found), *_operations(operations), _facts(manifest, data)]
    return draw.page(f"{manifest.model}, version {manifest.version}", lead, parts)


def _formats(manifest: Manifest, found: Sequence[tuple[Artifact, Evidence]]) -> Table:
    name = next((evidence.metric for _, evidence in found if evidence.metric), None)
    float32 = manifest.artifact("tflite")
    evidence_of = {artifact.label: evidence for artifact, evidence in found}
    rows = []
    for artifact in manifest.artifacts:
        evidence = evidence_of.get(artifact.label)
        share = f"{artifact.bytes / float32.bytes:.0%}" if float32 and float32.bytes else "–"
        cells = ["–"] * 6
        if evidence:
            cells = [
                _error(evidence.max_abs_error),
                _error(evidence.mean_abs_error),
                _share(evidence.top1_agreement),
                metric_text(evidence.metric, evidence.metric_value),
                change_text(evidence.metric, evidence.metric_value, evidence.metric_source_value),
                f"{evidence.samples:,}",
            ]
        rows.append([artifact.label, size_text(artifact.bytes), share, *cells])
    header = ["artifact", "size", "of TFLite", "max abs error", "mean abs error", "agreement", name or "metric"]
    note = "Agreement is the share of samples with the class that the source gives them." if name == "accuracy" else ""
    return Table("Artifacts", [*header, "change", "samples"], rows, note)


def _criteria(found: Sequence[tuple[Artifact, Evidence]]) -> Table:
    rows = [
        [artifact.label, artifact.path if artifact.path != "." else "the folder", _batch(artifact), evidence.criterion]
        for artifact, evidence in found
    ]
    note = "An artifact for which it does not hold is not published."
    return Table("What had to hold", ["artifact", "file", "batch", "criterion"], rows, note, words=True)


def _batch(artifact: Artifact) -> str:
    sizes = [f"{name} {' × '.join(map(str, size))}" for name, size in artifact.sizes.items()]
    opset = [f"opset\u00a0{artifact.opset}"] if artifact.opset is not None else []
    return "; ".join([artifact.batch, *sizes, *opset])


def _absent(manifest: Manifest) -> list[Part]:
    if not manifest.absent:
        return []
    rows = [
        [absent.label, "failed" if absent.failed else "not\u00a0possible", absent.reason] for absent in manifest.absent
    ]
    note = "Not possible: the format cannot hold this model. Failed: its conversion did."
    return [Table("What is missing", ["artifact", "what", "why"], rows, note, words=True)]


def _worst_parts(worst: Worst, task: str) -> list[Part]:
    """Pictures where there are any; what has none in a table."""
    parts: list[Part] = []
    groups = [
        (label, any(sample.differs for sample in samples), [_figure(label, s) for s in samples if s.png])
        for label, samples in worst.items()
    ]
    shown = [group for group in groups if group[2]]
    if shown:
        note = "Open are those where the artifact says something else than the source, to the digits shown."
        parts.append(Gallery(_WORST_TITLE, shown, f"{_LEGENDS.get(task, '')}{note}"))
    bare = [(label, sample) for label, samples in worst.items() for sample in samples if not sample.png]
    if bare:
        differing = [(label, sample) for label, sample in bare if sample.differs]
        with_right = any(sample.right for _, sample in differing)
        rows = [
            [label, str(s.row), s.given, *([s.right] if with_right else []), s.source, s.artifact]
            for label, s in differing
        ]
        header = ["artifact", "sample", "given", *(["right is"] if with_right else []), "source says", "artifact says"]
        same = len(bare) - len(differing)
        note = f"Left out are {same} for which both say the same, to the digits shown." if same else ""
        parts.append(Table(_WORST_TITLE, header, rows, note, words=True))
    return parts


def _figure(label: str, sample: WorstSample) -> Figure:
    right = f" (right is {sample.right})" if sample.right else ""
    caption = f"sample {sample.row}{right}: source says {sample.source}, {label} says {sample.artifact}"
    return Figure(caption, sample.png or b"")


def _further(manifest: Manifest, found: Sequence[tuple[Artifact, Evidence]]) -> list[Part]:
    """A table for each signature beside the one that every artifact answers."""
    parts: list[Part] = []
    names = dict.fromkeys(name for artifact, _ in found for name in list(artifact.evidence)[1:])
    for name in names:
        rows = []
        for artifact, _ in found:
            evidence = artifact.evidence.get(name)
            if evidence:
                errors = [_error(evidence.max_abs_error), _error(evidence.mean_abs_error)]
                rows.append(
                    [artifact.label, *errors, _share(evidence.top1_agreement), str(evidence.samples), evidence.data]
                )
        header = ["artifact", "max abs error", "mean abs error", "agreement", "samples", "data"]
        signature = manifest.signatures.get(name)
        parts.append(Table(f"Signature {name}", header, rows, str(signature) if signature else "", words=True))
    return parts


def _outputs(found: Sequence[tuple[Artifact, Evidence]]) -> Table:
    rows = []
    for artifact, evidence in found:
        for name, error in evidence.outputs.items():
            spread = error.source_max - error.source_min
            share = _percent(error.max_abs_error / spread) if spread > 0 else "–"
            limits = f"{error.source_min:.4g} … {error.source_max:.4g}"
            rows.append(
                [artifact.label, name, _error(error.max_abs_error), share, _error(error.mean_abs_error), limits]
            )
    header = ["artifact", "output", "max abs error", "of the range", "mean abs error", "range of the source"]
    return Table("Outputs", header, rows)


def _operations(operations: Operations) -> list[Part]:
    rows = [[label, f"{sum(counts.values()):,}", _folded(counts)] for label, counts in operations.items() if counts]
    return [Table("Operations", ["artifact", "all", "by type"], rows, words=True)] if rows else []


def _folded(counts: Mapping[str, int]) -> str:
    """The most frequent operations, and the others as one."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = ranked[_SHOWN_OPERATIONS - 1 :] if len(ranked) > _SHOWN_OPERATIONS else []
    words = [f"{name} × {count:,}" for name, count in ranked[: len(ranked) - len(rest)]]
    if rest:
        words.append(f"others of {len(rest)} types × {sum(count for _, count in rest):,}")
    return ", ".join(words)


def _facts(manifest: Manifest, data: str) -> Table:
    rows = [["model", manifest.model], ["version", str(manifest.version)], ["created", manifest.created]]
    rows.append(["task", manifest.task])
    for key, value in manifest.source.items():
        words = (
            "yes" if value is True else "no" if value is False else f"{value:,}" if isinstance(value, int) else value
        )
        rows.append([_SOURCE_WORDS.get(key, key.replace("_", " ")), str(words)])
    rows.append(["data", data])
    rows += [["signature", str(signature)] for signature in manifest.signatures.values()]
    if manifest.labels:
        rows.append(["labels", _some(manifest.labels)])
    rows.append(["made with", ", ".join(f"{name} {version}" for name, version in manifest.producers.items())])
    return Table("The export", [], rows, words=True)


def _some(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:20])
    return f"{len(labels):,}: {shown}{', …' if len(labels) > 20 else ''}"


def _error(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"


def _percent(share: float) -> str:
    return f"{share:.3%}" if share >= 1e-4 or share == 0 else f"{100 * share:.1g}%"


def _share(value: float | None) -> str:
    """A share in percent; one that is not quite everything is never called so."""
    if value is None:
        return "–"
    text = f"{value:.2%}"
    return text if value == 1 or text != "100.00%" else "> 99.99%"


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files next to their places, and rename them when all are whole."""
    token = secrets.token_hex(4)
    written: dict[Path, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            written[folder / f".{name}.{token}"] = folder / name
            (folder / f".{name}.{token}").write_bytes(content)
        for temporary, path in written.items():
            temporary.replace(path)
    except OSError as error:
        if is_disk_full(error):
            raise ResourceExhaustedError(f"no space left for the report in {folder}") from error
        raise StoreError(f"the report cannot be written to {folder}: {error.strerror or error}") from error
    finally:
        for temporary in written:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
