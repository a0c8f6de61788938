"""The demo's parts: its data, its verdict, and how it counts memory."""

from __future__ import annotations

import dataclasses
import mmap
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pagefold.cli import demo
from pagefold.cli._demo import physical
from pagefold.cli._demo import workers as workers_module
from pagefold.cli._demo.workers import PRIVATE_STRIPE, STRIPES, ZERO_STRIPE, Worker
from pagefold.cli.demo import Result
from pagefold.cli.exits import CommandError

MIB = 1 << 20
PAGE = mmap.PAGESIZE

RESULT = Result(
    workers=2,
    bytes_per_worker=MIB,
    distinct_bytes=MIB,
    physical_before=3 * MIB,
    physical_after=2 * MIB,
    physical_written=2 * MIB,
    returned_bytes=0,
    saved_bytes=MIB,
    ideal_saved_bytes=MIB,
    settle_seconds=0.1,
    settled=True,
    written_bytes=0,
    verified=True,
    lost_bytes=0,
    barrier="uffd",
    window_max_micros=1,
)


@pytest.mark.parametrize(
    ("changes", "convincing"),
    [
        ({}, True),
        ({"saved_bytes": MIB * 96 // 100}, True),
        ({"saved_bytes": MIB * 94 // 100}, False),
        ({"verified": False, "lost_bytes": 1}, False),
    ],
)
def test_the_verdict(changes: dict[str, int], convincing: bool) -> None:
    assert dataclasses.replace(RESULT, **changes).convincing is convincing  # type: ignore[arg-type]


def made(number: int, nbytes: int = 2 * MIB, seed: int = 5) -> Worker:
    worker = Worker.__new__(Worker)
    worker._client = SimpleNamespace(empty=np.zeros)
    worker._number, worker._nbytes, worker._seed = number, nbytes, seed
    worker._array, worker._edits = None, {}
    return worker


def test_workers_share_all_but_one_stripe_and_zeros_are_zero() -> None:
    arrays = []
    for number in range(2):
        worker = made(number)
        worker.load()
        arrays.append(worker._loaded().reshape(STRIPES, -1))
        assert worker.verify() == 0
    for stripe in range(STRIPES):
        assert np.array_equal(arrays[0][stripe], arrays[1][stripe]) == (stripe != PRIVATE_STRIPE)
        assert arrays[0][stripe].any() == (stripe != ZERO_STRIPE)
    common = np.delete(arrays[0], [PRIVATE_STRIPE, ZERO_STRIPE], axis=0).reshape(-1, PAGE // 8)
    assert len(np.unique(common, axis=0)) == len(common)  # or the ideal saving would be more than we say


def test_a_lost_byte_is_found_wherever_it_is() -> None:
    worker = made(0)
    worker.load()
    worker.write([0, 3, 511])
    assert worker.verify() == 0
    flat = worker._loaded().view("u1")
    for place in (0, 3 * PAGE + 5, MIB, 2 * MIB - 1):
        flat[place] ^= 1
    assert worker.verify() == 4


@pytest.mark.parametrize(("count", "pages"), [(1, 16), (64, 256), (1000, 256)])
def test_written_pages_are_distinct_and_none_is_private(count: int, pages: int) -> None:
    chosen = demo._spread(count, pages)
    assert len(set(chosen)) == len(chosen) == min(count, pages * 15 // 16)
    assert all(0 <= page < pages and page * STRIPES // pages != PRIVATE_STRIPE for page in chosen)


def test_no_room_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_blocks=100, f_bavail=50, f_frsize=4096))
    with pytest.raises(CommandError, match=r"remount,size"):
        demo._check_room(64 * MIB)


def test_a_worker_that_dies_is_told_of() -> None:
    with workers_module.Crew("unix:/nonexistent/x.sock", 1, MIB, 1) as workers:
        os.kill(workers.pids[0], 9)
        with pytest.raises(CommandError, match="exit code -9"):
            next(iter(answers for answers in workers.answers([0], 0.05) if answers is not None))


def test_a_worker_without_a_server_says_so() -> None:
    with workers_module.Crew("unix:/nonexistent/x.sock", 1, MIB, 1) as workers:
        workers.tell(0, "warm_up")
        with pytest.raises(CommandError, match="no server answers"):
            next(iter(answers for answers in workers.answers([0], 0.05) if answers is not None))


def test_physical_memory_counts_touched_pages_once() -> None:
    # A large piece: the interpreter's own memory comes and goes by a few megabytes meanwhile.
    with mmap.mmap(-1, 128 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        before = physical.anonymous_bytes(os.getpid())
        for at in range(0, len(memory), mmap.PAGESIZE):
            memory[at] = 1
        assert physical.anonymous_bytes(os.getpid()) - before == pytest.approx(128 * MIB, rel=0.2)


def test_objects_and_processes_that_are_gone_take_nothing(tmp_path: Path) -> None:
    assert physical.object_bytes("/pagefold-s-none") == 0
    assert physical.physical_bytes([2**22 + 1], ["/pagefold-s-none"]) == 0
