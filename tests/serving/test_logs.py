"""How log lines look, and whose they are."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest

from servable.serving import logs
from servable.serving.logs import LogFormat

LOG = logging.getLogger("servable.access")
FIELDS = {"request": "GET /", "status": "200", "duration_ms": 1.5, "model": "m"}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    logger = logging.getLogger("servable")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


def line(capsys: pytest.CaptureFixture[str], log_format: LogFormat, worker: int | None) -> str:
    """What is written of one record."""
    logs.configure(log_format, worker=worker)
    LOG.info("GET / %s", 200, extra={"fields": FIELDS})
    return capsys.readouterr().err


@pytest.mark.parametrize(("worker", "more"), [(None, ""), (3, " worker=3")])
def test_a_line_for_people(capsys: pytest.CaptureFixture[str], worker: int | None, more: str) -> None:
    expected = rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z INFO servable\.access: GET / 200{more} model=m\n"
    assert re.fullmatch(expected, line(capsys, "text", worker))


@pytest.mark.parametrize(("worker", "more"), [(None, {}), (3, {"worker": 3})])
def test_a_line_for_machines(capsys: pytest.CaptureFixture[str], worker: int | None, more: dict[str, int]) -> None:
    entry = json.loads(line(capsys, "json", worker))
    assert entry.pop("time")
    assert entry == {"level": "INFO", "logger": "servable.access", "message": "GET / 200", **more, **FIELDS}


@pytest.mark.parametrize("worker", [None, 3])
def test_a_traceback_stands_below_its_line(capsys: pytest.CaptureFixture[str], worker: int | None) -> None:
    logs.configure("text", worker=worker)
    try:
        raise ValueError("it broke")
    except ValueError:
        LOG.exception("no luck")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith("ERROR servable.access: no luck" + (" worker=3" if worker else ""))
    assert (rest[0], rest[-1]) == ("Traceback (most recent call last):", "ValueError: it broke")
