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


class Rig:
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
def make(no_names: None) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def one(**options: Any) -> Rig:
        rigs.append(Rig(**options))
        return rigs[-1]

    yield one
    for rig in rigs:
        rig.close()
    pretend_room("shm", None)
    pretend_room("memfd", None)


@pytest.fixture
def rig(make: Callable[..., Rig]) -> Rig:
    return make()


def is_zero(buffer: Buffer) -> bool:
    return not any(buffer[:])


def fill(buffer: Buffer) -> None:
    memoryview(buffer)[:] = b"x" * len(buffer)


def test_segments_double_and_are_bounded(rig: Rig) -> None:
    kept = []
    while len(rig.sizes) < 6:
        kept.append(rig.get(8))
    assert rig.sizes == [16, 32, 64, 64, 64, 64]


def test_a_large_request_has_a_segment_of_just_its_size_and_gives_it_back_at_once(rig: Rig) -> None:
    small = rig.get(1)
    large = rig.get(1000)
    assert rig.sizes == [16, 1000]
    assert large.first == 0
    rig.put(large)
    assert [s.pages for s in rig.all_dropped] == [1000]
    assert rig.arena.pages_in_use == 1
    rig.put(small)


def test_one_free_segment_is_kept_for_the_next_request(rig: Rig) -> None:
    blocks = [rig.get(16), rig.get(32), rig.get(64)]
    assert rig.sizes == [16, 32, 64]
    rig.put(*blocks)
    assert [s.pages for s in rig.all_dropped] == [16, 32]
    for _ in range(100):
        rig.put(rig.get(8))
    assert rig.sizes == [16, 32, 64]


def test_fragments_are_used_before_new_memory(rig: Rig) -> None:
    blocks = [rig.get(1) for _ in range(16)]
    rig.put(*blocks[::2])
    again = [rig.get(1) for _ in range(8)]
    assert rig.sizes == [16]
    assert sorted(b.first for b in again) == list(range(0, 16, 2))


def test_reused_memory_reads_as_zeros(rig: Rig) -> None:
    block = rig.get(5)
    fill(block)
    place = (block.segment, block.first)
    rig.put(block)
    again = rig.get(5)
    assert (again.segment, again.first) == place
    assert is_zero(again)


def test_memory_that_a_child_may_see_waits_and_comes_back(rig: Rig) -> None:
    block = rig.get(16)
    fill(block)
    segment = block.segment
    with child():
        rig.put(block)
        assert rig.arena.quarantined
        assert rig.arena.pages_in_use == 16, "still somebody's"
        other = rig.get(16)
        assert other.segment != segment
    assert rig.space.thaw()
    rig.arena.sweep(True)
    rig.arena.check()
    assert not rig.arena.quarantined
    again = rig.get(16)
    assert again.segment == segment
    assert is_zero(again)


def test_a_segment_that_a_child_may_see_is_not_dropped(rig: Rig) -> None:
    small, large = rig.get(1), rig.get(1000)
    with child():
        rig.put(large)
        assert rig.all_dropped == []
    assert rig.space.thaw()
    rig.put()
    assert [segment.pages for segment in rig.all_dropped] == [1000]
    rig.put(small)


def test_in_a_child_the_arena_is_its_parents(rig: Rig) -> None:
    kept = rig.get(4)
    segment = rig.all_added[0]

    def look() -> None:
        for use in (lambda: Buffer(rig.arena, PAGE), rig.arena.sweep):
            with pytest.raises((RuntimeError, NotBacked), match="closed"):
                use()
        assert rig.arena.pages_in_use == 0
        segment.discard()  # not its own to unlink
        assert kernel.names() == names
        kept.close()

    names = kernel.names()
    with child(look) as one:
        one.go()
    assert kernel.names() == names
    rig.put(kept)


def test_no_bytes_at_all(rig: Rig) -> None:
    block = Buffer(rig.arena, 0)
    assert block.nbytes == 0
    assert rig.sizes == []
    rig.put(block)


