"""The processes that map memory of pagefold's, by /proc: to which client each belongs, and which cannot be read.

A process is of a client's family if it maps the client's lease or one of its segments: forked children do, and so does
a child after its parent has ended. It is the client itself if it has the PID that the client said in Hello, in any of
its PID namespaces.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from pagefold_server.procfs.mappings import Key, read

_MARK: Final = b"pagefold"  # in the name of every object of pagefold's, even if it is unlinked


@dataclass(frozen=True, slots=True)
class Process:
    """One process.

    Attributes:
        pid: here.
        numbers: its PIDs in all namespaces that it is in.
        keys: objects that it maps. Empty if it could not be read.
        readable: the server may read its /proc.
    """

    pid: int
    numbers: frozenset[int]
    keys: set[Key] = field(default_factory=set)
    readable: bool = True


def pids() -> list[int]:
    """All processes that are visible."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())


def find(candidates: list[int]) -> list[tuple[Process, bytes]]:
    """Those that map memory of pagefold's, each with its maps, and those that could not be read.

    The kernel takes up to a millisecond for each, or 50 for one with very many mappings: call it in a thread. The
    caller enters what they map into `keys`, in slices: that takes as long and needs the GIL.
    """
    return list(_find(candidates))


def _find(candidates: list[int]) -> Iterator[tuple[Process, bytes]]:
    for pid in candidates:
        try:
            text = read(pid)
        except PermissionError:
            yield Process(pid, _numbers(pid), readable=False), b""
            continue
        except OSError:  # it is gone
            continue
        if _MARK in text:
            yield Process(pid, _numbers(pid)), text


def _numbers(pid: int) -> frozenset[int]:
    try:
        with open(f"/proc/{pid}/status") as lines:
            for line in lines:
                if line.startswith("NSpid:"):
                    return frozenset(map(int, line.split()[1:]))
    except OSError:
        pass
    return frozenset((pid,))
