"""A native space with a segment and a pool of its own, without a server."""

from __future__ import annotations

import mmap
import os
from typing import Any

from pagefold_core import Doorbell, Space
from pagefold_proto.v1 import memory_pb2 as pb

from support.worker import page_of

PAGE = mmap.PAGESIZE

MERGED, DECLINED, COPIED = pb.EVENT_KIND_MERGED, pb.EVENT_KIND_DECLINED, pb.EVENT_KIND_COPIED
RELEASED, NOT_ADOPTED = pb.EVENT_KIND_RELEASED, pb.EVENT_KIND_NOT_ADOPTED
EXCLUDED, INCLUDED, WRITTEN = pb.EVENT_KIND_EXCLUDED, pb.EVENT_KIND_INCLUDED, pb.EVENT_KIND_WRITTEN
CHANGED, BUDGET, PINNED = pb.DECLINE_REASON_CHANGED, pb.DECLINE_REASON_BUDGET, pb.DECLINE_REASON_PINNED
STATE, FAILED, FORKED = pb.DECLINE_REASON_STATE, pb.DECLINE_REASON_FAILED, pb.DECLINE_REASON_FORKED


class Bench:
    """One view (segment 1) and one pool (1) whose frame n holds page_of(n)."""

    def __init__(
        self, pages: int = 64, frames: int = 64, tier: Any = "uffd", budget: int = 30000, **options: Any
    ) -> None:
        self.pages = pages
        self.segment = os.memfd_create("segment")
        os.ftruncate(self.segment, pages * PAGE)
        self.pool = os.memfd_create("pool")
        for frame in range(frames):
            os.pwrite(self.pool, page_of(frame), frame * PAGE)
        lease = os.memfd_create("lease")
        self.space = Space(tier, lease, budget, **options)
        os.close(lease)
        self.space.add_view(1, self.segment, pages)
        reader = os.open(f"/proc/self/fd/{self.pool}", os.O_RDONLY)
        self.space.add_pool(1, reader)
        os.close(reader)
        self.block = self.space.block(1, 0, pages * PAGE)
        self.bytes = memoryview(self.block)

    def put(self, page: int, seed: int) -> None:
        self.bytes[page * PAGE : (page + 1) * PAGE] = page_of(seed)

    def get(self, page: int) -> bytes:
        return bytes(self.bytes[page * PAGE : (page + 1) * PAGE])

    def merge(self, first: int, count: int, frame: int, pool: int = 1) -> int:
        return self.space.merge([1], [first], [count], [pool], [frame])

    def adopt(self, first: int, count: int) -> int:
        return self.space.adopt([1], [first], [count])

    def events(self) -> list[tuple[int, int, int, int, int, int]]:
        """(kind, first, count, pool, frame, detail) of everything since the last call."""
        e = self.space.drain()
        return list(zip(e.kind, e.first, e.count, e.pool, e.frame, e.detail, strict=True))

    def allocated(self) -> int:
        """Pages that the kernel has allocated to the segment."""
        return os.fstat(self.segment).st_blocks * 512 // PAGE

    def close(self) -> None:
        self.bytes.release()
        self.block.close()
        self.space.close()
        os.close(self.segment)
        os.close(self.pool)


__all__ = [
    "BUDGET",
    "CHANGED",
    "COPIED",
    "DECLINED",
    "EXCLUDED",
    "FAILED",
    "FORKED",
    "INCLUDED",
    "MERGED",
    "NOT_ADOPTED",
    "PAGE",
    "PINNED",
    "RELEASED",
    "STATE",
    "WRITTEN",
    "Bench",
    "Doorbell",
    "page_of",
]
