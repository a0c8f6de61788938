"""`pagefold fsck`: an audit of a running server and its clients, by what the kernel says that they map."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final

import typer
from pagefold_proto.text import printable
from pagefold_proto.v1 import admin_pb2 as pb
from rich.console import Console
from rich.text import Text

from pagefold.cli.admin import Admin
from pagefold.cli.exits import CommandError, ExitCode
from pagefold.cli.options import AddressOption, CaOption, JsonOption, TokenFileOption
from pagefold.cli.output import console, count, duration, facts, plain, print_json

COULD_NOT_LOOK: Final = 2
"""Exit code: some things could not be looked at; the others show no difference."""

_BLIND: Final = pb.FINDING_KIND_UNREADABLE
"""From this kind on, findings say what could not be looked at."""

_UNITS: Final = {"names": "names", "processes": "processes", "frames": "frames", "pages": "processes' pages"}


def fsck(
    address: AddressOption = "",
    thorough: Annotated[
        bool,
        typer.Option("--thorough", help="Check all books of the engines too, which stops the server for a moment."),
    ] = False,
    names: Annotated[bool, typer.Option("--names", help="List every name in /dev/shm, and its holder.")] = False,
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Wait up to SECONDS for each answer of a client.")
    ] = 10,
    as_json: JsonOption = False,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
) -> None:
    """Compare the server's books with what the kernel says that processes map, while they run; change nothing.

    The audit looks at every page that maps a frame, in both directions, in forked children too. It digests
    every frame and counts its users again. It looks at every name in /dev/shm. It shows the first difference
    of each kind with both sides. A change that a working client has not reported yet is no difference.

    Exits 0 if there is no difference, 1 if there is one, and 2 if something could not be looked at, for
    example another user's process, and the rest shows no difference.

    Examples:
      pagefold fsck
      pagefold fsck --thorough --names
      pagefold fsck --json | jq '.findings[].text'
    """
    request = pb.FsckRequest(thorough=thorough, names=names, patience_seconds=patience)
    findings: list[pb.FsckFinding] = []
    listed: list[pb.FsckName] = []
    summary = None
    with Admin(address, token_file, ca) as admin:
        for news in _with_progress(admin.fsck(request)):
            if news.HasField("finding"):
                findings.append(news.finding)
                if not as_json:
                    _show(news.finding)
            elif news.HasField("name"):
                listed.append(news.name)
            elif news.HasField("summary"):
                summary = news.summary
    listed.sort(key=lambda name: name.name)
    if summary is None:
        raise CommandError(f"the server at {admin.address} ended the audit early: try again", ExitCode.NO_SERVER)
    kinds = [tally.kind for tally in summary.tallies]
    if as_json:
        told: dict[str, Any] = {"clean": not kinds, "findings": [plain(finding) for finding in findings]}
        told |= {"names_held": {name.name: name.holder for name in listed}} if names else {}
        print_json(told | plain(summary))
    else:
        if listed:
            console().print(facts({name.name: name.holder for name in listed}))
        _conclude(summary)
    if any(kind < _BLIND for kind in kinds):
        raise typer.Exit(ExitCode.FAILED)
    raise typer.Exit(COULD_NOT_LOOK if kinds else ExitCode.OK)


def _with_progress(news: Iterable[pb.FsckNews]) -> Iterator[pb.FsckNews]:
    """Shows progress on stderr if that is a terminal, and hands on the other messages."""
    if not sys.stderr.isatty():
        yield from (told for told in news if not told.HasField("progress"))
        return
    with Console(stderr=True, markup=False, emoji=False).status("looking") as status:
        for told in news:
            if told.HasField("progress"):
                at = told.progress
                status.update(f"looking at {_UNITS.get(at.stage, printable(at.stage))}: {at.done:,} of {at.total:,}")
            else:
                yield told


def _word(kind: int) -> str:
    """UNHELD_MAPPING as "unheld mapping"; a kind that this version does not know by its number."""
    known = pb.FindingKind.DESCRIPTOR.values_by_number.get(kind)
    return known.name.removeprefix("FINDING_KIND_").lower().replace("_", " ") if known else f"kind {kind}"


def _show(finding: pb.FsckFinding) -> None:
    style = "yellow" if finding.kind >= _BLIND else "bold red"
    more = f" (and the {finding.count - 1:,} that follow)" if finding.count > 1 else ""
    console().print(Text.assemble((_word(finding.kind), style), f": {printable(finding.text)}{more}"), soft_wrap=True)


def _conclude(summary: pb.FsckSummary) -> None:
    out = console()
    out.print(
        f"looked at {count(summary.references, 'reference')} on {count(summary.pages, 'page')} of "
        f"{count(summary.clients, 'client')} in {count(summary.processes, 'process', 'processes')}, "
        f"{count(summary.frames, 'frame')} of {count(summary.domains, 'domain')}, {count(summary.names, 'name')} "
        f"({summary.names_elsewhere:,} held by others), in {duration(summary.seconds)}",
        soft_wrap=True,
    )
    if summary.unreadable:
        out.print(
            f"{count(summary.unreadable, 'process', 'processes')} of other users could not be read; none is a client's",
            soft_wrap=True,
        )
    different = {_word(tally.kind): tally.count for tally in summary.tallies if tally.kind < _BLIND}
    blind = {_word(tally.kind): tally.count for tally in summary.tallies if tally.kind >= _BLIND}
    if different:
        out.print(f"different: {_counts(different)}", style="bold red")
    if blind:
        out.print(f"could not look: {_counts(blind)}", style="bold yellow")
    if not different and not blind:
        out.print("clean", style="bold green")


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {word}" for word, number in found.items())
