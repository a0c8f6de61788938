"""One event that a client reports, and what it may only say of pages in certain states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pagefold_server.engine.reference.client import Client
from pagefold_server.engine.reference.page_table import PageTable
from pagefold_server.engine.states import PROPOSED, ZERO_FRAME
from pagefold_server.errors import ProtocolViolation

# Numbers of EventKind, DeclineReason, Released.detail and Written.detail in memory.proto.
CHANGED: Final = 1
BUDGET: Final = 2
REASON_PINNED: Final = 3
REASON_FAILED: Final = 5
REASON_FORKED: Final = 6
DISCARDED: Final = 1
MAY_HAVE_BEEN: Final = 1
GIVEN_BACK: Final = 2
ZERO_POOL: Final = 0


@dataclass(frozen=True, slots=True)
class Event:
    """One event, of pages that exist."""

    book: Client
    table: PageTable
    first: int
    count: int
    pool: int
    frame: int
    detail: int

    @property
    def end(self) -> int:
        """The page after the last."""
        return self.first + self.count

    def expect_states(self, states: bytes) -> None:
        """Raises `ProtocolViolation` unless all pages are in one of these states."""
        if not self.table.only(self.first, self.count, states):
            where = f"pages {self.first}+{self.count} of segment {self.table.segment}"
            raise ProtocolViolation(f"{where} are in no state in which that can happen")

    def expect_proposal(self, pool: int) -> None:
        """Raises `ProtocolViolation` unless exactly this was proposed, and taken, with frames of that pool."""
        self.expect_states(bytes((PROPOSED,)))
        held = self.table.frames[self.first : self.end]
        if self.pool == ZERO_POOL:
            right = held.count(ZERO_FRAME) == self.count
        else:
            right = self.pool == pool and all(held[n] == self.frame + n for n in range(self.count))
        if not right:
            raise ProtocolViolation(f"pages {self.first}+{self.count} were proposed for other frames")
