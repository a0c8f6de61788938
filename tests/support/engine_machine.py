"""Random programs, clients and deaths for an engine. What is made of it in the end is for the tests to say.

After every step the books are recounted, every view reads what its program wrote, and every frame that a view maps or a
proposal names is there unchanged (I1, I3).
"""

from __future__ import annotations

import os
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pagefold_server.engine.interface import Engine, EngineOptions, Step

from support.engine_pools import Store
from support.engine_world import (
    BUDGET,
    CHANGED,
    FAILED,
    FORKED,
    PINNED,
    STATE,
    FakeClient,
    FakeStore,
    content,
)

PAGES = 6
NEVER = 10_000

picks = st.integers(0, 99)
pages = st.integers(0, PAGES - 1)
contents = st.integers(0, 4)  # 0 is zeros


class EngineMachine(RuleBasedStateMachine):
    """Clients of one engine, made by `make`: what has the frames, and the engine."""

    def __init__(self) -> None:
        super().__init__()
        self.store, self.engine = self.make()
        self.options = EngineOptions()
        self.clients: list[FakeClient] = []  # that may answer
        self.departed: list[FakeClient] = []  # whose memory lives on
        self.made = 0
        self.tracked = 0
        self.frames: dict[int, bytes | None] = {}

    def make(self) -> tuple[Store, Engine]:
        raise NotImplementedError

    def client(self, pick: int) -> FakeClient:
        return self.clients[pick % len(self.clients)]

    def place(self, pick: int) -> tuple[FakeClient, int]:
        """A client and one of its segments."""
        places = [(c, s) for c in self.clients for s in c.segments]
        return places[pick % len(places)]

    @initialize(
        sharing=st.sampled_from([2, 3, NEVER]),
        outstanding=st.sampled_from([1, 2, 5, NEVER]),
        zero_pages=st.booleans(),
        tracked=st.sampled_from([0b00000, 0b11111, 0b10110]),
    )
    def begin(self, sharing: int, outstanding: int, zero_pages: bool, tracked: int) -> None:
        self.tracked = tracked  # which of the clients report what was written
        self.options = EngineOptions(use_zero_pages=zero_pages, max_page_sharing=sharing, max_outstanding=outstanding)
        self.engine.configure(self.options)
        self.arrive()
        self.arrive()

    # Coming and going

    @precondition(lambda self: self.made < 5)
    @rule()
    def arrive(self) -> None:
        self.made += 1
        client = FakeClient(self.engine, self.store, self.made, bool(self.tracked >> self.made & 1))
        self.clients.append(client)
        client.add_segment(PAGES)

    @rule(pick=picks)
    def add_segment(self, pick: int) -> None:
        if self.clients and self.client(pick).made < 3:
            self.client(pick).add_segment(PAGES)

    @precondition(lambda self: any(c.segments for c in self.clients))
    @rule(pick=picks)
    def drop_segment(self, pick: int) -> None:
        client, segment = self.place(pick)
        client.report()  # as the session does: nothing may be reported of a segment that is dropped
        if self.engine.drop_segment(client.number, segment):
            view = client.segments.pop(segment)
            assert not view.frames, "I3: a segment that maps frames was dropped"
            os.close(view.fd)

    @precondition(lambda self: len(self.clients) > 1)
    @rule(pick=picks, carries_out=st.booleans())
    def depart(self, pick: int, carries_out: bool) -> None:
        client = self.client(pick)
        self.clients.remove(client)
        self.departed.append(client)
        if carries_out:  # and nobody hears of it
            client.work()
        self.engine.depart_client(client.number)

    @precondition(lambda self: self.departed)
    @rule(pick=picks)
    def departed_die(self, pick: int) -> None:
        self.departed.pop(pick % len(self.departed)).die()

    @precondition(lambda self: len(self.clients) > 1)
    @rule(pick=picks)
    def die(self, pick: int) -> None:
        client = self.client(pick)
        self.clients.remove(client)
        client.die()

    # Programs

    @precondition(lambda self: any(c.segments for c in self.clients))
    @rule(pick=picks, page=pages, number=contents)
    def write(self, pick: int, page: int, number: int) -> None:
        client, segment = self.place(pick)
        client.write(segment, page, content(number))

    @precondition(lambda self: any(c.segments for c in self.clients))
    @rule(pick=picks, numbers=st.lists(contents, min_size=PAGES, max_size=PAGES))
    def write_all(self, pick: int, numbers: list[int]) -> None:
        client, segment = self.place(pick)
        client.fill(segment, numbers)

    @precondition(lambda self: any(c.segments for c in self.departed))
    @rule(pick=picks, page=pages, number=contents)
    def write_departed(self, pick: int, page: int, number: int) -> None:
        client = self.departed[pick % len(self.departed)]
        for segment in client.segments:
            client.write(segment, page, content(number))

    @precondition(lambda self: any(c.segments for c in self.clients))
    @rule(pick=picks, page=pages)
    def discard(self, pick: int, page: int) -> None:
        client, segment = self.place(pick)
        client.harvest()
        client.discard(segment, page)

    @precondition(lambda self: any(c.segments for c in self.clients))
    @rule(pick=picks, page=pages, on=st.booleans())
    def exclude(self, pick: int, page: int, on: bool) -> None:
        client, segment = self.place(pick)
        client.exclude(segment, page, on)

    # Sessions. Taking, working and reporting are steps of their own, so that messages are late.

    @rule(pick=picks, count=st.integers(1, 10))
    def take(self, pick: int, count: int) -> None:
        self.client(pick).take(count)

    @rule(pick=picks)
    def work(self, pick: int) -> None:
        self.client(pick).work()

    @rule(pick=picks, reason=st.sampled_from([BUDGET, CHANGED, FAILED, FORKED, PINNED, STATE]))
    def decline(self, pick: int, reason: int) -> None:
        self.client(pick).decline(reason)

    @rule(pick=picks)
    def fail_adopts(self, pick: int) -> None:
        self.client(pick).harvest()
        self.client(pick).fail_adopts()

    @rule(pick=picks)
    def harvest(self, pick: int) -> None:
        self.client(pick).harvest()

    @rule(pick=picks)
    def report(self, pick: int) -> None:
        self.client(pick).report()

    @rule(pick=picks)
    def exchange(self, pick: int) -> None:
        self.client(pick).exchange()

    # The server

    def scan_slice(self, pages: int) -> Step:
        with self.store.tight():
            return self.engine.scan(pages)

    @rule(count=st.integers(1, 40))
    def scan(self, count: int) -> None:
        self.scan_slice(count)

    @rule()
    def scan_pass(self) -> None:
        for _ in range(200):
            if self.scan_slice(40).finished:
                break

    @rule()
    def scan_two_passes_and_answer(self) -> None:
        self.scan_pass()
        self.scan_pass()
        for client in self.clients:
            client.exchange()

    @rule(on=st.booleans())
    def unmerge(self, on: bool) -> None:
        self.engine.unmerge(on)

    @rule(sharing=st.sampled_from([2, 3, NEVER]))
    def configure(self, sharing: int) -> None:
        self.options = replace(self.options, max_page_sharing=sharing)
        self.engine.configure(self.options)

    @rule(limit=st.sampled_from([0, 2, NEVER]))
    def limit_pool(self, limit: int) -> None:
        self.store.limit = limit

    @rule()
    def flush(self) -> None:
        self.engine.flush()

    @invariant()
    def books_are_right(self) -> None:
        self.engine.check()

    @invariant()
    def I1_frames_in_use_stay_as_they_are(self) -> None:
        """A frame that is there before and after a step, and was not released in it, has the same bytes."""
        pages = dict(self.store.pages)
        released = self.store.released if isinstance(self.store, FakeStore) else []
        for frame in (self.frames.keys() & pages.keys()).difference(released):
            assert pages[frame] == self.frames[frame], f"I1: frame {frame} changed"
        released.clear()
        self.frames = pages

    @invariant()
    def I3_frames_in_use_are_there(self) -> None:
        for client in (*self.clients, *self.departed):
            assert client.frames().keys() <= self.frames.keys(), (
                "I3: a frame is released while a view or proposal has it"
            )

    @invariant()
    def I7_every_read_is_right(self) -> None:
        for client in (*self.clients, *self.departed):
            client.check()
