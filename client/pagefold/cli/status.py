"""`pagefold status`: what a server does and saves, once or at each interval."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from pagefold_proto.text import human, printable
from pagefold_proto.v1 import admin_pb2 as pb
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from pagefold.cli.admin import Admin
from pagefold.cli.exits import CommandError, ExitCode
from pagefold.cli.options import AddressOption, CaOption, JsonOption, TokenFileOption
from pagefold.cli.output import console, count, duration, facts, pages, plain, print_json, table

_RUN = {0: "stopped", 1: "merging", 2: "unmerging"}


def status(
    address: AddressOption = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it at each interval, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="Interval of --watch.")] = 1,
    domains: Annotated[bool, typer.Option("--domains", help="List domains and users too, one in each row.")] = False,
    as_json: JsonOption = False,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
) -> None:
    """Show what a server does, what it saves, and what keeps pages from merging.

    Counters have KSM's names and meanings. With --watch, --json prints one object in each line.

    Examples:
      pagefold status
      pagefold status --watch --interval 0.5
      pagefold status --json | jq .saved_bytes
    """
    if watch and domains:
        raise CommandError("--watch and --domains do not go together", ExitCode.USAGE)
    with Admin(address, token_file, ca) as admin:
        if watch:
            _watch(admin, interval, as_json)
            return
        found = admin.status()
        listed = admin.domains() if domains else None
    if as_json:
        told: dict[str, Any] = plain(found)
        print_json(told | (plain(listed) if listed else {}))
        return
    out = console()
    out.print(render(found))
    if listed:
        out.print(_domains(listed, found.page_size))
        out.print(_tenants(listed))


def _watch(admin: Admin, interval: float, as_json: bool) -> None:
    looks = admin.watch(interval)
    if as_json:
        for found in looks:
            print_json(plain(found), one_line=True)
    elif not sys.stdout.isatty():
        for found in looks:
            print(line(found), flush=True)
    else:
        with Live(console=console(), auto_refresh=False) as live:
            for found in looks:
                live.update(render(found), refresh=True)
    raise CommandError(f"the server at {admin.address} stopped", ExitCode.NO_SERVER)


def line(found: pb.Status) -> str:
    """The status as one line, for a log."""
    counters = found.counters
    return (
        f"saved {human(found.saved_bytes)}, pool {human(found.pool_bytes)}, "
        f"shared {counters.pages_shared} sharing {counters.pages_sharing} zero {counters.zero_pages}, "
        f"scanned {counters.pages_scanned} in {count(counters.full_scans, 'pass', 'passes')}, "
        f"{count(found.clients, 'client')}, scan cpu {found.scan_cpu_percent:.1f} %"
        + (f", trouble: {printable(found.trouble)}" if found.trouble else "")
    )


def render(found: pb.Status) -> RenderableType:
    """The status for people."""
    size, counters, lost = found.page_size, found.counters, found.log_lines_lost
    parts: list[RenderableType] = [
        facts(
            {
                "server": f"{found.version}, pid {found.pid}, up {duration(found.uptime_seconds)}, {found.address}",
                "state": _state(found)
                + (f", {count(found.settling, 'client')} waiting in settle()" if found.settling else ""),
                "clients": f"{found.clients}, {count(found.segments, 'segment')}"
                + (f" ({found.memfd_segments} in memfd)" if found.memfd_segments else "")
                + f", {count(found.domains, 'domain')}"
                + (f"; {found.departed} departed with memory in use" if found.departed else ""),
                "log": found.log + (f"; {count(lost, 'line')} lost: {found.log_trouble}" if lost else ""),
                "cpu": f"{found.scan_cpu_percent:.1f} % of a core for scanning, {found.cpu_seconds:.1f} s in all",
            }
        ),
        Text(f"\n saves {human(found.saved_bytes)}", style="bold green" if found.saved_bytes else "bold"),
        facts(
            {
                "pages_shared": pages(counters.pages_shared, size) + "  frames in use",
                "pages_sharing": pages(counters.pages_sharing, size) + "  saved by them",
                "zero_pages": pages(counters.zero_pages, size) + "  saved by the zero page",
                "pages_unshared": pages(counters.pages_unshared, size) + "  unlike any other",
                "pages_unplaced": pages(counters.pages_unplaced, size) + "  have an equal, and no room for a frame",
                "pages_volatile": pages(counters.pages_volatile, size) + "  changed since the last pass",
                "full_scans": f"{counters.full_scans:,}",
                "pages_merged": f"{counters.pages_merged:,} since the start, {counters.pages_broken:,} written since",
                "general_profit": f"{human(counters.general_profit)}  saved, less "
                f"{human(counters.bookkeeping_bytes)} for the books",
                "pool": human(found.pool_bytes),
            }
        ),
    ]
    parts += [Text(f"\n {printable(line)}", style="bold yellow") for line in _trouble(found)]
    return Group(*parts)


def _state(found: pb.Status) -> str:
    """What the server does, and whether an obstacle keeps it from merging all."""
    held_up = any(trouble.blocks for trouble in found.troubles)
    return _RUN.get(found.run, str(found.run)) + (" what it can: see trouble" if held_up and found.run == 1 else "")


def _trouble(found: pb.Status) -> list[str]:
    """A line for each obstacle, with the client or user whose pages do not merge."""
    if not found.troubles:
        return [f"trouble: {found.trouble}"] if found.trouble else []
    return [
        f"trouble: {f'client {each.client} (pid {each.pid})' if each.client else f'user {each.uid}'}: {each.text}"
        for each in found.troubles
    ]


def _domains(listed: pb.ListDomainsReply, size: int) -> RenderableType:
    numbers = ("clients", "segments", "shared", "sharing", "zero", "pool")
    made = table("domain", *numbers, "pool name", right=numbers, wrap=("pool name",))
    for domain in listed.domains:
        made.row(
            f"{domain.uid}/{domain.label}" if domain.label else str(domain.uid),
            str(domain.clients),
            str(domain.segments),
            pages(domain.counters.pages_shared, size),
            pages(domain.counters.pages_sharing, size),
            pages(domain.counters.zero_pages, size),
            human(domain.pool_bytes),
            domain.pool,
        )
    return made


def _tenants(listed: pb.ListDomainsReply) -> RenderableType:
    """What each user has of what the quotas (the settings tenant_*) bound."""
    numbers = ("sessions", "domains", "segments", "bytes", "mappings", "scan cpu", "call cpu", "delayed", "pools")
    made = table("user", *numbers, right=numbers)
    for tenant in listed.tenants:
        made.row(
            str(tenant.uid),
            str(tenant.sessions),
            str(tenant.domains),
            str(tenant.segments),
            human(tenant.bytes),
            str(tenant.mappings),
            f"{tenant.scan_cpu_seconds:.1f} s",
            f"{tenant.call_cpu_seconds:.1f} s",
            str(tenant.calls_delayed),
            human(tenant.pool_bytes),
        )
    return made
