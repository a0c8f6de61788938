"""Ceilings on processor time: when to go on after some work, and how much it was over the last seconds."""

from __future__ import annotations

from collections import deque
from typing import Final

_AVERAGING_SECONDS: Final = 5.0


class Throttle:
    """Says when to work again, so that a share of the processor is kept."""

    def __init__(self) -> None:
        self.free_at = 0.0

    def spent(self, cpu: float, percent: float, now: float, least: float) -> None:
        """Charges work.

        Args:
            cpu: seconds of processor time.
            percent: the ceiling, of one core.
            now: when it ended.
            least: seconds to pause in any case.
        """
        self.free_at = now + max(least, cpu * (100 / min(percent, 100) - 1))


class CpuMeter:
    """How much of one core went into scanning, over the last seconds."""

    def __init__(self, now: float) -> None:
        self._start = now
        self._spent: deque[tuple[float, float]] = deque()

    def add(self, cpu: float, now: float) -> None:
        """Charges processor time that has just been spent."""
        self._forget(now)
        self._spent.append((now, cpu))

    def percent(self, now: float) -> float:
        """The share of one core."""
        self._forget(now)
        elapsed = min(max(now - self._start, 0.1), _AVERAGING_SECONDS)
        return 100 * sum(cpu for _, cpu in self._spent) / elapsed

    def _forget(self, now: float) -> None:
        while self._spent and self._spent[0][0] < now - _AVERAGING_SECONDS:
            self._spent.popleft()
