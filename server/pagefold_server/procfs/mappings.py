"""What a process maps, by /proc, and what that means for a view.

    /proc/<pid>/maps      which object, at which offset, shared or private: a line a mapping
    /proc/<pid>/pagemap   for pages of frames, whether the process has made a private copy: 8 bytes a page

Objects are told apart by device and inode, never by name: a name may be gone, or belong to another object. Each line
was true at some moment while the file was read, and two lines need not be of the same one: an audit looks twice.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterator
from enum import IntEnum
from functools import cache
from typing import Final, NamedTuple

from pagefold_proto.limits import PAGE

from pagefold_server.engine.runs import any_of, runs

Key = tuple[int, int]
"""An object's device and inode, as fstat has them."""

_LINE: Final = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) .(.).(.) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)", re.MULTILINE)
_MOST_MAPPINGS: Final = (1 << 31) - 1  # that max_map_count can be
_NO_OBJECT: Final = 0  # the inode of anonymous memory

# The upper byte of a page's 8: present (63), swapped (62), page of a file or of shared memory (61). A frame that the
# process made a copy of is anonymous memory. A page that is not present says nothing.
_PRESENT, _OF_FILE = 0x80, 0x20
_COPIES: Final = any_of(bytes(value for value in range(256) if value & _PRESENT and not value & _OF_FILE))
_KEPT: Final = any_of(bytes(value for value in range(256) if value & _PRESENT and value & _OF_FILE))


class Mapping(NamedTuple):
    """One line of /proc/<pid>/maps. Addresses and offset are bytes."""

    start: int
    end: int
    offset: int
    key: Key
    shared: bool
    writable: bool


class What(IntEnum):
    """What a page of a view maps. Those up to ELSEWHERE have a number that grows with the page."""

    OWN = 0  # its own page of its segment, shared or (after a fork) private; the number is the page's
    FRAME = 1  # a frame, privately; the number is the frame's
    KEPT = 2  # the same, and the process reads the frame
    COPY = 3  # the same, and the process has made a copy of it
    ELSEWHERE = 4  # another page of its segment
    ANONYMOUS = 5  # private memory without a file: the zero page, and copies of it
    STRANGER = 6  # another object; the number is its inode
    NOTHING = 7


FRAMES: Final = (What.FRAME, What.KEPT, What.COPY)


class Seen(NamedTuple):
    """Neighbouring pages of a view that map the same in a row; `number` is the first page's."""

    first: int
    pages: int
    what: What
    number: int


def read(pid: int) -> bytes:
    """/proc/<pid>/maps.

    Raises:
        OSError: the process is gone, or the server may not read it.
    """
    with open(f"/proc/{pid}/maps", "rb", buffering=0) as file:
        return file.readall()


@cache
def most_mappings() -> int:
    """How many mappings the kernel lets a process have (vm.max_map_count), as it was when this was asked first."""
    try:
        with open("/proc/sys/vm/max_map_count") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _MOST_MAPPINGS


def parse(text: bytes) -> Iterator[Mapping]:
    """The mappings, by address."""
    for line in _LINE.finditer(text):
        start, end, write, shared, offset, major, minor, inode = line.groups()
        key = (os.makedev(int(major, 16), int(minor, 16)), int(inode))
        yield Mapping(int(start, 16), int(end, 16), int(offset, 16), key, shared == b"s", write == b"w")


def describe_view(mappings: list[Mapping], base: int, pages: int, segment: Key, pool: Key) -> Iterator[Seen]:
    """What the pages of a view map, in order and without a gap.

    Args:
        mappings: of the process, by address.
        base: the view's address.
        pages: its size.
        segment: the object behind it.
        pool: the object that its domain's frames are in.
    """
    at, end = base, base + pages * PAGE
    for n in range(max(bisect_right(mappings, (base,)) - 1, 0), len(mappings)):
        mapping = mappings[n]
        if mapping.end <= at:
            continue
        if mapping.start >= end:
            break
        if mapping.start > at:
            yield Seen((at - base) // PAGE, (mapping.start - at) // PAGE, What.NOTHING, 0)
            at = mapping.start
        stop = min(mapping.end, end)
        first, count = (at - base) // PAGE, (stop - at) // PAGE
        number = (mapping.offset + at - mapping.start) // PAGE
        if mapping.key == segment:
            yield Seen(first, count, What.OWN if number == first else What.ELSEWHERE, number)
        elif mapping.key == pool and not mapping.shared:
            yield Seen(first, count, What.FRAME, number)
        elif mapping.key[1] == _NO_OBJECT and not mapping.shared:
            yield Seen(first, count, What.ANONYMOUS, 0)
        else:
            yield Seen(first, count, What.STRANGER, mapping.key[1])
        at = stop
    if at < end:
        yield Seen((at - base) // PAGE, (end - at) // PAGE, What.NOTHING, 0)


def copies(pagemap: bytes, seen: Seen) -> Iterator[Seen]:
    """Takes pages of frames apart: copies, pages that are none, and those of which that is not known."""
    flags = bytearray(pagemap[7::8])  # the upper bytes of little-endian numbers
    known = [(first, count, What.COPY) for first, count in runs(_COPIES, flags, 0, len(flags))]
    known += [(first, count, What.KEPT) for first, count in runs(_KEPT, flags, 0, len(flags))]
    at = 0
    for first, count, what in [*sorted(known), (seen.pages, 0, What.FRAME)]:
        if first > at:
            yield Seen(seen.first + at, first - at, What.FRAME, seen.number + at)
        if count:
            yield Seen(seen.first + first, count, what, seen.number + first)
        at = first + count


def read_pagemap(fd: int, address: int, pages: int) -> bytes:
    """The part of /proc/<pid>/pagemap about a range; shorter if the process is gone.

    Args:
        fd: of that file.
        address: of the first page.
        pages: how many.
    """
    parts, at, end = [], address // PAGE * 8, (address // PAGE + pages) * 8
    while at < end:
        part = os.pread(fd, min(end - at, 1 << 20), at)
        if not part:
            break
        parts.append(part)
        at += len(part)
    return b"".join(parts)
