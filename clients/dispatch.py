"""`connect`: one function for every kind of target."""

from __future__ import annotations

from pathlib import Path

from ..errors import UnavailableError
from .base import DEFAULT_TIMEOUT_S, Client
from .targets import parse_address


def connect(target: str | Path, *, timeout: float = DEFAULT_TIMEOUT_S, threads: int = 0) -> Client:
    """A client of a served model or of a model file.

    Targets: ``grpc://host:port/model``, ``http://host:port/model`` (both also with ``/versions/N`` or
    ``/labels/L``), a ``.tflite`` or ``.onnx`` file, a version folder, or ``store/model`` for its newest
    version. Nothing travels before the first call. ``timeout`` is the limit of each request in seconds,
    unless a call names its own; ``threads`` bounds the threads of an on-device
    model (0: its engine decides).

    Raises `TargetError` for a string that is none of these, `ArtifactError` for a file that cannot be
    loaded and `MissingExtraError` without its engine.
    """
    address = parse_address(str(target))
    if address is None:
        from .local import LocalClient

        return LocalClient.open(Path(target), threads=threads)
    if address.scheme == "grpc":
        from .grpc import GrpcClient

        return GrpcClient(str(target), address, timeout)
    from .rest import RestClient

    return RestClient(str(target), address, timeout)


def is_ready(target: str) -> bool:
    """Whether the model at a target answers; False while its server cannot be reached.

    Raises what `Client.metadata` raises for any other reason.
    """
    try:
        with connect(target) as client:
            client.metadata()
    except UnavailableError:
        return False
    return True
