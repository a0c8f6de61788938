"""Ringing clients. What a ring means, and why it is a futex call, is in docs/design.md, "Names".

The native doorbell relies on where glibc keeps a semaphore's value. That is checked once, by ringing one of
our own; where it fails, posix_ipc rings, and a client that truncates its semaphore could then stop the server.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import Final, Protocol

import posix_ipc
import structlog
from pagefold import _names
from pagefold_core import Doorbell

from pagefold_server.errors import NotASegment, WrongOwner
from pagefold_server.segment import SHM

_log = structlog.get_logger("pagefold.doorbell")


class Bell(Protocol):
    """Something to ring."""

    def ring(self) -> bool:
        """Wakes the client. False: it cannot be rung any more."""


class PosixBell:
    """A doorbell rung by posix_ipc, where the native way does not work."""

    def __init__(self, name: str, _owner: int | None = None) -> None:
        try:
            self._semaphore = posix_ipc.Semaphore(name)
        except posix_ipc.Error as error:
            raise OSError(str(error)) from error

    def ring(self) -> bool:
        """Wakes the client."""
        if not self._semaphore.value:
            self._semaphore.release()
        return True


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
            WrongOwner: it is not the session's.
        """
        try:
            found = os.lstat(path_of(name))
            if not stat.S_ISREG(found.st_mode):
                raise NotASegment(f"{name} is not a semaphore")
            if found.st_uid != uid:
                raise WrongOwner(f"{name} does not belong to uid {uid}, whose session this is")
            return self._make(name, uid)  # which looks again, at what it has opened
        except OSError as error:
            raise NotASegment(f"{name} cannot be opened: {error.strerror or error}") from error


def _native_works() -> bool:
    name = _names.new_name(_names.DOORBELL)
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
    _log.warning("the C library's semaphores have an unknown layout; posix_ipc rings the doorbells")
    return False
