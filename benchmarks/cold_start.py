"""Cold start of one prediction: ``servable predict`` against the same with the official client package.

Both are whole processes that read one picture, ask one running server for its class over gRPC and
print it. The official script needs ``tensorflow-serving-api``, which imports TensorFlow. Runs are
interleaved. Exits with 1 if the median of servable is above one fifth of the official one's.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..clients import is_ready
from ..models import card
from ..models.samples import sample_pictures
from ..process import Child
from .machine import describe, spread

OFFICIAL = """
import sys
import grpc
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

address, picture, *labels = sys.argv[1:]
pixels = np.asarray(Image.open(picture).convert("L"), np.float32)[None, :, :, None] / 255
request = predict_pb2.PredictRequest()
request.model_spec.name = "cnn"
request.inputs["image"].CopyFrom(tf.make_tensor_proto(pixels))
with grpc.insecure_channel(address) as channel:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.Predict(request, timeout=30)
print(labels[int(np.argmax(tf.make_ndarray(response.outputs["probabilities"])))])
"""
LIMIT = 5.0


def main() -> int:
    """Run the benchmark and print it; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="of each command (default: 7)")
    runs = parser.parse_args().runs
    print(describe(["grpcio", "numpy", "tensorflow", "tensorflow-serving-api"]))
    label, picture = "Ankle boot", sample_pictures()["Ankle boot"]
    with tempfile.TemporaryDirectory(prefix="servable-cold-start-") as folder:
        store = Path(folder) / "store"
        export = [
            sys.executable,
            "-m",
            "servable",
            "export",
            "cnn",
            f"--store={store}",
            "--formats=onnx",
            "--quantize=float32",
        ]
        subprocess.run(export, capture_output=True, check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        serve = [sys.executable, "-m", "servable", "serve", str(store), f"--port={port}", "--rest_api_port=0"]
        target = f"grpc://127.0.0.1:{port}/cnn"
        commands = {
            "servable predict": [sys.executable, "-m", "servable", "predict", target, str(picture)],
            "tensorflow-serving-api": [
                *(sys.executable, "-c", OFFICIAL, f"127.0.0.1:{port}", str(picture)),
                *card("cnn").labels,
            ],
        }
        with Child(serve, Path(folder) / "serve.log", "servable serve") as server:
            server.wait_until(lambda: is_ready(target), 60)
            times: dict[str, list[float]] = {name: [] for name in commands}
            for run in range(runs + 1):
                for name, command in commands.items():
                    elapsed = _time(command, label)
                    if run:  # the first round only warms the file cache
                        times[name].append(elapsed)
    for name, values in times.items():
        print(f"{name:24}{spread(values, 's')}")
    ratio = statistics.median(times["tensorflow-serving-api"]) / statistics.median(times["servable predict"])
    print(f"servable predict is {ratio:.1f} times as fast; at least {LIMIT:g} is wanted")
    return 0 if ratio >= LIMIT else 1


def _time(command: list[str], label: str) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    elapsed = time.perf_counter() - started
    if label not in done.stdout:
        raise SystemExit(f"{command[0]} answered {done.stdout!r}; expected {label}")
    return elapsed


if __name__ == "__main__":
    sys.exit(main())
