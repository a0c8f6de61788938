"""What engines are given to keep frames in, so that one test can run on each engine, or on both at once."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from pagefold_server.engine.interface import (
    Columns,
    EngineCounters,
    EngineOptions,
    Held,
    Instructions,
    Left,
    Miscount,
    Step,
)
from pagefold_server.engine.native import NativeEngine
from pagefold_server.engine.pool_file import MOST_FRAMES, Orphan, PoolFile
from pagefold_server.engine.reference.engine import ReferenceEngine
from pagefold_server.engine.reference.pool import Pool
from pagefold_server.errors import ProtocolViolation

from support.engine_world import PAGE, FakeStore

NO_LIMIT = 1 << 20


class FileStore:
    """Reads the frames of a pool that an engine allocates in."""

    def __init__(self, pool: PoolFile) -> None:
        self.pool = pool

    def read(self, frame: int) -> bytes:
        page = os.pread(self.pool.fd, PAGE, frame * PAGE)
        assert len(page) == PAGE, "a frame is read that is beyond the pool"
        return page


class NativeStore(PoolFile):
    """A real pool, and the frames that a native engine has in it.

    Attributes:
        limit: no frame from here on can be written, while the pool is `tight`.
    """

    def __init__(self) -> None:
        super().__init__(os.geteuid())
        self.engine: NativeEngine | None = None
        self.limit = NO_LIMIT

    @property
    def pages(self) -> dict[int, bytes]:
        assert self.engine is not None
        return {frame: self.read(frame) for frame in self.engine.frames()}

    def read(self, frame: int) -> bytes:
        return FileStore(self).read(frame)

    @contextmanager
    def tight(self) -> Iterator[None]:
        """The kernel refuses to write files beyond the limit. Only inside of a scan: it is all files of the process."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self.limit < NO_LIMIT:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit * PAGE, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


class ReferenceStore(FakeStore):
    """A pool in a dict, which has its limit in itself."""

    def tight(self) -> nullcontext[None]:
        return nullcontext()

    def close(self, unlink: bool) -> None:
        """There is nothing to let go of."""


class LockstepStore:
    """The frames of two engines, which are the same."""

    def __init__(self, lockstep: Lockstep) -> None:
        self.lockstep, self.limit = lockstep, NO_LIMIT

    @property
    def pages(self) -> dict[int, bytes]:
        return {frame: self.lockstep.pool.read(frame) for frame in self.lockstep.native.frames()}

    def read(self, frame: int) -> bytes:
        return self.lockstep.pool.read(frame)

    def tight(self) -> nullcontext[None]:
        return nullcontext()

    def close(self, unlink: bool) -> None:
        self.lockstep.close()


Store = ReferenceStore | NativeStore | LockstepStore


def make(name: str, seed: int | None = None) -> tuple[Store, ReferenceEngine | NativeEngine]:
    """An engine by name, and what has its frames."""
    if name == ReferenceEngine.name:
        fake = ReferenceStore()
        return fake, ReferenceEngine(fake, seed=seed)
    store = NativeStore()
    store.engine = NativeEngine(store, seed=seed)
    return store, store.engine


