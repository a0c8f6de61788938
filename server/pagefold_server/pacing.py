"""When to scan: which domain, how much of it, and how much of the processor for it.

    slice (pages_to_scan)  = [ sub-slice <= 2 ms ] calls are answered [ sub-slice ] calls are answered ...
    pause                  = what keeps the ceiling, and sleep_millisecs at least

Everyday passes get what makes them last `target_merge_seconds` (see `advisor`), up to a ceiling; those for which
somebody waits in settle() have a ceiling of their own, and above 100 % read with several threads. A domain in which a
pass finds nothing new is left alone for 1, 2, 4, ... 16 seconds, until something wakes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog

from pagefold_server.advisor import Advisor
from pagefold_server.domain import Domain, Domains
from pagefold_server.settings import Configuration, Settings

_TARGET: Final = 0.001  # seconds that a sub-slice aims at; half of what it may take
_FEWEST: Final = 16  # pages in a sub-slice
_MOST: Final = 4096
_UNMERGE_SECONDS: Final = 1.0  # between looks at pages whose adoption failed, while unmerging
_QUIET_POLLS: Final = 1.2  # looks of its client that a page must not have been found written in
_WINDOW: Final = 5.0  # seconds over which CPU use is averaged

_log = structlog.get_logger("pagefold.pacing")


class Throttle:
    """Says when to work again, so that a share of the processor is kept."""

    def __init__(self) -> None:
        self.free_at = 0.0

    def spent(self, cpu: float, percent: float, now: float, least: float) -> None:
        """Books work.

        Args:
            cpu: seconds of processor time.
            percent: the ceiling, of one core.
            now: when it ended.
            least: seconds to pause in any case.
        """
        self.free_at = now + max(least, cpu * (100 / min(percent, 100) - 1))


class CpuMeter:
    """How much of one core went into scanning, over the last seconds."""

    def __init__(self, now: float) -> None:
        self._start = now
        self._spent: deque[tuple[float, float]] = deque()

    def add(self, cpu: float, now: float) -> None:
        """Books processor time that has just been spent."""
        self._forget(now)
        self._spent.append((now, cpu))

    def percent(self, now: float) -> float:
        """The share of one core."""
        self._forget(now)
        elapsed = min(max(now - self._start, 0.1), _WINDOW)
        return 100 * sum(cpu for _, cpu in self._spent) / elapsed

    def _forget(self, now: float) -> None:
        while self._spent and self._spent[0][0] < now - _WINDOW:
            self._spent.popleft()


class Pacer:
    """Scans all domains in turn, for as long as `run` is awaited.

    Args:
        domains: to scan.
        configuration: asked anew for every slice.
    """

    def __init__(self, domains: Domains, configuration: Configuration) -> None:
        self._domains = domains
        self._configuration = configuration
        self._wakened = asyncio.Event()
        self._everyday = Throttle()
        self._settling = Throttle()
        self._pages = 64  # in the next sub-slice
        self._meter = CpuMeter(time.monotonic())
        self._advisor = Advisor()

    def wake(self) -> None:
        """Something has become due earlier than it was."""
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
        """Who is next, and when. Of those that are due, who waited longest."""
        if self._configuration.now.run == 0:
            return None, math.inf
        chosen, best = None, (math.inf, math.inf)
        for domain in self._domains:
            if domain.fault or not domain.members:
                continue
            throttle = self._settling if domain.settlers else self._everyday
            at = max(domain.next_slice(now), throttle.free_at)
            rank = (at if at > now else -math.inf, domain.served)
            if rank < best:
                chosen, best = domain, rank
        return chosen, max(best[0], now)

    async def _slice(self, domain: Domain) -> None:
        settings = self._configuration.now
        pause, quiet = settings.sleep_millisecs / 1000, _QUIET_POLLS * settings.poll_millisecs / 1000
        settling = bool(domain.settlers)
        threads, percent = 1, settings.cpu_ceiling_percent
        if settling:
            threads = max(1, min(int(settings.settle_cpu_percent // 100), os.cpu_count() or 1))
        else:
            percent = self._advise(domain, settings)
        clock = time.thread_time if threads == 1 else time.process_time  # with calls that are answered meanwhile
        left, spent, visited = settings.pages_to_scan, 0.0, 0
        while left > 0 and not domain.closed:
            pages = min(self._pages, left)
            cpu, began = clock(), time.monotonic()
            try:
                step = domain.scan(pages, pause, quiet, threads)
                domain.ring()
            except Exception as error:
                _log.exception("a domain cannot be scanned", domain=str(domain))
                domain.fail(error)
                return
            took = time.monotonic() - began
            spent += clock() - cpu
            visited += step.visited
            self._adapt(pages, took)
            left -= pages
            if domain.unmerging:
                domain.due = time.monotonic() + _UNMERGE_SECONDS
                break
            if step.finished:
                break
            await asyncio.sleep(0)
        now = time.monotonic()
        self._meter.add(spent, now)
        if threads == 1:
            self._advisor.learn(visited, spent)
        if settling:
            self._settling.spent(spent, settings.settle_cpu_percent, now, 0)
        else:
            self._everyday.spent(spent, percent, now, pause)
        await asyncio.sleep(0)

    def _advise(self, domain: Domain, settings: Settings) -> float:
        """The share of a core with which the pass is done in time, as it looks now. What is late is not dropped."""
        target = settings.target_merge_seconds
        elapsed = 0.0 if domain.between_passes else time.monotonic() - domain.began
        left = max(target - elapsed, target / 10)
        return self._advisor.percent(domain.engine.remaining(), left, settings.cpu_ceiling_percent)

    def _adapt(self, pages: int, took: float) -> None:
        """Makes the next sub-slice last as long as it should; grows carefully, shrinks at once."""
        if took > 2 * _TARGET:
            self._pages = max(_FEWEST, int(pages * _TARGET / took))
        elif took < _TARGET and pages == self._pages:
            self._pages = min(_MOST, self._pages + self._pages // 4)


async def every(seconds: Callable[[], float], work: Callable[[], None], name: str) -> None:
    """Does something again and again, first now. What it raises is logged, and does not end it."""
    while True:
        try:
            work()
        except Exception:  # it is the only one of its kind: leases and names are tended by nobody else
            _log.exception("periodic work failed", work=name)
        await asyncio.sleep(seconds())
