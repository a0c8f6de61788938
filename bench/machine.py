"""What the kernel says of processes and memory, and the warming of memory before a measurement."""

from __future__ import annotations

import mmap
import os
import platform
import time
from pathlib import Path

import numpy as np

PAGE = mmap.PAGESIZE
_SPARE = 1 << 30
_WARMED_AT_ONCE = 1 << 30


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, all threads, in nanoseconds' resolution (/proc has ticks of 10 ms).

    This is clock_getcpuclockid(3): the clock's number is made of the pid.
    """
    return time.clock_gettime((~pid << 3) | 2)


def meminfo(key: str) -> int:
    """A line of /proc/meminfo, in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def private_bytes(pid: int) -> int:
    """Anonymous memory of a process, its views and pools left out: heaps, stacks, and what native code allocated.

    Page tables are not in it. In a view, anonymous memory is pages that were copied: data, no books.
    """
    total, ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, _, value = line.partition(" ")
        if "-" in key:  # the head of a mapping
            ours = "pagefold-" in value
        elif key == "Anonymous:" and not ours:
            total += int(value.split()[0]) * 1024
    return total


def warm(nbytes: int) -> None:
    """Touches so much memory and frees it again: what is allocated next, the host has given already.

    A virtual machine gets its memory from the host when it first touches it, at several times the price of a page that
    was in use before. Without this, the first measured pays for the second.
    """
    nbytes = min(nbytes, max(0, meminfo("MemAvailable") - _SPARE))
    pieces = []
    for begin in range(0, nbytes, _WARMED_AT_ONCE):
        piece = mmap.mmap(-1, min(_WARMED_AT_ONCE, nbytes - begin), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        piece.madvise(mmap.MADV_NOHUGEPAGE)
        np.frombuffer(piece, np.uint8)[::PAGE] = 1
        pieces.append(piece)
    for piece in pieces:
        piece.close()


def description() -> dict[str, object]:
    """Where figures come from."""
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": meminfo("MemTotal"),
        "python": platform.python_version(),
    }
