"""The page table of one segment: what each of its pages is doing, in 16 bytes a page and no object per page.

    OWNED --proposed--> QUEUED --sent--> PROPOSED --merged--> MERGED or ZERO --written--> COPIED
      ^                                     |                      |                        |
      |<-- WAITING, OVER_BUDGET, REFUSED <--'declined              '------- released -------'
      |    (rest for some passes; PINNED, FAILED and FORKED are refused by name)
      '--> EXCLUDED (the program does not want it merged) and back

Only OWNED pages are scanned, so that finding the next one is one `find` over the states. Where the client reports which
pages were written (`tracked`), only those are, and flags say which.
The table counts pages by state and knows nothing of frames' books, queues and clients.
"""

from __future__ import annotations

import errno
import os
from array import array
from typing import Final

from pagefold_proto.limits import PAGE

from pagefold_server.engine.interface import Held
from pagefold_server.engine.runs import any_of, runs
from pagefold_server.engine.states import (
    EXCLUDED,
    MAPPED,
    MERGED,
    NO_FRAME,
    OWNED,
    PROPOSED,
    QUEUED,
    STATES,
    UNHELD,
    ZERO,
    ZERO_FRAME,
)

# Flags.
UNWANTED: Final = 1  # EXCLUDED as soon as nothing else is going on with the page
ADOPT_QUEUED: Final = 2
ADOPT_SENT: Final = 4
# Of tracked pages. A page passes from the first to the third, a step a pass, unless it is written again.
WRITTEN: Final = 8  # since the pass began
PENDING: Final = 16  # written before that, or of unknown content: if it stays quiet, the next pass reads it
READING: Final = 32  # this pass reads it
LISTED: Final = 64  # in the unstable tree

MAX_BREAKS: Final = 6  # 2**6 = 64 passes is the longest wait


