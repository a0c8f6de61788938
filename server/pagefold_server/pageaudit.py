"""The part of an audit that compares books and page tables, process by process; `fsck` says why what it finds is true.

    a round    watches begin -> /proc/<pid>/maps and the books are read -> differences
    between    the clients concerned look, and report
    the next   what both rounds have found alike, and nothing was booked of in between, is a difference

What changed in between is looked at again, and again, until nothing is left or it has changed in every round.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from pagefold_proto.v1 import admin_pb2 as pb

from pagefold_server.comparison import STRAY, Difference, common, compare, pages_of, within, without
from pagefold_server.domain import Domain
from pagefold_server.engine import Held
from pagefold_server.mappings import Key, Mapping, Seen, What, copies, parse, read, read_pagemap, view
from pagefold_server.pageset import PageSet
from pagefold_server.processes import Process
from pagefold_server.session import Session
from pagefold_server.tables import MAPPED, NO_FRAME, OWNED, PAGE
from pagefold_server.watch import Watch

if TYPE_CHECKING:
    from pagefold_server.fsck import Fsck

_ROUNDS: Final = 16
"""With a client that writes and merges as fast as it can, nine differences in ten are gone in the second."""

_TABLE_PAGES: Final = 1 << 11  # of the books, read in one go: a millisecond if every page is a run of its own
_RUNS: Final = 256  # compared in one go
_LOOK_SECONDS: Final = 0.01  # between two looks whether a client has answered; nothing else tells of that

_COPIES: Final = (pb.FINDING_KIND_UNREPORTED_COPY, pb.FINDING_KIND_LOST_COPY)  # the right frame is mapped there

_Watches = dict[int, Watch]  # by client


@dataclass(frozen=True, slots=True)
class _View:
    """A segment in a process. `whole`: the process is the client itself, and reports what it does."""

    session: Session
    number: int
    base: int
    pages: int
    key: Key
    whole: bool


class PageAudit:
    """See the head of this file.

    Args:
        fsck: the audit that this is a part of.
        domains: to look at.
        processes: that map anything of ours, or could not be looked at.
        scanned: when they were looked for, by the monotonic clock.
    """

    def __init__(self, fsck: Fsck, domains: list[Domain], processes: list[Process], scanned: float) -> None:
        self._fsck = fsck
        self._domains = domains
        self._processes = processes
        self._scanned = scanned

    async def run(self) -> None:
        """Looks at every process of every domain."""
        summary = self._fsck.summary
        self._tell_unreadable()
        todo = []
        keys = {domain: _keys(domain) for domain in self._domains if not domain.closed}
        for process in self._processes:
            domains = [domain for domain, ours in keys.items() if not ours.isdisjoint(process.keys)]
            todo += [(process, domain) for domain in domains]
            summary.processes += bool(domains)
        for n, (process, domain) in enumerate(todo):
            self._fsck.progress("pages", n, len(todo))
            try:
                await self._audit(process, domain)
            except PermissionError as error:
                text = (
                    f"process {process.pid} maps memory of domain {domain}, and cannot be looked at: {error.strerror}"
                )
                self._find(domain, pb.FINDING_KIND_UNREADABLE, text, pid=process.pid)
            except OSError:  # it has ended
                continue
            except RuntimeError as error:
                text = f"the engine's books of domain {domain}: {error}"
                self._find(domain, pb.FINDING_KIND_BOOKS, text)

    # Who is there

    def _tell_unreadable(self) -> None:
        """Clients of which no process can be looked at: that is said, and not taken for a difference."""
        blind = {number for process in self._processes if not process.readable for number in process.numbers}
        numbered: dict[int, list[Process]] = {}
        for process in self._processes:
            for number in process.numbers:
                numbered.setdefault(number, []).append(process)
        known: set[int] = set()
        for domain in self._domains:
            for session in _sessions(domain):
                self._fsck.summary.clients += 1
                known.add(session.hello.pid)
                if session.state != "active" or not session.segments or session.opened > self._scanned:
                    continue
                if any(_is_family(session, process.keys) for process in numbered.get(session.hello.pid, ())):
                    continue
                hidden = session.hello.pid in blind
                if not hidden and any(_is_family(session, process.keys) for process in self._processes):
                    continue  # the client itself is gone, and children of it are there
                if session.lease.is_free():
                    continue  # it has just died
                why = "there is no process here that maps its memory (another PID namespace?)"
                if hidden:
                    why = "this server's user may not read its /proc entry: run the server as that user or as root"
                text = f"what {session} maps cannot be seen: {why}"
                self._find(domain, pb.FINDING_KIND_UNREADABLE, text, session, pid=session.hello.pid)
        others = [p for p in self._processes if not p.readable and not p.numbers & known]
        self._fsck.summary.unreadable = len(others)

    # Rounds

    async def _audit(self, process: Process, domain: Domain) -> None:
        watches = _watch(domain)
        try:
            before = await self._round(process, domain, count=True)
            for _ in range(_ROUNDS):
                if not before:
                    return
                silent = await self._ask(domain, {difference.place[0] for difference in before})
                later = _watch(domain)
                after = within(await self._round(process, domain), pages_of(before))
                sure = list(_untouched(common(before, after), watches, silent))
                self._report(process, domain, sure, silent)
                _unwatch(domain, watches)
                before, watches = without(after, pages_of(sure)), later
            for difference in before:
                text = f"{self._where(process, domain, difference)} changed between all {_ROUNDS + 1} looks"
                self._find_pages(domain, pb.FINDING_KIND_UNSETTLED, text, process, difference)
        finally:
            _unwatch(domain, watches)

    async def _ask(self, domain: Domain, clients: set[int]) -> set[int]:
        """Has clients look and report. Those that do not."""
        concerned = [s for s in _sessions(domain) if s.client in clients and s.state == "active"]
        asked = [(session, domain.ask_one(session)) for session in concerned]
        self._fsck.summary.looks += len(asked)
        until = time.monotonic() + self._fsck.patience
        while True:
            missing = {s.client for s, look in asked if s.state == "active" and s.looked < look}
            missing &= domain.members.keys()
            if not missing or time.monotonic() > until:
                return missing
            await asyncio.sleep(_LOOK_SECONDS)

    async def _round(self, process: Process, domain: Domain, count: bool = False) -> list[Difference]:
        """Where the process is not as the books of the domain have it, at about one time."""
        if not _is_open(domain):
            return []
        text = await asyncio.to_thread(read, process.pid)
        mappings = []
        for mapping in parse(text):
            mappings.append(mapping)
            await self._fsck.breathe()
        if not _is_open(domain):
            return []
        pool = _key(domain.pool.fd)
        views = sorted(self._views(process, domain, mappings, count), key=lambda found: not found.whole)
        ranges, own = PageSet(), PageSet()
        differences: list[Difference] = []
        for found in views:
            seen = []
            for run in view(mappings, found.base, found.pages, found.key, pool):
                seen.append(run)
                await self._fsck.breathe()
            if found.whole:
                seen = await self._told_apart(process, found, seen)
            else:
                seen = _outside(own, found, seen)  # a child that is a client by now has books of its own for these
            held = await self._held(domain, found, count and found.whole)
            if held is None:
                continue
            here: list[Difference] = []
            place = (found.session.client, found.number)
            for n in range(0, len(seen), _RUNS):
                here += compare(place, held, seen[n : n + _RUNS], found.whole)
                await self._fsck.breathe()
            if found.whole and _is_gone(held, seen, here):
                here = [difference for difference in here if difference.state in MAPPED]
            else:
                ranges.add(0, found.base // PAGE, found.pages)
                if found.whole:
                    own.add(0, found.base // PAGE, found.pages)
            differences += here
        return differences + self._strays(process, domain, mappings, pool, ranges, count)

    def _views(self, process: Process, domain: Domain, mappings: list[Mapping], tell: bool) -> list[_View]:
        keys = {mapping.key for mapping in mappings}
        views = []
        for session in _sessions(domain):
            if not _is_family(session, keys):
                continue
            whole = session.state == "active" and session.hello.pid in process.numbers
            for number, segment in session.segments.items():
                key = segment.identity
                base = session.addresses.get(number) or _base(mappings, key)
                if base:
                    views.append(_View(session, number, base, segment.pages, key, whole))
                elif tell and whole:
                    text = f"where {session} maps segment {number} is not known: it does not say, and has no page of it"
                    self._find(domain, pb.FINDING_KIND_UNREADABLE, text, session, segment=number)
        return views

    def _strays(
        self,
        process: Process,
        domain: Domain,
        mappings: list[Mapping],
        pool: Key,
        views: PageSet,
        tell: bool,
    ) -> list[Difference]:
        """Frames mapped outside of all views. Shared and read-only they take no reference: so clients compare."""
        strays = []
        for mapping in mappings:
            if mapping.key != pool:
                continue
            if mapping.shared:
                if mapping.writable and tell:
                    text = (
                        f"process {process.pid} maps frames of domain {domain} shared and writable, and can change them"
                    )
                    self._find(domain, pb.FINDING_KIND_WRITABLE_FRAME, text, pid=process.pid)
                continue
            start, count = mapping.start // PAGE, (mapping.end - mapping.start) // PAGE
            for first, pages in views.outside(0, start, count):
                frame = mapping.offset // PAGE + first - start
                strays.append(Difference(STRAY, first, pages, OWNED, NO_FRAME, What.FRAME, frame))
        return strays

    async def _told_apart(self, process: Process, found: _View, seen: list[Seen]) -> list[Seen]:
        """Says of frames which are copies by now. Not where a forked child may share them: nobody looks there."""
        if found.session.gauges.shared_pages:
            return seen
        try:
            fd = os.open(f"/proc/{process.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return seen
        try:
            told = []
            for run in seen:
                if run.what is not What.FRAME:
                    told.append(run)
                    continue
                address = found.base + run.first * PAGE
                if run.pages < _RUNS:
                    flags = read_pagemap(fd, address, run.pages)
                else:
                    flags = await asyncio.to_thread(read_pagemap, fd, address, run.pages)
                told += copies(flags, run)
                await self._fsck.breathe()
            return told
        finally:
            os.close(fd)

    async def _held(self, domain: Domain, found: _View, count: bool) -> list[Held] | None:
        """The pages of a view that hold frames; None if the segment is no more."""
        client, held, summary = found.session.client, list[Held](), self._fsck.summary
        summary.pages += found.pages if count else 0
        for first in range(0, found.pages, _TABLE_PAGES):
            if not _is_open(domain) or client not in domain.members or found.number not in found.session.segments:
                return None
            part = domain.engine.held(client, found.number, first, _TABLE_PAGES)
            held += part
            if count:
                summary.references += sum(run.pages for run in part if run.state in MAPPED)
            await self._fsck.breathe()
        return held

    # What is told

    def _report(self, process: Process, domain: Domain, sure: list[Difference], silent: set[int]) -> None:
        for difference in sure:
            kind = difference.kind
            session = cast("Session | None", domain.members.get(difference.place[0]))
            shared = session is not None and session.gauges.shared_pages
            if kind == pb.FINDING_KIND_UNREPORTED_COPY and shared:
                continue  # nobody looks, while a forked child may share the view
            where = self._where(process, domain, difference)
            text = f"{where}: the books have it {difference.booked}, and process {process.pid} maps {difference.mapped}"
            if difference.place == STRAY:
                text = f"{where}: process {process.pid} maps {difference.mapped}, and no reference stands for that"
            if difference.place[0] in silent:
                kind = pb.FINDING_KIND_UNANSWERED
                text += f"; it may be on its way, for the client has not reported within {self._fsck.patience:g} s"
            self._find_pages(domain, kind, text, process, difference)

    def _where(self, process: Process, domain: Domain, difference: Difference) -> str:
        client, segment = difference.place
        if difference.place == STRAY:
            return (
                f"address {difference.first * PAGE:#x} of process {process.pid} (domain {domain}), outside of all views"
            )
        session = domain.members.get(client)
        return f"page {difference.first} of segment {segment} of {session or f'client {client}'}"

    def _find_pages(
        self, domain: Domain, kind: pb.FindingKind, text: str, process: Process, difference: Difference
    ) -> None:
        frame = difference.frame if difference.frame >= 0 else difference.number
        finding = pb.FsckFinding(
            kind=kind,
            text=text,
            uid=domain.uid,
            label=domain.label,
            client=difference.place[0],
            segment=difference.place[1],
            pid=process.pid,
            page=difference.first,
            count=difference.pages,
            pool=domain.pool.name,
            frame=frame if difference.frame >= 0 or difference.what <= What.COPY else 0,
        )
        self._fsck.find(finding)

    def _find(
        self,
        domain: Domain,
        kind: pb.FindingKind,
        text: str,
        session: Session | None = None,
        pid: int = 0,
        segment: int = 0,
    ) -> None:
        client = session.client if session else 0
        self._fsck.find(
            pb.FsckFinding(
                kind=kind, text=text, uid=domain.uid, label=domain.label, client=client, pid=pid, segment=segment
            )
        )


def _is_open(domain: Domain) -> bool:
    """A call, for it may change between two awaits."""
    return not domain.closed


def _sessions(domain: Domain) -> list[Session]:
    return [cast(Session, member) for member in domain.members.values()]


def _key(fd: int) -> Key:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _is_family(session: Session, keys: set[Key] | frozenset[Key]) -> bool:
    if session.lease.identity in keys:
        return True
    return any(segment.identity in keys for segment in session.segments.values())


def _keys(domain: Domain) -> set[Key]:
    """All objects that belong to a domain."""
    keys = {_key(domain.pool.fd)}
    for session in _sessions(domain):
        keys.add(session.lease.identity)
        keys.update(segment.identity for segment in session.segments.values())
    return keys


def _base(mappings: list[Mapping], segment: Key) -> int | None:
    """Where a view begins, by a page of it that is its segment's own. For clients that do not say."""
    return next((m.start - m.offset for m in mappings if m.key == segment), None)


