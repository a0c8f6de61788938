"""Locks, sleep and clock of the kernel, whatever a program has put in the place of Python's.

gevent and eventlet replace threads by greenlets: in `threading`, `_thread`, `time`, `queue`, `select`, `socket`,
`subprocess` and `os`, before or after this library is imported, or after a client has connected. Other tools stop the
clock. The session's thread waits in native code, so a greenlet in its place stands the program still; and a primitive
of theirs that two real threads share loses wake-ups, or switches to a greenlet in the middle of what it protects.

So threads, and what they wait for, are native (`pagefold_core`), and this file has instances of the built-in modules
that no other code can reach. What holds:

* No other module of the client imports one of the replaced modules (a test checks that).
* No greenlet is switched away while it holds a lock of the client's: native locks are held across no call into Python,
  and threads that hold no lock call the log's handlers (`log.py`).
* Only the session's thread, which is a real one, calls gRPC, which has locks of its own.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import BuiltinFunctionType, ModuleType
from typing import Any, Final, TypeVar

T = TypeVar("T")


def _own(name: str) -> ModuleType:
    """An instance of a built-in module that no other code can reach or change."""
    spec = importlib.machinery.BuiltinImporter.find_spec(name)
    assert spec is not None, f"{name} is built into CPython"
    module = importlib.util.module_from_spec(spec)
    importlib.machinery.BuiltinImporter.exec_module(module)
    return module


_thread: Final = _own("_thread")
_time: Final = _own("time")

Lock: Final[Callable[[], Any]] = _thread.allocate_lock
sleep: Final[Callable[[float], None]] = _time.sleep
monotonic: Final[Callable[[], float]] = _time.monotonic
wall_clock: Final[Callable[[], float]] = _time.time
thread_time: Final[Callable[[], float]] = _time.thread_time
TIMEOUT_MAX: Final[float] = _thread.TIMEOUT_MAX

# First and longest pause of a waiting greenlet between two looks: a settle() takes milliseconds at least.
_LOOK_SECONDS: Final = (0.001, 0.02)


def wait_among_greenlets(probe: Callable[[float], T | None], timeout: float) -> T | None:
    """Waits for something while other greenlets of the thread run. Call it without any lock held.

    Args:
        probe: waits for it up to the given number of seconds. Returns None if it has not come.
        timeout: seconds.
    """
    until = monotonic() + timeout
    pause, longest = _LOOK_SECONDS
    while (found := probe(0.0)) is None and (left := until - monotonic()) > 0:
        sys.modules["time"].sleep(min(pause, left))  # the program's own: it is what switches
        pause = min(2 * pause, longest)
    return found


def wait_until(probe: Callable[[], bool], timeout: float, pause: float) -> bool:
    """Looks again and again whether something is so. False if it is not in time.

    Args:
        probe: looks.
        timeout: seconds.
        pause: seconds between two looks.
    """
    until = monotonic() + timeout
    while not probe():
        if monotonic() > until:
            return False
        sleep(pause)
    return True


def are_greenlets() -> bool:
    """Whether what the program takes for threads are greenlets, at this moment."""
    return not isinstance(sys.modules["_thread"].start_new_thread, BuiltinFunctionType)