class PageTable:
    """One segment's pages.

    Args:
        number: of this table, never used again; `base` + page names a page among all tables.
        client: the caller's number.
        segment: the caller's number.
        fd: open for reading.
        pages: size.
        tracked: the client reports which pages were written.
    """

    __slots__ = (
        "base",
        "breaks",
        "client",
        "counts",
        "digests",
        "dropped",
        "fd",
        "flags",
        "frames",
        "pages",
        "segment",
        "states",
        "streaks",
        "tracked",
    )

    def __init__(self, number: int, client: int, segment: int, fd: int, pages: int, tracked: bool = False) -> None:
        self.base = number << 32
        self.client = client
        self.segment = segment
        self.fd = fd
        self.pages = pages
        self.tracked = tracked
        self.dropped = False
        self.states = bytearray(pages)
        self.flags = bytearray(pages)
        self.breaks = bytearray(pages)
        self.streaks = bytearray(pages)  # passes in a row in which the digest had changed
        self.digests = array("Q", bytes(8 * pages))
        self.frames = array("i", (NO_FRAME,)) * pages
        self.counts = [0] * STATES
        self.counts[OWNED] = pages

    def set_state(self, page: int, state: int) -> None:
        """Changes one page's state."""
        self.counts[self.states[page]] -= 1
        self.counts[state] += 1
        self.states[page] = state

    def set_states(self, first: int, count: int, state: int) -> None:
        """Sets the state of a run; the pages may have been in different ones."""
        before = self.states[first : first + count]
        for old in set(before):
            self.counts[old] -= before.count(old)
        self.counts[state] += count
        self.states[first : first + count] = bytes((state,)) * count

    def own(self, first: int, count: int) -> None:
        """The pages are in their segment again, and candidates unless the program does not want that."""
        self.set_states(first, count, OWNED)
        if self.tracked:
            self.set_flag(first, count, PENDING)
        for page, unwanted in runs(_UNWANTED, self.flags, first, first + count):
            self.set_states(page, unwanted, EXCLUDED)

    def set_flag(self, first: int, count: int, flag: int) -> None:
        """Sets a flag on a run."""
        self.flags[first : first + count] = self.flags[first : first + count].translate(_SET[flag])

    def clear_flag(self, first: int, count: int, flag: int) -> int:
        """Clears a flag on a run.

        Returns:
            How many pages had it.
        """
        before = self.flags[first : first + count]
        after = before.translate(_CLEAR[flag])
        self.flags[first : first + count] = after
        return (sum(before) - sum(after)) // flag

    def count_flag(self, flag: int) -> int:
        """How many pages have a flag."""
        return self.pages - len(self.flags.translate(None, _HAVING[flag]))

    def sift(self) -> None:
        """A pass begins: pages that were written since the last one wait, those that stayed quiet will be read."""
        self.flags = self.flags.translate(_SIFT)

    def only(self, first: int, count: int, states: bytes) -> bool:
        """Whether every page of a run is in one of these states."""
        return not self.states[first : first + count].translate(None, states)

    def forget_readings(self, first: int, end: int) -> None:
        """What comes to these pages next is new: they are holes now."""
        self.streaks[first:end] = bytes(end - first)

    def forgive(self) -> None:
        """Takes one break off every page."""
        self.breaks[:] = self.breaks.translate(_FORGIVE)

    def next_data(self, page: int) -> int | None:
        """The first page from here on that is not a hole, None if there is none; nothing is touched."""
        try:
            found = os.lseek(self.fd, page * PAGE, os.SEEK_DATA) // PAGE
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: no data up to the end, or truncated
                raise
            return None
        return found if found < self.pages else None

    def read(self, page: int) -> bytes | None:
        """A copy of one page, None if it is a hole or cannot be read."""
        try:
            if self.next_data(page) != page:
                return None
            copy = os.pread(self.fd, PAGE, page * PAGE)
        except OSError:
            return None
        return copy if len(copy) == PAGE else None

    def held(self, first: int, end: int) -> list[Held]:
        """Pages between two that hold frames, or that frames are proposed to, joined into runs."""
        found: list[Held] = []
        for start, count in runs(_HELD, self.states, first, min(end, self.pages)):
            at, last = start, start + count
            while at < last:
                state, frame, n = self.states[at], self.frames[at], 1
                step = frame >= 0
                while at + n < last and self.states[at + n] == state and self.frames[at + n] == frame + n * step:
                    n += 1
                found.append(Held(at, n, state, frame))
                at += n
        return found

    def bookkeeping_bytes(self) -> int:
        """What the columns take."""
        return sum(
            column.__sizeof__()
            for column in (self.states, self.flags, self.breaks, self.streaks, self.digests, self.frames)
        )

    def check(self) -> None:
        """Recounts the states, and looks whether frames stand where they should."""
        assert self.counts == [self.states.count(state) for state in range(STATES)], "states miscounted"
        for page, state in enumerate(self.states):
            frame, flags = self.frames[page], self.flags[page]
            assert (frame == NO_FRAME) == (state in UNHELD), f"page {page}: state {state}, frame {frame}"
            assert state != ZERO or frame == ZERO_FRAME, f"page {page} is on the zero page and on {frame}"
            assert state != MERGED or frame >= 0, f"page {page} is merged and has no frame"
            assert (state == EXCLUDED) == bool(state in UNHELD and flags & UNWANTED), f"page {page}: {state}, {flags}"
            assert state in MAPPED or not flags & (ADOPT_QUEUED | ADOPT_SENT), f"page {page}: nothing to adopt"
            assert flags & (ADOPT_QUEUED | ADOPT_SENT) != ADOPT_QUEUED | ADOPT_SENT, f"page {page} is asked for twice"


_FLAGS: Final = (UNWANTED, ADOPT_QUEUED, ADOPT_SENT, WRITTEN, PENDING, READING, LISTED)
_SET: Final = {flag: bytes(value | flag for value in range(256)) for flag in _FLAGS}
_CLEAR: Final = {flag: bytes(value & ~flag for value in range(256)) for flag in _FLAGS}
_HAVING: Final = {flag: bytes(value for value in range(256) if value & flag) for flag in _FLAGS}
_FORGIVE: Final = bytes(max(value - 1, 0) for value in range(256))
_HELD: Final = any_of(bytes((QUEUED, PROPOSED)) + MAPPED)
_UNWANTED: Final = any_of(_HAVING[UNWANTED])


def _sifted(flags: int) -> int:
    rest = flags & ~(WRITTEN | PENDING | READING)
    if flags & WRITTEN:
        return rest | PENDING
    return rest | READING if flags & (PENDING | READING) else rest


_SIFT: Final = bytes(map(_sifted, range(256)))
