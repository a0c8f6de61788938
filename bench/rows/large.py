"""Does the cost of a page stay the same when there are many? Some of everything, at two sizes, in one domain."""

from __future__ import annotations

from dataclasses import dataclass

import content
from figure import MIB, TIMEOUT, Figure, Plan, Row, Target
from machine import PAGE, warm
from processes import cpu, fill, pagefold_side, settled, verify

_PROCESSES = 4
_TIMES = 12


@dataclass(frozen=True)
class _Cost:
    """CPU of everybody in microseconds, for each page that was read; and how many there were."""

    by_page: float
    pages: int


def _large(plan: Plan) -> list[Figure]:
    times = 3 if plan.quick else _TIMES
    small = _cost(plan, plan.size // _PROCESSES)
    large = _cost(plan, times * plan.size // _PROCESSES)
    sizes = f"{times * plan.mib} MiB to {plan.mib} MiB"
    return [
        Figure(
            "large.growth",
            f"mixed memory, CPU of everybody a page: {sizes}",
            "x",
            large.by_page / small.by_page,
            target=Target(1.3, "pagefold"),
            notes=(f"{large.pages} and {small.pages} pages that hold something",),
        ),
        Figure("large.small", f"mixed memory, {plan.mib} MiB: CPU of everybody, a page", "us", small.by_page),
        Figure("large.large", f"mixed memory, {times * plan.mib} MiB: CPU of everybody, a page", "us", large.by_page),
    ]


ROWS = (
    Row("large", "a mix of unique, equal, zero and missing pages at 12 times the size: CPU a page", _large, once=True),
)


def _cost(plan: Plan, size: int) -> _Cost:
    plan.say(f"pagefold, {_PROCESSES} x {size // MIB} MiB")
    layout = content.mixed(size // PAGE, 0)
    zeros, holes = int((layout == content.ZEROS).sum()), int((layout == content.HOLE).sum())
    equal = int(((layout > 0) & (layout <= len(layout))).sum())
    present = _PROCESSES * (len(layout) - holes)
    with pagefold_side(plan, _PROCESSES, size, run=0) as (server, crew):
        sums = fill(crew, "mixed")
        warm(equal * PAGE + size // 4 + 64 * MIB)
        before = cpu(server, crew)
        server.configure(run=1)
        report = crew[0]("settle", TIMEOUT)
        used = cpu(server, crew) - before
        settled(
            report,
            pages_sharing=(_PROCESSES - 1) * equal,
            zero_pages=_PROCESSES * zeros,
            pages_unshared=present - _PROCESSES * (equal + zeros),
            pages_over_budget=0,
        )
        verify(crew, sums)
    return _Cost(used * 1e6 / present, present)
