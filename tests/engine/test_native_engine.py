"""What the native engine has of its own: its pool, its descriptors, frames written in chunks, and threads."""

from __future__ import annotations

import errno
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pagefold_core
import pytest
from pagefold_server.engine.interface import EngineOptions
from pagefold_server.engine.native import NativeEngine
from pagefold_server.errors import LimitReached
from support import engine_cases
from support.engine_pools import NO_LIMIT, Lockstep, LockstepStore, NativeStore
from support.engine_world import PAGE, FakeClient, columns, content


class World(engine_cases.World):
    """An engine on a pool whose writes can fail."""

    def __init__(self) -> None:
        self.store = NativeStore()
        self.engine = self.store.engine = NativeEngine(self.store, seed=1)
        self.clients: list[FakeClient] = []

    def settle(self, passes: int = 4) -> None:
        for _ in range(passes):
            with self.store.tight():
                while not self.engine.scan(1000).finished:
                    pass
            self.engine.check()
            for client in self.clients:
                client.exchange()
                client.check()
            self.engine.check()

    def close(self) -> None:
        for client in self.clients:
            client.die()
        self.engine.check()
        self.store.close(unlink=True)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def merged(world: World) -> list[int]:
    return [world.engine.merged_pages(client.number)[0] for client in world.clients]


@pytest.mark.parametrize("tracked", [False, True])
def test_frames_that_cannot_be_written_leave_the_pages_as_they_are(world: World, tracked: bool) -> None:
    world.client(1, 1, tracked=tracked)
    world.settle()  # so that the pool has its first numbers, and the rest of this is about writes
    for _ in range(2):
        world.client(*range(10, 20), 15, 15, 15, tracked=tracked)
    world.store.limit = 6  # in the middle of a run
    world.settle()
    assert merged(world)[0] == 2
    assert merged(world)[1] < 13
    assert world.engine.counters().pages_shared == len(world.engine.frames()) == 6
    refusal = world.engine.refusal()
    assert refusal is not None
    assert refusal.errno == errno.EFBIG
    assert world.engine.refusal() is None
    world.store.limit = NO_LIMIT
    world.settle(5)
    assert merged(world) == [2, 13, 13]
    assert world.engine.counters().pages_shared == 11


def test_a_full_frame_that_cannot_be_written_leaves_its_successor_listed(world: World) -> None:
    world.engine.configure(EngineOptions(max_page_sharing=2))
    world.client(1, 1)
    world.settle()
    world.client(7, 7, 7, 7, 7)
    world.store.limit = 1
    world.settle()
    assert merged(world) == [2, 0]
    world.store.limit = NO_LIMIT
    world.settle()
    assert merged(world) == [2, 4]


def test_released_frames_are_given_back_in_batches_and_their_numbers_used_again(world: World) -> None:
    a = world.client(*range(1000, 1300))
    b = world.client(*range(1000, 1300))
    world.settle()
    assert world.store.bytes_allocated() == 300 * PAGE
    for client in (a, b):
        for page in range(300):
            client.discard(1, page)
        client.report()
    assert world.engine.frames() == []
    assert world.store.bytes_allocated() == 44 * PAGE, "a batch of 256 was punched"
    world.engine.flush()
    assert world.store.bytes_allocated() == 0
    world.engine.check()
    world.client(5, 5)
    world.settle()
    assert world.engine.frames() == [0]


def test_a_pool_has_a_limit() -> None:
    store = NativeStore()
    engine = store.engine = NativeEngine(store, limit=1)
    client = FakeClient(engine, store, 1)
    client.add_segment(4)
    client.fill(1, [1, 1, 2, 2])
    for _ in range(2):
        assert engine.scan(100).finished
    refusal = engine.refusal()
    assert refusal is not None
    assert refusal.errno == errno.ENOSPC
    assert engine.frames() == [0]
    client.die()
    store.close(unlink=True)


def test_the_segments_of_a_domain_have_a_limit(world: World) -> None:
    world.client()
    fd = os.memfd_create("sparse")
    world.engine.add_segment(1, 1, fd, 1 << 10)
    with pytest.raises(LimitReached, match="2\\*\\*32"):
        world.engine.add_segment(1, 2, fd, 1 << 32)
    with pytest.raises(LimitReached, match="2\\*\\*32"):
        world.engine.add_segment(1, 2, fd, 1 << 60)
    world.engine.add_segment(1, 2, fd, 1 << 20)
    assert world.engine.drop_segment(1, 1)
    assert world.engine.drop_segment(1, 2)
    os.close(fd)


def test_a_segment_that_there_is_no_memory_for_is_refused(world: World) -> None:
    world.client()
    fd = os.memfd_create("sparse")
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (taken + (32 << 20), before[1]))
    try:
        with pytest.raises(LimitReached, match="memory"):
            world.engine.add_segment(1, 1, fd, 1 << 32)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    world.engine.add_segment(1, 1, fd, 1 << 20)
    os.close(fd)


