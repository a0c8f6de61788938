"""Stale names in /dev/shm: what processes left behind that died before they could tidy up.

A name whose LOCK_EX can be taken is garbage. It is unlinked while that lock is held, so that a process that is just
creating it notices. A doorbell has no lock; it goes when its lease is gone, and not while it is young: its client may
be between making the one and the other. Objects are only unlinked, never truncated or punched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import Iterator
from typing import Final

import structlog
from pagefold_proto import shm_names
from pagefold_proto.limits import SHM

YOUNG: Final = 5.0
"""Seconds for which a doorbell without a lease is left alone."""
_LOCKED: Final[tuple[shm_names.LockedKind, ...]] = (shm_names.SEGMENT, shm_names.LEASE, shm_names.POOL)
_AT_ONCE: Final = 0.001  # seconds between two pauses of a gentle sweep
_PAUSE: Final = 0.004  # seconds: a fifth of the processor is left to it
_SEMAPHORE: Final = "sem."

_log = structlog.get_logger("pagefold.sweep")


def sweep() -> list[str]:
    """Unlinks stale names of this user's (root: of all users'), and returns them."""
    gone = [name for name in _steps() if name]
    _tell(gone)
    return gone


async def sweep_gently() -> None:
    """The same, while calls are answered: a user may have any number of names there."""
    gone, began = [], time.monotonic()
    for name in _steps():
        if name:
            gone.append(name)
        if time.monotonic() - began > _AT_ONCE:
            await asyncio.sleep(_PAUSE)
            began = time.monotonic()
    _tell(gone)


def _steps() -> Iterator[str]:
    """Looks at one name a step: what was unlinked, or an empty text. Doorbells come last: each goes after its lease."""
    for doorbells in (False, True):
        with os.scandir(SHM) as entries:
            for entry in entries:
                if entry.name.startswith(_SEMAPHORE) is not doorbells:
                    continue
                if doorbells:
                    yield entry.name if _sweep_doorbell(entry.name) else ""
                else:
                    yield f"/{entry.name}" if _sweep_object(f"/{entry.name}") else ""


def _tell(gone: list[str]) -> None:
    if gone:
        _log.info("stale names unlinked", names=len(gone), first=gone[0])


def _sweep_object(name: str) -> bool:
    if not any(shm_names.is_name(kind, name) for kind in _LOCKED):
        return False
    try:
        fd = shm_names.look(name)
    except OSError:
        return False
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or not _is_ours(found.st_uid):
            return False
        return shm_names.remove_garbage(name, fd)
    except OSError:
        return False
    finally:
        os.close(fd)


def _sweep_doorbell(entry: str) -> bool:
    name = "/" + entry.removeprefix(_SEMAPHORE)
    if not shm_names.is_name(shm_names.DOORBELL, name):
        return False
    path = f"{SHM}/{entry}"
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if (
            stat.S_ISREG(found.st_mode)
            and _is_ours(found.st_uid)
            and time.time() - found.st_ctime > YOUNG
            and not os.path.lexists(f"{SHM}/pagefold-{shm_names.LEASE}-{name[-32:]}")
        ):
            os.unlink(path)
            return True
    return False


def _is_ours(uid: int) -> bool:
    return os.geteuid() in (0, uid)
