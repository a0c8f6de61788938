"""A domain: one user's and label's engine, pool and sessions. Pages are only ever merged inside one.

It knows which of its clients answer, what its last pass found, and when the next is due; when it is scanned is
for `pacing` to say. A domain lives as long as one of its sessions; its counts since the start outlive it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields, replace
from functools import partial
from typing import Final, Protocol

import structlog
from pagefold_core import spare_pages
from pagefold_proto import obstacle_table, shm_names
from pagefold_proto.text import printable
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold_server.domains.advisor import Advisor
from pagefold_server.domains.settle import Look, Settlers
from pagefold_server.engine import factory
from pagefold_server.engine.interface import EngineCounters, EngineOptions, Left, PassReport, Step
from pagefold_server.engine.pool_file import Orphan, Orphans
from pagefold_server.errors import LimitReached
from pagefold_server.settings import Settings
from pagefold_server.tenants.fair_queue import Share
from pagefold_server.tenants.tenants import Tenant
from pagefold_server.tenants.throttle import Throttle

_IDLE_FIRST: Final = 1.0  # seconds between passes that find nothing new; doubles
_IDLE_MOST: Final = 16.0
_LOOK_PATIENCE: Final = 1.0  # seconds without any pass, while clients are waited for to look
_LEAST_OUTSTANDING: Final = 16  # pages proposed to a client, however little memory there is
_ROOM_SECONDS: Final = 0.05  # for which a look at the memory that is free holds; it takes half a millisecond
_ANSWER_PAUSE: Final = 0.01  # seconds until the next pass, while all that is missing are answers

_SPEECHLESS: Final = (pb.OBSTACLE_KIND_SILENT, pb.OBSTACLE_KIND_EXCLUDED)

_SINCE_START: Final = (
    "pages_skipped",
    "pages_scanned",
    "full_scans",
    "pages_merged",
    "pages_broken",
    "pages_declined",
)

_log = structlog.get_logger("pagefold.domain")


class Member(Protocol):
    """What a domain wants to know of a session."""

    client: int

    @property
    def tracked(self) -> bool:
        """Whether it reports which pages were written."""

    @property
    def looking(self) -> bool:
        """Whether it was asked to look for written pages, and has not reported yet."""

    @property
    def slot(self) -> int:
        """The byte of the pool that it holds locked while it may map frames; 0: none."""

    @property
    def resumed(self) -> bool:
        """Whether it has reported all that it maps from before."""

    def answers(self, now: float) -> bool:
        """Whether it takes part, and is not silent in spite of having work."""

    @property
    def unmerged_pages(self) -> int:
        """Pages that it has handed out and that are not merged, as it said last."""

    def obstacles(
        self, left: Left, proposed: int, apart: Callable[[], int], idle: bool, now: float
    ) -> list[pb.Obstacle]:
        """What keeps pages of it from merging.

        Args:
            left: its pages that were to be merged, by the books.
            proposed: pages of which the answer is not in.
            apart: counts those of its pages that are known and like no other, or not wanted.
            idle: nothing is queued for it.
            now: the time.
        """

    def is_working(self) -> bool:
        """Whether it was sent instructions, or asked for a look, and has not called since."""

    def ask(self, look: int, now: float) -> None:
        """Has the client look for written pages and report them; until then it is working."""

    def ring(self, now: float) -> None:
        """Rings its doorbell: it calls then, whether it has something to say or not."""

    def ring_if_due(self, now: float) -> None:
        """Rings its doorbell, unless that has just been done."""


class Domain:
    """See the head of this file.

    Args:
        tenant: whose processes are in it.
        label: narrows it further.
        engine: which one.
        options: for it.
        tag: of its pool's name.
        orphan: a pool to take over.

    Attributes:
        past: the pool was taken over, and there may be mappings of its frames that nobody has reported yet.
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
        self.uid = tenant.uid
        self.label = label
        self.pool, self.engine, self.past = factory.make(engine, tenant.uid, options, tag, orphan)
        self._options = options
        self._outstanding = options.max_outstanding  # as the engine was told last
        self.members: dict[int, Member] = {}
        self.settlers = Settlers()
        self.closed = False
        self.unmerging = False
        self.stopped = False  # nobody scans it
        self.stale = False  # somebody has gone, and the others' totals are older than that
        self.fault = ""  # what the engine died of, if it did
        self.due = 0.0  # when to go on scanning
        self.served = 0.0  # when it was scanned last
        self.share = Share()  # its place among the tenant's domains
        self.is_due = False  # and counts as such in `tenant.due`
        self.throttle, self.advisor = Throttle(), Advisor()  # of everyday passes
        self.slice_pages = 64  # in the next sub-slice
        self.full: OSError | None = None  # why the last pass had no room for frames
        self.began = 0.0  # when the pass under way began
        self._mid_pass = False
        self._idle = 0.0
        self._quiet_until = 0.0  # everyday passes that are to find written pages quiet are so far apart
        self._look = 0  # number of the last look that clients were asked for
        self._waiting_since: float | None = None  # for looks, with no pass begun since
        self._speechless: list[tuple[int, pb.Obstacle]] = []
        self._told: frozenset[tuple[int, int]] = frozenset()  # clients and kinds of obstacles
        self._looked = 0  # of the last that was complete when the pass under way began

    def __str__(self) -> str:
        return f"{self.uid}/{printable(self.label)}" if self.label else str(self.uid)

    # Scanning

    @property
    def between_passes(self) -> bool:
        """Whether the next slice begins a pass."""
        return not self._mid_pass

    def next_slice(self, now: float) -> float:
        """When to scan the next slice. A pass for somebody who waits has to wait for what clients find."""
        if self.settlers and not self._mid_pass and not self.unmerging and not self._is_looked(now):
            # But not for long, or looks that are asked for by one settle() after the other would keep the domain from
            # being scanned. Such a pass goes by what is known, and is no answer to a settle().
            return max(self.due, (self._waiting_since or now) + _LOOK_PATIENCE)
        return self.due

    def scan(self, pages: int, pause: float, quiet: float, threads: int = 1) -> Step:
        """Scans one slice, and says by `due` when to go on.

        Args:
            pages: most pages to read.
            pause: seconds between two passes, at least.
            quiet: the same, where clients report which pages they wrote, and did: longer than they take between two
                looks, so that a page that was not reported in between is quiet.
            threads: most threads to read with.
        """
        if not self._mid_pass:
            self.began, self._waiting_since = time.monotonic(), None
            if self._is_looked(self.began):
                self._looked = self._look
        self._bound_frames()
        step = self.engine.scan(pages, threads)
        self.served = time.monotonic()
        self._mid_pass = step.finished is None and not self.unmerging
        if step.finished is not None:
            self._finish_pass(step.finished, pause, quiet)
        return step

    def configure(self, options: EngineOptions) -> None:
        """Tells the engine."""
        self._options, self._outstanding = options, options.max_outstanding
        self.engine.configure(options)

    def _bound_frames(self) -> None:
        """Keeps frames from taking more memory than there is.

        A frame is made before the pages that it replaces are given back. Where memory is short, in a container that
        is full, say, the kernel would end a process for that; so there few are made ahead, and merging makes room.
        """
        spare, most = spare_pages(_ROOM_SECONDS), self._options.max_outstanding
        if spare is not None:
            most = max(min(most, spare // max(1, len(self.members))), min(most, _LEAST_OUTSTANDING))
        if most != self._outstanding:
            self._outstanding = most
            self.engine.configure(replace(self._options, max_outstanding=most))

    def _finish_pass(self, found: PassReport, pause: float, quiet: float) -> None:
        self.full = self.engine.refusal()
        look = self.look()
        if self.settlers:
            self.settlers.passed(found, self.engine.counters(), look, self._looked, self._look)
            self._tell_if_settled()
        if self.settlers:
            if found.fresh or found.volatile or not look.busy:  # else clients have better things to do
                self._ask_all()
        elif found.volatile and any(member.tracked for member in self.members.values()):
            pause = max(pause, quiet)
        if found.proposed or found.fresh or (found.backlog and not look.full):
            self._idle = 0.0
        elif look.busy:
            pause = max(pause, _ANSWER_PAUSE)
        elif not self.settlers:
            most = _IDLE_FIRST if found.waiting else _IDLE_MOST  # they wait for passes to go by, not for ever
            self._idle = min(self._idle * 2, most) or _IDLE_FIRST
        self._tell_obstacles()
        self._quiet_until = self.served + pause
        self.due = self.served + max(pause, self._idle)

    def _ask_all(self) -> None:
        """Has all clients look: what a pass is to say for certain must be known before it begins."""
        self._look += 1
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        for member in self.members.values():
            member.ask(self._look, now)

    def ask_one(self, member: Member) -> int:
        """Has one client look; the number by which it says that it has. For audits."""
        self._look += 1
        member.ask(self._look, time.monotonic())
        return self._look

    def _is_looked(self, now: float) -> bool:
        """Whether all clients that answer have made the last look."""
        return not any(member.looking and member.answers(now) for member in self.members.values())

    def stir(self) -> None:
        """There may be something new to find: no pause longer than the shortest."""
        self._idle = 0.0
        self.due = min(self.due, self._quiet_until)

    def wake(self) -> None:
        """Something has changed: the next pass begins now."""
        self._idle = 0.0
        self.due = 0.0

    def unmerge(self, on: bool) -> None:
        """Gives every merged page back, or goes back to work."""
        if on != self.unmerging:
            self.unmerging = on
            self._mid_pass = False
            self.engine.unmerge(on)
            self.wake()

    def fail(self, error: Exception) -> None:
        """The engine has raised something that it never should: this domain is not scanned any more."""
        self.fault = f"{type(error).__name__}: {error}"
        self.give_up()

    # Clients

    def look(self) -> Look:
        """Who has something to do, who does not answer, and what keeps pages from merging."""
        now = time.monotonic()
        queued = self.engine.queued()
        busy, unanswered = False, 0
        for client, member in self.members.items():
            proposed = self.engine.merged_pages(client)[1]
            if not member.answers(now):
                unanswered += proposed
            elif proposed or client in queued or member.is_working():
                busy = True
        return Look(busy, unanswered, self.full is not None, [obstacle for _, obstacle in self.obstacles()])

    def obstacles(self) -> list[tuple[int, pb.Obstacle]]:
        """What keeps pages from merging, with the number of the client whose they are; 0: of all."""
        found = [(0, obstacle) for obstacle in self._common_obstacles()]
        for client in self.members:
            found += ((client, obstacle) for obstacle in self._obstacles_in(client))
        self._speechless = [(client, obstacle) for client, obstacle in found if obstacle.kind in _SPEECHLESS]
        return found

    def obstacles_of(self, client: int) -> list[pb.Obstacle]:
        """Those that concern one client: its own, and, as of the last pass, the memory of those who do not speak."""
        others = (obstacle for owner, obstacle in self._speechless if owner != client)
        return obstacle_table.summed((*self._common_obstacles(), *self._obstacles_in(client), *others))

    def _obstacles_in(self, client: int) -> list[pb.Obstacle]:
        if self.fault:  # its books answer no more
            return []
        left, proposed = self.engine.left(client), self.engine.merged_pages(client)[1]
        idle = client not in self.engine.queued() if left.copied else True
        apart = partial(self.engine.apart, client)
        return self.members[client].obstacles(left, proposed, apart, idle, time.monotonic())

    def _common_obstacles(self) -> Iterator[pb.Obstacle]:
        for there, kind in (
            (self.stopped, pb.OBSTACLE_KIND_STOPPED),
            (self.unmerging, pb.OBSTACLE_KIND_UNMERGING),
        ):
            if there:
                yield pb.Obstacle(kind=kind, pages=self._unmerged())
        if not (self.closed or self.fault or self.pool.is_named()):
            counters = self.engine.counters()
            yield pb.Obstacle(kind=pb.OBSTACLE_KIND_NAMELESS, pages=counters.pages_shared + counters.pages_sharing)
        if self.fault:
            yield pb.Obstacle(kind=pb.OBSTACLE_KIND_FAULT, pages=max(1, self._unmerged()), detail=self.fault)
        if self.full is not None:
            pages = max(1, 0 if self.fault else self.engine.counters().pages_unplaced)
            yield pb.Obstacle(kind=pb.OBSTACLE_KIND_FULL, pages=pages, error=self.full.errno or 0)

    def _unmerged(self) -> int:
        return sum(member.unmerged_pages for member in self.members.values())

    def _tell_obstacles(self) -> None:
        """Has all clients call when there are others than before: their stats() say what they were told last."""
        kinds = frozenset((client, obstacle.kind) for client, obstacle in self.obstacles())
        if kinds != self._told:
            self._told = kinds
            self.ring_all()

    def ring_all(self) -> None:
        """Has all clients call."""
        self.stale = False
        now = time.monotonic()
        for member in self.members.values():
            member.ring(now)

    def ring(self) -> None:
        """Rings the clients for which something is queued."""
        now = time.monotonic()
        for client in self.engine.queued():
            self.members[client].ring_if_due(now)

    # Those who wait

    def settle(self, key: Hashable, number: int, done: Callable[[pb.SettleReport], None]) -> None:
        """Calls `done` once there is nothing left to merge; see `Settlers.start`."""
        # Pages that were written since their client looked last are merged, or unchanged, by the books.
        self._ask_all()
        self.settlers.start(key, number, self._look, self.engine.counters(), done)
        self.wake()

    def _tell_if_settled(self) -> None:
        """Has all clients call when nobody waits any more: what their stats() say is as old as their last call."""
        if not self.settlers:
            self.ring_all()

    def give_up(self) -> None:
        """Tells all who wait that nobody scans."""
        if self.settlers:
            self.settlers.give_up(self.engine.counters(), self.look())

    def give_up_one(self, key: Hashable) -> None:
        """Tells one who waits how far it has come."""
        self.settlers.give_up_one(key, self.engine.counters(), self.look())

    def bury_past(self) -> None:
        """Looks whether all who may map frames from before have come back, or are gone."""
        if not self.past or self.fault:
            return
        reported = {member.slot for member in self.members.values() if member.resumed}
        if self.pool.is_held_only_by(reported):
            self.past = False
            self.engine.release_unclaimed()
            _log.info("all mappings from before are accounted for", uid=self.uid, label=self.label, pool=self.pool.name)

    def close(self, stopping: bool = False) -> None:
        """Lets the pool go. Views that map its frames keep them.

        Its name goes too, unless somebody may map frames for whom the next server is to find it.

        Args:
            stopping: clients live, and do not know that they have to go.
        """
        if not self.closed:
            self.closed = True
            self.tenant.due -= self.is_due
            self.is_due = False
            self.give_up()
            self.pool.close(unlink=not (self.past or (stopping and self.pool.is_held())))
            self.engine.close()


class Domains:
    """All domains, by user and label.

    Attributes:
        address: of the server, which finds its predecessor's pools by it.
        orphans: these pools, once somebody has looked for them.
    """

    def __init__(self) -> None:
        self.address = ""
        self.orphans = Orphans()
        self._domains: dict[tuple[int, str], Domain] = {}
        self._past = EngineCounters()

    def __iter__(self) -> Iterator[Domain]:
        return iter(list(self._domains.values()))

    def __len__(self) -> int:
        return len(self._domains)

    def find(self, uid: int, label: str) -> Domain | None:
        """The domain of that user and label, if there is one."""
        return self._domains.get((uid, label))

    def of(self, tenant: Tenant) -> list[Domain]:
        """Those of one tenant."""
        return [domain for domain in self._domains.values() if domain.tenant is tenant]

    def get(self, tenant: Tenant, label: str, settings: Settings) -> Domain:
        """The domain of that user and label, made if there is none.

        Raises:
            LimitReached: its pool cannot be made.
        """
        uid = tenant.uid
        domain = self._domains.get((uid, label))
        if domain is None:
            try:
                tag = shm_names.tag_of(self.address, uid, label)
                orphan = self.orphans.find(uid, tag)
                domain = Domain(tenant, label, settings.engine, settings.engine_options, tag, orphan)
            except OSError as error:
                raise LimitReached(f"no frame pool can be made: {error.strerror}") from error
            domain.unmerge(settings.run == 2)
            domain.stopped = settings.run == 0
            self._domains[uid, label] = domain
            _log.info("domain opened", uid=uid, label=label, pool=domain.pool.name)
        return domain

    def drop(self, domain: Domain) -> None:
        """Closes a domain that has no session any more."""
        del self._domains[domain.uid, domain.label]
        last = domain.engine.counters()
        for name in _SINCE_START:
            setattr(self._past, name, getattr(self._past, name) + getattr(last, name))
        domain.close()
        _log.info("domain closed", uid=domain.uid, label=domain.label)

    def counters(self) -> EngineCounters:
        """The books of all, and the counts since the start of those that are gone."""
        total = EngineCounters(**{name: getattr(self._past, name) for name in _SINCE_START})
        for domain in self._domains.values():
            counters = domain.engine.counters()
            for entry in fields(EngineCounters):
                setattr(total, entry.name, getattr(total, entry.name) + getattr(counters, entry.name))
        return total

    def configure(self, settings: Settings) -> None:
        """Tells all factory, and wakes them."""
        for domain in self._domains.values():
            domain.configure(settings.engine_options)
            domain.unmerge(settings.run == 2)
            domain.stopped = settings.run == 0
            if settings.run != 1:
                domain.give_up()
            domain.wake()
            domain.ring_all()

    def close(self) -> None:
        """Lets all pools go: the server is stopping."""
        for domain in self._domains.values():
            domain.close(stopping=True)
