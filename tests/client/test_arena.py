"""The allocator, on real memory. native/src/arena/tests.rs compares its books with a list of who has each page."""

from __future__ import annotations

import errno
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pagefold import Buffer
from pagefold._errors import ClientClosed, OutOfSharedMemory
from pagefold._memory.arena import no_segment, not_allocated, not_taken_back
from pagefold._options.backings import Backing
from pagefold_core import Arena, NotBacked, Segment, Space
from pagefold_proto.limits import PAGE
from support import faults, kernel
from support.children import child
from support.faults import Room, pretend_room
from support.waiting import until

MIB = 1 << 20
PLENTY = Room(1 << 40, 1 << 40)

pytestmark = pytest.mark.skipif(not faults.AVAILABLE, reason="the extension was built without faults: make setup")


class Bed:
    def __init__(
        self,
        first: int = 16,
        last: int = 64,
        room: Room = PLENTY,
        memory: Room = PLENTY,
        backing: Backing = "shm",
    ) -> None:
        lease = os.memfd_create("lease")
        self.space = Space("off", lease, 1000)
        os.close(lease)
        self.room, self.memory = room, memory
        self.arena = Arena(self.space, backing, first, last)
        self.arena.announced()
        self.all_added: list[Segment] = []
        self.all_dropped: list[Segment] = []

    @property
    def room(self) -> Room:
        return self._room

    @room.setter
    def room(self, room: Room) -> None:
        self._room = room
        pretend_room("shm", room)

    @property
    def memory(self) -> Room:
        return self._memory

    @memory.setter
    def memory(self, room: Room) -> None:
        self._memory = room
        pretend_room("memfd", room)

    def hear(self) -> None:
        self.all_added += self.arena.added()
        self.arena.announced()
        for segment in self.arena.dropped():
            self.all_dropped.append(segment)
            segment.discard()

    @property
    def sizes(self) -> list[int]:
        return [segment.pages for segment in self.all_added]

    def get(self, pages: int) -> Buffer:
        pretend_room("shm", self.room)
        pretend_room("memfd", self.memory)
        self.arena.set_reachable(False)
        try:
            buffer = Buffer(self.arena, pages * PAGE)
        except NotBacked as error:
            raise not_allocated(pages * PAGE, error) from None
        finally:
            self.hear()
            self.arena.check()
        return buffer

    def put(self, *buffers: Buffer) -> None:
        for buffer in buffers:
            buffer.close()
        self.arena.sweep(True)
        self.hear()
        self.arena.check()

    def close(self) -> None:
        gc.collect()
        for segment in self.arena.close():
            segment.discard()
        self.hear()
        self.space.close()


@pytest.fixture
def make(no_names: None) -> Iterator[Callable[..., Bed]]:
    beds: list[Bed] = []

    def one(**options: Any) -> Bed:
        beds.append(Bed(**options))
        return beds[-1]

    yield one
    for bed in beds:
        bed.close()
    pretend_room("shm", None)
    pretend_room("memfd", None)


@pytest.fixture
def bed(make: Callable[..., Bed]) -> Bed:
    return make()


def is_zero(buffer: Buffer) -> bool:
    return not any(buffer[:])


def fill(buffer: Buffer) -> None:
    memoryview(buffer)[:] = b"x" * len(buffer)


def test_segments_double_and_are_bounded(bed: Bed) -> None:
    kept = []
    while len(bed.sizes) < 6:
        kept.append(bed.get(8))
    assert bed.sizes == [16, 32, 64, 64, 64, 64]


def test_a_large_request_has_a_segment_of_just_its_size_and_gives_it_back_at_once(bed: Bed) -> None:
    small = bed.get(1)
    large = bed.get(1000)
    assert bed.sizes == [16, 1000]
    assert large.first == 0
    bed.put(large)
    assert [s.pages for s in bed.all_dropped] == [1000]
    assert bed.arena.pages_in_use == 1
    bed.put(small)


def test_one_free_segment_is_kept_for_the_next_request(bed: Bed) -> None:
    blocks = [bed.get(16), bed.get(32), bed.get(64)]
    assert bed.sizes == [16, 32, 64]
    bed.put(*blocks)
    assert [s.pages for s in bed.all_dropped] == [16, 32]
    for _ in range(100):
        bed.put(bed.get(8))
    assert bed.sizes == [16, 32, 64]


