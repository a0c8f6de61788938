"""The factory, driven directly. The property tests beside it do the same at random, and compare the two.

Each test runs on both, but for those that reach into the reference; what is special to the native engine is in
test_native_engine.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from pagefold_proto import shm_names
from pagefold_server.engine import factory
from pagefold_server.engine.interface import EngineOptions, Left, PassReport, SegmentCounts
from pagefold_server.engine.reference import engine as reference
from pagefold_server.engine.reference.engine import ReferenceEngine
from pagefold_server.engine.reference.page_table import PageTable
from pagefold_server.engine.reference.pool import Pool
from pagefold_server.errors import ProtocolViolation
from support import engine_pools
from support.engine_pools import FileStore, ReferenceStore
from support.engine_world import (
    BUDGET,
    CHANGED,
    COPIED,
    DECLINED,
    EXCLUDED,
    FAILED,
    FORKED,
    INCLUDED,
    MERGED,
    NOT_ADOPTED,
    PAGE,
    PINNED,
    RELEASED,
    STATE,
    ZEROS,
    FakeClient,
    columns,
    content,
)

ENGINES = ("reference", "native")


class World:
    """An engine, its store and its clients."""

    def __init__(self, name: str) -> None:
        self.store, self.engine = engine_pools.make(name, seed=1)
        self.clients: list[FakeClient] = []

    def client(self, *numbers: int, tracked: bool = False) -> FakeClient:
        """A client; with numbers, it has a segment 1 with these contents."""
        made = FakeClient(self.engine, self.store, len(self.clients) + 1, tracked)
        self.clients.append(made)
        if numbers:
            made.add_segment(len(numbers))
            made.fill(1, numbers)
        return made

    def run_pass(self, slice_pages: int = 1000) -> PassReport:
        """Scans to the end of a pass; nobody answers."""
        while True:
            step = self.engine.scan(slice_pages)
            self.engine.check()
            if step.finished:
                return step.finished

    def settle(self, passes: int = 4) -> PassReport:
        """Passes, after each of which all clients do what they are told."""
        for _ in range(passes):
            report = self.run_pass()
            for client in self.clients:
                if client.segments:
                    client.exchange()
                    client.check()
            self.engine.check()
        return report

    def configure(self, **changes: int) -> None:
        self.engine.configure(replace(EngineOptions(), **changes))

    def close(self) -> None:
        for client in self.clients:
            for segment in client.segments.values():
                os.close(segment.fd)
        self.store.close(unlink=True)


@pytest.fixture(params=ENGINES)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(request.param)
    yield made
    made.close()


class ReferenceWorld(World):
    """With types that let tests reach in."""

    def __init__(self) -> None:
        super().__init__("reference")
        assert isinstance(self.engine, ReferenceEngine)
        assert isinstance(self.store, ReferenceStore)
        self.reference, self.frames = self.engine, self.store


@pytest.fixture
def reference_world() -> Iterator[ReferenceWorld]:
    made = ReferenceWorld()
    yield made
    made.close()


def runs_of(client: FakeClient) -> list[tuple[int, int, int]]:
    """The mappings of a client's segment 1: first page, pages, first frame."""
    runs: list[tuple[int, int, int]] = []
    for page, frame in sorted(client.segments[1].frames.items()):
        if runs and (runs[-1][0] + runs[-1][1], runs[-1][2] + runs[-1][1]) == (page, frame):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, runs[-1][2])
        else:
            runs.append((page, 1, frame))
    return runs


# Finding equal pages


def test_two_equal_pages_are_merged_after_two_passes(world: World) -> None:
    a, b = world.client(1, 2, 3), world.client(9, 3, 1)
    first = world.run_pass()
    assert (first.number, first.visited, first.fresh, first.volatile, first.proposed) == (1, 6, 6, 6, 0)
    second = world.run_pass()
    assert (second.proposed, second.unshared, second.volatile, second.visited) == (4, 2, 0, 6)
    a.exchange()
    b.exchange()
    counters = world.engine.counters()
    assert (counters.pages_shared, counters.pages_sharing, counters.pages_merged) == (2, 2, 4)
    third = world.run_pass()
    assert (third.visited, third.unshared, third.proposed) == (2, 2, 0)
    assert world.engine.merged_pages(1) == (2, 0)
    assert world.engine.segment_counts(1, 1) == SegmentCounts(merged=2, zero=0, copied=0, proposed=0)


def test_equal_pages_of_one_segment_are_merged(world: World) -> None:
    world.client(5, 5, 5, 6)
    world.settle()
    assert (world.engine.counters().pages_shared, world.engine.counters().pages_sharing) == (1, 2)