class Lockstep:
    """Both engines, told the same, and compared after everything that they are told.

    What one answers is what the other has to answer; frames have the same numbers and the same bytes.
    """

    name = "lockstep"

    def __init__(self, limit: int = MOST_FRAMES, threads: int = 1) -> None:
        self.pool, self.file = Pool(os.geteuid(), limit), PoolFile(os.geteuid())
        self.limit, self.threads = limit, threads
        self._begin()

    def _begin(self) -> None:
        self.reference = ReferenceEngine(self.pool, seed=7)
        self.native = NativeEngine(self.file, seed=7, limit=self.limit)

    def restart(self) -> None:
        """The server was killed, and the next one has taken the pools over."""
        pool, file = (Orphan(old.name, os.dup(old.fd)) for old in (self.pool, self.file))
        for old in (self.pool, self.file):
            old.close(unlink=False)
        self.pool, self.file = Pool(os.geteuid(), self.limit, orphan=pool), PoolFile(os.geteuid(), orphan=file)
        self._begin()
        self._both("recover")

    def release_unclaimed(self) -> None:
        self._both("release_unclaimed")

    def close(self) -> None:
        self.pool.close(unlink=True)
        self.file.close(unlink=True)

    def configure(self, options: EngineOptions) -> None:
        self._both("configure", options)

    def add_client(self, client: int) -> None:
        self._both("add_client", client)

    def add_segment(self, client: int, segment: int, fd: int, pages: int, tracked: bool = False) -> None:
        self._both("add_segment", client, segment, fd, pages, tracked)

    def drop_segment(self, client: int, segment: int) -> bool:
        return bool(self._both("drop_segment", client, segment))

    def depart_client(self, client: int) -> None:
        self._both("depart_client", client)

    def remove_client(self, client: int) -> None:
        self._both("remove_client", client)

    def apply(self, client: int, events: Columns) -> None:
        self._both("apply", client, events)

    def take(self, client: int, pages: int) -> Instructions:
        told: Instructions = self._both("take", client, pages)
        return told

    def queued(self) -> set[int]:
        queued: set[int] = self._both("queued")
        return queued

    def outstanding(self) -> int:
        return int(self._both("outstanding"))

    def scan(self, pages: int, threads: int = 1) -> Step:
        step, other = self.reference.scan(pages), self.native.scan(pages, self.threads)
        assert other == step
        refusals = self.reference.refusal(), self.native.refusal()
        assert len({refusal and refusal.errno for refusal in refusals}) == 1, refusals
        return step

    def remaining(self) -> int:
        return int(self._both("remaining"))

    def refusal(self) -> OSError | None:
        return None

    def flush(self) -> None:
        self._both("flush")

    def unmerge(self, on: bool) -> None:
        self._both("unmerge", on)

    def counters(self) -> EngineCounters:
        counters, other = self.reference.counters(), self.native.counters()
        other.bookkeeping_bytes = counters.bookkeeping_bytes
        assert other == counters
        return counters

    def segment_counts(self, client: int, segment: int) -> Any:
        return self._both("segment_counts", client, segment)

    def merged_pages(self, client: int) -> tuple[int, int]:
        pages: tuple[int, int] = self._both("merged_pages", client)
        return pages

    def left(self, client: int) -> Left:
        left: Left = self._both("left", client)
        return left

    def apart(self, client: int) -> int:
        return int(self._both("apart", client))

    def held(self, client: int, segment: int, first: int, count: int) -> list[Held]:
        held: list[Held] = self._both("held", client, segment, first, count)
        return held

    def recount(self) -> list[Miscount]:
        wrong: list[Miscount] = self._both("recount")
        return wrong

    def check(self) -> None:
        """Both have right books, and the same."""
        self.reference.check()
        self.native.check()
        self.pool.check()
        self.counters()
        self.queued()
        self.outstanding()
        self.remaining()
        for client, member in self.reference.ledger.members.items():
            self.merged_pages(client)
            self.left(client)
            self.apart(client)
            for segment in member.segments:
                self.segment_counts(client, segment)
                self.held(client, segment, 0, 1 << 20)
        assert self.recount() == []
        frames = self.native.frames()
        assert frames == self._frames()
        for frame in frames:
            assert os.pread(self.file.fd, PAGE, frame * PAGE) == self.pool.read(frame), f"frame {frame}"

    def _frames(self) -> list[int]:
        return sorted(frame for twins in self.reference.ledger.frames.stable.values() for frame in twins)

    def _both(self, method: str, *arguments: object) -> Any:
        outcomes = [_outcome(engine, method, arguments) for engine in (self.reference, self.native)]
        assert str(outcomes[1]) == str(outcomes[0]), method
        if isinstance(outcomes[0], ProtocolViolation):
            raise outcomes[0]
        return outcomes[0]


def _outcome(engine: object, method: str, arguments: tuple[object, ...]) -> object:
    try:
        return getattr(engine, method)(*arguments)
    except ProtocolViolation as error:
        return error