def test_what_cannot_be_backed_is_refused_with_the_remedy(make: Callable[..., Rig]) -> None:
    rig = make(room=Room(64 * MIB, 64 * MIB), first=1 << 12)
    held = rig.get(6 * MIB // PAGE)  # promised, and not touched: there was room to spare
    rig.room = Room(64 * MIB, 10 * MIB)
    with pytest.raises(OutOfSharedMemory, match=r"5 MiB: of the 64 MiB in /dev/shm, 10 MiB are free and 6 MiB") as info:
        rig.get(5 * MIB // PAGE)
    assert isinstance(info.value, MemoryError)
    assert "--shm-size" in str(info.value)
    assert "remount" in str(info.value)
    assert "memfd" in str(info.value)
    rig.put(held)


def test_touched_memory_is_not_counted_twice(make: Callable[..., Rig]) -> None:
    rig = make(room=Room(64 * MIB, 10 * MIB))
    kept = rig.get(1000)
    fill(kept)
    rig.room = Room(64 * MIB, 10 * MIB - 1000 * PAGE)
    rig.get((10 * MIB - 1000 * PAGE) // PAGE)


def test_an_absurd_size_is_out_of_memory_and_no_crash(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.room = Room(1 << 70 - 7, 1 << 70 - 7)
    for size in (1 << 44, 1 << 50, 1 << 62, 1 << 70):
        with pytest.raises(OutOfSharedMemory):
            rig.get(size // PAGE)
    assert rig.arena.pages_in_use == 0


@pytest.mark.parametrize("point", ["arena.make", "arena.map"])
@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EMFILE, "ulimit -n"), (errno.ENOSPC, "--shm-size"), (errno.ENOMEM, "vm.max_map_count")],
)
def test_a_segment_that_cannot_be_made_leaves_nothing(rig: Rig, point: str, number: int, remedy: str) -> None:
    before = kernel.names()
    with faults.armed(point, f"error:{number}"), pytest.raises(OutOfSharedMemory, match=remedy):
        rig.get(1)
    assert kernel.names() == before
    rig.get(1)


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
def test_what_cannot_be_discarded_waits(rig: Rig, fault: str) -> None:
    blocks = [rig.get(4), rig.get(4)]
    for block in blocks:
        fill(block)
        block.close()
    with faults.armed("discard.punch", fault):
        trouble = rig.arena.sweep()
    rig.arena.check()
    assert trouble is not None
    assert trouble[0] == 4
    assert rig.arena.quarantined
    assert rig.arena.pages_in_use == 4, "the other one is free"
    assert rig.arena.sweep(True) is None
    rig.arena.check()
    assert rig.arena.pages_in_use == 0
    assert is_zero(rig.get(8))


def test_ranges_are_found_by_address(rig: Rig) -> None:
    block, other = rig.get(16), rig.get(20)
    base = block.address
    assert rig.arena.locate(base, 1) == (block.segment, 0, 1)
    assert rig.arena.locate(base + PAGE - 1, 2) == (block.segment, 0, 2)
    assert rig.arena.locate(base + 3 * PAGE, 2 * PAGE) == (block.segment, 3, 2)
    assert rig.arena.locate(other.address + PAGE, 5) == (other.segment, 1, 1)
    assert rig.arena.locate(base + 15 * PAGE, PAGE + 1) is None
    assert rig.arena.locate(base, 0) is None
    assert rig.arena.locate(4096, 1) is None
    assert rig.arena.locate((1 << 64) - 1, 1) is None


def test_an_allocation_waits_until_new_memory_is_announced_and_no_longer_than_a_moment(rig: Rig) -> None:
    told = threading.Event()

    def announce() -> None:
        until(lambda: rig.arena.has_added)
        rig.all_added += rig.arena.added()
        told.set()
        rig.arena.announced()

    thread = threading.Thread(target=announce)
    thread.start()
    block = Buffer(rig.arena, PAGE)
    assert told.is_set()
    thread.join()
    other = Buffer(rig.arena, 100 * PAGE)  # nobody announces it, and it is there all the same
    rig.put(block, other)


def test_an_interrupted_allocation_has_not_happened(rig: Rig) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):  # while it waits for being announced
            Buffer(rig.arena, PAGE)
    finally:
        signal.signal(signal.SIGALRM, before)
    rig.put()
    assert rig.arena.pages_in_use == 0


def test_closing_leaves_what_is_in_use(rig: Rig) -> None:
    kept = rig.get(16)
    rig.put(rig.get(32))
    left = rig.arena.close()
    rig.hear()
    assert [segment.number for segment in left] == [kept.segment]
    assert [segment.pages for segment in rig.all_dropped] == [32]
    assert rig.arena.close() == []
    with pytest.raises(ClientClosed):
        rig.get(1)
    for segment in left:
        segment.discard()
    fill(kept)


# Backings


def places(rig: Rig) -> list[str]:
    return [segment.place for segment in rig.all_added]


def allocated(rig: Rig, number: int) -> int:
    """Pages that the kernel has given to a segment."""
    return os.fstat(rig.all_added[number].fd).st_blocks * 512 // PAGE


def test_auto_leaves_dev_shm_when_less_than_half_of_it_would_be_left(make: Callable[..., Rig]) -> None:
    rig = make(room=Room(64 * MIB, 64 * MIB), backing="auto")
    kept = [rig.get(32 * MIB // PAGE)]
    assert places(rig) == ["shm"]
    kept.append(rig.get(1))
    assert places(rig) == ["shm", "memfd"], "though there are 32 MiB: others may count on them"
    assert rig.arena.memfd_pages == 1
    rig.room = Room(64 * MIB, 0)
    kept.append(rig.get(20))
    assert places(rig)[2:] == ["memfd"]
    rig.put(*kept)
    assert rig.arena.memfd_pages == rig.arena.pages_in_use == 0


def test_auto_leaves_a_small_dev_shm_alone(make: Callable[..., Rig]) -> None:
    rig = make(room=Room(64 * MIB, 64 * MIB, small=True), backing="auto")
    rig.get(1)
    assert places(rig) == ["memfd"]


def test_auto_does_not_reuse_free_pages_for_which_there_is_no_room_any_more(make: Callable[..., Rig]) -> None:
    rig = make(room=Room(64 * MIB, 64 * MIB), backing="auto")
    kept, freed = rig.get(8), rig.get(8)
    rig.put(freed)
    rig.room = Room(64 * MIB, 8 * PAGE)
    again = rig.get(8)
    assert again.segment != freed.segment
    assert places(rig) == ["shm", "memfd"]
    rig.room = Room(64 * MIB, 64 * MIB)
    assert rig.get(8).segment == freed.segment
    rig.put(kept)


def test_scarce_room_is_reserved_and_given_back(make: Callable[..., Rig]) -> None:
    rig = make(room=Room(64 * MIB, 20 * MIB))
    block = rig.get(10)
    assert (places(rig), allocated(rig, 0)) == (["shm"], 10)
    other = rig.get(3)
    assert allocated(rig, 0) == 13
    rig.room = Room(64 * MIB, 64 * MIB)
    plenty = rig.get(3)
    assert allocated(rig, 0) == 13, "where there is plenty, memory comes when it is touched"
    rig.put(block, other, plenty)


@pytest.mark.parametrize("fault", ["error:28", "error:28@2"])
def test_a_reservation_that_fails_gives_back_what_it_got(make: Callable[..., Rig], fault: str) -> None:
    rig = make(room=Room(64 * MIB, 20 * MIB), first=4096, last=4096)
    with faults.armed("arena.reserve", fault), pytest.raises(OutOfSharedMemory, match=r"--shm-size.*backing='memfd'"):
        rig.get(10 * MIB // PAGE)  # in three pieces
    assert rig.arena.pages_in_use == 0
    assert allocated(rig, 0) == 0
    rig.get(16)
    assert places(rig) == ["shm"]


def test_a_signal_in_a_reservation_loses_no_pages(make: Callable[..., Rig]) -> None:
    rig = make(room=Room(64 * MIB, 20 * MIB), first=4096, last=4096)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with faults.armed("arena.reserve", "delay:30@1+"):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            with pytest.raises(KeyboardInterrupt):
                rig.get(10 * MIB // PAGE)
    finally:
        signal.signal(signal.SIGALRM, before)
    rig.put()
    assert rig.arena.pages_in_use == 0
    assert allocated(rig, 0) == 0


def test_memory_that_the_machine_does_not_have_is_refused(make: Callable[..., Rig]) -> None:
    for backing in ("memfd", "auto"):
        rig = make(room=Room(64 * MIB, 0), memory=Room(100 * MIB, 10 * MIB), backing=backing)
        kept = rig.get(8 * MIB // PAGE)
        with pytest.raises(OutOfSharedMemory, match=r"3 MiB: of the 100 MiB of memory.* 8 MiB .*memory\.max"):
            rig.get(3 * MIB // PAGE)
        assert set(places(rig)) == {"memfd"}
        rig.put(kept)


def test_each_place_keeps_one_free_segment(make: Callable[..., Rig]) -> None:
    rig = make(room=Room(64 * MIB, 64 * MIB), backing="auto")
    blocks = [rig.get(16), rig.get(32)]
    rig.room = Room(64 * MIB, 0)
    blocks += [rig.get(16), rig.get(32)]
    rig.put(*blocks)
    assert [(s.place, s.pages) for s in rig.all_dropped] == [("shm", 16), ("memfd", 16)]
    assert rig.arena.pages_in_use == 0
