"""A survey: how one process maps the views of one domain, beside the domain's books, at about one time.

The process is the client itself, or of its family, or unknown. A difference may be an event on its way: `pages` makes
surveys until it knows. A survey lets the loop go on after each slice (`breathe`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, cast

from pagefold_proto.limits import PAGE

from pagefold_server.audit.differences import COPY_KINDS, STRAY, Difference, compare
from pagefold_server.domains.domain import Domain
from pagefold_server.engine.interface import Held
from pagefold_server.engine.pageset import PageSet
from pagefold_server.engine.states import MAPPED, NO_FRAME, OWNED
from pagefold_server.procfs.mappings import Key, Mapping, Seen, What, copies, describe_view, parse, read, read_pagemap
from pagefold_server.procfs.processes import Process
from pagefold_server.sessions.session import Session, State

_TABLE_PAGES: Final = 1 << 11  # of the books, read in one go: a millisecond if every page is a run of its own
_RUNS: Final = 256  # compared in one go


@dataclass(frozen=True, slots=True)
class View:
    """A segment in a process. `whole`: the process is the client itself, and reports what it does."""

    session: Session
    number: int
    base: int
    pages: int
    key: Key
    whole: bool


class Survey:
    """See the head of this file.

    Args:
        process: to look at.
        domain: to compare it with.
        breathe: lets the loop go on, if it has been held for a slice.

    Attributes:
        differences: what was found.
        pages: of the views of which the process is the client.
        references: of these, by the books.
        unplaced: segments that the process has as a client, at unknown addresses.
        writable: it maps the pool so that it can change frames.
    """

    def __init__(self, process: Process, domain: Domain, breathe: Callable[[], Awaitable[None]]) -> None:
        self.differences: list[Difference] = []
        self.pages = self.references = 0
        self.unplaced: list[tuple[Session, int]] = []
        self.writable = False
        self._process = process
        self._domain = domain
        self._breathe = breathe

    async def run(self) -> Survey:
        """Makes the survey.

        Raises:
            OSError: the process has ended, or the server may not read its /proc.
        """
        if not is_open(self._domain):
            return self
        text = await asyncio.to_thread(read, self._process.pid)
        mappings = []
        for mapping in parse(text):
            mappings.append(mapping)
            await self._breathe()
        if not is_open(self._domain):
            return self
        pool = key_of(self._domain.pool.fd)
        placed, own = PageSet(), PageSet()
        for found in sorted(self._views(mappings), key=lambda found: not found.whole):
            seen = []
            for run in describe_view(mappings, found.base, found.pages, found.key, pool):
                seen.append(run)
                await self._breathe()
            if found.whole:
                seen = await self._told_apart(found, seen)
            else:
                seen = _outside(own, found, seen)  # a child that is a client by now has books of its own for these
            held = await self._held(found)
            if held is None:
                continue
            here = await self._compared(found, held, seen)
            if found.whole and _is_gone(held, seen, here):
                here = [difference for difference in here if difference.state in MAPPED]
            else:
                placed.add(0, found.base // PAGE, found.pages)
                if found.whole:
                    own.add(0, found.base // PAGE, found.pages)
            self.differences += here
        self._find_strays(mappings, pool, placed)
        return self

    def _views(self, mappings: list[Mapping]) -> list[View]:
        keys = {mapping.key for mapping in mappings}
        views = []
        for session in sessions_of(self._domain):
            if not is_family(session, keys):
                continue
            whole = session.state is State.ACTIVE and session.hello.pid in self._process.numbers
            for number, segment in session.segments.items():
                base = segment.address or _base(mappings, segment.identity)
                if base:
                    views.append(View(session, number, base, segment.pages, segment.identity, whole))
                elif whole:
                    self.unplaced.append((session, number))
        return views

    def _find_strays(self, mappings: list[Mapping], pool: Key, placed: PageSet) -> None:
        """Frames mapped outside of all views. Shared and read-only is how clients compare: that needs no reference."""
        if self._domain.awaiting_resume:
            return  # they may be of clients that have not come back since a restart: no frame of theirs is released
        for mapping in mappings:
            if mapping.key != pool:
                continue
            if mapping.shared:
                self.writable |= mapping.writable
                continue
            start, count = mapping.start // PAGE, (mapping.end - mapping.start) // PAGE
            for first, pages in placed.outside(0, start, count):
                frame = mapping.offset // PAGE + first - start
                self.differences.append(Difference(STRAY, first, pages, OWNED, NO_FRAME, What.FRAME, frame))

    async def _told_apart(self, found: View, seen: list[Seen]) -> list[Seen]:
        """Tells of frames which are copies by now, unless a forked child may share them: clients do not look then."""
        if found.session.gauges.shared_pages:
            return seen
        fd = os.open(f"/proc/{self._process.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
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
                await self._breathe()
            return told
        finally:
            os.close(fd)

    async def _held(self, found: View) -> list[Held] | None:
        """The pages of a view that hold frames; None if the segment is no more."""
        client, held = found.session.number, list[Held]()
        self.pages += found.pages if found.whole else 0
        for first in range(0, found.pages, _TABLE_PAGES):
            gone = client not in self._domain.participants or found.number not in found.session.segments
            if gone or not is_open(self._domain):
                return None
            part = self._domain.engine.held(client, found.number, first, _TABLE_PAGES)
            held += part
            if found.whole:
                self.references += sum(run.pages for run in part if run.state in MAPPED)
            await self._breathe()
        return held

    async def _compared(self, found: View, held: list[Held], seen: list[Seen]) -> list[Difference]:
        differences: list[Difference] = []
        place = (found.session.number, found.number)
        segment = found.session.segments.get(found.number)
        inherited = segment is not None and segment.inherited
        for n in range(0, len(seen), _RUNS):
            differences += compare(place, held, seen[n : n + _RUNS], found.whole, inherited)
            await self._breathe()
        return differences


def is_open(domain: Domain) -> bool:
    """A call, for it may change between two awaits."""
    return not domain.closed


def sessions_of(domain: Domain) -> list[Session]:
    """Its sessions, oldest first."""
    return [cast(Session, participant) for participant in domain.participants.values()]


def key_of(fd: int) -> Key:
    """The object behind a descriptor."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def is_family(session: Session, keys: set[Key] | frozenset[Key]) -> bool:
    """Whether a process that maps these objects is the client, or a descendant of it."""
    if session.lease.identity in keys:
        return True
    return any(segment.identity in keys for segment in session.segments.values())


def _base(mappings: list[Mapping], segment: Key) -> int | None:
    """Where a view begins, by a page of it that is its segment's own. For clients that do not say."""
    return next((m.start - m.offset for m in mappings if m.key == segment), None)


def _is_gone(held: list[Held], seen: list[Seen], differences: list[Difference]) -> bool:
    """Whether nothing is mapped as it should be: the client has dropped the view, and the segment is next.

    Of what is at its addresses by now the books say nothing, and no event tells of pages that held no frame.
    """
    if any(run.what is What.OWN for run in seen):
        return False
    mapped = sum(run.pages for run in held if run.state in MAPPED)
    elsewhere = (d for d in differences if d.state in MAPPED and d.kind not in COPY_KINDS)
    return mapped == sum(difference.pages for difference in elsewhere)


def _outside(pages: PageSet, found: View, seen: list[Seen]) -> list[Seen]:
    base, parts = found.base // PAGE, []
    for run in seen:
        for first, count in pages.outside(0, base + run.first, run.pages):
            shift = first - base - run.first
            number = run.number + shift if run.what <= What.ELSEWHERE else run.number
            parts.append(Seen(run.first + shift, count, run.what, number))
    return parts
