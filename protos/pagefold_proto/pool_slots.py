"""Locks on bytes of a pool's file, which say who may map its frames, and which server owns it.

    byte   1 ............... 2**62-1      2**62 ... + instance
           a client's slot: shared        the server: exclusive, as many bytes as its instance says

They are OFD locks (Linux 3.15). The kernel keeps one as long as any process has the descriptor, or a mapping made
through it, inherited ones included, however other processes died. So a slot is free exactly when no process can map a
frame through it, and a killed server does not own its pool. No byte of the file is read or written.

Client and server both import this.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import struct
from typing import Final

_SERVER: Final = 1 << 62
_MOST_INSTANCES: Final = 1 << 30
_FLOCK: Final = "hhqqi0q"  # struct flock of the 64-bit ABIs: type, whence, start, length, pid

INSTANCE: Final = 1 + secrets.randbelow(_MOST_INSTANCES - 1)
"""This process's number as a server. It tells the present owner from the one before."""


def new_slot() -> int:
    """Makes up a slot."""
    return 1 + secrets.randbelow(_SERVER - 2)


def is_slot(number: int) -> bool:
    """Whether a number can be a slot."""
    return 1 <= number < _SERVER


def hold(fd: int, slot: int) -> None:
    """Locks a slot as long as the open file behind `fd` lives.

    Raises:
        OSError: the kernel has no room for another lock.
    """
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _pack(fcntl.F_RDLCK, slot, 1))


def own(fd: int, instance: int = INSTANCE) -> bool:
    """Makes this server the owner as long as the open file behind `fd`, open for writing, lives.

    Returns:
        False if another server owns it.
    """
    try:
        # The whole range first: two servers with different instances must exclude each other.
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _pack(fcntl.F_WRLCK, _SERVER, _MOST_INSTANCES))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _pack(fcntl.F_UNLCK, _SERVER + instance, _MOST_INSTANCES - instance))
    return True


def owner(fd: int) -> int:
    """The instance of the server that owns the pool; 0: none. Ask through another descriptor than the owner's."""
    found = _conflict(fd, _SERVER, _SERVER + _MOST_INSTANCES)
    return found[1] if found else 0


def is_any_held(fd: int) -> bool:
    """Whether any slot is locked, except by the open file behind `fd` itself. It takes one system call."""
    return _conflict(fd, 1, _SERVER) is not None


def held(fd: int, most: int) -> set[int]:
    """Slots that are locked, except by the open file behind `fd` itself.

    Args:
        fd: the pool's.
        most: stop at this number. The kernel walks all locks for each answer, so a full list takes quadratic time, and
            any process that may open the pool can make any number of locks.
    """
    slots: set[int] = set()
    ranges = [(1, _SERVER)]
    while ranges and len(slots) < most:
        first, end = ranges.pop()
        found = _conflict(fd, first, end) if first < end else None
        if found is not None:
            start, length = max(found[0], first), found[1]
            after = end if length == 0 else min(found[0] + length, end)
            slots.add(start)
            ranges += [(first, start), (max(after, start + 1), end)]
    return slots


def _conflict(fd: int, first: int, end: int) -> tuple[int, int] | None:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _pack(fcntl.F_WRLCK, first, end - first))
    kind, _, start, length, _ = struct.unpack(_FLOCK, answer)
    return None if kind == fcntl.F_UNLCK else (start, length)


def _pack(kind: int, start: int, length: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)
