"""The backing: where the kernel keeps a segment's pages. The native arena makes the objects and watches the room.

"shm"    a POSIX shared-memory object, in /dev/shm. Bounded by that filesystem, which containers make 64 MiB.
"memfd"  memfd_create: the same memory without a name and without that bound. The server opens it through this
         process's /proc/<pid>/fd, so it has to be of the same user or root's, and in the same PID namespace.
"auto"   each allocation is "shm" where /dev/shm has room to spare, else "memfd".
"""

from __future__ import annotations

from typing import Final, Literal, get_args

Backing = Literal["auto", "shm", "memfd"]
BACKINGS: Final[tuple[Backing, ...]] = get_args(Backing)
