"""What subcommands have in common: options, each written once, and how a command is made from a function."""

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
        help="Where the server listens: unix:/path/server.sock or tcp:HOST:PORT. Empty: this user's own server.",
    ),
]

TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar="PAGEFOLD_TOKEN_FILE",
        metavar="FILE",
        help="The bearer token, for TCP. Default: $PAGEFOLD_TOKEN.",
    ),
]

CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        envvar="PAGEFOLD_CA",
        metavar="FILE",
        help="The certificate (PEM) that the server's is signed with; without it, TCP is not encrypted.",
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")]


def register(app: typer.Typer, function: Callable[..., None], name: str) -> None:
    """Makes a subcommand of a function. Its docstring is the manual: paragraphs are joined, examples stay."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    joined = [text if text.startswith("Example") else " ".join(text.split()) for text in paragraphs]
    app.command(name, help="\n\n".join(joined), epilog=EXIT_CODES)(function)
