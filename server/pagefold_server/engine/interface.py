"""What an engine is: one domain's page tables, digests, two trees and frames.

An engine reads segments, decides which pages ought to share a frame, and keeps the books that say which view maps
which frame. It knows nothing of gRPC, names, users or time. There are two: `native` (Rust) and
`reference` (pure Python, for tests and readers); both make the same decisions, and a test compares them.

It is driven from one thread, in slices: `scan` looks at a bounded number of pages and returns. Nothing here blocks
for longer than that.

What every engine keeps true:

* A frame's bytes never change while a page maps it or a proposal names it (I1). A frame is written once, before it
  enters the stable tree, and its number is used again only after its last reference and reservation are gone (I3).
* The books follow events and nothing else. A proposal that was sent is believed outstanding until the client
  answers it, or until the client's whole process family is dead (`remove_client`).
* What a client says can only cost that client: an event that does not fit the books raises `ProtocolViolation`
  before it changes them, and the caller excludes the client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an operator may change while the engine runs. Names are KSM's.

    Attributes:
        use_zero_pages: merge pages of zeros with the kernel's zero page, which costs no frame.
        max_page_sharing: most pages that one frame serves; beyond it the content gets another frame.
        smart_scan: leave pages alone for a while, and longer each time, that were written after they were merged.
        max_outstanding: most pages proposed to one client and not yet answered. Bounds both what a client that
            never answers can hold, and the memory of frames made ahead of their merges.
    """

    use_zero_pages: bool = True
    max_page_sharing: int = 256
    smart_scan: bool = True
    max_outstanding: int = 16384


@dataclass(slots=True)
class Columns:
    """Events of one client, oldest first: the columns of `Events` in memory.proto, filled up to equal length."""

    kind: Sequence[int]
    segment: Sequence[int]
    first: Sequence[int]
    count: Sequence[int]
    pool: Sequence[int]
    frame: Sequence[int]
    detail: Sequence[int]


@dataclass(slots=True)
class Instructions:
    """What one client is to do next.

    Attributes:
        merges: runs (segment, first page, count, frame of the first page); frame -1: the zero page for all of it.
        adopts: runs (segment, first page, count).
        more: whether more is queued for this client.
    """

    merges: list[tuple[int, int, int, int]] = field(default_factory=list)
    adopts: list[tuple[int, int, int]] = field(default_factory=list)
    more: bool = False

    def __bool__(self) -> bool:
        return bool(self.merges or self.adopts)


@dataclass(frozen=True, slots=True)
class PassReport:
    """What one full pass found.

    Attributes:
        number: passes finished so far, this one included.
        visited: pages read.
        proposed: pages proposed for merging.
        fresh: pages that had changed since the previous pass, but not between the two passes before it: they
            may well be quiet in the next pass.
        volatile: all pages that had changed since the previous pass.
        unshared: quiet, and like no other page.
        waiting: left alone this time because they keep breaking.
        backlog: not done in this pass, and worth another one: quiet and mergeable, but their client had too many
            proposals outstanding; or tracked, and to be read again since the pass began.
        unplaced: they have an equal, and there was no room for a frame. Of each content one page more is among those
            that are like no other.
    """

    number: int
    visited: int
    proposed: int
    fresh: int
    volatile: int
    unshared: int
    waiting: int
    backlog: int
    unplaced: int


@dataclass(frozen=True, slots=True)
class Step:
    """What one slice of scanning did.

    Attributes:
        visited: pages read; a slice may end early at the end of a pass.
        finished: the pass that ended with this slice, if one did.
    """

    visited: int
    finished: PassReport | None


@dataclass(slots=True)
class EngineCounters:
    """The engine's books in KSM's terms, in pages; see Counters in admin.proto for each one's meaning."""

    pages_shared: int = 0
    pages_sharing: int = 0
    pages_unshared: int = 0
    pages_volatile: int = 0
    pages_skipped: int = 0
    pages_scanned: int = 0
    full_scans: int = 0
    zero_pages: int = 0
    stable_node_dups: int = 0
    pages_merged: int = 0
    pages_broken: int = 0
    pages_declined: int = 0
    pages_over_budget: int = 0
    pages_refused: int = 0
    pages_waiting: int = 0
    pages_unplaced: int = 0
    pages_proposed: int = 0
    bookkeeping_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SegmentCounts:
    """One segment's pages by state."""

    merged: int
    zero: int
    copied: int
    proposed: int


class Left(NamedTuple):
    """One client's pages that were to be merged and are not, by what keeps them.

    Attributes:
        over_budget: its mapping budget, or all mappings.
        refused: it declined them for a reason that has no name below.
        pinned: the program has pinned them.
        failed: the kernel did not do it.
        forked: a forked child shares them.
        copied: they were written after they were merged, and are still to be taken back.
        waiting: the same, and they rest before they are merged again.
    """

    over_budget: int
    refused: int
    pinned: int
    failed: int
    forked: int
    copied: int
    waiting: int


