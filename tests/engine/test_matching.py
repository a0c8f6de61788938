"""How equal pages find each other, on both engines: passes, trees, frames, and how much is proposed."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from pagefold_server.engine.interface import PassReport, SegmentCounts
from pagefold_server.engine.reference import engine as reference
from pagefold_server.engine.reference.engine import ReferenceEngine
from pagefold_server.engine.reference.page_table import PageTable
from support.engine_cases import ReferenceWorld, World
from support.engine_world import (
    PAGE,
    ZEROS,
    FakeClient,
    content,
)


def runs_of(client: FakeClient) -> list[tuple[int, int, int]]:
    """The mappings of a client's segment 1: first page, pages, first frame."""
    runs: list[tuple[int, int, int]] = []
    for page, frame in sorted(client.segments[1].frames.items()):
        if runs and (runs[-1][0] + runs[-1][1], runs[-1][2] + runs[-1][1]) == (page, frame):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, runs[-1][2])
        else:
            runs.append((page, 1, frame))
    return runs


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
