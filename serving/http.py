"""What an HTTP server and an application tell each other: requests, responses, exchanges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Protocol

HTML = b"text/html"
JSON = b"application/json"

Headers = Sequence[tuple[bytes, bytes]]


class Request:
    """One request as it came; ``target`` is the request line's, undecoded, ``started_ns`` of its last byte."""

    __slots__ = ("body", "headers", "keep_alive", "method", "started_ns", "target")

    def __init__(self, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], *, keep_alive: bool) -> None:
        self.method = method
        self.target = target
        self.headers = headers  # names in lower case
        self.keep_alive = keep_alive
        self.body = b""
        self.started_ns = 0


class Response:
    """One answer; ``headers`` are those beside Content-Type and Content-Length.

    With ``closes`` the connection ends behind it.
    """

    __slots__ = ("body", "closes", "content_type", "headers", "status")

    def __init__(self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers
        self.closes = False


class Exchange(Protocol):
    """A request on its way to its response, in the hands of an application."""

    quick: bool  # whether `run` may run on the event loop

    @property
    def timeout_s(self) -> float | None:
        """Limit for an answer that does not come at once."""

    def run(self, done: Callable[[Response], None]) -> Response | None:
        """Answer, or return None and call ``done`` with the answer later, from any thread; never raises."""

    def expired(self) -> Response:
        """The answer where it took longer than ``timeout_s``; what comes later is dropped."""

    def abandon(self) -> None:
        """Hear that nobody waits for the answer any more."""

    def finish(self, response: Response) -> None:
        """Hear which response was sent: the time to count and to log."""


Application = Callable[[Request], Exchange]


def page(status: int) -> Response:
    """A bare HTML page for a status, for what is no request to the API; the connection ends behind it."""
    phrase = HTTPStatus(status).phrase
    text = f"<html><head><title>{status} {phrase}</title></head><body><h1>{phrase}</h1></body></html>\n"
    response = Response(status, text.encode(), HTML)
    response.closes = True
    return response
