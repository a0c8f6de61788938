"""A client's segments, as its server knows them: announced before their first event, dropped after their last one.

    arena: added --announce--> announced --arena: dropped, all events sent--> dropped
                     `--> refused: its memory stays usable, and no event of it is sent

A refused segment affects no other one. Its merged pages leave their frames. While some cannot, `may_map_more` tells the
server that more pages map frames than were reported.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from dataclasses import dataclass
from typing import Final

from pagefold_proto.limits import PAGE
from pagefold_proto.text import human
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold._errors import ServerFault, ServerRefused, SessionLost
from pagefold._process import threads
from pagefold._process.log import log as _log
from pagefold._session.channel import reason_word
from pagefold._session.instructions import Instructions
from pagefold._session.outbox import Outbox
from pagefold._session.patience import Earned
from pagefold._session.space import ConversationArena, ConversationSpace, SpaceSegment
from pagefold._session.transport import ADD_SEGMENT, DROP_SEGMENT, Transport

DROP_AGAIN_SECONDS: Final = 0.5
DROP_TRIES: Final = 8
_IN_USE: Final = reason_word(pb.REASON_SEGMENT_IN_USE)


@dataclass(slots=True)
class _Dropping:
    """A segment to drop once the server has the events up to a position, and not before a moment."""

    segment: SpaceSegment
    position: int
    not_before: float = 0.0
    refusals: int = 0


class Segments:
    """The segments of one client. Everything runs on the session's thread, except what says otherwise.

    Args:
        space: the native space, or a fake.
        arena: makes segments, and frees them.
        transport: to the server.
        outbox: knows which events the server has.
        instructions: has a refused segment leave its frames.
        earned: learns that there was work.

    Attributes:
        refused: segments that the server refused: number -> its words.
    """

    def __init__(
        self,
        space: ConversationSpace,
        arena: ConversationArena,
        transport: Transport,
        outbox: Outbox,
        instructions: Instructions,
        earned: Earned,
    ) -> None:
        self.refused: dict[int, str] = {}
        self._space = space
        self._arena = arena
        self._transport = transport
        self._outbox = outbox
        self._instructions = instructions
        self._earned = earned
        self._added: deque[SpaceSegment] = deque()
        self._announced: dict[int, SpaceSegment] = {}
        self._dropped: deque[SpaceSegment] = deque()
        self._dropping: list[_Dropping] = []
        self._returning: set[int] = set()  # an earlier session announced them
        self._unclaimed: dict[int, int] = {}  # refused ones that may map frames, and their pages

    @property
    def are_waiting(self) -> bool:
        """Whether a segment is to be announced or dropped."""
        return bool(
            self.are_to_be_announced
            or self._dropped
            or self._arena.has_dropped
            or any(dropping.not_before <= threads.monotonic() for dropping in self._dropping)
        )

    @property
    def are_to_be_announced(self) -> bool:
        """Whether a segment is to be announced, which an allocation may wait for. For any thread."""
        return bool(self._added) or self._arena.has_added

    @property
    def are_dropping(self) -> bool:
        """Whether a segment waits for its last events to be sent, or for the server to let it go."""
        return bool(self._dropping)

    def refused_pages(self) -> int:
        """Number of pages of refused segments. For any thread."""
        return sum(segment.pages for number, segment in list(self._announced.items()) if number in self.refused)

    def all(self) -> list[SpaceSegment]:
        """All segments that are announced or will be."""
        self._hear_of_added()
        return [*self._announced.values(), *self._added]

    def inherit_segment(self, segment: SpaceSegment) -> None:
        """Takes a segment of a parent's client. It is announced like any other."""
        self._added.append(segment)

    def drop_freed(self) -> None:
        """Has each segment that the arena freed be dropped once the server has the events so far."""
        self._hear_of_dropped()
        position = self._outbox.end()
        self._dropping += [_Dropping(segment, position) for segment in self._dropped]
        self._dropped.clear()

    def announce(self, session: bytes, timeout: float) -> None:
        """Announces new segments. Call it after the journal was drained: a segment is added before it has an event.

        Raises:
            ServerUnavailable, ServerRefused: the rest is announced in the next turn.
        """
        self._hear_of_added()
        while self._added:
            segment = self._added[0]
            try:
                self._transport.call(ADD_SEGMENT, _announcement(session, segment), timeout)
            except ServerRefused as error:
                if isinstance(error, (SessionLost, ServerFault)):
                    raise
                self._refuse(segment, str(error))
            if segment.number not in self._returning:
                self._earned.real_work()
            self._announced[segment.number] = self._added.popleft()
        self._arena.announced()

    def _refuse(self, segment: SpaceSegment, why: str) -> None:
        self.refused[segment.number] = why
        self._unclaimed[segment.number] = segment.pages
        returning = segment.number in self._returning
        if returning:
            self._instructions.leave_frames(segment)
        level = (
            logging.DEBUG if returning else logging.WARNING
        )  # a server that restarts all the time is no reason to fill a log
        _log.log(level, "the server does not take %s: %s", human(segment.pages * PAGE), why)

    def drop(self, session: bytes, timeout: float) -> None:
        """Drops freed segments whose events the server has, and gives their memory back to the kernel.

        Raises:
            ServerUnavailable, ServerRefused: the rest is dropped in the next turn.
        """
        now = threads.monotonic()
        for dropping in list(self._dropping):
            if dropping.position > self._outbox.sent or dropping.not_before > now:
                continue
            number = dropping.segment.number
            if number not in self.refused and not self._let_go(session, dropping, now, timeout):
                continue
            self._earned.real_work()
            self.refused.pop(number, None)
            self._dropping.remove(dropping)
            if not dropping.refusals:
                self._discard(dropping.segment)

    def _let_go(self, session: bytes, dropping: _Dropping, now: float, timeout: float) -> bool:
        """Whether the server needs the segment no more, or was asked often enough."""
        request = pb.DropSegmentRequest(session=session, segment=dropping.segment.number)
        try:
            self._transport.call(DROP_SEGMENT, request, timeout)
        except ServerRefused as error:
            if isinstance(error, (SessionLost, ServerFault)):
                raise
            if error.reason != _IN_USE or dropping.refusals >= DROP_TRIES:
                _log.warning("the server does not drop a segment: %s", error)
                return True
            if not dropping.refusals:
                self._discard(dropping.segment)  # the client has no use for it, whatever the server says
            # A proposal is on its way, and has to be answered first.
            dropping.not_before = now + DROP_AGAIN_SECONDS * 2**dropping.refusals
            dropping.refusals += 1
            return False
        return True

    def _discard(self, segment: SpaceSegment) -> None:
        self._announced.pop(segment.number, None)
        segment.discard()

    def may_map_more(self) -> bool:
        """Whether refused segments still map frames, which are not reported."""
        for number, pages in list(self._unclaimed.items()):
            try:
                mapped = self._space.switched(number, 0, pages)
            except ValueError:  # the view is gone
                mapped = 0
            if not mapped:
                del self._unclaimed[number]
        return bool(self._unclaimed)

    def announce_again(self) -> None:
        """Has all segments be announced to another server."""
        self.refused.clear()
        self._unclaimed.clear()
        self._returning = set(self._announced)
        self._added.extendleft(reversed(self._announced.values()))
        self._announced.clear()

    def discard_freed(self) -> None:
        """Gives the memory of freed segments back to the kernel without a call: the server is gone."""
        for segment in self.leftovers():
            segment.discard()

    def announce_nothing(self) -> None:
        """Forgets new segments: the session is over, and no server will be told."""
        self._hear_of_added()
        self._added.clear()
        self._arena.announced()

    def leftovers(self) -> list[SpaceSegment]:
        """Takes out the freed segments; the caller discards them."""
        self._hear_of_added()
        self._hear_of_dropped()
        freed = [dropping.segment for dropping in self._dropping if not dropping.refusals]
        freed += self._dropped
        self._dropping.clear()
        self._dropped.clear()
        gone = {segment.number for segment in freed}
        for number in gone:
            self._announced.pop(number, None)
        self._added = deque(segment for segment in self._added if segment.number not in gone)
        return freed

    def _hear_of_added(self) -> None:
        self._added.extend(self._arena.added())

    def _hear_of_dropped(self) -> None:
        self._dropped.extend(self._arena.dropped())


def _announcement(session: bytes, segment: SpaceSegment) -> pb.AddSegmentRequest:
    request = pb.AddSegmentRequest(
        session=session,
        segment=segment.number,
        name=segment.name,
        pages=segment.pages,
        address=segment.address,
        inherited=segment.inherited,
    )
    if segment.place == "memfd":
        request.backing = pb.BACKING_MEMFD
        request.pid, request.descriptor = os.getpid(), segment.fd
    return request