def test_a_later_page_joins_an_existing_frame(world: World) -> None:
    world.client(5, 5)
    world.settle()
    world.client(5)
    assert world.run_pass().proposed == 0
    assert world.run_pass().proposed == 1
    world.settle()
    assert (world.engine.counters().pages_shared, world.engine.counters().pages_sharing) == (1, 2)


def test_runs_stay_runs(world: World) -> None:
    numbers = [n % 200 + 10 for n in range(400)]
    a, b = world.client(*numbers), world.client(*reversed(numbers[:30]), *numbers[30:200])
    world.run_pass(7)
    world.run_pass(7)
    told = world.engine.take(1, 100)
    assert [count for _, _, count, _ in told.merges] == [100]
    assert told.more
    merges = told.merges + world.engine.take(1, 1000).merges
    assert [run[1:] for run in merges] == [(0, 100, 0), (100, 100, 100), (200, 200, 0)]
    assert world.engine.take(2, 1000).merges[-1] == (1, 30, 170, 30)
    assert world.engine.queued() == set()
    a.merges, b.merges = merges, []
    a.work()
    a.report()
    assert world.engine.merged_pages(1) == (400, 0)


@pytest.mark.parametrize("gap", range(1, 9))
def test_M2_a_gap_that_is_filled_later_leaves_one_run(world: World, gap: int) -> None:
    before, behind = list(range(10, 20)), list(range(60, 70))
    a = world.client(*before, *range(30, 30 + gap), *behind)
    b = world.client(*before, *range(40, 40 + gap), *behind)
    world.settle()
    assert runs_of(a) == runs_of(b) == [(0, 10, 0), (10 + gap, 10, 10 + gap)], "room is left, as much as is missing"
    for client in (a, b):
        client.fill(1, range(30, 30 + gap), first=10)
    world.settle()
    assert runs_of(a) == runs_of(b) == [(0, 20 + gap, 0)]


@pytest.mark.parametrize(
    ("before", "gap", "frame"),
    [
        (9, 9, 9),  # longer than what room is kept for
        (2, 3, 2),  # longer than the run before it: more would be left out than is used
        (3, 3, 6),
    ],
)
def test_M2_room_for_a_gap_is_bounded(world: World, before: int, gap: int, frame: int) -> None:
    numbers = list(range(10, 10 + before))
    a = world.client(*numbers, *range(30, 30 + gap), 60)
    world.client(*numbers, *range(40, 40 + gap), 60)
    world.settle()
    assert a.segments[1].frames == {**{page: page for page in range(before)}, before + gap: frame}


def test_M2_a_twins_run_is_gone_on_with_where_there_is_no_run_of_its_own(world: World) -> None:
    a, b = world.client(10, 11, 12, 13), world.client(10, 11, 12, 99)
    world.settle()
    c = world.client(13)
    world.settle()
    assert runs_of(a) == [(0, 4, 0)]
    assert runs_of(b) == [(0, 3, 0)]
    assert runs_of(c) == [(0, 1, 3)]


def test_zero_pages_need_no_frame(world: World) -> None:
    client = world.client(0, 7, 0)
    report = world.settle()
    counters = world.engine.counters()
    assert (counters.zero_pages, counters.pages_shared, counters.pages_sharing) == (2, 0, 0)
    assert world.store.pages == {}
    assert client.segments[1].frames == {0: -1, 2: -1}
    assert report.unshared == 1


def test_zero_pages_are_contents_like_others_when_not_in_use(world: World) -> None:
    world.configure(use_zero_pages=False)
    client = world.client(0, 7, 0)
    client.add_segment(50)  # holes, which are not zero pages
    world.settle()
    counters = world.engine.counters()
    assert (counters.zero_pages, counters.pages_shared, counters.pages_sharing) == (0, 1, 1)


def test_holes_are_passed_over_and_stay_holes(world: World) -> None:
    client = world.client()
    segment = client.add_segment(1000)
    for page in (3, 5, 500, 999):
        client.write(segment, page, content(page))
    before = os.fstat(client.segments[segment].fd).st_blocks
    assert world.run_pass(10).visited == 4
    assert world.run_pass(10).unshared == 4
    assert os.fstat(client.segments[segment].fd).st_blocks == before


def test_what_changes_is_fresh_at_first_and_then_only_volatile(world: World) -> None:
    client = world.client(1, 2)
    found = []
    for n in range(5):
        client.write(1, 0, content(100 + n))
        report = world.run_pass()
        found.append((report.fresh, report.volatile, report.unshared))
    assert found == [(2, 2, 0), (0, 1, 1), (0, 1, 1), (0, 1, 1), (0, 1, 1)]
    assert world.run_pass().unshared == 2
    client.write(1, 0, content(200))
    assert world.run_pass().fresh == 1
    assert world.engine.counters().pages_volatile == 1


