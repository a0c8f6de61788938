"""The arena against a model: a dict of who has which pages."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from pagefold._arena import PAGE, Arena, Segment
from pagefold._backing import Room
from pagefold._fork import Kin
from support.fakes import FakeBlock, FakeSpace


class ArenaModel(RuleBasedStateMachine):
    """Allocations, frees and forks in any order: no page is two blocks', and every block starts as zeros."""

    blocks: Bundle[FakeBlock] = Bundle("blocks")

    def __init__(self) -> None:
        super().__init__()
        self.space = FakeSpace()
        self.kin = Kin(self.space)
        self.names: dict[int, Segment] = {}
        self.room: Room | None = None
        self.arena = Arena(
            self.kin,
            self.space,
            self,
            FakeBlock,
            room=lambda place: self.room if place == "shm" else None,
            first=8 * PAGE,
            last=32 * PAGE,
            backing="auto",
        )
        self.owner: dict[tuple[int, int], FakeBlock] = {}

    def added(self, segment: Segment) -> None:
        self.names[segment.number] = segment

    def dropped(self, segment: Segment) -> None:
        assert not any(owner == segment.number for owner, _ in self.owner)
        del self.names[segment.number]
        segment.discard()

    @rule(target=blocks, nbytes=st.integers(1, 50 * PAGE))
    def allocate(self, nbytes: int) -> FakeBlock:
        block: FakeBlock = self.arena.allocate(nbytes)
        assert block.is_zero(), "memory reads as zeros"
        for page in range(block.first, block.first + block.pages):
            assert page < self.space.views[block.segment]
            assert self.owner.setdefault((block.segment, page), block) is block, "a page has one owner"
        block.fill()
        return block

    @rule(block=consumes(blocks))
    def free(self, block: FakeBlock) -> None:
        for page in range(block.first, block.first + block.pages):
            del self.owner[block.segment, page]
        block.free()

    @rule()
    def sweep(self) -> None:
        self.arena.sweep(retry=True)

    @rule()
    def fork(self) -> None:
        self.space.shared = set(self.space.views)

    @rule(small=st.booleans())
    def room_changes(self, small: bool) -> None:
        """From here on memory comes from a memfd, or from /dev/shm again."""
        self.room = Room(1 << 40, 1 << 40, small)

    @rule()
    def children_end(self) -> None:
        self.space.shared.clear()

    @invariant()
    def books_are_right(self) -> None:
        self.arena._check()
        assert self.arena.pages_in_use >= len(self.owner)
        assert set(self.names) == set(self.space.views)
        free: Any = {(s, p) for s, first, pages in self.arena._free() for p in range(first, first + pages)}
        assert not free & self.space.dirty, "free pages are clean"
        assert not free & set(self.owner)
        assert self.arena.memfd_pages >= sum(self.names[s].place == "memfd" for s, _ in self.owner)

    def teardown(self) -> None:
        self.space.shared.clear()
        for block in set(self.owner.values()):
            self.free(block)
        self.arena.sweep(retry=True)
        assert self.arena.pages_in_use == 0
        assert self.arena.close() == []
        assert self.names == {}
        assert self.space.views == {}


TestArenaModel = ArenaModel.TestCase
TestArenaModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
