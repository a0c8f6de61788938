"""The command line: `pagefold SUBCOMMAND`. A file per subcommand; `app` puts them together.

Needs typer and rich, which the library does without: they come with the `server` extra. Imports nothing of them
before `main` is called, so that their absence is a sentence and no traceback.
"""

from __future__ import annotations

import sys

_OURS = ("typer", "rich", "click")


def main() -> None:
    """The entry point `pagefold`. Always ends in SystemExit; `exits.ExitCode` lists the codes."""
    try:
        from pagefold.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _OURS:
            raise
        print(f"pagefold: the command line needs {error.name}: pip install 'pagefold[server]'", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(run())
