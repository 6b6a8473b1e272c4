"""A server's Prometheus page: read it, and say how a counter or a mean has moved between two readings."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import ProcessError

PATH = "/monitoring/prometheus/metrics"
CONFIG = "prometheus_config { enable: true }\n"
_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)", re.ASCII)
_LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"', re.ASCII)
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True)
class Sample:
    """One line: the name of a series, its labels and its value."""

    name: str
    labels: Mapping[str, str]
    value: float


def parse(text: str) -> list[Sample]:
    """All samples of a page in the text format; lines that are none are passed over.

    >>> parse(':requests{model_name="mlp"} 3')
    [Sample(name=':requests', labels={'model_name': 'mlp'}, value=3.0)]
    """
    samples = []
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line.strip())
        if not match:
            continue
        labels = {label[1]: _ESCAPE.sub(_unescape, label[2]) for label in _LABEL.finditer(match[2] or "")}
        try:
            samples.append(Sample(match[1], labels, float(match[3])))
        except ValueError:
            continue
    return samples


def _unescape(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]


def total(samples: Iterable[Sample], name: str, **labels: str) -> float:
    """The sum of all samples of a series that have these labels, among others."""
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def means(before: list[Sample], after: list[Sample], name: str, by: str, **labels: str) -> dict[str, float]:
    """The mean of what a histogram was given between two readings, for each value of the label ``by``."""
    found = {}
    for key in dict.fromkeys(s.labels[by] for s in after if s.name == f"{name}_count" and by in s.labels):
        wanted = {**labels, by: key}
        count = total(after, f"{name}_count", **wanted) - total(before, f"{name}_count", **wanted)
        if count > 0:
            found[key] = (total(after, f"{name}_sum", **wanted) - total(before, f"{name}_sum", **wanted)) / count
    return found


def fetch(port: int) -> list[Sample]:
    """The page of the server on this port of the loopback address. Raises `ProcessError` if it has none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", PATH)
        response = connection.getresponse()
        text = response.read().decode()
        if response.status != 200:
            raise ProcessError(f"http://127.0.0.1:{port}{PATH} answered status {response.status}")
        return parse(text)
    finally:
        connection.close()