class Held(NamedTuple):
    """Neighbouring pages in one state, on frames that follow each other.

    Attributes:
        first: page.
        pages: how many.
        state: QUEUED, PROPOSED, MERGED, ZERO or COPIED, as in `states`.
        frame: of the first page; -1: the zero page, for all of them.
    """

    first: int
    pages: int
    state: int
    frame: int


class FrameFault(IntEnum):
    """What can be wrong with a frame."""

    CHANGED = 1  # its bytes have another digest than in the stable tree (I1)
    HOLE = 2  # it is in use, and there is no memory behind it
    LEFT = 3  # it is free, and there is memory behind it
    UNLISTED = 4  # it is in use, and the stable tree does not have it


class Miscount(NamedTuple):
    """A frame of which the books have other numbers of users than the page tables."""

    frame: int
    references: int
    reservations: int
    counted_references: int
    counted_reservations: int


class Engine(Protocol):
    """One domain's books and trees. Clients and segments are the caller's numbers."""

    name: str

    def configure(self, options: EngineOptions) -> None:
        """Goes on with other options; what was merged under the old ones stays merged."""

    def recover(self) -> int:
        """Takes over the frames that the pool holds from before, and returns how many there are. Call it first of all.

        None of them is released until `release_unclaimed`.

        Raises:
            OSError: the pool cannot be read, or has more frames than it may have.
        """

    def release_unclaimed(self) -> None:
        """Releases the recovered frames that no client has resumed (I3).

        To be called when all clients that mapped frames before have resumed, or are gone.
        """

    def add_client(self, client: int) -> None:
        """Makes a client known, under a number that was never used."""

    def add_segment(self, client: int, segment: int, fd: int, pages: int, tracked: bool = False) -> None:
        """Makes a segment part of the scan. The caller owns `fd` and keeps it open until the segment is dropped.

        Args:
            client: the caller's number.
            segment: the caller's number, new for this client.
            fd: open for reading.
            pages: size.
            tracked: the client reports which pages were written; only those are read.
        """

    def drop_segment(self, client: int, segment: int) -> bool:
        """Forgets a segment, unless one of its pages still maps a frame or has a proposal outstanding: then False."""

    def depart_client(self, client: int) -> None:
        """The client will not answer again, but its memory may go on mapping frames: proposes nothing to it.

        Its proposals outstanding count as if they were carried out: the family may have done so.
        """

    def remove_client(self, client: int) -> None:
        """The client's whole process family is dead: drops its references, reservations and segments."""

    def apply(self, client: int, events: Columns) -> None:
        """Books what a client reported.

        Raises:
            ProtocolViolation: an event does not fit. Those before it are booked, it and the rest are not.
        """

    def take(self, client: int, pages: int) -> Instructions:
        """Takes out what is queued for a client, merges of at most about `pages` pages."""

    def queued(self) -> set[int]:
        """Clients for which something is queued."""

    def outstanding(self) -> int:
        """Pages proposed or to be adopted, of which the answer is not in. Those of silent clients included."""

    def scan(self, pages: int, threads: int = 1) -> Step:
        """Goes on with the pass for about `pages` pages; starts the next pass if the last one ended.

        Args:
            pages: how much to do. Proposing counts as well.
            threads: most threads that may read and digest at the same time.
        """

    def remaining(self) -> int:
        """About how many pages are still to be read: in the pass under way, or else in one that began now."""

    def refusal(self) -> OSError | None:
        """Why there was no room for a frame, if so, since this was asked last."""

    def flush(self) -> None:
        """Gives the memory of released frames back to the kernel.

        Raises:
            OSError: that failed; it is tried again the next time.
        """

    def unmerge(self, on: bool) -> None:
        """On: queues every merged page for adoption and proposes nothing. Off: back to work."""

    def counters(self) -> EngineCounters:
        """The books in KSM's terms."""

    def segment_counts(self, client: int, segment: int) -> SegmentCounts:
        """One segment's pages by state."""

    def merged_pages(self, client: int) -> tuple[int, int]:
        """Pages of the client that map frames (zero pages included), and pages proposed to it."""

    def left(self, client: int) -> Left:
        """Pages of the client that were to be merged and are not."""

    def apart(self, client: int) -> int:
        """Pages of the client that are known and like no other, or that the program does not want merged."""

    # Audits

    def held(self, client: int, segment: int, first: int, count: int) -> list[Held]:
        """The pages of a part of a segment that hold frames, or that frames are proposed to, in order.

        Args:
            client: the caller's number.
            segment: the caller's number.
            first: page.
            count: pages; the part may reach beyond the end.
        """

    def audit(self, first: int, count: int) -> list[tuple[int, FrameFault]]:
        """What is wrong with the frames of a range. Reads those that are in use, half a microsecond each."""

    def recount(self) -> list[Miscount]:
        """Counts the users of all frames again, by the page tables, at once: about 5 ns a page (native)."""

    def check(self) -> None:
        """Recounts everything and raises AssertionError at the first difference. For tests and audits."""

    def close(self) -> None:
        """Closes the engine's own descriptors at once, even if it is referred to. Nothing else works afterwards."""
