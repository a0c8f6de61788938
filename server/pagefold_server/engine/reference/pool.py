"""A domain's pool: the shared-memory object in which its frames live.

    frame   0     1     2     3     4    ...                       capacity      limit
          [used][used][free][free][used]   free, never written        |   not yet  |
                       `-- holes in the file: no memory behind them --'

Clients open it by name, read-only (mode 0400), and map frames privately. What is kept true: a frame is
written once between being allocated and released; a released frame is punched before its number is handed out
again, so a frame reads as written and free frames cost no memory; the file never shrinks.

A number costs a byte here, memory is only behind frames that are written. So numbers are spent to keep
neighbours together (a client maps a run of frames with one mapping): gaps too short for a run stay unused
until the limit. Who maps which frame is not known here.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from pagefold_core import punch_hole
from pagefold_proto.limits import PAGE
from sortedcontainers import SortedDict, SortedSet
from typing_extensions import override

from pagefold_server.engine.pool_file import MOST_FRAMES, Orphan, PoolFile, is_plausible
from pagefold_server.engine.reference.store import FrameStore, StoredFrame

# What a frame number is doing. A byte each.
_FREE: Final = 0
_ALLOCATED: Final = 1
_WRITTEN: Final = 2
_RELEASED: Final = 3  # not yet punched

_GROWTH: Final = 4096  # frames by which the file grows
_RUN: Final = 64  # a gap of fewer frames is used only when nothing else is left
_BATCH: Final = 256  # released frames that wait to be punched together


class Pool(PoolFile, FrameStore):
    """Implements `FrameStore` on a POSIX shared-memory object that this process creates and holds.

    Args:
        uid: of the domain; its processes must be able to open the pool. A server of root's makes them its owner.
        limit: most frames, used or not.
        tag, orphan: see `PoolFile`.

    Raises:
        OSError: the object cannot be made.
    """

    def __init__(self, uid: int, limit: int = MOST_FRAMES, tag: str = "", orphan: Orphan | None = None) -> None:
        super().__init__(uid, tag, orphan)
        self._limit = limit
        self._use = bytearray()
        self._gaps = SortedDict()  # free frames: end of a gap -> its first frame, for gaps are used from the front
        self._long = SortedSet()  # ends of the gaps of at least _RUN
        self._released: list[int] = []

    @override
    def allocate(self, near: int) -> int:
        """Takes a free frame number, `near` itself if that is free; otherwise one with room for a run behind it.

        Raises:
            OSError: ENOSPC, the pool is at its limit.
        """
        frame = near if 0 <= near < len(self._use) and self._use[near] == _FREE else self._start_of_run()
        self._take(frame)
        self._use[frame] = _ALLOCATED
        return frame

    @override
    def write(self, frame: int, page: bytes | memoryview) -> None:
        """Fills a frame that was allocated and never written.

        Raises:
            OSError: ENOSPC; the frame is to be released.
        """
        if self._use[frame] != _ALLOCATED or len(page) != PAGE:
            raise ValueError(f"frame {frame} is not to be written with {len(page)} bytes")
        if os.pwrite(self.fd, page, frame * PAGE) != PAGE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
        self._use[frame] = _WRITTEN

    @override
    def recover(self) -> Iterator[tuple[int, bytes]]:
        """Takes over what the object holds from before: pages that are no holes are frames in use. Numbers and bytes.

        Raises:
            OSError: it has more frames than the limit, or cannot be read.
        """
        status = os.fstat(self.fd)
        numbers = status.st_size // PAGE
        if numbers > self._limit or not is_plausible(status):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), self.name)
        if numbers:
            self._use.extend(bytes(numbers))
            self._give(0, numbers)
        frame = 0
        while frame < numbers and self._has_data(frame, numbers):
            frame = os.lseek(self.fd, frame * PAGE, os.SEEK_DATA) // PAGE
            if frame >= numbers:
                return  # its owner is changing it at this moment
            self._take(frame)
            self._use[frame] = _WRITTEN
            yield frame, os.pread(self.fd, PAGE, frame * PAGE)
            frame += 1

    @override
    def read(self, frame: int) -> bytes:
        """The bytes of a frame that was written."""
        if self._use[frame] != _WRITTEN:
            raise ValueError(f"frame {frame} has not been written")
        return os.pread(self.fd, PAGE, frame * PAGE)

    @override
    def inspect(self, frame: int) -> StoredFrame:
        use = self._use[frame] if frame < len(self._use) else _FREE
        page = os.pread(self.fd, PAGE, frame * PAGE) if self._has_data(frame, frame + 1) else None
        return StoredFrame(use in (_ALLOCATED, _WRITTEN), use == _FREE, page)

    @override
    def release(self, frame: int) -> None:
        """Gives a frame up; `flush` gives its memory back. A batch that is full is flushed here.

        The number stays out of use until it has been punched. Should the kernel refuse that, it is tried again.
        """
        if self._use[frame] not in (_ALLOCATED, _WRITTEN):
            raise ValueError(f"frame {frame} is not in use")
        self._use[frame] = _RELEASED
        self._released.append(frame)
        if len(self._released) % _BATCH == 0:
            with contextlib.suppress(OSError):
                self.flush()

    @override
    def flush(self) -> None:
        """Punches the frames released so far, neighbours with one call.

        Raises:
            OSError: a punch failed; the frames it was for, and the rest, stay out of use until the next flush.
        """
        waiting = sorted(self._released, reverse=True)
        try:
            while waiting:
                first, count = waiting[-1], 1
                while count < len(waiting) and waiting[-1 - count] == first + count:
                    count += 1
                punch_hole(self.fd, first * PAGE, count * PAGE)
                del waiting[-count:]
                self._use[first : first + count] = bytes(count)
                self._give(first, count)
        finally:
            self._released = waiting

    def frames_in_use(self) -> int:
        """Frames allocated and not released."""
        return self._use.count(_ALLOCATED) + self._use.count(_WRITTEN)

    def bookkeeping_bytes(self) -> int:
        """Roughly what these books take: a byte a frame, and some 200 for a gap (measured)."""
        return len(self._use) + 200 * len(self._gaps)

    def check(self) -> None:
        """Recounts the books, and looks whether free frames are holes. For tests and audits."""
        status = os.fstat(self.fd)
        assert status.st_size == len(self._use) * PAGE, "the file has another size than the books"
        expected = [number for number, use in enumerate(self._use) if use == _FREE]
        counted = [number for end, first in self._gaps.items() for number in range(first, end)]
        assert counted == expected, "the gaps are not the free frames"
        assert sorted(self._released) == [n for n, use in enumerate(self._use) if use == _RELEASED]
        assert list(self._long) == [end for end, first in self._gaps.items() if end - first >= _RUN]
        assert not self._gaps.keys() & set(self._gaps.values()), "two gaps touch"
        for end, first in self._gaps.items():
            assert not self._has_data(first, end), f"memory behind the free frames from {first} on"

    def _start_of_run(self) -> int:
        if not self._long and not self._grow() and not self._gaps:
            self.flush()
        if not self._gaps:
            raise OSError(errno.ENOSPC, "the frame pool has reached its limit", self.name)
        end = self._long[0] if self._long else self._gaps.keys()[0]
        return int(self._gaps[end])

    def _grow(self) -> bool:
        old = len(self._use)
        new = min(old + _GROWTH, self._limit)
        if new == old:
            return False
        os.ftruncate(self.fd, new * PAGE)
        self._use.extend(bytes(new - old))
        self._give(old, new - old)
        return True

    def _give(self, first: int, count: int) -> None:
        """Adds free frames, and joins the gap with its neighbours."""
        end = first + count
        if first in self._gaps:
            before = self._gaps[first]
            self._set_gap(first, first)
            first = before
        following = self._gaps.bisect_right(end)
        if following < len(self._gaps):
            behind, start = self._gaps.peekitem(following)
            if start == end:
                end = behind
        self._set_gap(first, end)

    def _take(self, frame: int) -> None:
        """Takes one free frame out of its gap."""
        end, first = self._gaps.peekitem(self._gaps.bisect_right(frame))
        if first < frame:
            self._set_gap(first, frame)
        self._set_gap(frame + 1, end)

    def _set_gap(self, first: int, end: int) -> None:
        """Moves the front of the gap that ends there; an empty one goes."""
        if first < end:
            self._gaps[end] = first
        else:
            self._gaps.pop(end, None)
        if end - first >= _RUN:
            self._long.add(end)
        else:
            self._long.discard(end)

    def _has_data(self, first: int, end: int) -> bool:
        try:
            return os.lseek(self.fd, first * PAGE, os.SEEK_DATA) < end * PAGE
        except OSError:  # ENXIO: none from here to the end
            return False
