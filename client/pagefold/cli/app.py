"""The command line: its subcommands, `--version`, and how exceptions become exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer
from pagefold_proto.version import __version__

from pagefold._errors import PagefoldError
from pagefold.cli import clients, config, demo, doctor, fsck, scan, serve, status, stop
from pagefold.cli.exits import EXIT_CODES, CommandError, ExitCode
from pagefold.cli.options import register
from pagefold.cli.output import print_error

app = typer.Typer(
    name="pagefold",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    epilog=EXIT_CODES,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pagefold {__version__}")
        raise typer.Exit


@app.callback()
def pagefold(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """User-space same-page merging: identical pages of many processes share one frame.

    Examples:
      pagefold demo                  shows it at work, with a server of its own
      pagefold doctor                says whether this machine can merge, and why not
      pagefold serve                 runs a server for this user's programs
      pagefold status --watch        shows what it saves, as it happens
    """


register(app, serve.serve, "serve")
register(app, stop.stop, "stop")
register(app, demo.demo, "demo")
register(app, status.status, "status")
register(app, clients.clients, "clients")
app.add_typer(scan.app, name="scan")
app.add_typer(config.app, name="config")
register(app, doctor.doctor, "doctor")
register(app, fsck.fsck, "fsck")


def run() -> int:
    """Runs the command that sys.argv names and returns its exit code."""
    code = _code_of(lambda: app(prog_name="pagefold"))
    return code or _code_of(sys.stdout.flush)


def _code_of(act: Callable[[], object]) -> int:
    try:
        act()
    except CommandError as error:
        print_error(str(error))
        return error.code
    except PagefoldError as error:
        print_error(str(error))
        return ExitCode.FAILED
    except BrokenPipeError:  # the reader has left, and needs no message
        return ExitCode.FAILED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else ExitCode.OK
    return ExitCode.OK
