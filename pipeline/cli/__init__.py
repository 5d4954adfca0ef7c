"""The command line: a table of commands, each in a file of its own that is imported when it is called."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from trueport.runtime.errors import EXIT_INTERNAL, EXIT_INTERRUPTED, EXIT_MISSING, EXIT_USAGE, TrueportError

COMMANDS = {
    "run": "Every stage of a recipe in order: train, export, check, bench, report.",
    "train": "Train an architecture on data.",
    "export": "Make a bundle of a trained run, or of weights that you have: graphs, golden set, evaluation slice.",
    "build": "Build TensorRT engines of a bundle, for the GPU that is here or for a list of targets.",
    "check": "Prove that a bundle's variants are the original: parity, batches, preprocessing, accuracy.",
    "report": "Tell all that is known of a bundle in one HTML page: verdict, causes, layers, pictures, speed.",
    "evaluate": "Judge the answers on labelled pictures: top-1, each class, confusions, calibration, mAP.",
    "bench": "Time the port against the original, interleaved.",
    "compare": "Compare two bundles, or two reports of check or bench: what changed, and is it worse?",
    "tune": "Find the fastest way to run a bundle on this machine that is still faithful here.",
    "predict": "Classify pictures with a bundle.",
    "serve": "Serve bundles over HTTP by the Open Inference Protocol.",
    "models": "List the architectures.",
    "describe": "Tell a network's sizes, receptive fields, parameters and MACs layer by layer, or draw it.",
    "recipes": "List the recipes that come with trueport, or print one.",
    "data": "List the data sets, download one, or show how one is split.",
    "doctor": "Tell what this machine has, what it lacks and what to install.",
}


class LazyGroup(TyperGroup):
    """Knows the commands by name and one line; imports a command only when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """In the order a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """The command, or None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name}")
        return typer.main.get_command(module.app)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """The table above, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: Any) -> Any:
        """Turn what a user can cause into one sentence and an exit code; a defect of ours keeps its traceback."""
        try:
            return super().invoke(ctx)
        except TrueportError as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted", EXIT_INTERRUPTED)
        except BrokenPipeError:  # whoever read our output has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit from None
        except OSError as error:
            _fail(_sentence(error), EXIT_MISSING if error.errno in (errno.ENOSPC, errno.EDQUOT) else EXIT_USAGE)
        except Exception as error:
            if type(error).__module__.startswith("typer"):  # usage errors, and the exits raised above
                raise
            traceback.print_exc()
            _fail("this is a defect of trueport, not of your input: please report it", EXIT_INTERNAL)


def listed(text: str) -> list[str]:
    """The words of an option that takes several, separated by commas."""
    return [part.strip().lower() for part in text.split(",") if part.strip()]


def new_app(**options: Any) -> typer.Typer:
    """A command's own application: plain help, no options beyond its own."""
    return typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, **options)


app = typer.Typer(cls=LazyGroup, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(f"trueport {metadata.version('trueport')}")
        raise typer.Exit


@app.callback()
def _trueport(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Ship a PyTorch vision model, and prove that what you shipped is the model you trained."""


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal can't show is no reason to fail
    app(prog_name="trueport")


def _sentence(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _fail(message: str, code: int) -> None:
    print(f"trueport: {message}", file=sys.stderr)
    raise typer.Exit(code)
