"""REST Predict with nothing around it: ``python bare_rest.py MODEL.onnx PORT``.

An ASGI program on uvicorn, uvloop and httptools: orjson reads the body, NumPy makes the array, ONNX
Runtime answers on one thread, in the event loop. It checks nothing and serves one model.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def make_app(model: str) -> Callable[[Any, Receive, Send], Awaitable[None]]:
    """The ASGI application of one ONNX file."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    async def app(_: Any, receive: Receive, send: Send) -> None:
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        array = np.array(orjson.loads(b"".join(parts))["instances"], np.float32)
        (result,) = session.run(None, {name: array})
        answer = orjson.dumps({"predictions": result.tolist()})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


if __name__ == "__main__":
    uvicorn.run(
        make_app(sys.argv[1]),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="warning",
        access_log=False,
    )
