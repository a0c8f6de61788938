"""The allocator, on a space without memory. tests/property/test_arena_model.py compares it with a model."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pagefold import _backing, _names
from pagefold._arena import PAGE, Arena, Segment
from pagefold._backing import Backing, Place, Room
from pagefold._errors import ClientClosed, OutOfSharedMemory
from pagefold._extents import Extents
from pagefold._fork import Kin
from support.fakes import FakeBlock, FakeSpace

MIB = 1 << 20


class Listener:
    def __init__(self) -> None:
        self.all_added: list[Segment] = []
        self.all_dropped: list[Segment] = []

    def added(self, segment: Segment) -> None:
        self.all_added.append(segment)

    def dropped(self, segment: Segment) -> None:
        self.all_dropped.append(segment)
        segment.discard()

    @property
    def sizes(self) -> list[int]:
        return [segment.pages for segment in self.all_added]


class Bed:
    def __init__(
        self,
        first: int = 16,
        last: int = 64,
        room: Room | None = None,
        memory: Room | None = None,
        backing: Backing = "shm",
    ) -> None:
        self.space = FakeSpace()
        self.kin = Kin(self.space)
        self.listener = Listener()
        self.room = room
        self.memory = memory
        self.arena = Arena(
            self.kin,
            self.space,
            self.listener,
            FakeBlock,
            room=lambda place: self.room if place == "shm" else self.memory,
            first=first * PAGE,
            last=last * PAGE,
            backing=backing,
        )

    def get(self, pages: int) -> FakeBlock:
        block: FakeBlock = self.arena.allocate(pages * PAGE)
        self.arena._check()
        return block

    def put(self, *blocks: FakeBlock) -> None:
        for block in blocks:
            block.free()
        self.arena.sweep(retry=True)
        self.arena._check()

    def close(self) -> None:
        for segment in self.arena.close():
            segment.discard()


@pytest.fixture
def make(no_names: None) -> Iterator[Callable[..., Bed]]:
    beds: list[Bed] = []

    def one(**options: Any) -> Bed:
        beds.append(Bed(**options))
        return beds[-1]

    yield one
    for bed in beds:
        bed.close()


@pytest.fixture
def bed(make: Callable[..., Bed]) -> Bed:
    return make()


def test_extents_fit_best_and_coalesce() -> None:
    extents = Extents()
    extents.add_segment(1, 100)
    places = [extents.take(10) for _ in range(10)]
    assert places == [(1, first) for first in range(0, 100, 10)]
    assert extents.take(1) is None
    extents.give(1, 20, 10)
    extents.give(1, 50, 4)
    assert extents.take(3) == (1, 50)
    extents.give(1, 30, 10)
    extents.give(1, 10, 10)
    assert list(extents) == [(1, 10, 30), (1, 53, 1)]
    extents._check()
    for again in (10, 15, 39):
        with pytest.raises(ValueError, match="not in use"):
            extents.give(1, again, 2)
    with pytest.raises(ValueError, match="not in use"):
        extents.give(1, 95, 6)
    with pytest.raises(ValueError, match="in use"):
        extents.remove_segment(1)


def test_segments_double_and_are_bounded(bed: Bed) -> None:
    while len(bed.listener.sizes) < 6:
        bed.get(8)
    assert bed.listener.sizes == [16, 32, 64, 64, 64, 64]


def test_a_large_request_has_a_segment_of_just_its_size_and_gives_it_back_at_once(bed: Bed) -> None:
    small = bed.get(1)
    large = bed.get(1000)
    assert bed.listener.sizes == [16, 1000]
    assert large.first == 0
    bed.put(large)
    assert [s.pages for s in bed.listener.all_dropped] == [1000]
    assert bed.arena.pages_in_use == 1
    bed.put(small)


def test_one_free_segment_is_kept_for_the_next_request(bed: Bed) -> None:
    blocks = [bed.get(16), bed.get(32), bed.get(64)]
    assert bed.listener.sizes == [16, 32, 64]
    bed.put(*blocks)
    assert [s.pages for s in bed.listener.all_dropped] == [16, 32]
    for _ in range(100):
        bed.put(bed.get(8))
    assert bed.listener.sizes == [16, 32, 64]


def test_fragments_are_used_before_new_memory(bed: Bed) -> None:
    blocks = [bed.get(1) for _ in range(16)]
    bed.put(*blocks[::2])
    again = [bed.get(1) for _ in range(8)]
    assert bed.listener.sizes == [16]
    assert sorted(b.first for b in again) == list(range(0, 16, 2))


def test_reused_memory_reads_as_zeros(bed: Bed) -> None:
    block = bed.get(5)
    block.fill()
    place = (block.segment, block.first)
    bed.put(block)
    again = bed.get(5)
    assert (again.segment, again.first) == place
    assert again.is_zero()


def test_memory_that_a_child_may_see_waits_and_comes_back(bed: Bed) -> None:
    block = bed.get(16)
    block.fill()
    bed.space.shared.add(block.segment)
    bed.put(block)
    assert bed.arena.quarantined
    assert bed.arena.pages_in_use == 16, "still somebody's"
    assert bed.get(16).segment != block.segment
    bed.space.shared.clear()
    bed.arena.sweep(retry=True)
    bed.arena._check()
    assert not bed.arena.quarantined
    assert bed.get(16).is_zero()


def test_no_bytes_at_all(bed: Bed) -> None:
    block = bed.arena.allocate(0)
    assert block.nbytes == 0
    assert bed.listener.sizes == []
    bed.put(block)


def test_what_cannot_be_backed_is_refused_with_the_remedy(make: Callable[..., Bed]) -> None:
    bed = make(room=Room(64 * MIB, 10 * MIB), first=1 << 12)
    bed.room = Room(64 * MIB, 64 * MIB)
    held = bed.get(6 * MIB // PAGE)  # promised, and not touched: there was room to spare
    bed.room = Room(64 * MIB, 10 * MIB)
    with pytest.raises(OutOfSharedMemory, match=r"5 MiB: of the 64 MiB in /dev/shm, 10 MiB are free and 6 MiB") as info:
        bed.get(5 * MIB // PAGE)
    assert isinstance(info.value, MemoryError)
    assert "--shm-size" in str(info.value)
    assert "remount" in str(info.value)
    assert "memfd" in str(info.value)
    bed.space.merged = 4 * MIB // PAGE  # merged pages need nothing
    bed.get(5 * MIB // PAGE)
    bed.put(held)


def test_touched_memory_is_not_counted_twice(make: Callable[..., Bed]) -> None:
    bed = make(room=Room(64 * MIB, 10 * MIB))
    bed.get(1000)
    os.pwrite(bed.listener.all_added[-1].fd, b"x" * 1000 * PAGE, 0)
    bed.room = Room(64 * MIB, 10 * MIB - 1000 * PAGE)
    bed.get((10 * MIB - 1000 * PAGE) // PAGE)


def test_an_absurd_size_is_out_of_memory_and_no_crash(bed: Bed) -> None:
    for size in (1 << 50, 1 << 62, 1 << 70):
        with pytest.raises(OutOfSharedMemory):
            bed.arena.allocate(size)
    bed.arena._check()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EMFILE, "ulimit -n"), (errno.ENOSPC, "--shm-size"), (errno.ENOMEM, "vm.max_map_count")],
)
def test_a_segment_that_cannot_be_made(bed: Bed, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str) -> None:
    def fail(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_names, "create_locked", fail)
    with pytest.raises(OutOfSharedMemory, match=remedy):
        bed.get(1)
    bed.arena._check()


def test_a_segment_that_cannot_be_mapped_leaves_nothing(bed: Bed) -> None:
    bed.space.add_view_error = OSError(errno.ENOMEM, "no address space")
    with pytest.raises(OutOfSharedMemory, match="address space"):
        bed.get(1)
    bed.space.add_view_error = None
    bed.get(1)


def test_pages_of_a_block_that_may_exist_are_not_handed_out_again(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(bed.arena, "_make", fail)
    with pytest.raises(MemoryError):
        bed.get(3)
    # Ctrl-C may come just after the native block was made; its end gives the pages back, and nothing else may.
    bed.arena._check()
    assert bed.arena.pages_in_use == 3


def test_ranges_are_found_by_address(bed: Bed) -> None:
    block = bed.get(16)
    other = bed.get(20)
    base = block.segment << 40
    assert bed.arena.locate(base, 1) == (block.segment, 0, 1)
    assert bed.arena.locate(base + PAGE - 1, 2) == (block.segment, 0, 2)
    assert bed.arena.locate(base + 3 * PAGE, 2 * PAGE) == (block.segment, 3, 2)
    assert bed.arena.locate((other.segment << 40) + PAGE, 5) == (other.segment, 1, 1)
    assert bed.arena.locate(base + 15 * PAGE, PAGE + 1) is None
    assert bed.arena.locate(base - 1, 1) is None
    assert bed.arena.locate(4096, 1) is None


def test_a_call_from_a_handler_in_the_middle_is_an_error_and_no_deadlock(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> Any:
        bed.arena.allocate(1)

    monkeypatch.setattr(bed.arena, "_make", interrupt)
    with pytest.raises(RuntimeError, match="defer"):
        bed.get(1)
    monkeypatch.undo()
    bed.get(1)


def test_closing_leaves_what_is_in_use(bed: Bed) -> None:
    kept = bed.get(16)
    bed.put(bed.get(32))
    left = bed.arena.close()
    assert [segment.number for segment in left] == [kept.segment]
    assert [segment.pages for segment in bed.listener.all_dropped] == [32]
    assert bed.arena.close() == []
    with pytest.raises(ClientClosed):
        bed.arena.allocate(1)
    for segment in left:
        segment.discard()


# Backings


def places(bed: Bed) -> list[Place]:
    return [segment.place for segment in bed.listener.all_added]


def allocated(bed: Bed, number: int) -> int:
    """Pages that the kernel has given to a segment."""
    return os.fstat(bed.listener.all_added[number].fd).st_blocks * 512 // PAGE


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


def test_a_reservation_that_fails_gives_back_what_it_got(make: Callable[..., Bed], monkeypatch: Any) -> None:
    bed = make(room=Room(64 * MIB, 20 * MIB))
    real = _backing.reserve

    def fail(fd: int, offset: int, nbytes: int) -> None:
        real(fd, offset, nbytes // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_backing, "reserve", fail)
    with pytest.raises(OutOfSharedMemory, match=r"--shm-size.*backing='memfd'"):
        bed.get(10)
    bed.arena._check()
    assert bed.arena.pages_in_use == 0
    monkeypatch.undo()
    bed.get(16)
    assert places(bed) == ["shm"]


def test_ctrl_c_in_a_reservation_loses_no_pages(make: Callable[..., Bed], monkeypatch: Any) -> None:
    bed = make(room=Room(64 * MIB, 20 * MIB))

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_backing, "reserve", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bed.get(10)
    bed.arena._check()
    assert bed.arena.pages_in_use == 0


def test_memory_that_the_machine_does_not_have_is_refused(make: Callable[..., Bed]) -> None:
    for backing in ("memfd", "auto"):
        bed = make(room=Room(64 * MIB, 0), memory=Room(100 * MIB, 10 * MIB), backing=backing)
        kept = bed.get(8 * MIB // PAGE)
        with pytest.raises(OutOfSharedMemory, match=r"3 MiB: of the 100 MiB of memory.* 8 MiB .*memory\.max"):
            bed.get(3 * MIB // PAGE)
        bed.space.merged = 8 * MIB // PAGE
        bed.get(3 * MIB // PAGE)
        assert set(places(bed)) == {"memfd"}
        bed.put(kept)


def test_each_place_keeps_one_free_segment(make: Callable[..., Bed]) -> None:
    bed = make(room=Room(64 * MIB, 64 * MIB), backing="auto")
    blocks = [bed.get(16), bed.get(32)]
    bed.room = Room(64 * MIB, 0)
    blocks += [bed.get(16), bed.get(32)]
    bed.put(*blocks)
    assert [(s.place, s.pages) for s in bed.listener.all_dropped] == [("shm", 16), ("memfd", 16)]
    assert bed.arena.pages_in_use == 0
