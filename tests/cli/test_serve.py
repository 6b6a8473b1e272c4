"""``servable serve``: tensorflow_model_server's flags as it reads them, the start, the logs and the end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import grpc
import httpx
import pytest
from click.testing import CliRunner

from servable.cli.serve import command
from servable.errors import InvalidArgumentError, NotFoundError, StoreError
from servable.serving.batching import BatchingParameters
from servable.serving.core import CoreOptions
from servable.serving.engines import LoadOptions
from servable.serving.flags import BY_NAME, FLAGS, Support
from servable.serving.loader import BatchingOptions
from servable.serving.manager import LifecycleOptions
from servable.serving.options import STORE_REST_PORT, Plan, from_flags
from servable.serving.sources import Aspired, Unseen
from servable.serving.warmup import Warmup
from servable.store import Store

OWN = {"host": "127.0.0.1", "runtime": "auto", "device": "cpu", "threads": 0, "access_log": False}


def parsed(*words: str) -> dict[str, Any]:
    """The flags of tensorflow_model_server in a command line, as `from_flags` gets them."""
    params = command.make_context("serve", list(words)).params
    return {name: value for name, value in params.items() if name in BY_NAME and value is not None}


def usage_error(*words: str) -> str:
    with pytest.raises(click.UsageError) as caught:
        command.make_context("serve", list(words))
    return caught.value.format_message()


# Reading the command line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {}),
        (("--port=1",), {"port": 1}),
        (("--port", "1"), {"port": 1}),
        (("--port=1", "--port=2"), {"port": 2}),
        (("--port= 7 ",), {"port": 7}),
        (("--model_name=", "--model_base_path=/a=b"), {"model_name": "", "model_base_path": "/a=b"}),
        (("--prefer_tflite_model",), {"prefer_tflite_model": True}),
        (("--prefer_tflite_model", "store"), {"prefer_tflite_model": True}),
        (("--prefer_tflite_model=TRUE",), {"prefer_tflite_model": True}),
        (("--prefer_tflite_model=0",), {"prefer_tflite_model": False}),
        (("--prefer_tflite_model", "--prefer_tflite_model=false"), {"prefer_tflite_model": False}),
        (("--enable_grpc_healthcheck_service=False",), {"enable_grpc_healthcheck_service": False}),
        (("--rest_api_timeout_in_ms=-5",), {"rest_api_timeout_in_ms": -5}),
        (("--load_retry_interval_micros=-9223372036854775808",), {"load_retry_interval_micros": -(2**63)}),
        (("--per_process_gpu_memory_fraction=0.25",), {"per_process_gpu_memory_fraction": 0.25}),
        (("--", "--port=1"), {}),
    ],
)
def test_flags_are_read_as_the_original_reads_them(words: Sequence[str], expected: dict[str, Any]) -> None:
    assert parsed(*words) == expected


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--port=x", "Couldn't interpret value x for flag port: expected int32."),
        ("--port=", "Couldn't interpret value  for flag port: expected int32."),
        ("--port=1.0", "Couldn't interpret value 1.0 for flag port: expected int32."),
        ("--port=1_000", "Couldn't interpret value 1_000 for flag port: expected int32."),
        ("--port=٣", "Couldn't interpret value ٣ for flag port: expected int32."),
        ("--port=2147483648", "expected an integer from -2147483648 to 2147483647"),
        ("--load_retry_interval_micros=9223372036854775808", "expected an integer from -9223372036854775808"),
        ("--prefer_tflite_model=yes", "Couldn't interpret value yes for flag prefer_tflite_model: expected true or"),
        ("--prefer_tflite_model=", "expected true or false"),
        ("--per_process_gpu_memory_fraction=half", "expected float"),
        ("--per_process_gpu_memory_fraction=nan", "expected"),
        ("--per_process_gpu_memory_fraction=-inf", "expected a finite number"),
        ("--port=" + "9" * 5000, "flag port: expected int32."),
        ("--prot=1", "unknown argument: --prot; did you mean '--port'?"),
        ("--noprefer_tflite_model", "unknown argument: --noprefer_tflite_model; did you mean '--prefer_tflite_model'?"),
        ("--model-name=x", "unknown argument: --model-name; did you mean '--model_name'?"),
        ("--zzzzzz", "unknown argument: --zzzzzz"),
        ("-port=1", "-p"),
    ],
)
def test_bad_flags_are_named(word: str, message: str) -> None:
    found = usage_error(word)
    assert message in found
    assert "\n" not in found
    assert len(found) < 300 or len(word) > 300


def test_the_help_names_every_flag_and_what_it_does() -> None:
    result = CliRunner().invoke(command, ["--help"], terminal_width=120)
    assert result.exit_code == 0
    text = "".join(result.output.split()).lower()  # lines are broken at blanks and hyphens
    for flag in FLAGS:
        assert f"--{flag.name}" in text
        assert "".join(flag.note.split()).lower() in text


def test_the_version() -> None:
    result = CliRunner().invoke(command, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("TensorFlow ModelServer: ")


# What follows from it


def plan(store: Store | Path | None, *words: str, **own: Any) -> Plan:
    place = store.root if isinstance(store, Store) else store
    return from_flags(parsed(*words), OWN | own, place)


def test_a_store_has_rest_on_its_usual_port(store: Store) -> None:
    found = plan(store)
    assert (found.options.port, found.options.rest_api_port) == (8500, STORE_REST_PORT)
    assert [seen.model for seen in found.source.look()] == ["celsius", "cnn", "mlp"]
    assert found.warnings == []
    assert plan(store, "--rest_api_port=0").options.rest_api_port is None
    assert plan(store, "--rest_api_port=9000").options.rest_api_port == 9000
    assert plan(store, "--port=0").options.port is None


def base(store: Store) -> str:
    return f"--model_base_path={store.root / 'celsius'}"


def test_a_base_path_has_rest_off_and_the_originals_name(store: Store) -> None:
    found = plan(None, base(store))
    assert (found.options.port, found.options.rest_api_port) == (8500, None)
    assert found.source.look() == [Aspired("default", {1: store.path("celsius", 1)})]
    assert plan(None, base(store), "--rest_api_port=8501", "--model_name=m").source.look()[0].model == "m"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["STORE", "BASE"], "STORE and --model_base_path are two ways to say what to serve; give one of them"),
        (["STORE", "--model_name=m"], "STORE and --model_name are two ways to say what to serve; give one of them"),
        ([], "there is nothing to serve: give a STORE, --model_name and --model_base_path, or --model_config_file"),
        (["--model_name=m"], "there is nothing to serve: give a STORE, --model_name and --model_base_path, or"),
        (
            ["--model_base_path=store/m", "--model_name=m"],
            "Expected model m to have an absolute path or URI; got base_path()=store/m",
        ),
        (["BASE", "--model_name="], "the model has no name; give one with --model_name"),
        (
            ["BASE", "--port=0"],
            "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set.",
        ),
        (["STORE", "--port=9", "--rest_api_port=9"], "--port and --rest_api_port are both 9; give two different ports"),
        (["STORE", "--port=70000"], "--port is 70000; give a port from 0 to 65535"),
        (["STORE", "--port=-1"], "--port is -1; give a port from 0 to 65535"),
        (["STORE", "--rest_api_num_threads=0"], "--rest_api_num_threads is 0; give at least 1"),
        (["STORE", "--grpc_max_threads=-1"], "--grpc_max_threads is -1; give at least 1"),
        (["STORE", "--num_tflite_pools=0"], "--num_tflite_pools is 0; give at least 1"),
        (["STORE", "--model_config_file=/x"], "STORE and --model_config_file are two ways to say what to serve; give"),
        (["STORE", "--use_alts_credentials"], "--use_alts_credentials is not supported: ALTS works within"),
        (["STORE", "--grpc_channel_arguments=a=1,b"], "--grpc_channel_arguments: 'b' should read name=value"),
        (
            ["STORE", "--batching_parameters_file=/x"],
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true.",
        ),
        (
            [
                "STORE",
                *(f"--tensorflow_{kind}_parallelism=2" for kind in ("session", "intra_op", "inter_op")),
            ],
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, server_options.tensorflow_inter_op_parallelism) "
            "separately. You cannot configure all.",
        ),
        (
            ["STORE", "--per_process_gpu_memory_fraction=1.5"],
            "--per_process_gpu_memory_fraction is 1.5; give a share from 0 to 1",
        ),
        (["STORE", "--monitoring_config_file=/no/such/file"], "/no/such/file cannot be read: No such file"),
        (["STORE", "--ssl_config_file=/no/such/file"], "/no/such/file cannot be read: No such file"),
    ],
)
def test_what_cannot_be_is_refused(store: Store, words: list[str], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{re.escape(text)}"):
        plan(store if "STORE" in words else None, *(base(store) if w == "BASE" else w for w in words if w != "STORE"))


def test_refused_flags_at_their_defaults_are_let_pass(store: Store) -> None:
    assert plan(store, "--use_alts_credentials=false").warnings == []


IDLE = [flag for flag in FLAGS if flag.support is Support.NO_MEANING]
OTHER = {"bool": lambda d: str(not d).lower(), "int32": lambda d: str(d + 1), "int64": lambda d: str(d + 1)}


@pytest.mark.parametrize("flag", IDLE, ids=lambda flag: flag.name)
def test_a_flag_without_effect_gets_one_line(store: Store, flag: Any) -> None:
    words = [f"--{flag.name}={OTHER.get(flag.kind, lambda _: 'x')(flag.default)}"]
    warnings = plan(store, *words).warnings
    (line,) = [warning for warning in warnings if warning.startswith(f"--{flag.name} ")]
    assert "\n" not in line
    assert flag.note in line
    assert len(warnings) == 1
    default = str(flag.default).lower() if flag.kind == "bool" else flag.default
    assert plan(store, f"--{flag.name}={default}").warnings == []


def test_flags_reach_the_options(store: Store, tmp_path: Path) -> None:
    config = tmp_path / "monitoring"
    config.write_text('prometheus_config { enable: true path: "/metrics" }')
    found = plan(
        store,
        "--grpc_socket_path=/tmp/s",
        "--rest_api_num_threads=3",
        "--rest_api_timeout_in_ms=1500",
        "--rest_api_enable_cors_support",
        "--grpc_channel_arguments=grpc.max_concurrent_streams=7,x=y=z",
        "--grpc_max_threads=5",
        "--prefer_tflite_model",
        "--num_tflite_pools=2",
        "--tensorflow_session_parallelism=4",
        "--tensorflow_inter_op_parallelism=1",
        "--per_process_gpu_memory_fraction=0.5",
        "--saved_model_tags=serve,gpu",
        "--enable_signature_method_name_check",
        "--enable_grpc_healthcheck_service=0",
        "--enable_serialization_as_tensor_content",
        "--num_load_threads=3",
        "--num_unload_threads=2",
        "--max_num_load_retries=4",
        "--load_retry_interval_micros=-1",
        "--file_system_poll_wait_seconds=-7",
        "--allow_version_labels_for_unavailable_models",
        "--num_request_iterations_for_warmup=9",
        f"--monitoring_config_file={config}",
        host="::1",
        access_log=True,
    ).options
    assert found.load == LoadOptions(
        prefer_tflite=True,
        threads=4,
        inter_op_threads=1,
        tflite_pools=2,
        gpu_memory_fraction=0.5,
        tags=("serve", "gpu"),
    )
    assert (found.rest.threads, found.rest.timeout_s, found.rest.cors) == (3, 1.5, True)
    assert found.rest.metrics_path == "/metrics"
    assert found.grpc.arguments == [("grpc.max_concurrent_streams", 7), ("x", "y=z")]
    assert (found.grpc.socket_path, found.grpc.threads) == ("/tmp/s", 5)
    assert (found.grpc.health, found.grpc.as_content) == (False, True)
    assert (found.host, found.check_method_names, found.access_log) == ("::1", True, True)
    assert found.lifecycle == LifecycleOptions(3, 2, 4, -1)
    assert found.core == CoreOptions(
        file_system_poll_wait_seconds=-7, allow_version_labels_for_unavailable_models=True, retry_at_start=True
    )
    assert (found.warmup, found.batching) == (Warmup(iterations=9), None)
    assert plan(store).options.core == CoreOptions()
    assert plan(store, "--enable_model_warmup=false").options.warmup == Warmup(enabled=False)
    assert plan(store, "--rest_api_timeout_in_ms=0").options.rest.timeout_s is None


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics"),
        ('prometheus_config { enable: false path: "/m" }', ""),
        ('prometheus_config { path: "/m" }', ""),
        ("", ""),
    ],
)
def test_monitoring_config(store: Store, tmp_path: Path, text: str, path: str) -> None:
    (tmp_path / "m").write_text(text)
    assert plan(store, f"--monitoring_config_file={tmp_path / 'm'}").options.rest.metrics_path == path


def test_bad_monitoring_config(store: Store, tmp_path: Path) -> None:
    for text, message in (
        ("prometheus { }", "Invalid protobuf file"),
        ('prometheus_config { enable: true path: "m" }', "must begin"),
    ):
        (tmp_path / "m").write_text(text)
        with pytest.raises(InvalidArgumentError, match=message):
            plan(store, f"--monitoring_config_file={tmp_path / 'm'}")


# Versions below a base path


@pytest.mark.parametrize(
    ("names", "number", "chosen"),
    [
        (["1", "2", "10"], 10, "10"),
        (["00000123"], 123, "00000123"),
        (["+5", "4"], 5, "+5"),
        (["1", "01"], 1, "1"),
        (["-3"], -3, "-3"),
        ([" 7 ", "1.0", "1e3", "v9", "12abc", "tmp"], 7, " 7 "),
        (["1", "9223372036854775808", "٣"], 1, "1"),
        (["1", "9" * 200], 1, "1"),
    ],
)
def test_versions_are_named_as_the_original_reads_them(
    tmp_path: Path, names: list[str], number: int, chosen: str
) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    source = plan(None, f"--model_base_path={tmp_path}").source
    assert source.look() == [Aspired("default", {number: tmp_path / chosen})]


def test_no_versions_and_no_folder(tmp_path: Path) -> None:
    def seen(path: Path) -> Aspired | Unseen:
        (one,) = plan(None, f"--model_base_path={path}").source.look()
        return one

    (tmp_path / "file").write_text("")
    nothing = seen(tmp_path)
    assert nothing == Aspired("default", {}, nothing.problem)
    assert nothing.problem == (
        f"No versions of servable default found under base path {tmp_path}. "
        "Did you forget to name your leaf directory as a number (eg. '/1/')?"
    )
    for name, why in (("nope", "No such file or directory"), ("file", "Not a directory")):
        problem = f"the base path {tmp_path / name} cannot be read: {why}"
        assert seen(tmp_path / name) == Unseen("default", problem)


def test_batching_parameters_come_from_their_file(store: Store, tmp_path: Path) -> None:
    assert plan(store, "--enable_batching").options.batching == BatchingOptions()
    file = tmp_path / "batching"
    file.write_text("max_batch_size { value: 8 } allowed_batch_sizes: 2 allowed_batch_sizes: 8")
    words = ("--enable_batching", f"--batching_parameters_file={file}", "--enable_per_model_batching_parameters")
    parameters = BatchingParameters(max_batch_size=8, allowed_batch_sizes=(2, 8))
    assert plan(store, *words).options.batching == BatchingOptions(parameters, per_model=True)
    for text in ("max_batch_size: 8", "max_batch_size { value: -1 }"):
        file.write_text(text)
        with pytest.raises(InvalidArgumentError, match=r"batching|max_batch_size"):
            plan(store, *words)
    with pytest.raises(InvalidArgumentError, match="needs --enable_batching"):
        plan(store, "--enable_per_model_batching_parameters")


def test_models_come_from_the_config_file(tmp_path: Path) -> None:
    file = tmp_path / "models"
    config = 'config { name: "m" base_path: "/nowhere" model_platform: "tensorflow" }'
    file.write_text(f"model_config_list {{ {config} }}")
    found = plan(None, f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=5", "--model_name=n")
    assert [seen.model for seen in found.source.look()] == ["m"]
    assert (found.options.core.model_config_file, found.options.core.model_config_file_poll_wait_seconds) == (file, 5)
    assert found.warnings == ["--model_name has no effect beside --model_config_file"]
    with pytest.raises(NotFoundError, match="No such file or directory"):
        plan(None, f"--model_config_file={tmp_path / 'nope'}")


# Processes


@dataclass
class Running:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    block: list[str]

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Exit code and all of stderr, after a signal."""
        self.process.send_signal(number)
        _, stderr = self.process.communicate(timeout=30)
        return self.process.returncode, stderr


