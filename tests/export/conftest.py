"""A store with every artifact, beside which the shared one is small, and a TFLite file in another order."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Self

import pytest

from servable.cli.course import source
from servable.errors import ServableError
from servable.export import export_model, pipeline
from servable.models import card
from servable.nursery import Outcome
from servable.store import Store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with version 1 of celsius, mlp and cnn in every format and quantization. Read only."""
    store = Store(tmp_path_factory.mktemp("every") / "store")
    for name in ("celsius", "mlp", "cnn"):
        export_model(source(card(name)), store)
    return store


@pytest.fixture(scope="session")
def reordered() -> Callable[[bytes], bytes]:
    """Gives a TFLite file its tensors against the order of their names; the converter's own order varies."""
    schema: Any = import_module("tensorflow.lite.python.schema_py_generated")

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        model = schema.Model.GetRootAsModel(changed, 0)
        subgraph, signature = model.Subgraphs(0), model.SignatureDefs(0)
        inputs = [signature.Inputs(i) for i in range(signature.InputsLength())]
        outputs = [signature.Outputs(i) for i in range(signature.OutputsLength())]
        for places, items in (subgraph.InputsAsNumpy(), inputs), (subgraph.OutputsAsNumpy(), outputs):
            places[:] = [item.TensorIndex() for item in sorted(items, key=lambda item: item.Name(), reverse=True)]
        return bytes(changed)

    return change


class Inline:
    """Takes the place of `Pool` and runs every task in this process, where tests can put stubs."""

    def __init__(self, *_: Any) -> None:
        self._waiting: list[tuple[Callable[[Outcome], None], Callable[[], Any]]] = []

    def submit(
        self, then: Callable[[Outcome], None], function: Callable[..., Any], *arguments: Any, begin: Callable[[], None]
    ) -> None:
        def call() -> Any:
            begin()
            return function(*arguments)

        self._waiting.append((then, call))

    def run(self) -> None:
        while self._waiting:
            then, call = self._waiting.pop(0)
            try:
                outcome = Outcome(call())
            except (ServableError, OSError) as error:
                outcome = Outcome(error=error)
            then(outcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing runs any more."""


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert and verify in this process."""
    monkeypatch.setattr(pipeline, "Pool", Inline)
