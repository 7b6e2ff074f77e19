"""The group of all commands: the message and the exit code of every error.

Click repeats wrong arguments in its messages, and a traceback may show anything. A secret that was typed in the wrong place
must not end up in a log. Therefore the messages of click are replaced by messages without the value, and a traceback is
shown only with --debug, redacted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from .._version import __version__
from . import Exit, epilog
from .console import ReaderGone, UsageError, described, event, log_to_stderr, say, trace
from .demo import demo, simulate
from .doctor import doctor
from .fetch import fetch, get
from .output import Command, to_stdout
from .status import export, purge, report, retry, status, verify


class App(Command, click.Group):
    """A group whose messages never repeat an argument."""

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> NoReturn:
        """Runs a command and calls `sys.exit` with one of the exit codes of `flinks_async.cli`."""
        extra["standalone_mode"] = False
        with log_to_stderr():
            sys.exit(self._code(args, *more, **extra))

    def _code(self, args: Sequence[str] | None, *more: Any, **extra: Any) -> int:
        try:
            result = super().main(args, *more, **extra)
        except click.exceptions.NoArgsIsHelpError as no_arguments:
            say(*no_arguments.format_message().split("\n"))
            return Exit.USAGE
        except click.Abort:
            say("Interrupted.")
            return Exit.SIGINT
        except ReaderGone:
            return Exit.OUTPUT
        except Exception as error:
            return _report(error)
        return result if isinstance(result, int) else Exit.OK


def _report(error: Exception) -> Exit:
    """Says which error ended the command."""
    text, code = (_without_values(error), Exit.USAGE) if isinstance(error, click.UsageError) else described(error)
    if not event("end", state="failed", reason=text, exit_code=code, totals=None, run=None):
        for note in getattr(error, "__notes__", ()):
            say(note)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        say(*error.ctx.get_usage().split("\n"), f"Try '{error.ctx.command_path} --help' for help.", "")
    say(f"Error: {text}" + (". Run the same command with --debug for details." if code is Exit.UNEXPECTED else ""))
    if not isinstance(error, click.UsageError):  # its traceback would hold what was typed
        trace(error)
    return code


def _without_values(error: click.UsageError) -> str:
    """Click's message without the value that was typed. Our own messages, and those about known options, stay."""
    if isinstance(error, (UsageError, click.MissingParameter, click.BadOptionUsage)):
        return error.format_message()
    if isinstance(error, click.BadParameter):
        return f"Invalid value for {_name_of(error)}: expected {_expected(error.param)} (the value is not shown)."
    if isinstance(error, click.NoSuchOption):
        close = f" Did you mean {' or '.join(error.possibilities)}?" if error.possibilities else ""
        return f"No such option (the value is not shown).{close}"
    if error.ctx is not None and isinstance(error.ctx.command, click.Group):
        return f"No such command (the value is not shown). Commands: {', '.join(error.ctx.command.commands)}."
    return (
        "Unexpected argument (the value is not shown). Secrets and tokens are never arguments: they come "
        "from a file, from standard input or from the environment."
    )


def _name_of(error: click.BadParameter) -> str:
    if error.param is None or error.ctx is None:
        return "an option"
    return error.param.get_error_hint(error.ctx) or "an option"


def _expected(param: click.Parameter | None) -> str:
    kind = param.type if param is not None else None
    if isinstance(kind, click.Choice):
        return f"one of {', '.join(map(str, kind.choices))}"
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        noun = "a whole number" if isinstance(kind, click.IntRange) else "a number"
        if kind.max is not None:
            return f"{noun} from {kind.min} to {kind.max}"
        return f"{noun} greater than {kind.min}" if kind.min_open else f"{noun} of at least {kind.min}"
    return {"integer": "a whole number", "float": "a number"}.get(kind.name if kind else "", "another value")


def _show_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        to_stdout(f"flinks-async, version {__version__}\n".encode())
        ctx.exit()


@click.group(
    cls=App,
    epilog=epilog(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def app() -> None:
    """Access tokens in, account data out: the Flinks partner access API.

    Secrets and tokens are never arguments, because other users of the machine can read those.
    """


for _command in (get, fetch, status, report, verify, retry, export, purge, doctor, simulate, demo):
    app.add_command(_command)
