"""Clients that stand still, or are interrupted all the time, in the middle of merging: signals, debuggers, SIGSTOP, a
GIL that nobody gives up, clocks that jump. Others go on, settle() says what it does not know, and no byte is lost."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support import variant
from support.server import Server
from support.waiting import until
from support.worker import PAGE, Worker, page_of

pytestmark = pytest.mark.needs("uffd")

Work = Callable[..., Worker]
PAGES = 2048
READS_ALL = variant.TRACKER == "checksum"


def loaded(*workers: Worker, pages: int = PAGES) -> str:
    """Gives all the same content. Its digest."""
    for w in workers:
        w.call("allocate", "a", pages * PAGE)
        w.call("fill_pages", "a", list(range(1, pages + 1)))
    return workers[0].call("digest", "a")


def settled_with(settling: Worker, other: Worker, pages: int) -> bool:
    """Settles; whether so many pages of the other are merged then."""
    return bool(settling.call("settle").settled and other.call("stats").merged_bytes == pages * PAGE)


# Signals

# The handler does nothing, so what is tested is that every call of ours that a signal may cut short goes on.
STORM = """
import signal
def run(remote, micros):
    remote.signals = 0
    def handler(*_):
        remote.signals += 1
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, micros / 1e6, micros / 1e6)
"""
CALM = """
import signal
def run(remote):
    signal.setitimer(signal.ITIMER_REAL, 0, 0)
    return remote.signals
"""
# Writes, frees and allocates while the storm rages, and knows what every page has to be.
REWRITE = """
import random
from support.worker import PAGE, page_of
def run(remote, pages, rounds):
    rng = random.Random(7)
    wrong = 0
    for n in range(40):
        buf = remote.client.allocate(64 * PAGE)
        view = memoryview(buf)
        for page in range(64):
            view[page * PAGE : (page + 1) * PAGE] = page_of(1 + page)
        if n % 4 == 0:
            remote.client.settle(timeout=5)
        whole = memoryview(remote.buffers["a"])
        for page in rng.sample(range(pages), 50):
            at = page * PAGE
            wrong += whole[at : at + PAGE] != page_of(1 + page)
            whole[at : at + 4] = b"mine"
            wrong += bytes(whole[at : at + 4]) != b"mine"
            whole[at : at + PAGE] = page_of(1 + page)
        wrong += any(view[page * PAGE : (page + 1) * PAGE] != page_of(1 + page) for page in range(64))
        del view, buf
    return wrong
"""


@pytest.mark.parametrize(("micros", "backing"), [(200, "shm"), (2000, "memfd")])
def test_a_storm_of_signals_changes_nothing(micros: int, backing: str, serve: Callable[..., Server]) -> None:
    server = serve(smart_scan=False)  # pages that were written do not rest, so that in the end all are merged
    with Worker(server.address, backing=backing) as one, Worker(server.address, backing=backing) as two:
        digest = loaded(one, two)
        one.call("execute", STORM, micros)
        assert one.call("execute", REWRITE, PAGES, 24) == 0
        assert one.call("execute", CALM) > 20
        assert one.call("digest", "a") == two.call("digest", "a") == digest
        until(lambda: settled_with(two, one, PAGES), what="merging everything")
        assert one.call("digest", "a") == digest


# Debuggers

_SEIZE, _INTERRUPT, _CONT, _DETACH = 0x4206, 0x4207, 7, 17
_ALL = 0x40000000  # __WALL: threads too
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


ADDRESS = """
import ctypes
def run(remote):
    return ctypes.addressof(ctypes.c_char.from_buffer(memoryview(remote.buffers["a"])))
