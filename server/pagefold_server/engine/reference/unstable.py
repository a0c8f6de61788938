"""The unstable tree: pages that were settled when they were read, and like no other, by the digest that they had then.

Their programs may write to them at any time, so what the tree finds is a hint. Pages of clients that report their
writes ("tracked") stay in it until they are reported; of all others it forgets, at the end of a pass, what it knows.

Kept true: an entry is a page of a table that is there, in state OWNED, flagged LISTED, under the digest in its table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sortedcontainers import SortedDict

from pagefold_server.engine.reference.page_table import LISTED, PENDING, PageTable
from pagefold_server.engine.runs import any_of, runs
from pagefold_server.engine.states import OWNED

# tracemalloc over 200 k entries: digest, place, slots in the dict and in the sorted list.
_ENTRY_BYTES: Final = 135
_PAGE_BITS: Final = 32  # a place is a table's base plus a page
_LISTED_PAGES: Final = any_of(bytes(value for value in range(256) if value & LISTED))


class Unstable:
    """See the head of this file.

    Args:
        tables: all that there are, by number; the caller's.
    """

    def __init__(self, tables: Mapping[int, PageTable]) -> None:
        self._tables = tables
        self._places = SortedDict()  # digest -> place

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, digest: int) -> bool:
        return digest in self._places

    def find(self, digest: int) -> tuple[PageTable, int] | None:
        """The page that is listed under a digest."""
        place = self._places.get(digest)
        if place is None:
            return None
        return self._tables[place >> _PAGE_BITS], place & ((1 << _PAGE_BITS) - 1)

    def enter(self, table: PageTable, page: int) -> None:
        """Lists a page under its digest; another one there makes way."""
        digest = table.digests[page]
        found = self.find(digest)
        if found is not None:
            found[0].clear_flag(found[1], 1, LISTED)
        self._places[digest] = table.base + page
        table.set_flag(page, 1, LISTED)

    def remove(self, table: PageTable, first: int, count: int) -> None:
        """Forgets those pages of a run that are listed."""
        for start, number in runs(_LISTED_PAGES, table.flags, first, first + count):
            for page in range(start, start + number):
                del self._places[table.digests[page]]
            table.clear_flag(start, number, LISTED)

    def read_again(self, table: PageTable, first: int, count: int) -> None:
        """Forgets those pages of a run that are listed, and has the next pass read them: they may have an equal now."""
        for start, number in runs(_LISTED_PAGES, table.flags, first, first + count):
            self.remove(table, start, number)
            table.set_flag(start, number, PENDING)

    def read_tracked_again(self) -> None:
        """As `read_again`, for all that would stay listed."""
        for table in self._tables.values():
            if table.tracked:
                self.read_again(table, 0, table.pages)

    def forget_untracked(self) -> None:
        """A pass is over: pages whose writes are not reported may have changed, and leave the tree."""
        for table in self._tables.values():
            if not table.tracked:
                self.remove(table, 0, table.pages)

    def tracked(self) -> int:
        """Entries that the end of a pass leaves."""
        return sum(table.count_flag(LISTED) for table in self._tables.values() if table.tracked)

    def bookkeeping_bytes(self) -> int:
        """By the measured size of an entry."""
        return _ENTRY_BYTES * len(self._places)

    def check(self) -> None:
        """Compares the tree with the tables."""
        self._places._check()
        for digest, place in self._places.items():
            table, page = self._tables[place >> _PAGE_BITS], place & ((1 << _PAGE_BITS) - 1)
            assert table.digests[page] == digest, "a page is listed under another digest"
            assert table.flags[page] & LISTED, "an entry without its flag"
            assert table.states[page] == OWNED, "a page is listed that cannot be merged"
        assert len(self) == sum(table.count_flag(LISTED) for table in self._tables.values()), "flags without entries"
