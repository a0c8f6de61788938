"""What a fork does to a client: its locks are taken, its pages frozen, and the child is told that it is a copy.

    before      for each client: arena lock, session lock (no RPC, no window), a lease for the child, pages frozen
    in parent   pages stay quarantined until the lease of every child is free; then they are thawed
    in child    new locks, no channel, no thread: memory is a snapshot, methods raise ForkedClient

A `Kin` is one client's part in this, and holds its two Python locks. **Lock order: the registry's, the arena's, the
session's, the native one.** It lives as long as the client or any of its buffers: memory has to be frozen at a fork
even if nobody merges it any more. Hooks never leave a lock held: each undoes what its `before` noted as done.
Re-entrant locks, since a signal handler or a finalizer may fork while its own thread holds one.

Forks that C code makes without Python's hooks are not covered.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from pagefold import _names
from pagefold._errors import ForkedClient

GENERATION_POLL: Final = 0.5
"""Seconds between two looks whether forked children are gone."""

_log = logging.getLogger("pagefold")
# What children inherited and must keep open, and what must not be finalized there.
_kept: list[object] = []


class ForkSpace(Protocol):
    """The part of `pagefold_core.Space` that forks concern."""

    def before_fork(self) -> None: ...
    def after_fork_in_parent(self) -> None: ...
    def after_fork_in_child(self) -> None: ...
    def thaw(self) -> int: ...


class _Generation:
    """The lease that one fork's children hold. `given` goes to the child, `own` is what the parent tests with.

    The child holds it by a mapping as well as by a descriptor: a child that becomes a daemon closes its descriptors.
    """

    def __init__(self) -> None:
        lease = _names.create_locked(_names.LEASE, 0o600, mmap.PAGESIZE)
        self.given = lease.fd
        try:
            self.mapping = mmap.mmap(lease.fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)
            # An open of its own, on the lock of which the child's can be tested. The name has done its duty then.
            self.own = os.open(f"/proc/self/fd/{lease.fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(lease.fd)
            raise
        finally:
            _names.remove(lease.name)

    def keep_own(self) -> None:
        self.mapping.close()
        os.close(self.given)

    def is_over(self) -> bool:
        return _names.is_garbage(self.own)

    def close(self) -> None:
        os.close(self.own)


class _Untracked:
    """A fork for which no lease could be made: it counts as living for ever, which costs memory and is safe."""

    def keep_own(self) -> None: ...

    def is_over(self) -> bool:
        return False

    def close(self) -> None: ...


class Kin:
    """One client's part in forks; see the head of this file.

    Args:
        space: the native space, or a fake.
        can_thaw: False in tier "off", in which frozen pages stay frozen.

    Attributes:
        arena_lock, session_lock: the client's locks, in the order in which they are taken.
        forked: this process is a child; set for good.
        has_views: there is memory that a fork must freeze.
        on_fork: called in the parent after a fork, with no lock held.
        in_child: called in the child, to forget what cannot be used there.
    """

    def __init__(self, space: ForkSpace, can_thaw: bool = True) -> None:
        self.space = space
        self.arena_lock = threading.RLock()
        self.session_lock = threading.RLock()
        self.forked = False
        self.has_views = False
        self.on_fork: Callable[[], None] | None = None
        self.in_child: Callable[[], None] | None = None
        self._can_thaw = can_thaw
        self._tracked = True
        self._generations: list[_Generation | _Untracked] = []
        self._to_thaw = False
        self._next_look = 0.0
        self._queue: deque[None] = deque()
        # What `before_fork` has done: how many locks, whether the space is held, the lease of the fork under way.
        self._locks_held = 0
        self._space_held = False
        self._generation: _Generation | _Untracked | None = None

    def ensure_not_forked(self) -> None:
        """Raises ForkedClient in a child."""
        if self.forked:
            raise ForkedClient(
                "this client belongs to the parent process, and its memory is a snapshot here: "
                "open a client of your own with pagefold.connect()"
            )

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
        return any(lock._is_owned() for lock in (self.arena_lock, self.session_lock))  # type: ignore[attr-defined]

    def yield_session(self) -> None:
        """Lets whoever waits for the session lock have it: a thread that goes round and round would starve them."""
        if self._queue:
            time.sleep(0.001)  # a lock is not fair: who waits gets it only while we are away

    @property
    def quarantined(self) -> bool:
        """Whether forked children may still share memory, or it is not thawed yet."""
        return bool(self._generations) or self._to_thaw

    def thaw_if_over(self) -> bool:
        """Looks, now and then, whether all children are gone, and thaws the memory. True when that is done."""
        now = time.monotonic()
        if not self.quarantined or now < self._next_look:
            return False
        self._next_look = now + GENERATION_POLL
        with self.session():
            over = [generation for generation in self._generations if generation.is_over()]
            for generation in over:
                self._generations.remove(generation)
                generation.close()
            if self._generations:
                return False
            self._to_thaw = True
            try:
                left = self.space.thaw()
            except OSError as error:  # memory is short: the next look tries again
                _log.debug("thawing memory after a fork: %s", error)
                return False
            if left and self._can_thaw:
                return False
            self._to_thaw = False
            return True

    def detach(self) -> None:
        """The client is closed: nothing is merged, punched or thawed any more, so forks need no lease."""
        with self.session():
            self._tracked = False
            self.on_fork = self.in_child = None
            for generation in self._generations:
                generation.close()
            self._generations.clear()
            self._to_thaw = False

    # The hooks. Each is called for all kin, before the next kind.

    def before_fork(self) -> None:
        """Holds everything still and freezes the memory."""
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
        if self._tracked and self.has_views:
            try:
                self._generation = _Generation()
            except OSError:
                _log.exception("no lease for a forked child: memory that exists now will not be merged any more")
                self._generation = _Untracked()
        self._space_held = True
        self.space.before_fork()

    def after_fork_in_parent(self) -> Callable[[], None] | None:
        """Goes on. Returns what to call when all locks are free."""
        generation, self._generation = self._generation, None
        try:
            if self._space_held:
                self.space.after_fork_in_parent()
            if generation is not None:
                generation.keep_own()
                self._generations.append(generation)
        finally:
            self._space_held = False
            if self._locks_held > 1:
                self.session_lock.release()
            if self._locks_held > 0:
                self.arena_lock.release()
            self._locks_held = 0
        return self.on_fork if generation is not None else None

    def after_fork_in_child(self) -> None:
        """Becomes a copy of which only the bytes can be used."""
        if self.forked:
            return
        self.forked = True
        self.arena_lock, self.session_lock = threading.RLock(), threading.RLock()
        self._queue.clear()
        self._locks_held = 0
        _kept.append(self._generation)  # its descriptor is the lease that the parent waits for
        if self.in_child is not None:
            self.in_child()
        if self._space_held:
            self._space_held = False
            self.space.after_fork_in_child()


_registry: weakref.WeakSet[Kin] = weakref.WeakSet()
_registry_lock = threading.RLock()
# The fork under way: whose `before_fork` was called, and whether the registry's lock was taken for it.
_forking: list[Kin] = []
_holding: list[None] = []


def register(kin: Kin) -> None:
    """Has a client take part in forks, as long as it or its memory lives."""
    with _registry_lock:
        _registry.add(kin)


@contextlib.contextmanager
def no_fork() -> Iterator[None]:
    """Keeps other threads from forking."""
    lock = _registry_lock
    with lock:
        yield


def _before() -> None:
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
    global _registry_lock
    for kin in _forking:
        try:
            kin.after_fork_in_child()
        except Exception:  # the child goes on; the log says what it cannot use
            _log.exception("a forked child cannot use the memory of its parent's pagefold client")
    _forking.clear()
    _holding.clear()
    _registry_lock = threading.RLock()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
