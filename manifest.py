"""``servable.json``: what a version folder says of itself, with the evidence for each artifact in it.

The schema is versioned. Reading validates what this release knows and keeps the unknown fields of the
manifest and of its artifacts, so that rewriting it loses nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .errors import ArtifactError, StoreError
from .evidence import Evidence, evidence_to_dict, parse_evidence
from .json_fields import Fields, present
from .signature import PREDICT_METHOD, Shape, Signature, TensorSpec

FILE_NAME = "servable.json"
SCHEMA_VERSION = 1

# What any server runs at load, as PredictionLog messages in a TFRecord file.
WARMUP_REQUESTS = Path("assets.extra", "tf_serving_warmup_requests")
SavedModelFiles = ("saved_model.pb", "saved_model.pbtxt", "fingerprint.pb", "variables", "assets")


@dataclass(frozen=True)
class Preprocessing:
    """How an encoded picture becomes the model's input tensor.

    The picture is decoded to RGB, resized (triangle filter, antialiased, half-pixel centres) to
    ``height`` × ``width``, reduced to one channel by ITU-R BT.601 luma weights where ``channels`` is
    1, and mapped to ``pixel * scale + offset`` in float32.
    """

    height: int
    width: int
    channels: int
    scale: float = 1.0 / 255.0
    offset: float = 0.0
    kind: Literal["image"] = "image"


@dataclass(frozen=True)
class Derivation:
    """Says that a signature is another one with a prologue before it and new names behind it.

    ``prologue`` is ``decode_image`` (encoded PNG or JPEG strings) or ``parse_example`` (serialized
    tf.Example). ``outputs`` maps this signature's output names to the base signature's;
    ``labels_as`` names an extra string output that repeats the label list for each row.
    """

    signature: str
    prologue: Literal["decode_image", "parse_example"]
    outputs: Mapping[str, str]
    labels_as: str | None = None


@dataclass(frozen=True)
class Absent:
    """An artifact that the version does not have, and why.

    ``failed`` is False where the format cannot hold such a model, and True where its conversion failed.
    """

    format: str
    quantization: str
    reason: str
    failed: bool = False

    @property
    def label(self) -> str:
        """A short name such as ``tflite int8``."""
        return _label(self.format, self.quantization)


@dataclass(frozen=True)
class Artifact:
    """One file or folder of a version: what it is, how large, and how close to the source.

    ``batch`` is ``dynamic``, or the one number of rows that the file takes at a time. ``sizes`` are those
    of an input, without the batch, that the file takes alone where the signature leaves some open.
    """

    format: str
    quantization: str
    path: str
    sha256: str
    bytes: int
    signatures: tuple[str, ...]
    batch: str
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    opset: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A short name such as ``tflite int8``; just the format where it is float32."""
        return _label(self.format, self.quantization)

    @property
    def base_evidence(self) -> Evidence | None:
        """Evidence for the signature that every artifact answers, the first one; None if nothing was measured."""
        return next(iter(self.evidence.values()), None)

    def proves(self, signature: str) -> bool:
        """Whether measured evidence shows parity with the source model for this signature."""
        evidence = self.evidence.get(signature)
        return evidence is not None and evidence.passed


