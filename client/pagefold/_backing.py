"""The backing: where the kernel keeps a segment's pages, and how much room there is.

    "shm"    a POSIX shared-memory object, in /dev/shm. Bounded by that filesystem, which containers make 64 MiB.
    "memfd"  memfd_create: the same memory without a name and without that bound. Others get at it through this
             process's /proc/<pid>/fd only, so the server has to see that: same user or root, same PID namespace.
    "auto"   "shm" where /dev/shm has room to spare, "memfd" otherwise, for each allocation anew.

A store to a full tmpfs is SIGBUS, and room that is free now may be somebody else's when the page is touched. So room
in /dev/shm counts as *scarce* if the filesystem is small, or if less than half of it would be left; then "shm" reserves
memory when it is handed out. For a memfd there is no bound but memory itself, as with malloc: what is refused is what
does not fit into it now.

Opens objects of this process only, and keeps no books: those are the arena's.
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from typing import Final, Literal, get_args

from pagefold import _names, _threads
from pagefold._address import SHM
from pagefold._descriptor import Descriptor

Place = Literal["shm", "memfd"]
Backing = Literal["auto", "shm", "memfd"]
BACKINGS: Final[tuple[Backing, ...]] = get_args(Backing)

_MEMINFO: Final = "/proc/meminfo"
_CGROUPS: Final = "/sys/fs/cgroup"

# Not executable, and sealed against becoming so (Linux 6.3); vm.memfd_noexec=2 refuses any other. It allows sealing.
_MFD_NOEXEC_SEAL: Final = 0x8
# The size is fixed for good: nobody who opens the object can make a store to it SIGBUS. And nobody can add
# F_SEAL_FUTURE_WRITE, with which pages could no longer be given back.
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# An empty reservation is made in pieces: tmpfs begins one again from its start when a signal comes.
_RESERVED_AT_ONCE: Final = 4 << 20
_LEFT_OVER: Final = 256 << 20
_ROOM_SECONDS: Final = 0.02  # for which a look at free memory holds when small pieces are handed out


@dataclass(frozen=True, slots=True)
class Room:
    """How much memory a place has, and how much of it is free, in bytes. `small`: nobody should count on it."""

    size: int
    free: int
    small: bool = False


def checked(backing: str) -> Backing:
    """The name of a backing.

    Raises:
        ValueError: it is none.
    """
    for known in BACKINGS:
        if backing == known:
            return known
    raise ValueError(f"backing {backing!r}: it is 'auto', 'shm' or 'memfd'")


def room(place: Place) -> Room | None:
    """What there is. None: without a limit, or the kernel does not say."""
    return shm_room() if place == "shm" else memory_room(_ROOM_SECONDS)


def shm_room() -> Room | None:
    """Of /dev/shm. It is small if it has less than a quarter of the machine's memory: tmpfs has half unless told."""
    stat = os.statvfs(SHM)
    if stat.f_blocks == 0:
        return None
    size = stat.f_blocks * stat.f_frsize
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Room(size, stat.f_bavail * stat.f_frsize, size < memory // 4)


def memory_room(age: float = 0.0) -> Room | None:
    """Of the machine, or of this process's control group if that has less.

    Args:
        age: seconds for which an earlier look is good enough: the kernel takes half a millisecond for one.
    """
    global _looked
    now = _threads.monotonic()
    if _looked is None or now - _looked[0] > age:
        _looked = now, _memory_room()
    return _looked[1]


_looked: tuple[float, Room | None] | None = None


def _memory_room() -> Room | None:
    known = _meminfo()
    if "MemAvailable" not in known:
        return None
    size = known["MemTotal"] + known.get("SwapTotal", 0)
    free = known["MemAvailable"] + known.get("SwapFree", 0)
    if _read("/proc/sys/vm/overcommit_memory").strip() == "2":  # the kernel promises no more than it has: nor do we
        size = min(size, known["CommitLimit"])
        free = min(free, max(0, known["CommitLimit"] - known["Committed_AS"]))
    bound = _cgroup_room()
    if bound is not None:
        size, free = min(size, bound.size), min(free, bound.free)
    return Room(size, free)


def spare_pages(age: float = 0.0) -> int | None:
    """How many pages may be taken back from frames now: that takes memory which nobody asked for. None: no bound known.

    There is no error for the last page of memory: the kernel ends a process, of ours or of somebody else's. So some is
    left over, for others that take pages back at the same time too. `age`: see `memory_room`.
    """
    room = memory_room(age)
    if room is None:
        return None
    return max(0, room.free - min(room.size // 16, _LEFT_OVER)) // os.sysconf("SC_PAGE_SIZE")


def create(place: Place, nbytes: int) -> _names.LockedObject:
    """Makes an object of so many bytes; they read as zeros and cost nothing until they are written.

    Raises:
        OSError: it cannot be made.
    """
    if place == "shm":
        return _names.create_locked(_names.SEGMENT, 0o600, nbytes)
    name = _names.new_name(_names.SEGMENT)
    fd = _memfd(name)
    try:
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, nbytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return _names.LockedObject(name, Descriptor(fd))


def reserve(fd: Descriptor, offset: int, nbytes: int) -> None:
    """Has the kernel set memory aside for a range that is a hole; it goes on reading as zeros.

    Raises:
        OSError: there is not so much; a part may be reserved, and has to be punched.
    """
    for begin in range(offset, offset + nbytes, _RESERVED_AT_ONCE):
        os.posix_fallocate(fd.checked(), begin, min(_RESERVED_AT_ONCE, offset + nbytes - begin))


def _memfd(name: str) -> int:
    # Without the slash: it shows as /memfd:pagefold-s-..., by which the server knows that it has the right one.
    try:
        return os.memfd_create(name[1:], os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.memfd_create(name[1:], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _meminfo() -> dict[str, int]:
    fields = {}
    for line in _read(_MEMINFO).splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[0].isdigit():
            fields[key] = int(words[0]) * 1024
    return fields


# Version of the control groups -> the controllers in a line of /proc/self/cgroup, where they are mounted, and the files
# with the bound, what is used of it, and how much of that is page cache.
_VERSIONS: Final = (
    ("", "", "memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        "memory",
        "/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)


def _cgroup_room() -> Room | None:
    """The tightest bound of this process's control groups; page cache that can go counts as free."""
    lines = [line.split(":", 2) for line in _read("/proc/self/cgroup").splitlines()]
    found: Room | None = None
    for controllers, mount, limit, usage, cache in _VERSIONS:
        path = next((line[2] for line in lines if len(line) == 3 and controllers in line[1].split(",")), "")
        while path.startswith("/"):
            base = _CGROUPS + mount + path.rstrip("/")
            most, used = _read(f"{base}/{limit}").strip(), _read(f"{base}/{usage}").strip()
            if most.isdigit() and used.isdigit():  # else there is no bound, or no such group
                held = dict(line.split() for line in _read(f"{base}/memory.stat").splitlines() if line.count(" ") == 1)
                free = int(most) - int(used) + sum(int(held.get(key, 0)) for key in cache)
                if found is None or free < found.free:
                    found = Room(int(most), max(0, min(free, int(most))))
            path = "" if path == "/" else os.path.dirname(path)
    return found


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
