"""Many clients, mostly the same: does it converge, how long does that take, what does it cost afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import ksm
from figure import MIB, TIMEOUT, Figure, Plan, Row, Target
from machine import PAGE, cpu_seconds, meminfo, private_bytes, warm
from processes import Server, Worker, everybody, settled, verify

_CLIENTS = 200
_AT_ONCE = 4
_CALM, _IDLE = 5.0, 20.0
_SAME = 0.9


def _crowd(plan: Plan) -> list[Figure]:
    count = 6 if plan.quick else _CLIENTS
    size = max(plan.size // 32, 2 * MIB)
    pages = size // PAGE
    shared = int(pages * _SAME)
    calm, idle = (0.5, 1.0) if plan.quick else (_CALM, _IDLE)
    plan.say(f"pagefold, {count} clients")
    with Server(plan.engine, run=0) as server:
        at_rest = private_bytes(server.pid)
        with _clients(count, size, shared, server.address) as (crew, sums):
            before = meminfo("Shmem")
            warm(2 * shared * PAGE + 256 * MIB)
            began = time.perf_counter()
            server.configure(run=1)
            report = crew[0]("settle", TIMEOUT)
            wall = time.perf_counter() - began
            settled(report, pages_sharing=(count - 1) * shared, pages_over_budget=0)
            after, books = meminfo("Shmem"), private_bytes(server.pid)
            time.sleep(calm)  # clients report until they have nothing to report; then it is idle
            used, began = cpu_seconds(server.pid), time.perf_counter()
            time.sleep(idle)  # that is the measurement: what a server does while nobody needs it
            percent = 100 * (cpu_seconds(server.pid) - used) / (time.perf_counter() - began)
            verify(crew, sums)
    theirs = None
    if plan.kernel:
        plan.say("the kernel's KSM")
        theirs = _kernel(count, size, shared)
    title = f"{count} clients x {size // MIB} MiB, {_SAME:.0%} identical"
    return [
        Figure("crowd.wall", f"{title}: until merged", "s", wall, theirs),
        Figure(
            "crowd.idle", f"{title}: server's CPU afterwards, of a core", "%", percent, target=Target(1, "pagefold")
        ),
        Figure(
            "crowd.server",
            f"{title}: server's private memory",
            "MiB",
            books / MIB,
            notes=(f"{at_rest / MIB:.0f} MiB before the first client",),
        ),
        Figure("crowd.before", f"{title}: shared memory before", "MiB", before / MIB),
        Figure(
            "crowd.after",
            f"{title}: shared memory afterwards",
            "MiB",
            after / MIB,
            floor=(shared + count * (pages - shared)) * PAGE / MIB,
        ),
    ]


ROWS = (Row("crowd", "200 clients, 90 % identical: convergence, memory, and CPU at rest", _crowd, once=True),)


def _kernel(count: int, size: int, shared: int) -> float:
    with ksm.full_speed(), _clients(count, size, shared, None) as (crew, sums):
        warm(2 * shared * PAGE + 256 * MIB)
        ksm.start()
        took = ksm.wait_for("pages_sharing", (count - 1) * shared - count * ksm.TOLERANCE, TIMEOUT)
        ksm.stop()
        verify(crew, sums)
    return took


@contextmanager
def _clients(count: int, size: int, shared: int, address: str | None) -> Iterator[tuple[list[Worker], list[int]]]:
    """So many light workers, a few started at a time, with their memory filled; and their checksums."""
    with ExitStack() as stack:
        crew: list[Worker] = []
        sums: list[int] = []
        while len(crew) < count:
            started = [stack.enter_context(Worker("light.py")) for _ in range(min(_AT_ONCE, count - len(crew)))]
            if address is not None:
                everybody(started, "connect", address)
            everybody(started, "allocate", size)
            for who, worker in enumerate(started, len(crew)):
                worker.send("fill", who, shared)
            sums += [worker.receive() for worker in started]
            crew += started
        yield crew, sums
