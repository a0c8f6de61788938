"""The books of a segment beside what a view maps: where they differ, and what two surveys have in common.

What a page is to map follows from its state in the books:

    no frame, or queued     its segment
    proposed                its segment, or already the frame
    merged, copied          the frame; merged pages are no copies as far as was reported, copied ones are
    on the zero page        anonymous memory

Pure: it knows no process and no clock. `fsck` finds out whether a difference is one, or an event on its way.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pagefold_proto.v1 import admin_pb2 as pb

from pagefold_server.engine.interface import Held
from pagefold_server.engine.pageset import PageSet
from pagefold_server.engine.states import COPIED, MAPPED, MERGED, NO_FRAME, OWNED, PROPOSED, QUEUED, ZERO, ZERO_FRAME
from pagefold_server.procfs.mappings import FRAMES, Seen, What

Place = tuple[int, int]
"""A client and its segment. (0, 0): no view, and the pages are those of the address space."""

STRAY: Final[Place] = (0, 0)

COPY_KINDS: Final = (pb.FINDING_KIND_UNREPORTED_COPY, pb.FINDING_KIND_LOST_COPY)
"""Differences of pages that map the right frame."""

_STATES: Final = {
    OWNED: "owned",
    QUEUED: "about to be proposed for",
    PROPOSED: "proposed for",
    MERGED: "merged onto",
    ZERO: "merged onto",
    COPIED: "a copy of",
}


class Difference(NamedTuple):
    """Neighbouring pages for which the books and the process disagree.

    Attributes:
        place: client and segment.
        first: page.
        pages: how many.
        state: by the books, as in `states`; OWNED for all that hold no frame.
        frame: of the first page, by the books.
        what: the process maps.
        number: of the first page, of that.
    """

    place: Place
    first: int
    pages: int
    state: int
    frame: int
    what: What
    number: int

    def part(self, first: int, count: int) -> Difference:
        """Some of its pages."""
        shift = first - self.first
        return self._replace(
            first=first,
            pages=count,
            frame=self.frame + shift if self.frame >= 0 else self.frame,
            number=self.number + shift if self.what <= What.ELSEWHERE else self.number,
        )

    @property
    def end(self) -> int:
        """The page after the last."""
        return self.first + self.pages

    @property
    def kind(self) -> pb.FindingKind:
        """Its kind, if it is confirmed."""
        same = self.what in FRAMES and self.frame == self.number
        if self.what in FRAMES and (not same or self.state == QUEUED):  # no client was told of that
            return pb.FINDING_KIND_UNHELD_MAPPING
        if same and self.state == MERGED:
            return pb.FINDING_KIND_UNREPORTED_COPY
        if same:
            return pb.FINDING_KIND_LOST_COPY
        if self.state in MAPPED:
            return pb.FINDING_KIND_UNMAPPED_REFERENCE
        return pb.FINDING_KIND_STRANGE_MAPPING

    @property
    def booked(self) -> str:
        """What the books say of the first page, in words."""
        if self.state == OWNED:
            return "owned, with no frame"
        return f"{_STATES[self.state]} {'the zero page' if self.frame == ZERO_FRAME else f'frame {self.frame}'}"

    @property
    def mapped(self) -> str:
        """What the process maps at the first page, in words."""
        return {
            What.OWN: "its page of the segment",
            What.FRAME: f"frame {self.number}",
            What.KEPT: f"frame {self.number}, unwritten",
            What.COPY: f"a private copy of frame {self.number}",
            What.ELSEWHERE: f"page {self.number} of the segment",
            What.ANONYMOUS: "anonymous memory",
            What.STRANGER: f"an object of another kind (inode {self.number})",
            What.NOTHING: "nothing",
        }[self.what]


def compare(
    place: Place, held: list[Held], seen: list[Seen], whole: bool, inherited: bool = False
) -> Iterator[Difference]:
    """Where a view is not as the books have it.

    Args:
        place: client and segment.
        held: the pages that hold frames, in order.
        seen: what pages map, in order; not necessarily all.
        whole: the process is the client itself, so that every reference has its mapping here. Otherwise (a forked
            child, or a client that reports no more) only mappings of frames are looked at: each needs a reference.
        inherited: of pages without a frame, the same: the client has them from its parent.
    """
    n = max(bisect_right(held, (seen[0].first,)) - 1, 0) if seen else 0
    for run in seen:
        at, end = run.first, run.first + run.pages
        while at < end:
            while n < len(held) and held[n].first + held[n].pages <= at:
                n += 1
            state, frame, stop = OWNED, NO_FRAME, end
            if n < len(held):
                if held[n].first > at:
                    stop = min(end, held[n].first)
                else:
                    state, frame = held[n].state, held[n].frame
                    frame += at - held[n].first if frame >= 0 else 0
                    stop = min(end, held[n].first + held[n].pages)
            number = run.number + (at - run.first if run.what <= What.ELSEWHERE else 0)
            what = run.what
            if what in FRAMES and number != frame:
                what = What.FRAME  # whether it is a copy of a wrong frame is no matter, and may change
            if not _fits(state, frame, what, number, whole and not (inherited and state == OWNED)):
                yield Difference(place, at, stop - at, state, frame, what, number)
            at = stop


def _fits(state: int, frame: int, what: What, number: int, whole: bool) -> bool:
    same = what is What.ANONYMOUS if frame == ZERO_FRAME else what in FRAMES and number == frame
    if not whole:
        return what not in FRAMES or (same and state != QUEUED)
    if state == PROPOSED:
        return same or what is What.OWN
    if state == MERGED:
        return same and what is not What.COPY
    if state == COPIED:
        return same and what is not What.KEPT
    return same if state == ZERO else what is What.OWN


def common(before: list[Difference], after: list[Difference]) -> Iterator[Difference]:
    """What two surveys have found alike: the same pages, with the same on both sides."""
    places: dict[Place, list[Difference]] = {}
    for difference in sorted(before):
        places.setdefault(difference.place, []).append(difference)
    for difference in after:
        others = places.get(difference.place, [])
        for n in range(max(bisect_right(others, difference.first, key=_first) - 1, 0), len(others)):
            first, end = max(difference.first, others[n].first), min(difference.end, others[n].end)
            if others[n].first >= difference.end:
                break
            if first < end and (part := difference.part(first, end - first)) == others[n].part(first, end - first):
                yield part


def _first(difference: Difference) -> int:
    return difference.first


def pages_of(differences: Iterable[Difference]) -> PageSet:
    """All their pages."""
    return PageSet((d.place, d.first, d.pages) for d in differences)


def within(differences: Iterable[Difference], pages: PageSet) -> list[Difference]:
    """The parts that are in a set of pages."""
    return [d.part(*part) for d in differences for part in pages.inside(d.place, d.first, d.pages)]


def without(differences: Iterable[Difference], pages: PageSet) -> list[Difference]:
    """The parts that are not."""
    return [d.part(*part) for d in differences for part in pages.outside(d.place, d.first, d.pages)]