def test_fragments_are_used_before_new_memory(bed: Bed) -> None:
    blocks = [bed.get(1) for _ in range(16)]
    bed.put(*blocks[::2])
    again = [bed.get(1) for _ in range(8)]
    assert bed.sizes == [16]
    assert sorted(b.first for b in again) == list(range(0, 16, 2))


def test_reused_memory_reads_as_zeros(bed: Bed) -> None:
    block = bed.get(5)
    fill(block)
    place = (block.segment, block.first)
    bed.put(block)
    again = bed.get(5)
    assert (again.segment, again.first) == place
    assert is_zero(again)


def test_memory_that_a_child_may_see_waits_and_comes_back(bed: Bed) -> None:
    block = bed.get(16)
    fill(block)
    segment = block.segment
    with child():
        bed.put(block)
        assert bed.arena.quarantined
        assert bed.arena.pages_in_use == 16, "still somebody's"
        other = bed.get(16)
        assert other.segment != segment
    assert bed.space.thaw()
    bed.arena.sweep(True)
    bed.arena.check()
    assert not bed.arena.quarantined
    again = bed.get(16)
    assert again.segment == segment
    assert is_zero(again)


def test_a_segment_that_a_child_may_see_is_not_dropped(bed: Bed) -> None:
    small, large = bed.get(1), bed.get(1000)
    with child():
        bed.put(large)
        assert bed.all_dropped == []
    assert bed.space.thaw()
    bed.put()
    assert [segment.pages for segment in bed.all_dropped] == [1000]
    bed.put(small)


def test_in_a_child_the_arena_is_its_parents(bed: Bed) -> None:
    kept = bed.get(4)
    segment = bed.all_added[0]

    def look() -> None:
        for use in (lambda: Buffer(bed.arena, PAGE), bed.arena.sweep):
            with pytest.raises((RuntimeError, NotBacked), match="closed"):
                use()
        assert bed.arena.pages_in_use == 0
        segment.discard()  # not its own to unlink
        assert kernel.names() == names
        kept.close()

    names = kernel.names()
    with child(look) as one:
        one.go()
    assert kernel.names() == names
    bed.put(kept)


def test_no_bytes_at_all(bed: Bed) -> None:
    block = Buffer(bed.arena, 0)
    assert block.nbytes == 0
    assert bed.sizes == []
    bed.put(block)


