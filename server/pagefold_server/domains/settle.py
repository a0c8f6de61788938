"""Settling: what waits for it, and when there is nothing left to wait for (docs/design/engine.md, "settle()").

This counts passes; it knows neither time nor scanning. A pass counts for a request if it began after all clients had
looked for written pages at that request. Looks have numbers.

    pass found    nothing proposed, fresh or in backlog, none busy  -> settled
                  no merges, three passes in a row, none busy       -> settled: what is left keeps changing

What was merged has to be so still: after a merge one more look is waited for. And it is settled only if no obstacle
keeps a page from merging (`Activity.obstacles`); else the same is the end of waiting, with the reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from pagefold_proto import obstacle_table
from pagefold_proto.v1 import memory_pb2 as pb

from pagefold_server.engine.interface import EngineCounters, PassReport

QUIET_PASSES = 3
"""Passes in a row that merged nothing and are an answer too."""


@dataclass(frozen=True, slots=True)
class Activity:
    """What clients are doing, which the engine's books alone do not tell.

    Attributes:
        busy: a client that answers still has something to do.
        unanswered: pages proposed to clients that do not answer.
        full: there was no room for a frame.
        obstacles: what keeps pages of the domain from merging.
    """

    busy: bool
    unanswered: int
    full: bool
    obstacles: Sequence[pb.Obstacle] = ()

    @property
    def certain(self) -> bool:
        """Whether a pass that found nothing says that there is nothing."""
        return not (self.full or any(map(obstacle_table.blocks, self.obstacles)))


@dataclass(slots=True)
class _Settle:
    number: int
    look: int  # passes that began before it was complete do not count
    merged_before: int
    done: Callable[[pb.SettleReport], None]
    merged: int  # the same, when it was looked at last
    passes: int = 0
    quiet: int = 0


class Settlers:
    """Those that wait in one domain, each under a key of its own."""

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
            key: what waits.
            number: repeated in the report.
            look: number of the look that clients are asked for now.
            counters: the books as they are now.
            done: called once with the report, and never after `stop`.
        """
        self._waiting[key] = _Settle(number, look, counters.pages_merged, done, counters.pages_merged)

    def stop(self, key: Hashable) -> None:
        """Forgets what waits under that key."""
        self._waiting.pop(key, None)

    def passed(self, found: PassReport, counters: EngineCounters, activity: Activity, looked: int, asked: int) -> None:
        """Weighs a pass that has just ended.

        Args:
            found: by it.
            counters: the books as they are now.
            activity: of the clients now.
            looked: the last look that was complete when the pass began.
            asked: the last that clients were asked for.
        """
        busy = activity.busy
        merged_nothing = found.proposed == 0 and counters.pages_merged == self._merged_at_pass and not busy
        self._merged_at_pass = counters.pages_merged
        nothing_left = found.proposed == 0 and found.fresh == 0 and found.backlog == 0
        for key, settle in list(self._waiting.items()):
            if looked < settle.look:
                continue
            settle.passes += 1
            if settle.merged != counters.pages_merged:
                settle.merged, settle.look = counters.pages_merged, asked + 1
                settle.quiet = 0
                continue
            settle.quiet = settle.quiet + 1 if merged_nothing else 0
            # Pages that changed before the request and just after the last pass look hot to the first pass that counts,
            # and may have been quiet ever since: only a second look can tell.
            done = nothing_left and (settle.passes > 1 or found.volatile == 0)
            if not busy and (done or settle.quiet >= QUIET_PASSES):
                self._finish(key, activity.certain, counters, activity)

    def give_up(self, counters: EngineCounters, activity: Activity) -> None:
        """Tells all that it will not settle, for the domain is not scanned."""
        for key in list(self._waiting):
            self._finish(key, False, counters, activity)

    def give_up_one(self, key: Hashable, counters: EngineCounters, activity: Activity) -> None:
        """Tells one that will not wait any longer how far it has come."""
        if key in self._waiting:
            self._finish(key, False, counters, activity)

    def _finish(self, key: Hashable, settled: bool, counters: EngineCounters, activity: Activity) -> None:
        settle = self._waiting.pop(key)
        settle.done(_report(settle, settled, counters, activity))


def _report(settle: _Settle, settled: bool, counters: EngineCounters, activity: Activity) -> pb.SettleReport:
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
        pages_refused=counters.pages_refused + activity.unanswered,
        obstacles=obstacle_table.summed(activity.obstacles),
    )
