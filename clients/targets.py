"""Target strings: what a client connects to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from ..errors import TargetError

_PATH = re.compile(
    r"/(?:v1/models/)?(?P<model>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?/?", re.ASCII
)
_DEFAULT_PORT = {"grpc": 8500, "http": 8501, "https": 443}


@dataclass(frozen=True)
class Address:
    """A served model: scheme, host, port, model, and the version or label that was asked for."""

    scheme: str
    host: str
    port: int
    model: str
    version: int | None = None
    label: str | None = None

    @property
    def authority(self) -> str:
        """``host:port``, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def rest_path(self) -> str:
        """``/v1/models/NAME[/versions/N|/labels/L]``."""
        path = f"/v1/models/{quote(self.model, safe='')}"
        if self.version is not None:
            return f"{path}/versions/{self.version}"
        return f"{path}/labels/{quote(self.label, safe='')}" if self.label else path


def parse_address(target: str) -> Address | None:
    """A server's address, or None where the target is a path.

    >>> parse_address("grpc://localhost:8500/cnn/versions/3")
    Address(scheme='grpc', host='localhost', port=8500, model='cnn', version=3, label=None)
    >>> parse_address("store/cnn") is None
    True

    Raises `TargetError` for an unknown scheme, a missing host or model, or a port that is none.
    """
    if "://" not in target:
        return None
    try:
        parts = urlsplit(target)
    except ValueError as error:
        raise TargetError(f"target {target!r}: {error}") from None
    if parts.scheme not in _DEFAULT_PORT:
        raise TargetError(
            f"target {target!r}: unknown scheme {parts.scheme!r}; use grpc://, http://, https:// or a path"
        )
    try:
        port = _DEFAULT_PORT[parts.scheme] if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not port:
        raise TargetError(f"target {target!r}: the port is not a number from 1 to 65535")
    match = _PATH.fullmatch(parts.path)
    if not parts.hostname or not match or parts.query or parts.fragment:
        raise TargetError(
            f"target {target!r} should read {parts.scheme}://HOST:PORT/MODEL, "
            "with /versions/N or /labels/LABEL behind it if wanted"
        )
    version = int(match["version"][:20]) if match["version"] else None
    if version is not None and version >= 2**63:
        raise TargetError(f"target {target!r}: the version does not fit into a 64-bit integer")
    return Address(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port,
        model=unquote(match["model"]),
        version=version,
        label=unquote(match["label"]) if match["label"] else None,
    )
