"""`pagefold serve`: the server, in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pagefold.cli.exits import CommandError, ExitCode


def serve(
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen at: unix:/path/server.sock or tcp:HOST:PORT. "
            "Default: $PAGEFOLD_ADDRESS, else this user's own socket.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML file with settings; SIGHUP reads it again.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Value of any setting; may be repeated.", show_default=False),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the bearer token that TCP callers must show.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate chain (PEM) for TCP.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="The certificate's private key (PEM).")] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.", show_default=False)
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(metavar="FORM", help="auto, console or json (lines on stderr).", show_default=False),
    ] = None,
    ready_fd: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Descriptor on which the server writes a line once it answers.", show_default=False
        ),
    ] = None,
) -> None:
    """Run the server in the foreground, until SIGTERM or Ctrl-C.

    A setting has its value from a flag, else from the environment (PAGEFOLD_SLEEP_MILLISECS for
    sleep_millisecs), else from the TOML file, else by default. `pagefold config get` explains all settings.
    When the server ends, programs keep their memory, and merged pages stay merged.

    Examples:
      pagefold serve
      pagefold serve --config /etc/pagefold.toml --log-format json
      pagefold serve --set cpu_ceiling_percent=25 --set max_page_sharing=1024
      pagefold serve --address tcp:127.0.0.1:7700 --token-file token
    """
    try:
        from pagefold_server import service, settings
        from pagefold_server.errors import BadConfig
    except ModuleNotFoundError as error:
        raise CommandError(f"the server needs {error.name}: pip install 'pagefold[server]'") from error
    flags: dict[str, object] = dict(pairs(assignments or []))
    named: dict[str, object] = {
        "address": address,
        "token_file": token_file,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "log_level": log_level,
        "log_format": log_format,
        "ready_fd": ready_fd,
    }
    flags |= {key: value for key, value in named.items() if value is not None}
    try:
        loaded = settings.load(flags, config)
    except BadConfig as error:
        raise CommandError(str(error), ExitCode.USAGE) from error
    raise typer.Exit(ExitCode.FAILED if service.run(loaded) else ExitCode.OK)


def pairs(assignments: list[str]) -> dict[str, str]:
    """KEY=VALUE, taken apart. Keys may have dashes for underscores."""
    values = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise CommandError(f"{assignment!r} is no assignment: write KEY=VALUE", ExitCode.USAGE)
        values[key.strip().replace("-", "_")] = value.strip()
    return values
