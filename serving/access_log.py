"""Request ids, and one log line for each request where that is asked for."""

from __future__ import annotations

import logging
import re
import secrets
from itertools import count
from time import perf_counter_ns
from typing import TYPE_CHECKING

from ..errors import Code
from .monitoring import STAGES, Call

if TYPE_CHECKING:
    from .http import Request, Response

REQUEST_ID = "x-request-id"
# What may be echoed and logged as it is.
_GOOD_ID = re.compile(r"[\x21-\x7e]{1,128}")
_PREFIX = secrets.token_hex(4)
_numbers = count(1)

_log = logging.getLogger("servable.access")


def is_good_id(text: str) -> bool:
    """Whether a caller's own id for its request can be echoed and logged."""
    return _GOOD_ID.fullmatch(text) is not None


def new_id() -> str:
    """An id that no other request has, of whatever server."""
    return f"{_PREFIX}-{next(_numbers):x}"


class AccessLog:
    """Writes to the logger ``servable.access``; the fields travel as ``extra`` for a JSON formatter."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled

    def http(self, request: Request, response: Response, call: Call) -> None:
        """Log an HTTP request."""
        what = f"{request.method.decode('latin-1')} {request.target[:200].decode('latin-1')}"
        self._write(what, str(response.status), call, len(request.body), len(response.body))

    def rpc(self, call: Call, method: str, code: Code, received: int, sent: int) -> None:
        """Log a gRPC call."""
        self._write(method, code.name, call, received, sent)

    def _write(self, what: str, status: str, call: Call, received: int, sent: int) -> None:
        duration_ms = (perf_counter_ns() - call.started_ns) / 1e6
        fields = {
            "request": what,
            "status": status,
            "duration_ms": round(duration_ms, 3),
            "received_bytes": received,
            "sent_bytes": sent,
            "request_id": call.request_id or new_id(),
        }
        if call.engine is not None:
            fields |= {"model": call.model, "version": call.version, "runtime": call.engine.runtime}
            fields |= {
                f"{stage}_ms": round(spent / 1e6, 3) for stage, spent in zip(STAGES, call.stages_ns, strict=True)
            }
        _log.info("%s %s %.3f ms", what, status, duration_ms, extra={"fields": fields})
