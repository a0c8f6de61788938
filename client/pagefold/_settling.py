"""Who waits for settle(), and which number goes to the server. Numbers only grow; one is under way at a time.

A report answers its own request and all earlier ones. While one is under way a newer one waits for the next turn:
if it took the place of the first, threads that call settle() again and again would never see an end.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from pagefold_proto.v1 import memory_pb2 as pb

from pagefold import _threads


@dataclass(slots=True, eq=False)
class Waiter:
    """One call of settle(). When `event` is set, either `report` is there or `failure` says why it never will be."""

    number: int
    event: _threads.Event = field(default_factory=_threads.Event)
    report: pb.SettleReport | None = None
    failure: str = ""


class Settles:
    """See the head of this file. `join` and `leave` are for any thread, the rest for the session's."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiters: dict[int, Waiter] = {}
        self._under_way = 0

    def __bool__(self) -> bool:
        return bool(self._waiters)

    def join(self) -> Waiter:
        """Begins to wait."""
        waiter = Waiter(next(self._numbers))
        self._waiters[waiter.number] = waiter
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Waits no longer."""
        self._waiters.pop(waiter.number, None)

    @property
    def is_current(self) -> bool:
        """Whether the server knows all there is to know: `number` would return the same again."""
        numbers = list(self._waiters)
        return self._under_way in numbers if numbers else self._under_way == 0

    def number(self) -> tuple[int, bool]:
        """What to tell the server: the number, 0 for none, and whether it is a new one."""
        numbers = list(self._waiters)
        if self._under_way in numbers:
            return self._under_way, False
        self._under_way = max(numbers, default=0)
        return self._under_way, self._under_way != 0

    def renew(self) -> None:
        """The server knows of none."""
        self._under_way = 0

    def answer(self, report: pb.SettleReport) -> bool:
        """The server is done with a request. Whether anybody waits for that."""
        numbers = [number for number in list(self._waiters) if number <= report.settling]
        for number in numbers:
            self._finish(number, report, "")
        return bool(numbers)

    def fail(self, why: str) -> None:
        """There will be no answers."""
        for number in list(self._waiters):
            self._finish(number, None, why)

    def _finish(self, number: int, report: pb.SettleReport | None, failure: str) -> None:
        waiter = self._waiters.pop(number, None)
        if waiter is not None:
            waiter.report, waiter.failure = report, failure
            waiter.event.set()
