"""How soon memory is saved when nobody asks: default settings, no settle(). From the last byte written to 95 % saved.

Both sides have every setting as it is shipped. A side that has not come so far in time is given up, and what stands in
the table is a bound.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import floor
import ksm
from figure import MIB, Figure, Plan, Row, Target
from machine import PAGE, warm
from processes import fill, kernel_side, pagefold_side, verify

_SHARE = 0.95
_SECONDS = 60.0
_POLL = 0.02


@dataclass(frozen=True)
class _Came:
    seconds: float
    over: bool
    note: str = ""


def _soon(plan: Plan) -> list[Figure]:
    return _measure(plan, "soon", plan.size // 2)


def _soon_large(plan: Plan) -> list[Figure]:
    return _measure(plan, "soon-large", plan.size)


ROWS = (
    Row("soon", "default settings, half of the size: until 95 % are saved", _soon, kernel_once=True),
    Row("soon-large", "default settings, the full size: until 95 % are saved", _soon_large, kernel_once=True),
)


def _measure(plan: Plan, key: str, size: int) -> list[Figure]:
    limit = 5.0 if plan.quick else _SECONDS
    plan.say("pagefold")
    ours = _pagefold(plan, size, limit)
    theirs = None
    if plan.kernel:
        plan.say("the kernel's KSM")
        theirs = _kernel(size, limit)
    pages, steps = size // PAGE, floor.steps(min(size, 256 * MIB))
    return [
        Figure(
            f"{key}.wall",
            f"2 x {size // MIB} MiB identical, default settings: until 95 % are saved",
            "s",
            ours.seconds,
            theirs.seconds if theirs else None,
            pages * steps.merge(2) / 1e6,
            Target(2, "pagefold"),
            pagefold_over=ours.over,
            kernel_over=bool(theirs and theirs.over),
            notes=tuple(came.note for came in (ours, theirs) if came and came.note),
        )
    ]


def _pagefold(plan: Plan, size: int, limit: float) -> _Came:
    pages = size // PAGE
    with pagefold_side(plan, 2, size) as (server, crew):
        warm(3 * size)  # before the fill: the server is at work from the first byte on
        sums = fill(crew, "identical")
        began = time.perf_counter()
        while (saved := server.status().counters.pages_sharing) < _SHARE * pages:
            if time.perf_counter() - began > limit:
                break
            time.sleep(_POLL)  # the status is asked rarely enough to cost nothing
        seconds = time.perf_counter() - began
        verify(crew, sums)
    over = saved < _SHARE * pages
    return _Came(seconds, over, f"pagefold had saved {saved / pages:.0%} by then" if over else "")


def _kernel(size: int, limit: float) -> _Came:
    pages = size // PAGE
    with kernel_side(ksm.defaults(), 2, size) as crew:
        warm(3 * size)
        sums = fill(crew, "identical")
        scanned = ksm.counter("pages_scanned")
        ksm.start()
        try:
            return _Came(ksm.wait_for("pages_sharing", int(_SHARE * pages), limit), over=False)
        except TimeoutError:
            scanned = ksm.counter("pages_scanned") - scanned
            saved = ksm.counter("pages_sharing") / pages
        finally:
            ksm.stop()
            verify(crew, sums)
    # It merges while it looks at the second process for the second time.
    needed = 4 * pages - (1 - _SHARE) * pages
    expected = limit * needed / max(scanned, 1)
    return _Came(
        limit,
        True,
        f"KSM had saved {saved:.0%} by then; by the pages it scanned, about {expected:.0f} s (extrapolated)",
    )
