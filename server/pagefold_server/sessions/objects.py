"""Objects that clients name: opened with suspicion, owned by the server only as far as a descriptor goes.

A name says nothing about what is behind it. So it must have pagefold's form to the letter, nothing is
followed on the way, and what was opened is looked at through its descriptor: a plain file on /dev/shm's own
filesystem, of the right owner, and as big as claimed. It is never mapped, written, truncated or punched. Its
owner may still shrink it at any time; readers get fewer bytes then, and that is all.

A memfd has no name in a filesystem: the client says by which of its descriptors it is found, and /proc leads there.
What that is may be anything, of anybody whom the server may look at. So it is taken hold of without being opened
(O_PATH: no device notices), and opened only if it is a memfd, by its filesystem, and was given that very name by
whoever made it. The rest is looked at as above.
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
    """Who has a memfd open, and as which descriptor; by its own word."""

    pid: int
    descriptor: int


class ForeignObject:
    """A shared-memory object of somebody else's, open for reading. Closing twice is fine.

    Args:
        name: with its leading slash.
        kind: which kind of name it has to be.
        uid: who has to own it. None: anybody.
        holder: of a memfd. None: the object is in /dev/shm.

    Attributes:
        identity: device and inode.

    Raises:
        BadName: the name has another form.
        NotASegment: nothing, or nothing plain, has that name.
        WrongOwner: it belongs to somebody else.
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
        """Removes the name, if it still is this object's. For objects whose owner is proven dead."""
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
    """The object whose lock says that some process of a client's family is alive.

    Args:
        name: with its leading slash.
        uid: who has to own it. None: anybody.

    Raises:
        LeaseNotHeld: nobody holds its lock now.
    """

    def __init__(self, name: str, uid: int | None) -> None:
        super().__init__(name, shm_names.LEASE, uid)
        if self.is_free():
            self.close()
            raise LeaseNotHeld(f"nobody holds a lock on {name}: take flock(LOCK_SH) on it before Hello")

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
            raise WrongOwner(f"{name} cannot be opened by the server: it is somebody else's") from error
        raise not_found(name, error) from error


def not_found(name: str, error: OSError) -> NotASegment:
    """What to say of a name in /dev/shm that cannot be opened, to whoever has just made it."""
    if error.errno != errno.ENOENT:
        return NotASegment(f"{name} cannot be opened by the server: {error.strerror or error}")
    return NotASegment(
        f"the server finds no {name[1:]} in its /dev/shm. If it is in this program's /dev/shm, the two are in "
        "different containers or mount namespaces: have them share one /dev/shm (docker run --ipc=container:NAME, a "
        "volume that both mount there), or run a server where the program runs: without an address, each has its own"
    )


def _open_memfd(name: str, holder: Holder) -> int:
    """Opens a memfd through its holder's /proc.

    Whatever is wrong, the text is the same: a client may name any process and descriptor, and learns nothing of them.
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
    """What to raise where an open would have had to wait for its owner."""
    return NotASegment(f"{name} has a file lease on it (F_SETLEASE): release that first")


def _check_descriptors(error: OSError) -> None:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise LimitReached("the server is out of descriptors: raise its limit (ulimit -n)") from error


@cache
def _memfd_device() -> int:
    """The kernel's own tmpfs, which nobody can mount: all memfd objects are on it, and nothing that has a path."""
    fd = os.memfd_create("pagefold-probe", os.MFD_CLOEXEC)
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)
