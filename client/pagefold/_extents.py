"""Which pages of the segments are free: best fit, coalescing, O(log n). Pure books; knows no memory and no lock.

    by place, per segment     {first: pages}              to coalesce with neighbours
    by size, over all         [(pages, segment, first)]   to find the best fit; older segments first, lower pages first

What holds: free extents lie inside of their segment, do not overlap and do not touch; both views list the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from sortedcontainers import SortedDict, SortedList


class Extents:
    """Free extents of any number of segments. Pages and segments are numbers; see the head of this file."""

    def __init__(self) -> None:
        self._by_size = SortedList()
        self._by_place: dict[int, SortedDict] = {}
        self._pages: dict[int, int] = {}
        self.free_pages = 0

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Free extents (segment, first, pages), in order of place."""
        for segment in sorted(self._by_place):
            for first, pages in self._by_place[segment].items():
                yield segment, first, pages

    def add_segment(self, segment: int, pages: int) -> None:
        """Makes a segment known, all of it free."""
        self._by_place[segment] = SortedDict()
        self._pages[segment] = pages
        self._insert(segment, 0, pages)

    def remove_segment(self, segment: int) -> None:
        """Forgets a segment, which is wholly free."""
        if not self.is_whole(segment):
            raise ValueError(f"segment {segment} is in use")
        self._remove(segment, 0, self._pages[segment])
        del self._by_place[segment], self._pages[segment]

    def is_whole(self, segment: int) -> bool:
        """Whether all of a segment is free."""
        return bool(self._by_place[segment].get(0) == self._pages[segment])

    def take(self, pages: int) -> tuple[int, int] | None:
        """Takes an extent out of the smallest free one that is large enough: (segment, first). None: there is none."""
        at = self._by_size.bisect_left((pages,))
        if at == len(self._by_size):
            return None
        size, segment, first = self._by_size[at]
        self._remove(segment, first, size)
        if size > pages:
            self._insert(segment, first + pages, size - pages)
        return segment, first

    def give(self, segment: int, first: int, pages: int) -> None:
        """Gives an extent back.

        Raises:
            ValueError: part of it is free already, or outside of its segment.
        """
        places = self._by_place[segment]
        after = places.bisect_left(first)
        following = places.peekitem(after) if after < len(places) else None
        preceding = places.peekitem(after - 1) if after > 0 else None
        if (
            pages <= 0
            or first < 0
            or first + pages > self._pages[segment]
            or (following is not None and first + pages > following[0])
            or (preceding is not None and preceding[0] + preceding[1] > first)
        ):
            raise ValueError(f"pages {first} to {first + pages} of segment {segment} are not in use")
        if following is not None and first + pages == following[0]:
            self._remove(segment, *following)
            pages += following[1]
        if preceding is not None and preceding[0] + preceding[1] == first:
            self._remove(segment, *preceding)
            first, pages = preceding[0], preceding[1] + pages
        self._insert(segment, first, pages)

    def _insert(self, segment: int, first: int, pages: int) -> None:
        self._by_place[segment][first] = pages
        self._by_size.add((pages, segment, first))
        self.free_pages += pages

    def _remove(self, segment: int, first: int, pages: int) -> None:
        del self._by_place[segment][first]
        self._by_size.remove((pages, segment, first))
        self.free_pages -= pages

    def _check(self) -> None:
        listed = []
        for segment, places in self._by_place.items():
            end = -1
            for first, pages in places.items():
                assert pages > 0, "empty extent"
                assert first > end, "extents overlap, or were not coalesced"
                end = first + pages
                listed.append((pages, segment, first))
            assert end <= self._pages[segment], "extent beyond its segment"
        assert sorted(listed) == list(self._by_size), "the two views differ"
        assert self.free_pages == sum(pages for pages, _, _ in listed)
