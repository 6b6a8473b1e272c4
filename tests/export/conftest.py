"""A store with every artifact, beside which the shared one is small, and a TFLite file in another order."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from servable.cli.course import source
from servable.export import export_model
from servable.models import card
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
