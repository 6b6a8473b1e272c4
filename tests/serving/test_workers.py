"""Several processes on the same ports: the start, one that dies, what all of them say and take, and the end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from servable.errors import AddressInUseError, InvalidArgumentError, ProcessError, StoreError
from servable.serving import options, supervisor
from servable.serving.orders import END_LIMIT_S, GRACE_S, WORKER_END_LIMIT_S, CommandLine
from servable.serving.supervisor import Supervisor
from servable.store import Store

LIMIT_S = 60.0
METRICS = "/monitoring/prometheus/metrics"
CELSIUS = b'{"instances": [[100.0]]}'
STOPPING = "INFO servable.lifecycle: stopping: running requests have five seconds to finish"
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\S+Z [A-Z]+ servable\.[a-z.]+: .*")


def until(is_so: Callable[[], bool]) -> None:
    """Wait for it, but not for ever."""
    end = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        for probe in (one, two):
            probe.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip() not in ("", "Z", "Z+")


@dataclass
class Fleet:
    """``servable serve --workers`` in a process of its own."""

    process: subprocess.Popen[str]
    grpc_port: int
    rest_port: int
    log: Path
    block: list[str]

    def pids(self) -> list[int]:
        """The process ids of the workers."""
        command = ["pgrep", "-P", str(self.process.pid)]
        return [int(pid) for pid in subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()]

    def http(self, path: str, body: bytes | None = None) -> tuple[int, Any]:
        """Status and body of a request on a connection of its own, which any worker may take."""
        connection = HTTPConnection("127.0.0.1", self.rest_port, timeout=30)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """A connection of its own, which any worker may take."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}", options) as channel:
            yield channel

    def numbers(self, name: str) -> dict[str, float]:
        """A metric's values by their labels."""
        status, page = self.http(METRICS)
        assert status == 200, page
        found = re.findall(rf"^{re.escape(name)}\{{(.*)\}} (\S+)$", page.decode(), re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    def ready(self) -> int:
        return int(self.numbers("servable_workers")['state="ready"'])

    def restarts(self) -> int:
        return int(self.numbers("servable_worker_restarts_total")[""])

    def answered(self, model: str = "celsius") -> int:
        """Requests for a model that went well."""
        return int(self.numbers(":tensorflow:serving:request_count").get(f'model_name="{model}",status="OK"', 0))

    def kill_one(self) -> tuple[int, float]:
        """SIGKILL one worker; its process id, and the seconds until another is ready in its place."""
        pid, restarts = self.pids()[0], self.restarts()
        started = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_running(pid))  # up to then its socket takes connections, to reset them
        until(lambda: self.restarts() == restarts + 1 and self.ready() == 2)
        return pid, time.monotonic() - started

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def starting(tmp_path: Path, *words: Any) -> Iterator[Fleet]:
    """Start two workers; what they log goes to a file, and the block stays empty until somebody reads it."""
    ports = free_ports()
    (tmp_path / "monitoring").write_text("prometheus_config { enable: true }")
    arguments = [
        *(sys.executable, "-m", "servable", "serve", "--workers=2"),
        *(f"--port={ports[0]}", f"--rest_api_port={ports[1]}", f"--monitoring_config_file={tmp_path / 'monitoring'}"),
        *map(str, words),
    ]
    log = tmp_path / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
    fleet = Fleet(process, *ports, log, [])
    workers: list[int] = []
    try:
        yield fleet
        workers = fleet.pids()
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)
        until(lambda: not any(map(is_running, workers)))


@contextmanager
def running(tmp_path: Path, *words: Any) -> Iterator[Fleet]:
    """The same, when all workers answer."""
    with starting(tmp_path, *words) as fleet:
        assert fleet.process.stdout
        for line in fleet.process.stdout:
            fleet.block.append(line.rstrip("\n"))
            if line.startswith("metrics at"):
                break
        else:
            pytest.fail(f"it ended: {fleet.log.read_text()}")
        yield fleet


def logged(fleet: Fleet) -> list[str]:
    """The lines of the log without their times."""
    return [line.partition(" ")[2] for line in fleet.log.read_text().splitlines()]


