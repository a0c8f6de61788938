"""What a client and its server say to each other once they are connected. No thread, no clock, no waiting.

A `turn` announces new segments (`segments.py`), sends the journal's events (`outbox.py`), carries out the reply
(`instructions.py`), and drops freed segments. What holds:

* Events leave in the order of the journal. If the answer to a call is lost, the client repeats the call, the same
  object with the same number, before any other. So the server's books are a replay of the journal.
* A segment is announced before its first event is sent, and dropped after its last one.
* `earned` says what a turn brought. The session's thread gives a server no more time than that is worth.
* To a server that does not know it, the client says Hello again, and reports all state (`returning.py`).

Everything runs on the session's thread, except what says otherwise.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

from pagefold_core import Settles
from pagefold_proto import shm_names
from pagefold_proto.obstacle_table import Obstacle, Obstacles
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold._session.channel import MAX_DETAILS
from pagefold._session.instructions import Instructions, check, excess
from pagefold._session.outbox import Outbox
from pagefold._session.patience import Earned
from pagefold._session.pools import Pools
from pagefold._session.returning import Returning
from pagefold._session.segments import Segments
from pagefold._session.self_report import SelfReport
from pagefold._session.space import ConversationArena, ConversationSpace, SpaceSegment
from pagefold._session.transport import BYE, EXCHANGE, HELLO, Transport

RPC_SECONDS: Final = 3.0
MOST_TOKEN: Final = 64
_MOST_OBSTACLES: Final = 64
"""Most obstacles of a reply that are kept."""
_ANSWERS: Final = (pb.EVENT_KIND_DECLINED, pb.EVENT_KIND_NOT_ADOPTED)
"""Events that answer instructions. A server can ask for any number of them, so they earn it nothing."""


@dataclass(slots=True)
class _LookRequest:
    """Looks for written pages, by the server's numbers.

    Attributes:
        asked: the last one that the server asked for.
        made: the last one that was made.
        told: the last one that the server knows to be made.
        position: in the outbox, of the end of what the one that was made last has found.
    """

    asked: int = 0
    made: int = 0
    told: int = 0
    position: int = 0


class Conversation:
    """One client's conversation with its server.

    Args:
        space: the native space, or a fake.
        arena: the native arena, or a fake.
        transport: to the server.
        pools: the pools of the space; default: new ones.

    Attributes:
        settles: the callers that wait in settle(). For any thread.
        segments: what the server knows of this client's memory.
        report: what this client tells of itself. For any thread.
        obstacles: obstacles that this client has met, for `report`.
        server_obstacles: obstacles that the server knows, as of its last reply.
        totals: counts of the domain, as of the server's last reply.
        earned: what the turns since its last reset were worth.
        poll_seconds: time between two looks for copied pages, as the server wants it.
    """

    def __init__(
        self,
        space: ConversationSpace,
        arena: ConversationArena,
        transport: Transport,
        pools: Pools | None = None,
    ) -> None:
        self.settles = Settles()
        self.totals = pb.DomainTotals()
        self.server_obstacles: list[Obstacle] = []
        self.obstacles = Obstacles()
        self.earned = Earned()
        self.poll_seconds = 1.0
        self._transport = transport
        self._pools = pools or Pools(space)
        self._outbox = Outbox(space)
        self._instructions = Instructions(space, self._outbox, self.obstacles, self.earned)
        self.segments = Segments(space, arena, transport, self._outbox, self._instructions, self.earned)
        self.report = SelfReport(space, arena, self.segments, self.obstacles)
        self._returning = Returning(space, self._pools, self.segments, self._instructions, self._outbox, self.earned)
        self._greeting: pb.HelloRequest | None = None  # that opened the first session
        self._session = b""  # empty: it has to be opened first
        self._sequence = 0
        self._request: pb.ExchangeRequest | None = None  # under way, and to be made again if its answer gets lost
        self._look = _LookRequest()

    def hello(self, request: pb.HelloRequest, timeout: float = RPC_SECONDS) -> None:
        """Opens the session, for the first time."""
        request.slot = self._pools.slot
        reply, pool = self._greet(request, timeout)
        self._greeting = request
        self._returning.arrive(pool)
        self._begin(reply)

    def _hello_again(self, timeout: float) -> None:
        assert self._greeting is not None, "hello comes first"
        reply, pool = self._greet(self._greeting, timeout)
        self._request = None
        self._sequence = 0
        self._outbox.start_anew()
        self._instructions.owe_nothing()
        self._pools.forget_unopened()
        self._returning.come_back(pool)
        self._look = _LookRequest()
        self.settles.renew()
        self._begin(reply)

    def _greet(self, request: pb.HelloRequest, timeout: float) -> tuple[pb.HelloReply, str]:
        reply = self._transport.call(HELLO, request, timeout)
        if len(reply.session) > MOST_TOKEN:
            raise excess(f"its session has a token of {len(reply.session)} bytes")
        return reply, reply.pool if shm_names.is_name(shm_names.POOL, reply.pool) else ""

    def _begin(self, reply: pb.HelloReply) -> None:
        self._session = reply.session
        self._outbox.limit(reply.max_message_bytes)
        self.poll_seconds = min(max(reply.poll_millisecs / 1000, 0.01), 60.0)

    def has_work(self) -> bool:
        """Whether a turn would tell the server something new."""
        return bool(
            self._request
            or self._outbox
            or self.segments.are_waiting
            or not self.settles.is_current
            or self._look.told < self._look.asked
            or self.report.is_news
        )

    @property
    def is_pressed(self) -> bool:
        """Whether the program waits for a turn, or will soon."""
        return self.segments.are_to_be_announced or not self.settles.is_current

    @property
    def is_deserted(self) -> bool:
        """Whether the server is gone, or another one is in its place: a call finds out."""
        return bool(self._session) and self._pools.is_deserted()

    def turn(self, timeout: float = RPC_SECONDS) -> bool:
        """Exchanges one message with the server. False if it carried no events and brought no work.

        Raises:
            ServerUnavailable, ServerFault: make the same turn again, later.
            ServerRefused: the server is done with this client, or its answer is none that a server gives.
        """
        if not self._session:
            self._hello_again(timeout)
        if self._request is None:
            self._request = self._next_request(timeout)
        request = self._request
        reply = self._transport.call(EXCHANGE, request, timeout)
        check(reply)
        kinds = request.events.kind
        self.earned.count_events(sum(kind not in _ANSWERS for kind in kinds))
        self._sequence = request.sequence
        self._request = None
        self._instructions.answers_sent(self._outbox.mark_answered())
        self._returning.release_parents()
        self._look.told = max(self._look.told, request.looked)
        self._look.asked = max(self._look.asked, reply.look)
        self.report.reported(request.obstacles)
        busy = self._hear(reply)
        self.segments.drop(self._session, timeout)
        return bool(kinds) or busy or self._look.told < self._look.asked

    def bye(self, timeout: float) -> None:
        """Ends the session."""
        if self._session:
            self._transport.call(BYE, pb.ByeRequest(session=self._session), timeout)

    def lose_session(self) -> None:
        """Has the next turn say Hello again and report all state: the server does not know this client."""
        self._session = b""

    def forget_events(self) -> None:
        """Discards what would be reported: the session is over for good."""
        self._request = None
        self._outbox.discard()
        self.segments.announce_nothing()
        self.segments.discard_freed()

    def close(self) -> None:
        """Closes the pools."""
        self._pools.close()

    def may_inherit(self, parent: Conversation) -> bool:
        """Whether frames of a parent's client, inherited by this process, are of this server's pool."""
        return self._returning.may_inherit(parent._returning)

    def inherit_segment(self, segment: SpaceSegment) -> None:
        """Takes a segment of a parent's client, before the first turn."""
        self._returning.inherit_segment(segment)

    def _next_request(self, timeout: float) -> pb.ExchangeRequest:
        settling, is_new = self.settles.number()
        if is_new:
            self.earned.real_work()
        self._look_for_written()
        gauges = self.report.gauges()
        self.segments.drop_freed()
        self._outbox.fill_message()
        self.segments.announce(self._session, timeout)
        events = self._outbox.take_events(self.segments.refused)
        position = self._outbox.sent_then
        return pb.ExchangeRequest(
            session=self._session,
            sequence=self._sequence + 1,
            events=events,
            gauges=gauges,
            settling=settling,
            resuming=not self._returning.is_complete(position),
            obstacles=self.report.obstacles(),
            looked=self._look.made if position >= self._look.position else self._look.told,
        )

    def _look_for_written(self) -> None:
        asked = self._look.made < self._look.asked
        if self._instructions.look_for_writes(everything=asked) and asked:
            self._look.made = self._look.asked
            self._look.position = self._outbox.end()

    def _hear(self, reply: pb.ExchangeReply) -> bool:
        """Carries out a reply. False if it held no work."""
        self._pools.open_announced((pool.pool, pool.name) for pool in reply.pools)
        self.obstacles.put(pb.OBSTACLE_KIND_POOL, bool(self._pools.error), self._pools.error)
        totals = reply.totals  # a copy of its own: it would keep the whole message alive
        self.totals = pb.DomainTotals(
            pages_shared=totals.pages_shared, pages_sharing=totals.pages_sharing, zero_pages=totals.zero_pages
        )
        self.server_obstacles = [
            Obstacle(kind=each.kind, pages=each.pages, error=each.error, detail=each.detail[:MAX_DETAILS])
            for each in itertools.islice(reply.obstacles, _MOST_OBSTACLES)
        ]
        busy = self._instructions.carry_out(reply)
        if reply.HasField("settle_report"):
            report = reply.settle_report
            if self.settles.answer(report.settling, report):
                self.earned.real_work()
        return busy or reply.more
