"""One session: what the server knows of a client, and the objects that it holds for it.

    active --violation--> excluded --lease free--> gone
       |                     |
       `-------Bye-----------'--> departed --lease free, or no frame is mapped--> gone

Only an active session is proposed anything. The others keep their references, because their memory does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from pagefold_proto import shm_names
from pagefold_proto.limits import PAGE
from pagefold_proto.text import printable
from pagefold_proto.v1 import memory_pb2 as pb
from typing_extensions import override

from pagefold_server.domains.domain import Domain
from pagefold_server.domains.participant import Participant
from pagefold_server.engine.interface import Left
from pagefold_server.sessions.doorbell import Bell, path_of
from pagefold_server.sessions.objects import Lease, Segment
from pagefold_server.sessions.obstacles import ClientObstacles, found
from pagefold_server.sessions.responsiveness import LookRequest, Responsiveness, Work
from pagefold_server.sessions.touched_pages import TouchedPages
from pagefold_server.settings import Configuration


class State(StrEnum):
    """What a session is; see the head of this file for the ways from one state to the next."""

    ACTIVE = "active"
    EXCLUDED = "excluded"
    DEPARTED = "departed"

    def leads_to(self, other: State) -> bool:
        """Whether a session in this state may go on to that one."""
        return other in _NEXT[self]


_NEXT: Final = {
    State.ACTIVE: (State.EXCLUDED, State.DEPARTED),
    State.EXCLUDED: (State.DEPARTED,),
    State.DEPARTED: (),
}


@dataclass(slots=True)
class SettleRequest:
    """The settle() in which a client waits.

    Attributes:
        number: the client's; 0: it waits in none.
        report: the outcome, once it is over.
    """

    number: int = 0
    report: pb.SettleReport | None = None


@dataclass(slots=True, eq=False)
class Session(Participant):
    """See the head of this file. Times are of the monotonic clock.

    Attributes:
        number: on this server and in the engine, never used again.
        token: by which the client names the session.
        hello: what the client said of itself.
        sequence: of the last Exchange that was carried out; `reply` is what it got.
        resumed: it has reported all that it maps since before the session.
        gauges: its levels, as it says.
        mappings: as many of those that it says it has as it can have; see `Holdings`.
        touched: for audits: sets of pages that it reports something of, or is told to change.
    """

    number: int
    token: bytes
    hello: pb.HelloRequest
    lease: Lease
    bell: Bell
    domain: Domain
    configuration: Configuration
    opened: float
    responsiveness: Responsiveness
    look: LookRequest = field(default_factory=LookRequest)
    settle: SettleRequest = field(default_factory=SettleRequest)
    known_obstacles: ClientObstacles = field(default_factory=ClientObstacles)
    state: State = State.ACTIVE
    segments: dict[int, Segment] = field(default_factory=dict)
    touched: list[TouchedPages] = field(default_factory=list)
    gauges: pb.Gauges = field(default_factory=pb.Gauges)
    mappings: int = 0
    resumed: bool = False
    sequence: int = 0
    reply: pb.ExchangeReply | None = None

    def __str__(self) -> str:
        return f"client {self.number} ({printable(self.hello.program) or '?'}, pid {self.hello.pid})"

    # What the domain asks

    @property
    @override
    def looking(self) -> bool:
        return self.look.is_open

    @property
    @override
    def slot(self) -> int:
        return self.hello.slot

    @property
    @override
    def tracked(self) -> bool:
        return self.hello.tracker == pb.TRACKER_PAGEMAP

    @property
    @override
    def unmerged_pages(self) -> int:
        return self.gauges.owned_pages + self.gauges.copied_pages

    @override
    def answers(self, now: float) -> bool:
        return self.state is State.ACTIVE and not self.is_silent(now)

    @override
    def is_working(self) -> bool:
        return self.responsiveness.work is not Work.NONE or self.looking

    @override
    def ask(self, look: int, now: float) -> None:
        if self.state is State.ACTIVE:
            self.look.ask(look, now)
            self.responsiveness.expect(now)
            self.ring(now)

    @override
    def ring(self, now: float) -> None:
        # A client that broke its doorbell is late, and nothing else.
        self.responsiveness.rung = now
        with contextlib.suppress(OSError):
            self.bell.ring()

    @override
    def ring_if_due(self, now: float) -> None:
        if self.state is State.ACTIVE:
            self.responsiveness.expect(now)
            if self.responsiveness.is_ring_due(now):
                self.ring(now)

    @override
    def obstacles(
        self, left: Left, proposed: int, apart: Callable[[], int], idle: bool, now: float
    ) -> list[pb.Obstacle]:
        if self.state is State.DEPARTED:
            return found({pb.OBSTACLE_KIND_CLOSED: self.unmerged_pages})
        if self.state is State.EXCLUDED:
            return found({pb.OBSTACLE_KIND_EXCLUDED: self.unmerged_pages})
        off, done = self.hello.tier == pb.TIER_OFF, idle and not self.is_working()
        silent = 0
        if self.is_silent(now):
            unread = self.tracked and self.looking  # what it has written is unknown, merged pages included
            silent = max(proposed, self._pages() if unread else 0)
        return self.known_obstacles.collect(
            left, self.gauges, silent, off, done, lambda frozen: self._unread(frozen, apart)
        )

    def is_silent(self, now: float) -> bool:
        """Whether it has had work for longer than it is waited for."""
        return self.responsiveness.is_silent(now, self.configuration.now.silent_seconds, self.look)

    def _unread(self, frozen: int, apart: Callable[[], int]) -> int:
        """Of the pages that a child shares, those of which the books know nothing: not read before the fork."""
        if not self.tracked or not frozen:
            return 0  # the server reads them itself
        present = sum(segment.bytes_allocated() for segment in self.segments.values()) // PAGE
        return max(0, min(frozen, present) - apart())

    def _pages(self) -> int:
        levels = self.gauges
        said = levels.owned_pages + levels.merged_pages + levels.zero_pages + levels.copied_pages
        return said or self.segment_pages

    # What the client does

    def exchange_done(self, now: float, reply: pb.ExchangeReply, reported: bool) -> None:
        """An Exchange was carried out.

        Args:
            now: the time.
            reply: what the client is told, now and if it asks again.
            reported: whether it reported anything.
        """
        # It was told to look, and has neither done so nor reported anything since: as good as silent.
        ignored = self.reply is not None and self.look.made < self.reply.look and not reported
        self.sequence += 1
        self.reply = reply
        unanswered = self.responsiveness.work is Work.MERGES
        self.responsiveness.send(bool(reply.merges.count), bool(reply.adopts.count))
        if not (unanswered or ignored):
            self.responsiveness.waiting = now if self.is_working() or reply.more else None

    def depart(self, state: State) -> None:
        """It takes no further part, and nothing waits for it."""
        assert self.state.leads_to(state), f"a session that is {self.state} cannot be {state}"
        self.state = state
        self.settle.number = 0
        self.responsiveness.waiting = None
        self.reply = None
        self.look.drop()

    @property
    def segment_pages(self) -> int:
        """Pages of its segments together."""
        return sum(segment.pages for segment in self.segments.values())

    def maps_frames(self) -> bool:
        """Whether its memory maps frames, by the books, or may yet do so: copies of frames are mapped too."""
        counts = (self.domain.engine.segment_counts(self.number, number) for number in self.segments)
        return any(count.merged or count.zero or count.copied or count.proposed for count in counts)

    # The end

    def unlink(self) -> None:
        """Removes the names of a family that is proven dead."""
        for segment in self.segments.values():
            segment.unlink()
        self.lease.unlink()
        with contextlib.suppress(OSError):
            os.unlink(path_of(shm_names.doorbell_for(self.lease.name)))

    def close(self) -> None:
        """Lets go of the client's objects."""
        for segment in self.segments.values():
            segment.close()
        self.lease.close()