@pytest.fixture
def copy(store: Store, tmp_path: Path) -> Store:
    """A store of its own with celsius version 1, to be changed."""
    shutil.copytree(store.path("celsius"), tmp_path / "store" / "celsius" / "1")
    return Store(tmp_path / "store")


def add_version(store: Store, version: int) -> None:
    """Publish a copy of version 1, as a whole at once."""
    staged = store.root.parent / "staged"
    shutil.copytree(store.root / "celsius" / "1", staged)
    staged.rename(store.root / "celsius" / str(version))


# The start


def test_the_start_is_announced_once_and_both_workers_answer(store: Store, tmp_path: Path) -> None:
    with running(tmp_path, store.root) as fleet:
        assert fleet.block == [
            f"serving {store.root} with 2 workers",
            "  celsius version 1: regress, serving_default → onnx (the manifest proves parity)",
            "  cnn version 1: classify, serve_bytes, serving_default → onnx (the manifest proves parity)",
            "  mlp version 1: classify, serve_bytes, serving_default → onnx (the manifest proves parity)",
            f"gRPC at 127.0.0.1:{fleet.grpc_port}",
            f"REST at http://127.0.0.1:{fleet.rest_port}/v1/models/MODEL",
            f"metrics at http://127.0.0.1:{fleet.rest_port}{METRICS}",
        ]
        assert len(fleet.pids()) == 2
        assert fleet.numbers("servable_workers") == {'state="ready"': 2, 'state="starting"': 0}
        assert fleet.restarts() == 0
        with ExitStack() as stack:
            for _ in range(40):
                connection = HTTPConnection("127.0.0.1", fleet.rest_port, timeout=30)
                stack.callback(connection.close)
                connection.request("POST", "/v1/models/celsius:predict", CELSIUS)
                assert connection.getresponse().read() == b'{"predictions":[[212.0]]}'
                channel = stack.enter_context(fleet.channel())
                stub = health_pb2_grpc.HealthStub(channel)
                assert stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status == 1
            for port in (fleet.rest_port, fleet.grpc_port):
                shares = [connections(pid, port) for pid in fleet.pids()]
                assert sum(shares) == 40
                assert min(shares) > 0
        assert fleet.end() == 0
        assert logged(fleet) == [STOPPING]


def connections(pid: int, port: int) -> int:
    """How many connections to a port a process has."""
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]  # gRPC takes IPv4 through sockets of both
    if not tables[0].exists():
        pytest.skip("only Linux tells whose a connection is")
    rows = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    established = {row[9] for row in rows if int(row[1].split(":")[1], 16) == port and row[3] == "01"}
    links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
    return sum(link.startswith("socket:[") and link[8:-1] in established for link in links)


