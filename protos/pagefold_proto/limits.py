"""Numbers that client and server must agree on, each of them here and nowhere else."""

from __future__ import annotations

import mmap
from typing import Final

PROTOCOL: Final = 1
"""What the client says in Hello, and the server compares: both speak memory.proto of this number."""
PAGE: Final = mmap.PAGESIZE
"""Bytes in a page of this machine."""
SHM: Final = "/dev/shm"  # noqa: S108 - the place itself is meant
"""Where the kernel keeps POSIX shared memory and semaphores."""
MAX_LABEL: Final = 64
"""Characters in a domain's label."""
REASON_KEY: Final = "pagefold-reason"
"""Key of the trailing metadata that carries the name of an error's reason, say "REASON_LIMIT"."""
