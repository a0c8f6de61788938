"""Whether a client answers: what it was asked for and has not done, and since when it is waited for.

    NONE --adopts sent--> ADOPTS --any call--> NONE
      `----merges sent--> MERGES --a call with an answer--> NONE      every merge is answered, so a call without is none

A look (see `domains.looks`) is asked for and made beside that. Times are of the monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

_LOOK_PATIENCE: Final = 3  # times the patience that a look may take, for a client that has much to report before
_RING_AGAIN: Final = 1.0  # seconds without a call after which a client is rung once more


class Work(Enum):
    """What a client was sent and has not answered."""

    NONE = 0
    ADOPTS = 1
    MERGES = 2  # and adopts, perhaps


@dataclass(slots=True)
class LookRequest:
    """The look that a client is asked for.

    Attributes:
        wanted: number of the last look that it was asked for.
        made: number of the last one that it has made.
        since: when it was asked, or has made one, while there is another to make.
    """

    wanted: int = 0
    made: int = 0
    since: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether there is a look to make."""
        return self.made < self.wanted

    def ask(self, number: int, now: float) -> None:
        """Asks for a look."""
        if not self.is_open:
            self.since = now
        self.wanted = number

    def answer(self, number: int, now: float) -> None:
        """The client says that it has made a look, of those that it was asked for."""
        if number > self.made:
            self.made, self.since = min(number, self.wanted), now

    def drop(self) -> None:
        """It is not waited for any more."""
        self.made = self.wanted


@dataclass(slots=True)
class Responsiveness:
    """See the head of this file.

    Attributes:
        heard: when the client called last.
        called: it has called at all.
        work: that it was sent and has not answered.
        waiting: since when it has work, queued or sent; None: it has none.
        rung: when it was rung last since its last Exchange.
    """

    heard: float
    called: bool = False
    work: Work = Work.NONE
    waiting: float | None = None
    rung: float | None = None

    def call(self, now: float) -> None:
        """The client has called."""
        self.heard = now
        self.called = True

    def answer(self, merges: bool) -> None:
        """The client has reported: what it was sent is done. Merges are done if it answered one (`merges`)."""
        if merges or self.work is not Work.MERGES:
            self.work = Work.NONE

    def send(self, merges: bool, adopts: bool) -> None:
        """An Exchange is answered. Merges that were not answered are still waited for."""
        self.rung = None
        if self.work is not Work.MERGES:
            self.work = Work.MERGES if merges else Work.ADOPTS if adopts else Work.NONE

    def expect(self, now: float) -> None:
        """There is something for the client to do."""
        if self.waiting is None:
            self.waiting = now

    def is_ring_due(self, now: float) -> bool:
        """Whether to ring it. A client at work calls by itself when it is done."""
        last = self.rung if self.work is Work.NONE else self.heard
        return last is None or now - last >= _RING_AGAIN

    def is_silent(self, now: float, patience: float, look: LookRequest) -> bool:
        """Whether the client has had work for longer than it is waited for.

        Args:
            now: the time.
            patience: seconds for which a client is waited for.
            look: that it was asked for.
        """
        if look.is_open and now - look.since > _LOOK_PATIENCE * patience:
            return True  # it calls, and reports, and never looks
        return self.waiting is not None and now - self.waiting > patience
