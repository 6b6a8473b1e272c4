"""Where versions come from: a store of many models, base paths with a policy, or a fixed list."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import StoreError
from ..runtimes.base import SAVED_MODEL_FILES
from ..store import Store
from .model_config import ModelConfig, Specific

# What the original takes for a version: a decimal integer, with sign, leading zeros and blanks allowed.
_VERSION = re.compile(r"\s*[+-]?[0-9]{1,40}\s*", re.ASCII)
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Aspired:
    """The versions of one model that shall be served: number → folder; ``problem`` says what is missing."""

    model: str
    versions: Mapping[int, Path]
    problem: str = ""


@dataclass(frozen=True)
class Unseen:
    """A model whose versions cannot be listed, and why; what is served of it stays as it is."""

    model: str
    problem: str


class Source(Protocol):
    """Says which versions of which models shall be served."""

    def look(self) -> Sequence[Aspired | Unseen]:
        """What there is now, for every model that is configured; raises `StoreError` if nothing can be seen."""


class Fixed:
    """Versions that are given once and for all."""

    def __init__(self, aspired: Sequence[Aspired]) -> None:
        self._aspired = aspired

    def look(self) -> Sequence[Aspired]:
        return self._aspired


class StoreSource:
    """All versions of all models of a store, also of those that appear in it later."""

    def __init__(self, store: Store) -> None:
        """Raises `StoreError` if the store is none, or empty."""
        self._store = store
        if not self.look():
            raise StoreError(f"the store {store.root} holds no models; make one with: servable export NAME")

    def look(self) -> Sequence[Aspired | Unseen]:
        seen: list[Aspired | Unseen] = []
        for name in self._store.folders():
            folder = self._store.root / name
            try:
                versions = {version: folder / str(version) for version in self._store.versions(name)}
            except FileNotFoundError:  # it went just now
                continue
            except OSError as error:
                seen.append(Unseen(name, f"the folder {folder} cannot be read: {error.strerror}"))
                continue
            if versions:
                seen.append(Aspired(name, versions))
        return seen


class ConfigSource:
    """The versions below the base paths of configured models, as each model's policy chooses them."""

    def __init__(self, configs: Sequence[ModelConfig]) -> None:
        self.configs = configs

    def look(self) -> Sequence[Aspired | Unseen]:
        return [_look(config) for config in self.configs]


def _look(config: ModelConfig) -> Aspired | Unseen:
    try:
        found = list_versions(config.base_path)
    except StoreError as error:
        return Unseen(config.name, str(error))
    return Aspired(config.name, config.policy.choose(found), _missing(config, found))


def _missing(config: ModelConfig, found: Mapping[int, Path]) -> str:
    """What is not below a base path, though it should be."""
    if not found:
        nothing = f"No versions of servable {config.name} found under base path {config.base_path}. "
        if any((config.base_path / file).exists() for file in SAVED_MODEL_FILES):
            return f"{nothing}It looks like a version itself: give the folder that it is in, {config.base_path.parent}"
        return f"{nothing}Did you forget to name your leaf directory as a number (eg. '/1/')?"
    wanted = config.policy.versions if isinstance(config.policy, Specific) else ()
    missing = sorted(set(wanted) - found.keys())
    if not missing:
        return ""
    numbers = f"version{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
    return f"{numbers} of servable {config.name} not found under base path {config.base_path}"


def list_versions(base_path: Path) -> dict[int, Path]:
    """Every child of a base path that is named as a version; of ``1`` and ``01`` the last by name.

    Raises `StoreError` if the folder cannot be listed.
    """
    try:
        names = sorted(child.name for child in base_path.iterdir())
    except OSError as error:
        raise StoreError(f"the base path {base_path} cannot be read: {error.strerror}") from error
    return {int(name): base_path / name for name in names if _VERSION.fullmatch(name) and int(name) in _INT64}
