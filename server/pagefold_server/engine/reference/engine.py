"""The engine in pure Python: KSM's two trees over segments. It is an oracle for tests and a text to read, no product.

    events    -.                              .- stable tree: frames
    scan       |--> ledger: members, tables --|
    matching  -'                              '- unstable tree: pages like no other

What it pays for being short is memory: some 130 bytes for a page in the unstable tree, where the kernel takes 64.
"""

from __future__ import annotations

import secrets
from functools import partial

from typing_extensions import override
from xxhash import xxh3_64_intdigest

from pagefold_server.engine.interface import (
    Columns,
    Engine,
    EngineCounters,
    EngineOptions,
    FrameFault,
    Held,
    Instructions,
    Left,
    Miscount,
    SegmentCounts,
    Step,
)
from pagefold_server.engine.reference.events import EventHandler
from pagefold_server.engine.reference.frames import Frames
from pagefold_server.engine.reference.ledger import Ledger
from pagefold_server.engine.reference.matching import Matcher
from pagefold_server.engine.reference.scan import Scan
from pagefold_server.engine.reference.store import FrameStore
from pagefold_server.engine.states import (
    COPIED,
    MERGED,
    OVER_BUDGET,
    PROPOSED,
    QUEUED,
    REFUSALS,
    WAITING,
    ZERO,
)


class ReferenceEngine(Engine):
    """See the head of this file.

    Args:
        store: where frames live.
        options: to begin with.
        seed: of the digests. Random, so that no client can prepare collisions; given only by tests.
        number: of the pool, in events.

    Attributes:
        ledger: what it knows. For tests.
    """

    name = "reference"

    def __init__(
        self, store: FrameStore, options: EngineOptions | None = None, seed: int | None = None, number: int = 1
    ) -> None:
        self._digest = partial(xxh3_64_intdigest, seed=secrets.randbits(64) if seed is None else seed)
        self._frames = Frames(store)
        self.ledger = Ledger(self._frames, options or EngineOptions())
        self._events = EventHandler(self.ledger, number)
        self._matcher = Matcher(self.ledger, self._digest)
        self._scan = Scan(self.ledger, self._matcher, self._digest)

    @override
    def configure(self, options: EngineOptions) -> None:
        # Frames that serve more pages than a new `max_page_sharing` go on doing so.
        before, self.ledger.options = self.ledger.options, options
        more_room = options.max_page_sharing > before.max_page_sharing
        if more_room or options.use_zero_pages > before.use_zero_pages:
            # What was like no other page may have an equal under these options.
            self.ledger.unstable.read_tracked_again()

    @override
    def recover(self) -> int:
        return self._frames.recover(self._digest)

    @override
    def release_unclaimed(self) -> None:
        self.ledger.release_unclaimed()

    # Clients and segments

    @override
    def add_client(self, client: int) -> None:
        self.ledger.add_client(client)

    @override
    def add_segment(self, client: int, segment: int, fd: int, pages: int, tracked: bool = False) -> None:
        self.ledger.add_segment(client, segment, fd, pages, tracked)

    @override
    def drop_segment(self, client: int, segment: int) -> bool:
        return self.ledger.drop_segment(client, segment)

    @override
    def depart_client(self, client: int) -> None:
        self.ledger.depart_client(client)

    @override
    def remove_client(self, client: int) -> None:
        self.ledger.remove_client(client)

    # What clients say, and are told

    @override
    def apply(self, client: int, events: Columns) -> None:
        self._events.apply(client, events)

    @override
    def take(self, client: int, pages: int) -> Instructions:
        return self.ledger.members[client].take(pages)

    @override
    def queued(self) -> set[int]:
        return {client for client, member in self.ledger.members.items() if member.has_queued}

    @override
    def outstanding(self) -> int:
        return sum(member.proposed + member.adopting for member in self.ledger.members.values())

    @override
    def unmerge(self, on: bool) -> None:
        self.ledger.unmerge(on)

    # The scan

    @override
    def scan(self, pages: int, threads: int = 1) -> Step:
        # One thread is all there is here. While unmerging nothing is read and no pass ends, but each call counts as one
        # for the pages whose adoption failed: they are asked for again after some.
        if self.ledger.unmerging:
            self.ledger.end_pass()
            return Step(0, None)
        return self._scan.go_on(pages)

    @override
    def remaining(self) -> int:
        return self._scan.remaining()

    @override
    def refusal(self) -> OSError | None:
        refusal, self._matcher.refusal = self._matcher.refusal, None
        return refusal

    @override
    def flush(self) -> None:
        self._frames.flush()

    # Counts

    @override
    def counters(self) -> EngineCounters:
        # What was found of volatile and unshared pages is that of the last full pass. Copied pages, though they hold a
        # frame, save nothing and are not counted as sharing it.
        ledger, last = self.ledger, self._scan.report
        return EngineCounters(
            pages_shared=self._frames.shared,
            pages_sharing=max(ledger.count(MERGED) - self._frames.shared, 0),
            pages_unshared=self._scan.unshared + ledger.unstable.tracked(),
            pages_volatile=last.volatile,
            pages_skipped=self._scan.skipped,
            pages_scanned=self._scan.visited,
            full_scans=last.number,
            zero_pages=ledger.count(ZERO),
            stable_node_dups=self._frames.duplicates,
            pages_merged=self._events.merged,
            pages_broken=self._events.broken,
            pages_declined=self._events.declined,
            pages_over_budget=ledger.count(OVER_BUDGET),
            pages_refused=ledger.count(*REFUSALS),
            pages_waiting=ledger.count(WAITING),
            pages_unplaced=last.unplaced,
            pages_proposed=ledger.count(QUEUED, PROPOSED),
            bookkeeping_bytes=self._bookkeeping_bytes(),
        )

    def _bookkeeping_bytes(self) -> int:
        """Tables by the size of their arrays, trees by their entries; queues and the calendar are not counted."""
        columns = sum(table.bookkeeping_bytes() for table in self.ledger.tables.values())
        return columns + self._frames.bookkeeping_bytes() + self.ledger.unstable.bookkeeping_bytes()

    @override
    def segment_counts(self, client: int, segment: int) -> SegmentCounts:
        counts = self.ledger.members[client].segments[segment].counts
        return SegmentCounts(counts[MERGED], counts[ZERO], counts[COPIED], counts[QUEUED] + counts[PROPOSED])

    @override
    def merged_pages(self, client: int) -> tuple[int, int]:
        member = self.ledger.members[client]
        return member.count(MERGED) + member.count(ZERO), member.proposed

    @override
    def left(self, client: int) -> Left:
        return self.ledger.left(client)

    @override
    def apart(self, client: int) -> int:
        return self.ledger.apart(client)

    # Audits

    @override
    def held(self, client: int, segment: int, first: int, count: int) -> list[Held]:
        return self.ledger.members[client].segments[segment].held(first, first + count)

    @override
    def audit(self, first: int, count: int) -> list[tuple[int, FrameFault]]:
        frames = range(first, first + count)
        return [(frame, fault) for frame in frames for fault in self._frames.audit(frame, self._digest)]

    @override
    def recount(self) -> list[Miscount]:
        return self._frames.recount(*self.ledger.users())

    @override
    def check(self) -> None:
        self.ledger.check()
        self._scan.check()

    @override
    def close(self) -> None:
        """Does nothing: it has no descriptors of its own."""
