"""What client and server say to each other after the connection is made. No thread, no clock, no waiting.

One `turn` is: announce new segments, send what the journal has, carry out what comes back, drop what is empty.
What holds:

* Events leave in the order of the journal. A call whose answer was lost is made again, the same object with the same
  number, before anything else is said; so the server's books are a replay of the journal, whatever gets lost.
* A segment is announced before the first event that concerns it is sent, and dropped after the last one.
* Nothing that the server says is trusted with content: the native half compares bytes before it switches a page.
* Nothing that the server says makes this client's memory or descriptors grow beyond a bound, and `earned` says what a
  turn brought, so that the session's thread gives it no more time than that is worth (`patience.py`).

Everything runs on the session's thread, but for `Settles.wait`.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pagefold_core import Settles, spare_pages
from pagefold_proto import shm_names
from pagefold_proto.limits import PAGE
from pagefold_proto.obstacle_table import Kind, Obstacle, Obstacles
from pagefold_proto.text import human
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold._errors import IncompatibleServer, OutOfSharedMemory, ServerFault, ServerRefused, SessionLost
from pagefold._process import threads
from pagefold._process.log import log as _log
from pagefold._session.pools import MOST_POOLS, Pools
from pagefold._session.space import ConversationArena, ConversationSpace, SpaceEvents, SpaceSegment
from pagefold._session.transport import (
    ADD_SEGMENT,
    BYE,
    DROP_SEGMENT,
    EXCHANGE,
    HELLO,
    MAX_DETAILS,
    Method,
    Q,
    R,
    Transport,
)

RPC_SECONDS: Final = 3.0
_MOST_OBSTACLES: Final = 64  # that a server may tell of
MAX_EVENTS: Final = 16384
EVENT_BYTES: Final = 36
"""What an event takes in a message, at most: seven varints of up to five bytes, and a share of the headers."""
ADOPT_PAGES: Final = 16384
DROP_AGAIN_SECONDS: Final = 0.5
OBSTACLE_SECONDS: Final = 1.0
DROP_TRIES: Final = 8
LEAST_EVENTS: Final = 1024
"""A server that takes fewer events in a message would have them pile up here."""
MOST_INSTRUCTED: Final = 1 << 15
"""Pages that a reply has merged, and pages that it has adopted, at most: as the server's max_batch_pages."""
MOST_OWED: Final = 1 << 21
"""Answers to instructions that may wait to be sent: twice what a server leaves unanswered (max_outstanding)."""
MOST_TOKEN: Final = 64
EVENT_SECONDS: Final = 1e-6
"""Processor time that it takes to find an event and say it, with some room."""
COME_BACK_SECONDS: Final = 10.0
"""A server that was started anew is worth all the work of coming back to it; one that is so all the time is not."""

_COLUMNS: Final = ("kind", "segment", "first", "count", "pool", "frame", "detail")
_ANSWERS: Final = (pb.EVENT_KIND_DECLINED, pb.EVENT_KIND_NOT_ADOPTED)
"""Events that a server gets as many of as it asks for."""


@dataclass(slots=True)
class _Dropping:
    """A segment that goes when so many events were sent, and not before that time."""

    segment: SpaceSegment
    after_events: int
    not_before: float = 0.0
    refusals: int = 0


