"""Who waits for a domain to settle, and when there is nothing left to wait for (docs/design.md, "settle()").

Time and scanning are somebody else's. This counts passes. Those count for a request that began when all clients had
looked for written pages after it: looks have numbers too.

    pass found    nothing proposed, fresh or in backlog, nobody busy  -> settled
                  the same, but a client still works on proposals     -> settled when all its answers are yes
                  no merges, three passes in a row, nobody busy       -> settled: what is left keeps changing
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from pagefold_proto.v1 import memory_pb2 as pb

from pagefold_server.engine import EngineCounters, PassReport

QUIET_PASSES = 3
"""So many passes in a row that merged nothing are an answer too."""


@dataclass(frozen=True, slots=True)
class Look:
    """A look at the domain that the books alone do not give.

    Attributes:
        busy: a client that answers still has something to do.
        unanswered: pages proposed to clients that do not answer.
        full: there was no room for a frame.
        unread: a client that reports what it writes does not answer: nobody knows what it has written.
    """

    busy: bool
    unanswered: int
    full: bool
    unread: bool = False

    @property
    def certain(self) -> bool:
        """Whether a pass that found nothing says that there is nothing."""
        return not (self.full or self.unread)


@dataclass(slots=True)
class _Settle:
    number: int
    look: int  # passes that began before it was complete do not count
    merged_before: int
    done: Callable[[pb.SettleReport], None]
    passes: int = 0
    quiet: int = 0
    clean: tuple[int, int] | None = None  # losses at the last pass that left only answers to wait for


class Settlers:
    """Those who wait in one domain, each under a key of its own."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, _Settle] = {}
        self._merged_at_pass = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def start(
        self,
        key: Hashable,
        number: int,
        look: int,
        counters: EngineCounters,
        done: Callable[[pb.SettleReport], None],
    ) -> None:
        """Begins to wait. A new request under the same key takes the place of the old one.

        Args:
            key: who waits.
            number: repeated in the report.
            look: number of the look that clients are asked for now.
            counters: the books as they are now.
            done: called once with the report, and never after `stop`.
        """
        self._waiting[key] = _Settle(number, look, counters.pages_merged, done)

    def stop(self, key: Hashable) -> None:
        """Forgets whoever waits under that key."""
        self._waiting.pop(key, None)

    def passed(self, found: PassReport, counters: EngineCounters, look: Look, looked: int) -> None:
        """Weighs a pass that has just ended; `looked` is the last look that was complete when it began."""
        busy = look.busy
        merged_nothing = found.proposed == 0 and counters.pages_merged == self._merged_at_pass and not busy
        self._merged_at_pass = counters.pages_merged
        nothing_left = found.proposed == 0 and found.fresh == 0 and found.backlog == 0
        for key, settle in list(self._waiting.items()):
            if looked < settle.look:
                continue
            settle.passes += 1
            settle.quiet = settle.quiet + 1 if merged_nothing else 0
            # Pages that changed before the request and just after the last pass look hot to the first pass that counts,
            # and may have been quiet ever since: only a second look can tell.
            done = nothing_left and (settle.passes > 1 or found.volatile == 0)
            settle.clean = _losses(counters) if done else None
            if not busy and (done or settle.quiet >= QUIET_PASSES):
                self._finish(key, look.certain, counters, look)

    def answered(self, counters: EngineCounters, look: Look) -> None:
        """Looks whether answers were all that some were waiting for."""
        if look.busy:
            return
        for key, settle in list(self._waiting.items()):
            if settle.clean == _losses(counters):
                self._finish(key, look.certain, counters, look)

    def give_up(self, counters: EngineCounters, look: Look) -> None:
        """Tells all that it will not settle: nobody scans."""
        for key in list(self._waiting):
            self._finish(key, False, counters, look)

    def give_up_one(self, key: Hashable, counters: EngineCounters, look: Look) -> None:
        """Tells one how far it has come, who will not wait any longer."""
        if key in self._waiting:
            self._finish(key, False, counters, look)

    def _finish(self, key: Hashable, settled: bool, counters: EngineCounters, look: Look) -> None:
        settle = self._waiting.pop(key)
        settle.done(_report(settle, settled, counters, look))


def _losses(counters: EngineCounters) -> tuple[int, int]:
    """What grows when an answer leaves something to do: pages declined, merges written to again."""
    return counters.pages_declined, counters.pages_broken


def _report(settle: _Settle, settled: bool, counters: EngineCounters, look: Look) -> pb.SettleReport:
    return pb.SettleReport(
        settling=settle.number,
        settled=settled,
        passes=settle.passes,
        merged_pages=counters.pages_merged - settle.merged_before,
        pages_shared=counters.pages_shared,
        pages_sharing=counters.pages_sharing,
        zero_pages=counters.zero_pages,
        pages_unshared=counters.pages_unshared,
        pages_volatile=counters.pages_volatile,
        pages_waiting=counters.pages_waiting,
        pages_over_budget=counters.pages_over_budget,
        pages_refused=counters.pages_refused + look.unanswered,
    )
