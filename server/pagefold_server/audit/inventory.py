"""Every name of pagefold's in /dev/shm, and whether a process holds it. It removes nothing; `sweep` does.

An object is held if its lock is, tried on a descriptor of our own, as the sweep does. A doorbell has no lock: the
process that has its lease, or is about to have it, holds it.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pagefold_proto import shm_names
from pagefold_proto.limits import SHM

from pagefold_server.procfs.mappings import Key
from pagefold_server.sessions.sweep import YOUNG

_LOCKED: Final[tuple[shm_names.LockedKind, ...]] = (shm_names.SEGMENT, shm_names.LEASE, shm_names.POOL)
_SEMAPHORE: Final = "sem."
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class Entry:
    """One name.

    Attributes:
        name: of the object, with its leading slash.
        key: of the object that has it now.
        uid: the object's owner.
        held: a process holds it; None: this user may not try.
        open: other users may open it.
        doorbell: it is a doorbell.
    """

    name: str
    key: Key
    uid: int
    held: bool | None
    open: bool
    doorbell: bool


def entries() -> list[str]:
    """Names that may be pagefold's, for `entry`. It takes long where other users have many names: not for the loop.

    In no order: sorting would be one long step.
    """
    return [name for name in os.listdir(SHM) if name.removeprefix(_SEMAPHORE).startswith("pagefold-")]


def entry(file: str) -> Entry | None:
    """A file of /dev/shm; None if it is not pagefold's, or gone."""
    name = "/" + file.removeprefix(_SEMAPHORE)
    doorbell = file.startswith(_SEMAPHORE) and shm_names.is_name(shm_names.DOORBELL, name)
    if not doorbell and (file.startswith(_SEMAPHORE) or not any(shm_names.is_name(kind, name) for kind in _LOCKED)):
        return None
    try:
        found = os.lstat(f"{SHM}/{file}")
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    if doorbell:
        lease = f"{SHM}/pagefold-{shm_names.LEASE}-{name[-32:]}"
        held: bool | None = os.path.lexists(lease) or time.time() - found.st_ctime <= YOUNG  # its lease may be to come
    else:
        held = _is_held(name)
    return Entry(name, (found.st_dev, found.st_ino), found.st_uid, held, bool(found.st_mode & _OTHERS), doorbell)


def _is_held(name: str) -> bool | None:
    try:
        fd = shm_names.look(name)
    except FileNotFoundError:
        return True  # it has gone in this moment
    except OSError:
        return None
    try:
        return not shm_names.is_garbage(fd)
    finally:
        os.close(fd)


def lock_takers() -> dict[Key, int]:
    """The processes that took the locks that are held, as far as this PID namespace shows them; children may have them.

    It takes long where other users have many locks: not for the loop.
    """
    return dict(_lock_takers())


def _lock_takers() -> Iterator[tuple[Key, int]]:
    try:
        with open("/proc/locks") as lines:
            for line in lines:
                words = line.split()
                if len(words) > 5 and words[1] == "FLOCK":
                    major, minor, inode = words[5].split(":")
                    yield (os.makedev(int(major, 16), int(minor, 16)), int(inode)), int(words[4])
    except OSError:
        return
