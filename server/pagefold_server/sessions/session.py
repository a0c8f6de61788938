"""One session: what the server knows of a client, and the objects that it holds for it.

    active --violation--> excluded --lease free--> gone
       `-------Bye------> departed --lease free, or no frame is mapped--> gone

Only an active session is proposed anything. The others keep their references, because their memory does.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pagefold_proto import obstacle_table, shm_names
from pagefold_proto.limits import PAGE
from pagefold_proto.text import printable
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold_server.domains.domain import Domain
from pagefold_server.engine.interface import Left
from pagefold_server.sessions.doorbell import Bell, path_of
from pagefold_server.sessions.objects import Lease, Segment
from pagefold_server.sessions.watch import Watch
from pagefold_server.settings import Configuration

_LOOKING: Final = 3  # times `silent_seconds` that a look may take, for a client that has much to report before
_MOST_ERRNO: Final = 4095
_COST: Final = 2  # mappings that an isolated page takes, at most
_RING_AGAIN: Final = 1.0  # seconds without a call after which a client is rung once more


@dataclass(slots=True, eq=False)
class Session:
    """See the head of this file. Times are of the monotonic clock.

    Attributes:
        client: number on this server and in the engine, never used again.
        token: by which the client names the session.
        hello: what the client said of itself.
        sequence: of the last Exchange that was carried out; `reply` is what it got.
        heard: when the client called last.
        working: instructions were sent, and it has not called since.
        wanted: the last look that it was asked for; `looked` is the last that it has made; `looking_since` says when it
            was asked, or has made one, while there is another to make.
        owing: merges were among them, and no answer has come.
        waiting: since when it has work, queued or sent; None: it has none.
        rung: when it was rung last since its last Exchange.
        resumed: it has reported all that it maps since before the session.
        inherited: those of them that are behind memory of its parent's.
        addresses: where it maps its segments, as it says; 0: unknown. For audits.
        mappings: as many of those that it says it has as it can have; see `Tenant`.
        watches: of audits that want to know which pages it reports something of, or is told to change.
        told: what keeps its pages from merging, as it knows by itself; `refusal`: why a segment was refused last.
        stuck: the errno for which pages were not taken back last.
        settling: number of the settle() that it waits in, 0 for none; `report` is there when that is over.
    """

    client: int
    token: bytes
    hello: pb.HelloRequest
    lease: Lease
    bell: Bell
    domain: Domain
    configuration: Configuration
    opened: float
    heard: float
    state: Literal["active", "excluded", "departed"] = "active"
    segments: dict[int, Segment] = field(default_factory=dict)
    addresses: dict[int, int] = field(default_factory=dict)
    inherited: set[int] = field(default_factory=set)
    watches: list[Watch] = field(default_factory=list)
    gauges: pb.Gauges = field(default_factory=pb.Gauges)
    mappings: int = 0
    announced: bool = False
    used: bool = False
    resumed: bool = False
    sequence: int = 0
    reply: pb.ExchangeReply | None = None
    working: bool = False
    wanted: int = 0
    looked: int = 0
    looking_since: float = 0.0
    owing: bool = False
    waiting: float | None = None
    rung: float | None = None
    told: list[pb.Obstacle] = field(default_factory=list)
    refusal: str = ""
    stuck: int = 0
    settling: int = 0
    report: pb.SettleReport | None = None

    def __str__(self) -> str:
        return f"client {self.client} ({printable(self.hello.program) or '?'}, pid {self.hello.pid})"

    def is_silent(self, now: float) -> bool:
        """Whether it has had work for so long that nobody waits for it any more."""
        patience = self.configuration.now.silent_seconds
        if self.looking and now - self.looking_since > _LOOKING * patience:
            return True  # it calls, and reports, and never looks
        return self.waiting is not None and now - self.waiting > patience

    def answers(self, now: float) -> bool:
        """See `Member`."""
        return self.state == "active" and not self.is_silent(now)

    def is_working(self) -> bool:
        """See `Member`."""
        return self.working or self.looking

    @property
    def looking(self) -> bool:
        """See `Member`."""
        return self.looked < self.wanted

    @property
    def slot(self) -> int:
        """See `Member`."""
        return self.hello.slot

    @property
    def tracked(self) -> bool:
        """See `Member`."""
        return self.hello.tracker == pb.TRACKER_PAGEMAP

    @property
    def unmerged_pages(self) -> int:
        """See `Member`."""
        return self.gauges.owned_pages + self.gauges.copied_pages

    def obstacles(
        self, left: Left, proposed: int, apart: Callable[[], int], idle: bool, now: float
    ) -> list[pb.Obstacle]:
        """See `Member`."""
        if self.state == "departed":
            return _found({pb.OBSTACLE_KIND_CLOSED: self.unmerged_pages})
        if self.state == "excluded":
            return _found({pb.OBSTACLE_KIND_EXCLUDED: self.unmerged_pages})
        pages: Counter[obstacle_table.Kind] = Counter()
        if self.is_silent(now):
            unread = self.tracked and self.looking  # nobody knows what it has written, merged pages included
            pages[pb.OBSTACLE_KIND_SILENT] = max(proposed, self._pages() if unread else 0)
        short = self.gauges.mapping_budget - self.gauges.mappings < _COST
        pages[pb.OBSTACLE_KIND_BUDGET if short else pb.OBSTACLE_KIND_MAPPINGS] = left.over_budget
        pages[pb.OBSTACLE_KIND_PINNED] = left.pinned
        stuck = left.copied if idle and not self.is_working() else 0
        forked = left.forked + (stuck if self.gauges.shared_pages else 0)
        told = [pb.Obstacle(kind=each.kind, pages=each.pages, error=each.error) for each in self.told]
        if stuck and not self.gauges.shared_pages:
            told.append(pb.Obstacle(kind=pb.OBSTACLE_KIND_STUCK, pages=stuck, error=min(self.stuck, _MOST_ERRNO)))
        if self.hello.tier == pb.TIER_OFF and not told:
            told.append(pb.Obstacle(kind=pb.OBSTACLE_KIND_BARRIER, pages=self.unmerged_pages))
        for obstacle in told:
            if obstacle.kind == pb.OBSTACLE_KIND_SEGMENT:
                obstacle.detail = self.refusal
            elif obstacle.kind == pb.OBSTACLE_KIND_FORKED:
                obstacle.pages, forked = max(self._unread(obstacle.pages, apart), forked), 0
        pages[pb.OBSTACLE_KIND_FORKED] = forked
        if not {obstacle.kind for obstacle in told} & obstacle_table.CAUSES:  # else these are why
            pages[pb.OBSTACLE_KIND_FAILED] = left.failed
            pages[pb.OBSTACLE_KIND_REFUSED] = left.refused
        return told + _found(pages)

    def _unread(self, frozen: int, apart: Callable[[], int]) -> int:
        """Of the pages that a child shares, those of which the books know nothing: not read before the fork."""
        if not self.tracked or not frozen:
            return 0  # the server reads them itself
        present = sum(segment.bytes_allocated() for segment in self.segments.values()) // PAGE
        return max(0, min(frozen, present) - apart())

    def _pages(self) -> int:
        levels = self.gauges
        said = levels.owned_pages + levels.merged_pages + levels.zero_pages + levels.copied_pages
        return said or sum(segment.pages for segment in self.segments.values())

    def ask(self, look: int, now: float) -> None:
        """See `Member`."""
        if self.state == "active":
            if not self.looking:
                self.looking_since = now
            self.wanted = look
            if self.waiting is None:
                self.waiting = now
            self.ring(now)

    def ring_if_due(self, now: float) -> None:
        """See `Member`. A client at work calls by itself when it is done."""
        if self.state != "active":
            return
        if self.waiting is None:
            self.waiting = now
        last = self.heard if self.working else self.rung
        if last is None or now - last >= _RING_AGAIN:
            self.ring(now)

    def ring(self, now: float) -> None:
        """Wakes the client. One that broke its doorbell is late, and nothing else."""
        self.rung = now
        with contextlib.suppress(OSError):
            self.bell.ring()

    def called(self, now: float) -> None:
        """The client has called."""
        self.heard = now
        self.used = True

    def has_looked(self, look: int, now: float) -> None:
        """It says that it has made a look."""
        if look > self.looked:
            self.looked, self.looking_since = min(look, self.wanted), now

    def answered(self, now: float, reply: pb.ExchangeReply, news: bool, reported: bool) -> None:
        """An Exchange was carried out.

        Args:
            now: the time.
            reply: what the client is told, now and if it asks again.
            news: whether it answered a proposal. Every merge is answered, so a client that was sent some, and calls
                without an answer, is as good as silent.
            reported: whether it reported anything.
        """
        # It was told to look, and has neither done so nor reported anything since: as good as silent, too.
        ignored = self.reply is not None and self.looked < self.reply.look and not reported
        self.sequence += 1
        self.reply = reply
        self.announced = True
        self.rung = None
        if self.owing and not news:
            return
        self.owing = bool(reply.merges.count)
        self.working = self.owing or bool(reply.adopts.count)
        if not ignored:
            self.waiting = now if self.is_working() or reply.more else None

    def maps_frames(self) -> bool:
        """Whether its memory maps frames, by the books, or may yet do so: copies of frames are mapped too."""
        counts = (self.domain.engine.segment_counts(self.client, number) for number in self.segments)
        return any(count.merged or count.zero or count.copied or count.proposed for count in counts)

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


def _found(pages: Mapping[obstacle_table.Kind, int]) -> list[pb.Obstacle]:
    return [pb.Obstacle(kind=kind, pages=count) for kind, count in pages.items() if count]
