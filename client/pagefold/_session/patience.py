"""What a server may cost a client that gains nothing by it: a small share of one core.

A server that always has more to say, asks for looks, proposes what cannot be merged, loses its sessions or rings
without pause would have the session's thread go round for ever. So the processor time of turns is a debt, which time
pays off. What a turn brought pays for it; beyond a grace, the thread rests until it has paid the rest.
"""

from __future__ import annotations

import math
from typing import Final

from pagefold._process import threads

SHARE: Final = 0.03
"""Of a core. gRPC's own threads take half as much again."""
GRACE_SECONDS: Final = 0.2
"""Processor time: some 500 turns. An honest server's fruitless turns come in smaller numbers."""
MOST_SECONDS: Final = 2.0
"""The longest rest. A server waits longer than that for an answer."""

EVENT_SECONDS: Final = 1e-6
"""Processor time that it takes to find an event and say it, with some room."""


class Earned:
    """What turns brought the program.

    Attributes:
        seconds: of processor time that they may take for it; infinite: real work was done.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def count_events(self, count: int) -> None:
        """The server learned of that many events."""
        self.seconds += EVENT_SECONDS * count

    def real_work(self) -> None:
        """Something was merged, announced, or settled."""
        self.seconds = math.inf


class Patience:
    """See the head of this file."""

    def __init__(self) -> None:
        self._debt = 0.0  # seconds of processor time
        self._at = threads.monotonic()

    def rest(self, spent: float, earned: float) -> float:
        """How many seconds to rest after a turn.

        Args:
            spent: seconds of processor time that it took.
            earned: seconds that it may take for what it brought; infinite: real work, which forgives all debts.
        """
        now = threads.monotonic()
        paid, self._at = SHARE * (now - self._at), now
        debt = max(0.0, self._debt - paid) + spent - earned
        self._debt = min(max(0.0, debt), GRACE_SECONDS + SHARE * MOST_SECONDS)
        return max(0.0, self._debt - GRACE_SECONDS) / SHARE
