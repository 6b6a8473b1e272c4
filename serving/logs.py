"""How the server's log lines look: text for people, JSON for machines; on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]
LOG_FORMATS: tuple[LogFormat, ...] = ("text", "json")


def configure(log_format: LogFormat, *, worker: int | None = None) -> None:
    """Send the package's log records to stderr in the given format, with the number of the worker that writes them."""
    fields = {} if worker is None else {"worker": worker}
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(fields) if log_format == "json" else _Text(fields))
    logger = logging.getLogger("servable")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Format(logging.Formatter):
    """Knows the fields of every record."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self._fields = fields

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """These, and the record's own."""
        return {**self._fields, **getattr(record, "fields", {})}


class _Text(_Format):
    """``2026-01-31T12:00:00.000Z INFO servable.access: … key=value``; a traceback on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        fields = self.fields(record)
        skip = ("request", "status", "duration_ms")  # these are in the message
        more = "".join(f" {key}={value}" for key, value in fields.items() if key not in skip)
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}{more}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(_Format):
    """One JSON object a line: time, level, logger, message, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self.fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)
