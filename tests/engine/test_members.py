"""Clients and segments of an engine that come and go, and the end of all merging."""

from __future__ import annotations

import os

import pytest
from pagefold_server.errors import ProtocolViolation
from support.engine_cases import World
from support.engine_world import (
    PAGE,
    content,
)


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