@pytest.mark.parametrize("tracked", [True, False])
def test_memory_that_is_reserved_and_never_written_is_left_in_peace(world: World, tracked: bool) -> None:
    """It reads as zeros, and some kernels' quickest answer takes it for data. Clients decline it: it is no page yet."""
    client = world.client(tracked=tracked)
    fd = os.memfd_create("reserved")
    os.ftruncate(fd, 10 * PAGE)
    os.posix_fallocate(fd, 0, 10 * PAGE)
    world.engine.add_segment(1, 1, fd, 10, tracked=tracked)
    if tracked:
        world.engine.apply(1, columns((8, 1, 0, 10, 0, 0, 1)))
    proposed = []
    for _ in range(6):
        while (finished := world.engine.scan(1000).finished) is None:
            pass
        told = world.engine.take(1, 1000).merges
        proposed.append(sum(count for _, _, count, _ in told))
        world.engine.apply(1, columns(*((2, 1, first, count, 0, 0, 1) for _, first, count, _ in told)))
        world.engine.check()
    assert sum(proposed) <= 10
    assert (finished.proposed, finished.fresh, finished.volatile, finished.backlog) == (0, 0, 0, 0)
    os.pwrite(fd, content(3), 0)
    if tracked:
        world.engine.apply(1, columns((8, 1, 0, 1, 0, 0, 0)))
    for _ in range(10):
        while world.engine.scan(1000).finished is None:
            pass
    assert world.engine.counters().pages_unshared == 1
    assert not client.segments
    os.close(fd)


def test_a_sparse_segment_costs_next_to_nothing(world: World) -> None:
    world.client(3, 3)
    fd = os.memfd_create("sparse")
    pages = 1 << 26
    os.ftruncate(fd, pages * PAGE)
    os.pwrite(fd, content(3), (pages - 1) * PAGE)
    before = _resident()
    world.engine.add_segment(1, 2, fd, pages, tracked=True)
    world.engine.add_segment(1, 3, fd, pages)
    world.engine.apply(1, columns((8, 2, pages - 1, 1, 0, 0, 0)))
    for _ in range(3):
        while not world.engine.scan(1000).finished:
            pass
    assert _resident() - before < 4 << 20
    assert world.engine.segment_counts(1, 2).proposed == world.engine.segment_counts(1, 3).proposed == 1
    world.engine.remove_client(1)
    world.clients.clear()
    os.close(fd)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def test_descriptors_are_duplicated_and_closed_again(world: World) -> None:
    before = len(os.listdir("/proc/self/fd"))
    client = world.client()
    fd = os.memfd_create("segment")
    os.ftruncate(fd, 2 * PAGE)
    os.pwrite(fd, content(4) * 2, 0)
    world.engine.add_segment(1, 1, fd, 2)
    os.close(fd)
    for _ in range(2):
        assert world.engine.scan(100).finished
    assert world.engine.segment_counts(1, 1).proposed == 2
    world.engine.remove_client(client.number)
    world.clients.clear()
    assert len(os.listdir("/proc/self/fd")) == before
    world.engine.add_client(9)
    with pytest.raises(OSError, match="segment"):
        world.engine.add_segment(9, 1, -1, 2)


def test_who_is_not_known_is_a_key_error(world: World) -> None:
    world.engine.add_client(1)
    with pytest.raises(KeyError):
        world.engine.take(2, 10)
    with pytest.raises(KeyError):
        world.engine.segment_counts(1, 1)
    with pytest.raises(KeyError):
        world.engine.drop_segment(1, 1)
    with pytest.raises(ValueError, match="already"):
        world.engine.add_client(1)
    world.engine.remove_client(1)


def test_what_the_extension_exports_is_sorted_and_there() -> None:
    assert pagefold_core.__all__ == sorted(pagefold_core.__all__, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(pagefold_core, name) for name in pagefold_core.__all__)


@pytest.mark.parametrize("threads", [1, 2, 5, 1000])
@pytest.mark.parametrize("slices", [100, 3000])
def test_threads_change_no_decision(threads: int, slices: int) -> None:
    choose = random.Random(threads + slices)
    lockstep = Lockstep(threads=threads)
    store = LockstepStore(lockstep)
    clients = [FakeClient(lockstep, store, n, tracked=n == 3) for n in range(1, 5)]
    for client in clients:
        for size in (700, 70, 1500):
            number = client.add_segment(size)
            for page in range(size):
                if choose.random() < 0.8:
                    client.write(number, page, content(page if choose.random() < 0.7 else choose.randrange(5000)))
    try:
        for turn in range(5):
            while not lockstep.scan(slices).finished:
                pass
            lockstep.check()
            for client in clients:
                if turn:
                    client.exchange()
                for _ in range(20):
                    client.write(choose.randint(1, 2), choose.randrange(70), content(choose.randrange(100)))
                client.check()
            if turn == 2:
                os.ftruncate(clients[0].segments[3].fd, 333 * PAGE + 100)
                clients.pop(0)
        assert lockstep.counters().pages_sharing > 1000
    finally:
        store.close(unlink=True)
