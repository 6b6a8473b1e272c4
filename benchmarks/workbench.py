"""What all parts of the serving benchmark share: the store, the place, how often and how long, the verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..store import Store
from .payloads import Payload
from .servers import PEERS, Place
from .verdict import Verdict

MODELS = ("mlp", "cnn")
QUANTIZATIONS = "float32"


@dataclass(frozen=True)
class Workbench:
    """Where and how to measure; ``bentoml`` is BentoML's virtual environment, None to leave it out."""

    place: Place
    store: Path
    runs: int
    duration: int
    bentoml: Path | None
    verdict: Verdict

    def payload(self, model: str, count: int = 1) -> Payload:
        """Requests with this many images."""
        return Payload(model, count, Store(self.store).path(model), self.place.folder)

    def rounds(self, measures: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
        """Measure each in turn, ``runs`` times; one round before that only warms up."""
        values: dict[str, list[float]] = {name: [] for name in measures}
        for run in range(self.runs + 1):
            for name, measure in measures.items():
                value = measure()
                if run:
                    values[name].append(value)
        return values

    def onnx_loop(self, payload: Payload) -> tuple[float, float]:
        """ONNX Runtime alone on the servers' core: images a second, and the median seconds of one run."""
        loop = [str(PEERS / "onnx_loop.py"), str(payload.onnx), str(payload.array_file), str(self.duration)]
        command = self.place.on_server_core([sys.executable, *loop])
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=self.duration + 60)
        result = json.loads(done.stdout)
        return result["runs"] * payload.count, result["median_s"]


def export_models(store: Path) -> None:
    """Export the models that are served, in a process of its own."""
    command = [sys.executable, "-m", "servable", "export", *MODELS, f"--store={store}", f"--quantize={QUANTIZATIONS}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: servable export failed: {done.stderr.strip()[-500:]}")
