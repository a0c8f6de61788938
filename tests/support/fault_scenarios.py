"""What is done while a fault is armed: merging, adopting, discarding, forking, looking, all of it under writers.

`python -m support.fault_scenarios SCENARIO POINT FAULT` prints, as JSON: whether the point was passed, writers that are
stuck, bytes that are lost, books that are wrong, proposals without an answer, and whether the same works afterwards.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from support import faults
from support.spaces import COPIED, DECLINED, MERGED, PAGE, WRITTEN, Bench, page_of

PAGES = 96
WRITERS = 2
PATIENCE = 20.0
"""Seconds for what the warden, or a thread that wants the lock, sees to within two."""


class Writers:
    """Threads that write without end: each to every page whose number is its own, modulo how many there are."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.lost: list[int] = []
        self.model = [page_of(1 + page) for page in range(PAGES)]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(n,), daemon=True) for n in range(WRITERS)]
        for page in range(PAGES):
            bench.put(page, 1 + page)
        for thread in self._threads:
            thread.start()

    def _write(self, number: int) -> None:
        # Most of the time pages hold what their frame holds, so that they merge; each write changes one and back.
        turn = 0
        while not self._stop.is_set():
            for page in range(number, PAGES, WRITERS):
                self._check(page)
                turn += 1
                self.model[page] = page_of(1000 + turn)
                self.bench.put(page, 1000 + turn)
                self._check(page)
                self.model[page] = page_of(1 + page)
                self.bench.put(page, 1 + page)

    def _check(self, page: int) -> None:
        if self.bench.get(page) != self.model[page]:
            self.lost.append(page)

    def stop(self) -> int:
        """How many do not end."""
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        stuck = sum(thread.is_alive() for thread in self._threads)
        if not stuck:
            for page in range(PAGES):
                self._check(page)
        return stuck


def attempt(act: Callable[[], Any]) -> str:
    """Does something in a thread of its own, which may not survive it. How it ended."""
    outcome = ["ended with its thread"]

    def run() -> None:
        try:
            act()
        except Exception as error:
            outcome[0] = f"{type(error).__name__}: {error}"
        else:
            outcome[0] = ""

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    number = thread.native_id
    while thread.is_alive() and os.path.exists(f"/proc/self/task/{number}"):
        thread.join(0.05)
    return outcome[0]


