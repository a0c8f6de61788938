"""The engine in pure Python: KSM's two trees over segments, after "How a page is scanned" in design.md.

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
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sortedcontainers import SortedDict
from xxhash import xxh3_64_intdigest

from pagefold_server.books import Books
from pagefold_server.client import Client
from pagefold_server.engine import EngineCounters, EngineOptions, FrameStore, PassReport, Step
from pagefold_server.frames import Frames
from pagefold_server.tables import (
    MERGED,
    OVER_BUDGET,
    OWNED,
    PAGE,
    PROPOSED,
    QUEUED,
    REFUSED,
    WAITING,
    ZERO,
    ZERO_FRAME,
    PageTable,
)

_CHUNK: Final = 64  # pages read with one call
_ZEROS: Final = bytes(PAGE)
_PAGE_BITS: Final = 32  # a place in the unstable tree is a table's base plus a page
_PROPOSAL_COST: Final = 8  # what a proposal takes, in pages digested (measured: 4 to 20)
_FORGIVENESS: Final = 256  # passes after which every page is forgiven one break

# tracemalloc over 200 k entries: digest, place, slots in the dict and in the sorted list.
_ENTRY_BYTES: Final = 135


@dataclass(slots=True)
class _Pass:
    """What a pass has found so far; `PassReport` has the meanings."""

    visited: int = 0
    proposed: int = 0
    fresh: int = 0
    volatile: int = 0
    unshared: int = 0
    backlog: int = 0


class ReferenceEngine(Books):
    """Implements `Engine`; see there for what the public methods promise.

    Args:
        store: where frames live.
        options: to begin with.
        seed: of the digests. Random, so that nobody can prepare collisions; given only by tests.
    """

    name = "reference"

    def __init__(self, store: FrameStore, options: EngineOptions | None = None, seed: int | None = None) -> None:
        super().__init__(Frames(store), options or EngineOptions())
        self._seed = secrets.randbits(64) if seed is None else seed
        self._zero_digest = xxh3_64_intdigest(_ZEROS, self._seed)
        self._unstable = SortedDict()  # digest -> place
        self._ahead: deque[PageTable] = deque()  # tables that this pass has still to finish
        self._page = 0  # where it is in the first of them
        self._pass: _Pass | None = None
        self._report = PassReport(0, 0, 0, 0, 0, 0, 0, 0)  # of the last pass
        self._scanned = 0
        self._skipped = 0
        self._buffer = memoryview(bytearray(_CHUNK * PAGE))
        self._views = [self._buffer[n * PAGE : (n + 1) * PAGE] for n in range(_CHUNK)]

    def configure(self, options: EngineOptions) -> None:
        """See `Engine`. Frames that serve more pages than a new `max_page_sharing` go on doing so."""
        self._options = options

    # The scan

    def scan(self, pages: int) -> Step:
        """See `Engine`.

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
        return self._pass

    def _finish_pass(self, done: _Pass) -> PassReport:
        waiting = self._count(WAITING)
        self._report = PassReport(
            number=self._report.number + 1,
            visited=done.visited,
            proposed=done.proposed,
            fresh=done.fresh,
            volatile=done.volatile,
            unshared=done.unshared,
            waiting=waiting,
            backlog=done.backlog,
        )
        self._scanned += done.visited
        self._skipped += waiting
        self._unstable.clear()
        self._pass = None
        self._advance_clock()
        return self._report

    def _can_be_scanned(self, table: PageTable) -> bool:
        return not table.dropped and self._clients[table.client].listening

    def _next_table(self) -> None:
        self._ahead.popleft()
        self._page = 0

    def _scan_chunk(self, current: _Pass, table: PageTable) -> int:
        """Goes to the next owned page with data, and looks at it and up to 63 behind it.

        Returns:
            How many pages that was, or 1 for finding none.
        """
        states, digests, streaks = table.states, table.digests, table.streaks
        owned = states.find(OWNED, self._page)
        first = None if owned < 0 else _next_data(table, owned)
        if first is None:
            table.forget_readings(self._page, table.pages)
            self._next_table()
            return 1
        table.forget_readings(owned, first)
        self._page = first
        if states[first] != OWNED:
            return 1
        last = states.rfind(OWNED, first, first + _CHUNK)
        read = _read_into(table, self._buffer[: (last + 1 - first) * PAGE], first)
        if not read:
            self._next_table()
            return 1
        self._page = first + read

        seed, zero_digest = self._seed, self._zero_digest
        stable, unstable = self._frames.stable, self._unstable
        for page, view in zip(range(first, first + read), self._views, strict=False):
            if states[page]:  # not OWNED
                continue
            digest = xxh3_64_intdigest(view, seed)
            if digest == zero_digest and _next_data(table, page) != page:  # a hole reads as zeros
                streaks[page] = 0
                continue
            current.visited += 1
            if digest != digests[page]:
                digests[page] = digest
                current.volatile += 1
                current.fresh += not streaks[page]
                streaks[page] = min(streaks[page] + 1, 255)
                continue
            streaks[page] = 0
            if digest in stable or digest in unstable or digest == zero_digest:
                self._match(current, table, page, bytes(view), digest)
            else:
                unstable[digest] = table.base + page
                current.unshared += 1
        return read

    # The trees

    def _match(self, current: _Pass, table: PageTable, page: int, content: bytes, digest: int) -> None:
        """Looks for what a settled page equals: zeros, stable tree, unstable tree, in this order."""
        book = self._clients[table.client]
        if content == _ZEROS and self._options.use_zero_pages:
            self._propose_if_room(current, book, table, page, ZERO_FRAME)
            return
        frame = self._stable_match(content, digest)
        if frame is not None:
            self._propose_if_room(current, book, table, page, frame)
            return
        self._unstable_match(current, book, table, page, content, digest)

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
        here = table.base + page
        place = self._unstable.get(digest)
        if place is None:
            self._unstable[digest] = here
            current.unshared += 1
            return
        other, twin = self._tables.get(place >> _PAGE_BITS), place & ((1 << _PAGE_BITS) - 1)
        # M1: nobody can change this copy any more. It is compared first, and only then costs a frame.
        copy = other.read(twin) if other and self._can_be_scanned(other) and other.states[twin] == OWNED else None
        if other is None or copy != content:
            self._unstable[digest] = here  # that page was written since
            return
        other_book = self._clients[other.client]
        if self._room(book) < (2 if other_book is book else 1):
            current.backlog += 1
            return
        if not self._room(other_book):
            current.backlog += 1
            self._unstable[digest] = here  # so that the next of this content need not wait for that client
            return
        try:
            frame = self._frames.create(digest, content, _near(table, page, other, twin))
        except OSError:  # no room for frames: both stay as they are
            current.unshared += 1
            return
        self._propose(other_book, other, twin, frame)
        self._propose(book, table, page, frame)
        current.proposed += 2
        current.unshared -= 1
        del self._unstable[digest]

    def _propose_if_room(self, current: _Pass, book: Client, table: PageTable, page: int, frame: int) -> None:
        if self._room(book) > 0:
            self._propose(book, table, page, frame)
            current.proposed += 1
        else:
            current.backlog += 1

    def _room(self, book: Client) -> int:
        return max(self._options.max_outstanding - book.proposed, 0)

    # Counts

    def counters(self) -> EngineCounters:
        """See `Engine`.

        What was found of volatile and unshared pages is that of the last full pass. Copied pages, though they hold a
        frame, save nothing and are not counted as sharing it.
        """
        return EngineCounters(
            pages_shared=self._frames.shared,
            pages_sharing=max(self._count(MERGED) - self._frames.shared, 0),
            pages_unshared=self._report.unshared,
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
            pages_refused=self._count(REFUSED),
            pages_waiting=self._count(WAITING),
            pages_proposed=self._count(QUEUED, PROPOSED),
            bookkeeping_bytes=self._bookkeeping_bytes(),
        )

    def _bookkeeping_bytes(self) -> int:
        """Tables by the size of their arrays, trees by their entries; queues and the calendar are not counted."""
        columns = sum(table.bookkeeping_bytes() for table in self._tables.values())
        return columns + self._frames.bookkeeping_bytes() + _ENTRY_BYTES * len(self._unstable)

    def check(self) -> None:
        """See `Engine`."""
        super().check()
        current = self._pass
        assert current is None or len(self._unstable) <= current.unshared, "unshared pages miscounted"
        assert current is not None or not (self._unstable or self._ahead), "something is left of a finished pass"
        assert all(place >> _PAGE_BITS <= self._tables_made for place in self._unstable.values())
        self._unstable._check()


def _near(table: PageTable, page: int, other: PageTable, twin: int) -> int:
    """The frame that would continue the run before either page, -1 if there is none (M2)."""
    for pages, number in ((table, page), (other, twin)):
        if number and pages.states[number - 1] in (QUEUED, PROPOSED, MERGED) and pages.frames[number - 1] >= 0:
            return pages.frames[number - 1] + 1
    return -1


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
