"""`pagefold stop`: ends a server."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated

import typer
from pagefold_proto import addresses
from pagefold_proto.text import printable

from pagefold._process.threads import wait_until
from pagefold.cli.admin import Admin
from pagefold.cli.exits import CommandError, ExitCode
from pagefold.cli.options import AddressOption, CaOption, JsonOption, TokenFileOption
from pagefold.cli.output import console, print_json

_LOOK_SECONDS = 0.05


def stop(
    address: AddressOption = "",
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Wait up to SECONDS for its end; exit 1 on timeout.")
    ] = 20,
    as_json: JsonOption = False,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
) -> None:
    """End a server, as SIGTERM does, and wait until it is gone.

    Programs keep their memory, and merged pages stay merged. The programs connect by themselves to the next server at
    this address. The next call of pagefold.connect() starts one.

    Example:
      pagefold stop
    """
    with Admin(address, token_file, ca) as admin:
        is_there = _is_there(admin)
        try:
            pid = admin.stop().pid
        except CommandError as error:
            if error.code is ExitCode.NO_SERVER and not addresses.stuck(admin.address):
                raise CommandError(f"no server answers at {admin.address}: none is to be stopped", error.code) from None
            raise
        if not wait_until(lambda: not is_there(), timeout, _LOOK_SECONDS):  # nothing tells of its end
            text = f"the server at {admin.address} (pid {pid}) was told to stop, and has not ended in {timeout:g} s"
            raise CommandError(text)
    if as_json:
        print_json({"pid": pid, "stopped": True})
    else:
        console().print(f"the server at {printable(str(admin.address))} (pid {pid}) has ended")


def _is_there(admin: Admin) -> Callable[[], bool]:
    """A function that says whether the present server lives. Its socket goes last; another server may replace it."""
    if admin.address.scheme == "unix":
        known = _identity(admin.address.path)
        return lambda: known is not None and _identity(admin.address.path) == known

    def answers() -> bool:
        try:
            admin.status()
        except CommandError as error:
            return error.code is not ExitCode.NO_SERVER
        return True

    return answers


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
