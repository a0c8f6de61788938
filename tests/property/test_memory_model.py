"""I7: every allocation reads back exactly what was last written to it.

A state machine over real processes: two workers and a server, against a dictionary of bytes. Contents come from a small
set, so that pages are equal often; writes come by stores, by NumPy, and by system calls; merging, breaking, adopting,
unmerging, freeing, advice, pins and forks happen in between, and the server goes on by itself the whole time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from support.audit import assert_clean
from support.server import Server
from support.waiting import until
from support.worker import PAGE, Worker, page_of

pytestmark = [pytest.mark.needs("uffd"), pytest.mark.variants]

SEEDS = st.integers(0, 5)
WAYS = st.sampled_from(["store", "numpy", "readinto", "recv_into"])

FORK = """
import os
def run(remote):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(write)
            os.read(read, 1)  # until the parent has written to all of its memory
            before = remote.snapshot
            code = 0 if {n: bytes(memoryview(b)) for n, b in remote.buffers.items()} == before else 2
            for b in remote.buffers.values():
                memoryview(b)[:] = b"c" * len(b)
        finally:
            os._exit(code)
    os.close(read)
    after = {n: bytes(memoryview(b)) for n, b in remote.buffers.items()}
    for b in remote.buffers.values():
        if len(b): memoryview(b)[len(b) // 2] ^= 255
    os.close(write)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for b in remote.buffers.values():
        if len(b): memoryview(b)[len(b) // 2] ^= 255
    return code, after
"""
SNAPSHOT = """
def run(remote):
    remote.snapshot = {n: bytes(memoryview(b)) for n, b in remote.buffers.items()}
"""


class World:
    """The processes, made once: a machine frees what it allocated, so the next one starts clean."""

    def __init__(self, directory: Path) -> None:
        self.server = Server(directory / "server", poll_millisecs=20)
        self.workers = [Worker(self.server.address) for _ in range(2)]

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.server.stop()


class Machine(RuleBasedStateMachine):
    world: World
    buffers = Bundle("buffers")

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[tuple[int, str], bytearray] = {}
        self.pinned: set[tuple[int, str]] = set()
        self.count = 0

    def worker(self, key: tuple[int, str]) -> Worker:
        return self.world.workers[key[0]]

    @initialize(target=buffers, seeds=st.lists(st.integers(1, 5), min_size=2, max_size=8))
    def begin_merged(self, seeds: list[int]) -> MultipleResults[tuple[int, str]]:
        """Every history begins with memory that is merged; one that began with none would rarely come to any."""
        data = b"".join(map(page_of, seeds))
        keys = [(worker, "merged") for worker in range(2)]
        for worker, name in keys:
            self.world.workers[worker].call("allocate", name, len(data))
            self.world.workers[worker].call("write", name, 0, data)
            self.model[worker, name] = bytearray(data)
        status = self.world.server.status
        # A fork in the history before keeps memory from being merged for half a second.
        until(lambda: status().counters.pages_sharing > 0, what="merging")
        return multiple(*keys)

    @rule(target=buffers, worker=st.integers(0, 1), pages=st.integers(1, 40), odd=st.integers(0, PAGE - 1))
    def allocate(self, worker: int, pages: int, odd: int) -> tuple[int, str]:
        self.count += 1
        key = (worker, f"b{self.count}")
        size = pages * PAGE - odd
        self.worker(key).call("allocate", key[1], size)
        self.model[key] = bytearray(size)
        return key

    @rule(key=buffers, seeds=st.lists(SEEDS, min_size=1, max_size=40), how=WAYS, at=st.integers(0, 39))
    def write_pages(self, key: tuple[int, str], seeds: list[int], how: str, at: int) -> None:
        model = self.model[key]
        offset = (at % ((len(model) + PAGE - 1) // PAGE)) * PAGE
        data = b"".join(map(page_of, seeds))[: len(model) - offset]
        self.worker(key).call("write", key[1], offset, data, how)
        model[offset : offset + len(data)] = data

    @rule(key=buffers, where=st.floats(0, 1, exclude_max=True), data=st.binary(min_size=1, max_size=64), how=WAYS)
    def write_bytes(self, key: tuple[int, str], where: float, data: bytes, how: str) -> None:
        model = self.model[key]
        offset = int(where * len(model))
        data = data[: len(model) - offset]
        self.worker(key).call("write", key[1], offset, data, how)
        model[offset : offset + len(data)] = data

    @rule(source=buffers, sink=buffers)
    def copy(self, source: tuple[int, str], sink: tuple[int, str]) -> None:
        """Equal memory on purpose."""
        data = bytes(self.model[source])[: len(self.model[sink])]
        self.worker(sink).call("write", sink[1], 0, data)
        self.model[sink][: len(data)] = data

    @rule(worker=st.integers(0, 1))
    def settle(self, worker: int) -> None:
        report = self.world.workers[worker].call("settle", 30)
        # A child that has just ended, or a pin, may still be in the way.
        in_the_way = ("a forked child shares them", "cannot be taken back (Device or resource busy)")
        assert report.settled or any(words in report.reason for words in in_the_way), report

    @rule()
    def unmerge(self) -> None:
        server = self.world.server
        server.configure(run=2)
        if not self.pinned:  # pinned pages stay where they are
            until(lambda: server.status().counters.pages_shared == 0, what="unmerging")
        server.configure(run=1)

    @rule(key=buffers, mergeable=st.booleans())
    def advise(self, key: tuple[int, str], mergeable: bool) -> None:
        if key not in self.pinned:
            self.worker(key).call("advise", key[1], mergeable)

    @rule(key=buffers)
    def toggle_pin(self, key: tuple[int, str]) -> None:
        self.worker(key).call("unpin" if key in self.pinned else "pin", key[1])
        self.pinned ^= {key}

    @rule(key=buffers)
    def read_some(self, key: tuple[int, str]) -> None:
        size = min(len(self.model[key]), 3 * PAGE)
        assert self.worker(key).call("read", key[1], 0, size) == bytes(self.model[key][:size])

    @rule(key=consumes(buffers))
    def free(self, key: tuple[int, str]) -> None:
        if key in self.pinned:
            self.toggle_pin(key)
        self.worker(key).call("free", key[1])
        del self.model[key]

    @rule(worker=st.integers(0, 1))
    def fork(self, worker: int) -> None:
        w = self.world.workers[worker]
        w.call("execute", SNAPSHOT)
        code, after = w.call("execute", FORK)
        assert code == 0, "the child has the snapshot"
        assert after == {key[1]: bytes(data) for key, data in self.model.items() if key[0] == worker}

    @invariant()
    def every_byte_is_what_was_written_last(self) -> None:
        for key, expected in self.model.items():
            got = self.worker(key).call("read", key[1], 0, len(expected))
            if got != expected:
                wrong = [i for i in range(len(expected)) if got[i] != expected[i]]
                raise AssertionError(
                    f"{key}: {len(wrong)} bytes lost, the first at {wrong[0]} (page {wrong[0] // PAGE})"
                )

    def teardown(self) -> None:
        assert_clean(self.world.server)
        for key in list(self.model):
            self.free(key)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="pagefold-test-") as directory:
        world = World(Path(directory))
        yield world
        world.close()


def run_machine(world: World, examples: int, steps: int) -> None:
    """Runs the machine; the long campaigns use it too."""

    class Bound(Machine):
        pass

    Bound.world = world
    bounds = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    run_state_machine_as_test(Bound, settings=bounds)  # type: ignore[no-untyped-call]


def test_I7_every_allocation_reads_back_what_was_last_written(world: World) -> None:
    run_machine(world, examples=25, steps=30)
