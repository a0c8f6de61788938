"""The books of a domain: clients, their segments' page tables, and what their events do to them.

Every event is checked against the books before it changes them: a client can only answer what it was asked,
and only about pages of its own. The journal that events are taken from is written under the client's own
lock, so an event that does not fit is a lie or a bug, never a race.

Pages that must rest (they keep breaking, or the client declined them) leave the scan by their state, and
stand in a calendar under the time at which they come back. Time is counted in passes. Scanning is in
`reference`.
"""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Final

from pagefold_server.engine.interface import Columns, EngineOptions, Instructions, Left, SegmentCounts
from pagefold_server.engine.reference.client import Client
from pagefold_server.engine.reference.events import (
    BUDGET,
    CHANGED,
    DISCARDED,
    GIVEN_BACK,
    MAY_HAVE_BEEN,
    REASON_FAILED,
    REASON_FORKED,
    REASON_PINNED,
    ZERO_POOL,
    Event,
)
from pagefold_server.engine.reference.frames import Frames
from pagefold_server.engine.reference.page_table import (
    ADOPT_QUEUED,
    ADOPT_SENT,
    LISTED,
    MAX_BREAKS,
    PENDING,
    READING,
    UNWANTED,
    WRITTEN,
    PageTable,
)
from pagefold_server.engine.reference.unstable import Unstable
from pagefold_server.engine.runs import any_of, runs
from pagefold_server.engine.states import (
    COPIED,
    EXCLUDED,
    FAILED,
    FORKED,
    MAPPED,
    MERGED,
    NO_FRAME,
    OVER_BUDGET,
    OWNED,
    PINNED,
    PROPOSED,
    QUEUED,
    REFUSALS,
    REFUSED,
    RESTING,
    STATES,
    UNHELD,
    WAITING,
    ZERO,
    ZERO_FRAME,
)
from pagefold_server.errors import ProtocolViolation

# Passes after which a page is proposed, or asked for, once more, when the client could not do it.
RETRY_PASSES: Final = 8

_QUEUED_PAGES: Final = any_of(bytes((QUEUED,)))
_PROPOSED_PAGES: Final = any_of(bytes((PROPOSED,)))
_MAPPED_PAGES: Final = any_of(MAPPED)
_REFUSED_PAGES: Final = any_of(bytes((*REFUSALS, EXCLUDED)))
_RESTING_PAGES: Final = any_of(bytes((WAITING, *REFUSALS)))
_REFUSED_BY: Final = {REASON_PINNED: PINNED, REASON_FAILED: FAILED, REASON_FORKED: FORKED}
_UNHELD_PAGES: Final = any_of(UNHELD)
_TO_ADOPT: Final = any_of(bytes(value for value in range(256) if value & ADOPT_QUEUED))
_NOT_ASKED: Final = any_of(bytes(value for value in range(256) if not value & (ADOPT_QUEUED | ADOPT_SENT)))
_OWNED_PAGES: Final = any_of(bytes((OWNED,)))
_SAME: Final = {state: any_of(bytes((state,))) for state in (OWNED, COPIED, *RESTING)}