@dataclass(frozen=True)
class Manifest:
    """The whole of ``servable.json``."""

    model: str
    version: int
    created: str
    task: str
    source: Mapping[str, Any]
    producers: Mapping[str, str]
    signatures: Mapping[str, Signature]
    artifacts: tuple[Artifact, ...]
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    derivations: Mapping[str, Derivation] = field(default_factory=dict)
    absent: tuple[Absent, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def artifact(self, format: str, quantization: str = "float32") -> Artifact | None:
        """The artifact of this format and quantization, or None if the version has none."""
        for artifact in self.artifacts:
            if (artifact.format, artifact.quantization) == (format, quantization):
                return artifact
        return None

    def check_artifact(self, folder: Path, artifact: Artifact) -> None:
        """Raise `ArtifactError` unless the artifact in ``folder`` is the very one that was measured."""
        what = f"the SavedModel in {folder}" if artifact.path == "." else f"{folder / artifact.path}"
        try:
            sha256, _ = measure_artifact(folder, artifact.path)
        except OSError as error:
            raise ArtifactError(f"{what} cannot be read: {error.strerror}") from error
        if sha256 != artifact.sha256:
            raise ArtifactError(
                f"{what} is damaged or was changed after its export: its SHA-256 is not the one in "
                f"{FILE_NAME}, so its evidence says nothing; export the model again"
            )

    def with_version(self, version: int) -> Manifest:
        """The same manifest under another version number."""
        return replace(self, version=version)

    def to_json(self) -> str:
        """Indented JSON with a final newline; unknown fields that were read are written again."""
        return json.dumps(_manifest_to_dict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @staticmethod
    def read(version_folder: Path) -> Manifest:
        """Read and validate ``servable.json`` of a version folder.

        Raises `StoreError` if the file is missing, is not JSON, or breaks the schema; the message
        names the file and the field.
        """
        path = version_folder / FILE_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise StoreError(f"{version_folder} has no {FILE_NAME}: not a version that servable exported") from None
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{path} cannot be read: {error}") from error
        try:
            return parse(json.loads(text), where=str(path))
        except (json.JSONDecodeError, RecursionError) as error:
            raise StoreError(f"{path} is not valid JSON: {error}") from error


def parse(value: Any, where: str = FILE_NAME) -> Manifest:
    """Validate a decoded ``servable.json``; `StoreError` names the place and the field at fault."""
    fields = Fields(value, where)
    schema = fields.take("schema_version", int)
    if schema > SCHEMA_VERSION:
        raise StoreError(
            f"{where}: schema_version {schema} is newer than this servable reads ({SCHEMA_VERSION}); upgrade servable"
        )
    preprocessing = fields.take("preprocessing", dict, None)
    signatures = fields.mapping("signatures", _parse_signature)
    return Manifest(
        model=fields.take("model", str),
        version=fields.take("version", int),
        created=fields.take("created", str),
        task=fields.take("task", str),
        source=fields.take("source", dict),
        producers=fields.take("producers", dict),
        signatures={name: replace(signature, name=name) for name, signature in signatures.items()},
        artifacts=tuple(
            _parse_artifact(item, f"{where}: artifacts[{i}]") for i, item in enumerate(fields.take("artifacts", list))
        ),
        labels=fields.strings("labels", []),
        preprocessing=_parse_preprocessing(preprocessing, f"{where}: preprocessing") if preprocessing else None,
        derivations=fields.mapping("derivations", _parse_derivation, {}),
        absent=tuple(
            _parse_absent(item, f"{where}: absent[{i}]") for i, item in enumerate(fields.take("absent", list, []))
        ),
        extra=fields.rest,
    )


def _parse_shape(fields: Fields) -> Shape:
    raw: list[Any] | None = fields.take("shape", list, None)
    if raw is None:
        return None
    if not all(d is None or (type(d) is int and d >= 0) for d in raw):
        raise StoreError(f"{fields.where}: 'shape' must hold sizes or null, got {raw!r}")
    return tuple(raw)


def _parse_spec(value: Any, where: str) -> TensorSpec:
    fields = Fields(value, where)
    return TensorSpec(
        name="",
        dtype=fields.take("dtype", str),
        shape=_parse_shape(fields),
        tensor_name=fields.take("tensor_name", str, ""),
    )


def _named(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    return {name: replace(spec, name=name) for name, spec in specs.items()}


def _parse_signature(value: Any, where: str) -> Signature:
    fields = Fields(value, where)
    return Signature(
        inputs=_named(fields.mapping("inputs", _parse_spec)),
        outputs=_named(fields.mapping("outputs", _parse_spec)),
        method_name=fields.take("method_name", str, PREDICT_METHOD),
    )


def _parse_preprocessing(value: Any, where: str) -> Preprocessing:
    fields = Fields(value, where)
    kind = fields.take("kind", str)
    if kind != "image":
        raise StoreError(f"{where}: kind {kind!r} is unknown; allowed: image")
    return Preprocessing(
        height=fields.take("height", int),
        width=fields.take("width", int),
        channels=fields.take("channels", int),
        scale=float(fields.take("scale", (int, float))),
        offset=float(fields.take("offset", (int, float), 0.0)),
    )


def _parse_derivation(value: Any, where: str) -> Derivation:
    fields = Fields(value, where)
    prologue = fields.take("prologue", str)
    if prologue not in ("decode_image", "parse_example"):
        raise StoreError(f"{where}: prologue {prologue!r} is unknown; allowed: decode_image, parse_example")
    return Derivation(
        signature=fields.take("signature", str),
        prologue=prologue,  # type: ignore[arg-type]  # checked just above
        outputs=fields.take("outputs", dict),
        labels_as=fields.take("labels_as", str, None),
    )


def _parse_absent(value: Any, where: str) -> Absent:
    fields = Fields(value, where)
    return Absent(
        format=fields.take("format", str),
        quantization=fields.take("quantization", str),
        reason=fields.take("reason", str),
        failed=fields.take("failed", bool, default=False),
    )


def _parse_sizes(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and size >= 0 for size in value):
        raise StoreError(f"{where}: expected a list of sizes, got {value!r}")
    return tuple(value)


def _parse_artifact(value: Any, where: str) -> Artifact:
    fields = Fields(value, where)
    return Artifact(
        format=fields.take("format", str),
        quantization=fields.take("quantization", str),
        path=fields.take("path", str),
        sha256=fields.take("sha256", str),
        bytes=fields.take("bytes", int),
        signatures=fields.strings("signatures"),
        batch=fields.take("batch", str),
        sizes=fields.mapping("sizes", _parse_sizes, {}),
        evidence=fields.mapping("evidence", parse_evidence, {}),
        opset=fields.take("opset", int, None),
        extra=fields.rest,
    )


def _label(format: str, quantization: str) -> str:
    return format if quantization == "float32" else f"{format} {quantization}"


def _spec_to_dict(spec: TensorSpec) -> dict[str, Any]:
    shape = None if spec.shape is None else list(spec.shape)
    return {"dtype": spec.dtype, "shape": shape, **({"tensor_name": spec.tensor_name} if spec.tensor_name else {})}


def _signature_to_dict(signature: Signature) -> dict[str, Any]:
    return {
        "inputs": {name: _spec_to_dict(spec) for name, spec in signature.inputs.items()},
        "outputs": {name: _spec_to_dict(spec) for name, spec in signature.outputs.items()},
        "method_name": signature.method_name,
    }


def _artifact_to_dict(artifact: Artifact) -> dict[str, Any]:
    return {
        "format": artifact.format,
        "quantization": artifact.quantization,
        "path": artifact.path,
        "sha256": artifact.sha256,
        "bytes": artifact.bytes,
        "signatures": list(artifact.signatures),
        "batch": artifact.batch,
        **({"sizes": {name: list(sizes) for name, sizes in artifact.sizes.items()}} if artifact.sizes else {}),
        **present({"opset": artifact.opset}),
        "evidence": {name: evidence_to_dict(evidence) for name, evidence in artifact.evidence.items()},
        **artifact.extra,
    }


def _manifest_to_dict(manifest: Manifest) -> dict[str, Any]:
    preprocessing = manifest.preprocessing
    return {
        "schema_version": SCHEMA_VERSION,
        "model": manifest.model,
        "version": manifest.version,
        "created": manifest.created,
        "task": manifest.task,
        "source": dict(manifest.source),
        "producers": dict(manifest.producers),
        "signatures": {name: _signature_to_dict(value) for name, value in manifest.signatures.items()},
        "derivations": {
            name: present({**vars(value), "outputs": dict(value.outputs)})
            for name, value in manifest.derivations.items()
        },
        "labels": list(manifest.labels),
        "preprocessing": vars(preprocessing) if preprocessing else None,
        "artifacts": [_artifact_to_dict(artifact) for artifact in manifest.artifacts],
        "absent": [vars(absent) for absent in manifest.absent],
        **manifest.extra,
    }


def measure_artifact(root: Path, path: str) -> tuple[str, int]:
    r"""SHA-256 and size in bytes of an artifact of the version folder ``root``.

    For a file, its own digest. For a SavedModel (path ``.``) the digest of one line
    ``<sha256>  <relative path>\\n`` for each of its files, sorted by path, as sha256sum prints them.
    """
    if path != ".":
        return _sha256(root / path), (root / path).stat().st_size
    files = sorted(_files(root, SavedModelFiles), key=lambda file: file.relative_to(root).as_posix())
    lines = "".join(f"{_sha256(file)}  {file.relative_to(root).as_posix()}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest(), sum(file.stat().st_size for file in files)


def _files(root: Path, names: Iterable[str]) -> Iterable[Path]:
    for name in names:
        path = root / name
        if path.is_dir():
            yield from (file for file in path.rglob("*") if file.is_file())
        elif path.is_file():
            yield path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
