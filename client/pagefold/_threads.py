"""Threads, locks, events, sleep and clock as the kernel has them, whatever the program made of Python's.

gevent and eventlet replace threads by greenlets: in `threading`, `_thread`, `time`, `queue`, `select`, `socket`,
`subprocess` and `os`, before or after this library is imported, or after a client has connected. Other tools stop the
clock. The session's thread waits in native code, so a greenlet in its place stands the program still; and a primitive
of theirs that two real threads share loses wake-ups, or switches to a greenlet in the middle of what it protects.

So what is here comes from instances of the built-in modules that nobody else has. What holds:

* No other module of the client imports one of the replaced modules (a test sees to that).
* No greenlet switches while a lock of the client is held: nothing is called there that could be replaced, log handlers
  included (`_log.py`). For greenlets of one thread the locks, which are re-entrant, would be none.
* gRPC, which has locks of its own, is called by real threads only where there are greenlets (`aside`).
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import BuiltinFunctionType, ModuleType
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def _own(name: str) -> ModuleType:
    """An instance of a built-in module that no other code can reach, and so nobody has changed."""
    spec = importlib.machinery.BuiltinImporter.find_spec(name)
    assert spec is not None, f"{name} is built into CPython"
    module = importlib.util.module_from_spec(spec)
    importlib.machinery.BuiltinImporter.exec_module(module)
    return module


_thread: Final = _own("_thread")
_time: Final = _own("time")

Lock: Final[Callable[[], Any]] = _thread.allocate_lock
RLock: Final[Callable[[], Any]] = _thread.RLock
sleep: Final[Callable[[float], None]] = _time.sleep
monotonic: Final[Callable[[], float]] = _time.monotonic
wall_clock: Final[Callable[[], float]] = _time.time
thread_time: Final[Callable[[], float]] = _time.thread_time
TIMEOUT_MAX: Final[float] = _thread.TIMEOUT_MAX

# With which a waiting greenlet looks whether it may go on: a settle() takes milliseconds at least.
_LOOK_SECONDS: Final = (0.001, 0.02)


class Event:
    """As `threading.Event`. Each waiter has a lock of its own: one that is interrupted takes nobody's wake-up."""

    def __init__(self) -> None:
        self._set = False
        self._waiters: list[Any] = []

    def is_set(self) -> bool:
        """Whether `set` was called, and `clear` was not called since."""
        return self._set

    def set(self) -> None:
        """Wakes all who wait, and whoever will."""
        self._set = True
        for lock in list(self._waiters):
            if lock.locked():
                _release(lock)

    def clear(self) -> None:
        """Whoever waits from now on waits for the next `set`."""
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        """Waits at most so many seconds; None: without a bound. Whether it was set."""
        if self._set:
            return True
        lock = Lock()
        lock.acquire()
        self._waiters.append(lock)
        try:
            if not self._set:
                lock.acquire(timeout=-1 if timeout is None else min(max(0.0, timeout), TIMEOUT_MAX))
        finally:
            self._waiters.remove(lock)
        return self._set

    def wait_among_greenlets(self, timeout: float) -> bool:
        """As `wait`, but the thread's other greenlets run meanwhile, if it has some. Never with a lock held."""
        if not are_greenlets():
            return self.wait(timeout)
        until = monotonic() + timeout
        pause, longest = _LOOK_SECONDS
        while not self._set and (left := until - monotonic()) > 0:
            sys.modules["time"].sleep(min(pause, left))  # the program's own: it is what switches
            pause = min(2 * pause, longest)
        return self._set


class Thread:
    """A thread of the kernel's, which does not keep the program from ending. `threading` knows nothing of it.

    Args:
        run: called in it. What it raises is printed by the interpreter.
    """

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run
        self._ident: int | None = None
        self._ended = Event()

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self._ident is not None

    @property
    def is_current(self) -> bool:
        """Whether this is the thread that asks."""
        return bool(self._ident == _thread.get_ident())

    def start(self) -> None:
        """Starts it.

        Raises:
            RuntimeError: the system has no thread left.
        """
        self._ident = _thread.start_new_thread(self._main, ())

    def join(self) -> None:
        """Waits for its end."""
        self._ended.wait()

    def _main(self) -> None:
        self._ident = _thread.get_ident()
        try:
            self._run()
        finally:
            del self._run  # whose object may hold this one
            self._ended.set()


def are_greenlets() -> bool:
    """Whether what the program takes for threads are greenlets, at this moment."""
    return not isinstance(sys.modules["_thread"].start_new_thread, BuiltinFunctionType)


def aside(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Makes a call; in a real thread of its own if the caller may be a greenlet. All greenlets of the caller's wait."""
    if not are_greenlets():
        return call(*args, **kwargs)
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call(*args, **kwargs))
        except BaseException as error:  # it is the caller's
            errors.append(error)

    thread = Thread(run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def can_be_had(count: int) -> bool:
    """Whether the system has so many threads to spare now: starts them, all at once, and ends them."""
    end = Event()
    threads = [Thread(end.wait) for _ in range(count)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:
        return False
    finally:
        end.set()
        for thread in threads:
            if thread.started:
                thread.join()
    return True


def _release(lock: Any) -> None:
    try:
        lock.release()
    except RuntimeError:  # another thread's `set` was faster
        return
