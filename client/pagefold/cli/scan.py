"""`pagefold scan`: KSM's `run` knob, with words for its numbers."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from pagefold_proto.text import human

from pagefold._process.threads import wait_until
from pagefold.cli.admin import Admin
from pagefold.cli.exits import EXIT_CODES, CommandError, ExitCode
from pagefold.cli.options import AddressOption, CaOption, JsonOption, TokenFileOption, register
from pagefold.cli.output import console, facts, plain, print_json

app = typer.Typer(no_args_is_help=True, help="Start or stop merging, undo it, or merge now.", epilog=EXIT_CODES)

_LOOK_SECONDS = 0.1


def start(
    address: AddressOption = "",
    as_json: JsonOption = False,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
) -> None:
    """Scan and merge (KSM's run=1).

    Example:
      pagefold scan start
    """
    with Admin(address, token_file, ca) as admin:
        _set_run(admin, 1, "merging", as_json)


def stop(
    address: AddressOption = "",
    as_json: JsonOption = False,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
) -> None:
    """Stop scanning and merging; merged pages stay merged (KSM's run=0).

    Example:
      pagefold scan stop
    """
    with Admin(address, token_file, ca) as admin:
        _set_run(admin, 0, "stopped; merged pages stay merged", as_json)


def unmerge(
    address: AddressOption = "",
    wait: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=0, help="Wait up to SECONDS for unmerging; exit 1 on timeout."),
    ] = 0,
    as_json: JsonOption = False,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
) -> None:
    """Give every page back its own memory, and merge nothing (KSM's run=2).

    Make sure first that /dev/shm and the machine have room: `pagefold status` says how much is saved now.

    Example:
      pagefold scan unmerge --wait 60
    """
    with Admin(address, token_file, ca) as admin:
        if not wait:
            _set_run(admin, 2, "unmerging; `pagefold status --watch` shows how far it is", as_json)
            return
        admin.configure({"run": "2"})
        left = 0

        def is_done() -> bool:
            nonlocal left
            counters = admin.status().counters
            left = counters.pages_shared + counters.pages_sharing + counters.zero_pages
            return not left

        wait_until(is_done, wait, _LOOK_SECONDS)  # only the counters tell
        if as_json:
            print_json({"run": 2, "merged_pages_left": left})
        else:
            console().print(f"{left:,} pages are still merged" if left else "nothing is merged any more")
        raise typer.Exit(ExitCode.FAILED if left else ExitCode.OK)


def now(
    address: AddressOption = "",
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Wait up to SECONDS; exit 1 on timeout.")
    ] = 60,
    as_json: JsonOption = False,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
) -> None:
    """Merge at full speed until nothing is left to merge, then report.

    Exits 1 on timeout, and where scanning is stopped.

    Examples:
      pagefold scan now --timeout 10
      pagefold scan now --json | jq .saved_bytes
    """
    with Admin(address, token_file, ca) as admin:
        if admin.status().run != 1:
            raise CommandError("scanning is stopped: start it with  pagefold scan start")
        began = time.monotonic()
        report = admin.scan_now(timeout)
        seconds = time.monotonic() - began
        status = admin.status()
    saved = (report.pages_sharing + report.zero_pages) * status.page_size
    if as_json:
        told = plain(report)
        del told["settling"]
        print_json(told | {"seconds": round(seconds, 3), "saved_bytes": saved, "trouble": status.trouble})
    else:
        values = {
            "settled": "yes" if report.settled else "no",
            "seconds": f"{seconds:.2f}",
            "full passes": f"{report.passes}",
            "merged by this": f"{report.merged_pages:,} pages",
            "saved": human(saved),
        }
        left = {
            "unlike any other": report.pages_unshared,
            "changing": report.pages_volatile,
            "kept breaking": report.pages_waiting,
            "over mapping budget": report.pages_over_budget,
            "refused by clients": report.pages_refused,
        }
        values |= {name: f"{number:,} pages" for name, number in left.items() if number}
        if status.trouble:
            values["trouble"] = status.trouble
        console().print(facts(values))
    raise typer.Exit(ExitCode.OK if report.settled else ExitCode.FAILED)


def _set_run(admin: Admin, run: int, words: str, as_json: bool) -> None:
    admin.configure({"run": str(run)})
    if as_json:
        print_json({"run": run})
    else:
        console().print(words)


register(app, start, "start")
register(app, stop, "stop")
register(app, unmerge, "unmerge")
register(app, now, "now")
