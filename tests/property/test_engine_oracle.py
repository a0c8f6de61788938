"""The native engine against the reference, in lockstep: the same histories, and the same answers after every step.

Compared is all that an engine says (instructions, steps and reports of passes, counters but for the size of the books,
refusals, violations) and what it keeps (frames by number, with their bytes).
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from pagefold_server.engine import ProtocolViolation, Step
from pagefold_server.pool import MOST_FRAMES
from support.engine_machine import PAGES, EngineMachine, picks
from support.engine_pools import Lockstep, LockstepStore
from support.engine_world import columns

kinds = st.integers(-1, 9)
numbers = st.integers(-1, 6)


class Oracle(EngineMachine):
    limit = MOST_FRAMES
    threads = 1

    def make(self) -> tuple[LockstepStore, Lockstep]:
        self.lockstep = Lockstep(self.limit, self.threads)
        return LockstepStore(self.lockstep), self.lockstep

    @rule(zero_pages=st.booleans(), smart=st.booleans(), outstanding=st.sampled_from([1, 3, 100]))
    def configure_more(self, zero_pages: bool, smart: bool, outstanding: int) -> None:
        self.options = replace(self.options, use_zero_pages=zero_pages, smart_scan=smart, max_outstanding=outstanding)
        self.engine.configure(self.options)

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
            self.engine.check()
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
