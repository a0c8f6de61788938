"""What clients report, and what that does to the ledger.

Every event is checked against the ledger before it changes it: a client can only answer what it was asked, and only
about pages of its own. The journal that events are taken from is written under the client's own lock, so an event that
does not fit is a lie or a bug, never a race.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pagefold_proto.v1 import memory_pb2 as pb

from pagefold_server.engine.interface import Columns
from pagefold_server.engine.reference.ledger import Ledger
from pagefold_server.engine.reference.member import Member
from pagefold_server.engine.reference.page_table import MAX_BREAKS, PENDING, READING, UNWANTED, WRITTEN, PageTable
from pagefold_server.engine.runs import any_of, runs
from pagefold_server.engine.states import (
    COPIED,
    EXCLUDED,
    FAILED,
    FORKED,
    MAPPED,
    MERGED,
    OVER_BUDGET,
    OWNED,
    PINNED,
    PROPOSED,
    REFUSALS,
    REFUSED,
    UNHELD,
    WAITING,
    ZERO,
    ZERO_FRAME,
)
from pagefold_server.errors import ProtocolViolation

RETRY_PASSES: Final = 8
"""Passes after which a page is proposed, or asked for, once more, when the client could not do it."""

_ZERO_POOL: Final = 0

_REFUSED_BY: Final[Mapping[int, int]] = {
    pb.DECLINE_REASON_PINNED: PINNED,
    pb.DECLINE_REASON_FAILED: FAILED,
    pb.DECLINE_REASON_FORKED: FORKED,
}
_REFUSED_PAGES: Final = any_of(bytes((*REFUSALS, EXCLUDED)))
_RESTING_PAGES: Final = any_of(bytes((WAITING, *REFUSALS)))
_UNHELD_PAGES: Final = any_of(UNHELD)
_COPIED_PAGES: Final = any_of(bytes((COPIED,)))


@dataclass(frozen=True, slots=True)
class Event:
    """One event, of pages that exist; see `Events` in memory.proto."""

    member: Member
    table: PageTable
    first: int
    count: int
    pool: int
    frame: int
    detail: int

    @property
    def end(self) -> int:
        """The page after the last."""
        return self.first + self.count

    def expect_states(self, states: bytes) -> None:
        """Raises `ProtocolViolation` unless all pages are in one of these states."""
        if not self.table.only(self.first, self.count, states):
            where = f"pages {self.first}+{self.count} of segment {self.table.segment}"
            raise ProtocolViolation(f"{where} are in no state in which that can happen")

    def expect_proposal(self, pool: int) -> None:
        """Raises `ProtocolViolation` unless exactly this was proposed, and taken, with frames of that pool."""
        self.expect_states(bytes((PROPOSED,)))
        held = self.table.frames[self.first : self.end]
        if self.pool == _ZERO_POOL:
            right = held.count(ZERO_FRAME) == self.count
        else:
            right = self.pool == pool and all(held[n] == self.frame + n for n in range(self.count))
        if not right:
            raise ProtocolViolation(f"pages {self.first}+{self.count} were proposed for other frames")


class EventHandler:
    """Carries out in the ledger what clients report.

    Args:
        ledger: to change.
        pool: its number, in events.
    """

    def __init__(self, ledger: Ledger, pool: int) -> None:
        self._ledger = ledger
        self._pool = pool
        self.merged = 0
        self.broken = 0
        self.declined = 0
        self._acts: Final[Mapping[int, Callable[[Event], None]]] = {
            pb.EVENT_KIND_MERGED: self._merged,
            pb.EVENT_KIND_DECLINED: self._declined,
            pb.EVENT_KIND_COPIED: self._copied,
            pb.EVENT_KIND_RELEASED: self._released,
            pb.EVENT_KIND_NOT_ADOPTED: self._not_adopted,
            pb.EVENT_KIND_EXCLUDED: self._excluded,
            pb.EVENT_KIND_INCLUDED: self._included,
            pb.EVENT_KIND_WRITTEN: self._written,
            pb.EVENT_KIND_RESUMED: self._resumed,
        }

    def apply(self, client: int, events: Columns) -> None:
        """Books a client's events.

        Raises:
            ProtocolViolation: an event does not fit. Those before it are booked, it and the rest are not.
        """
        member = self._ledger.members[client]
        columns = (events.segment, events.first, events.count, events.pool, events.frame, events.detail)
        if any(len(column) != len(events.kind) for column in columns):
            raise ProtocolViolation("the columns of events are not of equal length")
        if not member.listening:
            raise ProtocolViolation("a client that has departed reports events")
        for kind, segment, first, count, pool, frame, detail in zip(events.kind, *columns, strict=True):
            table = member.segments.get(segment)
            if table is None:
                raise ProtocolViolation(f"segment {segment} is not known")
            if first < 0 or count <= 0 or first + count > table.pages:
                raise ProtocolViolation(f"pages {first}+{count} are outside of segment {segment}")
            act = self._acts.get(kind)
            if act is None:
                raise ProtocolViolation(f"events of kind {kind} do not exist")
            act(Event(member, table, first, count, pool, frame, detail))

    def _merged(self, event: Event) -> None:
        event.expect_proposal(self._pool)
        self._ledger.commit(event.table, event.first, event.count)
        event.member.proposed -= event.count
        self.merged += event.count
        if self._ledger.unmerging:
            event.member.ask_adopt(event.table, event.first, event.count)

    def _declined(self, event: Event) -> None:
        event.expect_proposal(self._pool)
        table, first, count, reason = event.table, event.first, event.count, event.detail
        self._ledger.cancel(table, first, count)
        event.member.proposed -= count
        self.declined += count
        if reason == pb.DECLINE_REASON_CHANGED and event.pool == _ZERO_POOL:
            # Memory that is reserved and was never written, as a rule: it reads as zeros, and is not to be had. What
            # was written is reported, or found to be of another content.
            if table.tracked:
                table.clear_flag(first, count, PENDING)
            else:
                self._ledger.rest(table, first, count, WAITING, RETRY_PASSES)
        elif reason == pb.DECLINE_REASON_CHANGED and table.tracked:
            table.set_flag(first, count, WRITTEN)  # as it will be reported, too late for this proposal
        elif reason == pb.DECLINE_REASON_CHANGED:
            # No page has the digest 0, but for one in 2**64: the next reading is a change, and a fresh one.
            table.digests[first : event.end] = array("Q", bytes(8 * count))
        elif reason == pb.DECLINE_REASON_BUDGET:
            self._ledger.rest(table, first, count, OVER_BUDGET, RETRY_PASSES)
        else:
            self._ledger.rest(table, first, count, _REFUSED_BY.get(reason, REFUSED), RETRY_PASSES)

    def _copied(self, event: Event) -> None:
        event.expect_states(bytes((MERGED, ZERO)))
        table = event.table
        table.set_states(event.first, event.count, COPIED)
        if self._ledger.options.smart_scan:
            for page in range(event.first, event.end):
                table.breaks[page] = min(table.breaks[page] + 1, MAX_BREAKS)
        self.broken += event.count
        event.member.ask_adopt(table, event.first, event.count)

    def _released(self, event: Event) -> None:
        event.expect_states(MAPPED)
        member, table, first, count = event.member, event.table, event.first, event.count
        member.answer_adopt(table, first, count)
        broken = runs(_COPIED_PAGES, table.states, first, event.end)
        self._ledger.drop_references(table, first, count)
        if event.detail == pb.RELEASED_DETAIL_DISCARDED:
            table.breaks[first : event.end] = bytes(count)  # what comes here next has another story
        elif self._ledger.options.smart_scan:
            for start, number in broken:
                for page in range(start, start + number):
                    self._ledger.rest(table, page, 1, WAITING, 1 << table.breaks[page])
        for other in member.segments.values():
            if other.counts[OVER_BUDGET]:  # there is room for mappings now
                self._ledger.wake(other, 0, other.pages, OVER_BUDGET)

    def _not_adopted(self, event: Event) -> None:
        if not event.member.answer_adopt(event.table, event.first, event.count):
            return  # it was not asked for: there is nothing to ask for again
        self._ledger.calendar.add(event.table, event.first, event.count, COPIED, RETRY_PASSES)

    def _excluded(self, event: Event) -> None:
        self._ledger.unstable.remove(event.table, event.first, event.count)
        event.table.set_flag(event.first, event.count, UNWANTED)
        for first, count in runs(_UNHELD_PAGES, event.table.states, event.first, event.end):
            event.table.own(first, count)

    def _included(self, event: Event) -> None:
        event.table.clear_flag(event.first, event.count, UNWANTED)
        for first, count in runs(_REFUSED_PAGES, event.table.states, event.first, event.end):
            event.table.own(first, count)

    def _written(self, event: Event) -> None:
        if event.detail == pb.WRITTEN_DETAIL_GIVEN_BACK:
            self._given_back(event)
            return
        if not event.table.tracked:
            raise ProtocolViolation("written pages are reported by a client that does not track them")
        table, first, count = event.table, event.first, event.count
        self._ledger.unstable.remove(table, first, count)
        table.set_flag(first, count, PENDING if event.detail == pb.WRITTEN_DETAIL_POSSIBLY else WRITTEN)

    def _given_back(self, event: Event) -> None:
        """What comes here next has another story."""
        table, first, count = event.table, event.first, event.count
        self._ledger.unstable.remove(table, first, count)
        for start, number in runs(_RESTING_PAGES, table.states, first, event.end):
            table.own(start, number)
        table.breaks[first : event.end] = bytes(count)
        for flag in (WRITTEN, PENDING, READING):
            table.clear_flag(first, count, flag)

    def _resumed(self, event: Event) -> None:
        """A client has come back from before this ledger, and maps frames of the pool that was taken over."""
        event.expect_states(bytes((OWNED,)))
        ledger, table, first = self._ledger, event.table, event.first
        frames = range(event.frame, event.frame + event.count)
        if event.pool != _ZERO_POOL and (event.pool != self._pool or not all(map(ledger.frames.is_used, frames))):
            raise ProtocolViolation(f"pages {first}+{event.count} cannot map frames from {event.frame} on")
        ledger.unstable.remove(table, first, event.count)
        for page, frame in zip(range(first, event.end), frames, strict=True):
            table.set_state(page, ZERO if event.pool == _ZERO_POOL else MERGED)
            table.frames[page] = ZERO_FRAME if event.pool == _ZERO_POOL else frame
            # What it had when it was switched: a page that lets go of its frame has been read, as it were. Not so on
            # the zero page: a client that claims to map it has shown no content.
            table.digests[page] = 0 if event.pool == _ZERO_POOL else ledger.frames.digest(frame)
            if event.pool != _ZERO_POOL:
                ledger.frames.resume(frame)
        if ledger.unmerging:
            event.member.ask_adopt(table, first, event.count)
