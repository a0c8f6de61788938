"""The part of an audit that compares books and mappings, process by process. `fsck` says why it is right.

    a survey   noting begins -> /proc/<pid>/maps and the books are read -> differences
    between    the clients concerned look, and report
    the next   pages with the same finding in both surveys, and no event in between, are a difference

Pages that changed in between are looked at again, until none is left or the rounds are over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from pagefold_proto.limits import PAGE
from pagefold_proto.v1 import admin_pb2 as pb

from pagefold_server.audit.differences import STRAY, Difference, common, pages_of, within, without
from pagefold_server.audit.findings import Findings
from pagefold_server.audit.survey import Survey, is_family, key_of, sessions_of
from pagefold_server.domains.domain import Domain
from pagefold_server.procfs.mappings import Key, What
from pagefold_server.procfs.processes import Process
from pagefold_server.sessions.session import Session, State
from pagefold_server.sessions.touched_pages import TouchedPages

_ROUNDS: Final = 16
"""With a client that writes and merges as fast as it can, nine differences in ten are gone in the second."""

_LOOK_SECONDS: Final = 0.01  # between two checks whether a client has answered

_Touched = dict[int, TouchedPages]  # by client


class PageAudit:
    """See the head of this file.

    Args:
        findings: of the audit that this is a part of.
        patience: seconds for which a client is waited for.
        domains: to look at.
        processes: that map memory of pagefold's, or could not be read.
        scanned: when they were listed, by the monotonic clock.
    """

    def __init__(
        self, findings: Findings, patience: float, domains: list[Domain], processes: list[Process], scanned: float
    ) -> None:
        self._findings = findings
        self._patience = patience
        self._domains = domains
        self._processes = processes
        self._scanned = scanned

    async def run(self) -> None:
        """Looks at every process of every domain."""
        summary = self._findings.summary
        self._tell_unreadable()
        todo = []
        keys = {domain: _keys(domain) for domain in self._domains if not domain.closed}
        for process in self._processes:
            domains = [domain for domain, objects in keys.items() if not objects.isdisjoint(process.keys)]
            todo += [(process, domain) for domain in domains]
            summary.processes += bool(domains)
        for n, (process, domain) in enumerate(todo):
            self._findings.progress("pages", n, len(todo))
            try:
                await self._audit(process, domain)
            except PermissionError as error:
                where = f"process {process.pid} maps memory of domain {domain}"
                text = f"{where}, and its /proc cannot be read: {error.strerror}"
                self._find(domain, pb.FINDING_KIND_UNREADABLE, text, pid=process.pid)
            except OSError:  # it has ended
                continue
            except RuntimeError as error:
                text = f"the engine's books of domain {domain}: {error}"
                self._find(domain, pb.FINDING_KIND_BOOKS, text)

    # Processes that cannot be read

    def _tell_unreadable(self) -> None:
        """Tells of clients of which no process can be read: that is no difference."""
        blind = {number for process in self._processes if not process.readable for number in process.numbers}
        numbered: dict[int, list[Process]] = {}
        for process in self._processes:
            for number in process.numbers:
                numbered.setdefault(number, []).append(process)
        known: set[int] = set()
        for domain in self._domains:
            for session in sessions_of(domain):
                self._findings.summary.clients += 1
                known.add(session.hello.pid)
                if session.state is not State.ACTIVE or not session.segments or session.opened > self._scanned:
                    continue
                if any(is_family(session, process.keys) for process in numbered.get(session.hello.pid, ())):
                    continue
                hidden = session.hello.pid in blind
                if not hidden and any(is_family(session, process.keys) for process in self._processes):
                    continue  # the client itself is gone, and children of it are there
                if session.lease.is_free():
                    continue  # it has just died
                why = "there is no process here that maps its memory (another PID namespace?)"
                if hidden:
                    why = "this server's user may not read its /proc entry: run the server as that user or as root"
                text = f"what {session} maps cannot be read: {why}"
                self._find(domain, pb.FINDING_KIND_UNREADABLE, text, session, pid=session.hello.pid)
        others = [p for p in self._processes if not p.readable and not p.numbers & known]
        self._findings.summary.unreadable = len(others)

    # Rounds

    async def _audit(self, process: Process, domain: Domain) -> None:
        touched = _begin_noting(domain)
        try:
            first = await Survey(process, domain, self._findings.breathe).run()
            self._tell_first(process, domain, first)
            before = first.differences
            for _ in range(_ROUNDS):
                if not before:
                    return
                silent = await self._ask(domain, {difference.place[0] for difference in before})
                later = _begin_noting(domain)
                survey = await Survey(process, domain, self._findings.breathe).run()
                after = within(survey.differences, pages_of(before))
                sure = list(_untouched(common(before, after), touched, silent))
                self._report(process, domain, sure, silent)
                _end_noting(domain, touched)
                before, touched = without(after, pages_of(sure)), later
            for difference in before:
                text = f"{self._where(process, domain, difference)} changed between each two of {_ROUNDS + 1} surveys"
                self._find_pages(domain, pb.FINDING_KIND_UNSETTLED, text, process, difference)
        finally:
            _end_noting(domain, touched)

    async def _ask(self, domain: Domain, clients: set[int]) -> set[int]:
        """Has clients look and report, and returns those that do not."""
        concerned = [s for s in sessions_of(domain) if s.number in clients and s.state is State.ACTIVE]
        asked = [(session, domain.looks.ask_one(session)) for session in concerned]
        self._findings.summary.looks += len(asked)
        until = time.monotonic() + self._patience
        while True:
            missing = {s.number for s, look in asked if s.state is State.ACTIVE and s.look.made < look}
            missing &= domain.participants.keys()
            if not missing or time.monotonic() > until:
                return missing
            await asyncio.sleep(_LOOK_SECONDS)

    # What is told

    def _tell_first(self, process: Process, domain: Domain, survey: Survey) -> None:
        """Tells what one survey is enough for."""
        self._findings.summary.pages += survey.pages
        self._findings.summary.references += survey.references
        for session, number in survey.unplaced:
            text = f"where {session} maps segment {number} is unknown: it gave no address, and maps no page of it"
            self._find(domain, pb.FINDING_KIND_UNREADABLE, text, session, segment=number)
        if survey.writable:
            text = f"process {process.pid} maps frames of domain {domain} shared and writable, and can change them"
            self._find(domain, pb.FINDING_KIND_WRITABLE_FRAME, text, pid=process.pid)

    def _report(self, process: Process, domain: Domain, sure: list[Difference], silent: set[int]) -> None:
        for difference in sure:
            kind = difference.kind
            where = self._where(process, domain, difference)
            text = f"{where}: server records {difference.booked}, but process {process.pid} maps {difference.mapped}"
            if difference.place == STRAY:
                text = (
                    f"{where}: process {process.pid} maps {difference.mapped}, but server records no reference for that"
                )
            if difference.place[0] in silent:
                kind = pb.FINDING_KIND_UNANSWERED
                text += f"; the event may be on its way, for the client has not reported within {self._patience:g} s"
            self._find_pages(domain, kind, text, process, difference)

    def _where(self, process: Process, domain: Domain, difference: Difference) -> str:
        client, segment = difference.place
        if difference.place == STRAY:
            return (
                f"address {difference.first * PAGE:#x} of process {process.pid} (domain {domain}), outside of all views"
            )
        session = domain.participants.get(client)
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
        self._findings.find(finding)

    def _find(
        self,
        domain: Domain,
        kind: pb.FindingKind,
        text: str,
        session: Session | None = None,
        pid: int = 0,
        segment: int = 0,
    ) -> None:
        client = session.number if session else 0
        self._findings.find(
            pb.FsckFinding(
                kind=kind, text=text, uid=domain.uid, label=domain.label, client=client, pid=pid, segment=segment
            )
        )


def _keys(domain: Domain) -> set[Key]:
    """All objects that belong to a domain."""
    keys = {key_of(domain.pool.fd)}
    for session in sessions_of(domain):
        keys.add(session.lease.identity)
        keys.update(segment.identity for segment in session.segments.values())
    return keys


def _begin_noting(domain: Domain) -> _Touched:
    noted = {}
    for session in sessions_of(domain):
        noted[session.number] = TouchedPages()
        session.touched.append(noted[session.number])
    return noted


def _end_noting(domain: Domain, noted: _Touched) -> None:
    for session in sessions_of(domain):
        touched = noted.get(session.number)
        if touched in session.touched:
            session.touched.remove(touched)


def _untouched(differences: Iterator[Difference], noted: _Touched, silent: set[int]) -> Iterator[Difference]:
    """The parts of which nothing was booked since noting began; those of silent clients as they are.

    A client does not look which of the pages that a forked child may share were written: no report of these is missing.
    """
    for difference in differences:
        client, segment = difference.place
        touched = noted.get(client)
        if difference.place == STRAY or client in silent:
            yield difference
        elif touched is not None and not (touched.shared and difference.kind == pb.FINDING_KIND_UNREPORTED_COPY):
            for first, count in touched.pages.outside(segment, difference.first, difference.pages):
                yield difference.part(first, count)
