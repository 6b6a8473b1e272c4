"""A store with every artifact, beside which the shared one is small."""

from __future__ import annotations

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
