"""Numbers on which client and server must agree. Each is here and nowhere else."""

from __future__ import annotations

import mmap
from typing import Final

PROTOCOL: Final = 1
"""Version of memory.proto. The client sends it in Hello, and the server compares it with its own."""
PAGE: Final = mmap.PAGESIZE
"""Bytes of a page on this machine."""
SHM: Final = "/dev/shm"  # noqa: S108 - the place itself is meant
"""Directory of POSIX shared memory and semaphores."""
MAX_LABEL: Final = 64
"""Most characters of a domain's label."""
REASON_KEY: Final = "pagefold-reason"
"""Key of the trailing metadata with the name of an error's reason, for example "REASON_LIMIT"."""
