"""The native space: merge, adopt, discard, harvest and freeze, each on real memory, without a server."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pagefold_core import PAGE_SIZE
from support.children import child
from support.spaces import (
    BUDGET,
    CHANGED,
    COPIED,
    DECLINED,
    EXCLUDED,
    FORKED,
    INCLUDED,
    MERGED,
    NOT_ADOPTED,
    PINNED,
    RELEASED,
    STATE,
    WRITTEN,
    Bench,
    page_of,
)

pytestmark = pytest.mark.needs("uffd")

KERNELS: list[tuple[str, ...]] = [
    (),
    ("wp_unpopulated",),
    ("pagemap_scan",),
    ("wp_unpopulated", "pagemap_scan"),
]


@pytest.fixture(params=KERNELS, ids=lambda disabled: "-".join(disabled) or "full")
def bench(request: pytest.FixtureRequest) -> Iterator[Callable[..., Bench]]:
    """Benches on this kernel, and on it with newer features left unused."""
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(disabled=request.param, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_events_are_cut_to_what_a_call_may_be_about(bench: Callable[..., Bench]) -> None:
    """A client that said something of 128 GiB at once was excluded for it."""
    pages = (2 << 20) + 5
    b = bench(pages=pages)
    b.space.exclude(1, 0, pages, True)
    calls = []
    while b.space.pending():
        calls.append([(first, count) for kind, first, count, *_ in b.events() if kind == EXCLUDED])
    assert [sum(count for _, count in call) for call in calls] == [1 << 20, 1 << 20, 5]
    assert [first for call in calls for first, _ in call] == [0, 1 << 20, 2 << 20]


def test_equal_pages_are_switched_and_their_memory_goes_back(bench: Callable[..., Bench]) -> None:
    b = bench()
    for page in range(10):
        b.put(page, page + 5)
    assert b.merge(0, 10, 5) == 10
    assert b.events() == [(MERGED, 0, 10, 1, 5, 0)]
    assert b.allocated() == 0
    assert [b.get(p) for p in range(10)] == [page_of(p + 5) for p in range(10)]
    counts = b.space.counts()
    assert (counts.merged, counts.owned, counts.mappings) == (10, 54, 2)


def test_I2_unequal_bytes_are_declined_whatever_the_server_says(bench: Callable[..., Bench]) -> None:
    b = bench()
    for page in range(6):
        b.put(page, page + 1)
    before = bytes(b.bytes)
    assert b.merge(0, 6, 2) == 0
    assert b.events() == [(DECLINED, 0, 6, 1, 2, CHANGED)]
    assert b.merge(3, 1, 0, pool=0) == 0
    assert b.events() == [(DECLINED, 3, 1, 0, 0, CHANGED)]
    b.put(2, 30)
    assert b.merge(0, 6, 1) == 5
    assert b.events() == [(MERGED, 0, 2, 1, 1, 0), (DECLINED, 2, 1, 1, 3, CHANGED), (MERGED, 3, 3, 1, 4, 0)]
    b.put(2, 3)
    assert bytes(b.bytes) == before


def test_hostile_proposals_change_nothing(bench: Callable[..., Bench]) -> None:
    b = bench(pages=8, frames=8)
    for page in range(8):
        b.put(page, page)
    before = bytes(b.bytes)
    top = 2**32 - 1
    hostile = [
        (9, 0, 1, 1, 0),  # no such segment
        (1, 8, 1, 1, 0),  # past the end
        (1, 7, 2, 1, 7),
        (1, top, 1, 1, 0),
        (1, 0, top, 1, 0),
        (1, top, top, top, top),
        (1, 0, 1, 7, 0),  # no such pool
        (1, 0, 1, 1, 8),  # past the pool's end
        (1, 0, 2, 1, top),
        (1, 1, 1, 1, 2),  # other bytes
        (1, 1, 1, 0, 5),
    ]
    columns = [list(column) for column in zip(*hostile, strict=True)]
    assert b.space.merge(*columns) == 0
    assert bytes(b.bytes) == before
    events = []
    while b.space.pending():
        events += b.events()
    assert {kind for kind, *_ in events} == {DECLINED}
    assert sum(count for _, _, count, *_ in events) >= sum(row[2] for row in hostile if row[2] < 10)
    b.space.adopt([9, 1, 1, 1], [0, 0, top, 8], [1, top, top, 1])
    assert b.events() == []
    assert b.space.merge([1, 1], [0, 0], [2, 2], [1, 1], [0, 0]) == 2  # the same pages twice: once
    assert [kind for kind, *_ in b.events()] == [MERGED, DECLINED]
    assert bytes(b.bytes) == before


def test_columns_of_unequal_length_are_refused(bench: Callable[..., Bench]) -> None:
    with pytest.raises(ValueError, match="lengths"):
        bench().space.merge([1], [0, 1], [1], [1], [0])


def test_a_write_to_a_merged_page_is_private_and_is_found(bench: Callable[..., Bench]) -> None:
    b = bench()
    for page in range(6):
        b.put(page, page + 1)
    b.merge(0, 6, 1)
    b.events()
    assert b.space.harvest() == 0
    b.bytes[2 * PAGE_SIZE] = 77
    os.preadv(b.pool, [b.bytes[4 * PAGE_SIZE : 5 * PAGE_SIZE]], 0)  # the kernel writes, for the program
    assert b.space.harvest() == 2
    assert b.events() == [(COPIED, 2, 1, 0, 0, 0), (COPIED, 4, 1, 0, 0, 0)]
    assert b.space.harvest() == 0
    assert os.pread(b.pool, PAGE_SIZE, 3 * PAGE_SIZE) == page_of(3)
    assert b.get(2)[0] == 77
    assert b.get(4) == page_of(0)


def test_zero_pages_cost_no_frame(bench: Callable[..., Bench]) -> None:
    b = bench()
    for page in range(8):
        b.put(page, 3)
        b.put(page, 0)
    assert b.merge(0, 8, 0, pool=0) == 8
    assert b.events() == [(MERGED, 0, 8, 0, 0, 0)]
    assert b.allocated() == 0
    _ = [b.get(page) for page in range(8)]  # reading maps the zero page; that is no copy
    assert b.space.harvest() == 0
    b.bytes[5 * PAGE_SIZE + 9] = 1
    assert b.space.harvest() == 1
    assert b.events() == [(COPIED, 5, 1, 0, 0, 0)]


def test_adopt_brings_back_bytes_memory_and_mapping(bench: Callable[..., Bench]) -> None:
    b = bench()
    for page in range(12):
        b.put(page, page)
    b.merge(1, 11, 1)
    b.merge(0, 1, 0, pool=0)
    b.bytes[3 * PAGE_SIZE] = 99
    b.bytes[7] = 5
    before = bytes(b.bytes[: 12 * PAGE_SIZE])  # no further: reading a hole allocates it
    b.events()
    assert b.adopt(0, 12) == 12
    assert b.events() == [(RELEASED, 0, 12, 0, 0, 0)]
    assert bytes(b.bytes[: 12 * PAGE_SIZE]) == before
    assert b.allocated() == 12
    counts = b.space.counts()
    assert (counts.owned, counts.merged, counts.zero, counts.copied, counts.mappings) == (64, 0, 0, 0, 1)
    b.bytes[3 * PAGE_SIZE] = 100
    assert os.pread(b.segment, 1, 3 * PAGE_SIZE) == b"\x64", "an adopted page is shared with its segment again"


def test_an_adopted_page_that_is_given_back_waits_no_longer_and_that_is_reported(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.put(3, 3)
    b.merge(3, 1, 3)
    b.adopt(3, 1)
    b.events()
    b.space.discard(1, 0, 8)
    assert b.events() == [(WRITTEN, 0, 8, 0, 0, 2)]
    b.space.discard(1, 0, 8)
    assert b.events() == []


def test_adopting_zeros_writes_nothing(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.put(0, 1)
    b.put(0, 0)
    b.merge(0, 1, 0, pool=0)
    assert b.adopt(0, 1) == 1
    assert b.get(0) == page_of(0)


def test_discard_gives_memory_back_and_reads_as_zeros(bench: Callable[..., Bench]) -> None:
    b = bench()
    for page in range(10):
        b.put(page, page + 1)
    b.merge(2, 4, 3)
    b.bytes[3 * PAGE_SIZE] = 9
    b.space.exclude(1, 6, 2, True)
    b.events()
    b.space.discard(1, 1, 8)
    assert b.events() == [(RELEASED, 2, 4, 0, 0, 1), (INCLUDED, 6, 2, 0, 0, 0)]
    assert b.allocated() == 2
    assert b.get(1) == b.get(3) == b.get(8) == page_of(0)
    assert (b.get(0), b.get(9)) == (page_of(1), page_of(10))
    assert b.space.counts().mappings == 1
    b.put(6, 6)
    assert b.merge(6, 1, 6) == 1, "exclusion does not outlive the memory"


def test_excluded_and_pinned_pages_are_left_alone(bench: Callable[..., Bench]) -> None:
    b = bench()
    for page in range(6):
        b.put(page, page + 1)
    b.space.exclude(1, 0, 2, True)
    b.space.pin(1, 2, 2)
    b.space.pin(1, 2, 2)
    b.space.unpin(1, 2, 2)
    assert b.merge(0, 6, 1) == 2
    assert b.events() == [(EXCLUDED, 0, 2, 0, 0, 0), (DECLINED, 0, 4, 1, 1, PINNED), (MERGED, 4, 2, 1, 5, 0)]
    b.space.pin(1, 4, 1)
    assert b.adopt(4, 2) == 1
    assert b.events() == [(NOT_ADOPTED, 4, 1, 0, 0, errno.EBUSY), (RELEASED, 5, 1, 0, 0, 0)]
    b.space.exclude(1, 0, 2, False)
    b.space.unpin(1, 2, 2)
    b.space.unpin(1, 4, 1)
    with pytest.raises(ValueError, match="not pinned"):
        b.space.unpin(1, 4, 1)
    assert b.merge(0, 4, 1) == 4
    assert b.events() == [(INCLUDED, 0, 5, 0, 0, 0), (MERGED, 0, 4, 1, 1, 0)], "the server is told at once"


def test_the_mapping_budget_holds_and_long_runs_go_first(bench: Callable[..., Bench]) -> None:
    b = bench(pages=256, frames=256, budget=20)
    for page in range(256):
        b.put(page, page)
    singles = list(range(1, 201, 2))
    columns = [[1] * 101, [*singles, 210], [1] * 100 + [40], [1] * 101, [*singles, 210]]
    merged = b.space.merge(*columns)
    counts = b.space.counts()
    assert counts.mappings <= 20
    assert counts.mappings >= 18
    assert merged == counts.merged
    reasons = {detail for kind, *_, detail in b.events() if kind == DECLINED}
    assert reasons == {BUDGET}
    assert b.space.merge([1], [210], [1], [1], [210]) == 0, "the long run is there: it went first"
    assert b.events() == [(DECLINED, 210, 1, 1, 210, STATE)]
    assert [b.get(p) for p in range(256)] == [page_of(p) for p in range(256)]


def test_windows_hold_no_more_pages_than_told(bench: Callable[..., Bench]) -> None:
    b = bench(pages=64, frames=64, window_pages=8)
    for page in range(64):
        b.put(page, page)
    assert b.merge(1, 63, 1) == 63
    assert b.space.windows().windows >= 8
    assert b.space.counts().mappings == 2, "runs of several windows still become one mapping"


def test_a_window_whose_time_is_over_leaves_the_rest_for_the_next(bench: Callable[..., Bench]) -> None:
    b = bench(pages=64, frames=64, window_micros=0)
    for page in range(64):
        b.put(page, page)
    assert b.merge(1, 63, 1) == 63
    assert b.adopt(0, 64) == 63
    assert b.space.windows().windows >= 3
    assert [b.get(p) for p in range(64)] == [page_of(p) for p in range(64)]


def test_I4_frozen_memory_is_neither_merged_nor_adopted_nor_punched(bench: Callable[..., Bench]) -> None:
    b = bench(pages=16, frames=16)
    for page in range(16):
        b.put(page, page)
    b.merge(8, 4, 8)
    b.events()
    before = bytes(b.bytes)
    allocated = b.allocated()

    def look() -> None:
        assert bytes(b.bytes) == before
        b.bytes[:] = bytes(len(b.bytes))
        assert bytes(b.bytes) == bytes(len(before))

    with child(look) as one:  # looks when the parent has tried everything
        assert b.merge(0, 8, 0) == 0
        assert b.adopt(8, 4) == 0
        assert b.events() == [(DECLINED, 0, 8, 1, 0, FORKED), (NOT_ADOPTED, 8, 4, 0, 0, errno.EBUSY)]
        with pytest.raises(BlockingIOError):
            b.space.discard(1, 0, 16)
        assert b.space.drop_view(1) is False
        b.put(2, 99)
        b.put(9, 98)
        assert b.space.harvest() == 0
        assert b.allocated() == allocated
        assert b.space.thaw() is False
        one.go()
    assert b.space.thaw() is True
    expected = [page_of({2: 99, 9: 98}.get(p, p)) for p in range(16)]
    assert [b.get(p) for p in range(16)] == expected
    assert b.space.harvest() == 1
    assert b.adopt(8, 4) == 4
    assert b.space.counts().mappings == 1
    assert os.pread(b.segment, PAGE_SIZE, 2 * PAGE_SIZE) == page_of(99)


def test_a_proposal_for_a_hole_is_declined_and_allocates_nothing(bench: Callable[..., Bench]) -> None:
    # A proposal can meet a page that was freed meanwhile. Reading it through the shared mapping would allocate it, and
    # where /dev/shm is full that read was SIGBUS.
    b = bench(pages=8, frames=8)
    b.put(3, 3)
    assert b.merge(0, 3, 0) == b.merge(4, 4, 4) == b.merge(5, 1, 0, pool=0) == 0
    assert {detail for *_, detail in b.events()} == {CHANGED}
    assert b.allocated() == 1
    os.ftruncate(b.pool, 64 * PAGE_SIZE)  # frames that were never written
    assert b.merge(3, 1, 40) == 0
    assert os.fstat(b.pool).st_blocks * 512 == 8 * PAGE_SIZE


def test_adopting_scattered_copies_keeps_to_the_mapping_budget(bench: Callable[..., Bench]) -> None:
    # One run of zeros is one mapping; writing every second page of it and adopting those one by one used to take two
    # mappings each, until the whole process could not get any more.
    b = bench(pages=256, frames=1, budget=40)
    b.bytes[:] = b"x" * len(b.bytes)
    b.bytes[:] = bytes(len(b.bytes))
    assert b.merge(0, 256, 0, pool=0) == 256
    for page in range(0, 256, 2):
        b.put(page, 7)
    assert b.space.harvest() == 128
    b.events()
    adopted = sum(b.adopt(page, 1) for page in range(0, 256, 2))
    assert adopted < 128
    assert (NOT_ADOPTED, errno.ENOMEM) in {(kind, detail) for kind, *_, detail in b.events()}
    with open("/proc/self/maps") as maps:
        inside = [
            line for line in maps if b.block.address <= int(line.split("-")[0], 16) < b.block.address + len(b.bytes)
        ]
    assert len(inside) <= 40
    assert [b.get(p) for p in range(256)] == [page_of(7 if p % 2 == 0 else 0) for p in range(256)]
    assert b.adopt(0, 256) == 256 - adopted, "all of it together takes fewer mappings, and may be adopted"


def test_adopting_takes_no_more_memory_than_there_is(bench: Callable[..., Bench]) -> None:
    # Where no filesystem bounds it, the kernel would end a process. A copy gives its page up for the segment's.
    b = bench()
    for page in range(40):
        b.put(page, page)
    assert b.merge(0, 40, 0) == 40
    for page in range(10, 20):
        b.put(page, 1000 + page)
    b.space.harvest()
    b.events()
    assert b.space.adopt([1], [10], [10], 0) == 10
    assert b.events()[-1][0] == RELEASED
    assert b.space.adopt([1], [0], [10], 9) == 0
    assert b.events() == [(NOT_ADOPTED, 0, 10, 0, 0, errno.ENOMEM)]
    assert b.space.adopt([1, 1], [0, 20], [10, 20], 29) == 10
    assert [(kind, first, count) for kind, first, count, *_ in b.events()][-1] == (NOT_ADOPTED, 20, 20)
    assert b.allocated() == 20
    assert [b.get(page) for page in range(40)] == [page_of(1000 + p if 10 <= p < 20 else p) for p in range(40)]
    assert b.space.adopt([1], [20], [20]) == 20


def test_a_child_gets_a_copy_of_what_is_pinned(bench: Callable[..., Bench]) -> None:
    b = bench(pages=4)
    b.put(1, 1)
    b.space.pin(1, 1, 1)

    def look() -> None:
        assert b.get(1) == page_of(1)
        b.put(1, 3)
        assert b.get(1) == page_of(3)
        with child(lambda: b.put(1, 4)) as grandchild:
            grandchild.go()
        assert b.get(1) == page_of(3)

    with child(look) as one:
        os.pwrite(b.segment, page_of(2), PAGE_SIZE)  # a device writes to the page that it was given
        assert b.get(1) == page_of(2)
        one.go()
    assert b.get(1) == page_of(2)
    assert b.space.thaw() is True
    assert b.get(1) == page_of(2)
