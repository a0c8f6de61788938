"""A server that is started anew: clients come back, and merging goes on onto the same frames."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import kernel
from support.server import Server
from support.waiting import until
from support.worker import PAGE, Worker, page_of

pytestmark = pytest.mark.needs("uffd")

Serve = Callable[..., Server]
Work = Callable[..., Worker]

PAGES = 600
DATA = b"".join(page_of(number) for number in range(1, PAGES + 1))


def two(work: Work) -> list[Worker]:
    workers = [work(), work()]
    for w in workers:
        w.call("allocate", "a", len(DATA))
        w.call("write", "a", 0, DATA)
    assert workers[0].call("settle", 30).settled
    return workers


def pools() -> set[str]:
    return {name for name in kernel.names() if name.startswith("pagefold-p-")}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_merging_goes_on_onto_the_same_frames(how: signal.Signals, server: Server, work: Work) -> None:
    workers = two(work)
    (pool,) = pools()
    shared = kernel.shared_bytes()
    for number in range(2 if how == signal.SIGKILL else 1):
        server.stop(how)
        page = 5 + number
        workers[0].call("write", "a", page * PAGE, b"written while there is no server")
        assert workers[1].call("read", "a", 0, len(DATA)) == DATA
        server.start()
        until(lambda: server.status().counters.pages_sharing >= PAGES - 2, what="everybody coming back")
        assert server.status().clients == 2
        workers[0].call("write", "a", page * PAGE, DATA[page * PAGE :][:100])
        # A page that was written after it was merged waits a few passes before it is merged again.
        until(lambda: server.status().counters.pages_sharing == PAGES, what="merging as before")
        assert server.status().counters.pages_shared == PAGES
        assert pools() == {pool}, "the frames are where they were"
        until(lambda: kernel.shared_bytes() == shared, what="memory being what it was")
        for w in workers:
            assert w.call("read", "a", 0, len(DATA)) == DATA
    until(lambda: "accounted for" in server.log.read_text(), what="the past being over")


def test_it_happens_at_any_moment_and_nothing_is_lost(server: Server, work: Work) -> None:
    workers = [work(), work()]
    rng = random.Random(11)
    model = [bytearray(len(DATA)) for _ in workers]
    for w in workers:
        w.call("allocate", "a", len(DATA))
    for _ in range(8):
        for w, bytes_ in zip(workers, model, strict=True):
            for _ in range(20):
                first, count = rng.randrange(PAGES), rng.randrange(1, 60)
                data = b"".join(page_of(rng.randrange(6)) for _ in range(min(count, PAGES - first)))
                w.call("write", "a", first * PAGE, data)
                bytes_[first * PAGE : first * PAGE + len(data)] = data
        time.sleep(rng.random() * 0.1)  # somewhere in a batch
        server.stop(signal.SIGKILL)
        for w, bytes_ in zip(workers, model, strict=True):
            assert w.call("read", "a", 0, len(DATA)) == bytes(bytes_)
        server.start()
        assert workers[0].call("settle", 30).settled
        for w, bytes_ in zip(workers, model, strict=True):
            assert w.call("read", "a", 0, len(DATA)) == bytes(bytes_)
    for w in workers:
        w.call("free", "a")
    until(lambda: server.status().counters.pages_shared == 0, what="all frames being released")
    until(lambda: kernel.shared_bytes() == 0, what="all memory going back")


def test_I3_frames_wait_for_who_has_not_come_back(server: Server, work: Work) -> None:
    """A client that is stopped cannot report what it maps. It finds its bytes when it goes on."""
    here, away = two(work)
    away.call("write", "a", 0, page_of(99) * 2)  # and its own
    os.kill(away.pid, signal.SIGSTOP)
    try:
        server.stop(signal.SIGKILL)
        server.start()
        here.call("write", "a", 0, b"x" * len(DATA))  # leaves all frames
        until(lambda: server.status().clients == 1, what="one coming back")
        time.sleep(1.2)  # the server looks twice a second
        assert "accounted for" not in server.log.read_text()
    finally:
        os.kill(away.pid, signal.SIGCONT)
    assert away.call("read", "a", 0, len(DATA)) == page_of(99) * 2 + DATA[2 * PAGE :]
    assert away.call("settle", 30).settled
    until(lambda: "accounted for" in server.log.read_text(), what="the past being over")
    assert away.call("read", "a", 0, len(DATA)) == page_of(99) * 2 + DATA[2 * PAGE :]


def test_frames_that_nobody_claims_are_released(server: Server, work: Work) -> None:
    workers = two(work)
    server.stop(signal.SIGKILL)
    for w in workers:
        w.call("free", "a")
    server.start()
    for w in workers:
        w.call("allocate", "b", PAGE)
    until(lambda: server.status().clients == 2, what="everybody coming back")
    until(lambda: kernel.shared_bytes() == 0, what="the frames going")


def test_a_pool_that_is_lost_is_left_and_merging_goes_on_in_another(server: Server, work: Work) -> None:
    workers = two(work)
    (pool,) = pools()
    server.stop(signal.SIGKILL)
    os.unlink(f"/dev/shm/{pool}")
    server.start()
    until(lambda: server.status().counters.pages_sharing >= PAGES, what="merging anew")
    for w in workers:
        assert w.call("read", "a", 0, len(DATA)) == DATA
    assert len(pools()) == 1


def test_who_is_excluded_stays_that_and_everybody_else_keeps_bytes_and_advice(server: Server, work: Work) -> None:
    workers = two(work)
    workers[0].call("advise", "a", False)
    server.stop(signal.SIGKILL)
    server.start()
    until(lambda: server.status().clients == 2, what="everybody coming back")
    assert workers[0].call("settle", 30).settled
    assert server.status().counters.pages_sharing == 0, "advice is remembered"
    workers[0].call("advise", "a", True)
    until(lambda: server.status().counters.pages_sharing == PAGES, what="merging again")
    for w in workers:
        assert w.call("read", "a", 0, len(DATA)) == DATA


def test_no_name_is_left_when_the_last_client_outlives_its_server(serve: Serve, tmp_path: Path, no_names: None) -> None:
    server = serve()
    with Worker(server.address) as one, Worker(server.address) as other:
        for w in (one, other):
            w.call("allocate", "a", len(DATA))
            w.call("write", "a", 0, DATA)
        assert one.call("settle", 30).settled
        server.stop(signal.SIGTERM)
        assert len(pools()) == 1, "its frames are mapped: the next server is to find them"


def test_I3_frames_of_what_is_refused_after_a_restart_stay(server: Server, work: Work) -> None:
    """A quota was lowered meanwhile: nobody is told of these pages, and they map frames all the same."""
    workers = two(work)
    server.stop(signal.SIGKILL)
    server.settings["tenant_max_bytes"] = PAGE
    server.start()
    until(lambda: server.status().clients == 2, what="everybody coming back")
    until(lambda: all("tenant_max_bytes" in w.call("stats").trouble for w in workers), what="being refused")
    time.sleep(2)  # the server looks twice a second who may map frames
    for w in workers:
        assert w.call("read", "a", 0, len(DATA)) == DATA
