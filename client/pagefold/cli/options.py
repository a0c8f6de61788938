"""What subcommands share: their options, each written once, and the way from a function to a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pagefold.cli.exits import EXIT_CODES

AddressOption = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="PAGEFOLD_ADDRESS",
        metavar="ADDRESS",
        help="The server's address: unix:/path/server.sock or tcp:HOST:PORT. Empty: this user's own server.",
    ),
]

TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="PAGEFOLD_TOKEN_FILE",
        metavar="FILE",
        help="File with the bearer token, for TCP. Default: $PAGEFOLD_TOKEN.",
    ),
]

CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        envvar="PAGEFOLD_CA",
        metavar="FILE",
        help="Certificate (PEM) that the server's is signed with. Without it, TCP is not encrypted.",
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]


def register(app: typer.Typer, function: Callable[..., None], name: str) -> None:
    """Makes a subcommand of a function, with its docstring as the manual: lines of a paragraph are joined."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    joined = [text if text.startswith("Example") else " ".join(text.split()) for text in paragraphs]
    app.command(name, help="\n\n".join(joined), epilog=EXIT_CODES)(function)
