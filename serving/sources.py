"""Where versions come from: a store of many models, or TensorFlow Serving's base path of one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidArgumentError, StoreError
from ..store import Store

# What the original takes for a version: a decimal integer, with sign, leading zeros and blanks allowed.
_VERSION = re.compile(r"\s*[+-]?[0-9]{1,40}\s*", re.ASCII)
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Aspired:
    """The versions of one model that shall be served: number → folder."""

    model: str
    versions: dict[int, Path]


def from_store(store: Store) -> list[Aspired]:
    """All versions of all models of a store. Raises `StoreError` if it is none, or empty."""
    models = store.models()
    if not models:
        raise StoreError(f"the store {store.root} holds no models; make one with: servable export NAME")
    return [Aspired(name, {version: store.path(name, version) for version in store.versions(name)}) for name in models]


def from_base_path(model: str, base_path: str) -> Aspired:
    """The newest version below a base path, as TensorFlow Serving's default policy has it.

    Raises `InvalidArgumentError` for a relative path and `StoreError` if there is no version.
    """
    if not model:
        raise InvalidArgumentError("the model has no name; give one with --model_name")
    path = Path(base_path)
    if not path.is_absolute():
        raise InvalidArgumentError(
            f"Expected model {model} to have an absolute path or URI; got base_path()={base_path}"
        )
    found = list_versions(path)
    if not found:
        raise StoreError(
            f"No versions of servable {model} found under base path {base_path}. "
            "Did you forget to name your leaf directory as a number (eg. '/1/')?"
        )
    newest = max(found)
    return Aspired(model, {newest: found[newest]})


def list_versions(base_path: Path) -> dict[int, Path]:
    """Every child of a base path that is named as a version; of ``1`` and ``01`` the last by name.

    Raises `StoreError` if the folder cannot be listed.
    """
    try:
        names = sorted(child.name for child in base_path.iterdir())
    except OSError as error:
        raise StoreError(f"the base path {base_path} cannot be read: {error.strerror}") from error
    return {int(name): base_path / name for name in names if _VERSION.fullmatch(name) and int(name) in _INT64}
