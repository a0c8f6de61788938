"""What factory tell audits, on both: who holds what, which frames and which counts are wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from pagefold_core import punch_hole
from pagefold_server.engine import factory
from pagefold_server.engine.interface import Engine, EngineOptions, FrameFault, Held, Miscount
from pagefold_server.engine.pool_file import PoolFile
from pagefold_server.engine.reference.engine import ReferenceEngine
from pagefold_server.engine.states import COPIED, MERGED, PROPOSED, QUEUED, ZERO
from support.engine_world import COPIED as COPIED_EVENT
from support.engine_world import MERGED as MERGED_EVENT
from support.engine_world import PAGE, columns, content

CONTENTS = [1, 2, 3, 0, 0, 4, 5, 6]


class World:
    """An engine with a real pool, two clients with equal segments, and a frame for all of their pages."""

    def __init__(self, name: str) -> None:
        self.pool: PoolFile
        self.engine: Engine
        self.pool, self.engine, _ = factory.make(name, os.geteuid(), EngineOptions())
        self.segments = []
        for client in (1, 2):
            fd = os.memfd_create("segment")
            os.write(fd, b"".join(map(content, CONTENTS)))
            self.segments.append(fd)
            self.engine.add_client(client)
            self.engine.add_segment(client, 1, fd, len(CONTENTS))
        for _ in range(2):
            while self.engine.scan(1000).finished is None:
                pass

    def take(self, client: int, merge: bool = True) -> None:
        for segment, first, count, frame in self.engine.take(client, 100).merges:
            if merge:
                pool = 0 if frame < 0 else self.pool.number
                self.engine.apply(client, columns((MERGED_EVENT, segment, first, count, pool, max(frame, 0), 0)))

    def close(self) -> None:
        self.pool.close(unlink=True)
        for fd in self.segments:
            os.close(fd)


@pytest.fixture(params=["reference", "native"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(request.param)
    yield made
    made.close()


def frame_at(world: World, page: int) -> int:
    """The frame that client 1's page holds."""
    (run,) = world.engine.held(1, 1, page, 1)
    return run.frame


def test_what_is_held_comes_in_runs_of_one_state_and_following_frames(world: World) -> None:
    engine, first = world.engine, frame_at(world, 0)
    runs = [Held(0, 3, QUEUED, first), Held(3, 2, QUEUED, -1)]
    assert engine.held(1, 1, 0, 5) == runs
    assert engine.held(2, 1, 0, 5) == runs
    world.take(1)
    world.take(2, merge=False)
    assert engine.held(2, 1, 0, 5) == [Held(0, 3, PROPOSED, first), Held(3, 2, PROPOSED, -1)]
    engine.apply(1, columns((COPIED_EVENT, 1, 1, 1, 0, 0, 0), (COPIED_EVENT, 1, 4, 1, 0, 0, 0)))
    assert engine.held(1, 1, 0, 5) == [
        Held(0, 1, MERGED, first),
        Held(1, 1, COPIED, first + 1),
        Held(2, 1, MERGED, first + 2),
        Held(3, 1, ZERO, -1),
        Held(4, 1, COPIED, -1),
    ]
    assert engine.held(1, 1, 2, 1) == [Held(2, 1, MERGED, first + 2)]
    assert sum(run.pages for run in engine.held(1, 1, 0, 1 << 40)) == len(CONTENTS)
    assert engine.held(1, 1, 1 << 40, 5) == []
    with pytest.raises(KeyError):
        engine.held(3, 1, 0, 1)


def test_frames_are_what_they_were_and_free_ones_are_holes(world: World) -> None:
    engine, fd = world.engine, world.pool.fd
    world.take(1)
    world.take(2)
    numbers = os.fstat(fd).st_size // PAGE
    assert engine.audit(0, 1 << 20) == []
    changed, hole, left = frame_at(world, 0), frame_at(world, 6), numbers - 1
    os.pwrite(fd, b"!", changed * PAGE + 77)
    punch_hole(fd, hole * PAGE, PAGE)
    os.pwrite(fd, b"!", left * PAGE)
    faults = [(changed, FrameFault.CHANGED), (hole, FrameFault.HOLE), (left, FrameFault.LEFT)]
    assert engine.audit(0, numbers) == sorted(faults)
    assert engine.audit(0, numbers + 7) == sorted(faults)
    assert [engine.audit(frame, 1) for frame, _ in faults] == [[fault] for fault in faults]
    assert engine.audit(numbers, 100) == []


def test_released_frames_may_still_have_memory(world: World) -> None:
    """They are punched in batches: until then they are neither in use nor free."""
    world.take(1)
    world.take(2)
    world.engine.remove_client(1)
    world.engine.remove_client(2)
    assert world.pool.bytes_allocated() > 0
    assert world.engine.audit(0, 1 << 20) == []
    world.engine.flush()
    assert world.pool.bytes_allocated() == 0
    assert world.engine.audit(0, 1 << 20) == []


def test_users_are_counted_again(world: World) -> None:
    world.take(1)
    assert world.engine.recount() == []
    world.take(2, merge=False)
    world.engine.apply(1, columns((COPIED_EVENT, 1, 0, 1, 0, 0, 0)))
    assert world.engine.recount() == []
    if isinstance(world.engine, ReferenceEngine):  # the native one's books are poked by its own test
        frame = frame_at(world, 2)
        world.engine.ledger.frames._references[frame] += 1
        assert world.engine.recount() == [Miscount(frame, 2, 1, 1, 1)]
        world.engine.ledger.frames._references[frame] -= 1
        del world.engine.ledger.frames.stable[world.engine.ledger.frames.digest(frame)]
        assert world.engine.audit(0, 1 << 20) == [(frame, FrameFault.UNLISTED)]
