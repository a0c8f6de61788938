"""The rows of the table. Each measures pagefold and, where it may, the kernel's KSM doing the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import ksm
from processes import Server, Worker, cpu_seconds, resident_bytes
from worker import PAGE

TIMEOUT = 300.0


@dataclass(frozen=True)
class Figure:
    """One figure of one run.

    Attributes:
        row: what was measured.
        unit: of both values.
        pagefold: the value.
        kernel: KSM's in the same run; None where it has no such figure, or may not be measured here.
    """

    row: str
    unit: str
    pagefold: float
    kernel: float | None


Sizes = dict[str, int]
Row = Callable[[Sizes, bool], list[Figure]]


def merge(sizes: Sizes, with_kernel: bool) -> list[Figure]:
    """Two processes with the same bytes: until merged, and what the first write costs then."""
    size, pages = sizes["merge"], sizes["merge"] // PAGE
    with _subjects(2) as (server, workers):
        base = resident_bytes(server.pid)
        for w in workers:
            w("pagefold", server.address, size)
        # A pass that meets half-filled memory would do work that the kernel is not asked to do.
        for w in workers:
            w("fill", 1)
        before = _cpu([server.pid, *(w.pid for w in workers)])
        began = time.perf_counter()
        report = workers[0]("settle", TIMEOUT)
        wall = time.perf_counter() - began
        cpu = _cpu([server.pid, *(w.pid for w in workers)]) - before
        status = server.status()
        if not report["settled"] or status.counters.pages_sharing != pages:
            raise RuntimeError(f"not merged: {report}")
        books = resident_bytes(server.pid) - base
        write = workers[1]("first_writes", min(pages, 50_000))
    kernel: dict[str, float] = {}
    if with_kernel:
        with _kernel_subjects(2, size) as kernel_workers:
            for w in kernel_workers:
                w("fill", 1)
            before = ksm.daemon_seconds()
            ksm.start()
            kernel["wall"] = ksm.wait_for("pages_sharing", pages - 16, TIMEOUT)
            kernel["cpu"] = ksm.daemon_seconds() - before
            ksm.stop()
            kernel["write"] = kernel_workers[1]("first_writes", min(pages, 50_000))
    mib = size >> 20
    return [
        Figure(f"2 x {mib} MiB identical: until merged", "s", wall, kernel.get("wall")),
        Figure(f"2 x {mib} MiB identical: pages saved a second", "1/s", pages / wall, _per(pages, kernel.get("wall"))),
        Figure(
            f"2 x {mib} MiB identical: CPU of everybody a page saved",
            "us",
            cpu * 1e6 / pages,
            _per(kernel.get("cpu"), pages, 1e6),
        ),
        Figure("first write to a merged page", "us", write, kernel.get("write")),
        Figure("books: server memory a page, by its own count", "B", status.counters.bookkeeping_bytes / 2 / pages, 64),
        Figure("books: server memory a page, resident growth", "B", books / 2 / pages, None),
    ]


def settled_pass(sizes: Sizes, with_kernel: bool) -> list[Figure]:
    """Memory of which no page is like another, and which nobody writes: what one more pass costs."""
    size = sizes["unique"]
    with _subjects(1) as (server, (worker,)):
        worker("pagefold", server.address, size)
        worker("fill", 1)
        if not worker("settle", TIMEOUT)["settled"]:
            raise RuntimeError("not settled")
        cpu, passes = server.status().cpu_seconds, server.status().counters.full_scans
        worker("settle", TIMEOUT)
        status = server.status()
        ours = (status.cpu_seconds - cpu) / (status.counters.full_scans - passes)
        unshared = status.counters.pages_unshared
        if unshared < size // PAGE:
            raise RuntimeError(f"{unshared} pages are unshared, not {size // PAGE}")
    theirs = None
    if with_kernel:
        with _kernel_subjects(1, size) as (worker,):
            worker("fill", 1)
            ksm.start()
            ksm.wait_for("full_scans", ksm.counter("full_scans") + 3, TIMEOUT)
            cpu, passes = ksm.daemon_seconds(), ksm.counter("full_scans")
            ksm.wait_for("full_scans", passes + 2, TIMEOUT)
            theirs = (ksm.daemon_seconds() - cpu) / (ksm.counter("full_scans") - passes)
            ksm.stop()
    return [Figure(f"settled pass over {size >> 20} MiB of unique pages: CPU", "s", ours, theirs)]


ROWS: list[Row] = [merge, settled_pass]


@contextmanager
def _subjects(count: int) -> Iterator[tuple[Server, list[Worker]]]:
    with ExitStack() as stack:
        server = stack.enter_context(Server())
        yield server, [stack.enter_context(Worker()) for _ in range(count)]


@contextmanager
def _kernel_subjects(count: int, size: int) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker()) for _ in range(count)]
        stack.enter_context(ksm.full_speed())
        for w in workers:
            w("kernel", size)
        yield workers


def _cpu(pids: list[int]) -> float:
    return sum(map(cpu_seconds, pids))


def _per(value: float | None, by: float | None, scale: float = 1.0) -> float | None:
    return value * scale / by if value is not None and by else None
