"""The kernel's own accounting: what tests believe, rather than what pagefold says of itself."""

from __future__ import annotations

import os
from pathlib import Path

SHM = Path("/dev/shm")


def names() -> set[str]:
    """pagefold's names in /dev/shm, doorbells included."""
    return {n for n in os.listdir(SHM) if n.startswith(("pagefold-", "sem.pagefold-"))}


def allocated(name: str) -> int:
    """Bytes that the kernel has allocated to a shared-memory object; 0 if it is gone."""
    try:
        return (SHM / name.lstrip("/")).stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def shared_bytes() -> int:
    """What all segments and pools in /dev/shm take. (Not leases and doorbells: a page of each for each client.)"""
    return sum(allocated(n) for n in names() if n.startswith(("pagefold-s-", "pagefold-p-")))


def rollup(pid: int) -> dict[str, int]:
    """/proc/PID/smaps_rollup, in bytes."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, value = line.split(":")
        fields[key] = int(value.split()[0]) * 1024
    return fields


def private_bytes(pid: int) -> int:
    """A process's share of memory, shared memory left out: that is counted once, by the objects."""
    fields = rollup(pid)
    return fields["Pss"] - fields["Pss_Shmem"]


def physical(pids: list[int]) -> int:
    """Memory that the processes and all of pagefold's objects take together."""
    return sum(private_bytes(pid) for pid in pids) + shared_bytes()


def meminfo(key: str) -> int:
    """A line of /proc/meminfo, in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def mappings(pid: int) -> int:
    """How many mappings a process has."""
    return Path(f"/proc/{pid}/maps").read_text().count("\n")
