"""gRPC Predict with no model: ``python -m servable.benchmarks.peers.bare_grpc ANSWER PORT THREADS``.

A grpcio server that parses each PredictRequest and returns the PredictResponse of the file ANSWER.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from ...wire import messages


def serve(answer: Path, port: int, threads: int) -> None:
    """Answer until the process is ended."""
    response = messages.PredictResponse.FromString(answer.read_bytes())
    handler = grpc.unary_unary_rpc_method_handler(
        lambda request, context: response,
        request_deserializer=messages.PredictRequest.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )
    server = grpc.server(ThreadPoolExecutor(threads))
    service = grpc.method_handlers_generic_handler(messages.PREDICTION_SERVICE, {"Predict": handler})
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
