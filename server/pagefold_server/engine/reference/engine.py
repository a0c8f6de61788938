"""The engine in pure Python: KSM's two trees over segments, after docs/design/engine.md, "How a page is scanned".

The *stable tree* has the frames, by digest. What it finds is true, for frames never change. The *unstable tree* has
pages that were settled when they were read, by the digest that they had then. Nothing keeps their programs from writing
to them, so what it finds is a hint: the page is read once more, and that copy decides. A wrong hint costs a read. At
the end of a pass the tree is emptied, and fills again with what is settled then.

A digest never decides that pages are equal: bytes do, here and again in the client, with writes held.
This is the description of the algorithm, and the oracle for other engines. What it pays for being short is memory:
some 130 bytes for a page in the unstable tree, where the kernel takes 64.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from pagefold_proto.limits import PAGE
from xxhash import xxh3_64_intdigest

from pagefold_server.engine.interface import (
    EngineCounters,
    EngineOptions,
    FrameFault,
    FrameStore,
    Held,
    Miscount,
    PassReport,
    Step,
)
from pagefold_server.engine.reference.books import Books
from pagefold_server.engine.reference.client import Client
from pagefold_server.engine.reference.frames import Frames
from pagefold_server.engine.reference.page_table import PENDING, READING, WRITTEN, PageTable
from pagefold_server.engine.runs import any_of, runs
from pagefold_server.engine.states import (
    MAPPED,
    MERGED,
    OVER_BUDGET,
    OWNED,
    PROPOSED,
    QUEUED,
    REFUSALS,
    WAITING,
    ZERO,
    ZERO_FRAME,
)

_CHUNK: Final = 64  # pages read with one call
_ZEROS: Final = bytes(PAGE)
_GAP: Final = 4  # tracked pages so far apart are still read with one call
_GAP_KEPT: Final = 8  # pages without a frame that a run is kept room for
_PROPOSAL_COST: Final = 2  # what a proposal takes, in pages digested, where it is made natively
_FORGIVENESS: Final = 256  # passes after which every page is forgiven one break

_WRITTEN_PAGES: Final = any_of(bytes(value for value in range(256) if value & WRITTEN))
_PENDING_PAGES: Final = any_of(bytes(value for value in range(256) if value & PENDING and not value & WRITTEN))
_READING_PAGES: Final = any_of(bytes(value for value in range(256) if value & READING))


@dataclass(slots=True)
class _Pass:
    """What a pass has found so far; `PassReport` has the meanings."""

    visited: int = 0
    proposed: int = 0
    fresh: int = 0
    volatile: int = 0
    unshared: int = 0
    backlog: int = 0
    unplaced: int = 0


class ReferenceEngine(Books):
    """Implements `Engine`; see there for what the public methods promise.

    Args:
        store: where frames live.
        options: to begin with.
        seed: of the digests. Random, so that nobody can prepare collisions; given only by tests.
        number: of the pool, in events.
    """

    name = "reference"

    def __init__(
        self, store: FrameStore, options: EngineOptions | None = None, seed: int | None = None, number: int = 1
    ) -> None:
        super().__init__(Frames(store), options or EngineOptions(), number)
        self._seed = secrets.randbits(64) if seed is None else seed
        self._zero_digest = xxh3_64_intdigest(_ZEROS, self._seed)
        self._ahead: deque[PageTable] = deque()  # tables that this pass has still to finish
        self._page = 0  # where it is in the first of them
        self._pass: _Pass | None = None
        self._report = PassReport(0, 0, 0, 0, 0, 0, 0, 0, 0)  # of the last pass
        self._unshared = 0  # found by the last pass, tracked pages not included
        self._scanned = 0
        self._skipped = 0
        self._refusal: OSError | None = None
        self._buffer = memoryview(bytearray(_CHUNK * PAGE))
        self._views = [self._buffer[n * PAGE : (n + 1) * PAGE] for n in range(_CHUNK)]

    def configure(self, options: EngineOptions) -> None:
        """See `Engine`. Frames that serve more pages than a new `max_page_sharing` go on doing so."""
        before, self._options = self._options, options
        more_room = options.max_page_sharing > before.max_page_sharing
        if more_room or options.use_zero_pages > before.use_zero_pages:
            self._unstable.read_tracked_again()  # what was like no other page may have an equal under these options

    def inherit(self) -> int:
        """See `Engine`."""
        return self._frames.inherit(lambda page: xxh3_64_intdigest(page, self._seed))

    # The scan

    def scan(self, pages: int, threads: int = 1) -> Step:
        """See `Engine`. One thread is all there is here.

        With no segments, a call is a whole pass. While unmerging nothing is read and no pass ends, but each call counts
        as one for the pages whose adoption failed: they are asked for again after some.
        """
        if self._unmerging:
            self._advance_clock()
            return Step(0, None)
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

    def _begin_pass(self) -> _Pass:
        books = self._clients.values()
        self._ahead.extend(table for book in books if book.listening for table in book.segments.values())
        self._page = 0
        if self._report.number % _FORGIVENESS == _FORGIVENESS - 1:
            for table in self._ahead:
                table.forgive()
        self._pass = _Pass()
        for table in self._ahead:
            if table.tracked:
                self._sift(self._pass, table)
        return self._pass

    def _sift(self, current: _Pass, table: PageTable) -> None:
        """Counts the pages of a tracked segment that were written since the last pass; says which this one reads."""
        for first, count in runs(_WRITTEN_PAGES, table.flags, 0, table.pages):
            for page in range(first, first + count):
                if table.states[page] == OWNED:
                    current.volatile += 1
                    current.fresh += not table.streaks[page]
                    table.streaks[page] = min(table.streaks[page] + 1, 255)
        table.sift()

    def _finish_pass(self, done: _Pass) -> PassReport:
        waiting = self._count(WAITING)
        pending = self._count_pending()
        self._report = PassReport(
            number=self._report.number + 1,
            visited=done.visited,
            proposed=done.proposed,
            fresh=done.fresh,
            volatile=done.volatile,
            unshared=done.unshared + self._unstable.tracked(),
            waiting=waiting,
            backlog=done.backlog + pending,
            unplaced=done.unplaced,
        )
        self._unshared = done.unshared
        self._scanned += done.visited
        self._skipped += waiting
        self._unstable.forget_untracked()
        self._pass = None
        self._advance_clock()
        return self._report

    def _can_be_scanned(self, table: PageTable) -> bool:
        return not table.dropped and self._clients[table.client].listening

    def _next_table(self) -> None:
        table = self._ahead.popleft()
        self._page = 0
        if table.tracked:
            table.clear_flag(0, table.pages, READING)

    def _scan_chunk(self, current: _Pass, table: PageTable) -> int:
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
            self._unstable.remove(table, first, end - first)
            return end, end
        end = min(found.end(), first + _CHUNK)
        while (found := _READING_PAGES.search(table.flags, end, min(end + _GAP, first + _CHUNK))) is not None:
            end = found.end()
        return first, end

    def _look_at_untracked(self, current: _Pass, table: PageTable, page: int, view: memoryview) -> None:
        if table.states[page]:  # not OWNED
            return
        digest = xxh3_64_intdigest(view, self._seed)
        if digest == self._zero_digest and _next_data(table, page) != page:  # a hole reads as zeros
            table.streaks[page] = 0
            return
        current.visited += 1
        if digest != table.digests[page]:
            table.digests[page] = digest
            current.volatile += 1
            current.fresh += not table.streaks[page]
            table.streaks[page] = min(table.streaks[page] + 1, 255)
            return
        table.streaks[page] = 0
        self._match(current, table, page, view, digest)

    def _look_at_tracked(self, current: _Pass, table: PageTable, page: int, view: memoryview) -> None:
        if table.states[page] or not table.flags[page] & READING:
            return
        table.clear_flag(page, 1, READING)
        if table.flags[page] & WRITTEN:  # it has just been reported again
            return
        table.streaks[page] = 0
        self._unstable.remove(table, page, 1)
        digest = xxh3_64_intdigest(view, self._seed)
        if digest == self._zero_digest and _next_data(table, page) != page:
            return
        current.visited += 1
        table.digests[page] = digest
        self._match(current, table, page, view, digest)

    # The trees

    def _match(self, current: _Pass, table: PageTable, page: int, view: memoryview, digest: int) -> None:
        """Looks for what a settled page equals: zeros, stable tree, unstable tree, in this order."""
        if not (digest in self._frames.stable or digest in self._unstable or digest == self._zero_digest):
            self._enter(current, table, page)
            return
        book, content = self._clients[table.client], bytes(view)
        if content == _ZEROS and self._options.use_zero_pages:
            self._propose_if_room(current, book, table, page, ZERO_FRAME)
            return
        frame = self._stable_match(content, digest)
        if frame is not None:
            self._propose_if_room(current, book, table, page, frame)
            return
        self._unstable_match(current, book, table, page, content, digest)

    def _enter(self, current: _Pass, table: PageTable, page: int) -> None:
        """It is like no other page, as far as is known."""
        self._unstable.enter(table, page)
        current.unshared += not table.tracked

    def _stable_match(self, content: bytes, digest: int) -> int | None:
        """A frame that has these bytes, and room."""
        frames, most = self._frames, self._options.max_page_sharing
        twins: Sequence[int] = frames.stable.get(digest, ())
        for frame in twins:
            if frames.users(frame) < most and frames.read(frame) == content:
                return frame
        return None

    def _unstable_match(
        self, current: _Pass, book: Client, table: PageTable, page: int, content: bytes, digest: int
    ) -> None:
        """Makes a frame for this page and the one that was seen before it with this digest."""
        found = self._unstable.find(digest)
        if found is None:
            self._enter(current, table, page)
            return
        other, twin = found
        # Writes to a tracked page would have been reported. Any other may have been written since it was read.
        if not other.tracked and other.read(twin) != content:
            self._replace(current, other, twin, table, page)
            return
        other_book = self._clients[other.client]
        if self._room(book) < (2 if other_book is book else 1):
            self._postpone(current, table, page)
            return
        if not self._room(other_book):
            # The next of this content need not wait for that client.
            self._replace(current, other, twin, table, page)
            self._postpone(current, other, twin)
            return
        try:
            # M1: nobody can change this copy any more.
            frame = self._frames.create(digest, content, self._near(table, page, other, twin))
        except OSError as error:  # no room for frames: both stay as they are
            self._refusal = error
            current.unplaced += 1
            if table.tracked:
                self._schedule(table, page, 1, OWNED, 1)
            return
        self._unstable.remove(other, twin, 1)
        current.unshared -= not other.tracked
        self._propose(other_book, other, twin, frame)
        self._propose(book, table, page, frame)
        current.proposed += 2

    def _near(self, table: PageTable, page: int, other: PageTable, twin: int) -> int:
        """The frame that would continue the run before either page, -1 if there is none (M2).

        Neighbouring pages get neighbouring frames, for a run of both is one mapping. A run may have gaps: pages without
        a frame, that become mergeable later perhaps. Behind a gap, as many frames are left out as it has pages, so that
        they fit in between then, and the run is one. To bound what is left out to half of all numbers, that is done
        only if as many frames before the gap are in use, and for no more than `_GAP_KEPT` pages; otherwise the
        frame follows the last one. The page's own neighbours come first, then those of its twin.
        """
        for pages, number in ((table, page), (other, twin)):
            for gap in range(min(_GAP_KEPT + 1, number)):
                before = number - gap - 1
                if pages.states[before] in (QUEUED, PROPOSED, MERGED) and pages.frames[before] >= 0:
                    frame = pages.frames[before]
                    filled = gap <= frame + 1 and all(self._frames.users(frame - n) for n in range(gap))
                    return frame + 1 + (gap if filled else 0)
        return -1

    def _replace(self, current: _Pass, other: PageTable, twin: int, table: PageTable, page: int) -> None:
        """This page takes the place of another one."""
        self._unstable.remove(other, twin, 1)
        current.unshared -= not other.tracked
        self._enter(current, table, page)

    def _propose_if_room(self, current: _Pass, book: Client, table: PageTable, page: int, frame: int) -> None:
        if self._room(book) > 0:
            self._propose(book, table, page, frame)
            current.proposed += 1
        else:
            self._postpone(current, table, page)

    def _postpone(self, current: _Pass, table: PageTable, page: int) -> None:
        """Its client has too much to do already: the next pass comes back to it."""
        if table.tracked:
            table.set_flag(page, 1, PENDING)  # and counted at the end of the pass
        else:
            current.backlog += 1

    def _room(self, book: Client) -> int:
        return max(self._options.max_outstanding - book.proposed, 0)

    def refusal(self) -> OSError | None:
        """See `Engine`."""
        refusal, self._refusal = self._refusal, None
        return refusal

    def flush(self) -> None:
        """See `Engine`."""
        self._frames.flush()

    # Counts

    def remaining(self) -> int:
        """See `Engine`. Holes count as owned pages do."""
        if self._pass is None:
            tables = [table for book in self._clients.values() if book.listening for table in book.segments.values()]
            return sum(table.count_flag(PENDING) if table.tracked else table.counts[OWNED] for table in tables)
        tables = [table for table in self._ahead if self._can_be_scanned(table)]
        return sum(table.count_flag(READING) if table.tracked else table.counts[OWNED] for table in tables)

    def _count_pending(self) -> int:
        """Tracked pages that became due for reading after the pass began."""
        return sum(
            table.states[first : first + count].count(OWNED)
            for table in self._tables.values()
            if table.tracked and self._clients[table.client].listening
            for first, count in runs(_PENDING_PAGES, table.flags, 0, table.pages)
        )

    def counters(self) -> EngineCounters:
        """See `Engine`.

        What was found of volatile and unshared pages is that of the last full pass. Copied pages, though they hold a
        frame, save nothing and are not counted as sharing it.
        """
        return EngineCounters(
            pages_shared=self._frames.shared,
            pages_sharing=max(self._count(MERGED) - self._frames.shared, 0),
            pages_unshared=self._unshared + self._unstable.tracked(),
            pages_volatile=self._report.volatile,
            pages_skipped=self._skipped,
            pages_scanned=self._scanned + (self._pass.visited if self._pass else 0),
            full_scans=self._report.number,
            zero_pages=self._count(ZERO),
            stable_node_dups=self._frames.duplicates,
            pages_merged=self._merged,
            pages_broken=self._broken,
            pages_declined=self._declined,
            pages_over_budget=self._count(OVER_BUDGET),
            pages_refused=self._count(*REFUSALS),
            pages_waiting=self._count(WAITING),
            pages_unplaced=self._report.unplaced,
            pages_proposed=self._count(QUEUED, PROPOSED),
            bookkeeping_bytes=self._bookkeeping_bytes(),
        )

    def _bookkeeping_bytes(self) -> int:
        """Tables by the size of their arrays, trees by their entries; queues and the calendar are not counted."""
        columns = sum(table.bookkeeping_bytes() for table in self._tables.values())
        return columns + self._frames.bookkeeping_bytes() + self._unstable.bookkeeping_bytes()

    # Audits

    def held(self, client: int, segment: int, first: int, count: int) -> list[Held]:
        """See `Engine`."""
        return self._clients[client].segments[segment].held(first, first + count)

    def audit(self, first: int, count: int) -> list[tuple[int, FrameFault]]:
        """See `Engine`."""
        digest = partial(xxh3_64_intdigest, seed=self._seed)
        return [(frame, fault) for frame in range(first, first + count) for fault in self._frames.audit(frame, digest)]

    def recount(self) -> list[Miscount]:
        """See `Engine`. A microsecond a page."""
        references: Counter[int] = Counter()
        reservations: Counter[int] = Counter()
        for table in self._tables.values():
            for run in table.held(0, table.pages):
                if run.frame >= 0:
                    (references if run.state in MAPPED else reservations).update(
                        range(run.frame, run.frame + run.pages)
                    )
        return self._frames.recount(references, reservations)

    def check(self) -> None:
        """See `Engine`."""
        super().check()
        current = self._pass
        untracked = len(self._unstable) - self._unstable.tracked()
        assert current is None or untracked <= current.unshared, "unshared pages miscounted"
        assert current is not None or not (untracked or self._ahead), "something is left of a finished pass"
        for table in self._tables.values():
            assert table.tracked or not table.count_flag(WRITTEN), "an untracked page is flagged as written"

    def close(self) -> None:
        """See `Engine`. It has no descriptors of its own."""


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
