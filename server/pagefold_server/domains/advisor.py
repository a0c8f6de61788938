"""How much of the processor a pass may take: enough to be done in time, and no more.

In the manner of KSM's scan-time advisor: it learns what a page costs (70 % of what it believed, 30 % of what it has
just seen), and from that and the pages of a pass it computes which percentage of a core makes the pass last
`target_merge_seconds`. KSM's aims at 200 s, because its scans read everything each time; a pass here reads what was
written.
"""

from __future__ import annotations

from typing import Final

_OLD: Final = 0.7
_LEAST_PERCENT: Final = 1.0
_FIRST_GUESS: Final = 2e-6  # seconds a page, until the first slice


class Advisor:
    """See the head of this file."""

    def __init__(self) -> None:
        self._cost = _FIRST_GUESS

    def learn(self, pages: int, cpu: float) -> None:
        """Takes note of a slice.

        Args:
            pages: read in it.
            cpu: seconds of processor time that it took.
        """
        if pages:
            self._cost = _OLD * self._cost + (1 - _OLD) * cpu / pages

    def percent(self, pages: int, seconds: float, ceiling: float) -> float:
        """The percentage of a core that reads `pages` pages in `seconds`.

        Args:
            pages: in the pass.
            seconds: in which it is to be done.
            ceiling: most percent of a core.
        """
        return min(ceiling, max(_LEAST_PERCENT, 100 * self._cost * pages / seconds))