def test_a_page_that_was_a_hole_is_fresh_again(world: World) -> None:
    client = world.client(1, 2)
    world.run_pass()
    client.write(1, 0, content(3))
    assert world.run_pass().fresh == 0
    client.discard(1, 0)
    world.run_pass()
    client.write(1, 0, content(4))
    report = world.run_pass()
    assert (report.fresh, report.volatile) == (1, 1)


def test_I2_bytes_decide_and_not_digests(reference_world: ReferenceWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = reference_world
    monkeypatch.setattr(reference, "xxh3_64_intdigest", lambda view, seed: 42)
    world.engine = ReferenceEngine(world.frames)
    world.client(1, 2, 3, 0)
    world.client(3, 2, 1, 0)
    world.settle(6)  # the unstable tree has one page of a colliding lot, so this takes a pass for each
    assert (world.engine.counters().pages_sharing, world.engine.counters().zero_pages) == (3, 2)
    assert sorted(map(str, world.store.pages.values())) == sorted(str(content(n)) for n in (1, 2, 3))


def test_M1_the_copy_decides_not_what_the_page_was(
    reference_world: ReferenceWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = reference_world
    a, b, c = world.client(4), world.client(4), world.client(4)
    world.run_pass()
    read = PageTable.read

    def read_late(table: PageTable, page: int) -> bytes | None:
        if table.client == 1:
            a.write(1, 0, content(5))  # between being digested and being copied
        return read(table, page)

    monkeypatch.setattr(PageTable, "read", read_late)
    assert world.run_pass().proposed == 2
    assert world.engine.queued() == {2, 3}, "b took the place of a, and c found it there"
    b.exchange()
    c.exchange()
    assert b.read(1, 0) == c.read(1, 0) == content(4)


def test_M1_a_page_in_the_unstable_tree_may_have_been_written_since(world: World) -> None:
    a, b, c = world.client(4), world.client(4), world.client(4)
    world.run_pass()
    world.engine.scan(1)
    a.write(1, 0, content(5))
    assert world.run_pass().proposed == 2
    assert world.engine.queued() == {b.number, c.number}, "b took the place of a, and c found it there"


def test_a_page_in_the_unstable_tree_may_have_been_excluded_since(world: World) -> None:
    a, b, c = world.client(4), world.client(4), world.client(4)
    world.run_pass()
    world.engine.scan(1)
    a.exclude(1, 0, True)
    a.report()
    assert world.run_pass().proposed == 2
    assert world.engine.queued() == {b.number, c.number}


def test_a_page_in_the_unstable_tree_may_have_lost_its_client(world: World) -> None:
    world.client(4)
    b, c = world.client(4), world.client(4)
    world.run_pass()
    world.engine.scan(1)
    world.engine.depart_client(1)
    assert world.run_pass().proposed == 2
    assert world.engine.queued() == {b.number, c.number}


def test_a_hole_in_the_unstable_tree_is_no_page_of_zeros(world: World) -> None:
    world.configure(use_zero_pages=False)
    a, b = world.client(0), world.client(0)
    world.run_pass()
    world.engine.scan(1)
    a.discard(1, 0)
    assert world.run_pass().proposed == 0
    a.write(1, 0, ZEROS)
    world.settle(3)
    assert a.frames() == b.frames() != {}


def test_a_page_in_the_unstable_tree_may_have_been_cut_off(world: World) -> None:
    a, b = world.client(1, 4), world.client(4, 4)
    world.run_pass()
    world.engine.scan(2)
    os.ftruncate(a.segments[1].fd, PAGE + 100)
    assert world.run_pass().proposed == 2
    assert world.engine.queued() == {b.number}


def test_a_full_frame_gets_a_twin(world: World) -> None:
    world.configure(max_page_sharing=3)
    world.client(*[6] * 8)
    world.settle(6)
    counters = world.engine.counters()
    assert (counters.pages_shared, counters.pages_sharing, counters.stable_node_dups) == (3, 5, 2)
    world.client(6)
    world.settle(3)
    assert world.engine.merged_pages(2) == (1, 0), "the third frame had room for one"
    world.client(6)
    report = world.settle(3)
    assert (world.engine.merged_pages(3), report.unshared) == ((0, 0), 1), "alone, it is worth no frame"


def test_the_oldest_frame_with_room_is_taken(world: World) -> None:
    world.configure(max_page_sharing=2)
    a = world.client(*[6] * 6)
    world.settle(5)
    assert sorted(Counter(a.segments[1].frames.values()).values()) == [2, 2, 2]
    full = world.client(6)
    world.settle()
    assert full.segments[1].frames == {}
    for page in (4, 0):
        a.discard(1, page)
        a.report()
    assert [world.settle().unshared, full.segments[1].frames] == [0, {0: a.segments[1].frames[1]}]
    last, late = world.client(6), world.client(6)
    world.settle()
    assert (last.segments[1].frames.keys(), late.segments[1].frames) == ({0}, {}), "there was room for one"
    world.configure(max_page_sharing=10)
    world.settle()
    assert late.segments[1].frames == {0: 0}


def test_a_pass_over_nothing_ends(world: World) -> None:
    assert world.engine.scan(10).finished == PassReport(1, 0, 0, 0, 0, 0, 0, 0, 0)
    assert world.run_pass().number == 2


# Room


def test_no_more_is_proposed_than_may_be_outstanding(world: World) -> None:
    world.configure(max_outstanding=5)
    client = world.client(*[3] * 20)
    world.run_pass()
    report = world.run_pass()
    assert (report.proposed, report.backlog) == (5, 15)
    assert world.engine.outstanding() == 5
    client.take()
    assert world.run_pass().proposed == 0
    client.work()
    client.report()
    assert world.run_pass().proposed == 5


def test_one_free_place_is_not_enough_for_two_pages(world: World) -> None:
    world.configure(max_outstanding=1)
    world.client(3, 3)
    world.run_pass()
    report = world.run_pass()
    assert (report.proposed, report.backlog, world.store.pages) == (0, 1, {})


def test_others_do_not_wait_for_a_client_that_has_no_room(world: World) -> None:
    world.configure(max_outstanding=2)
    world.client(1, 1, 5)
    world.client(5)
    world.client(5)
    world.run_pass()
    report = world.run_pass()
    assert (report.proposed, report.backlog) == (4, 1)
    assert world.engine.queued() == {1, 2, 3}


def test_a_full_pool_leaves_the_pages_as_they_are(reference_world: ReferenceWorld) -> None:
    world = reference_world
    world.frames.limit = 1
    world.client(1, 1, 2, 2)
    world.run_pass()
    report = world.run_pass()
    assert (report.proposed, report.unshared, report.unplaced) == (2, 1, 1), "one has an equal, and no room"
    world.frames.limit = 2
    world.settle()
    assert world.engine.merged_pages(1) == (4, 0)


def test_a_frame_that_cannot_be_written_is_given_back(
    reference_world: ReferenceWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = reference_world

    def refuse(frame: int, page: bytes) -> None:
        raise OSError(28, "no space")

    with monkeypatch.context() as full:
        full.setattr(world.store, "write", refuse)
        world.client(1, 1)
        world.run_pass()
        assert world.run_pass().proposed == 0
        assert world.store.pages == {}
    assert world.run_pass().proposed == 2


# What clients report


def test_I3_a_frame_is_released_with_its_last_reference_and_not_before(world: World) -> None:
    client = world.client(5, 5, 5)
    world.settle()
    client.write(1, 0, content(6))
    client.harvest()
    client.report()
    world.engine.check()
    assert list(world.store.pages) == [0], "a break drops nothing"
    assert world.engine.segment_counts(1, 1).copied == 1
    client.discard(1, 1)
    client.discard(1, 2)
    client.report()
    assert list(world.store.pages) == [0], "the copy keeps the reference"
    client.exchange()
    assert world.store.pages == {}
    assert world.engine.counters().pages_shared == 0
    world.engine.check()


def test_without_smart_scan_a_page_that_breaks_does_not_wait(world: World) -> None:
    world.configure(smart_scan=False)
    client = world.client(5, 5)
    world.settle()
    for seed in (7, 5, 9, 5):
        client.fill(1, [seed])
        client.harvest()
        client.report()
        client.exchange()
        world.settle()
        assert world.engine.counters().pages_waiting == 0
        assert world.engine.counters().pages_skipped == 0
    assert world.engine.merged_pages(1) == (2, 0)


def test_I3_a_reservation_keeps_a_frame(world: World) -> None:
    client = world.client(5, 5)
    world.settle()
    other = world.client(5)
    world.settle(1)
    world.run_pass()
    other.take()
    client.discard(1, 0)
    client.discard(1, 1)
    client.report()
    assert list(world.store.pages) == [0]
    other.decline(FAILED)
    other.report()
    assert world.store.pages == {}
    world.engine.check()


def test_I1_a_frame_stays_as_it_is_while_its_pages_come_and_go(world: World) -> None:
    client = world.client(5, 5, 5, 5)
    world.settle()
    for page in range(3):
        client.write(1, page, content(50 + page))
        client.exchange()
        assert world.store.pages == {0: content(5)}
    client.check()


def test_a_page_that_breaks_is_adopted_at_once_and_waits_longer_each_time(world: World) -> None:
    client = world.client(5, 5)
    waits = []
    for n in range(8):
        world.settle(3)
        assert world.engine.merged_pages(1)[0] == 2, n
        client.write(1, 0, content(6))
        client.harvest()
        client.report()
        told = world.engine.take(1, 10)
        assert told.adopts == [(1, 0, 1)]
        client.adopts = told.adopts
        client.work()
        client.report()
        client.write(1, 0, content(5))
        waited = 0
        while world.run_pass().waiting:
            waited += 1
        waits.append(waited)
    assert waits == [2, 4, 8, 16, 32, 64, 64, 64]
    assert world.engine.counters().pages_skipped == sum(waits)
    assert world.engine.counters().pages_broken == 8


def test_what_comes_after_a_page_that_waits_was_given_back_does_not_wait(world: World) -> None:
    client = world.client(5, 5)
    for _ in range(4):
        world.settle(20)
        client.write(1, 0, content(6))
        client.exchange()
        client.write(1, 0, content(5))
    assert world.run_pass().waiting == 1
    client.discard(1, 0)
    client.write(1, 0, content(5))
    client.exchange()
    assert world.run_pass().waiting == 0
    world.settle(3)
    assert world.engine.merged_pages(1)[0] == 2


def test_breaks_are_forgiven_after_a_long_time_and_forgotten_by_a_discard(reference_world: ReferenceWorld) -> None:
    world = reference_world
    client = world.client(5, 5)
    world.settle(3)
    client.write(1, 0, content(6))
    client.exchange()
    client.write(1, 0, content(5))
    table = next(iter(world.reference.ledger.tables.values()))
    assert table.breaks[0] == 1
    world.settle(256)
    assert table.breaks[0] == 0
    client.write(1, 0, content(6))
    client.harvest()
    client.discard(1, 0)
    client.report()
    assert table.breaks[0] == 0
    assert world.engine.counters().pages_waiting == 0


@pytest.mark.parametrize(
    ("reason", "name"),
    [(BUDGET, "pages_over_budget"), *((reason, "pages_refused") for reason in (PINNED, STATE, FAILED, FORKED))],
)
def test_a_declined_page_is_counted_and_tried_again_some_passes_later(world: World, reason: int, name: str) -> None:
    client = world.client(5, 5)
    world.run_pass()
    world.run_pass()
    client.take()
    client.decline(reason)
    client.report()
    assert world.engine.outstanding() == 0
    assert world.store.pages == {}
    assert getattr(world.engine.counters(), name) == 2
    kept = {BUDGET: "over_budget", PINNED: "pinned", STATE: "refused", FAILED: "failed", FORKED: "forked"}[reason]
    assert world.engine.left(1) == Left(**{field: 2 * (field == kept) for field in Left._fields})
    passes = 1
    while world.run_pass().proposed == 0:
        passes += 1
    assert passes == 9
    assert sum(world.engine.left(1)) == 0
    assert getattr(world.engine.counters(), name) == 0
    assert world.engine.counters().pages_declined == 2
    world.settle(1)
    assert world.engine.merged_pages(1) == (2, 0)


def test_pages_over_budget_are_tried_again_when_mappings_are_released(world: World) -> None:
    client = world.client(5, 5, 6, 6)
    world.run_pass()
    world.run_pass()
    client.take()
    client.merges, later = client.merges[:1], client.merges[1:]
    client.work()
    client.merges = later
    client.decline(BUDGET)
    client.report()
    assert world.engine.counters().pages_over_budget == 3
    client.discard(1, 0)
    client.report()
    assert world.engine.counters().pages_over_budget == 0
    assert world.run_pass().proposed == 2


def test_a_page_declined_for_having_changed_is_fresh(world: World) -> None:
    client = world.client(5, 5)
    world.run_pass()
    world.run_pass()
    client.take()
    client.decline(CHANGED)
    client.report()
    report = world.run_pass()
    assert (report.fresh, report.volatile, report.proposed) == (2, 2, 0)
    assert world.run_pass().proposed == 2


def test_a_page_that_could_not_be_adopted_is_asked_for_again_but_not_at_once(world: World) -> None:
    client = world.client(5, 5)
    world.settle()
    client.write(1, 0, content(6))
    client.harvest()
    client.report()
    client.take()
    assert world.engine.outstanding() == 1
    client.fail_adopts()
    client.report()
    assert world.engine.outstanding() == 0
    passes = 0
    while not world.engine.queued():
        world.run_pass()
        passes += 1
    assert passes == 8
    client.exchange()
    client.check()
    assert world.engine.segment_counts(1, 1).copied == 0


def test_an_adopt_that_is_overtaken_by_a_discard_is_not_made(world: World) -> None:
    client = world.client(5, 5)
    world.settle()
    client.write(1, 0, content(6))
    client.harvest()
    client.report()
    client.discard(1, 0)
    client.report()
    assert world.engine.queued() == set()
    assert not world.engine.take(1, 10)
    assert world.engine.outstanding() == 0


def test_excluded_pages_are_left_alone(world: World) -> None:
    client = world.client(5, 5, 5)
    world.run_pass()
    client.exclude(1, 0, True)
    client.report()
    assert world.run_pass().proposed == 2
    client.exclude(1, 1, True)  # while it is proposed
    client.exchange()
    client.discard(1, 1)
    client.write(1, 1, content(5))
    client.report()
    world.settle()
    assert client.segments[1].frames.keys() == {2}
    client.exclude(1, 0, False)
    client.exclude(1, 1, False)
    client.report()
    world.settle()
    assert client.segments[1].frames.keys() == {0, 1, 2}


LIES: list[Callable[[FakeClient], tuple[int, ...]]] = [
    lambda c: (0, 1, 0, 1, 0, 0, 0),  # no such kind
    lambda c: (8, 1, 0, 1, 0, 0, 0),
    lambda c: (-1, 1, 0, 1, 0, 0, 0),
    lambda c: (MERGED, 9, 0, 1, 1, 0, 0),  # no such segment
    lambda c: (EXCLUDED, 1, 0, 0, 0, 0, 0),  # no pages
    lambda c: (EXCLUDED, 1, -1, 1, 0, 0, 0),
    lambda c: (EXCLUDED, 1, 7, 2, 0, 0, 0),  # beyond the end
    lambda c: (INCLUDED, 1, 0, 1 << 40, 0, 0, 0),
    lambda c: (NOT_ADOPTED, 1, 8, 1, 0, 0, 28),
    lambda c: (MERGED, 1, 0, 1, 1, 0, 0),  # merged already
    lambda c: (MERGED, 1, 2, 1, 1, 0, 0),  # the frame of another
    lambda c: (MERGED, 1, 2, 1, 2, 1, 0),  # no such pool
    lambda c: (MERGED, 1, 2, 1, 0, 0, 0),  # on the zero page
    lambda c: (MERGED, 1, 2, 1, 1, 1 << 40, 0),
    lambda c: (MERGED, 1, 2, 3, 1, 1, 0),  # more than was proposed
    lambda c: (MERGED, 1, 4, 1, 1, 0, 0),  # never proposed
    lambda c: (MERGED, 1, 5, 1, 1, 0, 0),  # proposed, but not yet told
    lambda c: (DECLINED, 1, 2, 1, 1, 0, CHANGED),
    lambda c: (DECLINED, 1, 5, 1, 0, 0, CHANGED),
    lambda c: (DECLINED, 1, 4, 1, 1, 0, CHANGED),
    lambda c: (COPIED, 1, 4, 1, 0, 0, 0),
    lambda c: (COPIED, 1, 2, 1, 0, 0, 0),
    lambda c: (COPIED, 1, 0, 3, 0, 0, 0),  # the third page is not merged
    lambda c: (RELEASED, 1, 4, 1, 0, 0, 0),
    lambda c: (RELEASED, 1, 1, 2, 0, 0, 1),
]


@pytest.mark.parametrize("lie", LIES)
def test_I3_lies_are_refused_before_they_change_anything(
    world: World, lie: Callable[[FakeClient], tuple[int, ...]]
) -> None:
    client = world.client(1, 1, 2, 2, 3, 9, 4, 4)
    world.configure(max_outstanding=2)
    world.run_pass()
    world.run_pass()
    client.exchange()  # 0 and 1 are merged
    world.run_pass()
    client.take()  # 2 and 3 are proposed
    world.configure()
    client.fill(1, [4], first=5)
    world.run_pass()
    world.run_pass()  # 5, 6 and 7 are queued
    engine = world.engine
    before = (engine.segment_counts(1, 1), engine.outstanding(), engine.counters(), dict(world.store.pages))
    assert before[0] == SegmentCounts(merged=2, zero=0, copied=0, proposed=5)
    with pytest.raises(ProtocolViolation):
        engine.apply(1, columns(lie(client)))  # type: ignore[arg-type]
    engine.check()
    assert (engine.segment_counts(1, 1), engine.outstanding(), engine.counters(), world.store.pages) == before


def test_events_before_a_lie_are_booked_and_those_after_it_are_not(world: World) -> None:
    client = world.client(5, 5, 5)
    world.run_pass()
    world.run_pass()
    client.take()
    truth = (MERGED, 1, 0, 1, 1, 0, 0)
    lie = (RELEASED, 1, 2, 1, 0, 0, 0)
    with pytest.raises(ProtocolViolation, match="in no state"):
        world.engine.apply(1, columns(truth, lie, (MERGED, 1, 1, 1, 1, 0, 0)))
    assert world.engine.segment_counts(1, 1) == SegmentCounts(merged=1, zero=0, copied=0, proposed=2)
    world.engine.check()


def test_columns_of_unequal_length_are_refused(world: World) -> None:
    world.client(1)
    events = columns((EXCLUDED, 1, 0, 1, 0, 0, 0))
    events.detail = []
    with pytest.raises(ProtocolViolation, match="equal length"):
        world.engine.apply(1, events)


def test_a_client_cannot_speak_of_the_segments_of_another(world: World) -> None:
    world.client(1)
    world.client()
    with pytest.raises(ProtocolViolation, match="not known"):
        world.engine.apply(2, columns((EXCLUDED, 1, 0, 1, 0, 0, 0)))


# Coming and going


def test_a_segment_in_use_is_not_dropped(world: World) -> None:
    client = world.client(5, 5)
    world.run_pass()
    world.run_pass()
    client.take()
    assert not world.engine.drop_segment(1, 1), "proposed"
    client.work()
    client.report()
    assert not world.engine.drop_segment(1, 1), "merged"
    client.discard(1, 0)
    client.discard(1, 1)
    client.report()
    assert world.engine.drop_segment(1, 1)
    world.engine.check()
    assert world.store.pages == {}
    assert world.run_pass().visited == 0


def test_dropping_a_segment_takes_back_what_is_queued(world: World) -> None:
    client = world.client(5, 6, 6)
    second = client.add_segment(2)
    client.fill(second, [5, 7])
    world.run_pass()
    assert world.run_pass().proposed == 4
    assert world.engine.drop_segment(1, 1)
    world.engine.check()
    assert world.engine.take(1, 100).merges == [(second, 0, 1, 1)]
    assert world.engine.outstanding() == 1
    assert list(world.store.pages) == [1]


def test_segments_come_and_go_in_the_middle_of_a_pass(world: World) -> None:
    clients = [world.client(*range(100, 170)) for _ in range(3)]
    world.run_pass()
    world.engine.scan(70)
    assert world.engine.drop_segment(1, 1), "it is in the unstable tree"
    clients[0].segments.pop(1)
    late = world.client(*range(100, 170))
    world.engine.scan(10)
    clients[1].die()
    world.engine.check()
    world.settle(4)
    assert world.engine.counters().pages_shared == 70
    assert late.segments[1].frames.keys() == set(range(70))


def test_I3_a_departed_client_keeps_its_frames_until_its_family_is_dead(world: World) -> None:
    a, b = world.client(5, 6, 8), world.client(5, 6)
    world.run_pass()
    world.run_pass()
    a.take(1)  # one of two, and it may have carried it out
    b.exchange()
    world.engine.depart_client(1)
    world.engine.check()
    assert world.engine.outstanding() == 0
    assert world.engine.merged_pages(1) == (1, 0)
    a.work()
    with pytest.raises(ProtocolViolation, match="departed"):
        a.report()
    for page in range(2):
        b.discard(1, page)
    b.report()
    assert list(world.store.pages.values()) == [content(5)]
    assert world.run_pass().visited == 0, "it is not scanned any more"
    assert not world.engine.drop_segment(1, 1)
    a.die()
    assert world.store.pages == {}
    world.engine.check()


def test_I3_death_drops_references_and_reservations(world: World) -> None:
    a, b = world.client(5, 5, 6, 6), world.client(5, 6, 7)
    world.configure(max_outstanding=4)
    world.run_pass()
    world.run_pass()
    a.exchange()
    b.take(1)
    a.die()
    world.engine.check()
    assert set(world.store.pages.values()) == {content(5), content(6)}
    b.die()
    assert world.store.pages == {}
    assert (world.engine.outstanding(), world.engine.queued()) == (0, set())
    world.engine.check()


@pytest.mark.parametrize("size", [0, PAGE - 1, PAGE, 10 * PAGE + 100])
def test_I5_a_client_that_truncates_its_segment_harms_nobody(world: World, size: int) -> None:
    liar = world.client(*range(1, 150))
    world.run_pass()
    world.client(*range(1, 150))
    world.client(*range(1, 150))
    world.engine.scan(64)
    os.ftruncate(liar.segments[1].fd, size)
    for _ in range(4):
        world.run_pass(30)
        for client in world.clients[1:]:
            client.exchange()
    assert world.engine.merged_pages(2) == world.engine.merged_pages(3) == (149, 0)


def test_a_segment_that_cannot_be_read_does_not_stop_the_others(world: World) -> None:
    client = world.client()
    read, write = os.pipe()
    world.engine.add_segment(1, 77, read, 10)  # every call on it fails
    world.client(3, 3)
    world.settle()
    assert world.engine.merged_pages(2) == (2, 0)
    os.close(read)
    os.close(write)
    assert client.segments == {}


# Unmerging


def test_unmerging_gives_every_page_back_and_proposes_nothing(world: World) -> None:
    a, b = world.client(5, 0, 6, 5, 9), world.client(5, 6)
    world.settle(3)
    late = world.client(5, 9)
    world.run_pass()
    world.run_pass()
    late.take()  # on its way when unmerging begins
    a.write(1, 0, content(1))
    a.harvest()
    a.report()
    world.engine.unmerge(True)
    world.engine.check()
    assert world.engine.scan(100).visited == 0
    late.work()
    late.report()
    for client in world.clients:
        client.exchange()
        client.check()
    world.engine.check()
    assert (a.frames(), b.frames(), late.frames()) == ({}, {}, {})
    assert world.store.pages == {}
    assert (world.engine.outstanding(), world.engine.counters().zero_pages) == (0, 0)
    world.engine.unmerge(False)
    world.settle(8)
    assert world.engine.merged_pages(3) == (2, 0)


def test_unmerging_asks_again_for_what_could_not_be_adopted(world: World) -> None:
    client = world.client(5, 5)
    world.settle()
    world.engine.unmerge(True)
    client.take()
    client.fail_adopts()
    client.report()
    assert world.engine.outstanding() == 0
    calls = 0
    while not world.engine.queued():
        assert world.engine.scan(100).finished is None
        calls += 1
    assert calls == 8
    client.exchange()
    assert world.store.pages == {}


# The books


def test_counters_say_what_the_books_cost(world: World) -> None:
    empty = world.engine.counters().bookkeeping_bytes
    client = world.client()
    client.add_segment(10_000)
    least, most = {"reference": (16, 17), "native": (0, 1)}[world.engine.name]  # which takes what differs, when it does
    assert least * 10_000 <= world.engine.counters().bookkeeping_bytes - empty <= most * 10_000


def test_copies_save_nothing(world: World) -> None:
    client = world.client(5, 5, 5)
    world.settle()
    assert world.engine.counters().pages_sharing == 2
    client.write(1, 0, content(6))
    client.harvest()
    client.report()
    assert world.engine.counters().pages_sharing == 1


def test_the_check_finds_books_that_are_wrong(reference_world: ReferenceWorld) -> None:
    world = reference_world
    world.client(5, 5)
    world.settle()
    table = next(iter(world.reference.ledger.tables.values()))
    table.frames[0] = 3
    with pytest.raises(AssertionError):
        world.engine.check()
    table.frames[0] = 0
    world.engine.check()
    world.reference.ledger.frames.reserve(0)
    with pytest.raises(AssertionError, match="reservations"):
        world.engine.check()


@pytest.mark.parametrize("name", ENGINES)
def test_it_works_on_the_real_pool_and_on_named_segments(name: str) -> None:
    pool, engine, past = factory.make(name, os.geteuid(), EngineOptions())
    assert not past
    store = pool if isinstance(pool, Pool) else FileStore(pool)
    clients = [FakeClient(engine, store, n) for n in (1, 2)]
    for client in clients:
        client.pool = pool.number
    made = [shm_names.create_locked(shm_names.SEGMENT, 0o600, 300 * PAGE) for _ in clients]
    try:
        for client, segment in zip(clients, made, strict=True):
            number = client.add_segment(300, os.dup(segment.fd))
            client.fill(number, [*range(299), 0])
        for _ in range(4):
            while not engine.scan(50).finished:
                pass
            for client in clients:
                client.exchange()
        assert engine.counters().pages_shared == engine.counters().pages_sharing == 298
        assert engine.counters().zero_pages == 4
        assert pool.bytes_allocated() == 298 * PAGE
        assert [os.fstat(segment.fd).st_blocks for segment in made] == [0, 0], "their own pages are given back"
        for client in clients:
            client.check()
        clients[0].die()
        assert engine.counters().pages_shared == 298
        for page in range(298):
            clients[1].write(1, page, ZEROS)
        clients[1].exchange()
        clients[1].check()
        engine.flush()
        engine.check()
        assert pool.bytes_allocated() == PAGE
        clients[1].die()
        engine.flush()
        assert pool.bytes_allocated() == 0
    finally:
        for segment in made:
            shm_names.remove(segment.name)
            os.close(segment.fd)
        pool.close(unlink=True)
