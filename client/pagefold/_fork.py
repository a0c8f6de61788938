"""What a fork does to a client: nothing of it is in the middle of anything, and the child is told that it is a copy.

    before      for each client: arena lock, session lock (no RPC); then, natively: no window, pages frozen
    in parent   pages stay quarantined until all children are gone; then they are thawed
    in child    new locks, no channel, no thread: memory is a snapshot; the client connects anew when it is used

**Memory** is the native half's business: it has the C library call it at every fork, Python's and that of C code
alike (`fork.rs`), so both processes keep their bytes whatever forked. **Sessions** are Python's: the hooks below hold
every client's locks across `os.fork`, so that grpc is not copied in the middle of a call, and no book half written.
C code that forks may call them (PyOS_BeforeFork and its like), some of them, or none: its child finds out from the
native half that it is one (`Kin.forked`). Without PyOS_AfterFork_Child a child can use its memory from C, but Python
cannot run there for long, whatever we do: threads may be waiting for its lock that do not exist. vfork and
posix_spawn, which `subprocess` uses, call no hooks and need none: their children do nothing but exec.

A `Kin` is one client's part in this, and holds its two Python locks. **Lock order: the registry's, the arena's, the
session's, the native registry's, the native ones.** It lives as long as the client or any of its buffers. Hooks
never leave a lock held: each undoes what its `before` noted as done. Re-entrant locks, since a signal handler or a
finalizer may fork while its own thread holds one.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from pagefold import _threads
from pagefold._log import log as _log

GENERATION_POLL: Final = 0.5
"""Seconds between two looks whether forked children are gone."""


class ForkSpace(Protocol):
    """The part of `pagefold_core.Space` that forks concern."""

    @property
    def shared(self) -> bool: ...
    @property
    def forked(self) -> bool: ...
    def thaw(self) -> bool: ...
    def forget_children(self) -> None: ...
    def owns(self, address: int, nbytes: int) -> bool: ...
    def fork_trouble(self) -> str | None: ...


class Kin:
    """One client's part in forks; see the head of this file.

    Args:
        space: the native space, or a fake.

    Attributes:
        arena_lock, session_lock: the client's locks, in the order in which they are taken.
        on_fork: called in the parent after a fork, with no lock held.
        in_child: called in the child, to forget what cannot be used there. False: that may be long after the fork, so
            that the numbers of descriptors may be somebody else's by now.
    """

    def __init__(self, space: ForkSpace) -> None:
        self.space = space
        self.arena_lock = _threads.RLock()
        self.session_lock = _threads.RLock()
        self.on_fork: Callable[[], None] | None = None
        self.in_child: Callable[[bool], object] | None = None
        self._forked = False
        self._tracked = True
        self._next_look = 0.0
        self._queue: deque[None] = deque()
        self._locks_held = 0  # by `before_fork`

    @property
    def forked(self) -> bool:
        """Whether this process is a child of the client's. For good."""
        if not self._forked and self.space.forked:
            self._become_child(at_once=False)  # C code forked past our hooks
        return self._forked

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Holds the session lock; the session's own thread lets others go first (`yield_session`)."""
        self._queue.append(None)
        try:
            lock = self.session_lock
            lock.acquire()
        finally:
            self._queue.pop()
        try:
            yield
        finally:
            lock.release()

    def is_holding(self) -> bool:
        """Whether this thread holds one of the locks: a signal handler or finalizer came in between."""
        return any(lock._is_owned() for lock in (self.arena_lock, self.session_lock))

    def yield_session(self) -> None:
        """Lets whoever waits for the session lock have it: a thread that goes round and round would starve them."""
        if self._queue:
            _threads.sleep(0.001)  # a lock is not fair: who waits gets it only while we are away

    @property
    def quarantined(self) -> bool:
        """Whether forked children may still share memory, or it is not thawed yet."""
        return self._tracked and self.space.shared

    def thaw_if_over(self) -> bool:
        """Looks, now and then, which children are gone, and thaws memory. True when nothing is shared any more."""
        now = _threads.monotonic()
        if not self.quarantined or now < self._next_look:
            return False
        self._next_look = now + GENERATION_POLL
        self._tell_trouble()
        with self.session():
            try:
                return self.space.thaw()
            except OSError as error:  # memory is short: the next look tries again
                _log.debug("thawing memory after a fork: %s", error)
                return False

    def detach(self) -> None:
        """The client is closed: nothing is merged, punched or thawed any more, so forks need no lease."""
        with self.session():
            self._tracked = False
            self.on_fork = self.in_child = None
            self.space.forget_children()

    # The hooks. Each is called for all kin, before the next kind.

    def before_fork(self) -> None:
        """Holds everything still that is Python's."""
        if self.forked:
            return
        self._queue.append(None)
        try:
            self.arena_lock.acquire()
            self._locks_held = 1
            self.session_lock.acquire()
            self._locks_held = 2
        finally:
            self._queue.pop()

    def after_fork_in_parent(self) -> Callable[[], None] | None:
        """Goes on. Returns what to call when all locks are free."""
        if self._locks_held > 1:
            self.session_lock.release()
        if self._locks_held > 0:
            self.arena_lock.release()
        self._locks_held = 0
        if self._forked:
            return None
        self._tell_trouble()
        return self.on_fork if self.quarantined else None

    def after_fork_in_child(self) -> None:
        """Becomes a copy of which only the bytes can be used."""
        if not self._forked:
            self._become_child(at_once=True)

    def _become_child(self, at_once: bool) -> None:
        self._forked = True
        self.arena_lock, self.session_lock = _threads.RLock(), _threads.RLock()
        self._queue.clear()
        self._locks_held = 0
        in_child, self.in_child, self.on_fork = self.in_child, None, None
        if in_child is not None:
            in_child(at_once)
        self._tell_trouble()

    def _tell_trouble(self) -> None:
        trouble = self.space.fork_trouble()
        if trouble:
            _log.error("a fork did not go well; the child may lack memory, or hold up merging for good: %s", trouble)


