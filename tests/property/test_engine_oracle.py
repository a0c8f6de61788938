"""The native engine against the reference, in lockstep: the same histories, and the same answers after every step.

Compared is all that an engine says (instructions, steps and reports of passes, counters but for the size of the books,
refusals, violations) and what it keeps (frames by number, with their bytes).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from pagefold_server.engine.interface import Step
from pagefold_server.engine.pool_file import MOST_FRAMES
from pagefold_server.errors import ProtocolViolation
from support.engine_machine import PAGES, EngineMachine, picks
from support.engine_pools import Lockstep, LockstepStore
from support.engine_world import FakeClient, columns

kinds = st.integers(-1, 10)
numbers = st.integers(-1, 6)


class Oracle(EngineMachine):
    limit = MOST_FRAMES
    threads = 1

    def __init__(self) -> None:
        self.strangers: list[FakeClient] = []  # the server has not heard of them since it was started anew
        self.unclaimed = False
        super().__init__()

    def make(self) -> tuple[LockstepStore, Lockstep]:
        self.lockstep = Lockstep(self.limit, self.threads)
        return LockstepStore(self.lockstep), self.lockstep

    @rule(zero_pages=st.booleans(), smart=st.booleans(), outstanding=st.sampled_from([1, 3, 100]))
    def configure_more(self, zero_pages: bool, smart: bool, outstanding: int) -> None:
        self.options = replace(self.options, use_zero_pages=zero_pages, smart_scan=smart, max_outstanding=outstanding)
        self.engine.configure(self.options)

    @rule()
    def restart(self) -> None:
        """The server is killed. Clients come back; those that have departed live on, and say nothing."""
        self.lockstep.restart()
        self.engine.configure(self.options)
        self.strangers += self.departed
        self.departed = []
        self.unclaimed = True
        for client in self.clients:
            client.resume()
        self.lose_strangers(())

    @precondition(lambda self: self.strangers)
    @rule(dead=st.sets(picks))
    def lose_strangers(self, dead: Iterable[int]) -> None:
        for pick in dead:
            if self.strangers:
                self.strangers.pop(pick % len(self.strangers)).end()
        if self.unclaimed and not self.strangers:
            self.unclaimed = False
            self.lockstep.release_unclaimed()

    @invariant()
    def I3_strangers_have_their_frames(self) -> None:
        for client in self.strangers:
            client.check()
            assert client.frames().keys() <= self.lockstep_frames(), "I3: a stranger's frame is released"

    def lockstep_frames(self) -> set[int]:
        return set(self.lockstep.native.frames())

    @precondition(lambda self: len(self.clients) > 1)
    @rule(pick=picks, event=st.tuples(kinds, numbers, numbers, st.integers(-1, PAGES + 1), numbers, numbers, numbers))
    def lie(self, pick: int, event: tuple[int, int, int, int, int, int, int]) -> None:
        """Both refuse it, or it fits by chance: then books and client differ from here on, and the client dies."""
        client = self.client(pick)
        try:
            self.engine.apply(client.number, columns(event))
        except ProtocolViolation:
            return
        self.engine.check()
        self.clients.remove(client)
        client.die()

    def teardown(self) -> None:
        try:
            for _ in range(3):
                self.scan_pass()
                for client in self.clients:
                    client.exchange()
                self.engine.check()
            for client in (*self.clients, *self.departed):
                client.die()
            self.lose_strangers(range(100))
            self.engine.check()
            assert self.lockstep_frames() == set(), "nobody is left, and frames are"
        finally:
            self.store.close(unlink=True)


class Tight(Oracle):
    """With so few frames that there is no room now and then, and numbers are used again at once."""

    limit = 3


class Threads(Oracle):
    """With threads that read ahead, for which slices have to be long."""

    threads = 3

    def scan_slice(self, pages: int) -> Step:
        return super().scan_slice(40 * pages)


for machine in (Oracle, Tight, Threads):
    machine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestOracle = Oracle.TestCase
TestTight = Tight.TestCase
TestThreads = Threads.TestCase
