"""A bound for what a server costs a client that gains nothing by it: a small share of one core.

A server can keep the session's thread busy without end: it always has more to say, asks for looks, proposes what
cannot be merged, loses its sessions, or rings without pause. So the processor time of turns is a debt. What a turn
brought pays for it, and so does time. Beyond a grace, the thread rests until the debt is paid.
"""

from __future__ import annotations

import math
from typing import Final

from pagefold._process import threads

SHARE: Final = 0.03
"""Part of a core. gRPC's own threads take half as much again."""
GRACE_SECONDS: Final = 0.2
"""Processor time of about 500 turns. An honest server has fewer fruitless turns in a row."""
MOST_SECONDS: Final = 2.0
"""The longest rest. A server waits longer than that for an answer."""

EVENT_SECONDS: Final = 1e-6
"""Processor time that it takes to find an event and say it, with some room."""


class Earned:
    """What turns brought the program.

    Attributes:
        seconds: processor time that they were worth; infinite: real work was done.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def count_events(self, count: int) -> None:
        """Counts events that the server learned of."""
        self.seconds += EVENT_SECONDS * count

    def real_work(self) -> None:
        """Notes that something was merged, announced, or settled."""
        self.seconds = math.inf


class Patience:
    """The debt of one session's turns."""

    def __init__(self) -> None:
        self._debt = 0.0  # seconds of processor time
        self._at = threads.monotonic()

    def rest(self, spent: float, earned: float) -> float:
        """Seconds to rest after a turn.

        Args:
            spent: seconds of processor time that the turn took.
            earned: seconds of processor time that it was worth; infinite: real work, which clears the debt.
        """
        now = threads.monotonic()
        paid, self._at = SHARE * (now - self._at), now
        debt = max(0.0, self._debt - paid) + spent - earned
        self._debt = min(max(0.0, debt), GRACE_SECONDS + SHARE * MOST_SECONDS)
        return max(0.0, self._debt - GRACE_SECONDS) / SHARE
