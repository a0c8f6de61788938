"""A domain: one user's and label's engine, pool and clients. Pages are only ever merged inside one.

It knows which of its clients answer, what its last pass found, and when the next is due; when it is scanned is
for `pacing` to say. A domain lives as long as one of its sessions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from typing import Final

import structlog
from pagefold_proto.text import printable
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold_server.domains.frame_bound import FrameBound
from pagefold_server.domains.looks import Looks
from pagefold_server.domains.obstacles import Found, Obstacles
from pagefold_server.domains.pace import Pace
from pagefold_server.domains.participant import Participant
from pagefold_server.domains.schedule import Schedule
from pagefold_server.domains.settle import Activity, Settlers
from pagefold_server.engine import factory
from pagefold_server.engine.interface import EngineCounters, EngineOptions, PassReport, Step
from pagefold_server.engine.pool_file import Orphan
from pagefold_server.settings import RunMode
from pagefold_server.tenants.tenants import Tenant

_LONGEST_REST: Final = 16.0  # seconds between passes that find nothing new
_REST_WITH_WAITING: Final = 1.0  # the same, while pages wait for a number of passes to go by
_ANSWER_PAUSE: Final = 0.01  # seconds until the next pass, while all that is missing are answers

_log = structlog.get_logger("pagefold.domain")


class Domain:
    """See the head of this file.

    Args:
        tenant: the user.
        label: narrows it further.
        engine: which one.
        options: for it.
        tag: of its pool's name.
        orphan: a pool to take over.

    Attributes:
        participants: its clients by their numbers.
        settlers: clients and operators that wait until nothing is left to merge.
        mode: what it is for now; set by `change_mode`.
        awaiting_resume: the pool was taken over, and clients may map frames of it that they have not reported yet.
        stale: a client has gone, and the others' totals are older than that.
        fault: what the engine died of; empty: it lives.
        full: why the last pass had no room for frames.
        pace: what `pacing` remembers of it.
        schedule: when it is to be scanned.
        looks: that its clients were asked for.
    """

    def __init__(
        self,
        tenant: Tenant,
        label: str,
        engine: str,
        options: EngineOptions,
        tag: str = "",
        orphan: Orphan | None = None,
    ) -> None:
        self.tenant = tenant
        self.label = label
        self.pool, self.engine, self.awaiting_resume = factory.make(engine, tenant.uid, options, tag, orphan)
        self.participants: dict[int, Participant] = {}
        self.settlers = Settlers()
        self.mode = RunMode.SCANNING
        self.closed = False
        self.stale = False
        self.fault = ""
        self.full: OSError | None = None
        self.pace = Pace()
        self.schedule = Schedule()
        self.looks = Looks(self.participants)
        self._obstacles = Obstacles(self.engine, self.participants)
        self._bound = FrameBound(self.engine, options)

    def __str__(self) -> str:
        return f"{self.uid}/{printable(self.label)}" if self.label else str(self.uid)

    @property
    def uid(self) -> int:
        """Of the user."""
        return self.tenant.uid

    # Scanning

    def next_slice(self, now: float) -> float:
        """When to scan the next slice. A pass for a settle() begins when all clients have looked."""
        schedule = self.schedule
        if (
            self.settlers
            and schedule.between_passes
            and self.mode is not RunMode.UNMERGING
            and not self.looks.are_made(now)
        ):
            return max(schedule.due, self.looks.patience_ends(now))
        return schedule.due

    def scan(self, pages: int, pause: float, quiet: float, threads: int = 1) -> Step:
        """Scans one slice, and says by `schedule` when to go on.

        Args:
            pages: most pages to read.
            pause: seconds between two passes, at least.
            quiet: the same, where clients report which pages they wrote, and did: longer than they take between two
                looks, so that a page that was not reported in between is quiet.
            threads: most threads to read with.
        """
        schedule = self.schedule
        if schedule.between_passes:
            schedule.begin_pass(time.monotonic())
            self.looks.begin_pass(schedule.began)
        self._bound.adapt(len(self.participants))
        step = self.engine.scan(pages, threads)
        schedule.served = time.monotonic()
        if self.mode is RunMode.UNMERGING:
            schedule.drop_pass()
        if step.finished is not None:
            schedule.drop_pass()
            self._finish_pass(step.finished, pause, quiet)
        return step

    def configure(self, options: EngineOptions) -> None:
        """Tells the engine."""
        self._bound.configure(options)

    def _finish_pass(self, found: PassReport, pause: float, quiet: float) -> None:
        self.full = self.engine.refusal()
        activity = self.activity()
        if self.settlers:
            self.settlers.passed(found, self.engine.counters(), activity, self.looks.complete, self.looks.asked)
            self._tell_if_settled()
        if self.settlers:
            if found.fresh or found.volatile or not activity.busy:  # else clients have better things to do
                self.looks.ask_all()
        elif found.volatile and any(each.tracked for each in self.participants.values()):
            pause = max(pause, quiet)
        if found.proposed or found.fresh or (found.backlog and not activity.full):
            self.schedule.end_rest()
        elif activity.busy:
            pause = max(pause, _ANSWER_PAUSE)
        elif not self.settlers:
            self.schedule.rest_longer(_REST_WITH_WAITING if found.waiting else _LONGEST_REST)
        self._tell_obstacles()
        self.schedule.end_pass(pause)

    def change_mode(self, mode: RunMode) -> None:
        """Scans, stands still, or gives every merged page back."""
        before, self.mode = self.mode, mode
        if (before is RunMode.UNMERGING) != (mode is RunMode.UNMERGING):
            self.schedule.drop_pass()
            self.engine.unmerge(mode is RunMode.UNMERGING)
            self.schedule.wake()

    def fail(self, error: Exception) -> None:
        """The engine has raised an error of its own: this domain is not scanned any more."""
        self.fault = f"{type(error).__name__}: {error}"
        self._obstacles.engine_failed = True
        self.give_up()

    def counters(self) -> EngineCounters:
        """The engine's counters; those of an engine that has failed are zero."""
        return EngineCounters() if self.fault else self.engine.counters()

    # Clients

    def activity(self) -> Activity:
        """Which clients have something to do or do not answer, and what keeps pages from merging."""
        now = time.monotonic()
        queued = self.engine.queued()
        busy, unanswered = False, 0
        for client, participant in self.participants.items():
            proposed = self.engine.merged_pages(client)[1]
            if not participant.answers(now):
                unanswered += proposed
            elif proposed or client in queued or participant.is_working():
                busy = True
        return Activity(busy, unanswered, self.full is not None, [obstacle for _, obstacle in self.obstacles()])

    def obstacles(self) -> list[Found]:
        """What keeps pages from merging, each with the number of the client that has them; 0: all clients."""
        return self._obstacles.collect(self._common_obstacles())

    def obstacles_of(self, client: int) -> list[pb.Obstacle]:
        """Those that concern one client."""
        return self._obstacles.concerning(client, self._common_obstacles())

    def _common_obstacles(self) -> Iterator[pb.Obstacle]:
        """Those that concern all clients."""
        if self.mode is RunMode.STOPPED:
            yield pb.Obstacle(kind=pb.OBSTACLE_KIND_STOPPED, pages=self._unmerged())
        if self.mode is RunMode.UNMERGING:
            yield pb.Obstacle(kind=pb.OBSTACLE_KIND_UNMERGING, pages=self._unmerged())
        if not (self.closed or self.fault or self.pool.is_named()):
            counters = self.engine.counters()
            yield pb.Obstacle(kind=pb.OBSTACLE_KIND_NAMELESS, pages=counters.pages_shared + counters.pages_sharing)
        if self.fault:
            yield pb.Obstacle(kind=pb.OBSTACLE_KIND_FAULT, pages=max(1, self._unmerged()), detail=self.fault)
        if self.full is not None:
            pages = max(1, 0 if self.fault else self.engine.counters().pages_unplaced)
            yield pb.Obstacle(kind=pb.OBSTACLE_KIND_FULL, pages=pages, error=self.full.errno or 0)

    def _unmerged(self) -> int:
        return sum(participant.unmerged_pages for participant in self.participants.values())

    def _tell_obstacles(self) -> None:
        """Has all clients call if the obstacles have changed: their stats() say what they were told last."""
        if self._obstacles.are_news(self.obstacles()):
            self.ring_all()

    def ring_all(self) -> None:
        """Has all clients call."""
        self.stale = False
        now = time.monotonic()
        for participant in self.participants.values():
            participant.ring(now)

    def ring(self) -> None:
        """Rings the clients for which something is queued."""
        if self.fault:
            return
        now = time.monotonic()
        for client in self.engine.queued():
            self.participants[client].ring_if_due(now)

    # Waiting for settle()

    def settle(self, key: Hashable, number: int, done: Callable[[pb.SettleReport], None]) -> None:
        """Calls `done` once there is nothing left to merge; see `Settlers.start`."""
        # Pages that were written since their client looked last are merged, or unchanged, by the books.
        self.looks.ask_all()
        self.settlers.start(key, number, self.looks.asked, self.engine.counters(), done)
        self.schedule.wake()

    def _tell_if_settled(self) -> None:
        """Has all clients call if none waits any more: what their stats() say is as old as their last call."""
        if not self.settlers:
            self.ring_all()

    def give_up(self) -> None:
        """Tells all that wait that the domain is not scanned."""
        if self.settlers:
            self.settlers.give_up(*self._standing())

    def give_up_one(self, key: Hashable) -> None:
        """Tells one that waits how far the domain has come."""
        self.settlers.give_up_one(key, *self._standing())

    def _standing(self) -> tuple[EngineCounters, Activity]:
        """How far the domain has come. An engine that has failed cannot say it."""
        if self.fault:
            return self.counters(), Activity(False, 0, False, [obstacle for _, obstacle in self.obstacles()])
        return self.counters(), self.activity()

    # The end

    def release_unclaimed(self) -> None:
        """Releases the recovered frames that no client maps, once all that may map them have resumed, or are gone."""
        if not self.awaiting_resume or self.fault:
            return
        reported = {participant.slot for participant in self.participants.values() if participant.resumed}
        if self.pool.is_held_only_by(reported):
            self.awaiting_resume = False
            self.engine.release_unclaimed()
            _log.info("all mappings from before are accounted for", uid=self.uid, label=self.label, pool=self.pool.name)

    def close(self, stopping: bool = False) -> None:
        """Lets the pool go. Views that map its frames keep them.

        Its name goes too, unless the next server is to find it for clients that may map frames of it.

        Args:
            stopping: the server ends, and its clients live.
        """
        if not self.closed:
            self.closed = True
            self.tenant.due -= self.pace.is_due
            self.pace.is_due = False
            self.give_up()
            self.pool.close(unlink=not (self.awaiting_resume or (stopping and self.pool.is_held())))
            self.engine.close()
