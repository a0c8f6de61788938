"""Where memory comes from, with real objects: what they allow, and what the kernel says of room."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from pagefold import _backing, _names
from pagefold._backing import Place, Room
from support import kernel

PAGE = mmap.PAGESIZE


@pytest.mark.parametrize("place", ["shm", "memfd"])
def test_an_object_is_its_owners_alone_and_takes_nothing(place: Place, no_names: None) -> None:
    made = _backing.create(place, 10 * PAGE)
    found = os.fstat(made.fd)
    assert (found.st_size, found.st_blocks, found.st_uid) == (10 * PAGE, 0, os.geteuid())
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert _names.is_name("s", made.name)
    assert fcntl.fcntl(made.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    assert (made.name[1:] in kernel.names()) == (place == "shm")
    _names.remove(made.name)
    os.close(made.fd)


def test_a_memfds_size_is_fixed_and_its_pages_can_be_given_back() -> None:
    made = _backing.create("memfd", 4 * PAGE)
    for size in (0, 3 * PAGE, 5 * PAGE):
        with pytest.raises(PermissionError):
            os.ftruncate(made.fd, size)
    with pytest.raises(PermissionError):  # somebody else who opens it could stop us from punching holes with that
        fcntl.fcntl(made.fd, fcntl.F_ADD_SEALS, 0x10)
    os.pwrite(made.fd, b"x" * 4 * PAGE, 0)
    from pagefold_server._fallocate import punch_hole

    punch_hole(made.fd, PAGE, 2 * PAGE)
    assert os.fstat(made.fd).st_blocks * 512 == 2 * PAGE
    assert os.pread(made.fd, 4 * PAGE, 0) == b"x" * PAGE + bytes(2 * PAGE) + b"x" * PAGE
    os.close(made.fd)


def test_a_reservation_reads_as_a_hole_of_zeros(no_names: None) -> None:
    made = _backing.create("shm", 8 * PAGE)
    _backing.reserve(made.fd, 2 * PAGE, 5 * PAGE)
    assert os.fstat(made.fd).st_blocks * 512 == 5 * PAGE
    with pytest.raises(OSError, match="No such device or address"):  # ENXIO: a scan finds nothing to read
        os.lseek(made.fd, 0, os.SEEK_DATA)
    assert os.pread(made.fd, 8 * PAGE, 0) == bytes(8 * PAGE)
    _names.remove(made.name)
    os.close(made.fd)


def test_older_kernels_make_a_memfd_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.memfd_create

    def old(name: str, flags: int) -> int:
        if flags & 0x8:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(os, "memfd_create", old)
    made = _backing.create("memfd", PAGE)
    with pytest.raises(PermissionError):
        os.ftruncate(made.fd, 0)
    os.close(made.fd)


def test_room_is_what_the_kernel_says() -> None:
    for place in ("shm", "memfd"):
        room = _backing.room(place)
        assert room is None or 0 <= room.free <= room.size


@pytest.mark.parametrize(
    ("version", "line", "mount", "limit", "usage", "prefix"),
    [
        (2, "0::/outer/inner", "", "memory.max", "memory.current", ""),
        (1, "4:memory:/outer/inner", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ],
)
def test_the_tightest_control_group_bounds_memory(
    version: int, line: str, mount: str, limit: str, usage: str, prefix: str, tmp_path: Path, monkeypatch: Any
) -> None:
    outer, inner = tmp_path / mount / "outer", tmp_path / mount / "outer" / "inner"
    inner.mkdir(parents=True)
    unbounded = "max" if version == 2 else str(1 << 62)
    stat_text = f"anon 1\nfile 300000\n{prefix}inactive_file 100000\n{prefix}active_file 50000\n"
    for path, most, used, held in ((outer, "1000000", "400000", stat_text), (inner, unbounded, "300000", "")):
        (path / limit).write_text(most + "\n")
        (path / usage).write_text(used + "\n")
        (path / "memory.stat").write_text(held)
    real = _backing._read
    monkeypatch.setattr(_backing, "_CGROUPS", str(tmp_path))
    monkeypatch.setattr(_backing, "_read", lambda path: line + "\n" if path == "/proc/self/cgroup" else real(path))
    assert _backing.memory_room() == Room(1000000, 750000)
    (inner / limit).write_text("310000\n")
    assert _backing.memory_room() == Room(310000, 10000)


def test_strict_overcommit_bounds_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "/proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 900 kB\nSwapTotal: 100 kB\nSwapFree: 50 kB\n"
        "CommitLimit: 800 kB\nCommitted_AS: 700 kB\nHugePages_Total: 3\n",
        "/proc/sys/vm/overcommit_memory": "0\n",
    }
    monkeypatch.setattr(_backing, "_read", lambda path: told.get(path, ""))
    assert _backing.memory_room() == Room(1100 << 10, 950 << 10)
    told["/proc/sys/vm/overcommit_memory"] = "2\n"
    assert _backing.memory_room() == Room(800 << 10, 100 << 10)


def test_some_memory_is_left_when_pages_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for room, pages in (
        (Room(1600 << 20, 500 << 20), (400 << 20) // PAGE),
        (Room(1600 << 20, 50 << 20), 0),
        (Room(1 << 40, 1 << 30), (768 << 20) // PAGE),
        (None, None),
    ):
        monkeypatch.setattr(_backing, "memory_room", lambda age, room=room: room)
        assert _backing.spare_pages() == pages


def test_a_look_at_memory_holds_for_as_long_as_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [Room(4, 1), Room(4, 2), Room(4, 3)]
    monkeypatch.setattr(_backing, "_memory_room", lambda: looks.pop(0))
    monkeypatch.setattr(_backing, "_looked", None)
    assert _backing.memory_room(3600) == Room(4, 1)
    assert _backing.memory_room(3600) == Room(4, 1)
    assert _backing.memory_room() == Room(4, 2)
    assert _backing.memory_room(3600) == Room(4, 2)
    assert _backing.memory_room(0) == Room(4, 3)


def test_names_of_backings() -> None:
    assert [_backing.checked(name) for name in ("auto", "shm", "memfd")] == ["auto", "shm", "memfd"]
    with pytest.raises(ValueError, match="backing 'hugetlb'"):
        _backing.checked("hugetlb")