def backing(bench: Bench) -> list[str]:
    """What the kernel has mapped at each page: "shared", "frozen" (the segment, privately), "frame" or "zero"."""
    segment, pool = (os.fstat(fd).st_ino for fd in (bench.segment, bench.pool))
    start = bench.block.address
    kinds = ["nothing"] * bench.pages
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, mode, _, _, inode, *_ = line.split()
            low, high = (int(end, 16) for end in span.split("-"))
            shared = mode.endswith("s")
            kind = {segment: "shared" if shared else "frozen", pool: "frame"}.get(int(inode), "zero")
            for page in range(max(0, (low - start) // PAGE), min(bench.pages, (high - start) // PAGE)):
                kinds[page] = kind
    return kinds


def wrong_books(bench: Bench) -> list[str]:
    """Where the space's counts are not what the kernel has mapped."""
    kinds, counts = backing(bench), bench.space.counts()
    shared, frozen = kinds.count("shared"), kinds.count("frozen")
    wrong = []
    if counts.owned != shared:
        wrong.append(f"{counts.owned} pages are owned by the books, {shared} in truth")
    if counts.frozen != frozen:
        wrong.append(f"{counts.frozen} pages are frozen by the books, {frozen} in truth")
    if counts.merged + counts.zero + counts.copied != len(kinds) - shared - frozen:
        wrong.append(f"{counts.merged}+{counts.zero}+{counts.copied} pages are switched by the books: {kinds}")
    switched = [page for page in range(bench.pages) if bench.space.switched(1, page, 1)]
    if switched != [page for page, kind in enumerate(kinds) if kind in ("frame", "zero")]:
        wrong.append(f"by the books {switched} are switched, in truth {kinds}")
    return wrong


def merge_all(bench: Bench) -> None:
    """Proposes for every page the frame that it has most of the time, in pieces with gaps."""
    firsts = list(range(0, PAGES, 8))
    columns = [[1] * len(firsts), firsts, [7] * len(firsts), [1] * len(firsts), [1 + first for first in firsts]]
    bench.space.merge(*columns)


def merge(bench: Bench, writers: Writers, fault: tuple[str, str]) -> dict[str, Any]:
    before = faults.passed(fault[0])
    proposed = answered = rounds = 0
    faults.arm(*fault)
    while faults.passed(fault[0]) < before + 3 and rounds < 100:
        rounds += 1
        attempt(lambda: merge_all(bench))
        proposed += 7 * len(range(0, PAGES, 8))
        attempt(lambda: bench.adopt(0, PAGES))  # so that there is something to merge again
        answered += sum(count for kind, _, count, *_ in bench.events() if kind in (MERGED, DECLINED))
    stuck = writers.stop()
    faults.disarm()
    attempt(lambda: bench.adopt(0, PAGES))
    wrong = wrong_books(bench)
    answered += sum(count for kind, _, count, *_ in bench.events() if kind in (MERGED, DECLINED))
    merge_all(bench)
    merged = bench.space.counts().merged
    unpunched = bench.allocated() - (PAGES - merged)
    return {
        "stuck": stuck,
        "wrong": wrong + wrong_books(bench),
        "unanswered": proposed - answered,
        "unpunched": max(0, unpunched),
        "again": merged == 7 * len(range(0, PAGES, 8)),
    }


def alone(bench: Bench, writers: Writers, fault: tuple[str, str]) -> dict[str, Any]:
    """A thread is killed in a window, and nobody calls the space any more: the writers go on all the same."""
    faults.arm(*fault)
    outcome = attempt(lambda: merge_all(bench))
    stuck = writers.stop()
    return {"stuck": stuck, "wrong": wrong_books(bench), "again": "thread" in outcome}


def adopt(bench: Bench, writers: Writers, fault: tuple[str, str]) -> dict[str, Any]:
    before = faults.passed(fault[0])
    faults.arm(*fault)
    rounds = 0
    while faults.passed(fault[0]) < before + 3 and rounds < 100:
        rounds += 1
        attempt(lambda: merge_all(bench))
        attempt(lambda: bench.adopt(0, PAGES))
    stuck = writers.stop()
    faults.disarm()
    wrong = wrong_books(bench)
    merge_all(bench)
    bench.bytes[5 * PAGE] ^= 1
    bench.bytes[5 * PAGE] ^= 1
    bench.adopt(0, PAGES)
    return {"stuck": stuck, "wrong": wrong + wrong_books(bench), "again": bench.space.counts().owned == PAGES}


def discard(bench: Bench, writers: Writers, fault: tuple[str, str]) -> dict[str, Any]:
    """The upper part of the memory is nobody's, and is given back."""
    stuck = writers.stop()
    lower = bytes(bench.bytes[: 40 * PAGE])
    for page in range(PAGES):
        writers.model[page] = page_of(1 + page) if page < 40 else bytes(PAGE)
    merge_all(bench)
    bench.bytes[50 * PAGE] ^= 1
    faults.arm(*fault)
    outcome = attempt(lambda: bench.space.discard(1, 40, PAGES - 40))
    faults.disarm()
    assert outcome, "the fault was to be noticed"
    wrong = wrong_books(bench)
    bench.space.discard(1, 40, PAGES - 40)
    upper = all(bench.get(page) == bytes(PAGE) for page in range(40, PAGES))
    again = upper and bytes(bench.bytes[: 40 * PAGE]) == lower
    return {"stuck": stuck, "wrong": wrong + wrong_books(bench), "again": again}


def fork(bench: Bench, writers: Writers, fault: tuple[str, str]) -> dict[str, Any]:
    """A child writes to all that it can, and the parent must not see it; then the memory is thawed."""
    stuck = writers.stop()
    merge_all(bench)
    bench.space.adopt([1], [16], [8])
    pinned = fault[0] == "freeze.read"  # what is pinned is not frozen, but read
    if pinned:
        bench.space.pin(1, 16, 4)
    faults.arm(*fault)  # a fork cannot be stopped
    child = os.fork()
    if child == 0:
        for page in range(PAGES):
            grandchild = os.fork()  # what is withheld from the child is a SIGSEGV
            if grandchild == 0:
                bench.put(page, 5000)
                os._exit(0)
            os.waitpid(grandchild, 0)
        os._exit(0)
    os.waitpid(child, 0)
    if pinned:
        bench.space.unpin(1, 16, 4)
    same = all(bench.get(page) == page_of(1 + page) for page in range(PAGES))
    for page in range(0, PAGES, 5):
        bench.put(page, 2000 + page)
        writers.model[page] = page_of(2000 + page)
    attempt(bench.space.thaw)
    wrong = wrong_books(bench)
    faults.disarm()
    thawed = bench.space.thaw()
    return {"stuck": stuck, "wrong": wrong + wrong_books(bench), "again": same and thawed}


def reported(bench: Bench) -> set[int]:
    """The pages of which the journal says that they were written."""
    runs = [(first, count) for kind, first, count, *_ in bench.events() if kind in (COPIED, WRITTEN)]
    return {page for first, count in runs for page in range(first, first + count)}


def look(bench: Bench, writers: Writers, fault: tuple[str, str]) -> dict[str, Any]:
    """Every page that was written before a look that failed is reported by it or by the next."""
    stuck = writers.stop()
    merge_all(bench)
    bench.space.harvest()
    bench.events()
    bench.adopt(0, 8)  # watched anew by the next look
    for page in range(0, PAGES, 3):
        bench.put(page, 3000 + page)
        writers.model[page] = page_of(3000 + page)
    switched = {page for page in range(PAGES) if bench.space.switched(1, page, 1)}
    faults.arm(*fault)
    attempt(bench.space.harvest)
    faults.disarm()
    bench.space.harvest()
    told = reported(bench)
    missed = [page for page in range(0, PAGES, 3) if page not in told]
    bench.put(1, 4000)
    writers.model[1] = page_of(4000)
    bench.space.harvest()
    seen = reported(bench)
    assert switched, "some are merged"
    return {"stuck": stuck, "wrong": wrong_books(bench), "again": missed == [] and 1 in seen}


def main() -> None:
    scenario, point, fault = sys.argv[1:]
    bench = Bench(pages=PAGES, frames=2 + PAGES, tracker="pagemap", window_pages=16)
    bench.space.harvest()
    before = faults.passed(point)
    writers = Writers(bench)
    acts = {"merge": merge, "alone": alone, "adopt": adopt, "discard": discard, "fork": fork, "look": look}
    found = acts[scenario](bench, writers, (point, fault))
    found |= {"passed": faults.passed(point) - before, "lost": sorted(set(writers.lost))}
    for page in range(PAGES):
        if bench.get(page) != writers.model[page]:
            found["lost"].append(page)
    print(json.dumps(found), flush=True)
    os._exit(0)  # threads that a fault has ended cannot be waited for


if __name__ == "__main__":
    main()
