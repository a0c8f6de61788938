"""Becoming another user who can still hold writes, as any user can where userfaultfd is open to all.

Root only. The modules that a test needs are to be loaded before: the interpreter may lie where only root may read.
"""

from __future__ import annotations

import ctypes
import os

_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS = 4, 8
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_SYS_PTRACE = 19


def become(uid: int) -> None:
    """Changes the user for good, and keeps CAP_SYS_PTRACE alone of all that root may do."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(1 << _CAP_SYS_PTRACE, 1 << _CAP_SYS_PTRACE, 0, 0, 0, 0)
    _check(libc.capset(header, data))
    _check(libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))  # else /proc/self is root's


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
