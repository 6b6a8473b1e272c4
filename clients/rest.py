"""The REST client, over httpx."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import httpx
from google.protobuf import json_format

from ..errors import DeadlineExceededError, ServableError, UnavailableError, UnknownError, error_for_http_status
from ..signature import Signature
from ..wire import json_codec, messages, signatures
from . import status
from .base import DEFAULT_TIMEOUT_S, Arrays, Client, Metadata
from .status import VersionStatus
from .targets import Address


class RestClient(Client):
    """A model behind ``/v1/models``."""

    def __init__(self, target: str, address: Address, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        super().__init__(target, timeout_s)
        self._address = address
        # trust_env would send requests for localhost through a proxy that the environment names.
        # A bounded pool closes connections under other threads when there are more of them than it keeps.
        self._http = httpx.Client(
            base_url=f"{address.scheme}://{address.authority}",
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )

    def _run(self, signature: Signature, inputs: Arrays, outputs: Sequence[str], timeout_s: float) -> Arrays:
        body = json_codec.format_predict_request(inputs, signature.name)
        answer = self._ask("POST", f"{self._address.rest_path}:predict", timeout_s, body)
        results = json_codec.parse_predict_response(answer, signature.outputs)
        return {name: results[name] for name in outputs or results}

    def _ask_metadata(self, timeout_s: float) -> Metadata:
        return self._parse_metadata(self._ask("GET", f"{self._address.rest_path}/metadata", timeout_s))

    def _parse_metadata(self, answer: bytes) -> Metadata:
        try:
            body = json.loads(answer)
            definitions = messages.SignatureDefMap()
            json_format.ParseDict(
                body["metadata"]["signature_def"],
                definitions,
                ignore_unknown_fields=True,
                descriptor_pool=messages.POOL,
            )
            return Metadata(
                model=body["model_spec"]["name"],
                version=int(body["model_spec"]["version"]),
                signatures={
                    name: signatures.from_signature_def(name, message)
                    for name, message in sorted(definitions.signature_def.items())
                },
            )
        except (ValueError, KeyError, TypeError, json_format.ParseError) as error:
            raise UnknownError(f"{self.target} answered no model metadata; is it a TensorFlow Serving API?") from error

    def _ask_status(self, timeout_s: float) -> list[VersionStatus]:
        answer, told = self._exchange("GET", self._address.rest_path, timeout_s)
        response = messages.GetModelStatusResponse()
        try:
            body = json.loads(answer)
            json_format.ParseDict(
                {"model_version_status": body["model_version_status"]},
                response,
                ignore_unknown_fields=True,
                descriptor_pool=messages.POOL,
            )
        except (ValueError, KeyError, TypeError, json_format.ParseError) as error:
            raise UnknownError(f"{self.target} answered no model status; is it a TensorFlow Serving API?") from error
        return status.from_message(response, told.get(status.ENGINES_HEADER))

    def _ask(self, method: str, path: str, timeout_s: float, body: bytes | None = None) -> bytes:
        return self._exchange(method, path, timeout_s, body)[0]

    def _exchange(
        self, method: str, path: str, timeout_s: float, body: bytes | None = None
    ) -> tuple[bytes, httpx.Headers]:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        end = time.monotonic() + timeout_s
        answer = bytearray()
        try:
            with self._http.stream(method, path, content=body, headers=headers, timeout=timeout_s) as response:
                for part in response.iter_bytes():
                    answer += part
                    if time.monotonic() > end:  # httpx limits each wait, not their sum
                        raise httpx.ReadTimeout("the answer came too slowly")
        except httpx.TimeoutException as error:
            raise DeadlineExceededError(f"{self.target}: no answer within {timeout_s:g} s") from error
        except httpx.TransportError as error:
            raise UnavailableError(f"{self.target} cannot be reached: {error}; is the server running?") from error
        if response.status_code != 200:
            raise self._error(response.status_code, bytes(answer))
        return bytes(answer), response.headers

    def _error(self, status_code: int, content: bytes) -> ServableError:
        message: Any = None
        try:
            message = json.loads(content)["error"]
        except (ValueError, KeyError, TypeError):
            message = f"HTTP status {status_code}"
        return error_for_http_status(status_code, f"{self.target}: {message}")

    def _close(self) -> None:
        self._http.close()
