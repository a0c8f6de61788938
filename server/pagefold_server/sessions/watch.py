"""A watch over one session: to which of its pages anything has happened, by the books, since it began.

An audit compares the books with what a process maps while both go on. What it finds may be an event on
its way. So it has the client look and report, and asks the watch: a page of which nothing was booked from
before the comparison until after that report was, when it was compared, what the books say; and if it
maps something else, that is a difference.
"""

from __future__ import annotations

from typing import Final

from pagefold_proto.v1 import memory_pb2 as pb

from pagefold_server.engine.interface import Columns, Instructions
from pagefold_server.engine.pageset import PageSet

# Events that change nothing about what a page maps or holds.
_IDLE: Final = frozenset(
    (pb.EVENT_KIND_NOT_ADOPTED, pb.EVENT_KIND_EXCLUDED, pb.EVENT_KIND_INCLUDED, pb.EVENT_KIND_WRITTEN)
)


class Watch:
    """See the head of this file. To be put among a session's `watches`.

    Attributes:
        touched: pages by segment.
        shared: a forked child may have shared views when the client looked for writes: then it did not look at
            these. (It says so in the call that it makes after a look: no fork and no thaw comes in between.)
    """

    def __init__(self) -> None:
        self.touched = PageSet()
        self.shared = False

    def saw(self, events: Columns, told: Instructions, shared: bool) -> None:
        """Notes what a client reported, and what it was told; `shared` as it is now."""
        self.shared |= shared
        for kind, segment, first, count in zip(events.kind, events.segment, events.first, events.count, strict=True):
            if kind not in _IDLE:
                self.touched.add(segment, first, count)
        for segment, first, count, _ in told.merges:
            self.touched.add(segment, first, count)
        for segment, first, count in told.adopts:
            self.touched.add(segment, first, count)
