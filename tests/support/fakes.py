"""Stand-ins for what a client works with: a space without memory, and a server inside the process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from pagefold_proto.v1 import memory_pb2 as pb

COLUMNS = ("kind", "segment", "first", "count", "pool", "frame", "detail")


class FakeSpace:
    """Views as page numbers. Pages in `dirty` do not read as zeros; a forked child looks at the views in `shared`."""

    tier = "uffd"

    def __init__(self) -> None:
        self.views: dict[int, int] = {}
        self.dirty: set[tuple[int, int]] = set()
        self.shared: set[int] = set()
        self.blocks: dict[int, int] = {}
        self.free: list[tuple[int, int, int]] = []
        self.journal: deque[tuple[int, ...]] = deque()
        self.calls: list[tuple[Any, ...]] = []
        self.add_view_error: OSError | None = None
        self.merged = self.zero = 0
        self.woken = threading.Event()
        self.waits = 0
        self.closed = False
        self.child = self.forked = False
        self.trouble: str | None = None
        self.thaw_error: OSError | None = None

    # views

    def add_view(self, segment: int, fd: int, pages: int) -> int:
        if self.add_view_error is not None:
            raise self.add_view_error
        assert segment not in self.views
        self.views[segment] = pages
        return segment << 40

    def drop_view(self, segment: int) -> bool:
        if segment in self.shared or self.blocks.get(segment):
            return False
        del self.views[segment]
        self.event(pb.EVENT_KIND_RELEASED, segment, 0, 1)
        return True

    def discard(self, segment: int, first: int, count: int) -> None:
        if segment in self.shared:
            raise BlockingIOError(11, "a child")
        assert first + count <= self.views[segment]
        self.dirty -= {(segment, page) for page in range(first, first + count)}

    def freed(self) -> list[tuple[int, int, int]]:
        taken, self.free = self.free, []
        return taken

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

    def exclude(self, segment: int, first: int, count: int, excluded: bool) -> None:
        self.event(pb.EVENT_KIND_EXCLUDED if excluded else pb.EVENT_KIND_INCLUDED, segment, first, count)

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
        return "rung" if bell.wait(timeout) else "idle"

    # forks

    def fork(self) -> None:
        """A child that lives as long as `child` is set."""
        self.shared = set(self.views)

    def thaw(self) -> bool:
        self.calls.append(("thaw",))
        if self.thaw_error is not None:
            raise self.thaw_error
        if not self.child:
            self.shared.clear()
        return not self.shared

    def owns(self, address: int, nbytes: int) -> bool:
        return False

    def forget_children(self) -> None:
        self.calls.append(("forget_children",))

    def fork_trouble(self) -> str | None:
        trouble, self.trouble = self.trouble, None
        return trouble

    def close(self) -> None:
        self.closed = True


class FakeBell:
    """A doorbell within the process."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    def ring(self) -> bool:
        self._rung.set()
        return True

    def wait(self, timeout: float) -> bool:
        rung = self._rung.wait(timeout)
        self._rung.clear()
        return rung


class FakeBlock:
    """A block of a FakeSpace: knows its place, and dirties its pages."""

    def __init__(self, kin: Any, segment: int, first: int, nbytes: int) -> None:
        self.space: FakeSpace = kin.space
        self.segment, self.first, self.nbytes = segment, first, nbytes
        self.pages = -(-nbytes // 4096)
        if self.pages:
            self.space.blocks[segment] = self.space.blocks.get(segment, 0) + 1

    def is_zero(self) -> bool:
        return not any((self.segment, self.first + i) in self.space.dirty for i in range(self.pages))

    def fill(self) -> None:
        self.space.dirty |= {(self.segment, self.first + i) for i in range(self.pages)}

    def free(self) -> None:
        if self.pages:
            self.space.blocks[self.segment] -= 1
        self.space.free.append((self.segment, self.first, self.pages))


@dataclass
class FakeServer:
    """A server inside the process, for LocalTransport: keeps what it was told, and answers what `replies` says.

    `failures` are raised, first to last, instead of an answer; "lost" ones after the call was carried out.
    """

    requests: list[tuple[str, Any]] = field(default_factory=list)
    replies: deque[pb.ExchangeReply] = field(default_factory=deque)
    failures: deque[tuple[str, Exception]] = field(default_factory=deque)
    lost: deque[Exception] = field(default_factory=deque)
    settle: bool = True
    booked: list[tuple[int, ...]] = field(default_factory=list)
    sequences: dict[bytes, int] = field(default_factory=dict)  # by session
    answer: pb.ExchangeReply | None = None
    called: Callable[[str, Any], None] | None = None

    def __call__(self, method: str, request: Any) -> Any:
        self.requests.append((method, request))
        if self.called is not None:
            self.called(method, request)
        if self.failures and self.failures[0][0] in (method, "*"):
            raise self.failures.popleft()[1]
        if method == "Hello":
            token = len(self.sequences).to_bytes(16, "big")
            self.sequences[token] = 0
            return pb.HelloReply(session=token, max_batch_pages=4096, max_message_bytes=1 << 20, poll_millisecs=50)
        if method == "AddSegment":
            return pb.AddSegmentReply()
        if method == "DropSegment":
            return pb.DropSegmentReply()
        if method == "Bye":
            return pb.ByeReply()
        assert method == "Exchange"
        if request.sequence != self.sequences[request.session]:
            assert request.sequence == self.sequences[request.session] + 1, "sequence numbers count up"
            self.sequences[request.session] = request.sequence
            length = len(request.events.kind)
            columns = [list(getattr(request.events, name)) or [0] * length for name in COLUMNS]
            self.booked += list(zip(*columns, strict=True))
            self.answer = self.replies.popleft() if self.replies else pb.ExchangeReply()
            if request.settling and self.settle:
                self.answer.settle_report.MergeFrom(pb.SettleReport(settling=request.settling, settled=True, passes=1))
        if self.lost:
            raise self.lost.popleft()
        return self.answer

    def of(self, method: str) -> list[Any]:
        return [request for name, request in self.requests if name == method]
