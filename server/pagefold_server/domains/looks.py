"""Looks: what clients are asked for when a pass is to say for certain that nothing is left to merge.

A client that is asked looks which pages were written since, and reports them. Looks have numbers; a client says by the
number which one it has made. A client that does not answer is not waited for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from pagefold_server.domains.participant import Participant

_PATIENCE: Final = 1.0  # seconds without any pass, while clients are waited for to look


class Looks:
    """See the head of this file.

    Args:
        participants: the clients of the domain; the caller's.

    Attributes:
        asked: number of the last look that clients were asked for.
        complete: number of the last one that all had made when the pass under way began.
    """

    def __init__(self, participants: Mapping[int, Participant]) -> None:
        self._participants = participants
        self.asked = 0
        self.complete = 0
        self._waiting_since: float | None = None  # with no pass begun since

    def ask_all(self) -> None:
        """Has all clients look: what a pass is to say for certain must be known before it begins."""
        self.asked += 1
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now
        for participant in self._participants.values():
            participant.ask(self.asked, now)

    def ask_one(self, participant: Participant) -> int:
        """Has one client look; the number by which it says that it has. For audits."""
        self.asked += 1
        participant.ask(self.asked, time.monotonic())
        return self.asked

    def are_made(self, now: float) -> bool:
        """Whether all clients that answer have made the last look."""
        return not any(each.looking and each.answers(now) for each in self._participants.values())

    def patience_ends(self, now: float) -> float:
        """When a pass begins in any case: else looks that are asked for one after the other would hold up all scanning.

        Such a pass goes by what is known, and is no answer to a settle().
        """
        return (self._waiting_since or now) + _PATIENCE

    def begin_pass(self, now: float) -> None:
        """A pass begins."""
        self._waiting_since = None
        if self.are_made(now):
            self.complete = self.asked
