"""Deaths: of clients in the middle of anything, and of the server. Nobody else notices, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest
from support import kernel
from support.server import Server
from support.waiting import until
from support.worker import PAGE, Worker

pytestmark = [pytest.mark.needs("uffd"), pytest.mark.variants]

PAGES = 2048
Work = Callable[..., Worker]

# Writes and frees without end, so that the kill hits merges, adopts and exchanges wherever they are.
CHURN = """
import random, threading
from support.worker import PAGE, page_of
def run(remote, pages):
    def churn():
        rng = random.Random(1)
        while True:
            b = remote.client.allocate(pages * PAGE)
            view = memoryview(b)
            for page in range(pages):
                view[page * PAGE : (page + 1) * PAGE] = page_of(1 + page % 500)
            for _ in range(2000):
                view[rng.randrange(pages) * PAGE] = 7
            del view, b
    threading.Thread(target=churn, daemon=True).start()
"""


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.7, 1.5])
def test_I3_a_killed_clients_references_and_names_are_gone_within_seconds(
    seconds: float, server: Server, work: Work
) -> None:
    survivor = work()
    survivor.call("allocate", "a", PAGES * PAGE)
    survivor.call("fill_pages", "a", [1 + i % 500 for i in range(PAGES)])
    digest = survivor.call("digest", "a")
    mine = kernel.names()
    victim = Worker(server.address)
    victim.call("execute", CHURN, 512)
    with pytest.raises(subprocess.TimeoutExpired):
        victim.process.wait(seconds)
    victim.kill()
    until(lambda: len(server.clients()) == 1, 10, "the server noticing the death")
    until(lambda: kernel.names() == mine, 10, "the victim's names going")
    assert survivor.call("settle").settled
    counters = server.status().counters
    assert counters.pages_proposed == 0
    assert counters.pages_shared + counters.pages_sharing == PAGES
    assert survivor.call("digest", "a") == digest


def test_a_client_that_dies_alone_leaves_an_empty_server(server: Server, work: Work) -> None:
    victims = [work(), work()]
    for victim in victims:
        victim.call("allocate", "a", PAGES * PAGE)
        victim.call("fill_pages", "a", list(range(PAGES)))
    assert victims[0].call("settle").settled
    for victim in victims:
        victim.kill()
    until(lambda: not server.clients(), 10, "the server noticing the deaths")
    until(lambda: kernel.shared_bytes() == 0, 10, "all memory going back")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["settled", "merging"])
def test_I5_without_its_server_a_client_reads_and_writes_on(
    how: signal.Signals, moment: str, serve: Callable[..., Server]
) -> None:
    server = serve()
    with Worker(server.address) as one, Worker(server.address) as two:
        for w in (one, two):
            w.call("allocate", "a", PAGES * PAGE)
            w.call("fill_pages", "a", list(range(PAGES)))
        digest = one.call("digest", "a")
        if moment == "settled":
            assert one.call("settle").settled
        else:
            until(lambda: server.status().counters.pages_merged > 0, what="merging")
        server.stop(how)
        assert one.call("digest", "a") == two.call("digest", "a") == digest
        one.call("write", "a", 5 * PAGE, b"after")
        assert one.call("read", "a", 5 * PAGE, 5) == b"after"
        assert two.call("digest", "a") == digest
        one.call("allocate", "b", PAGE)
        one.call("write", "b", 0, b"new memory")
        one.call("free", "a")
        assert one.call("read", "b", 0, 10) == b"new memory"
        report = two.call("settle", 1)
        assert not report.settled
        assert report.reason
    with serve(address=server.address):  # what a killed server left, the next one sweeps
        until(lambda: kernel.names() == set(), 10, "the sweep")


def test_I5_a_stopped_server_holds_nobody_up(server: Server, work: Work) -> None:
    w = work()
    w.call("allocate", "a", PAGES * PAGE)
    w.call("fill_pages", "a", list(range(PAGES)))
    os.kill(server.pid, signal.SIGSTOP)
    try:
        w.call("allocate", "b", 8 * PAGE)
        w.call("write", "b", 0, b"x" * 8 * PAGE)
        w.call("free", "a")
        assert w.call("read", "b", 0, 1) == b"x"
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert w.call("settle", 30).settled


def test_I3_a_closed_clients_memory_stays_shared_until_it_is_released(server: Server, work: Work) -> None:
    one, two = work(), work()
    for w in (one, two):
        w.call("allocate", "a", PAGES * PAGE)
        w.call("fill_pages", "a", list(range(PAGES)))
    digest = one.call("digest", "a")
    assert one.call("settle").settled
    one.call("close_client")
    assert one.call("digest", "a") == digest
    two.kill()
    until(
        lambda: [c.state for c in server.clients()] == ["departed"],
        10,
        "the death of one and the departure of the other",
    )
    assert one.call("digest", "a") == digest
    one.call("write", "a", 3, b"still writable")
    assert one.call("read", "a", 3, 5) == b"still"
    one.call("execute", "def run(remote):\n    remote.buffers.clear()\n    remote.client = None")
    until(lambda: not server.clients(), 10, "the lease going with the last buffer")
    until(lambda: kernel.shared_bytes() == 0, 10, "all memory going back")
