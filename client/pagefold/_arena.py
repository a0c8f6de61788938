"""The allocator: segments, and which of their pages are handed out.

    segment 1  64 MiB   |##aaaa####bb#####..........|    ## handed out   .. free, never touched since it was made
    segment 2  128 MiB  |#######aaa.................|    aa free again: discarded, so it is a hole and reads as zeros
    segment 3  3 GiB    |###########################|    a request larger than the next size has one of its own

What holds, at every moment at which the lock is free:
* Free pages read as zeros and take no memory: freed extents are discarded before they are free, and those that cannot
  be discarded (a forked child may look at them) wait in quarantine.
* Of the segments that are wholly free one is kept, so that a loop of allocating and freeing makes no system calls.
* Memory is handed out only if its backing has room for it now, together with what was handed out before: a store to
  a full tmpfs is SIGBUS. Where room is scarce (see `_backing.py`) it is reserved, or comes from a memfd; elsewhere
  that is a check and no reservation, and other processes fill /dev/shm too.

Lock order: arena -> session -> native; see `_fork.py`. Everything public here takes the arena lock itself, but
`pages_in_use`. Buffers that die take no lock: their extents wait in the native freed list for the next `sweep`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from sortedcontainers import SortedDict

from pagefold import _backing, _names
from pagefold._address import SHM
from pagefold._backing import Backing, Place, Room
from pagefold._descriptor import Descriptor
from pagefold._errors import ClientClosed, OutOfSharedMemory
from pagefold._extents import Extents
from pagefold._fork import Kin
from pagefold._log import log as _log
from pagefold._reports import human

PAGE: Final = mmap.PAGESIZE
FIRST_SEGMENT: Final = 64 << 20
LAST_SEGMENT: Final = 1 << 30
MAX_PAGES: Final = (1 << 32) - 1
PLACES: Final[tuple[Place, ...]] = ("shm", "memfd")

_Block = TypeVar("_Block", covariant=True)


@dataclass(frozen=True, slots=True)
class Segment:
    """A shared-memory object of ours, mapped at `address`. `dedicated`: made for one large request.

    `inherited`: it is behind memory of a parent's, which no buffer is ever taken from.
    One in a memfd has a name too, but nobody finds it by that: `fd` is what others open, through /proc.
    """

    number: int
    name: str
    fd: Descriptor
    pages: int
    address: int
    dedicated: bool
    place: Place = "shm"
    inherited: bool = False

    def discard(self) -> None:
        """Lets go of the name and the descriptor; the memory goes with its last mapping."""
        if self.place == "shm":
            _names.remove(self.name)
        self.fd.close()


class ArenaSpace(Protocol):
    """The part of `pagefold_core.Space` that the arena needs."""

    def add_view(self, segment: int, fd: int, pages: int) -> int: ...
    def drop_view(self, segment: int) -> bool: ...
    def take_over(self, parent: Any, address: int, segment: int, fd: int, /) -> bool: ...
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


class Arena:
    """See the head of this file.

    Args:
        kin: of the client; has the arena lock.
        space: the native space, or a fake.
        listener: is told about segments.
        make: makes the buffers.
        room: how much a place has.
        first, last: bytes in the first segment, and most that a segment grows to by doubling.
        backing: where segments are.
    """

    def __init__(
        self,
        kin: Kin,
        space: ArenaSpace,
        listener: Listener,
        make: Callable[..., Any],
        room: Callable[[Place], Room | None] = _backing.room,
        first: int = FIRST_SEGMENT,
        last: int = LAST_SEGMENT,
        backing: Backing = "shm",
    ) -> None:
        self._kin = kin
        self._space = space
        self._listener = listener
        self._make = make
        self._room = room
        self._first = first
        self._last = last
        self._numbers = itertools.count(1)
        self.backing = backing
        self._extents: dict[Place, Extents] = {place: Extents() for place in PLACES}
        self._segments: dict[int, Segment] = {}
        self._by_address = SortedDict()
        self._quarantine: list[tuple[int, int, int]] = []
        self._whole: set[int] = set()
        self._total_pages = self._memfd_pages = 0
        self._busy = False
        self._closed = False

    @property
    def pages_in_use(self) -> int:
        """Pages handed out, or freed and still in quarantine. Takes no lock: a level, for statistics."""
        return self._total_pages - sum(extents.free_pages for extents in self._extents.values())

    @property
    def memfd_pages(self) -> int:
        """Those of them that are in memfd objects. Takes no lock either."""
        return self._memfd_pages - self._extents["memfd"].free_pages

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
            segment, first = self._take(nbytes, pages)
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
            self._drop_inherited()
            self._closed = True
            left = list(self._segments.values())
            self._segments.clear()
            self._by_address.clear()
            return left

    def inherit(self, parent: Any) -> list[Segment]:
        """In a child: takes over what is merged of the memory that its parent's space has left, as far as possible.

        That a segment cannot be made is no failure: then that memory stays a snapshot.
        """
        taken = []
        with self._entered():
            for address, pages in parent.heritage():
                try:
                    made = _backing.create("shm", pages * PAGE)
                except OSError as error:
                    _log.debug("what was inherited stays as it is: %s", error)
                    break
                number = next(self._numbers)
                segment = Segment(number, made.name, made.fd, pages, address, dedicated=True, inherited=True)
                try:
                    found = self._space.take_over(parent, address, number, made.fd)
                except BaseException:
                    segment.discard()
                    raise
                if not found:
                    segment.discard()
                    continue
                self._segments[number] = segment
                self._by_address[address] = segment
                taken.append(segment)
        return taken

    def forget(self) -> None:
        """In a forked child: closes its copies of the descriptors. The native half has its own, as long as needed."""
        for segment in self._segments.values():
            segment.fd.close()
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
        extents = self._extents[self._segments[segment].place]
        extents.give(segment, first, pages)
        if extents.is_whole(segment):
            self._whole.add(segment)

    def _drop_unneeded(self) -> None:
        if self._kin.quarantined:
            return
        spares = {self._spare(place) for place in PLACES}
        for number in sorted(self._whole):
            if number not in spares:
                self._drop(number)
        self._drop_inherited()

    def _drop_inherited(self) -> None:
        for number in [number for number, segment in self._segments.items() if segment.inherited]:
            self._drop(number)  # refused while a buffer lives there

    def _spare(self, place: Place) -> int | None:
        free = [self._segments[number] for number in self._whole if self._segments[number].place == place]
        regular = [segment for segment in free if not segment.dedicated]
        return max(regular, key=lambda segment: segment.pages).number if regular else None

    def _drop(self, number: int) -> None:
        if not self._space.drop_view(number):
            return  # a forked child may share it, or a buffer is just dying: the next sweep tries again
        segment = self._segments.pop(number)
        del self._by_address[segment.address]
        if not segment.inherited:
            self._extents[segment.place].remove_segment(number)
            self._whole.discard(number)
            self._count(segment, -segment.pages)
        self._listener.dropped(segment)

    def _take(self, nbytes: int, pages: int) -> tuple[int, int]:
        """Takes free pages out of the books, from where there is room for them: (segment, first)."""
        if pages > MAX_PAGES:
            raise OutOfSharedMemory(
                f"cannot allocate {human(nbytes)}: {human(MAX_PAGES * PAGE)} is the most for one piece"
            )
        if self.backing == "memfd":
            return self._take_from("memfd", nbytes, pages, self._check_room("memfd", nbytes, pages))
        try:
            scarce = self._check_room("shm", nbytes, pages)
            if not scarce or self.backing == "shm":
                return self._take_from("shm", nbytes, pages, scarce)
        except OutOfSharedMemory:
            if self.backing == "shm":
                raise
        return self._take_from("memfd", nbytes, pages, self._check_room("memfd", nbytes, pages))

    def _take_from(self, place: Place, nbytes: int, pages: int, scarce: bool) -> tuple[int, int]:
        extents = self._extents[place]
        found = extents.take(pages)
        if found is None:
            self._grow(place, nbytes, pages)
            found = extents.take(pages)
            assert found is not None, "the new segment is large enough"
        segment, first = found
        self._whole.discard(segment)
        if scarce and place == "shm":
            try:
                _backing.reserve(self._segments[segment].fd, first * PAGE, pages * PAGE)
            except BaseException as error:
                self._discard(segment, first, pages)  # a part may be reserved; no block was made of it yet
                if isinstance(error, OSError):
                    raise no_segment(nbytes, error) from error
                raise
        return segment, first

    def _check_room(self, place: Place, nbytes: int, pages: int) -> bool:
        """Whether room is scarce in a place.

        Raises:
            OutOfSharedMemory: there is not so much at all.
        """
        room = self._room(place)
        if room is None:
            return False
        used = [s for s in self._segments.values() if s.place == place and not s.inherited]
        backed = sum(os.fstat(segment.fd).st_blocks for segment in used if segment.fd.is_there) * 512
        counts = self._space.counts()
        handed = self.memfd_pages if place == "memfd" else self.pages_in_use - self.memfd_pages
        # Merged pages need no room. Which place they are of is not known here: those that must be of this one count.
        merged = max(0, counts.merged + counts.zero - counts.inherited - (self.pages_in_use - handed))
        promised = max(0, (handed - merged) * PAGE - backed)
        left = max(0, room.free - promised) - pages * PAGE
        if left < 0:
            raise OutOfSharedMemory(
                f"cannot allocate {human(nbytes)}: of the {human(room.size)} {_WHERE[place]}, {human(room.free)} are "
                f"free and {human(min(promised, room.free))} of these are promised to memory that this process has not "
                f"touched yet. {_ENLARGE[place]}"
            )
        return room.small or left < room.size // 2

    def _grow(self, place: Place, nbytes: int, pages: int) -> None:
        regular = sum(not segment.dedicated and segment.place == place for segment in self._segments.values())
        size = min(self._first << min(regular, 32), self._last)
        dedicated = pages * PAGE > size
        if not dedicated:
            pages = size // PAGE
        number = next(self._numbers)
        try:
            made = _backing.create(place, pages * PAGE)
        except OSError as error:
            raise no_segment(nbytes, error) from error
        try:
            address = self._space.add_view(number, made.fd, pages)
        except BaseException as error:
            Segment(number, made.name, made.fd, pages, 0, dedicated, place).discard()
            if isinstance(error, OSError):
                raise no_segment(nbytes, error) from error
            raise
        segment = Segment(number, made.name, made.fd, pages, address, dedicated, place)
        # The listener knows of it before any buffer, and so before any event, exists.
        self._listener.added(segment)
        self._segments[number] = segment
        self._by_address[address] = segment
        self._extents[place].add_segment(number, pages)
        self._whole.add(number)
        self._count(segment, pages)

    def _count(self, segment: Segment, pages: int) -> None:
        self._total_pages += pages
        if segment.place == "memfd":
            self._memfd_pages += pages

    def _free(self) -> list[tuple[int, int, int]]:
        """Free extents. For tests."""
        return sorted(extent for extents in self._extents.values() for extent in extents)

    def _check(self) -> None:
        for place, extents in self._extents.items():
            extents._check()
            assert all(self._segments[segment].place == place for segment, _, _ in extents)
        ours = [segment for segment in self._segments.values() if not segment.inherited]
        assert self._whole == {s.number for s in ours if self._extents[s.place].is_whole(s.number)}
        assert self._total_pages == sum(segment.pages for segment in ours)
        assert self._memfd_pages == sum(s.pages for s in ours if s.place == "memfd")
        assert {s.number for s in self._by_address.values()} == set(self._segments)
        places = sorted([*self._free(), *self._quarantine])
        for (segment, first, pages), (other, start, _) in itertools.pairwise(places):
            assert segment != other or first + pages <= start, "a page is free twice"


_WHERE: Final[dict[Place, str]] = {
    "shm": "in /dev/shm",
    "memfd": "of memory and swap that this process may use",
}
_ENLARGE: Final[dict[Place, str]] = {
    "shm": "Free memory, or make /dev/shm larger: mount -o remount,size=SIZE /dev/shm (as root), or docker run "
    "--shm-size=SIZE; or connect(backing='memfd'), which does without it",
    "memfd": "Free memory, or raise the limit of the container or control group (memory.max, docker run --memory=SIZE)",
}
_REMEDIES: Final = {
    errno.EMFILE: "this process has no file descriptors left: close some, or raise the limit (ulimit -n)",
    errno.ENFILE: "the system has no file descriptors left: raise fs.file-max",
    errno.ENOSPC: f"{SHM} is full: free memory, or mount -o remount,size=SIZE {SHM}, or docker run "
    "--shm-size=SIZE, or connect(backing='memfd')",
    errno.ENOMEM: "no address space or mappings are left: free memory, raise ulimit -v or sysctl vm.max_map_count",
    errno.EFBIG: "it is larger than a file may be here (ulimit -f)",
    errno.EACCES: "this user may not create files in /dev/shm: it should have mode 1777",
}


def no_segment(nbytes: int, error: OSError) -> OutOfSharedMemory:
    """What to raise when an object for so many bytes cannot be made or mapped."""
    why = _REMEDIES.get(error.errno or 0, str(error))
    return OutOfSharedMemory(f"cannot make a segment for {human(nbytes)}: {why}")