"""


class Debugger:
    """Attaches to every thread of a process, as gdb does; stops and continues them."""

    def __init__(self, pid: int) -> None:
        self.threads = [int(task) for task in os.listdir(f"/proc/{pid}/task")]
        for thread in self.threads:
            self._call(_SEIZE, thread)

    def _call(self, request: int, thread: int) -> None:
        if _libc.ptrace(request, thread, None, None) != 0:
            raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")

    def stop(self) -> None:
        for thread in self.threads:
            self._call(_INTERRUPT, thread)
        for thread in self.threads:
            os.waitpid(thread, _ALL)

    def go_on(self, detach: bool = False) -> None:
        for thread in self.threads:
            self._call(_DETACH if detach else _CONT, thread)


def test_a_debugger_that_stops_and_continues_a_client_while_it_merges(serve: Callable[..., Server]) -> None:
    server = serve(silent_seconds=1, smart_scan=False)
    with Worker(server.address) as one, Worker(server.address) as two:
        digest = loaded(one, two)
        address = one.call("execute", ADDRESS)
        for n in range(40):
            one.send("fill_pages", "a", list(range(1, PAGES + 1)))  # writers for the windows to hold
            try:
                debugger = Debugger(one.pid)
            except PermissionError:
                one.receive()
                pytest.skip("this user may not ptrace (kernel.yama.ptrace_scope)")
            debugger.stop()
            memory = os.open(f"/proc/{one.pid}/mem", os.O_RDWR)
            got = os.pread(memory, PAGE, address + n * PAGE)  # what gdb's x command does
            assert got == page_of(n + 1), "the same bytes are written over themselves: there are no others to see"
            os.close(memory)
            debugger.go_on()
            debugger.stop()
            debugger.go_on(detach=True)
            one.receive()
        assert one.call("digest", "a") == two.call("digest", "a") == digest
        until(lambda: settled_with(one, one, PAGES), what="merging everything")
        assert one.call("digest", "a") == digest


@pytest.mark.parametrize("state", ["merged", "owned"])
def test_what_a_debugger_writes_is_written_in_that_process_only(state: str, server: Server, work: Work) -> None:
    # A breakpoint, or `set var`: written through /proc/<pid>/mem, past the protection of the mapping.
    one, two = work(), work()
    server.configure(run=int(state == "merged"))
    digest = loaded(one, two)
    if state == "merged":
        assert one.call("settle").settled
        assert one.call("stats").merged_bytes == PAGES * PAGE
    address = one.call("execute", ADDRESS)
    memory = os.open(f"/proc/{one.pid}/mem", os.O_RDWR)
    os.pwrite(memory, b"poked", address + 5 * PAGE)
    os.close(memory)
    assert one.call("read", "a", 5 * PAGE, 5) == b"poked"
    assert two.call("digest", "a") == digest
    server.configure(run=1)
    assert two.call("settle").settled
    assert one.call("read", "a", 5 * PAGE, 5) == b"poked"
    assert one.call("stats").merged_bytes == (PAGES - 1) * PAGE
    assert two.call("digest", "a") == digest


# Standing still


@pytest.mark.parametrize("moment", ["merging", "merged"])
def test_a_stopped_client_holds_nobody_up_and_loses_nothing(moment: str, serve: Callable[..., Server]) -> None:
    server = serve(silent_seconds=1, run=0, max_batch_pages=64)  # many batches, so that one is under way
    with Worker(server.address) as one, Worker(server.address) as two, Worker(server.address) as three:
        digest = loaded(one, two, three)
        server.configure(run=1)
        if moment == "merging":
            until(lambda: server.status().counters.pages_merged > 100, what="merging")
        else:
            assert one.call("settle").settled
        os.kill(one.pid, signal.SIGSTOP)
        try:
            report = two.call("settle", 20)
            # What it has written nobody knows, unless the server reads everything itself: nothing may claim otherwise.
            # What it was to merge is not merged either.
            assert report.settled == (READS_ALL and moment == "merged")
            assert report.settled or "does not answer" in report.reason
            assert "silent" in [c.state for c in server.clients()]
            two.call("write", "a", 0, b"others go on")
            assert two.call("read", "a", 0, 12) == b"others go on"
            two.call("allocate", "b", 256 * PAGE)
            three.call("allocate", "b", 256 * PAGE)
            for w in (two, three):
                w.call("fill_pages", "b", list(range(100_001, 100_257)))
            until(lambda: two.call("stats").merged_bytes >= 255 * PAGE, 20, "others merging without it")
        finally:
            os.kill(one.pid, signal.SIGCONT)
        assert one.call("digest", "a") == three.call("digest", "a") == digest
        two.call("fill_pages", "a", [1])
        until(lambda: one.call("settle", 20).settled, 30, "all of them settling")
        # A page that was written after it was merged waits a few passes before it is merged again.
        whole = [PAGES * PAGE, *[(PAGES + 256) * PAGE] * 2]
        until(lambda: [w.call("stats").merged_bytes for w in (one, two, three)] == whole, 30, "all of them merging")
        assert one.call("digest", "a") == two.call("digest", "a") == digest


HOLD_THE_GIL = """
import ctypes
def run(remote, seconds):
    ctypes.PyDLL(None).sleep(seconds)  # a C call that does not let go of the GIL
