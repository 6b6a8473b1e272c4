"""The requests that every server of a run is sent, and what a right answer to them is."""

from __future__ import annotations

import http.client
import json
import struct
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..errors import ProcessError
from ..manifest import Manifest
from ..models import card
from ..models.samples import test_samples
from ..signature import DEFAULT_SIGNATURE
from ..wire import messages, tensors

PREDICT = f"/{messages.PREDICTION_SERVICE}/Predict"
TOLERANCE = 1e-4
TIMEOUT_S = 60


class Payload:
    """Some real images for one model, as a REST body, a gRPC message and a NumPy file, with the answer to them."""

    def __init__(self, model: str, count: int, version_folder: Path, folder: Path) -> None:
        """Ask the ONNX file of ``version_folder`` for the answer, and write the files to ``folder``."""
        self.model = model
        self.count = count
        self.onnx = version_folder / "model.onnx"
        images = test_samples(card(model)).inputs[:count]
        signature = Manifest.read(version_folder).signatures[DEFAULT_SIGNATURE]
        ((alias, _),) = signature.inputs.items()
        ((self._output, _),) = signature.outputs.items()
        session = ort.InferenceSession(str(self.onnx), providers=["CPUExecutionProvider"])
        self._expected = session.run([self._output], {alias: images})[0]
        self.json = json.dumps({"instances": images.tolist()}).encode()
        request = messages.PredictRequest()
        request.model_spec.name = model
        request.inputs[alias].CopyFrom(tensors.encode(images, content=True))
        self.message: bytes = request.SerializeToString()
        stem = folder / f"{model}-{count}"
        self.json_file = stem.with_suffix(".json")
        self.json_file.write_bytes(self.json)
        self.framed_file = stem.with_suffix(".grpc")
        self.framed_file.write_bytes(frame(self.message))
        self.array_file = stem.with_suffix(".npy")
        np.save(self.array_file, images)

    def fixed_answer(self) -> bytes:
        """The right PredictResponse, for a server that has no model."""
        response = messages.PredictResponse()
        response.model_spec.name = self.model
        response.model_spec.version.value = 1
        response.model_spec.signature_name = DEFAULT_SIGNATURE
        response.outputs[self._output].CopyFrom(tensors.encode(self._expected))
        answer: bytes = response.SerializeToString()
        return answer

    def ask_rest(self, url: str) -> None:
        """Post the body once. Raises `ProcessError` if the answer is wrong."""
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT_S)
        try:
            connection.request("POST", parts.path, self.json, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise ProcessError(f"{url} answered status {response.status}: {answer[:200]!r}")
        self.check_json(url, answer)

    def check_json(self, url: str, answer: bytes) -> None:
        """Raises `ProcessError` if a REST answer is not the right one; BentoML's is the bare list."""
        value = json.loads(answer)
        self._check(url, np.array(value["predictions"] if isinstance(value, dict) else value))

    def ask_grpc(self, address: str) -> int:
        """Call Predict once and return how long the answer is in bytes, frame included.

        Raises `ProcessError` if the answer is wrong or none.
        """
        with open_channel(address) as channel:
            try:
                answer = channel.unary_unary(PREDICT)(self.message, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                raise ProcessError(f"{address} answered {error}") from None
        self.check_message(address, answer)
        return len(frame(answer))

    def check_message(self, address: str, answer: bytes) -> None:
        """Raises `ProcessError` if a PredictResponse is not the right one."""
        self._check(address, tensors.decode(messages.PredictResponse.FromString(answer).outputs[self._output]))

    def _check(self, where: str, answer: NDArray[Any]) -> None:
        if answer.shape != self._expected.shape or not np.allclose(answer, self._expected, rtol=0, atol=TOLERANCE):
            raise ProcessError(f"{where} gave a wrong answer for {self.model}, of shape {answer.shape}")


def frame(message: bytes) -> bytes:
    r"""A message as gRPC sends it: not compressed, its length, itself.

    >>> frame(b"ab")
    b'\x00\x00\x00\x00\x02ab'
    """
    return struct.pack(">BI", 0, len(message)) + message


def open_channel(address: str) -> Any:
    """A channel that goes straight to the address, whatever proxy the environment names."""
    return grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
