"""Objects that clients name. They are opened with suspicion, and the server has a descriptor of each and nothing more.

A name says nothing about the object behind it. So the name must have pagefold's form to the letter, no link is
followed, and the object is checked through its descriptor: a plain file on /dev/shm's own filesystem, of the right
owner, and as large as claimed. It is never mapped, written, truncated or punched. Its owner may still shrink it at any
time; readers get fewer bytes then, and nothing worse happens.

A memfd has no name in a filesystem: the client says by which of its descriptors it is found, and /proc leads there.
The file there may be any file of any process that the server may look at. So it is referred to without being opened
(O_PATH: no device notices), and opened only if its filesystem says that it is a memfd, and it was created under that
very name. Then it is checked as above.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from functools import cache
from typing import Final

from pagefold_proto import shm_names
from pagefold_proto.limits import PAGE, SHM

from pagefold_server.errors import BadName, BadSize, LeaseNotHeld, LimitReached, NotASegment, WrongOwner

_REACH: Final = (
    "run it in the client's PID namespace (docker run --pid=...) and as the same user or as root; "
    "or connect(backing='shm')"
)


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that has a memfd open, and as which descriptor, as the client says."""

    pid: int
    descriptor: int


class ForeignObject:
    """A shared-memory object of a client's, open for reading. Closing twice is fine.

    Args:
        name: with its leading slash.
        kind: which kind of name it has to be.
        uid: of its owner. None: any.
        holder: of a memfd. None: the object is in /dev/shm.

    Attributes:
        identity: device and inode.

    Raises:
        BadName: the name has another form.
        NotASegment: no plain shared-memory object has that name.
        WrongOwner: it belongs to another user.
        LimitReached: the server is out of descriptors.
    """

    def __init__(self, name: str, kind: shm_names.LockedKind, uid: int | None, holder: Holder | None = None) -> None:
        if not shm_names.is_name(kind, name):
            raise BadName(f"{name[:80]!r} is not of the form /pagefold-{kind}-<32 hex digits>")
        self.name = name
        self.holder = holder
        self.fd = _open(name) if holder is None else _open_memfd(name, holder)
        found = os.fstat(self.fd)
        device = os.stat(SHM).st_dev if holder is None else _memfd_device()
        if not stat.S_ISREG(found.st_mode) or found.st_dev != device:
            self.close()
            raise NotASegment(f"{name} is not a plain shared-memory object")
        if uid is not None and found.st_uid != uid:
            self.close()
            raise WrongOwner(f"{name} does not belong to uid {uid}, whose session this is")
        self.uid = found.st_uid
        self.identity = (found.st_dev, found.st_ino)

    def is_same(self, other: ForeignObject) -> bool:
        """Whether both are one object, whatever their names."""
        return self.identity == other.identity

    def bytes_allocated(self) -> int:
        """Memory that the kernel has given to it."""
        return os.fstat(self.fd).st_blocks * 512

    def unlink(self) -> None:
        """Removes the name, if it still is this object's. For objects of clients that are proven dead."""
        if self.holder is not None:
            return
        try:
            found = os.lstat(SHM + self.name)
        except FileNotFoundError:
            return
        if (found.st_dev, found.st_ino) == self.identity:
            shm_names.remove(self.name)

    def close(self) -> None:
        """Lets go of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Segment(ForeignObject):
    """A client's segment.

    Args:
        name: with its leading slash.
        uid: of the session.
        pages: its size, as the client says.
        limit: most pages that a segment may have.
        holder: of a memfd. None: the segment is in /dev/shm.

    Attributes:
        address: where the client maps it, as it says; 0: unknown. For audits.
        inherited: it is behind memory of a forked client's parent. For audits.

    Raises:
        BadSize: it is smaller than that, or the size is out of bounds.
    """

    def __init__(self, name: str, uid: int, pages: int, limit: int, holder: Holder | None = None) -> None:
        if not 1 <= pages <= limit:
            raise BadSize(f"{name[:80]}: a segment has 1 to {limit} pages, not {pages}")
        super().__init__(name, shm_names.SEGMENT, uid, holder)
        self.pages = pages
        self.address = 0
        self.inherited = False
        size = os.fstat(self.fd).st_size
        if size < pages * PAGE:
            self.close()
            raise BadSize(f"{name} has {size} bytes, and {pages} pages take {pages * PAGE}")


class Lease(ForeignObject):
    """A client's lease: its lock says that some process of the client's family is alive.

    Args:
        name: with its leading slash.
        uid: of its owner. None: any.

    Raises:
        LeaseNotHeld: no process holds its lock now.
    """

    def __init__(self, name: str, uid: int | None) -> None:
        super().__init__(name, shm_names.LEASE, uid)
        if self.is_free():
            self.close()
            raise LeaseNotHeld(f"no process holds a lock on {name}: take flock(LOCK_SH) on it before Hello")

    def is_free(self) -> bool:
        """Whether the family is dead. Once true, it stays true."""
        return shm_names.is_garbage(self.fd)


def _open(name: str) -> int:
    try:
        return shm_names.look(name)
    except BlockingIOError as error:
        raise file_lease(name) from error
    except OSError as error:
        _check_descriptors(error)
        if error.errno in (errno.EACCES, errno.EPERM):
            raise WrongOwner(f"the server may not open {name}: it belongs to another user") from error
        raise not_found(name, error) from error


def not_found(name: str, error: OSError) -> NotASegment:
    """What to tell a client of a name in /dev/shm that it has just made and the server cannot open."""
    if error.errno != errno.ENOENT:
        return NotASegment(f"the server cannot open {name}: {error.strerror or error}")
    return NotASegment(
        f"the server finds no {name[1:]} in its /dev/shm. If it is gone from this program's too, somebody has removed "
        "it: connect again. If it is there, the two are in "
        "different containers or mount namespaces: have them share one /dev/shm (docker run --ipc=container:NAME, a "
        "volume that both mount there), or run a server where the program runs: without an address, each has its own"
    )


def _open_memfd(name: str, holder: Holder) -> int:
    """Opens a memfd through its holder's /proc.

    Every refusal has the same text: a client may name any process and descriptor, and must learn nothing of them.
    """
    path = f"/proc/{holder.pid}/fd/{holder.descriptor}"
    refused = NotASegment(f"the server finds no memfd {name[1:]} at {path}: {_REACH}")
    try:
        held = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        _check_descriptors(error)
        raise refused from error
    try:
        found = os.fstat(held)
        # The link's text is made by the kernel, of the name that the memfd was created with.
        mine = f"/proc/self/fd/{held}"
        if found.st_dev != _memfd_device() or os.readlink(mine) != f"/memfd:{name[1:]} (deleted)":
            raise refused
        return os.open(mine, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except BlockingIOError as error:
        raise file_lease(name) from error
    except OSError as error:
        _check_descriptors(error)
        raise refused from error
    finally:
        os.close(held)


def file_lease(name: str) -> NotASegment:
    """What to raise where an open would have had to wait for the owner."""
    return NotASegment(f"{name} has a file lease on it (F_SETLEASE), and the server does not wait for that: release it")


def _check_descriptors(error: OSError) -> None:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise LimitReached("the server is out of descriptors: raise its limit (ulimit -n) and restart it") from error


@cache
def _memfd_device() -> int:
    """The kernel's own tmpfs, which cannot be mounted: all memfd objects are on it, and no file that has a path."""
    fd = os.memfd_create("pagefold-probe", os.MFD_CLOEXEC)
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)
