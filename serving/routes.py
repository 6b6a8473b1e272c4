"""The paths of the REST API: a request's target → what it asks for.

The patterns are the original's (``http_rest_api_handler.cc``): they look at the path with its query
string, case does not matter but for the verb, and names are percent-decoded after the match.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from ..errors import InvalidArgumentError
from .data_plane import ModelSpec
from .pace import Pace

_POST = re.compile(
    r"(?i)/v1/models/([^/:]+)(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?:(classify|regress|predict)", re.ASCII
)
_GET = re.compile(
    r"(?i)/v1/models(?:/([^/:]+))?(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?(?:/(metadata))?", re.ASCII
)
VERBS = ("predict", "classify", "regress")

# What libevent refuses anywhere in a target, before it looks for a route.
_BAD = re.compile(rb'[^\x21-\x7e]|[\[\]|"\\<>{}^`]|%(?![0-9a-fA-F]{2})')


def is_plain(target: bytes) -> bool:
    """Whether a target holds only what may stand in one, and whole percent escapes."""
    return _BAD.search(target) is None


@dataclass
class Route:
    """What a target asks for.

    ``verb`` is ``predict``, ``classify``, ``regress``, ``metadata`` or ``status``; ``problem`` says why
    it is none of these. ``path`` is the target without scheme and host, ``api`` whether it lies under
    ``/v1/``. ``pace`` is the one of its requests.
    """

    path: str
    api: bool = True
    verb: str = ""
    spec: ModelSpec = field(default_factory=lambda: ModelSpec(""))
    problem: str = ""
    pace: Pace = field(default_factory=Pace)


def find(method: bytes, target: bytes) -> Route | None:
    """The route of a request; None for a target that is not well-formed."""
    if not is_plain(target):
        return None
    path = target.decode("ascii")
    if not path.startswith("/") or path.startswith("//"):
        stripped = _without_host(path)
        if stripped is None:
            return None
        path = stripped
    if not path.lower().startswith("/v1/"):
        return Route(path, api=False)
    try:
        if method == b"POST" and (match := _POST.fullmatch(path)) and match[4] in VERBS:
            return Route(path, verb=match[4], spec=_spec(match))
        if method == b"GET" and (match := _GET.fullmatch(path)):
            if not match[1]:
                raise InvalidArgumentError("Missing model name in request.")
            return Route(path, verb="metadata" if match[4] == "metadata" else "status", spec=_spec(match))
    except InvalidArgumentError as error:
        return Route(path, problem=str(error))
    return Route(path, problem=f"Malformed request: {method.decode()} {path}")


def _without_host(target: str) -> str | None:
    """Path and query of ``http://host/path`` or ``//host/path``; None if host or port is none."""
    try:
        parts = urlsplit(target)
        _ = parts.port
    except ValueError:
        return None
    path = parts.path or "/"
    return path + (f"?{parts.query}" if parts.query else "") + (f"#{parts.fragment}" if parts.fragment else "")


def _spec(match: re.Match[str]) -> ModelSpec:
    digits = (match[2] or "").lstrip("0")
    version = int(digits[:20] or "0") if match[2] else None
    if version is not None and version >= 2**63:
        raise InvalidArgumentError(f"Version {match[2][:40]} does not fit into a 64-bit integer")
    return ModelSpec(_unquote(match[1]), version, _unquote(match[3]) if match[3] else None)


def _unquote(text: str) -> str:
    return unquote(text, errors="surrogateescape")
