"""`pagefold doctor`: says whether this machine can merge, and if not, why and what to do."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import typer
from pagefold_proto import addresses
from pagefold_proto.limits import PAGE, PROTOCOL
from pagefold_proto.text import printable
from pagefold_proto.version import __version__
from rich.padding import Padding
from rich.text import Text

from pagefold._launch.user_server import NEEDED as SERVER_NEEDS
from pagefold._options.options import may_autostart
from pagefold._session.transport import FORK_SUPPORT_OFF
from pagefold.cli import trial
from pagefold.cli.admin import Admin, parse_address
from pagefold.cli.checks import Check, Machine, machine_checks
from pagefold.cli.exits import CommandError, ExitCode
from pagefold.cli.options import AddressOption, CaOption, JsonOption, TokenFileOption
from pagefold.cli.output import PROSE_WIDTH, console, count, print_json
from pagefold.testing import embedded_server

_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_INDENT: Final = 4
_SECONDS: Final = 3.0
_NONE: Final = "none at"


def doctor(
    address: AddressOption = "",
    as_json: JsonOption = False,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
) -> None:
    """Check everything that merging needs, try it, and say for each what it means and what to do.

    A client connects, allocates, settles and reads back; where no server answers, the command starts one for it. The
    command changes nothing. A check that says "fail" prevents merging, and the command exits 1. A "warn" costs
    something, now or later.

    Examples:
      pagefold doctor
      pagefold doctor --json | jq '.checks[] | select(.state != "ok")'
    """
    found = server(address, lambda: Admin(address, token_file, ca))
    outcome = try_out(found, address, token_file, ca)
    checks = [
        client(outcome),
        *machine_checks(Machine(), outcome.tracker),
        found,
        packages(),
        fork_support(os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "")),
    ]
    able = all(check.state != "fail" for check in checks)
    if as_json:
        print_json(
            {
                "able": able,
                "version": __version__,
                "kernel": platform.release(),
                "python": platform.python_version(),
                "checks": [dataclasses.asdict(check) for check in checks],
            }
        )
    else:
        _show(checks, able)
    raise typer.Exit(ExitCode.OK if able else ExitCode.FAILED)


def try_out(found: Check, address: str, token_file: Path | None = None, ca: Path | None = None) -> trial.Outcome:
    """Tries a client at the server; where none answers and one could be started, at an embedded one."""
    if found.state == "fail" and not found.found.startswith(f"{__version__},"):
        return trial.Outcome(error=f"{found.found}: {found.meaning}")
    try:
        if not found.found.startswith(_NONE):
            return trial.run(str(parse_address(address)), token_file, ca)
        with embedded_server() as own:
            return trial.run(own)
    except (CommandError, OSError) as error:
        return trial.Outcome(error=str(error))


def client(outcome: trial.Outcome) -> Check:
    """How the client fared that was started to try."""
    name, most = "client", 2 * trial.PAGES
    if outcome.error:
        return Check(name, "fail", "could not try", outcome.error, "see above")
    told = f"{outcome.merged} of {most} pages merged in {outcome.seconds:.1f} s ({outcome.barrier}, {outcome.tracker})"
    if not outcome.intact:
        return Check(name, "fail", told, "it does not read what it has written", "do not use this build; report it")
    if outcome.merged < most:
        return Check(name, "fail", told, outcome.reason or outcome.trouble or "it does not say why", "see above")
    if not outcome.settled:
        return Check(name, "warn", told, f"its own pages are merged, others are not: {outcome.reason}", "see above")
    if outcome.trouble:
        return Check(name, "warn", told, outcome.trouble, "see above")
    return Check(name, "ok", told, "a client connects, merges, and reads what it has written")


def server(address: str, connect: Callable[[], Admin]) -> Check:
    """Whether a server answers, and what it says of itself."""
    name = "server"
    try:
        where = parse_address(address)
    except CommandError as error:
        return Check(name, "fail", "no address", str(error), "fix --address or $PAGEFOLD_ADDRESS")
    if not address and (complaint := _directory(where)):
        return complaint
    try:
        with connect() as admin:
            found = admin.status(_SECONDS)
    except CommandError as error:
        if error.code is ExitCode.NO_SERVER and not addresses.stuck(where):
            return _directory(where) or _no_server(where)
        return Check(name, "fail", f"{where} refuses", str(error), "see above")
    told = f"{found.version}, protocol {found.protocol}, pid {found.pid}, {where}"
    if found.protocol != PROTOCOL:
        meaning = f"this is version {__version__}, protocol {PROTOCOL}: connect() fails"
        return Check(name, "fail", told, meaning, "install the same version on both sides")
    if found.page_size != PAGE:
        return Check(name, "fail", told, f"its pages have {found.page_size} bytes", "run server and clients together")
    if found.trouble:
        return Check(name, "fail" if found.run != 1 else "warn", told, found.trouble, "see above")
    told += f", log {found.log}"
    if found.log_lines_lost:
        lost = count(found.log_lines_lost, "log line")
        meaning = f"{lost} could not be written ({found.log_trouble}); merging goes on"
        return Check(name, "warn", told, meaning, "make room for the log, or give the server another log_file")
    return Check(name, "ok", told, f"serves {count(found.clients, 'client')} and merges")


def _directory(where: addresses.Address) -> Check | None:
    """What is wrong with a socket's directory. Clients check it for the default address, and to start a server."""
    if where.scheme == "unix":
        try:
            addresses.verify_directory(str(Path(where.path).parent))
        except FileNotFoundError:
            return None
        except addresses.AddressError as error:
            return Check(
                "server",
                "fail",
                str(where),
                "clients do not trust a directory that other users can write to",
                str(error),
            )
    return None


