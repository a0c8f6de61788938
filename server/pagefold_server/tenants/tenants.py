"""Tenants: users, as the kernel knows them, each with all its domains. What it holds, what it has had of the processor.

A label is a client's own choice, so quotas and fairness go by uid: who takes a thousand labels gets no more than who
takes one. Domains of one tenant are fair to each other in the same way.

    what is wanted      calls that wait (`gate`), domains that are due (`pacing`)
    what is booked      scanning, and the calls' own work; both on one clock

What a tenant holds is counted here when it comes and goes; `Quotas` compares that with the settings, before anything is
opened or made. A quota that is lowered takes nothing away.
"""

from __future__ import annotations

import asyncio
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from pagefold_proto.limits import PAGE

from pagefold_server.errors import LimitReached
from pagefold_server.settings import Configuration
from pagefold_server.tenants.fair_queue import Share, Shares
from pagefold_server.tenants.throttle import Throttle

STRANGERS: Final = -1
"""Whose calls nobody can be charged for: those without a session's token, or without a lease of their own."""

_LATELY: Final = 0.1  # seconds: as long as clients take to carry out a batch
_MANY: Final = 1024  # tenants, above which those that hold nothing are forgotten
_DESCRIPTORS: Final = 2  # a segment takes (one is the engine's), and so does a session (its lease and its connection)


@dataclass(slots=True, eq=False)
class Tenant:
    """One user.

    Attributes:
        uid: as the kernel reports it; or `STRANGERS`.
        share: its place among all.
        domains: the places of its domains among themselves.
        throttle: keeps its own ceiling, if it has one.
        turn: its calls are carried out in the order in which they came, if they have to wait.
        waiting: calls that wait for their turn.
        due: domains that are to be scanned now.
        wanted_at: when it wanted something last, before it wanted nothing any more.
        scanned: seconds of processor time for scanning.
        answered: the same, for calls.
        delayed: calls that had to wait, because others had had less of the processor.
        sessions: that it has. Likewise `segments`, their `pages` together, and `mappings`, as its clients say.
    """

    uid: int
    share: Share = field(default_factory=Share)
    domains: Shares = field(default_factory=Shares)
    throttle: Throttle = field(default_factory=Throttle)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    due: int = 0
    wanted_at: float = -math.inf
    scanned: float = 0.0
    answered: float = 0.0
    delayed: int = 0
    sessions: int = 0
    segments: int = 0
    pages: int = 0
    mappings: int = 0

    @property
    def holds_nothing(self) -> bool:
        """Whether it might as well not be there."""
        return not (self.sessions or self.waiting or self.turn.locked())


class Tenants:
    """All tenants, by uid."""

    def __init__(self) -> None:
        self._tenants: dict[int, Tenant] = {}
        self._shares = Shares()

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
            self._shares.want(tenant.share)
        elif tenant.share.wants:
            self._shares.rest(tenant.share)
            tenant.wanted_at = time.monotonic()

    def scanned(self, tenant: Tenant, domain: Share, cpu: float) -> None:
        """A domain of its was scanned for so many seconds of processor time."""
        self._shares.book(tenant.share, cpu)
        tenant.domains.book(domain, cpu)
        tenant.scanned += cpu

    def answered(self, tenant: Tenant, cpu: float, price: float) -> None:
        """A call of its took so many seconds of processor time, and counts as so many."""
        self._shares.book(tenant.share, price)
        tenant.answered += cpu

    def ahead(self, tenant: Tenant, lately: bool = False) -> float:
        """By how many seconds of processor time it is ahead of somebody else who wants something; 0 of nobody.

        Args:
            tenant: which one.
            lately: also of those who wanted something a moment ago.
        """
        mine, ahead = tenant.share.clock, 0.0
        since = time.monotonic() - _LATELY if lately else math.inf
        for other in self._tenants.values():
            if other is not tenant and (other.share.wants or other.wanted_at > since):
                ahead = max(ahead, mine - other.share.clock)
        return ahead

    def forget_lately(self, tenant: Tenant) -> None:
        """Others than this one who want nothing now count no more, until they want something again."""
        for other in self._tenants.values():
            if other is not tenant:
                other.wanted_at = -math.inf


class Quotas:
    """What a tenant may hold. Each refusal names who, what, how much, and what to do.

    Args:
        configuration: asked anew every time.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    def check_session(self, tenant: Tenant) -> None:
        """Whether it may have another session.

        Raises:
            LimitReached: no.
        """
        most = self._configuration.now.tenant_max_sessions
        if most and tenant.sessions >= most:
            raise LimitReached(
                f"uid {tenant.uid} has {tenant.sessions} sessions, its quota: close some, or raise tenant_max_sessions"
            )
        self._check_descriptors(tenant)
        self._check_mappings(tenant)

    def check_domain(self, tenant: Tenant, domains: int) -> None:
        """Whether it may have another domain, beside so many.

        Raises:
            LimitReached: no.
        """
        most = self._configuration.now.tenant_max_domains
        if most and domains >= most:
            raise LimitReached(
                f"uid {tenant.uid} has {domains} domains, its quota: use fewer labels, or raise tenant_max_domains"
            )

    def check_segment(self, tenant: Tenant, pages: int) -> None:
        """Whether it may have another segment, of so many pages.

        Raises:
            LimitReached: no.
        """
        settings = self._configuration.now
        if settings.tenant_max_segments and tenant.segments >= settings.tenant_max_segments:
            raise LimitReached(
                f"uid {tenant.uid} has {tenant.segments} segments, its quota: "
                "free buffers, or raise tenant_max_segments"
            )
        together = (tenant.pages + pages) * PAGE
        if settings.tenant_max_bytes and together > settings.tenant_max_bytes:
            raise LimitReached(
                f"uid {tenant.uid} would have segments of {together} bytes, and its quota is "
                f"{settings.tenant_max_bytes}: free buffers, or raise tenant_max_bytes"
            )
        self._check_descriptors(tenant)
        self._check_mappings(tenant)

    def _check_mappings(self, tenant: Tenant) -> None:
        most = self._configuration.now.tenant_max_mappings
        if most and tenant.mappings >= most:
            raise LimitReached(
                f"the memory of uid {tenant.uid} is cut into {tenant.mappings} mappings, its quota: "
                "lower the mapping_budget of its clients, or raise tenant_max_mappings"
            )

    def _check_descriptors(self, tenant: Tenant) -> None:
        """Nobody takes more than half of the server's descriptors."""
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if allowed != resource.RLIM_INFINITY and (tenant.segments + tenant.sessions + 1) * _DESCRIPTORS > allowed // 2:
            raise LimitReached(
                f"uid {tenant.uid} takes half of the server's {allowed} descriptors: free buffers, or raise the limit "
                "(ulimit -n) and restart the server"
            )
