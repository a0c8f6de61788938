"""What hardware and kernel take at the least: each step of a merge alone, in one thread, on memory like the real.

Nothing that finds identical pages and shares them can be faster than reading each page once, comparing each pair once,
and giving the memory of one of them back. The calls are made through ctypes, which adds about half a microsecond each:
nothing for runs, a little for single pages. Microseconds a page, all of them.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fcntl import ioctl

import numpy as np

PAGE = mmap.PAGESIZE
RUN = 256  # pages that one mapping covers
_READ = 64  # pages that the server reads in one call
_MAP_FIXED = 0x10
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_PAGE_IS_SWAPPED = 16

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


@dataclass(frozen=True)
class Steps:
    """Microseconds a page.

    Attributes:
        read: of each page, by preadv.
        compare: of a page with its twin.
        switch: to the twin, and the punching of what it had.
    """

    read: float
    compare: float
    switch: float

    def merge(self, copies: int) -> float:
        """To save a page when so many processes have it."""
        return self.read * copies / (copies - 1) + self.compare + self.switch


def steps(nbytes: int, run: int = RUN) -> Steps:
    """Measures reading, comparing and switching, so many pages in one mapping. Takes twice that much memory."""
    pages = nbytes // PAGE // run * run
    with ExitStack() as stack:
        ours, mine = stack.enter_context(_object(pages))
        theirs, other = stack.enter_context(_object(pages))
        other[:] = mine
        buffer = bytearray(_READ * PAGE)
        read = _timed(
            pages, lambda: [os.preadv(ours, [buffer], first * PAGE) for first in range(0, pages, _READ)], times=3
        )
        here, there = mine.ctypes.data, other.ctypes.data
        size = run * PAGE

        def compare() -> None:
            for at in range(0, pages * PAGE, size):
                if _libc.memcmp(here + at, there + at, size):
                    raise RuntimeError("memory differs that was just copied")

        def switch() -> None:
            step = size if run > 1 else 2 * size  # single pages: every second one, so that no two mappings become one
            for at in range(0, pages * PAGE, step):
                flags = mmap.MAP_PRIVATE | _MAP_FIXED
                if _libc.mmap(here + at, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, theirs, at) != here + at:
                    raise OSError(ctypes.get_errno(), "mmap")
                if _libc.fallocate(ours, _KEEP_SIZE | _PUNCH_HOLE, at, size):
                    raise OSError(ctypes.get_errno(), "fallocate")

        compared = _timed(pages, compare, times=3)
        switched = _timed(pages if run > 1 else pages // 2, switch)
        del mine, other
    return Steps(read, compared, switched)


def copy_on_write(pages: int) -> float:
    """The first write to a page of a file that is mapped privately, and was read before."""
    with _object(pages) as (fd, _), mmap.mmap(fd, pages * PAGE, flags=mmap.MAP_PRIVATE) as memory:
        words = np.frombuffer(memory, np.uint64).reshape(pages, -1)
        words[:, 1].sum()
        took = _timed(pages, words[:, 0].fill, 7)
        del words
    return took


def walk(pages: int) -> float:
    """A look at every page's entry in the page tables, for something that none of them is. 0: this kernel cannot."""
    with _object(pages) as (_, memory), open("/proc/self/pagemap", "rb") as pagemap:
        start = memory.ctypes.data
        found = ctypes.create_string_buffer(24 * 16)
        arguments = struct.pack(
            "12Q",
            *(96, 0, start, start + pages * PAGE, 0),
            *(ctypes.addressof(found), 16, 0),
            *(0, _PAGE_IS_SWAPPED, 0, _PAGE_IS_SWAPPED),
        )
        try:
            took = _timed(pages, lambda: ioctl(pagemap, _PAGEMAP_SCAN, arguments), times=3)
        except OSError:
            took = 0.0
        del memory
    return took


@contextmanager
def _object(pages: int) -> Iterator[tuple[int, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]]:
    fd = os.memfd_create("floor")
    try:
        os.ftruncate(fd, pages * PAGE)
        memory = mmap.mmap(fd, pages * PAGE)
        data = np.frombuffer(memory, np.uint8)
        data[:] = 1
        yield fd, data
    finally:
        os.close(fd)


def _timed(pages: int, work: Callable[..., object], *args: object, times: int = 1) -> float:
    """Microseconds a page, the best of so many times; of the thread's own time, so that other programs do not count."""
    best = math.inf
    for _ in range(times):
        start = time.thread_time()
        work(*args)
        best = min(best, time.thread_time() - start)
    return best * 1e6 / pages
