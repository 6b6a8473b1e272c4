"""What a server is told: its own options, and how they follow from TensorFlow Serving's flags."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from ..store import Store
from ..wire import messages, text_config
from . import batching, model_config, tls
from .batching import BatchingParameters
from .core import CoreOptions
from .engines import LoadOptions
from .flags import BY_NAME, Support
from .grpc_front import GrpcOptions
from .loader import BatchingOptions
from .manager import LifecycleOptions
from .model_config import ModelConfig
from .monitoring import DEFAULT_PATH
from .rest_front import RestOptions
from .sources import ConfigSource, Source, StoreSource
from .warmup import Warmup

STORE_REST_PORT = 8501


@dataclass(frozen=True)
class ServerOptions:
    """Where a server listens and how it runs.

    A ``port`` of None is not opened, 0 takes any free one. Without ``batching`` every request is a run
    of its own.
    """

    host: str = "127.0.0.1"
    port: int | None = 8500
    rest_api_port: int | None = STORE_REST_PORT
    load: LoadOptions = field(default_factory=LoadOptions)
    grpc: GrpcOptions = field(default_factory=lambda: GrpcOptions(threads=4 * (os.cpu_count() or 1)))
    rest: RestOptions = field(default_factory=lambda: RestOptions(threads=4 * (os.cpu_count() or 1)))
    lifecycle: LifecycleOptions = field(default_factory=LifecycleOptions)
    core: CoreOptions = field(default_factory=CoreOptions)
    warmup: Warmup = field(default_factory=Warmup)
    batching: BatchingOptions | None = None
    check_method_names: bool = False
    access_log: bool = False


@dataclass(frozen=True)
class Plan:
    """A server's options, what it is to serve, and what to tell its owner before it does."""

    options: ServerOptions
    source: Source
    warnings: list[str]


def from_flags(
    given: Mapping[str, Any],
    own: Mapping[str, Any],
    store: Path | None,
    configs: Sequence[ModelConfig] | None = None,
) -> Plan:
    """The plan for a command line.

    ``given`` are the flags of tensorflow_model_server that were given, ``own`` servable's own options
    by name (host, runtime, device, threads, access_log), ``store`` the STORE argument. ``configs`` are
    what the config file says, where that is known: it is not read then. Raises `InvalidArgumentError`
    for what cannot be, with the original's text where it has one.
    """
    flags = {name: flag.default for name, flag in BY_NAME.items()} | dict(given)
    if store is not None and "rest_api_port" not in given:
        flags["rest_api_port"] = STORE_REST_PORT
    _check(flags, given, store)
    timeout_ms = flags["rest_api_timeout_in_ms"]
    options = ServerOptions(
        host=own["host"],
        port=flags["port"] or None,
        rest_api_port=flags["rest_api_port"] or None,
        load=_load_options(flags, own),
        grpc=GrpcOptions(
            host=own["host"],
            port=flags["port"] or None,
            socket_path=flags["grpc_socket_path"],
            threads=flags["grpc_max_threads"],
            credentials=tls.credentials(Path(flags["ssl_config_file"])) if flags["ssl_config_file"] else None,
            arguments=_channel_arguments(flags["grpc_channel_arguments"]),
            health=flags["enable_grpc_healthcheck_service"],
            as_content=flags["enable_serialization_as_tensor_content"],
        ),
        rest=RestOptions(
            threads=flags["rest_api_num_threads"],
            timeout_s=timeout_ms / 1000 if timeout_ms > 0 else None,
            cors=flags["rest_api_enable_cors_support"],
            metrics_path=_metrics_path(flags["monitoring_config_file"]),
        ),
        lifecycle=LifecycleOptions(**{item.name: flags[item.name] for item in fields(LifecycleOptions)}),
        core=CoreOptions(
            file_system_poll_wait_seconds=flags["file_system_poll_wait_seconds"],
            model_config_file=Path(flags["model_config_file"]) if flags["model_config_file"] else None,
            model_config_file_poll_wait_seconds=flags["model_config_file_poll_wait_seconds"],
            allow_version_labels_for_unavailable_models=flags["allow_version_labels_for_unavailable_models"],
            retry_at_start="max_num_load_retries" in given,
        ),
        warmup=Warmup(flags["enable_model_warmup"], max(1, flags["num_request_iterations_for_warmup"])),
        batching=_batching(flags),
        check_method_names=flags["enable_signature_method_name_check"],
        access_log=own["access_log"],
    )
    return Plan(options, _source(flags, store, configs), _warnings(flags, given))


def _source(flags: Mapping[str, Any], store: Path | None, configs: Sequence[ModelConfig] | None) -> Source:
    if store is not None:
        return StoreSource(Store(store))
    if flags["model_config_file"]:
        return ConfigSource(model_config.read(Path(flags["model_config_file"])) if configs is None else configs)
    name, base_path = flags["model_name"], flags["model_base_path"]
    if not name:
        raise InvalidArgumentError("the model has no name; give one with --model_name")
    if not Path(base_path).is_absolute():
        raise InvalidArgumentError(
            f"Expected model {name} to have an absolute path or URI; got base_path()={base_path}"
        )
    return ConfigSource([ModelConfig(name, Path(base_path))])