@pytest.mark.parametrize("protocol", ["gRPC", "REST"])
def test_a_port_that_another_program_listens_on(cli: Any, store: Store, protocol: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken, free = other.getsockname()[1], free_ports()[0]
        flags = {"gRPC": ("--port", "--rest_api_port"), "REST": ("--rest_api_port", "--port")}[protocol]
        done = cli("serve", store.root, "--workers=2", f"{flags[0]}={taken}", f"{flags[1]}={free}")
    assert (done.returncode, done.stdout) == (AddressInUseError.exit_code, "")
    assert done.stderr == (
        f"error: cannot listen on 127.0.0.1:{taken} for {protocol}: Address already in use; "
        f"choose another with {flags[0]}\n"
    )


def test_nobody_else_gets_the_ports_of_a_fleet(cli: Any, store: Store, tmp_path: Path) -> None:
    with running(tmp_path, store.root) as fleet:
        for words in (["--workers=2"], ["--workers=1"]):
            done = cli("serve", store.root, *words, f"--port={fleet.grpc_port}", "--rest_api_port=0")
            assert done.returncode == AddressInUseError.exit_code
            assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1:{fleet.grpc_port} for gRPC: ")
        assert fleet.end() == 0
    with running(tmp_path, store.root, f"--port={fleet.grpc_port}", f"--rest_api_port={fleet.rest_port}"):
        pass  # closed connections of the first are no hindrance


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--workers=0"], "error: Invalid value for '--workers': 0 is not in the range x>=1."),
        (["--workers=2", "--grpc_max_threads=0"], "error: --grpc_max_threads is 0; give at least 1"),
        (["--workers=2", "--grpc_socket_path=/tmp/s"], "error: --grpc_socket_path cannot be given with --workers"),
        (["--workers=2", "--host=no.such.host.invalid"], "error: cannot listen on 'no.such.host.invalid'"),
        (["--workers=2", "--ssl_config_file=/no/such/file"], "error: /no/such/file cannot be read: No such file"),
    ],
)
def test_what_cannot_be_is_refused_as_with_one_process(cli: Any, store: Store, words: list[str], line: str) -> None:
    done = cli("serve", store.root, *words)
    assert (done.returncode, done.stdout) == (InvalidArgumentError.exit_code, "")
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_a_model_that_cannot_be_loaded_ends_the_start(cli: Any, copy: Store) -> None:
    (copy.path("celsius") / "model.onnx").write_bytes(b"damaged")
    ports = free_ports()
    texts = []
    for workers in (1, 2):
        words = [f"--workers={workers}", f"--port={ports[0]}", f"--rest_api_port={ports[1]}"]
        done = cli("serve", copy.root, *words)
        assert (done.returncode, done.stdout) == (StoreError.exit_code, "")
        assert done.stderr.count("\n") == 1
        texts.append(done.stderr)
    assert "model.onnx is damaged" in texts[0]
    assert texts[0] == texts[1]