@contextmanager
def running(*words: Any, until: str) -> Iterator[Running]:
    """Start ``servable serve``; its block ends with a line that begins with ``until``."""
    arguments = [sys.executable, "-m", "servable", "serve", *map(str, words)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        block = []
        for line in process.stdout:
            block.append(line.rstrip("\n"))
            if line.startswith(until):
                break
        else:
            pytest.fail(f"it ended: {process.communicate(timeout=10)[1]}")
        yield Running(process, block)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


def port_of(block: list[str], start: str) -> int:
    (line,) = [line for line in block if line.startswith(start)]
    found = re.search(r":(\d+)", line.removeprefix("REST at http:"))
    assert found, line
    return int(found[1])


def test_a_store_with_a_json_access_log(store: Store, free_port: int) -> None:
    words = [store.root, "--port=0", f"--rest_api_port={free_port}", "--access-log", "--log-format", "json"]
    with running(*words, until="REST at") as server:
        assert server.block == [
            f"serving {store.root}",
            "  celsius version 1: regress, serving_default → onnx (the manifest proves parity)",
            "  cnn version 1: classify, serve_bytes, serving_default → onnx (the manifest proves parity)",
            "  mlp version 1: classify, serve_bytes, serving_default → onnx (the manifest proves parity)",
            f"REST at http://127.0.0.1:{free_port}/v1/models/MODEL",
        ]
        url = f"http://127.0.0.1:{free_port}"
        ids = {"X-Request-Id": "mine-1"}
        body = '{"instances": [[100.0]]}'
        with httpx.Client(trust_env=False) as client:
            assert client.post(f"{url}/v1/models/celsius:predict", content=body, headers=ids).status_code == 200
            assert client.get(f"{url}/v1/models/n%22o%0Ape").status_code == 404
            assert client.get(f"{url}/healthz").status_code == 200
        code, stderr = server.end(signal.SIGTERM)
    assert code == 0
    predict, missing, health, stopping = [json.loads(line) for line in stderr.splitlines()]
    assert stopping["logger"] == "servable.lifecycle"
    assert {
        "level": "INFO",
        "logger": "servable.access",
        "request": "POST /v1/models/celsius:predict",
        "status": "200",
        "request_id": "mine-1",
        "received_bytes": len(body),
        "model": "celsius",
        "version": 1,
        "runtime": "onnx",
    }.items() <= predict.items()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", predict["time"])
    assert predict["sent_bytes"] > 0
    stages = [predict[f"{stage}_ms"] for stage in ("queue", "decode", "run", "encode")]
    assert all(stage >= 0 for stage in stages)
    assert sum(stages) <= predict["duration_ms"] + 0.01
    assert (missing["status"], missing["request"]) == ("404", "GET /v1/models/n%22o%0Ape")
    assert "runtime" not in missing
    assert (health["status"], health["request"]) == ("200", "GET /healthz")
    assert len({entry["request_id"] for entry in (predict, missing, health)}) == 3


def test_a_base_path_with_a_socket_and_a_text_access_log(store: Store, tmp_path: Path) -> None:
    words = [
        "--model_name",
        "temperature",
        f"--model_base_path={store.root / 'celsius'}",
        "--port=0",
        f"--grpc_socket_path={tmp_path / 's'}",
        "--access-log",
        "--skip_initialize_tpu",
    ]
    with running(*words, until="gRPC at") as server:
        assert server.block == [
            f"serving {store.root / 'celsius'}",
            "  temperature version 1: regress, serving_default → onnx (the manifest proves parity)",
            f"gRPC at unix:{tmp_path / 's'}",
        ]
        with grpc.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
            status = channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus")
            with pytest.raises(grpc.RpcError, match="Missing ModelSpec"):
                status(b"", timeout=10)
        code, stderr = server.end(signal.SIGINT)
    assert code == 0
    warning, log, stopping = stderr.splitlines()
    assert stopping.endswith("INFO servable.lifecycle: stopping: running requests have five seconds to finish")
    assert re.fullmatch(r"warning: --skip_initialize_tpu has no effect here\W+TPUs are not supported\W*", warning)
    assert re.fullmatch(
        r"\S+Z INFO servable\.access: GetModelStatus INVALID_ARGUMENT [\d.]+ ms "
        r"received_bytes=0 sent_bytes=0 request_id=[0-9a-f]{8}-[0-9a-f]+",
        log,
    )


def test_a_start_that_fails_is_one_line(cli: Callable[..., Any], store: Store, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    done = cli("serve", f"--model_base_path={tmp_path}", "--port=1")
    assert (done.returncode, done.stdout) == (StoreError.exit_code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no version of model 'default' can be served: ")


def test_the_help_shows_each_form_on_a_line_of_its_own() -> None:
    lines = [line.strip() for line in CliRunner().invoke(command, ["--help"]).output.splitlines()]
    assert "servable serve STORE" in lines
    assert "servable serve --model_config_file=/FILE --rest_api_port=8501" in lines
