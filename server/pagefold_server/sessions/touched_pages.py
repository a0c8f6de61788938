"""The pages of one session to which anything has happened, by the books, since an audit began to note them.

An audit compares the books with what a process maps while both go on. What it finds may be an event on its way. So it
has the client look and report, and asks which pages were touched: a page of which nothing was booked from before the
comparison until after that report was, when it was compared, what the books say; and if it maps something else, that is
a difference.
"""

from __future__ import annotations

from typing import Final

from pagefold_proto.v1 import memory_pb2 as pb

from pagefold_server.engine.interface import Columns, Instructions
from pagefold_server.engine.pageset import PageSet

# Events that change nothing about what a page maps or holds.
_NO_TOUCH: Final = frozenset(
    (pb.EVENT_KIND_NOT_ADOPTED, pb.EVENT_KIND_EXCLUDED, pb.EVENT_KIND_INCLUDED, pb.EVENT_KIND_WRITTEN)
)


class TouchedPages:
    """See the head of this file. To be put among a session's `touched`.

    Attributes:
        pages: by segment.
        shared: a forked child may have shared views when the client looked for writes: then it did not look at
            these. (It says so in the call that it makes after a look: no fork and no thaw comes in between.)
    """

    def __init__(self) -> None:
        self.pages = PageSet()
        self.shared = False

    def note(self, events: Columns, told: Instructions, shared: bool) -> None:
        """Notes what a client reported, and what it was told; `shared` as it is now."""
        self.shared |= shared
        for kind, segment, first, count in zip(events.kind, events.segment, events.first, events.count, strict=True):
            if kind not in _NO_TOUCH:
                self.pages.add(segment, first, count)
        for segment, first, count, _ in told.merges:
            self.pages.add(segment, first, count)
        for segment, first, count in told.adopts:
            self.pages.add(segment, first, count)
