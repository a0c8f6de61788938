"""Options that several subcommands have, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
        "--token-file", envvar="PAGEFOLD_TOKEN_FILE", metavar="FILE", help="The bearer token; asked for with TCP only."
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
