"""tensorflow_model_server's command line as one table, and what each flag means here.

The names, types and defaults are the original's (``model_servers/main.cc``). The command line, its
help, the warnings at start and the compatibility table are made from this table.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

# Decimal, and no more of what Python takes for an integer.
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,40}\s*", re.ASCII)
_CPUS = os.cpu_count() or 1
_INT_RANGE = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}


class Support(Enum):
    """What giving a flag does."""

    HONOURED = "honoured"
    NO_MEANING = "accepted, without effect"
    REFUSED = "refused"


@dataclass(frozen=True)
class Flag:
    """One flag: ``kind`` is ``bool``, ``int32``, ``int64``, ``float`` or ``string``.

    ``note`` says what the flag does here or, where it does nothing, why.
    """

    name: str
    kind: str
    default: Any
    note: str
    support: Support = Support.HONOURED

    def parse(self, text: str) -> Any:
        """The value that a text stands for. Raises `ValueError` with what is allowed."""
        if self.kind == "bool":
            values = {"true": True, "1": True, "false": False, "0": False}
            if text.lower() not in values:
                raise ValueError("expected true or false")
            return values[text.lower()]
        if self.kind == "string":
            return text
        if self.kind == "float":
            number = float(text)
            if not math.isfinite(number):
                raise ValueError("expected a finite number")
            return number
        if not _INTEGER.fullmatch(text):
            raise ValueError(f"expected {self.kind}")
        value = int(text)
        low, high = _INT_RANGE[self.kind]
        if not low <= value <= high:
            raise ValueError(f"expected an integer from {low} to {high}")
        return value


def _no_meaning(name: str, kind: str, default: Any, why: str) -> Flag:
    return Flag(name, kind, default, why, Support.NO_MEANING)


def _refused(name: str, kind: str, default: Any, instead: str) -> Flag:
    return Flag(name, kind, default, instead, Support.REFUSED)


FLAGS = (
    Flag("version", "bool", False, "print the version and exit"),
    Flag("port", "int32", 8500, "gRPC port; 0: no gRPC over TCP"),
    Flag("grpc_socket_path", "string", "", "also listen for gRPC on this UNIX socket"),
    Flag("rest_api_port", "int32", 0, "REST port; 0: no REST and no metrics (8501 where STORE is given)"),
    Flag("rest_api_num_threads", "int32", 4 * _CPUS, "threads that run slow models for REST requests"),
    Flag("rest_api_timeout_in_ms", "int32", 30000, "limit for running a model for a REST request; 0 or less: none"),
    Flag("rest_api_enable_cors_support", "bool", False, "send CORS headers"),
    Flag("model_name", "string", "default", "name of the single model"),
    Flag("model_base_path", "string", "", "folder of the single model's versions; absolute"),
    Flag("tensorflow_session_parallelism", "int64", 0, "sets both of the next two; 0: automatic"),
    Flag("tensorflow_intra_op_parallelism", "int64", 0, "threads within one operation; 0: automatic"),
    Flag("tensorflow_inter_op_parallelism", "int64", 0, "operations that TensorFlow runs at a time; 0: automatic"),
    Flag("per_process_gpu_memory_fraction", "float", 0.0, "share of GPU memory that TensorFlow takes; 0: automatic"),
    Flag("saved_model_tags", "string", "serve", "comma-separated tags of the MetaGraph to serve"),
    Flag("grpc_channel_arguments", "string", "", "k=v,k=v: gRPC server options"),
    Flag("grpc_max_threads", "int32", 4 * _CPUS, "gRPC requests that are worked on at a time"),
    Flag("ssl_config_file", "string", "", "text-format SSLConfig: TLS, or mutual TLS, for gRPC"),
    Flag("monitoring_config_file", "string", "", "text-format MonitoringConfig: Prometheus metrics on the REST port"),
    Flag("prefer_tflite_model", "bool", False, "serve a version's model.tflite, if it has one"),
    Flag("num_tflite_pools", "int32", _CPUS, "interpreters of one TFLite model that run at a time"),
    Flag("enable_signature_method_name_check", "bool", False, "hold signatures to their method_name"),
    Flag("enable_grpc_healthcheck_service", "bool", True, "the standard gRPC health service (the original: off)"),
    Flag("enable_serialization_as_tensor_content", "bool", False, "answer gRPC Predict with tensor_content"),
    Flag("enable_batching", "bool", False, "run requests of different callers together"),
    Flag("batching_parameters_file", "string", "", "text-format BatchingParameters for all models"),
    Flag(
        *("enable_per_model_batching_parameters", "bool", False),
        "batch only versions with a batching_params.pbtxt, and as that says",
    ),
    Flag(
        *("allow_version_labels_for_unavailable_models", "bool", False),
        "let a new label stand for a version that is not available",
    ),
    Flag("model_config_file", "string", "", "text-format ModelServerConfig: models, version policies, labels"),
    Flag("model_config_file_poll_wait_seconds", "int32", 0, "seconds until it is read again; 0 or less: never"),
    Flag("num_load_threads", "int32", 0, "versions that are loaded at a time while serving; 0: one"),
    Flag("num_unload_threads", "int32", 0, "versions that are unloaded at a time; 0: one"),
    Flag("max_num_load_retries", "int32", 5, "how often a failed load is tried again; at start only if it is given"),
    Flag("load_retry_interval_micros", "int64", 60_000_000, "microseconds between tries; negative: none"),
    Flag(
        "file_system_poll_wait_seconds", "int32", 1, "seconds between looks for versions; 0: one look; negative: none"
    ),
    Flag("enable_model_warmup", "bool", True, "run a version's assets.extra/tf_serving_warmup_requests at load"),
    Flag("num_request_iterations_for_warmup", "int32", 0, "how often each of these is run; 0 or less: once"),
    _no_meaning("flush_filesystem_caches", "bool", True, "no file system cache is kept"),
    _no_meaning("tensorflow_session_config_file", "string", "", "use the parallelism flags"),
    _no_meaning("platform_config_file", "string", "", "there is one platform, tensorflow"),
    _refused("use_alts_credentials", "bool", False, "ALTS works within Google's cloud alone; use --ssl_config_file"),
    _no_meaning("remove_unused_fields_from_bundle_metagraph", "bool", True, "only the signatures are kept anyway"),
    _no_meaning("num_tflite_interpreters_per_pool", "int32", 1, "each pool has one interpreter"),
    _no_meaning("xla_cpu_compilation_enabled", "bool", False, "models run as they were exported"),
    _no_meaning("xla_gpu_compilation_enabled", "bool", False, "models run as they were exported"),
    _no_meaning("enable_profiler", "bool", True, "there is no profiler service"),
    _no_meaning("thread_pool_factory_config_file", "string", "", "thread pools cannot be plugged in"),
    _no_meaning("mixed_precision", "string", "", "models run as they were exported"),
    _no_meaning("skip_initialize_tpu", "bool", False, "TPUs are not supported"),
)

BY_NAME = {flag.name: flag for flag in FLAGS}