class Conversation:
    """See the head of this file.

    Args:
        space: the native space, or a fake.
        arena: the native arena, or a fake.
        transport: to the server.
        pools: those of the space; made if there are none.

    Attributes:
        refused: segments that the server does not take, and why.
        earned: seconds of processor time that the turns since it was set to 0 were worth; infinite: real work was done.
        totals: the domain's, as of the last reply.
        obstacles: what keeps pages from merging, as far as this client knows by itself.
        told: the same as the server knows it, as of the last reply.
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
        self.poll_seconds = 1.0
        self.refused: dict[int, str] = {}
        self.obstacles = Obstacles()
        self.told: list[Obstacle] = []
        self.earned = 0.0
        self._space = space
        self._arena = arena
        self._transport = transport
        self._pools = pools or Pools(space)
        self._greeting = pb.HelloRequest()
        self._greeted = False  # there was a session
        self._pool = ""  # the domain's
        self._heritage: list[int] = []  # segments whose references are the parent's, too, until the server has ours
        self._session = b""  # empty: it has to be opened first
        self._max_events = MAX_EVENTS
        self._sequence = 0
        self._request: pb.ExchangeRequest | None = None
        self._unopened: list[tuple[int, str]] = []  # announced, and not opened yet
        # Events taken out of the journal and not sent yet; how many rows of it the request under way carries.
        self._outbox: deque[Any] = deque()
        self._outbox_sent = 0
        self._drained = self._sent = 0
        self._owed = 0  # events that instructions led to, and that were not sent yet: at most
        self._failed: set[str] = set()  # kinds of failures that were told
        self._came_back = -math.inf
        # Looks that the server has asked for, made, and been told of; how much of the journal the last one left behind.
        self._look_wanted = self._look_made = self._look_told = 0
        self._look_mark = 0
        self._resume_mark = 0  # how much of the journal says what is mapped since before the session
        self._returning: set[int] = set()  # segments that an earlier session has known
        self._unclaimed: dict[int, int] = {}  # pages of refused segments that may map frames, of which nobody is told
        self._known: dict[int, SpaceSegment] = {}  # announced
        self._added: deque[SpaceSegment] = deque()
        self._dropped: deque[SpaceSegment] = deque()
        self._dropping: list[_Dropping] = []
        self._reported: dict[Kind, int] = {}  # obstacles that the server knows of, and their pages
        self._reported_at = 0.0

    def hello(self, request: pb.HelloRequest, timeout: float = RPC_SECONDS) -> None:
        """Opens the session, for the first time."""
        request.slot = self._pools.slot
        self._greeting = request
        self._greet(timeout)

    def _greet(self, timeout: float) -> None:
        reply = self._transport.call(HELLO, self._greeting, timeout)
        if len(reply.session) > MOST_TOKEN:
            raise _excess(f"its session has a token of {len(reply.session)} bytes")
        pool = reply.pool if shm_names.is_name(shm_names.POOL, reply.pool) else ""
        if self._greeted:
            self._come_back(pool)
        self._greeted, self._pool = True, pool
        self._session = reply.session
        events = (reply.max_message_bytes or 1 << 20) // EVENT_BYTES
        self._max_events = max(LEAST_EVENTS, min(MAX_EVENTS, events))
        self.poll_seconds = min(max(reply.poll_millisecs / 1000, 0.01), 60.0)

    def has_work(self) -> bool:
        """Whether a turn would tell the server something new."""
        return bool(
            self._request
            or self._outbox
            or self._added
            or self._dropped
            or self._arena.has_added
            or self._arena.has_dropped
            or any(dropping.not_before <= threads.monotonic() for dropping in self._dropping)
            or not self.settles.is_current
            or self._look_told < self._look_wanted
            or self._space.pending()
            or self._has_obstacles_to_tell()
        )

    def _has_obstacles_to_tell(self) -> bool:
        known = _pages_by_kind(self.known_obstacles())
        if known.keys() != self._reported.keys():
            return True  # their pages are told now and then: programs allocate and free all the time
        return known != self._reported and threads.monotonic() - self._reported_at > OBSTACLE_SECONDS

    @property
    def is_outdated(self) -> bool:
        """Whether the server knows other numbers of obstacles than there are."""
        return bool(self._reported) and _pages_by_kind(self.known_obstacles()) != self._reported

    @property
    def is_pressed(self) -> bool:
        """Whether the program waits for a turn, or will soon."""
        return bool(self._added) or self._arena.has_added or not self.settles.is_current

    @property
    def is_dropping(self) -> bool:
        """Whether segments wait to be dropped."""
        return bool(self._dropping)

    def turn(self, timeout: float = RPC_SECONDS) -> bool:
        """Goes round once. False if it carried no events and brought nothing to do: the client may be silent now.

        Raises:
            ServerUnavailable, ServerFault: make the same turn again, later.
            ServerRefused: the server is done with this client, or answers what no server would.
        """
        if not self._session:
            self._greet(timeout)
        if self._request is None:
            self._request = self._next_request(timeout)
        kinds, looked, sent = self._request.events.kind, self._request.looked, self._request.obstacles
        carried = len(kinds)
        reply = self._transport.call(EXCHANGE, self._request, timeout)
        _check(reply.merges.count, reply.merges.segment, reply.merges.first, reply.merges.pool, reply.merges.frame)
        _check(reply.adopts.count, reply.adopts.segment, reply.adopts.first)
        self.earned += EVENT_SECONDS * sum(kind not in _ANSWERS for kind in kinds)
        self._owed = max(0, self._owed - self._outbox_sent)
        self._sequence = self._request.sequence
        self._request = None
        self._sent += self._outbox_sent
        self._outbox_sent = 0
        if self._heritage and self._sent >= self._resume_mark:
            self._let_parents_go()
        self._look_told = max(self._look_told, looked)
        self._look_wanted = max(self._look_wanted, reply.look)
        self._reported, self._reported_at = _pages_by_kind(sent), threads.monotonic()
        busy = self._carry_out(reply)
        self._drop_segments(timeout)
        return bool(carried) or busy or self._look_told < self._look_wanted

    def bye(self, timeout: float) -> None:
        """Ends the session."""
        if not self._session:
            return
        self._transport.call(BYE, pb.ByeRequest(session=self._session), timeout)

    @property
    def is_deserted(self) -> bool:
        """Whether the server is gone, or another is in its place: there is reason to call, if only to find out."""
        return bool(self._session) and self._pools.is_deserted()

    def lose_session(self) -> None:
        """The server does not know this client: the next turn says Hello again, and how everything is."""
        self._session = b""

    def _come_back(self, pool: str) -> None:
        """Makes everything as it is before the first turn of a session, but that there is memory already.

        Raises:
            OutOfSharedMemory: frames are mapped that the server does not have, and there is no room to leave them.
        """
        self._request = None
        self._outbox.clear()
        self._outbox_sent = self._drained = self._sent = self._sequence = self._owed = 0
        self._unopened.clear()
        last, self._came_back = self._came_back, threads.monotonic()
        if self._came_back - last > COME_BACK_SECONDS:
            self.earned = math.inf
        for segment in self.leftovers():
            segment.discard()  # whoever it was to be dropped from is gone
        if pool != self._pool and not self._pools.has(pool):
            self._leave_pools()
        if not self._pools.keep_only(pool):
            raise OutOfSharedMemory(
                "the server was started anew and has not found the frames that this client's memory is merged with; "
                "the memory works, and merges again when there is room to take it back: free memory, or make /dev/shm "
                "larger (mount -o remount,size=SIZE /dev/shm)"
            )
        self._pools.expect(pool)
        self._space.resume()
        self._resume_mark = self._space.pending()
        self._look_wanted = self._look_made = self._look_told = self._look_mark = 0
        self.settles.renew()
        self.refused.clear()
        self._unclaimed.clear()
        self._returning = set(self._known)
        self._added.extendleft(reversed(self._known.values()))
        self._known.clear()

    def _let_parents_go(self) -> None:
        while self._heritage:
            if (number := self._heritage.pop()) not in self.refused:
                self._space.let_parents_go(number)

    def _leave_pools(self) -> None:
        self._hear_added()
        for segment in (*self._known.values(), *self._added):  # a child may have inherited frames, and not told of it
            self._leave_frames(segment)

    def _leave_frames(self, segment: SpaceSegment) -> None:
        for first in range(0, segment.pages, ADOPT_PAGES):
            run = [[segment.number], [first], [min(ADOPT_PAGES, segment.pages - first)]]
            self._attempt(self._space.adopt, [*run, spare_pages()])

    def _maps_unclaimed(self) -> bool:
        """Whether refused segments map frames still: the server must not take what was told for all that there is."""
        for number, pages in list(self._unclaimed.items()):
            try:
                mapped = self._space.switched(number, 0, pages)
            except ValueError:  # the view is gone
                mapped = 0
            if not mapped:
                del self._unclaimed[number]
        return bool(self._unclaimed)

    def close(self) -> None:
        """Lets go of the pools."""
        self._pools.close()

    def may_inherit(self, parent: Conversation) -> bool:
        """Whether the frames that a parent's client has left here are the server's that this one talks to."""
        return parent._pools.has(self._pool)

    def inherited(self, segment: SpaceSegment) -> None:
        """What is merged of memory that was a parent's is in the journal, before the first turn."""
        self._heritage.append(segment.number)
        self._added.append(segment)
        self._resume_mark = self._space.pending()

    def forget_events(self) -> None:
        """Throws away what nobody will be told: the session is lost."""
        self._outbox.clear()
        self._request = None
        while self._space.pending():
            self._space.drain(MAX_EVENTS)
        self._hear_added()
        self._added.clear()
        self._arena.announced()
        for segment in self.leftovers():
            segment.discard()

    def leftovers(self) -> list[SpaceSegment]:
        """Takes out the segments that were to be dropped; the caller discards them."""
        self._hear_added()
        self._hear_dropped()
        segments = [dropping.segment for dropping in self._dropping if not dropping.refusals]
        segments += self._dropped
        self._dropping.clear()
        self._dropped.clear()
        gone = {segment.number for segment in segments}
        for number in gone:
            self._known.pop(number, None)
        # What was not announced yet never has to be.
        self._added = deque(segment for segment in self._added if segment.number not in gone)
        return segments

    # Inside

    def _hear_added(self) -> None:
        self._added.extend(self._arena.added())

    def _hear_dropped(self) -> None:
        self._dropped.extend(self._arena.dropped())

    def _next_request(self, timeout: float) -> pb.ExchangeRequest:
        number, is_new = self.settles.number()
        if is_new:
            self.earned = math.inf
        self._look()
        gauges = self._gauges()
        self._hear_dropped()
        while self._dropped:
            mark = self._drained + self._space.pending()
            self._dropping.append(_Dropping(self._dropped.popleft(), mark))
        self._fill_outbox()
        self._announce(timeout)
        events = pb.Events()
        if self._outbox:
            chunk = self._outbox.popleft()
            self._outbox_sent = len(chunk.kind)
            for name, column in zip(_COLUMNS, self._without_refused(chunk), strict=True):
                if any(column):
                    getattr(events, name).extend(column)
        return pb.ExchangeRequest(
            session=self._session,
            sequence=self._sequence + 1,
            events=events,
            gauges=gauges,
            settling=number,
            resuming=self._sent + self._outbox_sent < self._resume_mark or self._maps_unclaimed(),
            obstacles=self.known_obstacles(),
            looked=self._look_made if self._sent + self._outbox_sent >= self._look_mark else self._look_told,
        )

    def _look(self) -> None:
        """Finds out what was written: everywhere, if the server has asked for that, else where it is time for it."""
        asked = self._look_made < self._look_wanted
        try:
            self._space.harvest(asked)
        except OSError as error:  # short of memory, say: what was not found is found by a later look
            _log.log(self._loudness("look", logging.WARNING), "looking for written pages: %s", error)
            self.obstacles.put(pb.OBSTACLE_KIND_LOOK, there=True, error=error.errno or 0)
            return
        self.obstacles.put(pb.OBSTACLE_KIND_LOOK, there=False)
        self._see_hindrance()
        if asked:
            self._look_made = self._look_wanted
            self._look_mark = self._drained + self._space.pending()

    def _fill_outbox(self, everything: bool = False) -> None:
        while (everything or not self._outbox) and self._space.pending():
            chunk = self._space.drain(self._max_events)
            self._drained += len(chunk.kind)
            self._outbox.append(chunk)

    def _without_refused(self, chunk: SpaceEvents) -> Iterable[list[int]]:
        columns: list[list[int]] = [getattr(chunk, name) for name in _COLUMNS]
        if not self.refused:
            return columns
        keep = [row for row, segment in enumerate(chunk.segment) if segment not in self.refused]
        return [[column[row] for row in keep] for column in columns]

    def _announce(self, timeout: float) -> None:
        # After the journal was drained: an event's segment was added before the event was made.
        self._hear_added()
        while self._added:
            segment = self._added[0]
            request = pb.AddSegmentRequest(
                session=self._session,
                segment=segment.number,
                name=segment.name,
                pages=segment.pages,
                address=segment.address,
                inherited=segment.inherited,
            )
            if segment.place == "memfd":
                request.backing = pb.BACKING_MEMFD
                request.pid, request.descriptor = os.getpid(), segment.fd
            try:
                self._call(ADD_SEGMENT, request, timeout)
            except ServerRefused as error:
                if isinstance(error, (SessionLost, ServerFault)):
                    raise
                # This memory works and is never merged; the rest is not concerned. What is merged of it already leaves
                # its frames; while some cannot, the server is not told that all was told, and keeps them.
                self.refused[segment.number] = str(error)
                self._unclaimed[segment.number] = segment.pages
                returning = segment.number in self._returning
                if returning:
                    self._leave_frames(segment)
                level = logging.DEBUG if returning else logging.WARNING  # a server could be told it again and again
                _log.log(level, "the server does not take %s: %s", human(segment.pages * PAGE), error)
            if segment.number not in self._returning:
                self.earned = math.inf
            self._known[segment.number] = self._added.popleft()
        self._arena.announced()

    def _drop_segments(self, timeout: float) -> None:
        now = threads.monotonic()
        for dropping in list(self._dropping):
            if dropping.after_events > self._sent or dropping.not_before > now:
                continue
            number = dropping.segment.number
            if number not in self.refused:
                request = pb.DropSegmentRequest(session=self._session, segment=number)
                try:
                    self._call(DROP_SEGMENT, request, timeout)
                except ServerRefused as error:
                    if isinstance(error, (SessionLost, ServerFault)):
                        raise
                    in_use = error.reason == pb.Reason.Name(pb.REASON_SEGMENT_IN_USE)
                    if in_use and dropping.refusals < DROP_TRIES:  # a proposal is on its way: answer it first
                        if not dropping.refusals:
                            self._known.pop(number, None)
                            dropping.segment.discard()  # whatever the server says: nothing here needs it any more
                        dropping.not_before = now + DROP_AGAIN_SECONDS * 2**dropping.refusals
                        dropping.refusals += 1
                        continue
                    _log.warning("the server does not drop a segment: %s", error)
            self.earned = math.inf
            self.refused.pop(number, None)
            self._dropping.remove(dropping)
            if not dropping.refusals:
                self._known.pop(number, None)
                dropping.segment.discard()

    def _carry_out(self, reply: pb.ExchangeReply) -> bool:
        # One that could not be opened (no descriptor left, say) is tried again: the server announces it only once.
        announced = ((pool.pool, pool.name) for pool in reply.pools)
        named = itertools.islice(itertools.chain(self._unopened, announced), MOST_POOLS)
        self._unopened = [pool for pool in named if not self._pools.add(*pool)]
        self.obstacles.put(pb.OBSTACLE_KIND_POOL, bool(self._pools.error), self._pools.error)
        totals = reply.totals  # which the message's other fields would live on with
        self.totals = pb.DomainTotals(
            pages_shared=totals.pages_shared, pages_sharing=totals.pages_sharing, zero_pages=totals.zero_pages
        )
        self.told = [
            Obstacle(kind=each.kind, pages=each.pages, error=each.error, detail=each.detail[:MAX_DETAILS])
            for each in itertools.islice(reply.obstacles, _MOST_OBSTACLES)
        ]
        merges, adopts = reply.merges, reply.adopts
        before = self._drained + self._space.pending()
        if merges.count:
            length = len(merges.count)
            runs = [merges.segment, merges.first, merges.count, merges.pool, merges.frame]
            self._attempt(self._space.merge, [_filled(column, length) for column in runs])
            self._see_hindrance()
        if adopts.count:
            length = len(adopts.count)
            runs = [adopts.segment, adopts.first, adopts.count]
            self._attempt(self._space.adopt, [*(_filled(column, length) for column in runs), spare_pages()])
        self._owed += self._drained + self._space.pending() - before
        if self._owed > MOST_OWED:
            raise _excess(f"{self._owed} answers wait for it, and it goes on asking")
        if reply.HasField("settle_report"):
            report = reply.settle_report
            if self.settles.answer(report.settling, report):
                self.earned = math.inf
        return bool(merges.count or adopts.count or reply.more)

    def _attempt(self, act: Callable[..., int], arguments: list[Any]) -> None:
        try:
            done = act(*arguments)
        except (OSError, ValueError, OverflowError):
            # What was done is in the journal, whatever happened: the books stay right.
            level = self._loudness("attempt", logging.ERROR)
            _log.log(level, "carrying out the server's instructions failed", exc_info=True)
            return
        if done:
            self.earned = math.inf

    def _see_hindrance(self) -> None:
        found = self._space.hindrance()
        self.obstacles.hindered(found[0] if found else None)

    def _loudness(self, what: str, level: int) -> int:
        """Of the first failure of a kind; the others are for those who debug: there may be one each turn, for ever."""
        if what in self._failed:
            return logging.DEBUG
        self._failed.add(what)
        return level

    def unmerged_pages(self) -> int:
        """Pages handed out and not merged; holes included. For any thread."""
        counts = self._space.counts()
        in_use = self._arena.pages_in_use + counts.inherited
        return max(0, int(in_use - counts.merged - counts.zero))

    def known_obstacles(self) -> list[Obstacle]:
        """What this client knows of by itself, with the pages that it concerns. For any thread."""
        refused, counts = list(self.refused.items()), self._space.counts()
        known = self.obstacles.told(self.unmerged_pages()) if self.obstacles.kinds() else []
        for obstacle in known:
            if obstacle.kind == pb.OBSTACLE_KIND_LOOK:
                obstacle.pages += counts.merged + counts.zero  # they may have been written
        if counts.shared and (pages := min(counts.frozen + counts.copied, self.unmerged_pages())):
            known.append(Obstacle(kind=pb.OBSTACLE_KIND_FORKED, pages=pages))
        if refused:
            pages = sum(segment.pages for number, segment in list(self._known.items()) if number in self.refused)
            pages = min(pages, self.unmerged_pages())  # of segments, a part is handed out
            known.append(Obstacle(kind=pb.OBSTACLE_KIND_SEGMENT, pages=pages, detail=refused[0][1]))
        return known

    def _gauges(self) -> pb.Gauges:
        counts, windows = self._space.counts(), self._space.windows()
        in_use = self._arena.pages_in_use + counts.inherited
        apart = counts.merged + counts.zero + counts.copied
        return pb.Gauges(
            owned_pages=max(0, in_use - apart),
            merged_pages=counts.merged,
            zero_pages=counts.zero,
            copied_pages=counts.copied,
            mappings=counts.mappings,
            mapping_budget=min(counts.budget, 0xFFFFFFFF),
            windows=windows.windows,
            window_p99_micros=round(windows.p99_micros),
            window_max_micros=round(windows.max_micros),
            shared_pages=counts.shared,
        )

    def _call(self, method: Method[Q, R], request: Q, timeout: float) -> R:
        return self._transport.call(method, request, timeout)


def _pages_by_kind(obstacles: Iterable[Obstacle]) -> dict[Kind, int]:
    return {obstacle.kind: obstacle.pages for obstacle in obstacles}


def _filled(column: Iterable[int], length: int) -> list[int]:
    """A column of a message as a list; one that is all zero may have been left out."""
    values = list(column)
    return values or [0] * length


def _check(count: Sequence[int], *columns: Sequence[int]) -> None:
    """Whether a batch is one that a server of this version sends.

    Raises:
        IncompatibleServer: it is not.
    """
    if len(count) > MOST_INSTRUCTED or sum(count) > MOST_INSTRUCTED:
        raise _excess(f"{sum(count)} pages in one batch; {MOST_INSTRUCTED} are the most")
    if any(column and len(column) != len(count) for column in columns):
        raise _excess("columns of different lengths in one batch")


def _excess(what: str) -> IncompatibleServer:
    text = f"the server answers what no server of this version does ({what}): install the same version on both sides"
    return IncompatibleServer(pb.Reason.Name(pb.REASON_PROTOCOL_MISMATCH), text)
