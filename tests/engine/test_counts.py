"""What engines count and check, and both on a real pool."""

from __future__ import annotations

import os

import pytest
from pagefold_proto import shm_names
from pagefold_server.engine import factory
from pagefold_server.engine.interface import EngineOptions
from pagefold_server.engine.reference.pool import Pool
from support.engine_cases import ENGINES, ReferenceWorld, World
from support.engine_pools import FileStore
from support.engine_world import (
    PAGE,
    ZEROS,
    FakeClient,
    content,
)


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