class Books:
    """The half of an engine that follows events. Its public methods are those of `Engine`."""

    def __init__(self, frames: Frames, options: EngineOptions, pool: int) -> None:
        self._frames = frames
        self._pool = pool  # its number, in events
        self._zero_digest = 0  # of a page of zeros; an engine knows
        self._options = options
        self._clients: dict[int, Client] = {}
        self._tables: dict[int, PageTable] = {}  # by number
        self._unstable = Unstable(self._tables)
        self._tables_made = 0
        self._unmerging = False
        self._clock = 0
        self._calendar: dict[int, list[tuple[PageTable, int, int, int]]] = {}  # table, first, count, state
        self._merged = 0
        self._broken = 0
        self._declined = 0
        self._events = (
            None,
            self._book_merged,
            self._book_declined,
            self._book_copied,
            self._book_released,
            self._book_not_adopted,
            self._book_excluded,
            self._book_included,
            self._book_written,
            self._book_resumed,
        )

    # Clients and segments

    def add_client(self, client: int) -> None:
        """See `Engine`."""
        if client in self._clients:
            raise ValueError(f"client {client} is there already")
        self._clients[client] = Client()

    def add_segment(self, client: int, segment: int, fd: int, pages: int, tracked: bool = False) -> None:
        """See `Engine`. The scan comes to it in the next pass."""
        book = self._clients[client]
        if segment in book.segments or not book.listening:
            raise ValueError(f"segment {segment} cannot be added to client {client}")
        self._tables_made += 1
        table = PageTable(self._tables_made, client, segment, fd, pages, tracked)
        book.segments[segment] = table
        self._tables[self._tables_made] = table

    def drop_segment(self, client: int, segment: int) -> bool:
        """See `Engine`."""
        book = self._clients[client]
        table = book.segments[segment]
        if any(table.counts[state] for state in (PROPOSED, MERGED, ZERO, COPIED)):
            return False
        self._cancel_queued(book, table)
        del book.segments[segment]
        self._forget(table)
        return True

    def depart_client(self, client: int) -> None:
        """See `Engine`."""
        book = self._clients[client]
        if not book.listening:
            return
        self._cancel_queued(book, None)
        for table in book.segments.values():
            self._unstable.remove(table, 0, table.pages)
            for first, count in runs(_PROPOSED_PAGES, table.states, 0, table.pages):
                for page in range(first, first + count):
                    self._commit(table, page)
            self._answer_adopt(book, table, 0, table.pages)
        book.proposed = 0
        book.listening = False

    def remove_client(self, client: int) -> None:
        """See `Engine`."""
        self.depart_client(client)
        for table in self._clients.pop(client).segments.values():
            for first, count in runs(_MAPPED_PAGES, table.states, 0, table.pages):
                self._drop_references(table, first, count)
            self._forget(table)

    def _forget(self, table: PageTable) -> None:
        self._unstable.remove(table, 0, table.pages)
        table.dropped = True
        del self._tables[table.base >> 32]

    # Events

    def apply(self, client: int, events: Columns) -> None:
        """See `Engine`."""
        book = self._clients[client]
        columns = (events.segment, events.first, events.count, events.pool, events.frame, events.detail)
        if any(len(column) != len(events.kind) for column in columns):
            raise ProtocolViolation("the columns of events are not of equal length")
        if not book.listening:
            raise ProtocolViolation("a client that has departed reports events")
        for kind, segment, first, count, pool, frame, detail in zip(events.kind, *columns, strict=True):
            table = book.segments.get(segment)
            if table is None:
                raise ProtocolViolation(f"segment {segment} is not known")
            if first < 0 or count <= 0 or first + count > table.pages:
                raise ProtocolViolation(f"pages {first}+{count} are outside of segment {segment}")
            act = self._events[kind] if 0 < kind < len(self._events) else None
            if act is None:
                raise ProtocolViolation(f"events of kind {kind} do not exist")
            act(Event(book, table, first, count, pool, frame, detail))

    def _book_merged(self, event: Event) -> None:
        event.expect_proposal(self._pool)
        for page in range(event.first, event.end):
            self._commit(event.table, page)
        event.book.proposed -= event.count
        self._merged += event.count
        if self._unmerging:
            self._ask_adopt(event.book, event.table, event.first, event.count)

    def _book_declined(self, event: Event) -> None:
        event.expect_proposal(self._pool)
        table, first, count = event.table, event.first, event.count
        self._cancel(table, first, count)
        event.book.proposed -= count
        self._declined += count
        if event.detail == CHANGED and event.pool == ZERO_POOL:
            # Memory that is reserved and was never written, as a rule: it reads as zeros, and is not to be had. What
            # was written is reported, or found to be of another content.
            if table.tracked:
                table.clear_flag(first, count, PENDING)
            else:
                self._rest(table, first, count, WAITING, RETRY_PASSES)
        elif event.detail == CHANGED and table.tracked:
            table.set_flag(first, count, WRITTEN)  # as it will be reported, too late for this proposal
        elif event.detail == CHANGED:
            # No page has the digest 0, but for one in 2**64: the next reading is a change, and a fresh one.
            table.digests[first : event.end] = array("Q", bytes(8 * count))
        elif event.detail == BUDGET:
            self._rest(table, first, count, OVER_BUDGET, RETRY_PASSES)
        else:
            self._rest(table, first, count, _REFUSED_BY.get(event.detail, REFUSED), RETRY_PASSES)

    def _book_copied(self, event: Event) -> None:
        event.expect_states(bytes((MERGED, ZERO)))
        table = event.table
        table.set_states(event.first, event.count, COPIED)
        if self._options.smart_scan:
            for page in range(event.first, event.end):
                table.breaks[page] = min(table.breaks[page] + 1, MAX_BREAKS)
        self._broken += event.count
        self._ask_adopt(event.book, table, event.first, event.count)

    def _book_released(self, event: Event) -> None:
        event.expect_states(MAPPED)
        book, table, first, count = event.book, event.table, event.first, event.count
        self._answer_adopt(book, table, first, count)
        broken = runs(_SAME[COPIED], table.states, first, event.end)
        self._drop_references(table, first, count)
        if event.detail == DISCARDED:
            table.breaks[first : event.end] = bytes(count)  # what comes here next has another story
        elif self._options.smart_scan:
            for start, number in broken:
                for page in range(start, start + number):
                    self._rest(table, page, 1, WAITING, 1 << table.breaks[page])
        for other in book.segments.values():
            if other.counts[OVER_BUDGET]:  # there is room for mappings now
                self._wake(other, 0, other.pages, OVER_BUDGET)

    def _book_not_adopted(self, event: Event) -> None:
        if not self._answer_adopt(event.book, event.table, event.first, event.count):
            return  # nobody asked: there is nothing to ask for again
        self._schedule(event.table, event.first, event.count, COPIED, RETRY_PASSES)

    def _book_excluded(self, event: Event) -> None:
        self._unstable.remove(event.table, event.first, event.count)
        event.table.set_flag(event.first, event.count, UNWANTED)
        for first, count in runs(_UNHELD_PAGES, event.table.states, event.first, event.end):
            event.table.own(first, count)

    def _book_included(self, event: Event) -> None:
        event.table.clear_flag(event.first, event.count, UNWANTED)
        for first, count in runs(_REFUSED_PAGES, event.table.states, event.first, event.end):
            event.table.own(first, count)

    def _book_written(self, event: Event) -> None:
        if event.detail == GIVEN_BACK:
            self._book_given_back(event)
            return
        if not event.table.tracked:
            raise ProtocolViolation("written pages are reported by a client that does not track them")
        table, first, count = event.table, event.first, event.count
        self._unstable.remove(table, first, count)
        table.set_flag(first, count, PENDING if event.detail == MAY_HAVE_BEEN else WRITTEN)

    def _book_given_back(self, event: Event) -> None:
        """What comes here next has another story."""
        table, first, count = event.table, event.first, event.count
        self._unstable.remove(table, first, count)
        for start, number in runs(_RESTING_PAGES, table.states, first, event.end):
            table.own(start, number)
        table.breaks[first : event.end] = bytes(count)
        for flag in (WRITTEN, PENDING, READING):
            table.clear_flag(first, count, flag)

    def _book_resumed(self, event: Event) -> None:
        """A client has come back from before these books, and maps frames of the pool that was taken over."""
        event.expect_states(bytes((OWNED,)))
        table, first, frames = event.table, event.first, range(event.frame, event.frame + event.count)
        if event.pool != ZERO_POOL and (event.pool != self._pool or not all(map(self._frames.is_used, frames))):
            raise ProtocolViolation(f"pages {first}+{event.count} cannot map frames from {event.frame} on")
        self._unstable.remove(table, first, event.count)
        for page, frame in zip(range(first, event.end), frames, strict=True):
            table.set_state(page, ZERO if event.pool == ZERO_POOL else MERGED)
            table.frames[page] = ZERO_FRAME if event.pool == ZERO_POOL else frame
            # What it had when it was switched: a page that lets go of its frame has been read, as it were. Not so on
            # the zero page: whoever claims that has shown nothing.
            table.digests[page] = 0 if event.pool == ZERO_POOL else self._frames.digest(frame)
            if event.pool != ZERO_POOL:
                self._frames.resume(frame)
        if self._unmerging:
            self._ask_adopt(event.book, table, first, event.count)

    # The past

    def bury(self) -> None:
        """See `Engine`."""
        for frame in self._frames.take_past():
            self._frames.cancel(frame)
            self._offer(frame)

    # Proposals and references

    def _propose(self, book: Client, table: PageTable, page: int, frame: int) -> None:
        """M1: queues one page for merging, with a reservation on the frame."""
        table.set_state(page, QUEUED)
        table.frames[page] = frame
        if frame != ZERO_FRAME:
            self._frames.reserve(frame)
        book.proposed += 1
        book.merges.add(table, page, frame)

    def _commit(self, table: PageTable, page: int) -> None:
        """M8: a proposal was carried out."""
        frame = table.frames[page]
        table.set_state(page, ZERO if frame == ZERO_FRAME else MERGED)
        if frame != ZERO_FRAME:
            self._frames.commit(frame)

    def _cancel(self, table: PageTable, first: int, count: int) -> None:
        """Proposals came to nothing."""
        for page in range(first, first + count):
            if table.frames[page] != ZERO_FRAME:
                self._frames.cancel(table.frames[page])
                self._offer(table.frames[page])
            table.frames[page] = NO_FRAME
        table.own(first, count)

    def _cancel_queued(self, book: Client, table: PageTable | None) -> None:
        """Takes back what was proposed and not yet taken, for one segment or all of a client's."""
        for run in book.merges.remove(table):
            self._cancel(run.table, run.first, run.count)
            book.proposed -= run.count

    def _drop_references(self, table: PageTable, first: int, count: int) -> None:
        """I3: the mappings are proven gone."""
        for page in range(first, first + count):
            if table.frames[page] != ZERO_FRAME:
                self._frames.drop(table.frames[page])
                self._offer(table.frames[page])
            table.frames[page] = NO_FRAME
        table.own(first, count)

    def _offer(self, frame: int) -> None:
        """A frame was let go of. If it had been full, there is room for a page that may be listed for lack of it."""
        if self._frames.users(frame) + 1 != self._options.max_page_sharing:
            return
        found = self._unstable.find(self._frames.digest(frame))
        if found is not None and found[0].tracked:
            self._unstable.read_again(*found, 1)

    # Adopts

    def _ask_adopt(self, book: Client, table: PageTable, first: int, count: int) -> None:
        """Queues pages for adoption, but for those that are asked for already."""
        for start, number in runs(_NOT_ASKED, table.flags, first, first + count):
            table.set_flag(start, number, ADOPT_QUEUED)
            book.adopts.add(table, start, number)
            book.asking += number
            book.adopting += number

    def _answer_adopt(self, book: Client, table: PageTable, first: int, count: int) -> int:
        """Pages are asked for no longer: they were released, or cannot be adopted now. How many were asked for."""
        queued = table.clear_flag(first, count, ADOPT_QUEUED)
        sent = table.clear_flag(first, count, ADOPT_SENT)
        book.asking -= queued
        book.adopting -= queued + sent
        if not book.asking:
            book.adopts.clear()
        return queued + sent

    def unmerge(self, on: bool) -> None:
        """See `Engine`. Adopts that are queued when it ends are still made."""
        self._unmerging = on
        if not on:
            return
        for book in self._clients.values():
            if book.listening:
                self._cancel_queued(book, None)
                for table in book.segments.values():
                    for first, count in runs(_MAPPED_PAGES, table.states, 0, table.pages):
                        self._ask_adopt(book, table, first, count)

    # Instructions

    def take(self, client: int, pages: int) -> Instructions:
        """See `Engine`. Adopts are bounded by `pages` as well."""
        book = self._clients[client]
        told = Instructions()
        for run in book.merges.take(pages):
            run.table.set_states(run.first, run.count, PROPOSED)
            told.merges.append((run.table.segment, run.first, run.count, run.frame))
        for run in book.adopts.take(pages):
            table = run.table
            for first, count in runs(_TO_ADOPT, table.flags, run.first, run.first + run.count):
                table.clear_flag(first, count, ADOPT_QUEUED)
                table.set_flag(first, count, ADOPT_SENT)
                book.asking -= count
                told.adopts.append((table.segment, first, count))
        told.more = bool(book.merges or book.asking)
        return told

    def queued(self) -> set[int]:
        """See `Engine`."""
        return {client for client, book in self._clients.items() if book.merges or book.asking}

    def outstanding(self) -> int:
        """See `Engine`."""
        return sum(book.proposed + book.adopting for book in self._clients.values())

    # Rest

    def _rest(self, table: PageTable, first: int, count: int, state: int, passes: int) -> None:
        """Keeps owned pages out of the scan for some passes. Those that are excluded stay that."""
        for start, number in runs(_OWNED_PAGES, table.states, first, first + count):
            table.set_states(start, number, state)
        self._schedule(table, first, count, state, passes)

    def _schedule(self, table: PageTable, first: int, count: int, state: int, passes: int) -> None:
        due = self._calendar.setdefault(self._clock + passes, [])
        if due and due[-1][0] is table and due[-1][1] + due[-1][2] == first and due[-1][3] == state:
            count += due[-1][2]
            first = due.pop()[1]
        due.append((table, first, count, state))

    def _wake(self, table: PageTable, first: int, count: int, state: int) -> None:
        """Ends a rest, for those pages of a run that are still in the state in which it began.

        OWNED pages of tracked segments found no frame, and are to be read once more.
        """
        if table.dropped:
            return
        for start, number in runs(_SAME[state], table.states, first, first + count):
            table.own(start, number)

    def _advance_clock(self) -> None:
        """A pass is over: brings back the pages that have rested."""
        self._clock += 1
        for table, first, count, state in self._calendar.pop(self._clock, ()):
            if state == COPIED:
                self._ask_again(table, first, count)
            else:
                self._wake(table, first, count, state)

    def _ask_again(self, table: PageTable, first: int, count: int) -> None:
        """A failed adopt is tried once more, unless there is no reason for it any more."""
        book = self._clients.get(table.client)
        if table.dropped or book is None or not book.listening:
            return
        wanted = _MAPPED_PAGES if self._unmerging else _SAME[COPIED]
        for start, number in runs(wanted, table.states, first, first + count):
            self._ask_adopt(book, table, start, number)

    # Counts

    def _count(self, *states: int) -> int:
        return sum(table.counts[state] for table in self._tables.values() for state in states)

    def segment_counts(self, client: int, segment: int) -> SegmentCounts:
        """See `Engine`."""
        counts = self._clients[client].segments[segment].counts
        return SegmentCounts(counts[MERGED], counts[ZERO], counts[COPIED], counts[QUEUED] + counts[PROPOSED])

    def merged_pages(self, client: int) -> tuple[int, int]:
        """See `Engine`. Copied pages are not counted: they read their own bytes."""
        book = self._clients[client]
        return sum(t.counts[MERGED] + t.counts[ZERO] for t in book.segments.values()), book.proposed

    def left(self, client: int) -> Left:
        """See `Engine`."""
        tables = self._clients[client].segments.values()
        states = (OVER_BUDGET, REFUSED, PINNED, FAILED, FORKED, COPIED, WAITING)
        return Left(*(sum(table.counts[state] for table in tables) for state in states))

    def apart(self, client: int) -> int:
        """See `Engine`."""
        tables = self._clients[client].segments.values()
        return sum(table.counts[EXCLUDED] + table.count_flag(LISTED) for table in tables)

    def check(self) -> None:
        """See `Engine`."""
        references: Counter[int] = Counter()
        reservations: Counter[int] = Counter()
        for book in self._clients.values():
            asking = adopting = 0
            for table in book.segments.values():
                table.check()
                for frame, state in zip(table.frames, table.states, strict=True):
                    if frame >= 0:
                        (references if state in MAPPED else reservations)[frame] += 1
                asking += sum(bool(flags & ADOPT_QUEUED) for flags in table.flags)
                adopting += sum(bool(flags & (ADOPT_QUEUED | ADOPT_SENT)) for flags in table.flags)
            counts = [sum(t.counts[state] for t in book.segments.values()) for state in range(STATES)]
            assert book.proposed == counts[QUEUED] + counts[PROPOSED], "proposals miscounted"
            assert (book.asking, book.adopting) == (asking, adopting), "adopts miscounted"
            assert book.listening or not (book.proposed or adopting), "something is asked of a departed client"
            queued = [
                (run.table.base + page, run.frame_of(page))
                for run in book.merges
                for page in range(run.first, run.first + run.count)
            ]
            assert len(queued) == counts[QUEUED], "the queue and the tables differ"
            for place, frame in queued:
                table, page = self._tables[place >> 32], place & 0xFFFFFFFF
                assert (table.states[page], table.frames[page]) == (QUEUED, frame), "a wrong entry in the queue"
        self._frames.check(references, reservations)
        self._unstable.check()
        for table in self._tables.values():
            assert self._clients[table.client].listening or not table.count_flag(LISTED), "a departed client's page"
        known = {table.base >> 32: table for book in self._clients.values() for table in book.segments.values()}
        assert self._tables == known, "tables and segments differ"
