"""ONNX Runtime in a loop: ``python onnx_loop.py MODEL.onnx INPUT.npy SECONDS``.

One thread, one input, and no server: what the model itself costs. Prints a JSON object: how often it
``runs`` a second, and the ``median_s`` of a run.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np
import onnxruntime as ort

WARMUP_RUNS = 20


def measure(model: str, inputs: str, seconds: float) -> dict[str, float]:
    """Run the model over and over for some seconds."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: np.load(inputs)}
    for _ in range(WARMUP_RUNS):
        session.run(None, feed)
    times = []
    started = now = time.perf_counter()
    while now < started + seconds:
        before = now
        session.run(None, feed)
        now = time.perf_counter()
        times.append(now - before)
    return {"runs": len(times) / (now - started), "median_s": statistics.median(times)}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
