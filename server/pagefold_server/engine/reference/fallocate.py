"""fallocate(2) with PUNCH_HOLE, which the standard library does not have."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

# <linux/falloc.h>
_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
# On 32-bit glibc, plain fallocate takes 32-bit offsets; where only that one exists, its offsets have 64 bits.
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Gives a file's bytes back to the kernel; the range reads as zeros and the file keeps its size.

    Args:
        fd: open for writing.
        offset: first byte.
        length: bytes. Whole pages of the range are freed, parts of pages are zeroed.

    Raises:
        OSError: with the kernel's errno.
    """
    while _fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
