"""A /dev/shm of the tests' own, where the user may have one: other users of the machine's disturb no figure in them."""

from __future__ import annotations

import ctypes
import os

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_MS_NOSUID, _MS_NODEV = 2, 4


def own_shm(size: str = "50%") -> bool:
    """Moves this process, and those that it starts, into a mount namespace with an empty /dev/shm. Root only.

    Args:
        size: of the new /dev/shm, as mount takes it.
    """
    if os.geteuid() != 0:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    steps = (
        lambda: libc.unshare(_CLONE_NEWNS),
        lambda: libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None),
        lambda: libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", _MS_NOSUID | _MS_NODEV, f"mode=1777,size={size}".encode()),
    )
    return all(step() == 0 for step in steps)
