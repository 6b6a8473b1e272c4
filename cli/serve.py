"""``servable serve``: the embedded server in the foreground."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from ..errors import nearest
from ..serving.engines import RUNTIME_CHOICES, Engine
from ..serving.flags import BY_NAME, FLAGS, Flag, Support
from ..serving.logs import LOG_FORMATS, LogFormat
from .console import quiet, stdout

if TYPE_CHECKING:
    from ..serving import Server, ServerOptions
    from ..serving.options import Plan
    from ..serving.orders import CommandLine
    from ..serving.supervisor import Supervisor

_log = logging.getLogger("servable.lifecycle")

_SECTIONS = {
    Support.HONOURED: "Flags of tensorflow_model_server",
    Support.NO_MEANING: "Flags that are accepted and have no effect here",
    Support.REFUSED: "Flags that are refused",
}

# More signatures than these are counted, not named.
_SHOWN = 8


class _Value(click.ParamType[Any]):
    """A flag's value, read as tensorflow_model_server reads it."""

    def __init__(self, flag: Flag) -> None:
        self.name = flag.kind
        self._flag = flag

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._flag.parse(value)
        except ValueError as error:
            reason = str(error) if "expected" in str(error) else f"expected {self._flag.kind}"
            self.fail(f"Couldn't interpret value {value} for flag {self._flag.name}: {reason}.", param, ctx)


