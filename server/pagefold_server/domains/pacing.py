"""Pacing: which domain is scanned next, how many pages at a time, and with how much of the processor.

    slice (pages_to_scan)  = [ sub-slice <= 2 ms ] calls are answered [ sub-slice ] calls are answered ...
    pause                  = what keeps the domain's ceiling, and sleep_millisecs at least

Of the domains that are due, the first is one of the tenant that has had least of the processor; of that tenant's
domains, the one that has had least (see `fair_queue`). A slice ends early for a domain that has had less. So the cost
of a domain, and how often it is due, take nothing from the others' part.

An everyday pass gets what makes it last `target_merge_seconds` (see `advisor`), and all of them together no more than a
ceiling. A pass for which a client waits in settle() has a ceiling of its own; above 100 % it is read with several
threads, unless another tenant wants something. A domain in which a pass finds nothing new rests (see `schedule`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from pagefold_server.domains.domain import Domain
from pagefold_server.domains.registry import Domains
from pagefold_server.settings import Configuration, RunMode, Settings
from pagefold_server.tenants.tenants import Tenants
from pagefold_server.tenants.throttle import CpuMeter, Throttle

_TARGET: Final = 0.001  # seconds that a sub-slice aims at; half of what it may take
_FEWEST: Final = 16  # pages in a sub-slice
_MOST: Final = 4096
_QUANTUM: Final = (
    0.005  # seconds of a slice after which another domain may be next, and by how much that must be behind
)
_UNMERGE_SECONDS: Final = 1.0  # between looks at pages whose adoption failed, while unmerging
_QUIET_POLLS: Final = 1.2  # looks of its client that a page must not have been found written in

_log = structlog.get_logger("pagefold.pacing")


class Pacer:
    """Scans all domains while `run` is awaited.

    Args:
        domains: to scan.
        tenants: users, who have them.
        configuration: asked anew for every slice.
    """

    def __init__(self, domains: Domains, tenants: Tenants, configuration: Configuration) -> None:
        self._domains = domains
        self._tenants = tenants
        self._configuration = configuration
        self._wakened = asyncio.Event()
        self._everyday = Throttle()
        self._settling = Throttle()
        self._meter = CpuMeter(time.monotonic())

    def wake(self) -> None:
        """A domain is due earlier than it was."""
        self._wakened.set()

    def cpu_percent(self) -> float:
        """Of one core, over the last seconds, spent scanning."""
        return self._meter.percent(time.monotonic())

    async def run(self) -> None:
        """Scans until it is cancelled."""
        while True:
            self._wakened.clear()
            domain, at = self._choose(time.monotonic())
            if domain is not None and at <= time.monotonic():
                await self._slice(domain)
                continue
            with contextlib.suppress(TimeoutError):
                timeout = None if math.isinf(at) else max(at - time.monotonic(), 0)
                await asyncio.wait_for(self._wakened.wait(), timeout)

    def _choose(self, now: float) -> tuple[Domain | None, float]:
        """The next domain, and when it is due. Of several that are due, the one that has had least of the processor."""
        due, first, at = [], None, math.inf
        for domain in self._domains:
            when = self._when(domain, now)
            domain.tenant.due += (when <= now) - domain.pace.is_due
            domain.pace.is_due = when <= now
            if domain.pace.is_due:
                due.append(domain)
            elif when < at:
                first, at = domain, when
        for tenant in self._tenants:
            self._tenants.note(tenant)
        for domain in due:
            domain.tenant.domains.want(domain.pace.share)
        if due:
            return min(due, key=lambda domain: (domain.tenant.share.clock, domain.pace.share.clock)), now
        return first, at

    def _when(self, domain: Domain, now: float) -> float:
        """When a domain is to be scanned, for all that is known now."""
        if self._configuration.now.run == RunMode.STOPPED or domain.fault or not domain.participants:
            return math.inf
        throttle = self._settling if domain.settlers else self._everyday
        own = 0.0 if domain.settlers else domain.pace.throttle.free_at
        return max(domain.next_slice(now), throttle.free_at, domain.tenant.throttle.free_at, own)

    def _is_overtaken(self, domain: Domain) -> bool:
        """Whether a domain is due that has had much less of the processor: it does not wait for the slice's end."""
        other, at = self._choose(time.monotonic())
        if other is None or other is domain or at > time.monotonic():
            return False
        if other.tenant is domain.tenant:
            return other.pace.share.clock + _QUANTUM < domain.pace.share.clock
        return other.tenant.share.clock + _QUANTUM < domain.tenant.share.clock

    def _has_rivals(self, domain: Domain) -> bool:
        """Whether another tenant wants something."""
        return any(tenant.share.wants for tenant in self._tenants if tenant is not domain.tenant)

    async def _slice(self, domain: Domain) -> None:
        settings = self._configuration.now
        pause, quiet = settings.sleep_millisecs / 1000, _QUIET_POLLS * settings.poll_millisecs / 1000
        settling = bool(domain.settlers)
        threads, percent = 1, settings.settle_cpu_percent
        if not settling:
            percent = self._advise(domain, settings)
        elif not self._has_rivals(domain):
            threads = max(1, min(int(settings.settle_cpu_percent // 100), os.cpu_count() or 1))
        clock = time.thread_time if threads == 1 else time.process_time  # with calls that are answered meanwhile
        left, spent, unlooked, visited = settings.pages_to_scan, 0.0, 0.0, 0
        while left > 0 and not domain.closed:
            pages = min(domain.pace.slice_pages, left)
            cpu, began = clock(), time.monotonic()
            try:
                step = domain.scan(pages, pause, quiet, threads)
                domain.ring()
            except Exception as error:
                _log.exception("a domain cannot be scanned", uid=domain.uid, label=domain.label)
                domain.fail(error)
                return
            took, cpu = time.monotonic() - began, clock() - cpu
            self._tenants.charge_scan(domain.tenant, domain.pace.share, cpu)
            spent, unlooked, visited = spent + cpu, unlooked + cpu, visited + step.visited
            self._adapt(domain, pages, took)
            left -= pages
            if domain.mode is RunMode.UNMERGING:
                domain.schedule.due = time.monotonic() + _UNMERGE_SECONDS
                break
            if step.finished:
                break
            await asyncio.sleep(0)
            if unlooked >= _QUANTUM:
                unlooked = 0.0
                if self._is_overtaken(domain):
                    pause = 0.0  # it goes on in its next turn
                    break
        now = time.monotonic()
        self._meter.add(spent, now)
        if threads == 1:
            domain.pace.advisor.learn(visited, spent)
        if settling:
            self._settling.spent(spent, percent, now, 0)
        else:
            self._everyday.spent(spent, settings.cpu_ceiling_percent, now, 0)
            domain.pace.throttle.spent(spent, percent, now, pause)
        if settings.tenant_cpu_percent:
            domain.tenant.throttle.spent(spent, settings.tenant_cpu_percent, now, 0)
        await asyncio.sleep(0)

    def _advise(self, domain: Domain, settings: Settings) -> float:
        """The percentage of a core with which the pass is done in time, as it looks now. A late pass is not dropped."""
        target = settings.target_merge_seconds
        elapsed = 0.0 if domain.schedule.between_passes else time.monotonic() - domain.schedule.began
        left = max(target - elapsed, target / 10)
        return domain.pace.advisor.percent(domain.engine.remaining(), left, settings.cpu_ceiling_percent)

    @staticmethod
    def _adapt(domain: Domain, pages: int, took: float) -> None:
        """Makes the next sub-slice last as long as it should; grows carefully, shrinks at once."""
        if took > 2 * _TARGET:
            domain.pace.slice_pages = max(_FEWEST, int(pages * _TARGET / took))
        elif took < _TARGET and pages == domain.pace.slice_pages:
            domain.pace.slice_pages = min(_MOST, domain.pace.slice_pages + domain.pace.slice_pages // 4)


async def every(seconds: Callable[[], float], work: Callable[[], Awaitable[None] | None], name: str) -> None:
    """Does some work now, and again after each pause. An exception is logged, and does not end it."""
    while True:
        try:
            doing = work()
            if doing is not None:
                await doing
        except Exception:  # leases and names are tended by nothing else
            _log.exception("periodic work failed", work=name)
        await asyncio.sleep(seconds())
