"""Passes over memory in which nothing is left to merge: nobody writes, or a few pages change between two of them.

One pass of KSM is one full scan with smart_scan off: both sides look at everything. A pass of pagefold's is one that
settle() asked for, with all that this costs the client and the server.
"""

from __future__ import annotations

import floor
import ksm
from figure import MIB, TIMEOUT, Figure, Plan, Row, Target
from machine import PAGE, warm
from processes import Server, Worker, cpu, fill, kernel_side, pagefold_side, settled, verify

_PASSES = 50
_SECONDS = 20.0  # for these passes: where each takes long, fewer give the average as well
_BURSTS, _KERNEL_BURSTS = 6, 2


def _settled(plan: Plan) -> list[Figure]:
    size = 2 * plan.size
    plan.say("pagefold")
    with pagefold_side(plan, 1, size, run=0) as (server, crew):
        sums = _fill_unique(server, crew, size)
        before, passes = cpu(server, crew), server.status().counters.full_scans
        crew[0]("settle_often", 3 if plan.quick else _PASSES, _SECONDS)
        used, status = cpu(server, crew) - before, server.status()
        passes = status.counters.full_scans - passes
        verify(crew, sums)
        tracker = crew[0]("stats")["tracker"]
    theirs = None
    if plan.kernel:
        plan.say("the kernel's KSM")
        theirs = _kernel_pass(size, 0, 2)
    pages = min(size, 512 * MIB) // PAGE
    walk = floor.walk(pages) * (size // PAGE) / 1e6 or None
    return [
        Figure(
            "settled.cpu",
            f"settled pass over {size // MIB} MiB unique: CPU of everybody",
            "s",
            used / passes,
            theirs,
            walk,
            Target(1 / 500),
            notes=(f"average of {passes} passes, tracker {tracker}",),
        )
    ]


def _dirty(plan: Plan) -> list[Figure]:
    size = 4 * plan.size
    written = size // PAGE // 100
    bursts = 2 if plan.quick else _BURSTS
    plan.say("pagefold")
    with pagefold_side(plan, 1, size, run=0) as (server, crew):
        _fill_unique(server, crew, size)
        worker = crew[0]
        worker("scatter", written, 1)  # the first burst finds things as no later one does
        settled(worker("settle", TIMEOUT), pages_unshared=size // PAGE)
        before, passes, writing = cpu(server, crew), server.status().counters.full_scans, 0.0
        for burst in range(bursts):
            writing += worker("scatter", written, burst + 2)
            settled(worker("settle", TIMEOUT), pages_unshared=size // PAGE)
        ours = (cpu(server, crew) - before - writing) / bursts
        passes = server.status().counters.full_scans - passes
        tracker = worker("stats")["tracker"]
    theirs = None
    if plan.kernel:
        plan.say("the kernel's KSM")
        theirs = _kernel_pass(size, written, _KERNEL_BURSTS)
    at_least = (floor.walk(min(size, 512 * MIB) // PAGE) * (size // PAGE) + floor.steps(64 * MIB).read * written) / 1e6
    return [
        Figure(
            "dirty.cpu",
            f"{size // MIB} MiB, 1 % of pages written: CPU of everybody, a burst of writes",
            "s",
            ours,
            theirs,
            at_least,
            Target(1 / 50),
            notes=(f"{passes / bursts:.1f} passes a burst, tracker {tracker}; KSM: one full scan a burst",),
        )
    ]


ROWS = (
    Row("settled", "one more pass over memory in which nothing changes: CPU", _settled),
    Row("dirty", "one more pass after a hundredth of all pages was written: CPU", _dirty),
)


def _fill_unique(server: Server, crew: list[Worker], size: int) -> list[str]:
    sums: list[str] = fill(crew, "unique")
    warm(size // 16)
    server.configure(run=1)
    settled(crew[0]("settle", TIMEOUT), pages_unshared=len(crew) * size // PAGE, pages_sharing=0)
    return sums


def _kernel_pass(size: int, written: int, passes: int) -> float:
    """CPU seconds of a full scan, so many pages being written before each."""
    with kernel_side(ksm.full_speed(), 1, size) as (worker,):
        worker("fill", "unique", 0)
        warm(size // 16)
        ksm.start()
        ksm.wait_for("full_scans", ksm.counter("full_scans") + 3, TIMEOUT)
        cpu_before, scans = ksm.daemon_seconds(), ksm.counter("full_scans")
        for burst in range(passes):
            if written:
                worker("scatter", written, burst + 1)
            ksm.wait_for("full_scans", scans + burst + 1, TIMEOUT)
        used, scans = ksm.daemon_seconds() - cpu_before, ksm.counter("full_scans") - scans
        ksm.stop()
    return used / scans
