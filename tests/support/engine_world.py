"""A world for engines: frames in a dict, and clients that do to segments what the native half does, in Python.

A `FakeClient` keeps what its program wrote beside what its view maps, so every read can be compared (I7). It carries
instructions out faithfully, or is told to decline them; lies are for the tests to make up. The store knows all
clients, so it sees when a frame is released too early (I3) or changes (I1).
"""

from __future__ import annotations

import errno
import mmap
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from pagefold_core import punch_hole
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_server.engine.interface import Columns, Engine
from pagefold_server.engine.reference.store import StoredFrame

PAGE = mmap.PAGESIZE
ZEROS = bytes(PAGE)

MERGED, DECLINED, COPIED = pb.EVENT_KIND_MERGED, pb.EVENT_KIND_DECLINED, pb.EVENT_KIND_COPIED
RELEASED, NOT_ADOPTED = pb.EVENT_KIND_RELEASED, pb.EVENT_KIND_NOT_ADOPTED
EXCLUDED, INCLUDED = pb.EVENT_KIND_EXCLUDED, pb.EVENT_KIND_INCLUDED
WRITTEN, RESUMED = pb.EVENT_KIND_WRITTEN, pb.EVENT_KIND_RESUMED
CHANGED, BUDGET, PINNED = pb.DECLINE_REASON_CHANGED, pb.DECLINE_REASON_BUDGET, pb.DECLINE_REASON_PINNED
STATE, FAILED, FORKED = pb.DECLINE_REASON_STATE, pb.DECLINE_REASON_FAILED, pb.DECLINE_REASON_FORKED

Event = tuple[int, int, int, int, int, int, int]  # kind, segment, first, count, pool, frame, detail