def test_modules_in_the_folder_that_one_stands_in_are_left_alone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('not this one')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('not this one')")
    script = Path(sys.executable).with_name("servable")
    ports = free_ports()
    words = ["serve", store.root, "--workers=2", f"--port={ports[0]}", f"--rest_api_port={ports[1]}"]
    process = subprocess.Popen([script, *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == f"serving {store.root} with 2 workers\n"
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate(timeout=10)


# One that dies


class Caller(threading.Thread):
    """Asks without end, and takes down how each request went."""

    def __init__(self, ask: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._ask = ask
        self.over = False
        self.calls: list[tuple[float, float, str]] = []  # start, end, what went wrong

    def run(self) -> None:
        while not self.over:
            started, problem = time.monotonic(), ""
            try:
                self._ask()
            except (OSError, HTTPException, grpc.RpcError, AssertionError) as error:
                problem = f"{type(error).__name__}: {error}"
            self.calls.append((started, time.monotonic(), problem))

    @property
    def problems(self) -> list[str]:
        return [problem for _, _, problem in self.calls if problem]


@contextmanager
def calling(callers: Sequence[Caller]) -> Iterator[None]:
    """Have them call, each of them at least five times before and after what is done meanwhile."""
    for caller in callers:
        caller.start()
    try:
        until(lambda: all(len(caller.calls) > 5 for caller in callers))
        yield
        done = [len(caller.calls) for caller in callers]
        until(lambda: all(len(caller.calls) > before + 5 for caller, before in zip(callers, done, strict=True)))
    finally:
        for caller in callers:
            caller.over = True
        for caller in callers:
            caller.join(30)


def rest_caller(fleet: Fleet, body: bytes, *, model: str, keep: bool) -> Caller:
    connection = HTTPConnection("127.0.0.1", fleet.rest_port, timeout=30)

    def ask() -> None:
        try:
            connection.request("POST", f"/v1/models/{model}:predict", body)
            response = connection.getresponse()
            content = response.read()
            assert response.status == 200, content
        except BaseException:
            connection.close()
            raise
        if not keep:
            connection.close()

    return Caller(ask)


def predict_request(model: str, rows: int) -> predict_pb2.PredictRequest:
    """Many equal rows, which are short on the wire."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    tensor = request.inputs["celsius" if model == "celsius" else "image"]
    tensor.dtype = 1
    for size in (rows, 1) if model == "celsius" else (rows, 28, 28, 1):
        tensor.tensor_shape.dim.add(size=size)
    tensor.float_val.append(0.5)
    return request


def grpc_caller(stack: ExitStack, fleet: Fleet, request: predict_pb2.PredictRequest) -> Caller:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(stack.enter_context(fleet.channel()))

    def ask() -> None:
        stub.Predict(request, timeout=30)

    return Caller(ask)


@pytest.mark.slow
def test_a_killed_worker_takes_only_its_running_requests_with_it(store: Store, tmp_path: Path) -> None:
    with running(tmp_path, store.root) as fleet, ExitStack() as stack:
        callers = [
            *(rest_caller(fleet, CELSIUS, model="celsius", keep=keep) for keep in (True, True, True, False)),
            *(grpc_caller(stack, fleet, predict_request(model, 1)) for model in ("celsius", "celsius", "mlp", "cnn")),
        ]
        seconds = []
        with calling(callers):
            for _ in range(2):
                seen = fleet.answered()
                pid, took_s = fleet.kill_one()
                seconds.append(f"{took_s:.2f}")
                assert pid not in fleet.pids()
                assert len(fleet.pids()) == 2
                assert fleet.answered() >= seen
        print(f"from SIGKILL to ready again: {', '.join(seconds)} s")
        # A caller has one request running at a time. A gRPC client may send more before it sees the end of its
        # connection, but a thousand fail where it comes back to a socket that dies, and waits to try again.
        for caller, most in zip(callers, [1] * 4 + [4] * 4, strict=True):
            assert len(caller.problems) <= most * len(seconds), caller.problems
        assert fleet.end() == 0
    lines = fleet.log.read_text().splitlines()
    assert all(map(LOG_LINE.fullmatch, lines))
    first = next(line for line in lines if " WARNING " in line)
    assert first.endswith("was killed by SIGKILL; it is started again at once")
    assert sum(line.endswith(" is ready") for line in lines) == 2


def test_counts_add_up_and_outlive_a_worker(store: Store, tmp_path: Path) -> None:
    with running(tmp_path, store.root) as fleet:

        def send(times: int) -> None:
            for _ in range(times):
                assert fleet.http("/v1/models/celsius:predict", CELSIUS)[0] == 200

        send(30)
        latency = ":tensorflow:serving:request_latency_count"
        labels = 'model_name="celsius",API="predict",entrypoint="REST"'
        assert fleet.answered() == 30
        assert fleet.numbers(latency)[labels] == 30
        fleet.kill_one()
        assert fleet.answered() == 30
        assert fleet.numbers(latency)[labels] == 30
        send(10)
        assert fleet.answered() == 40
        loads = fleet.numbers(":tensorflow:cc:saved_model:load_attempt_count")
        assert set(loads.values()) == {3.0}
        assert set(fleet.numbers("servable_engine_info").values()) == {1.0}


def test_a_worker_that_cannot_start_again_is_tried_again(store: Store, tmp_path: Path) -> None:
    with running(tmp_path, store.root) as fleet:
        file = tmp_path / "monitoring"
        good = file.read_bytes()
        file.write_bytes(b"damaged")
        os.kill(fleet.pids()[0], signal.SIGKILL)
        until(lambda: fleet.log.read_text().count("cannot start: ") == 2)
        assert fleet.ready() == 1
        assert fleet.http("/v1/models/celsius:predict", CELSIUS)[0] == 200
        file.write_bytes(good)
        until(lambda: fleet.ready() == 2)
        assert fleet.restarts() == 3
        log = fleet.log.read_text().splitlines()
        assert all(map(LOG_LINE.fullmatch, log))
        assert "not a MonitoringConfig" in log[1]
        assert [line.rpartition("started again ")[2] for line in log[:3]] == ["at once", "in 1 s", "in 2 s"]
        assert fleet.end() == 0


def kill_both(fleet: Fleet) -> None:
    """One after the other, so that only workers of later are left."""
    before = fleet.pids()
    killed: list[int] = []
    while set(before) & set(fleet.pids()):
        pid = next(pid for pid in fleet.pids() if pid in before)
        restarts = fleet.restarts()
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        until(lambda pid=pid: not is_running(pid))  # type: ignore[misc]
        until(lambda restarts=restarts: fleet.restarts() > restarts and fleet.ready() == 2)  # type: ignore[misc]
    assert len(killed) == 2


def test_a_worker_comes_back_without_what_cannot_be_loaded(copy: Store, tmp_path: Path) -> None:
    shutil.copytree(copy.root / "celsius", copy.root / "other")
    # The retries that the first start would wait for take minutes.
    with running(tmp_path, copy.root, "--max_num_load_retries=5") as fleet:
        assert served(fleet, "celsius", "other") == [ALL, ALL]
        (copy.root / "other" / "1" / "model.onnx").write_bytes(b"damaged")
        (copy.root / "empty" / "1").mkdir(parents=True)
        until(lambda: states(fleet, "empty") != {})
        kill_both(fleet)
        assert served(fleet, "celsius", "other", "empty") == [ALL, NONE, NONE]
        log = fleet.log.read_text()
        for number in (1, 2):
            assert re.search(rf"worker {number} \(.*\) does not serve empty version 1: ", log)
            assert re.search(rf"worker {number} \(.*\) does not serve other version 1: .*model.onnx is damaged", log)
        assert "cannot start" not in log
        shutil.copy(copy.root / "celsius" / "1" / "model.onnx", copy.root / "other" / "1")
        until(lambda: states(fleet, "other") == {1: "AVAILABLE"})
        assert served(fleet, "celsius", "other") == [ALL, ALL]
        assert fleet.end() == 0


def test_a_worker_comes_back_without_the_version_of_a_label(copy: Store, tmp_path: Path) -> None:
    add_version(copy, 2)
    file = tmp_path / "models"
    file.write_text(
        f"""model_config_list {{ config {{
            name: "celsius" base_path: "{copy.root / "celsius"}" model_platform: "tensorflow"
            model_version_policy {{ all {{}} }}
            version_labels {{ key: "canary" value: 2 }}
        }} }}"""
    )
    with running(tmp_path, f"--model_config_file={file}") as fleet:
        canary = "/v1/models/celsius/labels/canary:predict"
        assert fleet.http(canary, CELSIUS)[0] == 200
        shutil.rmtree(copy.root / "celsius" / "2")
        until(lambda: states(fleet)[2] == "END")
        kill_both(fleet)
        assert served(fleet, "celsius") == [ALL]
        assert {fleet.http(canary, CELSIUS)[0] for _ in range(16)} == {404}
        add_version(copy, 2)
        until(lambda: states(fleet).get(2) == "AVAILABLE")
        assert {fleet.http(canary, CELSIUS)[0] for _ in range(16)} == {200}
        assert "cannot start" not in fleet.log.read_text()


def config_text(**models: Path) -> str:
    """The same as `config`, for a file."""
    return text_format.MessageToString(config(**models).config)


def has_told(log: Path, number: int) -> bool:
    """Whether a worker has found something wrong with the config file since it came back."""
    text = log.read_text()
    return text.rfind(f"(what is served stays as it is) worker={number}\n") > text.rfind(f"worker {number} (")


@pytest.mark.parametrize("change", [False, True])
def test_a_worker_comes_back_while_the_config_file_is_half_written(store: Store, tmp_path: Path, change: bool) -> None:
    base = store.root / "celsius"
    file = tmp_path / "models"
    file.write_text(config_text(a=base))
    words = ["--model_config_file_poll_wait_seconds=1"]
    with running(tmp_path, f"--model_config_file={file}", *words) as fleet:
        if change:  # what was taken last counts
            file.write_text(config_text(b=base))
            until(lambda: states(fleet, "b") == {1: "AVAILABLE"} and served(fleet, "a") == [NONE])
        now, before = ("b", "a") if change else ("a", "b")
        file.write_text(config_text(c=base)[:-10])
        kill_both(fleet)
        assert served(fleet, now, before) == [ALL, NONE]
        until(lambda: has_told(fleet.log, 1) and has_told(fleet.log, 2))
        assert served(fleet, now, before) == [ALL, NONE]
        assert "cannot start" not in fleet.log.read_text()
        file.write_text(config_text(c=base))
        until(lambda: states(fleet, "c") == {1: "AVAILABLE"} and served(fleet, now, "c") == [NONE, ALL])


def test_pauses_grow_but_not_for_ever() -> None:
    assert [supervisor._pause_s(failures) for failures in (1, 2, 3, 4, 6, 7, 10_000)] == [0, 1, 2, 4, 16, 30, 30]


class Scarce:
    """The threads with one name cannot be started for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.left, self.refused = 1, 0
        start = threading.Thread.start

        def scarcely(thread: threading.Thread) -> None:
            if thread.name == name and self.left:
                self.left, self.refused = self.left - 1, self.refused + 1
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", scarcely)


def children() -> set[int]:
    """The processes that this one has started, also those that nobody has waited for."""
    found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=False)
    return {int(pid) for pid in found.stdout.split() if Path(f"/proc/{pid}").exists()}


def supervised(store: Store) -> Supervisor:
    """Two workers of this process."""
    own = {"host": "127.0.0.1", "runtime": "auto", "device": "cpu", "threads": 0, "access_log": False}
    grpc_port, rest_port = free_ports()
    given = {"port": grpc_port, "rest_api_port": rest_port}
    plan = options.from_flags(given, own, store.root)
    return Supervisor(2, CommandLine(given, own, store.root, "text"), plan.options)


def test_without_a_thread_for_a_worker_there_is_no_start(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    scarce = Scarce(monkeypatch, "link-2")
    with pytest.raises(ProcessError, match="worker 2 cannot be started: can't start new thread"):
        supervised(store)
    assert scarce.refused == 1
    assert children() <= before


def test_without_a_thread_for_a_worker_it_is_started_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = children()
    with supervised(store) as fleet:
        scarce = Scarce(monkeypatch, "link-2")
        fleet._workers[2].process.kill()
        until(lambda: fleet._restarts == 2 and fleet._workers[2].ready_since is not None)
        assert scarce.refused == 1
        assert len(children() - before) == 2
    assert "worker 2 cannot be started: can't start new thread; it is started again in 1 s" in caplog.text
    assert children() <= before


def test_lines_tell_which_worker_wrote_them(store: Store, tmp_path: Path) -> None:
    with running(tmp_path, store.root, "--access-log", "--log-format=json") as fleet:
        until(lambda: fleet.http("/v1/models/mlp")[0] == 200 and workers_in(fleet.log) >= {1, 2})
        fleet.kill_one()
    assert workers_in(fleet.log) == {None, 1, 2}  # the supervisor is none of them


def workers_in(log: Path) -> set[int | None]:
    return {json.loads(line).get("worker") for line in log.read_text().splitlines()}


def test_a_worker_that_hangs_holds_up_no_page_and_no_status(store: Store, tmp_path: Path) -> None:
    with running(tmp_path, store.root) as fleet:
        for _ in range(20):
            fleet.http("/v1/models/celsius:predict", CELSIUS)
        assert fleet.answered() == 20
        hung, _ = fleet.pids()
        os.kill(hung, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(12) as pool:  # of so many connections the other worker takes some
                for path in (METRICS, "/v1/models/mlp"):
                    asked = [pool.submit(fleet.http, path) for _ in range(12)]
                    until(lambda asked=asked: any(one.done() for one in asked))  # type: ignore[misc]
                    status, content = next(one.result() for one in asked if one.done())
                    assert status == 200
                    assert b"AVAILABLE" in content or b'request_count{model_name="celsius",status="OK"} 20' in content
                os.kill(hung, signal.SIGCONT)
        finally:
            os.kill(hung, signal.SIGCONT)
        assert fleet.ready() == 2


# What all of them say and take


def states(fleet: Fleet, model: str = "celsius") -> dict[int, str]:
    status, body = fleet.http(f"/v1/models/{model}")
    if status == 404:
        return {}
    return {int(one["version"]): one["state"] for one in json.loads(body)["model_version_status"]}


def test_a_version_is_available_when_all_workers_have_it(copy: Store, tmp_path: Path) -> None:
    stages = "servable_request_stage_seconds_count"
    with running(tmp_path, copy.root) as fleet:
        for _ in range(20):
            assert fleet.http("/v1/models/celsius:predict", CELSIUS)[0] == 200
        fleet.kill_one()
        assert any('version="1"' in labels for labels in fleet.numbers(stages))
        add_version(copy, 2)
        until(lambda: states(fleet).get(2) == "AVAILABLE")
        for _ in range(20):
            assert fleet.http("/v1/models/celsius/versions/2:predict", CELSIUS)[0] == 200
        assert states(fleet) == {1: "AVAILABLE", 2: "AVAILABLE"}
        shutil.rmtree(copy.root / "celsius" / "1")
        until(lambda: states(fleet)[1] == "END")
        for _ in range(20):
            assert fleet.http("/v1/models/celsius/versions/1:predict", CELSIUS)[0] == 404
        assert not any('version="1"' in labels for labels in fleet.numbers(stages))  # also of the killed one


def config(**models: Path) -> Any:
    """A ReloadConfigRequest."""
    request = model_management_pb2.ReloadConfigRequest()
    for name, base in models.items():
        request.config.model_config_list.config.add(name=name, base_path=str(base), model_platform="tensorflow")
    return request


def reload(fleet: Fleet, request: Any) -> None:
    with fleet.channel() as channel:
        model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=LIMIT_S)


def served(fleet: Fleet, *models: str) -> list[Counter[str]]:
    """How the requests for each model were answered, on many connections."""
    answers = [Counter[str]() for _ in models]
    for _ in range(16):
        with fleet.channel() as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            for model, seen in zip(models, answers, strict=True):
                request = predict_request("celsius", 1)
                request.model_spec.name = model
                try:
                    stub.Predict(request, timeout=30)
                    seen["OK"] += 1
                except grpc.RpcError as error:
                    seen[error.code().name] += 1
    return answers


ALL, NONE = Counter(OK=16), Counter(NOT_FOUND=16)


def test_a_reload_reaches_all_workers_also_those_of_later(store: Store, tmp_path: Path) -> None:
    base = store.root / "celsius"
    with running(tmp_path, "--model_name=a", f"--model_base_path={base}") as fleet:
        assert served(fleet, "a", "b") == [ALL, NONE]
        reload(fleet, config(b=base))
        assert served(fleet, "a", "b") == [NONE, ALL]
        fleet.kill_one()
        assert served(fleet, "a", "b") == [NONE, ALL]

        twice = config(a=base)
        twice.config.model_config_list.config.add(name="a", base_path=str(base), model_platform="tensorflow")
        label = config(b=base)
        label.config.model_config_list.config[0].version_labels["x"] = 7
        for request, code in ((twice, "INVALID_ARGUMENT"), (label, "FAILED_PRECONDITION")):
            with pytest.raises(grpc.RpcError) as caught:
                reload(fleet, request)
            assert caught.value.code().name == code
        fleet.kill_one()
        assert served(fleet, "a", "b") == [NONE, ALL]

        label.config.model_config_list.config[0].version_labels["x"] = 1
        reload(fleet, label)
        fleet.kill_one()
        for _ in range(16):
            assert fleet.http("/v1/models/b/labels/x:predict", CELSIUS)[0] == 200
        assert fleet.end() == 0


def test_a_reload_that_comes_off_in_part_is_in_force_also_for_workers_of_later(copy: Store, tmp_path: Path) -> None:
    base = copy.root / "celsius"
    broken = tmp_path / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "saved_model.pb").write_bytes(b"damaged")
    words = ["--model_name=a", f"--model_base_path={base}", "--max_num_load_retries=0"]
    with running(tmp_path, *words) as fleet:
        with pytest.raises(grpc.RpcError) as caught:
            reload(fleet, config(b=base, c=broken.parent))
        assert caught.value.code().name == "UNKNOWN"
        assert "1 model(s) did not become available" in str(caught.value.details())
        assert served(fleet, "a", "b", "c") == [NONE, ALL, NONE]
        fleet.kill_one()
        assert served(fleet, "a", "b", "c") == [NONE, ALL, NONE]
        assert states(fleet, "c") == {1: "END"}


def test_status_over_grpc_is_that_of_all(copy: Store, tmp_path: Path) -> None:
    with running(tmp_path, copy.root) as fleet, fleet.channel() as channel:
        add_version(copy, 2)
        until(lambda: states(fleet).get(2) == "AVAILABLE")
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "celsius"
        request.model_spec.version.value = 2
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        (status,) = stub.GetModelStatus(request, timeout=30).model_version_status
        assert (status.version, status.state) == (2, 30)
        request.model_spec.version.value = 9
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetModelStatus(request, timeout=30)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


# The end


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_requests_finish_before_the_end(store: Store, tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path, store.root) as fleet, ExitStack() as stack:
        callers = [
            *(grpc_caller(stack, fleet, predict_request("mlp", 10_000)) for _ in range(4)),
            *(rest_caller(fleet, CELSIUS, model="celsius", keep=keep) for keep in (True, False)),
        ]
        workers = fleet.pids()
        for caller in callers:
            caller.start()
        try:
            until(lambda: all(len(caller.calls) > 1 for caller in callers))
            asked = time.monotonic()
            if number is signal.SIGINT:
                os.killpg(fleet.process.pid, number)  # as Ctrl-C does
                assert fleet.process.wait(30) == 0
            else:
                assert fleet.end(number) == 0
        finally:
            for caller in callers:
                caller.over = True
            for caller in callers:
                caller.join(30)
        # What was just being sent may have come too late.
        before = [call for caller in callers for call in caller.calls if call[0] < asked - 0.05]
        assert any(end > asked for _, end, _ in before)
        assert [problem for _, _, problem in before if problem] == []
        assert not any(map(is_running, workers))
        assert logged(fleet) == [STOPPING]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_may_come_while_models_are_loaded(store: Store, tmp_path: Path, number: signal.Signals) -> None:
    with starting(tmp_path, store.root) as fleet:
        until(lambda: len(fleet.pids()) == 2)
        os.killpg(fleet.process.pid, number)
        assert fleet.process.wait(30) == 0
        assert fleet.process.communicate()[0] == ""
        assert fleet.log.read_text() == ""


@pytest.mark.parametrize("loading", [True, False])
def test_workers_end_with_a_supervisor_that_is_killed(store: Store, tmp_path: Path, loading: bool) -> None:
    with (starting if loading else running)(tmp_path, store.root) as fleet:
        until(lambda: len(fleet.pids()) == 2)
        workers = fleet.pids()
        fleet.process.kill()
        fleet.process.wait(30)
        until(lambda: not any(map(is_running, workers)))
        assert fleet.log.read_text() == ""


def test_the_end_is_over_before_docker_kills() -> None:
    assert GRACE_S < WORKER_END_LIMIT_S < END_LIMIT_S < 9.5


@pytest.mark.slow
def test_a_worker_that_hangs_does_not_hold_up_the_end_for_long(store: Store, tmp_path: Path) -> None:
    with running(tmp_path, store.root) as fleet:
        hung, _ = fleet.pids()
        os.kill(hung, signal.SIGSTOP)
        asked = time.monotonic()
        assert fleet.end() == 0
        assert END_LIMIT_S - 0.1 < time.monotonic() - asked < 10
        assert not is_running(hung)


def test_a_worker_that_is_told_to_end_is_replaced(store: Store, tmp_path: Path) -> None:
    with running(tmp_path, store.root) as fleet:
        os.kill(fleet.pids()[0], signal.SIGTERM)
        until(lambda: fleet.restarts() == 1 and fleet.ready() == 2)
        assert "ended with exit code 0; it is started again at once" in fleet.log.read_text()
        assert fleet.end() == 0
