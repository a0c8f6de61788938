"""Where memory comes from, with real objects: what they allow, and what the kernel says of room."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from typing import Literal

import pytest
from pagefold import Buffer
from pagefold._options.backings import BACKINGS
from pagefold._options.options import choice
from pagefold_core import Arena, Space, make_object, memory_room, punch_hole, spare_pages
from pagefold_proto import shm_names
from support import kernel
from support.faults import Room, pretend_room

PAGE = mmap.PAGESIZE


@pytest.mark.parametrize("place", ["shm", "memfd"])
def test_an_object_is_its_owners_alone_and_takes_nothing(place: Literal["shm", "memfd"], no_names: None) -> None:
    name, fd = make_object(place, 10 * PAGE)
    found = os.fstat(fd)
    assert (found.st_size, found.st_blocks, found.st_uid) == (10 * PAGE, 0, os.geteuid())
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert shm_names.is_name("s", name)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert (name[1:] in kernel.names()) == (place == "shm")
    if place == "shm":
        look = os.open(f"/dev/shm{name}", os.O_RDWR)
        assert not shm_names.is_garbage(look), "its lock says that somebody has it"
        os.close(look)
    shm_names.remove(name)
    os.close(fd)


def test_a_memfds_size_is_fixed_and_its_pages_can_be_given_back() -> None:
    _, fd = make_object("memfd", 4 * PAGE)
    for size in (0, 3 * PAGE, 5 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    with pytest.raises(PermissionError):  # somebody else who opens it could stop us from punching holes with that
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x10)
    os.pwrite(fd, b"x" * 4 * PAGE, 0)
    punch_hole(fd, PAGE, 2 * PAGE)
    assert os.fstat(fd).st_blocks * 512 == 2 * PAGE
    assert os.pread(fd, 4 * PAGE, 0) == b"x" * PAGE + bytes(2 * PAGE) + b"x" * PAGE
    os.close(fd)


def test_a_reservation_reads_as_a_hole_of_zeros(no_names: None) -> None:
    pretend_room("shm", Room(64 << 20, 16 << 20))
    lease = os.memfd_create("lease")
    space = Space("off", lease, 1000)
    os.close(lease)
    arena = Arena(space, "shm", 8, 8)
    arena.set_reachable(False)
    buffer = Buffer(arena, 5 * PAGE)
    (segment,) = arena.added()
    assert os.fstat(segment.fd).st_blocks * 512 == 5 * PAGE
    with pytest.raises(OSError, match="No such device or address"):  # ENXIO: a scan finds nothing to read
        os.lseek(segment.fd, 0, os.SEEK_DATA)
    assert os.pread(segment.fd, 8 * PAGE, 0) == bytes(8 * PAGE)
    buffer.close()
    arena.close()
    segment.discard()
    space.close()
    pretend_room("shm", None)


def test_some_memory_may_be_taken_back() -> None:
    size, free = memory_room() or (0, 0)
    assert 0 <= free <= size
    spare = spare_pages(3600)
    assert spare is not None
    assert 0 <= spare * PAGE <= size
    assert spare_pages(3600) == spare, "an earlier look will do"


def test_names_of_backings() -> None:
    assert [choice("backing", name, {}, BACKINGS) for name in ("auto", "shm", "memfd")] == ["auto", "shm", "memfd"]
    with pytest.raises(ValueError, match="backing 'hugetlb'"):
        choice("backing", "hugetlb", {}, BACKINGS)
