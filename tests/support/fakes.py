"""Stand-ins for the native half: a space without memory, an arena of segments that nobody maps."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import posix_ipc
from pagefold._session.outbox import COLUMNS
from pagefold_core import Doorbell
from pagefold_proto import shm_names
from pagefold_proto.descriptor import Descriptor
from pagefold_proto.v1 import memory_pb2 as pb


class FakeSpace:
    """Views as numbers of pages; a forked child looks at those in `views_shared`."""

    tier = "uffd"

    def __init__(self) -> None:
        self.views: dict[int, int] = {}
        self.views_shared: set[int] = set()
        self.free: list[int] = []
        self.journal: deque[tuple[int, ...]] = deque()
        self.calls: list[tuple[Any, ...]] = []
        self.merged = self.zero = 0
        self.woken = threading.Event()
        self.waits = 0
        self.rings = False  # all the time
        self.closed = False
        self.child = self.forked = False
        self.thaw_error: OSError | None = None

    # what the server asks for

    def merge(self, *columns: list[int]) -> int:
        self.calls.append(("merge", *columns))
        for row in zip(*columns, strict=True):
            self.event(pb.EVENT_KIND_MERGED, row[0], row[1], row[2], row[3], row[4])
        return sum(columns[2])

    def adopt(self, segment: list[int], first: list[int], count: list[int], room: int | None = None) -> int:
        columns = segment, first, count
        self.calls.append(("adopt", *columns))
        for row in zip(*columns, strict=True):
            self.event(pb.EVENT_KIND_RELEASED, *row)
        return sum(columns[2])

    def add_pool(self, pool: int, fd: int) -> None:
        self.calls.append(("add_pool", pool))

    def drop_pool(self, pool: int) -> bool:
        self.calls.append(("drop_pool", pool))
        return not self.merged

    def resume(self) -> None:
        self.calls.append(("resume",))
        self.journal.clear()

    def switched(self, segment: int, first: int, count: int) -> int:
        return 0

    def harvest(self, all: bool = True, tracked: bool = True) -> int:
        self.calls.append(("harvest",))
        return 0

    def untrack(self) -> None:
        self.calls.append(("untrack",))

    # the journal

    def event(
        self, kind: int, segment: int, first: int, count: int, pool: int = 0, frame: int = 0, detail: int = 0
    ) -> None:
        self.journal.append((kind, segment, first, count, pool, frame, detail))

    def pending(self) -> int:
        return len(self.journal)

    def drain(self, limit: int) -> Any:
        rows = [self.journal.popleft() for _ in range(min(limit, len(self.journal)))]
        return SimpleNamespace(**{name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)})

    def hindrance(self) -> None:
        """None of the program's limits keeps pages from merging."""

    def counts(self) -> Any:
        return SimpleNamespace(
            owned=0,
            merged=self.merged,
            zero=self.zero,
            copied=0,
            frozen=0,
            shared=0,
            inherited=0,
            mappings=len(self.views),
            budget=100,
        )

    def windows(self) -> Any:
        return SimpleNamespace(
            windows=0, p50_micros=0.0, p99_micros=0.0, max_micros=0.0, max_running_micros=0.0, over_bound=0
        )

    def wait(self, bell: Any, poll: float, timeout: float) -> str:
        self.waits += 1
        if self.journal or self.free:
            return "news"
        return "rung" if self.rings or bell.wait(timeout) else "idle"

    # forks

    @property
    def shared(self) -> bool:
        return bool(self.views_shared)

    def fork(self) -> None:
        """A child that lives as long as `child` is set."""
        self.views_shared = set(self.views)

    def thaw(self) -> bool:
        self.calls.append(("thaw",))
        if self.thaw_error is not None:
            raise self.thaw_error
        if not self.child:
            self.views_shared.clear()
        return not self.views_shared

    def forget_children(self) -> None:
        self.calls.append(("forget_children",))

    def close(self) -> None:
        self.closed = True


def make_bell() -> Doorbell:
    """A doorbell without a name."""
    name = shm_names.new_name(shm_names.DOORBELL)
    posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=0).close()
    bell = Doorbell(name)
    posix_ipc.unlink_semaphore(name)
    return bell


@dataclass
class FakeSegment:
    """A segment of pages that do not exist, with a real object behind it unless told otherwise."""

    number: int
    name: str
    fd: Descriptor
    pages: int
    address: int
    place: str = "shm"
    inherited: bool = False

    def discard(self) -> None:
        shm_names.remove(self.name)
        self.fd.close()


class FakeArena:
    """Every piece of memory is a segment of its own."""

    def __init__(self, space: FakeSpace) -> None:
        self.space = space
        self.pages_in_use = 0
        self.reachable = True
        self._is_announced = True
        self._made: list[FakeSegment] = []
        self._added: list[FakeSegment] = []
        self._dropped: list[FakeSegment] = []
        self._quarantine: list[int] = []
        self._numbers = itertools.count(1)
        self._closed = False

    def allocate(self, nbytes: int) -> FakeBlock:
        number, pages = next(self._numbers), -(-nbytes // 4096)
        made = shm_names.create_locked(shm_names.SEGMENT, 0o600, pages * 4096)
        segment = FakeSegment(number, made.name, made.fd, pages, number << 40)
        self.space.views[number] = pages
        self._made.append(segment)
        self.add(segment)
        self.pages_in_use += pages
        return FakeBlock(self.space, number)

    def add(self, segment: FakeSegment) -> None:
        self._added.append(segment)
        self._is_announced = False

    def drop(self, segment: FakeSegment) -> None:
        self._dropped.append(segment)

    @property
    def quarantined(self) -> bool:
        return bool(self._quarantine)

    def sweep(self, retry: bool = False) -> None:
        if self._closed:
            return
        freed, self.space.free = self.space.free, []
        waiting, self._quarantine = self._quarantine, []
        for number in [*freed, *waiting]:
            if number in self.space.views_shared:
                self._quarantine.append(number)
                continue
            del self.space.views[number]
            self.space.event(pb.EVENT_KIND_RELEASED, number, 0, 1)
            segment = next(segment for segment in self._made if segment.number == number)
            self._made.remove(segment)
            self.pages_in_use -= segment.pages
            self.drop(segment)

    def added(self) -> list[FakeSegment]:
        taken, self._added = self._added, []
        return taken

    def dropped(self) -> list[FakeSegment]:
        taken, self._dropped = self._dropped, []
        return taken

    @property
    def has_added(self) -> bool:
        return bool(self._added)

    @property
    def has_dropped(self) -> bool:
        return bool(self._dropped)

    def announced(self) -> None:
        self._is_announced = not self._added

    @property
    def is_announced(self) -> bool:
        return self._is_announced or not self.reachable

    def set_reachable(self, reachable: bool) -> None:
        self.reachable = reachable

    def close(self) -> list[FakeSegment]:
        self.sweep()
        self._closed = True
        left, self._made = self._made, []
        return left


class FakeBlock:
    """A piece of a FakeArena's memory."""

    def __init__(self, space: FakeSpace, segment: int) -> None:
        self._space, self._segment = space, segment

    def free(self) -> None:
        self._space.free.append(self._segment)
