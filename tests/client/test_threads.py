"""Threads, locks and clock that are the client's own: what they do, and that no module of the client goes past them."""

from __future__ import annotations

import ast
import logging
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pagefold
import pagefold_core
import pagefold_proto
import pytest
from pagefold._process import log, threads
from support.server import Server
from support.waiting import until

# What gevent, eventlet, and tools that stop the clock replace. Of `os`, the calls that wait or fork.
REPLACED = {"_queue", "_thread", "asyncio", "concurrent", "multiprocessing", "queue", "sched", "select", "selectors"}
REPLACED |= {"signal", "socket", "socketserver", "ssl", "subprocess", "threading", "time"}
REPLACED_OF_OS = {"fork", "forkpty", "popen", "posix_spawn", "posix_spawnp", "read", "system", "wait", "waitpid"}
REPLACED_OF_OS |= {"write"}

# Programs of their own, and a handshake that is made with the program's sockets: nobody else waits for it.
APART = {"cli", "boot.py", "tls.py"}


def sources() -> Iterator[Path]:
    """Everything that runs in a user's program."""
    for package in (pagefold, pagefold_core, pagefold_proto):
        for place in package.__path__:
            yield from (path for path in Path(place).rglob("*.py") if not APART & {*path.relative_to(place).parts})


def test_no_module_of_the_client_uses_what_others_replace() -> None:
    """gevent's session thread was a greenlet: connect() never came back, and the whole program stood still."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                found += [f"{path.name}:{node.lineno} os.{node.attr}"] if node.attr in REPLACED_OF_OS else []
            found += [f"{path.name}:{node.lineno} {name}" for name in names if name.partition(".")[0] in REPLACED]
    assert found == []
    assert len(list(sources())) > 20, "the client is looked at"


def test_what_is_the_librarys_own_is_not_what_others_can_reach() -> None:
    import _thread

    assert threads._thread is not _thread
    assert type(threads.Lock()) is not type(_thread.allocate_lock())
    assert threads.sleep is not time.sleep
    assert threads.monotonic is not time.monotonic


def test_whether_threads_can_be_had_is_found_out_by_having_them() -> None:
    before = len(os.listdir("/proc/self/task"))
    assert pagefold_core.can_start(4)
    until(lambda: len(os.listdir("/proc/self/task")) <= before, what="their end")


def test_a_greenlet_looks_for_what_it_waits_for_and_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert threads.wait_among_greenlets(lambda _: len(slept) if len(slept) > 9 else None, 60) == 10
    assert max(slept) <= 0.02
    assert threads.wait_among_greenlets(lambda _: None, 0.001) is None


def test_a_program_that_stops_the_clock_waits_no_longer_than_it_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """freezegun and its like: a session that went by the program's clock would never make a call again."""
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pagefold.connect(server.address, autostart=False) as client, client.allocate(1 << 20) as buffer:
        buffer[:] = bytes([7]) * (1 << 20)
        assert client.stats().connected
        assert not client.settle(0.01).reason.startswith("the client")
        assert client.settle(20).seconds < 20


def test_the_log_tells_who_spoke(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "pagefold"):
        log.log.warning("%d pages", 3)
        try:
            int("so")
        except ValueError:
            log.log.exception("it failed")
    assert [record.getMessage() for record in caplog.records] == ["3 pages", "it failed"]
    assert [record.filename for record in caplog.records] == ["test_threads.py"] * 2
    assert caplog.records[1].exc_info is not None


def test_a_thread_that_has_ended_keeps_nothing() -> None:
    class Owner:
        def run(self) -> None:
            ran.append(True)

    ran: list[bool] = []
    owner = Owner()
    pagefold_core.start(owner.run)
    gone = weakref.ref(owner)
    del owner
    until(lambda: ran and gone() is None, what="its going, without a run of the garbage collector")
