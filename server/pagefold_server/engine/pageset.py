"""A set of pages, as runs by place: which parts of a run are in it, and which are not.

A place tells one range of pages from another, say (client, segment). Adding is cheap; runs are put in order when they
are asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Iterator
from typing import Final

_MANY: Final = 4096

Run = tuple[int, int]
"""First page, and how many."""


class PageSet:
    """See the head of this file.

    Args:
        runs: (place, first page, count) to begin with.
    """

    def __init__(self, runs: Iterable[tuple[Hashable, int, int]] = ()) -> None:
        self._runs: dict[Hashable, list[Run]] = {}  # (first, end), in any order
        self._joined: dict[Hashable, list[Run]] = {}  # the same, in order and apart; made when it is needed
        self._most: dict[Hashable, int] = {}  # at this number of runs they are joined
        for place, first, count in runs:
            self.add(place, first, count)

    def add(self, place: Hashable, first: int, count: int) -> None:
        """Adds a run."""
        runs = self._runs.setdefault(place, [])
        if runs and runs[-1][1] == first:
            runs[-1] = (runs[-1][0], first + count)
        else:
            runs.append((first, first + count))
        self._joined.pop(place, None)
        if len(runs) >= self._most.get(place, _MANY):  # the same pages again and again: memory is bounded by pages
            self._runs[place] = _join(runs)
            self._most[place] = 2 * len(self._runs[place]) + _MANY

    def inside(self, place: Hashable, first: int, count: int) -> Iterator[Run]:
        """The parts of a run that are in the set."""
        for start, end in self._over(place, first, first + count):
            yield start, end - start

    def outside(self, place: Hashable, first: int, count: int) -> Iterator[Run]:
        """The parts of a run that are not."""
        at, last = first, first + count
        for start, end in self._over(place, first, last):
            if start > at:
                yield at, start - at
            at = end
        if at < last:
            yield at, last - at

    def _over(self, place: Hashable, first: int, last: int) -> Iterator[Run]:
        """What the set has of a range, (first, end)."""
        runs = self._joined.get(place)
        if runs is None:
            runs = self._joined[place] = _join(self._runs.get(place, []))
        for n in range(max(bisect_right(runs, (first, last)) - 1, 0), len(runs)):
            start, end = max(runs[n][0], first), min(runs[n][1], last)
            if runs[n][0] >= last:
                return
            if start < end:
                yield start, end


def _join(runs: list[Run]) -> list[Run]:
    joined: list[Run] = []
    for first, end in sorted(runs):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((first, end))
    return joined
