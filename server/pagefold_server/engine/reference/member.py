"""One client, as the engine sees it: its segments, what it is to be told, and what it has not answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pagefold_server.engine.interface import Instructions
from pagefold_server.engine.reference.page_table import ADOPT_QUEUED, ADOPT_SENT, PageTable
from pagefold_server.engine.reference.queues import AdoptQueue, MergeQueue
from pagefold_server.engine.runs import any_of, runs
from pagefold_server.engine.states import PROPOSED, QUEUED, STATES

_TO_ADOPT: Final = any_of(bytes(value for value in range(256) if value & ADOPT_QUEUED))
_NOT_ASKED: Final = any_of(bytes(value for value in range(256) if not value & (ADOPT_QUEUED | ADOPT_SENT)))


class Member:
    """One client.

    Attributes:
        listening: it may answer; a departed client does not, and keeps what it has.
        segments: its page tables, by the caller's number.
        merges: proposals that it has not taken.
        proposed: pages proposed, sent or not, and not answered.
        asking: pages to adopt, not yet taken.
        adopting: pages to adopt, not yet answered; those not taken included.
    """

    def __init__(self) -> None:
        self.listening = True
        self.segments: dict[int, PageTable] = {}
        self.merges = MergeQueue()
        self.proposed = 0
        self.asking = 0
        self.adopting = 0
        self._adopts = AdoptQueue()

    @property
    def has_queued(self) -> bool:
        """Whether instructions are queued for it."""
        return bool(self.merges or self.asking)

    def propose(self, table: PageTable, page: int, frame: int) -> None:
        """Queues one page for merging."""
        self.proposed += 1
        self.merges.add(table, page, frame)

    def ask_adopt(self, table: PageTable, first: int, count: int) -> None:
        """Queues pages for adoption, but for those that are asked for already."""
        for start, number in runs(_NOT_ASKED, table.flags, first, first + count):
            table.set_flag(start, number, ADOPT_QUEUED)
            self._adopts.add(table, start, number)
            self.asking += number
            self.adopting += number

    def answer_adopt(self, table: PageTable, first: int, count: int) -> int:
        """Ends the asking for pages: they were released, or cannot be adopted now. How many were asked for."""
        queued = table.clear_flag(first, count, ADOPT_QUEUED)
        sent = table.clear_flag(first, count, ADOPT_SENT)
        self.asking -= queued
        self.adopting -= queued + sent
        if not self.asking:
            self._adopts.clear()
        return queued + sent

    def take(self, pages: int) -> Instructions:
        """Takes out what is queued: merges of at most about `pages` pages, and adopts of as many."""
        told = Instructions()
        for run in self.merges.take(pages):
            run.table.set_states(run.first, run.count, PROPOSED)
            told.merges.append((run.table.segment, run.first, run.count, run.frame))
        for run in self._adopts.take(pages):
            table = run.table
            for first, count in runs(_TO_ADOPT, table.flags, run.first, run.first + run.count):
                table.clear_flag(first, count, ADOPT_QUEUED)
                table.set_flag(first, count, ADOPT_SENT)
                self.asking -= count
                told.adopts.append((table.segment, first, count))
        told.more = self.has_queued
        return told

    def count(self, state: int) -> int:
        """Its pages in one state."""
        return sum(table.counts[state] for table in self.segments.values())

    def check(self) -> None:
        """Recounts its tables and queues."""
        asking = adopting = 0
        for table in self.segments.values():
            table.check()
            asking += sum(bool(flags & ADOPT_QUEUED) for flags in table.flags)
            adopting += sum(bool(flags & (ADOPT_QUEUED | ADOPT_SENT)) for flags in table.flags)
        counts = [self.count(state) for state in range(STATES)]
        assert self.proposed == counts[QUEUED] + counts[PROPOSED], "proposals miscounted"
        assert (self.asking, self.adopting) == (asking, adopting), "adopts miscounted"
        assert self.listening or not (self.proposed or adopting), "something is asked of a departed client"
        queued = list(self._queued_pages())
        assert len(queued) == counts[QUEUED], "the queue and the tables differ"
        for table, page, frame in queued:
            assert self.segments[table.segment] is table, "a table in the queue that is not the client's"
            assert (table.states[page], table.frames[page]) == (QUEUED, frame), "a wrong entry in the queue"

    def _queued_pages(self) -> Iterator[tuple[PageTable, int, int]]:
        for run in self.merges:
            for page in range(run.first, run.first + run.count):
                yield run.table, page, run.frame_of(page)