def _is_gone(held: list[Held], seen: list[Seen], differences: list[Difference]) -> bool:
    """Whether nothing is mapped as it should be: the client has dropped this view, and will drop the segment.

    Of what is at its addresses by now the books say nothing, and no event tells of pages that held no frame.
    """
    if any(run.what is What.OWN for run in seen):
        return False
    mapped = sum(run.pages for run in held if run.state in MAPPED)
    elsewhere = (d for d in differences if d.state in MAPPED and d.kind not in _COPIES)
    return mapped == sum(difference.pages for difference in elsewhere)


def _outside(pages: PageSet, found: _View, seen: list[Seen]) -> list[Seen]:
    base, parts = found.base // PAGE, []
    for run in seen:
        for first, count in pages.outside(0, base + run.first, run.pages):
            shift = first - base - run.first
            number = run.number + shift if run.what <= What.ELSEWHERE else run.number
            parts.append(Seen(run.first + shift, count, run.what, number))
    return parts


def _watch(domain: Domain) -> _Watches:
    watches = {}
    for session in _sessions(domain):
        watches[session.client] = Watch()
        session.watches.append(watches[session.client])
    return watches


def _unwatch(domain: Domain, watches: _Watches) -> None:
    for session in _sessions(domain):
        watch = watches.get(session.client)
        if watch in session.watches:
            session.watches.remove(watch)


def _untouched(differences: Iterator[Difference], watches: _Watches, silent: set[int]) -> Iterator[Difference]:
    """The parts of which nothing was booked since the watches began. Those of silent clients are as they are."""
    for difference in differences:
        client, segment = difference.place
        watch = watches.get(client)
        if difference.place == STRAY or client in silent:
            yield difference
        elif watch is not None:
            for first, count in watch.touched.outside(segment, difference.first, difference.pages):
                yield difference.part(first, count)
