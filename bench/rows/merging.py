"""Merging itself: processes with the same pages, in long runs or each page alone.

Both sides begin with all memory filled and nobody scanning; the clock starts when scanning does. For pagefold it stops
when settle() has returned, which is after a further pass that found nothing; for KSM when its counter says that all but
a few pages are merged.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import floor
import ksm
from figure import MIB, TIMEOUT, Figure, Plan, Row, Target
from machine import PAGE, warm
from processes import cpu, fill, kernel_side, pagefold_side, settled, verify

_MOST_ISOLATED = 16_000  # each costs two mappings, of the 32765 that are the default budget


@dataclass(frozen=True)
class _Job:
    """What is to be merged: who has how much, in which layout, and how many pages that saves."""

    count: int
    size: int
    layout: str
    more: tuple[int, ...]
    saved: int

    @property
    def section(self) -> int:
        """Bytes that are allocated while the clock runs, at the most: frames and books."""
        return self.saved * PAGE + self.size // 8 + 64 * MIB


@dataclass(frozen=True)
class _Took:
    wall: float
    cpu: float


def _identical(plan: Plan) -> list[Figure]:
    pages = plan.size // PAGE
    job = _Job(2, plan.size, "identical", (), pages)
    ours, theirs = _both(plan, job)
    title = f"2 x {plan.mib} MiB identical"
    at_least = _floor(job, floor.steps(min(plan.size, 256 * MIB)))
    return [
        _wall("identical", title, ours, theirs, at_least, Target(1 / 8)),
        _cpu("identical", title, job, ours, theirs, at_least, Target(1 / 4)),
    ]


def _eight(plan: Plan) -> list[Figure]:
    size = plan.size // 4
    job = _Job(8, size, "identical", (), 7 * (size // PAGE))
    ours, theirs = _both(plan, job)
    title = f"8 x {size // MIB} MiB identical"
    at_least = _floor(job, floor.steps(min(size, 256 * MIB)))
    return [
        _wall("eight", title, ours, theirs, at_least, Target(1 / 8)),
        _cpu("eight", title, job, ours, theirs, at_least, None),
    ]


def _isolated(plan: Plan) -> list[Figure]:
    size = min(plan.size // 8, 128 * MIB)
    shared = min(size // PAGE // 2, _MOST_ISOLATED)
    job = _Job(2, size, "isolated", (shared,), shared)
    ours, theirs = _both(plan, job)
    title = f"2 x {size // MIB} MiB, every second page, {shared} in all, shuffled"
    at_least = _floor(job, floor.steps(size, run=1))
    return [
        _wall("isolated", title, ours, theirs, at_least, Target(1)),
        _cpu("isolated", title, job, ours, theirs, at_least, Target(1)),
    ]


ROWS = (
    Row("identical", "two processes with the same memory: time and CPU until merged", _identical),
    Row("eight", "eight processes with the same memory: time until merged", _eight),
    Row("isolated", "every second page has a twin, nowhere two in a row: time and CPU until merged", _isolated),
)


def _both(plan: Plan, job: _Job) -> tuple[_Took, _Took | None]:
    plan.say("pagefold")
    ours = _pagefold(plan, job)
    if not plan.kernel:
        return ours, None
    plan.say("the kernel's KSM")
    return ours, _kernel(job)


def _pagefold(plan: Plan, job: _Job) -> _Took:
    with pagefold_side(plan, job.count, job.size, run=0) as (server, crew):
        sums = fill(crew, job.layout, *job.more)
        warm(job.section)
        before, began = cpu(server, crew), time.perf_counter()
        server.configure(run=1)
        report = crew[0]("settle", TIMEOUT)
        took = _Took(time.perf_counter() - began, cpu(server, crew) - before)
        settled(report, pages_sharing=job.saved, pages_over_budget=0)
        verify(crew, sums)
    return took


def _kernel(job: _Job) -> _Took:
    with kernel_side(ksm.full_speed(), job.count, job.size) as crew:
        sums = fill(crew, job.layout, *job.more)
        warm(job.section)
        before = ksm.daemon_seconds()
        began = time.perf_counter()
        ksm.start()
        ksm.wait_for("pages_sharing", job.saved - ksm.TOLERANCE, TIMEOUT)
        took = _Took(time.perf_counter() - began, ksm.daemon_seconds() - before)
        ksm.stop()
        verify(crew, sums)
    return took


def _floor(job: _Job, steps: floor.Steps) -> float:
    """Seconds to read every page, and to compare and switch those that are saved."""
    return (job.count * (job.size // PAGE) * steps.read + job.saved * (steps.compare + steps.switch)) / 1e6


def _wall(key: str, title: str, ours: _Took, theirs: _Took | None, at_least: float, target: Target | None) -> Figure:
    return Figure(
        f"{key}.wall", f"{title}: until merged", "s", ours.wall, theirs.wall if theirs else None, at_least, target
    )


def _cpu(
    key: str, title: str, job: _Job, ours: _Took, theirs: _Took | None, at_least: float, target: Target | None
) -> Figure:
    by_page = 1e6 / job.saved
    return Figure(
        f"{key}.cpu",
        f"{title}: CPU of everybody, a page saved",
        "us",
        ours.cpu * by_page,
        theirs.cpu * by_page if theirs else None,
        at_least * by_page,
        target,
    )
