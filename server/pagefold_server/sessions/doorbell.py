"""Doorbells, by which clients are rung. What a ring means, and why it is a futex call: docs/design/names.md.

The native doorbell relies on where glibc keeps a semaphore's value. That is checked once, by ringing one of
our own; where it fails, the C library rings, and a client that truncates its semaphore could then stop the server.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import stat
from collections.abc import Callable
from typing import Final, Protocol

import posix_ipc
import structlog
from pagefold_core import Doorbell
from pagefold_proto import shm_names
from pagefold_proto.limits import SHM

from pagefold_server.errors import NotASegment, WrongOwner
from pagefold_server.sessions.objects import file_lease, not_found

_SEMAPHORE_BYTES: Final = 32  # sizeof(sem_t) where pointers have 64 bits
_libc: Final = ctypes.CDLL(None)

_log = structlog.get_logger("pagefold.doorbell")


class Bell(Protocol):
    """A doorbell, of either kind."""

    def ring(self) -> bool:
        """Wakes the client. False: it cannot be rung any more."""


class PosixBell:
    """A doorbell rung by the C library, where the native way does not work. sem_open would wait for a file lease."""

    def __init__(self, name: str, owner: int | None = None) -> None:
        fd = os.open(path_of(name), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if owner not in (None, os.fstat(fd).st_uid):
                raise PermissionError(errno.EACCES, "it belongs to another user", name)
            self._semaphore = (ctypes.c_char * _SEMAPHORE_BYTES).from_buffer(mmap.mmap(fd, _SEMAPHORE_BYTES))
        except ValueError as error:  # it is shorter than that
            raise OSError(errno.EINVAL, "this is no semaphore", name) from error
        finally:
            os.close(fd)

    def ring(self) -> bool:
        """Wakes the client."""
        value = ctypes.c_int()
        _libc.sem_getvalue(self._semaphore, ctypes.byref(value))
        return value.value > 0 or _libc.sem_post(self._semaphore) == 0


def path_of(name: str) -> str:
    """Where glibc keeps the semaphore of that name."""
    return f"{SHM}/sem.{name[1:]}"


class Bells:
    """Opens clients' doorbells, in the way that works here."""

    def __init__(self) -> None:
        self._make: Final[Callable[[str, int | None], Bell]] = Doorbell if _native_works() else PosixBell

    def open(self, name: str, uid: int) -> Bell:
        """Opens a client's doorbell.

        Raises:
            NotASegment: there is no such semaphore.
            WrongOwner: it belongs to another user than the session.
        """
        try:
            found = os.lstat(path_of(name))
            if not stat.S_ISREG(found.st_mode):
                raise NotASegment(f"{name} is not a semaphore")
            if found.st_uid != uid:
                raise WrongOwner(f"{name} does not belong to uid {uid}, whose session this is")
            return self._make(name, uid)  # which looks again, at what it has opened
        except BlockingIOError as error:
            raise file_lease(name) from error
        except OSError as error:
            raise not_found(f"/sem.{name[1:]}", error) from error


def _native_works() -> bool:
    name = shm_names.new_name(shm_names.DOORBELL)
    semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600)
    try:
        if Doorbell(name).ring() and semaphore.value == 1:
            semaphore.acquire(0)
            return True
    except (OSError, posix_ipc.Error) as error:
        _log.debug("a doorbell of our own cannot be rung", error=str(error))
    finally:
        semaphore.close()
        with contextlib.suppress(posix_ipc.ExistentialError):
            posix_ipc.unlink_semaphore(name)
    _log.warning("the C library's semaphores have an unknown layout; it rings the doorbells itself")
    return False
