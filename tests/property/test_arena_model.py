"""The arena on real memory against a model: a dict of who has which pages, with children that come and go."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from pagefold import Buffer
from pagefold_core import PAGE_SIZE as PAGE
from pagefold_core import Arena, Segment, Space
from support import faults
from support.children import Child
from support.faults import Room, pretend_room

pytestmark = pytest.mark.skipif(not faults.AVAILABLE, reason="the extension was built without faults: make setup")


class ArenaModel(RuleBasedStateMachine):
    """Allocations, frees and forks in any order: no page is two buffers', and every buffer starts as zeros."""

    buffers: Bundle[Buffer] = Bundle("buffers")

    def __init__(self) -> None:
        super().__init__()
        lease = os.memfd_create("lease")
        self.space = Space("off", lease, 1000)
        os.close(lease)
        self.arena = Arena(self.space, "auto", 8, 32)
        self.arena.set_reachable(False)
        self.segments: dict[int, Segment] = {}
        self.owner: dict[tuple[int, int], int] = {}
        self.content: dict[int, bytes] = {}
        self.live: dict[int, Buffer] = {}
        self.children: list[Child] = []
        self.made = 0

    def hear(self) -> None:
        self.segments |= {segment.number: segment for segment in self.arena.added()}
        self.arena.announced()
        for segment in self.arena.dropped():
            assert not any(owner == segment.number for owner, _ in self.owner)
            del self.segments[segment.number]
            segment.discard()

    @rule(target=buffers, nbytes=st.integers(1, 50 * PAGE))
    def allocate(self, nbytes: int) -> Buffer:
        buffer = Buffer(self.arena, nbytes)
        self.hear()
        assert not any(memoryview(buffer)), "memory reads as zeros"
        self.made += 1
        for page in range(buffer.first, buffer.first + buffer.pages):
            assert page < self.segments[buffer.segment].pages
            assert self.owner.setdefault((buffer.segment, page), self.made) == self.made, "a page has one owner"
        self.content[buffer.address] = bytes([self.made % 255 + 1]) * nbytes
        buffer[:] = self.content[buffer.address]
        self.live[buffer.address] = buffer
        return buffer

    @rule(buffer=consumes(buffers))
    def free(self, buffer: Buffer) -> None:
        for page in range(buffer.first, buffer.first + buffer.pages):
            del self.owner[buffer.segment, page]
        assert buffer[:] == self.content.pop(buffer.address)
        del self.live[buffer.address]
        buffer.close()

    @rule()
    def sweep(self) -> None:
        self.arena.sweep(True)
        self.hear()

    @rule()
    def fork(self) -> None:
        if len(self.children) == 2:
            return
        content = dict(self.content)
        self.children.append(Child(lambda: self.look(content)))

    def look(self, content: dict[int, bytes]) -> None:
        """In a child: everything is as it was when that was forked."""
        for address, buffer in self.live.items():
            assert buffer[:] == content[address]

    @rule()
    def children_end(self) -> None:
        while self.children:
            self.children.pop().go()
        assert self.space.thaw()

    @rule(small=st.booleans())
    def room_changes(self, small: bool) -> None:
        """From here on memory comes from a memfd, or from /dev/shm again."""
        pretend_room("shm", Room(1 << 40, 1 << 40, small))

    @invariant()
    def books_are_right(self) -> None:
        self.arena.check()
        assert self.arena.pages_in_use >= len(self.owner)
        assert self.arena.memfd_pages >= sum(self.segments[s].place == "memfd" for s, _ in self.owner)

    def teardown(self) -> None:
        self.children_end()
        for buffer in list(self.live.values()):
            self.free(buffer)
        self.sweep()
        assert self.arena.pages_in_use == 0
        assert self.arena.close() == []
        self.hear()
        assert self.segments == {}
        self.space.close()
        pretend_room("shm", None)


TestArenaModel = ArenaModel.TestCase
TestArenaModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
