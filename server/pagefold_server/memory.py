"""The Memory service: takes requests apart, asks `sessions`, puts replies together. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from pagefold._version import __version__
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_proto.v1 import memory_pb2_grpc

from pagefold_server.engine import Columns, ProtocolViolation
from pagefold_server.errors import answered
from pagefold_server.segment import Holder
from pagefold_server.sessions import Sessions
from pagefold_server.settings import Configuration

MAX_MESSAGE_BYTES = 4 << 20
"""Of a request; larger ones are refused by grpc. Replies stay far below."""

MAX_EVENTS = 1 << 17
"""In one Exchange: several times what a client drains at a time, and what can be booked in a fraction of a second."""

MAX_EVENT_PAGES = 1 << 25
"""In one Exchange, all events together: what they cost is pages, not events. It is 128 GiB, far above what a client
does between two calls."""

_Context = grpc.aio.ServicerContext[Any, Any]


class MemoryServicer(memory_pb2_grpc.MemoryServicer):
    """See memory.proto.

    Args:
        sessions: where everything happens.
        configuration: what clients are told of it at Hello.
        instance: 16 bytes that no other start of a server has.
    """

    def __init__(self, sessions: Sessions, configuration: Configuration, instance: bytes) -> None:
        self._sessions = sessions
        self._configuration = configuration
        self._instance = instance

    @answered
    async def Hello(self, request: pb.HelloRequest, context: _Context) -> pb.HelloReply:  # noqa: N802
        """Opens a session."""
        session = self._sessions.hello(request)
        settings = self._configuration.now
        return pb.HelloReply(
            session=session.token,
            instance=self._instance,
            version=__version__,
            max_batch_pages=settings.max_batch_pages,
            max_message_bytes=MAX_MESSAGE_BYTES,
            poll_millisecs=settings.poll_millisecs,
            pool=session.domain.pool.name,
        )

    @answered
    async def AddSegment(self, request: pb.AddSegmentRequest, context: _Context) -> pb.AddSegmentReply:  # noqa: N802
        """Makes a segment known."""
        holder = Holder(request.pid, request.descriptor) if request.backing == pb.BACKING_MEMFD else None
        self._sessions.add_segment(
            request.session,
            request.segment,
            request.name,
            request.pages,
            request.address,
            holder,
            request.inherited,
        )
        return pb.AddSegmentReply()

    @answered
    async def Exchange(self, request: pb.ExchangeRequest, context: _Context) -> pb.ExchangeReply:  # noqa: N802
        """Events go up, instructions come down."""
        gauges = request.gauges if request.HasField("gauges") else None
        return self._sessions.exchange(
            request.session,
            request.sequence,
            lambda: columns(request.events),
            gauges,
            request.settling,
            request.looked,
            request.resuming,
        )

    @answered
    async def DropSegment(self, request: pb.DropSegmentRequest, context: _Context) -> pb.DropSegmentReply:  # noqa: N802
        """Forgets a segment."""
        self._sessions.drop_segment(request.session, request.segment)
        return pb.DropSegmentReply()

    @answered
    async def Bye(self, request: pb.ByeRequest, context: _Context) -> pb.ByeReply:  # noqa: N802
        """Ends a session."""
        self._sessions.bye(request.session)
        return pb.ByeReply()


def columns(events: pb.Events) -> Columns:
    """The events as the engine wants them: columns that were left out are all zero.

    Raises:
        ProtocolViolation: columns are of unequal length, or too long.
    """
    sent = (events.segment, events.first, events.count, events.pool, events.frame, events.detail)
    kinds: list[int] = list(events.kind)
    length = max(len(kinds), *(len(column) for column in sent))
    if length > MAX_EVENTS:
        raise ProtocolViolation(f"{length} events in one call; {MAX_EVENTS} are the most")
    nothing = bytes(length)  # the cheapest sequence of zeros
    filled: list[Sequence[int]] = [list(column) if column else nothing for column in (kinds, *sent)]
    if any(len(column) != length for column in filled):
        raise ProtocolViolation("the columns of events are not of equal length")
    if sum(filled[3]) > MAX_EVENT_PAGES:
        raise ProtocolViolation(f"events about more than {MAX_EVENT_PAGES} pages in one call")
    return Columns(*filled)
