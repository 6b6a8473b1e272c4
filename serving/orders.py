"""What the supervisor tells a worker, and what it hears of its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ServableError
from ..wire import messages
from .engines import Engine
from .logs import LogFormat
from .model_config import ModelConfig
from .servable import Servable

GRACE_S = 5.0
# After the grace period, a worker leaves behind what still hangs, and is then itself not waited for any more.
# All is over before the 10 s that Docker waits before it kills.
WORKER_END_LIMIT_S = GRACE_S + 3.0
END_LIMIT_S = GRACE_S + 4.0


@dataclass(frozen=True)
class CommandLine:
    """What `options.from_flags` takes, and how log lines look."""

    given: Mapping[str, Any]
    own: Mapping[str, Any]
    store: Path | None
    log_format: LogFormat


@dataclass(frozen=True)
class Config:
    """A configuration that came by a reload, as a serialized ModelServerConfig."""

    serialized: bytes

    def message(self) -> Any:
        """The ModelServerConfig."""
        return messages.ModelServerConfig.FromString(self.serialized)


@dataclass(frozen=True)
class Load:
    """What a worker is to be, and to serve: what came by a reload, else what was last taken from the config file.

    The first start is strict; a later one goes on without what cannot be loaded.
    """

    number: int
    is_first: bool
    command_line: CommandLine
    reloaded: Config | None
    from_file: list[ModelConfig] | None


def portable(configs: Sequence[ModelConfig]) -> list[ModelConfig]:
    """The same for another process, which read-only mappings cannot be sent to."""
    return [replace(config, labels=dict(config.labels)) for config in configs]


@dataclass(frozen=True)
class Start:
    """What a start found: the engines of each version or why it is not served, and what else is to be told."""

    versions: dict[tuple[str, int], Mapping[str, Engine] | str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def note(self, model: str, version: int, loaded: Servable | ServableError) -> None:
        """Take down the outcome of a load, as a server reports it."""
        self.versions[model, version] = dict(loaded.engines) if isinstance(loaded, Servable) else str(loaded)

    @property
    def not_served(self) -> list[tuple[str, int]]:
        """The versions that could not be loaded."""
        return sorted(version for version, found in self.versions.items() if isinstance(found, str))
