"""The books of a domain: its clients, the page tables of their segments, and who holds which frame.

A page that is proposed has a reservation on its frame, and a page that maps the frame has a reference (M1, M8). Both go
only with what proves that they are not needed (I3): an answer, a release, or the death of the client's whole family.

Pages that must rest (they keep breaking, or the client declined them) leave the scan by their state, and stand in a
calendar. What events do to the books is in `events`, what scanning does is in `scan` and `matching`.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from pagefold_server.engine.interface import EngineOptions, Left
from pagefold_server.engine.reference.calendar import Calendar
from pagefold_server.engine.reference.frames import Frames
from pagefold_server.engine.reference.member import Member
from pagefold_server.engine.reference.page_table import LISTED, PageTable
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
    REFUSED,
    RESTING,
    WAITING,
    ZERO,
    ZERO_FRAME,
)

_PROPOSED_PAGES: Final = any_of(bytes((PROPOSED,)))
_MAPPED_PAGES: Final = any_of(MAPPED)
_OWNED_PAGES: Final = any_of(bytes((OWNED,)))
_SAME: Final = {state: any_of(bytes((state,))) for state in (OWNED, COPIED, *RESTING)}
_LEFT: Final = (OVER_BUDGET, REFUSED, PINNED, FAILED, FORKED, COPIED, WAITING)  # in the order of `Left`


class Ledger:
    """See the head of this file.

    Args:
        frames: of the domain.
        options: to begin with.

    Attributes:
        members: clients by the caller's number.
        tables: all page tables, by their own number.
        unstable: pages of these that are like no other, as far as is known.
        unmerging: every page that maps a frame is to be given back.
        calendar: pages that rest.
    """

    def __init__(self, frames: Frames, options: EngineOptions) -> None:
        self.frames = frames
        self.options = options
        self.members: dict[int, Member] = {}
        self.tables: dict[int, PageTable] = {}
        self.unstable = Unstable(self.tables)
        self.unmerging = False
        self.calendar = Calendar()
        self._tables_made = 0

    # Clients and segments

    def add_client(self, client: int) -> None:
        """Makes a client known."""
        if client in self.members:
            raise ValueError(f"client {client} is there already")
        self.members[client] = Member()

    def add_segment(self, client: int, segment: int, fd: int, pages: int, tracked: bool) -> None:
        """Gives a segment its page table. The scan comes to it in the next pass."""
        member = self.members[client]
        if segment in member.segments or not member.listening:
            raise ValueError(f"segment {segment} cannot be added to client {client}")
        self._tables_made += 1
        table = PageTable(self._tables_made, client, segment, fd, pages, tracked)
        member.segments[segment] = table
        self.tables[self._tables_made] = table

    def drop_segment(self, client: int, segment: int) -> bool:
        """Forgets a segment, unless one of its pages holds a frame."""
        member = self.members[client]
        table = member.segments[segment]
        if any(table.counts[state] for state in (PROPOSED, MERGED, ZERO, COPIED)):
            return False
        self._cancel_queued(member, table)
        del member.segments[segment]
        self._forget(table)
        return True

    def depart_client(self, client: int) -> None:
        """The client will not answer again. Its proposals outstanding count as if they were carried out."""
        member = self.members[client]
        if not member.listening:
            return
        self._cancel_queued(member, None)
        for table in member.segments.values():
            self.unstable.remove(table, 0, table.pages)
            for first, count in runs(_PROPOSED_PAGES, table.states, 0, table.pages):
                self.commit(table, first, count)
            member.answer_adopt(table, 0, table.pages)
        member.proposed = 0
        member.listening = False

    def remove_client(self, client: int) -> None:
        """The client's whole family is dead."""
        self.depart_client(client)
        for table in self.members.pop(client).segments.values():
            for first, count in runs(_MAPPED_PAGES, table.states, 0, table.pages):
                self.drop_references(table, first, count)
            self._forget(table)

    def _forget(self, table: PageTable) -> None:
        self.unstable.remove(table, 0, table.pages)
        table.dropped = True
        del self.tables[table.base >> 32]

    def member_of(self, table: PageTable) -> Member:
        """The client whose segment that is."""
        return self.members[table.client]

    # Proposals and references

    def propose(self, table: PageTable, page: int, frame: int) -> None:
        """M1: queues one page for merging, with a reservation on the frame."""
        table.set_state(page, QUEUED)
        table.frames[page] = frame
        if frame != ZERO_FRAME:
            self.frames.reserve(frame)
        self.member_of(table).propose(table, page, frame)

    def commit(self, table: PageTable, first: int, count: int) -> None:
        """M8: proposals were carried out."""
        for page in range(first, first + count):
            frame = table.frames[page]
            table.set_state(page, ZERO if frame == ZERO_FRAME else MERGED)
            if frame != ZERO_FRAME:
                self.frames.commit(frame)

    def cancel(self, table: PageTable, first: int, count: int) -> None:
        """Proposals came to nothing."""
        for page in range(first, first + count):
            if table.frames[page] != ZERO_FRAME:
                self.frames.cancel(table.frames[page])
                self._offer(table.frames[page])
            table.frames[page] = NO_FRAME
        table.own(first, count)

    def drop_references(self, table: PageTable, first: int, count: int) -> None:
        """I3: the mappings are proven gone."""
        for page in range(first, first + count):
            if table.frames[page] != ZERO_FRAME:
                self.frames.drop(table.frames[page])
                self._offer(table.frames[page])
            table.frames[page] = NO_FRAME
        table.own(first, count)

    def release_unclaimed(self) -> None:
        """I3: all clients that mapped frames of the recovered pool have reported them, or are gone."""
        for frame in self.frames.take_unclaimed():
            self.frames.cancel(frame)
            self._offer(frame)

    def _cancel_queued(self, member: Member, table: PageTable | None) -> None:
        """Takes back proposals that were not taken, for one segment or all of a client's."""
        for run in member.merges.remove(table):
            self.cancel(run.table, run.first, run.count)
            member.proposed -= run.count

    def _offer(self, frame: int) -> None:
        """A frame was let go of. If it had been full, there is room for a page that may be listed for lack of it."""
        if self.frames.users(frame) + 1 != self.options.max_page_sharing:
            return
        found = self.unstable.find(self.frames.digest(frame))
        if found is not None and found[0].tracked:
            self.unstable.read_again(*found, 1)

    def unmerge(self, on: bool) -> None:
        """Has every mapped page given back. Adopts that are queued when it ends are still made."""
        self.unmerging = on
        if not on:
            return
        for member in self.members.values():
            if member.listening:
                self._cancel_queued(member, None)
                for table in member.segments.values():
                    for first, count in runs(_MAPPED_PAGES, table.states, 0, table.pages):
                        member.ask_adopt(table, first, count)

    # Rest

    def rest(self, table: PageTable, first: int, count: int, state: int, passes: int) -> None:
        """Keeps owned pages out of the scan for some passes. Those that are excluded stay that."""
        for start, number in runs(_OWNED_PAGES, table.states, first, first + count):
            table.set_states(start, number, state)
        self.calendar.add(table, first, count, state, passes)

    def wake(self, table: PageTable, first: int, count: int, state: int) -> None:
        """Ends a rest, for those pages of a run that are still in the state in which it began.

        OWNED pages of tracked segments found no frame, and are to be read once more.
        """
        if table.dropped:
            return
        for start, number in runs(_SAME[state], table.states, first, first + count):
            table.own(start, number)

    def end_pass(self) -> None:
        """Brings back the pages that have rested."""
        for table, first, count, state in self.calendar.end_pass():
            if state == COPIED:
                self._ask_again(table, first, count)
            else:
                self.wake(table, first, count, state)

    def _ask_again(self, table: PageTable, first: int, count: int) -> None:
        """A failed adopt is tried once more, unless there is no reason for it any more."""
        member = self.members.get(table.client)
        if table.dropped or member is None or not member.listening:
            return
        wanted = _MAPPED_PAGES if self.unmerging else _SAME[COPIED]
        for start, number in runs(wanted, table.states, first, first + count):
            member.ask_adopt(table, start, number)

    # Counts

    def scanned_tables(self) -> list[PageTable]:
        """The tables of all clients that may answer."""
        members = self.members.values()
        return [table for member in members if member.listening for table in member.segments.values()]

    def count(self, *states: int) -> int:
        """Pages in these states."""
        return sum(table.counts[state] for table in self.tables.values() for state in states)

    def left(self, client: int) -> Left:
        """Pages of a client that were to be merged and are not."""
        return Left(*map(self.members[client].count, _LEFT))

    def apart(self, client: int) -> int:
        """Pages of a client that are known and like no other, or not wanted."""
        tables = self.members[client].segments.values()
        return sum(table.counts[EXCLUDED] + table.count_flag(LISTED) for table in tables)

    def users(self) -> tuple[Counter[int], Counter[int]]:
        """References and reservations by frame, counted again. A microsecond a page."""
        references: Counter[int] = Counter()
        reservations: Counter[int] = Counter()
        for table in self.tables.values():
            for run in table.held(0, table.pages):
                if run.frame >= 0:
                    users = references if run.state in MAPPED else reservations
                    users.update(range(run.frame, run.frame + run.pages))
        return references, reservations

    def check(self) -> None:
        """Recounts everything."""
        for member in self.members.values():
            member.check()
        self.frames.check(*self.users())
        self.unstable.check()
        for table in self.tables.values():
            assert self.member_of(table).listening or not table.count_flag(LISTED), "a departed client's page"
        known = {table.base >> 32: table for member in self.members.values() for table in member.segments.values()}
        assert self.tables == known, "tables and segments differ"
