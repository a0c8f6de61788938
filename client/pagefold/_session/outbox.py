"""Events of the native journal on their way to the server: in the journal's order, a message at a time.

An event is drained from the journal, sent with a request, and done with when the request was answered. Positions count
events since the session began, so "the server has everything up to here" is a comparison of two numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Final

from pagefold_proto.v1 import memory_pb2 as pb

from pagefold._session.space import ConversationSpace, SpaceEvents

MAX_EVENTS: Final = 16384
EVENT_BYTES: Final = 36
"""Most bytes that an event takes in a message: seven varints of up to five bytes, and a share of the headers."""
LEAST_EVENTS: Final = 1024
"""A server that takes fewer events in a message would have them pile up here."""
COLUMNS: Final = ("kind", "segment", "first", "count", "pool", "frame", "detail")


class Outbox:
    """The unsent events of one session. Its truth value says whether there are any.

    Args:
        space: holds the journal.

    Attributes:
        sent: position up to which the server has the events.
    """

    def __init__(self, space: ConversationSpace) -> None:
        self.sent = 0
        self._space = space
        self._most = MAX_EVENTS
        self._drained = 0
        self._chunks: deque[SpaceEvents] = deque()
        self._under_way = 0  # rows of the journal that the present request carries, refused segments' included

    def __bool__(self) -> bool:
        return bool(self._chunks) or self._space.pending() > 0

    def limit(self, max_message_bytes: int) -> None:
        """Fits messages to what the server takes; 0 bytes: a MiB."""
        self._most = max(LEAST_EVENTS, min(MAX_EVENTS, (max_message_bytes or 1 << 20) // EVENT_BYTES))

    def end(self) -> int:
        """Position after the last event that there is."""
        return self._drained + self._space.pending()

    @property
    def sent_then(self) -> int:
        """Position up to which the server has the events once the present request is answered."""
        return self.sent + self._under_way

    def fill_message(self) -> None:
        """Drains the next message's events from the journal, unless some are drained already."""
        if not self._chunks and self._space.pending():
            chunk = self._space.drain(self._most)
            self._drained += len(chunk.kind)
            self._chunks.append(chunk)

    def take_events(self, refused: Collection[int]) -> pb.Events:
        """The events of the next request, without those of segments that the server does not know."""
        events = pb.Events()
        if self._chunks:
            chunk = self._chunks.popleft()
            self._under_way = len(chunk.kind)
            keep = [row for row, segment in enumerate(chunk.segment) if segment not in refused] if refused else None
            for name in COLUMNS:
                column: list[int] = getattr(chunk, name)
                if any(column):
                    getattr(events, name).extend(column if keep is None else [column[row] for row in keep])
        return events

    def mark_answered(self) -> int:
        """The present request was answered. Returns how many rows of the journal it carried."""
        rows, self._under_way = self._under_way, 0
        self.sent += rows
        return rows

    def start_anew(self) -> None:
        """Forgets drained events and counts from 0: for a new session."""
        self._chunks.clear()
        self._under_way = self._drained = self.sent = 0

    def discard(self) -> None:
        """Throws away all events, the journal's too: no server will be told."""
        self._chunks.clear()
        while self._space.pending():
            self._space.drain(MAX_EVENTS)
