"""What the server instructs, checked and carried out on the native space: merges, adoptions, looks for written pages.

The server is trusted with no content: the native half compares bytes before it switches a page. It cannot make this
client's memory grow beyond a bound: batches are bounded, and so are answers that wait to be sent. An instruction that
fails is logged and does not end the session: what was done is in the journal, so the books stay right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from pagefold_core import spare_pages
from pagefold_proto.obstacle_table import Obstacles
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold._errors import IncompatibleServer
from pagefold._process.log import log as _log
from pagefold._session.channel import reason_word
from pagefold._session.outbox import Outbox
from pagefold._session.patience import Earned
from pagefold._session.space import ConversationSpace, SpaceSegment

ADOPT_PAGES: Final = 16384
MOST_INSTRUCTED: Final = 1 << 15
"""Most pages that a reply merges, and most that it adopts: the bound of the server's max_batch_pages."""
MOST_OWED: Final = 1 << 21
"""Most answers to instructions that wait to be sent: twice what a server leaves unanswered (max_outstanding)."""


class Instructions:
    """Carries out a server's instructions for one client.

    Args:
        space: the native space, or a fake.
        outbox: gets the answers, by way of the journal.
        obstacles: is told what kept an instruction from being carried out.
        earned: is told that there was work.
    """

    def __init__(self, space: ConversationSpace, outbox: Outbox, obstacles: Obstacles, earned: Earned) -> None:
        self._space = space
        self._outbox = outbox
        self._obstacles = obstacles
        self._earned = earned
        self._owed = 0  # most events that instructions led to, and that the server does not have yet
        self._failed: set[str] = set()  # kinds of failures that were logged

    def carry_out(self, reply: pb.ExchangeReply) -> bool:
        """Merges and adopts what a reply says, which `check` let pass. False if it says nothing.

        Raises:
            IncompatibleServer: more answers wait than an honest server lets pile up.
        """
        merges, adopts = reply.merges, reply.adopts
        before = self._outbox.end()
        if length := len(merges.count):
            runs = (merges.segment, merges.first, merges.count, merges.pool, merges.frame)
            self._attempt(self._space.merge, *(_filled(column, length) for column in runs))
            self.see_hindrance()
        if length := len(adopts.count):
            columns = (_filled(column, length) for column in (adopts.segment, adopts.first, adopts.count))
            self._attempt(self._space.adopt, *columns, spare_pages())
        self._owed += self._outbox.end() - before
        if self._owed > MOST_OWED:
            raise excess(f"{self._owed} answers wait for it, and it goes on asking")
        return bool(merges.count or adopts.count)

    def leave_frames(self, segment: SpaceSegment) -> None:
        """Has a segment leave all frames that it maps, as far as there is room."""
        for first in range(0, segment.pages, ADOPT_PAGES):
            count = min(ADOPT_PAGES, segment.pages - first)
            self._attempt(self._space.adopt, [segment.number], [first], [count], spare_pages())

    def look_for_writes(self, everything: bool) -> bool:
        """Finds written pages: in all segments, or where it is time for it. False if the kernel does not tell."""
        try:
            self._space.harvest(everything)
        except OSError as error:  # memory is short, for example: a later look finds the pages
            _log.log(
                self._loudness("look", logging.WARNING),
                "the kernel does not say which pages were written, so none merges until it does: %s",
                error,
            )
            self._obstacles.put(pb.OBSTACLE_KIND_LOOK, there=True, error=error.errno or 0)
            return False
        self._obstacles.put(pb.OBSTACLE_KIND_LOOK, there=False)
        self.see_hindrance()
        return True

    def see_hindrance(self) -> None:
        """Learns whether one of the program's own limits keeps pages from merging."""
        found = self._space.hindrance()
        self._obstacles.set_hindrance(found[0] if found else None)

    def answers_sent(self, count: int) -> None:
        """Counts events that the server has received."""
        self._owed = max(0, self._owed - count)

    def owe_nothing(self) -> None:
        """Forgets what is owed: a new session's server has asked for nothing yet."""
        self._owed = 0

    def _attempt(self, act: Callable[..., int], *arguments: Any) -> None:
        try:
            done = act(*arguments)
        except (OSError, ValueError, OverflowError):
            level = self._loudness("attempt", logging.ERROR)
            _log.log(
                level,
                "the server's instructions failed; memory keeps its bytes, and some pages are not merged",
                exc_info=True,
            )
            return
        if done:
            self._earned.real_work()

    def _loudness(self, what: str, level: int) -> int:
        """The level of a failure: DEBUG from the second of its kind on, since there may be one in each turn."""
        if what in self._failed:
            return logging.DEBUG
        self._failed.add(what)
        return level


def check(reply: pb.ExchangeReply) -> None:
    """Makes sure that the batches of a reply are such as a server of this version sends.

    Raises:
        IncompatibleServer: they are not.
    """
    merges, adopts = reply.merges, reply.adopts
    _check_batch(merges.count, merges.segment, merges.first, merges.pool, merges.frame)
    _check_batch(adopts.count, adopts.segment, adopts.first)


def excess(what: str) -> IncompatibleServer:
    """The error for an answer that no server of this version gives."""
    text = f"the server answers what no server of this version does ({what}): install the same version on both sides"
    return IncompatibleServer(reason_word(pb.REASON_PROTOCOL_MISMATCH), text)


def _check_batch(count: Sequence[int], *columns: Sequence[int]) -> None:
    if len(count) > MOST_INSTRUCTED or sum(count) > MOST_INSTRUCTED:
        raise excess(f"{sum(count)} pages in one batch; {MOST_INSTRUCTED} are the most")
    if any(column and len(column) != len(count) for column in columns):
        raise excess("columns of different lengths in one batch")


def _filled(column: Iterable[int], length: int) -> list[int]:
    """A column of a message as a list; a column of zeros may be left out of the message."""
    return list(column) or [0] * length
