"""The reference engine against brute force, under random programs, clients and deaths.

After every step the books are recounted, every view reads what its program wrote, and every frame that a view maps or a
proposal names is there unchanged (I1, I3; the store of the fake world sees to it). In the end everybody is quiet, and
what is merged then must be exactly what comparing all contents with each other says.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pagefold_server.engine import EngineOptions, PassReport
from pagefold_server.reference import ReferenceEngine
from support.engine_world import (
    BUDGET,
    CHANGED,
    FAILED,
    FORKED,
    PINNED,
    STATE,
    ZEROS,
    FakeClient,
    FakeSegment,
    FakeStore,
    content,
)

PAGES = 6
NEVER = 10_000

picks = st.integers(0, 99)
pages = st.integers(0, PAGES - 1)
contents = st.integers(0, 4)  # 0 is zeros


class Engines(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = FakeStore()
        self.engine = ReferenceEngine(self.store)
        self.options = EngineOptions()
        self.clients: list[FakeClient] = []  # that may answer
        self.departed: list[FakeClient] = []  # whose memory lives on
        self.made = 0
        self.tracked = 0
        self.frames: dict[int, bytes | None] = {}

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

    @rule(count=st.integers(1, 40))
    def scan(self, count: int) -> None:
        self.engine.scan(count)

    @rule()
    def scan_pass(self) -> None:
        for _ in range(200):
            if self.engine.scan(40).finished:
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

    @invariant()
    def books_are_right(self) -> None:
        self.engine.check()

    @invariant()
    def I1_frames_in_use_stay_as_they_are(self) -> None:
        """A frame that is there before and after a step, and was not released in it, has the same bytes."""
        for frame, data in self.frames.items():
            if frame not in self.store.released:
                assert self.store.pages[frame] == data, f"I1: frame {frame} changed"
        self.store.released.clear()
        self.frames = dict(self.store.pages)

    @invariant()
    def I7_every_read_is_right(self) -> None:
        for client in (*self.clients, *self.departed):
            client.check()

    # The oracle

    def teardown(self) -> None:
        try:
            self.store.limit = NEVER
            self.engine.unmerge(False)
            # One place is not enough for two equal pages of one client.
            self.options = replace(self.options, max_outstanding=max(self.options.max_outstanding, 2))
            self.configure(NEVER)
            self.come_to_rest()
            self.compare_with_brute_force()
            self.unmerge_all_and_merge_anew(3)
        finally:
            for client in (*self.clients, *self.departed):
                client.die()
        assert self.store.pages == {}, "I3: frames outlive all who used them"
        self.engine.check()

    def come_to_rest(self) -> None:
        """Scans, and lets everybody do as told, until there is nothing to do and nothing waits any more."""
        self.finish_pass()  # which may have begun before the last write
        quiet = 0
        for _ in range(400):
            report = self.finish_pass()
            for client in self.clients:
                client.exchange()
            self.engine.check()
            counters = self.engine.counters()
            resting = counters.pages_waiting + counters.pages_refused + counters.pages_over_budget
            left = report.proposed + report.volatile + report.backlog
            copied = sum(len(s.copies) for c in self.clients for s in c.segments.values())
            quiet = 0 if left or resting or copied or self.engine.outstanding() else quiet + 1
            if quiet == 2:  # what had rested came back at the end of the first of them
                return
        raise AssertionError("it does not come to rest")

    def finish_pass(self) -> PassReport:
        while True:
            step = self.engine.scan(1000)
            if step.finished:
                return step.finished

    def views(self) -> list[FakeSegment]:
        return [view for client in self.clients for view in client.segments.values()]

    def candidates(self) -> Counter[bytes]:
        """Contents of the pages that may be merged, or are; those that were never written are holes."""
        found: Counter[bytes] = Counter()
        for view in self.views():
            for page, data in view.wrote.items():
                if page in view.frames or page not in view.excluded:
                    found[data] += 1
        return found

    def compare_with_brute_force(self) -> None:
        """Without a limit to sharing, whatever has an equal is merged, and nothing else needs to be."""
        found = self.candidates()
        merged = Counter(view.wrote.get(page, ZEROS) for view in self.views() for page in view.frames)
        on_zero = sum(frame < 0 for view in self.views() for frame in view.frames.values())
        kept = set(self.store.pages.values())  # some by departed clients, or by a page that lost its equals
        for data, count in found.items():
            if data == ZEROS and self.options.use_zero_pages:
                assert merged[data] == count
            elif count > 1 or data in kept:
                assert merged[data] == count, "equal pages are not merged"
            else:
                assert merged[data] == 0
        if not self.departed:
            counters = self.engine.counters()
            in_use = Counter(f for view in self.views() for f in view.frames.values() if f >= 0)
            assert counters.pages_shared == len(in_use) == len(self.store.pages)
            assert counters.pages_sharing == sum(in_use.values()) - len(in_use)
            assert counters.zero_pages == on_zero
            assert counters.pages_unshared == sum(found.values()) - sum(merged[data] for data in found)

    def unmerge_all_and_merge_anew(self, sharing: int) -> None:
        """From nothing, the numbers are exact for any limit to sharing: as many full frames as there can be."""
        for client in self.departed:
            client.die()
        self.departed.clear()
        self.engine.unmerge(True)
        for client in self.clients:
            client.exchange()
        self.engine.check()
        assert self.store.pages == {}, "I3: unmerging left frames"
        self.engine.unmerge(False)
        self.configure(sharing)
        self.come_to_rest()
        found = self.candidates()
        zeros = found.pop(ZEROS, 0) if self.options.use_zero_pages else 0
        frames = sum(count // sharing + (count % sharing > 1) for count in found.values())
        alone = sum(count % sharing == 1 for count in found.values())
        counters = self.engine.counters()
        assert counters.pages_shared == len(self.store.pages) == frames
        assert counters.pages_sharing == sum(found.values()) - alone - frames
        assert counters.pages_unshared == alone
        assert counters.zero_pages >= zeros  # and holes that once were pages of zeros
        assert counters.pages_volatile == 0


Engines.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestEngines = Engines.TestCase
