"""Passes over the pages of a domain, a slice at a time; after "How a page is scanned" in design.md.

A page without tracker is read in every pass, and settled if its digest is that of the pass before. Where the client
reports which pages were written ("tracked"), a page is read once, in the pass after the first in which it was quiet.
At the end of a pass the unstable tree forgets the pages whose writes no client reports.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Final

from pagefold_proto.limits import PAGE

from pagefold_server.engine.interface import PassReport, Step
from pagefold_server.engine.reference.ledger import Ledger
from pagefold_server.engine.reference.matching import Digest, Matcher, PassCounts
from pagefold_server.engine.reference.page_table import PENDING, READING, WRITTEN, PageTable
from pagefold_server.engine.runs import any_of, runs
from pagefold_server.engine.states import OWNED, WAITING

_CHUNK: Final = 64  # pages read with one call
_GAP: Final = 4  # tracked pages so far apart are still read with one call
_PROPOSAL_COST: Final = 2  # what a proposal takes, in pages digested, where it is made natively
_FORGIVENESS: Final = 256  # passes after which every page is forgiven one break

_WRITTEN_PAGES: Final = any_of(bytes(value for value in range(256) if value & WRITTEN))
_PENDING_PAGES: Final = any_of(bytes(value for value in range(256) if value & PENDING and not value & WRITTEN))
_READING_PAGES: Final = any_of(bytes(value for value in range(256) if value & READING))


class Scan:
    """See the head of this file.

    Args:
        ledger: whose pages.
        matcher: gets quiet pages.
        digest: of a page.

    Attributes:
        report: of the last pass.
        unshared: pages that the last pass found like no other, tracked ones not included.
        skipped: pages that passes left alone because they rest, all passes together.
    """

    def __init__(self, ledger: Ledger, matcher: Matcher, digest: Digest) -> None:
        self._ledger = ledger
        self._matcher = matcher
        self._digest = digest
        self.report = PassReport(0, 0, 0, 0, 0, 0, 0, 0, 0)
        self.unshared = 0
        self.skipped = 0
        self._visited = 0  # by passes that are over
        self._ahead: deque[PageTable] = deque()  # tables that this pass has still to finish
        self._page = 0  # where it is in the first of them
        self._pass: PassCounts | None = None
        self._buffer = memoryview(bytearray(_CHUNK * PAGE))
        self._views = [self._buffer[n * PAGE : (n + 1) * PAGE] for n in range(_CHUNK)]

    def go_on(self, pages: int) -> Step:
        """Goes on with the pass for about `pages` pages. With no segments, a call is a whole pass."""
        current = self._pass
        if current is None:
            current = self._begin_pass()
        before = current.visited
        effort = 0  # in pages; proposing is work too, and so is passing over holes, of which a client may have many
        while effort < pages:
            while self._ahead and not self._can_be_scanned(self._ahead[0]):
                self._next_table()
            if not self._ahead:
                return Step(current.visited - before, self._finish_pass(current))
            proposed = current.proposed
            effort += self._scan_chunk(current, self._ahead[0])
            effort += _PROPOSAL_COST * (current.proposed - proposed)
        return Step(current.visited - before, None)

    @property
    def visited(self) -> int:
        """Pages read so far."""
        return self._visited + (self._pass.visited if self._pass else 0)

    def remaining(self) -> int:
        """About how many pages are still to be read. Holes count as owned pages do."""
        if self._pass is None:
            tables, flag = self._ledger.scanned_tables(), PENDING
        else:
            tables, flag = [table for table in self._ahead if self._can_be_scanned(table)], READING
        return sum(table.count_flag(flag) if table.tracked else table.counts[OWNED] for table in tables)

    # Passes

    def _begin_pass(self) -> PassCounts:
        self._ahead.extend(self._ledger.scanned_tables())
        self._page = 0
        if self.report.number % _FORGIVENESS == _FORGIVENESS - 1:
            for table in self._ahead:
                table.forgive()
        self._pass = PassCounts()
        for table in self._ahead:
            if table.tracked:
                self._sift(self._pass, table)
        return self._pass

    def _sift(self, current: PassCounts, table: PageTable) -> None:
        """Counts the pages of a tracked segment that were written since the last pass; says which this one reads."""
        for first, count in runs(_WRITTEN_PAGES, table.flags, 0, table.pages):
            for page in range(first, first + count):
                if table.states[page] == OWNED:
                    _count_change(current, table, page)
        table.sift()

    def _finish_pass(self, done: PassCounts) -> PassReport:
        waiting = self._ledger.count(WAITING)
        pending = self._count_pending()
        self.report = PassReport(
            number=self.report.number + 1,
            visited=done.visited,
            proposed=done.proposed,
            fresh=done.fresh,
            volatile=done.volatile,
            unshared=done.unshared + self._ledger.unstable.tracked(),
            waiting=waiting,
            backlog=done.backlog + pending,
            unplaced=done.unplaced,
        )
        self.unshared = done.unshared
        self._visited += done.visited
        self.skipped += waiting
        self._ledger.unstable.forget_untracked()
        self._pass = None
        self._ledger.end_pass()
        return self.report

    def _count_pending(self) -> int:
        """Tracked pages that became due for reading after the pass began."""
        return sum(
            table.states[first : first + count].count(OWNED)
            for table in self._ledger.tables.values()
            if table.tracked and self._ledger.member_of(table).listening
            for first, count in runs(_PENDING_PAGES, table.flags, 0, table.pages)
        )

    def _can_be_scanned(self, table: PageTable) -> bool:
        return not table.dropped and self._ledger.member_of(table).listening

    def _next_table(self) -> None:
        table = self._ahead.popleft()
        self._page = 0
        if table.tracked:
            table.clear_flag(0, table.pages, READING)

    # Pages

    def _scan_chunk(self, current: PassCounts, table: PageTable) -> int:
        """Reads the next up to 64 pages of a table, and looks at those of them that are to be looked at.

        Returns:
            How many pages were read, or 1 for finding none.
        """
        span = self._next_tracked(table) if table.tracked else self._next_untracked(table)
        if span is None:
            self._next_table()
            return 1
        first, end = span
        self._page = first
        if first == end:
            return 1
        read = _read_into(table, self._buffer[: (end - first) * PAGE], first)
        if not read:
            self._next_table()
            return 1
        self._page = first + read
        look = self._look_at_tracked if table.tracked else self._look_at_untracked
        for page, view in zip(range(first, first + read), self._views, strict=False):
            look(current, table, page, view)
        return read

    def _next_untracked(self, table: PageTable) -> tuple[int, int] | None:
        """From the next owned page with data on. Empty if holes led to a page that is not owned; None: no more."""
        owned = table.states.find(OWNED, self._page)
        first = None if owned < 0 else _next_data(table, owned)
        if first is None:
            table.forget_readings(self._page, table.pages)
            return None
        table.forget_readings(owned, first)
        if table.states[first] != OWNED:
            return first, first
        return first, table.states.rfind(OWNED, first, first + _CHUNK) + 1

    def _next_tracked(self, table: PageTable) -> tuple[int, int] | None:
        """From the next page on that this pass is to read, up to a gap. Empty if there were holes before it."""
        found = _READING_PAGES.search(table.flags, self._page)
        if found is None:
            return None
        first = found.start()
        data = _next_data(table, first)
        end = table.pages if data is None else data
        if end > first:
            table.forget_readings(first, end)
            table.clear_flag(first, end - first, READING)
            self._ledger.unstable.remove(table, first, end - first)
            return end, end
        end = min(found.end(), first + _CHUNK)
        while (found := _READING_PAGES.search(table.flags, end, min(end + _GAP, first + _CHUNK))) is not None:
            end = found.end()
        return first, end

    def _look_at_untracked(self, current: PassCounts, table: PageTable, page: int, view: memoryview) -> None:
        if table.states[page]:  # not OWNED
            return
        digest = self._digest(view)
        if digest == self._matcher.zero_digest and _next_data(table, page) != page:  # a hole reads as zeros
            table.streaks[page] = 0
            return
        current.visited += 1
        if digest != table.digests[page]:
            table.digests[page] = digest
            _count_change(current, table, page)
            return
        table.streaks[page] = 0
        self._matcher.match(current, table, page, view, digest)

    def _look_at_tracked(self, current: PassCounts, table: PageTable, page: int, view: memoryview) -> None:
        if table.states[page] or not table.flags[page] & READING:
            return
        table.clear_flag(page, 1, READING)
        if table.flags[page] & WRITTEN:  # it has just been reported again
            return
        table.streaks[page] = 0
        self._ledger.unstable.remove(table, page, 1)
        digest = self._digest(view)
        if digest == self._matcher.zero_digest and _next_data(table, page) != page:
            return
        current.visited += 1
        table.digests[page] = digest
        self._matcher.match(current, table, page, view, digest)

    def check(self) -> None:
        """Compares what it counts with the ledger."""
        unstable, current = self._ledger.unstable, self._pass
        untracked = len(unstable) - unstable.tracked()
        assert current is None or untracked <= current.unshared, "unshared pages miscounted"
        assert current is not None or not (untracked or self._ahead), "something is left of a finished pass"
        for table in self._ledger.tables.values():
            assert table.tracked or not table.count_flag(WRITTEN), "an untracked page is flagged as written"


def _count_change(current: PassCounts, table: PageTable, page: int) -> None:
    """The page has changed since the last pass."""
    current.volatile += 1
    current.fresh += not table.streaks[page]
    table.streaks[page] = min(table.streaks[page] + 1, 255)


def _next_data(table: PageTable, page: int) -> int | None:
    """As the table's own, but a segment that cannot be read has no data."""
    try:
        return table.next_data(page)
    except OSError:
        return None


def _read_into(table: PageTable, buffer: memoryview, first: int) -> int:
    """Reads pages; fewer, or none, where a client truncates its segment."""
    try:
        return os.preadv(table.fd, [buffer], first * PAGE) // PAGE
    except OSError:
        return 0