def content(number: int) -> bytes:
    """A page by number; 0 is zeros."""
    return number.to_bytes(8, "little") * (PAGE // 8)


def columns(*events: Event) -> Columns:
    """Events as an engine takes them."""
    return Columns(*([event[n] for event in events] for n in range(7)))


class Frames(Protocol):
    """What has the frames that clients map."""

    def read(self, frame: int) -> bytes: ...


class FakeStore:
    """A pool in a dict. `clients` are asked before a frame is let go."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.pages: dict[int, bytes | None] = {}
        self.limit = limit
        self.released: list[int] = []
        self.clients: list[FakeClient] = []

    def allocate(self, near: int) -> int:
        if len(self.pages) >= self.limit:
            raise OSError(errno.ENOSPC, "full")
        frame = near
        if near < 0 or near in self.pages:
            frame = 0
            while frame in self.pages:
                frame += 1
        self.pages[frame] = None
        return frame

    def write(self, frame: int, page: bytes | memoryview) -> None:
        assert self.pages[frame] is None, "I1: a frame is written twice"
        self.pages[frame] = bytes(page)

    def read(self, frame: int) -> bytes:
        page = self.pages[frame]
        assert page is not None, "a frame is read that was never written"
        return page

    def inspect(self, frame: int) -> StoredFrame:
        return StoredFrame(frame in self.pages, frame not in self.pages, self.pages.get(frame))

    def release(self, frame: int) -> None:
        for client in self.clients:
            assert frame not in client.frames(), f"I3: frame {frame} is released while a view or a proposal has it"
        del self.pages[frame]
        self.released.append(frame)

    def flush(self) -> None:
        """Nothing waits here."""


@dataclass
class FakeSegment:
    """A segment and the view over it.

    Attributes:
        wrote: what the program wrote last, by page; what is missing reads as zeros.
        frames: pages that map a frame, or the zero page (-1).
        copies: pages that the kernel copied, among those in `frames`.
        unharvested: those of them that the client has not noticed.
        dirty: pages that were written, or may have been, since the client last reported them; of tracked clients only.
    """

    fd: int
    pages: int
    wrote: dict[int, bytes] = field(default_factory=dict)
    frames: dict[int, int] = field(default_factory=dict)
    copies: dict[int, bytes] = field(default_factory=dict)
    unharvested: set[int] = field(default_factory=set)
    excluded: set[int] = field(default_factory=set)
    dirty: set[int] = field(default_factory=set)


class FakeClient:
    """One client: its program and its session. `tracked`: it reports which pages were written, when it harvests."""

    def __init__(self, engine: Engine, store: Frames, number: int, tracked: bool = False) -> None:
        self.engine, self.store, self.number, self.tracked = engine, store, number, tracked
        self.segments: dict[int, FakeSegment] = {}
        self.merges: list[tuple[int, int, int, int]] = []  # taken, not yet done
        self.adopts: list[tuple[int, int, int]] = []
        self.journal: list[Event] = []
        self.made = 0
        self.pool = 1  # its number, in events
        engine.add_client(number)
        if isinstance(store, FakeStore):
            store.clients.append(self)

    # The program

    def add_segment(self, pages: int, fd: int = -1) -> int:
        """Adds a segment, new or with a descriptor that it takes over."""
        self.made += 1
        if fd < 0:
            fd = os.memfd_create(f"segment-{self.number}-{self.made}")
            os.ftruncate(fd, pages * PAGE)
        self.segments[self.made] = FakeSegment(fd, pages)
        self.engine.add_segment(self.number, self.made, fd, pages, self.tracked)
        return self.made

    def write(self, segment: int, page: int, data: bytes) -> None:
        view = self.segments[segment]
        view.wrote[page] = data
        if page not in view.frames:
            os.pwrite(view.fd, data, page * PAGE)
            view.dirty.add(page)
            return
        if page not in view.copies:
            view.unharvested.add(page)
        view.copies[page] = data

    def fill(self, segment: int, numbers: Iterable[int], first: int = 0) -> None:
        for page, number in enumerate(numbers, first):
            self.write(segment, page, content(number))

    def read(self, segment: int, page: int) -> bytes:
        view = self.segments[segment]
        if page in view.copies:
            return view.copies[page]
        if page in view.frames:
            return self._frame(view.frames[page])
        return os.pread(view.fd, PAGE, page * PAGE)

    def discard(self, segment: int, page: int) -> None:
        view = self.segments[segment]
        view.wrote.pop(page, None)
        if page in view.frames:
            self._leave(segment, page, pb.RELEASED_DETAIL_DISCARDED)
        view.dirty.discard(page)
        punch_hole(view.fd, page * PAGE, PAGE)
        self.journal.append((WRITTEN, segment, page, 1, 0, 0, 2))

    def exclude(self, segment: int, page: int, on: bool) -> None:
        excluded = self.segments[segment].excluded
        (excluded.add if on else excluded.discard)(page)
        self.journal.append((EXCLUDED if on else INCLUDED, segment, page, 1, 0, 0, 0))

    def die(self) -> None:
        """Its whole family is gone."""
        self.end()
        self.engine.remove_client(self.number)

    def end(self) -> None:
        """The same, and nobody is told."""
        for segment in self.segments.values():
            os.close(segment.fd)
        self.segments.clear()
        self.merges.clear()
        self.adopts.clear()

    # The session

    def resume(self) -> None:
        """Comes back to an engine that knows nothing of it: says how everything is."""
        self.merges.clear()
        self.adopts.clear()
        self.journal.clear()
        self.engine.add_client(self.number)
        for number, view in self.segments.items():
            self.engine.add_segment(self.number, number, view.fd, view.pages, self.tracked)
            if self.tracked:
                owned = sorted(page for page in view.wrote if page not in view.frames)
                self.journal += [(WRITTEN, number, page, 1, 0, 0, 1) for page in owned]
            view.dirty.clear()
            for page, frame in sorted(view.frames.items()):
                self.journal.append((RESUMED, number, page, 1, self.pool * (frame >= 0), max(frame, 0), 0))
            self.journal += [(COPIED, number, page, 1, 0, 0, 0) for page in sorted(view.copies)]
            view.unharvested.clear()
            self.journal += [(EXCLUDED, number, page, 1, 0, 0, 0) for page in sorted(view.excluded)]
        self.report()

    def take(self, pages: int = 1 << 20) -> None:
        """Fetches instructions, and leaves them lying."""
        told = self.engine.take(self.number, pages)
        self.merges += told.merges
        self.adopts += told.adopts

    def work(self) -> None:
        """Carries out what it has fetched."""
        merges, self.merges = self.merges, []
        for segment, first, count, frame in merges:
            for offset in range(count):
                self._merge(segment, first + offset, frame if frame < 0 else frame + offset)
        adopts, self.adopts = self.adopts, []
        for segment, first, count in adopts:
            for page in range(first, first + count):
                self._adopt(segment, page)

    def decline(self, reason: int) -> None:
        """Declines all merges that it has fetched."""
        merges, self.merges = self.merges, []
        for segment, first, count, frame in merges:
            self.journal.append((DECLINED, segment, first, count, self.pool * (frame >= 0), max(frame, 0), reason))

    def fail_adopts(self) -> None:
        """Finds no room for the pages that it was to adopt."""
        adopts, self.adopts = self.adopts, []
        for segment, first, count in adopts:
            for page in range(first, first + count):
                if segment in self.segments and page in self.segments[segment].frames:
                    self.journal.append((NOT_ADOPTED, segment, page, 1, 0, 0, errno.ENOSPC))

    def harvest(self) -> None:
        for number, view in self.segments.items():
            for page in sorted(view.unharvested):
                self.journal.append((COPIED, number, page, 1, 0, 0, 0))
            view.unharvested.clear()
            if self.tracked:
                self.journal += [(WRITTEN, number, page, 1, 0, 0, 0) for page in sorted(view.dirty)]
            view.dirty.clear()

    def report(self) -> None:
        events, self.journal = self.journal, []
        self.engine.apply(self.number, columns(*events))

    def exchange(self, pages: int = 1 << 20) -> None:
        """Harvests, takes, works, reports."""
        self.harvest()
        self.report()
        self.take(pages)
        self.work()
        self.report()

    def frames(self) -> Counter[int]:
        """Frames that a view maps or a proposal names. Events that are not reported yet change nothing about that."""
        used = Counter(f for view in self.segments.values() for f in view.frames.values() if f >= 0)
        for _, _, count, frame in self.merges:
            if frame >= 0:
                used.update(range(frame, frame + count))
        return used

    def check(self) -> None:
        for number, view in self.segments.items():
            for page in range(view.pages):
                assert self.read(number, page) == view.wrote.get(page, ZEROS), f"page {page} reads wrong bytes"

    def _frame(self, frame: int) -> bytes:
        return ZEROS if frame < 0 else self.store.read(frame)

    def _merge(self, segment: int, page: int, frame: int) -> None:
        view = self.segments.get(segment)
        event = (segment, page, 1, self.pool * (frame >= 0), max(frame, 0))
        if view is None or page not in view.wrote:  # a hole is never compared: reading it would allocate it
            self.journal.append((DECLINED, *event, STATE))
            return
        assert page not in view.frames, "a page is proposed that maps a frame already"
        if self.read(segment, page) != self._frame(frame):
            self.journal.append((DECLINED, *event, CHANGED))
            return
        view.frames[page] = frame
        view.dirty.discard(page)
        punch_hole(view.fd, page * PAGE, PAGE)
        self.journal.append((MERGED, *event, 0))

    def _adopt(self, segment: int, page: int) -> None:
        view = self.segments.get(segment)
        if view is not None and page in view.frames:
            os.pwrite(view.fd, self.read(segment, page), page * PAGE)
            self._leave(segment, page, pb.RELEASED_DETAIL_ADOPTED)
            if self.tracked:
                self.journal.append((WRITTEN, segment, page, 1, 0, 0, 1))

    def _leave(self, segment: int, page: int, detail: int) -> None:
        view = self.segments[segment]
        view.unharvested.discard(page)
        view.copies.pop(page, None)
        del view.frames[page]
        self.journal.append((RELEASED, segment, page, 1, 0, 0, detail))
