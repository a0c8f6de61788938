"""When a domain is scanned next: at once, after a pause, or after a rest that grows while passes find nothing new.

    pass begins --slices--> pass ends --pause, at least--> next pass
                                 `----rest: 1, 2, 4, ... s, until something stirs the domain

Times are of the monotonic clock, durations are seconds.
"""

from __future__ import annotations

from typing import Final

_FIRST_REST: Final = 1.0


class Schedule:
    """See the head of this file.

    Attributes:
        due: when to go on scanning.
        served: when the domain was scanned last.
        began: when the pass under way began.
        between_passes: the next slice begins a pass.
    """

    def __init__(self) -> None:
        self.due = 0.0
        self.served = 0.0
        self.began = 0.0
        self.between_passes = True
        self._rest = 0.0
        self._paused_until = 0.0

    def begin_pass(self, now: float) -> None:
        """The slice that follows is the first of a pass."""
        self.began = now
        self.between_passes = False

    def drop_pass(self) -> None:
        """What the pass under way has found is not needed any more: the next slice begins another one."""
        self.between_passes = True

    def rest_longer(self, most: float) -> None:
        """A pass found nothing new: the rest after it is twice as long as the last one."""
        self._rest = min(self._rest * 2, most) or _FIRST_REST

    def end_rest(self) -> None:
        """A pass found something: there is nothing but the pause after it."""
        self._rest = 0.0

    def end_pass(self, pause: float) -> None:
        """A pass is over, and the next one begins after a pause at the earliest."""
        self._paused_until = self.served + pause
        self.due = self.served + max(pause, self._rest)

    def stir(self) -> None:
        """There may be something new to find: no more rest, but the pause is kept."""
        self._rest = 0.0
        self.due = min(self.due, self._paused_until)

    def wake(self) -> None:
        """Something has changed: the next slice is due now."""
        self._rest = 0.0
        self.due = 0.0