def test_what_cannot_be_backed_is_refused_with_the_remedy(make: Callable[..., Bed]) -> None:
    bed = make(room=Room(64 * MIB, 64 * MIB), first=1 << 12)
    held = bed.get(6 * MIB // PAGE)  # promised, and not touched: there was room to spare
    bed.room = Room(64 * MIB, 10 * MIB)
    with pytest.raises(OutOfSharedMemory, match=r"5 MiB: of the 64 MiB in /dev/shm, 10 MiB are free and 6 MiB") as info:
        bed.get(5 * MIB // PAGE)
    assert isinstance(info.value, MemoryError)
    assert "--shm-size" in str(info.value)
    assert "remount" in str(info.value)
    assert "memfd" in str(info.value)
    bed.put(held)


def test_touched_memory_is_not_counted_twice(make: Callable[..., Bed]) -> None:
    bed = make(room=Room(64 * MIB, 10 * MIB))
    kept = bed.get(1000)
    fill(kept)
    bed.room = Room(64 * MIB, 10 * MIB - 1000 * PAGE)
    bed.get((10 * MIB - 1000 * PAGE) // PAGE)


def test_an_absurd_size_is_out_of_memory_and_no_crash(make: Callable[..., Bed]) -> None:
    bed = make()
    bed.room = Room(1 << 70 - 7, 1 << 70 - 7)
    for size in (1 << 44, 1 << 50, 1 << 62, 1 << 70):
        with pytest.raises(OutOfSharedMemory):
            bed.get(size // PAGE)
    assert bed.arena.pages_in_use == 0


@pytest.mark.parametrize("point", ["arena.make", "arena.map"])
@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EMFILE, "ulimit -n"), (errno.ENOSPC, "--shm-size"), (errno.ENOMEM, "vm.max_map_count")],
)
def test_a_segment_that_cannot_be_made_leaves_nothing(bed: Bed, point: str, number: int, remedy: str) -> None:
    before = kernel.names()
    with faults.armed(point, f"error:{number}"), pytest.raises(OutOfSharedMemory, match=remedy):
        bed.get(1)
    assert kernel.names() == before
    bed.get(1)


def test_memory_that_cannot_be_taken_back_is_told_with_the_remedy() -> None:
    for number, remedy in ((errno.ENOSPC, "remount"), (errno.EDQUOT, "remount"), (errno.ENOMEM, "vm.max_map_count")):
        error = not_taken_back(NotBacked("pages", number, 2))
        assert isinstance(error, OutOfSharedMemory)
        assert "8 KiB cannot be taken back" in str(error)
        assert remedy in str(error)
    other = not_taken_back(NotBacked("pages", errno.EIO, 2))
    assert isinstance(other, OSError)
    assert other.errno == errno.EIO
    assert "of files" in str(no_segment(1, OSError(errno.EBADF, "an odd kind of files")))


@pytest.mark.parametrize("fault", ["panic", f"error:{errno.ENOMEM}"])
def test_what_cannot_be_discarded_waits(bed: Bed, fault: str) -> None:
    blocks = [bed.get(4), bed.get(4)]
    for block in blocks:
        fill(block)
        block.close()
    with faults.armed("discard.punch", fault):
        trouble = bed.arena.sweep()
    bed.arena.check()
    assert trouble is not None
    assert trouble[0] == 4
    assert bed.arena.quarantined
    assert bed.arena.pages_in_use == 4, "the other one is free"
    assert bed.arena.sweep(True) is None
    bed.arena.check()
    assert bed.arena.pages_in_use == 0
    assert is_zero(bed.get(8))


def test_ranges_are_found_by_address(bed: Bed) -> None:
    block, other = bed.get(16), bed.get(20)
    base = block.address
    assert bed.arena.locate(base, 1) == (block.segment, 0, 1)
    assert bed.arena.locate(base + PAGE - 1, 2) == (block.segment, 0, 2)
    assert bed.arena.locate(base + 3 * PAGE, 2 * PAGE) == (block.segment, 3, 2)
    assert bed.arena.locate(other.address + PAGE, 5) == (other.segment, 1, 1)
    assert bed.arena.locate(base + 15 * PAGE, PAGE + 1) is None
    assert bed.arena.locate(base, 0) is None
    assert bed.arena.locate(4096, 1) is None
    assert bed.arena.locate((1 << 64) - 1, 1) is None


def test_an_allocation_waits_until_new_memory_is_announced_and_no_longer_than_a_moment(bed: Bed) -> None:
    told = threading.Event()

    def announce() -> None:
        until(lambda: bed.arena.has_added)
        bed.all_added += bed.arena.added()
        told.set()
        bed.arena.announced()

    thread = threading.Thread(target=announce)
    thread.start()
    block = Buffer(bed.arena, PAGE)
    assert told.is_set()
    thread.join()
    other = Buffer(bed.arena, 100 * PAGE)  # nobody announces it, and it is there all the same
    bed.put(block, other)


def test_an_interrupted_allocation_has_not_happened(bed: Bed) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):  # while it waits for being announced
            Buffer(bed.arena, PAGE)
    finally:
        signal.signal(signal.SIGALRM, before)
    bed.put()
    assert bed.arena.pages_in_use == 0


def test_closing_leaves_what_is_in_use(bed: Bed) -> None:
    kept = bed.get(16)
    bed.put(bed.get(32))
    left = bed.arena.close()
    bed.hear()
    assert [segment.number for segment in left] == [kept.segment]
    assert [segment.pages for segment in bed.all_dropped] == [32]
    assert bed.arena.close() == []
    with pytest.raises(ClientClosed):
        bed.get(1)
    for segment in left:
        segment.discard()
    fill(kept)


# Backings


def places(bed: Bed) -> list[str]:
    return [segment.place for segment in bed.all_added]


def allocated(bed: Bed, number: int) -> int:
    """Pages that the kernel has given to a segment."""
    return os.fstat(bed.all_added[number].fd).st_blocks * 512 // PAGE


