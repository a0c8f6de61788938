"""Each engine against brute force, under random programs, clients and deaths.

In the end everybody is quiet, and what is merged then must be exactly what comparing all contents with each other says.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import settings
from pagefold_server.engine.interface import Engine, PassReport
from support import engine_pools
from support.engine_machine import NEVER, EngineMachine
from support.engine_pools import Store
from support.engine_world import ZEROS, FakeSegment


class Model(EngineMachine):
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
            left = dict(self.store.pages)
            self.store.close(unlink=True)
        assert left == {}, "I3: frames outlive all who used them"

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


class Reference(Model):
    def make(self) -> tuple[Store, Engine]:
        return engine_pools.make("reference")


class Native(Model):
    def make(self) -> tuple[Store, Engine]:
        return engine_pools.make("native")


Reference.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
Native.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestReference = Reference.TestCase
TestNative = Native.TestCase
