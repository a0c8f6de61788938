"""Which member of a queue is served next: start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996) by processor time.

    clock      seconds of processor time that a member has had, moved up when it comes back
    virtual    the clock of the member that was served last, as it was before that

Of the members that want something, the one with the lowest clock comes first. A member that wanted nothing for a while
is moved up to `virtual`: time that was not used is not saved up, and no member makes up for time in which it was alone.
So members that always want something get the same time each, however many pieces they cut their work into, and how
large.

Two queues of these make the server fair: one of tenants, and one of the domains of each. This file knows neither.
"""

from __future__ import annotations


class Share:
    """A member's place in a `FairQueue`.

    Attributes:
        clock: see the head of this file.
        wants: it wants something now.
        used: seconds of processor time since the start; for people.
    """

    __slots__ = ("clock", "used", "wants")

    def __init__(self) -> None:
        self.clock = 0.0
        self.wants = False
        self.used = 0.0


class FairQueue:
    """Moves the `Share` of each of its members. See the head of this file."""

    def __init__(self) -> None:
        self.virtual = 0.0

    def want(self, share: Share) -> None:
        """The member wants something. Saying so again changes nothing."""
        if not share.wants:
            share.wants = True
            share.clock = max(share.clock, self.virtual)

    def rest(self, share: Share) -> None:
        """The member wants nothing any more."""
        share.wants = False

    def charge(self, share: Share, cpu: float) -> None:
        """The member was served.

        Args:
            share: of the member.
            cpu: seconds of processor time that it took.
        """
        if not share.wants:  # a member that waits keeps what it is behind
            share.clock = max(share.clock, self.virtual)
        self.virtual = max(self.virtual, share.clock)
        share.clock += cpu
        share.used += cpu
