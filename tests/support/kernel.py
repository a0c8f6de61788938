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


def mapped(pid: int, inode: int, key: str) -> int:
    """A line of /proc/PID/smaps, in bytes, over all mappings of that object."""
    total, of_it = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # the head of a mapping
            of_it = int(words[4]) == inode
        elif of_it and words[0] == f"{key}:":
            total += int(words[1]) * 1024
    return total


def pss_of(pid: int, inode: int) -> int:
    """What a process holds of that object, each page divided by those that map it."""
    return mapped(pid, inode, "Pss")


def physical_frames(pid: int, inode: int) -> set[int]:
    """The machine's own frames that a process maps that object's pages on. For root."""
    found = set()
    size = os.sysconf("SC_PAGE_SIZE")
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, _, _, _, number = line.split()[:5]
            if int(number) != inode:
                continue
            first, end = (int(address, 16) // size for address in span.split("-"))
            entries = os.pread(pagemap.fileno(), (end - first) * 8, first * 8)
            for at in range(0, len(entries), 8):
                entry = int.from_bytes(entries[at : at + 8], "little")
                if entry >> 63:
                    found.add(entry & ((1 << 55) - 1))
    return found