def _no_server(where: addresses.Address) -> Check:
    name, found = "server", f"{_NONE} {where}"
    if where.scheme == "tcp":
        return Check(name, "fail", found, "connect() fails: only a per-user server starts by itself", "pagefold serve")
    missing = [module for module in SERVER_NEEDS if find_spec(module) is None]
    if missing:
        meaning = f"connect() cannot start one either: {', '.join(missing)} missing"
        return Check(name, "fail", found, meaning, "pip install 'pagefold[server]'")
    if not may_autostart(os.environ):
        return Check(name, "fail", found, "connect() fails: PAGEFOLD_AUTOSTART is off", "pagefold serve")
    return Check(name, "ok", found, "the first connect() starts one, which ends when it has been unused for a while")


def packages() -> Check:
    """The libraries that both sides speak through."""
    found = []
    for name in ("grpcio", "protobuf", "numpy"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    if "no numpy" in found:
        meaning = "memory as buffers works; arrays (and the demo) need NumPy"
        return Check("packages", "warn", ", ".join(found), meaning, "pip install 'pagefold[numpy]'")
    return Check("packages", "ok", ", ".join(found), "grpcio 1.71 and protobuf 5.29 or newer are what it takes")


def fork_support(value: str) -> Check:
    """GRPC's own fork handling, which programs that fork need."""
    if value.strip().lower() in (*FORK_SUPPORT_OFF, ""):
        if value:
            return Check(
                "fork_support",
                "warn",
                f"GRPC_ENABLE_FORK_SUPPORT={value}",
                "in a child of a program that has connected, clients raise ForkedClient: gRPC's calls would hang there",
                "unset GRPC_ENABLE_FORK_SUPPORT",
            )
        return Check("fork_support", "ok", "gRPC's default", "programs that use pagefold may fork")
    return Check("fork_support", "ok", f"GRPC_ENABLE_FORK_SUPPORT={value}", "programs that use pagefold may fork")


def _show(checks: list[Check], able: bool) -> None:
    out = console(PROSE_WIDTH)
    names = [printable(check.name) for check in checks]
    widest = max(map(len, names))
    for name, check in zip(names, checks, strict=True):
        state = (f"{check.state:<5}", _STYLES[check.state])
        out.print(Text.assemble((f"{name:<{widest}}  ", "bold"), state, printable(check.found)))
        out.print(Padding(Text(printable(check.meaning)), (0, 0, 0, _INDENT), expand=False))
        if check.remedy and check.remedy != "see above":
            # In one piece however wide it is: there are commands in it, to be copied.
            out.print(Text(f"{' ' * _INDENT}-> {printable(check.remedy)}", style="cyan"), soft_wrap=True)
    if able:
        out.print("this machine can merge", style="bold green")
    else:
        failed = ", ".join(check.name for check in checks if check.state == "fail")
        out.print(f"nothing can be merged here: see {printable(failed)}", style="bold red")
