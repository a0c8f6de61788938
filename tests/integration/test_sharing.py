"""Memory is saved, and the kernel says so: Pss of the processes, blocks of the objects, Shmem of the machine."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable

import pytest
from support import kernel
from support.server import Server
from support.waiting import until
from support.worker import PAGE, Worker

pytestmark = [pytest.mark.needs("uffd"), pytest.mark.variants]

MIB = 1 << 20
Work = Callable[..., Worker]

FILL = """
import numpy as np
def run(remote, name, size, seed):
    a = np.frombuffer(remote.buffers[name], dtype=np.uint64)
    a[:] = np.random.default_rng(seed).integers(1, 2**63, size=len(a), dtype=np.uint64)
"""


def private(workers: list[Worker]) -> int:
    return sum(kernel.private_bytes(w.pid) for w in workers)


def test_two_clients_with_256_mib_of_the_same_bytes_take_one_copy(server: Server, work: Work) -> None:
    size = 256 * MIB
    server.configure(run=0)
    workers = [work(), work()]
    for w in workers:
        w.call("allocate", "a", size)
        w.call("evaluate", "len(__import__('numpy').__name__)")
    base, shmem = private(workers), kernel.meminfo("Shmem")
    for w in workers:
        w.call("execute", FILL, "a", size, 7)
    before = kernel.shared_bytes() + private(workers) - base
    assert before >= 2 * size
    digests = [w.call("digest", "a") for w in workers]
    server.configure(run=1)
    report = workers[0].call("settle", 60)
    assert report.settled, report
    after = kernel.shared_bytes() + private(workers) - base
    assert after <= 1.05 * size
    # The whole machine's: tests that run beside this one have shared memory of their own for a moment.
    until(lambda: kernel.meminfo("Shmem") - shmem <= 1.05 * size, 60, "the machine having one copy")
    assert report.saved_bytes == size
    assert [w.call("digest", "a") for w in workers] == digests
    stats = [w.call("stats") for w in workers]
    assert sum(s.saved_bytes for s in stats) == pytest.approx(size, rel=0.01)
    assert all(s.merged_bytes == size for s in stats)
    # One writes eight pages: those come back, and nothing else.
    merged = kernel.shared_bytes() + private(workers)
    for page in range(8):
        workers[1].call("write", "a", page * 1000 * PAGE, b"mine")
    grown = kernel.shared_bytes() + private(workers) - merged
    assert grown <= 8 * PAGE + MIB  # and not less, but for what the programs themselves let go of meanwhile
    assert workers[0].call("digest", "a") == digests[0]
    assert workers[1].call("read", "a", 1000 * PAGE, 4) == b"mine"


def test_settle_sees_what_others_wrote_to_merged_pages(serve: Callable[..., Server]) -> None:
    # Their client would not have looked for these writes before its next harvest, seconds later.
    server = serve(poll_millisecs=5000)
    with Worker(server.address) as one, Worker(server.address) as two:
        for w in (one, two):
            w.call("allocate", "a", 8 * PAGE)
            w.call("fill_pages", "a", list(range(1, 9)))
        assert one.call("settle").settled
        for w in (two, one):
            w.call("fill_pages", "a", list(range(101, 109)))
        report = one.call("settle")
        assert report.settled
        # They broke, so they wait before they are merged again, and the report says so; or they are merged already.
        assert report.pages_waiting or one.call("stats").merged_bytes == 8 * PAGE


def test_zero_pages_cost_no_frames(server: Server, work: Work) -> None:
    w = work()
    server.configure(run=0)
    w.call("allocate", "a", 8 * MIB)
    w.call("write", "a", 0, b"x" * 8 * MIB)
    w.call("write", "a", 0, bytes(8 * MIB))
    assert kernel.shared_bytes() >= 8 * MIB
    server.configure(run=1)
    assert w.call("settle").settled
    assert kernel.shared_bytes() == 0
    status = server.status()
    assert (status.counters.pages_shared, status.counters.zero_pages) == (0, 2048)
    assert w.call("stats").zero_bytes == w.call("stats").saved_bytes == 8 * MIB
    assert w.call("read", "a", 0, 8 * MIB) == bytes(8 * MIB)


def test_half_identical_and_shuffled_saves_what_can_be_saved(server: Server, work: Work) -> None:
    pages, common = 8192, 4096
    rng = random.Random(5)
    server.configure(run=0)
    workers = [work(), work()]
    contents = []
    for number, w in enumerate(workers):
        seeds = list(range(1, common + 1)) + [10**6 * (number + 1) + i for i in range(pages - common)]
        rng.shuffle(seeds)
        contents.append(seeds)
        w.call("allocate", "a", pages * PAGE)
        w.call("fill_pages", "a", seeds)
    digests = [w.call("digest", "a") for w in workers]
    before = kernel.shared_bytes()
    server.configure(run=1)
    report = workers[0].call("settle", 60)
    assert report.settled
    assert before - kernel.shared_bytes() >= 0.95 * common * PAGE
    assert report.pages_over_budget == 0
    for w in workers:
        stats = w.call("stats")
        assert stats.mappings <= stats.mapping_budget
        assert stats.merged_bytes == common * PAGE
    assert [w.call("digest", "a") for w in workers] == digests


def test_beyond_the_mapping_budget_is_reported_and_nothing_fails(server: Server, work: Work) -> None:
    pages = 2000
    rng = random.Random(6)
    server.configure(run=0)
    workers = [work(mapping_budget=200), work()]
    for w in workers:
        seeds = list(range(1, pages + 1))
        rng.shuffle(seeds)
        w.call("allocate", "a", pages * PAGE)
        w.call("fill_pages", "a", seeds)
    digests = [w.call("digest", "a") for w in workers]
    server.configure(run=1)
    report = workers[1].call("settle", 30)
    assert not report.settled
    assert f"{report.pages_over_budget:,} pages" in report.reason
    assert report.pages_over_budget > 0
    tight = workers[0].call("stats")
    assert 0 < tight.merged_bytes < pages * PAGE
    assert tight.mappings <= 200
    assert kernel.mappings(workers[0].pid) < 1200
    assert [w.call("digest", "a") for w in workers] == digests
    assert "budget" in server.status().trouble


def test_unmerge_gives_every_client_its_own_memory_back(server: Server, work: Work) -> None:
    workers = [work(), work()]
    for w in workers:
        w.call("allocate", "a", 4 * MIB)
        w.call("fill_pages", "a", [*range(1, 1000), *[0] * 25])
    digests = [w.call("digest", "a") for w in workers]
    assert workers[0].call("settle").settled
    assert server.status().saved_bytes >= 999 * PAGE
    server.configure(run=2)
    until(lambda: server.status().counters.pages_shared == 0, what="unmerging")
    until(lambda: all(w.call("stats").merged_bytes + w.call("stats").zero_bytes == 0 for w in workers))
    assert [w.call("digest", "a") for w in workers] == digests
    server.configure(run=1)
    assert workers[0].call("settle").settled
    assert server.status().saved_bytes >= 999 * PAGE


def test_pages_merge_without_anybody_asking(server: Server, work: Work) -> None:
    workers = [work(), work()]
    for w in workers:
        w.call("allocate", "a", MIB)
        w.call("fill_pages", "a", list(range(1, 257)))
    until(lambda: server.status().counters.pages_sharing == 256, what="merging in the background")


def test_advice_and_pins_are_kept(server: Server, work: Work) -> None:
    server.configure(run=0)
    workers = [work(), work()]
    for w in workers:
        w.call("allocate", "a", MIB)
        w.call("allocate", "b", MIB)
        w.call("fill_pages", "a", list(range(1, 257)))
        w.call("fill_pages", "b", list(range(1001, 1257)))
    workers[0].call("advise", "a", False)
    workers[0].call("pin", "b")
    server.configure(run=1)
    assert workers[0].call("settle").settled
    assert workers[0].call("stats").merged_bytes == 0
    workers[0].call("unpin", "b")
    workers[0].call("advise", "a", True)
    until(
        lambda: workers[0].call("settle").settled and workers[0].call("stats").merged_bytes == 2 * MIB,
        what="merging what may be merged again",
    )
    workers[0].call("advise", "a", False)
    assert workers[0].call("stats").merged_bytes == MIB, "adopted before advise() returned"
    assert workers[0].call("read", "a", 0, 16) == workers[1].call("read", "a", 0, 16)


def test_freed_memory_goes_back_to_the_kernel_and_reads_as_zeros(work: Work) -> None:
    w, other = work(), work()
    for one in (w, other):
        one.call("allocate", "a", 8 * MIB)
        one.call("fill_pages", "a", list(range(1, 2049)))
    assert w.call("settle").settled
    w.call("free", "a")
    w.call("allocate", "b", 8 * MIB)
    assert w.call("read", "b", 0, 8 * MIB) == bytes(8 * MIB)
    w.call("free", "b")
    other.call("free", "a")
    until(lambda: kernel.shared_bytes() == 0, what="all memory back")


def test_a_settle_that_gave_up_leaves_scanning_alive(server: Server, work: Work) -> None:
    """A settle() waits for all clients to look. It gave up for one that was stopped, and nothing was scanned then."""
    one, two = work(), work()
    two.call("allocate", "a", PAGE)
    two.call("fill_pages", "a", [5])
    os.kill(two.pid, signal.SIGSTOP)
    try:
        one.call("allocate", "a", 64 * PAGE)
        one.call("fill_pages", "a", [1] * 64)
        assert not one.call("settle", 0.3).settled
    finally:
        os.kill(two.pid, signal.SIGCONT)
    until(lambda: one.call("stats").merged_bytes == 64 * PAGE, 15, "merging without another settle()")


def test_a_silent_client_makes_no_settle_certain(server: Server, work: Work) -> None:
    """Nobody knows what a stopped client wrote last, so it may well be that something is left to merge."""
    one, two = work(), work()
    for w in (one, two):
        w.call("allocate", "a", 64 * PAGE)
    assert one.call("settle").settled
    two.call("fill_pages", "a", [1] * 64)
    os.kill(two.pid, signal.SIGSTOP)
    try:
        one.call("fill_pages", "a", [1] * 64)
        report = one.call("settle", 20)
        if one.call("stats").tracker == "pagemap" and two_was_not_heard(server, two.pid):
            assert not report.settled
            assert "does not answer" in report.reason
    finally:
        os.kill(two.pid, signal.SIGCONT)
    until(lambda: one.call("settle", 20).settled, 30, "the other client being heard again")
    assert one.call("stats").merged_bytes == 64 * PAGE


def two_was_not_heard(server: Server, pid: int) -> bool:
    return next(client.pages_merged for client in server.clients() if client.pid == pid) == 0


def test_settling_again_and_again_does_not_keep_others_from_being_scanned(server: Server, work: Work) -> None:
    """Each settle() asks for another look; none was ever made before the next was asked for, and no pass began."""
    one, two = work(), work()
    for w in (one, two):
        w.call("allocate", "a", 64 * PAGE)
        w.call("fill_pages", "a", list(range(1, 65)))
    os.kill(two.pid, signal.SIGSTOP)
    try:
        one.call("fill_pages", "a", [7] * 64)

        def merged() -> bool:
            one.call("settle", 0.02)
            return bool(one.call("stats").merged_bytes)

        until(merged, 15, "merging in spite of all the settling")
    finally:
        os.kill(two.pid, signal.SIGCONT)
