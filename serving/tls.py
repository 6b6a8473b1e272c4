"""TLS for gRPC from an SSLConfig file."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc

from ..errors import InvalidArgumentError
from ..wire import messages, text_config


def credentials(path: Path) -> grpc.ServerCredentials:
    """Server credentials from a text-format SSLConfig, whose fields hold PEM text, not paths.

    With ``client_verify`` only clients with a certificate of ``custom_ca`` are let in. Raises
    `InvalidArgumentError` naming the file and the field at fault.
    """
    config = text_config.read(path, messages.SSLConfig)
    key, certificate, roots = (
        _pem(path, field, getattr(config, field)) for field in ("server_key", "server_cert", "custom_ca")
    )
    if not key or not certificate:
        raise InvalidArgumentError(f"{path}: server_key and server_cert are both needed")
    if config.client_verify and not roots:
        raise InvalidArgumentError(f"{path}: client_verify needs custom_ca, the certificates to trust")
    _check(path, key, certificate, roots)
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=roots or None, require_client_auth=config.client_verify
    )


def _check(path: Path, key: bytes, certificate: bytes, roots: bytes) -> None:
    """Raise `InvalidArgumentError` for PEM text that is no key or certificate: grpc would only fail to listen."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        if roots:
            context.load_verify_locations(cadata=roots.decode())
    except (ssl.SSLError, ValueError) as error:
        raise InvalidArgumentError(f"{path}: custom_ca holds no certificate: {_reason(error)}") from error
    try:
        folder = TemporaryDirectory()  # readable by nobody else
    except OSError:
        return  # nothing can be written here
    with folder:
        files = Path(folder.name, "key"), Path(folder.name, "certificate")
        for file, text in zip(files, (key, certificate), strict=True):
            file.write_bytes(text)
        try:
            context.load_cert_chain(files[1], files[0], password=lambda: "")
        except (ssl.SSLError, ValueError) as error:
            raise InvalidArgumentError(
                f"{path}: server_key and server_cert are not a key and the certificate for it: {_reason(error)}"
            ) from error


def _reason(error: Exception) -> str:
    """OpenSSL's words, without the places in its source and in Python's."""
    return re.sub(r"^\[.*?\] | \(_ssl\.c:\d+\)$", "", str(error))


def _pem(path: Path, field: str, text: str) -> bytes:
    if text and "-----BEGIN " not in text:
        raise InvalidArgumentError(f"{path}: {field} holds no PEM text (it must hold the text itself, not a path)")
    return text.encode()
