"""The models that a server is told to serve: ModelServerConfig, in a file or in a reload request."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import InvalidArgumentError, NotFoundError
from ..wire import messages, text_config

PLATFORM = "tensorflow"

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)(.*)", re.DOTALL)


class Policy(ABC):
    """Which of the versions below a base path are to be served."""

    @abstractmethod
    def choose(self, found: Mapping[int, Path]) -> dict[int, Path]:
        """The chosen ones of these versions, the highest first."""


@dataclass(frozen=True)
class Latest(Policy):
    """The ``number`` highest versions; 0 is taken for 1."""

    number: int = 1

    def choose(self, found: Mapping[int, Path]) -> dict[int, Path]:
        return _of(found, sorted(found)[-max(self.number, 1) :])


@dataclass(frozen=True)
class All(Policy):
    """Every version."""

    def choose(self, found: Mapping[int, Path]) -> dict[int, Path]:
        return _of(found, found)


@dataclass(frozen=True)
class Specific(Policy):
    """These versions; those that are not there are left out."""

    versions: tuple[int, ...] = ()

    def choose(self, found: Mapping[int, Path]) -> dict[int, Path]:
        return _of(found, found.keys() & set(self.versions))


def _of(found: Mapping[int, Path], versions: Iterable[int]) -> dict[int, Path]:
    return {version: found[version] for version in sorted(versions, reverse=True)}


@dataclass(frozen=True)
class ModelConfig:
    """One model: where its versions lie, which of them to serve, and what they are labelled."""

    name: str
    base_path: Path
    policy: Policy = field(default_factory=Latest)
    labels: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    platform: str = PLATFORM


def read(path: Path) -> list[ModelConfig]:
    """The models of a text-format ModelServerConfig.

    Raises `NotFoundError` if there is no such file, and `InvalidArgumentError` naming the file for
    anything else. A file without a list, such as a half-written one, is not taken for an empty list.
    """
    try:
        message = text_config.read(path, messages.ModelServerConfig)
    except InvalidArgumentError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise NotFoundError(f"{path}; No such file or directory") from error
        raise
    if not message.HasField("model_config_list"):
        raise InvalidArgumentError(
            f"{path}; Invalid argument: it has no model_config_list (to serve nothing, write: model_config_list {{}})"
        )
    return parse(message, where=str(path))


def parse(message: Any, *, where: str) -> list[ModelConfig]:
    """The models of a ModelServerConfig message.

    Raises `InvalidArgumentError` with the original's text behind ``where``, the name of what the message
    came from; "" leaves the text alone.
    """
    try:
        return _parse(message)
    except InvalidArgumentError as error:
        if where:
            raise InvalidArgumentError(f"{where}: {error}") from error
        raise


def _parse(message: Any) -> list[ModelConfig]:
    if message.WhichOneof("config") != "model_config_list":
        raise InvalidArgumentError(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
    configs = message.model_config_list.config
    # All names before all paths before all platforms, as the original does.
    names = set()
    for config in configs:
        if config.name in names:
            raise InvalidArgumentError(f"Illegal to list model {config.name} multiple times in config list")
        names.add(config.name)
    paths = [_base_path(config) for config in configs]
    platforms = [_platform(config) for config in configs]
    for config in configs:
        if config.HasField("logging_config"):
            # The original says so after it has loaded the models.
            raise InvalidArgumentError(f"No request-logger-creator provided. Model {config.name} sets logging_config")
    return [
        ModelConfig(
            name=config.name,
            base_path=path,
            policy=_policy(config.model_version_policy),
            labels=MappingProxyType(dict(config.version_labels)),
            platform=platform,
        )
        for config, path, platform in zip(configs, paths, platforms, strict=True)
    ]


def _base_path(config: Any) -> Path:
    path: str = config.base_path
    if uri := _URI.fullmatch(path):
        scheme, host, path = uri.groups()
        if scheme.lower() != "file" or host:
            raise InvalidArgumentError(
                f"Model {config.name} has the base_path {config.base_path}; only local folders are read, "
                "as /path or file:///path"
            )
    if not Path(path).is_absolute():
        raise InvalidArgumentError(
            f"Expected model {config.name} to have an absolute path or URI; got base_path()={config.base_path}"
        )
    if "\0" in path:
        raise InvalidArgumentError(f"Model {config.name} has a base_path with a NUL character in it: {path!r}")
    return Path(path)


def _platform(config: Any) -> str:
    kind, platform = config.model_type, config.model_platform
    deprecated, ours = "ModelServerConfig::model_type (deprecated)", "ModelServerConfig::model_platform"
    if kind and platform:
        raise InvalidArgumentError(f"Illegal setting both {deprecated} and {ours}, model name is {config.name}")
    if not kind and not platform:
        raise InvalidArgumentError(f"Illegal setting neither {deprecated} nor {ours}, model name is {config.name}")
    # The only other ModelType is OTHER.
    if kind not in (0, 1):
        raise InvalidArgumentError(f"ModelServerConfig::model_type choice {kind} not supported.")
    if platform not in ("", PLATFORM):
        raise InvalidArgumentError(f"Model {config.name} requests unsupported platform {platform}")
    return PLATFORM


def _policy(message: Any) -> Policy:
    match message.WhichOneof("policy_choice"):
        case "all":
            return All()
        case "specific":
            return Specific(tuple(message.specific.versions))
        case _:
            return Latest(message.latest.num_versions or 1)