def _batching(flags: Mapping[str, Any]) -> BatchingOptions | None:
    if not flags["enable_batching"]:
        return None
    file = flags["batching_parameters_file"]
    parameters = batching.read_checked(Path(file)) if file else BatchingParameters()
    batching.check_threads(parameters.num_batch_threads)
    return BatchingOptions(parameters, per_model=flags["enable_per_model_batching_parameters"])


def _check(flags: Mapping[str, Any], given: Mapping[str, Any], store: Path | None) -> None:
    """The original's checks at start, and those of what this server does not do."""
    for name in given:
        if BY_NAME[name].support is Support.REFUSED and flags[name] != BY_NAME[name].default:
            raise InvalidArgumentError(f"--{name} is not supported: {BY_NAME[name].note}")
    if not flags["port"] and not flags["grpc_socket_path"] and not (store is not None and flags["rest_api_port"]):
        raise InvalidArgumentError(
            "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set."
        )
    if flags["batching_parameters_file"] and not flags["enable_batching"]:
        raise InvalidArgumentError(
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true."
        )
    if flags["enable_per_model_batching_parameters"] and not flags["enable_batching"]:
        raise InvalidArgumentError("--enable_per_model_batching_parameters needs --enable_batching")
    for name in ("model_base_path", "model_name", "model_config_file"):
        if store is not None and name in given:
            raise InvalidArgumentError(f"STORE and --{name} are two ways to say what to serve; give one of them")
    if store is None and not flags["model_base_path"] and not flags["model_config_file"]:
        raise InvalidArgumentError(
            "there is nothing to serve: give a STORE, --model_name and --model_base_path, or --model_config_file"
        )
    parallelism = [flags[f"tensorflow_{kind}_parallelism"] for kind in ("session", "intra_op", "inter_op")]
    if all(value > 0 for value in parallelism):
        raise InvalidArgumentError(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, server_options.tensorflow_inter_op_parallelism) "
            "separately. You cannot configure all."
        )
    if flags["rest_api_port"] and flags["rest_api_port"] == flags["port"]:
        raise InvalidArgumentError(f"--port and --rest_api_port are both {flags['port']}; give two different ports")
    for kind, value in zip(("session", "intra_op", "inter_op"), parallelism, strict=True):
        if not 0 <= value < 2**31:
            raise InvalidArgumentError(f"--tensorflow_{kind}_parallelism is {value}; give 0 or a number of threads")
    for name in ("grpc_max_threads", "rest_api_num_threads", "num_tflite_pools"):
        if flags[name] < 1:
            raise InvalidArgumentError(f"--{name} is {flags[name]}; give at least 1")
    share = flags["per_process_gpu_memory_fraction"]
    if not 0 <= share <= 1:
        raise InvalidArgumentError(f"--per_process_gpu_memory_fraction is {share:g}; give a share from 0 to 1")
    for name in ("port", "rest_api_port"):
        if not 0 <= flags[name] <= 65535:
            raise InvalidArgumentError(f"--{name} is {flags[name]}; give a port from 0 to 65535")


def _load_options(flags: Mapping[str, Any], own: Mapping[str, Any]) -> LoadOptions:
    both = flags["tensorflow_session_parallelism"]
    return LoadOptions(
        runtime=own["runtime"],
        prefer_tflite=flags["prefer_tflite_model"],
        device=own["device"],
        threads=own["threads"] or flags["tensorflow_intra_op_parallelism"] or both,
        inter_op_threads=flags["tensorflow_inter_op_parallelism"] or both,
        tflite_pools=flags["num_tflite_pools"],
        gpu_memory_fraction=flags["per_process_gpu_memory_fraction"],
        tags=tuple(tag for tag in flags["saved_model_tags"].split(",") if tag),
    )


def _metrics_path(file: str) -> str:
    if not file:
        return ""
    config = text_config.read(Path(file), messages.MonitoringConfig).prometheus_config
    path = config.path or DEFAULT_PATH
    if config.enable and not path.startswith("/"):
        raise InvalidArgumentError(f"{file}: path {path!r} must begin with '/'")
    return path if config.enable else ""


def _channel_arguments(text: str) -> list[tuple[str, int | str]]:
    arguments: list[tuple[str, int | str]] = []
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InvalidArgumentError(f"--grpc_channel_arguments: {pair!r} should read name=value")
        if not re.fullmatch(r"[+-]?[0-9]+", value):
            arguments.append((key, value))
        elif -(2**31) <= int(value) < 2**31:
            arguments.append((key, int(value)))
        else:
            raise InvalidArgumentError(f"--grpc_channel_arguments: {value} of {key!r} is no 32-bit integer")
    return arguments


def _warnings(flags: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """One line for each flag that was given and changes nothing."""
    idle = [
        BY_NAME[name]
        for name in given
        if flags[name] != BY_NAME[name].default and BY_NAME[name].support is Support.NO_MEANING
    ]
    lines = [f"--{flag.name} has no effect here ({flag.note})" for flag in idle]
    if flags["model_config_file"]:
        lines += [
            f"--{name} has no effect beside --model_config_file"
            for name in ("model_name", "model_base_path")
            if name in given
        ]
    if flags["monitoring_config_file"] and not flags["rest_api_port"]:
        lines.append("--monitoring_config_file has no effect without --rest_api_port: metrics are shown on that port")
    return lines
