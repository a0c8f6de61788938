"""The Memory service: it takes requests apart, calls `sessions`, and puts replies together. It decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
from pagefold_proto.v1 import memory_pb2 as pb
from pagefold_proto.v1 import memory_pb2_grpc
from pagefold_proto.version import __version__

from pagefold_server.api.turns import Turns
from pagefold_server.engine.interface import Columns
from pagefold_server.errors import ProtocolViolation, ServerError, reports_errors
from pagefold_server.sessions.objects import Holder, Lease
from pagefold_server.sessions.registry import Sessions
from pagefold_server.settings import Configuration
from pagefold_server.tenants.tenants import STRANGERS, Tenants

MAX_MESSAGE_BYTES = 1 << 18
"""Of a request. grpc refuses larger ones unread. Clients are told this number, and cut what they report."""

MAX_EVENTS = 1 << 13
"""In one Exchange: more than clients put into a message of that size. Booking them takes some 4 ms, in
which no other call is served."""

MAX_EVENT_PAGES = 1 << 20
"""In all events of one Exchange together, for their cost is in pages: 4 GiB. Clients cut what they report."""

_Context = grpc.aio.ServicerContext[Any, Any]
_InSession = pb.AddSegmentRequest | pb.ExchangeRequest | pb.DropSegmentRequest | pb.ByeRequest


class MemoryServicer(memory_pb2_grpc.MemoryServicer):
    """See memory.proto.

    Args:
        sessions: that the calls are about.
        tenants: users, whose calls take turns.
        configuration: what clients are told of it at Hello.
        instance: 16 random bytes, different for every start of a server.
    """

    def __init__(self, sessions: Sessions, tenants: Tenants, configuration: Configuration, instance: bytes) -> None:
        self._sessions = sessions
        self._tenants = tenants
        self._turns = Turns(tenants)
        self._configuration = configuration
        self._instance = instance

    @reports_errors
    async def Hello(self, request: pb.HelloRequest, context: _Context) -> pb.HelloReply:  # noqa: N802
        """Opens a session."""
        async with self._hello_turn(request) as lease:
            session = self._sessions.hello(request, lease)
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

    @reports_errors
    async def AddSegment(self, request: pb.AddSegmentRequest, context: _Context) -> pb.AddSegmentReply:  # noqa: N802
        """Makes a segment known."""
        holder = Holder(request.pid, request.descriptor) if request.backing == pb.BACKING_MEMFD else None
        async with self._turn(request):
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

    @reports_errors
    async def Exchange(self, request: pb.ExchangeRequest, context: _Context) -> pb.ExchangeReply:  # noqa: N802
        """Events go up, instructions come down."""
        gauges = request.gauges if request.HasField("gauges") else None
        async with self._turn(request):
            return self._sessions.exchange(
                request.session,
                request.sequence,
                lambda: columns(request.events),
                gauges,
                request.settling,
                request.looked,
                request.resuming,
                request.obstacles,
            )

    @reports_errors
    async def DropSegment(self, request: pb.DropSegmentRequest, context: _Context) -> pb.DropSegmentReply:  # noqa: N802
        """Forgets a segment."""
        async with self._turn(request):
            self._sessions.drop_segment(request.session, request.segment)
        return pb.DropSegmentReply()

    @reports_errors
    async def Bye(self, request: pb.ByeRequest, context: _Context) -> pb.ByeReply:  # noqa: N802
        """Ends a session."""
        async with self._turn(request):
            self._sessions.bye(request.session)
        return pb.ByeReply()

    def _turn(self, request: _InSession) -> AbstractAsyncContextManager[None]:
        return self._turns.turn(self._sessions.tenant_of(request.session), request.ByteSize())

    @asynccontextmanager
    async def _hello_turn(self, request: pb.HelloRequest) -> AsyncIterator[Lease]:
        """The turn of the user that the lease proves. A Hello without proof waits for a turn too, and is refused."""
        try:
            lease = self._sessions.admit(request)
        except ServerError:
            async with self._turns.turn(self._tenants.get(STRANGERS), request.ByteSize()):
                raise
        try:
            async with self._turns.turn(self._tenants.get(lease.uid), request.ByteSize()):
                yield lease
        except BaseException:  # the caller may have hung up while it waited
            lease.close()
            raise


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
