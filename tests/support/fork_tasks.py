"""What multiprocessing's workers do; in a module, since those that are not forked import it."""

from __future__ import annotations

import os
from multiprocessing.util import Finalize
from typing import Any

import pagefold

array: Any = None
_own: Any = None


def sum_inherited(_address: str) -> int:
    """Of the parent's array, and writes to it."""
    total = int(array.sum(dtype="u8"))
    before = array[:4].copy()
    array[:4] = os.getpid() % 251
    assert (array[:4] == os.getpid() % 251).all()
    array[:4] = before
    return total


def sum_own(address: str) -> int:
    """Of an array like the parent's, in memory of a client of one's own, made once a worker."""
    global _own
    import numpy as np

    if _own is None:
        client = pagefold.connect(address, autostart=False)
        made = client.empty((64, 4096), "u1")
        for page in range(64):
            made[page] = (np.arange(4096) * 7 + page * 13 + 1) % 251
            made[page, :8] = np.frombuffer(((1 << 32) + page).to_bytes(8, "little"), "u1")
        _own = (client, made)
        Finalize(None, client.close, exitpriority=1)  # workers of multiprocessing do not run atexit
    client, made = _own
    client.settle(0.5)
    return int(made.sum(dtype="u8"))
