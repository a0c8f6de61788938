"""What a client is to be told: pages to merge and pages to adopt, joined into runs.

A run of a thousand pages is one instruction and one mapping. Pages come in the order of the scan, and two
runs may grow in turns (a page and its equal elsewhere), so merges look for the run that a page goes on from,
not just at the last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from pagefold_server.engine.reference.page_table import PageTable


@dataclass(slots=True)
class Run:
    """Neighbouring pages; `frame` is that of the first page, and the others' follow (those of zero pages do not)."""

    table: PageTable
    first: int
    count: int
    frame: int

    def frame_of(self, page: int) -> int:
        """The frame that belongs to a page, which may be the one after the run."""
        return self.frame if self.frame < 0 else self.frame + page - self.first

    def split(self, pages: int) -> Run:
        """Cuts off the first pages."""
        head = Run(self.table, self.first, pages, self.frame)
        self.frame = self.frame_of(self.first + pages)
        self.first += pages
        self.count -= pages
        return head


class MergeQueue:
    """Proposals not yet taken."""

    def __init__(self) -> None:
        self._runs: deque[Run] = deque()
        self._open: dict[tuple[int, int, int], Run] = {}  # page and frame with which a run would go on

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    def add(self, table: PageTable, page: int, frame: int) -> None:
        """Adds one page."""
        run = self._open.pop((table.base, page, frame), None)
        if run is None:
            run = Run(table, page, 0, frame)
            self._runs.append(run)
        run.count += 1
        self._open[self._key(run)] = run

    def take(self, pages: int) -> list[Run]:
        """Takes the oldest runs out, up to a number of pages."""
        taken = []
        while pages > 0 and self._runs:
            run = self._runs[0]
            if run.count > pages:
                taken.append(run.split(pages))
                break
            pages -= run.count
            del self._open[self._key(run)]
            taken.append(self._runs.popleft())
        return taken

    def remove(self, table: PageTable | None) -> list[Run]:
        """Takes out what is queued for one segment, or, with None, everything."""
        removed = [run for run in self._runs if table is None or run.table is table]
        self._runs = deque(run for run in self._runs if table is not None and run.table is not table)
        for run in removed:
            del self._open[self._key(run)]
        return removed

    @staticmethod
    def _key(run: Run) -> tuple[int, int, int]:
        end = run.first + run.count
        return (run.table.base, end, run.frame_of(end))


class AdoptQueue:
    """Pages to adopt. Those released in the meantime are still in here: the flags in the page table say which count."""

    def __init__(self) -> None:
        self._runs: deque[Run] = deque()

    def add(self, table: PageTable, first: int, count: int) -> None:
        """Adds a run, and joins it to the last if it goes on from that."""
        last = self._runs[-1] if self._runs else None
        if last is not None and last.table is table and last.first + last.count == first:
            last.count += count
        else:
            self._runs.append(Run(table, first, count, -1))

    def take(self, pages: int) -> list[Run]:
        """Takes the oldest runs out, up to a number of pages."""
        taken = []
        while pages > 0 and self._runs:
            if self._runs[0].count > pages:
                taken.append(self._runs[0].split(pages))
                break
            taken.append(self._runs.popleft())
            pages -= taken[-1].count
        return taken

    def clear(self) -> None:
        """Forgets everything."""
        self._runs.clear()
