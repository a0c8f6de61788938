"""The shared-memory object behind a domain's frames: made, taken over, measured and let go of here.

    made --> owned --server stops or dies--> orphan --the next server--> owned
                                               `---no process maps it--> garbage, swept

Clients open it by name, read-only (mode 0400). It never shrinks. Engines say what is in it; locks on it say which
server owns it and which clients may map it (see `pagefold_proto.pool_slots`). Its name ends in a tag that stands for
server address, user and label, so that the next server finds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections import Counter
from dataclasses import dataclass
from typing import Final

from pagefold_proto import pool_slots, shm_names
from pagefold_proto.limits import PAGE, SHM

MOST_FRAMES: Final = 1 << 26
"""Frames that a pool can have, used or not."""
_CANDIDATES: Final = 64
"""Pools of a user's with a domain's tag that are opened: one, or a few after crashes. Other users' are not counted."""
_LISTED: Final = 1 << 14
"""Pools of one user's that are remembered: names cost nothing to make, and remembering one takes some 300 bytes."""
# A pool with more than _SMALL frames by its size, and more than _SPARSE times what it holds, is not taken over. A pool
# that was once much larger is lost by that: its clients take their memory back, and merge anew.
_SPARSE: Final = 256
_SMALL: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Orphan:
    """A pool whose server is gone, while its clients live. It belongs to this server from here on."""

    name: str
    fd: int


class PoolFile:
    """A POSIX shared-memory object that this process holds and owns.

    Args:
        uid: of the domain; its processes must be able to open the pool. A server of root's makes them its owner.
        tag: see the head of this file.
        orphan: to take over; else a new one is made.

    Attributes:
        name: with its leading slash.
        number: in the protocol.
        fd: open for reading and writing; -1 once it is closed.

    Raises:
        OSError: the object cannot be made.
    """

    def __init__(self, uid: int, tag: str = "", orphan: Orphan | None = None) -> None:
        if orphan is not None:
            self.name, self.fd = orphan.name, orphan.fd
        else:
            self.name, self.fd = _make(uid, tag)
        self.number = shm_names.pool_number(self.name)

    def bytes_allocated(self) -> int:
        """What the kernel has allocated to this pool, released frames that were not given back yet included."""
        return os.fstat(self.fd).st_blocks * 512

    def is_named(self) -> bool:
        """Whether it still has its name, by which new clients open it."""
        return self.fd >= 0 and os.fstat(self.fd).st_nlink > 0

    def is_held_only_by(self, slots: set[int]) -> bool:
        """Whether only clients with these slots may map frames."""
        return pool_slots.held(self.fd, len(slots) + 1) <= slots

    def is_held(self) -> bool:
        """Whether any process may map frames, known to this server or not."""
        return pool_slots.is_any_held(self.fd)

    def close(self, unlink: bool) -> None:
        """Lets the pool go. Views that map its frames keep them; unlinked, it cannot be opened any more."""
        if self.fd < 0:
            return
        if unlink:
            shm_names.remove(self.name)
        os.close(self.fd)
        self.fd = -1


class Orphans:
    """The pools that were there when this server began, by owner and tag; those that it takes over included.

    A pool whose server is gone is older than the server that takes it over, so /dev/shm is listed once. Names
    that are made later are not looked at. Nothing has to be added: a pool that this server leaves behind for its
    clients while it goes on is one that it had taken over. (A predecessor that lost its address to this server may
    make a pool in its last seconds. That one is not found, and its clients take their memory back out of it.)
    """

    def __init__(self) -> None:
        self._names: dict[tuple[int, str], list[str]] = {}

    def list_names(self) -> None:
        """Lists them. It takes some 10 us for each name in /dev/shm: not for the loop."""
        listed: Counter[int] = Counter()
        with contextlib.suppress(OSError), os.scandir(SHM) as entries:
            for entry in entries:
                name = f"/{entry.name}"
                if not shm_names.is_name(shm_names.POOL, name):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    uid = entry.stat(follow_symlinks=False).st_uid
                    if os.geteuid() in (0, uid) and listed[uid] < _LISTED:
                        listed[uid] += 1
                        self._names.setdefault((uid, shm_names.tag_in(name)), []).append(name)

    def find(self, uid: int, tag: str) -> Orphan | None:
        """The pool with that tag whose server is gone and that a process may map; the largest, if there are several.

        Args:
            uid: of its owner.
            tag: see the head of this file.
        """
        found: Orphan | None = None
        for name in self._names.get((uid, tag), [])[:_CANDIDATES]:
            with contextlib.suppress(OSError):  # gone, or not to be opened by this user: as good as not there
                fd = _claim(name, uid)
                if fd is None:
                    continue
                if found is None or os.fstat(fd).st_blocks > os.fstat(found.fd).st_blocks:
                    fd, found = (-1 if found is None else found.fd), Orphan(name, fd)
                if fd >= 0:
                    os.close(fd)
        return found


def _make(uid: int, tag: str) -> tuple[str, int]:
    made = shm_names.create_locked(shm_names.POOL, 0o400, 0, tag)
    try:
        if uid != os.geteuid():
            os.fchown(made.fd, uid, -1)
        pool_slots.own(made.fd)
    except BaseException:
        shm_names.remove(made.name)
        os.close(made.fd)
        raise
    return made.name, made.fd


def is_plausible(status: os.stat_result) -> bool:
    """Whether books about it would be of use: they take memory for every frame that its size says, used or not.

    The native engine has the same rule.
    """
    return status.st_size // PAGE <= _SPARSE * (status.st_blocks * 512 // PAGE) + _SMALL


def _claim(name: str, uid: int) -> int | None:
    """A descriptor that owns the pool, open for writing. None: it has another owner, or no process may map it."""
    look = shm_names.look(name)
    try:
        status = os.fstat(look)
        if not stat.S_ISREG(status.st_mode) or status.st_dev != os.stat(SHM).st_dev or status.st_uid != uid:
            return None
        if pool_slots.owner(look) or not pool_slots.is_any_held(look):
            return None
        fd = _open_for_writing(look)
    finally:
        os.close(look)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # a sweep that is just removing it holds it exclusively
        if os.fstat(fd).st_nlink and pool_slots.own(fd) and pool_slots.is_any_held(fd):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _open_for_writing(fd: int) -> int:
    """Opens the same object for writing, though its mode allows that to no user."""
    path = f"/proc/self/fd/{fd}"
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        os.fchmod(fd, 0o600)
        try:
            return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.fchmod(fd, 0o400)
