"""The allocator: segments, and which of their pages are handed out.

    segment 1  64 MiB   |##aaaa####bb#####..........|    ## handed out   .. free, never touched since it was made
    segment 2  128 MiB  |#######aaa.................|    aa free again: discarded, so it is a hole and reads as zeros
    segment 3  3 GiB    |###########################|    a request larger than the next size has one of its own

What holds, at every moment at which the lock is free:
* Free pages read as zeros and take no memory: freed extents are discarded before they are free, and those that cannot
  be discarded (a forked child may look at them) wait in quarantine.
* Of the segments that are wholly free one is kept, so that a loop of allocating and freeing makes no system calls.
* Memory is handed out only if /dev/shm can back it now, together with what was handed out before: a store to a full
  tmpfs is SIGBUS. It is a check and no reservation; other processes fill /dev/shm too.

Lock order: arena -> session -> native; see `_fork.py`. Everything public here takes the arena lock itself, but
`pages_in_use`. Buffers that die take no lock: their extents wait in the native freed list for the next `sweep`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from sortedcontainers import SortedDict

from pagefold import _names
from pagefold._errors import ClientClosed, OutOfSharedMemory
from pagefold._extents import Extents
from pagefold._fork import Kin
from pagefold._reports import human

PAGE: Final = mmap.PAGESIZE
FIRST_SEGMENT: Final = 64 << 20
LAST_SEGMENT: Final = 1 << 30
MAX_PAGES: Final = (1 << 32) - 1
SHM: Final = "/dev/shm"  # noqa: S108 - where POSIX shared memory lives

_log = logging.getLogger("pagefold")
_Block = TypeVar("_Block", covariant=True)


@dataclass(frozen=True, slots=True)
class Segment:
    """A shared-memory object of ours, mapped at `address`. `dedicated`: made for one large request."""

    number: int
    name: str
    fd: int
    pages: int
    address: int
    dedicated: bool

    def discard(self) -> None:
        """Lets go of the name and the descriptor; the memory goes with its last mapping."""
        _names.remove(self.name)
        os.close(self.fd)


class ArenaSpace(Protocol):
    """The part of `pagefold_core.Space` that the arena needs."""

    def add_view(self, segment: int, fd: int, pages: int) -> int: ...
    def drop_view(self, segment: int) -> bool: ...
    def discard(self, segment: int, first: int, count: int) -> None: ...
    def freed(self) -> list[tuple[int, int, int]]: ...
    def counts(self) -> Any: ...


class Listener(Protocol):
    """Who has to know about segments. Called with the arena lock held; must not block."""

    def added(self, segment: Segment) -> None:
        """A segment is about to be mapped."""

    def dropped(self, segment: Segment) -> None:
        """A segment is unmapped, and its events are in the journal. To be discarded by the listener."""


class BlockMaker(Protocol[_Block]):
    """Makes a buffer of an extent: `Buffer`, or a fake."""

    def __call__(self, kin: Kin, segment: int, first: int, nbytes: int) -> _Block: ...


def shm_room() -> tuple[int, int] | None:
    """Bytes that /dev/shm has, and that are free for us. None: it has no limit."""
    stat = os.statvfs(SHM)
    if stat.f_blocks == 0:
        return None
    return stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize


class Arena:
    """See the head of this file.

    Args:
        kin: of the client; has the arena lock.
        space: the native space, or a fake.
        listener: is told about segments.
        make: makes the buffers.
        room: how much /dev/shm has.
        first, last: bytes in the first segment, and most that a segment grows to by doubling.
    """

    def __init__(
        self,
        kin: Kin,
        space: ArenaSpace,
        listener: Listener,
        make: Callable[..., Any],
        room: Callable[[], tuple[int, int] | None] = shm_room,
        first: int = FIRST_SEGMENT,
        last: int = LAST_SEGMENT,
    ) -> None:
        self._kin = kin
        self._space = space
        self._listener = listener
        self._make = make
        self._room = room
        self._first = first
        self._last = last
        self._numbers = itertools.count(1)
        self._extents = Extents()
        self._segments: dict[int, Segment] = {}
        self._by_address = SortedDict()
        self._quarantine: list[tuple[int, int, int]] = []
        self._whole: set[int] = set()
        self._total_pages = 0
        self._busy = False
        self._closed = False

    @property
    def pages_in_use(self) -> int:
        """Pages handed out, or freed and still in quarantine. Takes no lock: a level, for statistics."""
        return self._total_pages - self._extents.free_pages

    @property
    def quarantined(self) -> bool:
        """Whether freed memory waits for forked children. Takes no lock."""
        return bool(self._quarantine)

    def allocate(self, nbytes: int) -> Any:
        """Hands out zeroed memory that starts on a page boundary.

        Raises:
            OutOfSharedMemory: it could not be backed, or the process is out of descriptors or address space.
            ClientClosed: the arena was closed.
        """
        pages = -(-nbytes // PAGE)
        with self._entered():
            if self._closed:
                raise ClientClosed("the client is closed: connect again to allocate memory")
            if pages == 0:
                return self._make(self._kin, 0, 0, 0)
            self._sweep()
            self._check_backing(nbytes, pages)
            place = self._extents.take(pages)
            if place is None:
                self._grow(nbytes, pages)
                place = self._extents.take(pages)
                assert place is not None, "the new segment is large enough"
            segment, first = place
            self._whole.discard(segment)
            # An exception from here on (Ctrl-C may come at any moment) gives nothing back by hand: if the native block
            # was made, its end puts the extent into the freed list, and twice free would be twice handed out.
            return self._make(self._kin, segment, first, nbytes)

    def sweep(self, retry: bool = False) -> None:
        """Takes back what was freed, and drops segments that are not needed.

        Args:
            retry: try again to discard what is in quarantine.
        """
        with self._entered():
            if not self._closed:
                self._sweep(retry)

    def locate(self, address: int, nbytes: int) -> tuple[int, int, int] | None:
        """The pages that a range of memory touches: (segment, first, pages). None: they are not ours."""
        with self._entered():
            at = self._by_address.bisect_right(address) - 1
            if at < 0 or nbytes <= 0:
                return None
            base, segment = self._by_address.peekitem(at)
            first, last = (address - base) // PAGE, (address + nbytes - 1 - base) // PAGE
            return (segment.number, first, last - first + 1) if last < segment.pages else None

    def close(self) -> list[Segment]:
        """Drops all segments in which no buffer lives. Returns the others; the caller discards them."""
        with self._entered():
            if self._closed:
                return []
            self._sweep(retry=True)
            for number in list(self._whole):
                self._drop(number)
            self._closed = True
            left = list(self._segments.values())
            self._segments.clear()
            self._by_address.clear()
            return left

    def forget(self) -> None:
        """In a forked child: closes its copies of the descriptors. The native half has its own, as long as needed."""
        for segment in self._segments.values():
            os.close(segment.fd)
        self._segments.clear()
        self._by_address.clear()
        self._closed = True

    # Inside, with the lock held

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        with self._kin.arena_lock:
            if self._busy:
                # The lock is re-entrant so that a fork in here cannot block for ever; the books are not.
                raise RuntimeError(
                    "pagefold was called by a signal handler or finalizer that interrupted it: defer that call"
                )
            self._busy = True
            try:
                yield
            finally:
                self._busy = False

    def _sweep(self, retry: bool = False) -> None:
        for segment, first, pages in self._space.freed():
            if pages:
                self._discard(segment, first, pages)
        if retry and self._quarantine and not self._kin.quarantined:
            waiting, self._quarantine = self._quarantine, []
            for segment, first, pages in waiting:
                self._discard(segment, first, pages)
        if self._whole:
            self._drop_unneeded()

    def _discard(self, segment: int, first: int, pages: int) -> None:
        try:
            self._space.discard(segment, first, pages)
        except (OSError, RuntimeError) as error:  # BlockingIOError: a forked child; others: short of memory, a fault
            if not isinstance(error, BlockingIOError):
                _log.warning("%d freed pages cannot be given back yet: %s", pages, error)
            self._quarantine.append((segment, first, pages))
        else:
            self._give(segment, first, pages)

    def _give(self, segment: int, first: int, pages: int) -> None:
        self._extents.give(segment, first, pages)
        if self._extents.is_whole(segment):
            self._whole.add(segment)

    def _drop_unneeded(self) -> None:
        if self._kin.quarantined:
            return
        regular = [number for number in self._whole if not self._segments[number].dedicated]
        spare = max(regular, key=lambda number: self._segments[number].pages, default=None)
        for number in sorted(self._whole):
            if number != spare:
                self._drop(number)

    def _drop(self, number: int) -> None:
        if not self._space.drop_view(number):
            return  # a forked child may share it, or a buffer is just dying: the next sweep tries again
        segment = self._segments.pop(number)
        del self._by_address[segment.address]
        self._extents.remove_segment(number)
        self._whole.discard(number)
        self._total_pages -= segment.pages
        self._listener.dropped(segment)

    def _check_backing(self, nbytes: int, pages: int) -> None:
        room = self._room()
        if pages > MAX_PAGES:
            raise OutOfSharedMemory(
                f"cannot allocate {human(nbytes)}: {human(MAX_PAGES * PAGE)} is the most for one piece"
            )
        if room is None:
            return
        size, free = room
        backed = sum(os.fstat(segment.fd).st_blocks for segment in self._segments.values()) * 512
        counts = self._space.counts()
        promised = max(0, (self.pages_in_use - counts.merged - counts.zero) * PAGE - backed)
        left = max(0, free - promised)
        if pages * PAGE > left:
            raise OutOfSharedMemory(
                f"cannot allocate {human(nbytes)}: of the {human(size)} in /dev/shm, {human(free)} are free and "
                f"{human(min(promised, free))} of these are promised to memory that this process has not touched yet. "
                "Free memory, or make /dev/shm larger: mount -o remount,size=SIZE /dev/shm (as root), "
                "or docker run --shm-size=SIZE"
            )

    def _grow(self, nbytes: int, pages: int) -> None:
        regular = sum(not segment.dedicated for segment in self._segments.values())
        size = min(self._first << min(regular, 32), self._last)
        dedicated = pages * PAGE > size
        if not dedicated:
            pages = size // PAGE
        number = next(self._numbers)
        try:
            made = _names.create_locked(_names.SEGMENT, 0o600, pages * PAGE)
        except OSError as error:
            raise no_segment(nbytes, error) from error
        try:
            address = self._space.add_view(number, made.fd, pages)
        except BaseException as error:
            _names.remove(made.name)
            os.close(made.fd)
            if isinstance(error, OSError):
                raise no_segment(nbytes, error) from error
            raise
        segment = Segment(number, made.name, made.fd, pages, address, dedicated)
        # The listener knows of it before any buffer, and so before any event, exists.
        self._listener.added(segment)
        self._segments[number] = segment
        self._by_address[address] = segment
        self._extents.add_segment(number, pages)
        self._whole.add(number)
        self._total_pages += pages

    def _check(self) -> None:
        self._extents._check()
        assert self._whole == {number for number in self._segments if self._extents.is_whole(number)}
        assert self._total_pages == sum(segment.pages for segment in self._segments.values())
        assert {s.number for s in self._by_address.values()} == set(self._segments)
        places = sorted([*self._extents, *self._quarantine])
        for (segment, first, pages), (other, start, _) in itertools.pairwise(places):
            assert segment != other or first + pages <= start, "a page is free twice"


_REMEDIES: Final = {
    errno.EMFILE: "this process has no file descriptors left: close some, or raise the limit (ulimit -n)",
    errno.ENFILE: "the system has no file descriptors left: raise fs.file-max",
    errno.ENOSPC: f"{SHM} is full: free memory, or mount -o remount,size=SIZE {SHM}, or docker run --shm-size=SIZE",
    errno.ENOMEM: "no address space or mappings are left: free memory, raise ulimit -v or sysctl vm.max_map_count",
    errno.EFBIG: "it is larger than a file may be here (ulimit -f)",
    errno.EACCES: "this user may not create files in /dev/shm: it should have mode 1777",
}


def no_segment(nbytes: int, error: OSError) -> OutOfSharedMemory:
    """What to raise when an object for so many bytes cannot be made or mapped."""
    why = _REMEDIES.get(error.errno or 0, str(error))
    return OutOfSharedMemory(f"cannot make a segment for {human(nbytes)}: {why}")
