"""The tracker "pagemap": which owned pages the native space reports as written, on real memory, without a server.

Details of a Written event: 0 written since the last look, 1 not watched for a moment, 2 given back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pagefold_core import Doorbell, Space
from support.children import child
from support.spaces import COPIED, DECLINED, INCLUDED, MERGED, PAGE, RELEASED, WRITTEN, Bench

pytestmark = [pytest.mark.needs("uffd"), pytest.mark.needs("wp_async")]

Runs = list[tuple[int, int, int]]


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(tracker="pagemap", **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def written(b: Bench) -> Runs:
    """(first, count, detail) of what a look reports; nothing else may have happened."""
    b.space.harvest()
    events = b.events()
    assert {kind for kind, *_ in events} <= {WRITTEN}
    return [(first, count, detail) for _, first, count, _, _, detail in events]


def test_a_look_reports_what_was_written_since_the_last_one_and_nothing_else(bench: Callable[..., Bench]) -> None:
    b = bench()
    assert written(b) == []
    for page in (3, 4, 5, 9):
        b.put(page, page)
    assert written(b) == [(3, 3, 0), (9, 1, 0)]
    assert written(b) == []
    b.bytes[4 * PAGE + 17] = 1
    assert written(b) == [(4, 1, 0)]
    b.bytes[60 * PAGE] = 1
    b.get(9)  # reading is no writing
    assert written(b) == [(60, 1, 0)]
    assert b.allocated() == 5, "looking allocates nothing"


def test_the_kernels_writes_are_found_too(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.put(7, 1)
    assert written(b) == [(7, 1, 0)]
    source = os.memfd_create("source")
    os.write(source, b"from the kernel")
    os.preadv(source, [b.bytes[7 * PAGE : 7 * PAGE + 15]], 0)
    os.close(source)
    assert written(b) == [(7, 1, 0)]


def test_merging_reports_no_writes_and_leaves_what_lies_between_alone(bench: Callable[..., Bench]) -> None:
    b = bench()
    for page in range(8):
        b.put(page, page + 1)
    assert written(b) == [(0, 8, 0)]
    assert b.space.merge([1, 1], [0, 6], [3, 2], [1, 1], [1, 7]) == 5
    assert b.events() == [(MERGED, 0, 3, 1, 1, 0), (MERGED, 6, 2, 1, 7, 0)]
    assert written(b) == [], "no window held the gap"
    b.put(4, 1)
    b.put(7, 1)
    b.space.harvest()
    assert b.events() == [(COPIED, 7, 1, 0, 0, 0), (WRITTEN, 4, 1, 0, 0, 0)]


def test_what_was_declined_and_adopted_is_watched_again(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.put(0, 5)
    b.put(1, 6)
    assert written(b) == [(0, 2, 0)]
    assert b.merge(0, 2, 5) == 2
    assert b.merge(0, 2, 5) == 0
    assert b.adopt(0, 1) == 1
    assert [kind for kind, *_ in b.events()] == [MERGED, DECLINED, RELEASED]
    assert written(b) == [(0, 1, 1)]
    b.put(0, 9)
    assert written(b) == [(0, 1, 0)]
    b.put(2, 9)
    assert written(b) == [(2, 1, 0)]
    assert b.merge(2, 1, 8) == 0  # unequal
    assert [kind for kind, *_ in b.events()] == [DECLINED]
    assert written(b) == [(2, 1, 1)]
    b.put(2, 7)
    assert written(b) == [(2, 1, 0)]


def test_memory_that_is_given_back_is_reported_if_it_ever_was(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.put(1, 1)
    b.put(2, 2)
    b.space.discard(1, 0, 4)
    assert b.events() == [], "the server never heard of these pages"
    b.put(1, 1)
    assert written(b) == [(1, 1, 0)]
    b.space.discard(1, 0, 4)
    assert b.events() == [(WRITTEN, 0, 4, 0, 0, 2)]
    assert written(b) == []
    b.put(1, 1)
    assert written(b) == [(1, 1, 0)]
    assert b.merge(1, 1, 1) == 1
    b.space.discard(1, 0, 4)
    assert [event[0] for event in b.events()] == [MERGED, RELEASED, WRITTEN]
    assert written(b) == [(1, 1, 1)], "mapped anew"
    b.put(1, 3)
    assert written(b) == [(1, 1, 0)]


def test_after_a_fork_everything_is_watched_again(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.put(0, 1)
    b.put(1, 2)
    assert written(b) == [(0, 2, 0)]

    def look() -> None:
        assert b.get(1)[0] == 2

    with child(look) as one:
        b.put(1, 7)
        assert b.space.harvest() == 0, "while a child may share it nothing is merged, so nothing is looked for"
        one.go()
    assert b.space.thaw() is True
    b.space.harvest()
    assert b.events() == [(INCLUDED, 0, 64, 0, 0, 0), (WRITTEN, 0, 64, 0, 0, 1)]
    b.put(0, 3)
    assert written(b) == [(0, 1, 0)]
    assert b.get(1)[0] == 7
    assert written(b) == [(1, 1, 0)], "the first access to a page after it was mapped anew counts as a write"


def test_only_views_that_are_due_are_looked_at_unless_all_are_asked_for(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.put(0, 1)
    assert b.space.harvest(False) == 1, "a new view is due at once"
    b.put(0, 2)
    assert b.space.harvest(False) == 0
    assert b.space.harvest(True) == 1


def test_hot_memory_is_looked_at_rarely(bench: Callable[..., Bench]) -> None:
    """To protect a page again costs its writer a fault, about 1 us: that must stay below 1 % of a core."""
    pages = 4096
    b = bench(pages=pages)
    name = f"/pagefold-test-{os.getpid()}"
    import posix_ipc

    posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=0).close()
    try:
        bell = Doorbell(name)
    finally:
        posix_ipc.unlink_semaphore(name)
    looks, until = 0, time.monotonic() + 2.0
    while time.monotonic() < until:
        for page in range(pages):
            b.bytes[page * PAGE] = 1
        if b.space.wait(bell, 0.01, 0.001) == "news":
            looks += 1
            b.events()
    # The first look finds all, the second that all were protected in vain; 4096 faults are 4 ms, so the next one is due
    # 0.4 s later. Without a bound it would be two hundred.
    assert 2 <= looks <= 8


def test_without_the_kernels_help_it_cannot_be_had() -> None:
    lease = os.memfd_create("lease")
    for feature in ("wp_async", "pagemap_scan"):
        with pytest.raises(OSError, match="disabled by request"):
            Space("uffd", lease, 100, tracker="pagemap", disabled=[feature])
    with pytest.raises(ValueError, match='"pagemap" or "checksum"'):
        Space("uffd", lease, 100, tracker="soft-dirty")  # type: ignore[arg-type]
    assert Space("off", lease, 100, tracker="pagemap").harvest() == 0
    os.close(lease)


def test_views_have_times_and_marks_of_their_own(bench: Callable[..., Bench]) -> None:
    """One look goes through all of them."""
    b = bench()
    segment = os.memfd_create("another")
    os.ftruncate(segment, 4 * PAGE)
    b.space.add_view(2, segment, 4)
    block = b.space.block(2, 0, 4 * PAGE)
    memoryview(block)[PAGE] = 1
    b.put(5, 5)
    b.space.harvest()
    e = b.space.drain()
    assert list(zip(e.kind, e.segment, e.first, strict=True)) == [(WRITTEN, 1, 5), (WRITTEN, 2, 1)]
    block.close()
    os.close(segment)


def test_what_a_device_may_have_written_is_reported_when_the_pin_ends(bench: Callable[..., Bench]) -> None:
    """Devices write past the page table. Nobody reported such pages, and the server kept the digest of before."""
    b = bench()
    b.put(3, 1)
    assert written(b) == [(3, 1, 0)]
    b.space.pin(1, 3, 2)
    os.pwrite(b.segment, b"by a device", 3 * PAGE)  # as a device does: no page table entry is marked
    assert written(b) == []
    b.space.unpin(1, 3, 2)
    assert written(b) == [(3, 2, 1)]


def test_a_space_that_tracks_no_longer_reports_nothing(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.put(3, 1)
    b.space.untrack()
    assert written(b) == []
    assert b.space.harvest() == 0


def mappings_of(b: Bench) -> int:
    """The kernel's count."""
    first, end = b.block.address, b.block.address + b.pages * PAGE
    with open("/proc/self/maps") as maps:
        ranges = [[int(part, 16) for part in line.split()[0].split("-")] for line in maps]
    return sum(start < end and stop > first for start, stop in ranges)


def test_the_budget_counts_the_mappings_that_there_are(bench: Callable[..., Bench]) -> None:
    """Pages that were let go for a window were mappings of their own until the next look, and nobody counted them."""
    b = bench(pages=512, frames=512)
    for page in range(512):
        b.put(page, page)
    assert written(b) == [(0, 512, 0)]
    scattered = list(range(0, 512, 4))
    ones, n = [1] * len(scattered), len(scattered)
    assert b.space.merge(ones, scattered, ones, ones, [page + 1 for page in scattered]) == 0, "all are declined"
    assert mappings_of(b) == b.space.counts().mappings == 1
    assert b.space.merge(ones, scattered, ones, ones, scattered) == n - 1 + (scattered[0] == 0)
    assert mappings_of(b) == b.space.counts().mappings
    for page in scattered:
        b.bytes[page * PAGE] = b.bytes[page * PAGE]
    b.space.harvest()
    assert b.space.adopt(ones, scattered, ones) == n
    assert mappings_of(b) == b.space.counts().mappings == 1
