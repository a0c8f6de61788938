"""The command line: `pagefold SUBCOMMAND`. A file per subcommand; `app` puts them together.

It needs typer and rich, which the library does without: they come with the `server` extra. `main` imports them, so that
their absence is a sentence and no traceback.
"""

from __future__ import annotations

import os
import sys

_OURS = ("typer", "rich", "click")


def main() -> None:
    """The entry point `pagefold`. Always ends in SystemExit; `exits.ExitCode` lists the codes."""
    _fill_standard_descriptors()
    try:
        from pagefold.cli.app import run
        from pagefold.cli.output import guard_stdout
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _OURS:
            raise
        print(f"pagefold: the command line needs {error.name}: pip install 'pagefold[server]'", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    guard_stdout()
    sys.exit(run())


def _fill_standard_descriptors() -> None:
    """Opens /dev/null where standard input, output or error is closed: else the next socket gets the output."""
    while (number := os.open(os.devnull, os.O_RDWR | os.O_NONBLOCK)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
