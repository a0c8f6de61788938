"""Whose turn it is: start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996), by processor time, not by turns.

    clock      seconds of processor time that somebody has had, moved up when he comes back
    virtual    the clock of whoever was served last, as it was before that

Who has the lowest clock of those that want something comes first. Whoever wanted nothing for a while is moved up to
`virtual`: time that was not used is not saved up, and nobody has to make up for time in which he was alone. So among
those that always want something each gets the same, however many pieces he cuts his work into, and how large.

Two ladders of these make the server fair: between tenants, and between the domains of each. This file knows neither.
"""

from __future__ import annotations


class Share:
    """Somebody's place in a `Shares`.

    Attributes:
        clock: see the head of this file.
        wants: whether he wants something now.
        used: seconds of processor time since the start; for people.
    """

    __slots__ = ("clock", "used", "wants")

    def __init__(self) -> None:
        self.clock = 0.0
        self.wants = False
        self.used = 0.0


class Shares:
    """Who is fair to whom: those whose `Share` is moved by one of these."""

    def __init__(self) -> None:
        self.virtual = 0.0

    def want(self, share: Share) -> None:
        """He wants something. Saying so again changes nothing."""
        if not share.wants:
            share.wants = True
            share.clock = max(share.clock, self.virtual)

    def rest(self, share: Share) -> None:
        """He wants nothing any more."""
        share.wants = False

    def book(self, share: Share, cpu: float) -> None:
        """He was served.

        Args:
            share: whose.
            cpu: seconds of processor time that it took.
        """
        if not share.wants:  # whoever waits keeps what he is behind
            share.clock = max(share.clock, self.virtual)
        self.virtual = max(self.virtual, share.clock)
        share.clock += cpu
        share.used += cpu
