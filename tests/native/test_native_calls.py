"""Work on threads that no signal reaches, and how sessions end. What a fork waits for is in test_session.py."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pagefold_core import Answer, Arena, Block, Ending, Lifeline, Settles, Space, call
from support.children import Child, fork
from support.fakes import make_bell
from support.waiting import until


class Hit(Exception):
    pass


@contextmanager
def hit_after(seconds: float) -> Iterator[None]:
    """A signal handler of this program raises."""

    def hit(*_: Any) -> None:
        raise Hit

    before = signal.signal(signal.SIGALRM, hit)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Thing:
    pass


def tasks() -> int:
    return len(os.listdir("/proc/self/task"))


def test_what_a_thread_gives_returns_or_raises_comes_back() -> None:
    me = threading.get_ident()
    assert call(lambda answer: (answer.wanted, threading.get_ident() != me)) == (True, True)
    with pytest.raises(ZeroDivisionError):
        call(lambda _: 1 // 0)
    go_on, ended = threading.Event(), threading.Event()

    def gives(answer: Answer) -> None:
        assert answer.give(7)
        assert not answer.give(8)
        assert not answer.wanted
        go_on.wait(20)
        ended.set()

    assert call(gives) == 7
    assert not ended.is_set(), "it goes on"
    go_on.set()
    assert ended.wait(20)


def test_threads_leave_nothing_of_theirs_behind() -> None:
    before, known = tasks(), threading.active_count()
    assert call(lambda _: threading.current_thread().daemon), "as gRPC asks; Python makes a dummy for it"
    until(lambda: tasks() <= before and threading.active_count() == known, what="its end")


def test_no_signal_reaches_them() -> None:
    def blocked(_: Answer) -> int:
        text = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text().split()
        return int(text[text.index("SigBlk:") + 1], 16)

    mask = call(blocked)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGPROF, signal.SIGCHLD, signal.SIGRTMIN):
        assert mask >> number - 1 & 1, number
    assert not mask >> signal.SIGSEGV - 1 & 1, "crash handlers are called"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set(), "the caller's mask is as it was"


def test_what_nobody_waits_for_any_more_is_dropped_by_the_thread() -> None:
    go_on = threading.Event()
    given: list[bool] = []
    kept: list[weakref.ref[Thing]] = []

    def late(answer: Answer) -> None:
        go_on.wait(20)
        assert not answer.wanted
        thing = Thing()
        kept.append(weakref.ref(thing))
        given.append(answer.give(thing))

    with hit_after(0.05), pytest.raises(Hit):
        call(late)
    go_on.set()
    until(lambda: given == [False])
    until(lambda: kept[0]() is None, what="the thing going")


def test_what_raises_when_nobody_waits_is_nobodys(capfd: pytest.CaptureFixture[str]) -> None:
    go_on, before = threading.Event(), tasks()

    def raises(_: Answer) -> None:
        go_on.wait(20)
        raise ValueError

    with hit_after(0.05), pytest.raises(Hit):
        call(raises)
    go_on.set()
    until(lambda: tasks() <= before, what="its end")
    assert capfd.readouterr() == ("", "")


def arena() -> Arena:
    lease = os.memfd_create("lease")
    space = Space("off", lease, 1000)
    os.close(lease)
    return Arena(space, "memfd", 16, 16)


def session(hangs: threading.Event | None = None) -> tuple[Ending, list[str]]:
    """The end of a session, and what has become of it."""
    told: list[str] = []

    def cut() -> None:
        told.append("cut")
        if hangs is not None:
            hangs.set()

    def live(answer: Answer) -> None:
        ending = Ending(make_bell(), cut)
        answer.give(ending)
        while not ending.pause(5):
            pass
        if hangs is not None:
            hangs.wait(20)
        told.append("ended")
        ending.finish()

    ending: Ending = call(live)
    return ending, told


def test_a_session_ends_when_it_is_told_to_and_is_waited_for() -> None:
    before = tasks()
    ending, told = session()
    assert not ending.stopping
    ending.end(20)
    assert ending.stopping
    assert told == ["ended"]
    until(lambda: tasks() <= before)
    ending.end(20)  # twice is fine


def test_a_session_that_takes_too_long_is_cut() -> None:
    ending, told = session(hangs=threading.Event())
    ending.end(0.05)
    assert told == ["cut", "ended"]


def test_a_session_ends_by_itself_when_its_lifeline_goes() -> None:
    ending, told = session()
    lifeline = Lifeline(ending, arena())
    gc.collect()
    assert not ending.stopping
    del lifeline
    assert ending.stopping
    assert not ending.outlives
    until(lambda: told == ["ended"])


def test_a_session_goes_on_when_its_lifeline_goes_and_memory_does_not() -> None:
    ending, told = session()
    memory = arena()
    lifeline, block = Lifeline(ending, memory), Block(memory, 4096, waits=False)
    del lifeline
    assert ending.outlives
    assert not ending.stopping
    assert told == []
    ending.end(20)
    block.close()
    memory.close()


def test_an_interrupted_wait_for_the_end_does_not_keep_it_from_ending() -> None:
    hangs = threading.Event()
    ending, told = session(hangs)
    with hit_after(0.05), pytest.raises(Hit):
        ending.end(20)
    hangs.set()
    until(lambda: told == ["ended"])


def test_in_a_child_it_is_the_parents_session() -> None:
    ending, told = session()
    lifelines = [Lifeline(ending, arena())]

    def act() -> None:
        lifelines.clear()
        assert not ending.stopping
        began = time.monotonic()
        ending.end(20)
        assert time.monotonic() - began < 10

    Child(act).go()
    assert told == []
    lifelines.clear()
    until(lambda: told == ["ended"])


@pytest.mark.parametrize("wait", ["call", "end", "settle"])
def test_who_is_forked_by_a_signal_handler_while_it_waits_is_told_in_the_child(wait: str) -> None:
    """What is waited for happens in the parent only: the child waited for ever."""
    hangs, pids = threading.Event(), list[int]()
    ending, _ = session(hangs)
    waits: dict[str, Callable[[], object]] = {
        "call": lambda: call(lambda _: hangs.wait(20)),
        "end": lambda: ending.end(20),
        "settle": lambda: Settles().begin(hangs.is_set).wait(0.7),
    }

    def forks(*_: Any) -> None:
        pids.append(fork())
        if pids != [0]:
            hangs.set()

    before = signal.signal(signal.SIGALRM, forks)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    told = ""
    try:
        waits[wait]()
    except RuntimeError as error:
        told = str(error)
    finally:
        if pids == [0]:
            os._exit("forked this process" not in told)
        signal.signal(signal.SIGALRM, before)
    assert told == ""
    ending.end(20)
    try:
        until(lambda: os.waitpid(pids[0], os.WNOHANG) == (pids[0], 0), what="the child, with 0")
    finally:
        with suppress(ProcessLookupError):
            os.kill(pids[0], signal.SIGKILL)
