"""How a version becomes ready: load it, attach its batcher, run its warm-up requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InternalError, InvalidArgumentError, NotFoundError, UnavailableError
from . import batching, steps, warmup
from .batch_queue import Batcher
from .batch_scheduler import BatchScheduler
from .batching import BatchingParameters
from .data_plane import DataPlane
from .engines import Engine, LoadOptions
from .methods import Method, PredictionService
from .monitoring import Call, Monitor
from .servable import Servable
from .status import VersionStatus
from .warmup import Warmup

PER_MODEL_FILE = "batching_params.pbtxt"


@dataclass(frozen=True)
class BatchingOptions:
    """``parameters`` are for all versions; with ``per_model``, those of each version's own file instead."""

    parameters: BatchingParameters = field(default_factory=BatchingParameters)
    per_model: bool = False


class Loader:
    """Makes servables of version folders."""

    def __init__(self, options: LoadOptions, batching: BatchingOptions | None, warm: Warmup, monitor: Monitor) -> None:
        """Without ``batching`` every request is a run of its own."""
        self._options = options
        self._batching = batching
        self._warmup = warm
        self._monitor = monitor
        self._closed = False
        self._scheduler: BatchScheduler | None = None
        if batching:
            parameters = batching.parameters
            self._scheduler = BatchScheduler(parameters.num_batch_threads, monitor, parameters.thread_pool_name)

    def __call__(self, name: str, version: int, folder: Path) -> Servable:
        """Load a version folder; raises `ServableError` for whatever is wrong with it."""
        parameters = self._parameters(folder)
        servable = Servable.load(name, version, folder, self._options)
        try:
            if parameters and self._scheduler:
                servable.batcher = Batcher(self._scheduler, parameters, servable.run)
            if self._warmup.enabled:
                self._warm_up(servable, folder)
        except BaseException:
            servable.close()
            raise
        return servable

    def _parameters(self, folder: Path) -> BatchingParameters | None:
        if not self._batching:
            return None
        if not self._batching.per_model:
            return self._batching.parameters
        file = folder / PER_MODEL_FILE
        return batching.read_checked(file) if file.exists() else None

    def _warm_up(self, servable: Servable, folder: Path) -> None:
        service = PredictionService(DataPlane(_Alone(servable)))
        methods: Mapping[str, Method] = {
            "Predict": service.predict,
            "Classify": service.classify,
            "Regress": service.regress,
            "MultiInference": service.multi_inference,
        }

        def run(method: str, request: Any) -> None:
            if self._closed:
                raise UnavailableError("the server is shutting down")
            try:
                steps.finish(methods[method](request, Call(method, "warm-up")))
            except (TypeError, ValueError, ArithmeticError) as error:
                raise InternalError(f"{type(error).__name__}: {error}") from error

        warmup.replay(folder, servable.name, run, self._warmup.iterations, self._monitor)

    def hurry(self) -> None:
        """The server stops: let no request wait for others to join it."""
        if self._scheduler:
            self._scheduler.hurry()

    def close(self) -> None:
        """Break off warm-ups, and stop the batching threads."""
        self._closed = True
        if self._scheduler:
            self._scheduler.close()


class _Alone:
    """The only servable there is, for a data plane that warms it up."""

    is_shared = False

    def __init__(self, servable: Servable) -> None:
        self._servable = servable

    def enter(self, name: str, version: int | None) -> Servable:
        self._servable.enter()
        return self._servable

    def labelled(self, name: str, label: str) -> int:
        raise InvalidArgumentError(f"Unrecognized servable version label: {label}")

    def statuses(self, name: str, version: int | None) -> list[VersionStatus]:
        raise NotFoundError(f"Could not find any versions of model {name}")

    def models(self) -> list[str]:
        return [self._servable.name]

    def engines(self, name: str) -> dict[int, Mapping[str, Engine]]:
        return {self._servable.version: self._servable.engines}

    def reload(self, config: Any) -> None:
        raise InvalidArgumentError("a model that is being warmed up has no configuration")
