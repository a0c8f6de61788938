"""What clients report, and what engines make of it: merges, breaks, refusals, adopts, and lies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pagefold_server.engine.interface import Left, SegmentCounts
from pagefold_server.errors import ProtocolViolation
from support.engine_cases import ReferenceWorld, World
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
    PINNED,
    RELEASED,
    STATE,
    FakeClient,
    columns,
    content,
)


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
