"""`pagefold clients`: who uses the server."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from pagefold_proto.text import human
from pagefold_proto.v1 import admin_pb2 as pb

from pagefold.cli.admin import Admin
from pagefold.cli.exits import CommandError
from pagefold.cli.options import AddressOption, CaOption, JsonOption, TokenFileOption
from pagefold.cli.output import console, count, duration, plain, print_json, table


def clients(
    address: AddressOption = "",
    segments: Annotated[bool, typer.Option("--segments", help="List their segments instead, one in each row.")] = False,
    client: Annotated[int, typer.Option(metavar="N", help="Show client N only; 0: all.")] = 0,
    as_json: JsonOption = False,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
) -> None:
    """List the clients of a server, oldest first.

    A "silent" client has work and does not answer: it is stopped in a debugger, for example. A "departed" client has
    ended its session while its memory still maps frames. An "excluded" client has violated the protocol.

    Examples:
      pagefold clients
      pagefold clients --segments --client 3
      pagefold clients --json | jq '.clients[] | select(.state != "active")'
    """
    with Admin(address, token_file, ca) as admin:
        found = [info for info in admin.clients().clients if client in (0, info.client)]
        if client and not found:
            raise CommandError(f"there is no client {client}: `pagefold clients` lists all")
        if segments:
            _show_segments(admin.segments(client), as_json)
            return
        if as_json:
            print_json({"clients": [_as_dict(info) for info in found]})
            return
        _show_clients(found, admin.status().page_size)


def _as_dict(info: pb.ClientInfo) -> dict[str, Any]:
    """A client as JSON, with the word that the barrier has everywhere but in the protocol."""
    told = plain(info)
    return {"barrier" if key == "tier" else key: value for key, value in told.items()}


def _show_clients(found: list[pb.ClientInfo], page_size: int) -> None:
    out = console()
    if not found:
        out.print("no clients")
        return
    numbers = ("client", "pid", "merged", "zero", "owned", "mappings", "window p99", "age")
    texts = ("program", "domain", "state", "barrier")
    # On a narrow terminal all but the numbers that are typed again may take several lines: nothing is cut off.
    listed = table(*numbers[:2], *texts, *numbers[2:], right=numbers, wrap=(*texts, *numbers[2:]))
    for info in found:
        gauges = info.gauges
        listed.row(
            str(info.client),
            str(info.pid),
            info.program or "-",
            f"{info.uid}/{info.label}" if info.label else str(info.uid),
            info.state,
            _as_dict(info)["barrier"],
            human(gauges.merged_pages * page_size),
            human(gauges.zero_pages * page_size),
            human(gauges.owned_pages * page_size),
            f"{gauges.mappings}/{gauges.mapping_budget}",
            f"{gauges.window_p99_micros} us" if gauges.windows else "-",
            duration(info.age_seconds),
        )
    out.print(listed)


def _show_segments(reply: pb.ListSegmentsReply, as_json: bool) -> None:
    if as_json:
        print_json(plain(reply))
        return
    out = console()
    if not reply.segments:
        out.print("no segments")
        return
    numbers = ("client", "segment", "pages", "allocated", "merged", "zero", "copied")
    listed = table(*numbers, "backing", "name", right=numbers, wrap=("name",))
    for segment in reply.segments:
        listed.row(
            str(segment.client),
            str(segment.segment),
            f"{segment.pages:,}",
            human(segment.allocated_bytes),
            f"{segment.merged_pages:,}",
            f"{segment.zero_pages:,}",
            f"{segment.copied_pages:,}",
            plain(segment)["backing"],
            segment.name,
        )
    out.print(listed)
    out.print(count(len(reply.segments), "segment"))
