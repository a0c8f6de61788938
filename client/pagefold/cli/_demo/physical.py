"""Physical memory by the kernel's own accounting, not by pagefold's.

    sum over processes of Pss_Anon                  their own memory: heaps, and pages that were copied on a write
  + st_blocks of their segments and of the pools    shared memory, each page once, however many map it

Segments that are memfd objects have no name; the server says what the kernel has allocated to them.

The rest of Pss is left out. Pss_Shmem is the shared memory again. Pss_File is each process's share of programs and
libraries in the page cache, which changes whenever another process that uses them starts or ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from pagefold_proto.limits import SHM

_BLOCK = 512


def physical_bytes(pids: Iterable[int], names: Iterable[str]) -> int:
    """Bytes that processes and shared-memory objects take together.

    Args:
        pids: processes; one that has ended takes nothing.
        names: segments and pools, with their leading slash; one that is gone takes nothing.
    """
    return sum(map(anonymous_bytes, pids)) + sum(map(object_bytes, set(names)))


def anonymous_bytes(pid: int) -> int:
    """Bytes of a process's proportional share of anonymous memory."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as lines:
            for line in lines:
                if line.startswith("Pss_Anon:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def object_bytes(name: str) -> int:
    """Bytes that the kernel has allocated to a shared-memory object."""
    try:
        return os.stat(SHM + name).st_blocks * _BLOCK
    except FileNotFoundError:
        return 0
