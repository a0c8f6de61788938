"""Faults in a client's native code while a server works with it: its memory goes on, and so does everybody else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import faults, kernel
from support.server import Server
from support.waiting import until
from support.worker import PAGE, Worker

pytestmark = [
    pytest.mark.needs("uffd"),
    pytest.mark.skipif(not faults.AVAILABLE, reason="the extension was built without faults: make setup"),
]

PAGES = 512
Work = Callable[..., Worker]


@pytest.mark.parametrize("point", ["merge.held", "merge.mapped", "window.end", "view.punch", "harvest.copies"])
def test_a_panic_ends_the_session_and_nothing_else(point: str, server: Server, work: Work) -> None:
    # A panic was pyo3's PanicException, which is no Exception: the session's thread ended without a word, settle()
    # waited until its time was over, and stats() went on saying that all was well.
    victim = work(env={"PAGEFOLD_FAULTS": f"{point}=panic@2"})
    others = [work(), work()]
    for w in (victim, *others):
        w.call("allocate", "a", PAGES * PAGE)
        w.call("fill_pages", "a", list(range(1, PAGES + 1)))
    digest = victim.call("digest", "a")
    report = until(lambda: (r := victim.call("settle", 2)).reason and r, what="the session's end")
    assert not report.settled
    stats = victim.call("stats")
    assert not stats.connected
    assert "fault" in stats.trouble
    assert others[0].call("settle", 30) is not None
    until(lambda: all(w.call("stats").merged_bytes == PAGES * PAGE for w in others), what="the others merging on")
    assert victim.call("digest", "a") == digest
    victim.call("write", "a", 3 * PAGE, b"still writable")
    assert victim.call("read", "a", 3 * PAGE, 14) == b"still writable"
    victim.call("allocate", "b", PAGE)
    victim.call("free", "b")
    for w in others:
        assert w.call("digest", "a") == digest
    victim.close()
    for w in others:
        w.kill()
    until(lambda: not server.clients(), what="all sessions ending")
    until(lambda: kernel.shared_bytes() == 0, what="all memory going back")


def test_a_thread_that_is_killed_in_a_window_holds_no_writer(server: Server, work: Work) -> None:
    victim, other = work(env={"PAGEFOLD_FAULTS": "merge.held=exit"}), work()
    for w in (victim, other):
        w.call("allocate", "a", PAGES * PAGE)
        w.call("fill_pages", "a", list(range(1, PAGES + 1)))
    other.call("settle", 2)
    for page in range(PAGES):
        victim.call("write", "a", page * PAGE, b"written")  # those in the window are held until the warden comes
    assert victim.call("read", "a", (PAGES - 1) * PAGE, 7) == b"written"
    assert victim.call("stats").owned_bytes == PAGES * PAGE
    victim.kill()  # its session's lock is gone with the thread, so it cannot close
