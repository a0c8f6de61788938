"""The backing: where the kernel keeps a segment's pages. Chosen here; objects and room are the native arena's business.

"shm"    a POSIX shared-memory object, in /dev/shm. Bounded by that filesystem, which containers make 64 MiB.
"memfd"  memfd_create: the same memory without a name and without that bound. Others get at it through this
         process's /proc/<pid>/fd only, so the server has to see that: same user or root, same PID namespace.
"auto"   "shm" where /dev/shm has room to spare, "memfd" otherwise, for each allocation anew.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

Backing = Literal["auto", "shm", "memfd"]
BACKINGS: Final[tuple[Backing, ...]] = get_args(Backing)
