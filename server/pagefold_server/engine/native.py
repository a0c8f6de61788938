"""The production engine, in Rust. What it promises is in `interface`, what it decides in `reference`.

It reads, digests and keeps its books with the GIL released, takes at most 12 bytes a page and some 17 for each page in
a tree, and allocates the frames of its pool itself.
"""

from __future__ import annotations

import os
import secrets
from typing import Final

from pagefold_core import Engine as _Engine
from typing_extensions import override

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
    PassReport,
    SegmentCounts,
    Step,
)
from pagefold_server.engine.pool_file import MOST_FRAMES, PoolFile
from pagefold_server.errors import LimitReached, ProtocolViolation

_MOST: Final = 2**32 - 1  # the options are of any size, and mean the same from there on


class NativeEngine(Engine):
    """Turns the tuples of `pagefold_core.Engine` into the classes of `interface`, and its errors into the server's.

    Args:
        pool: where frames live. Only this engine allocates in it; its descriptor is duplicated.
        options: to begin with.
        seed: of the digests. Random, so that no client can prepare collisions; given only by tests.
        limit: most frames, used or not.
        number: of the pool, in events.
    """

    name = "native"

    def __init__(
        self,
        pool: PoolFile,
        options: EngineOptions | None = None,
        seed: int | None = None,
        limit: int = MOST_FRAMES,
        number: int = 1,
    ) -> None:
        self._engine = _Engine(pool.fd, secrets.randbits(64) if seed is None else seed, limit, number)
        self.configure(options or EngineOptions())

    @override
    def configure(self, options: EngineOptions) -> None:
        # Frames that serve more pages than a new `max_page_sharing` go on doing so.
        self._engine.configure(
            options.use_zero_pages,
            min(options.max_page_sharing, _MOST),
            options.smart_scan,
            min(options.max_outstanding, _MOST),
        )

    @override
    def recover(self) -> int:
        return self._engine.inherit()

    @override
    def release_unclaimed(self) -> None:
        self._engine.bury()

    # Clients and segments

    @override
    def add_client(self, client: int) -> None:
        self._engine.add_client(client)

    @override
    def add_segment(self, client: int, segment: int, fd: int, pages: int, tracked: bool = False) -> None:
        """See `Engine`. The descriptor is duplicated; the scan comes to the segment in the next pass.

        Raises:
            LimitReached: the segments of one domain would have more than 2**32 pages together, or there is no memory
                for the page table.
            OSError: there is no descriptor left.
        """
        try:
            self._engine.add_segment(client, segment, fd, pages, tracked)
        except OverflowError as error:
            raise LimitReached(f"{error}: use another label for a part of them") from error
        except MemoryError as error:
            raise LimitReached(f"{error}: make it smaller, or give the server more memory") from error

    @override
    def drop_segment(self, client: int, segment: int) -> bool:
        return self._engine.drop_segment(client, segment)

    @override
    def depart_client(self, client: int) -> None:
        self._engine.depart_client(client)

    @override
    def remove_client(self, client: int) -> None:
        self._engine.remove_client(client)

    # What clients say, and are told

    @override
    def apply(self, client: int, events: Columns) -> None:
        violation = self._engine.apply(
            client,
            events.kind,
            events.segment,
            events.first,
            events.count,
            events.pool,
            events.frame,
            events.detail,
        )
        if violation is not None:
            raise ProtocolViolation(violation)

    @override
    def take(self, client: int, pages: int) -> Instructions:
        # Adopts are bounded by `pages` as well.
        return Instructions(*self._engine.take(client, pages))

    @override
    def queued(self) -> set[int]:
        return set(self._engine.queued())

    @override
    def outstanding(self) -> int:
        return self._engine.outstanding()

    @override
    def unmerge(self, on: bool) -> None:
        # Adopts that are queued when it ends are still made.
        self._engine.unmerge(on)

    # The scan

    @override
    def scan(self, pages: int, threads: int = 1) -> Step:
        # What it decides does not depend on `threads`.
        visited, finished = self._engine.scan(pages, threads)
        return Step(visited, None if finished is None else PassReport(*finished))

    @override
    def remaining(self) -> int:
        # Holes count as owned pages do.
        return self._engine.remaining()

    @override
    def refusal(self) -> OSError | None:
        refusal = self._engine.refusal()
        return None if refusal is None else OSError(refusal, os.strerror(refusal))

    @override
    def flush(self) -> None:
        self._engine.flush()

    # Counts

    @override
    def counters(self) -> EngineCounters:
        # Copied pages, though they hold a frame, are not counted as sharing it.
        return EngineCounters(**self._engine.counters())

    @override
    def segment_counts(self, client: int, segment: int) -> SegmentCounts:
        return SegmentCounts(*self._engine.segment_counts(client, segment))

    @override
    def merged_pages(self, client: int) -> tuple[int, int]:
        # Copied pages are not counted: they read their own bytes.
        return self._engine.merged_pages(client)

    @override
    def left(self, client: int) -> Left:
        return Left(*self._engine.left(client))

    @override
    def apart(self, client: int) -> int:
        return self._engine.apart(client)

    def frames(self) -> list[int]:
        """Numbers of the frames in use, in order. For tests and audits."""
        return self._engine.frames()

    # Audits

    @override
    def held(self, client: int, segment: int, first: int, count: int) -> list[Held]:
        return [Held(*run) for run in self._engine.held(client, segment, first, count)]

    @override
    def audit(self, first: int, count: int) -> list[tuple[int, FrameFault]]:
        return [(frame, FrameFault(fault)) for frame, fault in self._engine.audit(first, count)]

    @override
    def recount(self) -> list[Miscount]:
        return [Miscount(*found) for found in self._engine.recount()]

    @override
    def check(self) -> None:
        self._engine.check()

    @override
    def close(self) -> None:
        # Closing twice is fine.
        self.__dict__.pop("_engine", None)
