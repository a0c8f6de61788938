"""Physical memory by the kernel's own accounting: what pagefold says of itself is not asked.

sum over processes of (Pss - Pss_Shmem)       what is theirs alone, and their share of libraries
+ st_blocks of their segments and of the pools  shared memory, each page once, whoever maps it
"""

from __future__ import annotations

import os
from collections.abc import Iterable

_SHM = "/dev/shm"  # noqa: S108 - where the kernel keeps the objects that are counted
_BLOCK = 512


def physical_bytes(pids: Iterable[int], names: Iterable[str]) -> int:
    """What processes and shared-memory objects take together.

    Args:
        pids: of processes; one that is gone takes nothing.
        names: of segments and pools, with their leading slash; one that is gone takes nothing.
    """
    return sum(map(private_bytes, pids)) + sum(map(object_bytes, set(names)))


def data_bytes(pids: Iterable[int], names: Iterable[str]) -> int:
    """The same without the share of libraries and programs: that changes with every process that comes or goes."""
    return sum(_rollup(pid)["Pss_Anon"] for pid in pids) + sum(map(object_bytes, set(names)))


def private_bytes(pid: int) -> int:
    """A process's proportional share of memory, shared memory left out: the objects count that."""
    sizes = _rollup(pid)
    return sizes["Pss"] - sizes["Pss_Shmem"]


def _rollup(pid: int) -> dict[str, int]:
    """In bytes; zeros for a process that is gone."""
    sizes = {"Pss": 0, "Pss_Anon": 0, "Pss_Shmem": 0}
    try:
        with open(f"/proc/{pid}/smaps_rollup") as lines:
            for line in lines:
                key, _, rest = line.partition(":")
                if key in sizes:
                    sizes[key] = int(rest.split()[0]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return dict.fromkeys(sizes, 0)
    return sizes


def object_bytes(name: str) -> int:
    """What the kernel has allocated to a shared-memory object."""
    try:
        return os.stat(_SHM + name).st_blocks * _BLOCK
    except FileNotFoundError:
        return 0