_registry: weakref.WeakSet[Kin] = weakref.WeakSet()
_registry_lock = _threads.RLock()
_process = os.getpid()
# This process, or one that it descends from, was forked past `_before`: grpc may have been in the middle of a call.
_past_hooks = False
# The fork under way: whose `before_fork` was called, and whether the registry's lock was taken for it.
_forking: list[Kin] = []
_holding: list[None] = []


def register(kin: Kin) -> None:
    """Has a client take part in forks, as long as it or its memory lives."""
    with no_fork():
        _registry.add(kin)


@contextlib.contextmanager
def no_fork() -> Iterator[None]:
    """Keeps other threads from forking."""
    _ensure_own_lock()
    lock = _registry_lock
    with lock:
        yield


def why_not_attach() -> str:
    """Why grpc cannot be used in this process: a fork on the way to it went past the hooks. Empty if none did."""
    _ensure_own_lock()
    if not _past_hooks:
        return ""
    if "uwsgi" in sys.modules:
        return (
            "uWSGI has forked it past Python's hooks, perhaps in the middle of a call. Set py-call-uwsgi-fork-hooks "
            "(without it, workers hang whenever any thread of the master runs Python at that moment), or lazy-apps"
        )
    return "C code has forked it past Python's hooks, perhaps in the middle of a call: fork with os.fork(), or exec"


def is_inherited(address: int, nbytes: int) -> bool:
    """Whether memory was inherited from a parent's client."""
    return any(kin.forked and kin.space.owns(address, nbytes) for kin in list(_registry))


def _ensure_own_lock() -> None:
    """In a child that C code forked past our hooks: who held the lock there does not exist here."""
    if _process != os.getpid():
        _start_anew(past_hooks=True)


def _start_anew(past_hooks: bool) -> None:
    global _registry_lock, _process, _past_hooks
    _past_hooks = _past_hooks or past_hooks
    _forking.clear()
    _holding.clear()
    _registry_lock = _threads.RLock()
    _process = os.getpid()


def _before() -> None:
    _ensure_own_lock()
    _registry_lock.acquire()
    _holding.append(None)
    _forking[:] = list(_registry)
    for kin in _forking:
        try:
            kin.before_fork()
        except Exception:  # a fork cannot be stopped: the others' locks are taken too
            _log.exception("preparing a fork failed: do not use pagefold's memory in the child")


def _after_in_parent() -> None:
    calls = []
    for kin in _forking:
        try:
            calls.append(kin.after_fork_in_parent())
        except Exception:  # every lock is let go, whatever one client does
            _log.exception("going on after a fork failed")
    _forking.clear()
    if _holding:
        _holding.pop()
        _registry_lock.release()
    for call in calls:
        if call is not None:
            call()


def _after_in_child() -> None:
    for kin in list(_registry):  # and not `_forking`: C code that forks calls this, and may not have called `_before`
        try:
            kin.after_fork_in_child()
        except Exception:  # the child goes on; the log says what it cannot use
            _log.exception("a forked child cannot use the memory of its parent's pagefold client")
    _start_anew(past_hooks=not _holding)


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
