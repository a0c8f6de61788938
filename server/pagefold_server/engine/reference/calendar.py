"""Pages that rest: they leave the scan for a number of passes, and stand here under the pass that brings them back."""

from __future__ import annotations

from typing import NamedTuple

from pagefold_server.engine.reference.page_table import PageTable


class Rest(NamedTuple):
    """Neighbouring pages, and the state in which they began to rest."""

    table: PageTable
    first: int
    pages: int
    state: int


class Calendar:
    """See the head of this file."""

    def __init__(self) -> None:
        self._passes = 0
        self._due: dict[int, list[Rest]] = {}

    def add(self, table: PageTable, first: int, count: int, state: int, passes: int) -> None:
        """Enters pages that are to come back after a number of passes."""
        due = self._due.setdefault(self._passes + passes, [])
        if due and due[-1].table is table and due[-1].first + due[-1].pages == first and due[-1].state == state:
            count += due[-1].pages
            first = due.pop().first
        due.append(Rest(table, first, count, state))

    def end_pass(self) -> list[Rest]:
        """Counts a pass, and takes out what has rested until now."""
        self._passes += 1
        return self._due.pop(self._passes, [])
