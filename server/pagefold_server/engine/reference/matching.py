"""What a quiet page equals: zeros, a frame of the stable tree, or a page of the unstable tree, in this order.

The *stable tree* has the frames, by digest. What it finds is true, for frames never change. The *unstable tree* has
pages that were settled when they were read, by the digest that they had then. Nothing keeps their programs from writing
to them, so what it finds is a hint: the page is read once more, and that copy decides. A wrong hint costs a read.

A digest never decides that pages are equal: bytes do, here and again in the client, with writes held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pagefold_proto.limits import PAGE

from pagefold_server.engine.reference.ledger import Ledger
from pagefold_server.engine.reference.member import Member
from pagefold_server.engine.reference.page_table import PENDING, PageTable
from pagefold_server.engine.states import MERGED, OWNED, PROPOSED, QUEUED, ZERO_FRAME

Digest = Callable[[bytes | memoryview], int]

_ZEROS: Final = bytes(PAGE)
_GAP_KEPT: Final = 8  # pages without a frame that a run is kept room for


@dataclass(slots=True)
class PassCounts:
    """What a pass has found so far; `PassReport` has the meanings."""

    visited: int = 0
    proposed: int = 0
    fresh: int = 0
    volatile: int = 0
    unshared: int = 0
    backlog: int = 0
    unplaced: int = 0


class Matcher:
    """See the head of this file.

    Args:
        ledger: with the trees; proposals are made there.
        digest: of a page.

    Attributes:
        zero_digest: of a page of zeros.
        refusal: why there was no room for a frame last.
    """

    def __init__(self, ledger: Ledger, digest: Digest) -> None:
        self._ledger = ledger
        self.zero_digest = digest(_ZEROS)
        self.refusal: OSError | None = None

    def match(self, found: PassCounts, table: PageTable, page: int, view: memoryview, digest: int) -> None:
        """Looks for what a quiet page equals, and proposes to merge them."""
        ledger = self._ledger
        if not (digest in ledger.frames.stable or digest in ledger.unstable or digest == self.zero_digest):
            self._enter(found, table, page)
            return
        content = bytes(view)
        if content == _ZEROS and ledger.options.use_zero_pages:
            self._propose_if_room(found, table, page, ZERO_FRAME)
            return
        frame = self._stable_match(content, digest)
        if frame is not None:
            self._propose_if_room(found, table, page, frame)
            return
        self._unstable_match(found, table, page, content, digest)

    def _stable_match(self, content: bytes, digest: int) -> int | None:
        """A frame that has these bytes, and room."""
        frames, most = self._ledger.frames, self._ledger.options.max_page_sharing
        twins: Sequence[int] = frames.stable.get(digest, ())
        for frame in twins:
            if frames.users(frame) < most and frames.read(frame) == content:
                return frame
        return None

    def _unstable_match(self, found: PassCounts, table: PageTable, page: int, content: bytes, digest: int) -> None:
        """Makes a frame for this page and the one that was seen before it with this digest."""
        ledger = self._ledger
        listed = ledger.unstable.find(digest)
        if listed is None:
            self._enter(found, table, page)
            return
        other, twin = listed
        # Writes to a tracked page would have been reported. Any other may have been written since it was read.
        if not other.tracked and other.read(twin) != content:
            self._replace(found, other, twin, table, page)
            return
        member, other_member = ledger.member_of(table), ledger.member_of(other)
        if self._room(member) < (2 if other_member is member else 1):
            self._postpone(found, table, page)
            return
        if not self._room(other_member):
            # The next of this content need not wait for that client.
            self._replace(found, other, twin, table, page)
            self._postpone(found, other, twin)
            return
        try:
            # M1: no program can change this copy.
            frame = ledger.frames.create(digest, content, self._near(table, page, other, twin))
        except OSError as error:  # no room for frames: both stay as they are
            self.refusal = error
            found.unplaced += 1
            if table.tracked:
                ledger.calendar.add(table, page, 1, OWNED, 1)
            return
        ledger.unstable.remove(other, twin, 1)
        found.unshared -= not other.tracked
        ledger.propose(other, twin, frame)
        ledger.propose(table, page, frame)
        found.proposed += 2

    def _near(self, table: PageTable, page: int, other: PageTable, twin: int) -> int:
        """The frame that would continue the run before either page, -1 if there is none (M2).

        Neighbouring pages get neighbouring frames, for a run of both is one mapping. A run may have gaps: pages without
        a frame, that become mergeable later perhaps. Behind a gap, as many frames are left out as it has pages, so that
        they fit in between then, and the run is one. To bound what is left out to half of all numbers, that is done
        only if as many frames before the gap are in use, and for no more than `_GAP_KEPT` pages; otherwise the
        frame follows the last one. The page's own neighbours come first, then those of its twin.
        """
        users = self._ledger.frames.users
        for pages, number in ((table, page), (other, twin)):
            for gap in range(min(_GAP_KEPT + 1, number)):
                before = number - gap - 1
                if pages.states[before] in (QUEUED, PROPOSED, MERGED) and pages.frames[before] >= 0:
                    frame = pages.frames[before]
                    filled = gap <= frame + 1 and all(users(frame - n) for n in range(gap))
                    return frame + 1 + (gap if filled else 0)
        return -1

    def _enter(self, found: PassCounts, table: PageTable, page: int) -> None:
        """It is like no other page, as far as is known."""
        self._ledger.unstable.enter(table, page)
        found.unshared += not table.tracked

    def _replace(self, found: PassCounts, other: PageTable, twin: int, table: PageTable, page: int) -> None:
        """This page takes the place of another one."""
        self._ledger.unstable.remove(other, twin, 1)
        found.unshared -= not other.tracked
        self._enter(found, table, page)

    def _propose_if_room(self, found: PassCounts, table: PageTable, page: int, frame: int) -> None:
        if self._room(self._ledger.member_of(table)) > 0:
            self._ledger.propose(table, page, frame)
            found.proposed += 1
        else:
            self._postpone(found, table, page)

    def _postpone(self, found: PassCounts, table: PageTable, page: int) -> None:
        """Its client has too much to do already: the next pass comes back to it."""
        if table.tracked:
            table.set_flag(page, 1, PENDING)  # and counted at the end of the pass
        else:
            found.backlog += 1

    def _room(self, member: Member) -> int:
        """Pages that may be proposed to a client now."""
        return max(self._ledger.options.max_outstanding - member.proposed, 0)