class _Serve(click.Command):
    """Lets a boolean flag stand alone, and answers an unknown flag with the nearest known one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        booleans = {f"--{flag.name}" for flag in FLAGS if flag.kind == "bool"}
        end = args.index("--") if "--" in args else len(args)
        single = next((word for word in args[:end] if re.match(r"-[a-z_]{2,}", word)), None)
        if single:  # click would take it for a row of one-letter options
            raise click.UsageError(f"unknown argument: {single}; flags begin with two dashes", ctx)
        args = [f"{word}=true" if i < end and word in booleans else word for i, word in enumerate(args)]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            known = [option for parameter in self.get_params(ctx) for option in parameter.opts if option[:2] == "--"]
            guess = nearest(error.option_name, known).partition("Known: ")[0].strip()  # all of them would be too many
            raise click.UsageError(f"unknown argument: {error.option_name}{guess and f'; {guess}'}", ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Our own options first, then the flags, by what they do here."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Options", *_SECTIONS.values())}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record:
                flag = BY_NAME.get(parameter.name or "")
                title = _SECTIONS[flag.support] if flag else "Options"
                sections[title].append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _sentence(note: str) -> str:
    """The note with a capital letter, unless it begins with a name."""
    first = note.split(maxsplit=1)[0]
    return note[0].upper() + note[1:] if re.fullmatch(r"[a-z-]+[;:,]?", first) else note


def _flag_option(flag: Flag) -> click.Option:
    default = "" if flag.default == "" else f"  [default: {str(flag.default).lower()}]"
    return click.Option(
        [f"--{flag.name}", flag.name],
        type=_Value(flag),
        default=None,
        help=f"{_sentence(flag.note)}.{default}",
        metavar="[true|false]" if flag.kind == "bool" else flag.kind.upper(),
    )


def _command() -> click.Command:
    own = [
        click.Argument(["store"], type=click.Path(path_type=Path), required=False),
        click.Option(["--host"], default="127.0.0.1", show_default=True, help="Address to listen on."),
        click.Option(
            ["--runtime"],
            type=click.Choice(RUNTIME_CHOICES),
            default="auto",
            show_default=True,
            help="auto: a twin where the manifest proves parity, TensorFlow otherwise.",
        ),
        click.Option(
            ["--device"],
            type=click.Choice(["cpu", "gpu"]),
            default="cpu",
            show_default=True,
            help="gpu needs onnxruntime-gpu, or TensorFlow with CUDA.",
        ),
        click.Option(
            ["--threads"],
            type=click.IntRange(0, 2**31 - 1),
            metavar="NUMBER",
            default=0,
            show_default=True,
            help="Threads of one model run; 0: one for ONNX and TFLite, TensorFlow's own choice there.",
        ),
        click.Option(
            ["--workers"],
            type=click.IntRange(min=1),
            metavar="NUMBER",
            default=1,
            show_default=True,
            help="Processes that share the ports; one that dies is started again.",
        ),
        click.Option(["--access-log/--no-access-log"], default=False, help="Log each request."),
        click.Option(
            ["--log-format"],
            type=click.Choice(LOG_FORMATS),
            default="text",
            show_default=True,
            help="How log lines look, on stderr.",
        ),
    ]
    return _Serve(
        "serve",
        params=[*own, *map(_flag_option, FLAGS)],
        callback=_serve,
        help=(_serve.__doc__ or "").replace(r"\b", "\b"),
    )


def _serve(store: Path | None, log_format: LogFormat, workers: int, **values: Any) -> None:
    r"""Serve models over TensorFlow Serving's gRPC and REST API.

    \b
    servable serve STORE
    servable serve --model_name=NAME --model_base_path=/FOLDER --rest_api_port=8501
    servable serve --model_config_file=/FILE --rest_api_port=8501

    The first serves all models and versions of a store. The others take tensorflow_model_server's own
    flags, which mean here what they mean there: the newest version below a folder, or the models and
    versions of a config file, with REST only if its port is given. All serve gRPC on port 8500; with
    STORE, REST is on port 8501.

    New versions are found and served while the server runs, and those that are gone are unloaded. SIGTERM
    or Ctrl-C stops the server: running requests have five seconds to finish, and it exits with 0.
    """
    if values.get("version"):
        click.echo(f"TensorFlow ModelServer: servable {version('servable')}")
        return
    before = set(threading.enumerate())
    with _stop_signals() as stop:
        from ..serving import logs, options
        from ..serving.orders import CommandLine

        logs.configure(log_format)
        given = {name: values.pop(name) for name in BY_NAME if values.get(name) is not None}
        own = {name: value for name, value in values.items() if name not in BY_NAME}
        plan = options.from_flags(given, own, store)
        for warning in plan.warnings:
            click.echo(f"warning: {warning}", err=True)
        try:
            _run(plan, CommandLine(given, own, store, log_format), workers, stop)
        except SystemExit:  # a signal while models were being loaded, whose threads go on
            _leave_behind(set(threading.enumerate()) - before)
            raise
        _leave_behind(set(threading.enumerate()) - before)


def _run(plan: Plan, command_line: CommandLine, workers: int, stop: _Stop) -> None:
    """Serve until a signal comes; one that comes before the server answers raises SystemExit."""
    from ..serving import Server
    from ..serving.orders import Start

    server: Server | Supervisor
    if workers > 1:
        from ..serving.supervisor import Supervisor

        server = Supervisor(workers, command_line, plan.options)
        start = server.found
    else:
        start = Start()
        with quiet():
            server = Server(plan.source, plan.options, start.note, start.warnings.append)
    stop.loading = False
    with server:
        for warning in start.warnings:
            click.echo(f"warning: {warning}", err=True)
        given = command_line.given
        what = command_line.store or given.get("model_config_file") or given["model_base_path"]
        with_workers = f" with {workers} workers" if workers > 1 else ""
        versions = sorted(start.versions.items())
        lines = [f"  {name} version {number}: {_describe(found)}" for (name, number), found in versions]
        _announce(stdout(), [f"serving {what}{with_workers}", *lines, *_addresses(server, plan.options)])
        stop.wait()
        _log.info("stopping: running requests have five seconds to finish")


class _Stop:
    """Set by SIGTERM or SIGINT; while models are being loaded, these end the process instead."""

    def __init__(self) -> None:
        self.loading = True
        self._asked: SimpleQueue[None] = SimpleQueue()  # a signal may come while it is waited for, with no lock held

    def set(self) -> None:
        self._asked.put(None)

    def wait(self) -> None:
        while True:  # without a limit it would not be woken by a signal on every platform
            with suppress(Empty):
                return self._asked.get(timeout=1.0)


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    stop = _Stop()

    def on_signal(number: int, frame: object) -> None:
        if stop.loading:
            raise SystemExit(0)
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_behind(threads: set[threading.Thread]) -> None:
    """End the process where runs go on past the grace period: the interpreter would wait for their threads."""
    for thread in threads:
        thread.join(0.2)
    if any(thread.is_alive() for thread in threads):  # daemons too: the interpreter waits for those of the pools
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _describe(found: Mapping[str, Engine] | str) -> str:
    if isinstance(found, str):
        return f"NOT SERVED: {found}"
    by_runtime: dict[str, list[str]] = {}
    for signature, engine in found.items():
        by_runtime.setdefault(f"{engine.runtime} ({engine.reason})", []).append(signature)
    return "; ".join(
        f"{', '.join(sorted(names)) if len(names) <= _SHOWN else f'{len(names)} signatures'} → {runtime}"
        for runtime, names in by_runtime.items()
    )


def _addresses(server: Server | Supervisor, options: ServerOptions) -> list[str]:
    host = f"[{options.host}]" if ":" in options.host else options.host
    secure = " (TLS)" if options.grpc.credentials else ""
    lines = [f"gRPC at {host}:{server.grpc_port}{secure}"] if server.grpc_port else []
    if options.grpc.socket_path:
        lines.append(f"gRPC at unix:{options.grpc.socket_path}{secure}")
    if server.rest_port:
        lines.append(f"REST at http://{host}:{server.rest_port}/v1/models/MODEL")
        if options.rest.metrics_path:
            lines.append(f"metrics at http://{host}:{server.rest_port}{options.rest.metrics_path}")
    return lines


def _announce(out: Console, lines: list[str]) -> None:
    for line in lines:
        out.print(line, soft_wrap=True)
    out.file.flush()


command = _command()
