"""The command ``servable``: one module a verb, imported only when its verb is called."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

from .. import __version__, streams
from ..errors import ServableError, nearest

VERBS = {
    "models": "List the models of the catalogue.",
    "train": "Train a model of the catalogue and write its weights and record.",
    "export": "Export a model to SavedModel, TFLite and ONNX, with evidence.",
    "inspect": "Show what is in a model file or version, and whether it is sound.",
    "verify": "Repeat the evidence and the hashes of a published version.",
    "list": "List the models and versions of a store.",
    "serve": "Serve models over TensorFlow Serving's gRPC and REST API.",
    "status": "Say which versions of a served model there are, and what runs them.",
    "predict": "Predict with a served model or a model file.",
    "bench": "Time each exported artifact of a model on this machine.",
    "demo": "Export, serve, predict and bench the course models, and write a report.",
}
# A submodule is an attribute of its package: one called list would hide the builtin here.
_MODULES = {"inspect": "inspecting", "list": "listing"}
INTERRUPTED = 130
TERMINATED = 143


class _Verbs(click.Group):
    """Loads a verb's module when it is called; help is printed from the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            ctx.fail(f"no command {name!r}; {nearest(name, VERBS)}")
        command: click.Command = import_module(f".{_MODULES.get(name, name)}", __package__).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="servable", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Take a trained Keras model to every place where it has to run.

    Exit codes: 0 success, 1 unexpected failure, 2 wrong usage or input, 3 not found, 4 a file or the
    system is not in the state needed, 5 unavailable, 6 timed out, 7 export or parity failed,
    8 an extra is missing, 9 not allowed, 130 interrupted.
    """


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; errors are one line on stderr."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        result = cli.main(args=list(arguments), prog_name="servable", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" (see {context.command_path} --help)" if context else ""
        print(f"error: {error.format_message()}{hint}", file=sys.stderr)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except ServableError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone; there is nobody to tell
        return 1
    except Exception as error:  # noqa: BLE001  # a user never sees a bare traceback
        if debug:
            traceback.print_exc()
        print(
            f"error: unexpected {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)",
            file=sys.stderr,
        )
        return 1
    return result if isinstance(result, int) else 0


def main() -> None:
    """Entry point of the console script."""
    streams.prepare()
    # Exports are made of TensorFlow's graphs; a Keras file runs on any backend, whichever one it was trained on.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    # As an exception, so that servers are stopped and temporary folders removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    code = run(sys.argv[1:])
    for number in (signal.SIGTERM, signal.SIGINT):  # a second one does not end in another way what has ended
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)
