"""System calls that this process may not make any more, as systemd's SystemCallFilter= or a container denies them."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_NUMBERS = {
    "x86_64": {"mincore": 27, "userfaultfd": 323},
    "aarch64": {"mincore": 232, "userfaultfd": 282},
}.get(platform.machine(), {})
AVAILABLE = bool(_NUMBERS)

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000


def deny(*names: str, code: int = errno.EPERM) -> None:
    """Has system calls fail from now on, in this process and in its children."""
    program = [(_LOAD, 0, 0, 0)]
    for name in names:
        program += [(_JUMP_IF_EQUAL, 0, 1, _NUMBERS[name]), (_RETURN, 0, 0, _ERRNO | code)]
    program.append((_RETURN, 0, 0, _ALLOW))
    code_bytes = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))

    class Program(ctypes.Structure):
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    made = Program(len(program), ctypes.addressof(code_bytes))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(made), 0, 0)):
        if libc.prctl(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
