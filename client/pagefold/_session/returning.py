"""Coming back: a client whose server was started anew, and a child that goes on with memory of its parent's client.

In both cases memory maps frames since before the session. Those of a pool that the new server took over are reported to
it (events RESUMED, which the native half makes) until `is_complete`; those of a pool that it does not have are left.
"""

from __future__ import annotations

import math
from typing import Final

from pagefold._errors import OutOfSharedMemory
from pagefold._process import threads
from pagefold._session.instructions import Instructions
from pagefold._session.outbox import Outbox
from pagefold._session.patience import Earned
from pagefold._session.pools import Pools
from pagefold._session.segments import Segments
from pagefold._session.space import ConversationSpace, SpaceSegment

COME_BACK_SECONDS: Final = 10.0
"""Least time between two restarts of a server for which all the work of coming back is worth its processor time."""


class Returning:
    """How one client comes back.

    Args:
        space: the native space, or a fake.
        pools: those that frames are mapped of.
        segments: those that map them.
        outbox: tells how much of the report the server has.
        instructions: has segments leave frames.
        earned: learns that there was work.
    """

    def __init__(
        self,
        space: ConversationSpace,
        pools: Pools,
        segments: Segments,
        instructions: Instructions,
        outbox: Outbox,
        earned: Earned,
    ) -> None:
        self._space = space
        self._pools = pools
        self._segments = segments
        self._instructions = instructions
        self._outbox = outbox
        self._earned = earned
        self._pool = ""  # the domain's, at the server of this session
        self._report_end = 0  # position in the outbox
        self._inherited: list[int] = []  # segments whose references the parent holds until the server has ours
        self._came_back = -math.inf

    def arrive(self, pool: str) -> None:
        """Begins the first session, at a server that has a pool of this name."""
        self._pool = pool

    def come_back(self, pool: str) -> None:
        """Begins another session, at a server that has a pool of this name: makes all state ready to be reported.

        Raises:
            OutOfSharedMemory: frames are mapped that the server does not have, and there is no room to leave them.
        """
        last, self._came_back = self._came_back, threads.monotonic()
        if self._came_back - last > COME_BACK_SECONDS:
            self._earned.real_work()
        self._segments.discard_freed()
        if pool != self._pool and not self._pools.has_pool(pool):
            for segment in self._segments.all():  # a child maps frames that it inherited, before it has opened a pool
                self._instructions.leave_frames(segment)
        if not self._pools.keep_only(pool):
            raise OutOfSharedMemory(
                "the server was started anew and has not found the frames that this client's memory is merged with; "
                "the memory stays usable, and merges again when there is room to take it back: free memory, or make "
                "/dev/shm larger (mount -o remount,size=SIZE /dev/shm)"
            )
        self._pools.expect(pool)
        self._space.resume()
        self._report_end = self._space.pending()
        self._segments.announce_again()
        self._pool = pool

    def is_complete(self, position: int) -> bool:
        """Whether a server that has the events up to a position knows all frames mapped since before the session."""
        return position >= self._report_end and not self._segments.may_map_more()

    def may_inherit(self, parent: Returning) -> bool:
        """Whether the frames of a parent's client, left in this process, are of the pool of this session's server."""
        return parent._pools.has_pool(self._pool)

    def inherit_segment(self, segment: SpaceSegment) -> None:
        """Takes a segment of a parent's client. What is merged of it is in the journal, before the first turn."""
        self._inherited.append(segment.number)
        self._segments.inherit_segment(segment)
        self._report_end = self._space.pending()

    def release_parents(self) -> None:
        """Releases the parent's references once the server has this client's own."""
        while self._inherited and self._outbox.sent >= self._report_end:
            if (number := self._inherited.pop()) not in self._segments.refused:
                self._space.let_parents_go(number)
