"""What a program notices of it all: the first write to a merged page, to a tracked one, and writes that are held."""

from __future__ import annotations

import statistics

import floor
import ksm
from figure import MIB, TIMEOUT, Figure, Plan, Row, Target, WrongResult
from machine import PAGE, warm
from processes import Server, everybody, fill, kernel_side, pagefold_side, settled, verify, workers

_MOST_WRITES = 50_000
_ROUNDS = 5


def _merged(plan: Plan) -> list[Figure]:
    size = plan.size // 4
    pages = size // PAGE
    writes = min(pages, _MOST_WRITES)
    plan.say("pagefold")
    with pagefold_side(plan, 2, size) as (_, crew):
        sums = fill(crew, "identical")
        settled(crew[0]("settle", TIMEOUT), pages_sharing=pages)
        verify(crew, sums)
        warm(2 * writes * PAGE)
        ours = crew[1]("first_writes", writes)
        verify(crew[:1], sums[:1])  # nobody else's page was written
    theirs = None
    if plan.kernel:
        plan.say("the kernel's KSM")
        with kernel_side(ksm.full_speed(), 2, size) as crew:
            fill(crew, "identical")
            ksm.start()
            ksm.wait_for("pages_sharing", pages - ksm.TOLERANCE, TIMEOUT)
            ksm.stop()
            warm(2 * writes * PAGE)
            theirs = crew[1]("first_writes", writes)
    warm(2 * writes * PAGE)
    return [
        Figure(
            "write-merged.time",
            "first write to a merged page",
            "us",
            ours,
            theirs,
            floor.copy_on_write(writes),
            Target(1),
        )
    ]


def _tracked(plan: Plan) -> list[Figure]:
    size = plan.size // 4
    writes = min(size // PAGE, _MOST_WRITES)
    tracked, plain = [], []
    plan.say("pagefold")
    with pagefold_side(plan, 1, size) as (_, (worker,)):
        worker("fill", "unique", 0)
        warm(2 * writes * PAGE)
        for number in range(_ROUNDS):
            settled(worker("settle", TIMEOUT), pages_sharing=0)
            one, other = worker("tracked_writes", writes, number + 1)
            tracked.append(one)
            plain.append(other)
        tracker = worker("stats")["tracker"]
    first, untracked = statistics.median(tracked), statistics.median(plain)
    return [
        Figure(
            "write-tracked.more",
            "first write to a tracked page that is not merged: more than to untracked memory",
            "us",
            first - untracked,
            target=Target(1.2, "pagefold"),
            notes=(f"tracker {tracker}: {first:.3f} us, untracked {untracked:.3f} us",),
        )
    ]


def _hot(plan: Plan) -> list[Figure]:
    """Memory that is rewritten all the time is the worst case of tracking: every protection is in vain."""
    size = plan.size // 4
    seconds = 2 if plan.quick else 12
    rates: dict[str, list[float]] = {"pagemap": [], "checksum": []}
    for _ in range(2):
        for tracker, found in rates.items():
            plan.say(f"pagefold, tracker {tracker}")
            # With the other tracker nobody looks at all: the server does not scan.
            with Server(plan.engine, run=0) as server, workers(1) as (worker,):
                worker("connect", server.address, tracker)
                worker("allocate", size)
                worker("fill", "unique", 0)
                found.append(worker("rewrite", seconds))
    tracked, untracked = statistics.median(rates["pagemap"]), statistics.median(rates["checksum"])
    return [
        Figure(
            "hot.cost",
            f"{size // MIB} MiB rewritten all the time: pages written a second of CPU, untracked to tracked",
            "x",
            untracked / tracked,
            target=Target(1.02, "pagefold"),
            notes=(f"{tracked:.0f} against {untracked:.0f} pages a second",),
        )
    ]


def _windows(plan: Plan) -> list[Figure]:
    # With as many writers as cores a window's thread has to share its core; a writer that rests shows windows alone.
    return [
        *_held(plan, "windows", "2 writers without rest", 0),
        *_held(plan, "windows-rest", "2 writers with rests", 0.001),
    ]


def _held(plan: Plan, key: str, who: str, rest: float) -> list[Figure]:
    size = max(plan.size // 16, 4 * MIB)
    seconds = 2 if plan.quick else 10
    plan.say(f"pagefold, {who}")
    # Merging as eagerly as it can: pages that broke are candidates again at once.
    eager = {"smart_scan": "false", "sleep_millisecs": 0, "cpu_ceiling_percent": 100, "poll_millisecs": 10}
    with pagefold_side(plan, 2, size, **eager) as (server, crew):
        sums = fill(crew, "identical")
        settled(crew[0]("settle", TIMEOUT), pages_sharing=size // PAGE)
        merged = server.status().counters
        for number, worker in enumerate(crew):
            worker.send("churn", seconds, number, rest)
        writes = sum(worker.receive() for worker in crew)
        after, stats = server.status().counters, everybody(crew, "stats")
        verify(crew, sums)
    again, broken = after.pages_merged - merged.pages_merged, after.pages_broken - merged.pages_broken
    if not again or not broken:
        raise WrongResult(f"{again} pages were merged and {broken} broken while writers ran: nothing was measured")
    windows = sum(s["windows"] for s in stats)
    notes = (f"{windows} windows, {again} merges and {broken} breaks; {writes / seconds:.0f} page writes a second",)
    title = f"writes held while {who} run, 2 x {size // MIB} MiB"
    values = {each: max(s[f"window_{each}_micros"] for s in stats) for each in ("p99", "max", "max_running")}
    running = f"{values['max_running']:.0f} us without the time for which the window's thread was off the processor"
    return [
        Figure(f"{key}.p99", f"{title}: 99 %", "us", values["p99"], target=Target(500, "pagefold"), notes=notes),
        Figure(
            f"{key}.max",
            f"{title}: the longest",
            "us",
            values["max"],
            target=Target(2000, "pagefold"),
            notes=(running,),
        ),
    ]


ROWS = (
    Row("write-merged", "the first write to a merged page", _merged),
    Row("write-tracked", "the first write to a page that is tracked and not merged", _tracked),
    Row("hot", "what tracking costs a program that rewrites its memory all the time", _hot),
    Row("windows", "how long writes are held while two writers keep breaking what merges", _windows),
)
