"""The `homerun` command: one file a command in `homerun/commands/`, imported only when it is asked for.

A command's file defines `command`, a typer function; its name is the file's, and its docstring is the help text.
"""

import importlib
import os
import pkgutil
import sys

import typer

import homerun.commands
from homerun import __version__
from homerun.errors import Exit, HomerunError


def _names() -> list[str]:
    names = (module.name for module in pkgutil.iter_modules(homerun.commands.__path__))
    return sorted(name for name in names if not name.startswith("_"))  # those are helpers


def build(arguments: list[str]) -> typer.Typer:
    """The application with the command that `arguments` ask for, or with all of them for help and errors."""
    app = typer.Typer(
        help="Train nanochat on rented GPUs, and bring the model home.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_version)
    names = _names()
    wanted = arguments[0].replace("-", "_") if arguments else ""
    for name in [wanted] if wanted in names else names:
        module = importlib.import_module(f"homerun.commands.{name}")
        app.command(name.replace("_", "-"), **getattr(module, "OPTIONS", {}))(module.command)
    return app


def _version(
    version: bool = typer.Option(False, "--version", is_eager=True, help="Print the version and end."),
) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


def main() -> None:
    """Run one command; a HomerunError becomes one line on stderr and its exit code, never a traceback."""
    try:
        build(sys.argv[1:])()
    except HomerunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(int(error.code))
    except KeyboardInterrupt:
        sys.exit(int(Exit.INTERRUPT))
    except BrokenPipeError:  # `homerun logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
