"""What wrk and h2load print, read; no failed request passes."""

from __future__ import annotations

import pytest

from servable.benchmarks.load import Load, parse_h2load, parse_wrk, require
from servable.errors import ProcessError

URL = "http://h/"
WRK = """\
Running 2s test @ http://127.0.0.1:18101/
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.69ms    2.23ms  16.50ms   88.18%
    Req/Sec     2.33k   102.21     2.51k    70.00%
  4653 requests in 2.00s, 1.60MB read
Requests/sec:   2325.99
Transfer/sec:    820.00KB
answers: 4653 with 200, 0 with another status, in 2000000 us
"""

H2LOAD = """\
starting benchmark...
spawning thread #0: 8 total client(s). 3000 total requests
Application protocol: h2c
progress: 10% done
progress: 100% done

finished in 1.19s, 2517.11 req/s, 397.90KB/s
requests: 3000 total, 3000 started, 3000 done, 3000 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 3000 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 474.23KB (485613) total, 9.38KB (9600) headers (space savings 96.05%), 310.55KB (318000) data
                     min         max         mean         sd        +/- sd
time for request:     3.23ms     38.54ms     25.14ms      2.53ms    87.83%
"""


def test_wrk() -> None:
    assert parse_wrk(WRK, URL) == Load(4653, 2326.5)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("4653 with 200, 0 with", "4600 with 200, 53 with", "wrk at http://h/: 4600 answers with 200, 53 others"),
        ("4653 with 200", "0 with 200", "wrk at http://h/: 0 answers with 200, 0 others"),
        (
            "Requests/sec",
            "  Socket errors: connect 0, read 3, write 0, timeout 1\nRequests/sec",
            "wrk at http://h/: 4653 answers with 200, 0 others; Socket errors: connect 0, read 3, write 0, timeout 1",
        ),
        ("answers:", "replies:", "wrk printed no count of answers"),
    ],
)
def test_a_failed_run_of_wrk_is_no_figure(old: str, new: str, expected: str) -> None:
    with pytest.raises(ProcessError) as caught:
        parse_wrk(WRK.replace(old, new), URL)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("duration", ["1.19s", "593.76ms", "42us"])
def test_h2load(duration: str) -> None:
    assert parse_h2load(H2LOAD.replace("1.19s", duration), URL) == Load(3000, 2517.11, 318000)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("3000 succeeded, 0 failed", "2990 succeeded, 10 failed", "h2load at http://h/: requests: 3000 total"),
        (
            "3000 succeeded, 0 failed, 0 errored",
            "2999 succeeded, 0 failed, 1 errored",
            "h2load at http://h/: requests: 3000 total",
        ),
        ("0 timeout", "1 timeout", "h2load at http://h/: requests: 3000 total"),
        ("3000 done, 3000 succeeded", "2999 done, 2999 succeeded", "h2load at http://h/: requests: 3000 total"),
        ("finished in", "stopped in", "h2load printed no summary"),
        (" data\n", "\n", "h2load printed no summary"),
    ],
)
def test_a_failed_run_of_h2load_is_no_figure(old: str, new: str, expected: str) -> None:
    with pytest.raises(ProcessError) as caught:
        parse_h2load(H2LOAD.replace(old, new), URL)
    assert str(caught.value).startswith(expected)


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="needs h2load; on Debian: apt-get install nghttp2-client"):
        require(["h2load"])
