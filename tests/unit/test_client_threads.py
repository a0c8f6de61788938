"""Threads, locks and clock that are the client's own: what they do, and that no module of the client goes past them."""

from __future__ import annotations

import ast
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pagefold
import pagefold_core
import pagefold_proto
import pytest
from pagefold import _log, _threads
from support.server import Server

# What gevent, eventlet, and tools that stop the clock replace. Of `os`, the calls that wait or fork.
REPLACED = {"_queue", "_thread", "asyncio", "concurrent", "multiprocessing", "queue", "sched", "select", "selectors"}
REPLACED |= {"signal", "socket", "socketserver", "ssl", "subprocess", "threading", "time"}
REPLACED_OF_OS = {"fork", "forkpty", "popen", "posix_spawn", "posix_spawnp", "read", "system", "wait", "waitpid"}
REPLACED_OF_OS |= {"write"}

# Programs of their own, and a handshake that is made with the program's sockets: nobody else waits for it.
APART = {"cli", "_boot.py", "_tls.py"}


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

    assert _threads._thread is not _thread
    assert type(_threads.Lock()) is not type(_thread.allocate_lock())
    assert _threads.sleep is not time.sleep
    assert _threads.monotonic is not time.monotonic


def test_an_event_wakes_all_who_wait_and_whoever_comes_later() -> None:
    event, woken = _threads.Event(), []
    waiters = [threading.Thread(target=lambda: woken.append(event.wait(30))) for _ in range(8)]
    for waiter in waiters:
        waiter.start()
    event.set()
    for waiter in waiters:
        waiter.join(30)
    assert woken == [True] * 8
    assert event.wait(0)
    event.set()
    event.clear()
    assert not event.is_set()
    assert not event.wait(0)
    assert not event.wait(0.01)
    assert event._waiters == []


@pytest.mark.parametrize("timeout", [-1.0, 1e10, float("inf"), None])
def test_an_event_takes_any_timeout(timeout: float | None) -> None:
    event = _threads.Event()
    setter = threading.Timer(0.05, event.set)
    setter.start()
    assert event.wait(timeout) == (timeout != -1.0)
    setter.join()


def test_a_thread_is_a_real_one_and_its_end_is_waited_for() -> None:
    told: list[tuple[bool, int]] = []
    thread = _threads.Thread(lambda: (_threads.sleep(0.05), told.append((thread.is_current, threading.get_ident()))))
    assert not thread.started
    thread.start()
    thread.join()
    assert told[0][0]
    assert told[0][1] != threading.get_ident()
    assert not thread.is_current


def test_whether_threads_can_be_had_is_found_out_by_having_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _threads.can_be_had(4)
    start, left = _threads._thread.start_new_thread, [3]

    def refuse(run: object, arguments: object) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        return int(start(run, arguments))

    monkeypatch.setattr(_threads._thread, "start_new_thread", refuse)
    assert not _threads.can_be_had(4)


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
        _log.log.warning("%d pages", 3)
        try:
            int("so")
        except ValueError:
            _log.log.exception("it failed")
    assert [record.getMessage() for record in caplog.records] == ["3 pages", "it failed"]
    assert [record.filename for record in caplog.records] == ["test_client_threads.py"] * 2
    assert caplog.records[1].exc_info is not None


def test_a_thread_that_has_ended_keeps_nothing() -> None:
    class Owner:
        def __init__(self) -> None:
            self.thread = _threads.Thread(self.run)

        def run(self) -> None:
            pass

    owner = Owner()
    owner.thread.start()
    owner.thread.join()
    gone = weakref.ref(owner)
    del owner
    assert gone() is None, "gone without a run of the garbage collector"
