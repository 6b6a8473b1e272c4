"""The load generators wrk and h2load: run one, read what it printed, accept no failed request."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ProcessError

CONNECTIONS = 8
# Requests that h2load keeps under way on each HTTP/2 connection.
STREAMS = 8
GRACE_S = 60
_DEBIAN = {"wrk": "wrk", "h2load": "nghttp2-client"}
_SCRIPT = Path(__file__).with_name("post.lua")


@dataclass(frozen=True)
class Load:
    """One run: the requests answered, how many a second, and the bytes of all bodies where they are known."""

    requests: int
    rate: float
    body_bytes: int | None = None


def require(tools: Sequence[str]) -> str:
    """The versions of these load generators; exits if one is not installed."""
    for tool in tools:
        if not shutil.which(tool):
            raise SystemExit(f"error: this benchmark needs {tool}; on Debian: apt-get install {_DEBIAN[tool]}")
    found = []
    for tool in tools:
        done = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False)
        found.append(f"{tool} {parse_version(done.stdout)}")
    return ", ".join(found)


def parse_version(text: str) -> str:
    """What ``wrk --version`` and ``h2load --version`` call themselves, without their own name.

    >>> parse_version("h2load nghttp2/1.52.0")
    'nghttp2/1.52.0'
    """
    words = text.split()
    return words[1] if len(words) > 1 else "of unknown version"


def wrk(url: str, body: Path, seconds: int, connections: int = CONNECTIONS) -> Load:
    """Post a JSON body from keep-alive connections for some seconds."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"-s{_SCRIPT}", url, "--", str(body)]
    return parse_wrk(_output(command, seconds + GRACE_S), url)


def h2load(url: str, body: Path, requests: int, *, streams: int = STREAMS, json: bool = False) -> Load:
    """Send a number of requests from 8 connections: gRPC over HTTP/2, or JSON over HTTP/1.1."""
    headers = ["-Hcontent-type: application/json"] if json else ["-Hcontent-type: application/grpc", "-Hte: trailers"]
    protocol = ["--h1"] if json else [f"-m{streams}"]
    count = max(requests, CONNECTIONS)
    command = ["h2load", "-t1", f"-c{CONNECTIONS}", f"-n{count}", f"-d{body}", *protocol, *headers, url]
    return parse_h2load(_output(command, count // 50 + GRACE_S), url)


def _output(command: Sequence[str], limit_s: float) -> str:
    try:
        ends_with_us = ["setpriv", "--pdeathsig", "KILL", *command]
        done = subprocess.run(ends_with_us, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise ProcessError(f"{command[0]} was not done within {limit_s:g} s") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["it wrote nothing"]
        raise ProcessError(f"{command[0]} ended with exit code {done.returncode}: {lines[-1]}")
    return done.stdout


def parse_wrk(text: str, url: str) -> Load:
    """What wrk and our script for it printed about this URL.

    Raises `ProcessError` if a request failed or was answered with another status than 200.
    """
    match = re.search(r"^answers: (\d+) with 200, (\d+) with another status, in (\d+) us$", text, re.MULTILINE)
    if not match:
        raise ProcessError(f"wrk printed no count of answers: {text.strip()[-200:]!r}")
    ok, other, microseconds = (int(group) for group in match.groups())
    failed = re.search(r"Socket errors: .*", text)
    if failed or other or not ok:
        raise ProcessError(f"wrk at {url}: {ok} answers with 200, {other} others{f'; {failed[0]}' if failed else ''}")
    return Load(ok, ok / (microseconds / 1e6))


def parse_h2load(text: str, url: str) -> Load:
    """What h2load printed about this URL.

    Raises `ProcessError` unless every request was answered with a status of 2xx. gRPC errors have that
    status too, but no body: compare ``body_bytes``.
    """
    rate = re.search(r"^finished in [^,]+, ([\d.]+) req/s", text, re.MULTILINE)
    counts = re.search(
        r"^requests: (\d+) total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout",
        text,
        re.MULTILINE,
    )
    body = re.search(r"^traffic: .* headers .*?\((\d+)\) data$", text, re.MULTILINE)
    if not rate or not counts or not body:
        raise ProcessError(f"h2load printed no summary: {text.strip()[-200:]!r}")
    total, succeeded, *failures = (int(group) for group in counts.groups())
    if any(failures) or succeeded != total:
        raise ProcessError(f"h2load at {url}: {counts[0]}")
    return Load(total, float(rate[1]), int(body[1]))
