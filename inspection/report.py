"""What an inspection finds: `Inspection`, with one `Entry` an artifact and a `Model` for what is in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..manifest import Manifest
from ..signature import Signature

# A name in a hostile file may be as long as the file.
_LONGEST_TEXT = 1000

Kind = Literal["files", "code", "network", "custom", "outside"]
State = Literal["ok", "damaged", "missing", "not listed", "unchecked"]


@dataclass(frozen=True)
class Finding:
    """Something in a graph that does more than compute on tensors.

    ``kind`` says what it could reach: ``files`` of the machine, ``code`` or a ``network`` outside of the
    graph, a ``custom`` operation whose code is in some library, or data ``outside`` of the model's folder.
    ``places`` are the parts of the file where it stands, a few of them; ``detail`` is the constant that it
    is given (a path, for instance), if it is one. ``at_load`` is True where loading the model runs it.
    """

    kind: Kind
    op: str
    why: str
    places: tuple[str, ...]
    count: int = 1
    detail: str = ""
    at_load: bool = False


@dataclass(frozen=True)
class Expected:
    """Operations that would be findings elsewhere and belong where they are; ``why`` says so."""

    op: str
    why: str
    count: int = 1


@dataclass(frozen=True)
class ExternalFile:
    """A file that a model file refers to for its weights; ``bytes`` is None if there is none of that name."""

    path: str
    bytes: int | None


@dataclass(frozen=True)
class Model:
    """One model file or SavedModel.

    ``sha256`` and ``bytes`` are those of `measure_artifact`. ``parameters`` is the number of weights, which
    are ``parameters_in`` variables or constants; ``weights`` has them by dtype, and ``activations`` the
    number of other tensors by dtype, where the file tells. ``ops`` has every operation of every graph,
    subgraph and function, the most frequent first. ``opsets`` are ONNX's versions by domain.
    """

    path: str
    format: str
    bytes: int
    sha256: str
    signatures: Mapping[str, Signature]
    parameters: int
    parameters_in: Literal["variables", "constants"]
    ops: Mapping[str, int]
    quantization: str
    weights: Mapping[str, int]
    activations: Mapping[str, int] = field(default_factory=dict)
    opsets: Mapping[str, int] = field(default_factory=dict)
    producers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    external: tuple[ExternalFile, ...] = ()
    findings: tuple[Finding, ...] = ()
    expected: tuple[Expected, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One artifact: what the manifest says of the file, and what is in it.

    ``state`` is ``unchecked`` where no manifest speaks of it, and ``not listed`` where one speaks of
    others only. ``model`` is None if the file is missing or cannot be read, and then ``note`` says why.
    """

    label: str
    path: str
    state: State
    note: str = ""
    model: Model | None = None

    @property
    def sound(self) -> bool:
        """Whether it is there, is what was measured, and can be read."""
        return self.state in ("ok", "unchecked") and self.model is not None


@dataclass(frozen=True)
class Inspection:
    """All that was found at a path; ``manifest`` is None where there is no ``servable.json``."""

    path: str
    manifest: Manifest | None
    entries: tuple[Entry, ...]

    @property
    def sound(self) -> bool:
        """Whether every artifact is."""
        return all(entry.sound for entry in self.entries)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of all artifacts."""
        return tuple(finding for entry in self.entries if entry.model for finding in entry.model.findings)


def printable(text: str | bytes) -> str:
    r"""Text out of a file as it can be shown: nothing that moves a cursor or turns the writing round.

    >>> printable(b"\x1b[2Jcnn\n")
    '\\x1b[2Jcnn\\n'
    """
    if isinstance(text, bytes):
        text = text[: 4 * _LONGEST_TEXT].decode("utf-8", "replace")
    shown = "".join(char if char.isprintable() else _escape(char) for char in text[:_LONGEST_TEXT])
    return shown if len(text) <= _LONGEST_TEXT else f"{shown}…"


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


def merged(findings: Iterable[Finding], places: int = 3) -> tuple[Finding, ...]:
    """Equal findings as one, with their number and the first ``places`` where they stand; by kind and name."""
    together: dict[tuple[Any, ...], Finding] = {}
    for finding in findings:
        key = (finding.kind, finding.op, finding.why, finding.detail, finding.at_load)
        known = together.get(key)
        if known is None:
            together[key] = finding
            continue
        more = tuple(place for place in finding.places if place not in known.places)
        together[key] = replace(known, places=(known.places + more)[:places], count=known.count + finding.count)
    return tuple(together[key] for key in sorted(together))
