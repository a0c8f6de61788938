"""`pagefold config`: a running server's settings."""

from __future__ import annotations

from typing import Annotated

import typer
from pagefold_proto.text import printable
from pagefold_proto.v1 import admin_pb2 as pb

from pagefold.cli.admin import Admin
from pagefold.cli.exits import EXIT_CODES, CommandError, ExitCode
from pagefold.cli.options import AddressOption, CaOption, JsonOption, TokenFileOption, register
from pagefold.cli.output import console, plain, print_json, table
from pagefold.cli.serve import pairs

app = typer.Typer(
    no_args_is_help=True, help="Show a server's settings, and change them while it runs.", epilog=EXIT_CODES
)


def get(
    key: Annotated[str, typer.Argument(help="Name of one setting. Default: all.", show_default=False)] = "",
    address: AddressOption = "",
    as_json: JsonOption = False,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
) -> None:
    """Show every setting with its meaning, or the bare value of one.

    Examples:
      pagefold config get
      pagefold config get cpu_ceiling_percent
    """
    with Admin(address, token_file, ca) as admin:
        settings = list(admin.config().settings)
    key = key.replace("-", "_")
    if key:
        settings = [setting for setting in settings if setting.key == key]
        if not settings:
            raise CommandError(f"{key}: there is no such setting; `pagefold config get` lists them", ExitCode.USAGE)
        if as_json:
            print_json(plain(settings[0]))
        else:
            print(printable(settings[0].value))
        return
    _show(settings, as_json)


def set_(
    assignments: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="Settings and their new values.")],
    address: AddressOption = "",
    as_json: JsonOption = False,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
) -> None:
    """Change settings while the server runs. If one is not accepted, none is changed.

    The new values last until the server restarts or reads its file again (SIGHUP). Put lasting ones into the file.

    Examples:
      pagefold config set cpu_ceiling_percent=25
      pagefold config set pages_to_scan=4096 sleep_millisecs=5
    """
    values = pairs(assignments)
    with Admin(address, token_file, ca) as admin:
        _show(list(admin.configure(values).settings), as_json)


def _show(settings: list[pb.Setting], as_json: bool) -> None:
    if as_json:
        print_json({"settings": [plain(setting) for setting in settings]})
        return
    listed = table("setting", "value", "from", "default", "live", "meaning", wrap=("value", "meaning"))
    for setting in settings:
        listed.row(
            setting.key,
            setting.value or '""',
            setting.origin,
            "" if setting.value == setting.default_value else setting.default_value or '""',
            "yes" if setting.live else "",
            setting.description,
        )
    console().print(listed)


register(app, get, "get")
register(app, set_, "set")
