"""Tenants: users, as the kernel knows them, each with all its domains: what they hold, and their part of the processor.

A label is a client's own choice, so fairness goes by uid: a user with a thousand labels gets no more than a user with
one. Domains of one tenant are fair to each other in the same way.

    what is wanted      calls that wait (`turns`), domains that are due (`pacing`)
    what is charged     scanning, and the calls' own work; both on one clock
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from pagefold_server.tenants.fair_queue import FairQueue, Share
from pagefold_server.tenants.throttle import Throttle

STRANGERS: Final = -1
"""The tenant of calls that no user can be charged for: those without a session's token, or without a lease."""

_LATELY: Final = 0.1  # seconds: as long as clients take to carry out a batch
_MANY: Final = 1024  # tenants, above which those that hold nothing are forgotten


@dataclass(slots=True)
class Holdings:
    """What a tenant holds; counted when it comes and goes.

    Attributes:
        sessions: that it has.
        segments: of these.
        pages: of the segments together.
        mappings: into which its clients' memory is cut, as they say, as far as they can have them.
    """

    sessions: int = 0
    segments: int = 0
    pages: int = 0
    mappings: int = 0


@dataclass(slots=True, eq=False)
class Tenant:
    """One user.

    Attributes:
        uid: as the kernel reports it; or `STRANGERS`.
        share: its place among all.
        domains: the queue of its domains.
        throttle: keeps its own ceiling, if it has one.
        turn: has its calls carried out in the order in which they came, if they have to wait.
        waiting: calls that wait for their turn.
        due: domains that are to be scanned now.
        wanted_at: when it stopped wanting something.
        scanned: seconds of processor time for scanning.
        answered: the same, for calls.
        delayed: calls that had to wait, because other tenants had had less of the processor.
        holdings: what it holds, for quotas.
    """

    uid: int
    share: Share = field(default_factory=Share)
    domains: FairQueue = field(default_factory=FairQueue)
    throttle: Throttle = field(default_factory=Throttle)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    due: int = 0
    wanted_at: float = -math.inf
    scanned: float = 0.0
    answered: float = 0.0
    delayed: int = 0
    holdings: Holdings = field(default_factory=Holdings)

    @property
    def holds_nothing(self) -> bool:
        """Whether it can be forgotten."""
        return not (self.holdings.sessions or self.waiting or self.turn.locked())


class Tenants:
    """All tenants, by uid."""

    def __init__(self) -> None:
        self._tenants: dict[int, Tenant] = {}
        self._queue = FairQueue()

    def __iter__(self) -> Iterator[Tenant]:
        return iter(list(self._tenants.values()))

    def get(self, uid: int) -> Tenant:
        """The tenant of that uid, made if there is none."""
        tenant = self._tenants.get(uid)
        if tenant is None:
            if len(self._tenants) >= _MANY:
                self._tenants = {uid: one for uid, one in self._tenants.items() if not one.holds_nothing}
            tenant = self._tenants[uid] = Tenant(uid)
        return tenant

    def note(self, tenant: Tenant) -> None:
        """What it wants has changed."""
        if tenant.waiting or tenant.due:
            self._queue.want(tenant.share)
        elif tenant.share.wants:
            self._queue.rest(tenant.share)
            tenant.wanted_at = time.monotonic()

    def charge_scan(self, tenant: Tenant, domain: Share, cpu: float) -> None:
        """A domain of the tenant was scanned for `cpu` seconds of processor time."""
        self._queue.charge(tenant.share, cpu)
        tenant.domains.charge(domain, cpu)
        tenant.scanned += cpu

    def charge_call(self, tenant: Tenant, cpu: float, price: float) -> None:
        """A call of the tenant took `cpu` seconds of processor time, and counts as `price` seconds."""
        self._queue.charge(tenant.share, price)
        tenant.answered += cpu

    def ahead(self, tenant: Tenant, lately: bool = False) -> float:
        """Seconds of processor time by which it is ahead of another tenant that wants something; 0: of none.

        Args:
            tenant: which one.
            lately: count tenants that wanted something a moment ago as well.
        """
        mine, ahead = tenant.share.clock, 0.0
        since = time.monotonic() - _LATELY if lately else math.inf
        for other in self._tenants.values():
            if other is not tenant and (other.share.wants or other.wanted_at > since):
                ahead = max(ahead, mine - other.share.clock)
        return ahead

    def forget_lately(self, tenant: Tenant) -> None:
        """Tenants other than this one that want nothing now count no more, until they want something again."""
        for other in self._tenants.values():
            if other is not tenant:
                other.wanted_at = -math.inf
