"""The errors for memory that cannot be allocated or taken back. The native arena allocates it."""

from __future__ import annotations

import errno
import os
from typing import Final

from pagefold_core import NotBacked
from pagefold_proto.limits import PAGE, SHM
from pagefold_proto.text import human

from pagefold._errors import ClientClosed, OutOfSharedMemory, PagefoldError

FIRST_SEGMENT: Final = 64 << 20
LAST_SEGMENT: Final = 1 << 30
MAX_PAGES: Final = (1 << 32) - 1

_WHERE: Final = {
    "shm": "in /dev/shm",
    "memfd": "of memory and swap that this process may use",
}
_ENLARGE: Final = {
    "shm": "Free memory, or make /dev/shm larger: mount -o remount,size=SIZE /dev/shm (as root), or docker run "
    "--shm-size=SIZE; or connect(backing='memfd'), which does without it",
    "memfd": "Free memory, or raise the limit of the container or control group (memory.max, docker run --memory=SIZE)",
}
_REMEDIES: Final = {
    errno.EMFILE: "this process has no file descriptors left: close some, or raise the limit (ulimit -n)",
    errno.ENFILE: "the system has no file descriptors left: raise fs.file-max",
    errno.ENOSPC: f"{SHM} is full: free memory, or mount -o remount,size=SIZE {SHM}, or docker run "
    "--shm-size=SIZE, or connect(backing='memfd')",
    errno.ENOMEM: "no address space or mappings are left: free memory, raise ulimit -v or sysctl vm.max_map_count",
    errno.EFBIG: "it is larger than a file may be here (ulimit -f)",
    errno.EACCES: "this user may not create files in /dev/shm: it should have mode 1777",
}
_SHORT_OF_MEMORY: Final = (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT)
_MORE_ROOM: Final = "Free memory, or make /dev/shm larger (mount -o remount,size=SIZE /dev/shm)"
_MORE_MAPPINGS: Final = (
    "Free memory (or raise the limit of the container or control group), or let the process have more mappings "
    "(sysctl vm.max_map_count, and connect(mapping_budget=...))"
)


def not_allocated(nbytes: int, error: NotBacked) -> PagefoldError:
    """The error for an allocation of `nbytes` that the arena refuses."""
    kind, *numbers = error.args
    if kind == "closed":
        return ClientClosed("the client is closed: connect again to allocate memory")
    if kind == "size":
        return OutOfSharedMemory(
            f"cannot allocate {human(nbytes)}: {human(MAX_PAGES * PAGE)} is the most for one piece"
        )
    if kind == "segment":
        return no_segment(nbytes, OSError(*numbers))
    place, size, free, promised = numbers
    return OutOfSharedMemory(
        f"cannot allocate {human(nbytes)}: of the {human(size)} {_WHERE[place]}, {human(free)} are free and "
        f"{human(promised)} of these are promised to memory that this process has not touched yet. {_ENLARGE[place]}"
    )


def not_taken_back(error: NotBacked) -> Exception:
    """The error for pages that cannot leave their frames."""
    _, number, pages = error.args
    if number not in _SHORT_OF_MEMORY:
        return OSError(number, f"pages cannot be adopted: {os.strerror(number)}")
    return OutOfSharedMemory(
        f"{human(pages * PAGE)} cannot be taken back from their shared frames: {os.strerror(number)}. "
        "They keep their bytes, and stay merged until they are written. "
        + (_MORE_MAPPINGS if number == errno.ENOMEM else _MORE_ROOM)
    )


def no_segment(nbytes: int, error: OSError) -> OutOfSharedMemory:
    """The error for an object of `nbytes` that cannot be made or mapped."""
    why = _REMEDIES.get(error.errno or 0, str(error))
    return OutOfSharedMemory(f"cannot make a segment for {human(nbytes)}: {why}")