def test_auto_leaves_dev_shm_when_less_than_half_of_it_would_be_left(make: Callable[..., Bed]) -> None:
    bed = make(room=Room(64 * MIB, 64 * MIB), backing="auto")
    kept = [bed.get(32 * MIB // PAGE)]
    assert places(bed) == ["shm"]
    kept.append(bed.get(1))
    assert places(bed) == ["shm", "memfd"], "though there are 32 MiB: others may count on them"
    assert bed.arena.memfd_pages == 1
    bed.room = Room(64 * MIB, 0)
    kept.append(bed.get(20))
    assert places(bed)[2:] == ["memfd"]
    bed.put(*kept)
    assert bed.arena.memfd_pages == bed.arena.pages_in_use == 0


def test_auto_leaves_a_small_dev_shm_alone(make: Callable[..., Bed]) -> None:
    bed = make(room=Room(64 * MIB, 64 * MIB, small=True), backing="auto")
    bed.get(1)
    assert places(bed) == ["memfd"]


def test_auto_does_not_reuse_free_pages_for_which_there_is_no_room_any_more(make: Callable[..., Bed]) -> None:
    bed = make(room=Room(64 * MIB, 64 * MIB), backing="auto")
    kept, freed = bed.get(8), bed.get(8)
    bed.put(freed)
    bed.room = Room(64 * MIB, 8 * PAGE)
    again = bed.get(8)
    assert again.segment != freed.segment
    assert places(bed) == ["shm", "memfd"]
    bed.room = Room(64 * MIB, 64 * MIB)
    assert bed.get(8).segment == freed.segment
    bed.put(kept)


def test_scarce_room_is_reserved_and_given_back(make: Callable[..., Bed]) -> None:
    bed = make(room=Room(64 * MIB, 20 * MIB))
    block = bed.get(10)
    assert (places(bed), allocated(bed, 0)) == (["shm"], 10)
    other = bed.get(3)
    assert allocated(bed, 0) == 13
    bed.room = Room(64 * MIB, 64 * MIB)
    plenty = bed.get(3)
    assert allocated(bed, 0) == 13, "where there is plenty, memory comes when it is touched"
    bed.put(block, other, plenty)


@pytest.mark.parametrize("fault", ["error:28", "error:28@2"])
def test_a_reservation_that_fails_gives_back_what_it_got(make: Callable[..., Bed], fault: str) -> None:
    bed = make(room=Room(64 * MIB, 20 * MIB), first=4096, last=4096)
    with faults.armed("arena.reserve", fault), pytest.raises(OutOfSharedMemory, match=r"--shm-size.*backing='memfd'"):
        bed.get(10 * MIB // PAGE)  # in three pieces
    assert bed.arena.pages_in_use == 0
    assert allocated(bed, 0) == 0
    bed.get(16)
    assert places(bed) == ["shm"]


def test_a_signal_in_a_reservation_loses_no_pages(make: Callable[..., Bed]) -> None:
    bed = make(room=Room(64 * MIB, 20 * MIB), first=4096, last=4096)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with faults.armed("arena.reserve", "delay:30@1+"):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            with pytest.raises(KeyboardInterrupt):
                bed.get(10 * MIB // PAGE)
    finally:
        signal.signal(signal.SIGALRM, before)
    bed.put()
    assert bed.arena.pages_in_use == 0
    assert allocated(bed, 0) == 0


def test_memory_that_the_machine_does_not_have_is_refused(make: Callable[..., Bed]) -> None:
    for backing in ("memfd", "auto"):
        bed = make(room=Room(64 * MIB, 0), memory=Room(100 * MIB, 10 * MIB), backing=backing)
        kept = bed.get(8 * MIB // PAGE)
        with pytest.raises(OutOfSharedMemory, match=r"3 MiB: of the 100 MiB of memory.* 8 MiB .*memory\.max"):
            bed.get(3 * MIB // PAGE)
        assert set(places(bed)) == {"memfd"}
        bed.put(kept)


def test_each_place_keeps_one_free_segment(make: Callable[..., Bed]) -> None:
    bed = make(room=Room(64 * MIB, 64 * MIB), backing="auto")
    blocks = [bed.get(16), bed.get(32)]
    bed.room = Room(64 * MIB, 0)
    blocks += [bed.get(16), bed.get(32)]
    bed.put(*blocks)
    assert [(s.place, s.pages) for s in bed.all_dropped] == [("shm", 16), ("memfd", 16)]
    assert bed.arena.pages_in_use == 0
