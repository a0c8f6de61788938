"""Names of shared-memory objects, and the lock that says whether a name is in use.

Every object has a name `/pagefold-<kind>-<32 hex>`. Its maker holds flock(LOCK_SH) on it for life: the lock belongs to
the open file description, forked children hold it too, and the kernel drops it with the last of them. So a name whose
LOCK_EX can be taken is garbage. A sweep may come between creating and locking. So `create_locked` checks afterwards
that its object is still linked, and `remove_garbage` unlinks while it holds the lock.

Segments are made in native code, by the same form: native/src/sys/made.rs. What the objects hold is not known here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import zlib
from dataclasses import dataclass
from typing import Final, Literal

import posix_ipc

from pagefold_proto.descriptor import Descriptor
from pagefold_proto.limits import SHM

Kind = Literal["s", "l", "p", "d"]
LockedKind = Literal["s", "l", "p"]

SEGMENT: Final = "s"
LEASE: Final = "l"
POOL: Final = "p"
DOORBELL: Final = "d"

PROOF_BYTES: Final = 32
"""Random bytes at the start of a lease. A client that shows them can read it, and so is its owner, or root."""

_FORM: Final = re.compile(r"/pagefold-([slpd])-([0-9a-f]{32})")
# A sweep has to hit the instant between two system calls. If it does 100 times in a row, it is no accident.
_ATTEMPTS: Final = 100


@dataclass(frozen=True, slots=True)
class LockedObject:
    """A shared-memory object of this process, alive as long as `fd`, or a copy that a fork made of it, is open."""

    name: str
    fd: Descriptor


def new_name(kind: Kind, tag: str = "") -> str:
    """Makes up a name of 128 random bits, or 64 in front of a tag of 16 hex digits."""
    return f"/pagefold-{kind}-{secrets.token_hex((32 - len(tag)) // 2)}{tag}"


def tag_of(*parts: object) -> str:
    """16 hex digits that stand for these parts."""
    text = "".join(f"{len(str(part))}:{part}" for part in parts)
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def tag_in(name: str) -> str:
    """The tag that a pool's name ends in."""
    return name[-16:]


def pool_number(name: str) -> int:
    """The number that a pool has in the protocol and in its clients, from 1 to 65535: the same after every restart."""
    return 1 + zlib.crc32(name.encode()) % 65535


def is_name(kind: Kind, text: str) -> bool:
    """Whether a text, which may come from any client, is exactly a name of that kind."""
    form = _FORM.fullmatch(text)
    return form is not None and form[1] == kind


def doorbell_for(lease: str) -> str:
    """The name of a client's doorbell: a semaphore has no lock, so it has the digits of the client's lease.

    Raises:
        ValueError: `lease` is not the name of a lease.
    """
    if not is_name(LEASE, lease):
        raise ValueError(f"not the name of a lease: {lease!r}")
    return f"/pagefold-{DOORBELL}-{lease[-32:]}"


def create_locked(kind: LockedKind, mode: int, size: int, tag: str = "") -> LockedObject:
    """Creates an object under a new name and takes the lock that keeps it from being swept.

    Args:
        kind: SEGMENT, LEASE or POOL.
        mode: permissions, whatever the umask; the descriptor is open for writing even if they forbid it.
        size: bytes; they read as zeros and cost nothing until they are written.
        tag: see `new_name`.

    Raises:
        OSError: the object cannot be made.
    """
    for _ in range(_ATTEMPTS):
        name = new_name(kind, tag)
        try:
            fd: int = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=mode, size=0).fd
        except posix_ipc.ExistentialError:
            continue
        except (posix_ipc.Error, OSError) as error:
            raise with_number(error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            if os.fstat(fd).st_nlink:
                os.fchmod(fd, mode)
                os.ftruncate(fd, size)
                return LockedObject(name, Descriptor(fd))
        except BaseException:
            remove(name)
            os.close(fd)
            raise
        os.close(fd)
    raise OSError(
        errno.EAGAIN, "a process unlinks shared-memory objects in /dev/shm as fast as they are made: find and stop it"
    )


def look(name: str) -> int:
    """Opens an object for reading, which may be any user's. Follows no link, and does not block.

    shm_open would wait for the writer of a FIFO, and 45 s for a file lease (F_SETLEASE) of the owner.

    Raises:
        BlockingIOError: there is a file lease on it.
        OSError: it cannot be opened.
    """
    return os.open(SHM + name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def with_number(error: Exception) -> OSError:
    """An error of posix_ipc as an OSError with an errno: it has its own classes, or a text without a number."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if isinstance(error, posix_ipc.Error):
        for kind, number in ((posix_ipc.PermissionsError, errno.EACCES), (posix_ipc.ExistentialError, errno.ENOENT)):
            if isinstance(error, kind):
                return OSError(number, str(error))
        return OSError(errno.EINVAL, str(error))
    return OSError(errno.ENFILE if "system" in str(error) else errno.EMFILE, str(error))


def is_garbage(fd: int) -> bool:
    """Whether no process holds this object any more.

    To unlink a name, use `remove_garbage`: here the lock is released again, so a process that is just creating the
    object may hold it right after the answer.

    Args:
        fd: opened for this call. A descriptor that holds the lock would lose it.
    """
    if not _lock_exclusively(fd):
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def remove_garbage(name: str, fd: int) -> bool:
    """Unlinks a name that no process holds, with the lock held: a process that is just creating it sees it gone.

    Args:
        name: the object's.
        fd: the object, opened for this call. The caller closes it afterwards, which releases the lock.
    """
    if not _lock_exclusively(fd):
        return False
    remove(name)
    return True


def remove(name: str) -> None:
    """Unlinks an object, unless it is gone already."""
    with contextlib.suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_shared_memory(name)


def _lock_exclusively(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