"""


@pytest.mark.parametrize("seconds", [4, pytest.param(30, marks=pytest.mark.stress)])
def test_a_client_whose_session_thread_never_gets_the_gil(seconds: int, serve: Callable[..., Server]) -> None:
    server = serve(silent_seconds=1, run=0)
    with Worker(server.address) as one, Worker(server.address) as two:
        digest = loaded(one, two)
        server.configure(run=1)
        one.send("execute", HOLD_THE_GIL, seconds)
        report = two.call("settle", 20)
        assert not report.settled, "what the first has written is not known, and it has merged nothing"
        assert not READS_ALL or report.pages_refused == PAGES
        assert two.call("digest", "a") == digest
        two.call("write", "a", 0, b"goes on")
        one.receive()
        assert one.call("digest", "a") == digest
        assert two.call("read", "a", 0, 7) == b"goes on"
        until(lambda: one.call("settle", 20).settled, 30, "settling with both")
        assert two.call("stats").merged_bytes == (PAGES - 1) * PAGE
        assert one.call("stats").connected
        assert one.call("digest", "a") == digest


# Clocks

# Every look at the wall clock says something else: years ahead, years back. gRPC alone sees the true one: its Python
# half makes a deadline of it that its C half takes apart again by the same clock, a moment later.
JUMPING = """
import itertools, sys, time
_real, _jumps = time.time, itertools.cycle([0, 1e8, -1e8, 3600, -5, 7e8])
def _time():
    caller = sys._getframe(1).f_globals.get("__name__", "")
    return _real() + (0 if caller.startswith("grpc") else next(_jumps))
time.time = _time
"""


def test_the_wall_clock_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Server], no_names: None
) -> None:
    jumping = tmp_path / "jumping"
    jumping.mkdir()
    (jumping / "sitecustomize.py").write_text(JUMPING)
    monkeypatch.setenv("PYTHONPATH", f"{jumping}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"))
    server = serve(sweep_seconds=1, silent_seconds=2, smart_scan=False)
    with Worker(server.address) as one, Worker(server.address) as two:
        jumps = "def run(remote):\n    import time\n    a = time.time()\n    return abs(time.time() - a) > 1"
        assert one.call("execute", jumps), "the clock of the worker does jump"
        digest = loaded(one, two)
        for n in range(12):
            one.call("write", "a", n * PAGE, b"changed")
            assert one.call("settle", 20).settled
            one.call("fill_pages", "a", [n + 1], n)
            assert two.call("settle", 20).settled
        until(lambda: settled_with(two, one, PAGES), what="merging everything")
        assert one.call("stats").connected, one.call("stats").trouble
        assert [c.state for c in server.clients()] == ["active", "active"]
        assert one.call("digest", "a") == two.call("digest", "a") == digest
        two.kill()
        until(lambda: len(server.clients()) == 1, 10, "the server noticing a death")
        assert one.call("digest", "a") == digest
    server.stop()
